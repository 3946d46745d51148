"""What every run asks of transformers' Trainer: the same arguments, resume points that are whole, and progress."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.files import write_json
from utils.machine import device_name
from utils.progress import INTERVAL_S, Lines
from utils.sealed import MANIFEST, check, seal, set_aside
from utils.training.alone import Alone

_POINT = re.compile(r"checkpoint-(\d+)")
EPOCH_STATE, ROWS = "epoch_rng_state.safetensors", "rows.json"


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


class Recorder(Protocol):
    """What collects rows while it trains, and has to have them again when a run goes on."""

    rows: list[dict[str, Any]]


class SealPoints(TrainerCallback):
    """Seal each resume point once all of it is there, so that only a whole one is ever gone on from.

    A point also keeps what Trainer leaves out: the rows recorded so far, and the random state that the epoch's order
    of rows was drawn from. Trainer itself restores only the state at the step, so that a run resumed after its first
    epoch would see some rows twice and others never. It has to come before the recorder among the callbacks.

    Parameters
    ----------
    recorder : Recorder
        Its ``rows`` are kept, and put back when a run goes on.
    about : dict
        What the points belong to, JSON-ready; see :func:`resume_point`.
    way : Alone, optional
        Where several processes train: all have written their part before one seals the point.
    """

    def __init__(self, recorder: Recorder, about: dict, way: Alone | None = None):
        self.recorder, self.about, self.way = recorder, about, way or Alone()
        self.epoch_state: torch.Tensor | None = None
        self.kept: torch.Tensor | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Put the recorded rows back; know the state of the epoch that a run goes on with."""
        if state.global_step:
            point = _point(args, state)
            self.recorder.rows = recorded_rows(point)
            self.kept = load_file(point / EPOCH_STATE)["state"]

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Put the epoch's random state back, or remember it."""
        if self.kept is not None:
            torch.set_rng_state(self.kept)
        self.way.share_random_state()
        self.kept, self.epoch_state = None, torch.get_rng_state()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write what makes the resume point whole, its seal last."""
        self.way.wait()
        if not self.way.writes:
            return
        # A save at the very end of an epoch goes on with the next one's order, which is not drawn yet.
        between_epochs = state.epoch == int(state.epoch or 0)
        kept = torch.get_rng_state() if between_epochs or self.epoch_state is None else self.epoch_state
        point = _point(args, state)
        save_file({"state": kept}, point / EPOCH_STATE)
        write_json(point / ROWS, self.recorder.rows)
        seal(point, about=self.about)


def recorded_rows(point: Path) -> list[dict[str, Any]]:
    """The rows that a resume point keeps."""
    return json.loads((point / ROWS).read_text(encoding="utf-8"))


def _point(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def resume_point(folder: Path, *, about: dict, unusable: Callable[[Path], str | None] = lambda point: None
                 ) -> str | None:
    """The newest checkpoint under `folder` that is whole, or None; a damaged one is set aside, which is said.

    Parameters
    ----------
    folder : Path
        Where Trainer writes its checkpoints.
    about : dict
        What the points must have been sealed for; one of another run, or of other rows, is none of ours.
    unusable : callable, optional
        Takes a whole point; what else stands against going on from it, in a few words, or None.
    """
    points = {int(found[1]): path for path in folder.glob("checkpoint-*") if (found := _POINT.fullmatch(path.name))}
    for _, point in sorted(points.items(), reverse=True):
        if point.is_symlink() or not point.is_dir():
            point.unlink()
            continue
        if not (point / MANIFEST).exists():
            shutil.rmtree(point)  # cut short while it was written or deleted: nothing is lost that was ever whole
            continue
        reason = check(point, about=about) or unusable(point)
        if reason is None:
            return str(point)
        set_aside(point, reason, then="the training goes on from an earlier point, or anew")
    return None


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
