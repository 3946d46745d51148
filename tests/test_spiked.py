"""The critical strength from the spectrum alone, against theory and simulation, and the cluster-robust cosine."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UsageError
from utils.spectra import (
    LowRankUpdate,
    Pair,
    adapter_strengths,
    count_intruders,
    critical_strength,
    leading_cosines,
    leading_table,
    measured_critical_strength,
    planted_matrix,
    predicted_spike,
    thin_svd,
    window_cosines,
    window_level,
    window_table,
)
from utils.spectra.clusters import left_cosines
from utils.spectra.spiked import expected_overlaps, expected_shares, secular_functions

SHAPES = {"square": (160, 160), "wide": (140, 280), "tall": (280, 140)}
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


# --- helpers ------------------------------------------------------------------------------------------------------

def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(size: int, count: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(gaussian(size, count, seed=seed)).Q


def with_values(shape: tuple[int, int], values, seed: int = 0) -> torch.Tensor:
    """A matrix with the given singular values, in random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    left, right = (orthonormal(side, len(values), seed + place) for place, side in enumerate(shape))
    return (left * values) @ right.T


def decaying(shape: tuple[int, int], power: float) -> torch.Tensor:
    return with_values(shape, torch.arange(1, min(shape) + 1, dtype=torch.float64) ** -power)


def spectrum_of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    return gaussian(*shape) / shape[1] ** 0.5 if kind == "gaussian" else decaying(shape, float(kind))


def gaussian_values(shape: tuple[int, int]) -> np.ndarray:
    """A Gaussian spectrum at unit scale: entries of variance 1 / columns, so that the bulk ends at 1 + sqrt(m / n)."""
    return np.linalg.svd(gaussian(*shape).numpy() / shape[1] ** 0.5, compute_uv=False)


def pair(base: torch.Tensor, tuned) -> Pair:
    return Pair("w", lambda: (base, tuned))


