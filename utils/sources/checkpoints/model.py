"""A whole model on disk: its linear maps by name, each read when it is its turn.

A 7B pair never has to fit into memory: headers say what is there, and each weight is read by its name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from utils.errors import UsageError
from utils.sources.checkpoints import linear
from utils.sources.checkpoints.architecture import Architecture, architecture_of
from utils.sources.checkpoints.files import CONFIG, MODELOPT_CONFIG, WeightFiles, check_places, json_of, model_files
from utils.sources.checkpoints.foreign import named_tensors
from utils.sources.checkpoints.quantised import (
    Scheme,
    Stored,
    dequantised,
    mxfp4_stacks,
    packed_modules,
    scheme_of,
    unpacked_shape,
)
from utils.sources.checkpoints.stacks import stacked_experts
from utils.sources.checkpoints.words import natural, some
from utils.sources.weight_file import WeightFile

_PACKED_ATTENTION = ".in_proj_weight"  # nn.MultiheadAttention: queries, keys and values, one below the other
_FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.|$)")


@dataclass(frozen=True)
class Entry:
    """Where a matrix lies: its tensor's name, file, shape (out, in), stored type, and what reading it takes."""

    tensor: str
    file: Path
    shape: tuple[int, int]
    dtype: torch.dtype | str
    transposed: bool = False
    scheme: Scheme | None = None
    scale_files: tuple[tuple[str, Path], ...] = ()
    index: int | None = None  # which of stacked matrices
    rows: tuple[int, int] | None = None  # which rows of a packed one

    def read(self) -> torch.Tensor:
        """The matrix as (out, in): as it is stored, or in float64 where it was stored in fewer bits."""
        tensor = self._stored(self.tensor, self.file)
        if self.scheme is not None:
            files = dict(self.scale_files)
            tensor = dequantised(tensor, self.scheme, lambda name: self._stored(name, files[name]))
        if self.rows is not None:
            tensor = tensor[slice(*self.rows)]
        if tensor.ndim > 2:
            tensor = tensor.flatten(1)
        return tensor.T.contiguous() if self.transposed else tensor

    def _stored(self, name: str, file: Path) -> torch.Tensor:
        reader = WeightFile.of(file)
        return reader.tensor(name) if self.index is None else reader.part(name, self.index)


@dataclass(frozen=True)
class Checkpoint:
    """The counted matrices of a model, by the names they are stored under, without ``.weight``."""

    name: str
    folder: Path
    entries: dict[str, Entry] = field(repr=False)
    convolutions: dict[str, Entry] = field(default_factory=dict, repr=False)  # flattened; for adapters that change one
    packed: dict[str, str] = field(default_factory=dict, repr=False)  # matrices that cannot be read, and why
    left_out: tuple[str, ...] = ()  # tensors within blocks that are no matrices that are counted
    outside: tuple[str, ...] = ()  # matrices outside of the blocks, such as embeddings
    config: dict | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """What its matrices are read from."""
        config = self.folder / CONFIG
        scales = {file for entry in self.entries.values() for _, file in entry.scale_files}
        return [*([config] if config.exists() else []),
                *sorted({entry.file for entry in self.entries.values()} | scales)]

    def read(self, matrix: str) -> torch.Tensor:
        """A matrix as (out, in), in the type it is stored in, or in float64 if that is a quantised one."""
        return (self.entries.get(matrix) or self.convolutions[matrix]).read()

    def architecture(self) -> Architecture | None:
        """What transformers knows of the model; imports transformers."""
        return architecture_of(self.config)


def open_model(source: str, folder: Path, allow_pickle: bool) -> Checkpoint:
    """A whole model from a folder; see :func:`utils.sources.checkpoints.open_checkpoint`."""
    config = _config_of(folder)
    found = model_files(source, folder, allow_pickle, explicit=(config or {}).get("transformers_weights"))
    header = header_of(source, found)
    _refuse_unmerged(source, header)
    maps = _Maps(source, header, config)
    opened = Checkpoint(source, folder, *maps.sorted(), packed=maps.packed, left_out=tuple(maps.left_out),
                        outside=tuple(maps.outside), config=config, notes=(*found.notes, *_levels(found)))
    if not opened.entries:
        raise UsageError(_why_nothing(opened))
    return opened


