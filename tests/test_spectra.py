"""The spectral mathematics against an independent reading of the definition, hand-worked cases and PEFT's own rule."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from scipy.stats import beta
from transformers import LlamaConfig, LlamaForCausalLM

from utils.errors import CourseError, UsageError
from utils.low_rank import LowRankUpdate
from utils.spectra import (
    count_intruders,
    effective_rank,
    first_intruders,
    max_cosines,
    planted_matrix,
    random_cosines,
    random_level,
    random_ranges,
    random_update,
    similarity,
    thin_svd,
    toy_sweep,
    trace_direction,
    update_table,
    vector_table,
)
from utils.spectra.controls import random_updates, spectrum_matched
from utils.spectra.rank import update_singular_values
from utils.spectra.svd import SingularTriplets

SHAPES = {"square": (24, 24), "tall": (40, 16), "wide": (16, 40), "one row": (1, 7), "one column": (7, 1)}
EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
KS = (1, 2, 3, 5, 10, 16, 100)


def oracle_cosines(base: np.ndarray, tuned: np.ndarray) -> list[float]:
    """s_j by the definition alone: two thin SVDs in float64, then every pair of left vectors in a plain loop."""
    u_base = np.linalg.svd(base.astype(np.float64), full_matrices=False)[0]
    u_tuned = np.linalg.svd(tuned.astype(np.float64), full_matrices=False)[0]
    found = []
    for j in range(u_tuned.shape[1]):
        largest = 0.0
        for i in range(u_base.shape[1]):
            x, y = u_tuned[:, j], u_base[:, i]
            largest = max(largest, abs(sum(a * b for a, b in zip(x, y, strict=True)))
                          / (math.sqrt(sum(x * x)) * math.sqrt(sum(y * y))))
        found.append(largest)
    return found


def oracle_count(cosines: list[float], k: int, epsilon: float) -> int:
    return sum(1 for j in range(min(k, len(cosines))) if cosines[j] < epsilon)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def decaying(out: int, width: int, *, seed: int = 0, power: float = 0.5) -> torch.Tensor:
    """A matrix with singular values j ** -power, clearly apart at the top as those of real weights are."""
    q = min(out, width)
    u = torch.linalg.qr(gaussian(out, q, seed=seed)).Q
    v = torch.linalg.qr(gaussian(width, q, seed=seed + 1)).Q
    return (u * torch.arange(1, q + 1, dtype=torch.float64) ** -power) @ v.T


def tuned_by(base: torch.Tensor, *, rank: int, strength: float, seed: int) -> torch.Tensor:
    """W0 plus an update of the given rank whose Frobenius norm is `strength` times W0's."""
    update = gaussian(base.shape[0], rank, seed=seed) @ gaussian(rank, base.shape[1], seed=seed + 1)
    return base + update * (strength * base.norm() / update.norm())


def single_counts(base: torch.Tensor, tuned: torch.Tensor, ks=KS, epsilons=EPSILONS, **options) -> dict:
    """{(epsilon, k): count} of one matrix by the code under test."""
    table = count_intruders(vector_table({"w": base}, {"w": tuned}, **options), epsilons, ks)
    return {(row["epsilon"], row["k"]): row["n_intruders"] for row in table.to_dict("records")}


def assert_equals_oracle(base: torch.Tensor, tuned: torch.Tensor) -> None:
    cosines = oracle_cosines(base.numpy(), tuned.numpy())
    counts = single_counts(base, tuned)
    assert counts == {(epsilon, k): oracle_count(cosines, k, epsilon) for epsilon in EPSILONS for k in KS}


