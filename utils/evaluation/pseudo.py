"""Pseudo-loss: how surprised a masked-LM is by text when each token is masked in turn.

PLL(x) = sum over t of log p(x_t | x with position t replaced by the mask); the pseudo-loss of a corpus is minus the
sum of its PLLs divided by its number of tokens. Measured with the base's own masked-LM head on the tuned body, its
rise over the base's value is the first paper's "forgetting".

References
----------
Salazar et al., "Masked Language Model Scoring", ACL 2020; arXiv 2410.21228v3, section 5 and Fig 6b.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.errors import CourseError
from utils.training.masked_lm import masked_lm_logits, unigram_loss


@torch.no_grad()
def pseudo_loss(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int,
                every: int = 1, batch_size: int = 128) -> pd.DataFrame:
    """Pseudo-loss of each text.

    Parameters
    ----------
    model : BertForMaskedLM or RobertaForMaskedLM
        In evaluation mode; dropout would make the number random.
    tokenizer : PreTrainedTokenizerBase
        With a mask token.
    texts : sequence of str
    tokens : int
        Each text is cut to this many tokens, the special ones included; those, unknown words among them, are never
        masked or counted.
    every : int
        Mask only every so many-th of its tokens, the first text from its first one on, the next from its second, so
        that all places are masked alike: of that many times as many texts, at the same cost.
    batch_size : int
        Masked copies per forward pass. It changes speed and memory, never the number.

    Returns
    -------
    pandas.DataFrame
        One row per text: ``passage``, ``negative_pll_nats`` (sum over its tokens), ``tokens`` (how many were masked).
        The corpus's pseudo-loss is the ratio of the two columns' sums, see :func:`corpus_loss`.

    Raises
    ------
    CourseError
        If the model is in training mode, the tokenizer has no mask, or a text holds no token.
    """
    if model.training:
        raise CourseError("Pseudo-loss needs model.eval(): dropout would change the number from call to call.")
    if tokenizer.mask_token_id is None:
        raise CourseError("Pseudo-loss needs a tokenizer with a mask token; causal models have their own loss.")
    device, rows = next(model.parameters()).device, []
    for batch in masked_batches(tokenizer, texts, tokens=tokens, batch_size=batch_size, every=every):
        logits = masked_lm_logits(model, batch.ids.to(device), batch.attention.to(device), where=batch.where.to(device))
        rows.append(token_losses(logits, batch))
    return by_passage(rows)


class MaskedBatch(NamedTuple):
    """Texts with one token masked in each: ``ids``, ``attention``, ``where`` (B, T); ``truth``, ``passages`` (B,)."""

    ids: torch.Tensor
    attention: torch.Tensor
    where: torch.Tensor
    truth: torch.Tensor
    passages: tuple[int, ...]


def masked_batches(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int,
                   batch_size: int = 128, every: int = 1) -> Iterator[MaskedBatch]:
    """Every token of every text masked in turn, as :func:`pseudo_loss` takes them; texts of like length together."""
    copies = _masked_copies(tokenizer, texts, tokens, every=every)
    copies.sort(key=lambda copy: len(copy[1]))  # equal lengths together: no padding is computed
    for start in range(0, len(copies), batch_size):
        yield _batch(tokenizer, copies[start:start + batch_size])


def token_losses(logits: torch.Tensor, batch: MaskedBatch) -> pd.DataFrame:
    """``passage`` and ``negative_pll_nats`` of each masked token, from logits of shape (B, vocabulary)."""
    losses = torch.nn.functional.cross_entropy(logits.float(), batch.truth.to(logits.device), reduction="none")
    return pd.DataFrame({"passage": batch.passages, "negative_pll_nats": losses.tolist()})


def by_passage(losses: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What :func:`pseudo_loss` returns, from :func:`token_losses` of all batches."""
    return pd.concat(losses).groupby("passage")["negative_pll_nats"].agg(["sum", "size"]).rename(
        columns={"sum": "negative_pll_nats", "size": "tokens"}).reset_index()


def corpus_loss(table: pd.DataFrame) -> float:
    """Pseudo-loss of the whole corpus in nats per token.

    >>> corpus_loss(pd.DataFrame({"negative_pll_nats": [6.0, 2.0], "tokens": [3, 1]}))
    2.0
    """
    return float(table["negative_pll_nats"].sum() / table["tokens"].sum())


def word_frequency_loss(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int,
                        counted: Sequence[str]) -> float:
    """What :func:`corpus_loss` would be of a model that knows only how often each token occurs, in nats per token.

    Whoever lost all that context tells would end there. A pseudo-loss above it is a broken readout: the head is sure
    of wrong words, and how much so is no measure of what was lost. Taken on the very tokens that are masked, since the
    openings of articles are harder than what follows.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    texts : sequence of str
        As :func:`pseudo_loss` takes them.
    tokens : int
        As there.
    counted : sequence of str
        Text in which occurrences are counted, such as what the base was trained on.
    """
    ids = tokenizer(list(counted), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    masked = [[row[position]] for _, row, position in _masked_copies(tokenizer, texts, tokens)]
    return unigram_loss(ids, masked, vocabulary=len(tokenizer))


def _masked_copies(tokenizer, texts, tokens, *, every=1) -> list[tuple[int, list[int], int]]:
    """(passage, token ids, position to mask) for each token that is not special, or every so many-th of them."""
    special, copies = set(tokenizer.all_special_ids), []
    for passage, text in enumerate(texts):
        ids = tokenizer(text, truncation=True, max_length=tokens)["input_ids"]
        positions = [position for position, token in enumerate(ids) if token not in special]
        if not positions:
            raise CourseError(f"Passage {passage} holds no token to mask: {text[:60]!r}.")
        first = passage % every % len(positions)  # a text of few tokens has one all the same
        copies += [(passage, ids, position) for position in positions[first::every]]
    return copies


def _batch(tokenizer, part) -> MaskedBatch:
    longest = len(part[-1][1])
    ids_B_T = torch.full((len(part), longest), tokenizer.pad_token_id)
    attention_B_T, where_B_T = torch.zeros_like(ids_B_T), torch.zeros_like(ids_B_T, dtype=torch.bool)
    for row, (_, ids, position) in enumerate(part):
        ids_B_T[row, :len(ids)] = torch.tensor(ids)
        attention_B_T[row, :len(ids)] = 1
        where_B_T[row, position] = True
    truth = ids_B_T[where_B_T]
    ids_B_T[where_B_T] = tokenizer.mask_token_id
    return MaskedBatch(ids_B_T, attention_B_T, where_B_T, truth, tuple(passage for passage, _, _ in part))
