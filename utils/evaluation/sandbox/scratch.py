"""Scratch folders of programs: locked by the process that made them, so that those of the dead can be told and removed.

The lock is the kernel's (flock) and goes with its process, however that ends: no number of a process is trusted, and
a folder of another user, container or living session is never touched.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "lora-course-sandbox-"
SMALLEST_FILE = 4096  # an empty file costs the disk something too


@contextmanager
def scratch_folder(beneath: Path | None = None) -> Iterator[Path]:
    """A new folder that is gone afterwards; made in `beneath` or where temporary files go."""
    folder, held = None, None
    while held is None:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beneath))
        held = _lock(folder)  # None if a sweep elsewhere took the new folder for a dead session's
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep(beneath: Path | None = None) -> int:
    """Remove what sessions left that were killed; returns the number of folders removed."""
    removed = 0
    for folder in Path(beneath or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        held = _lock(folder)
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
            removed += 1
    return removed


def _lock(folder: Path) -> int | None:
    """The descriptor that locks a folder of ours; None if it is locked, gone, someone else's or no folder."""
    import fcntl  # where it does not exist, nothing is run

    held = None
    with suppress(OSError):
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held).st_uid == os.getuid() and os.path.samestat(os.stat(folder), os.fstat(held)):
            return held
    if held is not None:
        os.close(held)
    return None


def used_bytes(scratch: Path, process: int, *, largest: int) -> int:
    """Bytes on the disk that a process fills in its scratch folder, files included that it has removed and still uses.

    A removed file whose only trace is a mapping counts as `largest`, the size that no file passes.
    """
    used, removed = 0, set()
    with os.scandir(scratch) as files:
        for file in files:
            with suppress(FileNotFoundError):  # removed between the two looks
                used += max(SMALLEST_FILE, file.stat(follow_symlinks=False).st_blocks * 512)
    with suppress(OSError):  # the process has ended, and with it what it had open
        for number in os.listdir(f"/proc/{process}/fd"):
            with suppress(FileNotFoundError):
                found = os.stat(f"/proc/{process}/fd/{number}")
                if found.st_nlink == 0 and found.st_ino not in removed:
                    removed.add(found.st_ino)
                    used += found.st_blocks * 512
        maps = Path(f"/proc/{process}/maps").read_text(encoding="utf-8", errors="replace")
        mapped = re.findall(rf"^\S+ \S+ \S+ \S+ (\d+) +{re.escape(str(scratch))}/.* \(deleted\)$", maps, re.M)
        used += largest * len({int(inode) for inode in mapped} - removed)
    return used
