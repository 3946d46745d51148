"""The base model's part of the work: one eigendecomposition per matrix, done once and shared by every tuned model.

W0 is (out, in); its smaller side has q = min(out, in) singular vectors that form a whole orthonormal basis of R^q.
That basis and the singular values are all that the fast core needs, of either side: vectors of the longer side follow
from W0 itself.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from utils.errors import CourseError

UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2
_BLOCK = 256  # rows
_CHUNK_BYTES = 3 * 2**20  # of a matrix that are float64 at a time


class BaseSpectrum(NamedTuple):
    """``basis`` (q, q): columns are the singular vectors of the smaller side; ``values`` (q,) descending; float64."""

    basis: torch.Tensor
    values: torch.Tensor


def small_side(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its smaller side first: (q, longer side); a view."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _chunks(small: torch.Tensor, dim: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float64 pieces of a matrix along a side, all in one buffer.

    A float64 copy of each whole matrix would cost more in fresh pages than the products that it is made for.
    """
    step = max(1, _CHUNK_BYTES // (8 * small.shape[1 - dim]))
    buffer = None
    for start in range(0, small.shape[dim], step):
        part = small.narrow(dim, start, min(step, small.shape[dim] - start))
        if buffer is None or buffer.shape != part.shape:
            buffer = torch.empty_like(part, dtype=torch.float64)
        yield slice(start, start + part.shape[dim]), buffer.copy_(part)


def gram(matrix: torch.Tensor) -> torch.Tensor:
    """M M^T of the smaller side in float64, shape (q, q), without a float64 copy of the whole matrix."""
    small = small_side(matrix)
    total = torch.zeros(len(small), len(small), dtype=torch.float64, device=matrix.device)
    for _, part in _chunks(small, 1):
        _add_lower(total, part)
    _mirror(total)
    return total


def _add_lower(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rows rows^T on and below the diagonal, by halves: torch has no product that computes one triangle alone."""
    if len(rows) <= _BLOCK:
        total.addmm_(rows, rows.T)
        return
    half = len(rows) // 2
    _add_lower(total[:half, :half], rows[:half])
    _add_lower(total[half:, half:], rows[half:])
    total[half:, :half].addmm_(rows[half:], rows[:half].T)


def _mirror(total: torch.Tensor) -> None:
    """Copy the lower triangle onto the upper one."""
    if len(total) > _BLOCK:
        half = len(total) // 2
        total[:half, half:] = total[half:, :half].T
        _mirror(total[:half, :half])
        _mirror(total[half:, half:])


def times_long_side(rows: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """rows (r, n) times the transpose of a matrix with its smaller side first (q, n), in float64: (r, q)."""
    if small.is_contiguous():
        return torch.cat([rows @ part.T for _, part in _chunks(small, 0)], dim=1)
    total = rows.new_zeros(len(rows), len(small))
    for place, part in _chunks(small, 1):
        total.addmm_(rows[:, place], part.T)
    return total


def times_small_side(rows: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """rows (r, q) times a matrix with its smaller side first (q, n), in float64: (r, n)."""
    if small.is_contiguous():
        total = rows.new_zeros(len(rows), small.shape[1])
        for place, part in _chunks(small, 0):
            total.addmm_(rows[:, place], part)
        return total
    return torch.cat([rows @ part for _, part in _chunks(small, 1)], dim=1)


def base_spectrum(weight: torch.Tensor, *, name: str = "matrix") -> BaseSpectrum:
    """Singular values and the smaller side's singular vectors of W0, from its Gram matrix in float64.

    In float64 the Gram matrix resolves directions down to about 3e-7 of the largest singular value, below what float32
    weights hold; in float32 it would lose everything below 3e-4, which the largest cosine needs.

    Parameters
    ----------
    weight : torch.Tensor of shape (out, in)
        Any floating type.

    Raises
    ------
    CourseError
        If it is no matrix, or holds NaN or infinity.
    """
    require_finite(weight, name)
    exponent = 0
    if (largest := weight.abs().max().item()) and not 1e-60 < largest < 1e60:  # its squares would leave float64
        exponent = math.frexp(largest)[1]
        weight = torch.ldexp(weight.double(), torch.tensor(-exponent))
    values, basis = torch.linalg.eigh(gram(weight))
    values = torch.ldexp(values.flip(-1).clamp(min=0).sqrt(), torch.tensor(exponent))
    return BaseSpectrum(basis.flip(-1), values)


def require_finite(weight: torch.Tensor, name: str) -> None:
    """CourseError unless `weight` is a floating matrix of finite values."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise CourseError(f"{name}: a spectrum needs a floating-point matrix, but got {weight.dtype} of shape "
                          f"{tuple(weight.shape)}.")
    # One pass without a temporary; it can overflow, so the slow question is asked only then.
    if not torch.linalg.vector_norm(weight, dtype=torch.float64).isfinite() and not weight.isfinite().all():
        raise CourseError(f"{name} holds NaN or infinite values, so it has no singular vectors; the checkpoint is "
                          "damaged or its training diverged.")


def rounding_level(shape: tuple[int, ...], norm: float) -> float:
    """A bound on what float64 rounding does to a Gram matrix and its eigendecomposition: (out + in) u ||W||_F^2.

    Forming W W^T errs by at most n u ||W||_F^2 in norm for a sum of n terms, and a symmetric eigensolver's backward
    error is a small multiple of q u ||W W^T||; both lie under this bound (Golub & Van Loan, sections 2.7 and 8.3).
    """
    return (shape[0] + shape[1]) * UNIT_ROUNDOFF * norm**2