def unit(size: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(gaussian(size, seed=seed), dim=0)


def planted(base: torch.Tensor, strength: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """u, and W0 + strength u v^T."""
    u, v = unit(base.shape[0], seed), unit(base.shape[1], seed + 500)
    return u, base + strength * torch.outer(u, v)


# --- the prediction by hand ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(3, 3), (3, 7), (7, 3)])
def test_of_nothing_only_the_planted_direction_is_left(shape):
    found = predicted_spike(np.zeros(3), shape, [0.5, 4.0])
    assert found["singular_value"].tolist() == [0.5, 4.0]
    assert found["index"].tolist() == [1, 1]
    assert found["overlap"].tolist() == pytest.approx([1, 1])
    assert found["max_cosine"].tolist() == [window_level(shape[0], 3)] * 2  # like any random direction


def test_secular_functions_by_hand():
    """s = (2, 1), 2 x 3, sigma = 3: 3/5 + 3/8 on both sides, and one zero more, 1/3, on the input side."""
    phi, mirror = secular_functions(np.array([3.0]), np.array([2.0, 1.0]), (2, 3))
    assert phi[0] == pytest.approx((3 / 5 + 3 / 8) / 2)
    assert mirror[0] == pytest.approx((3 / 5 + 3 / 8 + 1 / 3) / 3)
    tall = secular_functions(np.array([3.0]), np.array([2.0, 1.0]), (3, 2))
    assert (tall[0][0], tall[1][0]) == (mirror[0], phi[0])


def test_equal_values_by_hand():
    """All s = 1, square: D = (sigma / (sigma^2 - 1))^2, so sigma^2 - theta sigma - 1 = 0."""
    found = predicted_spike(np.ones(4), (4, 4), [1.5, 0.2])
    assert found["singular_value"].tolist() == pytest.approx([2.0, 0.1 + 1.01**0.5])
    assert expected_shares(np.array([2.0]), np.ones(4), (4, 4))[0].tolist() == pytest.approx([0.25] * 4)
    assert found["overlap"][0] == pytest.approx((-2 * (2 / 3) / (1.5**2 * -(2 * 2 / 3 * 5 / 9))) ** 0.5)


def test_shares_by_hand():
    """s = (1, 0), 2 x 2, sigma = 2: phi = phi~, so (4 + 1) / 9 against 4 / 16."""
    shares = expected_shares(np.array([2.0]), np.array([1.0, 0.0]), (2, 2))[0]
    assert shares.tolist() == pytest.approx([(5 / 9) / (5 / 9 + 1 / 4), (1 / 4) / (5 / 9 + 1 / 4)])


def test_a_tall_matrix_leaves_part_of_the_vector_outside():
    values = np.array([1.0, 0.5])
    assert expected_shares(np.array([2.0]), values, (2, 5)).sum() == pytest.approx(1)
    assert expected_shares(np.array([2.0]), values, (5, 2)).sum() < 0.7


def test_no_planted_direction_where_d_is_not_positive():
    """Just below an isolated value phi is negative: nothing planted lies there, whatever its strength."""
    values, inside = np.array([2.0, 0.1, 0.1, 0.1]), np.array([1.99])
    assert secular_functions(inside, values, (4, 4))[0][0] < 0
    assert np.isnan(expected_shares(inside, values, (4, 4))).all()
    assert np.isnan(expected_overlaps(inside, values, (4, 4))).all()


def test_between_isolated_values_d_counts_all_of_them():
    """One value of 10 far above a bulk: the direction passes below it, at index 2, and is drawn down a little by it."""
    values = np.concatenate([[10.0], gaussian_values((100, 100))[1:]])
    without = np.concatenate([values[1:], [0.0]])
    found, alone = (predicted_spike(v, (100, 100), [4.0]).iloc[0] for v in (values, without))
    assert (found["index"], alone["index"]) == (2, 1)
    assert found["singular_value"] == pytest.approx(alone["singular_value"], rel=0.05)
    assert found["singular_value"] < alone["singular_value"]
    assert predicted_spike(values, (100, 100), [30.0])["index"][0] == 1


# --- the published threshold --------------------------------------------------------------------------------------

@by_shape
@pytest.mark.parametrize("strength", [1.6, 3.0])
def test_a_gaussian_matrix_has_the_published_outlier(shape, strength):
    """Variance 1 / n, c = m / n: sigma^2 = (1 + theta^2)(c + theta^2) / theta^2, and |<u~, u>|^2 beside it."""
    c, square = shape[0] / shape[1], strength**2
    found = predicted_spike(gaussian_values(shape), shape, [strength]).iloc[0]
    assert found["singular_value"] == pytest.approx(((1 + square) * (c + square) / square) ** 0.5, rel=0.01)
    assert found["overlap"] ** 2 == pytest.approx(1 - c * (1 + square) / (square * (square + c)), abs=0.03)
    assert found["index"] == 1


@by_shape
def test_a_gaussian_matrix_hides_what_is_below_the_threshold(shape):
    """theta_c = c^(1/4): at half of it no vector carries the direction, at twice it the leading one does."""
    threshold = (shape[0] / shape[1]) ** 0.25
    weak, strong = predicted_spike(gaussian_values(shape), shape, [threshold / 2, 2 * threshold])["overlap"]
    assert weak < 0.5
    assert strong > 0.75
    assert threshold < critical_strength(gaussian_values(shape), shape, 0.5, k=1) < 1.4 * threshold


# --- the prediction against simulation ----------------------------------------------------------------------------

@by_shape
@pytest.mark.parametrize("kind, ratio, index", [("gaussian", 1.5, 1), ("0.3", 1.5, 1), ("1", 1.5, 1), ("1", 0.7, 2)])
def test_the_planted_direction_is_where_predicted(shape, kind, ratio, index):
    """Above the spectrum and in a gap within it; medians of 12 draws: singular value to 2 %, overlap to 0.03."""
    base = spectrum_of(kind, shape)
    values = torch.linalg.svdvals(base)
    strength = ratio * values[0].item()
    expected, found = predicted_spike(values, shape, [strength]).iloc[0], []
    for seed in range(12):
        u, tuned = planted(base, strength, seed)
        factors = thin_svd(tuned)
        along = (factors.u.T @ u).abs()
        found.append((factors.s[along.argmax()].item(), along.argmax().item() + 1, along.max().item()))
    sigma, place, overlap = np.median(found, axis=0)
    assert sigma == pytest.approx(expected["singular_value"], rel=0.02)
    assert overlap == pytest.approx(expected["overlap"], abs=0.03)
    assert place == expected["index"] == index


@by_shape
@pytest.mark.parametrize("kind", ["gaussian", "0.5"])
def test_the_first_strength_of_the_leading_vector_is_as_predicted(shape, kind):
    """k = 1: the prediction lies within 20 % of the median of five draws."""
    base = spectrum_of(kind, shape)
    measured = measured_critical_strength(base, k=1, draws=5, seed=3)
    predicted = critical_strength(torch.linalg.svdvals(base), shape, 0.5, k=1)
    assert predicted == pytest.approx(measured.median, rel=0.2)
    assert measured.smallest <= measured.median <= measured.largest


@by_shape
def test_among_ten_vectors_the_prediction_is_within_a_factor_of_two(shape):
    """A power law's gaps are all narrow: each is one more chance, which the expectation does not see."""
    base = decaying(shape, 0.5)
    measured = measured_critical_strength(base, k=10, draws=5, seed=3)
    predicted = critical_strength(torch.linalg.svdvals(base), shape, 0.5, k=10)
    assert measured.median / 1.3 < predicted < 2 * measured.median


def test_expected_shares_predict_better_than_the_median_component():
    """Why the expectation: with 0.45 of the nearest component, its chi-square median, strengths come out too small."""
    errors = []
    for shape in SHAPES.values():
        bulk = gaussian_values(shape)
        for values in (bulk, np.concatenate([[6, 5, 4.4, 4.1], bulk[4:]])):
            measured = measured_critical_strength(with_values(shape, values), k=1, draws=5).median
            # 0.45 w / (0.45 w + rest) < epsilon^2 is the same as a share w / (w + rest) below another threshold.
            median = 0.25 / (0.25 + 0.4549 * 0.75)
            errors.append([abs(math.log(critical_strength(values, shape, epsilon, k=1) / measured))
                           for epsilon in (0.5, median**0.5)])
    expectation, nearest = np.mean(errors, axis=0)
    assert expectation < nearest
    assert expectation < math.log(1.1)


# --- the critical strength ----------------------------------------------------------------------------------------

def test_the_critical_strength_is_a_crossing_of_the_predicted_cosine():
    """Just above it the planted direction is an intruder at that index, just below it is not."""
    values = np.array([10.0, 6.0, 3.0, *np.linspace(1, 0.1, 37)])
    for k, index in ((1, 1), (2, 2), (3, 3)):
        strength = critical_strength(values, (40, 40), 0.5, k=k)
        below, above = predicted_spike(values, (40, 40), [0.999 * strength, 1.001 * strength])["max_cosine"]
        assert above < 0.5 < below
        assert predicted_spike(values, (40, 40), [strength])["index"][0] == index


def test_never_and_at_once():
    level = window_level(16, 16)
    assert 0.3 < level < 0.5
    assert critical_strength(np.ones(16), (16, 16), level) == math.inf  # a random direction is no less like the others
    assert critical_strength(np.zeros(16), (16, 16), 1.01 * level) == 0
    assert critical_strength(np.ones(16), (16, 16), 1.01 * level) < 1e-6  # an undetermined basis turns at once


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.05, 10), min_size=12, max_size=20), st.integers(0, 8), st.floats(0.6, 0.9),
       st.floats(0.01, 100))
