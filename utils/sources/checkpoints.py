"""Checkpoints on disk, read one matrix at a time: whole models, sharded or not, and PEFT LoRA adapters.

A 7B pair never has to fit into memory: headers say what is there, and each weight is read by its name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import CourseError, UsageError
from utils.files import read_json
from utils.low_rank import LowRankUpdate
from utils.sources import hub
from utils.sources.adapter_settings import check_settings
from utils.sources.weight_file import WeightFile

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CONFIG, ADAPTER_CONFIG, ADAPTER_STEM = "config.json", "adapter_config.json", "adapter_model"
# Matrices that are counted: weights inside numbered blocks that multiply activations. Embeddings, the classifier, the
# pooler and the language-model head stand outside of the blocks.
_BLOCK = re.compile(r"(?:^|\.)\d+\.")
_NOT_LINEAR = re.compile(r"embed|norm|lm_head|classifier|pooler|score|relative_attention_bias|rotary|position")
_TRANSPOSED_TYPES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gpt-sw3"}  # Conv1D keeps (in, out)
_TRANSPOSED = re.compile(r"\.(?:c_attn|c_proj|c_fc|q_attn)$")
# Initialisations that rewrite the base weight: the saved factors alone do not say what the tuned weight is.
_REWRITING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_BEYOND_LORA = ("use_qalora", "layer_replication", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
                "alora_invocation_tokens", "target_parameters")


class AdapterMatrix(NamedTuple):
    """What an adapter does to one matrix: a low-rank update, and for DoRA the length of each output row, (out,)."""

    update: LowRankUpdate
    magnitude: torch.Tensor | None = None

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """The tuned weight in float64, exactly what PEFT's merge means by it."""
        weight = self.update.added_to(base)
        if self.magnitude is None:
            return weight
        return weight * (self.magnitude.double() / torch.linalg.vector_norm(weight, dim=1))[:, None]


