"""A process of its own for what is killed or damaged, forked from this one, which has imported everything already."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
DELETES = ("os.remove", "os.rmdir")
LONGEST_S = 120.0  # of one process; a few steps of a tiny model take seconds


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code, negative for the signal that killed it, what it printed, the events it counted.

    ``events`` are names of audit events that change files, in order; empty where the process was killed.
    """

    code: int
    output: str
    events: tuple[str, ...] = ()


def run_apart(action: Callable[[], object], folder: Path, *, kill_at: int | None = None,
              kill_after_s: float | None = None) -> Ended:
    """Do something in a forked process and say how it ended.

    Parameters
    ----------
    action : callable
        What to do; an exception ends the process with 1 and is printed.
    folder : Path
        Of the case; what is printed, and the events, are kept there while the process runs.
    kill_at : int, optional
        The change of a file in `folder`, counted from 0, before which the process is killed.
    kill_after_s : float, optional
        Seconds after which it is killed.
    """
    printed, counted = folder / f"output-{time.time_ns()}", folder / f"events-{time.time_ns()}"
    sys.stdout.flush()
    sys.stderr.flush()
    if (process := os.fork()) == 0:
        _child(action, printed, counted, kill_at=kill_at, folder=folder)
    timer = threading.Timer(LONGEST_S if kill_after_s is None else kill_after_s, os.kill, (process, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(process, 0)
    timer.cancel()
    timer.join()
    events = tuple(counted.read_text(encoding="utf-8").split()) if counted.exists() else ()
    return Ended(os.waitstatus_to_exitcode(status), printed.read_text(encoding="utf-8", errors="replace"), events)


def _child(action: Callable[[], object], printed: Path, counted: Path, *, kill_at: int | None,
           folder: Path) -> None:
    """The forked process's whole life; it never returns."""
    code = 1
    try:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
        seen = _count(folder, kill_at)
        action()
        changes = tuple(seen)
        counted.write_text(" ".join(changes), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of the parent's, such as pytest's own end, may happen here


def _count(folder: Path, kill_at: int | None) -> list[str]:
    """Note every change of a file in `folder` from here on; before number `kill_at` the process kills itself."""
    seen: list[str] = []
    within = f"{folder.resolve()}{os.sep}"

    def hook(event: str, arguments: tuple) -> None:
        if (event in WRITES or (event == "open" and _writes(arguments))) and _path(event, arguments).startswith(within):
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(event)

    sys.addaudithook(hook)
    return seen


def _writes(arguments: tuple) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _path(event: str, arguments: tuple) -> str:
    """What a change is made to; deleting a tree names its files relative to a folder that is open."""
    path, opened = arguments[0], arguments[-1] if event in WRITES else -1
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    here = Path(f"/proc/self/fd/{opened}").readlink() if isinstance(opened, int) and opened >= 0 else Path.cwd()
    return str(here / os.fsdecode(path))
