"""Signals, pipes and terminals: what only a process of its own can show."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from utils.course.chaos.ask import in_a_process, tracked, unseemly
from utils.course.chaos.case import Case
from utils.course.chaos.surroundings import one_notebook
from utils.course.streams import end_children
from utils.paths import ROOT

SLEEPS = ("import pathlib, subprocess, time\nsubprocess.Popen(['sleep', '300'])\npathlib.Path({mark!r}).touch()\n"
          "time.sleep(300)")
PATIENCE_S = 120.0
# A notebook's folder instead of the course's own.
MOVED = "import pathlib, utils.course.runner\nutils.course.runner.NOTEBOOKS = pathlib.Path({folder!r})"
WORKS = ("import pathlib, time, utils.course.doctor\n"
         "utils.course.doctor.doctor = lambda: (pathlib.Path({mark!r}).touch(), time.sleep(300))")


def cases(*, quick: bool) -> list[Case]:
    """Every signal at a notebook and at a command; output that nobody reads, that fits nowhere, or that is ASCII."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    made = [Case(f"{number.name} while a {'notebook runs' if course else 'command works'}", "signals",
                 _signalled(number, course=course)) for course in (False, True) for number in numbers]
    made += [Case("SIGHUP that is ignored, as by nohup", "signals", _nohup),
             Case("a course beside another at the same profile", "two at once", _beside_another),
             Case("a notebook whose output goes unread", "pipes", _unread_course)]
    good, left = "where accuracy-parity", "; exit ${PIPESTATUS[0]}"
    fine = {"standard output closed": (f"{good} >&-", 0, 0), "standard error closed": ("where x 2>&-", 2, 0),
            "a reader that leaves": (f"{good} | true{left}", 0, 0), "no input": (f"{good} <&-", 0, 0),
            "a reader that leaves both": (f"{good} 2>&1 | true{left}", 0, 0),
            "a full disk as output": (f"{good} >/dev/full", 1, 1),
            "a full disk as both outputs": (f"{good} >/dev/full 2>&1", 1, 0)}
    made += [Case(name, "pipes", _shell(*one)) for name, one in fine.items()]
    spoken = {"ASCII": {"PYTHONIOENCODING": "ascii"}, "Latin-1": {"PYTHONIOENCODING": "latin-1"},
              "LANG=C without UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
              "UTF-8 mode": {"PYTHONUTF8": "1", "LC_ALL": "C"}, "no HOME": {"HOME": ""},
              "HOME nowhere": {"HOME": "/none"}}
    made += [Case(f"an error, {name}", "terminals", _shell("claims --profile 'ε\nx'", 2, 1, variables=one))
             for name, one in spoken.items()]
    made.append(Case("all claims, ASCII", "terminals", _shell("claims >/dev/null", 0, 0, variables=spoken["ASCII"])))
    return [made[1], made[-2]] if quick else made


def _shell(command: str, status: int, lines: int, *, variables: dict[str, str] | None = None
           ) -> Callable[[Path], str | None]:
    """An attempt at a line of bash, in which ``$0`` stands before the command's words."""
    def attempt(folder: Path) -> str | None:
        before, given = tracked(), dict(os.environ) | {"LORA_COURSE_CACHE": str(folder / "cache")} | (variables or {})
        done = subprocess.run(["bash", "-c", f"$0 -m utils {command}", sys.executable], cwd=ROOT, capture_output=True,
                              env={name: value for name, value in given.items() if value}, check=False,
                              timeout=PATIENCE_S)
        return _fault(done, status=status, lines=lines, before=before)

    return attempt


def _fault(done: subprocess.CompletedProcess, *, status: int, lines: int, before: dict) -> str | None:
    said = done.stderr.decode(errors="replace")
    if done.returncode != status:
        return f"It ended with {done.returncode}, not {status}: {said.strip()[-300:]}"
    if said.count("\n") != lines or unseemly(said):
        return f"It said {said.count(chr(10))} lines, not {lines}: {said.strip()[-300:]!r}"
    return "A tracked file was changed" if tracked() != before else None


def _begun(folder: Path, *, course: bool, mark: str = "mark", wait: bool = True, first: str = "") -> subprocess.Popen:
    """A process in the midst of a cell, or of a command."""
    path = folder / mark
    if course:
        one_notebook(folder, SLEEPS.format(mark=str(path)))
        script, words = MOVED.format(folder=str(folder / "notebooks")), ["course", "--profile", "smoke"]
    else:
        script, words = WORKS.format(mark=str(path)), ["doctor"]
    process = in_a_process(folder, words, script=f"{first}\n{script}")
    deadline = time.monotonic() + PATIENCE_S
    while wait and not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def _signalled(number: signal.Signals, *, course: bool) -> Callable[[Path], str | None]:
    def attempt(folder: Path) -> str | None:
        before, process = tracked(), _begun(folder, course=course)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        output, said = _told(process)
        if left := [child for child in children if child.is_running()]:
            end_children(left, patience_s=0)
            return f"{len(left)} of its processes live on"
        if said != f"Interrupted; the same command {'goes on from here' if course else 'starts afresh'}.\n".encode():
            return f"It said {said[-300:]!r}"
        if course and len(children) < 2:
            return f"The notebook had {len(children)} processes, so nothing was tried"
        return _fault(subprocess.CompletedProcess([], process.returncode, output, said), status=128 + number, lines=1,
                      before=before)

    return attempt


def _told(process: subprocess.Popen) -> tuple[bytes, bytes]:
    """What a process said on both streams until it ended; one that does not end is made to."""
    try:
        return process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        end_children([psutil.Process(process.pid)], patience_s=0)
        return process.communicate()


def _nohup(folder: Path) -> str | None:
    process = _begun(folder, course=False, first="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return None if alive else "It ended, though it was told to ignore the signal"


def _beside_another(folder: Path) -> str | None:
    before, first = tracked(), _begun(folder, course=True)
    try:
        second = _begun(folder, course=True, mark="other", wait=False)
        output, said = _told(second)
        if b"is under way already in another process" not in said:
            return f"The second said {said[-300:]!r}"
        if first.poll() is not None:
            return "The first ended"
        done = subprocess.CompletedProcess([], second.returncode, output, said)
        return _fault(done, status=1, lines=1, before=before)
    finally:
        first.send_signal(signal.SIGTERM)
        _told(first)


def _unread_course(folder: Path) -> str | None:
    """Its reader leaves before it has said anything; every notebook has to be run all the same."""
    one_notebook(folder, f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()")
    process = in_a_process(folder, ["course", "--profile", "smoke"],
                           script=MOVED.format(folder=str(folder / "notebooks")))
    process.stdout.close()
    said = process.stderr.read()
    if process.wait(timeout=PATIENCE_S) != 0 or said:
        return f"It ended with {process.returncode} and said {said[-300:]!r}"
    return None if (folder / "ran").exists() else "The notebook was not run"
