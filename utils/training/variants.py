"""LoRA and its variants through PEFT: the configuration of each, and its update as a product of two factors.

Where an update has low rank, it is kept in one form: (B, A) with Wt = W0 + scale * B A. Variants that rewrite the
base weight (PiSSA and its like) get the part that they took out of it as further columns and rows, since
Wt - W0 = scale * (B A - B_0 A_0) = scale * [B, -B_0] [A; A_0]. Where it has not (DoRA, GraLoRA, RandLoRA), the merged
weight is kept, as PEFT merges it.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    GraloraConfig,
    LoraConfig,
    LoraGAConfig,
    PeftConfig,
    PeftModel,
    RandLoraConfig,
    VeraConfig,
    get_peft_model,
)
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.errors import UsageError
from utils.low_rank import LowRankUpdate
from utils.training.initialisations import (
    GRALORA_PARTS,
    STABLE_GAMMA,
    base_gradients,
    check_shapes,
    gradient_factors,
    minor_factors,
    put_in,
    uniform_factors,
)
from utils.training.loft import LoFT
from utils.training.spec import Method
from utils.training.targets import Layer, tuned_modules

LORA_PLUS_RATIO = 16  # B's learning rate over A's: the LoRA+ paper's advice and its authors' default
ADALORA_INITIAL = 1.5  # AdaLoRA starts with this many times r directions and prunes to r on average: PEFT's 12 for 8
RANDLORA_SCALE = 20  # randlora_alpha over its rank: PEFT's advice
LOFT_CLIP = 1.0  # on the projected full gradient, in place of a clip on the factors' own
REWRITE = ("pissa", "olora", "milora", "init_ab", "lora_ga", "lora_ga_peft")  # take their start out of W0
PEFT_STARTS = {"pissa": "pissa", "olora": "olora", "lora_ga_peft": "lora_ga"}
DENSE = ("dora", "gralora", "randlora")  # no product of two thin factors
Backward = Callable[[nn.Module], None]


def adapter_config(method: Method, *, steps: int | None, **common: Any) -> PeftConfig:
    """PEFT's configuration of a method; library defaults wherever the method says nothing.

    Parameters
    ----------
    steps : int or None
        Length of the training, which AdaLoRA's budget schedule needs.
    **common
        ``target_modules``, ``modules_to_save``, ``task_type``.

    References
    ----------
    PiSSA arXiv 2404.02948, AdaLoRA 2303.10512, VeRA 2310.11454, LoRA+ 2402.12354; arXiv 2410.21228v3, Figs 10 and 23.
    """
    if method.variant == "vera":
        return VeraConfig(r=method.rank, **common)
    if method.variant == "adalora":
        if not steps:
            raise UsageError("AdaLoRA's budget schedule needs the number of training steps; give 'steps'.")
        # PEFT's schedule has no phases unless told; a tenth of warm-up and a fifth of calm follow its paper's shape.
        return AdaLoraConfig(init_r=round(ADALORA_INITIAL * method.rank), target_r=method.rank,
                             lora_alpha=method.lora_alpha, total_step=steps, tinit=steps // 10, tfinal=steps // 5,
                             deltaT=max(1, steps // 50), **common)
    if method.variant == "gralora":
        return GraloraConfig(r=method.rank, alpha=method.lora_alpha, gralora_k=GRALORA_PARTS, hybrid_r=0,
                             gralora_dropout=0.0, **common)
    if method.variant == "randlora":
        return RandLoraConfig(r=method.rank, randlora_alpha=RANDLORA_SCALE * method.rank, randlora_dropout=0.0,
                              **common)
    start = PEFT_STARTS.get(method.variant, True)
    by_gradient = LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=STABLE_GAMMA)
    return LoraConfig(r=method.rank, lora_alpha=method.lora_alpha, use_rslora=method.rank_stabilised, lora_dropout=0.0,
                      bias="none", init_lora_weights=start,
                      lora_ga_config=by_gradient if start == "lora_ga" else None, use_dora=method.variant == "dora",
                      **common)


def wrap(model: nn.Module, method: Method, config: PeftConfig, *, backward: Backward | None = None) -> nn.Module:
    """The model with its adapter, and ``initial_factors`` where the adapter rewrote the base weight.

    Parameters
    ----------
    backward : callable, optional
        Takes the model and accumulates the loss's gradient over a few training batches, which LoRA-GA starts from.

    Raises
    ------
    UsageError
        If the model's shapes do not allow the variant at this rank, or LoRA-GA has no gradient to start from.
    """
    plain = tuned_modules(model, method.targets)
    check_shapes(method.variant, method.rank, {name: tuple(module.weight.shape) for name, module in plain.items()})
    gradients: dict[str, torch.Tensor] = {}
    if method.variant in ("lora_ga", "lora_ga_peft"):
        if backward is None:
            raise UsageError("LoRA-GA starts from the loss's gradient; give a training task, not a bare model.")
        if method.variant == "lora_ga":
            gradients = base_gradients(model, plain, backward)
        else:
            with warnings.catch_warnings():  # its hooks on the first layer, whose input needs no gradient
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                preprocess_loraga(model, config, partial(backward, model))
    wrapped = get_peft_model(model, config)
    modules = {name: module for name, module in tuned_modules(wrapped).items() if hasattr(module, "base_layer")}
    if method.variant == "b_only":
        _freeze_orthonormal(modules)
    for name, module in modules.items():
        if start := _own_start(method, module, gradients.get(name)):
            put_in(module, start)
    wrapped.initial_factors = {name: tuple(part.detach().clone() for part in _lora_pair(module))
                               for name, module in modules.items()} if method.variant in REWRITE else {}
    return wrapped


def _own_start(method: Method, module: Layer, gradient: torch.Tensor | None) -> LowRankUpdate | None:
    """First factors that are not PEFT's, or None."""
    if method.variant == "milora":
        return minor_factors(module.get_base_layer().weight.detach(), method.rank, method.scale)
    if method.variant == "init_ab":
        return uniform_factors(module.get_base_layer().weight.detach(), method.rank, method.scale)
    if method.variant == "lora_ga" and gradient is not None:
        return gradient_factors(gradient, method.rank, method.scale)
    return None


