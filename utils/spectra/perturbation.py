"""How many directions an update needs: rank for 90 % of its energy, and what noise alone would need.

Energy is the sum of squared singular values, the paper's "variance". Everything is computed in float64.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from utils.errors import CourseError, UsageError
from utils.low_rank import LowRankUpdate
from utils.spectra.rank import update_singular_values

SHARE = 0.9


def _require_share(share: float) -> None:
    if not 0 < share <= 1:
        raise UsageError(f"Expected a share of the energy above 0 and up to 1, got {share}; do give such a one.")


def energy_shares(singular_values: torch.Tensor) -> torch.Tensor:
    """Cumulative share of the squared singular values, largest first; zeros for a zero matrix.

    Raises
    ------
    CourseError
        If a value is NaN or infinite.

    Examples
    --------
    >>> energy_shares(torch.tensor([1.0, 2.0])).tolist()
    [0.8, 1.0]
    """
    values = singular_values.double().sort(descending=True).values
    if not values.isfinite().all():
        raise CourseError("Expected finite singular values, got NaN or infinity; do look whether the training "
                          "diverged.")
    if not len(values) or values[0] == 0:
        return torch.zeros_like(values)
    energy = (values / values[0]).square()  # squares of very small or large values would leave float64
    return energy.cumsum(0) / energy.sum()


def rank_for_variance(singular_values: torch.Tensor, share: float = SHARE) -> int:
    """The least number of directions that hold `share` of the energy; 0 for a zero matrix.

    Parameters
    ----------
    singular_values : torch.Tensor of shape (q,)
        In any order.
    share : float
        Above 0 and up to 1; reached exactly counts as reached, within what rounding leaves open (q times 2.2e-16).

    Raises
    ------
    UsageError, CourseError
        If the share is out of range, or a value is not finite.

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Figure 6.

    Examples
    --------
    >>> rank_for_variance(torch.ones(10)), rank_for_variance(torch.tensor([3.0, 1.0]))
    (9, 1)
    """
    _require_share(share)
    shares = energy_shares(singular_values)
    if not len(shares) or shares[-1] == 0:
        return 0
    below = shares < share - len(shares) * torch.finfo(torch.float64).eps
    return min(int(below.sum()) + 1, len(shares))


def gaussian_rank(shape: Sequence[int], share: float = SHARE) -> float:
    """The same rank of a matrix of independent Gaussian entries, the null of an update without any structure.

    From the Marchenko-Pastur law, whose energy is a semicircle's area: with y = short / long side and eigenvalues
    1 + y + 2 sqrt(y) cos(t), those up to the angle t hold (t - sin t cos t) / pi of the energy, and are the integral of
    (2 / pi) sin^2 t / (1 + y + 2 sqrt(y) cos t) of all.

    Parameters
    ----------
    shape : (int, int)
    share : float
        Above 0 and up to 1.

    Returns
    -------
    float
        Between 0 and the smaller side; exact for large matrices, within one direction for those of 30 and more.

    Examples
    --------
    >>> round(gaussian_rank((1000, 1000))), round(gaussian_rank((192, 576)))
    (510, 140)
    """
    _require_share(share)
    short, long = sorted(shape)
    if short < 1:
        raise UsageError(f"Expected a matrix of one row and column or more, got shape {tuple(shape)}; do give "
                         "such a one.")
    if share == 1:
        return float(short)
    y = short / long
    angle = brentq(lambda t: (t - math.sin(t) * math.cos(t)) / math.pi - share, 0, math.pi)
    counted, _ = quad(lambda t: 2 / math.pi * math.sin(t) ** 2 / (1 + y + 2 * math.sqrt(y) * math.cos(t)), 0, angle)
    return short * counted


def update_ranks(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor],
                 factors: Mapping[str, LowRankUpdate] | None = None, *, share: float = SHARE,
                 update_only: bool = False) -> pd.DataFrame:
    """Per matrix: the rank for `share` of the energy of W0, of the tuned weight and of the update, beside the null.

    Parameters
    ----------
    base, tuned : mapping of str to torch.Tensor
        Best in float32: see :func:`bf16_effect`.
    factors : mapping of str to LowRankUpdate, optional
        Of a LoRA run, for the update's spectrum from its r x r core.
    share : float
    update_only : bool
        Leave out ``base_rank`` and ``tuned_rank``: a third of the time, for many checkpoints of one run.

    Returns
    -------
    pandas.DataFrame
        ``matrix``, ``rows``, ``columns``, ``base_rank``, ``tuned_rank``, ``update_rank``, ``null_rank``
        (:func:`gaussian_rank`), ``ratio`` (update's over null's: near 1 means no structure).

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Figures 6 and S7.
    """
    rows = []
    for name, weight in tuned.items():
        update = factors[name] if factors else weight.double() - base[name].double()
        wanted = ({} if update_only else {"base_rank": base[name], "tuned_rank": weight}) | {"update_rank": update}
        ranks = {key: rank_for_variance(update_singular_values(matrix), share) for key, matrix in wanted.items()}
        null = gaussian_rank(weight.shape, share)
        rows.append({"matrix": name, "rows": weight.shape[0], "columns": weight.shape[1]} | ranks
                    | {"null_rank": null, "ratio": ranks["update_rank"] / null})
    return pd.DataFrame(rows)


def bf16_effect(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], *,
                share: float = SHARE) -> pd.DataFrame:
    """What the update's rank becomes if the tuned weight, or both weights, were kept in bfloat16.

    A bfloat16 has 8 significant bits, so rounding adds an error of up to 1/256 of each weight, nearly without
    structure. It counts only where its energy is not small beside the update's: see ``noise``.

    Parameters
    ----------
    base, tuned : mapping of str to torch.Tensor
        W0 and merged Wt by name, (out, in), in float32 or wider: of rounded weights nothing would be left to see.
    share : float
        Of the energy, above 0 and up to 1, that the ranks are for.

    Returns
    -------
    pandas.DataFrame
        ``matrix``, ``rows``, ``columns``, ``null_rank``, ``update_rank``, ``tuned_rounded_rank``,
        ``both_rounded_rank``, ``noise`` and ``both_noise`` (Frobenius norm of the update's error over the update's;
        NaN for no update).
    """
    rows = []
    for name, weight in tuned.items():
        w0, wt = base[name].double(), weight.double()
        w0_kept, wt_kept = w0.bfloat16().double(), wt.bfloat16().double()
        updates = {"update_rank": wt - w0, "tuned_rounded_rank": wt_kept - w0, "both_rounded_rank": wt_kept - w0_kept}
        ranks = {key: rank_for_variance(update_singular_values(update), share) for key, update in updates.items()}
        exact, one, both = updates.values()
        size = exact.norm().item() or float("nan")
        rows.append({"matrix": name, "rows": weight.shape[0], "columns": weight.shape[1],
                     "null_rank": gaussian_rank(weight.shape, share)} | ranks
                    | {"noise": (one - exact).norm().item() / size, "both_noise": (both - exact).norm().item() / size})
    return pd.DataFrame(rows)


def spectrum_table(matrices: Mapping[str, torch.Tensor | LowRankUpdate], *, every: int = 1) -> pd.DataFrame:
    """Singular values and their cumulative share of the energy, of several matrices by name (Figure S7).

    Parameters
    ----------
    matrices : mapping of str to torch.Tensor or LowRankUpdate
    every : int
        Keep each that many-th index, with the first and the last.

    Returns
    -------
    pandas.DataFrame
        ``spectrum`` (the name), ``index`` (from 1), ``singular_value``, ``share`` (cumulative).
    """
    parts = []
    for name, matrix in matrices.items():
        values = update_singular_values(matrix)
        kept = np.unique(np.append(np.arange(0, len(values), every), len(values) - 1))
        parts.append(pd.DataFrame({"spectrum": name, "index": kept + 1, "singular_value": values.numpy()[kept],
                                   "share": energy_shares(values).numpy()[kept]}))
    return pd.concat(parts, ignore_index=True)


def _gaussians(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, n, n, generator=generator, dtype=torch.float64))


def toy_perturbation(n: int = 1000, scale: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Spectra of a Gaussian matrix A, of A + cB and of cB: a full-rank change that the spectrum hardly shows.

    Parameters
    ----------
    n : int
        Side of the square matrices.
    scale : float
        c.
    seed : int

    Returns
    -------
    pandas.DataFrame
        As :func:`spectrum_table`, with the spectra "A", "A + cB" and "cB".

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Figure S8a.
    """
    a, b = _gaussians(n, seed)
    return spectrum_table({"A": a, "A + cB": a + scale * b, "cB": scale * b})


def deviation_sweep(n: int = 1000, scales: Sequence[float] = tuple(np.logspace(-6, 0, 13)),
                    seed: int = 0) -> pd.DataFrame:
    """Mean |sigma_i(A) - sigma_i(A + cB)| of two Gaussian n x n matrices against c.

    For small c it is the mean of c |u_i^T B v_i|, about 0.80 c. From about c = 2 / sqrt(n) on the growth of all
    singular values by sqrt(1 + c^2) outweighs it: about 0.42 c^2 sqrt(n). In float32 the smallest scales would drown
    in rounding.

    Parameters
    ----------
    n : int
        Side of the square matrices.
    scales : sequence of float
        Values of c.
    seed : int

    Returns
    -------
    pandas.DataFrame
        ``scale``, ``deviation``.

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Figure S8b.
    """
    a, b = _gaussians(n, seed)
    values = torch.linalg.svdvals(a)
    return pd.DataFrame({"scale": list(scales),
                         "deviation": [(torch.linalg.svdvals(a + c * b) - values).abs().mean().item() for c in scales]})
