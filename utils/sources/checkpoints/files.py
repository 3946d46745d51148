"""Which files of a folder are the checkpoint: in transformers' order, complete, and of no other tool.

The order is that of ``transformers.modeling_utils._get_resolved_checkpoint_files`` for a local folder: one file before
an index of shards, safetensors before pickles. What it has no rule for (shards without an index, files of other names)
is read only where nothing is left to guess.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import CourseError, UsageError
from utils.files import read_json
from utils.sources.checkpoints.foreign import named_tool
from utils.sources.checkpoints.words import some
from utils.sources.weight_file import stand_in

MODEL, PICKLED_MODEL, ADAPTER = "model", "pytorch_model", "adapter_model"
CONFIG, ADAPTER_CONFIG, MODELOPT_CONFIG = "config.json", "adapter_config.json", "hf_quant_config.json"
INDEX, SINGLE = f"{MODEL}.safetensors.index.json", f"{MODEL}.safetensors"
_MOST_FOLDERS = 500  # that are looked through for weights
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<place>\d+)-of-(?P<count>\d+)")


@dataclass(frozen=True)
class WeightFiles:
    """The files to read, which tensor is to be read from which of them where an index says so, and what to note."""

    files: tuple[Path, ...]
    places: dict[str, str] | None = None
    notes: tuple[str, ...] = ()


def model_files(source: str, folder: Path, allow_pickle: bool, *, explicit: object = None) -> WeightFiles:
    """The weight files of a whole model.

    Parameters
    ----------
    source : str
        How the reader called it.
    folder : Path
    allow_pickle : bool
        Whether pickles may be read where there are no safetensors.
    explicit : str, optional
        What the model's configuration says in ``transformers_weights``; it comes before everything else.

    Raises
    ------
    UsageError
        If a shard is missing, it cannot be told which of several files is meant, or there is none; what lies there
        instead is named.
    """
    if explicit is not None:
        return _explicit(folder, explicit)
    found = _by_stem(folder, MODEL, ".safetensors")
    pickled = None if found else _by_stem(folder, PICKLED_MODEL, ".bin")
    # Safetensors by other names beside a pickle by transformers' own are something else: an optimiser, a part.
    if found is None and pickled is None:
        found = _others(source, folder)
    return found or _if_allowed(source, folder, pickled, allow_pickle=allow_pickle)


def adapter_files(source: str, folder: Path, allow_pickle: bool) -> WeightFiles:
    """The weight files of a PEFT adapter, whole or in shards; raises as :func:`model_files` does."""
    found = _by_stem(folder, ADAPTER, ".safetensors")
    return found or _if_allowed(source, folder, _by_stem(folder, ADAPTER, ".bin"), allow_pickle=allow_pickle)


def has_adapter(folder: Path) -> bool:
    """Whether a folder has weights of a PEFT adapter, in whatever form."""
    suffixes = (".safetensors", ".bin", ".safetensors.index.json")
    return any(_visible(folder, f"{ADAPTER}*{suffix}") for suffix in suffixes)


def has_model(folder: Path) -> bool:
    """Whether a folder has weights of a whole model as transformers names them."""
    return any(_visible(folder, f"{stem}*{suffix}") for stem, suffix in (
        (MODEL, ".safetensors"), (MODEL, ".safetensors.index.json"), (PICKLED_MODEL, ".bin")))


def shards(folder: Path) -> list[Path]:
    """The weight files that a folder's index names, if it has one; UsageError if one is missing or lies elsewhere."""
    return list(_indexed(folder, folder / INDEX, ".safetensors").files) if (folder / INDEX).exists() else []


def json_of(path: Path) -> dict:
    """The object that a JSON file holds; UsageError if it holds none."""
    try:
        value = read_json(path)
    except CourseError as error:
        what = stand_in(path)
        raise UsageError(f"{path} {what}." if what else str(error)) from error
    except FileNotFoundError as error:
        raise UsageError(f"There is no {path}; copy the whole checkpoint.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} should hold a JSON object, but holds a {type(value).__name__}.")
    return value


def _explicit(folder: Path, name: object) -> WeightFiles:
    """The file, or the index, that a configuration names as the one with the weights."""
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\:]+\.safetensors(?:\.index\.json)?", name):
        raise UsageError(f"{folder / CONFIG} gives transformers_weights as {str(name)[:100]!r}, which is no "
                         ".safetensors of its own folder; copy the checkpoint again.")
    if name.endswith(".json"):
        return _indexed(folder, folder / name, ".safetensors")
    return WeightFiles((folder / name,))


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern but those that a desktop hides, such as ``._model.safetensors``."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(".") and not path.is_dir())


def _by_stem(folder: Path, stem: str, suffix: str) -> WeightFiles | None:
    """One file, or an index and its shards, or numbered shards that are complete; None if there is none of them."""
    single, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
    if single.exists() or single.is_symlink():
        left = (f"{single.name} of {folder.name} was read, as transformers does; {index.name} beside it was not.",)
        return WeightFiles((single,), notes=left if index.exists() else ())
    if index.exists():
        return _indexed(folder, index, suffix)
    parts = [path for path in _visible(folder, f"{stem}-*{suffix}") if _NUMBERED.fullmatch(path.stem)]
    if not parts:
        return None
    _check_complete(folder, [path.name for path in parts], "there is no index that says otherwise")
    return WeightFiles(tuple(parts))


