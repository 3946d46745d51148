"""First factors that start from the base weight or its gradient, where PEFT has none or another one.

Each takes its product out of the base weight, so that the model's output is W0's before the first step. PEFT's own
(PiSSA, OLoRA) do the same; how an update is told from its start is in :mod:`utils.training.variants`.
"""

from collections.abc import Callable

import torch
from torch import nn

from utils.errors import UsageError
from utils.low_rank import LowRankUpdate
from utils.training.spec import LABELS
from utils.training.targets import Layer

STABLE_GAMMA = 16  # LoRA-GA's own for small models, and the study's


def minor_factors(weight: torch.Tensor, r: int, scale: float) -> LowRankUpdate:
    """MiLoRA: the r smallest singular triplets of W0, their values shared evenly; (out, r) and (r, in).

    Parameters
    ----------
    weight : torch.Tensor of shape (out, in)
        W0.
    r : int
    scale : float
        What the product is multiplied by.

    References
    ----------
    Wang et al., "MiLoRA", arXiv 2406.09044.

    Examples
    --------
    >>> b, a, _ = minor_factors(torch.diag(torch.tensor([3.0, 2.0, 1.0])), r=1, scale=1.0)
    >>> (b @ a).diagonal().tolist()
    [0.0, 0.0, 1.0]
    """
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[-r:] / scale).sqrt()
    return LowRankUpdate(u[:, -r:] * root, root[:, None] * vh[-r:], scale)


def uniform_factors(weight: torch.Tensor, r: int, scale: float) -> LowRankUpdate:
    """Init[AB]: both factors uniform within 1 / sqrt(fan in) of their own layer; (out, r) and (r, in).

    Parameters
    ----------
    weight : torch.Tensor of shape (out, in)
        W0, of which only shape, type and device count.
    r : int
    scale : float
        What the product is multiplied by.

    References
    ----------
    Li et al., "Beyond Zero Initialization", arXiv 2505.23194; the study's own code.
    """
    b, a = weight.new_empty(weight.shape[0], r), weight.new_empty(r, weight.shape[1])
    nn.init.uniform_(b, -(r**-0.5), r**-0.5)
    nn.init.uniform_(a, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
    return LowRankUpdate(b, a, scale)


def gradient_factors(gradient: torch.Tensor, r: int, scale: float) -> LowRankUpdate:
    """LoRA-GA: A the first r right singular vectors of W0's gradient, B the next r left ones, both scaled.

    Both factors are multiplied by out^(1/4) / gamma^(1/2), as its paper and its authors' code have it. PEFT 0.21 scales
    B alone and by the gradient's singular values besides, which makes another start (``lora_ga_peft``).

    Parameters
    ----------
    gradient : torch.Tensor of shape (out, in)
        Of the loss by W0.
    r : int
        Up to half the smaller side.
    scale : float
        What the product is multiplied by.

    References
    ----------
    Wang et al., "LoRA-GA", arXiv 2407.05000, section 3 ("ArB2r", scale "stable").
    """
    u, _, vh = torch.linalg.svd(gradient.float(), full_matrices=False)
    stable = gradient.shape[0] ** 0.25 / STABLE_GAMMA**0.5
    return LowRankUpdate(u[:, r:2 * r] * stable, vh[:r] * stable, scale)


def base_gradients(model: nn.Module, modules: dict[str, Layer], backward: Callable[[nn.Module], None]) -> dict:
    """The gradient of each module's base weight, summed over what `backward` runs; nothing else gets one.

    Parameters
    ----------
    model : nn.Module
    modules : dict of str to nn.Module
        Linear layers of the model, by name.
    backward : callable
        Takes the model and calls ``backward`` on one or more losses.

    Returns
    -------
    dict of str to torch.Tensor
        By name, (out, in). No parameter of the model keeps a gradient.
    """
    parameters = list(model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    model.requires_grad_(False)
    for module in modules.values():
        module.weight.requires_grad_(True)
    backward(model)
    found = {name: module.weight.grad.detach().clone() for name, module in modules.items()}
    for parameter, needed in zip(parameters, wanted, strict=True):
        parameter.grad = None
        parameter.requires_grad_(needed)
    return found


def put_in(module: Layer, start: LowRankUpdate) -> None:
    """Give an adapted module its first factors and take scale * B A out of its base weight."""
    b, a, scale = start
    with torch.no_grad():
        module.lora_B["default"].weight.copy_(b)
        module.lora_A["default"].weight.copy_(a)
        base = module.get_base_layer().weight
        base -= (scale * (b.float() @ a.float())).to(base.dtype)


NEEDS = {  # variant -> the least width that a rank needs, and what for
    "pissa": (1, "as many directions of W0"), "olora": (1, "as many columns of W0's QR decomposition"),
    "milora": (1, "as many directions of W0"), "lora_ga": (2, "twice as many directions of the gradient"),
    "lora_ga_peft": (2, "twice as many directions of the gradient")}
GRALORA_PARTS = 2  # PEFT's default


def check_shapes(variant: str, r: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """UsageError, in one sentence, if a variant of this rank does not fit a matrix.

    Parameters
    ----------
    variant : str
    r : int
    shapes : dict of str to tuple of int
        (out, in) of every matrix that is to be adapted, by name.
    """
    times, reason = NEEDS.get(variant, (0, ""))
    for name, shape in shapes.items():
        if min(shape) < times * r:
            raise UsageError(f"{LABELS[variant]} of rank {r} starts from {reason}, but {name} has only {min(shape)}; "
                             f"choose a rank up to {min(shape) // times}.")
        if variant == "gralora" and (any(side % GRALORA_PARTS for side in shape) or r % GRALORA_PARTS):
            raise UsageError(f"GraLoRA cuts a matrix into {GRALORA_PARTS} x {GRALORA_PARTS} blocks, but {name} is "
                             f"{shape[0]} x {shape[1]} and the rank {r}; all three must be divisible by "
                             f"{GRALORA_PARTS}.")