@pytest.mark.parametrize("strength", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_follow_the_definition(shape, rank, strength):
    """Counts at every epsilon and k are those of the plain loop over all pairs of left vectors."""
    base = gaussian(*shape, seed=1)
    assert_equals_oracle(base, tuned_by(base, rank=rank, strength=strength, seed=7))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(out=st.integers(1, 14), width=st.integers(1, 14), rank=st.integers(1, 6), strength=st.floats(0.01, 5),
       seed=st.integers(0, 10_000), power=st.floats(0.2, 2))
def test_counts_follow_the_definition_for_any_small_matrix(out, width, rank, strength, seed, power):
    """The same comparison on matrices that hypothesis chooses."""
    # power > 0 keeps the singular values apart: equal ones have no vectors of their own, and so no one count.
    base = decaying(out, width, seed=seed, power=power)
    assert_equals_oracle(base, tuned_by(base, rank=rank, strength=strength, seed=seed + 2))


def test_the_compared_cases_are_not_all_trivial():
    """The comparisons above would prove little if every count were zero or k: some lie strictly between."""
    base = gaussian(24, 24, seed=1)
    counts = single_counts(base, tuned_by(base, rank=4, strength=0.5, seed=7))
    assert {0, 10} < {count for (_, k), count in counts.items() if k == 10}


def test_counts_sum_over_matrices_of_different_shapes():
    """A model's count is the sum over its matrices, grouped counts are each matrix's own, and k is per matrix."""
    base = {name: gaussian(*shape, seed=index) for index, (name, shape) in enumerate(SHAPES.items())}
    tuned = {name: tuned_by(weight, rank=2, strength=0.8, seed=50 + index)
             for index, (name, weight) in enumerate(base.items())}
    cosines = {name: oracle_cosines(base[name].numpy(), tuned[name].numpy()) for name in base}
    table = vector_table(base, tuned)
    summed = count_intruders(table, [0.3, 0.6], [3, 10]).set_index(["epsilon", "k"])["n_intruders"]
    grouped = count_intruders(table, [0.3, 0.6], [3, 10], by=("matrix",)).set_index(
        ["matrix", "epsilon", "k"])["n_intruders"]
    for epsilon in (0.3, 0.6):
        for k in (3, 10):
            each = {name: oracle_count(cosines[name], k, epsilon) for name in base}
            assert summed[epsilon, k] == sum(each.values())
            assert {name: grouped[name, epsilon, k] for name in base} == each
    shapes = table.groupby("matrix")[["out", "in"]].first()
    assert {name: tuple(shapes.loc[name]) for name in base} == SHAPES


def test_right_vectors_are_the_left_vectors_of_the_transpose():
    """``vectors="right"`` examines the input side: the oracle on transposed matrices, not the left counts."""
    base = gaussian(30, 12, seed=2)
    tuned = tuned_by(base, rank=2, strength=0.7, seed=9)
    cosines = oracle_cosines(base.T.numpy(), tuned.T.numpy())
    right = single_counts(base, tuned, vectors="right")
    assert right == {(epsilon, k): oracle_count(cosines, k, epsilon) for epsilon in EPSILONS for k in KS}
    assert right != single_counts(base, tuned)


def test_vector_table_lists_every_vector_in_order():
    """Rows carry index 1 … q, the tuned singular values descending, and each vector's oracle cosine."""
    base = gaussian(9, 14, seed=3)
    tuned = tuned_by(base, rank=1, strength=1.0, seed=4)
    table = vector_table({"w": base}, {"w": tuned})
    assert table["index"].tolist() == list(range(1, 10))
    np.testing.assert_allclose(table["singular_value"], np.linalg.svd(tuned.numpy(), compute_uv=False), rtol=1e-10)
    np.testing.assert_allclose(table["max_cosine"], oracle_cosines(base.numpy(), tuned.numpy()), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(48, 48), (64, 24), (24, 64)])
def test_unchanged_weights_have_no_intruder(shape, dtype):
    """W = W0 counts zero at every epsilon up to 0.99, on all vectors."""
    base = gaussian(*shape, seed=5).to(dtype)
    assert set(single_counts(base, base.clone()).values()) == {0}


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 1000), flips=st.lists(st.booleans(), min_size=24, max_size=24))
def test_signs_of_singular_vectors_do_not_matter(seed, flips):
    """An SVD may return (-u, -v) for (u, v); neither side's signs change a cosine or a count."""
    base = gaussian(12, 18, seed=seed)
    tuned = tuned_by(base, rank=2, strength=0.6, seed=seed + 1)
    signs = torch.tensor([-1.0 if flip else 1.0 for flip in flips], dtype=torch.float64)

    def flipped(factors: SingularTriplets, chosen: torch.Tensor) -> SingularTriplets:
        return SingularTriplets(factors.u * chosen, factors.s, chosen[:, None] * factors.vt)

    of_base, of_tuned = thin_svd(base), thin_svd(tuned)
    assert torch.equal(max_cosines(flipped(of_tuned, signs[12:]), flipped(of_base, signs[:12])),
                       max_cosines(of_tuned, of_base))
    assert single_counts(base, tuned, base_triplets={"w": flipped(of_base, signs[:12])}) == single_counts(base, tuned)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 1000), shape=st.sampled_from([(12, 12), (20, 8), (8, 20)]))
