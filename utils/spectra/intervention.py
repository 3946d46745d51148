"""Scaling one direction of a tuned matrix: the paper's intervention on intruder dimensions, and its controls.

W_new = Wt + (lambda - 1) sigma u v^T, with (sigma, u, v) the highest-ranked intruder of SVD(W0 + dW) (the authors'
answer to the question which SVD is meant). lambda = 0 removes it, 1 changes nothing, 2 doubles it. The controls change
something else by as much: the neighbouring pretrained-like direction, a random direction of the same norm, or the whole
update W0 + lambda dW.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from utils.errors import UsageError
from utils.spectra.base import BaseSpectrum, base_spectrum
from utils.spectra.fast import Pair, leading_cosines, leading_triplets, merged_weight
from utils.spectra.svd import is_intruder, max_cosines, thin_svd

LAMBDA_RANGE = (0.0, 4.0)
RANK_TOLERANCE = 1e-6  # of an update's largest singular value: float32 factors leave nothing below it


class Direction(NamedTuple):
    """A singular triplet of a tuned matrix: ``index`` from 1, ``u`` (out,), ``sigma``, ``v`` (in,)."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name, which nobody needs here
    u: torch.Tensor
    sigma: float
    v: torch.Tensor


class Directions(NamedTuple):
    """The leading triplets of one matrix by likeness to W0: ``intruders`` and ``others``, highest-ranked first.

    ``of_update`` is the first foreign triplet of the update alone, by :func:`update_direction`, where it was asked for.
    """

    intruders: list[Direction]
    others: list[Direction]
    of_update: Direction | None = None


