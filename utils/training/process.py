"""The life of a process that trains one run, whichever engine asks for it: how it is forked, and what it leaves.

Nothing here imports torch before a run is trained: who starts such processes need not have it in memory.
"""

import contextlib
import multiprocessing
import os
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
    return context


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
    os.environ.update(variables)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone: the driver was killed, and nobody waits for it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(3)
