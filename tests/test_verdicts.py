"""The engine of verdicts: from effects per seed to a word, by interval, power and kind of claim."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import stats

from utils.reporting import verdicts
from utils.reporting.rules import (
    Effects,
    MissingRun,
    at_least,
    by_seed,
    full_row,
    rows_where,
    trend,
    value_at,
    with_every,
)
from utils.reporting.verdicts import Expectation, bootstrap_means, chance, interval, judge, p_value

ABOVE, BELOW, WITHIN = Expectation(above=0.0), Expectation(below=0.0), Expectation(within=0.1)


def effects(*values: float, outcomes=(1.0, 2.0), outcome: str = "loss") -> Effects:
    return Effects(pd.Series(dict(enumerate(values)), dtype=float), np.array(outcomes, dtype=float), outcome)


@pytest.mark.parametrize("values, expect, word", [
    ((1.0, 1.1, 0.9), ABOVE, "reproduced"),
    ((-1.0, -1.1, -0.9), BELOW, "reproduced"),
    ((1.0, 0.1, 0.4), ABOVE, "same direction"),       # all seeds agree, the interval includes zero
    ((1.0, -0.1, 0.4), ABOVE, "undecided"),
    ((-1.0, -1.1, -0.9), ABOVE, "not reproduced"),
    ((-1.0, -0.1, -0.4), ABOVE, "undecided"),          # contrary in every seed, and the interval cannot say so
    ((0.01, -0.01, 0.0), WITHIN, "reproduced"),
    ((0.3, 0.31, 0.29), WITHIN, "not reproduced"),
    ((0.09, 0.0, -0.09), WITHIN, "undecided"),
    ((1.0, 1.1), ABOVE, "too few seeds"),
    ((), ABOVE, "too few seeds"),
    ((2.0, 2.0, 2.0), ABOVE, "same direction"),        # a count that is equal in every seed has no interval
    ((0.0, 0.0, 0.0), ABOVE, "not reproduced"),
    ((0.0, 0.0, 0.0), WITHIN, "same direction"),       # nor has equality one
    ((0.3, 0.3, 0.3), WITHIN, "not reproduced"),
])
def test_the_word_follows_from_the_interval(values, expect, word):
    assert judge(effects(*values), expect).verdict == word


@pytest.mark.parametrize("values, expect, word", [
    ((1.0, 1.1, 0.9), ABOVE, "holds"), ((-1.0, -1.1, -0.9), ABOVE, "does not hold"),
    ((1.0, 0.1, 0.4), ABOVE, "same direction"), ((1.0, 1.1), ABOVE, "too few seeds")])
def test_claims_of_ours_hold_or_do_not(values, expect, word):
    assert judge(effects(*values), expect, kind="ours").verdict == word


def test_what_is_true_by_arithmetic_says_so_and_carries_no_test():
    found = judge(effects(1.0), ABOVE, kind="arithmetic")
    assert (found.verdict, found.p, found.seeds) == ("arithmetic", None, 1)
    assert judge(effects(1.0, -1.0), ABOVE, kind="arithmetic").verdict == "does not hold"


@pytest.mark.parametrize("values, expect, outcomes, outcome", [
    ((0.0, 0.0, 0.0), ABOVE, (0, 0, 0, 0), "n_intruders"),      # nothing could fall, nothing could rise
    ((0.0, 0.0, 0.0), WITHIN, (0.7, 0.7), "accuracy"),
    ((0.0, 1.0, 2.0), Expectation(within=3.0), (0, 0, 1, 2), "n_intruders"),  # the bound is larger than the count
    ((0.0, 0.0, 0.0), Expectation(within=0.03), (0.0, 0.01, 0.02), "exact_match"),
    ((0.0, 0.0, 0.0), Expectation(within=0.03), (0.98, 1.0, 0.99), "accuracy"),
])
def test_a_claim_that_could_not_have_failed_or_held_has_no_power(values, expect, outcomes, outcome):
    found = judge(effects(*values, outcomes=outcomes, outcome=outcome), expect)
    assert found.verdict == "no power" and found.p is None and outcome in found.why


@pytest.mark.parametrize("expect, outcomes", [(Expectation(within=0.5), (0, 0, 5)), (Expectation(within=3.0), (0, 9))])
def test_a_count_that_left_its_floor_has_power(expect, outcomes):
    assert judge(effects(0.1, 0.0, -0.1, outcomes=outcomes, outcome="n_intruders"), expect).verdict == "reproduced"


def test_the_interval_is_the_t_interval_by_hand():
    low, high = interval(effects(1.0, 2.0, 3.0))
    assert (low, high) == pytest.approx((2 - 4.30265273 / 3**0.5, 2 + 4.30265273 / 3**0.5))


def test_an_interval_ends_where_an_effect_can_lie():
    found = judge(effects(0.9, 0.95, 1.0), ABOVE, bounds=(-1.0, 1.0))
    assert found.high == 1.0 and found.low < 0.9


def test_p_is_two_sided_for_a_direction_and_the_larger_one_sided_for_equality():
    values = (0.2, 0.5, 0.3)
    assert p_value(effects(*values), ABOVE) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    sides = [stats.ttest_1samp(values, border, alternative=side).pvalue
             for border, side in ((-1, "greater"), (1, "less"))]
    assert p_value(effects(*values), Expectation(within=1.0)) == pytest.approx(max(sides))
    assert p_value(effects(2, 2, 2), ABOVE) is None


@pytest.mark.parametrize("given", [{}, {"above": 0.0, "below": 1.0}, {"within": 0.0}, {"within": -1.0}, {"over": 1.0}])
def test_an_expectation_is_exactly_one_border(given):
    with pytest.raises(ValidationError):
        Expectation(**given)


def items(shift: float, seeds: int = 3, count: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(1)
    return pd.DataFrame([{"seed": seed, "item": item, "difference": shift + random.choice([-1.0, 0.0, 1.0])}
                         for seed in range(seeds) for item in range(count)])


def test_differences_by_item_are_judged_by_a_bootstrap_over_items_and_seeds():
    table = items(0.3)
    given = Effects(table.groupby("seed")["difference"].mean(), np.array([0.0, 1.0]), "loss", items=table)
    found = judge(given, ABOVE)
    assert found.verdict == "reproduced" and found.low < found.effect < found.high and found.p < 0.01
    assert judge(Effects(given.values, given.outcomes, "loss", items=items(0.0)), ABOVE).verdict != "reproduced"


def test_draws_of_a_rules_own_are_judged_as_a_bootstrap_is():
    """An effect that is no mean over items: the interval is the draws' middle 95 %, p what lies beyond the border."""
    draws = np.linspace(0.0, 1.0, 2001) - 0.01
    given = Effects(pd.Series([0.4, 0.5, 0.6]), np.array([0.0, 1.0]), "loss", draws=draws)
    verdict = judge(given, ABOVE)
    assert (verdict.low, verdict.high) == pytest.approx((0.015, 0.965)) and verdict.verdict == "reproduced"
    assert verdict.p == pytest.approx(2 * 21 / 2001, rel=0.06)
    alike = Effects(pd.Series([0.5, 0.5, 0.5]), np.array([0.0, 1.0]), "loss", draws=draws - 0.2)
    assert judge(alike, ABOVE).verdict == "same direction", "three equal seeds have an interval all the same"


