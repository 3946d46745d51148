"""Locked processes, started and followed from outside until the first of them ends or a limit is passed."""

import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from utils.errors import CourseError, printable
from utils.evaluation.sandbox.inside import jail
from utils.evaluation.sandbox.paths import Gate, View, libraries
from utils.evaluation.sandbox.results import Limits, Status
from utils.evaluation.sandbox.scratch import used_bytes

INSIDE = Path(jail.__file__).parent
LOOK_EVERY_S = 0.02  # at the scratch folder's size
START_S = 60.0  # an interpreter starts in well under a second; a machine under load may need more
_START = "import sys; sys.path.insert(0, sys.argv[1]); from inside import roles; del sys.path[0]; roles.main()"


class Locked:
    """A process that takes one role behind the lock; a context, at whose end it is gone.

    Parameters
    ----------
    role : str
        ``program``, ``candidate`` or ``judge``, see :mod:`inside.roles`.
    task : dict
        What the role takes; descriptors in it are among `pipes`.
    limits : Limits
    pipes : sequence of int
        Descriptors that the process inherits.
    scratch : Path, optional
        The folder in which it may write; a process without one has no output either.
    view : View, optional
        What it can see, where that is not what it may read.
    """

    def __init__(self, role: str, task: dict, *, limits: Limits, pipes: Sequence[int] = (),
                 scratch: Path | None = None, view: View | None = None):
        self.limits, self.scratch, self.view = limits, scratch, view or View(scratch)
        self.output, self.gate, self.ended = -1, None, -1
        self.collected, self.overfull = b"", False
        self.control, control_end = socket.socketpair()
        lock = {"scratch": scratch and str(scratch), "readable": libraries()[0], "listable": libraries()[1],
                "parent": os.getpid(), "machine": platform.machine(), "limits": asdict(limits)}
        output_end = None
        try:
            if scratch:
                self.output, output_end = os.pipe()
            with tempfile.TemporaryFile("w+") as given:
                json.dump({"role": role, "task": task, "lock": lock, "control": control_end.fileno()}, given)
                given.seek(0)
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", "-c", _START, str(INSIDE.parent)], stdin=given,
                    stdout=output_end or subprocess.DEVNULL, stderr=output_end or subprocess.DEVNULL,
                    pass_fds=(*pipes, control_end.fileno()), cwd=scratch or "/", start_new_session=True,
                    env={"LC_ALL": "C.UTF-8"} | ({"HOME": str(scratch), "TMPDIR": str(scratch)} if scratch else {}))
        except BaseException:
            self._close()
            raise
        finally:
            control_end.close()
            if output_end is not None:
                os.close(output_end)

    def __enter__(self) -> "Locked":
        return self

    def __exit__(self, *_) -> None:
        self.end()
        self._close()

    def _close(self) -> None:
        self.control.close()
        if self.gate:
            self.gate.close()
        for descriptor in (self.output, self.ended):
            if descriptor >= 0:
                os.close(descriptor)

    def wait_for_lock(self) -> None:
        """Return once the lock is on.

        Raises
        ------
        CourseError
            If the process could not lock itself in.
        """
        self.control.settimeout(START_S)
        said, listeners = b"", []
        try:
            said, listeners, _, _ = socket.recv_fds(self.control, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if listeners:
                self.ended = os.pidfd_open(self.process.pid)
                self.gate = Gate(self.process.pid, listeners[0], machine=platform.machine(), view=self.view,
                                 full=self.full)
                listeners.clear()
                said = self.control.recv(1)
            why = self.control.recv(2000) if said == jail.REFUSED else b""
        except OSError as error:  # the process ended, or its memory may not be read here
            said, why = b"", str(error).encode()
        for descriptor in listeners:
            os.close(descriptor)
        if said != jail.READY or self.gate is None:
            self.end()
            why = why or self.drain(2000).strip().rpartition(b"\n")[2]
            raise CourseError("The sandbox could not be locked, so the program was not run: "
                              f"{printable(why.decode(errors='replace')) or 'no answer'}.")

    def go(self) -> None:
        """Let it begin with its task."""
        with suppress(OSError):  # it was killed meanwhile, which shows below
            self.control.send(b"G")

    def full(self) -> bool:
        """Whether it has filled its scratch folder; once it has, for good."""
        if not self.scratch:
            return False
        largest = self.limits.file_mib * 2**20
        self.overfull = self.overfull or used_bytes(self.scratch, self.process.pid, largest=largest) > largest
        return self.overfull

    def read(self) -> bool:
        """Take what it wrote; false once nothing more can come."""
        piece = os.read(self.output, self.limits.output_bytes + 1)
        self.collected += piece
        return bool(piece)

    def drain(self, count: int) -> bytes:
        """Up to `count` bytes of what the ended process left in its output."""
        if self.output < 0 or count <= 0:
            return b""
        os.set_blocking(self.output, False)  # a copy of the pipe in a process that someone else forked may be open
        pieces = b""
        with suppress(BlockingIOError):
            while count > len(pieces) and (piece := os.read(self.output, count - len(pieces))):
                pieces += piece
        return pieces

    def end(self) -> None:
        """Kill it if it lives."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def text(self) -> tuple[str, bool]:
        """What the ended process wrote, fit for a screen, and whether that was more than it may."""
        most = self.limits.output_bytes
        self.collected += self.drain(most + 1 - len(self.collected))
        return printable(self.collected[:most].decode("utf-8", errors="replace")), len(self.collected) > most

    def status(self, seconds: float) -> Status:
        """How it ended by itself.

        The kernel ends one that used up its processor time by the same signal as any other kill; only time tells them
        apart, and one thread cannot use more of it than has passed.
        """
        if self.process.returncode == -signal.SIGKILL and seconds > 0.8 * self.limits.cpu_seconds:
            return "timed out"
        if self.process.returncode < 0:
            return "killed"
        return "finished" if self.process.returncode == 0 else "failed"


def follow(processes: Sequence[Locked]) -> tuple[Status | None, float]:
    """Serve locked processes until the first of them ends or one passes a limit; end them all.

    Returns
    -------
    tuple
        The limit that was passed, or None; seconds from the first lines of what runs to the end.

    Raises
    ------
    CourseError
        If one could not lock itself in; none of them has then run anything.
    """
    for process in processes:
        process.wait_for_lock()
    for process in processes:
        process.go()
    started, broken, running = time.monotonic(), None, True
    poller, actions = select.poll(), {}  # `select.select` ends at descriptor 1023
    for process in processes:
        for descriptor, action in _actions(process).items():
            poller.register(descriptor, select.POLLIN)
            actions[descriptor] = action
    look = started
    while running and broken is None:
        for descriptor, event in poller.poll(1000 * LOOK_EVERY_S):
            if descriptor == processes[0].ended:
                running = False
            elif not (event & (select.POLLIN | select.POLLHUP) and actions[descriptor](event)):
                poller.unregister(descriptor)
        now = time.monotonic()
        broken = _broken(processes, now - started, look=now >= look)
        look = now + LOOK_EVERY_S if now >= look else look
    for process in processes:
        process.end()
    return broken, time.monotonic() - started


def _actions(process: Locked) -> dict[int, Callable[[int], bool]]:
    """Descriptor -> what to do when it is ready; false if it need not be watched any longer."""
    def answer(event: int) -> bool:
        if event & select.POLLIN:
            process.gate.answer()
        return bool(event & select.POLLIN)

    actions: dict[int, Callable[[int], bool]] = {process.ended: lambda event: False, process.gate.listener: answer}
    return actions | ({process.output: lambda event: process.read()} if process.output >= 0 else {})


def _broken(processes: Sequence[Locked], seconds: float, *, look: bool) -> Status | None:
    """Which limit a running program has passed, if any."""
    if any(len(process.collected) > process.limits.output_bytes for process in processes):
        return "too much output"
    if any(seconds > process.limits.wall_seconds for process in processes):
        return "timed out"
    return "killed" if any(process.overfull or (look and process.full()) for process in processes) else None
