"""Finished runs on their way between stores that do not see each other: one archive each, checked where it arrives.

The seal that a run carries names every file with its sha256, so that nothing else has to be sent to know it whole.
An archive is held in memory on its way; runs whose checkpoints are larger than that need a shared store.
"""

import io
import zipfile
from pathlib import Path

from filelock import FileLock

from utils.errors import CourseError
from utils.files import fresh_folder, replace_folder
from utils.paths import ensure_dir, worded
from utils.sealed import MANIFEST, check, sums


def sealed(folder: Path, key: str) -> bool:
    """Whether a run's folder holds the finished run, as it was sealed."""
    return (folder / MANIFEST).exists() and check(folder, about={"run": key}) is None


def pack(folder: Path) -> bytes:
    """A sealed run as an archive: what the seal names, and the seal; no measurements and no resume point."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for name in sorted([*sums(folder), MANIFEST]):
            archive.write(folder / name, name)
    return packed.getvalue()


def unpack(archive: bytes, cache: Path, key: str) -> None:
    """Put a run from its archive into a cache's store, where it is whole from the moment when it is there.

    A run that is finished there already is left alone, one that is unfinished gives way.

    Raises
    ------
    CourseError
        If what arrives is not what was sealed, or cannot be written.
    """
    folder = ensure_dir(cache / "runs") / key
    try:
        with FileLock(f"{folder}.lock", mode=0o666):
            if sealed(folder, key):
                return
            scratch = fresh_folder(cache / "arriving" / key)  # not in the store, which takes every folder for a run
            with zipfile.ZipFile(io.BytesIO(archive)) as packed:
                packed.extractall(scratch)
            if reason := check(scratch, about={"run": key}, thorough=True):
                raise CourseError(f"Run {key} did not arrive whole ({reason}); start the same command again.")
            replace_folder(scratch, folder)
    except zipfile.BadZipFile as error:
        raise CourseError(f"Run {key} did not arrive whole ({error}); start the same command again.") from error
    except OSError as error:
        raise CourseError(worded(error, folder, "written")) from error
