"""The run store: trained once, resumed to the same numbers, verified, shared between processes, honest under fault."""

import json
import os
import resource
import shutil
import time
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import forked
import pandas as pd
import pytest
import torch

from utils.errors import CourseError
from utils.files import sha256_of
from utils.profiles.schema import ModelReference, TaskSizes
from utils.reporting import runs as kit_runs
from utils.reporting import runs as measure
from utils.sealed import MANIFEST, seal
from utils.sources.models import resolve
from utils.training import checkpoints as checkpoints_module
from utils.training import store as module
from utils.training import train as train_module
from utils.training.checkpoints import METRICS, Checkpoints
from utils.training.spec import Method, RunSpec
from utils.training.store import RESULT, Run, RunStore
from utils.training.trainer import resume_point

LORA = Method(kind="lora", r=4, lora_alpha=8)
FULL = Method(kind="full")


def spec_on(folder: Path, **changes) -> RunSpec:
    """A specification on the tiny base: 8 steps of 4 rows, saved for resuming every second step."""
    reference = ModelReference(source="local", name=str(folder))
    return RunSpec(**{
        "base": reference, "base_revision": resolve(reference).revision, "task": "movies",
        "sizes": TaskSizes(train_rows=32, test_rows=16, max_length=32), "method": LORA, "learning_rate": 1e-2,
        "schedule": "linear", "warmup_fraction": 0.0, "steps": 8, "epochs": None, "batch_size": 4,
        "checkpoints": 4, "seed": 0} | changes)


@pytest.fixture
def spec(tiny_base):
    return partial(spec_on, tiny_base)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory):
    """A finished run of each method, for the tests that only read."""
    return {method: RunStore(tmp_path_factory.mktemp("finished")).get(spec_on(tiny_base, method=method))
            for method in (LORA, FULL, Method(kind="lora", r=4, lora_alpha=8, rank_stabilised=True))}


