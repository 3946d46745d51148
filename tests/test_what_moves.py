"""What moves the count: every rule of notebook 05 by hand."""

import pandas as pd
import pytest

from utils.reporting.selection import marked
from utils.reporting.verdicts import NO_POWER, Expectation, judge
from utils.studies.what_moves import rules


def table(*rows: dict) -> pd.DataFrame:
    """Runs with what is not said: movies, seed 0, LoRA with alpha = 2r, accuracy 0.75. The later rows come first."""
    filled = []
    for given in reversed(rows):
        row = {"task": "movies", "seed": 0, "r": 8, "learning_rate": 1e-3, "accuracy": 0.75,
               "experiment": "rule"} | given
        row |= {"lora_alpha": 2 * row["r"], "method": f"LoRA r={row['r']}" if row["r"] else "full"} | given
        name = [row[key] for key in ("experiment", "seed", "method", "lora_alpha", "learning_rate")]
        filled.append({"run": "/".join(map(str, name))} | row)
    return marked(pd.DataFrame(filled))


def sweep(by_rate: dict[float, list[tuple]], full: float = 0.5, seed: int = 0, **lame: float) -> list[dict]:
    """Rank 8: per rate (count, forgetting) at steps 10, 20, …; full fine-tuning's usual rate and one that forgets 9.

    A rate's accuracy as ``r3=0.5`` for 3e-3; a run's accuracy lies close above 0.7 and rises with forgetting.
    """
    rows = [{"learning_rate": rate, "step": 10 * step, "n_intruders": n, "forgetting": forgetting,
             "accuracy": lame.get(f"r{1000 * rate:.0f}", 0.7 + forgetting / 1000)}
            for rate, points in by_rate.items() for step, (n, forgetting) in enumerate(points, start=1)]
    rows += [{"r": 0, "learning_rate": rate, "step": 20, "n_intruders": 90, "forgetting": forgetting}
             for rate, forgetting in ((3e-4, 9.0), (1e-4, full))]
    return [row | {"experiment": "learning_rates", "seed": seed} for row in rows]


def last(*points: tuple, **others) -> list[dict]:
    """(count, forgetting) at the last step of rates 1e-3, 2e-3 and 3e-3; the first step says the opposite."""
    return sweep({rate: [(90 - n, 9 - forgetting), (n, forgetting)]
                  for rate, (n, forgetting) in zip((1e-3, 2e-3, 3e-3), points, strict=True)}, **others)


def by_seed(effects) -> dict:
    return effects.values.to_dict()


# Over learning rates ------------------------------------------------------------------------------------------------

def test_the_trend_over_rates_is_that_of_the_last_step():
    """Places 3 1 2 against 1 2 3: squares 4 + 1 + 1, rho = 1 - 6 * 6 / 24."""
    frame = table(*last((1, 0.3), (5, 0.2), (9, 0.1)), *last((9, 0.1), (2, 0.2), (5, 0.3), seed=1))
    found = rules.trend_over_rates(frame, column="n_intruders")
    assert by_seed(found) == pytest.approx({0: 1, 1: -0.5}) and sorted(found.outcomes) == [1, 2, 5, 5, 9, 9]


def test_growth_is_a_mean_over_runs_and_a_run_that_never_changes_counts_as_none():
    """Rho over three steps: 1 where the count rises, 0 where it stays, so half of it; forgetting falls in one run."""
    frame = table(*sweep({1e-3: [(0, 3), (0, 2), (0, 1)], 2e-3: [(1, 1), (2, 2), (4, 3)]}))
    assert by_seed(rules.trend_through_training(frame, column="n_intruders")) == pytest.approx({0: 0.5})
    assert by_seed(rules.trend_through_training(frame, column="forgetting")) == pytest.approx({0: 0})


def test_two_columns_go_together_over_all_checkpoints():
    """Places 4 2 3 1 against 1 2 3 4: squares 9 + 9, rho = 1 - 6 * 18 / 60."""
    frame = table(*sweep({1e-3: [(0, 4), (1, 2)], 2e-3: [(2, 3), (3, 1)]}),
                  *sweep({1e-3: [(0, 1), (1, 2)], 2e-3: [(2, 3), (3, 4)]}, seed=1))
    found = rules.rho_over_checkpoints(frame, column="n_intruders", other="forgetting")
    assert by_seed(found) == pytest.approx({0: -0.8, 1: 1})


def test_counts_that_are_all_zero_go_with_nothing_and_have_no_power():
    frame = table(*(row for seed in range(3) for row in sweep({1e-3: [(0, 1)], 2e-3: [(0, 2)]}, seed=seed)))
    found = rules.rho_over_checkpoints(frame, column="n_intruders", other="forgetting")
    assert by_seed(found) == {0: 0, 1: 0, 2: 0} and judge(found, Expectation(above=0)).verdict == NO_POWER


def test_one_rate_is_no_sweep():
    frame = table(*sweep({1e-3: [(0, 1), (1, 2)]}))
    found = rules.rho_over_checkpoints(frame, column="n_intruders", other="forgetting")
    assert found.values.isna().all() and "2 needed" in found.missing[0]
    assert rules.trend_over_rates(frame, column="forgetting").values.isna().all()


