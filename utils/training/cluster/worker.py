"""What a worker of a Ray cluster does for one run: find the store, train in a process of its own, say what came of it.

Ray calls this on machines where nothing but the course need be installed. It imports no torch: the process that trains
is forked from one that has, and a worker that waits for it is small.
"""

import hashlib
import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import CourseError
from utils.paths import MODELS, ROOT, cache_dir
from utils.training.cluster.archive import pack, sealed, unpack
from utils.training.process import forks, last_line, log_of, train_one

PACKAGES = ("ray", "torch", "transformers", "peft", "trl", "numpy")  # what a run's weights depend on beside our code


@dataclass(frozen=True)
class Asked:
    """A run that a worker is to train.

    Attributes
    ----------
    key, text : str
        Of the specification; its JSON.
    like : dict of str to str
        The driver's :func:`versions`; with others the same key would mean another run.
    cache, token : str
        The driver's cache folder, and the name of a file that lies in it while the driver works.
    starts : dict of str to object
        The runs that this one needs, each with a reference to its archive, or None if none was sent.
    on_gpu : bool
        Whether Ray has given this task a GPU.
    """

    key: str
    text: str
    like: dict[str, str]
    cache: str
    token: str
    starts: dict[str, Any]
    on_gpu: bool


@dataclass(frozen=True)
class Answer:
    """How a run ended on a worker: well, if nothing below is set but its archive.

    Attributes
    ----------
    host, seconds : str, float
        Where, and how long its process lived.
    why : str
        The run's own error, in a sentence.
    killed : str
        How its process was ended by something else.
    refused : str
        Why no run can be trained there.
    lacks_starts : bool
        Whether it was not trained because what it goes on from is neither there nor was sent.
    archive : bytes
        The finished run, if the driver's store is not seen from there.
    """

    host: str
    why: str | None = None
    killed: str | None = None
    refused: str | None = None
    lacks_starts: bool = False
    archive: bytes | None = None
    seconds: float = 0.0


@cache
def versions() -> dict[str, str]:
    """Of all that has to be the same where a run is planned and where it is trained: our code, Python, libraries."""
    code = hashlib.sha256()
    files = [path for ending in ("py", "yaml", "toml") for path in (ROOT / "utils").rglob(f"*.{ending}")]
    for path in sorted([*files, *MODELS.rglob("SHA256SUMS")]):
        code.update(f"{path.relative_to(ROOT).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    found = {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}  # without +cpu, +cu128
    return {"code": code.hexdigest()[:12], "python": ".".join(platform.python_version_tuple()[:2])} | found


def difference(like: dict[str, str]) -> str | None:
    """What is other here than in the driver's :func:`versions`, in a few words."""
    other = [f"{name} {here}, not {like.get(name)}" for name, here in versions().items() if here != like.get(name)]
    return f"{socket.gethostname()} has {'; '.join(other)}" if other else None


def look(like: dict[str, str], driver_cache: str, token: str) -> tuple[str, bool, str | None]:
    """Name of the machine, whether it sees the driver's store, and what is other here than at the driver's."""
    return socket.gethostname(), _store(driver_cache, token)[1], difference(like)


def train(asked: Asked, fetch: Callable[[Any], bytes]) -> Answer:
    """Train a run as every process does, so that it is trained once, goes on from its last point, and is verified.

    Parameters
    ----------
    asked : Asked
    fetch : callable
        From a reference in ``asked.starts`` to the archive itself.
    """
    host = socket.gethostname()
    if other := difference(asked.like):
        return Answer(host, refused=other)
    folder, shared = _store(asked.cache, asked.token)
    try:
        for key, archive in () if shared else asked.starts.items():
            if not sealed(folder / "runs" / key, key):
                if archive is None:
                    return Answer(host, lacks_starts=True)
                unpack(fetch(archive), folder, key)
        log = log_of(asked.key, folder)
    except CourseError as error:
        return Answer(host, why=f"{error} (on {host})")
    started = time.monotonic()
    code = _trained(asked, folder, log)
    seconds = time.monotonic() - started
    if code == 0:
        log.unlink(missing_ok=True)
        return Answer(host, archive=None if shared else pack(folder / "runs" / asked.key), seconds=seconds)
    if code == 1:
        return Answer(host, why=last_line(log), seconds=seconds)
    return Answer(host, killed=f"exit {code} on {host}, its log there: {log}")


def _store(driver_cache: str, token: str) -> tuple[Path, bool]:
    """The cache folder to use here, and whether it is the driver's: only there lies the file that it has just made.

    A shared disk may be mounted elsewhere than at the driver's, so that both names are looked at.
    """
    for folder in (Path(driver_cache), cache_dir()):
        if (folder / token).is_file():
            return folder, True
    return cache_dir(), False


def _trained(asked: Asked, folder: Path, log: Path) -> int | None:
    """The exit code of the process that trained a run."""
    threads = {} if asked.on_gpu else {"OMP_NUM_THREADS": "1"}
    variables = dict(os.environ) | {"LORA_COURSE_CACHE": str(folder)} | threads
    process = forks().Process(target=train_one, args=(asked.text, str(log), variables))
    process.start()
    process.join()
    return process.exitcode