def leading_directions(pair: Pair, *, k: int = 10, epsilon: float = 0.5,
                       spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> Directions:
    """The k leading triplets of one tuned matrix, intruders apart from those that resemble a pretrained vector.

    Parameters
    ----------
    pair : Pair
        W0 and the tuned matrix.
    k : int
        Leading vectors examined.
    epsilon : float
        A vector is an intruder if its largest absolute cosine is strictly below.
    spectrum : callable
        W0 -> BaseSpectrum, as in :func:`utils.spectra.fast.leading_cosines`.

    References
    ----------
    arXiv 2410.21228v3, section 5 and Figs 8, 12; issue 3 of the authors' repository for which SVD is meant.
    """
    found = next(leading_cosines([pair], k=k, epsilons=[epsilon], spectrum=spectrum))
    foreign = is_intruder(found.max_cosines, epsilon).tolist()
    if not any(foreign):
        return Directions([], [])
    triplets = leading_triplets(pair, k=k, spectrum=spectrum)
    every = [Direction(place + 1, triplets.u[:, place], triplets.s[place].item(), triplets.vt[place])
             for place in range(len(triplets.s))]
    return Directions([one for one, is_foreign in zip(every, foreign, strict=True) if is_foreign],
                      [one for one, is_foreign in zip(every, foreign, strict=True) if not is_foreign])


def leading_intruder(pair: Pair, *, k: int = 10, epsilon: float = 0.5,
                     spectrum: Callable[..., BaseSpectrum] = base_spectrum) -> Direction | None:
    """The highest-ranked intruder of one matrix, or None where there is none.

    Parameters
    ----------
    pair : Pair
        W0 and the tuned matrix.
    k : int
        Leading vectors examined.
    epsilon : float
        As in :func:`leading_directions`.
    spectrum : callable
        W0 -> BaseSpectrum.
    """
    return next(iter(leading_directions(pair, k=k, epsilon=epsilon, spectrum=spectrum).intruders), None)


def update_direction(pair: Pair, *, epsilon: float = 0.5) -> Direction | None:
    """The highest-ranked intruder of SVD(dW): what the intervention would scale were that the SVD it means.

    Parameters
    ----------
    pair : Pair
        W0 and the tuned matrix.
    epsilon : float
        The update's left vector is foreign if its largest absolute cosine with W0's is strictly below.

    Returns
    -------
    Direction or None
        A triplet of Wt - W0, whose sigma is all of the update's own; None where none of them is foreign.

    References
    ----------
    Issue 3 of the authors' repository, where this is option (b) and the authors choose (a), SVD(W0 + dW).
    """
    base, tuned = pair.load()
    update = thin_svd(merged_weight(base, tuned).double() - base.double(), name=f"update of {pair.name}")
    rank = int((update.s > RANK_TOLERANCE * update.s[0]).sum())
    cosines = max_cosines(update, thin_svd(base.double(), name=f"base matrix {pair.name}"), top=rank)
    foreign = is_intruder(cosines, epsilon).nonzero().flatten().tolist()
    return next((Direction(place + 1, update.u[:, place], update.s[place].item(), update.vt[place])
                 for place in foreign), None)


def base_share(base: torch.Tensor, direction: Direction) -> float:
    """u^T W0 v / sigma: how much of a triplet of Wt is W0's own, and goes with it when it is removed.

    >>> w0 = torch.diag(torch.tensor([2.0, 1.0]))
    >>> base_share(w0, Direction(1, torch.tensor([1.0, 0.0]), 8.0, torch.tensor([1.0, 0.0])))
    0.25
    """
    return float(direction.u.double() @ base.double() @ direction.v.double()) / direction.sigma


def neighbour(directions: Directions) -> Direction | None:
    """Of the pretrained-like leading vectors the one whose singular value is nearest to the highest intruder's.

    The paper scales "the neighbour" without saying on which side; the nearer singular value is the fairer control.
    """
    if not directions.intruders or not directions.others:
        return None
    sigma = directions.intruders[0].sigma
    return min(directions.others, key=lambda one: abs(one.sigma - sigma))


def random_direction(like: Direction, *, seed: int) -> Direction:
    """A direction of random unit vectors with the same sigma: scaling it changes the matrix by the same norm."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.nn.functional.normalize(torch.randn(len(vector), generator=generator, dtype=torch.float64), dim=0)
            for vector in (like.u, like.v))
    return Direction(0, u, like.sigma, v)


def scaled(weight: torch.Tensor, direction: Direction, factor: float) -> torch.Tensor:
    """A tuned matrix with one of its singular triplets scaled by `factor`; in the weight's own type.

    Parameters
    ----------
    weight : torch.Tensor of shape (out, in)
        The tuned matrix.
    direction : Direction
        One of its triplets.
    factor : float
        lambda, 0 … 4: 0 removes it, 1 changes nothing.

    Raises
    ------
    UsageError
        If the factor lies outside 0 … 4.

    Examples
    --------
    >>> w = torch.diag(torch.tensor([3.0, 1.0]))
    >>> scaled(w, Direction(1, torch.tensor([1.0, 0.0]), 3.0, torch.tensor([1.0, 0.0])), 0.5)
    tensor([[1.5000, 0.0000],
            [0.0000, 1.0000]])
    """
    require_factor(factor)
    change = (factor - 1) * direction.sigma * torch.outer(direction.u, direction.v)
    return (weight.double() + change).to(weight.dtype)


def shrunk(base: torch.Tensor, tuned: torch.Tensor, factor: float) -> torch.Tensor:
    """W0 + factor * (Wt - W0): the whole update scaled, whatever it holds.

    Parameters
    ----------
    base, tuned : torch.Tensor of shape (out, in)
        W0 and merged Wt.
    factor : float
        lambda, 0 … 4: 0 gives W0, 1 changes nothing.

    Examples
    --------
    >>> shrunk(torch.zeros(1, 1), torch.ones(1, 1), 0.25)
    tensor([[0.2500]])
    """
    require_factor(factor)
    return base + factor * (tuned - base)


def with_norm(base: torch.Tensor, tuned: torch.Tensor, norm: float) -> torch.Tensor:
    """The tuned matrix with its update scaled to a Frobenius norm; unchanged where there is no update.

    Parameters
    ----------
    base, tuned : torch.Tensor of shape (out, in)
        W0 and merged Wt.
    norm : float
        Of the update that results, in units of the weights; 0 or more.
    """
    size = (tuned - base).norm().item()
    return tuned if size == 0 else base + (norm / size) * (tuned - base)


def require_factor(factor: float) -> None:
    """UsageError unless lambda lies in its range; NaN lies nowhere."""
    low, high = LAMBDA_RANGE
    if not low <= factor <= high:
        raise UsageError(f"lambda must lie between {low:g} (remove) and {high:g}, 1 changing nothing, but is {factor}.")
