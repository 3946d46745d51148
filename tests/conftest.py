"""What several test files share: threads, a quiet plotting backend, small models, the kinds of test, and durations."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers, and the processes that they start, one thread each
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import functools
import gc
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from utils.machine import limit_threads
from utils.paths import ROOT

limit_threads()
gc.disable()  # until the files have imported their libraries: a sixth of that time would go into looking for garbage

DURATIONS = ROOT / ".pytest_durations.json"
KINDS = {
    "unit": "a function or a class, within this process",
    "process": "starts processes: a kernel, a command, a sandbox, an interrupted training",
    "hub": "the gpu and paper profiles on the stand-in Hub, with the network shut off",
    "notebook": "a notebook of the course, whole, at smoke",
}
# Files whose tests are of that kind as a whole.
PROCESSES = {"run.py", "test_chaos_programs.py", "test_code.py", "test_habits.py",
             "test_forked.py", "test_judge.py", "test_runner.py", "test_sandbox.py"}
# Seconds of a test that has not run here yet; only which of them begin first depends on it.
USUAL_SECONDS = {"unit": 0.2, "process": 1.0, "hub": 10.0, "notebook": 20.0}


# Kinds of test, their order, and how long they take -----------------------------------------------------------------


def pytest_configure(config):
    for name, meaning in KINDS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "alone: shares no costly fixture with its file, so that any worker may take it")
    config.addinivalue_line("markers", "xdist_group(name): pytest-xdist's, also where it is switched off")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations())


def kind_of(item: pytest.Item) -> str:
    """What a test is marked as, or else what its fixtures or its file say."""
    for name in KINDS:
        if item.get_closest_marker(name):
            return name
    fixtures = set(getattr(item, "fixturenames", ()))
    if "course_notebook" in fixtures:
        return "notebook"
    if fixtures & {"hub", "standin"}:
        return "hub"
    return "process" if item.nodeid.split("::")[0].split("/")[-1] in PROCESSES else "unit"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Give every test its kind, keep a file on one worker (its fixtures are built once), begin with what takes long.

    A test that is marked ``alone`` goes to whichever worker is free. Durations are those of the last run here.
    """
    for item in items:
        if not item.get_closest_marker(kind := kind_of(item)):
            item.add_marker(kind)
    if not hasattr(config, "workerinput"):
        return  # in one process tests are easier to follow in the order of their files
    measured, total = read_durations(), {}
    for item in items:
        if not item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.xdist_group(group_of(item)))
        seconds = measured.get(item.nodeid, USUAL_SECONDS[kind_of(item)])
        total[group_of(item)] = total.get(group_of(item), 0.0) + seconds
    items.sort(key=lambda item: (-total[group_of(item)], group_of(item)))  # stable: a file keeps its order


