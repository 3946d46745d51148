"""What every run asks of transformers' Trainer: the same arguments, resume points that are whole, and progress."""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.machine import device_name
from utils.progress import INTERVAL_S, Lines

COMPLETE = "COMPLETE"  # written into a resume point after everything else
EPOCH_STATE = "epoch_rng_state.safetensors"


def common_arguments(folder: Path, *, steps: int, batch_size: int, learning_rate: float, warmup_fraction: float,
                     schedule: str, seed: int, save_every: int, bfloat16: bool = False) -> dict:
    """Keyword arguments that TrainingArguments and TRL's SFTConfig share.

    Weight decay 0, default betas and no gradient clipping follow the first paper's recipe (its section 3 and code);
    everything that would evaluate, log or report inside the timed region is off.

    Parameters
    ----------
    folder : Path
        Where resume points go.
    steps : int
        Optimiser steps of the whole training.
    batch_size : int
        Rows of one step on one device.
    learning_rate : float
        At its peak.
    warmup_fraction : float
        Share of the steps in which it rises, 0 … 1.
    schedule : str
        What follows, by transformers' name of it.
    seed : int
    save_every : int
        Steps between resume points.
    bfloat16 : bool
        Compute in mixed precision.
    """
    return dict(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=learning_rate,
        lr_scheduler_type=schedule, warmup_steps=round(warmup_fraction * steps), weight_decay=0.0, max_grad_norm=0.0,
        optim="adamw_torch_fused", seed=seed, data_seed=seed, bf16=bfloat16, use_cpu=device_name() == "cpu",
        save_strategy="steps", save_steps=save_every, save_total_limit=2, logging_strategy="steps", logging_steps=10,
        disable_tqdm=True, report_to="none", dataloader_pin_memory=device_name() == "cuda", remove_unused_columns=True,
    )


class MarkComplete(TrainerCallback):
    """Mark a resume point as whole, so that one cut short by a kill is never resumed from.

    It also keeps the random state that the epoch's order of rows was drawn from. Trainer itself restores only the
    state at the step, so that a run resumed after its first epoch would see some rows twice and others never.
    """

    epoch_state: torch.Tensor | None = None
    kept: Path | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Know where a resumed run keeps the state of its epoch."""
        self.kept = _point(args, state) / EPOCH_STATE if state.global_step else None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Put the epoch's random state back, or remember it."""
        if self.kept is not None and self.kept.exists():
            torch.set_rng_state(load_file(self.kept)["state"])
        self.kept, self.epoch_state = None, torch.get_rng_state()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write what makes the resume point whole."""
        # A save at the very end of an epoch goes on with the next one's order, which is not drawn yet.
        between_epochs = state.epoch == int(state.epoch)
        kept = torch.get_rng_state() if between_epochs else self.epoch_state
        if kept is not None:
            save_file({"state": kept}, _point(args, state) / EPOCH_STATE)
        (_point(args, state) / COMPLETE).touch()


def _point(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def resume_point(folder: Path) -> str | None:
    """The newest whole checkpoint under `folder`, or None; those cut short are removed."""
    points = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [point for point in points if (point / COMPLETE).exists()]
    for point in set(points) - set(whole):
        shutil.rmtree(point)
    return str(whole[-1]) if whole else None


class Progress(TrainerCallback):
    """A bar with time left in a terminal, a plain line every `interval_s` seconds elsewhere."""

    def __init__(self, label: str, interval_s: float = INTERVAL_S):
        self.label, self.interval_s = label, interval_s
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Begin at the step that the run goes on from."""
        self.lines = Lines(self.label, state.max_steps, first=state.global_step, unit="step ",
                           interval_s=self.interval_s, say=lambda line: print(line, flush=True))
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", leave=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, or say a line if it is time."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        else:
            self.lines.count(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                     **kwargs: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
