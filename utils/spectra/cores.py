"""Matrices on their way to the solver: Wt Wt^T in the basis of W0, from its parts, in batches.

The algebra and its bounds are derived in :mod:`utils.spectra.fast`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.errors import CourseError
from utils.low_rank import LowRankUpdate
from utils.spectra.base import (
    BaseSpectrum,
    gram,
    require_finite,
    rounding_level,
    small_side,
    times_long_side,
    times_small_side,
)
from utils.spectra.leading import (
    Preconditioner,
    RitzPairs,
    bound_between,
    dense_bound_holds,
    inverse_middle,
    leading_pairs,
    low_rank_bound_holds,
    starting_subspace,
)
from utils.spectra.pairs import Pair, Tuned, is_far

EXACT_RANK = 12  # up to here the whole update goes into the preconditioner
BATCH_BYTES = 12 * 2**20  # of solver workspace at a time
DENSE_BATCHES_ON = ("cuda",)  # kinds of device on which a batch of dense updates pays
ORDINARY = (1e-60, 1e60)  # sizes whose squares and products float64 holds; anything else goes to the definition


@dataclass
class Core:
    """One matrix on its way to the solver: in the basis Q, without W0 where the update is of low rank."""

    pair: Pair
    shape: tuple[int, ...]  # (out, in)
    values: torch.Tensor  # W0's singular values (q,)
    level: float  # eta
    far: bool  # whether the wanted vectors are those of the longer side

    method = "full-svd"

    def joins(self, other: "Core", count: int) -> bool:
        """Whether `other` may go into one batch with `count` cores like this one."""
        return False


@dataclass
class LowRankCore(Core):
    """For an update of low rank: three thin matrices, and nothing of W0's size."""

    left: torch.Tensor  # X^T (r, q)
    right: torch.Tensor  # B^T (r, q)
    inner: torch.Tensor  # R^T R (r, r)

    method = "lowrank-core"

    def joins(self, other: Core, count: int) -> bool:
        """Whether both are of low rank and one shape, and there is room."""
        row_bytes = 8 * (2 * len(self.left) + 220) * len(self.values)
        return isinstance(other, LowRankCore) and self.left.shape == other.left.shape \
            and (count + 1) * row_bytes <= BATCH_BYTES


@dataclass
class DenseCore(Core):
    """For a dense update: the Gram matrix of Wt and what takes its vectors to the other side."""

    basis: torch.Tensor  # Q
    gram: torch.Tensor  # Wt Wt^T, smaller side
    base: torch.Tensor  # W0 and Wt, smaller side first, for the vectors of the longer side
    tuned: torch.Tensor

    method = "leading-vectors"

    def joins(self, other: Core, count: int) -> bool:
        """Whether both lie where a batch pays, and there is room."""
        own_bytes = 8 * (4 * self.gram.numel() + 2 * self.tuned.numel())
        return isinstance(other, DenseCore) and self.gram.device.type in DENSE_BATCHES_ON \
            and self.gram.shape == other.gram.shape and (count + 1) * own_bytes <= 8 * BATCH_BYTES


