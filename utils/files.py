"""Files that are either whole or absent: checksums, atomic writes, canonical JSON."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import CourseError


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space, or set LORA_COURSE_CACHE to a folder on another disk",
    errno.EACCES: "this user has no leave to; ask its owner for it, or set LORA_COURSE_CACHE to a folder of your own",
    errno.EROFS: "the disk may only be read; set LORA_COURSE_CACHE to a folder on another one"}
_LIKE = {errno.EPERM: errno.EACCES, getattr(errno, "EDQUOT", errno.ENOSPC): errno.ENOSPC}
OF_THE_DISK = {*_ADVICE, *_LIKE}  # what the disk or its owner says, and not a network


def worded(error: OSError, path: Path, done: str) -> str:
    """One sentence that says truthfully why something could not be done to a file, and what helps.

    Parameters
    ----------
    error : OSError
    path : Path
        The file or folder, as the reader knows it.
    done : str
        What was to be done, as a participle: "read", "written", "set aside".

    Examples
    --------
    >>> worded(OSError(errno.EIO, "Input/output error"), Path("a.bin"), "read")
    'a.bin could not be read: Input/output error.'
    """
    advice = _ADVICE.get(_LIKE.get(error.errno, error.errno))
    return f"{path} could not be {done}: {error.strerror or error}{f' ({advice})' if advice else ''}."


def os_error_in(error: BaseException) -> OSError | None:
    """The system's own error in one that a library raised for it; safetensors only quotes its number.

    >>> os_error_in(ValueError("I/O error: No space left on device (os error 28)")).errno == errno.ENOSPC
    True
    """
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The rename is atomic on one file system, so a reader sees the old file or the new one, never half of it;
    on any error, an interrupt included, the temporary file is removed.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as stream:  # Windows syncs only what it may write
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private; a class shares its cache
        temporary.replace(path)
    except OSError as error:
        raise CourseError(worded(error, path, "written")) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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
