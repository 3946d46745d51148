"""Domain texts as blocks of equal length: what continued pretraining trains and is tested on."""

from functools import lru_cache
from pathlib import Path

import torch

from utils.errors import CourseError
from utils.sources.domains import domain_texts
from utils.training.data import EVALUATION_BATCH, tokenizer_of

EVALUATION_TOKENS = 8192  # of a batch: with 49,152 words its logits take 1.5 GiB in float32


@lru_cache(maxsize=16)
def text_blocks(domain: str, split: str, folder: Path, *, length: int, count: int | None = None) -> list[list[int]]:
    """Texts joined by the tokenizer's end token and cut into blocks of `length` tokens; the rest is dropped.

    Parameters
    ----------
    domain, split : str
        As in :func:`utils.sources.domains.domain_texts`.
    folder : Path
        The base model's, for its tokenizer.
    count : int, optional
        Stop after so many blocks; all of the split by default.

    Raises
    ------
    CourseError
        If the split holds fewer than `count` blocks, or none: continued pretraining never repeats a block.
    """
    tokenizer, ids, wanted = tokenizer_of(folder), [], None if count is None else count * length
    for text in domain_texts(domain, split):
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + [tokenizer.eos_token_id]
        if wanted is not None and len(ids) >= wanted:
            break
    blocks = [ids[start:start + length] for start in range(0, len(ids) - length + 1, length)][:count]
    if len(blocks) < (count or 1):
        advice = ("lower the longest duration" if count else "lower max_length") + " in the profile"
        raise CourseError(f"Expected {count or 1} or more blocks of {length} tokens in the {split} split of "
                          f"{domain}, but it holds {len(blocks)}; {advice}.")
    return blocks


def block_batches(blocks: list[list[int]], batch_size: int | None = None) -> list[dict[str, torch.Tensor]]:
    """Blocks as batches for :func:`utils.training.metrics.causal_loss`; by default of at most EVALUATION_TOKENS."""
    batches = []
    if batch_size is None:
        batch_size = max(1, min(EVALUATION_BATCH, EVALUATION_TOKENS // len(blocks[0]))) if blocks else 1
    for start in range(0, len(blocks), batch_size):
        ids = torch.tensor(blocks[start:start + batch_size])
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return batches
