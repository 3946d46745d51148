"""What must hold of the comparison with spans that readers write in notebook 03."""

import math
from itertools import pairwise

import torch


def _basis(n: int = 12, q: int = 8) -> torch.Tensor:
    """Orthonormal columns in a space that has room beside them."""
    noise = torch.randn(n, q, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(noise).Q


def _mixed(**parts: float) -> torch.Tensor:
    """A vector made of columns of the basis, such as ``_mixed(u2=0.6, u3=0.8)``."""
    return sum(share * _basis()[:, int(name[1:])] for name, share in parts.items())


def _is(value, wanted: float) -> bool:
    return math.isclose(float(value), wanted, abs_tol=1e-6)


def _single_vectors(cosine) -> bool:
    turned = _mixed(u2=0.6, u5=-0.8)
    return _is(cosine(turned, _basis(), 1), 0.8) and _is(cosine(-turned, _basis(), 1), 0.8)


def _turned_among_neighbours(cosine) -> bool:
    return all(_is(cosine(_mixed(**{f"u{i}": 0.6, f"u{i + 1}": -0.8}), _basis(), 2), 1) for i in (0, 3, 6))


def _next_to_each_other(cosine) -> bool:
    apart = _mixed(u1=0.6, u4=0.8)
    return all(_is(cosine(apart, _basis(), m), wanted) for m, wanted in ((2, 0.8), (3, 0.8), (4, 1)))


def _outside(cosine) -> bool:
    """A vector that is at a right angle to every column."""
    basis = _basis()
    drawn = torch.randn(len(basis), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    foreign = drawn - basis @ (basis.T @ drawn)
    return all(_is(cosine(foreign / foreign.norm(), basis, m), 0) for m in (1, 3, 8))


def _never_lower(cosine) -> bool:
    drawn = torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = [float(cosine(drawn / drawn.norm(), _basis(), m)) for m in range(1, 9)]
    return all(low <= high + 1e-9 for low, high in pairwise(found)) and found[0] > 0 and found[-1] < 1


WINDOW_COSINE = {
    "with m = 1 it is the largest cosine with a single pretrained vector, whatever the signs": _single_vectors,
    "two neighbours that were only turned among themselves are not foreign to m = 2": _turned_among_neighbours,
    "the m vectors stand next to each other: what is made of two that stand apart needs a wider window":
        _next_to_each_other,
    "a wider window never gives less, and a vector that lies partly outside of all never reaches 1": _never_lower,
    "a direction at a right angle to all of them gives 0 at every width": _outside,
}
