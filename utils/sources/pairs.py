"""Two checkpoints side by side: which matrix of the tuned one belongs to which of its base, and how each is known."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import xxhash

from utils.errors import UsageError
from utils.sources.checkpoints import Adapter, Checkpoint, open_checkpoint, some
from utils.sources.checkpoints.linear import in_block, stack_of
from utils.sources.checkpoints.model import packed_sentence
from utils.sources.checkpoints.names import Matched, matched, unwrapped

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIECE = 2**20  # bytes of a file in memory while it is summed
_ATTENTION = ".in_proj_weight"
_MERGED = "merge it with PEFT's `merge_and_unload` and give the merged copy"
_MOST_KINDS = 12  # of tensors in one sentence


@dataclass(frozen=True)
class CheckpointPair:
    """A base, what was tuned from it, and the matrices that both have: base's name -> name in the tuned one."""

    original: Checkpoint
    changed: Checkpoint | Adapter
    sources: dict[str, str]
    notes: tuple[str, ...] = ()


def open_pair(base: str, tuned: str, *, layers: re.Pattern | None = None, base_revision: str | None = None,
              tuned_revision: str | None = None, allow_pickle: bool = False, allow_base_pickle: bool = False,
              adapter: str | None = None) -> CheckpointPair:
    """Open a tuned model or adapter and its base, and match their matrices; no weight is read yet.

    Parameters
    ----------
    base : str
        Folder or Hub name; ``"-"`` for the base that the adapter's configuration names.
    tuned : str
        Folder or Hub name of a model, or of a PEFT LoRA adapter over `base`.
    layers : re.Pattern, optional
        Only matrices whose name has a match.
    base_revision, tuned_revision, allow_base_pickle, allow_pickle, adapter
        Of the base and of the tuned one; see :func:`utils.sources.checkpoints.open_checkpoint`. A repository with both
        kinds of weights would be downloaded twice where pickles are allowed without need. Without `base_revision` an
        adapter's own word counts, where `base` is the one that it names.

    Raises
    ------
    UsageError
        Whatever is wrong with the two, in one sentence.
    """
    changed = open_checkpoint(tuned, revision=tuned_revision, allow_pickle=allow_pickle, adapter=adapter)
    base = _named_base(changed) if base == "-" else base
    said = _said_revision(changed, base)
    try:
        original = open_checkpoint(base, revision=base_revision or said, allow_pickle=allow_base_pickle)
    except UsageError as error:
        if isinstance(changed, Adapter):
            raise UsageError(f"{tuned} is an adapter and means nothing without the weights of its base, {base}"
                             f"{f' at {said}' if said else ''}, which are not at hand: {error}") from error
        raise
    if isinstance(original, Adapter):
        raise UsageError(f"{base} is an adapter; as the base, the first argument of the command, give the model that "
                         "it was trained on.")
    pair = pair_of(original, changed, layers)
    return replace(pair, notes=(*_of_the_base(pair, said), *pair.notes))


def _named_base(changed: Checkpoint | Adapter) -> str:
    if not isinstance(changed, Adapter):
        raise UsageError(f"{changed.name} is a whole model and names no base; give its base instead of '-'.")
    if not changed.base_name:
        raise UsageError(f"The configuration of {changed.name} names no base model; give the base instead of '-'.")
    return changed.base_name


def _said_revision(changed: Checkpoint | Adapter, base: str) -> str | None:
    """The revision of the base that an adapter was trained on, if it names one and `base` is a name on the Hub."""
    if isinstance(changed, Adapter) and base == changed.base_name and not Path(base).expanduser().is_dir():
        return changed.settings.revision
    return None


def _of_the_base(pair: CheckpointPair, said: str | None) -> list[str]:
    """What an adapter's configuration says of its base, where that is not what was used."""
    changed, base = pair.changed, pair.original.name
    if not isinstance(changed, Adapter) or not changed.base_name:
        return []
    revision = changed.settings.revision if changed.settings.revision != "main" else None
    at = f" at {revision}" if revision else ""
    if not _same(changed.base_name, base, pair.original.folder):
        return [f"The adapter names {changed.base_name}{at} as its base; {base} was used."]
    if revision and said is None:
        return [f"The adapter names {changed.base_name}{at} as its base; whether {base} is that one was not seen."]
    return [f"The base was taken at {said}, as the adapter's configuration says."] if said else []


