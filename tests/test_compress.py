"""Quantising and pruning against values worked out by hand."""

import pytest
import torch

from utils.errors import UsageError
from utils.spectra import vector_table
from utils.spectra.compress import (
    NOISE,
    NOISY,
    WAYS,
    bits_per_weight,
    compressed,
    nf4,
    nf4_levels,
    noised,
    pruned,
    relative_error,
    rounded,
    singular_values,
    truncated,
    two_of_four,
)

# bitsandbytes 0.45, functional.py: the levels that every NF4 checkpoint was made with.
PUBLISHED_NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                 -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                 0.7229568362236023, 1.0]


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(12, 20, generator=torch.Generator().manual_seed(0))


def test_rounding_by_hand():
    """4 bits have the levels -7 … 7: the row's scale is 1.4 / 7 = 0.2."""
    row = torch.tensor([[1.4, -0.29, 0.31, 0.05, 0.0]])
    assert torch.allclose(rounded(row, 4), torch.tensor([[1.4, -0.2, 0.4, 0.0, 0.0]]))


def test_a_group_has_a_scale_of_its_own():
    """Two bits know -1, 0 and 1 times the scale; by rows 0.1 is lost beside 8, in a group of two it is kept."""
    row = torch.tensor([[8.0, 0.1, 0.1, -0.1, 0.06]])
    assert rounded(row, 2).tolist() == [[8.0, 0.0, 0.0, 0.0, 0.0]]
    assert torch.allclose(rounded(row, 2, block=2), torch.tensor([[8.0, 0.0, 0.1, -0.1, 0.06]]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_errs_by_half_a_step_at_most(matrix, bits):
    step = matrix.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (rounded(matrix, bits) - matrix).abs()
    assert (error <= step / 2 + 1e-6).all() and error.max() > 0.3 * step.min() / 2
    assert rounded(matrix, bits).unique().numel() <= matrix.shape[0] * (2**bits - 1)


def test_nf4_levels_are_the_published_ones():
    assert torch.allclose(nf4_levels(), torch.tensor(PUBLISHED_NF4, dtype=torch.float64), atol=1e-6)


def test_nf4_takes_the_nearest_level(matrix):
    """Within a block of the whole row, against the definition computed naively."""
    levels = nf4_levels().float()
    scale = matrix.abs().amax(1, keepdim=True)
    nearest = ((matrix / scale)[..., None] - levels).abs().argmin(-1)
    assert torch.allclose(nf4(matrix, block=20), levels[nearest] * scale)
    assert torch.equal(nf4(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_pruning_by_hand():
    weights = torch.tensor([[0.1, -5.0, 3.0, -0.2], [4.0, 1.0, -2.0, 0.5]])
    assert pruned(weights, 0.5).tolist() == [[0, -5, 3, 0], [4, 0, -2, 0]]
    assert two_of_four(weights).tolist() == [[0, -5, 3, 0], [4, 0, -2, 0]]
    assert two_of_four(torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.1]])).tolist() == [[4, 3, 0, 0, torch.tensor(0.1).item()]]
    assert pruned(weights.T, 0.5).T.tolist() == [[0, -5, 3, 0], [4, 0, -2, 0]]  # not contiguous
    assert torch.equal(pruned(weights, 0.0), weights) and not pruned(weights, 1.0).any()


def test_truncation_is_the_nearest_of_its_rank(matrix):
    """Eckart and Young: the error is the root of the squares of the singular values that are left out."""
    values = torch.linalg.svdvals(matrix)
    assert torch.linalg.matrix_rank(truncated(matrix, 3)) == 3
    assert torch.isclose((matrix - truncated(matrix, 3)).norm(), values[3:].square().sum().sqrt(), rtol=1e-5)


def test_noise_has_the_error_asked_for(matrix):
    assert relative_error(matrix, noised(matrix, 0.25)) == pytest.approx(0.25, rel=1e-5)


def test_bits_by_hand():
    """int8 of 32-wide rows: 8 + 16 / 32. Half of 16 bits and a mask bit; a quarter of 8 directions of 8 x 32."""
    one = {"w": torch.zeros(8, 32)}
    assert bits_per_weight(one, "int8, per row") == 8.5
    assert bits_per_weight(one, "50 % pruned") == 9.0
    assert bits_per_weight(one, "2:4 pruned") == 9.0
    assert bits_per_weight(one, "a quarter of the directions") == 16 * 2 * 40 / 256
    assert bits_per_weight(one, "NF4, groups of 64") == pytest.approx(4.127, abs=1e-3)
    assert bits_per_weight(one, NOISE) == 16


def test_every_way_and_the_control(matrix):
    found = compressed({"w": matrix})
    assert set(found) == {*(way.name for way in WAYS), NOISE}
    error = {way: relative_error(matrix, after["w"]) for way, after in found.items()}
    assert error["int8, per row"] < error["int4, per row"] and error["20 % pruned"] < error["80 % pruned"]
    assert error[NOISE] == pytest.approx(error[NOISY], rel=1e-5)
    assert set(compressed({"w": matrix}, ways=("2:4 pruned",))) == {"2:4 pruned"}


def test_eight_bits_leave_the_leading_vectors(matrix):
    """By the full definition of the count, not the fast one."""
    table = vector_table({"w": matrix}, {"w": rounded(matrix, 8)})
    assert table["max_cosine"].min() > 0.95


def test_the_spectrum_of_one_matrix(matrix):
    table = singular_values(matrix, {"same": matrix, "half": truncated(matrix, 6)})
    same, half = (table[table["way"] == way] for way in ("same", "half"))
    assert (same["singular_value"] == same["before"]).all() and same["cosine"].min() > 0.999
    assert half["singular_value"].iloc[6:].max() < 1e-4 and half["cosine"].iloc[:6].min() > 0.999


@pytest.mark.parametrize("call", [
    lambda m: rounded(m, 1), lambda m: rounded(m, 4, block=0), lambda m: pruned(m, 1.5), lambda m: truncated(m, 0)])
def test_impossible_requests_are_one_sentence(matrix, call):
    with pytest.raises(UsageError, match="^Expected .*, got .*; do give .*[.]$"):
        call(matrix)