def test_the_largest_rate_is_compared_with_fulls_usual_one():
    """0.75 - 0.5: not LoRA's smaller rates, not full's larger one, which forgets 9."""
    assert by_seed(rules.largest_rate_minus_full(table(*last((1, 5.0), (5, 4.0), (9, 0.75))))) == {0: 0.25}


def test_a_run_that_failed_is_no_evidence_on_the_rate():
    """The largest rate did not learn: no effect where it is asked for, and no part of the trend."""
    frame = table(*last((1, 0.1), (5, 0.2), (9, 5.0)), *last((1, 0.1), (5, 0.2), (0, 5.0), seed=1, r3=0.51))
    found = rules.largest_rate_minus_full(frame)
    assert found.values.dropna().to_dict() == {0: 4.5}
    assert found.missing[1] == "no run of LoRA learnt at its largest rate, 0.003"
    assert by_seed(rules.trend_over_rates(frame, column="n_intruders")) == pytest.approx({0: 1, 1: 1})


# Over ranks ---------------------------------------------------------------------------------------------------------

def ranked(counts: dict[int, int], **others) -> list[dict]:
    return [{"r": r, "n_intruders": n, "learning_rate": 6e-3 / r} | others for r, n in counts.items()]


def test_the_trend_over_ranks_leaves_out_who_did_not_learn():
    """Places 1 3 4 2 against 1 2 3 4: rho = 1 - 6 * 6 / 60 over the four that learnt; with r = 16's 0 it were -0.1."""
    frame = table(*ranked({1: 1, 4: 5, 8: 7, 64: 4}), *ranked({16: 0}, accuracy=0.51),
                  *ranked({1: 0, 4: 90, 8: 99}, experiment="fixed_rate"))
    found = rules.trend_over_ranks(frame, in_experiment="rule", column="n_intruders")
    assert by_seed(found) == pytest.approx({0: 0.4})


def test_two_ranks_are_no_trend():
    found = rules.trend_over_ranks(table(*ranked({1: 1, 8: 5})), in_experiment="rule", column="n_intruders")
    assert found.values.isna().all() and found.missing[0] == "2 ranks that learnt, 3 needed"


def test_a_count_is_taken_at_its_epsilon():
    frame = table(*ranked({1: 9, 4: 7, 8: 5}, epsilon=0.5), *ranked({1: 1, 4: 2, 8: 3}, epsilon=0.8))
    for epsilon, rho in ((0.5, -1), (0.8, 1)):
        found = rules.count_trend_over_ranks(frame, in_experiment="rule", epsilon=epsilon)
        assert by_seed(found) == pytest.approx({0: rho})


def test_ranks_are_compared_where_they_share_a_rate():
    """At 1e-3 7 - 1, at 3e-3 2 - 4, their mean 2; a rate of one rank, another alpha and rsLoRA are no part of it."""
    frame = table({"r": 1, "n_intruders": 1}, {"r": 4, "n_intruders": 50}, {"r": 8, "n_intruders": 7},
                  {"r": 1, "learning_rate": 3e-3, "n_intruders": 4}, {"r": 8, "learning_rate": 3e-3, "n_intruders": 2},
                  {"r": 64, "learning_rate": 1e-4, "n_intruders": 99},
                  {"r": 16, "lora_alpha": 8, "n_intruders": 99}, {"r": 16, "method": "rsLoRA r=16", "n_intruders": 99},
                  {"r": 8, "learning_rate": 3e-3, "n_intruders": 2, "run": "a", "experiment": "x", "accuracy": 0.51})
    assert by_seed(rules.higher_rank_minus_lower(frame, column="n_intruders")) == {0: 2}
    lonely = rules.higher_rank_minus_lower(frame[frame["r"] == 64], column="n_intruders")
    assert lonely.values.isna().all() and "at one learning rate" in lonely.missing[0]


def test_every_rank_has_intruders_if_the_one_with_fewest_has():
    frame = table(*ranked({1: 3, 8: 0, 64: 2}, experiment="alpha_8", epsilon=0.5), *ranked({8: 0}, epsilon=0.5),
                  *ranked({1: 3, 8: 1, 64: 2}, experiment="alpha_8", epsilon=0.5, seed=1),
                  *ranked({64: 2}, experiment="alpha_8", epsilon=0.5, seed=2))
    found = rules.least_count_of_any_rank(frame, in_experiment="alpha_8", epsilon=0.5)
    assert found.values.dropna().to_dict() == {0: 0, 1: 1} and found.missing == {2: "no run with r = 1"}


# Between two alphas -------------------------------------------------------------------------------------------------

def alphas(rule: float, alpha_8: float, **others) -> list[dict]:
    """A value of rank 64 under alpha = 2r and alpha = 8; at rank 8 it lies the other way."""
    return [{"r": r, "experiment": name, "lora_alpha": alpha, "n_intruders": value, "forgetting": value,
             "effective_rank": value} | others
            for r, values in ((64, (rule, alpha_8)), (8, (alpha_8, rule)))
            for name, alpha, value in (("rule", 2 * r, values[0]), ("alpha_8", 8, values[1]))]


