"""Thin SVDs, the similarity of two bases, and which of a base's vectors is an intruder.

Notation of the first paper: W0 is the pretrained matrix, Wt the tuned one (merged), both (out, in) as PyTorch keeps
them; W = U diag(S) V^T with singular values descending. Left vectors live on the output side.
"""

import math
from typing import NamedTuple, Protocol, TypeVar

import torch

from utils.errors import CourseError

Answer = TypeVar("Answer", covariant=True)


class Cosines(Protocol[Answer]):
    """A number, or an array or a column of numbers, that answers a comparison with a bool, or with one for each."""

    def __lt__(self, other: float, /) -> Answer: ...


class SingularTriplets(NamedTuple):
    """A thin SVD: ``u`` (out, q), ``s`` (q,) descending, ``vt`` (q, in), q = min(out, in)."""

    u: torch.Tensor
    s: torch.Tensor
    vt: torch.Tensor


def thin_svd(matrix: torch.Tensor, *, name: str = "matrix") -> SingularTriplets:
    """Exact thin SVD by LAPACK, in the matrix's own float32 or float64.

    Never a randomised one: at its defaults ``torch.svd_lowrank`` mixes neighbouring vectors, which lowers their
    cosines and so invents intruders.

    Raises
    ------
    CourseError
        If the tensor is not a matrix of float32 or float64, or holds NaN or infinity.

    Examples
    --------
    >>> thin_svd(torch.diag(torch.tensor([1.0, 3.0]))).s
    tensor([3., 1.])
    """
    if matrix.ndim != 2 or matrix.dtype not in (torch.float32, torch.float64):
        raise CourseError(f"{name}: an SVD needs a float32 or float64 matrix, but got {matrix.dtype} of shape "
                          f"{tuple(matrix.shape)}; load checkpoints with dtype=torch.float32.")
    if not matrix.isfinite().all():
        raise CourseError(f"{name} holds NaN or infinite values, so it has no singular vectors; the checkpoint is "
                          "damaged or its training diverged.")
    return SingularTriplets(*torch.linalg.svd(matrix, full_matrices=False))


def similarity(tuned: SingularTriplets, base: SingularTriplets, *, vectors: str = "left",
               top: int | None = None) -> torch.Tensor:
    """Absolute cosines between tuned and pretrained singular vectors.

    Parameters
    ----------
    tuned, base : SingularTriplets
        Of two matrices of one shape.
    vectors : {"left", "right"}
    top : int, optional
        Only the first `top` tuned vectors (rows).

    Returns
    -------
    torch.Tensor of shape (top or q, q)
        Entry (j, i) is |<tuned vector j, pretrained vector i>|, in 0 … 1. Absolute, because an SVD's signs are
        arbitrary.

    References
    ----------
    arXiv 2410.21228v3, Figs 1, 3 and 9; the authors' ``find_intruder_dimensions.py``.
    """
    if tuned.u.shape != base.u.shape or tuned.vt.shape != base.vt.shape:
        raise CourseError(f"The base matrix is {(base.u.shape[0], base.vt.shape[1])} but the tuned one "
                          f"{(tuned.u.shape[0], tuned.vt.shape[1])}; are they from the same architecture?")
    rows, columns = (tuned.u.T, base.u) if vectors == "left" else (tuned.vt, base.vt.T)
    return (rows[:top] @ columns).abs()


def max_cosines(tuned: SingularTriplets, base: SingularTriplets, *, vectors: str = "left",
                top: int | None = None) -> torch.Tensor:
    """For each tuned vector, its largest absolute cosine with any pretrained vector; shape (top or q,).

    Parameters
    ----------
    tuned, base : SingularTriplets
        Of two matrices of one shape.
    vectors : {"left", "right"}
    top : int, optional
        Only the first `top` tuned vectors.
    """
    return similarity(tuned, base, vectors=vectors, top=top).amax(1).clamp(max=1.0)


def is_intruder(max_cosine: Cosines[Answer], epsilon: float) -> Answer:
    """Whether a leading tuned vector resembles no pretrained one: its largest absolute cosine is strictly below.

    Parameters
    ----------
    max_cosine : float, torch.Tensor, pandas.Series or numpy.ndarray
        In 0 … 1, of a vector that is among the k leading ones. NaN is no intruder.
    epsilon : float
        In 0 … 1.

    Examples
    --------
    >>> is_intruder(torch.tensor([0.49, 0.5]), 0.5).tolist()
    [True, False]
    """
    return max_cosine < epsilon


def random_level(dimension: int, count: int) -> float:
    """About the maximal cosine that a random direction reaches: sqrt(2 ln(2 count) / dimension).

    The formula lies some 15 % above the mean of the maximum. Left of this level a curve of intruder counts says
    little: a direction has to be less like the pretrained ones than a random one is to be counted there.

    Parameters
    ----------
    dimension : int
        Length of the vectors (the matrix's output width for left vectors).
    count : int
        Number of pretrained vectors, q.

    Examples
    --------
    >>> round(random_level(768, 768), 2)
    0.14
    """
    return min(1.0, math.sqrt(2 * math.log(2 * count) / dimension))
