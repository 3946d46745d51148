"""Directions for 90 % of the energy, the Gaussian null, bfloat16's noise and the toy, each against something known."""

import math

import numpy as np
import pytest
import torch

from utils.errors import CourseError, UsageError
from utils.spectra.perturbation import (
    bf16_effect,
    deviation_sweep,
    energy_shares,
    gaussian_rank,
    rank_for_variance,
    spectrum_table,
    toy_perturbation,
    update_ranks,
)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the rank -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, share, expected", [
    ([3, 1], 0.9, 1),  # 9 of 10: reached exactly
    ([3, 1], 0.91, 2),
    ([1, 3], 0.9, 1),  # any order
    ([2, 1, 1], 0.9, 3),  # 4, 5, 6 of 6
    ([2, 1, 1], 0.8, 2),
    ([2, 1, 1], 1.0, 3),
    ([5, 0, 0], 1.0, 1),
    ([0, 0], 0.9, 0),
    ([], 0.9, 0),
])
def test_rank_by_hand(values, share, expected):
    assert rank_for_variance(torch.tensor(values, dtype=torch.float64), share) == expected


@pytest.mark.parametrize("value", [0.1, 0.3, 1e-200, 1e200, 7.0])
@pytest.mark.parametrize("count", [10, 1000])
def test_rounding_decides_no_tie(value, count):
    """0.1 squared and added up falls short of nine tenths of the total by a rounding error."""
    assert rank_for_variance(torch.full((count,), value, dtype=torch.float64)) == 9 * count // 10


def test_float32_values_are_added_in_float64():
    """In float32 the small ones, 1e-4 each in energy, would vanish beside the first's 1e8."""
    values = torch.cat([torch.tensor([1e4]), torch.full((1000,), 0.01)])
    assert rank_for_variance(values, 1 - 0.05 / (1e8 + 0.1)) == 1 + 500


@pytest.mark.parametrize("share", [0, -1, 1.01])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(UsageError, match="share"):
        rank_for_variance(torch.ones(3), share)
    with pytest.raises(UsageError, match="share"):
        gaussian_rank((3, 3), share)


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(CourseError, match="finite"):
        energy_shares(torch.tensor([1.0, math.nan]))


# --- the null -------------------------------------------------------------------------------------------------------

def test_the_null_against_known_values():
    assert gaussian_rank((4096, 4096)) == pytest.approx(0.510 * 4096, abs=0.0005 * 4096)
    assert gaussian_rank((4096, 11008)) == pytest.approx(0.712 * 4096, abs=0.0005 * 4096)
    assert round(gaussian_rank((192, 576))) == 140
    assert round(gaussian_rank((576, 1536))) == 409
    assert gaussian_rank((576, 1536)) == gaussian_rank((1536, 576))


def test_the_null_of_a_very_long_matrix_is_the_share_itself():
    """All singular values of a very long Gaussian matrix are alike."""
    assert gaussian_rank((100, 10**9)) == pytest.approx(90, abs=0.1)


def test_all_of_the_energy_needs_all_directions():
    assert gaussian_rank((20, 30), 1) == 20
    assert gaussian_rank((20, 20), 1 - 1e-9) == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("shape", [(30, 30), (40, 120), (200, 200), (300, 192), (192, 576)])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_null_against_simulation(shape, share):
    """The least whole number that reaches the share lies half a direction above the null on average."""
    ranks = [rank_for_variance(torch.linalg.svdvals(gaussian(*shape, seed=seed)), share) for seed in range(8)]
    assert np.mean(ranks) == pytest.approx(gaussian_rank(shape, share) + 0.5, abs=1.0)


def test_an_empty_shape_is_refused():
    with pytest.raises(UsageError, match="shape"):
        gaussian_rank((0, 3))


# --- tables of updates ----------------------------------------------------------------------------------------------

def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float32))


def test_ranks_of_hand_made_matrices():
    """W0 = diag(3, 1, 0) needs 1 direction, diag(3, 3, 3) needs all, the update diag(0, 2, 3) between them 2."""
    (row,) = update_ranks({"w": diagonal(3, 1, 0)}, {"w": diagonal(3, 3, 3)}).to_dict("records")
    assert (row["base_rank"], row["tuned_rank"], row["update_rank"]) == (1, 3, 2)
    assert (row["matrix"], row["rows"], row["columns"]) == ("w", 3, 3)
    assert row["null_rank"] == gaussian_rank((3, 3)) and row["ratio"] == pytest.approx(2 / row["null_rank"])


def test_the_update_alone_is_the_same_update():
    base, tuned = {"w": gaussian(20, 30)}, {"w": gaussian(20, 30, seed=1)}
    whole = update_ranks(base, tuned)
    assert update_ranks(base, tuned, update_only=True).equals(whole.drop(columns=["base_rank", "tuned_rank"]))


def test_an_untouched_matrix_has_rank_zero():
    (row,) = update_ranks({"w": diagonal(1, 2)}, {"w": diagonal(1, 2)}).to_dict("records")
    assert (row["update_rank"], row["ratio"]) == (0, 0)


