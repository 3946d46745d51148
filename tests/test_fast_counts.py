"""The fast spectra against the definition: counts, ties, streams of pairs, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_cases import (
    DIRECT_BELOW,
    EPSILONS,
    between,
    by_side,
    counts,
    decaying,
    dense,
    fast,
    gaussian,
    library,
    low_rank,
    merged,
    mixed_pairs,
    oracle,
    orthonormal,
    random_case,
    spoiled,
    with_values,
)

from utils.errors import CourseError
from utils.spectra import cores as cores_module
from utils.spectra.base import base_spectrum
from utils.spectra.fast import LowRankUpdate, Pair, leading_cosines
from utils.spectra.svd import thin_svd

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


# --- streams of pairs ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("batch_bytes", [1, 200_000, 8 * 2**20])
@pytest.mark.parametrize("vectors", ["left", "right"])
def test_results_come_in_the_order_of_the_pairs(vectors, batch_bytes, monkeypatch):
    """However the matrices are batched, results follow the pairs, and each is what it is alone."""
    monkeypatch.setattr(cores_module, "BATCH_BYTES", batch_bytes)
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
    monkeypatch.setattr(cores_module, "BATCH_BYTES", 1)
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
    def fails(*_, **__):
        raise torch.linalg.LinAlgError("The algorithm failed to converge.")

    monkeypatch.setattr(cores_module, "leading_pairs", fails)
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