def _freeze_orthonormal(modules: dict[str, Layer]) -> None:
    for module in modules.values():
        a = module.lora_A["default"].weight
        if a.shape[0] > a.shape[1]:
            raise UsageError(f"A of rank {a.shape[0]} cannot have orthonormal rows of width {a.shape[1]}; choose a "
                             "rank up to the width.")
        nn.init.orthogonal_(a)
        a.requires_grad_(False)


def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The merged weight of every adapted matrix, (out, in): PEFT's own merge, on a copy of one module at a time."""
    found = {}
    for name, module in tuned_modules(model).items():
        if hasattr(module, "base_layer"):
            copied = copy.deepcopy(module)
            copied.merge()
            found[name] = copied.get_base_layer().weight
    return found


def update_factors(model: PeftModel, method_scale: float) -> dict[str, LowRankUpdate]:
    """The update of every adapted matrix, Wt - W0 = method_scale * B A; (out, r') and (r', in), float32.

    r' is 2r where the base weight was rewritten.
    """
    found = {}
    for name, module in tuned_modules(model).items():
        if not hasattr(module, "base_layer"):
            continue  # not among the method's targets
        if hasattr(module, "vera_lambda_b"):
            b, a = _vera_pair(module)
        elif hasattr(module, "lora_E"):
            b, a = module.lora_B["default"], module.lora_A["default"] * module.lora_E["default"]
            a = a * (module.scaling["default"] / (module.ranknum["default"].item() + 1e-5) / method_scale)
        else:
            b, a = _lora_pair(module)
            if name in model.initial_factors:
                b_0, a_0 = (part.to(b.device) for part in model.initial_factors[name])  # no buffers: left behind
                b, a = torch.cat([b, -b_0], dim=1), torch.cat([a, a_0])
        found[name] = LowRankUpdate(b, a, method_scale)
    return found


def _lora_pair(module: Layer) -> tuple[nn.Parameter, nn.Parameter]:
    return module.lora_B["default"].weight, module.lora_A["default"].weight


def _vera_pair(module: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    out, width = module.get_base_layer().weight.shape
    b, a = module.vera_B["default"][:out], module.vera_A["default"][:, :width]
    return module.vera_lambda_b["default"][:, None] * b, module.vera_lambda_d["default"][:, None] * a


def optimiser_of(model: nn.Module, method: Method, arguments: dict) -> torch.optim.Optimizer | None:
    """The variant's own optimiser, or None where Trainer's serves.

    Parameters
    ----------
    model : nn.Module
        With its adapter.
    method : Method
    arguments : dict
        With ``learning_rate``.
    """
    if method.variant == "loft":
        pairs = [(*_lora_pair(module), method.scale) for module in tuned_modules(model).values()
                 if hasattr(module, "base_layer")]
        paired = {id(factor) for b, a, _ in pairs for factor in (b, a)}
        others = [parameter for parameter in model.parameters()
                  if parameter.requires_grad and id(parameter) not in paired]
        return LoFT(pairs, lr=arguments["learning_rate"], max_norm=LOFT_CLIP, others=others)
    if method.variant != "lora_plus":
        return None
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=arguments["learning_rate"], weight_decay=0.0,
                                     loraplus_lr_ratio=LORA_PLUS_RATIO)


class AllocateRanks(TrainerCallback):
    """AdaLoRA's pruning, between the optimiser's step and the clearing of the gradients, as PEFT asks."""

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
                          model: Any, **kwargs: Any) -> None:
        """Move the budget on by one step."""
        model.base_model.update_and_allocate(state.global_step + 1)
