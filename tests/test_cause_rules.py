"""Rules and tables of notebook 07, each effect worked by hand on rows that say nothing else."""

import math

import numpy as np
import pandas as pd
import pytest

from utils.ledger.claims import claim_named
from utils.reporting.claims import judge_claim
from utils.reporting.items import packed
from utils.reporting.rules import Effects
from utils.reporting.selection import marked, pareto_front
from utils.reporting.verdicts import NO_POWER, TOO_FEW, Expectation, interval, judge
from utils.studies.cause import rules
from utils.studies.cause.measure import doubling
from utils.studies.cause.published import paper_scaling
from utils.studies.cause.strengths import separation, told_apart

GENTLE, FIERCE = 2e-3, 3e-3  # the rates of r = 8; the gentler one is judged


BASE = 5.0  # the untouched base's loss


def items(rows: list[dict], *, passages: int = 60, answers: int = 1000) -> list[dict]:
    """Rows with what they were taken from: the first answers right, every passage alike, so that no draw differs."""
    return [row | {"base_pseudo_loss": BASE, "passage_nats": " ".join([f"{BASE + row['forgetting']:.6f}"] * passages)}
            | ({"right": packed([place < round(row["accuracy"] * answers) for place in range(answers)])}
               if "accuracy" in row else {}) for row in rows]


def scaled(seed: int = 0, *, changed: int = 3, forgot: float = 1.0, **by_kind: dict) -> list[dict]:
    """Percent of forgetting by factor for each kind, at rank 8's gentler rate; its other rate and rank 1 say 77 %.

    At lambda 1 accuracy is 0.8; it moves by a quarter of the percentage, the other way.
    """
    rows = [{"r": 8, "learning_rate": GENTLE, "kind": kind.replace("_", " "), "factor": factor, "changed": changed,
             "forgetting": forgot + change / 100 * abs(forgot), "accuracy": 0.8 - 0.8 * change / 400,
             "forgetting_change": change, "accuracy_change": -change / 4}
            for kind, by_factor in by_kind.items() for factor, change in ({1.0: 0.0} | by_factor).items()]
    beside = [row | {"r": rank, "learning_rate": rate, "forgetting": 1.77, "accuracy": 0.9, "forgetting_change": 77.0,
                     "accuracy_change": 12.5} for row in rows for rank, rate in ((8, FIERCE), (1, 1e-3))]
    return items([row | {"seed": seed} for row in (*beside, *rows)])


def frame(*seeds: list[dict]) -> pd.DataFrame:
    """Every seed's rows in one table, the later seeds first: no rule may depend on the order of rows."""
    return pd.DataFrame([row for rows in reversed(seeds) for row in rows])


def by_hand(effects) -> dict:
    return effects.values.sort_index().to_dict()


@pytest.mark.parametrize("take, effect", [("largest", -9.0), ("smallest", -14.5)])
def test_the_change_that_is_hardest_on_the_claim_stands_for_all_strengths(take, effect):
    """In percent with its own sign, at the gentler of two rates; a strength that is not named plays no part."""
    table = frame(scaled(intruder={0.5: -9.0, 0.7: -14.5, 1.5: 20.0}, neighbour={0.5: 50.0, 0.7: 50.0}))
    found = rules.change_when_scaled(table, rank=8, factors=[0.5, 0.7], take=take)
    assert by_hand(found) == pytest.approx({0: effect}) and sorted(found.outcomes) == [-14.5, -9.0, 0.0]
    accuracy = rules.change_when_scaled(table, rank=8, factors=[0.7], take=take, column="accuracy_change")
    assert by_hand(accuracy) == pytest.approx({0: 14.5 / 4}) and accuracy.outcome == "accuracy_change"
    neighbour = rules.change_when_scaled(table, rank=8, factors=[0.5], take=take, kind="neighbour")
    assert by_hand(neighbour) == pytest.approx({0: 50.0})