def _indexed(folder: Path, index: Path, suffix: str) -> WeightFiles:
    places = json_of(index).get("weight_map")
    if not places or not isinstance(places, dict):
        raise UsageError(f"{index} does not say which file holds which weight; copy the checkpoint again.")
    places = {name: str(file) for name, file in places.items()}
    names = sorted(set(places.values()))
    if outside := [name for name in names if not re.fullmatch(rf"[^/\\:]+{re.escape(suffix)}", name)]:
        raise UsageError(f"{index} names {some(outside)}, but {suffix} of its own folder alone are read; copy the "
                         "checkpoint again.")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UsageError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the whole checkpoint.")
    _check_complete(folder, names, f"{index.name} names no more")
    return WeightFiles(tuple(folder / name for name in names), places)


def _check_complete(folder: Path, names: list[str], why: str) -> None:
    """UsageError unless files called ``…-00001-of-0000N…`` are all N of one set."""
    parts = [found for name in names if (found := _NUMBERED.fullmatch(Path(name).stem))]
    sets = {(part["stem"], part["count"]) for part in parts}
    if len(sets) > 1:
        raise UsageError(f"{folder} holds shards of several sets ({some(sorted(names))}), and {why}; keep one set.")
    if sets and len(parts) == len(names):
        count, places = int(parts[0]["count"]), {int(part["place"]) for part in parts}
        first = 0 if 0 in places else 1  # a few tools count from 0
        if lost := sorted(set(range(first, first + min(count, 10**4))) - places):
            lost = [names[0].replace(f"-{parts[0]['place']}-of", f"-{place:0{len(parts[0]['place'])}d}-of")
                    for place in lost]
            raise UsageError(f"{folder} lacks {some(lost)}: its shards are numbered up to {count}, and {why}; copy "
                             "the whole checkpoint.")


def _others(source: str, folder: Path) -> WeightFiles | None:
    """Safetensors by other names than transformers': one file, or one complete set of shards."""
    files = [path for path in _visible(folder, "*.safetensors") if not path.name.startswith((ADAPTER, "optimizer"))]
    if not files:
        return None
    if tool := named_tool(folder, files):
        raise UsageError(f"{source} holds {tool}.")
    numbered = [path for path in files if _NUMBERED.fullmatch(path.stem)]
    if len(files) > 1 and numbered != files:
        raise UsageError(f"{source} holds several weight files, {some(path.name for path in files)}, and nothing says "
                         f"which is the model; give a folder with one of them, as {SINGLE}.")
    if numbered:
        _check_complete(folder, [path.name for path in files], "there is no index that says otherwise")
    return WeightFiles(tuple(files))


def _if_allowed(source: str, folder: Path, found: WeightFiles | None, *, allow_pickle: bool) -> WeightFiles:
    if found is None:
        raise UsageError(_nothing(source, folder, allow_pickle))
    if not allow_pickle:
        raise UsageError(f"{folder} holds only pickled weights ({found.files[0].name}), which can run code when "
                         "loaded; convert it (load it in transformers and `save_pretrained` it, which writes "
                         "safetensors), or add --allow-pickle to read it with torch's restricted loader.")
    return found


def _nothing(source: str, folder: Path, allow_pickle: bool) -> str:
    """The sentence about a folder in which there is nothing to read, with what lies there instead."""
    if below := folders_with_weights(folder):
        return (f"{source} holds no weights of its own, only folders that do: {some(below)}; give one of these, such "
                f"as {Path(source) / below[-1]}.")
    if tool := named_tool(folder, []):
        return f"{source} holds {tool}."
    # Of a Hub model pickles are not even downloaded without the flag.
    return (f"{source} holds no safetensors weights; give a folder that `save_pretrained` wrote"
            + ("." if allow_pickle else ", or add --allow-pickle if its weights are pickled (.bin)."))


def folders_with_weights(folder: Path, *, depth: int = 2) -> list[str]:
    """Folders below that hold a model or an adapter, such as ``checkpoint-500``, by their names from here, in order.

    Folders within folders are looked through only where no folder right below holds any.
    """
    try:
        below = sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
                       key=_by_number)[:_MOST_FOLDERS]
    except OSError:
        return []
    found = [path.name for path in below if _visible(path, "*.safetensors") or has_model(path) or has_adapter(path)]
    if found or depth == 1:
        return found
    return [f"{path.name}/{name}" for path in below for name in folders_with_weights(path, depth=1)]


def _by_number(path: Path) -> tuple[str, int]:
    words, digits = re.fullmatch(r"(.*?)(\d*)", path.name, re.DOTALL).groups()
    return words, int(digits[:18] or 0)


def check_places(found: WeightFiles, holds: Iterable[tuple[Path, Iterable[str]]]) -> None:
    """UsageError if an index says of a file that it holds what it does not.

    Parameters
    ----------
    found : WeightFiles
    holds : iterable of (Path, names)
        The tensors of each file.
    """
    for file, names in holds:
        promised = {name for name, place in (found.places or {}).items() if place == file.name}
        if lost := sorted(promised - set(names)):
            raise UsageError(f"The index beside {file} says that it holds {some(lost)}, but it does not: they are of "
                             "two different saves; copy the whole checkpoint again.")
