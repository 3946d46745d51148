"""Two checkpoints side by side: which matrix of the tuned one belongs to which of its base, and how each is known."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import xxhash

from utils.errors import UsageError
from utils.sources.checkpoints import Adapter, Checkpoint, match_names, open_checkpoint, some

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIECE = 2**20  # bytes of a file in memory while it is summed


@dataclass(frozen=True)
class CheckpointPair:
    """A base, what was tuned from it, and the matrices that both have: base's name -> name in the tuned one."""

    original: Checkpoint
    changed: Checkpoint | Adapter
    sources: dict[str, str]


def open_pair(base: str, tuned: str, *, layers: re.Pattern | None = None, base_revision: str | None = None,
              tuned_revision: str | None = None, allow_pickle: bool = False,
              allow_base_pickle: bool = False) -> CheckpointPair:
    """Open a tuned model or adapter and its base, and match their matrices; no weight is read yet.

    Parameters
    ----------
    base : str
        Folder or Hub name; ``"-"`` for the base that the adapter's configuration names.
    tuned : str
        Folder or Hub name of a model, or of a PEFT LoRA adapter over `base`.
    layers : re.Pattern, optional
        Only matrices whose name has a match.
    base_revision, tuned_revision, allow_base_pickle, allow_pickle
        Of the base and of the tuned one; see :func:`utils.sources.checkpoints.open_checkpoint`. A repository with both
        kinds of weights would be downloaded twice where pickles are allowed without need.

    Raises
    ------
    UsageError
        Whatever is wrong with the two, in one sentence.
    """
    changed = open_checkpoint(tuned, revision=tuned_revision, allow_pickle=allow_pickle)
    if base == "-":
        base = _named_base(changed)
    try:
        original = open_checkpoint(base, revision=base_revision, allow_pickle=allow_base_pickle)
    except UsageError as error:
        if isinstance(changed, Adapter):
            raise UsageError(f"{tuned} is an adapter and means nothing without the weights of its base, {base}, which "
                             f"are not at hand: {error}") from error
        raise
    if isinstance(original, Adapter):
        raise UsageError(f"{base} is an adapter; as the base, the first argument of the command, give the model that "
                         "it was trained on.")
    return CheckpointPair(original, changed, matched_names(original, changed, layers))


def _named_base(changed: Checkpoint | Adapter) -> str:
    if not isinstance(changed, Adapter):
        raise UsageError(f"{changed.name} is a whole model and names no base; give its base instead of '-'.")
    if not changed.base_name:
        raise UsageError(f"The configuration of {changed.name} names no base model; give the base instead of '-'.")
    return changed.base_name


def matched_names(original: Checkpoint, changed: Checkpoint | Adapter,
                  layers: re.Pattern | None = None) -> dict[str, str]:
    """Base matrix -> name in the tuned checkpoint, in the base's order; UsageError where they do not go together.

    Parameters
    ----------
    original : Checkpoint
        The base.
    changed : Checkpoint or Adapter
        What was tuned from it.
    layers : re.Pattern, optional
        Only matrices whose name in the base has a match.
    """
    adapter = isinstance(changed, Adapter)
    names = list(changed.tensors if adapter else changed.entries)
    matched = match_names(names, original.entries)
    twice = len(set(matched.values())) < len(matched)
    extra = [name for name in names if name not in matched and (not adapter or re.search(r"\.\d+\.", name))]
    missing = [] if adapter else [name for name in original.entries if name not in matched.values()]
    for what, which in (("lacks", missing), ("also has", extra)):
        if which:
            raise UsageError(f"{changed.name} {what} {some(which)} of which {original.name} "
                             f"{'has its own' if what == 'lacks' else 'knows nothing'}; are they of one architecture?")
    if twice:
        raise UsageError(f"Two matrices of {changed.name} stand for one of {original.name}; are they of one "
                         "architecture?")
    by_base = {base: name for name, base in matched.items()}
    sources = {base: by_base[base] for base in original.entries
               if base in by_base and (layers is None or layers.search(base))}
    if not sources:
        raise UsageError(f"No matrix is left to compare: {changed.name} has {some(names)}, {original.name} "
                         f"{some(list(original.entries))}"
                         f"{f', and none matches the expression {layers.pattern}' if layers else ''}.")
    return sources


def place_of(name: str) -> tuple[str, int, str]:
    """What stands before the block's number, the number, and what stands after it.

    >>> place_of("encoder.layer.11.attention.self.query")
    ('encoder.layer', 11, 'attention.self.query')
    """
    prefix, number, kind = re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(.+)", name).groups()
    return prefix or "", int(number), kind


def identity(checkpoint: Checkpoint | Adapter) -> str:
    """What the weights are known by: the commit of a Hub snapshot, or else a checksum of all files that are read.

    Each file is summed once per process, as fast as the disk gives it.
    """
    folder = checkpoint.folder.resolve()
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.name
    whole = xxhash.xxh3_128()
    for file in checkpoint.files:
        state = file.stat()
        whole.update(f"{file.name} {_checksum(file, state.st_size, state.st_mtime_ns)}\n".encode())
    return whole.hexdigest()


@lru_cache(maxsize=256)
def _checksum(file: Path, size: int, modified_ns: int) -> str:
    summed = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            summed.update(piece)
    return summed.hexdigest()