def test_critical_strength_properties(values, more, epsilon, scale):
    """More vectors examined or a looser threshold never ask for more strength; the scale of W0 is the strength's."""
    values = np.sort(values)[::-1].copy()
    shape = (len(values), len(values) + more)
    strengths = [critical_strength(values, shape, epsilon, k=k) for k in (1, 3, 30)]
    assert strengths[0] >= strengths[1] >= strengths[2] > 0
    assert critical_strength(values, shape, min(1, epsilon + 0.05), k=3) <= strengths[1] * (1 + 1e-3)
    assert critical_strength(scale * values, shape, epsilon, k=3) == pytest.approx(scale * strengths[1], rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=4, max_size=12), st.integers(-3, 8), st.floats(0.1, 30))
def test_predicted_spike_properties(values, more, strength):
    """sigma solves the secular equation, lies no further than theta from W0's values, and cosines are cosines."""
    values = np.sort(values)[::-1].copy()
    shape = (len(values) + max(0, -more), len(values) + max(0, more))
    found = predicted_spike(values, shape, [strength]).iloc[0]
    assert found["singular_value"] <= values[0] + strength
    assert found["index"] == 1 + (values > found["singular_value"]).sum()
    assert 0 <= found["overlap"] <= 1
    assert 0 < found["max_cosine"] <= 1
    if np.abs(values - found["singular_value"]).min() > 1e-3:
        phi, mirror = secular_functions(np.array([found["singular_value"]]), values, shape)
        assert phi[0] * mirror[0] == pytest.approx(strength**-2, rel=1e-6)


