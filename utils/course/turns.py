"""One process at a time for work whose results lie in one place."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import CourseError
from utils.paths import ensure_dir


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock beside `folder` within the block; it is free again as soon as this process ends, however it does.

    Parameters
    ----------
    folder : Path
        Where the results lie.
    what : str
        The work in the words of a sentence's beginning, such as ``"A course at profile smoke"``.

    Raises
    ------
    CourseError
        If another process holds it. Waiting would only do the same work a second time, over the first one's results.
    """
    lock = FileLock(ensure_dir(folder.parent) / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CourseError(f"{what} is under way already in another process and writes to {folder}; let it end, or stop "
                          "it, and start again.") from error
    try:
        yield
    finally:
        lock.release()