def prepare(pair: Pair, k: int, vectors: str, *, spectrum: Callable[..., BaseSpectrum], device: str,
            direct_below: int) -> Core:
    """The core of one pair; a plain :class:`Core` where the definition itself is to be computed.

    Parameters
    ----------
    pair : Pair
    k : int
        Leading tuned vectors that are wanted.
    vectors : {"left", "right"}
    spectrum : callable
        W0 -> BaseSpectrum.
    device : str
        Where the core's tensors are to lie.
    direct_below : int
        Matrices narrower than this are left to the definition.

    Raises
    ------
    CourseError
        If shapes differ, or a value or the update's scale is not finite; the matrix is named.
    """
    base, tuned = pair.load()
    shape = tuple(base.shape)
    _require_same(pair.name, shape, _shape_of(pair.name, tuned))
    q, far = min(shape), is_far(shape, vectors)
    if q < direct_below:
        return Core(pair, shape, base.new_empty(0), 0.0, far)
    own = spectrum(base, name=f"base matrix {pair.name}")
    if not ORDINARY[0] < own.values[0] < ORDINARY[1]:
        return Core(pair, shape, base.new_empty(0), 0.0, far)
    own, base = BaseSpectrum(own.basis.to(device), own.values.to(device)), base.to(device)
    if isinstance(tuned, LowRankUpdate):
        if not math.isfinite(tuned.scale):
            raise CourseError(f"tuned matrix {pair.name} holds NaN or infinite values, since the scale of its update "
                              f"is {tuned.scale}; it should be alpha / r.")
        tuned = LowRankUpdate(tuned.b.to(device), tuned.a.to(device), tuned.scale)
        if 6 * tuned.a.shape[0] <= q and 4 * k <= q:
            return _low_rank_core(pair, base, tuned, own=own, far=far)
        tuned = tuned.added_to(base)  # what is not finite in a factor is not finite in here either
    tuned = small_side(tuned.to(device))
    squares = gram(tuned)
    size = squares.trace().sqrt().item()
    if not ORDINARY[0] < size < ORDINARY[1]:
        require_finite(tuned, f"tuned matrix {pair.name}")
        return Core(pair, shape, base.new_empty(0), 0.0, far)
    level = rounding_level(shape, own.values.norm().item() + size)
    return DenseCore(pair, shape, own.values, level, far, own.basis, squares, small_side(base), tuned)


def _shape_of(name: str, tuned: Tuned) -> tuple[int, ...]:
    if not isinstance(tuned, LowRankUpdate):
        return tuple(tuned.shape)
    if tuned.b.shape[1:] != tuned.a.shape[:1]:
        raise CourseError(f"Matrix '{name}': B is {tuple(tuned.b.shape)} and A {tuple(tuned.a.shape)}, which share no "
                          "rank; are they of one adapter?")
    return len(tuned.b), tuned.a.shape[1]


def _require_same(name: str, base: tuple, tuned: tuple) -> None:
    if base != tuned:
        raise CourseError(f"Matrix '{name}' is {base} in the base model but {tuned} in the tuned one; are they of the "
                          "same architecture?")


def _low_rank_core(pair: Pair, base: torch.Tensor, update: LowRankUpdate, *, own: BaseSpectrum, far: bool) -> Core:
    shape = tuple(base.shape)
    wide = shape[0] <= shape[1]
    # Rows throughout: a few rows times a large matrix runs two to four times faster than the transposed product.
    near, away = (update.b.T, update.a) if wide else (update.a, update.b.T)
    away = away.double().contiguous()
    crossed = times_long_side(away, small_side(base))
    in_basis = torch.cat([crossed, update.scale * near.double()]) @ own.basis
    r = len(away)
    change = in_basis[r:].norm().item() * away.norm().item()
    if not change < ORDINARY[1]:
        for factor in (update.b, update.a):
            require_finite(factor, f"tuned matrix {pair.name}")
        return Core(pair, shape, base.new_empty(0), 0.0, far)
    size = own.values.norm().item() + change
    return LowRankCore(pair, shape, own.values, rounding_level(shape, size), far, in_basis[:r], in_basis[r:],
                        away @ away.T)


