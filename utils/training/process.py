"""The life of a process that trains one run, whichever engine asks for it: how it is forked, and what it leaves.

Nothing here imports torch before a run is trained: who starts such processes need not have it in memory.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from utils.errors import CourseError, reason_of
from utils.paths import ensure_dir

PRELOADED = ["utils.training.store", "trl", "peft"]
ATTEMPTS = 3  # of a run whose process was killed, and not by an error of its own


def forks() -> Any:
    """The context of :mod:`multiprocessing` whose processes begin with the libraries imported, where a system forks."""
    context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(PRELOADED)
        _start_server()
    return context


def _start_server() -> None:
    """Start the server deaf to Ctrl-C, which a terminal sends to all: it would tell where it was in its imports."""
    from multiprocessing import forkserver, resource_tracker  # of systems that fork

    resource_tracker.ensure_running()  # first, for it makes this thread hear signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def log_of(key: str, cache: Path) -> Path:
    """Where the process of a run writes what it says; gone once the run is finished."""
    return ensure_dir(cache / "logs") / f"{key}.log"


def last_line(log: Path) -> str:
    """Why a process that ended with 1 failed."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it said nothing in {log}")


def train_one(text: str, log: str, variables: dict[str, str]) -> None:
    """Train the run of a specification's JSON, with all output in a log, whose last line says why if it ends with 1.

    It sees one GPU alone, for Trainer takes all that it sees.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver hears it too, and ends this process
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(variables)
    end_with_parent()
    with Path(log).open("w", encoding="utf-8", buffering=1) as stream, contextlib.redirect_stdout(stream), \
            contextlib.redirect_stderr(stream):
        try:
            from utils.machine import set_up_process
            from utils.training.spec import RunSpec
            from utils.training.store import RunStore

            set_up_process()
            RunStore().get(RunSpec.model_validate_json(text))
        except Exception as error:
            if not isinstance(error, CourseError):
                traceback.print_exc()
            print(str(error) if isinstance(error, CourseError) else f"{type(error).__name__}: {reason_of(error)}")
            sys.exit(1)


def end_with_parent() -> None:
    """From here on end this process once the one that started it is gone: it was killed, and nobody waits for us."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(3)