def _config_of(folder: Path) -> dict | None:
    """The model's configuration; that of its quantisation may lie beside it, as ModelOpt writes it."""
    config = json_of(folder / CONFIG) if (folder / CONFIG).exists() else None
    if (folder / MODELOPT_CONFIG).exists() and "quantization_config" not in (config or {}):
        said = json_of(folder / MODELOPT_CONFIG).get("quantization")
        if isinstance(said, dict):
            return (config or {}) | {"quantization_config": {"quant_method": "modelopt"} | said}
    return config


def header_of(source: str, found: WeightFiles) -> dict[str, Stored]:
    """Every tensor of a checkpoint, with its file, shape and type.

    Raises
    ------
    UsageError
        If files are damaged, an index is of another save, or two files hold a tensor of one name.
    """
    header: dict[str, Stored] = {}
    held = {file: WeightFile.of(file).shapes() for file in found.files}
    check_places(found, held.items())
    for file, tensors in held.items():
        for name, (shape, dtype) in tensors.items():
            if found.places is not None and found.places.get(name, file.name) != file.name:
                continue  # a copy that the index passes over
            if name in header:
                raise UsageError(f"Two files of {source}, {header[name].file.name} and {file.name}, hold '{name}'; "
                                 "keep the files of one save.")
            header[name] = Stored(file, tuple(shape), dtype)
    return header


class _Maps:
    """The tensors of a model, sorted into what is counted and what is not."""

    def __init__(self, source: str, header: dict[str, Stored], config: dict | None):
        self.source, self.header, self.config = source, header, config
        self.entries: dict[str, Entry] = {}
        self.convolutions: dict[str, Entry] = {}
        self.left_out: list[str] = []
        self.outside: list[str] = []
        self.packed = {module: what for module, what in packed_modules(header).items() if linear.in_block(f"{module}.")}
        self.ask = cache(lambda: architecture_of(config))
        if empty := [name for name, stored in header.items() if linear.in_block(name) and 0 in stored.shape
                     and name.endswith(".weight")]:
            raise UsageError(f"{source} holds weights without numbers ({some(empty)}), the placeholders that DeepSpeed "
                             "ZeRO-3 or FSDP leaves where pieces were not gathered; save the model again with its "
                             "weights gathered.")
        self._matrices()
        self._more_dimensions()
        beside = {name for entry in self.entries.values() for name, _ in entry.scale_files}
        self.left_out = [name for name in self.left_out if name not in beside
                         and name.rpartition(".")[0] not in self.packed]

    def sorted(self) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """Matrices and convolutions, layer 2 before layer 10."""
        return tuple(dict(sorted(part.items(), key=lambda item: natural(item[0])))
                     for part in (self.entries, self.convolutions))

    def _matrices(self) -> None:
        """Tensors of two dimensions: linear maps, packed attention, tables, and what stands outside of the blocks."""
        modules: dict[str, tuple[int, ...]] = {}
        for name, stored in self.header.items():
            module = name.removesuffix(".weight")
            if len(stored.shape) != 2 or module in self.packed:
                continue
            if not linear.in_block(name):
                self.outside += [name] if stored.is_plain else []
            elif module != name:
                modules[module] = stored.shape
            elif name.endswith(_PACKED_ATTENTION) and stored.is_plain and stored.shape[0] == 3 * stored.shape[1]:
                self._packed_attention(name, stored)
            elif stored.is_plain and not name.endswith("bias"):
                self.left_out.append(name)
        for table in linear.tables(modules, self.ask):
            del modules[table]
            self.left_out.append(f"{table}.weight")
        self.modules = modules
        transposed = linear.transposed_modules(self.source, modules, self.header, ask=self.ask)
        for module in modules:
            self._matrix(module, module in transposed)

    def _matrix(self, module: str, transposed: bool) -> None:
        stored = self.header[f"{module}.weight"]
        scheme = None if stored.is_plain else scheme_of(module, self.header, self.config, source=self.source)
        if not stored.is_plain and scheme is None:
            self.packed[module] = f"{stored.dtype}, a quantised type"
            return
        shape = stored.shape[::-1] if transposed else stored.shape
        self.entries[module] = self._with_scales(Entry(f"{module}.weight", stored.file, shape, stored.dtype, transposed,
                                                       scheme))

    def _with_scales(self, entry: Entry) -> Entry:
        if entry.scheme is None:
            return entry
        names = [name for name in (entry.scheme.scale, entry.scheme.zero_point, entry.scheme.order) if name is not None]
        return replace(entry, scale_files=tuple((name, self.header[name].file) for name in names))

    def _packed_attention(self, name: str, stored: Stored) -> None:
        size = stored.shape[1]
        for place, part in enumerate("qkv"):
            self.entries[f"{name}[{part}]"] = Entry(name, stored.file, (size, size), stored.dtype,
                                                    rows=(place * size, (place + 1) * size))

    def _more_dimensions(self) -> None:
        """Convolutions and stacked experts."""
        blocks = {name: stored for name, stored in self.header.items()
                  if len(stored.shape) > 2 and linear.in_block(name) and not name.endswith("bias")}
        width = linear.widths(self.modules)
        packed = mxfp4_stacks(self.header)
        shapes = {name: stored.shape for name, stored in blocks.items() if len(stored.shape) == 3 and stored.is_plain}
        shapes = {name.removesuffix(".weight"): shape for name, shape in shapes.items()}
        shapes |= {name.removesuffix("_blocks"): unpacked_shape(self.header[name].shape) for name in packed}
        ways = stacked_experts(shapes, width, self.config)
        for name, stored in blocks.items():
            stack = name.removesuffix("_blocks") if name in packed else name.removesuffix(".weight")
            if stack in ways:
                self._experts(stack, name, transposed=ways[stack], scheme=packed.get(name))
            elif name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in packed:
                continue
            else:
                self.left_out.append(name)
                if name.endswith(".weight") and stored.is_plain:
                    flat = stored.shape[0], torch.Size(stored.shape[1:]).numel()
                    self.convolutions[stack] = Entry(name, stored.file, flat, stored.dtype)

    def _experts(self, stack: str, name: str, *, transposed: bool, scheme: Scheme | None) -> None:
        stored = self.header[name]
        count, *shape = stored.shape if scheme is None else unpacked_shape(stored.shape)
        kind = stored.dtype if scheme is None else "MXFP4"
        one = self._with_scales(Entry(name, stored.file, tuple(shape[::-1] if transposed else shape), kind, transposed,
                                      scheme))
        for place in range(count):
            self.entries[f"{stack}[{place}]"] = replace(one, index=place)


