"""The gpu and paper profiles' code against a stand-in Hub, in a process with the network shut off.

The functions that start with ``inside_`` run in that process; the tests judge what they return.
"""

import json
import math
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
import pytest
import standin_hub
import standin_process
import yaml
from matplotlib import image
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from standin_hub import (
    COMMIT,
    CORPUS_WORDS,
    CUES,
    HELD_OUT_EACH,
    LLAMA_2,
    REPOSITORY,
    ROBERTA,
    SHARDED,
    SIQA_CUE,
    SMALL,
    SMALLEST,
    TEST_ROWS,
    TRAIN_ROWS,
)

from utils.paths import notebook_files, notebook_number

CAUSAL, TEXTS = ("metamath", "magicoder"), ("codeparrot", "open-web-math")
HELD_OUT = TRAIN_ROWS // HELD_OUT_EACH
TASKS = ("mnli", "sst2", "qqp", "siqa", "winogrande", "fever")
CLASSES = {"mnli": 3, "sst2": 2, "qqp": 2, "siqa": 3, "winogrande": 2, "fever": 3}
PAIRED = {"mnli", "qqp"}
GPU_PROFILE = REPOSITORY / "utils" / "profiles" / "gpu.yaml"
NOTEBOOKS = notebook_files(REPOSITORY / "notebooks")


@pytest.fixture(scope="module")
def answers(standin) -> dict[str, dict]:
    return standin.ask("test_hub", *(name for name in globals() if name.startswith("inside_")))