def test_a_rule_that_found_nothing_to_compare_says_no_power_and_not_too_few():
    nothing = Effects(pd.Series([math.nan] * 3), missing=dict.fromkeys(range(3), "no intruder"))
    assert judge(nothing, ABOVE).verdict == "too few seeds"
    assert judge(replace(nothing, no_power="no intruder"), ABOVE).verdict == "no power"


def test_the_bootstrap_has_the_spread_of_the_two_way_design():
    """Rows and columns drawn anew: with equal seeds only the items spread, by their standard error."""
    one = np.random.default_rng(0).normal(size=200)
    table = pd.DataFrame([{"seed": seed, "item": item, "difference": value}
                          for seed in range(3) for item, value in enumerate(one)])
    assert bootstrap_means(table).std() == pytest.approx(one.std() / 200**0.5, rel=0.06)


def test_a_mean_of_zero_is_zero_to_the_last_digit():
    """Else a border at zero would be passed or not by the rounding of a sum, differently on every machine."""
    nothing = items(0.0).assign(difference=0.1 + 0.2 - 0.3)
    assert nothing["difference"].iloc[0] != 0 and not bootstrap_means(nothing).any()


def test_a_gap_in_the_items_is_refused():
    with pytest.raises(ValueError, match="Expected a difference of every item for every seed, got gaps"):
        bootstrap_means(items(0.1).iloc[1:])


