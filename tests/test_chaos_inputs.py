"""The quick part of the campaign of bad inputs, and that the campaign can tell what did not hold."""

import os
from collections import Counter

import pytest

from utils.course.chaos import ask, inputs
from utils.course.chaos.ask import answer, fault_of, refusal, surroundings
from utils.course.cli import RUNS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, links and signals are tried")
QUICK = inputs.cases(quick=True) if os.name == "posix" else []


@pytest.mark.process
@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.kind}, {case.name[:60]}")
def test_a_case_holds(case, tmp_path):
    assert case.attempt(tmp_path) is None


def test_the_whole_campaign_asks_every_command_and_kind():
    cases = inputs.cases(quick=False)
    names = Counter(case.name for case in cases)
    assert len(cases) > 120 and [name for name, count in names.items() if count > 1] == []
    assert {case.name for case in QUICK} <= set(names) and 20 <= len(QUICK) <= 40
    for command in RUNS:
        assert any(case.name.startswith(f"`{command}") for case in cases), command
    assert min(Counter(case.kind for case in cases).values()) >= 1 and len({case.kind for case in cases}) >= 12


@pytest.mark.parametrize("status, said, fault", [
    (0, "", "ended with 0, not 2"), (2, "", "0 lines"), (2, "error: one.\nerror: two.\n", "2 lines"),
    (2, "Traceback (most recent call last)\nerror: x.\n", "'Traceback'"), (2, "error: no stop\n", "1 lines"),
    (2, "error: unexpected TypeError: x.\n", "'unexpected'"), (2, "error: a\x1b[31m.\n", "no terminal prints"),
    (2, "something else.\n", "1 lines")])
def test_an_answer_that_is_not_as_it_should_be_is_told(status, said, fault):
    assert fault in fault_of(status, said, allowed=(2,))
    assert fault_of(2, "error: This is wrong; do that.\n", allowed=(2,)) is None


def test_a_change_of_a_tracked_file_is_told(tmp_path, monkeypatch):
    (tmp_path / "tracked").write_text("one")
    monkeypatch.setattr(ask, "_tracked_names", lambda: (tmp_path / "tracked",))
    monkeypatch.setattr(ask.runpy, "run_module", lambda *_, **__: (tmp_path / "tracked").write_text("another"))
    status, said = answer(["x"])
    assert status == -1 and "tracked was changed, which is tracked" in said


def test_a_case_leaves_the_readers_variables_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", "/mine")
    with surroundings(tmp_path, {"HOME": "/none"}, []):
        assert os.environ["LORA_COURSE_CACHE"] == str(tmp_path / "cache") and os.environ["HOME"] == "/none"
    assert os.environ["LORA_COURSE_CACHE"] == "/mine"
    assert refusal("x", "y", ["where"], status=(0,)).attempt(tmp_path).startswith("It ended with 2, not 0")
