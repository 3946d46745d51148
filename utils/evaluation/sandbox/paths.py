"""Which paths a program can see, and the answers to its calls that take one.

Landlock keeps a program from opening what it must not, yet a path's metadata, and whether it exists at all, would show
through stat, access, chdir or the kind of an error. So those calls wait in the kernel until we have looked at the path
(seccomp's user notification): within the libraries and the scratch folder the kernel goes on with the call, anywhere
else the answer is "permission denied", whether something is there or not. A program has one thread and shares no
memory, so that it cannot change the path between our look and the kernel's.
"""

import errno
import os
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from utils.evaluation.sandbox.inside import jail

HIDDEN = frozenset({"site-packages", "dist-packages"})  # other packages, and the problems' own answers among them
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
OTHERS = ("/usr/share/zoneinfo", "/nix/store", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")
LONGEST = 4096  # of a path, in bytes
RECEIVE, SEND = 0xC0502100, 0xC0182101  # of the listener's controls
NOTICE, ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
HERE, GO_ON = -100, 1  # the folder that a process stands in; let the kernel do it
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@cache
def libraries() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What a program may read: (paths with all beneath them, folders to list only, roots that hold all of these).

    Of a folder that also holds other packages (a conda environment's, the system's) it is the parts without them.
    """
    stdlib, own = sysconfig.get_path("stdlib"), str(Path(sys.base_prefix, "lib"))
    readable = [*OTHERS, *_parts(stdlib, lambda part: True)]
    system = {os.path.realpath(folder) for folder in SYSTEM}
    for folder in system:
        readable += _parts(folder, lambda part: not part.name.startswith("python"))
    if os.path.realpath(own) not in system:
        readable += _parts(own, lambda part: ".so" in part.name)
    return tuple(readable), (stdlib,), (*OTHERS, *SYSTEM, own, stdlib, os.devnull)


def _parts(folder: str, wanted: Callable[[Path], bool]) -> list[str]:
    try:
        parts = sorted(Path(folder).iterdir())
    except OSError:
        return []  # a folder that this machine does not have needs no right
    return [str(part) for part in parts if part.name not in HIDDEN and wanted(part)]


class View:
    """What one process can see: the libraries, and its scratch folder if it has one, or all beneath some roots."""

    def __init__(self, scratch: Path | None, *, roots: Iterable[str] | None = None):
        roots = {*(libraries()[2] if roots is None else roots), *([str(scratch)] if scratch else [])}
        self.roots = tuple(os.fsencode(root) for root in {*roots, *map(os.path.realpath, roots)})

    def shows(self, path: bytes) -> bool:
        """Whether an absolute path lies within, at every step of the way where it goes up again."""
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not self._within(parts):
                    return False
                parts = parts[:-1]
            elif part not in (b"", b"."):
                parts.append(part)
        if b".." in path.split(b"/") and not self._within(os.path.realpath(path).split(b"/")[1:]):
            return False  # it goes up from a link's target
        return self._within(parts)

    def _within(self, parts: list[bytes]) -> bool:
        path = b"/" + b"/".join(parts)
        inside = any(path == root or path.startswith(root.rstrip(b"/") + b"/") for root in self.roots)
        return inside and not any(os.fsdecode(part) in HIDDEN for part in parts)


class Gate:
    """Answers one process's calls that take a path.

    Parameters
    ----------
    process : int
        Its number.
    listener : int
        The descriptor on which its calls arrive; closed by :meth:`close`.
    machine : str
        As the tables of :mod:`inside.jail` name it.
    view : View
    full : callable
        Takes nothing; whether the process has filled its folder, so that it may open nothing more for writing.
    """

    def __init__(self, process: int, listener: int, *, machine: str, view: View, full: Callable[[], bool]):
        self.process, self.listener, self.view, self.full = process, listener, view, full
        self.memory = os.open(f"/proc/{process}/mem", os.O_RDONLY)
        column = jail.MACHINES[machine][0]
        self.calls = {jail.CALLS[name][column]: (name, paths) for name, paths in jail.PATH_CALLS.items()}

    def answer(self) -> None:
        """Take the call that waits and say what becomes of it."""
        import fcntl  # where it does not exist, nothing is run

        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(self.listener, RECEIVE, notice)
            number, _, _, call, _, _, *arguments = NOTICE.unpack(notice)
            refused = self._refused(call, arguments)
            fcntl.ioctl(self.listener, SEND, ANSWER.pack(number, 0, -refused, 0 if refused else GO_ON))
        except FileNotFoundError:
            return  # the process has ended, or a signal took it out of the call

    def _refused(self, call: int, arguments: list[int]) -> int:
        name, paths = self.calls[call]
        for folder, path in paths:
            text = self._text(arguments[path]) if arguments[path] else b""
            if text is None:
                return errno.EFAULT
            if text and not self.view.shows(text if text.startswith(b"/") else self._joined(
                    HERE if folder is None else arguments[folder], text)):
                return errno.EACCES
        flags = {"open": arguments[1], "openat": arguments[2]}.get(name, 0)
        return errno.ENOSPC if flags & WRITES and self.full() else 0

    def _text(self, address: int) -> bytes | None:
        """The process's string at an address, without its end; None if there is none."""
        try:
            text, end, _ = os.pread(self.memory, LONGEST, address).partition(b"\0")
        except (OSError, OverflowError):
            return None
        return text if end else None

    def _joined(self, folder: int, path: bytes) -> bytes:
        """A path as it is from the folder that the process stands in or has open; empty if that is none."""
        number = struct.unpack("=i", struct.pack("=I", folder & 0xFFFFFFFF))[0]
        link = f"/proc/{self.process}/cwd" if number == HERE else f"/proc/{self.process}/fd/{number}"
        try:
            return os.readlink(os.fsencode(link)) + b"/" + path
        except OSError:
            return b""

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.listener)
        os.close(self.memory)