def test_a_seed_without_intruders_without_forgetting_or_without_the_run_has_no_effect():
    """No intruder: every strength leaves the model as it is, which is no failure of the sentence. And a run that
    forgot less than nothing turns every percentage around: the loss rose where "forgetting" fell by 20 %.
    """
    good = {0.7: -20.0}
    table = frame(scaled(0, intruder=good), scaled(1, intruder=good, changed=0),
                  scaled(2, intruder=good, forgot=-1.0), scaled(3, intruder={0.5: -20.0}),
                  [row for row in scaled(4, intruder=good) if row["r"] == 1])
    found = rules.change_when_scaled(table, rank=8, factors=[0.7], take="largest")
    assert found.values.dropna().to_dict() == pytest.approx({0: -20.0}) and not found.no_power
    assert found.missing[1] == "no intruder to scale" and found.missing[2].startswith("nothing was forgotten")
    assert "factor = 0.7" in found.missing[3] and "r = 8" in found.missing[4]
    accuracy = rules.change_when_scaled(table, rank=8, factors=[0.7], take="smallest", column="accuracy_change")
    assert accuracy.values.dropna().to_dict() == pytest.approx({0: 5.0, 2: 5.0}), "an accuracy has its meaning always"


def test_a_rank_that_was_never_scaled_gives_no_seed_an_effect():
    found = rules.change_when_scaled(frame(scaled(intruder={0.7: -9.0})), rank=16, factors=[0.7], take="largest")
    assert found.values.isna().all() and set(found.missing) == {0}
    assert judge(found, Expectation(below=0)).verdict == TOO_FEW, "what was never run has nothing to say"


def test_a_strength_that_changes_nothing_has_no_power():
    """Every change zero in every seed: the claim could neither have held nor have failed."""
    table = frame(*(scaled(seed, intruder={0.7: 0.0}) for seed in range(3)))
    found = rules.change_when_scaled(table, rank=8, factors=[0.7], take="largest")
    assert judge(found, Expectation(below=0)).verdict == NO_POWER


@pytest.mark.parametrize("changes, why", [({"changed": 0}, "no intruder to scale"),
                                          ({"forgot": -0.1}, "nothing was forgotten")])
def test_where_nothing_is_there_to_be_restored_no_seed_has_power(changes, why):
    """Three seeds that are there, and none that the intervention could do anything to."""
    table = frame(*(scaled(seed, intruder={0.7: -9.0}, **changes) for seed in range(3)))
    verdict = judge(rules.change_when_scaled(table, rank=8, factors=[0.7], take="largest"), Expectation(below=0))
    assert verdict.verdict == NO_POWER and why in verdict.why


def test_forgetting_within_the_passages_own_noise_is_none_to_restore():
    """On average 0.01 nats were forgotten, but the passages scatter by a nat: as well could it be nothing."""
    noisy = " ".join(f"{BASE + 0.01 + (1 if place % 2 else -1):.4f}" for place in range(60))
    table = frame(*(scaled(seed, intruder={0.7: -50.0}, forgot=0.01) for seed in range(3)))
    table.loc[table["factor"] == 1, "passage_nats"] = noisy
    found = rules.change_when_scaled(table, rank=8, factors=[0.7], take="largest")
    assert judge(found, Expectation(below=0)).verdict == NO_POWER


@pytest.mark.parametrize("without", ["kind", "changed", "passage_nats"])
def test_a_lost_column_is_loud(without):
    table = frame(scaled(intruder={0.7: -9.0})).drop(columns=without)
    with pytest.raises(KeyError, match=without):
        rules.change_when_scaled(table, rank=8, factors=[0.7], take="largest")


def points(seed: int, accuracy: float, forgetting: float, whole: dict[float, tuple], changed: int = 3) -> list[dict]:
    """(accuracy, forgetting) of the intruder at 0.5, and of the whole update by factor; scaling up must not matter."""
    return items([{"seed": seed, "r": 8, "learning_rate": GENTLE, "changed": changed, "kind": kind, "factor": factor,
                   "accuracy": a, "forgetting": f} for kind, factor, a, f in (
        ("intruder", 1.0, 0.8, 0.5), ("intruder", 0.5, accuracy, forgetting), ("neighbour", 0.5, accuracy, 0.0),
        ("whole update", 1.5, 0.75, 0.0), *(("whole update", factor, *point) for factor, point in whole.items()))],
        answers=16)