def pytest_collection_finish():
    """The files have imported their libraries: collections, one before every training, pass over them from here on."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _running["kind"] = kind_of(item)
    return (yield)


_running = {"kind": None}  # the kind of the test that this process is at
_start = subprocess.Popen.__init__


@functools.wraps(_start)
def _start_if_said(self, args, *rest, **keywords):
    """A unit test starts no Python of its own: importing torch there takes longer than a hundred unit tests."""
    words = [str(word) for word in args] if isinstance(args, list | tuple) else [str(args)]
    fetching = "pip" in words or "utils.sources.questions" in words  # for a cold cache, whichever test comes first
    if _running["kind"] == "unit" and words[0] == sys.executable and not fetching:
        pytest.fail(f"Expected a unit test to start no process, got {' '.join(words)[:200]}; mark it as 'process'.")
    _start(self, args, *rest, **keywords)


subprocess.Popen.__init__ = _start_if_said


def group_of(item: pytest.Item) -> str:
    """What one worker runs as a whole: a file, or a test that is marked ``alone``."""
    return item.nodeid if item.get_closest_marker("alone") else item.nodeid.split("::")[0]


def read_durations() -> dict[str, float]:
    """Test -> seconds when it last ran here; empty before the first run."""
    try:
        return json.loads(DURATIONS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class Durations:
    """Seconds of every test, fixtures included, kept beside those of the tests that this run left out."""

    def __init__(self):
        self.seconds = {}

    def pytest_runtest_logreport(self, report):
        name, _, group = report.nodeid.rpartition("@")  # a worker adds the group to the name
        name = name if group and report.nodeid.startswith(f"{group}::") else report.nodeid
        self.seconds[name] = round(self.seconds.get(name, 0.0) + report.duration, 3)

    def pytest_sessionfinish(self, session):
        if self.seconds:
            kept = read_durations() | self.seconds
            DURATIONS.write_text(json.dumps(dict(sorted(kept.items(), key=lambda pair: -pair[1])), indent=0),
                                 encoding="utf-8")


# Fixtures -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_variables_of_the_shell(monkeypatch):
    """A reader's own settings must not decide how a test ends; the cache is theirs to place."""
    for name in ("LORA_COURSE_FIGURES", "LORA_COURSE_PUBLISH", "LORA_COURSE_REFERENCE", "LORA_COURSE_SKIP_HARDWARE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where a shell started the tests in the background, and so deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Returns a function that fills a folder that all workers of this run share, whichever of them comes first."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        done = shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                build(shared / name)
                done.touch()
        return shared / name

    return folder


@pytest.fixture(scope="session")
def hub(built_once) -> Path:
    """The stand-in Hub; see ``standin_hub.py``."""
    import standin_hub

    return built_once("hub", standin_hub.build)


@pytest.fixture(scope="session")
def variables(hub, built_once) -> dict[str, str]:
    """Of the environment of a process that sees the stand-in Hub, no network, and one cache for the whole run."""
    import standin_hub

    return standin_hub.environment(hub, built_once("hub-cache", Path.mkdir))


@pytest.fixture(scope="session")
def standin(variables):
    """This worker's process on the stand-in Hub; it imports the libraries once for all questions and notebooks."""
    import standin_process

    process = standin_process.Process(variables)
    yield process
    process.close()


@pytest.fixture(scope="session")
def tiny_base(built_once) -> Path:
    """A BERT of two layers, 32 wide, with a WordPiece vocabulary learnt from the packaged movie sentences."""
    return built_once("tiny-base", _build_base)


def _build_base(folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    from utils.sources.text import rated_sentences

    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(rated_sentences()["text"].head(2000), vocab_size=400, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64)
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=64).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"


@pytest.fixture
def spec(tiny_base):
    """Builds specifications on the tiny base: 4 steps of 4 rows, but for what is given."""
    from utils.profiles.schema import ModelReference, TaskSizes
    from utils.sources.models import resolve
    from utils.training.spec import Method, RunSpec

    reference = ModelReference(source="local", name=str(tiny_base))

    def build(**changes) -> RunSpec:
        return RunSpec(**{
            "base": reference, "base_revision": resolve(reference).revision, "task": "movies",
            "sizes": TaskSizes(train_rows=32, test_rows=16, max_length=32), "method": Method(kind="full"),
            "learning_rate": 1e-2, "schedule": "linear", "warmup_fraction": 0.0, "steps": 4, "epochs": None,
            "batch_size": 4, "checkpoints": 1, "seed": 0} | changes)

    return build


@pytest.fixture(scope="session")
def tiny_decoder(built_once) -> Path:
    """A Llama of two layers, 16 wide, with a byte-level BPE learnt from the packaged movie sentences."""
    return built_once("tiny-decoder", _build_decoder)


def _build_decoder(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from utils.sources.text import rated_sentences

    bpe, end = ByteLevelBPETokenizer(), "<|endoftext|>"
    bpe.train_from_iterator(rated_sentences()["text"].head(1000), vocab_size=400, special_tokens=[end],
                            show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, pad_token=end,
                                        model_max_length=64)
    torch.manual_seed(0)
    # Matrices this large answer to a few steps; at the usual 0.02 a model this narrow hardly sees its input.
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
                         initializer_range=0.2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                         pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Checkpoints as transformers and PEFT write them, each made when a test first asks for it."""
    from checkpoint_shelf import Shelf

    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def shelf_cache(shelf, monkeypatch) -> Path:
    """One cache for all tests on the shelf: most of them compare something with the same few base models."""
    monkeypatch.setenv("LORA_COURSE_CACHE", str(shelf.folder / "cache"))
    return shelf.folder / "cache"
