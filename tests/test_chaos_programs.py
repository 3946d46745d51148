"""The campaign of hostile programs: a dozen of them here, all by `python -m utils chaos`; and that it would notice."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from utils.course.chaos import programs
from utils.course.chaos.programs import cases
from utils.evaluation.sandbox import Verdict, sandbox_available

needs_sandbox = pytest.mark.skipif(not sandbox_available(), reason=sandbox_available().reason)


@needs_sandbox
@pytest.mark.parametrize("case", cases(quick=True), ids=lambda case: case.name)
def test_it_holds(case, tmp_path):
    assert case.attempt(tmp_path) is None


@needs_sandbox
def test_all_families_are_tried():
    found, quick = cases(quick=False), cases(quick=True)
    assert len({case.name for case in found}) == len(found)
    kinds = Counter(case.kind for case in found)
    assert kinds.pop("true solution") == 164 and sum(kinds.values()) >= 120 and len(kinds) >= 10
    assert {case.name for case in quick} < {case.name for case in found}
    kinds = Counter(case.kind for case in quick)
    assert kinds.pop("true solution") == programs.QUICK_TRUE and sum(kinds.values()) == programs.QUICK_HOSTILE
    assert len(kinds) >= 7


def _verdict(passed: bool = False, result: str = programs.WRONG, output: str = "") -> Verdict:
    return Verdict(passed, result, output, 0.1)


def _leaves(what):
    """A judge under which a program does something on its way out."""
    def judge(program, tests, *, beneath, **_):
        what(beneath.parent)
        return _verdict()
    return judge


@pytest.mark.parametrize("judge, sentence", [
    (lambda *_, **__: _verdict(True, "passed"), "passed"),
    (lambda *_, **__: _verdict(result="failed: NameError: name 'oss' is not defined"), "came to"),
    (lambda *_, **__: _verdict(output="let through"), "was let through"),
    (lambda *_, **__: _verdict(output="a swordfish"), "was let through"),
    (lambda *_, **__: _verdict(output="\x1b[2J"), "does not print"),
    (_leaves(lambda folder: (folder / "scratch" / "kept").touch()), "left kept"),
    (_leaves(lambda folder: subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)), "processes"),
    (_leaves(lambda folder: (folder / "new").touch()), "changed the folder"),
    (_leaves(lambda folder: (folder / "secret").write_text("")), "changed a file"),
    (_leaves(lambda folder: programs.ELSEWHERE[0].touch()), "wrote"),
    (_leaves(lambda folder: _other().kill()), "ended another process, by -9"),
    (_leaves(lambda folder: __import__("socket").create_connection(_made["server"].getsockname())), "connected")])
def test_the_campaign_notices(tmp_path, monkeypatch, judge, sentence):
    def started(*arguments, start=subprocess.Popen, **keywords):
        _made["other"] = start(*arguments, **keywords)
        return _made["other"]

    def listening(*arguments, create=programs.socket.create_server, **keywords):
        _made["server"] = create(*arguments, **keywords)
        return _made["server"]

    before = programs._children()
    monkeypatch.setattr(programs, "judge", judge)
    monkeypatch.setattr(programs, "ELSEWHERE", (tmp_path / "elsewhere" / "file",))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "case").mkdir()
    monkeypatch.setattr(programs.subprocess, "Popen", started)
    monkeypatch.setattr(programs.socket, "create_server", listening)
    try:
        assert sentence in programs._hostile("", programs.WRONG, tmp_path / "case")
    finally:
        for number in programs._children() - before:
            os.kill(int(number), 9)


_made: dict = {}


def _other() -> subprocess.Popen:
    _made["other"].kill()
    _made["other"].wait()
    return _made["other"]


def test_what_a_case_prepares_is_filled_in():
    assert programs._filled("open('SECRET', PORT) # SECRETS", {"SECRET": Path("/a"), "PORT": 5}) == \
        "open('/a', 5) # SECRETS"
