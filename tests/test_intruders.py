"""The count of intruder dimensions: each rule by hand, each figure by what it draws, tells and finds."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.registry import FIGURES, FINDINGS
from utils.reporting.selection import marked
from utils.spectra import random_ranges
from utils.studies import load_studies
from utils.studies.intruders import figures, growth, measure, rules, subsets

LAPTOP = load_profile("laptop")
CHANCE = random_ranges([(384, 384), (384, 1536), (1536, 384)])
METHODS = {"full": 0, "LoRA r=1": 1, "LoRA r=8": 8, "LoRA r=64": 64}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def counts(*seeds: dict, epsilon: float = 0.5, experiment: str = "ranks", accuracy: dict | None = None) -> pd.DataFrame:
    """Counts by method for each seed, every run as accurate unless `accuracy` says otherwise."""
    rows = [{"profile": "laptop", "experiment": experiment, "task": "movies", "seed": seed, "method": method,
             "r": int(method.split("r=")[1]) if "r=" in method else 0, "lora_alpha": 16, "learning_rate": 1e-3,
             "run": f"{method}-{seed}", "epsilon": epsilon, "k": 10, "n_intruders": count,
             "accuracy": (accuracy or {}).get(method, 0.8), "accuracy_se": 0.01}
            for seed, found in enumerate(seeds) for method, count in found.items()]
    return marked(pd.DataFrame(rows))


FALLING = {"full": 0, "LoRA r=1": 4, "LoRA r=8": 9, "LoRA r=64": 1}


@pytest.mark.parametrize("rule, parameters, effect", [
    (rules.count_of_full, {}, 0), (rules.most_at_equal_accuracy, {"tolerance": 0.03}, 9),
    (rules.least_up_to_rank, {"max_rank": 16}, 4), (rules.least_up_to_rank, {"max_rank": 64}, 1),
    (rules.count_at_full_width, {"low_rank": 8}, 1 - 9), (rules.trend_from_rank, {"from_rank": 8}, -1),
    (rules.trend_from_rank, {"from_rank": 1}, -0.5)])
def test_a_rule_gives_the_effect_in_natural_units(rule, parameters, effect):
    table = pd.concat([counts(FALLING), counts(FALLING, epsilon=0.8).assign(n_intruders=99),
                       counts({"full": 7, "LoRA r=8": 7}, experiment="second")])
    found = rule(table, epsilon=0.5, **parameters)
    assert found.values.tolist() == pytest.approx([effect]) and found.outcome == "n_intruders"
    assert rule(table.sample(frac=1, random_state=0), epsilon=0.5, **parameters).values.equals(found.values)


def test_only_runs_as_accurate_as_full_are_compared_at_equal_accuracy():
    table = counts(FALLING, accuracy={"LoRA r=8": 0.75})
    assert rules.most_at_equal_accuracy(table, epsilon=0.5, tolerance=0.03).values.tolist() == [4]
    apart = counts(FALLING, accuracy={"full": 0.9})
    found = rules.most_at_equal_accuracy(apart, epsilon=0.5, tolerance=0.03)
    assert found.values.isna().all() and "0 run of LoRA within 0.03" in found.missing[0]


def test_a_run_that_did_not_learn_is_no_run():
    table = counts(FALLING, FALLING, accuracy={"LoRA r=8": 0.52})
    found = rules.count_at_full_width(table, epsilon=0.5, low_rank=8)
    assert found.values.isna().all() and found.missing[0] == "no run with r = 8"


def test_a_rank_that_one_seed_lacks_is_named():
    found = rules.least_up_to_rank(counts(FALLING, {"full": 0, "LoRA r=8": 9}), epsilon=0.5, max_rank=16)
    assert found.values[0] == 4 and np.isnan(found.values[1]) and found.missing[1] == "no run with r = 1"


@pytest.mark.parametrize("column, effect", [("n_intruders", 3), ("strongest_ratio", 0.5)])
def test_growth_is_last_minus_first_of_what_was_measured(column, effect):
    table = marked(pd.DataFrame({
        "experiment": "ranks", "seed": 0, "method": ["full", *["LoRA r=8"] * 3], "r": [0, 8, 8, 8],
        "step": [1, 3, 1, 2], "n_intruders": [9, 4, 1, 2], "strongest_ratio": [1.0, 1.5, np.nan, 1.0]}))
    assert rules.last_minus_first(table, column=column).values.tolist() == [effect]
    nothing = table.assign(strongest_ratio=np.nan)
    assert "0 checkpoints with strongest_ratio" in rules.last_minus_first(nothing, column="strongest_ratio").missing[0]


def test_over_k_the_smallest_difference_counts():
    rows = [{"experiment": "ranks", "seed": 0, "method": method, "r": r, "k": k, "n_intruders": count}
            for method, r, found in (("full", 0, (0, 5)), ("LoRA r=8", 8, (3, 4)))
            for k, count in zip((0.1, 1.0), found, strict=True)]
    assert rules.least_above_full_over_k(marked(pd.DataFrame(rows)), rank=8).values.tolist() == [-1]


def data(*values: int) -> pd.DataFrame:
    return pd.DataFrame({"seed": 0, "r": 8, "epsilon": 0.5, "n_intruders": values,
                         "train_rows": range(100, 100 * len(values) + 1, 100)})


def test_the_amount_of_data_is_a_trend_and_a_change():
    assert rules.trend_with_data(data(0, 2, 5), epsilon=0.5, rank=8).values.tolist() == [1]
    assert rules.change_with_data(data(3, 1, 2), epsilon=0.5, rank=8).values.tolist() == [2]
    found = rules.change_with_data(data(3, 1), epsilon=0.5, rank=8)
    assert found.values.isna().all() and found.missing[0] == "2 amounts of data, 3 needed"


def test_variants_are_compared_each_at_its_best_rate():
    low = counts({"LoRA r=8": 4, "B only r=8": 2}, experiment="variants")
    high = counts({"LoRA r=8": 50}, experiment="variants", accuracy={"LoRA r=8": 0.7}).assign(learning_rate=1e-2)
    table = marked(pd.concat([low, high.assign(run="other")]))
    given = {"epsilon": 0.5, "method": "B only r=8", "beside": "LoRA r=8"}
    assert rules.method_minus_method(table, **given).values.tolist() == [-2]
    assert rules.least_of_variants(table, epsilon=0.5).values.tolist() == [2]
    assert rules.method_minus_method(table, **given | {"beside": "PiSSA r=8"}).missing[0] == (
        "no run with method = PiSSA r=8")


def test_methods_differ_beyond_seeds():
    """Means 0 and 5, and no seed is further than 1 from its mean; a single seed has nothing to differ from."""
    table = counts({"full": 0, "LoRA r=8": 4}, {"full": 0, "LoRA r=8": 6})
    assert rules.methods_beyond_seeds(table, epsilon=0.5).values.tolist() == [4, 4]
    alone = rules.methods_beyond_seeds(counts(FALLING), epsilon=0.5)
    assert alone.values.isna().all() and "second seed" in alone.missing[0]


# Figures --------------------------------------------------------------------------------------------------------------


def by_epsilon(*seeds: dict) -> pd.DataFrame:
    """Counts that double from epsilon 0.5 to 0.8, on the epsilons that figures and findings read."""
    parts = [counts(*seeds, epsilon=epsilon).assign(n_intruders=lambda t, factor=factor: t["n_intruders"] * factor)
             for epsilon, factor in ((0.3, 0), (0.5, 1), (0.7, 1), (0.8, 2), (0.9, 2))]
    return pd.concat(parts, ignore_index=True)


def measured(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    return Measured("intruder_counts", LAPTOP, (3,), own.assign(seed=3), reference)


def test_the_main_figure_tells_its_numbers_with_and_without_a_reference():
    own, reference = by_epsilon(FALLING), by_epsilon(FALLING, FALLING, FALLING)
    for given in (measured(own), measured(own, reference)):
        drawn = figures.count_against_epsilon(given, chance=CHANCE, examined=360)
        assert "full 0, LoRA r=1 4, LoRA r=8 9, LoRA r=64 1" in drawn.alt and "360" in drawn.caption
        assert drawn.shown.shape[1] <= 6 and list(drawn.shown["ε = 0.5"]) == [0, 4, 9, 1]
        assert drawn.identifier == "04_count_against_epsilon" and drawn.profile is LAPTOP


def test_the_finding_says_the_opposite_where_the_table_does():
    found = FINDINGS["04_count_against_epsilon"]
    good = found(measured(by_epsilon(FALLING), by_epsilon(FALLING, FALLING)), chance=CHANCE, examined=360)
    none = dict.fromkeys(METHODS, 0)
    bad = found(measured(by_epsilon(FALLING), by_epsilon(none, none)), chance=CHANCE, examined=360)
    assert good.met and "0 (in all 2 seeds)" in good.text and "LoRA r=1, LoRA r=8 and LoRA r=64" in good.text
    assert bad.met is False and "some in every seed at no rank" in bad.text


def spans(axis) -> list[tuple[float, float]]:
    """The upright bands of an axis, from left to right."""
    found = [patch.get_x() for patch in axis.patches], [patch.get_x() + patch.get_width() for patch in axis.patches]
    return sorted(zip(*found, strict=True))


def test_a_random_direction_is_a_band_for_each_length_and_told_beside_epsilon():
    """In 384 dimensions 0.16 and in 1536 half of that; of 28 counted at 0.5 those below 0.3 are named."""
    given = measured(by_epsilon(FALLING), by_epsilon(FALLING, FALLING))
    axis = figures.count_against_epsilon(given, chance=CHANCE, examined=360).figure.axes[0]
    bands = [(row.low, row.high) for row in CHANCE.sort_values("low").itertuples()]
    assert len(bands) == 2 and spans(axis) == pytest.approx(bands)
    text = FINDINGS["04_count_against_epsilon"](given, chance=CHANCE, examined=360).text
    assert "0.16 (0.14 to 0.19) where matrices have 384 outputs and 0.08 (0.07 to 0.10) where" in text
    assert "may have up to 25% at epsilon 0.5 and 64% at epsilon 0.8" in text
    assert "Of all of LoRA's 28 at epsilon 0.5, 0 would count at 0.3, just" in text
    none = dict.fromkeys(METHODS, 0)
    nothing = measured(by_epsilon(FALLING), by_epsilon(none))
    assert "would count at" not in FINDINGS["04_count_against_epsilon"](nothing, chance=CHANCE, examined=360).text


def test_the_laptops_encoder_has_two_kinds_of_random_direction():
    found = measure.random_directions(LAPTOP).set_index("dimension")
    assert found["count"].to_dict() == {384: 384, 1536: 384} and found["matrices"].to_dict() == {384: 30, 1536: 6}


def test_random_updates_stand_beside_the_trained_runs():
    own = by_epsilon(FALLING)
    controls = pd.concat([own.assign(control="random, full rank", n_intruders=0),
                          own[own["r"] > 0].assign(control="random, rank r", n_intruders=2)])
    given = (Measured("random_controls", LAPTOP, (3,), controls), measured(own))
    drawn = figures.random_updates(*given, chance=CHANCE)
    assert "trained 9, random, full rank 0, random, rank r 2" in drawn.alt and len(drawn.figure.axes) == 3
    result = FINDINGS["04_random_updates"](*given, chance=CHANCE)
    assert "at most 0 intruders" in result.text and "2 of 3 ranks" in result.text and result.met is False


def test_seeds_have_a_panel_for_each_method_two_in_a_row():
    drawn = figures.seeds(measured(by_epsilon(FALLING), by_epsilon(FALLING, FALLING)), chance=CHANCE)
    assert [axis.get_title() for axis in drawn.figure.axes] == list(METHODS)
    assert drawn.figure.axes[0].get_gridspec().ncols == 2 and "LoRA r=8 9 to 9" in drawn.alt
    assert FINDINGS["04b_seeds"](measured(by_epsilon(FALLING), by_epsilon(FALLING, FALLING)), chance=CHANCE).met


def growing(last: int, accuracy: float = 0.8) -> pd.DataFrame:
    rows = [{"experiment": "ranks", "task": "movies", "seed": seed, "method": method, "r": r, "run": f"{method}{seed}",
             "step": step, "n_intruders": count, "strongest_ratio": 1.0 + step, "least_cosine": 1 / (1 + step),
             "accuracy": value}
            for seed in (0, 1, 2) for method, r, course in (("full", 0, (0, 0)), ("LoRA r=8", 8, (1, last)))
            for step, count, value in zip((1, 2), course, (0.8, accuracy), strict=True)]
    return marked(pd.DataFrame(rows))


@pytest.mark.parametrize("last, accuracy, met, word", [
    (5, 0.8, True, "had flattened"), (0, 0.8, False, "had flattened"), (5, 0.9, False, "had not flattened")])
def test_growth_says_whether_accuracy_had_flattened(last, accuracy, met, word):
    given = Measured("intruder_growth", LAPTOP, (3,), growing(last, accuracy))
    assert f"LoRA 1 at first, {last} at the end" in growth.through_training(given, chance=CHANCE).alt
    result = FINDINGS["04b_through_training"](given, chance=CHANCE)
    assert result.met is met and word in result.text and f"{last} (in all 3 seeds) at the last" in result.text


def test_one_intruder_is_followed_and_the_base_is_no_point_of_its_line():
    trace = pd.DataFrame({"step": [0, 60, 120], "index": [9, 3, 1], "singular_value": [1.0, 2.0, 3.0], "matrix": "w",
                          "max_cosine": [1.0, 0.6, 0.2], "overlap": [0.1, 0.5, 1.0], "accuracy": [np.nan, 0.7, 0.8],
                          "method": "LoRA r=8"})
    drawn = growth.one_intruder(LAPTOP, trace, largest=2.5, chance=CHANCE, choice="w")
    line = drawn.figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [60, 120] and "9, 3, 1" in drawn.alt
    assert [len(axis.patches) for axis in drawn.figure.axes] == [0, 0, 2, 0], "cosines are on one axis alone"
    assert FINDINGS["04b_one_intruder"](LAPTOP, trace, largest=2.5, chance=CHANCE, choice="w").met
    assert "ends as an intruder at epsilon 0.5 (largest cosine 0.20)" in FINDINGS["04b_one_intruder"](
        LAPTOP, trace, largest=2.5, chance=CHANCE, choice="w").text
    tame = FINDINGS["04b_one_intruder"](LAPTOP, trace.assign(max_cosine=0.9), largest=2.5, chance=CHANCE, choice="w")
    assert tame.met is False and "ends as no intruder" in tame.text
    sinking = trace.assign(index=[9, 1, 3])
    assert FINDINGS["04b_one_intruder"](LAPTOP, sinking, largest=2.5, chance=CHANCE, choice="w").met is False


def test_variants_that_did_not_learn_are_counted_as_failed():
    table = pd.concat([counts({"full": 0, "LoRA r=8": 4, "PiSSA r=8": 30}, epsilon=epsilon, experiment="variants",
                              accuracy={"PiSSA r=8": 0.55}) for epsilon in (0.5, 0.8)])
    drawn = subsets.variants(measured(table.assign(experiment="variants")), chance=CHANCE)
    assert drawn.shown.set_index("method")["seeds that did not learn"].to_dict() == {
        "full": 0, "LoRA r=8": 0, "PiSSA r=8": 1}
    assert "PiSSA" not in FINDINGS["04b_variants"](measured(table), chance=CHANCE).text.split("Without any")[0]


@pytest.mark.parametrize("highest", [0, 7])
def test_places_print_each_count(highest):
    rows = [{"method": method, "r": r, "layer": layer, "type": kind, "n_intruders": highest if kind == "query" else 0,
             "seed": 3} for method, r in (("full", 0), ("LoRA r=8", 8)) for layer in (0, 1)
            for kind in ("query", "key")]
    drawn = subsets.places(Measured("intruder_places", LAPTOP, (3,), marked(pd.DataFrame(rows))), ["full", "LoRA r=8"])
    assert [text.get_text() for text in drawn.figure.axes[0].texts].count(str(highest)) >= 2
    assert f"LoRA r=8 {2 * highest}" in drawn.alt


def test_every_figure_of_notebooks_03_to_04b_has_a_finding():
    load_studies()
    ours = [name for name in FIGURES if name.startswith(("03_", "04_", "04b_")) and "released" not in name]
    assert len(ours) >= 16 and set(ours) <= set(FINDINGS)
