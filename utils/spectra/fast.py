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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import CourseError
from utils.low_rank import LowRankUpdate
from utils.spectra.base import UNIT_ROUNDOFF, BaseSpectrum, base_spectrum, small_side, times_small_side
from utils.spectra.bounds import DETERMINED, cosine_bounds, tuned_angles
from utils.spectra.cores import Core, batch_of, prepare
from utils.spectra.leading import RitzPairs
from utils.spectra.pairs import Leading, Pair, Tuned, is_far, merged_weight
from utils.spectra.svd import SingularTriplets, max_cosines, thin_svd

if TYPE_CHECKING:
    import pandas as pd  # half a second, of which the command that only counts has no use

__all__ = ["DETERMINED", "Leading", "LowRankUpdate", "Pair", "Tuned", "cosine_bounds", "is_far", "leading_cosines",
           "leading_table", "leading_triplets", "merged_weight", "tuned_angles", "vectors_between"]

DIRECT_BELOW = 129  # below this width the definition itself is as fast


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
    waiting: list[Core] = []
    for pair in pairs:
        core = prepare(pair, k, vectors, spectrum=spectrum, device=device, direct_below=direct_below)
        if waiting and not waiting[0].joins(core, len(waiting)):
            yield from _solved(waiting, k, epsilons, vectors=vectors)
            waiting = []
        waiting.append(core)
    if waiting:
        yield from _solved(waiting, k, epsilons, vectors=vectors)


def leading_table(found: Iterable[Leading]) -> "pd.DataFrame":
    """A vector table (:func:`utils.spectra.vector_table`) of the k leading vectors, with ``computed_by`` and ``error``.

    Returns
    -------
    pandas.DataFrame
        One row per matrix and vector: ``matrix``, ``index`` (from 1), ``singular_value``, ``max_cosine``, ``error``
        (the bound on it), ``computed_by``, ``out``, ``in``, and ``base_largest``, W0's largest singular value.
    """
    import pandas as pd

    return pd.concat([pd.DataFrame({
        "matrix": one.name, "index": range(1, len(one.max_cosines) + 1), "singular_value": one.singular_values.numpy(),
        "max_cosine": one.max_cosines.numpy(), "error": one.errors.numpy(), "computed_by": one.method,
        "out": one.shape[0], "in": one.shape[1], "base_largest": one.base_values[0].item()}) for one in found],
        ignore_index=True)


def vectors_between(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor],
                    **options: Any) -> "pd.DataFrame":
    """:func:`leading_table` of two models' matrices, matrix by matrix.

    Parameters
    ----------
    before, after : mapping of str to torch.Tensor
        W0 and Wt by name, (out, in), of any floating type; every name of `after` must be in `before`.
    **options
        As :func:`leading_cosines` takes them: ``k``, ``epsilons``, ``vectors``, ``spectrum``, ``device``.
    """
    def both(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return before[name], after[name]

    pairs = (Pair(name, partial(both, name)) for name in after)
    return leading_table(leading_cosines(pairs, **options))


def leading_triplets(pair: Pair, *, k: int = 10, spectrum: Callable[..., BaseSpectrum] = base_spectrum,
                     direct_below: int = DIRECT_BELOW) -> SingularTriplets:
    """The k leading singular triplets of one tuned matrix, by the same core: what an intervention works on.

    Parameters
    ----------
    pair : Pair
        W0 and the tuned matrix.
    k : int
        Triplets; all where the matrix has fewer.
    spectrum : callable
        W0 -> BaseSpectrum, as in :func:`leading_cosines`.
    direct_below : int
        Narrower matrices get a full SVD.

    Returns
    -------
    SingularTriplets
        ``u`` (out, k), ``s`` (k,), ``vt`` (k, in); float64 on the CPU. Signs are arbitrary, u and vt of a triplet
        belong together.
    """
    base, tuned = pair.load()
    merged = merged_weight(base, tuned)
    core = prepare(pair, k, "left", spectrum=spectrum, device="cpu", direct_below=direct_below)
    if type(core) is not Core:
        pairs, tau = batch_of([core]).solve(min(k, len(core.values)), torch.tensor([core.level], dtype=torch.float64))
        found = RitzPairs(*(part[0] for part in pairs))
        if (tuned_angles(found, tau.item(), core.level) < DETERMINED).all():
            near = found.vectors @ spectrum(base, name=pair.name).basis.T
            sigma = found.values.clamp(min=0).sqrt()
            away = times_small_side(near, small_side(merged)) / sigma[:, None]
            wide = merged.shape[0] <= merged.shape[1]
            return SingularTriplets(near.T, sigma, away) if wide else SingularTriplets(away.T, sigma, near)
    exact = thin_svd(merged, name=f"tuned matrix {pair.name}")
    return SingularTriplets(exact.u[:, :k], exact.s[:k], exact.vt[:k])


def _solved(cores: list[Core], k: int, epsilons: Sequence[float], *, vectors: str) -> Iterator[Leading]:
    if type(cores[0]) is Core:
        yield from (_definition(core, k, vectors) for core in cores)
        return
    batch = batch_of(cores)
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
        decided = _decided(core, found, crossed[place].cpu(), tau=tau[place].item(), epsilons=epsilons)
        yield decided or _definition(core, k, vectors)


def _decided(core: Core, pairs: RitzPairs, crossed: torch.Tensor, *, tau: float,
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
    low, high, nearest = cosine_bounds(cosines, base_values, core.level,
                                       far_rounding=rounding if core.far else None)
    low, high = low - angles, high + angles
    thresholds = torch.tensor(list(epsilons), dtype=torch.float64)[:, None]
    if not ((high < thresholds) | (low >= thresholds)).all():
        return None
    return Leading(core.pair.name, core.shape, core.method, sigma, nearest.clamp(max=1.0),
                   torch.maximum(high - nearest, nearest - low), base_values)


def _definition(core: Core, k: int, vectors: str) -> Leading:
    """The definition itself, in float64, on the CPU."""
    base, tuned = core.pair.load()
    of_base = thin_svd(base.double().cpu(), name=f"base matrix {core.pair.name}")
    of_tuned = thin_svd(merged_weight(base, tuned).cpu(), name=f"tuned matrix {core.pair.name}")
    cosines = max_cosines(of_tuned, of_base, vectors=vectors, top=k)
    exact = torch.zeros_like(cosines)
    return Leading(core.pair.name, core.shape, "full-svd", of_tuned.s[:k], cosines, exact, of_base.s)
