"""What is measured while a run trains: accuracy and causal language-model loss. Model in, number out, no I/O."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from utils.errors import CourseError

Measure = Callable[[nn.Module], dict]  # what is measured of a run at its checkpoints


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Give a model the forward pass back that accelerate has wrapped in mixed precision, as long as the context lasts.

    An autocast that is switched off around the model would be switched on again within it.
    """
    wrapped, own = (model.__dict__.get(name) for name in ("forward", "_original_forward"))
    if wrapped is None or own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = wrapped


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true labels of a classifier over batches; the model's mode is put back.

    Parameters
    ----------
    model : nn.Module
        Takes ``input_ids`` and ``attention_mask`` (B, T) and returns an object with ``logits`` (B, C).
    batches : iterable of dict
        Each with ``input_ids``, ``attention_mask`` and ``labels`` (B,).

    Returns
    -------
    tuple of torch.Tensor
        Two int64 vectors of one length, on the CPU.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    predicted, true = [], []
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        predicted.append(model(**inputs).logits.argmax(-1).cpu())
        true.append(batch["labels"])
    model.train(was_training)
    return torch.cat(predicted), torch.cat(true)


def accuracy(predicted: torch.Tensor, true: torch.Tensor) -> dict:
    """Share of equal labels with its binomial standard error.

    Returns
    -------
    dict
        ``accuracy`` in 0 … 1, ``accuracy_se`` = sqrt(p (1 - p) / n), ``n``.

    Examples
    --------
    >>> accuracy(torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 0, 1]))["accuracy"]
    0.75
    """
    n = len(true)
    share = (predicted == true).double().mean().item()
    return {"accuracy": share, "accuracy_se": math.sqrt(share * (1 - share) / n), "n": n}


@torch.no_grad()
def token_accuracy(model: nn.Module, batches: Iterable[dict]) -> dict:
    """Share of tokens that a causal model thinks most likely given all tokens before them.

    Returns
    -------
    dict
        ``token_accuracy`` in 0 … 1 and ``token_accuracy_se``, binomial, over the positions not labelled -100; errors in
        one text are not independent, so the true one is larger.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    right = tokens = 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"].to(device),
                       attention_mask=batch["attention_mask"].to(device)).logits
        target = batch["labels"][:, 1:].to(device)
        counted = target != -100
        right += int((logits[:, :-1].argmax(-1) == target)[counted].sum())
        tokens += int(counted.sum())
    model.train(was_training)
    share = right / tokens
    return {"token_accuracy": share, "token_accuracy_se": math.sqrt(share * (1 - share) / tokens)}


@torch.no_grad()
def causal_loss(model: nn.Module, batches: Iterable[dict]) -> dict:
    """Causal language-model loss in nats per predicted token.

    The label of position t is the token at t + 1: logits at t are compared with ``labels[:, t + 1]``. A famous
    benchmark once left this shift out and measured how well a model copies its input.

    Parameters
    ----------
    model : nn.Module
        Returns an object with ``logits`` (B, T, V).
    batches : iterable of dict
        ``input_ids``, ``attention_mask`` and ``labels`` (B, T); positions labelled -100 are not counted.

    Returns
    -------
    dict
        ``loss_nats_per_token`` and ``tokens``, the number of positions that were counted.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"].to(device),
                       attention_mask=batch["attention_mask"].to(device)).logits
        target = batch["labels"][:, 1:].to(device)
        total += cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten(), ignore_index=-100,
                               reduction="sum").item()
        tokens += int((target != -100).sum())
    model.train(was_training)
    if tokens == 0:
        raise CourseError("No token is left to measure a causal loss on; give longer texts or a larger max_length.")
    return {"loss_nats_per_token": total / tokens, "tokens": tokens}
