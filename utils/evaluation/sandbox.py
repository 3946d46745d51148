"""Generated code, run where it can do no harm; on a system that cannot promise that, it is not run at all.

Each program gets a process of its own that has locked itself in (:mod:`utils.evaluation.jail`) before the program's
first line: it reads Python's and the system's libraries and its scratch folder, writes plain files in that folder,
and has no network, no second process or thread, no signal to others, no privileges, an empty environment, a low
priority, and limits on time, memory, files and output. The kernel enforces this (Landlock, seccomp, rlimits), so that
it holds for native code as well as for Python. It needs Linux 6.2 or later on x86_64 or aarch64; no rights of root.

What it does not promise: the size of all files together is looked at some fifty times a second, so a fast writer may
pass it for an instant; and `reached_end` is proven by a token in the memory of the same process, which a program that
searched that memory on purpose could find. No program gets there by ending early or by what it prints.
"""

import ctypes
import json
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

from utils.errors import CourseError, UsageError
from utils.evaluation import jail
from utils.progress import track

LOOK_EVERY_S = 0.02  # at the scratch folder's size
START_S = 60.0  # an interpreter starts in well under a second; a machine under load may need more
SMALLEST_FILE = 4096  # an empty file costs the disk something too
OLDEST_LANDLOCK = 3  # the first that covers truncation

Status = Literal["finished", "failed", "timed out", "killed", "too much output"]


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes
    ----------
    wall_seconds : float
        From the program's first line to its end.
    cpu_seconds : int
        Of processor time, whole seconds.
    memory_mib : int
        Of address space; the interpreter itself takes about 30.
    output_bytes : int
        Of standard output and error together; the rest is cut off and the program killed.
    file_mib : int
        Of one file, and of all files in the scratch folder together.
    """

    wall_seconds: float = 5
    cpu_seconds: int = 5
    memory_mib: int = 512
    output_bytes: int = 20_000
    file_mib: int = 1

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value <= 0 or (name != "wall_seconds" and value != int(value)):
                kind = "positive number" if name == "wall_seconds" else "positive whole number"
                raise UsageError(f"Expected {name} to be a {kind}, got {value!r}; do give one.")


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    Attributes
    ----------
    status : str
        ``finished`` (exit code 0), ``failed`` (another exit code), ``timed out`` (wall or processor time), ``killed``
        (a signal, or too much in its folder), ``too much output``.
    exit_code : int
        The process's; negative for the signal that ended it.
    output : str
        Standard output and error, cut at the limit.
    seconds : float
        From the program's first line to the end of the process.
    reached_end : bool
        The program ran past its last line: an early ``sys.exit(0)`` or ``os._exit(0)`` finishes without it.
    """

    status: Status
    exit_code: int
    output: str
    seconds: float
    reached_end: bool


class Availability(NamedTuple):
    """Whether generated code can be run here; true or false, with the reason in one sentence where it cannot."""

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available


