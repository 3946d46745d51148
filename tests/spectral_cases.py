"""Matrices for the tests of the fast spectra, and the definition by two plain SVDs that they are compared with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.spectra.fast import LowRankUpdate, Pair, leading_cosines
from utils.spectra.svd import max_cosines, thin_svd

EPSILONS = tuple(round(0.05 * step, 2) for step in range(1, 20))
DIRECT_BELOW = 8  # small matrices are to take the fast paths here
SIDES = {"near": (40, 64, "left"), "near, square": (48, 48, "left"), "far": (64, 40, "left"),
         "far, square": (48, 48, "right"), "far, input side": (40, 64, "right")}
by_side = pytest.mark.parametrize("out, width, vectors", SIDES.values(), ids=SIDES)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def orthonormal(size: int, count: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(gaussian(size, count, seed=seed)).Q


def with_values(out: int, width: int, values, seed: int = 0) -> torch.Tensor:
    """A matrix with the given singular values, in random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return (orthonormal(out, len(values), seed) * values) @ orthonormal(width, len(values), seed + 1).T


def decaying(out: int, width: int, seed: int = 0, power: float = 0.5) -> torch.Tensor:
    return with_values(out, width, torch.arange(1, min(out, width) + 1, dtype=torch.float64) ** -power, seed)


def low_rank(base: torch.Tensor, rank: int, strength: float, seed: int) -> LowRankUpdate:
    """A LoRA update whose Frobenius norm is `strength` times W0's."""
    b, a = gaussian(base.shape[0], rank, seed=seed), gaussian(rank, base.shape[1], seed=seed + 1)
    return LowRankUpdate(b, a, (strength * base.norm() / (b @ a).norm()).item())


def dense(base: torch.Tensor, strength: float, seed: int) -> torch.Tensor:
    """W0 with a Gaussian update of `strength` times its norm."""
    update = gaussian(*base.shape, seed=seed)
    return base + update * (strength * base.norm() / update.norm())


def merged(base: torch.Tensor, tuned) -> torch.Tensor:
    if isinstance(tuned, LowRankUpdate):
        return base.double() + tuned.scale * (tuned.b.double() @ tuned.a.double())
    return tuned.double()


def oracle(base: torch.Tensor, tuned, k: int = 10, vectors: str = "left") -> np.ndarray:
    """s_j by the definition alone, in numpy: two thin SVDs in float64, all cosines, each row's largest."""
    of_base, of_tuned = (np.linalg.svd(weight.numpy(), full_matrices=False)
                         for weight in (base.double(), merged(base, tuned)))
    cosines = of_tuned[0].T @ of_base[0] if vectors == "left" else of_tuned[2] @ of_base[2].T
    return np.abs(cosines[:k]).max(axis=1)


def library(base: torch.Tensor, tuned, k: int = 10, vectors: str = "left") -> torch.Tensor:
    """The same by the library's own SVD: of vectors that nothing determines it returns the same ones twice."""
    return max_cosines(thin_svd(merged(base, tuned)), thin_svd(base.double()), vectors=vectors, top=k)


def fast(base: torch.Tensor, tuned, k: int = 10, vectors: str = "left", epsilons=EPSILONS, **options):
    found = list(leading_cosines([Pair("w", lambda: (base, tuned))], k=k, epsilons=epsilons, vectors=vectors,
                                 **{"direct_below": DIRECT_BELOW, **options}))
    assert len(found) == 1
    return found[0]


def counts(cosines, epsilons=EPSILONS) -> list[int]:
    return [int((np.asarray(cosines) < epsilon).sum()) for epsilon in epsilons]


def between(first, second) -> list[float]:
    """The epsilons at which two lists of cosines would count differently: midway between those that differ."""
    return [(one + other) / 2 for one, other in zip(np.asarray(first), np.asarray(second), strict=True)
            if abs(one - other) > 1e-14]


def random_case(seed: int) -> SimpleNamespace:
    """A pair of any shape, spectrum, update and side; the same for the same seed."""
    rng = np.random.default_rng(seed)
    out, width = (int(side) for side in rng.integers(24, 161, 2))
    if rng.random() < 0.3:
        width = out
    base = gaussian(out, width, seed=seed) if rng.random() < 0.3 else \
        decaying(out, width, seed=seed, power=rng.choice([0.2, 0.5, 1.0, 2.0]))
    kind = rng.choice(["lora", "lora above the width", "weak", "strong"], p=[0.55, 0.05, 0.25, 0.15])
    if kind == "lora":
        tuned = low_rank(base, int(rng.integers(1, 13)), 10 ** rng.uniform(-2, 0.5), seed + 1)
    elif kind == "lora above the width":
        tuned = low_rank(base, min(out, width) + 5, 0.05, seed + 1)
    else:
        tuned = dense(base, 10 ** (rng.uniform(-3, -1) if kind == "weak" else rng.uniform(-0.5, 0.5)), seed + 1)
    return SimpleNamespace(base=base, tuned=tuned, k=int(rng.choice([1, 3, 5, 10])), kind=kind,
                           vectors=str(rng.choice(["left", "right"])))


def mixed_pairs() -> list[Pair]:
    """All three methods and many shapes in turn; several of one q and rank in a row, one of them undetermined."""
    shapes = [(40, 64), (40, 64), (64, 40), (40, 40), (40, 40), (64, 40), (6, 30), (40, 64), (5, 5), (56, 48), (40, 50)]
    pairs = []
    for index, shape in enumerate(shapes):
        base = torch.eye(*shape).double() if index == 3 else decaying(*shape, seed=20 * index)
        tuned = dense(base, 0.1, 20 * index + 5) if index in (5, 9) else low_rank(base, 3, 0.5, 20 * index + 5)
        pairs.append(Pair(f"matrix {index}", lambda base=base, tuned=tuned: (base, tuned)))
    return pairs


def spoiled(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[-1, 2] = value
    return tensor
