"""Folders that are believed because they were sealed: a manifest of every file's size and sha256, written last.

A file's bytes are summed again only where its size, times or inode are no longer those of the sealing, so that a check
costs one `stat` per file as a rule. What does not fit its seal is set aside, said in one sentence, and made again.
"""

import errno
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from utils.errors import CourseError, one_line
from utils.files import fresh_folder, is_part, sha256_of, share, write_json
from utils.paths import ensure_dir, relative, worded

MANIFEST, DAMAGED = "SEAL.json", "damaged"
_FORMAT = 1
# What file managers, macOS's archives, network disks, editors and Jupyter leave wherever they look. No name of the
# course's begins or ends like these, and nothing that it reads by a pattern may.
_OF_OTHERS = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.ipynb_checkpoints|\.(_|nfs|fuse_hidden).*|.*~", re.S)
_TICK_S = 0.02  # two writes within one tick of the file system's clock have the same time
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}  # other errors say nothing of the bytes


def seal(folder: Path, *, about: dict | None = None, leaving_out: Collection[str] = ()) -> None:
    """Record every file of a folder, so that :func:`check` finds any later change; others may then read it.

    `about` is what the folder was made from or for, JSON-ready; `leaving_out` are names at its top that may come and
    go. Raises CourseError if the manifest cannot be written.
    """
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        share(folder)
        names = sorted(_files(folder, leaving_out))
        stamps = _settled([_stamp(folder / name) for name in names])
        files = {name: [_sha256(folder / name, stamp), *stamp] for name, stamp in zip(names, stamps, strict=True)}
    except OSError as error:
        raise CourseError(worded(error, folder, "sealed")) from error
    write_json(folder / MANIFEST, {"format": _FORMAT, "about": about, "leaving_out": sorted(leaving_out),
                                   "files": files})


def check(folder: Path, *, about: dict | None = None, thorough: bool = False) -> str | None:
    """What a sealed folder has that its seal does not tell, in a few words; None if it is whole.

    Names and sizes are compared always, bytes where the rest of a file's stamp differs, or of all files if `thorough`.
    Raises CourseError if this user may not read it, or reading fails for another reason than damage.
    """
    try:
        manifest = _json(folder / MANIFEST)
        if manifest["format"] != _FORMAT or manifest["about"] != about:
            return "it was made from or for something else"
        return _difference(folder, manifest, thorough)
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise CourseError(worded(error, Path(error.filename or folder), "read")) from error
        if error.filename == str(folder / MANIFEST):
            return "it has no seal, as one of an earlier version"
        return f"{Path(error.filename or folder).name} is missing or cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"


