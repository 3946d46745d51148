"""Running programs in the sandbox, alone or judged by tests in a process that they cannot reach."""

import ctypes
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from utils.errors import CourseError, UsageError, printable
from utils.evaluation.sandbox.inside import jail
from utils.evaluation.sandbox.inside.roles import ENDED
from utils.evaluation.sandbox.paths import View
from utils.evaluation.sandbox.process import Locked, follow
from utils.evaluation.sandbox.results import Availability, Execution, FunctionTests, Limits, Verdict
from utils.evaluation.sandbox.scratch import scratch_folder, sweep
from utils.progress import track

DEFAULT = Limits()
OLDEST_LANDLOCK = 3  # the first that covers truncation
Given, Result = TypeVar("Given"), TypeVar("Result")

# Runs inside: whatever it manages to do means that the lock does not hold.
_PROBE = """
import os, socket
outside = os.path.join(os.pardir, f"{os.path.basename(os.getcwd())}-outside")
attempts = [lambda: socket.socket(), lambda: os.unlink(open(outside, "x").name), os.fork,
            lambda: os.kill(os.getppid(), 0), lambda: os.listdir("/"), *[lambda: os.stat("/")] * BLIND]
for number, attempt in enumerate(attempts):
    try:
        attempt()
    except OSError:
        continue
    os._exit(100 + number)
with open("inside", "w") as file:
    file.write("x")
"""


@cache
def sandbox_available() -> Availability:
    """Whether this system can run generated code safely; proven by a harmless program that tries to break out.

    Scratch folders that killed sessions left behind are removed on the way.

    Returns
    -------
    Availability
        True or false; ``reason`` is a sentence where it is false.
    """
    if not sys.platform.startswith("linux"):
        return Availability(False, f"Generated code is run on Linux only, and this is {platform.system()}.")
    if platform.machine() not in jail.MACHINES or sys.maxsize < 2**32:
        known = " and ".join(jail.MACHINES)
        return Availability(False, f"Generated code is run on {known} only, and this is {platform.machine()}.")
    version = jail.landlock_version(ctypes.CDLL(None, use_errno=True))
    if version < OLDEST_LANDLOCK:
        return Availability(False, f"Generated code needs a kernel with Landlock ABI {OLDEST_LANDLOCK} (Linux 6.2), "
                                   f"and this one (Linux {platform.release()}) offers ABI {version}.")
    for view in (None, View(None, roots=["/"])):  # the second: the kernel's own rules must hold without our answers
        try:
            sweep()
            probe = _execute(_PROBE.replace("BLIND", str(int(view is None))), limits=Limits(wall_seconds=30), view=view)
        except (CourseError, OSError) as error:
            return Availability(False, f"Generated code is not run here: {error}")
        if probe.status != "finished":
            return Availability(False, "Generated code is not run here: a harmless program that tried the sandbox out "
                                       f"came to '{probe.status}' with exit code {probe.exit_code}.")
    return Availability(True)


def _must_be_available() -> None:
    available = sandbox_available()
    if not available:
        raise CourseError(available.reason)


def run_python(program: str, *, limits: Limits = DEFAULT, name: str = "__main__",
               beneath: Path | None = None) -> Execution:
    r"""Run a Python program in the sandbox, with the standard library and no input.

    Nothing here says whether the program came to its last line: what a process claims about itself, it can forge. To
    know whether a program is right, :func:`judge` it.

    Parameters
    ----------
    program : str
        The program's text.
    limits : Limits
    name : str
        What the program sees as ``__name__``.
    beneath : Path, optional
        Where its scratch folder is made; by default, where temporary files go.

    Raises
    ------
    CourseError
        If this system cannot keep the program in; it is then not run.

    Examples
    --------
    >>> run_python("print(6 * 7)").output if sandbox_available() else "42\n"
    '42\n'
    """
    _must_be_available()
    return _execute(program, limits=limits, name=name, beneath=beneath)