@dataclass(frozen=True)
class Entry:
    """Where a matrix lies: its tensor's name, file, shape (out, in) and stored type."""

    tensor: str
    file: Path
    shape: tuple[int, int]
    dtype: torch.dtype
    transposed: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """The counted matrices of a model, by the names they are stored under, without ``.weight``."""

    name: str
    folder: Path
    entries: dict[str, Entry] = field(repr=False)
    left_out: tuple[str, ...] = ()  # weights within blocks that are no matrices, such as stacked experts

    @property
    def files(self) -> list[Path]:
        """What its matrices are read from."""
        config = self.folder / CONFIG
        return [*([config] if config.exists() else []), *sorted({entry.file for entry in self.entries.values()})]

    def read(self, matrix: str) -> torch.Tensor:
        """A matrix as (out, in), in the type it is stored in."""
        entry = self.entries[matrix]
        tensor = WeightFile.of(entry.file).tensor(entry.tensor)
        return tensor.T.contiguous() if entry.transposed else tensor


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter: factors by the names of the modules that it wraps."""

    name: str
    folder: Path
    config: dict = field(repr=False)
    tensors: dict[str, dict[str, str]] = field(repr=False)  # module -> {"lora_A": tensor name, …}

    @property
    def base_name(self) -> str:
        """The base model that its configuration names."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def rank(self) -> int:
        """The largest rank of its factors, whatever its name or configuration says."""
        return max(len(self.read(module).update.a) for module in self.tensors)

    @property
    def files(self) -> list[Path]:
        """What it was read from."""
        return [self.folder / ADAPTER_CONFIG, _adapter_file(self.name, self.folder, pickled=True)]

    @property
    def _reader(self) -> WeightFile:
        return WeightFile.of(_adapter_file(self.name, self.folder, pickled=True))

    def read(self, module: str) -> AdapterMatrix:
        """The factors of one module."""
        parts = {part: self._reader.tensor(name) for part, name in self.tensors[module].items()}
        for part in ("lora_A", "lora_B"):
            if part not in parts or parts[part].ndim != 2 or not parts[part].is_floating_point():
                raise UsageError(f"The adapter {self.name} has no {part} matrix of numbers for '{module}'; save it "
                                 "again with PEFT, or give a merged copy.")
        b, a, magnitude = parts["lora_B"], parts["lora_A"], parts.get("lora_magnitude_vector")
        if not len(a):
            raise UsageError(f"The adapter {self.name} has factors of rank 0 for '{module}'; save it again with PEFT.")
        if b.shape[1] != len(a) or (magnitude is not None and magnitude.shape != b.shape[:1]):
            shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
            raise UsageError(f"The parts that adapter {self.name} has for '{module}' do not fit together: {shapes}.")
        return AdapterMatrix(LowRankUpdate(b, a, self._scale(module, len(a))), magnitude)

    def _scale(self, module: str, r: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA, with the module's own alpha where the configuration gives one."""
        alpha, pattern = self.config.get("lora_alpha", 8), self.config.get("alpha_pattern") or {}
        if pattern:
            from peft.utils.other import get_pattern_key

            alpha = pattern.get(get_pattern_key(pattern.keys(), module), alpha)
        return alpha / r**0.5 if self.config.get("use_rslora") else alpha / r


def open_checkpoint(source: str, *, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint | Adapter:
    """A model or adapter, from a folder or from the Hub.

    Parameters
    ----------
    source : str
        A folder as ``save_pretrained`` writes it, or a Hub name such as ``"FacebookAI/roberta-base"``.
    revision : str, optional
        A branch, tag or commit on the Hub; a folder has none.
    allow_pickle : bool
        Read ``.bin`` files where there are no safetensors, by torch's restricted loader (``weights_only=True``).

    Raises
    ------
    UsageError
        If it is out of reach, damaged, a pickle without leave, quantised, or an adapter of another kind than LoRA.
    """
    folder = _folder(source, revision, allow_pickle)
    if (folder / ADAPTER_CONFIG).exists():
        return _open_adapter(source, folder, allow_pickle)
    config = _json(folder / CONFIG) if (folder / CONFIG).exists() else None
    types, entries, left_out, others = _model_types(config or {}), {}, [], []
    for file in _weight_files(source, folder, allow_pickle):
        for tensor, (shape, dtype) in WeightFile.of(file).shapes().items():
            module = tensor.removesuffix(".weight")
            if len(shape) > 2 and _BLOCK.search(tensor) and not tensor.endswith("bias"):
                left_out.append(tensor)
            if module == tensor or len(shape) != 2 or not _BLOCK.search(module) or _NOT_LINEAR.search(module):
                others += [tensor] if len(shape) == 2 else []
                continue
            if not isinstance(dtype, torch.dtype):
                raise UsageError(f"Matrix '{module}' of {source} is stored as {dtype}, a quantised type; save a copy "
                                 "with its weights dequantised first.")
            transposed = bool(_TRANSPOSED.search(module))
            if transposed and config is None:
                raise UsageError(f"{source} has no {CONFIG}, which says whether weights such as '{module}' are stored "
                                 "as (in, out); copy the whole checkpoint.")
            transposed = transposed and not types.isdisjoint(_TRANSPOSED_TYPES)
            entries[module] = Entry(tensor, file, tuple(shape[::-1] if transposed else shape), dtype, transposed)
    if not entries:
        raise UsageError(f"{source} holds no weight matrices inside numbered blocks; it has {some(others)}, but "
                         "what is counted has a name like 'model.layers.0.mlp.up_proj.weight', the layer's number "
                         "between dots and '.weight' at the end, so save it with transformers or rename its weights.")
    ordered = dict(sorted(entries.items(), key=lambda item: _natural(item[0])))
    return Checkpoint(source, folder, ordered, tuple(left_out))


def _model_types(config: dict) -> set[str]:
    """The model types of a configuration, those of its parts included (an encoder-decoder has two)."""
    inner = [_model_types(part) for part in config.values() if isinstance(part, dict)]
    return {str(config.get("model_type", ""))}.union(*inner)


def match_names(names: Iterable[str], base_names: Iterable[str]) -> dict[str, str]:
    """Which base matrix each name means, though one checkpoint may have a prefix that the other lacks.

    A model saved with a head has names such as ``bert.encoder.layer.0…`` where its bare body has ``encoder.layer.0…``,
    so names are compared from any component on up to the first number, as far as that is unambiguous.

    >>> match_names(["bert.encoder.layer.0.output.dense"], ["encoder.layer.0.output.dense"])
    {'bert.encoder.layer.0.output.dense': 'encoder.layer.0.output.dense'}
    >>> match_names(["lm_head"], ["encoder.layer.0.output.dense"])
    {}
    """
    known: dict[str, str | None] = {}
    for base in base_names:
        for place, tail in enumerate(_tails(base)):
            known[tail] = base if place == 0 or tail not in known else None
    found = {}
    for name in names:
        match = next((known[tail] for tail in _tails(name) if known.get(tail)), None)
        if match is not None:
            found[name] = match
    return found


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return [".".join(parts[place:]) for place in range(first + 1)]


def _natural(name: str) -> list:
    """Sort key under which layer 2 comes before layer 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def some(names: list[str]) -> str:
    """A few of the names, and how many more there are.

    >>> some(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    shown = ", ".join(f"'{name}'" for name in names[:3]) or "nothing"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _folder(source: str, revision: str | None, allow_pickle: bool) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{source} is a file; give the folder that holds the model or adapter.")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(f"There is no folder {source}, and it is not a Hub name of the form owner/name either.")
    return hub.checkpoint_snapshot(source, revision=revision, allow_pickle=allow_pickle)


def shards(folder: Path) -> list[Path]:
    """The weight files that a folder's index names, if it has one; UsageError if one is missing or lies elsewhere."""
    index = folder / INDEX
    if not index.exists():
        return []
    places = _json(index).get("weight_map")
    if not places or not isinstance(places, dict):
        raise UsageError(f"{index} does not say which file holds which weight; copy the checkpoint again.")
    names = sorted(set(map(str, places.values())))
    if outside := [name for name in names if not re.fullmatch(r"[^/\\:]+\.safetensors", name)]:
        raise UsageError(f"{index} names {some(outside)}, but .safetensors of its own folder alone are read; copy the "
                         "checkpoint again.")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UsageError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; copy the whole checkpoint.")
    return [folder / name for name in names]


def _weight_files(source: str, folder: Path, allow_pickle: bool) -> list[Path]:
    if files := shards(folder):
        return files
    if (folder / SINGLE).exists():
        return [folder / SINGLE]  # some repositories carry the same weights a second time under another name
    return sorted(folder.glob("[!.]*.safetensors")) or _pickles(source, folder, "pytorch_model*.bin",
                                                            allow_pickle=allow_pickle)


def _pickles(source: str, folder: Path, pattern: str, *, allow_pickle: bool) -> list[Path]:
    files = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not files:
        # Of a Hub model pickles are not even downloaded without the flag.
        raise UsageError(f"{source} holds no safetensors weights; give a folder that `save_pretrained` wrote"
                         + ("." if allow_pickle else ", or add --allow-pickle if its weights are pickled (.bin)."))
    if not allow_pickle:
        raise UsageError(f"{folder} holds only pickled weights ({files[0].name}), which can run code when loaded; "
                         "convert it (load it in transformers and `save_pretrained` it, which writes safetensors), or "
                         "add --allow-pickle to read it with torch's restricted loader.")
    return files


def _open_adapter(source: str, folder: Path, allow_pickle: bool) -> Adapter:
    config = _json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type", "unknown")
    if kind != "LORA":
        raise UsageError(f"{source} is an adapter of kind {kind}, not LoRA; merge it into its base with PEFT's "
                         "`merge_and_unload`, save that, and give the merged copy.")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_REWRITING):
        raise UsageError(f"{source} started from '{start}', which rewrites the base weight, so its factors alone do "
                         "not give the tuned one over the original base; merge it into the rewritten base with PEFT's "
                         "`merge_and_unload` and give the merged copy, or save it anew with PEFT's "
                         "`path_initial_model_for_weight_conversion`, which makes plain LoRA of it.")
    if beyond := [name for name in _BEYOND_LORA if config.get(name)]:
        raise UsageError(f"{source} uses {beyond[0]}, which is more than scale * B A; merge it with PEFT's "
                         "`merge_and_unload` and give the merged copy.")
    check_settings(config, folder / ADAPTER_CONFIG)
    file = _adapter_file(source, folder, pickled=allow_pickle)
    tensors: dict[str, dict[str, str]] = {}
    for tensor in WeightFile.of(file).shapes():
        found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.(lora_[AB]|lora_magnitude_vector)(?:\.default)?"
                             r"(?:\.weight)?", tensor)
        if found:
            tensors.setdefault(found[1], {})[found[2]] = tensor
        elif tensor.endswith(".weight") and _BLOCK.search(tensor) and not _NOT_LINEAR.search(tensor):
            raise UsageError(f"{source} carries a whole weight beside its factors ({tensor}); merge it with PEFT's "
                             "`merge_and_unload` and give the merged copy.")
    if not tensors:
        raise UsageError(f"{file} holds no LoRA factors.")
    return Adapter(source, folder, config, tensors)


def _adapter_file(source: str, folder: Path, *, pickled: bool) -> Path:
    file = folder / f"{ADAPTER_STEM}.safetensors"
    return file if file.exists() else _pickles(source, folder, f"{ADAPTER_STEM}.bin", allow_pickle=pickled)[0]


def _json(path: Path) -> dict:
    try:
        value = read_json(path)
    except CourseError as error:
        raise UsageError(str(error)) from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} should hold a JSON object, but holds a {type(value).__name__}.")
    return value
