"""Matrices whose answer is known: planted directions, the toy of the paper's appendix, random updates of equal norm."""

from collections.abc import Iterable, Mapping

import pandas as pd
import torch

from utils.errors import UsageError
from utils.low_rank import LowRankUpdate
from utils.spectra.rank import update_singular_values
from utils.spectra.svd import SingularTriplets, max_cosines, thin_svd


def planted_matrix(base: torch.Tensor, count: int, *, strength: float = 2.0, seed: int = 0) -> torch.Tensor:
    """W0 with `count` directions planted that no pretrained left vector resembles: a positive control.

    Each planted left vector is an equal mixture of all pretrained left vectors with random signs, so its cosine with
    every one of them is 1 / sqrt(q), the least that any direction within their span can reach at its largest. The
    right vectors are random. The planted singular values are `strength`, a little less for each next one, times the
    largest of W0.

    Parameters
    ----------
    base : torch.Tensor of shape (out, in)
    count : int
        0 … a handful; mixtures with random signs are nearly orthogonal only while they are few.
    strength : float
        Above 1 the planted vectors become the leading ones.
    """
    if not 0 <= count < min(base.shape):
        raise UsageError(f"count must be 0 … {min(base.shape) - 1} for a matrix of shape {tuple(base.shape)}, "
                         f"but is {count}.")
    generator = torch.Generator().manual_seed(seed)
    factors = thin_svd(base.double())
    q = len(factors.s)
    signs = torch.randint(0, 2, (q, count), generator=generator).double() * 2 - 1
    u = torch.linalg.qr(factors.u @ signs / q**0.5).Q
    v = torch.linalg.qr(torch.randn(base.shape[1], count, generator=generator, dtype=torch.float64)).Q
    values = strength * factors.s[0] * (1 - 0.05 * torch.arange(count, dtype=torch.float64))
    return (base.double() + (u * values) @ v.T).to(base.dtype)


def random_update(base: torch.Tensor, update: torch.Tensor, *, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """W0 plus a random update of the same Frobenius norm as `update`: a negative control.

    Parameters
    ----------
    rank : int, optional
        Draw the update as a product of Gaussian factors of this rank; of full rank by default.
    """
    generator = torch.Generator().manual_seed(seed)
    out, width = base.shape
    if rank is None:
        noise = torch.randn(out, width, generator=generator)
    else:
        noise = torch.randn(out, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
    return base + noise.to(base) * (update.norm() / noise.norm())


def random_updates(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], *, rank: int | None = None,
                   seed: int = 0) -> dict[str, torch.Tensor]:
    """:func:`random_update` for every matrix of a model, each with a seed of its own.

    Parameters
    ----------
    base, tuned : mapping of str to torch.Tensor
        W0 and merged Wt by name, (out, in).
    rank : int, optional
        As :func:`random_update` takes it; full rank by default.
    seed : int
        Of the whole model; each matrix draws from one made of it and of its place.
    """
    return {name: random_update(base[name], weight - base[name], rank=rank, seed=seed * 1_000_003 + index)
            for index, (name, weight) in enumerate(tuned.items())}


def spectrum_matched(update: torch.Tensor | LowRankUpdate, *, seed: int = 0) -> LowRankUpdate:
    """A random update with an update's own singular values: what is left of it without its directions.

    The strictest of the random controls: norm, rank and how the norm is spread over the directions are the trained
    update's, the singular vectors are drawn uniformly.

    Parameters
    ----------
    update : torch.Tensor of shape (out, in), or LowRankUpdate
    seed : int

    Returns
    -------
    LowRankUpdate
        float32 factors of the update's rank (of full rank for a tensor).
    """
    values = update_singular_values(update).float().cpu()
    shape = (len(update.b), update.a.shape[1]) if isinstance(update, LowRankUpdate) else update.shape
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(width, len(values), generator=generator)).Q for width in shape)
    return LowRankUpdate(u * values, v.T.contiguous(), 1.0)


def toy_sweep(base: torch.Tensor, ratios: Iterable[float], *, seed: int = 0,
              base_triplets: SingularTriplets | None = None) -> pd.DataFrame:
    """A direction of growing strength planted in a matrix: W0 + lambda * u v^T with u, v random unit vectors.

    Parameters
    ----------
    base : torch.Tensor of shape (out, in)
    ratios : iterable of float
        lambda divided by the largest singular value of `base`.

    Returns
    -------
    pandas.DataFrame
        One row per ratio: ``ratio``, ``index`` (the rank, from 1, of the tuned vector that carries the planted
        direction, that is, the one nearest to u), ``max_cosine`` of that vector with any pretrained one, and
        ``overlap`` with u itself.

    References
    ----------
    arXiv 2410.21228v3, appendix A.2 and Fig 2a (there v v^T; a general matrix has two sides, so u v^T here).
    """
    generator = torch.Generator().manual_seed(seed)
    factors = base_triplets or thin_svd(base)
    u = torch.nn.functional.normalize(torch.randn(base.shape[0], generator=generator), dim=0).to(base)
    v = torch.nn.functional.normalize(torch.randn(base.shape[1], generator=generator), dim=0).to(base)
    rows = []
    for ratio in ratios:
        tuned = thin_svd(base + ratio * factors.s[0] * torch.outer(u, v))
        overlaps = (tuned.u.T @ u).abs()
        index = int(overlaps.argmax())
        rows.append({"ratio": ratio, "index": index + 1, "overlap": overlaps[index].item(),
                     "max_cosine": max_cosines(tuned, factors)[index].item()})
    return pd.DataFrame(rows)
