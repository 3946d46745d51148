"""The gpu and paper profiles' code against a stand-in Hub, in fresh processes with the network shut off.

The functions that start with ``inside_`` run in such a process; the tests judge what they return.
"""

import json
import math
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml

import standin_hub
from standin_hub import COMMIT, CORPUS_WORDS, CUES, REPOSITORY, ROBERTA, SHARDED, SIQA_CUE, TEST_ROWS, TRAIN_ROWS

TASKS = ("mnli", "sst2", "qqp", "siqa", "winogrande", "fever")
CLASSES = {"mnli": 3, "sst2": 2, "qqp": 2, "siqa": 3, "winogrande": 2, "fever": 3}
PAIRED = {"mnli", "qqp"}
GPU_PROFILE = REPOSITORY / "utils" / "profiles" / "gpu.yaml"
NOTEBOOKS = {path.name[:2]: path for path in sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    standin_hub.build(root)
    return root


@pytest.fixture(scope="session")
def variables(hub, tmp_path_factory) -> dict[str, str]:
    return standin_hub.environment(hub, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def answers(variables, tmp_path_factory) -> dict[str, dict]:
    """One process for all questions: importing torch, PEFT and datasets takes longer than answering."""
    inside = [name for name in globals() if name.startswith("inside_")]
    return standin_hub.ask(variables, tmp_path_factory.mktemp("answers") / "answers.json", "test_hub", *inside)


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


def test_fetch_brings_every_task_of_the_gpu_profile(variables):
    done = standin_hub.run(["-m", "utils", "fetch", "--profile", "gpu"], variables)
    assert done.returncode == 0, done.stderr
    assert f"encoder {ROBERTA} at {COMMIT}" in done.stdout
    for task in TASKS:
        rows = (TRAIN_ROWS * 2 // 3, TEST_ROWS * 2 // 3) if task == "fever" else (TRAIN_ROWS, TEST_ROWS)
        assert f"task {task}: {rows[0]} train and {rows[1]} test rows" in done.stdout
    assert "corpus roberta-pretraining: 64 passages" in done.stdout


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
    assert set(tables) == set(TASKS)
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


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, says", [
    # Online the Hub redirects the short name; offline it does not resolve, so the profiles give the full one.
    ("roberta-base", "neither in the cache nor within reach"),
    ("nobody/unknown-model", "neither in the cache nor within reach"),
    (standin_hub.PICKLED, "no safetensors"),
])
def test_a_model_that_cannot_be_had_is_one_sentence(variables, tmp_path, name, says):
    profile = custom_profile(tmp_path, encoder={"source": "hub", "name": name})
    sentence = one_sentence(standin_hub.run(["-m", "utils", "fetch", "--profile", profile], variables))
    assert name in sentence and says in sentence


def test_a_data_set_that_cannot_be_had_is_one_sentence(variables, hub, tmp_path):
    cached = tmp_path / "datasets"
    shutil.copytree(hub / "datasets" / "nyu-mll___glue", cached / "nyu-mll___glue")
    done = standin_hub.run(["-m", "utils", "fetch", "--profile", "gpu"],
                           variables | {"HF_DATASETS_CACHE": str(cached)})
    assert "task qqp" in done.stdout and "lighteval/siqa" in one_sentence(done)


def test_an_unknown_task_is_one_sentence(variables, tmp_path):
    profile = custom_profile(tmp_path, tasks=yaml.safe_load(GPU_PROFILE.read_text())["tasks"] | {
        "cola": {"max_length": 128}})
    done = standin_hub.run(["-m", "utils", "fetch", "--profile", profile], variables)
    assert "'cola'" in one_sentence(done) and done.returncode == 2


def test_nothing_runs_code_from_the_hub():
    files = [*(REPOSITORY / "utils").rglob("*.py"), *NOTEBOOKS.values()]
    assert len(files) > 30
    found = [path.name for path in files
             if re.search(r"trust_remote_code\W{0,4}\s*[=:]\s*(?!False)", path.read_text(encoding="utf-8"))]
    assert not found


# The notebooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NOTEBOOKS or [None])
def test_notebooks_run_at_gpu_profile(variables, number):
    assert number is not None, "there is no notebook in notebooks/"
    code = "\n".join("".join(cell["source"]) for cell in json.loads(NOTEBOOKS[number].read_text())["cells"]
                     if cell["cell_type"] == "code")
    started = time.time()
    done = standin_hub.run(["-m", "utils", "course", "--profile", "gpu", "--only", number, "--timeout", "300"],
                           variables, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = Path(variables["LORA_COURSE_FIGURES"]) / "gpu"
    written = {path.name for path in figures.glob("*.*") if path.stat().st_mtime >= started}
    assert bool(written) == ("publish(" in code), (number, written)
    for name in {name.rsplit(".", 1)[0] for name in written}:
        assert {f"{name}.{suffix}" for suffix in ("png", "svg", "csv", "json")} <= written
        record = json.loads((figures / f"{name}.json").read_text())
        assert record["profile"] == "gpu" and record["rows"] > 0
