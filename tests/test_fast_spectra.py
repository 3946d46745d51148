"""The fast spectra against the definition: counts, the bound that vouches for them, its certificates, and the cache."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from utils.errors import CourseError
from utils.spectra import cache as cache_module
from utils.spectra import fast as fast_module
from utils.spectra.base import base_spectrum
from utils.spectra.cache import SpectrumCache
from utils.spectra.fast import LowRankUpdate, Pair, cosine_bounds, leading_cosines, tuned_angles
from utils.spectra.leading import RitzPairs, dense_bound_holds, low_rank_bound_holds, starting_subspace
from utils.spectra.svd import max_cosines, thin_svd

EPSILONS = tuple(round(0.05 * step, 2) for step in range(1, 20))
DIRECT_BELOW = 8  # small matrices are to take the fast paths here
SIDES = {"near": (40, 64, "left"), "near, square": (48, 48, "left"), "far": (64, 40, "left"),
         "far, square": (48, 48, "right"), "far, input side": (40, 64, "right")}
by_side = pytest.mark.parametrize("out, width, vectors", SIDES.values(), ids=SIDES)


# --- helpers ------------------------------------------------------------------------------------------------------

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


# --- the counts ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("block", range(10))
def test_counts_follow_the_definition(block):
    """Twenty pairs of any shape and update: counts at 19 epsilons, of the fast paths in the main, are the oracle's."""
    methods = []
    for seed in range(1000 * block, 1000 * block + 200, 10):
        case = random_case(seed)
        found = fast(case.base, case.tuned, case.k, case.vectors)
        expected = oracle(case.base, case.tuned, case.k, case.vectors)
        assert counts(found.max_cosines) == counts(expected), (seed, found.method, case.kind)
        rounding = 1e-9 if found.method == "full-svd" else 1e-13  # two libraries' own
        assert (np.abs(found.max_cosines.numpy() - expected) <= found.errors.numpy() + rounding).all(), seed
        assert found.name == "w" and found.shape == tuple(case.base.shape)
        methods.append(found.method)
    assert methods.count("full-svd") <= 7
    assert "lowrank-core" in methods and "leading-vectors" in methods


def test_the_compared_cases_are_not_all_trivial():
    """They would prove little if every count were 0 or k: of the 200 most have one in between, and all kinds occur."""
    cases = [random_case(seed) for block in range(0, 10, 3) for seed in range(1000 * block, 1000 * block + 200, 10)]
    assert {case.kind for case in cases} == {"lora", "lora above the width", "weak", "strong"}
    shapes = [np.sign(case.base.shape[0] - case.base.shape[1]) for case in cases]
    assert min(shapes.count(-1), shapes.count(0), shapes.count(1)) > 10
    partial = [set(counts(oracle(case.base, case.tuned, case.k, case.vectors))) - {0, case.k} for case in cases
               if case.k > 1]
    assert sum(map(bool, partial)) > len(partial) / 2


@settings(deadline=None, max_examples=60, derandomize=True)
@given(out=st.integers(8, 40), width=st.integers(8, 40), rank=st.integers(0, 6), strength=st.floats(1e-3, 5),
       k=st.integers(1, 45), seed=st.integers(0, 10_000), power=st.floats(0.2, 2), left=st.booleans(),
       epsilon=st.floats(0.01, 0.99))
def test_counts_follow_the_definition_for_any_small_matrix(out, width, rank, strength, k, seed, power, left, epsilon):
    """The same comparison on matrices and an epsilon that hypothesis chooses; rank 0 stands for a dense update."""
    base = decaying(out, width, seed=seed, power=power)
    tuned = low_rank(base, rank, strength, seed + 2) if rank else dense(base, strength, seed + 2)
    vectors = "left" if left else "right"
    found = fast(base, tuned, k, vectors, [epsilon])
    assert counts(found.max_cosines, [epsilon]) == counts(oracle(base, tuned, k, vectors), [epsilon])


