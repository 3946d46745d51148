"""The causal loss as something to differentiate: which parameters, which tokens, and in what state of the model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.errors import CourseError, UsageError

ATTENTIONS = ("eager", "sdpa")  # sdpa runs as plain products here: its fused kernels have no second derivative
Batches = list[dict[str, torch.Tensor]]


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Everything that trains, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def module_parameters(model: nn.Module, module_name: str) -> list[nn.Parameter]:
    """Everything that trains under one module, whatever the adapter calls it: A and B, magnitudes, scales.

    Parameters
    ----------
    module_name : str
        The end of its name, such as ``layers.0.self_attn.q_proj``.
    """
    return adapter_parameters(only_module(model, module_name))


def only_module(model: nn.Module, module_name: str) -> nn.Module:
    """The one module of that name; UsageError if there is none, or several, or nothing of it trains."""
    found = [module for name, module in model.named_modules() if f".{name}".endswith(f".{module_name}")]
    if len(found) != 1 or not adapter_parameters(found[0]):
        raise UsageError(f"Expected one module called '{module_name}' with parameters that train, got {len(found)} of "
                         "that name; do give a name such as layers.0.self_attn.q_proj.")
    return found[0]


def token_count(batches: Batches) -> int:
    """Predicted tokens of all batches together; CourseError if there are none."""
    tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    if tokens == 0:
        raise CourseError("Expected one or more predicted tokens, got none; do give longer texts or a larger "
                          "max_length.")
    return tokens


def counted_logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, V) that are counted, and their targets (n,): position t is compared with the token at t + 1."""
    device = next(model.parameters()).device
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device),
                       use_cache=False).logits
    target = batch["labels"][:, 1:].to(device)
    counted = target != -100
    return logits[:, :-1][counted], target[counted]


@contextmanager
def differentiated(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, and gradients for `parameters` alone; both are put back."""
    was_training, before = model.training, [(one, one.requires_grad) for one in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        model.train(was_training)
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def second_derivatives() -> Iterator[None]:
    """One sentence instead of torch's, where some layer can be differentiated only once."""
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error) and "once_differentiable" not in str(error):
            raise
        raise CourseError("Expected a model that can be differentiated twice, but one of its layers (most often a fused"
                          " attention) cannot; do load it with attn_implementation='eager'.") from error


def check_attention(model: nn.Module) -> None:
    """CourseError if the attention that the model was loaded with has no second derivative."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"
    if attention not in ATTENTIONS:
        raise CourseError(f"Expected a model whose attention can be differentiated twice ({' or '.join(ATTENTIONS)}), "
                          f"got '{attention}'; do load it with attn_implementation='eager'.")
