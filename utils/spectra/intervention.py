"""Scaling intruders: what the first paper does to ask whether they cause the forgetting.

Wnew = Wt + (lambda - 1) u sigma v^T for the highest-ranked intruder (u, sigma, v) of a matrix, from the SVD of
Wt = W0 + dW and not of dW, as the authors confirmed: 1 changes nothing, 0 removes it, 2 doubles it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from utils.spectra.base import BaseSpectrum, base_spectrum
from utils.spectra.fast import Pair, leading_cosines, leading_triplets


class Direction(NamedTuple):
    """A singular triplet of a tuned matrix: ``index`` from 1, ``u`` (out,), ``sigma``, ``v`` (in,)."""

    index: int
    u: torch.Tensor
    sigma: float
    v: torch.Tensor


def leading_intruder(pair: Pair, *, k: int = 10, epsilon: float = 0.5,
                     spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> Direction | None:
    """The highest-ranked intruder of one matrix, or None where there is none.

    References
    ----------
    arXiv 2410.21228v3, section 5 and Figs 8, 12; issue 3 of the authors' repository for which SVD is meant.
    """
    found = next(leading_cosines([pair], k=k, epsilons=[epsilon], spectrum=spectrum))
    places = (found.max_cosines < epsilon).nonzero().flatten()
    if not len(places):
        return None
    place = int(places[0])
    triplets = leading_triplets(pair, k=k, spectrum=spectrum)
    return Direction(place + 1, triplets.u[:, place], triplets.s[place].item(), triplets.vt[place])


def scaled(weight: torch.Tensor, direction: Direction, factor: float) -> torch.Tensor:
    """A tuned matrix with one of its singular triplets scaled by `factor`; in the weight's own type.

    Examples
    --------
    >>> w = torch.diag(torch.tensor([3.0, 1.0]))
    >>> scaled(w, Direction(1, torch.tensor([1.0, 0.0]), 3.0, torch.tensor([1.0, 0.0])), 0.5)
    tensor([[1.5000, 0.0000],
            [0.0000, 1.0000]])
    """
    change = (factor - 1) * direction.sigma * torch.outer(direction.u, direction.v)
    return (weight.double() + change).to(weight.dtype)