def judge(program: str, tests: FunctionTests, *, limits: Limits = DEFAULT, name: str = "__main__",
          beneath: Path | None = None) -> Verdict:
    r"""Whether a program passes tests that run in another locked process, which alone can say so.

    The program's function is called across a pipe. Arguments and values cross as plain data, made anew on the other
    side: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, and the items of whatever else
    can be iterated over. An object of a subclass counts as the plain value that it holds; any other object is a
    failure. What the program does to its arguments in place stays with the program.

    Parameters
    ----------
    program : str
        The program's text, which defines the function.
    tests : FunctionTests
        Trusted.
    limits : Limits
        Of the program; the tests have as much for themselves.
    name : str
        What the program sees as ``__name__``.
    beneath : Path, optional
        As in :func:`run_python`.

    Raises
    ------
    CourseError
        If this system cannot keep the program in; it is then not run.

    Examples
    --------
    >>> tests = FunctionTests("twice", "def check(candidate):\n    assert candidate(4) == 8")
    >>> judge("def twice(x):\n    return x + x", tests).passed if sandbox_available() else True
    True
    """
    _must_be_available()
    with scratch_folder(beneath) as scratch, ExitStack() as opened:
        requests, replies, verdicts = (_pipe(opened) for _ in range(3))
        task = {"name": name, "entry_point": tests.entry_point}
        candidate = opened.enter_context(Locked(
            "candidate", task | {"program": program, "requests": requests[0].fileno(), "replies": replies[1].fileno()},
            limits=limits, pipes=(requests[0].fileno(), replies[1].fileno()), scratch=scratch))
        court = opened.enter_context(Locked(
            "judge", task | {"helpers": tests.helpers, "test": tests.text, "requests": requests[1].fileno(),
                             "replies": replies[0].fileno(), "verdict": verdicts[1].fileno()},
            limits=limits, pipes=(requests[1].fileno(), replies[0].fileno(), verdicts[1].fileno())))
        for end in (*requests, *replies, verdicts[1]):
            end.close()  # ours; while we held them, no end of a process would show
        broken, seconds = follow([court, candidate])
        os.set_blocking(verdicts[0].fileno(), False)  # a copy of the pipe in a process that someone else forked
        said = verdicts[0].read()
        output, too_much = candidate.text()
    if broken or too_much:
        return Verdict(False, broken or "too much output", output, seconds)
    result = _result(json.loads(said) if said else None, candidate=candidate, court=court, seconds=seconds)
    return Verdict(result == "passed", result, output, seconds)


def _pipe(opened: ExitStack) -> list:
    return [opened.enter_context(os.fdopen(end, mode)) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]


def _result(verdict: dict | None, *, candidate: Locked, court: Locked, seconds: float) -> str:
    if verdict is None:  # the tests came to an end of their own, over a value that was too much for them
        status = court.status(seconds)
        return status if status in ("timed out", "killed") else "failed: a value that the tests could not take"
    if verdict["passed"]:
        return "passed"
    ended = candidate.status(seconds)
    if verdict["why"] == ENDED and ended in ("timed out", "killed"):
        return ended
    return f"failed: {printable(verdict['why'])}"


def run_many(programs: Sequence[str], *, limits: Limits = DEFAULT, workers: int = 2, name: str = "__main__",
             label: str = "programs") -> list[Execution]:
    """Run many programs, `workers` at a time; what comes back is in the programs' order.

    Parameters
    ----------
    programs : sequence of str
        The programs' texts.
    limits : Limits
        Of each.
    workers : int
        Programs at a time.
    name : str
        What the programs see as ``__name__``.
    label : str
        What the progress line calls them.

    Raises
    ------
    CourseError
        If this system cannot keep the programs in.
    UsageError
        If `workers` is not positive.
    """
    return _many(partial(run_python, limits=limits, name=name), programs, workers=workers, label=label)


def judge_many(pairs: Sequence[tuple[str, FunctionTests]], *, limits: Limits = DEFAULT, workers: int = 2,
               name: str = "__main__", label: str = "programs") -> list[Verdict]:
    """Judge many programs, each by its tests; the rest as in :func:`run_many`."""
    return _many(lambda pair: judge(*pair, limits=limits, name=name), pairs, workers=workers, label=label)


def _many(work: Callable[[Given], Result], given: Sequence[Given], *, workers: int, label: str) -> list[Result]:
    if workers < 1:
        raise UsageError(f"Expected one worker or more, got {workers}; do give 1.")
    with ThreadPoolExecutor(workers) as pool:
        return list(track(pool.map(work, given), total=len(given), label=label))


def _execute(program: str, *, limits: Limits, name: str = "__main__", beneath: Path | None = None,
             view: View | None = None) -> Execution:
    task = {"program": program, "name": name}
    with scratch_folder(beneath) as scratch, \
            Locked("program", task, limits=limits, scratch=scratch, view=view) as process:
        broken, seconds = follow([process])
        output, too_much = process.text()
    status = broken or ("too much output" if too_much else process.status(seconds))
    return Execution(status, process.process.returncode, output, seconds)
