"""Rows to tokens, once per task, tokenizer and length; batches of like length, so that little padding is computed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from utils.errors import CourseError, UsageError, reason_of
from utils.files import canonical_json, write_json
from utils.paths import cache_dir, worded
from utils.profiles.schema import TaskSizes
from utils.sources.tasks import load_task

EVALUATION_BATCH = 64


@lru_cache(maxsize=8)
def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model's folder, with a padding token where the model names none."""
    if not any(path for kind in ("tokenizer.json", "vocab.*", "*.model") for path in folder.glob(kind)):
        # transformers would make one of its own, with other tokens
        raise CourseError(f"{folder} holds no tokenizer; copy it from where the model is from, all files of it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a damaged one ends in as many ways as there are kinds
        raise CourseError(f"The tokenizer in {folder} could not be read ({type(error).__name__}: "
                          f"{reason_of(error)[:200]}); copy the model's folder again from where it is from.") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@lru_cache(maxsize=8)
def classification_data(task: str, sizes: TaskSizes, folder: Path) -> tuple[Dataset, Dataset]:
    """Tokenised train and test rows with ``input_ids``, ``attention_mask``, ``labels`` and ``length``.

    Parameters
    ----------
    task : str
        Of :mod:`utils.sources.tasks`.
    sizes : TaskSizes
        Rows of either part, and the length that texts are cut to.
    folder : Path
        Of the base model, for its tokenizer.
    """
    data, tokenizer = load_task(task, sizes), tokenizer_of(folder)
    return (_encoded(data.train, tokenizer, sizes.max_length), _encoded(data.test, tokenizer, sizes.max_length))


@lru_cache(maxsize=8)
def validation_data(task: str, sizes: TaskSizes, folder: Path) -> Dataset:
    """Tokenised validation rows, as :func:`classification_data` returns the others.

    Raises
    ------
    UsageError
        If the sizes name no validation rows.
    """
    if sizes.validation_rows is None:
        raise UsageError(f"Expected validation rows of task {task}, got none; give its experiment 'validation_rows' in "
                         "the profile.")
    return _encoded(load_task(task, sizes).validation, tokenizer_of(folder), sizes.max_length)


def _encoded(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    pairs = None if frame["text_pair"].isna().all() else frame["text_pair"].tolist()
    tokens = tokenizer(frame["text"].tolist(), pairs, truncation=True, max_length=max_length,
                       return_token_type_ids=pairs is not None and "token_type_ids" in tokenizer.model_input_names)
    return Dataset.from_dict({**tokens, "labels": frame["label"].tolist(),
                              "length": [len(ids) for ids in tokens["input_ids"]]})


def labelled_batch(rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Token ids and their labels as one batch, padded on the right to the longest row.

    Parameters
    ----------
    rows : sequence of (list of int, list of int)
        Ids and labels of each row, of one length; a label of -100 is not counted.
    pad_token_id : int
        What fills the ids; the labels are filled with -100 and the attention mask with 0.

    Returns
    -------
    dict of str to torch.Tensor
        ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (B, T).

    Examples
    --------
    >>> labelled_batch([([5, 6], [5, 6]), ([7], [7])], pad_token_id=0)["labels"].tolist()
    [[5, 6], [7, -100]]
    """
    def padded(parts: Iterable[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(part) for part in parts], batch_first=True, padding_value=value)

    return {"input_ids": padded((ids for ids, _ in rows), pad_token_id),
            "attention_mask": padded(([1] * len(ids) for ids, _ in rows), 0),
            "labels": padded((labels for _, labels in rows), -100)}


def rows_checksum(rows: Dataset) -> str:
    """sha256 of the rows that a run trains on: what a data set's name or branch resolved to on that day."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row).encode())
    return digest.hexdigest()


def same_rows(rows: Dataset, about: dict) -> str:
    """:func:`rows_checksum` of rows that are the same as when they were first asked for in this cache.

    The rows of the Hub come from a branch that may move, and from files that carry no checksum.

    Parameters
    ----------
    rows : Dataset
    about : dict
        What decides which rows they are, JSON-ready.

    Raises
    ------
    CourseError
        If they are others than the first time.
    """
    found, name = rows_checksum(rows), hashlib.sha256(canonical_json(about).encode()).hexdigest()[:16]
    path = cache_dir() / "rows" / f"{name}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        known = None
    except OSError as error:
        raise CourseError(worded(error, path, "read")) from error
    if known is None:
        write_json(path, {"about": about, "sha256": found})
    elif known != found:
        raise CourseError(f"The rows of {about['task']} have sha256 {found[:12]}…, but earlier runs in this cache were "
                          f"trained on {known[:12]}…: the data set has changed or is damaged, and runs on both cannot "
                          f"be compared; fetch it again, or delete {path} to go on with the new rows.")
    return found


def labelled_rows(rows: Sequence[dict], folder: Path) -> dict[str, torch.Tensor]:
    """Tokenised rows as one padded batch: ``input_ids``, ``attention_mask`` and ``labels``.

    Parameters
    ----------
    rows : sequence of dict
        Of :func:`classification_data`, without ``length``.
    folder : Path
        Of the base model, for its tokenizer.
    """
    return dict(DataCollatorWithPadding(tokenizer_of(folder))(list(rows)))


def evaluation_batches(rows: Dataset, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Padded batches of rows sorted by length; the order does not matter to a mean."""
    ordered = rows.sort("length").remove_columns("length")
    return [labelled_rows([ordered[i] for i in range(start, min(start + EVALUATION_BATCH, len(ordered)))], folder)
            for start in range(0, len(ordered), EVALUATION_BATCH)]
