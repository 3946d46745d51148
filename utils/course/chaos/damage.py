"""Damage to what is fetched, built and believed: every kind of file, every kind of damage.

What can be made again has to be healed with one sentence, and be the same afterwards; what cannot has to be refused
with one. Every cache of the campaign has a name with braces, blanks and letters beyond ASCII.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from utils.course.chaos.case import Case
from utils.errors import CourseError
from utils.paths import MODELS
from utils.profiles.schema import ModelReference
from utils.sealed import MANIFEST
from utils.sources import archives, committed, domains, hub, models

CACHE = "a {cache} of mine, ä"
NOBODY = 65534
Harm = Callable[[Path, Path], object]  # takes the file, and another one beside it


# Damage ---------------------------------------------------------------------------------------------------------------


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


def _stranger(path: Path, _: Path) -> None:
    path.with_name("stranger" + path.suffix).write_bytes(path.read_bytes())


# Things that are damaged ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """Something that is fetched, built or believed.

    ``ask`` makes it or finds it, and returns what a number would depend on; ``files`` are below the case's folder;
    ``around`` puts a stand-in in the place of what would take long, or is not to be touched.
    """

    kind: str
    ask: Callable[[Path], object]
    files: tuple[str, ...]
    healed: bool = True  # else refused, or known as another one
    extra: bool = False  # whether one file more is damage
    sums: str = ""  # the file that tells of the others; a change in it that says the same may go unsaid
    around: Callable[[Path], object] | None = None


_MEMBERS = {"toy/model/weights.bin": bytes(range(256)) * 9, "toy/model/config.json": b'{"layers": 2, "width": 64}',
            "toy/texts/news.txt": b"Ein Satz, und noch ein zweiter. " * 20}


def _wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as wheel:
        for name, content in _MEMBERS.items():
            wheel.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return stream.getvalue()


_PACKAGES = {"wheel": ("toy-1.0-py3-none-any.whl", _wheel(), None),
             "sdist": ("toy-1.0.tar.gz", _tar({"toy-1.0/inner.tar.gz": _tar(_MEMBERS)}), "inner.tar.gz")}


@contextmanager
def _stand_in_package(folder: Path, *, form: str) -> Iterator[None]:
    """An index with one package, `toy`."""
    file, content, inner = _PACKAGES[form]
    entry = archives.Archive(package="toy", version="1.0", file=file, licence="none", keep=("toy/",), inner=inner,
                             sha256=hashlib.sha256(content).hexdigest())

    def served(*_: object, target: Path | None = None, **__: object) -> None:
        (target or _[1]).write_bytes(content)

    with patch.object(archives, "archives", lambda: {"toy": entry}), patch.object(archives, "_pip_download", served), \
            patch.object(archives.index, "download", served):
        yield


def _package(_: Path) -> dict[str, bytes]:
    return _content(archives.fetch("toy"))


def _package_anew(folder: Path) -> dict[str, bytes]:
    """From the package that was downloaded: what is unpacked is gone."""
    shutil.rmtree(folder / CACHE / "sources", ignore_errors=True)
    return _package(folder)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST}


@contextmanager
def _own_committed_models(folder: Path) -> Iterator[None]:
    """Copies of the committed models that may be damaged."""
    if not (folder / "committed").exists():
        shutil.copytree(MODELS, folder / "committed")
    with patch.object(committed, "MODELS", folder / "committed"), patch.object(models, "MODELS", folder / "committed"):
        yield


def _small_decoder(_: Path) -> dict[str, bytes]:
    return _content(models.resolve.__wrapped__(ModelReference(source="packaged", name="small-decoder")).folder)


def _masked_lm_parts(_: Path) -> dict[str, str]:
    return committed.committed_sums("minilm-mlm", made_by="python -m utils build-base encoder")


@contextmanager
def _few_questions(_: Path) -> Iterator[None]:
    rows = [{"kind": "sums", "question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(60)]
    with patch.object(domains, "_make_questions", lambda: rows):
        yield


def _questions(_: Path) -> list[dict]:
    return domains.mathematics_questions.__wrapped__("train").to_dict("records")


def _local(folder: Path) -> str:
    """The identity of a model of the reader's own, and its tokens."""
    from utils.training.data import tokenizer_of

    own = folder / "own model"
    if not own.exists():
        shutil.copytree(MODELS / "small-decoder", own, ignore=shutil.ignore_patterns("SHA256SUMS", "curve.csv"))
    base = models.resolve.__wrapped__(ModelReference(source="local", name=str(own)))
    return f"{base.revision} {tokenizer_of.__wrapped__(base.folder)('one word')['input_ids']}"


_SNAPSHOT = f"hub/models--own--model/snapshots/{'c' * 40}"


