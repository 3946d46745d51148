"""The trained tensors of a model, in and out, under names that do not depend on how the model was wrapped.

``lora_A.<matrix>`` and ``lora_B.<matrix>`` for LoRA and its variants (the factors of Wt - W0), ``weight.<matrix>`` for
full fine-tuning, ``head.<parameter>`` for the classifier; ``<matrix>`` is the short name of
:mod:`utils.training.targets`.
"""

from functools import lru_cache
from pathlib import Path

import torch
from peft import PeftModel, TaskType
from torch import nn
from transformers import AutoModel

from utils.training.spec import Method
from utils.training.targets import HEADS, lora_pattern, tuned_modules
from utils.training.variants import adapter_config, update_factors, wrap

Tensors = dict[str, torch.Tensor]


@lru_cache(maxsize=2)
def base_matrices(folder: Path) -> Tensors:
    """W0 of every tuned matrix as float32, by short name, from the untouched checkpoint.

    Read from disk and not from a wrapped model: PiSSA, OLoRA and their like rewrite the wrapped base weight.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    return {name: module.weight.detach().clone() for name, module in tuned_modules(model).items()}


def prepare(model: nn.Module, method: Method, *, causal: bool, steps: int | None = None) -> nn.Module:
    """Make exactly the method's parameters trainable: what the first paper trains.

    Full fine-tuning trains the tuned matrices and the head; biases, LayerNorm and embeddings stay frozen, as in the
    authors' code since its fix of March 2025. LoRA and its variants train their factors and the head.
    """
    model_type = model.config.model_type
    heads = () if causal else HEADS.get(model_type, ("score",))
    if method.kind == "lora":
        chosen = lora_pattern(model_type) if method.targets == "all" else list(tuned_modules(model, method.targets))
        config = adapter_config(method, steps=steps, target_modules=chosen,
                                modules_to_save=list(heads) or None,
                                task_type=TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS)
        return wrap(model, method, config)
    trained = {id(module.weight) for module in tuned_modules(model, method.targets).values()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trained or any(part in heads for part in name.split(".")))
    return model


def trained_tensors(model: nn.Module, scale: float = 1.0) -> Tensors:
    """Every trained tensor of a prepared model as float32 on the CPU; adapters as factors of (Wt - W0) / `scale`."""
    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().float().cpu().clone().contiguous()

    modules, found = tuned_modules(model), {}
    if isinstance(model, PeftModel):
        for name, (b, a) in update_factors(model, scale).items():
            found |= {f"lora_A.{name}": copy(a), f"lora_B.{name}": copy(b)}
    else:
        found = {f"weight.{name}": copy(module.weight) for name, module in modules.items()
                 if module.weight.requires_grad}
    matrices = {id(module.weight) for module in modules.values()}
    for name, parameter in model.named_parameters():
        adapter = any(part in name for part in ("lora_", "vera_"))
        if parameter.requires_grad and id(parameter) not in matrices and not adapter:
            found[head_name(name)] = copy(parameter)
    return found


def head_name(name: str) -> str:
    """What a head's parameter is stored as, however PEFT wrapped it.

    >>> head_name("base_model.model.classifier.modules_to_save.default.weight")
    'head.classifier.weight'
    """
    return "head." + name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")


def merged(base: Tensors, trained: Tensors, scale: float) -> Tensors:
    """The tuned matrices: ``weight.*`` as stored, or W0 + scale * B A, in float32."""
    full = {name.removeprefix("weight."): tensor for name, tensor in trained.items() if name.startswith("weight.")}
    if full:
        return {name: full[name] for name in base if name in full}  # safetensors sorts by name; W0 is in model order
    return {name: weight + scale * (trained[f"lora_B.{name}"] @ trained[f"lora_A.{name}"])
            for name, weight in base.items() if f"lora_A.{name}" in trained}


def load_into(model: nn.Module, matrices: Tensors, trained: Tensors | None = None) -> nn.Module:
    """Put merged matrices, and the head where given, into a plain model of the same base."""
    modules = tuned_modules(model)
    with torch.no_grad():
        for name, weight in matrices.items():
            modules[name].weight.copy_(weight)
        parameters = dict(model.named_parameters())
        for name, tensor in (trained or {}).items():
            if name.startswith("head."):
                parameters[name.removeprefix("head.")].copy_(tensor)
    return model
