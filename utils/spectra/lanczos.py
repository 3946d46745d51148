"""Largest and smallest eigenvalue of a symmetric operator of which only products with vectors are known.

SciPy's ``eigsh`` finds the same values, but runs each end to a tolerance of its own and returns no residual. Here one
run serves both ends, and says how near it came.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal

from utils.errors import CourseError, UsageError

# Over the spectral scale: an extreme value's change in one iteration, and its residual. Ten times as loose, a whole
# LoRA adapter at its start stopped at the second of a cluster of values, 1 % off (8 products instead of 23).
TOLERANCE = 1e-4
RESIDUAL = 1e-3
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Extremes:
    """Both ends of a spectrum; an eigenvalue lies within the residual of each.

    The relative residuals are over the spectral scale, the larger of |largest| and |smallest|; 0 for the zero operator.
    """

    largest: float
    smallest: float
    residual_largest: float
    residual_smallest: float
    relative_residual_largest: float
    relative_residual_smallest: float
    iterations: int
    converged: bool


def lanczos(operator: Callable[[torch.Tensor], torch.Tensor], size: int, *, tolerance: float = TOLERANCE,
            residual_tolerance: float = RESIDUAL, max_iterations: int = MAX_ITERATIONS, seed: int = 0,
            dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
            basis_device: str | torch.device | None = None) -> Extremes:
    """Both ends of the spectrum by Lanczos' method with full re-orthogonalisation.

    It stops when, at both ends, the value changed by at most `tolerance` and the residual |beta_k s_k| is at most
    `residual_tolerance`, each times the spectral scale; or when the basis spans an invariant subspace, whose extreme
    values are exact for every eigenvector with a share in the random start. Otherwise, after `max_iterations`, it
    returns ``converged=False``. Both rules can be met by a neighbour of the extreme value, as in a cluster; another
    `seed` or stricter limits show it.

    Parameters
    ----------
    operator : callable
        Flat vector of `dtype` on `device` to the same; symmetric.
    size : int
        The vector's length.
    basis_device : optional
        Where the basis is kept, in float64: 8 * size bytes for each iteration. By default `device`.

    Raises
    ------
    CourseError
        If a product holds NaN or infinity.

    References
    ----------
    Golub and Van Loan, Matrix Computations, 4th ed., section 10.1 (residuals: theorem 10.1.2).

    Examples
    --------
    >>> round(lanczos(lambda vector: vector * torch.tensor([3.0, -1.0, 0.5]), 3).largest, 5)
    3.0
    """
    if size < 1 or max_iterations < 1:
        raise UsageError(f"Expected one or more parameters and iterations, got {size} and {max_iterations}; "
                         "do give a block that trains something.")
    basis_device = basis_device or device
    basis, values = [_start(size, seed).to(basis_device)], np.full(2, np.inf)
    diagonal: list[float] = []
    beside: list[float] = []
    for iteration in range(1, min(size, max_iterations) + 1):
        image = operator(basis[-1].to(device, dtype)).to(basis_device, torch.float64)
        if not image.isfinite().all():
            raise CourseError(f"Expected finite numbers from the operator, but product {iteration} holds NaN or "
                              "infinity; do check that the run did not diverge.")
        diagonal.append(float(basis[-1] @ image))
        beta = _orthogonalise(image, basis) if iteration < size else 0.0
        before, (values, residuals) = values, _ritz_ends(diagonal, beside, beta)
        scale = float(np.abs(values).max())
        invariant = beta <= 10 * torch.finfo(dtype).eps * scale
        settled = bool((np.abs(values - before) <= tolerance * scale).all()
                       and (residuals <= residual_tolerance * scale).all())
        if invariant or settled:
            break
        beside.append(beta)
        basis.append(image / beta)
    relative = residuals / scale if scale else np.zeros(2)
    return Extremes(float(values[0]), float(values[1]), float(residuals[0]), float(residuals[1]), float(relative[0]),
                    float(relative[1]), iterations=iteration, converged=invariant or settled)


def _start(size: int, seed: int) -> torch.Tensor:
    """A random unit vector, the same on every device."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def _orthogonalise(image: torch.Tensor, basis: list[torch.Tensor]) -> float:
    """Take the basis out of `image`, in place, and return the norm of what is left; twice, as once leaves rounding."""
    for _ in range(2):
        for row in basis:
            image.sub_(row, alpha=float(row @ image))
    return float(image.norm())


def _ritz_ends(diagonal: list[float], beside: list[float], beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Largest and smallest eigenvalue of the tridiagonal matrix, and their residuals; two numbers each."""
    if not beside:
        return np.repeat(diagonal, 2), np.repeat(beta, 2)
    values, vectors = eigh_tridiagonal(diagonal, beside)
    return values[[-1, 0]], abs(beta * vectors[-1, [-1, 0]])


def dense(operator: Callable[[torch.Tensor], torch.Tensor], size: int, *, dtype: torch.dtype = torch.float32,
          device: str | torch.device = "cpu") -> torch.Tensor:
    """The operator as a matrix, column by column: `size` products. For small blocks and for checks.

    Parameters
    ----------
    operator : callable
        Takes and returns a tensor of shape (size,).
    size : int
    dtype : torch.dtype
    device : str or torch.device
        Where the columns that it is given lie.

    Returns
    -------
    torch.Tensor of shape (size, size)
        Not symmetrised: its asymmetry shows the rounding.
    """
    return torch.stack([operator(column) for column in torch.eye(size, dtype=dtype, device=device)], dim=1)
