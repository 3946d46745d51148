"""Causal language-model loss on plain texts."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.training.data import labelled_batch
from utils.training.metrics import causal_loss


def text_loss(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int,
              batch_size: int = 8) -> dict:
    """Mean cross-entropy in nats per predicted token of texts cut to `tokens` tokens.

    Parameters
    ----------
    model : nn.Module
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
        With a padding or an end token.
    texts : sequence of str
    tokens : int
        What each text is cut to.
    batch_size : int
        Texts at a time; like lengths go together.

    Returns
    -------
    dict
        ``loss_nats_per_token`` and ``tokens``; the first token of each text has nothing before it and is not counted.
    """
    encoded = sorted((tokenizer(text, truncation=True, max_length=tokens)["input_ids"] for text in texts), key=len)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batches = [labelled_batch([(ids, ids) for ids in encoded[start:start + batch_size]], pad)
               for start in range(0, len(encoded), batch_size)]
    return causal_loss(model, batches)