def _same(named: str, base: str, folder: Path) -> bool:
    return named == base or Path(named).expanduser().resolve() == folder.resolve()


def matched_names(original: Checkpoint, changed: Checkpoint | Adapter,
                  layers: re.Pattern | None = None) -> dict[str, str]:
    """Base matrix -> name in the tuned checkpoint, in the base's order; see :func:`pair_of`."""
    return pair_of(original, changed, layers).sources


def pair_of(original: Checkpoint, changed: Checkpoint | Adapter, layers: re.Pattern | None = None) -> CheckpointPair:
    """Two opened checkpoints with their matrices matched; UsageError where they do not go together.

    Parameters
    ----------
    original : Checkpoint
        The base.
    changed : Checkpoint or Adapter
        What was tuned from it.
    layers : re.Pattern, optional
        Only matrices whose name in the base has a match.
    """
    if isinstance(changed, Adapter):
        by_base, notes = _of_adapter(original, changed, layers)
        original = turned(original, changed, by_base)
    else:
        by_base, notes = _of_model(original, changed, layers)
    ordered = [*original.entries, *original.convolutions]
    sources = {base: by_base[base] for base in ordered if base in by_base and (layers is None or layers.search(base))}
    if not sources:
        names = list(changed.tensors if isinstance(changed, Adapter) else changed.entries)
        raise UsageError(f"No matrix is left to compare: {changed.name} has {some(names)}, {original.name} "
                         f"{some(original.entries)}"
                         f"{f', and none matches the expression {layers.pattern}' if layers else ''}.")
    return CheckpointPair(original, changed, sources, (*original.notes, *changed.notes, *notes))


def _renaming(*models: Checkpoint) -> Callable[[str], str | None] | None:
    """What gives names as transformers has them in memory, by the first configuration of which it knows the model."""
    for model in models:
        if (known := model.architecture()) is not None:
            return known.memory_name
    return None


def _of_model(original: Checkpoint, changed: Checkpoint, layers: re.Pattern | None) -> tuple[dict[str, str], list[str]]:
    """Base matrix -> tuned matrix of two whole models, and what to say of what stands on one side only."""
    for model in (original, changed):
        packed = [name for name in model.packed if layers is None or layers.search(name)]
        if packed:
            raise UsageError(packed_sentence(model, packed[0]))
    found = matched(changed.entries, original.entries, others=original.packed,
                    renaming=partial(_renaming, original, changed))
    _refuse_ambiguous(original, changed, found)
    extra = [name for name in changed.entries if name not in found.found]
    missing = [name for name in original.entries if name not in found.found.values()]
    by_base = _inverted(original, changed, found.found)
    beside = _one_sided(original, changed, by_base, left=(missing, extra))
    notes = [f"Only {own.name} has {_kinds(names)}, so they were not compared."
             for own, names in zip((original, changed), beside, strict=True) if names]
    if left := _of_both(original.left_out, changed.left_out):
        notes.append(f"Left out, because only linear maps are counted: {_kinds(left)}.")
    if outside := _of_both(original.outside, changed.outside):
        notes.append(f"Not counted, since they stand outside of numbered blocks: {_kinds(outside)}.")
    return by_base, notes


def _one_sided(original: Checkpoint, changed: Checkpoint, by_base: dict[str, str], *,
               left: tuple[list[str], list[str]]) -> tuple[set[str], set[str]]:
    """Matrices that only the base has, and that only the tuned one has, if nothing speaks against going without them.

    A tower that was not saved with the rest, a head, or layers for speculative decoding may be on one side only. Blocks
    of a stack that both have may not, nor stacks on both sides: these are probably the same under names that differ.
    """
    beside = (_whole_stacks(left[0], set(by_base)) | _beyond(left[0], original.config),
              _whole_stacks(left[1], set(by_base.values())))
    stacks = [{name for name in names if not name.rpartition(".")[2].isdecimal()} for names in beside]
    for names, apart, own in zip(left, beside, (original, changed), strict=True):
        rest = [name for name in names if name not in apart] if by_base and not all(stacks) else names
        if rest and (stacked := _stacked(rest, original, changed)):
            raise UsageError(stacked)
        if rest:
            raise UsageError(f"{changed.name} {'lacks' if own is original else 'also has'} {some(rest)} of which "
                             f"{original.name} {'has its own' if own is original else 'knows nothing'}; are they of "
                             "one architecture?")
    return beside


