"""The suite itself: each test has one kind, a worker begins with what takes long, and durations are kept."""

import gc
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import conftest
import pytest


class Item(SimpleNamespace):
    """What the hook needs of a test."""

    def __init__(self, name: str, *marks: str, fixtures: tuple[str, ...] = ()):
        super().__init__(nodeid=name, marks=dict.fromkeys(marks), fixturenames=fixtures)

    def get_closest_marker(self, name: str):
        return SimpleNamespace(args=(self.marks[name],)) if name in self.marks else None

    def add_marker(self, mark):
        self.marks |= {mark: None} if isinstance(mark, str) else {mark.name: mark.args[0]}


def ordered(*items: Item, worker: bool = True) -> list[str]:
    items = list(items)
    conftest.pytest_collection_modifyitems(SimpleNamespace(workerinput={}) if worker else SimpleNamespace(), items)
    return [item.nodeid for item in items]


@pytest.fixture
def durations(tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "DURATIONS", tmp_path / "durations.json")
    return tmp_path / "durations.json"


def test_every_test_has_one_kind(request):
    kinds = {item.nodeid: [name for name in conftest.KINDS if item.get_closest_marker(name)]
             for item in request.session.items}
    assert {name: found for name, found in kinds.items() if len(found) != 1} == {}


def test_a_kind_follows_from_the_fixtures_unless_a_mark_says_it(durations):
    items = [Item("a.py::one"), Item("a.py::two", fixtures=("standin",)), Item("a.py::three", "process"),
             Item("b.py::four", fixtures=("course_notebook",))]
    ordered(*items)
    assert [[name for name in conftest.KINDS if name in item.marks] for item in items] == [
        ["unit"], ["hub"], ["process"], ["notebook"]]


def test_a_file_stays_together_and_the_longest_begins(durations):
    durations.write_text(json.dumps({"a.py::one": 1.0, "a.py::two": 2.0, "b.py::one": 9.0, "c.py::alone": 5.0}))
    items = [Item(name) for name in ("a.py::one", "a.py::two", "b.py::one")] + [
        Item("c.py::alone", "alone"), Item("c.py::other"), Item("d.py::book", fixtures=("course_notebook",))]
    assert ordered(*items) == ["d.py::book", "b.py::one", "c.py::alone", "a.py::one", "a.py::two", "c.py::other"]
    groups = [item.marks.get("xdist_group") for item in items]
    assert groups == ["a.py", "a.py", "b.py", None, "c.py", "d.py"]
    assert ordered(*items, worker=False) == [item.nodeid for item in items], "one process keeps the files' order"


def test_a_worker_hands_on_the_group_of_every_test(request):
    """pytest-xdist groups by names; where it cannot write them, each fixture of a file is built on every worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there are no workers")
    lost = [item.nodeid for item in request.session.items
            if not (item.get_closest_marker("alone") or item.nodeid.endswith(f"@{conftest.group_of(item)}"))]
    assert lost == []


def test_durations_are_kept_beside_those_of_tests_that_did_not_run(durations):
    durations.write_text(json.dumps({"a.py::one": 1.0, "a.py::two": 2.0}))
    run = conftest.Durations()
    for name, seconds in (("a.py::two", 0.5), ("a.py::two", 3.0), ("b.py::three[x@y]@b.py", 7.0), ("b.py::[x@b]", 1.0)):
        run.pytest_runtest_logreport(SimpleNamespace(nodeid=name, duration=seconds))
    run.pytest_sessionfinish(None)
    assert conftest.read_durations() == {
        "b.py::three[x@y]": 7.0, "b.py::[x@b]": 1.0, "a.py::two": 3.5, "a.py::one": 1.0}
    durations.write_text("half a fi")
    assert conftest.read_durations() == {}


def test_garbage_is_looked_for_again_and_not_among_the_libraries():
    assert gc.isenabled() and gc.get_freeze_count() > 100_000


def test_a_unit_test_that_starts_python_is_told_to_say_so():
    with pytest.raises(pytest.fail.Exception, match="got .*python.* -c 1; mark it as 'process'"):
        subprocess.run([sys.executable, "-c", "1"], check=True)


@pytest.mark.process
def test_a_test_that_says_so_starts_python():
    assert subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False).returncode == 3


def test_a_folder_is_built_once(built_once):
    built = []

    def build(folder):
        folder.mkdir()
        built.append(folder)

    assert built_once("built-once", build) == built_once("built-once", build) == built[0] and len(built) == 1
