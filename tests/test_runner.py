"""The course runner on small notebooks under fault, and every notebook of the course at the smoke profile."""

import contextlib
import csv
import json
import os
import re
import threading
import time
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from interrupting import interrupted_cell
from matplotlib import image
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from utils.course import doctor, kernels, publish, runner
from utils.course.forked import Servers, kernels_from
from utils.course.kernels import kernel_config
from utils.course.runner import Course, Outcome, Pass, check_completed, execute, notebook_paths, run_course
from utils.course.training import specs_of_notebooks
from utils.course.turns import only_one
from utils.course.watch import Watch
from utils.errors import CourseError, UsageError
from utils.files import sha256_of
from utils.ledger.notebook import cost_card
from utils.machine import available_cores
from utils.paths import NOTEBOOKS, ROOT, cache_dir, notebook_files, notebook_number
from utils.profiles import load_profile
from utils.reporting.publish import STAMP
from utils.training.outcomes import Outcomes
from utils.training.spec import with_starts

SMOKE = load_profile("smoke")
ROOM = {"memory_gib": 64.0, "disk_gib": 500.0, "gpu": None, "gpu_memory_gib": 0.0}
FIRST = 'PROFILE = "laptop"\nSEEDS = None'


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A folder of notebooks, a cache and a record of costs of its own; returns a function that adds a notebook."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    monkeypatch.setattr(publish, "NOTEBOOKS", folder)
    monkeypatch.setattr(doctor, "machine", lambda: ROOM)
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path / "reference"))

    def add(name: str, *cells: str) -> Path:
        book = new_notebook(cells=[
            new_markdown_cell(f"# {name} title\n\nWhat it shows."),
            new_code_cell(FIRST, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = folder / f"{name}.ipynb"
        nbformat.write(book, path)
        return path

    return add


def counted(path: Path) -> str:
    """Source of a cell that leaves a mark each time it is executed."""
    return f"with open({str(path)!r}, 'a') as stream: stream.write('x')"


def count(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


def executed(name: str) -> Path:
    return cache_dir() / "course" / "smoke" / f"{name}.ipynb"


def partial(name: str) -> Path:
    return executed(name).with_name(f"{name}.partial.ipynb")


def start(only: list[str] | None = None, **how) -> list[Outcome]:
    return run_course(SMOKE, profile_name="smoke", only=only, how=Pass(**how)).notebooks


def test_a_course_runs_in_order_and_gives_the_profile(course, tmp_path, capsys):
    course("00_one", counted(tmp_path / "one"), "print(PROFILE, SEEDS)")
    course("01_two", "print(PROFILE)")
    outcomes = start(seeds=(3, 4))
    assert [outcome.notebook for outcome in outcomes] == ["00_one", "01_two"]
    assert all(outcome.seconds > 0 and outcome.peak_gib > 0.01 for outcome in outcomes)
    assert nbformat.read(executed("00_one"), 4).cells[-1].outputs[0].text == "smoke [3, 4]\n"
    assert not partial("00_one").exists()
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("[1/2] 00_one: ") and lines[1].startswith("[2/2] 01_two: ")
    assert "peak" in lines[0] and "0 runs trained" in lines[0] and "\r" not in captured.err
    start(seeds=(3, 4))
    assert count(tmp_path / "one") == 2, "a completed pass starts afresh"


@pytest.mark.skipif(os.name != "posix", reason="kernels listen on ports there")
def test_kernels_that_start_at_once_do_not_meet(course):
    """Both took kernel-ipc-1 to 5 in the present folder, and each client could be answered by the other's kernel."""
    with kernel_config() as one, kernel_config() as other:
        folders = [Path(config.KernelManager.ip).parent for config in (one, other)]
        assert folders[0] != folders[1] and all(folder.is_dir() for folder in folders)
    assert not any(folder.exists() for folder in folders)
    course("00_one", "import ipykernel.kernelapp as app\nprint(app.IPKernelApp.instance().ip)")
    before = set(ROOT.glob("kernel-ipc-*"))
    start()
    address = Path(nbformat.read(executed("00_one"), 4).cells[-1].outputs[0].text.strip())
    assert address.name == "kernel" and address.parent.name.startswith("course-") and not address.parent.exists()
    assert set(ROOT.glob("kernel-ipc-*")) <= before


def test_where_a_sockets_path_would_be_too_long_another_folder_is_taken(tmp_path, monkeypatch):
    """Linux takes 107 bytes, and a batch system's TMPDIR alone can have more."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(kernels.tempfile, "gettempdir", lambda: str(long))
    with kernel_config() as config:
        address = config.KernelManager.ip
        assert len(f"{address}-5") <= 107 and Path(address).parent.is_dir() and not address.startswith(str(long))
    monkeypatch.setattr(kernels.os, "access", lambda name, how: name == str(long))
    with kernel_config() as config:
        assert "KernelManager" not in config, "ports, where there is no folder"


def test_what_a_killed_course_left_of_its_kernels_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_socket_parent", lambda: tmp_path)
    names = {"gone": f"course-{2**22 + 1}-abcdefgh", "young": f"course-{2**22 + 2}-abcdefgh",
             "mine": f"course-{os.getpid()}-abcdefgh", "other": "course-notes"}
    for kind, name in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel-1").touch()
        if kind != "young":
            os.utime(tmp_path / name, (time.time() - 90000,) * 2)
    with kernel_config():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {names[kind] for kind in ("young", "mine", "other")}


def test_an_interruption_ends_the_kernel_and_all_that_it_started(course, ctrl_c, tmp_path, capfd):
    mark = tmp_path / "started"
    course("00_one", interrupted_cell(mark))
    with pytest.raises(KeyboardInterrupt):
        start()
    assert not psutil.pid_exists(int(mark.read_text())), "a process of the notebook lives on"
    assert [child for child in psutil.Process().children() if "ipykernel" in " ".join(child.cmdline())] == []
    assert capfd.readouterr().err == "" and partial("00_one").exists()


def test_a_second_course_at_the_same_profile_is_refused_in_a_sentence(course, tmp_path):
    course("00_one", counted(tmp_path / "one"))
    with only_one(cache_dir() / "course" / "smoke", "A course"), pytest.raises(
            CourseError, match="A course at profile smoke is under way already in another process"):
        start()
    assert count(tmp_path / "one") == 0
    start()
    assert count(tmp_path / "one") == 1


def test_braces_and_spaces_in_a_path_are_no_parameters(course, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "a {PROFILE} {} b"))
    folder = tmp_path / "{0} notebooks"
    course("00_one", "print(PROFILE)")
    runner.NOTEBOOKS.rename(folder)
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    start()
    assert nbformat.read(executed("00_one"), 4).cells[-1].outputs[0].text == "smoke\n"


def test_a_folder_without_notebooks_is_no_course(course):
    with pytest.raises(CourseError, match="There are no notebooks in "):
        start()
    course("00_one")
    with pytest.raises(UsageError, match="Expected numbers of notebooks, got none"):
        start(only=[])
    assert notebook_paths(["00", "00"]) == [runner.NOTEBOOKS / "00_one.ipynb"]


def test_a_letter_makes_another_number(course):
    """04b is read after 04 and run only where it is asked for itself; what has no number is no notebook of it."""
    one, more, two = (course(name) for name in ("04_one", "04b_more", "05_two"))
    for name in ("draft", "4_four", "041_long", "04bc_long", "04"):
        course(name)
    assert list(notebook_files(runner.NOTEBOOKS)) == ["04", "04b", "05"]
    assert notebook_paths() == [one, more, two]
    assert [notebook_paths(only) for only in (["04"], ["04b"], ["04", "04b"])] == [[one], [more], [one, more]]
    with pytest.raises(UsageError, match="There is no notebook '05b'; the numbers are 04, 04b, 05"):
        notebook_paths(["05b"])


def test_a_disk_that_is_full_is_told_with_the_notebook(course, monkeypatch):
    course("00_one")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner.papermill, "execute_notebook", full)
    with pytest.raises(CourseError, match=r"00_one.ipynb failed: No space left on device. \(as far as it got: "):
        start()


def test_only_some_notebooks(course, tmp_path):
    course("00_one", counted(tmp_path / "one"))
    course("01_two", counted(tmp_path / "two"))
    assert [outcome.notebook for outcome in start(only=["01"])] == ["01_two"]
    assert (count(tmp_path / "one"), count(tmp_path / "two")) == (0, 1)
    with pytest.raises(UsageError, match="There is no notebook '07'; the numbers are 00, 01"):
        start(only=["01", "07"])
    assert count(tmp_path / "two") == 1


def test_an_unknown_parameter_is_refused_before_anything_runs(course, tmp_path):
    course("00_one", counted(tmp_path / "one"))
    course("01_two")
    with pytest.raises(UsageError, match="00_one.ipynb does not declare the parameter 'EPSILLON'; it declares PROFILE, "
                                         "SEEDS"):
        start(given={"EPSILLON": 0.4})
    assert count(tmp_path / "one") == 0 and not (cache_dir() / "course").exists()


def test_a_parameter_that_only_one_notebook_declares(course, tmp_path):
    course("00_one", counted(tmp_path / "one"))
    path = course("01_two")
    path.write_text(path.read_text().replace("SEEDS = None", "SEEDS = None\\nRANK = 8"))
    with pytest.raises(UsageError, match="00_one.ipynb does not declare the parameter 'RANK'"):
        start(given={"RANK": 4})
    assert count(tmp_path / "one") == 0


def test_leave_to_run_code_reaches_only_the_notebooks_that_declare_it(course, monkeypatch):
    """As `course --run-code` gives it: no other notebook is refused for not knowing the name, nor given it."""
    course("00_one")
    path, given = course("01_two"), {}
    path.write_text(path.read_text().replace("SEEDS = None", "SEEDS = None\\nRUN_CODE = False"))

    def fake(path, target, parameters, **_):
        given[path.stem] = parameters
        return Outcome(path.stem, 1.0, 1.0, 0)

    monkeypatch.setattr(runner, "execute", fake)
    start(where_declared={"RUN_CODE": True})
    assert given == {"00_one": {"PROFILE": "smoke"}, "01_two": {"PROFILE": "smoke", "RUN_CODE": True}}


def test_a_failing_cell_stops_the_course_and_leaves_a_partial_notebook(course, tmp_path):
    course("00_one", "value = 1 / 0", counted(tmp_path / "after"))
    course("01_two", counted(tmp_path / "after"))
    with pytest.raises(CourseError) as caught:
        start()
    sentence = str(caught.value)
    assert "00_one.ipynb failed in cell" in sentence and "ZeroDivisionError: division by zero" in sentence
    assert str(partial("00_one")) in sentence and "\n" not in sentence
    assert partial("00_one").exists() and not executed("00_one").exists() and count(tmp_path / "after") == 0
    failed = next(cell for cell in nbformat.read(partial("00_one"), 4).cells if "1 / 0" in cell.source)
    assert f"in cell [{failed.execution_count}]:" in sentence, "the number that the partial notebook shows"


def test_our_own_errors_come_through_as_their_sentence(course):
    course("00_one", "from utils.errors import CourseError\nraise CourseError('The disk is full.')")
    with pytest.raises(CourseError, match=r"failed in cell \[3\]: The disk is full\. \(as far"):
        start()


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "raise SystemExit"])
def test_leaving_in_the_middle_is_a_failure(course, tmp_path, leave):
    course("00_one", leave, counted(tmp_path / "after"))
    with pytest.raises(CourseError, match="00_one"):
        start()
    assert not executed("00_one").exists() and count(tmp_path / "after") == 0


def test_a_cell_that_takes_too_long(course):
    course("00_one", "import time; time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(CourseError, match="00_one.ipynb failed: .*partial.ipynb"):
        start(timeout=1)
    assert time.monotonic() - started < 40 and not executed("00_one").exists()


def test_a_kernel_that_dies(course):
    course("00_one", "import os; os._exit(3)")
    with pytest.raises(CourseError, match="00_one.ipynb failed: .*[Kk]ernel.*partial.ipynb"):
        start()
    assert not executed("00_one").exists()


def test_a_course_cut_short_goes_on_where_it_stopped(course, tmp_path):
    """First a failing notebook, then an interruption; what was done is not done again, and no state is left over."""
    one, fixed = tmp_path / "one", tmp_path / "fixed"
    course("00_one", counted(one))
    course("01_two", f"import os\nassert os.path.exists({str(fixed)!r}), 'not yet'")
    with pytest.raises(CourseError, match="01_two.ipynb failed .*not yet"):
        start()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        def interrupted(*_, **__):
            raise KeyboardInterrupt
        patch.setattr(runner, "execute", interrupted)
        start()
    fixed.touch()
    outcomes = start()
    assert count(one) == 1 and [outcome.notebook for outcome in outcomes] == ["00_one", "01_two"]
    assert outcomes[0].seconds > 0, "the costs of the first start are kept"
    assert not (executed("00_one").parent / "state.json").exists()


@pytest.mark.parametrize("change", ["none", "parameters", "notebook", "half a state", "a list", "another's",
                                    "outcomes of words", "profile", "code", "figures", "an output that is gone"])
def test_an_interrupted_pass_of_something_else_is_not_believed(course, tmp_path, monkeypatch, change):
    """A profile file that was edited keeps its name; what its notebooks show is another's all the same."""
    path, ran = course("00_one"), []
    course("01_two")

    def fake(path, target, *_, **__):
        ran.append(path.stem)
        if ran == ["00_one", "01_two"]:
            raise CourseError("not yet")
        target.write_text("executed")
        return Outcome(path.stem, 1.0, 1.0, 0)

    monkeypatch.setattr(runner, "execute", fake)
    with pytest.raises(CourseError, match="not yet"):
        start()
    state = executed("00_one").parent / "state.json"
    if change == "notebook":
        path.write_text(path.read_text().replace("title", "other title"))
    elif change == "half a state":
        state.write_text(state.read_text()[:50])
    elif change in ("a list", "another's"):
        state.write_text("[1]" if change == "a list" else '{"fingerprint": "0", "done": {}}')
    elif change == "outcomes of words":
        state.write_text(json.dumps(json.loads(state.read_text()) | {"done": {"00_one": {"notebook": 1, "x": "y"}}}))
    elif change == "figures":
        monkeypatch.setenv("LORA_COURSE_FIGURES", str(tmp_path / "elsewhere"))
    elif change == "code":
        monkeypatch.setattr(runner, "sha256_of", lambda path: "other" if path.suffix == ".py" else sha256_of(path))
    elif change == "an output that is gone":
        executed("00_one").unlink()
    profile = SMOKE.model_copy(update={"summary": "Edited."}) if change == "profile" else SMOKE
    run_course(profile, profile_name="smoke", how=Pass(seeds=(1,) if change == "parameters" else None))
    assert ran[2:] == (["01_two"] if change == "none" else ["00_one", "01_two"])


@pytest.mark.parametrize("lack, said", [
    ({"memory_gib": 1.0}, "3 GiB of memory (here 1)"), ({"disk_gib": 0.5}, "2 GiB of free disk at ")])
def test_too_small_a_machine_is_told_before_anything_runs(course, tmp_path, monkeypatch, lack, said):
    course("00_one", counted(tmp_path / "one"))
    monkeypatch.setattr(doctor, "machine", lambda: ROOM | lack)
    with pytest.raises(CourseError) as caught:
        start()
    assert str(caught.value).startswith("Profile smoke needs ") and said in str(caught.value)
    assert "choose a smaller profile" in str(caught.value) and count(tmp_path / "one") == 0


def test_a_gpu_profile_asks_for_its_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "machine", lambda: ROOM)
    with pytest.raises(CourseError, match=r"a GPU with 7.5 GiB \(here none\)"):
        doctor.require(load_profile("gpu"))
    monkeypatch.setenv("LORA_COURSE_SKIP_HARDWARE", "1")
    doctor.require(load_profile("gpu"))


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2 * 2**30}\n")
    monkeypatch.setattr("utils.machine.CGROUP_LIMITS", (limit,))
    assert doctor.machine()["memory_gib"] == 2.0
    limit.write_text("max\n")
    assert doctor.machine()["memory_gib"] != 2.0


def test_costs_are_recorded_cold_and_warm(course):
    course("00_one")
    course("01_two")
    trained = Outcomes(done={"a": "a run", "b": "another"}, seconds=61.23, peak_gib=2.0, workers=2)
    first = [Outcome("00_one", 10.0, 1.5, 0), Outcome("01_two", 4.0, 1.0, 0)]
    runner.record_costs(SMOKE, Course(first, trained, wanted_runs=2), whole=True)
    runner.record_costs(SMOKE, Course([Outcome("00_one", 2.0, 0.5, 0)], Outcomes()), whole=False)
    costs = runner.measured_costs("smoke")
    assert costs["00_one"] == {"cold": {"seconds": 10.0, "peak_gib": 1.5, "trained_runs": 0},
                               "warm": {"seconds": 2.0, "peak_gib": 0.5, "trained_runs": 0}}
    training = {"seconds": 61.2, "peak_gib": 2.0, "trained_runs": 2, "workers": 2}
    assert runner.measured_training("smoke") == training and runner.measured_training("laptop") is None
    one = Outcomes(done={"c": "a third"})
    runner.record_costs(SMOKE, Course([Outcome("01_two", 5.0, 1.0, 0)], one, wanted_runs=1), whole=False)
    assert runner.measured_training("smoke") == training, "of some notebooks only"
    runner.record_costs(SMOKE, Course([Outcome("01_two", 5.0, 1.0, 0)], one, wanted_runs=2), whole=True)
    assert runner.measured_training("smoke") == training, "the rest of a course that was cut short"
    assert runner.measured_costs("smoke")["01_two"]["cold"]["seconds"] == 5.0
    runner.record_costs(SMOKE, Course([Outcome("01_two", 4.0, 1.0, 1)], Outcomes()), whole=False)
    assert set(costs["01_two"]) == {"cold"} and runner.measured_costs("laptop") == {}
    assert runner.expected_seconds("smoke", notebook_paths()) == {"00_one": 10.0, "01_two": 4.0}
    (cache_dir() / "runs" / "key").mkdir(parents=True)
    (cache_dir() / "runs" / "key" / "SEAL.json").touch()
    assert runner.expected_seconds("smoke", notebook_paths()) == {"00_one": 2.0, "01_two": runner.UNKNOWN_SECONDS}


def test_a_notebook_that_was_never_measured_is_named_and_one_that_is_gone_not_counted(course):
    course("00_one")
    course("00b_more")
    measured = [Outcome("00_one", 60.0, 1.5, 0), Outcome("00_gone", 600.0, 1.5, 0)]
    runner.record_costs(SMOKE, Course(measured, Outcomes()), whole=False)
    row, = [line for line in publish.profile_table().splitlines() if line.startswith("| `smoke`")]
    assert "| not measured yet | 1.0 min without 00b (not measured) |" in row
    assert "60.0" in cost_card("00") and cost_card("00b") == "Not measured on any machine yet."
    runner.record_costs(SMOKE, Course([Outcome("00b_more", 30.0, 1.5, 0)], Outcomes()), whole=False)
    assert "| 1.5 min |" in publish.profile_table()
    assert "30.0" in cost_card("00b") and "30.0" not in cost_card("00"), "a number that begins as another does"


def test_notebooks_that_begin_at_once_start_the_watch_once():
    watch, at_once = Watch({}), threading.Barrier(8)

    def begin(name: str) -> None:
        at_once.wait()
        watch.begin(name, None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, "abcdefgh"))
    assert watch.is_alive() and set(watch.running) == set("abcdefgh")
    watch.running.clear()


def meeting(mine: Path, other: Path) -> str:
    """Source of a cell that ends only when another notebook runs at the same time."""
    return (f"import pathlib, time\npathlib.Path({str(mine)!r}).touch()\nstarted = time.time()\n"
            f"while not pathlib.Path({str(other)!r}).exists():\n"
            "    assert time.time() < started + 60, 'nobody came'\n    time.sleep(0.05)")


def marked_alone(path: Path) -> None:
    book = nbformat.read(path, 4)
    book.metadata["course"] = {"alone": True}
    nbformat.write(book, path)


def test_notebooks_side_by_side_meet_and_those_marked_alone_come_last(course, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    one, two = tmp_path / "one", tmp_path / "two"
    course("00_one", meeting(one, two), "import os\nprint(os.environ['OMP_NUM_THREADS'])")
    marked_alone(course("01_two", f"import os\nprint(os.listdir({str(cache_dir() / 'course' / 'smoke')!r}))"))
    course("02_three", meeting(two, one) + "\nheld = bytearray(300 * 2**20)\ntime.sleep(1.5)")  # memory is sampled
    outcomes = start(side_by_side=2)
    assert [outcome.notebook for outcome in outcomes] == ["00_one", "01_two", "02_three"]
    assert outcomes[2].peak_gib > outcomes[0].peak_gib + 0.2, "each notebook's own memory"
    threads = nbformat.read(executed("00_one"), 4).cells[-1].outputs[0].text
    assert int(threads) == max(1, available_cores() // 2) and os.environ["OMP_NUM_THREADS"] == "7"
    listed = nbformat.read(executed("01_two"), 4).cells[-1].outputs[0].text
    assert "'00_one.ipynb'" in listed and "'02_three.ipynb'" in listed and ".partial" not in listed.replace(
        "01_two.partial", "")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"] and "01_two" in lines[2]


def test_fewer_notebooks_at_a_time_where_the_machine_bears_fewer_is_said(monkeypatch, capsys):
    monkeypatch.setattr(runner, "available_cores", lambda: 8)
    monkeypatch.setattr(runner, "free_memory_gib", lambda: 5.0)
    assert runner.notebooks_at_once(50, say=print) == 3 and "bears 3 notebooks at a time" in capsys.readouterr().out
    assert runner.notebooks_at_once(2, say=print) == 2 and not capsys.readouterr().out


def test_one_that_fails_lets_the_others_end_and_none_begin(course, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    course("00_one", meeting(one, two), "raise ValueError('for a reason')")
    course("01_two", meeting(two, one), "import time\ntime.sleep(1)")
    course("02_three", "import time\ntime.sleep(5)")
    course("03_four", counted(tmp_path / "four"))
    with pytest.raises(CourseError, match="00_one.ipynb failed in cell .* for a reason"):
        start(side_by_side=2)
    assert executed("01_two").exists() and not (tmp_path / "four").exists()
    course("00_one", "1")
    assert [outcome.notebook for outcome in start(side_by_side=2)] == ["00_one", "01_two", "02_three", "03_four"]


def test_runs_that_a_notebook_trained_are_counted(course):
    runs = str(cache_dir() / "runs" / "key")
    course("00_one", f"import os\nos.makedirs({runs!r}, exist_ok=True)\nopen({runs + '/SEAL.json'!r}, 'w').close()")
    assert [start()[0].trained_runs, start()[0].trained_runs] == [1, 0]


def test_publishing_leaves_no_trace_of_papermill_or_this_machine(course, monkeypatch):
    path = course("00_one", "40 + 2")
    readme = path.parent / "README.md"
    names = re.findall(r"<!-- (\w+): written by", (ROOT / "README.md").read_text(encoding="utf-8"))
    markers = [publish.BEGIN.format(name=name) + "\nold\n" + publish.END.format(name=name) for name in names]
    readme.write_text("# Course\n\n" + "\n\nbetween\n\n".join(markers) + "\n\nafter\n")
    update = publish.update_readme
    monkeypatch.setattr(publish, "update_readme", lambda: update(readme))
    laptop = load_profile("laptop")
    publish.publish_course(laptop, run_course(laptop, profile_name="laptop"), whole=True)
    published = nbformat.read(path, 4)
    assert [cell.source for cell in published.cells[1:]] == [FIRST, "40 + 2"]
    assert [cell.execution_count for cell in published.cells[1:]] == [1, 2]
    assert published.cells[2].outputs[0]["data"]["text/plain"] == "42"
    assert published.cells[2].outputs[0]["execution_count"] == 2
    text = path.read_text()
    assert "papermill" not in text and "injected" not in text and str(cache_dir()) not in text
    page = readme.read_text()
    assert {"profiles", "notebooks"} <= set(names) and "\nold\n" not in page
    assert page.startswith("# Course\n") and "between" in page and page.endswith("after\n")
    assert "| [00_one title](notebooks/00_one.ipynb) | What it shows. |" in page
    assert page.count("not measured yet") >= 6 and "GiB |" in page, "smoke, gpu and paper were never run here"
    update(readme)
    assert readme.read_text() == page


def test_a_readme_without_its_markers_is_not_touched(course, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Course\n")
    with pytest.raises(CourseError, match="lacks the lines"):
        publish.update_readme(readme)
    assert readme.read_text() == "# Course\n"


def test_every_cell_must_have_completed(tmp_path):
    def book(**changes) -> Path:
        cell = new_code_cell("1", execution_count=1, metadata={"papermill": {"status": "completed"}})
        cell.update(changes)
        nbformat.write(new_notebook(cells=[new_markdown_cell("text"), new_code_cell(""), cell]), tmp_path / "n.ipynb")
        return tmp_path / "n.ipynb"

    check_completed(book())
    for changes in ({"execution_count": None}, {"metadata": {}}, {"metadata": {"papermill": {"status": "pending"}}}):
        with pytest.raises(CourseError, match="n.ipynb: cell 3 did not complete"):
            check_completed(book(**changes))


# --- the course itself

def pytest_generate_tests(metafunc):
    """One test a notebook; without any there is one that fails."""
    if "course_notebook" in metafunc.fixturenames:
        paths = list(notebook_files(NOTEBOOKS).values())
        metafunc.parametrize("course_notebook", paths or [None], ids=lambda path: path.stem if path else "none found")


SPY = """
from utils.training.store import RunStore

_get = RunStore.get


def get(self, spec):
    with open({asked!r}, "a") as stream:
        stream.write(spec.key + chr(10))
    return _get(self, spec)


RunStore.get = get
"""


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Path:
    """The file that a kernel started from here writes the key of each run to that it asks the store for."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (tmp_path / "asked").touch()
    (startup / "00-spy.py").write_text(SPY.format(asked=str(tmp_path / "asked")))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path / "asked"


@pytest.fixture(scope="session")
def servers():
    """The kernels of this worker's notebooks are forked, as those of a course are: each would import for seconds."""
    with contextlib.closing(Servers()) as found:
        yield found


@pytest.mark.alone
def test_course_notebook_at_smoke(course_notebook, tmp_path, monkeypatch, asked, servers):
    """The notebook runs whole, asks for no run but those planned, and publishes what is fresh and not degenerate."""
    assert course_notebook is not None, f"there are no notebooks in {NOTEBOOKS}"
    monkeypatch.setenv("LORA_COURSE_FIGURES", str(tmp_path / "figures"))
    target, started = tmp_path / course_notebook.name, time.time()
    with kernels_from(servers):
        execute(course_notebook, target, {"PROFILE": "smoke"}, timeout=240, watch=Watch({}))
    check_completed(target)
    planned = specs_of_notebooks(SMOKE, [course_notebook], None).values()
    unplanned = set(asked.read_text().split()) - {one.key for spec in planned for one in with_starts(spec)}
    assert not unplanned, "a measurement asks for runs of an experiment that it does not name in `runs`"
    cells = [cell for cell in nbformat.read(target, 4).cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells if any(one.output_type == "error" for one in cell.outputs)] == []
    folder = tmp_path / "figures" / "yours" / "smoke"
    calls = sum(len(re.findall(r"^publish\(", cell.source, re.MULTILINE)) for cell in cells)  # not the indented ones
    files = sorted(folder.iterdir()) if folder.exists() else []
    stems = sorted({path.stem for path in files})
    assert len(stems) >= calls and [path.name for path in files] == sorted(
        f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "csv", "json"))
    for stem in stems:
        assert notebook_number(stem) == notebook_number(course_notebook.name), f"{stem}: by the wrong notebook"
        assert_figure(folder / stem, started)


def assert_figure(stem: Path, started: float) -> None:
    record = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert (record["figure"], record["profile"], record["evidence"]) == (stem.name, "smoke", False)
    assert len(record["alt"]) > 40 and record["provenance"]["packages"]["torch"]
    for kind in (".png", ".svg", ".csv", ".json"):
        assert stem.with_suffix(kind).stat().st_mtime >= started - 1
    pixels = image.imread(stem.with_suffix(".png"))
    assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.01, "an empty picture"
    svg = stem.with_suffix(".svg").read_text(encoding="utf-8")
    assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg") and STAMP in svg
    with stem.with_suffix(".csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == record["rows"] > 0 and list(rows[0]) == record["columns"]
    varying, numeric = 0, 0
    for column in rows[0]:
        try:
            values = np.array([float(row[column]) for row in rows if row[column] != ""])
        except ValueError:
            continue
        assert not np.isinf(values).any(), f"{column} is infinite"
        numeric += 1
        varying += len(np.unique(values)) > 1
    assert numeric and (varying or len(rows) == 1), "every number of the table is the same"


def test_a_degenerate_figure_would_be_noticed(tmp_path, monkeypatch):
    """The check above must be able to fail: a constant table, an empty picture."""
    import matplotlib.pyplot as plt
    import pandas as pd

    from utils.reporting.drawn import Drawn
    from utils.reporting.publish import publish as publish_figure

    monkeypatch.setenv("LORA_COURSE_FIGURES", str(tmp_path))
    alt = "A line from left to right, for a test of the checks themselves."
    table, started = pd.DataFrame({"x": [1.0, 2.0], "name": ["a", "b"]}), time.time()

    def figure(identifier: str, table: pd.DataFrame) -> Path:
        drawn, axes = plt.subplots()
        axes.plot(table["x"])
        publish_figure(Drawn(drawn, alt, "A line from left to right.", table, identifier=identifier, profile=SMOKE))
        return tmp_path / "yours" / "smoke" / identifier

    good = figure("good", table)
    assert_figure(good, started)
    with pytest.raises(AssertionError, match="is the same"):
        assert_figure(figure("constant", table.assign(x=1.0)), started)
    with pytest.raises(AssertionError):
        assert_figure(good, time.time() + 60)
    image.imsave(good.with_suffix(".png"), np.ones((300, 300, 3)))
    with pytest.raises(AssertionError, match="an empty picture"):
        assert_figure(good, started)
