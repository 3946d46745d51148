"""How far a computed largest cosine can be from the definition's: bounds 1 and 2 of :mod:`utils.spectra.fast`."""

import torch

from utils.spectra.leading import RitzPairs

DETERMINED = 1e-3  # an angle above this leaves a pretrained vector undetermined


def tuned_angles(pairs: RitzPairs, tau: float, level: float) -> torch.Tensor:
    """How far each found vector can be from the true one (bound 1), as a distance; (k,).

    Parameters
    ----------
    pairs : RitzPairs
        The k found eigenpairs of one matrix: values (k,), residuals (k,).
    tau : float
        What no other eigenvalue exceeds.
    level : float
        eta, in units of the eigenvalues.
    """
    values = pairs.values
    # An eigenvalue lies within the residual of its Ritz value, so a neighbour may be that much nearer.
    distance = (values[:, None] - values[None, :]).abs() - pairs.residuals[None, :]
    distance.fill_diagonal_(torch.inf)
    gap = torch.minimum(distance.amin(1), values - tau) - level
    sine = (pairs.residuals + level) / gap
    return torch.where(gap > 0, 2**0.5 * sine, torch.inf)


def cosine_bounds(cosines: torch.Tensor, values: torch.Tensor, level: float, *,
                  far_rounding: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bounds 2: what W0's vectors, determined or not, leave open of each largest cosine.

    Parameters
    ----------
    cosines : torch.Tensor of shape (k, q)
        With each computed pretrained vector.
    values : torch.Tensor of shape (q,)
        W0's singular values, descending.
    level : float
        eta, in units of their squares.
    far_rounding : float, optional
        For vectors of the longer side, which were computed as W0 v / s: (out + in) u.

    Returns
    -------
    tuple of torch.Tensor, each of shape (k,)
        Lower and upper bound, and the largest computed cosine.
    """
    squares = values.square()
    apart = squares[:-1] - squares[1:] > level / DETERMINED
    group = torch.cat([apart.new_zeros(1, dtype=torch.long), apart.long().cumsum(0)])
    last = group.bincount().cumsum(0) - 1  # place of each group's smallest value
    first = torch.cat([last.new_zeros(1), last[:-1] + 1])
    steps = torch.cat([squares.new_tensor([torch.inf]), squares[last[:-1]] - squares[first[1:]],
                       squares.new_tensor([torch.inf])])
    turn = level / torch.minimum(steps[:-1], steps[1:])
    null = torch.zeros_like(last, dtype=torch.bool)
    if far_rounding is not None:
        null = squares[last] <= level / DETERMINED  # here rounding drowns s, and W0 v / s has no direction
        cosines = cosines.masked_fill(null[group], 0.0)
        smallest = values[last].masked_fill(null, torch.inf)
        turn = turn * (values[(first - 1).clamp(min=0)] / smallest).clamp(min=1) + far_rounding * values[0] / smallest
        turn = turn + level / smallest.square()  # s itself is known to level / (2 s)
    projection = cosines.new_zeros(len(cosines), len(last)).index_add_(1, group, cosines.square()).sqrt()
    low, high = projection / (last - first + 1).double().sqrt() - turn, projection + turn
    if null.any():
        rest = 1 - projection[:, ~null].square().sum(1) + 2 * turn[~null].norm()
        low[:, null], high[:, null] = 0.0, rest.clamp(min=0).sqrt()[:, None].expand(-1, int(null.sum()))
    return low.amax(1).clamp(min=0), high.amax(1), cosines.amax(1)
