"""One matrix of two checkpoints, before and after tuning, and what the counts of intruders follow from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from utils.low_rank import LowRankUpdate

Tuned = torch.Tensor | LowRankUpdate


def merged_weight(base: torch.Tensor, tuned: Tuned) -> torch.Tensor:
    """Wt in float64, however it is given."""
    return tuned.added_to(base) if isinstance(tuned, LowRankUpdate) else tuned.double()


def is_far(shape: tuple[int, ...], vectors: str) -> bool:
    """Whether the wanted vectors are those of the longer side; of a square matrix the rows are the near side."""
    return (shape[0] > shape[1]) == (vectors == "left")


@dataclass(frozen=True)
class Pair:
    """One matrix of two checkpoints; ``load`` reads (W0, Wt or its low-rank update) and may be called again."""

    name: str
    load: Callable[[], tuple[torch.Tensor, Tuned]]


class Leading(NamedTuple):
    """What the counts of one matrix follow from; tensors are float64 on the CPU, of length k (or q if smaller)."""

    name: str
    shape: tuple[int, ...]  # (out, in)
    method: str
    singular_values: torch.Tensor
    max_cosines: torch.Tensor
    errors: torch.Tensor  # half the width that the bound leaves each cosine; 0 where the definition was computed
    base_values: torch.Tensor  # W0's singular values, all q