# Runs inside: whatever it manages to do means that the lock does not hold.
_PROBE = """
import os, socket
outside = os.path.join(os.pardir, f"{os.path.basename(os.getcwd())}-outside")
attempts = [lambda: socket.socket(), lambda: os.unlink(open(outside, "x").name), os.fork,
            lambda: os.kill(os.getppid(), 0), lambda: os.listdir("/")]
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
    try:
        probe = _execute(_PROBE, limits=Limits(wall_seconds=30), name="__main__")
    except (CourseError, OSError) as error:
        return Availability(False, f"Generated code is not run here: {error}")
    if not probe.reached_end or probe.status != "finished":
        return Availability(False, "Generated code is not run here: a harmless program that tried the sandbox out "
                                   f"came to '{probe.status}' with exit code {probe.exit_code}.")
    return Availability(True)


def run_python(program: str, *, limits: Limits = Limits(), name: str = "__main__") -> Execution:
    r"""Run a Python program in the sandbox, with the standard library and no input.

    Parameters
    ----------
    program : str
        The program's text.
    limits : Limits
    name : str
        What the program sees as ``__name__``.

    Raises
    ------
    CourseError
        If this system cannot keep the program in; it is then not run.

    Examples
    --------
    >>> run_python("print(6 * 7)").output if sandbox_available() else "42\n"
    '42\n'
    """
    available = sandbox_available()
    if not available:
        raise CourseError(available.reason)
    return _execute(program, limits=limits, name=name)


def run_many(programs: Sequence[str], *, limits: Limits = Limits(), workers: int = 2, name: str = "__main__",
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
    if workers < 1:
        raise UsageError(f"Expected one worker or more, got {workers}; do give 1.")
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(partial(run_python, limits=limits, name=name), programs)
        return list(track(results, total=len(programs), label=label))


def _execute(program: str, *, limits: Limits, name: str) -> Execution:
    token = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="sandbox-") as scratch, tempfile.TemporaryFile("w+") as given:
        json.dump({"program": program, "name": name, "token": token, "scratch": scratch, "parent": os.getpid(),
                   "limits": asdict(limits)}, given)
        given.seek(0)
        process, output, proof = _start(scratch, given)
        try:
            return _follow(process, output, proof, limits=limits, scratch=Path(scratch), token=token.encode())
        finally:
            _end(process)
            os.close(output)
            os.close(proof)


def _start(scratch: str, given) -> tuple[subprocess.Popen, int, int]:
    """The locked process, and the reading ends of its output and of the pipe that proves how far it came."""
    (output, output_end), (proof, proof_end) = os.pipe(), os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", jail.__file__, str(proof_end)], stdin=given, stdout=output_end,
            stderr=output_end, pass_fds=(proof_end,), cwd=scratch, start_new_session=True,
            env={"HOME": scratch, "TMPDIR": scratch, "LC_ALL": "C.UTF-8"})
    except BaseException:
        os.close(output)
        os.close(proof)
        raise
    finally:
        os.close(output_end)
        os.close(proof_end)
    return process, output, proof


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _follow(process: subprocess.Popen, output: int, proof: int, *, limits: Limits, scratch: Path,
            token: bytes) -> Execution:
    """Read until the process ends or passes a limit, and say which."""
    if not select.select([proof], [], [], START_S)[0] or os.read(proof, 1) != jail.READY:
        _end(process)
        said = _read(output, 2000).decode(errors="replace").strip()
        raise CourseError(f"The sandbox could not be locked, so the program was not run: {said or 'no answer'}.")
    started, collected, broken = time.monotonic(), b"", None
    ended = os.pidfd_open(process.pid)
    try:
        while broken is None:
            ready = select.select([ended, output], [], [], LOOK_EVERY_S)[0]
            piece = os.read(output, limits.output_bytes + 1) if output in ready else b""
            collected += piece
            if ended in ready:
                break
            if output in ready and not piece:  # it closed its output and works on
                time.sleep(LOOK_EVERY_S)
            broken = _broken(limits, collected, time.monotonic() - started, scratch=scratch)
    finally:
        os.close(ended)
    _end(process)
    seconds = time.monotonic() - started
    collected += _read(output, limits.output_bytes + 1 - len(collected))
    proven = _read(proof, len(token) + 1) == token
    if broken is None:
        broken = "too much output" if len(collected) > limits.output_bytes else _status(process, limits, seconds)
    text = collected[:limits.output_bytes].decode("utf-8", errors="replace")
    return Execution(broken, process.returncode, text, seconds, proven and broken == "finished")


def _broken(limits: Limits, collected: bytes, seconds: float, *, scratch: Path) -> Status | None:
    """Which limit a running program has passed, if any."""
    if len(collected) > limits.output_bytes:
        return "too much output"
    if seconds > limits.wall_seconds:
        return "timed out"
    used = 0
    with os.scandir(scratch) as files:
        for file in files:
            try:
                used += max(SMALLEST_FILE, file.stat(follow_symlinks=False).st_blocks * 512)
            except FileNotFoundError:  # removed between the two looks
                continue
            if used > limits.file_mib * 2**20:
                return "killed"
    return None


def _status(process: subprocess.Popen, limits: Limits, seconds: float) -> Status:
    """How a process ended by itself.

    The kernel ends one that used up its processor time by the same signal as any other kill; only time tells them
    apart, and one thread cannot use more of it than has passed.
    """
    if process.returncode == -signal.SIGKILL and seconds > 0.8 * limits.cpu_seconds:
        return "timed out"
    if process.returncode < 0:
        return "killed"
    return "finished" if process.returncode == 0 else "failed"


def _read(pipe: int, count: int) -> bytes:
    """Up to `count` bytes of what an ended process left in a pipe."""
    os.set_blocking(pipe, False)  # a copy of the pipe in a process that someone else forked must not hold us up
    pieces = b""
    try:
        while count > len(pieces) and (piece := os.read(pipe, count - len(pieces))):
            pieces += piece
    except BlockingIOError:
        pass
    return pieces
