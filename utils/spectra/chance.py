"""How alike a random direction is to a set of singular vectors: what epsilon and any largest cosine stand against."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd
import torch

DRAWS = 2000
OUTER = (0.05, 0.95)  # percentiles between which a random direction is said to lie


def random_cosines(dimension: int, count: int, *, draws: int = DRAWS, seed: int = 0) -> torch.Tensor:
    """The largest |cosine| of random directions with any of `count` orthonormal vectors, one per draw.

    No vectors are needed: turned into them, a uniformly random direction is one again, and its cosines are the first
    `count` of its coordinates.

    Parameters
    ----------
    dimension : int
        n, the length of the vectors: a matrix's rows for left vectors.
    count : int
        q, 1 … n. The intruder count compares with a thin SVD's vectors, q = min(rows, columns): a whole basis of the
        output space for a square or wide matrix, but only a part of it for a tall one, of which a random direction may
        lie far off.
    draws : int
        Directions.
    seed : int
        Equal seeds give equal draws.

    Returns
    -------
    torch.Tensor of shape (draws,)
        float32, in 0 … 1.

    Examples
    --------
    >>> [round(random_cosines(n, 384).median().item(), 2) for n in (384, 1536)]
    [0.16, 0.08]
    """
    directions = torch.randn(draws, dimension, generator=torch.Generator().manual_seed(seed))
    return (directions / directions.norm(dim=1, keepdim=True))[:, :count].abs().amax(1)


def random_ranges(shapes: Iterable[tuple[int, int]], *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Where :func:`random_cosines` lies for matrices of these shapes: one row per length and number of left vectors.

    Parameters
    ----------
    shapes : iterable of (rows, columns)
        Of each matrix; for right vectors give (columns, rows).

    Returns
    -------
    pandas.DataFrame
        ``dimension``, ``count`` (of vectors), ``matrices``, ``low`` (5 % of the draws lie below), ``median``, ``high``
        (5 % lie above) and ``largest`` (of all draws), in the order in which shapes first come.

    Examples
    --------
    >>> random_ranges([(8, 8), (8, 32), (32, 8)])[["dimension", "count", "matrices"]].values.tolist()
    [[8, 8, 2], [32, 8, 1]]
    """
    kinds = Counter((out, min(out, wide)) for out, wide in shapes)
    rows = []
    for (dimension, count), matrices in kinds.items():
        drawn = random_cosines(dimension, count, draws=draws, seed=seed)
        low, median, high = drawn.quantile(torch.tensor([OUTER[0], 0.5, OUTER[1]])).tolist()
        rows.append({"dimension": dimension, "count": count, "matrices": matrices, "low": low, "median": median,
                     "high": high, "largest": drawn.max().item()})
    return pd.DataFrame(rows, columns=["dimension", "count", "matrices", "low", "median", "high", "largest"])