def test_measuring_is_repeatable_and_scales():
    base = decaying((140, 140), 0.5)
    first, again = (measured_critical_strength(base, k=3, draws=2, seed=1) for _ in range(2))
    assert first == again
    scaled = measured_critical_strength(8 * base, k=3, draws=2, seed=1)
    assert scaled.median == pytest.approx(8 * first.median, rel=1e-6)


def test_a_measured_strength_makes_an_intruder_and_a_smaller_one_does_not():
    base = decaying((140, 160), 0.5)
    found = measured_critical_strength(base, k=1, draws=1, seed=4).median
    generator = torch.Generator().manual_seed(4)
    u, v = (torch.nn.functional.normalize(torch.randn(side, generator=generator, dtype=torch.float64), dim=0)
            for side in base.shape)
    for strength, count in ((found, 1), (0.99 * found, 0)):
        update = LowRankUpdate(u[:, None], v[None], strength)
        cosines = next(leading_cosines([pair(base, update)], k=1)).max_cosines
        assert int((cosines < 0.5).sum()) == count


def test_measured_never_and_at_once():
    base = decaying((140, 140), 0.5)
    assert measured_critical_strength(base, epsilon=0.01, k=1, draws=1).median == math.inf
    close = with_values((140, 140), torch.ones(140))  # hits at the scan's first strength, which is what it returns
    assert measured_critical_strength(close, draws=1).median == pytest.approx(1 / 8)


def test_refusals():
    with pytest.raises(UsageError, match="has 3 singular values"):
        critical_strength([1.0, 0.5], (3, 4))
    with pytest.raises(UsageError, match="descending"):
        critical_strength([0.5, 1.0], (2, 4))
    with pytest.raises(UsageError, match="finite"):
        predicted_spike([math.nan, 1.0], (2, 2), [1.0])
    with pytest.raises(UsageError, match="Strengths must be positive"):
        predicted_spike([1.0, 0.5], (2, 2), [0.0])
    with pytest.raises(UsageError, match="epsilon"):
        critical_strength([1.0, 0.5], (2, 2), 1.5)
    with pytest.raises(UsageError, match="k be at least 1"):
        measured_critical_strength(torch.ones(3, 3), k=0)
    with pytest.raises(UsageError, match="draws"):
        measured_critical_strength(torch.eye(3), draws=0)
    with pytest.raises(UsageError, match="zeros"):
        measured_critical_strength(torch.zeros(3, 3))


# --- adapters -----------------------------------------------------------------------------------------------------

def test_adapter_strengths_tell_planted_from_untouched():
    """The ratio to the critical strength, given as factors or as a whole weight, ranks matrices by their intruders."""
    base = decaying((150, 200), 0.5)
    critical = critical_strength(torch.linalg.svdvals(base), (150, 200))
    pairs, ratios = [], (0.1, 0.4, 2.5, 5.0)
    for ratio in ratios:
        u, v = unit(150, 7)[:, None], unit(200, 8)[None]
        update = LowRankUpdate(u, 2 * v, ratio * critical / 2)
        pairs.append(Pair(f"{ratio}", lambda update=update: (base, update)))
    table = adapter_strengths(pairs)
    assert table["ratio"].tolist() == pytest.approx(ratios)
    assert table["matrix"].tolist() == [str(ratio) for ratio in ratios]
    assert table["critical"].tolist() == pytest.approx([critical] * 4)
    whole = adapter_strengths([Pair(one.name, lambda one=one: (base, one.load()[1].added_to(base))) for one in pairs])
    assert whole["ratio"].tolist() == pytest.approx(ratios)
    vectors = leading_table(leading_cosines(pairs, k=10))
    counts = (vectors["max_cosine"] < 0.5).groupby(vectors["matrix"], sort=False).sum()
    assert (counts > 0).tolist() == [False, False, True, True]


def test_an_update_of_nothing_is_at_ratio_zero():
    base = gaussian(20, 30)
    table = adapter_strengths([pair(base, base.clone())])
    assert table["strength"].tolist() == [0.0]
    assert table["ratio"].tolist() == [0.0]
    assert adapter_strengths([]).columns.tolist() == ["matrix", "out", "in", "strength", "critical", "ratio"]


# --- windows of pretrained vectors --------------------------------------------------------------------------------

