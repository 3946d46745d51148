"""The trained tensors of a model, in and out, under names that do not depend on how the model was wrapped.

``lora_A.<matrix>`` and ``lora_B.<matrix>`` for LoRA and its variants (the factors of Wt - W0), ``weight.<matrix>`` for
full fine-tuning and for the variants whose update has no thin factors (with ``adapter.<parameter>``, what they trained,
beside it), ``head.<parameter>`` for the classifier; ``<matrix>`` is the short name of :mod:`utils.training.targets`.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from peft import PeftModel, TaskType
from torch import nn
from transformers import AutoModel

from utils.errors import UsageError
from utils.training.alone import Alone
from utils.training.spec import Method
from utils.training.targets import HEADS, lora_pattern, model_type, tuned_modules
from utils.training.variants import DENSE, Backward, adapter_config, merged_weights, update_factors, wrap

Tensors = dict[str, torch.Tensor]


@lru_cache(maxsize=2)
def base_matrices(folder: Path) -> Tensors:
    """W0 of every tuned matrix as float32, by short name, from the untouched checkpoint.

    Read from disk and not from a wrapped model: PiSSA, OLoRA and their like rewrite the wrapped base weight.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    return {name: module.weight.detach().clone() for name, module in tuned_modules(model).items()}


def prepare(model: nn.Module, method: Method, *, causal: bool, steps: int | None = None,
            backward: Backward | None = None) -> nn.Module:
    """Make exactly the method's parameters trainable: what the first paper trains.

    Full fine-tuning trains the tuned matrices and the head; biases, LayerNorm and embeddings stay frozen, as in the
    authors' code since its fix of March 2025. LoRA and its variants train their factors and the head; `backward` is
    what LoRA-GA takes its gradient from.

    Parameters
    ----------
    model : nn.Module
        As transformers loads it.
    method : Method
    causal : bool
        A language model, without a head of its own; a classifier otherwise.
    steps : int, optional
        Length of the training, for AdaLoRA.
    backward : callable, optional
        For LoRA-GA, as in :func:`utils.training.variants.wrap`.
    """
    architecture = model_type(model)
    heads = () if causal else HEADS.get(architecture, ("score",))
    if method.kind == "lora":
        chosen = lora_pattern(architecture) if method.targets == "all" else list(tuned_modules(model, method.targets))
        config = adapter_config(method, steps=steps, target_modules=chosen,
                                modules_to_save=list(heads) or None,
                                task_type=TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS)
        return wrap(model, method, config, backward=backward)
    trained = {id(module.weight) for module in tuned_modules(model, method.targets).values()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trained or any(part in heads for part in name.split(".")))
    return model


def trained_tensors(model: nn.Module, scale: float = 1.0, *,
                    copy: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Tensors:
    """Every trained tensor of a prepared model as float32 on the CPU; adapters as factors of (Wt - W0) / `scale`.

    `copy` makes such a tensor of a parameter; where several processes hold the model together, it is theirs.
    """
    copy = copy or Alone().whole
    modules, found = tuned_modules(model), {}
    if isinstance(model, PeftModel) and _is_dense(model):
        found = {f"weight.{name}": copy(weight) for name, weight in merged_weights(model).items()}
    elif isinstance(model, PeftModel):
        for name, (b, a, _) in update_factors(model, scale).items():
            found |= {f"lora_A.{name}": copy(a), f"lora_B.{name}": copy(b)}
    else:
        found = {f"weight.{name}": copy(module.weight) for name, module in modules.items()
                 if module.weight.requires_grad}
    matrices = {id(module.weight) for module in modules.values()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in matrices:
            continue
        if not any(part in name for part in ("lora_", "vera_")):
            found[head_name(name)] = copy(parameter)
        elif isinstance(model, PeftModel) and _is_dense(model):
            found[f"adapter.{name}"] = copy(parameter)
    return found


def restore_adapter(model: PeftModel, trained: Tensors) -> PeftModel:
    """Give a newly wrapped model of the same method and seed the adapter that `trained` holds.

    For the variants that are kept as two factors and for those that keep their own parameters; the head is left alone.

    Raises
    ------
    UsageError
        For AdaLoRA and VeRA, whose own parameters are in no checkpoint.
    """
    own = {name.removeprefix("adapter."): tensor for name, tensor in trained.items() if name.startswith("adapter.")}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in own.items():
            parameters[name].copy_(tensor)
        for name, module in ({} if own else tuned_modules(model)).items():
            if hasattr(module, "base_layer"):
                if not hasattr(module, "lora_B") or hasattr(module, "lora_E"):
                    raise UsageError("An adapter is restored for LoRA and the variants with its two factors, not for "
                                     f"{model.peft_config['default'].peft_type.value}.")
                r = module.lora_A["default"].weight.shape[0]  # of a variant that rewrote W0, the first r are its own
                module.lora_A["default"].weight.copy_(trained[f"lora_A.{name}"][:r])
                module.lora_B["default"].weight.copy_(trained[f"lora_B.{name}"][:, :r])
    return model


def _is_dense(model: PeftModel) -> bool:
    config = model.peft_config["default"]
    return config.peft_type.lower() in DENSE or getattr(config, "use_dora", False)


def head_name(name: str) -> str:
    """What a head's parameter is stored as, however PEFT wrapped it.

    >>> head_name("base_model.model.classifier.modules_to_save.default.weight")
    'head.classifier.weight'
    """
    return "head." + name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")


def merged(base: Tensors, trained: Tensors, scale: float) -> Tensors:
    """The tuned matrices: ``weight.*`` as stored, or W0 + scale * B A, in float32.

    Parameters
    ----------
    base : dict of str to torch.Tensor
        W0 by short name, (out, in).
    trained : dict of str to torch.Tensor
        As :func:`trained_tensors` returns them.
    scale : float
        Of the product of the factors.
    """
    full = {name.removeprefix("weight."): tensor for name, tensor in trained.items() if name.startswith("weight.")}
    if full:
        return {name: full[name] for name in base if name in full}  # safetensors sorts by name; W0 is in model order
    return {name: weight + scale * (trained[f"lora_B.{name}"] @ trained[f"lora_A.{name}"])
            for name, weight in base.items() if f"lora_A.{name}" in trained}


def load_into(model: nn.Module, matrices: Tensors, trained: Tensors | None = None) -> nn.Module:
    """Put merged matrices, and the head where given, into a plain model of the same base.

    Parameters
    ----------
    model : nn.Module
        Plain, without an adapter; changed in place and returned.
    matrices : dict of str to torch.Tensor
        By short name, (out, in).
    trained : dict of str to torch.Tensor, optional
        Of which the ``head.*`` tensors are taken.
    """
    modules = tuned_modules(model)
    with torch.no_grad():
        for name, weight in matrices.items():
            modules[name].weight.copy_(weight)
        parameters = dict(model.named_parameters())
        for name, tensor in (trained or {}).items():
            if name.startswith("head."):
                parameters[name.removeprefix("head.")].copy_(tensor)
    return model
