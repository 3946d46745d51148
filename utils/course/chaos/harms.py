"""Kinds of damage to one file: what a disk, a copy that was cut short, or a hand can do to it."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

Harm = Callable[[Path, Path], object]  # takes the file, and another one


def _changed(path: Path, change: Callable[[bytearray], object], *, keep_time: bool = False) -> None:
    before, content = path.stat(), bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _flip(content: bytearray, *, share: float) -> None:
    place = min(len(content) - 1, int(len(content) * share))
    content[place] ^= 1


def _swapped(path: Path, other: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def _folder_instead(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def _link_instead(path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _emptied(content: bytearray) -> None:
    content[:] = bytes(len(content))


QUICK_HARMS: dict[str, Harm] = {
    "a bit flipped": lambda path, _: _changed(path, partial(_flip, share=0.5)),
    "cut in half": lambda path, _: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    "empty": lambda path, _: path.write_bytes(b""),
    "gone": lambda path, _: path.unlink(),
    "changed places with another": _swapped,
}
HARMS: dict[str, Harm] = QUICK_HARMS | {
    "a bit flipped, the time put back": lambda path, _: _changed(path, partial(_flip, share=0.7), keep_time=True),
    "the first bit flipped": lambda path, _: _changed(path, partial(_flip, share=0)),
    "the last bit flipped": lambda path, _: _changed(path, partial(_flip, share=1)),
    "one byte short": lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
    "one byte too long": lambda path, _: path.write_bytes(path.read_bytes() + b"\n"),
    "zeros of the same length": lambda path, _: _changed(path, _emptied),
    "a copy of another": lambda path, other: shutil.copyfile(other, path),
    "a folder in its place": _folder_instead,
    "a link into nowhere in its place": _link_instead,
}


def stranger(path: Path, _: Path) -> None:
    """One file more beside it."""
    path.with_name("stranger" + path.suffix).write_bytes(path.read_bytes())
