r"""How strong must a random rank-one update be before it is an intruder? Predicted from W0's spectrum, and measured.

M = W0 + theta u v^T, u (m,) and v (n,) random unit vectors that know nothing of W0 (m x n, singular values s_i, q =
min(m, n) of them). With G = (sigma^2 - W0 W0^T)^-1 and its mirror image on the input side, sigma is a singular value of
M exactly where

    phi_u phi_v = (1 / theta - kappa)^2,  phi_u = sigma u^T G u,  phi_v = sigma v^T G~ v,  kappa = u^T G W0 v,

and its left vector is, along pretrained vector i, (sigma alpha_i + rho s_i beta_i) / (sigma^2 - s_i^2) up to a factor:
alpha_i, beta_i are the coordinates of u and v, rho^2 = phi_u / phi_v. For random u and v, alpha_i^2 is 1/m and beta_i^2
is 1/n in expectation and what has both in it is 0, so that only W0's spectrum is left:

- 1 / theta^2 = D(sigma) = phi phi~ with phi = mean of sigma / (sigma^2 - s^2) over all m values of the output side, the
  m - q zeros of a longer side included, and phi~ the same over the n of the input side;
- squared component i proportional to (sigma^2 / m + (phi / phi~) s_i^2 / n) / (sigma^2 - s_i^2)^2; the root of the
  largest one's share is the predicted maximal cosine;
- squared overlap with u itself -2 phi / (theta^2 D').

D is taken with every pole in it, so sigma may lie in a gap between isolated singular values as well as above all. In
each gap D falls from infinity to where phi or phi~ ends being positive: one sigma for each theta.

The share is that of the expected components. A nearest component that happens to be larger than expected also pushes
sigma away from its s_i at the same theta, which takes most of it back; its chi-square median, 0.45 of the expectation,
counts that fluctuation in full and predicts worse for the leading vector and on the spectra of trained matrices. A
vector that is near to none still has a largest of q chance components, :func:`utils.spectra.window_level`, below which
no predicted cosine falls. What the expectation cannot see: where all gaps above the k-th value are evenly narrow, none
is wide enough for the expected vector, but each is one more chance for a lucky one: there the critical strength for
k = 10 comes out up to 2.4 times too large.

References
----------
F. Benaych-Georges & R. R. Nadakuditi, "The singular values and vectors of low rank perturbations of large rectangular
random matrices", J. Multivariate Analysis 111 (2012), theorems 2.8 and 2.9, for sigma above all s_i and the overlap.
The largest component and gaps within the spectrum are worked out here, to extend appendix A.2 and Fig 2a of arXiv
2410.21228v3. A critical strength per layer from the same model: arXiv 2607.23711, known to us by its abstract alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from utils.errors import UsageError
from utils.low_rank import LowRankUpdate
from utils.spectra.base import BaseSpectrum, base_spectrum
from utils.spectra.clusters import window_level
from utils.spectra.fast import Pair, leading_cosines
from utils.spectra.rank import update_singular_values
from utils.spectra.svd import is_intruder

_POINTS = 400  # of a gap, before the first crossing is refined
_HALVINGS = 50
_GRID_RATIO = 1.1  # of neighbouring strengths in a measured scan
_REFINEMENTS = 5  # halvings of a grid step: 0.3 %


class StrengthRange(NamedTuple):
    """A measured critical strength over draws of (u, v); inf where a draw never became an intruder."""

    median: float
    smallest: float
    largest: float


def secular_functions(sigma: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """phi and phi~ of the module's text at each sigma.

    Parameters
    ----------
    sigma : numpy.ndarray of shape (p,)
        Positive, and none of them one of the values.
    values : numpy.ndarray of shape (q,)
        W0's singular values.
    shape : tuple of int
        (m, n) of W0; the longer side's |m - n| zeros are added here.

    Examples
    --------
    >>> [float(x[0]) for x in secular_functions(np.array([2.0]), np.array([0.0]), (1, 3))]
    [0.5, 0.5]
    """
    (m, n), q = shape, len(values)
    shared = (sigma[:, None] / (sigma[:, None]**2 - values**2)).sum(1)
    return (shared + (m - q) / sigma) / m, (shared + (n - q) / sigma) / n


def expected_shares(sigma: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Share of each pretrained left vector in the tuned one of singular value sigma, as expected; (p, q).

    NaN where phi or phi~ is not positive: no planted direction has that sigma at any strength. A tall matrix has output
    directions outside of all pretrained vectors, so that its shares sum to less than 1.

    Parameters
    ----------
    sigma : numpy.ndarray of shape (p,)
        Singular values that the tuned vector may have.
    values : numpy.ndarray of shape (q,)
        W0's singular values, descending.
    shape : tuple of int
        (out, in) of W0.
    """
    (m, n), q = shape, len(values)
    phi, mirror = secular_functions(sigma, values, shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where((phi > 0) & (mirror > 0), phi / mirror, np.nan)
    squares = sigma[:, None]**2
    sizes = (squares / m + ratio[:, None] * values**2 / n) / (squares - values**2)**2
    return sizes / (sizes.sum(1) + (m - q) / m / sigma**2)[:, None]


def expected_overlaps(sigma: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """|cosine| of the tuned left vector of singular value sigma with u: sqrt(-2 phi / (theta^2 D')); (p,).

    Parameters
    ----------
    sigma : numpy.ndarray of shape (p,)
        Singular values that the tuned vector may have.
    values : numpy.ndarray of shape (q,)
        W0's singular values, descending.
    shape : tuple of int
        (out, in) of W0.
    """
    (m, n), q = shape, len(values)
    phi, mirror = secular_functions(sigma, values, shape)
    squares = sigma[:, None]**2
    with np.errstate(all="ignore"):  # next to a pole all of it overflows, to an overlap of 0 or NaN
        slope = -((squares + values**2) / (squares - values**2)**2).sum(1)
        change = (slope - (m - q) / sigma**2) / m * mirror + phi * (slope - (n - q) / sigma**2) / n
        return np.sqrt(np.where((phi > 0) & (mirror > 0), -2 * phi**2 * mirror / change, np.nan)).clip(max=1)


def predicted_spike(values: Sequence[float] | torch.Tensor, shape: tuple[int, ...],
                    strengths: Iterable[float]) -> pd.DataFrame:
    """What a random direction of each strength becomes, from W0's singular values alone.

    Of the sigmas at one strength, one in each gap, the row describes that with the largest overlap with u. Below the
    threshold of a dense bulk no single vector carries u; its row then says little but that the overlap is small.

    Parameters
    ----------
    values : sequence of float, q = min(shape) of them
        W0's singular values, descending.
    shape : tuple of int
        (out, in) of W0.
    strengths : iterable of float
        theta, positive, in units of the values. Each costs some 40 q^2 divisions.

    Returns
    -------
    pandas.DataFrame
        One row per strength: ``strength``, ``singular_value``, ``index`` (from 1, among the tuned singular values),
        ``max_cosine`` with any pretrained left vector, ``overlap`` with u.

    Raises
    ------
    UsageError
        If the values do not fit the shape, or a strength is not positive.

    Examples
    --------
    >>> predicted_spike([0.0, 0.0], (2, 2), [3.0])[["singular_value", "index", "overlap"]].values.tolist()
    [[3.0, 1.0, 1.0]]
    """
    known, given = _checked(values, shape), np.asarray(list(strengths), dtype=float)
    if not (np.isfinite(given) & (given > 0)).all():
        raise UsageError(f"Strengths must be positive numbers, but are {given.tolist()}.")
    return pd.DataFrame([_nearest_to_u(known, shape, strength) for strength in given],
                        columns=["strength", "singular_value", "index", "max_cosine", "overlap"])


def _nearest_to_u(values: np.ndarray, shape: tuple[int, ...], strength: float) -> dict[str, float]:
    above = np.concatenate([[values[0] + strength], values[:-1]])  # no sigma is larger than s_1 + theta
    wide = above - values > 1e-12 * above
    low, high = values[wide], above[wide]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        with np.errstate(all="ignore"):
            phi, mirror = secular_functions(middle, values, shape)
            below = ~((phi <= 0) | (mirror <= 0)) & ~(phi * mirror <= strength**-2)  # a pole itself is below
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    with np.errstate(all="ignore"):
        overlaps = np.nan_to_num(expected_overlaps(high, values, shape))
        best = int(overlaps.argmax())
        sigma, shares = high[best], expected_shares(high[[best]], values, shape)
    largest = np.nan_to_num(shares, nan=1.0).max()**0.5
    return {"strength": strength, "singular_value": sigma, "index": 1 + int((values > sigma).sum()),
            "max_cosine": max(largest, window_level(shape[0], len(values))), "overlap": overlaps[best]}


def critical_strength(values: Sequence[float] | torch.Tensor, shape: tuple[int, ...], epsilon: float = 0.5,
                      *, k: int = 10) -> float:
    """The smallest strength at which a random direction is predicted to be an intruder among the k leading vectors.

    Going up through each of the k leading gaps, theta grows with sigma while the maximal cosine falls from 1; the first
    sigma below epsilon gives that gap's strength, and the smallest of all gaps is returned. A smaller k or a wider
    spread of the leading values asks for more.

    Parameters
    ----------
    values : sequence of float, q = min(shape) of them
        W0's singular values, descending.
    shape : tuple of int
        (out, in) of W0.
    epsilon : float
        0 … 1.
    k : int
        Leading tuned vectors that are examined.

    Returns
    -------
    float
        In units of the values; 0 where W0 is zero, inf where epsilon is at most a random direction's level.

    Raises
    ------
    UsageError
        If the values do not fit the shape, or epsilon or k is out of range.
    """
    known = _checked(values, shape)
    _require_thresholds(epsilon, k)
    if epsilon <= window_level(shape[0], len(known)):
        return math.inf
    if known[0] == 0:
        return 0.0
    return min((_first_below(points, known, shape, epsilon=epsilon) for points in _gaps(known, k)), default=math.inf)


def _gaps(values: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Ascending sigmas through the space above all values and the gaps below it, k in all; denser near their ends."""
    yield values[0] * (1 + np.geomspace(1e-9, 1e3, _POINTS))
    parts = 1 / (1 + np.exp(-np.linspace(-16, 16, _POINTS)))
    for low, high in zip(values[1:k], values[:k - 1], strict=False):
        if high - low > 1e-9 * high:  # repeated values have nothing between them
            yield low + (high - low) * parts


def _first_below(points: np.ndarray, values: np.ndarray, shape: tuple[int, ...], *, epsilon: float) -> float:
    """The strength of the first sigma in a gap whose largest share is below epsilon squared; inf where none is."""
    def below(sigma: np.ndarray) -> np.ndarray:
        return expected_shares(sigma, values, shape).max(1) < epsilon**2  # NaN is not

    found = below(points)
    if not found.any():
        return math.inf
    first = int(found.argmax())
    low, high = points[max(first - 1, 0)], points[first]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if below(np.array([middle]))[0] else (middle, high)
    phi, mirror = secular_functions(np.array([high]), values, shape)
    return float((phi[0] * mirror[0])**-0.5)


def measured_critical_strength(base: torch.Tensor, *, epsilon: float = 0.5, k: int = 10, draws: int = 5, seed: int = 0,
                               spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> StrengthRange:
    """The smallest strength at which W0 + theta u v^T does have an intruder among its k leading vectors.

    For each draw of u and v the strengths rise on a grid of steps of 10 %, from an eighth of the k-th singular value
    (at least a thousandth of the largest) to four times the largest. The count is not monotone: where sigma passes a
    pretrained value the two vectors mix and the intruder is gone for a while. So the answer is the first strength of
    the scan with an intruder, then refined by bisection between it and the one before; a window of intruders narrower
    than a step can be missed. A draw whose first strength is a hit already, as with repeated singular values, gives
    that strength; one without any hit gives inf.

    Parameters
    ----------
    base : torch.Tensor of shape (out, in)
        W0, any floating type.
    epsilon : float
        0 … 1.
    k : int
    draws : int
        Of independent pairs u, v.
    seed : int
    spectrum : callable
        W0 -> BaseSpectrum, as in :func:`utils.spectra.leading_cosines`; called once.

    Raises
    ------
    UsageError
        If epsilon, k or draws is out of range, or W0 is zero.
    """
    _require_thresholds(epsilon, k)
    if draws < 1:
        raise UsageError(f"draws must be at least 1, but is {draws}.")
    own = spectrum(base, name="base matrix")
    values = own.values.tolist()
    if values[0] == 0:
        raise UsageError("A matrix of zeros has no singular vectors that an intruder could differ from.")
    low, high = max(values[min(k, len(values)) - 1] / 8, values[0] / 1000), 4 * values[0]
    grid = np.geomspace(low, high, 1 + math.ceil(math.log(high / low) / math.log(_GRID_RATIO)))
    generator = torch.Generator().manual_seed(seed)
    found = [_first_strength(grid, _planted(base, own, generator, epsilon=epsilon, k=k)) for _ in range(draws)]
    return StrengthRange(float(np.median(found)), min(found), max(found))


def _planted(base: torch.Tensor, own: BaseSpectrum, generator: torch.Generator, *, epsilon: float,
             k: int) -> Callable[[Iterable[float]], Iterator[bool]]:
    """A draw of u and v, as a function from strengths to whether W0 + theta u v^T has an intruder."""
    u, v = (torch.nn.functional.normalize(torch.randn(side, generator=generator, dtype=torch.float64), dim=0)
            for side in base.shape)

    def planted(strength: float) -> tuple[torch.Tensor, LowRankUpdate]:
        return base, LowRankUpdate(u[:, None], v[None], float(strength))

    def has_intruder(strengths: Iterable[float]) -> Iterator[bool]:
        pairs = (Pair("planted", partial(planted, strength)) for strength in strengths)
        for one in leading_cosines(pairs, k=k, epsilons=[epsilon], spectrum=lambda weight, name: own):
            yield bool(is_intruder(one.max_cosines, epsilon).any())

    return has_intruder


def _first_strength(grid: np.ndarray, holds: Callable[[Iterable[float]], Iterator[bool]]) -> float:
    """The first strength of an ascending grid at which something holds, refined towards the one before it."""
    first = next((place for place, held in enumerate(holds(grid)) if held), None)
    if first is None:
        return math.inf
    if first == 0:
        return float(grid[0])
    low, high = float(grid[first - 1]), float(grid[first])
    for _ in range(_REFINEMENTS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if next(holds([middle])) else (middle, high)
    return high


def adapter_strengths(pairs: Iterable[Pair], *, epsilon: float = 0.5, k: int = 10,
                      spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> pd.DataFrame:
    """How far each matrix's update lies above or below the strength at which a random direction becomes an intruder.

    Parameters
    ----------
    pairs : iterable of Pair
        W0 and its tuned weight or low-rank update, such as a run's.
    epsilon, k : float, int
        As in :func:`critical_strength`.
    spectrum : callable
        W0 -> BaseSpectrum; pass a cache's method so that it is computed once per base matrix.

    Returns
    -------
    pandas.DataFrame
        One row per matrix: ``matrix``, ``out``, ``in``, ``strength`` (the update's largest singular value),
        ``critical`` (theta*), ``ratio`` (strength / critical; above 1 an intruder is predicted).
    """
    rows = []
    for pair in pairs:
        base, tuned = pair.load()
        update = tuned if isinstance(tuned, LowRankUpdate) else tuned.double() - base.double()
        strength = update_singular_values(update)[0].item()
        critical = critical_strength(spectrum(base, name=pair.name).values, tuple(base.shape), epsilon, k=k)
        rows.append({"matrix": pair.name, "out": base.shape[0], "in": base.shape[1], "strength": strength,
                     "critical": critical, "ratio": strength / critical if critical else math.inf})
    return pd.DataFrame(rows, columns=["matrix", "out", "in", "strength", "critical", "ratio"])


def _checked(values: Sequence[float] | torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The values as float64, if they can be the singular values of a matrix of that shape."""
    found = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, dtype=float)
    if found.ndim != 1 or len(found) != min(shape) or not len(found):
        raise UsageError(f"A matrix of shape {tuple(shape)} has {min(shape)} singular values, but got an array of "
                         f"shape {found.shape}.")
    if not np.isfinite(found).all() or (found < 0).any() or (np.diff(found) > 0).any():
        raise UsageError("Singular values must be finite, not negative, and in descending order.")
    return found


def _require_thresholds(epsilon: float, k: int) -> None:
    if not 0 <= epsilon <= 1 or k < 1:
        raise UsageError(f"epsilon must lie in 0 … 1 and k be at least 1, but they are {epsilon} and {k}.")