def sums(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file of a sealed folder that was checked; nothing is summed for it."""
    manifest = _json(folder / MANIFEST)
    return {name: sha256 for name, (sha256, *_) in manifest["files"].items()}


def _difference(folder: Path, manifest: dict, thorough: bool) -> str | None:
    found = _files(folder, manifest["leaving_out"])
    sealed = {name: entry for name, entry in manifest["files"].items() if not any(map(_passed_over, name.split("/")))}
    if missing := min(sealed.keys() - found, default=None):
        return f"{missing} is missing"
    if extra := min(found - sealed.keys(), default=None):
        return f"{extra} was not in it"
    stamps = {name: _stamp(f"{folder}/{name}") for name in sealed}
    if other := next((name for name, (_, size, *_) in sealed.items() if stamps[name][0] != size), None):
        return f"{other} has {stamps[other][0]} bytes, not {sealed[other][1]}"
    unsure = [name for name, (_, *stamp) in sealed.items() if stamps[name] != tuple(stamp)]
    _settled([stamps[name] for name in unsure])
    for name in sealed if thorough else unsure:
        if _sha256(folder / name, stamps[name]) != sealed[name][0]:
            return f"{name} has other bytes"
    if unsure:  # copied or touched: whole all the same, and the next process need not sum it again
        files = {name: [sha256, *stamps[name]] for name, (sha256, *_) in sealed.items()}
        with suppress(CourseError):  # a cache that this user only reads
            write_json(folder / MANIFEST, manifest | {"files": files})
    return None


def changed_since(record: Path, files: dict[str, Path], first: Callable[[Path, str], bool]) -> str | None:
    """What of someone else's files is not as it was when they were first seen, in a few words; None if all is.

    `record` is a file of ours that keeps what was seen: a manifest for a folder that is not ours to write to. `first`
    takes a new file and its sha256, and says whether it is what its origin says it is.
    """
    try:
        known = _json(record)
        known = {name: (str(sha256), *map(int, stamp)) for name, (sha256, *stamp) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        known = {}  # seen for the first time, once more
    if missing := min(known.keys() - files, default=None):
        return f"{missing} is missing"
    seen = {}
    for name, path in files.items():
        try:
            stamp = _stamp(path)
            if name not in known or known[name][1:] != stamp:
                sha256 = _sha256(path, _settled([stamp])[0])
                if sha256 != known[name][0] if name in known else not first(path, sha256):
                    return f"{name} has other bytes"
                seen[name] = (sha256, *stamp)
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise CourseError(worded(error, path, "read")) from error
            return f"{name} is missing or cannot be read"
    if seen:
        with suppress(CourseError):  # a cache that this user only reads
            write_json(record, known | seen)
    return None


def set_aside(path: Path, reason: str, *, then: str = "it is made again") -> Path:
    """Move what is damaged to ``damaged/`` beside it, say so in one sentence, and return where it lies now."""
    aside = path.parent / DAMAGED / f"{path.name}-{time.time_ns()}"
    try:
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
    except OSError as error:
        raise CourseError(f"{path} is damaged ({reason}), and {worded(error, path, 'set aside')}") from error
    said = f"{relative(path)} is damaged ({reason}); it was set aside as {relative(aside)}, and {then}."
    print(one_line(said), flush=True)  # the reason may name a file that no one of ours named
    return aside


def sealed_folder(folder: Path, build: Callable[[Path], None], *, about: dict | None = None,
                  thorough: bool = False) -> Path:
    """The folder, whole: as it lies there, or built now, in the place of a damaged one if need be.

    Two processes that ask for it build it once. A whole one is only read, so that it may lie where one cannot write.
    `build` fills an empty folder; whatever it raises, nothing is left behind. For the rest see :func:`check`.
    """
    if os.path.lexists(folder) and check(folder, about=about, thorough=thorough) is None:
        return folder
    ensure_dir(folder.parent)
    try:
        with FileLock(f"{folder}.lock", mode=0o666):
            if os.path.lexists(folder):
                if (reason := check(folder, about=about, thorough=thorough)) is None:
                    return folder  # another process was faster
                set_aside(folder, reason)
            scratch = fresh_folder(folder)
            try:
                build(scratch)
                seal(scratch, about=about)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:  # of the lock as well, which another user may have made
        raise CourseError(worded(error, folder, "written")) from error
    return folder


def _json(path: Path) -> Any:
    _stamp(path)  # reading a pipe would wait forever
    return json.loads(path.read_text(encoding="utf-8"))


def _passed_over(name: str) -> bool:
    """Whether a file or folder may come and go anywhere: others' traces, and writes that have not ended."""
    return is_part(name) or _OF_OTHERS.fullmatch(name) is not None


def _files(folder: Path, leaving_out: Collection[str]) -> set[str]:
    """Names of all files below a folder, as POSIX paths; without the manifest, and what no one put there."""
    found: set[str] = set()
    for here, folders, names in os.walk(folder, onerror=_raised):
        below = Path(here).relative_to(folder).as_posix()
        ignored = {MANIFEST, *leaving_out} if below == "." else set()
        folders[:] = [name for name in folders if name not in ignored and not _passed_over(name)]
        found.update(name if below == "." else f"{below}/{name}" for name in names
                     if name not in ignored and not _passed_over(name))
    return found


def _raised(error: OSError) -> None:
    raise error  # left to itself, os.walk takes what it may not read for empty


def _stamp(path: Path | str) -> tuple[int, int, int, int]:
    """Size, both times and inode of a regular file: any write or exchange changes one of them."""
    state = os.stat(path)  # noqa: PTH116  a thousand files of text, each time
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.ENOENT, "no file", str(path))  # reading a pipe would wait forever
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def _settled(stamps: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """The stamps, once a write after now must change them."""
    newest = max((max(stamp[1:3]) for stamp in stamps), default=0) / 1e9
    if (age := time.time() - newest) < _TICK_S:
        time.sleep(_TICK_S - max(0.0, age))
    return stamps


@lru_cache(maxsize=8192)
def _sha256(path: Path, stamp: tuple[int, int, int, int]) -> str:
    """Once per process and state of the file."""
    return sha256_of(path)
