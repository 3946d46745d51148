"""Runs bigger than a card: two processes on this CPU share a tiny model, and must make what one makes."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from utils.course.cli import main
from utils.errors import CourseError, UsageError
from utils.paths import cache_dir
from utils.profiles.schema import ModelReference, TaskSizes
from utils.sealed import MANIFEST
from utils.sources.models import resolve
from utils.training import sharded, together
from utils.training.plan import Costs
from utils.training.spec import Method, RunSpec
from utils.training.store import RunStore
from utils.training.together import check, launched, processes_for, train_together
from utils.training.weights import base_matrices

FULL, LORA = Method(kind="full"), Method(kind="lora", r=3, lora_alpha=6)  # two processes hold two rows of three and one
KILLED = "classification LoRA, killed"


def spec_on(folder: Path, task: str, **changes) -> RunSpec:
    """30 rows in batches of 4, so that the last batch of an epoch is not full; two epochs."""
    reference = ModelReference(source="local", name=str(folder))
    return RunSpec(**{
        "base": reference, "base_revision": resolve(reference).revision, "task": task,
        "sizes": TaskSizes(train_rows=30, test_rows=16, max_length=32), "method": FULL, "learning_rate": 1e-3,
        "schedule": "linear", "warmup_fraction": 0.0, "steps": 10, "epochs": None, "batch_size": 4, "checkpoints": 2,
        "seed": 0} | changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this file's own, for this process and those that it starts."""
    shared, own = cache_dir(), tmp_path_factory.mktemp("cache")
    for name in ("archives", "sources", "texts"):
        (shared / name).mkdir(exist_ok=True)
        (own / name).symlink_to(shared / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_COURSE_CACHE", str(own))
        yield own


@pytest.fixture(scope="module")
def bases(tiny_base, tiny_decoder, tmp_path_factory) -> dict[str, Path]:
    """The tiny models as they can be compared: without dropout; with a last layer of its own; with a NaN."""
    folder = tmp_path_factory.mktemp("bases")
    encoder = shutil.copytree(tiny_base, folder / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    (encoder / "config.json").write_text(json.dumps(config))
    # Larger matrices, as the decoder's are: gradients as small as AdamW's epsilon would make much of their rounding.
    weights = load_file(encoder / "model.safetensors")
    save_file({name: 10 * weight if weight.dim() == 2 else weight for name, weight in weights.items()},
              encoder / "model.safetensors", metadata={"format": "pt"})
    untied = shutil.copytree(tiny_decoder, folder / "untied")
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    model.save_pretrained(untied)
    broken = shutil.copytree(untied, folder / "broken")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[-1] = torch.nan  # in the part that the second process holds
    model.save_pretrained(broken)
    return {"encoder": encoder, "tied": tiny_decoder, "untied": untied, "no number": broken}


@pytest.fixture(scope="module")
def specs(cache, bases) -> dict[str, RunSpec]:
    """One run of every kind; the accumulated batches of text and code are of 2 × 3 rows, and 3 for each process."""
    parts = {"batch_size": 2, "gradient_accumulation": 3}
    code = parts | {"sizes": TaskSizes(train_rows=31, test_rows=8, max_length=256)}
    cooled = parts | {"durations": (5, 8), "steps": 8, "schedule": "constant_with_warmup"}
    lion = {"optimiser": "lion", "weight_decay": 1e-3}
    return {
        "classification full": spec_on(bases["encoder"], "movies"),
        "classification LoRA": spec_on(bases["encoder"], "movies", method=LORA),
        "causal full": spec_on(bases["tied"], "functions", **code, **lion),
        "causal LoRA": spec_on(bases["untied"], "functions", method=LORA, **code),
        "text full": spec_on(bases["untied"], "mathematics", **cooled, **lion),
        "text LoRA": spec_on(bases["tied"], "mathematics", method=LORA, **cooled),
        "diverged": spec_on(bases["no number"], "mathematics", steps=2, **parts),
        KILLED: spec_on(bases["encoder"], "movies", method=LORA, steps=60, checkpoints=4, seed=1)}


def processes_of(parent: psutil.Process) -> dict[int, psutil.Process]:
    """Those that train, by their rank."""
    found = {}
    for child in parent.children(recursive=True):
        try:
            if "utils.training.together" in child.cmdline() and "RANK" in (variables := child.environ()):
                found[int(variables["RANK"])] = child
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def trained(specs, cache) -> str:
    """All runs, by two processes of which one is killed in the last; what was said then."""
    points = cache / "runs" / specs[KILLED].key / sharded.Sharded.points

    def kill() -> None:
        while not list(points.glob(f"checkpoint-*/{MANIFEST}")):
            time.sleep(0.01)
        processes_of(psutil.Process())[1].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(CourseError) as told:
        train_together(list(specs.values()), 2)
    return str(told.value)


@pytest.fixture(scope="module")
def alone(cache):
    """The same runs, each trained by this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield RunStore(cache / "alone")
    torch.set_num_threads(threads)


def assert_same_run(found, expected) -> None:
    """At every checkpoint all trained tensors are those of the other run, and so is what training has changed of them.

    Of the change AdamW makes more of a difference in rounding where a gradient is near its epsilon: up to 5e-4 in ten
    seeds. Lion's runs, which step by signs, do not differ.
    """
    assert found.steps == expected.steps
    w0 = {f"weight.{name}": weight for name, weight in base_matrices(expected.base.folder).items()}
    for step in expected.steps:
        mine, theirs = found.trained(step), expected.trained(step)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            change = tensor - w0[name] if name in w0 else tensor
            assert mine[name].dtype == torch.float32 and mine[name].shape == tensor.shape
            difference = (mine[name] - tensor).norm()
            assert difference <= 1e-4 * tensor.norm() and difference <= 5e-3 * change.norm(), f"{name} at step {step}"


@pytest.mark.process
@pytest.mark.parametrize("kind", ["classification full", "classification LoRA", "causal full", "causal LoRA",
                                  "text full", "text LoRA"])
def test_two_processes_make_the_run_that_one_makes(trained, specs, alone, kind):
    found, expected = RunStore().get(specs[kind]), alone.get(specs[kind])
    assert_same_run(found, expected)
    exact = {"step", "n", "tokens", "cooled_from"}
    for mine, theirs in zip(found.result["measured"]["metrics"], expected.result["measured"]["metrics"], strict=True):
        assert mine.keys() == theirs.keys() and all(mine[name] == theirs[name] for name in exact & mine.keys())
        for name in {"accuracy", "loss_nats_per_token"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
    assert found.result["run"] == expected.result["run"], "rows and key included"
    counts = ("steps", "trainable_parameters", "total_parameters")
    assert all(found.result["measured"][name] == expected.result["measured"][name] for name in counts)
    sharding = found.result["provenance"]["sharding"]
    assert sharding.pop("held") < 0.6, "neither process holds the model"
    assert sharding == {"kind": "FSDP2", "processes": 2, "backend": "gloo"}
    assert "sharding" not in expected.result["provenance"]
    assert not (found.folder / "resume").exists()


@pytest.mark.process
def test_a_run_that_diverges_ends_in_all_processes_and_says_so(trained, specs, alone):
    found, expected = RunStore().get(specs["diverged"]), alone.get(specs["diverged"])
    assert found.diverged and expected.diverged and found.steps == expected.steps


@pytest.mark.process
def test_a_killed_process_ends_all_and_the_run_goes_on(trained, specs, alone, cache, capsys):
    spec, folder = specs[KILLED], cache / "runs" / specs[KILLED].key
    assert trained.startswith(f"Run {spec.key} is not finished: process 1 was ended by signal 9 (SIGKILL); the same ")
    assert trained.count("\n") == 0 and not RunStore().stored(spec)
    assert not processes_of(psutil.Process())
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}
    assert 0 < len(before) < 4
    train_together(list(specs.values()), 2)  # the others are there
    run = RunStore().get(spec)
    first = min(before)
    assert (folder / "checkpoints" / first).stat().st_mtime_ns == before[first], "went on, and did not begin anew"
    assert_same_run(run, alone.get(spec))
    assert not list((cache / "logs").glob("*-together.log"))


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, processes, sentence", [
    ({"method": Method(kind="lora", r=4, lora_alpha=8, variant="loft")}, 2, "got the variant 'loft'"),
    ({"method": Method(kind="lora", r=4, lora_alpha=8, variant="lora_ga")}, 2, "got the variant 'lora_ga'"),
    ({"task": "answers", "objective": "dpo"}, 2, "got a task of kind 'preference'"),
    ({"weight_decay": 1e-3, "decay_towards": "base"}, 2, "got a decay towards the base"),
    ({"batch_size": 6}, 4, r"the 6 rows of a step of run \w+ \(2, 3, 6\), got 4; choose another"),
    ({"batch_size": 1}, 2, r"\(there is none\), got 2"), ({}, 1, r"\(2, 4\), got 1"), ({}, 64, "one for each core")])
def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(tiny_base, monkeypatch, changes, processes,
                                                                      sentence):
    monkeypatch.setattr(together.subprocess, "run", lambda *_, **__: pytest.fail("started all the same"))
    monkeypatch.setattr(together, "most_processes", lambda: 8)
    with pytest.raises(UsageError, match=sentence) as told:
        train_together([spec_on(tiny_base, "movies").model_copy(update=changes)], processes)
    assert str(told.value).startswith("Expected ")


def test_a_run_that_another_goes_on_from_is_judged_too(tiny_base, monkeypatch):
    monkeypatch.setattr(together, "most_processes", lambda: 8)
    start = spec_on(tiny_base, "movies", batch_size=3)
    with pytest.raises(UsageError, match=start.key):
        check([spec_on(tiny_base, "movies", start=start)], 2)


@pytest.mark.parametrize("batch_size, accumulation, processes, expected", [
    (4, 1, 2, (4, 1)), (1, 32, 4, (4, 8)), (6, 32, 8, (48, 4)), (2, 3, 2, (2, 3)), (16, 1, 16, (16, 1))])
def test_a_step_keeps_its_rows_and_a_process_takes_no_more_at_a_time(tiny_base, batch_size, accumulation, processes,
                                                                     expected):
    spec = spec_on(tiny_base, "movies", batch_size=batch_size, gradient_accumulation=accumulation)
    rows, times = sharded.split(spec, processes)
    assert (rows, times) == expected
    assert rows * times == batch_size * accumulation and rows // processes <= batch_size


def test_each_process_draws_noise_of_its_own_and_the_same_again():
    def drawn(rank: int, step: int) -> float:
        sharded.OwnNoise(rank).on_step_begin(SimpleNamespace(seed=0), SimpleNamespace(global_step=step), None)
        return torch.rand(()).item()

    assert len({drawn(rank, step) for rank in (1, 2) for step in (0, 1)}) == 4
    assert drawn(1, 0) == drawn(1, 0)


def test_as_many_gpus_as_memory_asks_for(tiny_base, monkeypatch):
    spec = spec_on(tiny_base, "movies", batch_size=6)
    monkeypatch.setattr(together, "hardware", lambda: {"accelerator": {"memory_gib": 80.0}})
    monkeypatch.setattr(together, "most_processes", lambda: 4)
    assert [processes_for(spec, peak) for peak in (70.0, 100.0, 120.0, 160.0)] == [1, 2, 3, 3]
    with pytest.raises(UsageError, match="expects 300 GiB, but this machine's 4 GPUs of 80 GiB cannot share its 6"):
        processes_for(spec, 300.0)
    monkeypatch.setattr(together, "hardware", lambda: {"accelerator": None})
    assert processes_for(spec, 300.0) == 1


def test_the_first_reason_is_told(tmp_path):
    log = tmp_path / "log"
    lost = "lost: the connection to another process broke\n"
    ended = "[1]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n"
    for text, reason in ((lost + "error: There is no room.\n" + ended, "There is no room"),
                         (lost + ended, "process 1 was ended by signal 9 (SIGKILL)"),
                         (lost + ended.replace("-9", "-15"), "the connection to another process broke"),
                         ("", "its processes ended with 1")):
        log.write_text(text)
        assert together._why(log, 1) == reason


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile_run(monkeypatch, tiny_base) -> RunSpec:
    spec = spec_on(tiny_base, "movies")
    # A key depends on where the base lies; none is as unlikely as the second.
    monkeypatch.setattr("utils.training.wanted.every_spec", lambda profile, seeds: {spec.key: spec, "f" * 16: spec})
    return spec


def test_the_command_trains_the_runs_that_keys_name(profile_run, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(together, "train_together", lambda specs, processes: asked.append((specs, processes)))
    monkeypatch.setattr(together, "join", lambda specs: asked.append((specs, "joined")) or 0)
    words = ["train-sharded", "--profile", "smoke", "--run", profile_run.key[:12]]
    assert main([*words, "--processes", "2"]) == 0 and asked.pop() == ([profile_run], 2)
    assert "1 run is in the store" in capsys.readouterr().out
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 0 and asked.pop() == ([profile_run], "joined")


@pytest.mark.parametrize("words, sentence", [
    ([], "the following arguments are required: --run"), (["--run", "0123456789abcdef"], "but none of 2 begins with"),
    (["--run", ""], "but 2 of 2 begins with"), (["--run", "f", "--processes", "0"], "is not a whole number of 1"),
    (["--run", "f" * 16, "--processes", "9999"], "Expected up to ")])
def test_bad_words_are_one_sentence(profile_run, capsys, words, sentence):
    assert main(["train-sharded", "--profile", "smoke", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_a_sharded_runs_memory_is_that_of_all_its_processes(trained, specs):
    """So that a plan does not take the share of a card for the whole."""
    costs, spec = Costs(), specs["text full"]
    costs.learn(spec.model_dump(mode="json"), RunStore().get(spec).result["measured"])
    assert costs.of(spec)[1] > 0.6  # two processes that have imported everything


def test_a_batch_systems_variable_alone_is_no_launcher(monkeypatch):
    """Many scripts of SLURM export WORLD_SIZE."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launched()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()


@pytest.mark.process
def test_what_is_stopped_ends_all_that_it_started(tmp_path):
    """Only the launcher was ended, and its processes went on training as orphans."""
    script = "import subprocess, sys\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\nsys.stdin.read()"
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    child = psutil.Process(int(launcher.stdout.readline()))

    class Stopped:
        pid, waits = launcher.pid, 0

        def wait(self):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return launcher.wait()

    with pytest.raises(KeyboardInterrupt):
        together._waited_for(Stopped())
    assert launcher.poll() is not None
    assert psutil.wait_procs([child], timeout=5)[1] == []