def test_the_input_side_may_be_permuted_or_rotated(seed, shape):
    """W Q has W's left vectors for any orthogonal Q, so left counts are those of the unrotated pair."""
    base = gaussian(*shape, seed=seed)
    tuned = tuned_by(base, rank=2, strength=0.6, seed=seed + 1)
    expected = single_counts(base, tuned)
    permuted = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    first, second = (torch.linalg.qr(gaussian(shape[1], shape[1], seed=seed + offset)).Q for offset in (3, 4))
    assert single_counts(base[:, permuted], tuned[:, permuted]) == expected
    assert single_counts(base @ first, tuned @ second) == expected


def test_scaling_weights_changes_nothing():
    """Counts are about directions: a common factor leaves them, the singular values carry it."""
    base = gaussian(15, 15, seed=6)
    tuned = tuned_by(base, rank=3, strength=0.5, seed=8)
    assert single_counts(base * 1000, tuned * 0.001) == single_counts(base, tuned)


# --- count_intruders on hand-made tables -----------------------------------------------------------------------------

@pytest.mark.parametrize("epsilon", [0.125, 0.25, 0.5, 0.75, 1.0])
def test_a_cosine_equal_to_epsilon_is_not_an_intruder(epsilon):
    """The comparison is strict: equal is not counted, the next smaller float is."""
    table = pd.DataFrame({"matrix": "w", "index": [1, 2], "max_cosine": [epsilon, np.nextafter(epsilon, 0)]})
    assert count_intruders(table, [epsilon], [1, 2])["n_intruders"].tolist() == [0, 1]
    assert first_intruders(table, epsilon=epsilon, k=2)["index"].tolist() == [2]


def hand_table() -> pd.DataFrame:
    return pd.DataFrame({"matrix": ["a"] * 4 + ["b"] * 2, "index": [1, 2, 3, 4, 1, 2],
                         "max_cosine": [0.9, 0.2, 0.4, 0.1, 0.3, 0.8]})


@pytest.mark.parametrize("k, expected", [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4), (0.25, 0), (0.5, 2), (1.0, 4)])
def test_k_is_a_number_or_a_fraction_of_each_matrix(k, expected):
    """Whole k examines that many of each matrix; a fraction is of each matrix's own vectors (a has 4, b has 2)."""
    assert count_intruders(hand_table(), [0.5], [k])["n_intruders"].tolist() == [expected]


def test_a_fraction_examines_exactly_that_share():
    """0.7 of 90 vectors is 63 of them, though 0.7 * 90 is 62.99999999999999 in floating point."""
    table = pd.DataFrame({"matrix": "w", "index": range(1, 91), "max_cosine": 0.0})
    assert count_intruders(table, [0.5], [0.7])["n_intruders"].tolist() == [63]


def test_groups_keep_their_zero_counts():
    """A group without an intruder is a row with zero, at every epsilon and k, and groups do not leak."""
    table = pd.concat([hand_table().assign(run="x"), hand_table().assign(run="y", max_cosine=1.0)])
    counts = count_intruders(table, [0.15, 0.5], [2, 4], by=("run",))
    assert counts.set_index(["run", "epsilon", "k"])["n_intruders"].to_dict() == {
        ("x", 0.15, 2): 0, ("x", 0.15, 4): 1, ("x", 0.5, 2): 2, ("x", 0.5, 4): 4,
        ("y", 0.15, 2): 0, ("y", 0.15, 4): 0, ("y", 0.5, 2): 0, ("y", 0.5, 4): 0}


def test_a_group_of_which_no_vector_is_examined_counts_zero():
    """0.3 of two vectors is none; that group's zero belongs in the table too ("zero counts included")."""
    counts = count_intruders(hand_table(), [0.5], [0.3], by=("matrix",))
    assert dict(zip(counts["matrix"], counts["n_intruders"], strict=True)) == {"a": 0, "b": 0}


def test_first_intruders_are_the_counted_rows():
    """The listed rows are as many as the count, highest-ranked first within each matrix."""
    shuffled = hand_table().sample(frac=1, random_state=0)
    rows = first_intruders(shuffled, epsilon=0.5, k=3)
    assert list(zip(rows["matrix"], rows["index"], strict=True)) == [("a", 2), ("a", 3), ("b", 1)]
    assert len(rows) == count_intruders(shuffled, [0.5], [3])["n_intruders"].item()


