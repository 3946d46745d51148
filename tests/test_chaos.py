"""The campaign of faults: its quick part on runs, and that a case which does not hold is told and counted."""

import json
import os
from functools import partial

import pytest

from utils.course.chaos import campaign, cluster_kills, crowds, kills, pool_kills, run_damage
from utils.course.chaos.apart import run_apart
from utils.course.chaos.campaign import Tried, attempted, report, tallied
from utils.course.chaos.case import Case
from utils.course.cli import main
from utils.errors import UsageError

pytestmark = [pytest.mark.process, pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are tried in forks")]


@pytest.fixture(autouse=True)
def _no_threads_in_forks(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.mark.parametrize("part", [kills, run_damage, crowds], ids=["kills", "run damage", "crowds"])
def test_what_is_killed_damaged_or_wanted_by_many_comes_out_whole(part):
    tried = [attempted("part", case) for case in part.cases(quick=True)]
    assert len(tried) >= 3 and [f"{one.name}: {one.problem}" for one in tried if one.problem] == []


def test_the_long_part_has_the_cases_that_it_promises():
    assert len(pool_kills.cases(quick=False)) == 30
    assert len(cluster_kills.cases(quick=False)) == 10 and {case.kind for case in cluster_kills.cases(quick=True)} == {
        "a node"}
    assert len(kills.kinds()) >= 40, "every kind of run of profile smoke"
    methods = {spec.method.variant for spec in kills.kinds().values()}
    assert {"pissa", "lora_ga", "dora", "vera", "gralora", "randlora", "adalora"} <= methods
    objectives = {spec.objective for spec in kills.kinds().values()}
    assert {"likelihood", "sft", "dpo", "orpo", "online_dpo", "reward"} == objectives
    assert sum(count * 3 for count in crowds.ROUNDS.values()) >= 50


def test_without_ray_no_cluster_is_killed_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(cluster_kills.importlib.util, "find_spec", lambda name: None)
    assert cluster_kills.cases(quick=False) == [] and "Ray is not installed" in capsys.readouterr().out


# That it can fail: a case that does not hold, an exception, a process that is killed ---------------------------------


def test_a_weight_that_differs_in_its_last_bit_does_not_hold(tmp_path):
    from safetensors.torch import load_file, save_file

    run = kills.whole("LoRA python cooled").run
    path = run.folder / "checkpoints" / f"step-{run.steps[-1]:06d}.safetensors"
    tensors, name = load_file(path), next(iter(load_file(path)))
    assert kills.difference(run, run) is None
    copy = type(run)(run.spec, tmp_path, run.base, run.result, run.start)
    (tmp_path / "checkpoints").mkdir()
    for step in run.steps:
        source = run.folder / "checkpoints" / f"step-{step:06d}.safetensors"
        (tmp_path / "checkpoints" / source.name).write_bytes(source.read_bytes())
    tensors[name].view(-1)[0] = tensors[name].view(-1)[0].nextafter(tensors[name].new_tensor(9.0))
    save_file(tensors, tmp_path / "checkpoints" / path.name)
    assert kills.difference(copy, run) == f"the weights at step {run.steps[-1]} are others"


def test_a_process_is_killed_before_the_change_that_was_named(tmp_path):
    def three() -> None:
        for name in "abc":
            (tmp_path / name).write_text(name)

    whole = run_apart(three, tmp_path)
    assert (whole.code, whole.events) == (0, ("open",) * 3)
    for name in "abc":
        (tmp_path / name).unlink()
    assert run_apart(three, tmp_path, kill_at=1).code == -9
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    failed = run_apart(partial(int, "x"), tmp_path)
    assert failed.code == 1 and "ValueError" in failed.output


def _case(name: str, problem: str | None = None, error: Exception | None = None) -> Case:
    def attempt(folder):
        assert list(folder.iterdir()) == []
        if error:
            raise error
        return problem

    return Case(name, "kind", attempt)


def test_what_does_not_hold_is_told_counted_and_ends_in_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    listed = [_case("whole"), _case("wrong", "the weights are others"), _case("odd", error=ValueError("no number"))]
    monkeypatch.setattr(campaign, "PARTS", {"one": lambda quick: listed[:1], "two": lambda quick: listed})
    assert main(["chaos", "--only", "one"]) == 0
    assert main(["chaos", "--publish"]) == 1
    printed = capsys.readouterr().out
    assert "did not hold: two, wrong: the weights are others" in printed
    assert "did not hold: two, odd: it ended in ValueError: no number" in printed
    page = (tmp_path / "CAMPAIGN.md").read_text(encoding="utf-8")
    assert "| two | kind | 3 | 1 |" in page and "- two, wrong: the weights are others" in page
    assert main(["chaos", "--only", "one", "--publish"]) == 0, "the other part stays as it was"
    assert (tmp_path / "CAMPAIGN.md").read_text(encoding="utf-8").count("\n| two | ") == 2
    assert main(["chaos", "--only", "three"]) == 2 and main(["chaos", "--quick", "--publish"]) == 2
    assert "Unknown part 'three' of the campaign; the parts are one, two." in capsys.readouterr().err


def test_the_tally_counts_by_part_and_kind():
    table = tallied([Tried("a", "x", "1", 1.0, None), Tried("a", "x", "2", 2.0, "no"), Tried("a", "y", "3", 0.5, None)])
    assert table[["kind", "tried", "held", "seconds"]].to_numpy().tolist() == [["x", 2, 1, 3.0], ["y", 1, 1, 0.5]]


def test_the_committed_report_is_what_the_record_says():
    from utils.paths import DATA

    record = json.loads((DATA / "reference" / campaign.RECORD).read_text(encoding="utf-8"))
    page = (DATA / "reference" / campaign.PAGE).read_text(encoding="utf-8")
    assert page == report(record) and set(record) == set(campaign.PARTS)


def test_an_unknown_part_is_named_before_anything_is_tried():
    with pytest.raises(UsageError, match="Unknown part 'nothing'"):
        campaign.campaign(quick=True, only=["nothing"])
