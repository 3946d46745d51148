"""The bound that vouches for the fast counts, and the certificates that it rests on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from spectral_cases import (
    between,
    by_side,
    counts,
    decaying,
    dense,
    double,
    fast,
    gaussian,
    library,
    low_rank,
    merged,
    oracle,
    orthonormal,
    random_case,
    with_values,
)

from utils.spectra import cores as cores_module
from utils.spectra.fast import LowRankUpdate, cosine_bounds, tuned_angles
from utils.spectra.leading import RitzPairs, dense_bound_holds, low_rank_bound_holds, starting_subspace
from utils.spectra.svd import thin_svd


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
    # More: by the step's ratio, and rounding over s.
    far = cosine_bounds(cosines, values, 1e-6, far_rounding=1e-9)[1] - 0.9
    assert (far >= double([1e-6 / 3 + 1e-9, 4e-6 + 2e-9, 2e-6 * 2**0.5 + 2e-9 * 2**0.5]) - 1e-13).all()
    assert (far < 1e-5).all()
    rounding = cosine_bounds(cosines, values, 1e-30, far_rounding=1e-9)[1] - 0.9
    np.testing.assert_allclose(rounding, [1e-9, 2e-9, 2e-9 * 2**0.5], rtol=1e-6)


def test_a_null_group_of_the_longer_side_leaves_zero_to_the_leftover():
    """A null space has no left vectors of its own there: bounds 0 and what the others leave, whatever its noise is."""
    values, noise = double([2, 1, 1e-12, 0]), double([[0.6, 0.0, 0.9, 1e200], [0.1, 0.2, 0.0, 0.0]])
    low, high, _ = cosine_bounds(noise, values, 1e-13, far_rounding=1e-14)
    np.testing.assert_allclose(low, [0.6, 0.2], atol=1e-10)
    np.testing.assert_allclose(high, [0.8, 0.95**0.5], atol=1e-10)
    near = cosine_bounds(double([[0.6, 0.0, 0.0, 0.8]]), values, 1e-13)  # there a null space's vectors are a group
    assert near[0].item() == pytest.approx(0.6, abs=1e-10) and near[1].item() == pytest.approx(0.8, abs=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.9, 1e200])
def test_the_nearest_cosine_lies_between_its_bounds(noise):
    """The third value is what gets counted, so a null vector's noise must not be it: the bounds are 0.6, 0.8."""
    low, high, nearest = cosine_bounds(double([[0.6, 0.0, noise]]), double([2, 1, 1e-12]), 1e-13, far_rounding=1e-14)
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
    return low_rank_bound_holds(case.diagonal, case.left, case.right, inner=case.inner, tau=double([tau]), k=k).item()


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
        assert not low_rank_bound_holds(diagonal, nothing, nothing, inner=double([[[1]]]), tau=double([2]), k=k).item()


def certified(matrix: torch.Tensor, chosen: list[int], tau: float) -> bool:
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[chosen], vectors.flip(1).T[chosen]
    return dense_bound_holds(matrix[None], vectors[None], values[None], tau=double([tau]), noise=double([1e-12])).item()


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
        assert dense_bound_holds(matrix[None], torch.eye(5)[None, :2].double(), double([[5, 4]]), tau=double([tau]),
                                 noise=double([noise])).item() == expected


def test_the_dense_certificate_needs_no_exact_pairs():
    """Slightly wrong pairs leave it valid, badly wrong ones are refused."""
    factor = gaussian(30, 40, seed=1)
    matrix = factor @ factor.T
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    tau, noise = ((values[2] + values[3]) / 2)[None], double([1e-12])
    for size, expected in ((1e-4, True), (3.0, False)):
        rows = torch.linalg.qr(vectors[:, :3] + size * gaussian(30, 3, seed=2)).Q.T
        assert dense_bound_holds(matrix[None], rows[None], values[None, :3], tau=tau, noise=noise).item() == expected


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
        monkeypatch.setattr(cores_module, "EXACT_RANK", 0)
    if "without" in kind:
        monkeypatch.setattr(cores_module, "starting_subspace",
                            lambda count, k, changed: starting_subspace(count, k, changed[:, :0]))
    found = fast(base, merged(base, tuned) if kind == "dense" else tuned, 10, vectors)
    expected = oracle(base, tuned, 10, vectors)
    assert (expected < 0.5).sum() == 1
    assert counts(found.max_cosines) == counts(expected)
    if kind == "lora":
        assert found.method == "lowrank-core"