def degenerate_case(seed: int) -> SimpleNamespace:
    """A small pair made to be awkward: spectra over up to nine decades, near ties, near zeros, aligned updates."""
    rng = np.random.default_rng(seed)

    def spectrum() -> torch.Tensor:
        values = np.sort(10 ** rng.uniform(-rng.choice([0.3, 1, 3, 7, 9]), 0, q))[::-1].copy()
        if rng.random() < 0.5:  # up to four that are equal, or nearly
            start = int(rng.integers(q))
            steps = np.arange(len(values[start:start + 4]))
            values[start:start + 4] = values[start] * (1 - steps * rng.choice([0, 1e-15, 1e-13, 1e-11, 1e-9, 1e-6]))
        if rng.random() < 0.3:
            values[q - int(rng.integers(1, 4)):] = rng.choice([0, 1e-16, 1e-12, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5])
        return torch.as_tensor(np.sort(values)[::-1].copy())

    q = int(rng.integers(8, 50))
    longer = q + int(rng.choice([0, 0, 1, 3, 30]))
    out, width = (q, longer) if rng.random() < 0.5 else (longer, q)
    base = torch.as_tensor(rng.integers(-1, 2, (out, width))).double() if rng.random() < 0.2 else \
        with_values(out, width, spectrum(), seed)
    u, _, vt = thin_svd(base)
    strength, rank = 10 ** rng.uniform(-8, 1), int(rng.integers(1, 4))
    kind = rng.choice(["lora", "aligned lora", "whole numbers", "rotated", "permuted", "boosted", "dense"])
    if kind == "lora":
        tuned = low_rank(base, rank, strength, seed + 2)
    elif kind == "aligned lora":
        tuned = LowRankUpdate(u[:, rng.integers(0, q, rank)], vt[rng.integers(0, q, rank)], strength)
    elif kind == "whole numbers":
        tuned = LowRankUpdate(torch.as_tensor(rng.integers(-1, 2, (out, rank))).double(),
                        torch.as_tensor(rng.integers(-1, 2, (rank, width))).double(), float(rng.choice([0.5, 1, 2])))
    elif kind == "rotated":
        rotation = torch.linalg.qr(torch.eye(q).double() + strength * gaussian(q, q, seed=seed + 3)).Q
        tuned = (u @ rotation * spectrum()) @ vt
    elif kind == "permuted":
        tuned = (u[:, rng.permutation(q)] * spectrum()) @ vt
    elif kind == "boosted":
        mixture = u @ (gaussian(q, seed=seed + 4) * torch.as_tensor(rng.random(q) < 0.2))
        tuned = base + strength * torch.outer(mixture, vt[int(rng.integers(q))])
    else:
        tuned = dense(base, strength, seed + 2)
    return SimpleNamespace(base=base, tuned=tuned, k=max(1, int(rng.choice([1, 2, 3, q // 4, q // 2, q, q + 3]))),
                           vectors=str(rng.choice(["left", "right"])))


@pytest.mark.parametrize("block", range(5))
def test_counts_follow_the_definition_on_awkward_matrices(block):
    """Also at the epsilons between each fast cosine and the definition's own, where only the bound helps."""
    for seed in range(10_000 * block, 10_000 * block + 60):
        case = degenerate_case(seed)
        options = (case.base, case.tuned, case.k, case.vectors)
        expected = library(*options)
        adverse = between(fast(*options, []).max_cosines, expected)
        for epsilons in (EPSILONS, *([epsilon] for epsilon in adverse[:5])):
            found = fast(*options, epsilons)
            assert counts(found.max_cosines, epsilons) == counts(expected, epsilons), (seed, found.method, epsilons)


@by_side
@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_singular_values_and_their_order_are_those_of_the_definition(kind, out, width, vectors):
    """The k leading singular values, descending, to 1e-6, and all of W0's; tensors are float64, of length k."""
    base = decaying(out, width, seed=3, power=0.8)
    tuned = low_rank(base, 4, 0.5, 9) if kind == "lora" else dense(base, 0.1, 9)
    found = fast(base, tuned, 8, vectors)
    assert found.method == {"lora": "lowrank-core", "dense": "leading-vectors"}[kind]
    expected = np.linalg.svd(merged(base, tuned).numpy(), compute_uv=False)[:8]
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-6)
    np.testing.assert_allclose(found.base_values, np.linalg.svd(base.numpy(), compute_uv=False), rtol=1e-6)
    assert {part.dtype for part in (found.singular_values, found.max_cosines, found.errors)} == {torch.float64}
    assert len(found.singular_values) == len(found.max_cosines) == len(found.errors) == 8


def test_singular_values_of_any_pair_are_the_definitions():
    """The same over the random pairs, whatever the method."""
    for seed in range(0, 2000, 50):
        case = random_case(seed)
        found = fast(case.base, case.tuned, case.k, case.vectors)
        expected = np.linalg.svd(merged(case.base, case.tuned).numpy(), compute_uv=False)[:case.k]
        np.testing.assert_allclose(found.singular_values, expected, rtol=1e-6, err_msg=f"{seed} {found.method}")


# --- a hair's breadth from epsilon ----------------------------------------------------------------------------------

def planted_dense(out: int, width: int, vectors: str, cosine: float) -> tuple[torch.Tensor, torch.Tensor]:
    """W0 and a Wt whose leading vector has the given largest cosine, while all others lie near pretrained ones."""
    if vectors == "right":
        base, tuned = planted_dense(width, out, "left", cosine)
        return base.T.contiguous(), tuned.T.contiguous()
    q = min(out, width)
    u, v = orthonormal(out, q, 1), orthonormal(width, q, 2)
    others = torch.cat([u[:, :5], u[:, 6:]], dim=1)
    even = others @ (torch.sign(gaussian(q - 1, seed=3)) * (q - 1) ** -0.5)
    x = cosine * u[:, 5] + (1 - cosine**2) ** 0.5 * even
    rest = torch.linalg.qr(torch.cat([x[:, None], others], dim=1)).Q[:, 1:]
    base = (u * torch.arange(1, q + 1, dtype=torch.float64) ** -0.5) @ v.T
    return base, (torch.cat([x[:, None], rest], dim=1) * torch.linspace(2, 0.2, q, dtype=torch.float64)) @ v.T


def planted_low_rank(out: int, width: int, vectors: str, cosine: float) -> tuple[torch.Tensor, LowRankUpdate]:
    """W0 and a rank-one update whose scale is found by bisection, so that the leading vector has the given cosine."""
    base = decaying(out, width, seed=5)
    of_base = thin_svd(base)
    side = of_base.u if vectors == "left" else of_base.vt.T
    even = side @ (torch.sign(gaussian(side.shape[1], seed=6)) * side.shape[1] ** -0.5)
    other = gaussian(width if vectors == "left" else out, seed=7)
    b, a = (even, other / other.norm()) if vectors == "left" else (other / other.norm(), even)
    low, high = 0.0, 20.0  # from cosine 1 down to that of the even mixture
    for _ in range(44):
        middle = LowRankUpdate(b[:, None], a[None, :], (low + high) / 2)
        if oracle(base, middle, 1, vectors)[0] > cosine:
            low = middle.scale
        else:
            high = middle.scale
    return base, middle


@by_side
@pytest.mark.parametrize("step", [1e-6, -1e-6])
@pytest.mark.parametrize("epsilon", [0.35, 0.7])
@pytest.mark.parametrize("plant", [planted_dense, planted_low_rank], ids=["dense", "lora"])
def test_a_cosine_within_a_millionth_of_epsilon_is_decided_rightly(plant, epsilon, step, out, width, vectors):
    """The leading cosine lies 1e-6 above or below epsilon; the fast path itself says which, as the oracle does."""
    base, tuned = plant(out, width, vectors, epsilon + step)
    expected = oracle(base, tuned, 5, vectors)
    assert expected[0] - epsilon == pytest.approx(step, rel=1e-3)
    found = fast(base, tuned, 5, vectors, [epsilon])
    assert found.method != "full-svd"
    assert (found.max_cosines[0] < epsilon).item() == (step < 0)
    assert counts(found.max_cosines, [epsilon]) == counts(expected, [epsilon])


@by_side
@pytest.mark.parametrize("plant", [planted_dense, planted_low_rank], ids=["dense", "lora"])
def test_an_epsilon_within_the_bound_is_left_to_the_definition(plant, out, width, vectors):
    """Where fast cosine and true cosine lie on two sides of an epsilon, only the definition can count; it is asked."""
    base, tuned = plant(out, width, vectors, 0.5)
    expected = library(base, tuned, 5, vectors)
    for epsilon in (expected[0].item(), np.nextafter(expected[0].item(), 1), expected[4].item()):
        found = fast(base, tuned, 5, vectors, [epsilon])
        assert found.method == "full-svd"
        assert torch.equal(found.max_cosines, expected) and not found.errors.any()
    for epsilon in between(fast(base, tuned, 5, vectors, []).max_cosines, expected):
        assert counts(fast(base, tuned, 5, vectors, [epsilon]).max_cosines, [epsilon]) == counts(expected, [epsilon])


# --- what nothing determines ------------------------------------------------------------------------------------------

def zeros_like_lora(base: torch.Tensor, rank: int = 4) -> LowRankUpdate:
    """An adapter before its first step: B is zero."""
    return LowRankUpdate(torch.zeros(base.shape[0], rank, dtype=torch.float64),
                         gaussian(rank, base.shape[1], seed=4), 2.0)


def repeated(out: int, width: int, *, tie: slice, seed: int = 2) -> torch.Tensor:
    """Singular values q … 1, those of one slice all equal."""
    values = torch.arange(min(out, width), 0, -1, dtype=torch.float64)
    values[tie] = values[tie.start]
    return with_values(out, width, values, seed)


def lacking(out: int, width: int, missing: int, seed: int = 2) -> torch.Tensor:
    """A matrix whose last `missing` singular values are zero."""
    values = torch.linspace(3, 1, min(out, width), dtype=torch.float64)
    values[len(values) - missing:] = 0
    return with_values(out, width, values, seed)


def unit(out: int, width: int) -> torch.Tensor:
    return torch.eye(out, width, dtype=torch.float64)


def blocks(out: int, width: int) -> torch.Tensor:
    return torch.kron(torch.eye(4, dtype=torch.float64), gaussian(out // 4, width // 4, seed=8))


def turned(base: torch.Tensor, seed: int = 5) -> torch.Tensor:
    """A dense Wt whose vectors all lie within W0's spans."""
    factors = thin_svd(base)
    q = len(factors.s)
    return factors.u @ (torch.eye(q, dtype=torch.float64) + 0.3 * gaussian(q, q, seed=seed) / q**0.5) @ \
        torch.diag(torch.linspace(2, 1, q, dtype=torch.float64)) @ factors.vt


UNDETERMINED = {
    "identity, lora": lambda o, w: (unit(o, w), low_rank(unit(o, w), 2, 0.5, 3)),
    "identity, lora at its start": lambda o, w: (unit(o, w), zeros_like_lora(unit(o, w))),
    "identity, dense": lambda o, w: (unit(o, w), dense(unit(o, w), 0.3, 3)),
    "identity, unchanged": lambda o, w: (unit(o, w), unit(o, w)),
    "orthogonal, lora": lambda o, w: (with_values(o, w, [1.0] * min(o, w)), low_rank(unit(o, w), 2, 0.5, 3)),
    "orthogonal, dense": lambda o, w: (with_values(o, w, [1.0] * min(o, w)), dense(unit(o, w), 1.0, 3)),
    "blocks, lora": lambda o, w: (blocks(o, w), low_rank(blocks(o, w), 3, 0.5, 3)),
    "blocks, dense": lambda o, w: (blocks(o, w), dense(blocks(o, w), 0.1, 3)),
    "tie at k and k + 1, lora at its start": lambda o, w: (repeated(o, w, tie=slice(7, 12)),
                                                           zeros_like_lora(repeated(o, w, tie=slice(7, 12)))),
    "tie at k and k + 1, unchanged": lambda o, w: (repeated(o, w, tie=slice(7, 12)),) * 2,
    "tie at k and k + 1 of Wt alone": lambda o, w: (decaying(o, w, 9), repeated(o, w, tie=slice(9, 11))),
    "ties among the leading ones": lambda o, w: (decaying(o, w, 9), repeated(o, w, tie=slice(2, 5))),
    "ties of W0, lora": lambda o, w: (repeated(o, w, tie=slice(4, 9)),
                                      low_rank(repeated(o, w, tie=slice(4, 9)), 3, 0.5, 3)),
    "ties of W0, dense": lambda o, w: (repeated(o, w, tie=slice(4, 9)), dense(repeated(o, w, tie=slice(4, 9)), .05, 3)),
    "one value lacking, lora": lambda o, w: (lacking(o, w, 1), low_rank(lacking(o, w, 1), 3, 0.3, 3)),
    "one value lacking, dense": lambda o, w: (lacking(o, w, 1), turned(lacking(o, w, 1))),
    "five values lacking, lora": lambda o, w: (lacking(o, w, 5), low_rank(lacking(o, w, 5), 3, 0.3, 3)),
    "five values lacking, lora within": lambda o, w: (lacking(o, w, 5), LowRankUpdate(
        lacking(o, w, 5) @ gaussian(w, 3, seed=4), gaussian(3, o, seed=5) @ lacking(o, w, 5), 0.01)),
    "five values lacking, dense": lambda o, w: (lacking(o, w, 5), dense(lacking(o, w, 5), 0.1, 3)),
    "five values lacking, dense within": lambda o, w: (lacking(o, w, 5), turned(lacking(o, w, 5))),
    "W0 is zero, lora": lambda o, w: (0 * unit(o, w), low_rank(unit(o, w), 3, 0.5, 3)),
    "W0 is zero, dense": lambda o, w: (0 * unit(o, w), gaussian(o, w, seed=3)),
    "Wt is zero": lambda o, w: (decaying(o, w, 3), 0 * unit(o, w)),
    "both are zero": lambda o, w: (0 * unit(o, w), 0 * unit(o, w)),
    "both are zero, lora": lambda o, w: (0 * unit(o, w), zeros_like_lora(unit(o, w))),
    "unchanged": lambda o, w: (decaying(o, w, 3), decaying(o, w, 3)),
    "lora at its start": lambda o, w: (decaying(o, w, 3), zeros_like_lora(unit(o, w))),
    "lora whose A is zero": lambda o, w: (decaying(o, w, 3), LowRankUpdate(gaussian(o, 4), 0 * gaussian(4, w), 2.0)),
    "lora of scale zero": lambda o, w: (decaying(o, w, 3), LowRankUpdate(gaussian(o, 4), gaussian(4, w, seed=1), 0.0)),
    "lora with columns twice": lambda o, w: (decaying(o, w, 3), LowRankUpdate(gaussian(o, 1).expand(o, 4).contiguous(),
                                                                       gaussian(4, w, seed=1), 0.02)),
    "lora of rank above the width": lambda o, w: (decaying(o, w, 3), low_rank(decaying(o, w, 3), o + w, 0.3, 4)),
}


@by_side
@pytest.mark.parametrize("case", UNDETERMINED)
def test_ties_and_degenerate_matrices_count_as_the_definition_does(case, out, width, vectors):
    """Repeated, missing or zero singular values, at every epsilon, and at each cosine that the definition returns."""
    base, tuned = UNDETERMINED[case](out, width)
    expected = library(base, tuned, 10, vectors)
    for epsilons in (EPSILONS, (0.02, 0.5, 0.999), tuple(expected.tolist())):
        found = fast(base, tuned, 10, vectors, epsilons)
        assert counts(found.max_cosines, epsilons) == counts(expected, epsilons), found.method
        if found.method == "full-svd":
            assert torch.equal(found.max_cosines, expected)


@by_side
@pytest.mark.parametrize("case", [
    "identity, lora", "identity, unchanged", "orthogonal, dense", "tie at k and k + 1, unchanged",
    "tie at k and k + 1 of Wt alone", "ties among the leading ones", "W0 is zero, lora", "W0 is zero, dense",
    "Wt is zero", "both are zero"])
def test_what_nothing_determines_is_computed_by_the_definition(case, out, width, vectors):
    """No bound can place the cosine of a vector that a tie leaves open, so the method is the definition's."""
    base, tuned = UNDETERMINED[case](out, width)
    assert fast(base, tuned, 10, vectors).method == "full-svd"


@by_side
@pytest.mark.parametrize("k", [-1, 0, 400], ids=["q - 1", "q", "above q"])
@pytest.mark.parametrize("kind", ["full rank", "one value lacking", "nearly lacking", "lora"])
def test_all_vectors_may_be_asked_for(kind, k, out, width, vectors):
    """k near, at and above q; on the longer side, a Wt of rank q - 1 has a last vector that nothing determines."""
    q = min(out, width)
    base, k = with_values(out, width, torch.linspace(3, 1, q), 2), q + k
    for seed in range(6, 46, 10):  # rounding leaves the last value a little above or below zero
        if kind == "lora":
            tuned = low_rank(base, 3, 0.3, seed)
        else:
            last = {"full rank": 0.9, "one value lacking": 0.0, "nearly lacking": 1e-7}[kind]
            tuned = with_values(out, width, [*torch.linspace(4, 1, q - 1), last], seed)
        expected = library(base, tuned, k, vectors)
        found = fast(base, tuned, k, vectors)
        assert len(found.max_cosines) == min(k, q)
        assert counts(found.max_cosines) == counts(expected), seed
        adverse = between(fast(base, tuned, k, vectors, []).max_cosines, expected)
        assert counts(fast(base, tuned, k, vectors, adverse).max_cosines, adverse) == counts(expected, adverse), seed


@by_side
@pytest.mark.parametrize("case", ["five values lacking, lora", "five values lacking, lora within",
                                  "five values lacking, dense within", "one value lacking, lora"])
def test_the_reported_cosine_is_one_that_the_bound_allows(case, out, width, vectors):
    """What is returned must itself lie on the decided side: a null vector's noise is no cosine."""
    base, tuned = UNDETERMINED[case](out, width)
    found, expected = fast(base, tuned, 6, vectors, [0.5]), library(base, tuned, 6, vectors)
    assert (found.errors <= 1).all()
    assert ((found.max_cosines - expected).abs() <= found.errors + 1e-13).all()


@by_side
@pytest.mark.parametrize("scale", [1e-80, 1e-30, 1e30, 1e160])
def test_scaling_both_matrices_changes_no_count(scale, out, width, vectors):
    """Counts are about directions: a common factor that float64 holds leaves them, of dense and LoRA updates."""
    base = decaying(out, width, seed=3)
    for tuned in (dense(base, 0.05, 4), low_rank(base, 3, 0.5, 4)):
        scaled = (LowRankUpdate(tuned.b * scale, tuned.a, tuned.scale) if isinstance(tuned, LowRankUpdate)
                  else tuned * scale)
        expected = library(base * scale, scaled, 5, vectors)
        epsilons = [*EPSILONS, *between(fast(base * scale, scaled, 5, vectors, []).max_cosines, expected)]
        assert counts(fast(base * scale, scaled, 5, vectors, epsilons).max_cosines, epsilons) == \
            counts(expected, epsilons)


@by_side
@pytest.mark.parametrize("scale", [1e-100, 1e-70, 1e70, 1e160])
def test_a_tuned_matrix_of_another_scale_counts_as_the_definition_does(scale, out, width, vectors):
    """Only Wt is tiny or huge, densely or by its update's scale; W0 is ordinary."""
    base = decaying(out, width, seed=3)
    update = low_rank(base, 3, 0.5, 4)
    for tuned in (dense(base, 0.05, 4) * scale, update._replace(scale=update.scale * scale),
                  update._replace(b=update.b * scale)):
        expected = library(base, tuned, 5, vectors)
        epsilons = [*EPSILONS, *between(fast(base, tuned, 5, vectors, []).max_cosines, expected)]
        assert counts(fast(base, tuned, 5, vectors, epsilons).max_cosines, epsilons) == counts(expected, epsilons)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
@pytest.mark.parametrize("scale", [1e-300, 1e-61, 1.0, 1e61, 1e300])
def test_a_base_spectrum_is_found_at_any_scale(scale, shape):
    """Singular values grow with the matrix, though their squares would leave float64; the basis is W0's own."""
    base = decaying(*shape, seed=3)
    found = base_spectrum(base * scale)
    np.testing.assert_allclose(found.values, np.linalg.svd(base.numpy(), compute_uv=False) * scale, rtol=1e-10)
    small = base if shape[0] < shape[1] else base.T
    torch.testing.assert_close((found.basis.T @ small).norm(dim=1) * scale, found.values, rtol=1e-10, atol=0)


# --- the bound ----------------------------------------------------------------------------------------------------

def test_errors_bound_the_distance_to_the_truth():
    """Over random pairs no cosine is further from the oracle's than its error says, and generic errors are small."""
    errors = []
    for seed in range(5, 1505, 10):
        case = random_case(seed)
        found = fast(case.base, case.tuned, case.k, case.vectors, [])  # nothing asked, so that nothing is recomputed
        distance = np.abs(found.max_cosines.numpy() - oracle(case.base, case.tuned, case.k, case.vectors))
        # An undefined error (of a tie) claims nothing.
        assert (np.isnan(found.errors.numpy()) | (distance <= found.errors.numpy() + 1e-14)).all(), seed
        if found.method != "full-svd":
            errors.append(found.errors.max().item())
    assert len(errors) > 100 and np.median(errors) < 1e-6


@by_side
@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_the_bound_is_not_vacuous(kind, out, width, vectors):
    """Of a generic pair every cosine is known to better than 1e-4."""
    base = decaying(out, width, seed=13)
    found = fast(base, low_rank(base, 3, 0.5, 4) if kind == "lora" else dense(base, 0.05, 4), 5, vectors, [])
    assert found.method != "full-svd" and found.errors.max() < 1e-4


@pytest.mark.parametrize("tied", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_the_bound_holds_for_last_singular_values_far_below_the_others(kind, tied):
    """On the longer side W0's last vector is W0 v / s, and s itself is known only as well as the Gram matrix tells.

    W0's last singular value, or the last two that are nearly equal, lie just above what counts as null. The leading
    tuned vector has its largest cosine, 0.7, with the last one.
    """
    beyond, wrong = [], []
    for seed in range(40):
        out, q = (9, 8) if seed % 2 else (30, 24)
        u, v = orthonormal(out, out, seed), orthonormal(q, q, seed + 1)
        values = torch.linspace(0.3, 0.2, q, dtype=torch.float64)
        values[0] = 1.2
        x = 0.7 * u[:, q - 1] + 0.51**0.5 * u[:, q]
        kept = (u[:, 1:q - 1] * values[1:q - 1]) @ v[:, 1:q - 1].T + 1.3 * torch.outer(x, v[:, 0])
        size = values.norm() + (2.0 if kind == "lora" else kept.norm())
        values[-1] = 1.02 * (1000 * (out + q) * 2.0**-53) ** 0.5 * size
        if tied:
            values[-2] = 1.0001 * values[-1]
        base = (u[:, :q] * values) @ v.T
        tuned = LowRankUpdate(2.0 * x[:, None], v[:, -1:].T.contiguous(), 1.0) if kind == "lora" else kept
        expected, found = library(base, tuned, 1), fast(base, tuned, 1, epsilons=[])
        beyond.append((found.max_cosines - expected).abs().item() > found.errors.item() + 1e-13)
        upper = (found.max_cosines + found.errors).item()
        asked = [*between(found.max_cosines, expected), *between([upper], expected)]
        wrong.append(counts(fast(base, tuned, 1, epsilons=asked).max_cosines, asked) != counts(expected, asked))
    assert (sum(beyond), sum(wrong)) == (0, 0)


def test_the_bound_holds_for_a_last_tuned_value_far_below_the_others():
    """The same of Wt: asked for all of its vectors, the last is Wt v / sigma, of a sigma just above what is null."""
    beyond = []
    for seed in range(60):
        out, q = (9, 8) if seed % 2 else (30, 24)
        values = torch.linspace(0.3, 0.2, q, dtype=torch.float64)
        values[0] = 1.2
        base = with_values(out, q, values, seed)
        size = values.norm() + values[:-1].norm()
        values[-1] = 1.02 * (1000 * (out + q) * 2.0**-53) ** 0.5 * size
        tuned = with_values(out, q, values, seed + 100)
        found = fast(base, tuned, q, epsilons=[])
        beyond.append(((found.max_cosines - library(base, tuned, q)).abs() > found.errors + 1e-13).any().item())
    assert sum(beyond) == 0


def test_an_angle_allows_for_neighbours_that_have_not_converged():
    """Bound 1 on three dimensions: a Ritz value with a large residual does not say where the eigenvalue is.

    Of C below, e1 and e2 are Ritz vectors with values 4 and 1, and exactly two eigenvalues lie above 0.5: about 4 and
    3.9. The Ritz value 1 is 2.9 from its eigenvalue, so e1's neighbour is 0.1 away, not 3.
    """
    c = torch.tensor([[4, 0, 1e-6], [0, 1, 2.9], [1e-6, 2.9, 1]], dtype=torch.float64)
    values, true = torch.linalg.eigh(c)
    assert (values > 0.5).sum() == 2
    pairs = RitzPairs(double([4, 1]), torch.eye(3).double()[:2], c[2, :2].abs(), double(1))
    distance = (true[:, 2] * true[0, 2].sign() - pairs.vectors[0]).norm()
    assert distance <= tuned_angles(pairs, 0.5, 0.0)[0]


def test_an_angle_is_the_residual_over_the_gap():
    """Bound 1 by hand: values 4, 3, 1 above tau = 0.5; residual plus eta over the nearest distance, times sqrt 2."""
    pairs = RitzPairs(double([4, 3, 1]), torch.eye(3).double(), double([1e-8, 2e-8, 0]), double(0.4))
    torch.testing.assert_close(tuned_angles(pairs, 0.5, 1e-8), 2**0.5 * double([2e-8, 3e-8, 2e-8]), rtol=1e-6, atol=0)
    assert tuned_angles(pairs, 1.0, 1e-8)[2] == torch.inf  # tau proves nothing about a value that does not exceed it
    assert (tuned_angles(pairs, torch.inf, 1e-8) == torch.inf).all()  # no certificate, no angle


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_a_group_of_tied_pretrained_values_leaves_p_over_root_m_to_p(m):
    """Of m equal singular values only the span is known: by hand, p / sqrt(m) and p, p the projection's norm."""
    parts = torch.linspace(0.2, 0.4, m, dtype=torch.float64)
    cosines = torch.cat([double([0.1, 0.05]), parts, double([0.02])])[None]
    low, high, nearest = cosine_bounds(cosines, double([5, 4, *[3] * m, 1]), 1e-14)
    p = parts.norm().item()
    assert low.item() == pytest.approx(max(p / m**0.5, 0.1), abs=1e-12)
    assert high.item() == pytest.approx(p, abs=1e-12)
    assert nearest.item() == parts.max().item()


def test_a_determined_vector_outweighs_a_group():
    """The largest of all lower and of all upper bounds counts: a single vector's cosine of 0.6 against a group's."""
    low, high, _ = cosine_bounds(double([[0.6, 0.3, 0.3], [0.1, 0.6, 0.0]]), double([5, 3, 3]), 1e-14)
    np.testing.assert_allclose(low, [0.6, 0.6 / 2**0.5], atol=1e-12)
    np.testing.assert_allclose(high, [0.6, 0.6], atol=1e-12)


def test_a_pretrained_vector_turns_by_eta_over_its_gap():
    """Bound 2 by hand: squares 4, 1, 0.5 with eta 1e-6; the nearest neighbour's distance decides, on both sides."""
    values = double([2, 1, 0.5**0.5])
    cosines = double([[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])
    low, high, _ = cosine_bounds(cosines, values, 1e-6)
    np.testing.assert_allclose(high - 0.9, [1e-6 / 3, 2e-6, 2e-6], rtol=1e-6)
    np.testing.assert_allclose(0.9 - low, [1e-6 / 3, 2e-6, 2e-6], rtol=1e-6)
    far = cosine_bounds(cosines, values, 1e-6, 1e-9)[1] - 0.9  # more: by the step's ratio, and rounding over s
    assert (far >= double([1e-6 / 3 + 1e-9, 4e-6 + 2e-9, 2e-6 * 2**0.5 + 2e-9 * 2**0.5]) - 1e-13).all()
    assert (far < 1e-5).all()
    rounding = cosine_bounds(cosines, values, 1e-30, 1e-9)[1] - 0.9
    np.testing.assert_allclose(rounding, [1e-9, 2e-9, 2e-9 * 2**0.5], rtol=1e-6)


def test_a_null_group_of_the_longer_side_leaves_zero_to_the_leftover():
    """A null space has no left vectors of its own there: bounds 0 and what the others leave, whatever its noise is."""
    values, noise = double([2, 1, 1e-12, 0]), double([[0.6, 0.0, 0.9, 1e200], [0.1, 0.2, 0.0, 0.0]])
    low, high, _ = cosine_bounds(noise, values, 1e-13, 1e-14)
    np.testing.assert_allclose(low, [0.6, 0.2], atol=1e-10)
    np.testing.assert_allclose(high, [0.8, 0.95**0.5], atol=1e-10)
    near = cosine_bounds(double([[0.6, 0.0, 0.0, 0.8]]), values, 1e-13)  # there a null space's vectors are a group
    assert near[0].item() == pytest.approx(0.6, abs=1e-10) and near[1].item() == pytest.approx(0.8, abs=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.9, 1e200])
def test_the_nearest_cosine_lies_between_its_bounds(noise):
    """The third value is what gets counted, so a null vector's noise must not be it: the bounds are 0.6, 0.8."""
    low, high, nearest = cosine_bounds(double([[0.6, 0.0, noise]]), double([2, 1, 1e-12]), 1e-13, 1e-14)
    assert low.item() - 1e-12 <= nearest.item() <= high.item() + 1e-12


# --- the certificates -----------------------------------------------------------------------------------------------

def random_core(seed: int) -> SimpleNamespace:
    """Parts of C = diag(d) + X B^T + B X^T + B N B^T and its eigenvalues by a dense solver, descending."""
    rng = np.random.default_rng(seed)
    q, r = int(rng.integers(6, 31)), int(rng.integers(1, 6))
    diagonal = gaussian(q, seed=seed).abs().sort(descending=True).values
    left, right = gaussian(r, q, seed=seed + 1) * 0.5, gaussian(r, q, seed=seed + 2) * 10 ** rng.uniform(-2, 0.5)
    factor = gaussian(r, r + 2, seed=seed + 3)
    inner = factor @ factor.T
    dense_core = torch.diag(diagonal) + left.T @ right + right.T @ left + right.T @ inner @ right
    return SimpleNamespace(diagonal=diagonal[None], left=left[None], right=right[None], inner=inner[None],
                           core=dense_core, values=torch.linalg.eigvalsh(dense_core).flip(0), q=q)


def counts_as(case: SimpleNamespace, tau: float, k: int) -> bool:
    return low_rank_bound_holds(case.diagonal, case.left, case.right, case.inner, double([tau]), k).item()


def test_the_law_of_inertia_counts_as_a_dense_solver_does():
    """At any level the count of eigenvalues above it is proved, and no other count is."""
    rng = np.random.default_rng(0)
    for seed in range(0, 1000, 4):
        case = random_core(seed)
        tau = float(rng.uniform(case.values[-1].item() - 0.1, case.values[0].item() + 0.1))
        if rng.random() < 0.5:  # near a value, from either side
            tau = case.values[int(rng.integers(case.q))].item() + float(rng.choice([-1e-7, 1e-7]))
        true = int((case.values > tau).sum())
        assert [k for k in range(case.q + 2) if counts_as(case, tau, k)] == [true], seed


def test_the_low_rank_certificate_refuses_a_level_below_the_next_value():
    """tau belongs between the k-th and the (k + 1)-th eigenvalue; below or above, a value was missed or is none."""
    case = random_core(7)
    steps = (case.values[:-1] + case.values[1:]) / 2
    for k in range(1, 6):
        assert counts_as(case, steps[k - 1].item(), k)
        assert not counts_as(case, steps[k].item(), k)
        assert not counts_as(case, steps[k + 1].item(), k)
        assert k == 1 or not counts_as(case, steps[k - 2].item(), k)


def test_the_low_rank_certificate_does_not_believe_what_rounding_decides():
    """At a level that is an eigenvalue, or an entry of the diagonal, it says no instead of something arbitrary."""
    case = random_core(11)
    assert not any(counts_as(case, case.diagonal[0, 3].item(), k) for k in range(case.q + 1))
    diagonal, nothing = double([[3, 2, 1, 0.5]]), torch.zeros(1, 1, 4).double()
    for k in range(4):
        assert not low_rank_bound_holds(diagonal, nothing, nothing, double([[[1]]]), double([2]), k).item()


def certified(matrix: torch.Tensor, chosen: list[int], tau: float) -> bool:
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[chosen], vectors.flip(1).T[chosen]
    return dense_bound_holds(matrix[None], vectors[None], values[None], double([tau]), double([1e-12])).item()


def test_the_dense_certificate_says_no_when_a_leading_value_was_left_out():
    """Yes for the k leading pairs and tau above the next value; no for any other pairs or a lower tau."""
    for seed in range(20):
        factor = gaussian(30, 40, seed=seed)
        matrix = factor @ factor.T
        values = torch.linalg.eigvalsh(matrix).flip(0)
        for k in (1, 3, 8):
            inside = [(values[k] + part * (values[k - 1] - values[k])).item() for part in (0.01, 0.25, 0.75)]
            below = (0.01 * values[k + 1] + 0.99 * values[k]).item()
            assert all(certified(matrix, list(range(k)), tau) for tau in inside)
            assert not certified(matrix, list(range(k)), below)
            assert not any(certified(matrix, list(range(1, k + 1)), tau) for tau in inside)  # the top one is missing
            assert k == 1 or not any(certified(matrix, [*range(k - 2), k - 1, k], tau) for tau in inside)


def test_the_dense_certificate_allows_for_rounding():
    """The next value must lie below tau by more than the noise that comes with the matrix."""
    matrix = torch.diag(double([5, 4, 3, 2, 1]))
    for tau, noise, expected in ((3.4, 0.3, True), (3.4, 0.5, False), (3.01, 0.0, True), (2.99, 0.0, False)):
        assert dense_bound_holds(matrix[None], torch.eye(5)[None, :2].double(), double([[5, 4]]), double([tau]),
                                 double([noise])).item() == expected


def test_the_dense_certificate_needs_no_exact_pairs():
    """Slightly wrong pairs leave it valid, badly wrong ones are refused."""
    factor = gaussian(30, 40, seed=1)
    matrix = factor @ factor.T
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    tau, noise = ((values[2] + values[3]) / 2)[None], double([1e-12])
    for size, expected in ((1e-4, True), (3.0, False)):
        rows = torch.linalg.qr(vectors[:, :3] + size * gaussian(30, 3, seed=2)).Q.T
        assert dense_bound_holds(matrix[None], rows[None], values[None, :3], tau, noise).item() == expected


@pytest.mark.parametrize("changed", ["nothing", "zero", "leading directions", "one direction twice", "random"])
def test_the_solver_starts_from_orthonormal_rows(changed):
    """Whatever the update's directions are: a LoRA at its start has zeros, a trained one may repeat itself."""
    rows = {"nothing": torch.empty(1, 0, 40), "zero": torch.zeros(1, 3, 40),
            "leading directions": torch.eye(40)[None, :3], "one direction twice": torch.ones(1, 2, 40),
            "random": gaussian(1, 3, 40)}[changed].double()
    start = starting_subspace(40, 5, rows)[0]
    torch.testing.assert_close(start @ start.T, torch.eye(len(start)).double(), rtol=0, atol=1e-12)


@by_side
@pytest.mark.parametrize("strength", [0.8, 5.0])
@pytest.mark.parametrize("kind", ["lora", "lora without its directions", "wide lora without", "dense"])
def test_an_intruder_hidden_from_the_solver_is_not_missed(kind, strength, out, width, vectors, monkeypatch):
    """The update is orthogonal to all vectors that the solver starts from: it finds it, or the certificate refuses.

    Where it is not told of the update's directions no residual points there, and the counts would lack an intruder.
    """
    out, width = 2 * out, 2 * width
    q = min(out, width)
    base = decaying(out, width, seed=3)
    factors = thin_svd(base)
    signs = torch.sign(gaussian(q - 30, seed=4)) * (q - 30) ** -0.5
    b, a = factors.u[:, 30:] @ signs, factors.vt[30:].T @ signs.flip(0)
    tuned = LowRankUpdate(b[:, None], a[None, :], strength)
    if kind == "wide lora without":  # above EXACT_RANK, so that the preconditioner knows nothing of it either
        monkeypatch.setattr(fast_module, "EXACT_RANK", 0)
    if "without" in kind:
        monkeypatch.setattr(fast_module, "starting_subspace",
                            lambda count, k, changed: starting_subspace(count, k, changed[:, :0]))
    found = fast(base, merged(base, tuned) if kind == "dense" else tuned, 10, vectors)
    expected = oracle(base, tuned, 10, vectors)
    assert (expected < 0.5).sum() == 1
    assert counts(found.max_cosines) == counts(expected)
    if kind == "lora":
        assert found.method == "lowrank-core"


# --- streams of pairs ---------------------------------------------------------------------------------------------

def mixed_pairs() -> list[Pair]:
    """All three methods and many shapes in turn; several of one q and rank in a row, one of them undetermined."""
    shapes = [(40, 64), (40, 64), (64, 40), (40, 40), (40, 40), (64, 40), (6, 30), (40, 64), (5, 5), (56, 48), (40, 50)]
    pairs = []
    for index, shape in enumerate(shapes):
        base = torch.eye(*shape).double() if index == 3 else decaying(*shape, seed=20 * index)
        tuned = dense(base, 0.1, 20 * index + 5) if index in (5, 9) else low_rank(base, 3, 0.5, 20 * index + 5)
        pairs.append(Pair(f"matrix {index}", lambda base=base, tuned=tuned: (base, tuned)))
    return pairs


@pytest.mark.parametrize("batch_bytes", [1, 200_000, 8 * 2**20])
@pytest.mark.parametrize("vectors", ["left", "right"])
def test_results_come_in_the_order_of_the_pairs(vectors, batch_bytes, monkeypatch):
    """However the matrices are batched, results follow the pairs, and each is what it is alone."""
    monkeypatch.setattr(fast_module, "BATCH_BYTES", batch_bytes)
    pairs = mixed_pairs()
    found = list(leading_cosines(iter(pairs), k=6, epsilons=EPSILONS, vectors=vectors, direct_below=DIRECT_BELOW))
    assert [one.name for one in found] == [pair.name for pair in pairs]
    assert {one.method for one in found} == {"lowrank-core", "leading-vectors", "full-svd"}
    for one, pair in zip(found, pairs, strict=True):
        base, tuned = pair.load()
        assert one.shape == tuple(base.shape)
        assert counts(one.max_cosines) == counts(library(base, tuned, 6, vectors))
        alone = fast(base, tuned, 6, vectors)
        assert alone.method == one.method
        torch.testing.assert_close(one.singular_values, alone.singular_values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_a_stream_is_not_read_ahead_of_its_batch(kind, monkeypatch):
    """Where each matrix fills a batch, the one after the next is loaded only when a result was taken."""
    monkeypatch.setattr(fast_module, "BATCH_BYTES", 1)
    loaded = []

    def pair(index: int) -> Pair:
        base = decaying(40, 60, seed=index)
        tuned = low_rank(base, 3, 0.5, 1) if kind == "lora" else dense(base, 0.1, 1)
        return Pair(str(index), lambda: (loaded.append(index), (base, tuned))[1])

    stream = leading_cosines((pair(index) for index in range(6)), k=3, direct_below=DIRECT_BELOW)
    next(stream)
    assert max(loaded) <= 1


@pytest.mark.parametrize("vectors", ["left", "right"])
def test_where_the_solver_fails_the_definition_is_computed(vectors, monkeypatch):
    """LAPACK may give up on a matrix; the results, of a whole batch, are then the definition's, in order."""
    def fails(*_):
        raise torch.linalg.LinAlgError("The algorithm failed to converge.")

    monkeypatch.setattr(fast_module, "leading_pairs", fails)
    pairs = mixed_pairs()
    found = list(leading_cosines(pairs, k=6, epsilons=EPSILONS, vectors=vectors, direct_below=DIRECT_BELOW))
    assert [one.name for one in found] == [pair.name for pair in pairs]
    assert {one.method for one in found} == {"full-svd"}
    for one, pair in zip(found, pairs, strict=True):
        assert torch.equal(one.max_cosines, library(*pair.load(), 6, vectors))


@pytest.mark.parametrize("width", [20, 24])
def test_narrow_matrices_are_computed_by_the_definition(width):
    """``direct_below`` names the first width that takes a fast path."""
    base = decaying(60, width)
    found = fast(base, low_rank(base, 2, 0.5, 3), 4, direct_below=24)
    assert found.method == ("full-svd" if width < 24 else "lowrank-core")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@by_side
def test_weights_of_low_precision_are_raised(dtype, out, width, vectors):
    """Any floating type is taken as it is stored, and compared in float64; base and update may differ in type."""
    base = decaying(out, width, seed=3)
    update = low_rank(base, 3, 0.5, 4)
    half = LowRankUpdate(update.b.to(dtype), update.a.to(torch.float32), update.scale)
    for tuned, method in ((half, "lowrank-core"), (dense(base, 0.1, 5).to(dtype), "leading-vectors")):
        found = fast(base.to(dtype), tuned, 6, vectors)
        assert found.method == method
        assert counts(found.max_cosines) == counts(oracle(base.to(dtype), tuned, 6, vectors))
        np.testing.assert_allclose(found.max_cosines, oracle(base.to(dtype), tuned, 6, vectors), atol=1e-6)
        direct = fast(base.to(dtype), tuned, 6, vectors, direct_below=1000)
        assert direct.method == "full-svd" and counts(direct.max_cosines) == counts(found.max_cosines)


# --- what is refused ----------------------------------------------------------------------------------------------

def spoiled(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[-1, 2] = value
    return tensor


@pytest.mark.parametrize("direct_below", [DIRECT_BELOW, 1000], ids=["fast", "direct"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["base", "base of a lora", "tuned", "b", "a", "scale"])
def test_a_damaged_matrix_is_named(where, value, direct_below):
    """NaN or infinity in W0, Wt, B, A or the scale is said in words, with the matrix's name, by every method."""
    base = decaying(40, 64)
    update = low_rank(base, 3, 0.5, 4)
    pair = {"base": (spoiled(base, value), base), "base of a lora": (spoiled(base, value), update),
            "tuned": (base, spoiled(base, value)), "b": (base, update._replace(b=spoiled(update.b, value))),
            "a": (base, update._replace(a=spoiled(update.a, value))), "scale": (base, update._replace(scale=value))}
    with pytest.raises(CourseError, match="layer.7.*NaN or infinite") as caught:
        list(leading_cosines([Pair("layer.7", lambda: pair[where])], k=5, direct_below=direct_below))
    assert ("base" if "base" in where else "tuned") in str(caught.value)


@pytest.mark.parametrize("direct_below", [DIRECT_BELOW, 1000], ids=["fast", "direct"])
@pytest.mark.parametrize("shape", [(64, 40), (40, 63), (41, 64)])
@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_matrices_of_two_shapes_are_refused(kind, shape, direct_below):
    """A base and a tuned matrix of different shapes are of two architectures; both shapes are named."""
    other = decaying(*shape)
    tuned = low_rank(other, 3, 0.5, 4) if kind == "lora" else other
    with pytest.raises(CourseError, match=rf"layer.7.*\(40, 64\).*\({shape[0]}, {shape[1]}\)"):
        list(leading_cosines([Pair("layer.7", lambda: (decaying(40, 64), tuned))], direct_below=direct_below))


def test_an_unknown_side_is_refused():
    with pytest.raises(CourseError, match="'left' or 'right'.*'up'"):
        list(leading_cosines([], vectors="up"))


# --- the cache ----------------------------------------------------------------------------------------------------

def weight(seed: int = 0) -> torch.Tensor:
    return gaussian(24, 36, seed=seed).float()


@pytest.fixture
def as_new_process(monkeypatch):
    """Forget which files were verified, as a new process does."""
    monkeypatch.setattr(cache_module, "_VERIFIED", set())


def only_file(folder):
    files = list(folder.iterdir())
    assert len(files) == 1 and files[0].suffix == ".safetensors"
    return files[0]


def assert_recomputed(folder, matrix: torch.Tensor) -> None:
    """A cache on `folder` misses once with the right spectrum, and repairs its file."""
    cache_module._VERIFIED.clear()
    cache, true = SpectrumCache(folder), base_spectrum(matrix)
    found = cache.spectrum(matrix)
    assert torch.equal(found.basis, true.basis) and torch.equal(found.values, true.values)
    assert (cache.hits, cache.misses) == (0, 1)
    cache_module._VERIFIED.clear()
    cache.spectrum(matrix)
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_spectrum_is_computed_once(tmp_path, as_new_process):
    """The second call, also of another cache on the folder, is a hit and equal to the last bit."""
    cache, computed = SpectrumCache(tmp_path), base_spectrum(weight())
    for reader in (cache, cache, SpectrumCache(tmp_path)):
        found = reader.spectrum(weight())
        assert torch.equal(found.basis, computed.basis) and torch.equal(found.values, computed.values)
    assert (cache.hits, cache.misses) == (1, 1) and (reader.hits, reader.misses) == (1, 0)
    assert only_file(tmp_path)


def test_a_key_is_the_matrix_alone(tmp_path, as_new_process):
    """Neither the name nor how it lies in memory matters: the same values are found again."""
    cache = SpectrumCache(tmp_path)
    cache.spectrum(weight(), name="base matrix a of model x")
    cache.spectrum(weight(), name="b")
    cache.spectrum(weight().T.contiguous().T, name="a transposed view")
    cache.spectrum(torch.cat([weight(1), weight()])[24:], name="a slice of a larger one")
    assert (cache.hits, cache.misses) == (3, 1)


def test_another_matrix_is_another_key(tmp_path, as_new_process):
    """Another type, shape or a single changed element is a miss, with its own spectrum."""
    cache, matrix = SpectrumCache(tmp_path), weight()
    cache.spectrum(matrix)
    changed = matrix.clone()
    changed[3, 5] = torch.nextafter(changed[3, 5], torch.tensor(9.0))
    others = [matrix.double(), matrix.bfloat16(), matrix.reshape(36, 24), matrix.T, changed,
              matrix.bfloat16().view(torch.float16)]
    for misses, other in enumerate(others, start=2):
        found, true = cache.spectrum(other), base_spectrum(other)
        assert torch.equal(found.basis, true.basis) and torch.equal(found.values, true.values)
        assert (cache.hits, cache.misses) == (0, misses)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_not_believed(share, tmp_path, as_new_process):
    SpectrumCache(tmp_path).spectrum(weight())
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    assert_recomputed(tmp_path, weight())


@pytest.mark.parametrize("place", ["length", "header", "checksum", "basis", "basis, last", "values", "values, last"])
def test_a_flipped_bit_is_not_believed(place, tmp_path, as_new_process):
    """One wrong bit anywhere in the file, in the basis or in the singular values, and it is computed again."""
    SpectrumCache(tmp_path).spectrum(weight())
    path = only_file(tmp_path)
    content, q = bytearray(path.read_bytes()), 24
    at = {"length": 1, "header": content.index(b"F64"), "checksum": content.index(b"checksum") + 12,
          "basis": -8 * q * (q + 1) + 6, "basis, last": -8 * q - 1, "values": -8 * q + 6, "values, last": -2}[place]
    content[at] ^= 4
    path.write_bytes(content)
    assert_recomputed(tmp_path, weight())


def test_another_matrixs_file_is_not_believed(tmp_path, as_new_process):
    """A whole file of another size in the place of this one."""
    SpectrumCache(tmp_path).spectrum(weight())
    path = only_file(tmp_path)
    SpectrumCache(tmp_path / "other").spectrum(weight()[:20])
    only_file(tmp_path / "other").replace(path)
    (tmp_path / "other").rmdir()
    assert_recomputed(tmp_path, weight())


def test_a_nearly_full_disk_is_not_filled_and_said_once(tmp_path, monkeypatch, capsys, as_new_process):
    """Spectra are computed all the same; nothing is written, and one line says so, however many matrices follow."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**30))
    cache = SpectrumCache(tmp_path)
    for seed in range(3):
        assert torch.equal(cache.spectrum(weight(seed)).basis, base_spectrum(weight(seed)).basis)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("nearly full") == 1
    assert (cache.hits, cache.misses) == (0, 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied"),
                                   SafetensorError("I/O error")])
def test_a_spectrum_that_cannot_be_kept_is_still_returned(error, tmp_path, monkeypatch, capsys, as_new_process):
    """The write fails, the result stands, no half of a file stays behind, and it is said once."""
    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(cache_module, "save_file", fails)
    cache = SpectrumCache(tmp_path)
    for seed in range(2):
        assert torch.equal(cache.spectrum(weight(seed)).values, base_spectrum(weight(seed)).values)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("could not be kept") == 1


def test_a_damaged_base_matrix_is_not_kept(tmp_path, as_new_process):
    cache = SpectrumCache(tmp_path)
    with pytest.raises(CourseError, match="layer.7 holds NaN"):
        cache.spectrum(spoiled(weight(), float("nan")), name="layer.7")
    assert not list(tmp_path.iterdir())


def test_counts_are_the_same_from_the_cache(tmp_path, as_new_process):
    """A cache's method in place of the computation: twice the same results, the second time from disk."""
    cache, pairs = SpectrumCache(tmp_path), mixed_pairs()
    options = {"k": 6, "epsilons": EPSILONS, "direct_below": DIRECT_BELOW}
    plain = [one.max_cosines for one in leading_cosines(pairs, **options)]
    for _ in range(2):
        kept = [one.max_cosines for one in leading_cosines(pairs, spectrum=cache.spectrum, **options)]
        assert [counts(one) for one in kept] == [counts(one) for one in plain]
        torch.testing.assert_close(torch.cat(kept), torch.cat(plain), rtol=0, atol=1e-9)
    assert (cache.hits, cache.misses) == (9, 9)  # the two narrow ones need no spectrum
