"""The maximal cosine's companion that close singular values do not disturb: projections onto windows of vectors.

Singular vectors whose singular values nearly agree are hardly determined: the slightest update rotates them among
themselves, and each then resembles no single pretrained vector although their span has not moved. The definition calls
such vectors intruders. Here a tuned vector is compared with the span of `width` consecutive pretrained vectors (by
singular value) and its largest projection is kept; width 1 is the maximal cosine. What is still foreign at the width
of the cluster is foreign to the cluster, too.
"""

import math
from collections.abc import Callable, Iterable

import pandas as pd
import torch
from scipy.stats import beta

from utils.errors import UsageError
from utils.spectra.base import BaseSpectrum, base_spectrum, rounding_level
from utils.spectra.fast import DETERMINED, Pair, leading_triplets


def window_cosines(cosines: torch.Tensor, width: int) -> torch.Tensor:
    """Of each tuned vector the largest projection onto the span of `width` consecutive pretrained vectors.

    Parameters
    ----------
    cosines : torch.Tensor of shape (k, q)
        |cosine| of tuned vector j with pretrained vector i, these sorted by singular value and orthonormal.
    width : int
        1 … q; 1 gives the maximal cosine exactly, q the projection onto all pretrained vectors.

    Returns
    -------
    torch.Tensor of shape (k,)
        0 … 1; never smaller for a larger width.

    Raises
    ------
    UsageError
        If there is no window of that width.

    Examples
    --------
    >>> window_cosines(torch.tensor([[0.6, 0.0, 0.8]]), 2)
    tensor([0.8000])
    >>> window_cosines(torch.tensor([[0.6, 0.8, 0.0]]), 2)
    tensor([1.])
    """
    if not 1 <= width <= cosines.shape[1]:
        raise UsageError(f"width must be 1 … {cosines.shape[1]} pretrained vectors, but is {width}.")
    # Pooling sums each window anew; a running sum would leave the rounding of large entries on small ones.
    means = torch.nn.functional.avg_pool1d(cosines.square()[:, None], width, stride=1)
    return (means[:, 0].amax(1) * width).sqrt().clamp(max=1.0)


def window_level(dimension: int, count: int, width: int = 1) -> float:
    """About the largest window projection that a random direction reaches.

    The squared projection onto one window of m orthonormal vectors in R^n follows Beta(m / 2, (n - m) / 2), near to
    chi-square with m degrees of freedom over n. The level is where one of the q - m + 1 windows is expected to lie
    above. Neighbouring windows overlap and the width-1 ones do not, so it errs to both sides: from 7 % below the mean
    of the maximum at width 1 to 6 % above it at width 32. The closed form by chi-square's tail bound,
    sqrt((m + 2 sqrt(m ln q) + 2 ln q) / n), lies 10 to 50 % above it.

    Parameters
    ----------
    dimension : int
        n, the length of the vectors (the matrix's output width for left vectors).
    count : int
        q, the number of pretrained vectors.
    width : int
        m, 1 … q.

    References
    ----------
    B. Laurent & P. Massart, Annals of Statistics 28 (2000), lemma 1, for the tail bound.

    Examples
    --------
    >>> [round(window_level(768, 768, width), 2) for width in (1, 8)]
    [0.12, 0.18]
    """
    if not 1 <= width <= count <= dimension:
        raise UsageError(f"A level needs 1 <= width <= count <= dimension, but they are {width}, {count}, {dimension}.")
    if width == count:  # a single window; its mean
        return math.sqrt(width / dimension)
    return math.sqrt(beta.isf(1 / (count - width + 1), width / 2, (dimension - width) / 2))


def window_table(pairs: Iterable[Pair], widths: Iterable[int], *, k: int = 10,
                 spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> pd.DataFrame:
    """Window cosines of the k leading tuned left vectors of each matrix, at each width.

    Parameters
    ----------
    pairs : iterable of Pair
    widths : iterable of int
        Window sizes; one larger than a matrix has vectors is an error.
    k : int
        Leading tuned vectors per matrix; all of them where a matrix has fewer.
    spectrum : callable
        W0 -> BaseSpectrum; pass a cache's method so that it is computed once per base matrix.

    Returns
    -------
    pandas.DataFrame
        One row per matrix, vector and width: ``matrix``, ``index`` (from 1), ``width``, ``max_cosine``. The rows of one
        width are a vector table that :func:`utils.spectra.count_intruders` takes; they carry no bound, so a cosine
        within rounding of epsilon may fall on its other side.
    """
    widths, parts = list(widths), []
    for pair in pairs:
        cosines = left_cosines(pair, k, spectrum)
        parts += [pd.DataFrame({"matrix": pair.name, "index": range(1, len(cosines) + 1), "width": width,
                                "max_cosine": window_cosines(cosines, width).numpy()}) for width in widths]
    return pd.concat(parts, ignore_index=True) if parts else \
        pd.DataFrame(columns=["matrix", "index", "width", "max_cosine"])


def left_cosines(pair: Pair, k: int, spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> torch.Tensor:
    """|cosine| of the k leading tuned left vectors with every pretrained one; (k, q), float64.

    Parameters
    ----------
    pair : Pair
        W0 and the tuned matrix.
    k : int
        Leading tuned vectors.
    spectrum : callable
        W0 -> BaseSpectrum, as in :func:`utils.spectra.fast.leading_cosines`.
    """
    base, own = pair.load()[0].double().cpu(), spectrum(pair.load()[0], name=f"base matrix {pair.name}")
    basis, values = own.basis.cpu(), own.values.cpu()
    tuned = leading_triplets(pair, k=k, spectrum=spectrum).u.T  # (k, out)
    if base.shape[0] <= base.shape[1]:
        return (tuned @ basis).abs()
    # Of a tall matrix the basis is on the input side: u0_i = W0 v0_i / s_i. Where s_i drowns in rounding nothing
    # determines u0_i, and no tuned vector can resemble it.
    known = values.square() > rounding_level(tuple(base.shape), values.norm().item()) / DETERMINED
    return torch.where(known, (tuned @ base @ basis).abs() / values.where(known, 1.0), 0.0)