WHOLE = {1.0: (0.75, 0.5), 0.75: (0.5, 0.25), 0.5: (0.25, 0.0)}


@pytest.mark.parametrize("accuracy, forgetting, whole, effect", [
    (0.625, 0.25, WHOLE, -0.125),  # halfway between the whole update's 0.25 and 0.5
    (0.625, 0.5, WHOLE, 0.125),
    (0.5, 0.125, {1.0: (0.75, 0.5), 0.9: (0.5, 0.75), 0.75: (0.5, 0.25), 0.5: (0.25, 0.0)}, -0.125),
    (0.625, 0.375, {1.0: (0.5, 0.9), 0.9: (0.75, 0.25), 0.5: (0.25, 0.0)}, 0.375 - 0.1875),
    (0.75, 0.375, {1.0: (0.75, 0.5), 0.9: (0.875, 0.25)}, 0.125),
    (0.625, 0.25, {1.0: (0.75, 0.5), 0.9: (0.75, 0.5), 0.75: (0.5, 0.25)}, -0.125),
    (0.8125, 0.375, WHOLE, -0.125), (0.125, 0.125, WHOLE, 0.125)],
    ids=["below the curve", "above the curve", "equal accuracies", "accuracy not in order", "dominated start",
         "two equal points", "beyond the curve", "before the curve"])
def test_an_intruder_is_compared_with_the_best_of_the_other_kind(accuracy, forgetting, whole, effect):
    """Of equal accuracies the least forgetting counts, and a point that another beats in both plays no part: without
    (0.5, 0.9) the curve runs from (0.25, 0) to (0.75, 0.25), which gives 0.1875 at 0.625. Beyond the curve its end.
    """
    table = frame(points(0, accuracy, forgetting, whole), points(1, accuracy, forgetting, whole, changed=0),
                  [row for row in points(2, accuracy, forgetting, whole) if row["kind"] != "whole update"])
    found = rules.forgetting_at_equal_accuracy(table, rank=8, factor=0.5, beside="whole update")
    assert found.values.dropna().to_dict() == pytest.approx({0: effect}) and set(found.missing) == {1, 2}


def test_a_smaller_rate_stands_beside_lambda_as_a_whole_update_does():
    """Its front is the run itself, half and quarter of the rate; a run without such neighbours is named."""
    rates = [row | {"kind": "smaller rate"} for row in points(0, 0.625, 0.25, WHOLE) if row["kind"] == "whole update"]
    table = frame(points(0, 0.625, 0.25, WHOLE) + rates, points(1, 0.625, 0.25, WHOLE))
    found = rules.forgetting_at_equal_accuracy(table, rank=8, factor=0.5, beside="smaller rate")
    assert found.values.dropna().to_dict() == pytest.approx({0: -0.125})
    assert "kind = smaller rate" in found.missing[1]
    alone = table[(table["kind"] != "smaller rate") | (table["factor"] >= 1)]
    found = rules.forgetting_at_equal_accuracy(alone, rank=8, factor=0.5, beside="smaller rate")
    assert found.missing[0] == "no smaller rate to compare with"


@pytest.mark.parametrize("accuracy, said", [(0.625, ""), (0.9375, "in 1 of 1 runs that accuracy is never had")])
def test_an_accuracy_that_the_other_kind_never_has_leaves_the_verdict_open(accuracy, said):
    """0.9375 is above all that the whole update has; whatever stands in there, nothing is equal."""
    table = frame(points(0, accuracy, 0.25, WHOLE))
    found = rules.forgetting_at_equal_accuracy(table, rank=8, factor=0.5, beside="whole update")
    assert found.undecided.startswith(said) and bool(found.undecided) == bool(said)