class LowRankBatch:
    """C = diag(d) + X B^T + B X^T + B N B^T for matrices of one q and r, applied from its parts."""

    def __init__(self, cores: list[LowRankCore]):
        self.diagonal = torch.stack([core.values for core in cores]).square()
        self.left, self.right, self.inner = (torch.stack([getattr(core, part) for core in cores])
                                             for part in ("left", "right", "inner"))

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """C y for each row y."""
        along = rows @ self.right.mT
        across = rows @ self.left.mT + along @ self.inner
        return rows * self.diagonal[:, None] + along @ self.left + across @ self.right

    def crossed(self, rows: torch.Tensor) -> torch.Tensor:
        """Q^T W0 Wt^T Q y for each row y."""
        return rows * self.diagonal[:, None] + (rows @ self.right.mT) @ self.left

    def solve(self, k: int, noise: torch.Tensor) -> tuple[RitzPairs, torch.Tensor]:
        """The k leading eigenpairs, and tau below which all others lie (infinite where that is not certified)."""
        r = self.left.shape[1]
        directions = self.right if r <= k + 1 else self._leading_directions(k + 1)
        preconditioner = Preconditioner(self.diagonal)
        if r <= EXACT_RANK:
            whole = torch.cat([self.left, self.right], dim=1)
            preconditioner = Preconditioner(self.diagonal, whole, inverse_middle(self.inner))
        start = starting_subspace(self.diagonal.shape[1], k, directions)
        pairs = leading_pairs(self.apply, preconditioner, start, k=k, noise=noise)
        tau = bound_between(pairs, self.diagonal)
        holds = low_rank_bound_holds(self.diagonal, self.left, self.right, inner=self.inner, tau=tau, k=k)
        return pairs, torch.where(holds, tau, torch.inf)

    def _leading_directions(self, count: int) -> torch.Tensor:
        """Directions rich in the update's leading ones: mixtures of all its directions, once through its own core."""
        generator = torch.Generator().manual_seed(0)
        mixture = torch.randn(count, self.right.shape[1], generator=generator, dtype=torch.float64)
        mixed = mixture.to(self.right.device) @ self.right
        return (mixed @ self.right.mT @ self.inner) @ self.right


def _stack(matrices: list[torch.Tensor]) -> torch.Tensor:
    """One batch; a view where it is of one matrix, as it always is on a CPU."""
    return matrices[0][None] if len(matrices) == 1 else torch.stack(matrices)


class DenseBatch:
    """C = Q^T (Wt Wt^T) Q for matrices of one q."""

    def __init__(self, cores: list[DenseCore]):
        self.cores = cores
        self.diagonal = torch.stack([core.values for core in cores]).square()
        self.basis, self.gram = _stack([core.basis for core in cores]), _stack([core.gram for core in cores])

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """C y for each row y."""
        return ((rows @ self.basis.mT) @ self.gram) @ self.basis

    def crossed(self, rows: torch.Tensor) -> torch.Tensor:
        """Q^T W0 Wt^T Q y for each row y."""
        moved = []
        for core, vectors in zip(self.cores, rows @ self.basis.mT, strict=True):
            moved.append(times_long_side(times_small_side(vectors, core.tuned), core.base) @ core.basis)
        return torch.stack(moved)

    def solve(self, k: int, noise: torch.Tensor) -> tuple[RitzPairs, torch.Tensor]:
        """The k leading eigenpairs, and tau below which all others lie (infinite where that is not certified)."""
        if 4 * k > self.diagonal.shape[1]:
            return self._all(k)
        nothing = self.diagonal.new_empty(len(self.diagonal), 0, self.diagonal.shape[1])
        start = starting_subspace(self.diagonal.shape[1], k, nothing)
        pairs = leading_pairs(self.apply, Preconditioner(self.diagonal), start, k=k, noise=noise)
        tau = bound_between(pairs, self.diagonal)
        holds = dense_bound_holds(self.gram, pairs.vectors @ self.basis.mT, pairs.values, tau=tau, noise=noise)
        return pairs, torch.where(holds, tau, torch.inf)

    def _all(self, k: int) -> tuple[RitzPairs, torch.Tensor]:
        """Every pair at once, where that is cheaper; there is nothing below to be bounded but the next value."""
        values, vectors = torch.linalg.eigh(self.gram)
        values, vectors = values.flip(-1), vectors.flip(-1).mT @ self.basis
        rest = values[:, k] if k < values.shape[1] else torch.full_like(values[:, 0], -torch.inf)
        return RitzPairs(values[:, :k], vectors[:, :k], torch.zeros_like(values[:, :k]), rest), rest


def batch_of(cores: list[Core]) -> LowRankBatch | DenseBatch:
    """The solver of cores of one kind and shape."""
    low_rank = [core for core in cores if isinstance(core, LowRankCore)]
    return LowRankBatch(low_rank) if low_rank else DenseBatch([core for core in cores if isinstance(core, DenseCore)])