def no_training(monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained although the run was finished"))


def steps_done(monkeypatch) -> list[int]:
    """The optimiser steps that are done from now on, in order."""
    seen, real = [], Checkpoints.on_step_end

    def noted(self, args, state, control, **kwargs):
        seen.append(state.global_step)
        return real(self, args, state, control, **kwargs)

    monkeypatch.setattr(Checkpoints, "on_step_end", noted)
    return seen


@contextmanager
def stopped_at(step: int, error: BaseException):
    """Raise at the end of a step, after what the step saves there."""
    real = Checkpoints.on_step_end

    def stop(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_step_end", stop)
        yield


def assert_same_run(run: Run, other: Run) -> None:
    assert run.steps == other.steps and run.steps == sorted(set(run.steps))
    for step in run.steps:
        mine, theirs = run.trained(step), other.trained(step)
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-6, msg=f"{name} at step {step}")
    lines = [json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == run.steps


# --- a run and its weights


def test_a_run_is_trained_once(store, spec, monkeypatch):
    run = store.get(spec())
    assert store.stored(spec()) and store.finished() == [run.folder]
    no_training(monkeypatch)
    assert store.get(spec()).result == run.result == RunStore(store.folder).get(spec()).result


def test_the_result_says_what_was_run_measured_and_with_what(finished):
    result = finished[LORA].result
    assert set(result) == {"run", "measured", "provenance"}
    assert (result["run"]["status"], result["run"]["error"]) == ("done", None)
    assert result["run"]["key"] == finished[LORA].spec.key == finished[LORA].folder.name
    assert RunSpec.model_validate(result["run"]["spec"]) == finished[LORA].spec
    assert json.loads((finished[LORA].folder / "spec.json").read_text()) == result["run"]["spec"]
    assert result["run"]["train_rows"] == 32
    measured = result["measured"]
    assert measured["steps"] == 8 and measured["peak_gib"] > 0 and measured["train_seconds"] > 0
    assert 0 < measured["trainable_parameters"] < measured["total_parameters"]
    assert [row["step"] for row in measured["metrics"]] == [2, 4, 6, 8]
    for row in measured["metrics"]:
        assert 0 <= row["accuracy"] <= 1 and row["n"] == 16
        assert row["sha256"] == sha256_of(finished[LORA].folder / "checkpoints" / row["file"])
    assert {"torch", "transformers", "peft", "trl"} <= set(result["provenance"]["packages"])
    assert result["provenance"]["base_revision"] == finished[LORA].spec.base_revision


def test_the_result_names_the_rows_and_not_only_their_name(finished, store, spec):
    """A data set's branch can move under its name: other rows, another checksum; the same rows, the same."""
    checksum = finished[LORA].result["run"]["data_sha256"]
    assert len(checksum) == 64 and checksum == finished[FULL].result["run"]["data_sha256"]
    fewer = spec(sizes=TaskSizes(train_rows=31, test_rows=16, max_length=32), steps=1, checkpoints=1)
    assert store.get(fewer).result["run"]["data_sha256"] != checksum


def test_nothing_of_the_training_itself_is_left(finished):
    for run in finished.values():
        assert {path.name for path in run.folder.iterdir()} == {
            "checkpoints", METRICS, RESULT, MANIFEST, "spec.json"}
        assert len(list((run.folder / "checkpoints").iterdir())) == 4


def test_the_tuned_matrices_follow_from_the_factors(finished):
    for method, run in finished.items():
        base, tuned, factors = run.base_matrices(), run.tuned_matrices(), run.factors()
        assert len(base) == 12 and base.keys() == tuned.keys()
        if method.kind == "full":
            assert factors is None
        else:
            assert method.scale == (4.0 if method.rank_stabilised else 2.0)
            for name, (B_N_r, A_r_K, scale) in factors.items():
                assert (B_N_r.shape[1], A_r_K.shape[0], scale) == (4, 4, method.scale)
                torch.testing.assert_close(tuned[name], base[name] + scale * B_N_r @ A_r_K)
        assert all((tuned[name] - base[name]).norm() > 0 for name in base), "a matrix that did not move"
        assert run.tuned_matrices(2)["encoder.layer.0.output.dense"].ne(tuned["encoder.layer.0.output.dense"]).any()


def test_the_base_is_read_from_its_file_and_never_changed(finished, tiny_base):
    from safetensors.torch import load_file

    stored = load_file(tiny_base / "model.safetensors")
    for run in finished.values():
        for name, weight in run.base_matrices().items():
            assert torch.equal(weight, stored[f"bert.{name}.weight"]), name
    assert resolve.__wrapped__(finished[FULL].spec.base).revision == finished[FULL].spec.base_revision


def test_the_reloaded_classifier_has_the_accuracy_that_was_recorded(finished):
    from utils.training.data import classification_data, evaluation_batches
    from utils.training.metrics import accuracy, predict

    for run in finished.values():
        _, test = classification_data(run.spec.task, run.spec.sizes, run.base.folder)
        again = accuracy(*predict(run.classifier(), evaluation_batches(test, run.base.folder)))
        assert again["accuracy"] == run.metrics()["accuracy"].iloc[-1]


@pytest.mark.parametrize("changes", [
    {"learning_rate": 2e-2}, {"seed": 1}, {"method": FULL}, {"method": Method(kind="lora", r=2, lora_alpha=8)},
    {"method": Method(kind="lora", r=4, lora_alpha=4)}, {"base_revision": "other"}, {"task": "topics"},
    {"method": Method(kind="lora", r=4, lora_alpha=8, rank_stabilised=True)}, {"schedule": "cosine"},
    {"sizes": TaskSizes(train_rows=33, test_rows=16, max_length=32)}, {"warmup_fraction": 0.1}, {"steps": 9},
    {"sizes": TaskSizes(train_rows=32, test_rows=16, max_length=16)}, {"steps": None, "epochs": 1.0},
    {"batch_size": 8}, {"dtype": "bfloat16"}, {"checkpoints": 2},
    {"base": ModelReference(source="hub", name="somebody/else")},
], ids="-".join)
def test_every_field_that_matters_changes_the_key(spec, changes):
    assert spec(**changes).key != spec().key
    assert spec().key == RunSpec.model_validate_json(spec().model_dump_json()).key, "the key is not stable"


def test_a_base_with_other_weights_is_refused(store, spec):
    with pytest.raises(CourseError, match="build the specification anew"):
        store.get(spec(base_revision="0" * 16))
    assert list(store.folder.glob("*/*")) == []


# --- cut short


@pytest.mark.parametrize("rows, method", [(20, LORA), (24, FULL)], ids=["within an epoch", "between two epochs"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, spec, monkeypatch, rows, method):
    """Twice cut short in its second epoch; a resume that draws the rows anew would end elsewhere."""
    chosen = spec(steps=12, method=method, sizes=TaskSizes(train_rows=rows, test_rows=16, max_length=32))
    whole = RunStore(tmp_path / "whole").get(chosen)
    store = RunStore(tmp_path / "cut")
    for step in (8, 11):
        with stopped_at(step, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            store.get(chosen)
        assert not store.stored(chosen)
    seen = steps_done(monkeypatch)
    run = store.get(chosen)
    assert seen == [10, 11, 12], "it did not go on from step 9"
    assert_same_run(run, whole)
    assert not (run.folder / "resume").exists()


def killed_at_its_seventh_step(spec: RunSpec, folder: Path) -> None:
    real = Checkpoints.on_step_end

    def killed(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 7:
            os._exit(9)

    Checkpoints.on_step_end = killed
    RunStore(folder).get(spec)


def slowly_trained(spec: RunSpec, folder: Path, name: str) -> None:
    """Ask for a run once both processes are ready to; whoever trains it takes a second longer, and says so."""
    real = module.train

    def train(*arguments, **named):
        print("TRAINING", flush=True)
        time.sleep(1)
        return real(*arguments, **named)

    module.train = train
    (folder / f"ready-{name}").touch()
    deadline = time.monotonic() + 120
    while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    print("ACCURACY", RunStore(folder).get(spec).metrics()["accuracy"].tolist(), flush=True)


@pytest.mark.process
def test_a_killed_run_is_finished_by_another_process(tmp_path, spec, monkeypatch, finished):
    killed, = forked.ended(partial(killed_at_its_seventh_step, spec(), tmp_path / "runs"), folder=tmp_path)
    assert killed.code == 9, killed.output
    folder = tmp_path / "runs" / spec().key
    assert not (folder / RESULT).exists() and (folder / "resume" / "checkpoint-6" / MANIFEST).exists()
    seen = steps_done(monkeypatch)
    run = RunStore(tmp_path / "runs").get(spec())
    assert seen == [7, 8]
    assert_same_run(run, finished[LORA])


@pytest.mark.process
def test_two_processes_train_a_run_once(tmp_path, spec):
    (tmp_path / "runs").mkdir()
    both = forked.ended(*(partial(slowly_trained, spec(), tmp_path / "runs", name) for name in "ab"), folder=tmp_path)
    assert [one.code for one in both] == [0, 0], both
    texts = [one.output for one in both]
    assert sorted(text.count("TRAINING") for text in texts) == [0, 1]
    waiting = next(text for text in texts if "TRAINING" not in text)
    assert f"Another process is training {spec().key}; waiting for it." in waiting
    assert len({text.splitlines()[-1] for text in texts}) == 1 and "ACCURACY [" in texts[0]


@pytest.fixture(scope="module")
def cut_short(tiny_base, tmp_path_factory):
    """A store with a run that was interrupted at its seventh step, with resume points at 4 and 6."""
    chosen = spec_on(tiny_base)
    store = RunStore(tmp_path_factory.mktemp("cut"))
    with stopped_at(7, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        store.get(chosen)
    return store.folder / chosen.key


@pytest.fixture
def resumed(store, spec, cut_short, monkeypatch) -> SimpleNamespace:
    """The interrupted run in a store of the test's own: its folder, and the steps that are done from now on."""
    folder = store.folder / spec().key
    shutil.copytree(cut_short, folder)
    assert sorted(path.name for path in (folder / "resume").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    return SimpleNamespace(folder=folder, steps=steps_done(monkeypatch))


def test_a_resume_point_cut_short_is_never_resumed_from(store, spec, resumed, finished, capsys):
    (resumed.folder / "resume" / "checkpoint-6" / MANIFEST).unlink()
    (resumed.folder / "resume" / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
    assert_same_run(store.get(spec()), finished[LORA])
    assert resumed.steps == [5, 6, 7, 8] and "damaged" not in capsys.readouterr().out


HARM = {"one bit": lambda path: flip(path), "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
        "empty": lambda path: path.write_bytes(b""), "missing": lambda path: path.unlink()}
POINT = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
         "training_args.bin", "epoch_rng_state.safetensors", "rows.json"]


@pytest.mark.parametrize("name, harm", zip(POINT, cycle(HARM), strict=False))
def test_a_damaged_resume_point_is_set_aside_and_the_one_before_it_used(store, spec, resumed, finished, capsys, name,
                                                                        harm):
    """Trainer itself goes on without a word where optimiser, scheduler or random state is missing."""
    point = resumed.folder / "resume" / "checkpoint-6"
    assert {path.name for path in point.iterdir() if path.name != MANIFEST} >= set(POINT)
    HARM[harm](point / name)
    assert_same_run(store.get(spec()), finished[LORA])
    assert resumed.steps == [5, 6, 7, 8]
    said = capsys.readouterr().out
    assert said.count("is damaged") == 1 and name in said and "goes on from an earlier point, or anew" in said


def test_a_run_whose_points_are_all_damaged_starts_anew(store, spec, resumed, finished):
    for point in (resumed.folder / "resume").iterdir():
        flip(point / "optimizer.pt")
    assert_same_run(store.get(spec()), finished[LORA])
    assert resumed.steps == list(range(1, 9))


@pytest.mark.parametrize("name", ["checkpoints/step-000004.safetensors", "spec.json", METRICS, RESULT])
def test_a_folder_in_a_files_place_is_set_aside(store, spec, resumed, finished, capsys, name):
    path = resumed.folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    assert_same_run(store.get(spec()), finished[LORA])
    assert f"{Path(name).name} is no file" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["one bit", "missing"])
def test_a_damaged_checkpoint_of_an_unfinished_run_is_made_again(store, spec, resumed, finished, harm):
    HARM[harm](resumed.folder / "checkpoints" / "step-000002.safetensors")
    assert_same_run(store.get(spec()), finished[LORA])
    assert resumed.steps == list(range(1, 9)), "every point tells of the second step's checkpoint"


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_the_metrics_that_people_read_are_not_needed(store, spec, resumed, finished, harm):
    """They were believed: without them an unfinished run was stored as done with one of its checkpoints."""
    HARM[harm](resumed.folder / METRICS)
    assert_same_run(store.get(spec()), finished[LORA])
    assert resumed.steps == [7, 8]


def test_points_of_another_run_are_not_gone_on_from(store, spec, resumed, finished, capsys):
    other = spec(learning_rate=1e-3)
    shutil.copytree(resumed.folder, store.folder / other.key)
    alone = RunStore(store.folder.parent / "alone").get(other)
    del resumed.steps[:]
    assert_same_run(store.get(other), alone)
    assert resumed.steps == list(range(1, 9)) and "was made from or for something else" in capsys.readouterr().out


def test_what_is_no_point_is_not_gone_on_from(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-9 (copy)").touch()
    (tmp_path / "checkpoint-8").touch()
    (tmp_path / "checkpoint-7").symlink_to(tmp_path / "nowhere")
    assert resume_point(tmp_path, about={}) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-9 (copy)", "checkpoint-best"]


@pytest.mark.parametrize("name", ["spec.json", "checkpoints/step-000002.safetensors", "checkpoints", ""])
def test_an_unfinished_run_with_something_in_a_files_place_is_done_anew(store, spec, resumed, finished, capsys, name):
    path = resumed.folder / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    assert_same_run(store.get(spec()), finished[LORA])
    assert resumed.steps == list(range(1, 9)) and f"run {spec().key} is done anew" in capsys.readouterr().out


def test_resume_points_are_ordered_by_number(tmp_path):
    for step in (90, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}", about={"run": "a"})
    assert resume_point(tmp_path, about={"run": "a"}) == str(tmp_path / "checkpoint-100")
    assert resume_point(tmp_path / "none", about={}) is None


# --- killed at the end: the window in which the points to go on from are deleted


def test_a_kill_while_the_points_are_deleted_leaves_a_whole_run(store, spec, resumed, finished, monkeypatch):
    """The points were deleted before the result was written, so that half of them were gone on from."""
    real = shutil.rmtree

    def killed(folder, **named):
        if Path(folder).name == "resume":
            raise KeyboardInterrupt
        real(folder, **named)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.get(spec())
    assert (resumed.folder / RESULT).exists() and (resumed.folder / "resume").exists()
    (next((resumed.folder / "resume").glob("*")) / "optimizer.pt").unlink()
    del resumed.steps[:]
    assert_same_run(store.get(spec()), finished[LORA])
    assert not resumed.steps and not (resumed.folder / "resume").exists()


def test_a_kill_between_result_and_seal_goes_on_from_the_last_point(store, spec, resumed, finished, monkeypatch):
    def killed(folder, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            store.get(spec())
    assert (resumed.folder / RESULT).exists() and not store.stored(spec()) and not store.finished()
    assert_same_run(store.get(spec()), finished[LORA])


# --- damaged


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a digit of a number": lambda folder: (folder / RESULT).write_text(
        (folder / RESULT).read_text().replace('"accuracy": 0.', '"accuracy": 0.9', 1)),
    "another specification": lambda folder: (folder / "spec.json").write_text("{}"),
    "half a seal": lambda folder: shorten(folder / MANIFEST),
    "truncated": lambda folder: shorten(folder / "checkpoints" / "step-000004.safetensors"),
    "one bit": lambda folder: flip(folder / "checkpoints" / "step-000008.safetensors"),
    "missing": lambda folder: (folder / "checkpoints" / "step-000002.safetensors").unlink(),
    "half a result": lambda folder: shorten(folder / RESULT),
    "no result": lambda folder: (folder / RESULT).write_text("{}"),
    "a list": lambda folder: (folder / RESULT).write_text("[1]"),
    "no status": lambda folder: (folder / RESULT).write_text(json.dumps(
        json.loads((folder / RESULT).read_text()) | {"run": {}})),
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_run_is_set_aside_and_done_again(store, spec, finished, monkeypatch, capsys, harm):
    first, key = finished[LORA], spec().key
    shutil.copytree(first.folder, store.folder / key)
    assert store.get(spec()).result == first.result, "the copy itself is not valid"
    DAMAGE[harm](store.folder / key)
    seen = steps_done(monkeypatch)
    capsys.readouterr()
    run = RunStore(store.folder).get(spec())
    assert seen[0] == 1, "the damaged run's resume state was used"
    said = capsys.readouterr().out
    aside = list((store.folder / "damaged").iterdir())
    assert len(aside) == 1 and aside[0].name.startswith(key) and (aside[0] / RESULT).exists()
    assert f"{key} is damaged" in said and aside[0].name in said and f"run {key} is done again" in said
    assert_same_run(run, first)
    assert store.finished() == [run.folder], "what was set aside is still listed"


def test_a_run_is_answered_for_its_own_key_alone(store, spec, finished, capsys):
    other = spec(learning_rate=1e-3)
    shutil.copytree(finished[LORA].folder, store.folder / other.key)
    run = store.get(other)
    assert run.result["run"]["key"] == other.key and "was made from or for something else" in capsys.readouterr().out


def test_a_copied_store_is_whole_and_needs_no_leave_to_write(store, spec, finished, monkeypatch):
    shutil.copytree(finished[LORA].folder, store.folder / spec().key)
    no_training(monkeypatch)
    monkeypatch.setattr(module, "FileLock", lambda *_, **__: pytest.fail("a lock was taken in order to read"))
    assert store.get(spec()).result == finished[LORA].result


@pytest.mark.parametrize("left", [False, True], ids=["whole", "killed after its seal"])
def test_a_store_on_a_disk_that_is_only_read_gives_its_runs(store, spec, finished, monkeypatch, left):
    shutil.copytree(finished[LORA].folder, store.folder / spec().key)
    if left:
        (store.folder / spec().key / "resume").mkdir()
    no_training(monkeypatch)
    monkeypatch.setattr(module, "ensure_dir", lambda folder: pytest.fail("it was to be written"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert RunStore(store.folder).get(spec()).result == finished[LORA].result


def test_a_run_done_again_is_measured_again(store, spec, finished):
    """Without its seal a run is trained anew; what was measured on the weights before stood beside the new ones."""
    run = store.get(spec(steps=2, checkpoints=1))
    assert len(run.measured("thing", {}, lambda run: pd.DataFrame({"value": [1]}))) == 1
    (run.folder / MANIFEST).unlink()
    again = store.get(run.spec).measured("thing", {}, lambda run: pd.DataFrame({"value": [2]}))
    assert again["value"].tolist() == [2]


def test_rows_that_are_not_those_of_the_runs_before_are_refused(store, spec, monkeypatch):
    """Flipped labels under the same key took accuracy from .47 to 1.00."""
    store.get(spec())
    real = train_module.classification_data

    def flipped(task, sizes, folder):
        rows, test = real(task, sizes, folder)
        return rows.map(lambda row: {"labels": 1 - row["labels"]}), test

    monkeypatch.setattr(train_module, "classification_data", flipped)
    with pytest.raises(CourseError, match="The rows of movies have sha256 .* but earlier runs in this cache were"):
        store.get(spec(learning_rate=1e-3, seed=5, steps=4))
    shorter = spec(sizes=TaskSizes(train_rows=16, test_rows=16, max_length=32), steps=1, checkpoints=1)
    assert store.get(shorter).steps == [1], "other rows by its own specification"


def test_one_unreadable_result_does_not_hide_the_others(store, finished):
    for key in ("kept", "broken", "empty"):
        shutil.copytree(finished[LORA].folder, store.folder / key)
    shorten(store.folder / "broken" / RESULT)
    (store.folder / "empty" / RESULT).write_text("{}")
    assert [folder.name for folder, _ in store.results()] == ["kept"]


# --- diverged


def poisoned(monkeypatch, step: int) -> None:
    """A tuned weight is NaN from the end of `step` on, as after an overflow."""
    real = Checkpoints.on_step_end

    def poison(self, args, state, control, model=None, **kwargs):
        if state.global_step >= step:
            weight = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            with torch.no_grad():
                weight.view(-1)[0] = float("nan")
        return real(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(Checkpoints, "on_step_end", poison)


@pytest.mark.parametrize("step, kept", [(5, [2, 4]), (1, [])])
def test_a_diverged_run_has_no_final_weights(store, spec, monkeypatch, step, kept):
    with monkeypatch.context() as patch:
        poisoned(patch, step)
        seen = steps_done(patch)
        run = store.get(spec())
    assert run.diverged and run.steps == kept and seen[-1] < 8, "it trained on with NaN"
    assert run.result["run"]["status"] == "diverged" and len(run.metrics()) == len(kept)
    with pytest.raises(CourseError, match="LoRA r=4, learning rate 0.01.* diverged; lower its learning rate"):
        run.trained()
    with pytest.raises(CourseError, match="diverged"):
        run.tuned_matrices()
    assert len(list((run.folder / "checkpoints").glob("*"))) == len(kept)
    no_training(monkeypatch)
    assert store.get(spec()).diverged, "a diverged run is a result; it is not tried again"


def test_a_diverged_run_is_left_out_of_every_table(store, spec, monkeypatch, capsys):
    from utils.profiles import load_profile

    good, bad = spec(), spec(learning_rate=0.5)
    store.get(good)
    with monkeypatch.context() as patch:
        poisoned(patch, 3)
        store.get(bad)
    monkeypatch.setattr(measure, "run_specs", lambda *_: [good, bad])
    monkeypatch.setattr(measure, "RunStore", lambda: store)
    table = kit_runs.checkpoint_metrics(load_profile("smoke"), experiments=("ranks",))
    assert set(table["run"]) == {good.key} and len(table) == 4
    assert "LoRA r=4 at learning rate 0.5, seed 0: diverged, left out" in capsys.readouterr().out


# --- no room


@contextmanager
def files_up_to(size: int):
    """The kernel refuses to let a file grow beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("method, checkpoints, size", [
    (FULL, 4, 20_000), (FULL, 1, 20_000), (LORA, 1, 40_000), (LORA, 4, 100),
], ids=["a checkpoint", "a resume point's weights", "a resume point's optimiser", "the specification"])
def test_a_full_disk_is_one_sentence_and_no_result(store, spec, method, checkpoints, size):
    chosen = spec(method=method, checkpoints=checkpoints)
    store.folder.mkdir(parents=True, exist_ok=True)
    with files_up_to(size), pytest.raises(CourseError) as caught:
        store.get(chosen)
    sentence = str(caught.value)
    assert "could not be written" in sentence and "\n" not in sentence and str(store.folder) in sentence
    assert not store.stored(chosen) and list(store.folder.rglob("*.part")) == []
    assert store.get(chosen).steps[-1] == 8, "with room again it is finished"


def test_a_disk_that_is_full_at_the_last_moment(store, spec, monkeypatch):
    import os
    real = os.replace

    def full(source, target):
        if str(target).endswith(RESULT):
            raise OSError(28, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(CourseError, match="result.json could not be written: No space left on device"):
            store.get(spec())
    assert not store.stored(spec()) and list(store.folder.rglob("*.part")) == []
    assert store.get(spec()).steps == [2, 4, 6, 8]


def test_a_mistake_in_the_code_is_not_called_a_full_disk(store, spec, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(train_module, "_classifier", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        store.get(spec())


# --- measurements


@pytest.fixture
def copied(store, spec, finished) -> Run:
    shutil.copytree(finished[LORA].folder, store.folder / spec().key)
    return store.get(spec())


def test_a_measurement_is_computed_once_and_again_when_its_settings_change(store, copied):
    run, calls = copied, []

    def compute(run: Run) -> pd.DataFrame:
        calls.append(run.spec.key)
        return pd.DataFrame({"value": [0.1 + 0.2, 2.0], "name": ["a", "b"]}, index=[7, 8])

    first = run.measured("thing", {"version": 1}, compute)
    again = store.get(run.spec).measured("thing", {"version": 1}, compute)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert list(first.columns) == [*run.spec.columns, "value", "name"] and set(first["run"]) == {run.spec.key}
    run.measured("thing", {"version": 2}, compute)
    assert len(calls) == 2
    run.measured("thing", {"version": 1}, compute)
    assert len(calls) == 3, "the file of other settings was believed"


def test_an_interrupted_measurement_leaves_nothing(copied):
    def interrupted(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copied.measured("thing", {}, interrupted)
    assert not list(copied.folder.glob("measurements/*"))


def test_training_time_leaves_out_what_is_measured_between(store, spec, monkeypatch):
    """Each measurement takes 1000 seconds of a clock that the test turns."""
    real, turned = train_module.accuracy, []

    def slow(*arguments):
        turned.append(1000)
        return real(*arguments)

    monkeypatch.setattr(train_module, "accuracy", slow)
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(turned))
    monkeypatch.setattr(checkpoints_module, "time", clock)
    run = store.get(spec(steps=4, checkpoints=4))
    assert len(turned) == 4 and 0 < run.result["measured"]["train_seconds"] < 1000
