"""One process trains a run alone, as a rule. What it would share with others: :mod:`utils.training.sharded`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.training.metrics import Measure

if TYPE_CHECKING:  # much is imported for less than a training
    from transformers import Trainer

    from utils.training.spec import RunSpec


class Alone:
    """A process that trains without others: every question has the plain answer.

    Attributes
    ----------
    writes : bool
        Whether this process is the one that writes files and says how far the run is.
    points : str
        Folder of the resume points within the run's; those of another way to train cannot be gone on from.
    """

    writes, points = True, "resume"

    def in_turn(self) -> AbstractContextManager:
        """Within the block the process that writes prepares what the others then find."""
        return nullcontext()

    def arguments(self, spec: "RunSpec", arguments: dict) -> dict:
        """Trainer's arguments, changed for several processes."""
        return arguments

    def fit(self, trainer: "Trainer", spec: "RunSpec", optimiser: Callable[[], torch.optim.Optimizer | None]) -> None:
        """Make a trainer ready whose arguments are from here; `optimiser` builds the run's own, if it has one."""

    def wait(self) -> None:
        """Go on when all processes have come here."""

    def share_random_state(self) -> None:
        """Take over the random state of the process that writes: the next epoch's order is drawn from it."""

    def answer(self, find: Callable[[], Any]) -> Any:
        """What `find` returns in the process that writes, where alone it is called."""
        return find()

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as float32 in memory of its own, on the CPU; empty in a process that does not write."""
        return tensor.detach().float().cpu().clone().contiguous()

    def measured(self, measure: Measure, model: nn.Module) -> dict:
        """What is measured of a model that all processes hold together."""
        return measure(model)

    def share(self, rows: list, batch_size: int) -> tuple[list, int]:
        """Rows of a step that are for this process, and how many of them it takes at a time."""
        return rows, batch_size

    def together(self, number: float) -> float:
        """Sum of a number over the processes."""
        return number