def test_windows_by_hand():
    cosines = torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.5, 0.5, 0.5, 0.5]])
    assert window_cosines(cosines, 1).tolist() == pytest.approx([0.8, 0.5])
    assert window_cosines(cosines, 2).tolist() == pytest.approx([0.8, 0.5**0.5])
    assert window_cosines(cosines, 3).tolist() == pytest.approx([1.0, 0.75**0.5])
    assert window_cosines(cosines, 4).tolist() == pytest.approx([1.0, 1.0])
    for width in (0, 5):
        with pytest.raises(UsageError, match="width must be 1 … 4"):
            window_cosines(cosines, width)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_a_wider_window_never_sees_less(seed, q):
    cosines = orthonormal(q + 3, q, seed).abs()
    found = torch.stack([window_cosines(cosines, width) for width in range(1, q + 1)])
    assert torch.equal(found[0], cosines.amax(1))  # width 1 is the maximal cosine to the last bit
    assert (found.diff(dim=0) > -1e-12).all()
    assert found.max() <= 1


@pytest.mark.parametrize("shape", [(140, 200), (200, 140), (40, 60)], ids=["wide", "tall", "small"])
def test_a_rotated_cluster_is_foreign_to_vectors_but_not_to_windows(shape):
    """Four equal values rotated among themselves: the definition sees intruders where the span has not moved.

    A planted foreign direction is one at either width.
    """
    values = torch.cat([torch.tensor([9.0, 7.0, 5.0, 5.0, 5.0, 5.0]), torch.linspace(3, 1, min(shape) - 6)]).double()
    apart = values.clone()
    apart[2:6] += torch.tensor([0.03, 0.01, -0.01, -0.03])
    left, right = (orthonormal(side, min(shape), seed) for seed, side in enumerate(shape))
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double() / 2
    mixed = [side.clone() for side in (left, right)]
    for side in mixed:
        side[:, 2:6] = side[:, 2:6] @ hadamard
    base, rotated = (left * apart) @ right.T, (mixed[0] * apart) @ mixed[1].T
    foreign = planted_matrix(base, 1, seed=3)
    table = window_table([pair(base, rotated), Pair("foreign", lambda: (base, foreign))], [1, 4], k=6)
    counts = {key: int((part["max_cosine"] < 0.6).sum()) for key, part in table.groupby(["matrix", "width"])}
    assert counts[("w", 1)] == 4
    assert counts[("w", 4)] == 0
    assert counts[("foreign", 1)] >= 1
    assert counts[("foreign", 4)] >= 1
    assert table[(table["matrix"] == "foreign") & (table["index"] == 1)]["max_cosine"].max() < 0.6


@pytest.mark.parametrize("shape", [(140, 200), (200, 140), (150, 150)])
def test_width_one_is_the_definition(shape):
    base = decaying(shape, 0.4)
    update = LowRankUpdate(gaussian(shape[0], 3, seed=1), gaussian(3, shape[1], seed=2), 0.004)
    table = window_table([pair(base, update)], [1, 2], k=8)
    expected = next(leading_cosines([pair(base, update)], k=8)).max_cosines
    assert table[table["width"] == 1]["max_cosine"].tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert table.columns.tolist() == ["matrix", "index", "width", "max_cosine"]
    assert len(count_intruders(table[table["width"] == 1], [0.5], [8])) == 1
    assert window_table([], [1]).empty


def test_a_null_space_resembles_nothing():
    """A tall matrix of rank 3: the other pretrained left vectors are undetermined, which must not become NaN."""
    base = with_values((200, 140), [5.0, 4.0, 3.0])
    cosines = left_cosines(pair(base, base + 1e-3 * gaussian(200, 140)), 5)
    assert cosines.isfinite().all()
    assert cosines[:, 3:].max() == 0
    assert cosines[0, 0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dimension, count", [(128, 128), (512, 128)])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_the_level_of_a_random_direction(dimension, count, width):
    """Within 10 % of the mean of the largest projection, by simulation; the closed tail bound lies above it."""
    directions = torch.nn.functional.normalize(gaussian(400, dimension), dim=1)
    simulated = window_cosines(directions[:, :count].abs(), width).mean().item()
    level = window_level(dimension, count, width)
    assert level == pytest.approx(simulated, rel=0.1)
    bound = width + 2 * math.sqrt(width * math.log(count)) + 2 * math.log(count)
    assert level < math.sqrt(bound / dimension)


def test_the_level_at_its_ends():
    assert window_level(64, 64, 64) == 1
    assert window_level(64, 16, 16) == 0.5
    with pytest.raises(UsageError, match="width <= count <= dimension"):
        window_level(64, 128)


# --- figures ------------------------------------------------------------------------------------------------------