def test_the_front_of_many_draws_is_that_of_each():
    """By the course's own rule of the front, one draw at a time; the interpolation by hand in one of them."""
    random = np.random.default_rng(0)
    accuracies, forgetting, at = random.random((20, 5)), random.random((20, 5)), random.random(20)
    for draw, value in enumerate(rules.on_the_front(accuracies, forgetting, at)):
        part = pd.DataFrame({"accuracy": accuracies[draw], "remembering": -forgetting[draw]})
        best = part[pareto_front(part, y="accuracy")].sort_values("accuracy")
        assert value == pytest.approx(np.interp(at[draw], best["accuracy"], -best["remembering"]))


def test_two_kinds_are_compared_at_one_strength():
    """Accuracy after the neighbour minus after the intruder, 0.625 - 0.75; at another strength it would be 0.05."""
    table = frame(points(0, 0.75, 0.25, WHOLE), points(1, 0.75, 0.25, WHOLE))
    less = items([{"accuracy": 0.625, "forgetting": 0.0}], answers=16)[0]
    table.loc[table["kind"] == "neighbour", ["accuracy", "right"]] = less["accuracy"], less["right"]
    table = table[(table["seed"] == 0) | (table["kind"] != "neighbour")]
    found = rules.kinds_apart(table, rank=8, factor=0.5, kind="neighbour", beside="intruder", column="accuracy")
    assert found.values.dropna().to_dict() == {0: -0.125} and set(found.missing) == {1}
    assert sorted(found.outcomes) == [0.625, 0.75, 0.75]


def apart(table: pd.DataFrame) -> Effects:
    return rules.kinds_apart(table, rank=8, factor=0.5, kind="random direction", beside="intruder", column="forgetting")


def test_a_bootstrap_draws_the_same_items_for_both_models_and_the_seeds_too():
    """Passages differ wildly and the two models by 0.1 on each: paired, every draw has that difference. Unpaired, the
    passages' own scatter would be in it. Seeds that differ are drawn, and make the interval as wide as they are.
    """
    random = np.random.default_rng(0)
    passages = random.normal(BASE + 1, 2, size=60)
    table = frame(*(scaled(seed, intruder={0.5: 0.0}, random_direction={0.5: 0.0}) for seed in range(3)))
    for seed, gap in enumerate((0.1, 0.1, 0.4)):
        for kind, shift in (("intruder", 0.0), ("random direction", gap)):
            there = (table["seed"] == seed) & (table["kind"] == kind)
            table.loc[there, "passage_nats"] = " ".join(f"{value + shift:.4f}" for value in passages)
    found = apart(table)
    assert by_hand(found) == pytest.approx({0: 0.1, 1: 0.1, 2: 0.4}, abs=1e-4)
    low, high = interval(found)
    assert (low, high) == pytest.approx((0.1, 0.4), abs=1e-3), "all three seeds of a draw are the same in 1 of 27"
    assert interval(apart(table[table["seed"] < 2])) == pytest.approx((0.1, 0.1), abs=1e-3)


def test_the_interval_over_items_is_as_wide_as_the_standard_error_says():
    """One seed's difference over 400 passages with a known scatter; about four standard errors."""
    difference = np.random.default_rng(1).normal(0.2, 1.0, size=400)
    table = frame(scaled(intruder={0.5: 0.0}, random_direction={0.5: 0.0}))
    for kind, shift in (("intruder", 0.0), ("random direction", difference)):
        table.loc[table["kind"] == kind, "passage_nats"] = " ".join(
            f"{value:.4f}" for value in np.full(400, BASE + 1) + shift)
    found = apart(table)
    low, high = interval(found)
    assert by_hand(found)[0] == pytest.approx(difference.mean(), abs=1e-4)
    assert 3.6 < (high - low) / (difference.std() / 20) < 4.3


def removed(seed: int, intruders: list[float], neighbours: list[float]) -> list[dict]:
    """Forgetting with 0, 1, 2 and 4 of each removed; at another rate it is another."""
    return items([{"seed": seed, "r": 8, "learning_rate": rate, "kind": kind, "removed": count, "forgetting": value}
                  for rate, kind, values in ((GENTLE, "intruders", intruders), (GENTLE, "neighbours", neighbours),
                                             (FIERCE, "intruders", [1, 2, 3, 4]), (FIERCE, "neighbours", [1, 2, 3, 4]))
                  for count, value in zip((0, 1, 2, 4), values, strict=False)])


