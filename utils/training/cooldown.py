"""Learning curves whose every point had its own cooldown, at the cost of little more than the longest run.

The rate rises to its peak and stays there; for each duration T a copy of weights and optimiser goes on from 0.8 T,
on the rows that come next, while its rate falls to zero. An intermediate checkpoint of the hot run would be measured
far above what the same tokens give once cooled down.
"""

import copy
import time
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from utils.training.alone import Alone
from utils.training.blocks import block_batches
from utils.training.checkpoints import Checkpoints

COOLED = 0.2  # share of a duration over which the rate falls to zero (arXiv 2405.09673, appendix A)
CLIP = 1.0  # gradient norm (same place)


def cooldown_start(duration: int) -> int:
    """The step at which a run of `duration` steps begins to cool down.

    >>> [cooldown_start(steps) for steps in (5, 40, 100)]
    [4, 32, 80]
    """
    return duration - max(1, round(COOLED * duration))


class Cooldowns(Checkpoints):
    """At 0.8 T of each duration T: cool a copy down, save and measure it under step T, and go back to the hot run."""

    def __init__(self, *arguments: Any, scale: float, durations: tuple[int, ...], blocks: list[list[int]],
                 batch_size: int, accumulation: int, dtype: torch.dtype, way: Alone | None = None):
        super().__init__(*arguments, scale=scale, way=way)
        self.durations = durations  # two near ones, such as 7 and 8, begin to cool at the same step
        self.blocks, self.batch_size, self.accumulation, self.dtype = blocks, batch_size, accumulation, dtype

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        """Go on counting the hot run's time."""
        self.train_seconds = self.rows[-1]["hot_seconds"] if self.rows else 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
                    model: nn.Module, **kwargs: Any) -> None:
        """Stop the clock; cool a copy down for each duration whose time has come."""
        self.train_seconds += time.perf_counter() - self.started
        for duration in self.durations:
            if cooldown_start(duration) == state.global_step:
                self._measure_cooled(duration, model, kwargs["optimizer"], start=state.global_step, control=control)

    def _measure_cooled(self, duration: int, model: nn.Module, optimizer: torch.optim.Optimizer, *, start: int,
                        control: TrainerControl) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = [parameter.detach().clone() for parameter in trained]
        moments = copy.deepcopy(optimizer.state_dict())
        started = time.perf_counter()
        with torch.random.fork_rng():  # dropout's masks in the copy must not change those of the hot run
            self._cool(model, optimizer, start=start, duration=duration)
        seconds = self.train_seconds + time.perf_counter() - started
        kept = self.keep(duration, model, seconds, cooled_from=start,
                         hot_seconds=round(self.train_seconds, 2))
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
        optimizer.load_state_dict(moments)
        control.should_training_stop |= not kept

    def _cool(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, start: int, duration: int) -> None:
        device = next(model.parameters()).device
        hot = [group["lr"] for group in optimizer.param_groups]  # below the peak where the run still warms up
        for step in range(start, duration):
            for group, rate in zip(optimizer.param_groups, hot, strict=True):
                group["lr"] = rate * (duration - step) / (duration - start)
            rows_each = self.batch_size * self.accumulation
            rows = self.blocks[step * rows_each:(step + 1) * rows_each]
            batches = block_batches(*self.way.share(rows, self.batch_size))
            for batch in batches:
                with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
                (loss / len(batches)).backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
            optimizer.step()
            optimizer.zero_grad()
