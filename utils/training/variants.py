"""LoRA and its variants through PEFT: the configuration of each, and its update as a product of two factors.

Whatever a variant stores, its update has low rank, so every variant is kept in one form: (B, A) with
Wt = W0 + scale * B A. Variants that rewrite the base weight (PiSSA) get the part that they took out of it as further
columns and rows, since Wt - W0 = scale * (B A - B_0 A_0) = scale * [B, -B_0] [A; A_0].
"""

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import TrainerCallback

from utils.errors import UsageError
from utils.training.spec import Method
from utils.training.targets import tuned_modules

LORA_PLUS_RATIO = 16  # B's learning rate over A's: the LoRA+ paper's advice and its authors' default
ADALORA_INITIAL = 1.5  # AdaLoRA starts with this many times r directions and prunes to r on average: PEFT's 12 for 8
Factors = tuple[torch.Tensor, torch.Tensor]


def adapter_config(method: Method, *, steps: int | None, **common) -> PeftConfig:
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
        return VeraConfig(r=method.r, **common)
    if method.variant == "adalora":
        if not steps:
            raise UsageError("AdaLoRA's budget schedule needs the number of training steps; give 'steps'.")
        # PEFT's schedule has no phases unless told; a tenth of warm-up and a fifth of calm follow its paper's shape.
        return AdaLoraConfig(init_r=round(ADALORA_INITIAL * method.r), target_r=method.r, lora_alpha=method.lora_alpha,
                             total_step=steps, tinit=steps // 10, tfinal=steps // 5, deltaT=max(1, steps // 50),
                             **common)
    return LoraConfig(r=method.r, lora_alpha=method.lora_alpha, use_rslora=method.rank_stabilised, lora_dropout=0.0,
                      bias="none", init_lora_weights="pissa" if method.variant == "pissa" else True, **common)


def wrap(model: nn.Module, method: Method, config: PeftConfig) -> nn.Module:
    """The model with its adapter, and ``initial_factors`` where the adapter rewrote the base weight."""
    wrapped = get_peft_model(model, config)
    modules = tuned_modules(wrapped)
    if method.variant == "b_only":
        for module in modules.values():
            a = module.lora_A["default"].weight
            if a.shape[0] > a.shape[1]:
                raise UsageError(f"A of rank {a.shape[0]} cannot have orthonormal rows of width {a.shape[1]}; choose a "
                                 "rank up to the width.")
            nn.init.orthogonal_(a)
            a.requires_grad_(False)
    wrapped.initial_factors = {}
    if method.variant == "pissa":
        for name, module in modules.items():
            if (width := _lora_pair(module)[1].shape[0]) < method.r:
                raise UsageError(f"PiSSA of rank {method.r} starts from as many directions of W0, but {name} has only "
                                 f"{width}; choose a rank up to that.")
        wrapped.initial_factors = {name: tuple(part.detach().clone() for part in _lora_pair(module))
                                   for name, module in modules.items()}
    return wrapped


def update_factors(model: nn.Module, method_scale: float) -> dict[str, Factors]:
    """(B, A) of every adapted matrix with Wt = W0 + method_scale * B A; (out, r') and (r', in), float32.

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
        found[name] = (b, a)
    return found


def _lora_pair(module: nn.Module) -> Factors:
    return module.lora_B["default"].weight, module.lora_A["default"].weight


def _vera_pair(module: nn.Module) -> Factors:
    out, width = module.get_base_layer().weight.shape
    b, a = module.vera_B["default"][:out], module.vera_A["default"][:, :width]
    return module.vera_lambda_b["default"][:, None] * b, module.vera_lambda_d["default"][:, None] * a


def optimiser_of(model: nn.Module, method: Method, arguments: dict) -> torch.optim.Optimizer | None:
    """The variant's own optimiser, or None where Trainer's serves."""
    if method.variant != "lora_plus":
        return None
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=arguments["learning_rate"], weight_decay=0.0,
                                     loraplus_lr_ratio=LORA_PLUS_RATIO)


class AllocateRanks(TrainerCallback):
    """AdaLoRA's pruning, between the optimiser's step and the clearing of the gradients, as PEFT asks."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.base_model.update_and_allocate(state.global_step + 1)