@contextmanager
def _own_hub(folder: Path) -> Iterator[None]:
    """A snapshot as the Hub's own cache keeps it: links to files named by their checksums."""
    home = folder / "hub" / "models--own--model"
    if not home.exists():
        (folder / _SNAPSHOT).mkdir(parents=True)
        (home / "blobs").mkdir()
        for path in MODELS.glob("small-decoder/*.*"):
            content = path.read_bytes()
            name = hashlib.sha256(content).hexdigest() if path.suffix == ".safetensors" else hashlib.sha1(
                b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            (home / "blobs" / name).write_bytes(content)
            (folder / _SNAPSHOT / path.name).symlink_to(home / "blobs" / name)
    with patch.object(hub, "snapshot_download", lambda *_, **__: str(folder / _SNAPSHOT)):
        yield


def _snapshot(_: Path) -> dict[str, bytes]:
    return _content(hub.model_snapshot("own/model"))


@contextmanager
def _labels(folder: Path) -> Iterator[None]:
    for name, labels in (("labels.json", [0, 1]), ("other.json", [1, 1])):
        (folder / name).write_text(json.dumps(labels * 20))
    yield


def _rows(folder: Path) -> str:
    """The checksum of a task's rows, whose labels lie in a file that no one seals."""
    from datasets import Dataset

    from utils.training.data import same_rows

    try:
        labels = json.loads((folder / "labels.json").read_text())
        rows = Dataset.from_list([{"input_ids": [place], "labels": int(label)} for place, label in enumerate(labels)])
    except (OSError, ValueError, TypeError) as error:  # what `datasets` would say of its own files
        raise CourseError(f"The rows could not be read ({type(error).__name__}).") from error
    return same_rows(rows, {"task": "toy"})


_DECODER = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


def _things() -> list[Thing]:
    sources, built = f"{CACHE}/sources/toy", f"{CACHE}/models/small-decoder-839593b32e68e25e"
    texts = f"{CACHE}/texts/mathematics-{domains.QUESTIONS}"
    return [
        Thing("unpacked package", _package, (*(f"{sources}/{name}" for name in _MEMBERS), f"{sources}/{MANIFEST}"),
              extra=True, sums=MANIFEST, around=partial(_stand_in_package, form="wheel")),
        *(Thing(f"downloaded {form}", _package_anew, (f"{CACHE}/archives/{_PACKAGES[form][0]}",),
                around=partial(_stand_in_package, form=form)) for form in _PACKAGES),
        Thing("built model", _small_decoder, tuple(f"{built}/{name}" for name in (*_DECODER, MANIFEST)), extra=True,
              sums=MANIFEST, around=_own_committed_models),
        Thing("generated texts", _questions, (f"{texts}/questions.jsonl", f"{texts}/{MANIFEST}"), extra=True,
              sums=MANIFEST, around=_few_questions),
        Thing("committed model", _small_decoder, tuple(f"committed/small-decoder/{name}"
                                                       for name in (*_DECODER, committed.SUMS)),
              healed=False, sums=committed.SUMS, around=_own_committed_models),
        Thing("committed adapter", _masked_lm_parts, tuple(
            f"committed/minilm-mlm/{name}" for name in ("adapter_model.safetensors", "adapter_config.json",
                                                        "head.safetensors", committed.SUMS)),
              healed=False, sums=committed.SUMS, around=_own_committed_models),
        Thing("model of one's own", _local, tuple(f"own model/{name}" for name in _DECODER), healed=False),
        Thing("snapshot of the Hub", _snapshot, tuple(f"{_SNAPSHOT}/{name}" for name in _DECODER), healed=False,
              around=_own_hub),
        Thing("rows of a data set", _rows, ("labels.json", "other.json"), healed=False, sums="other.json",
              around=_labels),
    ]


# Tries ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _entered(thing: Thing, folder: Path) -> Iterator[Callable[[], tuple[object, str]]]:
    """Within a cache of the case's own: what asks for the thing, and returns it with what was printed."""
    def ask() -> tuple[object, str]:
        printed = io.StringIO()
        with redirect_stdout(printed):
            found = thing.ask(folder)
        return found, printed.getvalue()

    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"LORA_COURSE_CACHE": str(folder / CACHE)}))
        if thing.around:
            stack.enter_context(thing.around(folder))
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
            return _not_one_sentence(error, refused=not thing.healed)
        if found == whole and quiet and not said:
            return None
        if not thing.healed:
            return None if found != whole and isinstance(found, str) else "it was believed in silence"
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
    found = []
    for thing in _things():
        for file in thing.files[:1] if quick else thing.files:
            harms = dict(list(QUICK_HARMS.items())[:2] if quick else HARMS)
            harms |= {"one file more beside it": _stranger} if thing.extra and file == thing.files[0] else {}
            found += [Case(f"{thing.kind}, {Path(file).name}: {name}", thing.kind,
                           partial(_damaged, thing=thing, file=file, harm=harm)) for name, harm in harms.items()
                      if len(thing.files) > 1 or not ("another" in name or name == "gone")]  # gone, it is fetched anew
    makeable = [thing for thing in _things() if thing.healed]
    for thing in makeable[:1] if quick else makeable:
        for number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            name = f"{thing.kind}: {errno.errorcode[number]} while it is made"
            found.append(Case(name, "full disk", partial(_full_disk, thing=thing, number=number)))
    if hasattr(os, "setresuid") or (hasattr(os, "getuid") and os.getuid() != 0):
        found += [Case(f"{thing.kind}, {Path(file).name}: no leave to read it", "no leave",
                       partial(_unreadable, thing=thing, file=file))
                  for thing in (makeable[:1] if quick else makeable) for file in thing.files
                  if thing.ask is not _package_anew]
    return found
