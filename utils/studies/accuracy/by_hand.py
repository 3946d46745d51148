"""What notebook 02 trains in the open: one start, the same batches for the reader's own loop and for the library."""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments, set_seed

from utils.machine import device_name
from utils.profiles import Profile
from utils.sources.models import resolve
from utils.sources.tasks import task
from utils.training.data import classification_data, labelled_rows
from utils.training.spec import RunSpec, run_specs
from utils.training.trainer import common_arguments
from utils.training.weights import prepare


def one_of_each(profile: Profile, seeds: tuple[int, ...]) -> list[RunSpec]:
    """Full fine-tuning and LoRA at the showcase rank as the main experiment has them, of the first seed."""
    found = run_specs(profile, "ranks", seeds[:1])
    return [next(spec for spec in found if spec.method.r == r) for r in (None, profile.spectra.showcase_rank)]


def start(spec: RunSpec, *, steps: int) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """A run's model before its first step, and its first batches in the order in which the rows are stored.

    Dropout is off, so that two ways of training can be compared number by number. Called again, it gives the same.

    Parameters
    ----------
    spec : RunSpec
        Of a classification task.
    steps : int
        How many batches.

    Returns
    -------
    tuple
        The model with exactly the method's parameters trainable, in training mode; the batches, each with
        ``input_ids``, ``attention_mask`` and ``labels``.
    """
    set_seed(spec.seed)
    base = resolve(spec.base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base.folder, num_labels=len(task(spec.task).labels), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    rows = _first_rows(spec, steps)
    batches = [{name: tensor.to(device_name()) for name, tensor in labelled_rows(
        [rows[place] for place in range(first, min(first + spec.batch_size, len(rows)))], base.folder).items()}
        for first in range(0, len(rows), spec.batch_size)]
    return prepare(model, spec.method, causal=False).to(device_name()).train(), batches


def trained_by_library(spec: RunSpec, *, steps: int) -> nn.Module:
    """The same start after as many steps of transformers' Trainer with the course's arguments, decaying linearly."""
    model, _ = start(spec, steps=steps)
    folder = resolve(spec.base).folder
    with tempfile.TemporaryDirectory() as place:
        arguments = common_arguments(Path(place), steps=steps, batch_size=spec.batch_size, schedule="linear",
                                     learning_rate=spec.learning_rate, warmup_fraction=0.0, seed=spec.seed,
                                     save_every=steps + 1)
        trainer = Trainer(model=model, train_dataset=_first_rows(spec, steps),
                          data_collator=lambda rows: labelled_rows(rows, folder),
                          args=TrainingArguments(**arguments, train_sampling_strategy="sequential"))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """The largest absolute difference between the trained numbers of two models of one shape."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach().cpu() - b.detach().cpu()).abs().max()) for a, b in pairs if a.requires_grad)


def _first_rows(spec: RunSpec, steps: int) -> Dataset:
    rows, _ = classification_data(spec.task, spec.sizes, resolve(spec.base).folder)
    return rows.select(range(min(len(rows), steps * spec.batch_size))).remove_columns("length")
