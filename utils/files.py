"""Files that are either whole or absent: checksums, atomic writes, canonical JSON, and reading with care."""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from utils.errors import CourseError, UsageError, reason_of
from utils.paths import worded

# What a write that never ended leaves behind: the name of the file, the number of the process, something random.
_PART = re.compile(r"\..*\.(?:(?P<writer>\d+)-)?[a-z0-9_]{8}\.part")
_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket",
          stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The rename is atomic on one file system, so a reader sees the old file or the new one, never half of it;
    on any error, an interrupt included, the temporary file is removed. What a killed process leaves, :func:`sweep`
    takes away. Who may read the file is for the umask to say, whatever the block wrote it with.

    Raises
    ------
    CourseError
        If the file cannot be written. An error of the block that has nothing to do with writing, such as a lost
        connection or another file that is missing, comes through as it is.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        if (kind := kind_of(path)) not in (None, "a file", "a link"):
            raise CourseError(f"{path} could not be written: it is {kind}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _created(temporary)
        yield temporary
        with temporary.open("r+b") as stream:  # Windows syncs only what it may write
            os.fsync(stream.fileno())
        temporary.chmod(mode)  # safetensors makes its files private; a class shares its cache
        temporary.replace(path)
    except OSError as error:
        if not _is_of_writing(error, path, temporary):
            raise
        raise CourseError(worded(error, path, "written")) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _created(path: Path) -> int:
    """Make an empty file; the mode that the umask left it."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _is_of_writing(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether an error inside an atomic write came from the file, its folder or its disk."""
    if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.filename is None or error.filename in map(str, (path, temporary, *path.parents))


def kind_of(path: Path) -> str | None:
    """What lies at `path`: "a file", "a folder", "a link", "a pipe", "a socket" or "a device"; None if nothing does.

    Raises
    ------
    OSError
        If that cannot be told, such as for want of rights on the way there.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return next((kind for test, kind in _KINDS.items() if test(mode)), "a file")


def check_output(path: Path) -> Path:
    """`path` itself, if a file can be written there: it is a file of one's own or absent, and its folder is writable.

    For files that people name, before the work whose result goes there; nothing is made or changed.

    Raises
    ------
    UsageError
        With what is there, or what is wrong with its folder.
    """
    try:
        kind = kind_of(path)
        if kind not in (None, "a file"):
            raise UsageError(f"{path} is {kind}; give a file to write, or a name that is free.")
        if kind == "a file" and not os.access(path, os.W_OK):
            raise UsageError(f"{path} is there and not yours to write; give another file.")
        folder = next(one for one in path.absolute().parents if os.path.lexists(one))
        if not folder.is_dir():
            raise UsageError(f"{path} cannot be written, since {folder} is no folder; give another file.")
        with tempfile.TemporaryFile(dir=folder):
            return path
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UsageError(f"{path} cannot be written ({reason_of(error)}); give another file.") from error


def sweep(folder: Path, *, recursive: bool = True, older_s: float = 86400.0) -> int:
    """Take away what interrupted writes left in `folder`; returns how many files that were.

    Parameters
    ----------
    folder : Path
        Nothing happens if it is not there.
    recursive : bool
        Whether the folders in it are looked through as well.
    older_s : float
        Seconds since the last write from which a file counts as left behind, if its writer is gone too.
    """
    count, oldest = 0, time.time() - older_s
    for path in folder.rglob(".*.part") if recursive else folder.glob(".*.part"):
        found = _PART.fullmatch(path.name)
        with suppress(OSError):
            if found and path.lstat().st_mtime < oldest and not _is_writing(found["writer"], path):
                path.unlink()
                count += 1
    return count


def is_part(name: str) -> bool:
    """Whether a file's name is one that :func:`atomic_write` gives to what is not whole yet."""
    return _PART.fullmatch(name) is not None


def _is_writing(writer: str | None, path: Path) -> bool:
    """Whether the process that began a file still runs; a younger one has only inherited its number."""
    try:
        return writer is not None and psutil.Process(int(writer)).create_time() <= path.lstat().st_mtime
    except (psutil.Error, OverflowError):
        return False


def fresh_folder(target: Path) -> Path:
    """An empty folder beside `target`, to be filled and then put in its place by :func:`replace_folder`.

    It is the same one each time, so what an interrupted attempt left in it goes now.

    Raises
    ------
    CourseError
        If it cannot be made.
    """
    scratch = target.with_name(f".{target.name}.building")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    except OSError as error:
        raise CourseError(worded(error, scratch, "made")) from error
    return scratch


def replace_folder(scratch: Path, target: Path) -> None:
    """Put the folder `scratch` where `target` is, as a whole; what `target` held is gone afterwards.

    Both lie on one file system. Between two renames `target` is for a moment not there; its old content then lies
    beside it, and :func:`restore_folder` puts it back if the process was killed just there.

    Raises
    ------
    CourseError
        If it cannot be done; `target` is then as it was.
    """
    aside = _aside(target)
    try:
        restore_folder(target)
        share(scratch)
        if target.exists():
            target.rename(aside)
        try:
            scratch.rename(target)
        except OSError:
            restore_folder(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise CourseError(worded(error, target, f"replaced by {scratch}")) from error


def restore_folder(target: Path) -> None:
    """Undo what :func:`replace_folder` was killed in: the old content comes back, or what is left of it goes."""
    aside = _aside(target)
    if aside.exists() and not target.exists():
        aside.rename(target)
    elif aside.exists():
        shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def share(folder: Path) -> None:
    """Give a folder and everything in it the rights that the umask leaves new files.

    Libraries make some files private (safetensors) and `tempfile` makes its folders so, though a class reads them.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, no NaN.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n")


def read_text(path: Path, *, most: int = 2**26) -> str:
    """The text of a file that people may have broken or replaced.

    Parameters
    ----------
    path : Path
    most : int
        Bytes above which it is not what it should be.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CourseError
        If it cannot be read, is no regular file, is too large or no UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            raise CourseError(f"{path} is no regular file; put one in its place.")
        if path.stat().st_size > most:
            raise CourseError(f"{path} is larger than {most / 2**20:g} MiB; it cannot be what its name says.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CourseError(worded(error, path, "read")) from error
    except UnicodeDecodeError as error:
        raise CourseError(f"{path} is not UTF-8 ({reason_of(error)}); write it anew.") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds, with the errors of :func:`read_text`; CourseError if it is not JSON, or too deep."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CourseError(f"{path} is not JSON that can be read ({reason_of(error)}); write it anew.") from error