def test_factors_give_what_the_dense_update_gives():
    base, b, a = gaussian(24, 16), gaussian(24, 5, seed=1), gaussian(5, 16, seed=2)
    tuned = {"w": base + 0.3 * b @ a}
    by_factors = update_ranks({"w": base}, tuned, {"w": (b, a, 0.3)})
    assert by_factors.equals(update_ranks({"w": base}, tuned))
    assert 1 < by_factors["update_rank"].iloc[0] <= 5


def test_noise_is_as_broad_as_the_null():
    base = gaussian(200, 300)
    row = update_ranks({"w": base}, {"w": base + 0.01 * gaussian(200, 300, seed=1)}).iloc[0]
    assert row["ratio"] == pytest.approx(1, abs=0.02)


def test_bfloat16_hides_a_small_update():
    """Far below the spacing of bfloat16, 1/128 from 1 to 2, an update is lost if both weights are rounded."""
    base = 1 + gaussian(100, 100).abs().clamp(max=0.9).bfloat16().double().mul(128).floor().div(128) + 2.0**-20
    update = 1e-9 * torch.ones(100, 100, dtype=torch.float64)
    row = bf16_effect({"w": base}, {"w": base + update}).iloc[0]
    assert (row["update_rank"], row["both_rounded_rank"], row["both_noise"]) == (1, 0, 1.0)
    assert row["noise"] == pytest.approx((2.0**-20 + 1e-9) / 1e-9), "every weight loses the offset and the update"


def test_bfloat16_makes_an_update_look_like_noise():
    base = gaussian(100, 100)
    row = bf16_effect({"w": base}, {"w": base + 1e-9}).iloc[0]
    assert row["update_rank"] == 1 and row["noise"] > 1e5
    assert row["tuned_rounded_rank"] == pytest.approx(row["null_rank"], rel=0.15)


def test_bfloat16_leaves_a_large_update_alone():
    base, update = gaussian(60, 60), 100 * torch.ones(60, 60, dtype=torch.float64)
    row = bf16_effect({"w": base}, {"w": base + update}).iloc[0]
    assert (row["update_rank"], row["tuned_rounded_rank"], row["both_rounded_rank"]) == (1, 1, 1)
    assert row["noise"] < 1 / 256


def test_rounding_noise_by_hand():
    """1 + 1/256 lies between bfloat16's 1 and 1 + 1/128 and rounds to even, 1: the whole update is lost."""
    base, tuned = torch.ones(1, 1), torch.full((1, 1), 1 + 1 / 256)
    row = bf16_effect({"w": base}, {"w": tuned}).iloc[0]
    assert (row["update_rank"], row["tuned_rounded_rank"], row["noise"]) == (1, 0, 1.0)


# --- spectra and the toy --------------------------------------------------------------------------------------------

def test_a_spectrum_by_hand():
    table = spectrum_table({"w": diagonal(1, 3), "factors": (torch.ones(2, 1), torch.ones(1, 2), 2.0)})
    assert table["spectrum"].tolist() == ["w", "w", "factors"]
    assert table["index"].tolist() == [1, 2, 1]
    assert table["singular_value"].tolist() == pytest.approx([3, 1, 4])
    assert table["share"].tolist() == pytest.approx([0.9, 1, 1])


def test_a_thinned_spectrum_keeps_its_ends():
    assert spectrum_table({"w": gaussian(10, 10)}, every=4)["index"].tolist() == [1, 5, 9, 10]


def test_the_toys_three_spectra():
    """cB is one tenth of another Gaussian matrix; A + cB is Gaussian with a standard deviation of sqrt(1.01)."""
    table = toy_perturbation(200, 0.1, seed=3)
    energy = table.groupby("spectrum", sort=False)["singular_value"].apply(lambda values: (values**2).sum())
    assert energy.to_dict() == pytest.approx({"A": 200**2, "A + cB": 1.01 * 200**2, "cB": 0.01 * 200**2}, rel=0.03)
    assert toy_perturbation(20, seed=1).equals(toy_perturbation(20, seed=1))
    assert not toy_perturbation(20, seed=1).equals(toy_perturbation(20, seed=2))


def test_singular_values_move_with_c_and_then_with_its_square():
    """First c times the mean of |N(0, 1)|; at c = 1 (sqrt 2 - 1) times the mean singular value, 8 sqrt(n) / 3 pi."""
    n = 300
    found = deviation_sweep(n, [1e-6, 1e-5, 1e-4, 1.0]).set_index("scale")["deviation"]
    assert found[1e-6] / 1e-6 == pytest.approx(math.sqrt(2 / math.pi), rel=0.15)
    assert found[1e-5] / found[1e-6] == pytest.approx(10, rel=1e-3)
    assert found[1e-4] / found[1e-6] == pytest.approx(100, rel=1e-2)
    assert found[1.0] == pytest.approx((math.sqrt(2) - 1) * 8 / (3 * math.pi) * math.sqrt(n), rel=0.03)


def test_no_change_moves_nothing():
    assert deviation_sweep(20, [0.0])["deviation"].tolist() == [0.0]
