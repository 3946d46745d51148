"""Whether one device counts as another does: the fast path on a GPU against the same path on the CPU."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from utils.low_rank import LowRankUpdate
from utils.spectra.base import BaseSpectrum, base_spectrum
from utils.spectra.controls import planted_matrix
from utils.spectra.fast import Leading, leading_cosines
from utils.spectra.pairs import Pair, Tuned
from utils.spectra.svd import is_intruder

EPSILONS = tuple(round(0.05 * part, 2) for part in range(1, 20))
SHAPES = ((192, 192), (192, 384), (384, 192))
RANKS = (1, 16, 64)  # of the updates: whole in the preconditioner, mixed from, and too wide for the core
SAME_SHAPE = 3  # matrices in a row, which a GPU takes in one batch


@dataclass(frozen=True)
class Agreement:
    """What two devices made of the same pairs.

    Attributes
    ----------
    matrices : int
    different : tuple of str
        Matrices with another count at one of the epsilons, on the output or the input side.
    worst_value, worst_cosine : float
        The largest difference of a singular value, relative to the largest of its matrix, and of a largest cosine.
    """

    matrices: int
    different: tuple[str, ...]
    worst_value: float
    worst_cosine: float

    @property
    def sentence(self) -> str:
        """What came out, for people."""
        near = f"singular values within {self.worst_value:.0e}, cosines within {self.worst_cosine:.0e}"
        if not self.different:
            return f"the same counts for {self.matrices} matrices at {len(EPSILONS)} epsilons; {near}."
        return (f"DIFFERENT counts for {len(self.different)} of {self.matrices} matrices ({self.different[0]} first); "
                f"{near}. Count on the CPU (`--device cpu`), and report it with your GPU and versions.")


def example_pairs(shapes: Iterable[tuple[int, int]] = SHAPES, *, seed: int = 0) -> list[Pair]:
    """Pairs of every kind that the fast path tells apart, a few of each shape in a row.

    W0 has singular values that fall as 1 / sqrt(i); the update is of low rank, dense, or a planted direction.

    Parameters
    ----------
    shapes : iterable of (int, int)
        (out, in).
    seed : int
    """
    generator, pairs = torch.Generator().manual_seed(seed), []
    for out, width in shapes:
        for place in range(1, SAME_SHAPE + 1):
            base = _decaying(out, width, generator)
            pairs += [Pair(f"{out} x {width}, {kind}, {place}", partial(_both, base, tuned))
                      for kind, tuned in _updates(base, generator).items()]
    return sorted(pairs, key=lambda pair: pair.name)  # those of one kind in a row, as in a model


def _both(base: torch.Tensor, tuned: Tuned) -> tuple[torch.Tensor, Tuned]:
    return base, tuned


def _decaying(out: int, width: int, generator: torch.Generator) -> torch.Tensor:
    q = min(out, width)
    u, v = (torch.linalg.qr(torch.randn(side, q, generator=generator, dtype=torch.float64)).Q for side in (out, width))
    return ((u * torch.arange(1, q + 1, dtype=torch.float64) ** -0.5) @ v.T).float()


def _updates(base: torch.Tensor, generator: torch.Generator) -> dict[str, Tuned]:
    out, width = base.shape
    noise = torch.randn(out, width, generator=generator)
    found: dict[str, Tuned] = {"dense": base + 0.2 * noise * base.norm() / noise.norm(),
                               "planted": planted_matrix(base, 2, strength=1.1)}
    for r in RANKS:
        b, a = torch.randn(out, r, generator=generator), torch.randn(r, width, generator=generator)
        found[f"rank {r}"] = LowRankUpdate(b, a, (0.5 * base.norm() / (b @ a).norm()).item())
    return found


def compare_devices(device: str, *, against: str = "cpu", pairs: Iterable[Pair] | None = None,
                    k: int = 10) -> Agreement:
    """Count on two devices, spectra of the base matrices included, on both sides.

    Parameters
    ----------
    device, against : str
        As torch names them.
    pairs : iterable of Pair, optional
        :func:`example_pairs` by default.
    k : int
        Leading vectors.
    """
    chosen = list(example_pairs() if pairs is None else pairs)
    different: dict[str, None] = {}
    values = cosines = 0.0
    for vectors in ("left", "right"):
        found, expected = (_counted(chosen, where, vectors=vectors, k=k) for where in (device, against))
        for one, other in zip(found, expected, strict=True):
            values = max(values, ((one.singular_values - other.singular_values).abs().max()
                                  / other.singular_values[0]).item())
            cosines = max(cosines, (one.max_cosines - other.max_cosines).abs().max().item())
            if _counts(one) != _counts(other):
                different[one.name] = None
    return Agreement(len(chosen), tuple(different), values, cosines)


def _counted(pairs: list[Pair], device: str, *, vectors: str, k: int) -> list[Leading]:
    def spectrum(weight: torch.Tensor, *, name: str) -> BaseSpectrum:
        return base_spectrum(weight.to(device), name=name)

    return list(leading_cosines(pairs, k=k, epsilons=EPSILONS, vectors=vectors, device=device, spectrum=spectrum))


def _counts(found: Leading) -> list[int]:
    return [int(is_intruder(found.max_cosines, epsilon).sum()) for epsilon in EPSILONS]
