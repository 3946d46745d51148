"""Matrices with intruders that were planted, so that every answer is known before."""

import torch

from utils.spectra import LowRankUpdate, Pair, thin_svd
from utils.spectra.intervention import Direction

BLOCKS = (slice(-8, None), slice(-16, -8))  # of W0's trailing vectors, mixed into one that resembles none of them


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted_update(base: torch.Tensor, intruders: int, strength: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A) of rank 2 with that many intruders, every other leading vector staying W0's own.

    An intruder mixes eight trailing vectors of W0 evenly: its cosine with each is about 0.35, and W0's leading
    vectors, in whose span it has no part, stay exactly as they are. With none, W0's own first directions grow.
    """
    u, s, vt = thin_svd(base.double())
    columns, rows = [], []
    for place in range(2):
        if place < intruders:
            left, right = u[:, BLOCKS[place]].sum(1) / 8**0.5, vt[BLOCKS[place]].sum(0) / 8**0.5
            size = strength * (1.5 - place / 2) * s[0]
        else:
            left, right, size = u[:, place], vt[place], 0.1 * s[place]
        columns.append(size.sqrt() * left)
        rows.append(size.sqrt() * right)
    return torch.stack(columns, dim=1).float(), torch.stack(rows).float()


def planted_pair(intruders: int, shape: tuple[int, int] = (40, 24), low_rank: bool = True) -> Pair:
    base = gaussian(*shape, seed=5)
    b, a = planted_update(base, intruders)
    tuned = LowRankUpdate(b, a, 1.0) if low_rank else base + b @ a
    return Pair("w", lambda: (base, tuned))


def tuned_of(pair: Pair) -> torch.Tensor:
    base, tuned = pair.load()
    return tuned.added_to(base) if isinstance(tuned, LowRankUpdate) else tuned.double()


def direction(index: int, sigma: float) -> Direction:
    return Direction(index, torch.tensor([1.0, 0.0]), sigma, torch.tensor([0.0, 1.0]))
