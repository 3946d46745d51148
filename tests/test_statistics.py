"""Means with intervals, summaries and rank correlations, each against numbers worked out by hand."""

import math

import pandas as pd
import pytest

from utils.reporting.statistics import mean_interval, rank_correlation, summarise


@pytest.mark.parametrize("values, mean, half", [
    # t quantiles from a printed table: 4.3027 for 2 degrees of freedom, 12.7062 for 1, 2.7764 for 4
    ([1.0, 2.0, 3.0], 2.0, 4.3027 * 1 / 3 ** 0.5), ([0.0, 2.0], 1.0, 12.7062 * 2 ** 0.5 / 2 ** 0.5),
    ([2, 4, 4, 4, 6], 4.0, 2.7764 * 2 ** 0.5 / 5 ** 0.5), ([5.0, 5.0, 5.0], 5.0, 0.0)])
def test_mean_interval_by_hand(values, mean, half):
    """Mean and 95 % t-interval with the sample's own standard deviation (n - 1)."""
    assert mean_interval(values) == pytest.approx((mean, mean - half, mean + half), rel=1e-4)


def test_mean_interval_at_another_confidence():
    """90 % at 2 degrees of freedom: 2.9200."""
    assert mean_interval([1, 2, 3], confidence=0.9)[2] == pytest.approx(2 + 2.92 / 3 ** 0.5, rel=1e-4)


def test_one_value_has_no_interval():
    mean, low, high = mean_interval([3.5])
    assert mean == 3.5 and math.isnan(low) and math.isnan(high)


def test_summarise_by_group():
    """One row per group in order of appearance, with interval, extremes and number of seeds."""
    table = pd.DataFrame({"method": ["b", "b", "b", "a"], "r": [8, 8, 8, 0], "loss": [1.0, 2.0, 3.0, 7.0]})
    found = summarise(table, "loss", ["method", "r"])
    assert found[["method", "r", "loss", "min", "max", "seeds"]].values.tolist() == [["b", 8, 2.0, 1.0, 3.0, 3],
                                                                                    ["a", 0, 7.0, 7.0, 7.0, 1]]
    assert found["high"][0] == pytest.approx(2 + 4.3027 / 3 ** 0.5, rel=1e-4) and math.isnan(found["low"][1])
    assert summarise(table, "loss", ["method"])["method"].tolist() == ["b", "a"]


@pytest.mark.parametrize("x, y, rho", [
    ([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], 0.9), ([1, 2, 3, 4, 5], [10, 400, 20, 300, 30], 0.3),
    # ties share the mean of their places: 1, 2.5, 2.5, 4 against 1, 2, 3, 4 is 4.5 / sqrt(4.5 * 5)
    ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / 22.5 ** 0.5)])
def test_rank_correlation_by_hand(x, y, rho):
    """Places 1 2 3 5 4 and 1 5 2 4 3 differ from 1 to 5 by squares that sum to 2 and 14: 1 - 6 * 14 / 120 is 0.3."""
    assert rank_correlation(x, y)["rho"] == pytest.approx(rho)
    turned = rank_correlation(x, [-value for value in y])
    assert turned["rho"] == pytest.approx(-rank_correlation(x, y)["rho"]) and turned["n"] == len(x)


def test_the_interval_of_a_rank_correlation_by_hand():
    """n = 5 and rho = 0.9: atanh 1.4722, standard error sqrt(1.405 / 2) = 0.8382, half 1.6427; p from a table, 0.0374.

    Turned around, the interval is the mirrored one.
    """
    found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert (found["low"], found["high"]) == pytest.approx((math.tanh(1.4722 - 1.6427), math.tanh(1.4722 + 1.6427)),
                                                          abs=1e-4)
    assert found["p"] == pytest.approx(0.0374, abs=1e-4) and found["n"] == 5
    turned = rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 1, 2])
    assert (turned["low"], turned["high"]) == pytest.approx((-found["high"], -found["low"]))
    narrow = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], confidence=0.5)
    assert found["low"] < narrow["low"] < 0.9 < narrow["high"] < found["high"]


@pytest.mark.parametrize("y, rho", [([1, 2, 3, 9], 1), ([4, 3, 2, -7], -1)])
def test_a_perfect_rank_correlation_has_an_interval_of_no_width(y, rho):
    """Fisher's transformation is infinite there."""
    found = rank_correlation([1, 2, 3, 4], y)
    assert (found["rho"], found["low"], found["high"], found["n"]) == (rho, rho, rho, 4)


@pytest.mark.parametrize("x, y", [([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [5, 5, 5, 5]), ([0, 0, 0, 0], [1, 2, 3, 4]),
                                  ([], [])], ids=["three pairs", "constant y", "constant x", "none"])
def test_too_little_for_a_rank_correlation_is_nan(x, y):
    found = rank_correlation(x, y)
    assert found["n"] == len(x) and all(math.isnan(found[name]) for name in ("rho", "low", "high", "p"))
