"""A masked-LM's readout fitted anew on a frozen body: what of a pseudo-loss the body lost, and what was only misread.

Pseudo-loss is read through the head that was trained with the base. A body that merely turned or stretched its output
pays there although it has lost nothing. So its states are brought back by one affine map, fitted by least squares to
the base's states of the same masked text, and the base's own head reads on from there. The map melts into the head's
first linear layer, so it is a refitted head of the same form; it has one answer and no learning rate, and for the base
itself it is the identity. What it takes back was the readout's; what is left the body has lost, or keeps in a way that
no linear map gives back.

Trained by cross-entropy instead, transform and bias overfit what text there is: of a fully fine-tuned laptop run (news
topics, rate 1.25e-4, 11,000 masked tokens) the head's own loss was 8.56 nats per token, the map's 5.81, and that of
three epochs from there 5.88, 5.88 and 5.92; the base's went from 5.36 to 5.37, 5.38 and 5.39.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from utils.errors import CourseError
from utils.evaluation.pseudo import by_passage, masked_batches, token_losses
from utils.training.masked_lm import RECIPE, masked_lm_head, token_blocks

RIDGE = 0.01  # of the states' mean variance; 1e-3 to 1e-1 differ by up to 0.04 nats per token at 1,200 masked tokens
BATCH = 48


class Affine(NamedTuple):
    """x -> x @ weight + bias, of shapes (D, D) and (D,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """The states (…, D) mapped."""
        return states @ self.weight + self.bias


def affine_map(states: torch.Tensor, targets: torch.Tensor, *, ridge: float = RIDGE) -> Affine:
    """The affine map from states to targets by least squares, shrunk towards doing nothing.

    Parameters
    ----------
    states, targets : torch.Tensor of shape (N, D)
        Of the same texts at the same places.
    ridge : float
        Weight of the squared distance from the identity, per row and in units of the states' mean variance.

    Raises
    ------
    CourseError
        If the shapes differ, there are fewer than two rows, or values are not finite.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
    >>> affine_map(x, x).weight
    tensor([[1., 0.],
            [0., 1.]])
    """
    if states.shape != targets.shape or states.ndim != 2 or len(states) < 2:
        raise CourseError(f"A map is fitted on two rows or more of one shape, but states are {tuple(states.shape)} and "
                          f"targets {tuple(targets.shape)}.")
    if not (states.isfinite().all() and targets.isfinite().all()):
        raise CourseError("The body's states hold NaN or infinite values, so no readout can be fitted on it; its "
                          "training diverged.")
    x, y = states.double(), targets.double()
    middle, aim = x.mean(0), y.mean(0)
    x, y = x - middle, y - aim
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = identity + torch.linalg.solve(x.T @ x + ridge * len(x) * x.square().mean() * identity, x.T @ (y - x))
    return Affine(weight.to(states), (aim - middle @ weight).to(states))


def held_in_batches(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, blocks: int, length: int
                    ) -> list[dict[str, torch.Tensor]]:
    """Blocks of a text in which the base's own share of tokens is masked, always the same: what a readout is fitted on.

    Parameters
    ----------
    blocks : int
        At most so many; fewer where the texts have no more.
    length : int
        Tokens of a block, begin and end included.
    """
    made = token_blocks(list(texts), tokenizer, length)
    chosen = made.select(range(min(blocks, len(made))))
    if not len(chosen):
        raise CourseError(f"{len(texts)} texts have not one block of {length} tokens to fit a readout on; give more.")
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RECIPE["mask_probability"],
                                              mask_replace_prob=1.0, random_replace_prob=0.0, seed=0)
    return [collate([chosen[place] for place in range(start, min(start + BATCH, len(chosen)))])
            for start in range(0, len(chosen), BATCH)]


@torch.no_grad()
def masked_states(model: nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The body's last states at the masked places of :func:`held_in_batches`; (N, D), in their order."""
    _require_evaluation(model)
    return torch.cat([_states(model, batch["input_ids"], batch["attention_mask"], where=batch["labels"] != -100)
                      for batch in batches])


@torch.no_grad()
def pseudo_losses(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int,
                  readouts: dict[str, Affine | None]) -> dict[str, pd.DataFrame]:
    """:func:`utils.evaluation.pseudo.pseudo_loss` through each of several readouts, in one pass over the body.

    Parameters
    ----------
    texts, tokens
        As there.
    readouts : dict of str to Affine or None
        What stands between the body and the model's own head; None for nothing.
    """
    _require_evaluation(model)
    head, losses = masked_lm_head(model), {name: [] for name in readouts}
    for batch in masked_batches(tokenizer, texts, tokens=tokens):
        states = _states(model, batch.ids, batch.attention, where=batch.where)
        for name, readout in readouts.items():
            losses[name].append(token_losses(head(states if readout is None else readout(states)), batch))
    return {name: by_passage(parts) for name, parts in losses.items()}


def _states(model: nn.Module, ids: torch.Tensor, attention: torch.Tensor, *, where: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    hidden_B_T_D = model.base_model(input_ids=ids.to(device), attention_mask=attention.to(device)).last_hidden_state
    return hidden_B_T_D[where.to(device)]


def _require_evaluation(model: nn.Module) -> None:
    if model.training:
        raise CourseError("A readout is fitted and read on a frozen body: call model.eval() first, since dropout would "
                          "make its states random.")
