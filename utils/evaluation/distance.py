"""How far a tuned model has moved from its base, measured in what it predicts."""

from collections.abc import Iterable

import torch
from torch import nn

from utils.errors import CourseError


@torch.no_grad()
def kl_from_base(base: nn.Module, tuned: nn.Module, batches: Iterable[dict]) -> dict:
    """Mean KL(base || tuned) of the next-token distributions, in nats per predicted token.

    Parameters
    ----------
    base, tuned : nn.Module
        Causal models of one vocabulary, in evaluation mode.
    batches : iterable of dict
        As for :func:`utils.training.metrics.causal_loss`; the positions whose next label is -100 are not counted.

    Returns
    -------
    dict
        ``kl_nats_per_token`` and ``tokens``.

    References
    ----------
    "RL's Razor", arXiv 2509.04259: forgetting follows this distance on the new task, whatever the method.
    """
    total, tokens, device = 0.0, 0, next(tuned.parameters()).device
    for batch in batches:
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        counted = batch["labels"][:, 1:].to(device) != -100
        before, after = (model(**inputs).logits[:, :-1][counted].float().log_softmax(-1) for model in (base, tuned))
        total += (before.exp() * (before - after)).sum().item()
        tokens += int(counted.sum())
    if tokens == 0:
        raise CourseError("No token is left to measure a distance on; give longer texts.")
    return {"kl_nats_per_token": total / tokens, "tokens": tokens}