def _stacked(names: list[str], original: Checkpoint, changed: Checkpoint) -> str | None:
    """What is wrong if one checkpoint keeps experts one by one and the other as stacks; else None."""
    apart = next((name for name in names if re.search(r"\.experts\.\d+\.", name)), None)
    for model, other in ((original, changed), (changed, original)):
        stacks = [name for name in (*other.entries, *other.left_out) if re.search(r"\.experts\.\D", name)]
        if apart in model.entries and stacks:
            return (f"{model.name} keeps experts one by one ('{apart}') and {other.name} keeps them as a stack "
                    f"('{stacks[0]}'); save both in one way, such as with one version of transformers.")
    return None


def _whole_stacks(names: list[str], used: set[str]) -> set[str]:
    """Those of the names whose whole stack the other side lacks."""
    shared = {stack_of(name) for name in used}
    return {name for name in names if stack_of(name) not in shared}


def _beyond(names: list[str], config: dict | None) -> set[str]:
    """Those of the names in layers beyond the configuration's number, such as DeepSeek's, which no save keeps."""
    parts = [part for part in (config or {}, (config or {}).get("text_config")) if isinstance(part, dict)]
    count = next((part["num_hidden_layers"] for part in parts if isinstance(part.get("num_hidden_layers"), int)), None)
    return set() if count is None else {name for name in names if (_number(name) or 0) >= count > 0}