def test_chance_counts_what_would_come_out_anyway_and_what_stands():
    table = pd.DataFrame({"verdict": ["reproduced", "holds", "reproduced", "undecided", "no power"],
                          "p": [0.0001, 0.04, 0.03, 0.9, None]})
    assert chance(table) == {"tested": 4, "expected": pytest.approx(0.1), "positive": 3, "standing": 1}
    assert chance(table.assign(p=None))["tested"] == 0


def test_of_true_nulls_a_fortieth_comes_out_reproduced():
    """What `expected` says: half of the two-sided 5 per cent."""
    draws = np.random.default_rng(0).normal(size=(1500, 3))
    share = np.mean([judge(effects(*row), ABOVE).verdict == "reproduced" for row in draws])
    assert 0.015 < share < 0.035


# What rules are made of ---------------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"seed": [0, 0, 1], "r": [0, 8, 0], "method_kind": ["full", "lora", "full"],
                      "n_intruders": [0, 4, 1], "experiment": "ranks"})


def lora_minus_full(part: pd.DataFrame) -> float:
    return rows_where(part, r=8)["n_intruders"].iloc[0] - full_row(part)["n_intruders"]


def test_a_seed_without_a_run_has_no_value_and_a_reason():
    found = by_seed(TABLE, lora_minus_full, outcome="n_intruders", experiment="ranks")
    assert found.values[0] == 4 and np.isnan(found.values[1]) and found.missing == {1: "no run with r = 8"}
    assert found.outcomes.tolist() == [0, 4, 1] and found.outcome == "n_intruders"
    assert "seed 1: no run with r = 8" in judge(found, ABOVE).why


@pytest.mark.parametrize("effect", [float("nan"), float("inf")])
def test_an_effect_that_is_no_number_does_not_pass_for_a_missing_run(effect):
    found = by_seed(TABLE, lambda part: effect, outcome=None)
    assert found.values.isna().all() and set(found.missing.values()) == {f"the effect is {effect}"}
    assert f"the effect is {effect}" in judge(found, ABOVE).why


@pytest.mark.parametrize("error", [KeyError, IndexError, ValueError, TypeError])
def test_nothing_but_a_missing_run_is_caught(error):
    def effect(part):
        raise error("renamed")

    with pytest.raises(error):
        by_seed(TABLE, effect, outcome=None)


def test_the_helpers_name_what_is_missing():
    with pytest.raises(MissingRun, match="no run with r = 64"):
        rows_where(TABLE, r=64)
    with pytest.raises(MissingRun, match="no run with r = 16"):
        value_at(TABLE.set_index("r")["n_intruders"], 16)
    with pytest.raises(MissingRun, match="no run with r = 8"):
        with_every(TABLE[TABLE["seed"] == 1], TABLE, "r")
    with pytest.raises(MissingRun, match="1 amounts of data, 3 needed"):
        at_least(1, 3, "amounts of data")
    with pytest.raises(MissingRun, match="1 values of r"):
        trend(pd.Series([8, 8], name="r"), pd.Series([1, 2]))
    assert trend(pd.Series([1, 8, 64], name="r"), pd.Series([2, 2, 2])) == 0


def test_every_verdict_has_a_word_and_a_look():
    from utils.ledger.page import LOOKS

    assert set(LOOKS) == set(verdicts.VERDICTS)