# --- controls -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("shape", [(96, 128), (128, 128), (160, 96)])
def test_planted_directions_are_counted_one_by_one(shape, count):
    """n planted directions are n intruders at epsilon 0.5, the leading ones, with cosines near 1 / sqrt(q)."""
    base = decaying(*shape)
    table = vector_table({"w": base}, {"w": planted_matrix(base, count, strength=4.0)})
    assert count_intruders(table, [0.5], [10, 20])["n_intruders"].tolist() == [count, count]
    least = min(shape) ** -0.5
    assert first_intruders(table, epsilon=0.5, k=10)["index"].tolist() == list(range(1, count + 1))
    assert table["max_cosine"][:count].between(0.9 * least, 2 * least).all()
    assert (table["max_cosine"][count:10] > 0.9).all()


def test_one_planted_vector_is_the_even_mixture():
    """The planted rank-one part has a left vector with cosine 1 / sqrt(q) to every pretrained one."""
    base = decaying(40, 60)
    u = torch.linalg.svd(planted_matrix(base, 1, seed=3) - base).U[:, 0]
    torch.testing.assert_close((thin_svd(base).u.T @ u).abs(), torch.full((40,), 40 ** -0.5, dtype=torch.float64))


@pytest.mark.parametrize("count", [-1, 8, 9])
def test_an_impossible_number_of_planted_directions_is_refused(count):
    with pytest.raises(UsageError, match=r"count must be 0 … 7 .*\(8, 20\)"):
        planted_matrix(gaussian(8, 20), count)


def test_toy_sweep_crosses_from_no_intruder_to_the_leading_one():
    """Below the largest singular value the planted direction does not lead; well above, it leads as an intruder."""
    base = decaying(96, 80, power=0.3)
    sweep = toy_sweep(base, [0.01, 0.2, 1.5, 3.0, 10.0]).set_index("ratio")
    assert (sweep.loc[[1.5, 3.0, 10.0], "index"] == 1).all()
    assert (sweep.loc[[1.5, 3.0, 10.0], "max_cosine"] < 0.5).all()
    assert (sweep.loc[[3.0, 10.0], "overlap"] > 0.97).all()
    assert (sweep.loc[[0.01, 0.2], "index"] > 1).all()


def test_toy_direction_leaves_the_leading_vectors_alone_while_weak():
    """A planted strength far below the largest singular value gives no intruder among the ten leading vectors."""
    base = decaying(96, 80, power=0.3)
    u, v = (torch.nn.functional.normalize(gaussian(size, seed=size), dim=0) for size in base.shape)
    top = torch.linalg.matrix_norm(base, 2)
    weak, strong = base + 0.05 * top * torch.outer(u, v), base + 3 * top * torch.outer(u, v)
    assert single_counts(base, weak)[0.5, 10] == 0
    assert single_counts(base, strong)[0.5, 10] == 1


