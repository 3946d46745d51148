"""Causal language-model loss on plain texts."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.training.metrics import causal_loss


def text_loss(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int,
              batch_size: int = 8) -> dict:
    """Mean cross-entropy in nats per predicted token of texts cut to `tokens` tokens.

    Returns
    -------
    dict
        ``loss_nats_per_token`` and ``tokens``; the first token of each text has nothing before it and is not counted.
    """
    encoded = sorted((tokenizer(text, truncation=True, max_length=tokens)["input_ids"] for text in texts), key=len)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batches = []
    for start in range(0, len(encoded), batch_size):
        part = encoded[start:start + batch_size]
        longest = len(part[-1])
        batches.append({
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids in part]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in part]),
            "labels": torch.tensor([ids + [-100] * (longest - len(ids)) for ids in part])})
    return causal_loss(model, batches)
