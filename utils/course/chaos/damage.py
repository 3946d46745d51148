"""Damage to what is fetched, built and believed: every kind of file, every kind of damage.

What can be made again has to be healed with one sentence, and be the same afterwards; what cannot has to be refused
with one. Every cache of the campaign has a name with braces, blanks and letters beyond ASCII.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

from utils.course.chaos.believed import CACHE, Thing, package_anew, things
from utils.course.chaos.case import Case
from utils.course.chaos.harms import HARMS, QUICK_HARMS, Harm, stranger
from utils.errors import CourseError

NOBODY = 65534


@contextmanager
def _entered(thing: Thing, folder: Path) -> Iterator[Callable[[], tuple[object, str]]]:
    """Within a cache of the case's own: what asks for the thing, and returns it with what was printed."""
    def ask() -> tuple[object, str]:
        printed = io.StringIO()
        with redirect_stdout(printed):
            found = thing.ask(folder)
        return found, printed.getvalue()

    with ExitStack() as stack:
        if thing.around:
            stack.enter_context(thing.around(folder))
        stack.enter_context(patch.dict(os.environ, {"LORA_COURSE_CACHE": str(folder / CACHE)}))
        yield ask


def _damaged(folder: Path, *, thing: Thing, file: str, harm: Harm) -> str | None:
    """Damage one file, ask again, and once more."""
    with _entered(thing, folder) as ask:
        whole, _ = ask()
        before, others = (folder / file).read_bytes(), [name for name in thing.files if name != file]
        harm(folder / file, folder / (others or [file])[0])
        quiet = Path(file).name == thing.sums or _says_the_same(folder / file, before)
        try:
            found, said = ask()
        except CourseError as error:
            return _not_one_sentence(error, refused=thing.outcome != "healed")
        if found == whole and quiet and not said:
            return None
        if thing.outcome != "healed":
            return None if found != whole and thing.outcome == "another" else "it was believed in silence"
        if found != whole:
            return "it came out otherwise than before"
        if said.count("\n") != 1 or "damaged" not in said or "set aside" not in said:
            return f"it was healed without one sentence on it: {said!r}"
        found, said = ask()
        return None if found == whole and not said else "it was not healed for good"


def _says_the_same(path: Path, before: bytes) -> bool:
    """Whether a file of rows still means what it meant: a line break at its end is no damage."""
    return path.suffix == ".json" and path.is_file() and path.name == "labels.json" and (
        path.read_bytes().strip() == before.strip())


def _not_one_sentence(error: CourseError, *, refused: bool) -> str | None:
    sentence = str(error)
    if "\n" in sentence or not sentence.endswith("."):
        return f"the refusal is not one sentence: {sentence!r}"
    return None if refused else f"it was refused, though it can be made again: {sentence}"


def _full_disk(folder: Path, *, thing: Thing, number: int) -> str | None:
    """The disk is full while it is made; afterwards there is room again."""
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with _entered(thing, folder) as ask:
        with patch.object(os, "fsync", full):
            try:
                ask()
                return "it was made on a full disk"
            except CourseError as error:
                if wrong := _not_one_sentence(error, refused=True):
                    return wrong
                if "the disk is full" not in str(error) or "sha256" in str(error):
                    return f"a full disk was called something else: {error}"
        found, said = ask()
        return None if found == ask()[0] and not said else f"something was left behind: {said!r}"


def _unreadable(folder: Path, *, thing: Thing, file: str) -> str | None:
    """A file that this user may not read is not called damaged, and stays where it is."""
    folder.chmod(0o755)
    with _entered(thing, folder) as ask:
        ask()
        (folder / file).chmod(0)
        root = os.getuid() == 0
        if root:
            os.setresuid(NOBODY, NOBODY, 0)
        try:
            ask()
            return "it was read all the same"
        except CourseError as error:
            if "damaged" in str(error) or "Permission denied" not in str(error):
                return f"a missing leave was called something else: {error}"
            return _not_one_sentence(error, refused=True)
        finally:
            if root:
                os.setresuid(0, 0, 0)


def cases(*, quick: bool) -> list[Case]:
    """Every file with every damage, or for a test a few of each kind of thing."""
    found, tried = [], things(real=not quick)
    for thing in tried:
        for file in thing.files[:1] if quick else thing.files:
            harms = dict(list(QUICK_HARMS.items())[:2] if quick else QUICK_HARMS if thing.large else HARMS)
            harms |= {"one file more beside it": stranger} if thing.extra and file == thing.files[0] else {}
            found += [Case(f"{thing.kind}, {Path(file).name}: {name}", thing.kind,
                           partial(_damaged, thing=thing, file=file, harm=harm)) for name, harm in harms.items()
                      if len(thing.files) > 1 or not ("another" in name or name == "gone")]  # gone, it is fetched anew
    makeable = [thing for thing in tried if thing.outcome == "healed"]
    for thing in makeable[:1] if quick else makeable:
        for number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            name = f"{thing.kind}: {errno.errorcode[number]} while it is made"
            found.append(Case(name, "full disk", partial(_full_disk, thing=thing, number=number)))
    if hasattr(os, "setresuid") or (hasattr(os, "getuid") and os.getuid() != 0):
        found += [Case(f"{thing.kind}, {Path(file).name}: no leave to read it", "no leave",
                       partial(_unreadable, thing=thing, file=file))
                  for thing in (makeable[:1] if quick else makeable) for file in thing.files
                  if thing.ask is not package_anew]
    return found
