"""What a run keeps while it trains: its trained tensors and its measurements at the planned steps."""

import json
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.files import atomic_write, sha256_of, write_text
from utils.training.alone import Alone
from utils.training.metrics import Measure, without_autocast
from utils.training.weights import trained_tensors

METRICS = "metrics.jsonl"


class Checkpoints(TrainerCallback):
    """At each planned step: save the trained tensors, measure, and add a row to ``rows``.

    Time is counted from step begin to step end, so that neither saving nor evaluating is in it. The rows of a resumed
    run come from its resume point; ``metrics.jsonl`` is written for people and never read. Where several processes
    train (`way`), all of them take part in collecting and measuring, and one writes.
    """

    def __init__(self, folder: Path, steps: list[int], measure: Measure, *, scale: float, way: Alone | None = None):
        self.folder, self.steps, self.measure, self.scale = folder, set(steps), measure, scale
        self.way = way or Alone()
        self.rows: list[dict[str, Any]] = []
        self.train_seconds, self.diverged = 0.0, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Go on counting the time of a resumed run."""
        self.train_seconds = self.rows[-1]["train_seconds"] if self.rows else 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                      **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
                    model: nn.Module, **kwargs: Any) -> None:
        """Stop the clock; at a planned step keep the weights and what they measure."""
        self.train_seconds += time.perf_counter() - self.started
        if state.global_step in self.steps:
            control.should_training_stop |= not self.keep(state.global_step, model, self.train_seconds)

    def keep(self, step: int, model: nn.Module, seconds: float, **more: Any) -> bool:
        """Write one checkpoint and its row; False, and nothing written, if the weights have become infinite or NaN.

        Parameters
        ----------
        step : int
        model : nn.Module
            As it is trained, adapter and all.
        seconds : float
            Of training so far.
        **more
            Further columns of the row.
        """
        path = checkpoint_path(self.folder, step)
        self.diverged = not self._saved(model, path)
        if self.diverged:
            return False
        with without_autocast(model):  # or a base, measured in float32, would be compared with a run in bfloat16
            measured = self.way.measured(self.measure, model)
        row = {"step": step, "train_seconds": round(seconds, 2), **more, **measured}
        if self.way.writes:
            self._record(row | {"file": path.name, "sha256": sha256_of(path)})
        return True

    def _saved(self, model: nn.Module, path: Path) -> bool:
        """Whether the trained tensors are finite; if so, they are in the file."""
        tensors = trained_tensors(model, self.scale, copy=self.way.whole)
        finite = self.way.answer(lambda: all(bool(tensor.isfinite().all()) for tensor in tensors.values()))
        if finite and self.way.writes:
            with atomic_write(path) as temporary:
                save_file(tensors, temporary)
        return finite

    def _record(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        write_text(self.folder / METRICS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the trained tensors of a step lie."""
    return folder / "checkpoints" / f"step-{step:06d}.safetensors"


def missing_checkpoint(folder: Path, rows: list[dict]) -> str | None:
    """What is wrong with the checkpoints that rows tell of, in a few words; None if all are as they were written."""
    for row in rows:
        path = checkpoint_path(folder, row["step"])
        if not path.is_file():
            return f"{path.name} is missing"
        if sha256_of(path) != row["sha256"]:
            return f"{path.name} has other bytes"
    return None


def planned_steps(total: int, count: int) -> list[int]:
    """`count` steps evenly spaced up to and with the last.

    >>> planned_steps(100, 4)
    [25, 50, 75, 100]
    >>> planned_steps(3, 5)
    [1, 2, 3]
    """
    return sorted({max(1, round(total * part / count)) for part in range(1, count + 1)})
