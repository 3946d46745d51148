"""Models and data sets from the Hugging Face Hub: safetensors only, no remote code, revisions recorded.

Online and offline take the same calls. Offline (``HF_HUB_OFFLINE=1``) models come from the hub cache and data sets
from the Arrow cache, which are unrelated folders; ``python -m utils fetch`` fills both.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from utils.errors import CourseError, UsageError, reason_of
from utils.paths import OF_THE_DISK, cache_dir, worded
from utils.sealed import changed_since

if TYPE_CHECKING:
    from datasets import Dataset  # a second, of which models have no use

# Without a list, a mirror's pickle copies come along: up to 27 GB for a 7B model.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError, OSError)


def model_snapshot(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub model's snapshot, downloaded if need be; its name is the commit.

    Raises
    ------
    CourseError
        If the model is gated, unknown, out of reach, or has no safetensors.
    """
    folder = _snapshot(name, revision, MODEL_FILES,
                       advice="run `python -m utils fetch --profile gpu`, or use the laptop profile")
    if not any(folder.glob("[!.]*.safetensors")):
        raise CourseError(f"The Hub model {name} has no safetensors weights; pickled weights are not loaded.")
    return folder


def checkpoint_snapshot(name: str, *, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """The folder of any Hub model or adapter, for a command that was given its name.

    Parameters
    ----------
    name : str
        ``owner/name``.
    revision : str, optional
        A branch, tag or commit; the main branch by default.
    allow_pickle : bool
        Fetch pickled weights as well.

    Raises
    ------
    UsageError
        If it is gated, unknown or out of reach; what is in the folder is the reader's to judge.
    """
    try:
        return _snapshot(name, revision, MODEL_FILES + (["*.bin"] if allow_pickle else []),
                         advice="run the command again, or give a folder that holds the model")
    except CourseError as error:
        raise UsageError(str(error)) from error


def _snapshot(name: str, revision: str | None, patterns: list[str], *, advice: str) -> Path:
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CourseError(f"The Hub model {name} asks you to accept its licence first; name an ungated copy, or log in "
                          "with `hf auth login`.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise CourseError(f"The Hub has no model {name}{f' at {revision}' if revision else ''}.") from error
    except _UNREACHABLE as error:
        _of_the_disk(error)
        raise CourseError(f"The Hub model {name} is neither in the cache nor within reach; connect once and {advice}."
                          ) from error
    files = {path.name: path for pattern in patterns for path in sorted(folder.glob(pattern))}
    home = folder.parent.parent  # models--owner--name
    if reason := changed_since(cache_dir() / "hub" / f"{home.name}-{folder.name}.json", files, _as_on_the_hub):
        raise CourseError(f"The Hub model {name} is damaged on this machine ({reason}); delete {home}, connect once "
                          f"and {advice}.")
    return folder


def _of_the_disk(error: Exception) -> None:
    """Say it if the disk is full or a leave is missing; the errors of a network are OSErrors as well."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise CourseError(worded(error, Path(error.filename or HF_HOME), "downloaded")) from error


def _as_on_the_hub(path: Path, sha256: str) -> bool:
    """Whether a file of a snapshot is the one that the Hub named: it links to a blob that its checksum is the name of.

    Large files are named by their sha256, small ones as git names them. Where there are no links nothing can be told.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name == sha256
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        return blob.name == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return True


def dataset_split(name: str, config: str | None, split: str, *, rows: int | None = None,
                  revision: str | None = None) -> "Dataset":
    """One split of a Hub data set that needs no loading script.

    Parameters
    ----------
    name : str
        The full name with its organisation, such as ``"nyu-mll/glue"``; short names do not resolve offline.
    config : str or None
    split : str
    rows : int, optional
        Take the first rows only; the sets that are too large to download whole are streamed then.
    """
    from datasets import Dataset, load_dataset

    try:
        if rows is None:
            return load_dataset(name, config, split=split, revision=revision, trust_remote_code=False)
        stream = load_dataset(name, config, split=split, revision=revision, streaming=True,
                              trust_remote_code=False)
        return Dataset.from_list(list(stream.take(rows)), features=stream.features)
    except _UNREACHABLE as error:
        _of_the_disk(error)
        raise CourseError(f"The Hub data set {name} ({config or 'default'}, {split}) is neither in the cache nor "
                          "within reach; connect once and run `python -m utils fetch --profile gpu`.") from error
    except (ValueError, RuntimeError) as error:
        raise CourseError(f"The Hub data set {name} ({config or 'default'}, {split}) could not be read: "
                          f"{reason_of(error)[:200]}.") from error