@pytest.mark.parametrize("rank", [None, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_random_update_has_the_norm_and_rank_asked_for(rank, dtype):
    """Same Frobenius norm as the update it stands for, and full rank or exactly the rank named."""
    base, update = gaussian(20, 30, seed=1).to(dtype), gaussian(20, 30, seed=2).to(dtype) * 0.37
    drawn = random_update(base, update, rank=rank) - base
    torch.testing.assert_close(drawn.norm(), update.norm(), rtol=1e-5, atol=0)
    assert torch.linalg.matrix_rank(drawn.double(), rtol=1e-4).item() == (rank or 20)
    assert drawn.dtype == dtype


def test_a_small_random_update_of_full_rank_makes_no_intruder():
    """The negative control: at 2 % of W0's norm nothing changes, while the same norm in one direction does."""
    base = decaying(96, 128)
    update = 0.02 * base
    counts = single_counts(base, random_update(base, update))
    assert counts[0.5, 10] == 0
    loud = single_counts(base, random_update(base, 2 * base, rank=1))
    assert loud[0.5, 10] == 1


def test_each_matrix_of_a_model_gets_its_own_random_update():
    """Matrices of one shape do not share a draw, each keeps its own norm, and the seed decides all."""
    base = {"a": gaussian(10, 10, seed=1), "b": gaussian(10, 10, seed=1)}
    tuned = {"a": base["a"] + 0.1, "b": base["b"] + 0.3}
    first, again, other = (random_updates(base, tuned, seed=seed) for seed in (0, 0, 1))
    for name, shift in (("a", 0.1), ("b", 0.3)):
        assert (first[name] - base[name]).norm().item() == pytest.approx(shift * 10)
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    drawn = [(first[name] - base[name]).flatten() for name in ("a", "b")]
    assert torch.nn.functional.cosine_similarity(*drawn, dim=0).abs() < 0.5


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_random_twin_keeps_the_spectrum_and_nothing_of_the_directions(low_rank):
    b, a = gaussian(96, 3, seed=1), gaussian(3, 64, seed=2)
    update = LowRankUpdate(b, a, 2.0) if low_rank else 2.0 * b @ a
    first, again, other = (spectrum_matched(update, seed=seed) for seed in (0, 0, 1))
    drawn, trained = first.b @ first.a, 2.0 * b @ a
    assert drawn.shape == (96, 64) and torch.equal(first.b, again.b) and not torch.equal(first.b, other.b)
    values, expected = (torch.linalg.svdvals(matrix.double())[:5] for matrix in (drawn, trained))
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-3)
    overlap = thin_svd(drawn.double()).u[:, :3].T @ thin_svd(trained.double()).u[:, :3]
    assert overlap.abs().max() < 0.5


@pytest.mark.parametrize("dimension, count", [(768, 768), (1024, 256), (512, 512), (2048, 384)])
def test_random_level_is_near_the_simulated_mean(dimension, count):
    """Mean of the largest |cosine| of random directions with an orthonormal basis, within 15 % of the formula."""
    basis = torch.linalg.qr(gaussian(dimension, count, seed=0).float()).Q
    directions = torch.nn.functional.normalize(gaussian(300, dimension, seed=1).float(), dim=1)
    simulated = (directions @ basis).abs().amax(1).mean().item()
    assert simulated == pytest.approx(random_level(dimension, count), rel=0.15)


@pytest.mark.parametrize("dimension, count, quantile", [
    # In the plane, the larger of |cos| and |sin| of an angle; and one coordinate, by Archimedes uniform on the sphere.
    (2, 2, lambda p: math.cos(math.pi / 4 * (1 - p))), (2, 1, lambda p: math.sin(math.pi / 2 * p)), (3, 1, lambda p: p),
    # Of many dimensions the squared coordinates are nearly independent, each Beta(1/2, (n - 1) / 2).
    (384, 384, lambda p: math.sqrt(beta.ppf(p ** (1 / 384), 0.5, 383 / 2))),
    (1536, 384, lambda p: math.sqrt(beta.ppf(p ** (1 / 384), 0.5, 1535 / 2)))])
def test_random_cosines_follow_the_law_of_a_point_on_the_sphere(dimension, count, quantile):
    drawn = random_cosines(dimension, count, draws=20_000)
    for p in (0.05, 0.5, 0.95):
        assert drawn.quantile(p).item() == pytest.approx(quantile(p), rel=0.02, abs=0.01)


def test_random_cosines_are_those_with_any_thin_bases_left_vectors():
    """A tall matrix has 32 left vectors of 128; a random direction is compared with those, not with a whole basis."""
    base = thin_svd(gaussian(128, 32, seed=3).float())
    directions = torch.nn.functional.normalize(gaussian(4000, 128, seed=4).float(), dim=1)
    by_hand = (directions @ base.u).abs().amax(1).quantile(torch.tensor([0.05, 0.5, 0.95]))
    row = random_ranges([(128, 32)], draws=4000).iloc[0]
    assert row[["low", "median", "high"]].tolist() == pytest.approx(by_hand.tolist(), rel=0.03)
    whole = random_ranges([(128, 128)], draws=4000).iloc[0]
    assert whole["low"] > row["median"] and row["high"] < row["largest"] < 1


# --- effective rank and update sizes --------------------------------------------------------------------------------

@pytest.mark.parametrize("values, expected", [
    ([3.0] * 5, 5.0), ([7.0], 1.0), ([4.0, 0.0, 0.0], 1.0), ([0.0, 0.0], 0.0), ([2e-20] * 4, 4.0),
    # p = 3/4, 1/4: exp(ln 4 - 3/4 ln 3) = 4 / 3 ** 0.75
    ([3.0, 1.0], 4 / 3 ** 0.75), ([30.0, 10.0, 0.0], 4 / 3 ** 0.75)])
def test_effective_rank_by_hand(values, expected):
    assert effective_rank(torch.tensor(values)) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_effective_rank_lies_between_one_and_the_number_of_values(values):
    """Between 1 and n, and the scale of the update plays no part."""
    rank = effective_rank(torch.tensor(values, dtype=torch.float64))
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    assert effective_rank(torch.tensor(values, dtype=torch.float64) * 1e-3) == pytest.approx(rank)


@pytest.mark.parametrize("scale", [2.0, 0.25, -1.5])
@pytest.mark.parametrize("out, width, r", [(20, 12, 4), (12, 20, 1), (6, 9, 8), (9, 5, 7)])
def test_factors_give_the_spectrum_of_the_dense_update(out, width, r, scale):
    """The r x r core has the non-zero singular values of scale * B A, also where r exceeds a side."""
    b, a = gaussian(out, r, seed=1), gaussian(r, width, seed=2)
    dense = torch.linalg.svdvals(scale * b @ a)
    core = update_singular_values((b, a, scale))
    shared = min(len(dense), len(core))
    torch.testing.assert_close(core[:shared], dense[:shared])
    assert core[shared:].abs().sum() < 1e-9 and dense[shared:].abs().sum() < 1e-9
    assert effective_rank(core) == pytest.approx(effective_rank(dense), rel=1e-6)


def test_update_table_by_hand_and_by_factors():
    """Norms relative to W0's on diagonal matrices; the same rows from (B, A, scale) as from the dense weights."""
    base = {"w": torch.diag(torch.tensor([4.0, 3.0]))}
    b, a = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.5, 0.0], [0.0, 0.5]])
    row = update_table(base, {"w": base["w"] + 2 * b @ a}).iloc[0]
    assert row["update_norm"] == pytest.approx(10 ** 0.5) and row["base_norm"] == pytest.approx(5)
    assert row["relative_norm"] == pytest.approx(10 ** 0.5 / 5)
    assert row["effective_rank"] == pytest.approx(4 / 3 ** 0.75, rel=1e-5)
    by_factors = update_table(base, {"w": base["w"] + 2 * b @ a}, {"w": (b, a, 2.0)}).iloc[0]
    for column in ("update_norm", "base_norm", "relative_norm", "effective_rank"):
        assert by_factors[column] == pytest.approx(row[column], rel=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = gaussian(6, 5, dtype=torch.float32)
INFINITE = GOOD.clone()
INFINITE[0, 0] = float("inf")


@pytest.mark.parametrize("base, tuned, words", [
    ({"enc.q": GOOD}, {"enc.q": torch.full_like(GOOD, float("nan"))}, "tuned matrix enc.q holds NaN"),
    ({"enc.q": INFINITE}, {"enc.q": GOOD}, "base matrix enc.q holds NaN or infinite"),
    ({"enc.q": GOOD}, {"enc.q": GOOD.bfloat16()}, "tuned matrix enc.q.*bfloat16"),
    ({"enc.q": GOOD.half()}, {"enc.q": GOOD}, "base matrix enc.q.*float16"),
    ({"enc.q": GOOD}, {"enc.q": GOOD.T}, r"'enc.q' is \(6, 5\) in the base model but \(5, 6\)"),
    ({"enc.k": GOOD}, {"enc.q": GOOD}, "no matrix 'enc.q'"),
    ({"enc.q": GOOD[0]}, {"enc.q": GOOD[0]}, "base matrix enc.q.*needs a float32 or float64 matrix"),
], ids=["NaN", "infinity", "bfloat16", "float16", "shape", "missing", "vector"])
def test_unusable_matrices_are_named(base, tuned, words):
    """Each unusable input ends in one sentence that names the matrix."""
    with pytest.raises(CourseError, match=words):
        vector_table(base, tuned)


def test_similarity_refuses_bases_of_different_matrices():
    with pytest.raises(CourseError, match=r"\(6, 5\) but the tuned one \(5, 6\)"):
        similarity(thin_svd(GOOD.T.contiguous()), thin_svd(GOOD))


def test_similarity_rows_are_tuned_vectors():
    """Rows are tuned vectors and columns pretrained ones; `top` keeps the first rows; entries are absolute."""
    base, tuned = thin_svd(gaussian(9, 7, seed=1)), thin_svd(gaussian(9, 7, seed=2))
    grid = similarity(tuned, base, top=3)
    assert grid.shape == (3, 7)
    assert grid[2, 5].item() == pytest.approx(abs(float(np.dot(tuned.u[:, 2].numpy(), base.u[:, 5].numpy()))))
    assert (similarity(base, tuned) - similarity(tuned, base).T).abs().max() < 1e-12


# --- why the exact SVD, and PEFT's rule -----------------------------------------------------------------------------

def test_a_randomised_svd_would_invent_intruders():
    """`torch.svd_lowrank` at its defaults mixes neighbouring vectors of a flat spectrum: W0 itself gets intruders."""
    base = gaussian(128, 128, seed=0)
    torch.manual_seed(0)
    approximate = SingularTriplets(*torch.svd_lowrank(base)[:2], thin_svd(base).vt[:6])
    exact = thin_svd(base)
    invented = ((approximate.u.T @ exact.u).abs().amax(1) < 0.8).sum().item()
    assert invented >= 3
    assert (max_cosines(thin_svd(base.clone()), exact)[:6] < 0.8).sum().item() == 0


@pytest.mark.parametrize("epsilon, top_k", [(0.5, 10), (0.3, 4), (0.8, 10)])
def test_counts_are_those_that_peft_reports(epsilon, top_k):
    """PEFT's `reduce_intruder_dimension` finds as many intruders in each layer of a tiny model as we count."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                         num_attention_heads=2, num_key_value_heads=1))
    peft_model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))
    base, tuned = {}, {}
    for name, module in peft_model.named_modules():
        if hasattr(module, "lora_A"):
            # Strengths differ between layers, so that some have intruders and some have none.
            torch.nn.init.normal_(module.lora_B["default"].weight, std=0.004 * 3 ** (len(base) % 5))
            base[name] = module.get_base_layer().weight.detach().clone()
            tuned[name] = base[name] + module.get_delta_weight("default").detach()
    lines = []
    reduce_intruder_dimension(peft_model, top_k=top_k, threshold_epsilon=epsilon, logging_sink=lines.append)
    reported = {}
    for line in lines[:-1]:
        name, _, found = line.partition(": ")
        reported[name] = 0 if found == "No intruders" else int(found.removeprefix("Intruders: "))
    ours = count_intruders(vector_table(base, tuned), [epsilon], [top_k], by=("matrix",))
    assert dict(zip(ours["matrix"], ours["n_intruders"], strict=True)) == reported
    assert len(reported) == 14 and 0 < sum(reported.values()) and 0 in reported.values()


# --- one direction through training ----------------------------------------------------------------------------------
def test_a_planted_direction_is_traced_through_growing_strength():
    """Diagonal W0 = 3, 2, 1 and a fourth output planted at 0, 1.5, 5: it goes from nowhere to index 3, then 1."""
    base = torch.zeros(4, 4)
    base.diagonal().copy_(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    steps = {}
    for step, strength in ((0, 0.5), (10, 1.5), (20, 5.0)):
        steps[step] = base.clone()
        steps[step][3, 3] = strength
    trace = trace_direction(thin_svd(base), steps, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert trace["index"].tolist() == [4, 3, 1] and trace["step"].tolist() == [0, 10, 20]
    assert trace["singular_value"].tolist() == pytest.approx([0.5, 1.5, 5.0])
    assert trace["overlap"].tolist() == pytest.approx([1, 1, 1]) == trace["max_cosine"].tolist()


def test_a_traced_direction_outside_the_base_has_a_small_largest_cosine():
    """A tall W0 does not span its output space: a vector planted outside it resembles nothing pretrained."""
    base = torch.zeros(4, 2)
    base[0, 0], base[1, 1] = 2.0, 1.0
    tuned = base.clone()
    tuned[3, 1] = 5.0
    row = trace_direction(thin_svd(base), {7: tuned}, torch.tensor([0.0, 0.0, 0.0, 1.0])).iloc[0]
    assert row["index"] == 1 and row["max_cosine"] == pytest.approx(1 / 26**0.5, rel=1e-4)
    assert row["overlap"] == pytest.approx(5 / 26**0.5, rel=1e-4)
