"""The kernel of a notebook: where it listens, and how it ends when the course is stopped."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
from traitlets.config import Config

from utils.course.forked import kernel_manager
from utils.course.streams import PATIENCE_S, deaf, end_children

T = TypeVar("T")
LONGEST_SOCKET = 100  # bytes of a socket's path; Linux takes 107, macOS 103
_FOLDER = re.compile(r"course-(\d+)-\w{8}")
_OLDER_S = 86400.0


@contextlib.contextmanager
def kernel_config() -> Iterator[Config]:
    """Where the system can, a kernel listens on files of this user alone, not on open local ports.

    They lie with its connection file in a folder of the kernel's own. Left to itself jupyter_client counts up from
    ``kernel-ipc-1`` in the present folder, and two kernels that start at once there would take the same files and
    answer each other's client. Where no folder for temporary files has a path short enough for a socket, the kernel
    listens on local ports.
    """
    parent = _socket_parent()
    # Asked to end while it is idle, a kernel would report an interrupt on our standard error.
    quiet = {"extra_arguments": ["--log-level=CRITICAL"]}
    if parent is None:
        yield Config({"NotebookClient": quiet})
        return
    _sweep(parent)
    with tempfile.TemporaryDirectory(prefix=f"course-{os.getpid()}-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Config({"NotebookClient": quiet | kernel_manager(),
                      "KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel",
                                        "connection_file": f"{folder}/kernel.json"}})


def _socket_parent() -> Path | None:
    """The first folder for temporary files that can be written and in which a socket's path is short enough."""
    if os.name != "posix":
        return None
    for name in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"):
        longest = os.fsencode(f"{name}/course-{2**22}-abcdefgh/kernel-5")
        if name and len(longest) <= LONGEST_SOCKET and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    return None


def _sweep(parent: Path) -> None:
    """Take away the folders of our kernels whose course was killed more than a day ago."""
    for folder in parent.glob("course-*"):
        found = _FOLDER.fullmatch(folder.name)
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if (found and stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
                    and time.time() - state.st_mtime > _OLDER_S and not psutil.pid_exists(int(found[1]))):
                shutil.rmtree(folder, ignore_errors=True)


def with_its_processes_ended(work: Callable[[], T]) -> T:
    """What `work` returns or raises; if this process is stopped meanwhile, the processes that `work` began end first.

    It runs in a thread of its own. A signal that came in the middle of asyncio's or zmq's own code would leave their
    tracebacks behind; so they see only that the kernel is dead, and clean up as they do after any death.
    """
    # An event, for Python 3.11 takes a thread whose join() was interrupted for one that has ended.
    outcome, ended = {}, threading.Event()

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:  # handed over to the caller, whatever it is
            outcome["error"] = error
        finally:
            ended.set()

    before = set(psutil.Process().children(recursive=True))  # a forked kernel is its server's child
    threading.Thread(target=run, daemon=True, name="notebook").start()
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt:
        with deaf():
            deadline = time.monotonic() + PATIENCE_S
            while not ended.wait(0.1) and time.monotonic() < deadline:
                # At once by force: a kernel has nothing that it could still save.
                began = [one for one in psutil.Process().children(recursive=True) if one not in before]
                end_children(began, patience_s=0)
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
