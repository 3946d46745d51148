"""A PEFT LoRA adapter on disk: its factors by the names of the modules that it wraps, and how they are scaled."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import UsageError
from utils.low_rank import LowRankUpdate
from utils.sources.checkpoints.files import ADAPTER_CONFIG, adapter_files, folders_with_weights, has_adapter, json_of
from utils.sources.checkpoints.foreign import named_tensors
from utils.sources.checkpoints.linear import in_block
from utils.sources.checkpoints.model import header_of
from utils.sources.checkpoints.names import unwrapped
from utils.sources.checkpoints.quantised import Stored
from utils.sources.checkpoints.settings import Settings, settings_of
from utils.sources.checkpoints.words import some
from utils.sources.weight_file import WeightFile

# module . part [. name of the adapter] [. weight]; a bias is no matrix.
_KEY = re.compile(r"(?P<module>.+?)\.(?P<part>lora_[AB]|lora_magnitude_vector)"
                  r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?P<end>\.weight|\.bias)?")
_OTHER_FACTOR = re.compile(r"\.(?:lora_embedding_[AB]|trainable_tokens_\w+|token_adapter)(?:\.|$)")
_UNKNOWN_FACTOR = re.compile(r"\.lora_(?!A\b|B\b|magnitude_vector\b|embedding_[AB]\b)\w+(?:\.|$)")
_CUT = re.compile(r"(?P<module>.+)_(?P<part>[AB])\.weight")
# LLaMA-Factory's folders of a PiSSA adapter as it started and as it was trained, over a base that was rewritten.
_RESIDUAL = {"pissa_init", "pissa_backup"}
_MERGE = "merge it with PEFT's `merge_and_unload` and give the merged copy"


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

    def rows(self, start: int, stop: int) -> "AdapterMatrix":
        """What it does to some of the rows."""
        update = LowRankUpdate(self.update.b[start:stop], self.update.a, self.update.scale)
        return AdapterMatrix(update, None if self.magnitude is None else self.magnitude[start:stop])


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter: factors, and weights that were saved whole, by the names of the modules."""

    name: str
    folder: Path
    settings: Settings
    header: dict[str, Stored] = field(repr=False)
    tensors: dict[str, dict[str, str]] = field(repr=False)  # module -> {"lora_A": tensor name, …}
    whole: dict[str, str] = field(default_factory=dict, repr=False)  # module -> name of its whole new weight
    notes: tuple[str, ...] = ()

    @property
    def base_name(self) -> str:
        """The base model that its configuration names."""
        return self.settings.base_name

    @property
    def rank(self) -> int:
        """The largest rank of its factors, whatever its name or configuration says."""
        return max(len(self.read(module).update.a) for module in self.tensors)

    @property
    def files(self) -> list[Path]:
        """What it was read from."""
        return [self.folder / ADAPTER_CONFIG, *sorted({stored.file for stored in self.header.values()})]

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of what it does to a module, from the file's header; a convolution's kernel is flattened."""
        parts = self.tensors[module]
        a, b = (self.header[parts[part]].shape if part in parts else (0, 0) for part in ("lora_A", "lora_B"))
        return (b or (0,))[0], torch.Size(a[1:]).numel()

    def read(self, module: str) -> AdapterMatrix:
        """The factors of one module; those of a convolution as matrices, as PEFT merges them."""
        parts = {part: self._tensor(name) for part, name in self.tensors[module].items()}
        for part in ("lora_A", "lora_B"):
            self._check_factor(module, part, parts.get(part))
        b, a, magnitude = parts["lora_B"].flatten(1), parts["lora_A"].flatten(1), parts.get("lora_magnitude_vector")
        magnitude = None if magnitude is None else magnitude.flatten()
        if b.shape[1] != len(a) or (magnitude is not None and magnitude.shape != b.shape[:1]):
            shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
            raise UsageError(f"The parts that adapter {self.name} has for '{module}' do not fit together: {shapes}.")
        if (magnitude is None) == self.settings.use_dora:
            raise UsageError(f"The configuration of {self.name} says that it {'is' if magnitude is None else 'is not'} "
                             f"DoRA, but '{module}' has {'no' if magnitude is None else 'a'} magnitude; save it again "
                             "with PEFT.")
        self._check_rank(module, len(a))
        return AdapterMatrix(LowRankUpdate(b, a, self._scale(module, len(a))), magnitude)

    def read_whole(self, module: str) -> torch.Tensor:
        """The new weight of a module that was trained as a whole, as it is stored."""
        if not self.header[self.whole[module]].is_plain:
            raise UsageError(f"The adapter {self.name} carries '{module}' as a whole, in "
                             f"{self.header[self.whole[module]].dtype}, a quantised type; {_MERGE}.")
        return self._tensor(self.whole[module])

    def _tensor(self, name: str) -> torch.Tensor:
        return WeightFile.of(self.header[name].file).tensor(name)

    def _scale(self, module: str, rank: int) -> float:
        """What multiplies B A.

        To the output of attention in one piece PEFT adds its update twice, when it merges and in every forward pass
        (``peft.tuners.lora.layer.MultiheadAttention.merge``), so that is what was trained.
        """
        owner = self._owner(module)
        return self.settings.scale_of(owner, rank) * (2 if module == f"{owner}.base_layer.out_proj" else 1)

    def _owner(self, module: str) -> str:
        """The module that PEFT's patterns are matched with; for attention in one piece it gives its output's too."""
        return module.partition(".base_layer.")[0]

    def _check_factor(self, module: str, part: str, factor: torch.Tensor | None) -> None:
        if factor is not None and factor.numel() == 0:
            raise UsageError(f"The adapter {self.name} has no numbers in {part} of '{module}', {tuple(factor.shape)}: "
                             "a rank of 0, or a placeholder that DeepSpeed ZeRO-3 or FSDP leaves where pieces were not "
                             "gathered; save it again with its weights gathered.")
        if factor is None or factor.ndim < 2 or not factor.is_floating_point() or (
                factor.ndim > 2 and part == "lora_B" and set(factor.shape[2:]) != {1}):
            raise UsageError(f"The adapter {self.name} has no {part} matrix of numbers for '{module}'; save it again "
                             "with PEFT, or give a merged copy.")

    def _check_rank(self, module: str, rank: int) -> None:
        said = self.settings.rank_of(self._owner(module))
        if said is not None and said != rank:
            raise UsageError(f"The configuration of {self.name} gives '{module}' rank {said}, but its factors have "
                             f"rank {rank}, and alpha is divided by it; save it again with PEFT.")


def open_adapter(source: str, folder: Path, *, adapter: str | None, allow_pickle: bool) -> Adapter:
    """An adapter from a folder; see :func:`utils.sources.checkpoints.open_checkpoint`."""
    settings = settings_of(source, json_of(folder / ADAPTER_CONFIG), folder / ADAPTER_CONFIG)
    _check_residual(source, folder)
    found = adapter_files(source, folder, allow_pickle)
    header = header_of(source, found)
    named = _factors(header)
    chosen = _one_of(source, named, adapter)
    whole, aside = _besides(source, header, chosen)
    if not chosen:
        raise UsageError(f"{found.files[0]} holds no LoRA factors{_cut_names(header)}")
    notes = [*found.notes, *_notes(folder, settings, chosen, aside=aside)]
    return Adapter(source, folder, settings, header, chosen, whole, tuple(notes))


def _check_residual(source: str, folder: Path) -> None:
    if folder.resolve().name in _RESIDUAL or (folder / "pissa_init").is_dir():
        raise UsageError(f"{source} is a PiSSA adapter as LLaMA-Factory keeps it, over a base from which PiSSA took "
                         "its part, whatever its configuration says; give its folder pissa_converted, or a merged "
                         "copy.")


def _factors(header: Iterable[str]) -> dict[str | None, dict[str, dict[str, str]]]:
    """Name of the adapter, None where names carry none -> module -> part -> tensor."""
    named: dict[str | None, dict[str, dict[str, str]]] = {}
    for tensor in header:
        found = _KEY.fullmatch(tensor)
        if found and found["end"] != ".bias":
            module = unwrapped(found["module"])
            named.setdefault(found["adapter"], {}).setdefault(module, {})[found["part"]] = tensor
    return named


def _one_of(source: str, named: dict[str | None, dict[str, dict[str, str]]], wanted: str | None) -> dict:
    """The factors of one adapter of a file that may hold several."""
    if wanted is not None and named and wanted not in named and (wanted != "default" or list(named) != [None]):
        raise UsageError(f"{source} holds no adapter called '{wanted}'; it has "
                         f"{some(name or '(one without a name)' for name in named)}.")
    if len(named) > 1 and wanted not in named:
        names = [name or "(without a name)" for name in named]
        raise UsageError(f"{source} holds the factors of several adapters, {some(names)}; choose one with --adapter "
                         "NAME.")
    return named[wanted] if wanted in named else next(iter(named.values()), {})


def _besides(source: str, header: dict[str, Stored], chosen: dict) -> tuple[dict[str, str], list[str]]:
    """What lies beside the factors: modules of blocks with a whole new matrix, and tensors that are not counted."""
    whole: dict[str, str] = {}
    aside: list[str] = []
    for tensor, stored in header.items():
        if _KEY.fullmatch(tensor):
            continue
        if _UNKNOWN_FACTOR.search(tensor) and named_tensors([tensor]) is None:
            raise UsageError(f"{source} has '{tensor}' beside its factors, which is not known here and may make more "
                             f"of it than scale * B A; {_MERGE}.")
        module = unwrapped(re.sub(r"\.modules_to_save\.[^.]+(?=\.)", "", tensor)).removesuffix(".weight")
        matrix = len(stored.shape) == 2 and tensor.endswith(".weight") and in_block(tensor)
        if not matrix or _OTHER_FACTOR.search(tensor):
            aside += [] if tensor.endswith("bias") else [tensor]
        elif module in chosen or module.endswith(".base_layer"):
            raise UsageError(f"{source} carries a whole weight beside its factors ({tensor}); {_MERGE}.")
        else:
            whole[module] = tensor
    return whole, aside


def _notes(folder: Path, settings: Settings, chosen: dict, *, aside: list[str]) -> list[str]:
    notes = []
    if aside:
        notes.append(f"Beside the factors it carries what is no matrix of a block and is not counted: {some(aside)}.")
    if others := [name for name in folders_with_weights(folder, depth=1) if has_adapter(folder / name)
                  and not name.startswith("checkpoint-")]:
        notes.append(f"Further adapters lie in its folders {some(others)}; --adapter NAME counts one of them.")
    for kind, patterns in (("rank_pattern", settings.rank_pattern), ("alpha_pattern", settings.alpha_pattern)):
        idle = [key for key in patterns if not any(re.match(rf"(.*\.)?({key})$", module) for module in chosen)]
        if idle:
            notes.append(f"Its {kind} names what matches none of its modules: {some(idle)}.")
    return notes


def _cut_names(header: dict[str, Stored]) -> str:
    """The rest of the sentence about a file without factors: what its names say instead."""
    if not header:
        return (", and no tensors at all, as DeepSpeed ZeRO-3 and FSDP leave it where pieces were not gathered; save "
                "the adapter again with its weights gathered.")
    cut = [found["module"] for name in header if (found := _CUT.fullmatch(name))]
    if cut:
        return (f", but '{cut[0]}_A' and '{cut[0]}_B': an adapter that was called 'lora', whose name PEFT cut out of "
                "'lora_A' and 'lora_B'; load it in the PEFT that saved it under another name and save it again.")
    if tool := named_tensors(header):
        return f", but {tool}."
    return f", but {some(header)}; give the folder that PEFT's `save_pretrained` wrote."