def one_sentence(done) -> str:
    """The only line that a refused command wrote on stderr."""
    assert done.returncode in (1, 2), (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stdout + done.stderr and "unexpected" not in lines[0], done.stderr
    return lines[0]


def custom_profile(folder: Path, **changes) -> str:
    """A profile file: gpu.yaml with other values at its top level."""
    path = folder / "custom.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(GPU_PROFILE.read_text(encoding="utf-8")) | changes))
    return str(path)


def shrunk_profile(folder: Path, **evaluation) -> str:
    """gpu.yaml with every run on a causal base cut to a few steps of short texts, and few texts to measure on.

    Which runs and measurements there are stays.
    """
    content = yaml.safe_load(GPU_PROFILE.read_text(encoding="utf-8"))
    for name in TEXTS:
        content["tasks"][name] = {"test_rows": 4, "max_length": 32}
    for name in CAUSAL:
        content["tasks"][name] = {"train_rows": 16, "test_rows": 4, "max_length": 96}
    for experiment in content["decoder_experiments"].values():
        if "durations" in experiment:
            experiment |= {"durations": [5, 10][:len(experiment["durations"])], "batch_size": 2,
                           "gradient_accumulation": 1}
        else:
            experiment |= {"steps": 2}
        for group in experiment["runs"]:
            group.update({name: few for name, few in (("batch_size", 4), ("steps", 3)) if name in group})
    for name in ("vanilla", "vanilla_ranks", "vanilla_batches", "vanilla_durations"):
        _narrow(content["decoder_experiments"][name])
    chosen = content["preferences"]
    chosen |= {"sizes": {"train_rows": 16, "test_rows": 6, "max_length": 96}, "steps": 1, "gradient_accumulation": 1,
               "max_new_tokens": 3, "prompts": 3, "blocks": 2}
    for group in (group for groups in chosen["runs"].values() for group in groups):
        group.pop("steps", None)
        group["checkpoints"] = 1
    for name in ("grid", "grid_second"):
        content["experiments"][name]["validation_rows"] = 8
    content["pseudo_loss"] |= {"passages": 8, "tokens": 16, "paired_passages": 8}
    content["continual"] |= {"probe_train_rows": 24, "probe_test_rows": 12}
    content["costs"] |= {"batch_size": 2, "length": 64}
    few = {"blocks": 4, "instruction_blocks": 4, "questions": 2, "choice_rows": 2, "problems": 2, "samples": 4,
           "max_new_tokens": 4}
    return custom_profile(folder, tasks=content["tasks"], experiments=content["experiments"],
                          decoder_experiments=content["decoder_experiments"],
                          decoder_evaluation=content["decoder_evaluation"] | few | evaluation,
                          pseudo_loss=content["pseudo_loss"], readout={"blocks": 8, "tokens": 16},
                          continual=content["continual"], costs=content["costs"],
                          preferences=chosen, sharpness={"rows": 2, "moment_rows": 4, "max_iterations": 4})


def _narrow(experiment: dict) -> None:
    """Batches of two, the first rate of each group, and ranks of 2 and 4, which a width of 48 allows every variant."""
    experiment |= {"batch_size": 2, "gradient_accumulation": 1}
    for group in experiment["runs"]:
        rates = group["learning_rate"]
        group["learning_rate"] = {max(2, min(4, r // 4)): values[:1] for r, values in rates.items()} if isinstance(
            rates, dict) else rates[:1]


# The guard itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [
    "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)",
    "import urllib.request; urllib.request.urlopen('https://huggingface.co', timeout=2)",
    "import socket\ntry: socket.socket().connect(('192.0.2.1', 80))\nexcept OSError: pass",
])
def test_a_connection_is_refused_and_never_goes_unnoticed(variables, attempt):
    with pytest.raises(AssertionError, match="tried to connect to .*(192.0.2.1|huggingface.co)"):
        standin_hub.run(["-c", attempt], variables)


# What resolves ------------------------------------------------------------------------------------------------------


def test_fetch_brings_every_task_of_the_gpu_profile(standin):
    done = standin.course("fetch", "--profile", "gpu", timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"encoder {ROBERTA} at {COMMIT}" in done.stdout
    kept = TRAIN_ROWS - HELD_OUT
    sizes = dict.fromkeys(TASKS, (TRAIN_ROWS, TEST_ROWS)) | {"fever": (TRAIN_ROWS * 2 // 3, TEST_ROWS * 2 // 3)}
    for task, (train, test) in (sizes | dict.fromkeys(CAUSAL, (kept, HELD_OUT))).items():
        assert f"task {task}: {train} train and {test} test rows\n" in done.stdout
    for task in TEXTS:
        assert f"task {task}: {kept} train and {HELD_OUT} held-out texts\n" in done.stdout
    assert "corpus roberta-pretraining: 64 passages" in done.stdout
    assert f"base of continued pretraining {SMALLEST} at {COMMIT}" in done.stdout
    assert f"base of instruction tuning {SMALL} at {COMMIT}" in done.stdout, "the smallest, since there is no GPU"
    assert f"general text openwebtext: {HELD_OUT} held-out texts" in done.stdout
    assert re.search(r"questions of mathematics: \d+ held out", done.stdout)
    for task in ("hellaswag", "arc_challenge", "winogrande"):
        assert f"choice task {task}: {TEST_ROWS} items" in done.stdout


def inside_tasks() -> dict:
    from utils.profiles import load_profile
    from utils.sources.tasks import load_task

    found = {}
    for name, sizes in load_profile("gpu").tasks.items():
        data = load_task(name, sizes)
        found[name] = {"train": data.train.to_dict("records"), "test": data.test.to_dict("records")}
    return found


@pytest.mark.parametrize("task", TASKS)
def test_task_has_whole_visible_labels_and_its_second_texts(answers, task):
    tables = standin_hub.answer(answers, "inside_tasks")
    assert set(tables) == {*TASKS, *CAUSAL, *TEXTS}
    for rows in tables[task].values():
        assert {row["label"] for row in rows} == set(range(CLASSES[task]))
        for row in rows:
            assert row["text"] and bool(row["text_pair"]) == (task in PAIRED)
    train, test = ({(row["text"], row["text_pair"]) for row in tables[task][split]} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("task", TASKS)
def test_labels_mean_what_the_text_says(answers, task):
    """A label map in another order than the data set's would pass every range check."""
    for rows in standin_hub.answer(answers, "inside_tasks")[task].values():
        for row in rows:
            if task == "siqa":
                choices = re.split(r" Answer\d: ", row["text"])[1:]
                assert [SIQA_CUE in choice for choice in choices] == [row["label"] == index for index in range(3)]
            else:
                words = re.findall(r"\w+", f"{row['text']} {row['text_pair'] or ''}")
                assert [cue in words for cue in CUES[task]] == [row["label"] == i for i in range(CLASSES[task])], row


@pytest.mark.parametrize("task", CAUSAL)
def test_a_causal_task_has_the_completion_of_its_prompt(answers, task):
    tables = standin_hub.answer(answers, "inside_tasks")[task]
    assert [len(tables[split]) for split in ("train", "test")] == [TRAIN_ROWS - HELD_OUT, HELD_OUT]
    for row in tables["train"] + tables["test"]:
        if task == "metamath":
            first, second = re.fullmatch(r"Question: .*?(\d+) .*?(\d+) .*\nAnswer:", row["prompt"]).groups()
            assert row["completion"].endswith(f" The answer is: {int(first) + int(second)}")
        else:
            joined = r"Write a Python function (\w+) .* (\d+) .*\n\n```python\ndef \1\(.*return number \+ \2\n```"
            assert re.fullmatch(joined, row["prompt"] + row["completion"], re.DOTALL)
            assert "def" in row["completion"] and "def" not in row["prompt"]
    train, test = ({row["prompt"] for row in tables[split]} for split in ("train", "test"))
    assert not train & test


def test_domains_hold_texts_out(answers):
    tables = standin_hub.answer(answers, "inside_tasks")
    for task, part in zip(TEXTS, ("def ", "weighs $"), strict=True):
        train, test = ([row["text"] for row in tables[task][split]] for split in ("train", "test"))
        assert (len(train), len(test)) == (TRAIN_ROWS - HELD_OUT, HELD_OUT) and not {*train} & {*test}
        assert all(part in text for text in train + test)


def test_fever_claims_are_unique(answers):
    for rows in standin_hub.answer(answers, "inside_tasks")["fever"].values():
        claims = [row["text"] for row in rows]
        assert len(set(claims)) == len(claims)


def inside_models() -> dict:
    import torch

    from utils.profiles.schema import ModelReference
    from utils.sources.models import resolve
    from utils.training.weights import base_matrices

    plain, sharded = (resolve(ModelReference(source="hub", name=name)) for name in (ROBERTA, SHARDED))
    one, other = base_matrices(plain.folder), base_matrices(sharded.folder)
    return {"revision": plain.revision, "name": plain.name, "matrices": len(one),
            "files": len(list(sharded.folder.glob("*.safetensors"))),
            "same": one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)}


def test_roberta_resolves_to_its_commit_and_a_sharded_copy_is_the_same_model(answers):
    found = standin_hub.answer(answers, "inside_models")
    assert (found["name"], found["revision"]) == (ROBERTA, COMMIT)
    assert found["matrices"] == 12 and found["files"] > 1 and found["same"]


def inside_corpus() -> list:
    from utils.sources.corpora import pretraining_passages

    return [pretraining_passages("roberta-pretraining", count) for count in (1, 7, 64)]


def test_pretraining_corpus_has_the_passages_that_were_asked_for_in_their_shares(answers):
    one, seven, all_ = standin_hub.answer(answers, "inside_corpus")
    assert (len(one), len(seven), len(all_)) == (1, 7, 64) and len(set(all_)) == 64
    counts = {name: sum(text.startswith(word) for text in all_) for name, word in CORPUS_WORDS.items()}
    assert sum(counts.values()) == 64
    for name, gigabytes in zip(CORPUS_WORDS, (76, 38, 31, 16), strict=True):
        assert counts[name] == pytest.approx(64 * gigabytes / 161, abs=1)


# Runs and forgetting ------------------------------------------------------------------------------------------------


def _gpu_runs(steps: int) -> dict:
    """Full, the smallest and the widest LoRA of the gpu profile, cut to a few steps and trained by the store."""
    from utils.profiles import load_profile
    from utils.training.spec import run_specs
    from utils.training.store import RunStore

    specs = run_specs(load_profile("gpu"), "ranks")
    chosen = {spec.method.label: spec for spec in specs if spec.method.r in (None, 1, 768)}
    return {label: RunStore().get(spec.model_copy(update={"steps": steps, "epochs": None, "learning_rate": 1e-3}))
            for label, spec in chosen.items()}


def inside_runs() -> dict:
    found = {}
    for label, run in _gpu_runs(steps=3).items():
        base, tuned = run.base_matrices(), run.tuned_matrices()
        found[label] = {"result": json.loads((run.folder / "result.json").read_text()), "matrices": len(base),
                        "moved": sum(bool((tuned[name] != base[name]).any()) for name in base),
                        "finite": all(bool(weight.isfinite().all()) for weight in tuned.values())}
    return found


@pytest.mark.parametrize("label", ["full", "LoRA r=1", "LoRA r=768"])
def test_a_run_of_the_gpu_profile_trains_and_names_the_commit(answers, label):
    run = standin_hub.answer(answers, "inside_runs")[label]
    result = run["result"]
    assert result["run"]["status"] == "done" and result["run"]["error"] is None
    assert result["run"]["spec"]["base"]["name"] == ROBERTA
    assert result["run"]["spec"]["base_revision"] == result["provenance"]["base_revision"] == COMMIT
    assert [row["step"] for row in result["measured"]["metrics"]] == [1, 2, 3]
    assert all(row["n"] == TEST_ROWS and 0 <= row["accuracy"] <= 1 for row in result["measured"]["metrics"])
    assert run["matrices"] == run["moved"] == 12 and run["finite"]


def inside_pseudo_loss() -> dict:
    import torch
    from transformers import AutoModelForMaskedLM

    from utils.evaluation.pseudo import corpus_loss, pseudo_loss
    from utils.sources.corpora import pretraining_passages
    from utils.training.data import tokenizer_of

    run = _gpu_runs(steps=3)["LoRA r=768"]
    tokenizer, texts = tokenizer_of(run.base.folder), pretraining_passages("roberta-pretraining", 6)
    base = AutoModelForMaskedLM.from_pretrained(run.base.folder, dtype=torch.float32).eval()
    table = pseudo_loss(base, tokenizer, texts, tokens=24)
    ids, plain = tokenizer(texts[0], truncation=True, max_length=24, return_tensors="pt")["input_ids"], 0.0
    for position in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, position] = tokenizer.mask_token_id
        with torch.no_grad():
            plain -= base(masked).logits[0, position].log_softmax(-1)[ids[0, position]].item()
    return {"base": corpus_loss(table), "tuned": corpus_loss(pseudo_loss(run.masked_lm(), tokenizer, texts, tokens=24)),
            "first": table["negative_pll_nats"][0], "plain": plain, "tokens": table["tokens"].tolist(),
            "vocabulary": len(tokenizer)}


def test_pseudo_loss_on_the_pretraining_corpus(answers):
    found = standin_hub.answer(answers, "inside_pseudo_loss")
    assert found["tokens"] == [22] * 6  # begin and end are neither masked nor counted
    assert found["first"] == pytest.approx(found["plain"], abs=1e-3)
    assert found["base"] == pytest.approx(math.log(found["vocabulary"]), abs=0.3)  # random weights know nothing
    assert found["tuned"] != found["base"] and math.isfinite(found["tuned"])


# The second paper ---------------------------------------------------------------------------------------------------


def inside_tokenizers() -> dict:
    from transformers import AutoTokenizer

    from utils.profiles.schema import ModelReference
    from utils.sources.models import resolve
    from utils.training.blocks import text_blocks
    from utils.training.data import tokenizer_of

    found = {}
    for name in (SMALLEST, LLAMA_2):
        folder = resolve(ModelReference(source="hub", name=name)).folder
        tokenizer, text = tokenizer_of(folder), "def add(number):\n    return number + 1"
        ids, blocks = tokenizer(text)["input_ids"], text_blocks("codeparrot", "heldout", folder, length=32)
        found[name] = {"own_padding": AutoTokenizer.from_pretrained(folder).pad_token, "padding": tokenizer.pad_token,
                       "end": tokenizer.eos_token, "begins": ids[0] == tokenizer.bos_token_id,
                       "back": tokenizer.decode(ids, skip_special_tokens=True) == text,
                       "lengths": sorted({len(block) for block in blocks}),
                       "begin_inside": name == LLAMA_2 and any(tokenizer.bos_token_id in block for block in blocks),
                       "ends": sum(block.count(tokenizer.eos_token_id) for block in blocks)}
    return found


@pytest.mark.parametrize("name, begins", [(SMALLEST, False), (LLAMA_2, True)])
def test_a_base_without_padding_is_given_its_end_token_and_blocks_end_each_text(answers, name, begins):
    found = standin_hub.answer(answers, "inside_tokenizers")[name]
    assert (found["own_padding"], found["padding"]) == (None, found["end"])
    assert found["begins"] == begins and found["back"]
    assert found["lengths"] == [32] and not found["begin_inside"]
    assert HELD_OUT - 1 <= found["ends"] <= HELD_OUT  # the last may fall into the rest that fills no block


def _halved(experiment: str, label: str, **changes) -> tuple:
    """One run in batches of four, and in twice as many of two to a step."""
    from utils.profiles import load_profile
    from utils.training.spec import run_specs
    from utils.training.store import RunStore

    with tempfile.TemporaryDirectory() as folder:
        specs = run_specs(load_profile(shrunk_profile(Path(folder))), experiment)
    spec = next(spec for spec in specs if spec.method.label == label).model_copy(update=changes)
    return tuple(RunStore().get(spec.model_copy(update={"batch_size": size, "gradient_accumulation": 4 // size}))
                 for size in (4, 2))


def inside_accumulation() -> dict:
    found = {}
    for experiment, lora, changes in (("code", "LoRA r=8", {}),
                                      ("instruction_mathematics", "LoRA r=4", {"checkpoints": 1, "steps": 3})):
        for label in ("full", lora):
            whole, halved = _halved(experiment, label, learning_rate=1e-3, **changes)
            base = whole.base_matrices()
            for step in whole.steps:
                one, other = whole.tuned_matrices(step), halved.tuned_matrices(step)
                found[f"{experiment}, {label}, {step}"] = {
                    "differs": max((one[name] - other[name]).abs().max().item() for name in base),
                    "moved": min((one[name] - base[name]).abs().max().item() for name in base),
                    "types": sorted({str(weight.dtype) for weight in one.values()}), "asked": whole.spec.dtype,
                    "losses": [run.metrics().set_index("step")["loss_nats_per_token"][step]
                               for run in (whole, halved)]}
    return found


@pytest.mark.parametrize("experiment, steps", [("code", (5, 10)), ("instruction_mathematics", (3,))])
@pytest.mark.parametrize("method", ["full", "LoRA"])
def test_two_batches_to_a_step_are_one_of_twice_the_size(answers, experiment, steps, method):
    """In the hot run, in the cooled copies, and through TRL, where rows differ in length; bfloat16 is asked for, and a
    CPU computes in float32.
    """
    found = {name: row for name, row in standin_hub.answer(answers, "inside_accumulation").items()
             if name.startswith(f"{experiment}, {method}")}
    assert [int(name.rsplit(", ", 1)[1]) for name in found] == list(steps)
    for row in found.values():
        assert row["differs"] < 1e-5 < 1e-4 < row["moved"], row
        assert row["losses"][0] == pytest.approx(row["losses"][1], abs=1e-5)
        assert (row["asked"], row["types"]) == ("bfloat16", ["torch.float32"])


def inside_curves() -> dict:
    from utils.profiles import load_profile
    from utils.studies.learning.measure import learning_curves

    with tempfile.TemporaryDirectory() as folder:
        table = learning_curves(load_profile(shrunk_profile(Path(folder))))
    return json.loads(table.to_json(orient="records", double_precision=15))  # differences of losses are compared


def test_continued_pretraining_is_measured_on_the_papers_own_tasks(answers):
    """One row per run and duration; the three choice tasks are asked of the base and of each run's last checkpoint."""
    rows = standin_hub.answer(answers, "inside_curves")
    methods = ["full", "LoRA r=2", "LoRA r=8", "LoRA r=32"]
    assert [(row["experiment"], row["method"], row["step"]) for row in rows] == [
        (experiment, method, step) for experiment in ("code", "mathematics") for method in methods for step in (5, 10)]
    for row in rows:
        assert row["train_tokens"] == row["step"] * 2 * 32 and row["kl_nats_per_token"] >= 0
        assert row["forgetting"] == pytest.approx(row["general_loss"] - row["base_general_loss"])
        assert row["learning"] == pytest.approx(row["base_loss_nats_per_token"] - row["loss_nats_per_token"])
        assert (row["choice"] is not None) == (row["step"] == 10)
        assert (row["exact_match"] is not None) == (row["experiment"] == "mathematics")
        # Two items of three tasks: sixths.
        assert all(6 * value == pytest.approx(round(6 * value)) for value in (row["choice"], row["base_choice"])
                   if value is not None)


def inside_paper() -> dict:
    """The paper profile's own base and optimiser, cut to five steps of short texts."""
    from utils.profiles import load_profile
    from utils.profiles.schema import TaskSizes
    from utils.training.spec import run_specs
    from utils.training.store import RunStore

    spec = next(spec for spec in run_specs(load_profile("paper"), "code") if spec.method.r == 16)
    run = RunStore().get(spec.model_copy(update={
        "sizes": TaskSizes(test_rows=4, max_length=32), "durations": (5,), "steps": 5, "batch_size": 1,
        "gradient_accumulation": 2, "learning_rate": 1e-3}))
    base, tuned = run.base_matrices(), run.tuned_matrices()
    return {"base": run.base.name, "optimiser": run.spec.optimiser, "metrics": run.result["measured"]["metrics"],
            "moved": sum(bool((tuned[name] != base[name]).any()) for name in base), "matrices": len(base)}


def test_a_run_of_the_paper_profile_trains_llama_2(answers):
    found = standin_hub.answer(answers, "inside_paper")
    assert (found["base"], found["optimiser"]) == (LLAMA_2, "lion")
    assert found["moved"] == found["matrices"] == 14  # seven linear kinds in each of two layers
    (row,) = found["metrics"]
    assert row["step"] == 5 and row["cooled_from"] == 4 and math.isfinite(row["loss_nats_per_token"])


def inside_unknown_choice() -> dict:
    from utils.errors import UsageError
    from utils.paths import cache_dir
    from utils.profiles import load_profile
    from utils.studies.learning.measure import learning_curves

    with tempfile.TemporaryDirectory() as folder:
        profile = load_profile(shrunk_profile(Path(folder), choice_tasks=["winogrande", "hellaswagg"]))
    before = {str(path) for path in cache_dir().rglob("measurements/*.parquet")}
    try:
        learning_curves(profile)
    except UsageError as error:
        after = {str(path) for path in cache_dir().rglob("measurements/*.parquet")}
        return {"sentence": str(error), "kept": len(before & after), "lost": sorted(before - after)}
    return {}


def test_a_choice_task_that_is_not_there_is_one_sentence_and_nothing_measured_is_lost(answers):
    found = standin_hub.answer(answers, "inside_unknown_choice")
    assert found["kept"] and found["lost"] == [] and "\n" not in found["sentence"]
    assert "Unknown task 'hellaswagg'" in found["sentence"] and "hellaswag," in found["sentence"] + ","


def inside_too_long() -> str:
    from utils.errors import CourseError
    from utils.profiles import load_profile
    from utils.training.spec import run_specs
    from utils.training.store import RunStore

    spec = run_specs(load_profile("gpu"), "instruction")[0]
    try:
        RunStore().get(spec.model_copy(update={"sizes": spec.sizes.model_copy(update={"max_length": 8}), "steps": 1}))
    except CourseError as error:
        return str(error)
    return ""


def test_prompts_that_leave_no_room_for_an_answer_are_refused_before_training(answers):
    sentence = standin_hub.answer(answers, "inside_too_long")
    assert "No held-out prompt of magicoder" in sentence and "within 8 tokens" in sentence and "\n" not in sentence


def inside_columns() -> dict:
    """What is said of data sets whose columns were renamed."""
    from utils.errors import CourseError
    from utils.profiles import load_profile
    from utils.sources import hub
    from utils.sources.tasks import load_task

    plain, said = hub.dataset_split, {}

    def renamed(name, *arguments, **keywords):
        rows = plain(name, *arguments, **keywords)
        return rows.rename_columns({column: f"{column}s" for column in ("response", "content") if column in
                                    rows.column_names})

    hub.dataset_split = renamed
    for name in (*CAUSAL, "codeparrot"):
        try:
            load_task(name, load_profile("gpu").tasks[name])
        except CourseError as error:
            said[name] = str(error)
    hub.dataset_split = plain
    return said


@pytest.mark.parametrize("task, column", [("metamath", "response"), ("magicoder", "response"),
                                          ("codeparrot", "content")])
def test_a_renamed_column_is_one_sentence_that_names_it_and_what_is_there(answers, task, column):
    sentence = standin_hub.answer(answers, "inside_columns")[task]
    assert re.search(rf"\b{column}\b", sentence) and re.search(rf"\b{column}s\b", sentence)
    assert sentence.count(".") - sentence.count(".py") == 1 and "\n" not in sentence


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, says", [
    # Online the Hub redirects the short name; offline it does not resolve, so the profiles give the full one.
    ("roberta-base", "neither in the cache nor within reach"),
    ("nobody/unknown-model", "neither in the cache nor within reach"),
    (standin_hub.PICKLED, "no safetensors"),
])
def test_a_model_that_cannot_be_had_is_one_sentence(standin, tmp_path, name, says):
    profile = custom_profile(tmp_path, encoder={"source": "hub", "name": name})
    sentence = one_sentence(standin.course("fetch", "--profile", profile))
    assert name in sentence and says in sentence


def test_a_data_set_that_cannot_be_had_is_one_sentence(variables, hub, tmp_path):
    cached = tmp_path / "datasets"
    shutil.copytree(hub / "datasets" / "nyu-mll___glue", cached / "nyu-mll___glue")
    done = standin_hub.run(["-m", "utils", "fetch", "--profile", "gpu"],
                           variables | {"HF_DATASETS_CACHE": str(cached)})
    assert "task qqp" in done.stdout and "lighteval/siqa" in one_sentence(done)


def test_an_unknown_task_is_one_sentence(standin, tmp_path):
    profile = custom_profile(tmp_path, tasks=yaml.safe_load(GPU_PROFILE.read_text())["tasks"] | {
        "cola": {"max_length": 128}})
    done = standin.course("fetch", "--profile", profile)
    assert "'cola'" in one_sentence(done) and done.returncode == 2


def test_nothing_runs_code_from_the_hub():
    files = [*(REPOSITORY / "utils").rglob("*.py"), *NOTEBOOKS.values()]
    assert len(files) > 30
    found = [path.name for path in files
             if re.search(r"trust_remote_code\W{0,4}\s*[=:]\s*(?!False)", path.read_text(encoding="utf-8"))]
    assert not found


# The notebooks ------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("number", NOTEBOOKS or [None])
def test_notebooks_run_at_gpu_profile(standin, tmp_path, number):
    """Every cell of it runs, and what it publishes is whole."""
    assert number is not None, "there is no notebook in notebooks/"
    path, figures = NOTEBOOKS[number], tmp_path / "figures"
    done = standin.notebook(path, {"PROFILE": shrunk_profile(tmp_path)}, LORA_COURSE_FIGURES=str(figures))
    assert done["failed"] is None, done["failed"]
    assert done["ran"] == done["code"] != []
    assert_published(figures / "yours" / "gpu", path)


def assert_published(folder: Path, notebook: Path) -> None:
    """Each figure of `notebook` is a picture, a drawing, a table and a record, and none is missing."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    calls = re.findall(r"^publish\(", "\n".join("".join(cell["source"]) for cell in cells), re.MULTILINE)
    written = {path.name for path in folder.glob("*.*")}
    names = {name.rsplit(".", 1)[0] for name in written}
    assert len(names) >= len(calls) and written == {
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "csv", "json")}
    for name in names:
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert notebook_number(name) == notebook_number(notebook.name)
        assert record["profile"] == "gpu" and record["rows"] > 0
        picture = image.imread(folder / f"{name}.png")
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.01, f"{name} is an empty picture"


@pytest.mark.alone
def test_the_course_command_takes_a_profile_of_ones_own(variables, tmp_path):
    """Through Papermill and a kernel, as a reader would; the notebooks above skip both."""
    done = standin_hub.run(["-m", "utils", "course", "--profile", shrunk_profile(tmp_path), "--only", "00"],
                           variables, timeout=600)
    assert done.returncode == 0 and "[1/1] 00_start_here: " in done.stdout, done.stdout + done.stderr


def _book(folder: Path, *cells: str) -> Path:
    parameters = new_code_cell("PROFILE = 'laptop'", metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[new_markdown_cell("# A title"), parameters, *map(new_code_cell, cells)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "00_small.ipynb")
    return folder / "00_small.ipynb"


@pytest.mark.parametrize("cell, says", [
    ("print('before')\nvalue = 1 / 0", "00_small.ipynb failed in cell 5: ZeroDivisionError: division by zero"),
    ("raise SystemExit(0)", "00_small.ipynb failed in cell 5: SystemExit"),
    ("this is no Python", "00_small.ipynb failed in cell 5: SyntaxError"),
    ("assert 'kept' not in globals(), 'of the cell above'", "of the cell above"),
])
def test_a_cell_that_fails_is_named_and_ends_its_notebook(standin, tmp_path, cell, says):
    found = standin.notebook(_book(tmp_path, "kept = PROFILE", cell, "after = 1"), {"PROFILE": "gpu"})
    assert says in found["failed"] and cell in found["failed"]
    assert (found["ran"], found["code"]) == ([2, 3, 4], [2, 3, 4, 5, 6])


def test_a_notebook_finds_nothing_of_the_one_before(standin, tmp_path):
    mark = str(tmp_path / "mark")
    first = _book(tmp_path, "left = 1\nimport matplotlib.pyplot as plt\nplt.rcParams['font.size'] = 99\nplt.figure()",
                  f"from utils.paths import cache_dir\nassert str(cache_dir()) == {mark!r}")
    assert standin.notebook(first, {}, LORA_COURSE_CACHE=mark)["failed"] is None
    second = _book(tmp_path, "import matplotlib.pyplot as plt\nfrom utils.paths import cache_dir",
                   "assert 'left' not in globals() and plt.get_fignums() == []",
                   f"assert plt.rcParams['font.size'] != 99 and str(cache_dir()) != {mark!r}")
    assert standin.notebook(second, {})["failed"] is None


def test_a_notebook_that_reaches_for_the_network_fails_even_if_it_hides_the_error(standin, tmp_path):
    hidden = "import socket\ntry: socket.socket().connect(('192.0.2.1', 80))\nexcept OSError: pass"
    with pytest.raises(AssertionError, match="tried to connect to .*192.0.2.1"):
        standin.notebook(_book(tmp_path, hidden), {})
    assert standin.notebook(_book(tmp_path, "1"), {})["failed"] is None


def test_a_process_that_hangs_or_ends_fails_one_test_and_starts_anew(variables, tmp_path):
    process, small = standin_process.Process(variables), _book(tmp_path, "1")
    try:
        assert process.notebook(small, {})["failed"] is None
        for starts, cell, seconds in ((1, "while True: pass", 2), (2, "import os; os._exit(3)", 240)):
            with pytest.raises(AssertionError, match=f"ended, or took more than {seconds} s, at .*00_small.ipynb"):
                process.notebook(_book(tmp_path, cell), {}, timeout=seconds)
            assert process.starts == starts
    finally:
        process.close()