def test_alpha_8_minus_the_rule_at_one_rank():
    frame = table(*alphas(0.5, 0.25), *alphas(0.25, 0.5, seed=1))
    assert by_seed(rules.alpha_8_minus_rule(frame, rank=64, column="forgetting")) == {0: -0.25, 1: 0.25}


def test_several_matrices_of_a_run_are_averaged():
    frame = pd.DataFrame(alphas(40, 10, seed=0) + alphas(20, 10, seed=0))  # update tables say nothing of accuracy
    assert by_seed(rules.alpha_8_minus_rule(frame, rank=64, column="effective_rank")) == {0: -20}


def test_the_count_at_alpha_8_has_its_own_epsilon():
    frame = table(*alphas(2, 9, epsilon=0.8), *alphas(5, 3, epsilon=0.5))
    assert by_seed(rules.count_at_alpha_8_minus_rule(frame, rank=64, epsilon=0.8)) == {0: 7}
    assert by_seed(rules.count_at_alpha_8_minus_rule(frame, rank=64, epsilon=0.5)) == {0: -2}


@pytest.mark.parametrize("lacking", ["experiment == 'rule'", "experiment == 'alpha_8'"])
def test_one_alpha_is_no_comparison(lacking):
    frame = table(*alphas(2, 9), *alphas(2, 9, seed=1))
    frame = frame.drop(frame.query(f"seed == 1 and {lacking}").index)
    found = rules.alpha_8_minus_rule(frame, rank=64, column="forgetting")
    assert found.values.dropna().to_dict() == {0: 7} and "experiment" in found.missing[1]


def test_the_smaller_alpha_is_compared_at_the_same_rate_and_scaling():
    """1.5e-3: 9 - 4; 2e-3: 3 - 4; their mean 2. Not a rate of one alpha, not rsLoRA, not the same run a second time."""
    def run(alpha: int, rate: float, n: int, **others) -> dict:
        return {"r": 16, "lora_alpha": alpha, "learning_rate": rate, "n_intruders": n} | others

    twice = run(32, 1.5e-3, 4)
    frame = table(twice, run(8, 1.5e-3, 9), run(32, 2e-3, 4), run(8, 2e-3, 3), run(32, 1e-3, 70),
                  run(8, 1e-3, 10, method="rsLoRA r=16"), twice, run(8, 1.5e-3, 0, r=8), run(32, 1.5e-3, 99, r=8))
    assert by_seed(rules.smaller_alpha_minus_larger(frame, rank=16, column="n_intruders")) == {0: 2}
    alone = rules.smaller_alpha_minus_larger(frame[frame["lora_alpha"] == 32], rank=16, column="n_intruders")
    assert alone.values.isna().all() and "alphas at one rate with r = 16" in alone.missing[0]


# The update's rank --------------------------------------------------------------------------------------------------

def effective(**methods: tuple) -> pd.DataFrame:
    return pd.DataFrame([{"experiment": "rule", "seed": seed, "r": 8, "method": name.replace("_", " r="),
                          "effective_rank": value} for name, values in methods.items()
                         for seed, two in enumerate(values) for value in two])


def test_a_ratio_of_means_over_matrices_to_the_largest_of_the_lower():
    frame = effective(full=((90, 110), (60, 60)), LoRA_8=((10, 30), (5, 5)), LoRA_16=((20, 30), (60, 60)))
    for lower, expected in ((["LoRA r=8"], {0: 5, 1: 12}), (["LoRA r=8", "LoRA r=16"], {0: 4, 1: 1})):
        found = rules.effective_rank_ratio(frame, in_experiment="rule", higher="full", lower=lower)
        assert by_seed(found) == expected and found.outcome == "effective_rank"


@pytest.mark.parametrize("lacking", ["full", "LoRA r=8", "LoRA r=16"])
def test_a_ratio_needs_all_of_its_methods(lacking):
    frame = effective(full=((90,), (60,)), LoRA_8=((10,), (5,)), LoRA_16=((20,), (60,)))
    frame = frame.drop(frame[(frame["seed"] == 1) & (frame["method"] == lacking)].index)
    found = rules.effective_rank_ratio(frame, in_experiment="rule", higher="full", lower=["LoRA r=8", "LoRA r=16"])
    assert found.values.dropna().to_dict() == {0: 4.5} and found.missing == {1: f"no run with method = {lacking}"}


@pytest.mark.parametrize("judge_rule", [
    lambda frame: rules.trend_over_rates(frame, column="gone"),
    lambda frame: rules.rho_over_checkpoints(frame, column="n_intruders", other="gone"),
    lambda frame: rules.largest_rate_minus_full(frame.drop(columns="forgetting")),
], ids=["trend", "rho", "largest rate"])
def test_a_lost_column_is_loud(judge_rule):
    with pytest.raises(KeyError, match="gone|forgetting"):
        judge_rule(table(*last((1, 0.3), (5, 0.2), (9, 0.1))))