def test_removal_is_judged_with_all_of_each_removed():
    """0.1 minus 0.6 at the judged rate. A run without intruders has nothing to remove, and says so."""
    table = frame(removed(0, [0.5, 0.4, 0.3, 0.1], [0.5, 0.5, 0.5, 0.6]), removed(1, [0.5, 0.7], [0.5, 0.6]),
                  removed(2, [0.5], [0.5]))
    found = rules.forgetting_after_removal(table, rank=8)
    assert found.values.dropna().to_dict() == pytest.approx({0: -0.5, 1: 0.1})
    assert found.missing == {2: "no intruders to remove"}


def norms(seed: int, kept: float, without: float, *, own: float = 0.5) -> list[dict]:
    """Forgetting at the smaller norm, 0.375; at the run's own norm removing seems to do a lot."""
    return items([{"seed": seed, "r": 8, "learning_rate": GENTLE, "norm": norm, "intruders": which,
                   "relative_norm": size, "forgetting": value} for norm, which, size, value in (
        ("own", "kept", own, 9.0), ("own", "removed", own, 1.0), ("smaller", "kept", 0.375, kept),
        ("smaller", "removed", 0.375, without))])


def test_intruders_are_judged_at_one_norm():
    """With minus without at the norm that removing leaves; where removing changed no norm, nothing was removed."""
    table = frame(norms(0, 0.5, 0.25), norms(1, 0.25, 0.5), norms(2, 0.5, 0.5, own=0.375),
                  [row for row in norms(3, 0.5, 0.25) if row["intruders"] == "kept"])
    found = rules.intruders_beyond_norm(table, rank=8)
    assert found.values.dropna().to_dict() == pytest.approx({0: 0.25, 1: -0.25})
    assert found.missing[2] == "no intruder to remove" and "intruders = removed" in found.missing[3]


def test_a_prediction_is_right_within_a_factor_and_where_neither_knows_a_strength():
    """Right: equal, at the edge of the factor, twice infinite. Wrong: three times either way, one alone infinite."""
    pairs = [(1, 1), (1.5, 1), (1, 1.5), (math.inf, math.inf), (3, 1), (1, 3), (math.inf, 1), (1, math.inf)]
    table = pd.DataFrame([{"seed": 0, "measured": measured, "predicted": predicted} for measured, predicted in pairs])
    assert by_hand(rules.strength_predicted(table, factor=1.5)) == {0: 0.5}


def separated(seed: int = 0, **with_and_without: tuple) -> list[dict]:
    """Per rate, the ratios of the matrices with intruders and of those without; rank 1 is told apart perfectly."""
    def rows(rank: int, rate: str, having: tuple, lacking: tuple) -> list[dict]:
        return [{"seed": seed, "r": rank, "method": f"LoRA r={rank}", "learning_rate": rate, "ratio": ratio,
                 "n_intruders": n} for n, ratios in ((4, having), (0, lacking)) for ratio in ratios]

    eight = [row for rate, (having, lacking) in with_and_without.items() for row in rows(8, rate, having, lacking)]
    return eight + rows(1, "a", (9,), (0,))


def test_the_threshold_is_judged_by_the_mean_area_of_its_rates():
    """One rate orders three of four pairs, one all of them, one has intruders everywhere and says nothing."""
    found = rules.threshold_separates(frame(
        separated(0, a=((2, 3), (1, 2.5)), b=((2,), (1,)), c=((1, 2), ())),
        separated(1, a=((1, 2), ()), b=((), (1, 2)))), rank=8)
    assert found.values.dropna().to_dict() == {0: 0.875} and set(found.missing) == {1}