def _refuse_unmerged(source: str, header: Iterable[str]) -> None:
    """UsageError if a model is or carries an adapter: merged or not, they cannot be told apart."""
    if tool := named_tensors(header):
        raise UsageError(f"{source} holds {tool}.")
    factor = next((name for name in header if _FACTOR.search(name) or ".base_layer." in name), None)
    if factor is not None:
        raise UsageError(f"{source} holds the state of a model with an adapter in it ('{factor}'), without the "
                         "configuration that says how its factors are scaled; merge it with PEFT's `merge_and_unload` "
                         "and give the merged copy, or the adapter as PEFT's `save_pretrained` writes it.")


def _levels(found: WeightFiles) -> list[str]:
    levels = [(file.name, level) for file in found.files if (level := WeightFile.of(file).level) is not None]
    return [f"The weights are those under '{level}' of {name}." for name, level in levels]


def _why_nothing(opened: Checkpoint) -> str:
    if opened.packed:
        return packed_sentence(opened, next(iter(opened.packed)))
    return (f"{opened.name} holds no weight matrices inside numbered blocks; it has {some(opened.outside)}, but what "
            "is counted has a name like 'model.layers.0.mlp.up_proj.weight', the layer's number between dots and "
            "'.weight' at the end, so save it with transformers or rename its weights.")


def packed_sentence(model: Checkpoint, matrix: str) -> str:
    """Why a matrix of a quantised model cannot be read, and what to do."""
    quantisation = (model.config or {}).get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    return (f"Matrix '{matrix}' of {model.name} is stored as {model.packed[matrix]}"
            f"{f' (quant_method {method})' if isinstance(method, str) else ''}, which only the library that wrote it "
            "can undo; give the copy that it was quantised from, or save one with its weights dequantised first.")
