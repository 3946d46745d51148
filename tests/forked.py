"""A process of a test's own that need not import anything: where the system is Linux, it is forked from this one."""

import contextlib
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a process ended: exit code, negative for the signal that killed it, and what it printed."""

    code: int
    output: str


def ended(*actions: Callable[[], object], folder: Path, timeout_s: float = 180) -> list[Ended]:
    """Do things at once, each in a process of its own; how they ended, in order.

    Elsewhere than on Linux a forked process may not go on using torch; there each is started anew, so that an action
    has to be one that can be pickled: a function of a test file, with its arguments by ``functools.partial``.

    Parameters
    ----------
    *actions : callable
        An exception ends the process with 1 and is printed.
    folder : Path
        Where what is printed is kept meanwhile.
    timeout_s : float
        Seconds for each, after which it is killed.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    logs = [folder / f"printed-{number}" for number in range(len(actions))]
    processes: list[BaseProcess] = [context.Process(target=_printing, args=(action, log))
                                    for action, log in zip(actions, logs, strict=True)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
        process.kill()
        process.join()
    return [Ended(process.exitcode, log.read_text(encoding="utf-8")) for process, log in
            zip(processes, logs, strict=True)]


def _printing(action: Callable[[], object], log: Path) -> None:
    with log.open("w", buffering=1, encoding="utf-8") as stream, contextlib.redirect_stdout(stream), \
            contextlib.redirect_stderr(stream):
        action()