def test_a_run_that_did_not_learn_says_nothing_about_the_threshold():
    """Once the table has the runs' accuracies: the worse rate's reversed order then plays no part."""
    table = frame(separated(a=((2,), (1,)), b=((1,), (2,)))).assign(task="movies", run=lambda t: t["learning_rate"],
                                                                    accuracy=0.9)
    assert by_hand(rules.threshold_separates(table, rank=8)) == {0: 0.5}
    table.loc[table["learning_rate"] == "b", "accuracy"] = 0.5
    assert by_hand(rules.threshold_separates(marked(table), rank=8)) == {0: 1.0}


def test_separation_by_hand():
    """Ratios 2 and 3 with intruders, 1 and 2.5 without: three of four pairs in order; a tie counts half.

    One row per method and rate; where all or none have intruders there is no area, and nothing to show.
    """
    table = frame(separated(a=((2, 3), (1, 2.5)), b=((1,), (1,)), c=((0.5, 2), ())))
    found = separation(table[table["r"] == 8]).set_index("learning_rate")
    assert found["auc"].tolist()[:2] == [0.75, 0.5] and math.isnan(found["auc"]["c"])
    assert found.loc["a", ["matrices", "with_intruders", "above_critical", "largest_ratio"]].tolist() == [4, 2, 3, 3]
    assert found["above_critical"].tolist() == [3, 0, 1] and found["with_intruders"].tolist() == [2, 1, 2]
    assert len(separation(table)) == 4
    assert told_apart(table)["area under the curve"].tolist() == [0.75, 0.5, 1.0]


def test_a_table_of_changed_models_does_not_say_what_was_learnt():
    """Each row of such a table has another accuracy: the last one, a scaled model, once decided about its run."""
    table = pd.DataFrame({"run": ["a", "a", "b", "b"], "seed": 0, "task": "movies", "method": "LoRA r=8", "r": 8,
                          "kind": ["intruder", "whole update"] * 2, "accuracy": [0.9, 0.5, 0.9, 0.88]})
    assert "learnt" not in marked(table)
    assert marked(table.assign(accuracy=[0.9, 0.9, 0.5, 0.5]))["learnt"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("most, counts", [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (4, [0, 1, 2, 4]),
                                          (5, [0, 1, 2, 4, 5]), (9, [0, 1, 2, 4, 8, 9])])
def test_doubling_ends_with_all(most, counts):
    """Each number once, none twice where all is a power of two, and 0 alone where there is nothing to remove."""
    assert doubling(most) == counts


@pytest.mark.parametrize("table, task, r, factor, accuracy, forgetting", [
    (3, "mnli", 1, 0.5, -2.7, -13.7), (3, "qqp", 8, 0.1, -3.3, -52.0), (3, "fever", 8, 0.7, 1.3, -9.7),
    (4, "metamath", 16, 0.3, -15.0, -46.5), (4, "magicoder", 256, 0.9, -1.6, -2.8)])
def test_the_papers_scaling_tables_are_the_printed_ones(table, task, r, factor, accuracy, forgetting):
    """Tables 3 (three tasks, two ranks, five factors) and 4 (two tasks, three ranks, four factors)."""
    paper = paper_scaling()
    assert paper["table"].value_counts().to_dict() == {3: 30, 4: 24} and not paper.isna().any().any()
    assert not paper.duplicated(["table", "task", "r", "factor"]).any() and (paper["forgetting_change"] < 0).all()
    row = paper[(paper[["table", "task", "r", "factor"]] == (table, task, r, factor)).all(axis=1)].iloc[0]
    assert (row["accuracy_change"], row["forgetting_change"]) == (accuracy, forgetting)


def test_the_interval_of_an_area_under_the_curve_ends_at_one(monkeypatch):
    found = Effects(pd.Series([0.9, 0.95, 0.99]), pd.Series([0.0, 1.0]).to_numpy(), "n_intruders")
    monkeypatch.setattr("utils.reporting.claims.effects_of", lambda *given: found)
    verdict = judge_claim(claim_named("threshold-tells-intruders"), pd.DataFrame({"seed": [0]}), "laptop")
    assert verdict.high == 1.0 and 0.8 < verdict.low < verdict.effect