def _number(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _of_adapter(original: Checkpoint, changed: Adapter, layers: re.Pattern | None) -> tuple[dict[str, str], list[str]]:
    """Base matrix -> module of an adapter, and what to say of factors that are not counted."""
    names = {module: module.replace(".base_layer.", ".") for module in [*changed.tensors, *changed.whole]}
    targets = {name: name for name in original.entries if _ATTENTION not in name} | {
        name: name for name in original.convolutions}
    attention = {name.partition(_ATTENTION)[0]: name.partition("[")[0] for name in original.entries
                 if _ATTENTION in name}
    found = matched(names.values(), [*targets, *attention], others=original.packed,
                    renaming=partial(_renaming, original))
    _refuse_ambiguous(original, changed, found)
    by_name = {module: found.found[name] for module, name in names.items() if name in found.found}
    unknown = [module for module in names if module not in by_name]
    if lost := [module for module in unknown if in_block(f"{module}.")]:
        raise UsageError(_unknown_factors(original, changed, lost))
    for module, base in by_name.items():
        if base in original.packed and (layers is None or layers.search(base)):
            raise UsageError(f"{changed.name} changes '{module}', but {packed_sentence(original, base)}")
    by_base = _inverted(original, changed, by_name)
    for stem, weight in attention.items():
        if (module := by_base.pop(stem, None)) is not None:
            by_base |= {f"{weight}[{part}]": module for part in "qkv"}
    notes = []
    if unknown:
        notes.append(f"Not counted, since they stand outside of numbered blocks: factors of {some(unknown)}.")
    if twice := [base for base in by_base if by_base[base].endswith(".base_layer.out_proj")]:
        notes.append(f"Of {some(twice)} the update counts twice, as PEFT adds it in every forward pass and merge.")
    return by_base, notes


def turned(original: Checkpoint, changed: Adapter, by_base: dict[str, str]) -> Checkpoint:
    """The base with those of its matrices turned that the adapter's configuration and factors show to be (in, out).

    Parameters
    ----------
    original : Checkpoint
        The base.
    changed : Adapter
    by_base : dict of str to str
        Base matrix -> module of the adapter.
    """
    if not changed.settings.fan_in_fan_out:
        return original
    leaf = {name: name.rpartition(".")[2] for name in by_base if name in original.entries}
    open_ones = {name: original.entries[name] for name in leaf if not original.entries[name].transposed
                 and by_base[name] in changed.tensors and original.entries[name].rows is None}
    ways: dict[str, set[bool]] = {}
    for name, entry in open_ones.items():
        if entry.shape[0] != entry.shape[1]:
            ways.setdefault(leaf[name], set()).add(changed.shape(by_base[name]) == entry.shape[::-1])
    entries = dict(original.entries)
    for name, entry in open_ones.items():
        way = ways.get(leaf[name]) or {_kind_says(original, name)}
        if len(way) > 1 or None in way:
            raise UsageError(f"The configuration of {changed.name} says fan_in_fan_out, that the base's weights are "
                             f"stored as (in, out), but nothing shows it of '{name}', {entry.shape}; {_MERGED}.")
        if True in way:
            entries[name] = replace(entry, transposed=True, shape=entry.shape[::-1])
    return replace(original, entries=entries)


def _kind_says(original: Checkpoint, name: str) -> bool | None:
    known = original.architecture()
    kind = known.kind(name) if known is not None else None
    return {"Conv1D": True, "Linear": False}.get(str(kind))


def _unknown_factors(original: Checkpoint, changed: Adapter, lost: list[str]) -> str:
    """Why factors do not belong to any matrix of the base."""
    experts = next((name for name in lost if name.endswith(".base_layer") or any(
        unwrapped(other).startswith(f"{unwrapped(name)}.") for other in original.entries)), None)
    if experts is not None:
        return (f"{changed.name} also has '{experts}', factors of stacked experts, of which {original.name} knows "
                "nothing: PEFT packs those of all experts into one pair, in an order that depends on its version; "
                f"{_MERGED}.")
    return (f"{changed.name} also has {some(lost)} of which {original.name} knows nothing; are they of one "
            "architecture?")


def _refuse_ambiguous(original: Checkpoint, changed: Checkpoint | Adapter, found: Matched) -> None:
    for name, candidates in found.open.items():
        raise UsageError(f"'{name}' of {changed.name} could mean {some(candidates)} of {original.name}, and neither "
                         "names nor config.json say which; save both with one version of transformers.")


def _inverted(original: Checkpoint, changed: Checkpoint | Adapter, found: dict[str, str]) -> dict[str, str]:
    by_base: dict[str, str] = {}
    for name, base in found.items():
        if base in by_base:
            raise UsageError(f"Two matrices of {changed.name}, '{by_base[base]}' and '{name}', stand for '{base}' of "
                             f"{original.name}; are they of one architecture?")
        by_base[base] = name
    return by_base


def _of_both(own: Iterable[str], other: Iterable[str]) -> list[str]:
    """The base's names, and those of the tuned checkpoint whose two last parts are none of the base's."""
    ends = {tuple(name.split(".")[-2:]) for name in own}
    return [*own, *(name for name in other if tuple(name.split(".")[-2:]) not in ends)]


def _kinds(names: Iterable[str]) -> str:
    """Names with their layers' and experts' numbers as stars, each once with how often it stands for one."""
    counts: dict[str, int] = {}
    for name in names:
        kind = re.sub(r"(?<=\.)\d+(?=\.|$)|(?<=\[)\w+(?=\])", "*", name)
        counts[kind] = counts.get(kind, 0) + 1
    shown = [f"'{kind}'" + (f" ({count})" if count > 1 else "") for kind, count in counts.items()]
    more = f" and {len(shown) - _MOST_KINDS} more" if len(shown) > _MOST_KINDS else ""
    return ", ".join(shown[:_MOST_KINDS]) + more


def place_of(name: str) -> tuple[str, int, str]:
    """What stands before the block's number, the number, and what stands after it.

    >>> place_of("encoder.layer.11.attention.self.query"), place_of("projector.2")
    (('encoder.layer', 11, 'attention.self.query'), ('projector', 2, 'weight'))
    """
    prefix, number, kind = re.fullmatch(r"(?:(.*?)\.)?(\d+)(?:\.(.+)|$)", name).groups()
    return prefix or "", int(number), kind or "weight"


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
