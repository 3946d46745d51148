"""Pseudo-loss: how surprised a masked-LM is by text when each token is masked in turn.

PLL(x) = sum over t of log p(x_t | x with position t replaced by the mask); the pseudo-loss of a corpus is minus the
sum of its PLLs divided by its number of tokens. Measured with the base's own masked-LM head on the tuned body, its
rise over the base's value is the first paper's "forgetting".

References
----------
Salazar et al., "Masked Language Model Scoring", ACL 2020; arXiv 2410.21228v3, section 5 and Fig 6b.
"""

from collections.abc import Sequence

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
    copies, rows = _masked_copies(tokenizer, texts, tokens, every=every), []
    copies.sort(key=lambda copy: len(copy[1]))  # equal lengths together: no padding is computed
    for start in range(0, len(copies), batch_size):
        rows += _losses(model, tokenizer, copies[start:start + batch_size])
    table = pd.DataFrame(rows, columns=["passage", "negative_pll_nats"])
    return table.groupby("passage")["negative_pll_nats"].agg(["sum", "size"]).rename(
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


def _losses(model, tokenizer, part) -> list[tuple[int, float]]:
    device, longest = next(model.parameters()).device, len(part[-1][1])
    ids_B_T = torch.full((len(part), longest), tokenizer.pad_token_id)
    attention_B_T, where_B_T = torch.zeros_like(ids_B_T), torch.zeros_like(ids_B_T, dtype=torch.bool)
    for row, (_, ids, position) in enumerate(part):
        ids_B_T[row, :len(ids)] = torch.tensor(ids)
        attention_B_T[row, :len(ids)] = 1
        where_B_T[row, position] = True
    truth = ids_B_T[where_B_T]
    ids_B_T[where_B_T] = tokenizer.mask_token_id
    logits = masked_lm_logits(model, ids_B_T.to(device), attention_B_T.to(device), where=where_B_T.to(device))
    losses = torch.nn.functional.cross_entropy(logits.float(), truth.to(device), reduction="none")
    return [(passage, loss) for (passage, _, _), loss in zip(part, losses.tolist(), strict=True)]
