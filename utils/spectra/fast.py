r"""The definition's counts at a fraction of its cost, with a bound that says when they could differ.

The definition (:mod:`utils.spectra.intruders`) asks for s_j = max_i |<u_j, u0_i>| of the k leading left vectors u_j of
Wt against all left vectors u0_i of W0, by two full SVDs. Here:

- W0's part is one eigendecomposition per base matrix, kept (:mod:`utils.spectra.base`). With W0 the smaller side first
  (q x n), W0 W0^T = Q L Q^T, L = diag(s_i^2).
- **lowrank-core**: Wt = W0 + s P R^T (LoRA: P R^T is B A). In the basis Q, with X = Q^T W0 R and B = s Q^T P,
  C = Q^T Wt Wt^T Q = L + X B^T + B X^T + B (R^T R) B^T, a diagonal plus rank 2r: no matrix of W0's size is formed.
- **leading-vectors**: for a dense update C = Q^T (Wt Wt^T) Q is applied, never formed.
- The k leading eigenpairs (theta, y) of C follow in a few rounds (:mod:`utils.spectra.leading`). For vectors of the
  smaller side the cosines *are* the entries |y_i|; for the longer side they are (Q^T W0 Wt^T Q y)_i / (s_i sigma_j).
- **full-svd**: the definition itself, in float64, for small matrices, large k, and whatever the bound leaves open.

**The bound.** All of it is about directions, float64, u = 2^-53.

1. *Tuned vectors.* A certificate shows that no eigenvalue but the k found ones exceeds some tau < theta_k: a Cholesky
   factor of the deflated matrix, or Sylvester's law of inertia for the core. A Ritz pair with residual rho_j then makes
   an angle of at most (rho_j + eta) / gamma_j with the true vector, gamma_j its distance to tau and to the other found
   values less their residuals (Davis & Kahan; Parlett, theorem 11.7.1); a cosine changes by sqrt(2) times that at most.
   eta = (out + in) u (||W0||_F + N)^2, N = ||Wt||_F or s ||P||_F ||R||_F, covers the rounding of the Gram matrix, of
   the core, and of the definition's own SVD. On the longer side the angle grows by sigma_1 / sigma_j, and by
   eta / sigma_j^2 on top, because sigma_j itself is known to eta / (2 sigma_j) only.
2. *Pretrained vectors.* Vector i turns by at most delta_i = eta / gap_i, gap_i its distance to its neighbours in s^2,
   and on the longer side by (s_(i-1) / s_i) delta_i + (out + in) u s_1 / s_i + eta / s_i^2, the last because s_i itself
   is known to eta / (2 s_i) only. Vectors whose delta_i exceeds 1e-3 (repeated or nearly repeated singular values) are
   not determined one by one; their span is. What a group of m such vectors can contribute to s_j lies between
   p / sqrt(m) and p, p the norm of u_j's projection onto the span. A null space has no determined vectors on the longer
   side at all: the bounds there are 0 and what all others leave of u_j.
3. Together s_j lies in an interval [low, high]. An epsilon outside of it is decided. If one lies within for any j, that
   matrix is recomputed by the definition, which also settles ties, where s_j is whatever its SVD happens to return.

So the counts are the definition's at every epsilon that is asked for, always.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch

from utils.errors import CourseError
from utils.low_rank import LowRankUpdate
from utils.spectra.base import (
    UNIT_ROUNDOFF,
    BaseSpectrum,
    base_spectrum,
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
from utils.spectra.svd import SingularTriplets, max_cosines, thin_svd

DIRECT_BELOW = 129  # below this width the definition itself is as fast
EXACT_RANK = 12  # up to here the whole update goes into the preconditioner
BATCH_BYTES = 12 * 2**20  # of solver workspace at a time
_ORDINARY = (1e-60, 1e60)  # sizes whose squares and products float64 holds; anything else goes to the definition
DETERMINED = 1e-3  # an angle above this leaves a pretrained vector undetermined


Tuned = torch.Tensor | LowRankUpdate


def merged_weight(base: torch.Tensor, tuned: Tuned) -> torch.Tensor:
    """Wt in float64, however it is given."""
    return tuned.added_to(base) if isinstance(tuned, LowRankUpdate) else tuned.double()


def is_far(shape: tuple[int, int], vectors: str) -> bool:
    """Whether the wanted vectors are those of the longer side; of a square matrix the rows are the near side."""
    return (shape[0] > shape[1]) == (vectors == "left")


@dataclass(frozen=True)
class Pair:
    """One matrix of two checkpoints; ``load`` reads (W0, Wt or its low-rank update) and may be called again."""

    name: str
    load: Callable[[], tuple[torch.Tensor, Tuned]]


class Leading(NamedTuple):
    """What the counts of one matrix follow from; tensors are float64 on the CPU, of length k (or q if smaller)."""

    name: str
    shape: tuple[int, int]
    method: str
    singular_values: torch.Tensor
    max_cosines: torch.Tensor
    errors: torch.Tensor  # half the width that the bound leaves each cosine; 0 where the definition was computed
    base_values: torch.Tensor  # W0's singular values, all q


def leading_cosines(pairs: Iterable[Pair], *, k: int = 10, epsilons: Sequence[float] = (0.5,), vectors: str = "left",
                    spectrum: Callable[..., BaseSpectrum] = base_spectrum, device: str = "cpu",
                    direct_below: int = DIRECT_BELOW) -> Iterator[Leading]:
    """Singular values and largest cosines of the k leading tuned vectors of each pair, streamed, in the pairs' order.

    Parameters
    ----------
    pairs : iterable of Pair
        Matrices (out, in) of any floating type; one is in memory at a time, or one batch of small cores.
    k : int
        Leading tuned vectors per matrix; all of them where a matrix has fewer.
    epsilons : sequence of float
        The thresholds at which the counts must be the definition's.
    vectors : {"left", "right"}
        Output side (the papers') or input side.
    spectrum : callable
        W0 -> BaseSpectrum; pass a cache's method so that it is computed once per base matrix.
    device : str
        ``"cpu"`` or ``"cuda"``.
    direct_below : int
        Matrices narrower than this are computed by the definition.

    Raises
    ------
    CourseError
        If shapes differ, or a matrix holds NaN or infinity; the matrix is named.

    References
    ----------
    arXiv 2410.21228v3, Definition 3.1 and Algorithm 1. The core is the algebra of Brand's update of an SVD.

    Examples
    --------
    >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> moved = LowRankUpdate(torch.full((3, 1), 9.0), torch.tensor([[0.0, 1.0, 0.0]]), 1.0)
    >>> [round(x, 2) for x in next(leading_cosines([Pair("w", lambda: (w, moved))], k=2)).max_cosines.tolist()]
    [0.65, 0.84]
    """
    if vectors not in ("left", "right"):
        raise CourseError(f"vectors must be 'left' or 'right', but is '{vectors}'.")
    waiting: list[_Core] = []
    for pair in pairs:
        core = _prepare(pair, k, vectors, spectrum, device, direct_below)
        if waiting and not waiting[0].joins(core, len(waiting)):
            yield from _solved(waiting, k, epsilons, vectors)
            waiting = []
        waiting.append(core)
    if waiting:
        yield from _solved(waiting, k, epsilons, vectors)


def leading_table(found: Iterable[Leading]) -> pd.DataFrame:
    """A vector table (:func:`utils.spectra.vector_table`) of the k leading vectors, with ``computed_by`` and ``error``.

    Returns
    -------
    pandas.DataFrame
        One row per matrix and vector: ``matrix``, ``index`` (from 1), ``singular_value``, ``max_cosine``, ``error``
        (the bound on it), ``computed_by``, ``out``, ``in``, and ``base_largest``, W0's largest singular value.
    """
    return pd.concat([pd.DataFrame({
        "matrix": one.name, "index": range(1, len(one.max_cosines) + 1), "singular_value": one.singular_values.numpy(),
        "max_cosine": one.max_cosines.numpy(), "error": one.errors.numpy(), "computed_by": one.method,
        "out": one.shape[0], "in": one.shape[1], "base_largest": one.base_values[0].item()}) for one in found],
        ignore_index=True)


def vectors_between(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], **options) -> pd.DataFrame:
    """:func:`leading_table` of two models' matrices, matrix by matrix.

    Parameters
    ----------
    before, after : mapping of str to torch.Tensor
        W0 and Wt by name, (out, in), of any floating type; every name of `after` must be in `before`.
    **options
        As :func:`leading_cosines` takes them: ``k``, ``epsilons``, ``vectors``, ``spectrum``, ``device``.
    """
    pairs = (Pair(name, lambda name=name: (before[name], after[name])) for name in after)
    return leading_table(leading_cosines(pairs, **options))


def leading_triplets(pair: Pair, *, k: int = 10, spectrum: Callable[..., BaseSpectrum] = base_spectrum,
                     direct_below: int = DIRECT_BELOW) -> SingularTriplets:
    """The k leading singular triplets of one tuned matrix, by the same core: what an intervention works on.

    Returns
    -------
    SingularTriplets
        ``u`` (out, k), ``s`` (k,), ``vt`` (k, in); float64 on the CPU. Signs are arbitrary, u and vt of a triplet
        belong together.
    """
    base, tuned = pair.load()
    merged = merged_weight(base, tuned)
    core = _prepare(pair, k, "left", spectrum, "cpu", direct_below)
    if type(core) is not _Core:
        pairs, tau = _batch([core]).solve(min(k, len(core.values)), torch.tensor([core.level], dtype=torch.float64))
        found = RitzPairs(*(part[0] for part in pairs))
        if (tuned_angles(found, tau.item(), core.level) < DETERMINED).all():
            near = found.vectors @ spectrum(base, name=pair.name).basis.T
            sigma = found.values.clamp(min=0).sqrt()
            away = times_small_side(near, small_side(merged)) / sigma[:, None]
            wide = merged.shape[0] <= merged.shape[1]
            return SingularTriplets(near.T, sigma, away) if wide else SingularTriplets(away.T, sigma, near)
    exact = thin_svd(merged, name=f"tuned matrix {pair.name}")
    return SingularTriplets(exact.u[:, :k], exact.s[:k], exact.vt[:k])


@dataclass
class _Core:
    """One matrix on its way to the solver: in the basis Q, without W0 where the update is of low rank."""

    pair: Pair
    shape: tuple[int, int]
    values: torch.Tensor  # W0's singular values (q,)
    level: float  # eta
    far: bool  # whether the wanted vectors are those of the longer side

    method = "full-svd"

    def joins(self, other: "_Core", count: int) -> bool:
        """Whether `other` may go into one batch with `count` cores like this one."""
        return False


@dataclass
class _LowRankCore(_Core):
    left: torch.Tensor  # X^T (r, q)
    right: torch.Tensor  # B^T (r, q)
    inner: torch.Tensor  # R^T R (r, r)

    method = "lowrank-core"

    def joins(self, other, count):
        row_bytes = 8 * (2 * len(self.left) + 220) * len(self.values)
        return isinstance(other, _LowRankCore) and self.left.shape == other.left.shape \
            and (count + 1) * row_bytes <= BATCH_BYTES


@dataclass
class _DenseCore(_Core):
    basis: torch.Tensor  # Q
    gram: torch.Tensor  # Wt Wt^T, smaller side
    base: torch.Tensor  # W0 and Wt, smaller side first, for the vectors of the longer side
    tuned: torch.Tensor

    method = "leading-vectors"

    def joins(self, other, count):
        return isinstance(other, _DenseCore) and self.gram.is_cuda and self.gram.shape == other.gram.shape \
            and (count + 1) * 8 * (4 * self.gram.numel() + 2 * self.tuned.numel()) <= 8 * BATCH_BYTES


def _prepare(pair: Pair, k: int, vectors: str, spectrum, device: str, direct_below: int) -> _Core:
    base, tuned = pair.load()
    low_rank = isinstance(tuned, LowRankUpdate)
    shape = tuple(base.shape)
    if low_rank and tuned.b.shape[1:] != tuned.a.shape[:1]:
        raise CourseError(f"Matrix '{pair.name}': B is {tuple(tuned.b.shape)} and A {tuple(tuned.a.shape)}, which "
                          "share no rank; are they of one adapter?")
    _require_same(pair.name, shape, (len(tuned.b), tuned.a.shape[1]) if low_rank else tuple(tuned.shape))
    q, far = min(shape), is_far(shape, vectors)
    if q < direct_below:
        return _Core(pair, shape, base.new_empty(0), 0.0, far)
    own = spectrum(base, name=f"base matrix {pair.name}")
    if not _ORDINARY[0] < own.values[0] < _ORDINARY[1]:
        return _Core(pair, shape, base.new_empty(0), 0.0, far)
    own, base = BaseSpectrum(own.basis.to(device), own.values.to(device)), base.to(device)
    if low_rank:
        if not math.isfinite(tuned.scale):
            raise CourseError(f"tuned matrix {pair.name} holds NaN or infinite values, since the scale of its update "
                              f"is {tuned.scale}; it should be alpha / r.")
        tuned = LowRankUpdate(tuned.b.to(device), tuned.a.to(device), tuned.scale)
        if 6 * tuned.a.shape[0] <= q and 4 * k <= q:
            return _low_rank_core(pair, shape, base, tuned, own, far)
        tuned = tuned.added_to(base)  # what is not finite in a factor is not finite in here either
    tuned = small_side(tuned.to(device))
    squares = gram(tuned)
    size = squares.trace().sqrt().item()
    if not _ORDINARY[0] < size < _ORDINARY[1]:
        require_finite(tuned, f"tuned matrix {pair.name}")
        return _Core(pair, shape, base.new_empty(0), 0.0, far)
    level = rounding_level(shape, own.values.norm().item() + size)
    return _DenseCore(pair, shape, own.values, level, far, own.basis, squares, small_side(base), tuned)


def _require_same(name: str, base: tuple, tuned: tuple) -> None:
    if base != tuned:
        raise CourseError(f"Matrix '{name}' is {base} in the base model but {tuned} in the tuned one; are they of the "
                          "same architecture?")


def _low_rank_core(pair: Pair, shape, base: torch.Tensor, update: LowRankUpdate, own: BaseSpectrum, far: bool) -> _Core:
    wide = shape[0] <= shape[1]
    # Rows throughout: a few rows times a large matrix runs two to four times faster than the transposed product.
    near, away = (update.b.T, update.a) if wide else (update.a, update.b.T)
    away = away.double().contiguous()
    crossed = times_long_side(away, small_side(base))
    in_basis = torch.cat([crossed, update.scale * near.double()]) @ own.basis
    r = len(away)
    change = in_basis[r:].norm().item() * away.norm().item()
    if not change < _ORDINARY[1]:
        for factor in (update.b, update.a):
            require_finite(factor, f"tuned matrix {pair.name}")
        return _Core(pair, shape, base.new_empty(0), 0.0, far)
    size = own.values.norm().item() + change
    return _LowRankCore(pair, shape, own.values, rounding_level(shape, size), far, in_basis[:r], in_basis[r:],
                        away @ away.T)


class _LowRankBatch:
    """C = diag(d) + X B^T + B X^T + B N B^T for matrices of one q and r, applied from its parts."""

    def __init__(self, cores: list[_LowRankCore]):
        self.diagonal = torch.stack([core.values for core in cores]).square()
        self.left, self.right, self.inner = (torch.stack([getattr(core, part) for core in cores])
                                             for part in ("left", "right", "inner"))

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        along = rows @ self.right.mT
        across = rows @ self.left.mT + along @ self.inner
        return rows * self.diagonal[:, None] + along @ self.left + across @ self.right

    def crossed(self, rows: torch.Tensor) -> torch.Tensor:
        """Q^T W0 Wt^T Q y for each row y."""
        return rows * self.diagonal[:, None] + (rows @ self.right.mT) @ self.left

    def solve(self, k: int, noise: torch.Tensor) -> tuple[RitzPairs, torch.Tensor]:
        r = self.left.shape[1]
        directions = self.right if r <= k + 1 else self._leading_directions(k + 1)
        preconditioner = Preconditioner(self.diagonal)
        if r <= EXACT_RANK:
            whole = torch.cat([self.left, self.right], dim=1)
            preconditioner = Preconditioner(self.diagonal, whole, inverse_middle(self.inner))
        start = starting_subspace(self.diagonal.shape[1], k, directions)
        pairs = leading_pairs(self.apply, preconditioner, start, k, noise)
        tau = bound_between(pairs, self.diagonal)
        holds = low_rank_bound_holds(self.diagonal, self.left, self.right, self.inner, tau, k)
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


class _DenseBatch:
    """C = Q^T (Wt Wt^T) Q for matrices of one q."""

    def __init__(self, cores: list[_DenseCore]):
        self.cores = cores
        self.diagonal = torch.stack([core.values for core in cores]).square()
        self.basis, self.gram = _stack([core.basis for core in cores]), _stack([core.gram for core in cores])

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        return ((rows @ self.basis.mT) @ self.gram) @ self.basis

    def crossed(self, rows: torch.Tensor) -> torch.Tensor:
        """Q^T W0 Wt^T Q y for each row y."""
        moved = []
        for core, vectors in zip(self.cores, rows @ self.basis.mT, strict=True):
            moved.append(times_long_side(times_small_side(vectors, core.tuned), core.base) @ core.basis)
        return torch.stack(moved)

    def solve(self, k: int, noise: torch.Tensor) -> tuple[RitzPairs, torch.Tensor]:
        if 4 * k > self.diagonal.shape[1]:
            return self._all(k)
        nothing = self.diagonal.new_empty(len(self.diagonal), 0, self.diagonal.shape[1])
        start = starting_subspace(self.diagonal.shape[1], k, nothing)
        pairs = leading_pairs(self.apply, Preconditioner(self.diagonal), start, k, noise)
        tau = bound_between(pairs, self.diagonal)
        holds = dense_bound_holds(self.gram, pairs.vectors @ self.basis.mT, pairs.values, tau, noise)
        return pairs, torch.where(holds, tau, torch.inf)

    def _all(self, k: int) -> tuple[RitzPairs, torch.Tensor]:
        """Every pair at once, where that is cheaper; there is nothing below to be bounded but the next value."""
        values, vectors = torch.linalg.eigh(self.gram)
        values, vectors = values.flip(-1), vectors.flip(-1).mT @ self.basis
        rest = values[:, k] if k < values.shape[1] else torch.full_like(values[:, 0], -torch.inf)
        return RitzPairs(values[:, :k], vectors[:, :k], torch.zeros_like(values[:, :k]), rest), rest


def _batch(cores: list[_Core]) -> _LowRankBatch | _DenseBatch:
    return (_LowRankBatch if isinstance(cores[0], _LowRankCore) else _DenseBatch)(cores)


def _solved(cores: list[_Core], k: int, epsilons: Sequence[float], vectors: str) -> Iterator[Leading]:
    if type(cores[0]) is _Core:
        yield from (_definition(core, k, vectors) for core in cores)
        return
    batch = _batch(cores)
    k = min(k, len(cores[0].values))
    noise = torch.tensor([core.level for core in cores], dtype=torch.float64, device=batch.diagonal.device)
    try:
        pairs, tau = batch.solve(k, noise)
    except torch.linalg.LinAlgError:  # no convergence: nothing is known, so the definition has to say it
        yield from (_definition(core, k, vectors) for core in cores)
        return
    crossed = batch.crossed(pairs.vectors) if any(core.far for core in cores) else pairs.vectors
    for place, core in enumerate(cores):
        found = RitzPairs(*(part[place].cpu() for part in pairs))
        yield _decided(core, found, crossed[place].cpu(), tau[place].item(), epsilons) or _definition(core, k, vectors)


def _decided(core: _Core, pairs: RitzPairs, crossed: torch.Tensor, tau: float,
             epsilons: Sequence[float]) -> Leading | None:
    """The result of one matrix, or None where the bound leaves one of the epsilons open."""
    base_values, sigma = core.values.cpu(), pairs.values.clamp(min=0).sqrt()
    angles = tuned_angles(pairs, tau, core.level)
    cosines, rounding = pairs.vectors.abs(), sum(core.shape) * UNIT_ROUNDOFF
    if core.far:
        tiny = torch.finfo(torch.float64).tiny
        cosines = crossed.abs() / (base_values * sigma[:, None]).clamp(min=tiny)
        # sigma is known to eta / (2 sigma) only; where it drowns in that, Wt v / sigma has no direction.
        drowned = pairs.values <= core.level / DETERMINED
        angles = ((angles + rounding) * sigma[0] / sigma + core.level / pairs.values).where(~drowned, torch.inf)
    low, high, nearest = cosine_bounds(cosines, base_values, core.level, rounding if core.far else None)
    low, high = low - angles, high + angles
    thresholds = torch.tensor(list(epsilons), dtype=torch.float64)[:, None]
    if not ((high < thresholds) | (low >= thresholds)).all():
        return None
    return Leading(core.pair.name, core.shape, core.method, sigma, nearest.clamp(max=1.0),
                   torch.maximum(high - nearest, nearest - low), base_values)


def tuned_angles(pairs: RitzPairs, tau: float, level: float) -> torch.Tensor:
    """How far each found vector can be from the true one (bound 1 of the module's text), as a distance; (k,)."""
    values = pairs.values
    # An eigenvalue lies within the residual of its Ritz value, so a neighbour may be that much nearer.
    distance = (values[:, None] - values[None, :]).abs() - pairs.residuals[None, :]
    distance.fill_diagonal_(torch.inf)
    gap = torch.minimum(distance.amin(1), values - tau) - level
    sine = (pairs.residuals + level) / gap
    return torch.where(gap > 0, 2**0.5 * sine, torch.inf)


def cosine_bounds(cosines: torch.Tensor, values: torch.Tensor, level: float,
                  far_rounding: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bounds 2 of the module's text: what W0's vectors, determined or not, leave open of each largest cosine.

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


def _definition(core: _Core, k: int, vectors: str) -> Leading:
    """The definition itself, in float64, on the CPU."""
    base, tuned = core.pair.load()
    of_base = thin_svd(base.double().cpu(), name=f"base matrix {core.pair.name}")
    of_tuned = thin_svd(merged_weight(base, tuned).cpu(), name=f"tuned matrix {core.pair.name}")
    cosines = max_cosines(of_tuned, of_base, vectors=vectors, top=k)
    exact = torch.zeros_like(cosines)
    return Leading(core.pair.name, core.shape, "full-svd", of_tuned.s[:k], cosines, exact, of_base.s)
