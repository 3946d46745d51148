"""Figures of notebook 07: the right numbers drawn and told, with and without a reference."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from axes import named

from utils.ledger.reference import reference_table
from utils.profiles import load_profile
from utils.reporting.items import packed
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.registry import FIGURES, FINDINGS
from utils.studies import load_studies
from utils.studies.cause import figures
from utils.studies.cause.changed import KINDS
from utils.studies.cause.published import paper_scaling
from utils.studies.cause.resampled import changes

EIGHT, ONE = "LoRA r=8, 0.002", "LoRA r=1, 0.003"


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


BASE = 5.0


def items(table: pd.DataFrame) -> pd.DataFrame:
    """A table with what its numbers were taken from: every passage alike, so that only seeds make an interval."""
    losses = [" ".join([f"{BASE + value:.6f}"] * 4) for value in table["forgetting"]]
    table = table.assign(base_pseudo_loss=BASE, pseudo_loss=BASE + table["forgetting"], passage_nats=losses)
    if "accuracy" not in table:
        return table
    return table.assign(right=[packed([place < round(value * 1000) for place in range(1000)])
                               for value in table["accuracy"]])


def measured(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    if "forgetting" in own:
        own, reference = items(own), None if reference is None else items(reference)
    return Measured("x", load_profile("laptop"), (0,), own, reference, paper_scaling())


def interventions(methods=(EIGHT,), seeds=(0,), kinds=KINDS) -> pd.DataFrame:
    """Accuracy 0.7 to 0.85 and forgetting 0 to 1.5 with lambda, each kind a sixteenth higher; 1.5 for none but two."""
    rows = []
    for method in methods:
        for seed in seeds:
            for place, kind in enumerate(kinds):
                for factor in (0.0, 0.5, 0.7, 1.0, 1.5):
                    if factor > 1 and kind not in ("intruder", "neighbour"):
                        continue
                    rows.append({"method": method, "r": int(method.split("=")[1].split(",")[0]), "seed": seed,
                                 "learning_rate": float(method.split(",")[1]), "changed": 4,
                                 "run": f"{method} {seed}", "kind": kind, "factor": factor,
                                 "task": "movies", "base_share": 0.25 if kind == "intruder" else 1.0,
                                 "accuracy": 0.7 + factor / 10 + seed / 100,
                                 "forgetting": factor + seed / 8 + place / 16,
                                 "accuracy_change": -2.0 * (1 - factor), "forgetting_change": -30.0 * (1 - factor),
                                 "loss_change": -1.0 * (1 - factor)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("reference", [None, interventions((EIGHT, ONE), (0, 1, 2))], ids=["own", "with reference"])
def test_scaling_shows_what_changes_from_lambda_one_on(reference):
    """Accuracy left, loss right, every control and the smaller rates among them; of two runs the larger rank's."""
    drawn = figures.scaling_intruders(measured(interventions(), reference))
    _check(drawn)
    accuracy, loss = drawn.figure.axes
    assert named(accuracy, "neighbour") == [pytest.approx([-0.1, -0.05, -0.03, 0, 0.05])]
    assert named(loss, "intruder") == [pytest.approx([-1, -0.5, -0.3, 0, 0.5])]
    assert named(loss, "smaller rate") == [pytest.approx([-1, -0.5, -0.3, 0])]
    assert not named(loss, "update triplet"), "the other SVD has a figure of its own"
    assert drawn.figure.get_suptitle() == "LoRA r=8, learning rate 0.002"
    assert len(named(loss, "_reference")) == (0 if reference is None else 5)
    assert "intruder at 0.5: accuracy -0.050 (-0.06" in drawn.alt, "test rows are drawn: 50 of 1,000 changed"
    assert "forgetting -0.500 (-0.500 to -0.500)" in drawn.alt, "passages are, too, but all of them agree"
    assert ("the reference (seeds 0, 1, 2)" in drawn.alt) == (reference is not None)
    assert drawn.shown["lambda"].tolist()[:5] == [0.5] * 5, "every kind at a half comes first"
    assert drawn.shown.set_index("what is scaled")["W0's share of σ"]["intruder"].tolist()[0] == 0.25


def test_the_whole_update_does_not_set_the_axes_where_it_leaves_all_else():
    """At lambda 0 it is the base: accuracy falls by 0.4 there, and every other line would be flat."""
    table = interventions()
    far = (table["kind"] == "whole update") & (table["factor"] == 0)
    drawn = figures.scaling_intruders(measured(table.assign(accuracy=table["accuracy"].where(~far, 0.4))))
    assert drawn.figure.axes[0].get_ylim()[0] > -0.15


def test_seeds_that_differ_make_a_band():
    """0.1 and 0.3 less forgotten at a half in two seeds: 0.2, and the band from one to the other."""
    table = interventions(seeds=(0, 1))
    at = (table["kind"] == "intruder") & (table["factor"] == 0.5)
    start = table[table["factor"] == 1].groupby(["seed", "kind"])["forgetting"].first()
    table.loc[at, "forgetting"] = [start[0, "intruder"] - 0.1, start[1, "intruder"] - 0.3]
    row = changes(items(table)).set_index(["kind", "factor"]).loc[("intruder", 0.5)]
    assert row[["forgetting", "forgetting_low", "forgetting_high"]].tolist() == pytest.approx([-0.2, -0.3, -0.1])
    none = items(table.assign(changed=table["changed"].where(table["kind"] == "whole update", 0)))
    assert set(changes(none)["kind"]) == {"whole update"}, "without an intruder there is nothing to scale"


def test_the_papers_changes_stand_beside_both_readings_of_ours():
    """Hollow grey lines at the printed values; the triplet of W0 + ΔW and that of ΔW are two lines."""
    drawn = figures.beside_table_3(measured(interventions(), interventions((EIGHT,), (0, 1))))
    _check(drawn)
    accuracy, forgetting = drawn.figure.axes
    label = "paper, r=8: RoBERTa on FEVER, MNLI and QQP"
    assert [-5.1, -1.9, -0.6, -0.2, 0.0] in named(accuracy, label) and len(named(accuracy, label)) == 3
    assert [-24.7, -23.1, -19.8, -14.5, -5.9] in named(forgetting, label)
    for which in ("of W0 + ΔW", "of ΔW alone"):
        assert named(forgetting, f"{EIGHT}, triplet {which}") == [pytest.approx([-30, -15, -9, 0])], "none above 1"
    assert f"{EIGHT}, triplet of ΔW alone, lambda 0.5: accuracy -1.0 %, forgetting -15.0 %" in drawn.alt
    assert "paper, MNLI, r=8, lambda 0.5: accuracy -0.6 %, forgetting -19.8 %" in drawn.alt
    assert "r=1" not in drawn.alt, "of a rank that was not scaled nothing is drawn"
    ours = drawn.shown[~drawn.shown["source"].str.startswith("paper")]
    assert set(ours["of the loss, %"].round(6)) == {-0.5, -0.3}


@pytest.mark.parametrize("reference", [None, interventions((EIGHT, ONE), (0, 2))], ids=["own", "with reference"])
def test_a_trade_off_starts_in_the_circle(reference):
    """Lambda from 1 down; the reference's means in a panel of their own, since seeds differ more than lambdas do."""
    drawn = figures.trade_off(measured(interventions(), reference))
    _check(drawn)
    axes = drawn.figure.axes
    lines = {line.get_label(): np.array(line.get_xydata()) for line in axes[-1].lines}
    assert lines["intruder"] == pytest.approx(np.array([[0.7, 0], [0.75, 0.5], [0.77, 0.7], [0.8, 1.0]]))
    assert lines["lambda = 1"] == pytest.approx(np.array([[0.8, 1.0]]))
    assert {"smaller rate", "neighbour", "random direction", "whole update"} < set(lines)
    assert axes[-1].get_xlim()[0] > 0.69 and axes[-1].get_ylim()[1] < 1.5
    if reference is None:
        assert len(axes) == 1 and "intruder at 0.5: accuracy 0.750" in drawn.alt
        return
    means = {line.get_label(): np.array(line.get_xydata()) for line in axes[0].lines}
    assert means["intruder"][-1] == pytest.approx([0.81, 1.125]) and "the reference (seeds 0, 2)" in axes[0].get_title()
    assert "intruder at 0.5: accuracy 0.760" in drawn.alt and "learning rate 0.002" in axes[1].get_title()


def removals(seeds=(0,), methods=(EIGHT,)) -> pd.DataFrame:
    """Each intruder removed takes off an eighth, each neighbour adds one; later seeds have more of them."""
    return pd.DataFrame([{"method": method, "r": 8, "learning_rate": 0.002, "seed": seed, "run": f"{method} {seed}",
                          "kind": kind, "removed": count, "base_share": share if count else np.nan,
                          "forgetting": 1 + seed + sign * count / 8} for method in methods for seed in seeds
                         for kind, sign, share in (("intruders", -1, 0.25), ("neighbours", 1, 1.0))
                         for count in range(3 + seed)])


@pytest.mark.parametrize("reference", [None, removals((0, 1, 2))], ids=["own", "with reference"])
def test_removing_draws_every_seed_and_no_mean(reference):
    """A mean would jump where a seed runs out of intruders."""
    drawn = figures.removing_intruders(measured(removals(), reference))
    _check(drawn)
    (axis,) = drawn.figure.axes
    assert named(axis, "intruders") == [[1, 0.875, 0.75]] and named(axis, "neighbours") == [[1, 1.125, 1.25]]
    thin = named(axis, "_reference")
    assert len(thin) == (0 if reference is None else 6)
    if reference is not None:
        assert [3, 2.875, 2.75, 2.625, 2.5] in thin
        assert "seed 2, 4 intruders: 3.00 to 2.50" in drawn.alt
    assert "seed 0, 2 neighbours: 1.00 to 1.25" in drawn.alt
    assert drawn.shown["W0's share of σ"].tolist()[:2] == [0.25, 1.0]
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def matched(seeds=(0,), methods=(EIGHT,)) -> pd.DataFrame:
    return pd.DataFrame([{"method": method, "r": int(method[7]), "learning_rate": 0.002, "seed": seed,
                          "run": f"{method} {seed}", "norm": norm, "intruders": which, "relative_norm": size,
                          "forgetting": value + seed / 4, "accuracy": 0.75 if which == "removed" else 0.8}
                         for method in methods for seed in seeds for norm, size in (("own", 0.5), ("smaller", 0.25))
                         for which, value in (("removed", size), ("kept", 2 * size))])


@pytest.mark.parametrize("reference", [None, matched((0, 1, 2))], ids=["own", "with reference"])
def test_a_norm_has_a_panel_and_a_run_a_line_from_with_to_without(reference):
    drawn = figures.with_and_without(measured(matched(), reference))
    _check(drawn)
    own_norm, smaller = drawn.figure.axes[:2]
    assert [list(line.get_ydata()) for line in own_norm.lines][-1] == [1.0, 0.5]
    assert [list(line.get_ydata()) for line in smaller.lines][-1] == [0.5, 0.25]
    assert len(own_norm.lines) == (1 if reference is None else 4) and own_norm.get_ylim() == smaller.get_ylim()
    assert own_norm.get_ylim()[1] > (1 if reference is None else 1.5)
    assert own_norm.get_title() == "at the run's own norm" and len(drawn.figure.axes) == 2
    seeds = "(one seed)" if reference is None else "(in all 3 seeds)"
    assert f"{EIGHT} at the run's own norm: +0.500 {seeds}" in drawn.alt
    assert drawn.shown.shape[1] == 6 and set(drawn.shown["mean |update| / |W0|"]) == {0.25, 0.5}


def test_a_loss_that_rises_without_intruders_is_told_as_one():
    """The alt text says the opposite where the table does."""
    turned = matched().assign(intruders=lambda t: t["intruders"].map({"kept": "removed", "removed": "kept"}))
    assert "at the run's own norm: -0.500" in figures.with_and_without(measured(turned)).alt


def strengths(infinite: int) -> pd.DataFrame:
    return pd.DataFrame([{"seed": 0, "matrix": f"m{place}", "layer": 0, "type": kind, "predicted": 2.0,
                          "measured": float("inf") if place < infinite else 2.0 + place, "smallest": 1.5,
                          "largest": 4.0} for place, kind in enumerate(("query", "key", "query"))])


@pytest.mark.parametrize("infinite, said", [(0, "3 of 3"), (1, "2 of 3"), (3, "0 of 3")])
def test_strengths_that_nothing_reaches_are_not_drawn(infinite, said):
    drawn = figures.predicted_strengths(measured(strengths(infinite)))
    _check(drawn)
    points = sum(len(line.get_xdata()) for line in drawn.figure.axes[0].lines if line.get_label() != "equal")
    assert points == 3 - infinite and said in drawn.alt and len(drawn.table) == 3
    assert ("none is finite" in drawn.alt) == (infinite == 3)
    assert ("query 1.50" in drawn.alt) == (infinite == 0), "the median of 2/2 and 4/2"


# What is found ------------------------------------------------------------------------------------------------------


def found(name: str, table: pd.DataFrame):
    load_studies()
    return FINDINGS[name](measured(table, table))


def as_the_paper_has_it(seeds=(0, 1, 2), **changes) -> pd.DataFrame:
    """The loss follows the intruder, its accuracy stays, any change of the neighbour hurts both by 0.1 and 1 %."""
    table = interventions(seeds=seeds)
    apart, beside = (table["factor"] - 1).abs(), table["kind"] == "neighbour"
    table["accuracy_change"] = table["accuracy_change"].where(~beside, -1.0 * (apart > 0))
    return table.assign(forgetting=table["forgetting"].where(~beside, 1 + 0.1 * (apart > 0))).assign(**changes)


def test_scaling_is_said_as_the_paper_has_it():
    result = found("07_scaling_intruders", as_the_paper_has_it())
    assert result.met is True and "lowers the loss at every lambda in 3 of 3 runs" in result.text
    assert "raises the loss in 3 of 3" in result.text and "within 2 % in 3 of 3" in result.text
    assert "hurts loss and accuracy each time in 3 of 3" in result.text
    assert "intruder -0.500 (-0.500 to -0.500) at accuracy -0.050" in result.text, "every control at a half"
    assert "neighbour +0.100" in result.text and "smaller rate -0.500" in result.text
    assert "Of what is scaled 25 % (25 to 25) is W0's own" in result.text


@pytest.mark.parametrize("changes, words", [
    ({"forgetting": lambda t: -t["forgetting"]}, "lambda in 0 of 3 runs, scaled up it raises the loss in 0 of 3"),
    ({"accuracy_change": lambda t: 9 * t["accuracy_change"]}, "within 2 % in 0 of 3"),
    ({"accuracy_change": lambda t: t["accuracy_change"].abs()}, "hurts loss and accuracy each time in 0 of 3")])
def test_scaling_says_which_part_is_not_as_the_paper_has_it(changes, words):
    result = found("07_scaling_intruders", as_the_paper_has_it(**changes))
    assert result.met is False and words in result.text


def test_without_the_lambdas_that_were_asked_for_a_part_cannot_be_said():
    table = as_the_paper_has_it()
    result = found("07_scaling_intruders", table[table["factor"].isin([0.5, 1])])
    assert result.met is None and "accuracy stays" not in result.text and "scaled up" not in result.text


@pytest.mark.parametrize("name", ["07_scaling_intruders", "07_beside_table_3", "07_pareto"])
def test_runs_without_intruders_are_not_spoken_of(name):
    """None has any: nothing can be said. One has: the others enter nothing."""
    none = as_the_paper_has_it(changed=0)
    result = found(name, none)
    assert result.met is None and "intruder to scale" in result.text
    one = found(name, pd.concat([as_the_paper_has_it((0,)), none[none["seed"] > 0]]))
    assert "of 1 runs" in one.text or "1 seed)" in one.text or "(r = 8)" in one.text


@pytest.mark.parametrize("loss, met, words", [(1.0, True, "30 times (r = 8)"), (10.0, False, "3 times (r = 8)")])
def test_our_changes_are_said_beside_the_papers(loss, met, words):
    """At lambda 0.7 ours are -9 and -0.6 %; the second reading is a thirtieth, or a third, of the first."""
    table = interventions(kinds=("intruder", "whole update"))  # without the other reading nothing is said of it
    result = found("07_beside_table_3", table.assign(loss_change=loss * table["forgetting_change"] / 30))
    assert result.met is met and words in result.text and "At lambda 0.7" in result.text
    assert "by -9.0 and -0.6 % at r = 8 (the paper: MNLI -14.5 and -0.2 %, QQP -33.2 and" in result.text
    assert "the paper's sign in 3 of 3" in result.text


def test_a_rise_of_ours_has_not_the_papers_sign():
    table = interventions().assign(forgetting_change=9.0, loss_change=1.0)
    assert "+9.0" in found("07_beside_table_3", table).text and "0 of 3" in found("07_beside_table_3", table).text
    nothing = interventions().assign(forgetting_change=-9.0, loss_change=1.0)
    assert found("07_beside_table_3", nothing).met is None, "the run had forgotten less than nothing"


def apart(*gaps: float) -> pd.DataFrame:
    """The intruder's forgetting at each lambda minus the whole update's of equal accuracy, seed by seed."""
    table = interventions(seeds=range(len(gaps)))
    whole = table["forgetting"].where(table["kind"] == "whole update").groupby([table["seed"], table["factor"]])
    return table.assign(forgetting=table["forgetting"].where(
        table["kind"] != "intruder", whole.transform("max") + table["seed"].map(dict(enumerate(gaps)))))


@pytest.mark.parametrize("gaps, met, words", [
    ((-0.2, -0.21, -0.19), True, "3 seeds): the intruder's line lies lower; minus that of runs at smaller rates -0.26"),
    ((0.2, 0.21, 0.19), False, "line lies higher"), ((-0.2, 0.21, 0.1), None, "undecided"),
    ((-0.2,), True, "1 seed)")])
def test_lines_are_compared_at_equal_accuracy(gaps, met, words):
    result = found("07_pareto", apart(*gaps))
    assert result.met is met and words in result.text and "nearest point" not in result.text
    assert f"minus that of the shrunk update {np.mean(gaps):+.3f} (95 % " in result.text
    assert "Trained at a smaller rate a run forgets" in result.text and "with 0.5 of the rate" in result.text


def test_an_accuracy_that_the_whole_update_never_has_decides_nothing():
    """0.9 is above all of its accuracies, so that no interpolation makes the two equal."""
    table = apart(-0.2, -0.21, -0.19)
    table["accuracy"] = table["accuracy"].where(table["kind"] != "intruder", 0.9)
    result = found("07_pareto", table)
    assert result.met is None and "undecided" in result.text
    assert "in 3 of 3 runs that accuracy is never had" in result.text


@pytest.mark.parametrize("turned, fits", [(False, "former"), (True, "latter")])
def test_which_svd_the_papers_numbers_fit_is_said_by_their_distance(turned, fits):
    """One reading has the paper's numbers to the digit, the other 10 points more of each: that is its distance."""
    paper = paper_scaling().query("table == 3 and r == 8 and task == 'mnli'")
    rows = [{"method": EIGHT, "r": 8, "seed": 0, "run": "a", "task": "movies", "changed": 4, "kind": kind,
             "factor": row.factor, "forgetting": 1.0, "accuracy": 0.5, "loss_change": -0.1,
             "accuracy_change": row.accuracy_change + apart, "forgetting_change": row.forgetting_change - apart}
            for row in paper.itertuples()
            for kind, apart in (("intruder", 10.0 * turned), ("update triplet", 10.0 * (not turned)))]
    table = measured(pd.DataFrame(rows))
    table = Measured("x", table.profile, (0,), table.own, table.own, paper)
    load_studies()
    result = FINDINGS["07_beside_table_3"](table)
    near, far = ("10.0", "0.0") if turned else ("0.0", "10.0")
    assert f"lie {near} percentage points" in result.text and f"and {far} from those" in result.text
    assert f"so they fit the {fits}" in result.text and result.met is not turned
    assert "below lambda 0.3 forgetting rises again in 0 of 1 lines of the paper" in result.text
    other = table.own.assign(seed=1, kind=table.own["kind"].map({"intruder": "update triplet",
                                                                 "update triplet": "intruder"}))
    both_ways = pd.concat([table.own, other], ignore_index=True)
    split = FINDINGS["07_beside_table_3"](Measured("x", table.profile, (0, 1), both_ways, both_ways, paper))
    assert "nearer in 1 of 2 pairs of a task and a seed, so they do not tell the two apart" in split.text


def test_removal_is_said_run_by_run():
    result = found("07_removing_intruders", removals((0, 1, 2)))
    assert result.met is True and "lowers it in 3 of 3 runs, step by step in 3" in result.text
    assert "by -0.375 nats per token (-0.500 to -0.250)" in result.text and "raises it in 3 of 3 runs" in result.text
    other = {"intruders": "neighbours", "neighbours": "intruders"}
    turned = removals((0, 1)).assign(kind=lambda t: t["kind"].map(other))
    opposite = found("07_removing_intruders", turned)
    assert opposite.met is False and "lowers it in 0 of 2 runs, step by step in 0" in opposite.text


def test_a_step_back_is_no_fall_step_by_step():
    table = removals((0,))
    at = (table["kind"] == "intruders") & (table["removed"] == 1)
    result = found("07_removing_intruders", table.assign(forgetting=table["forgetting"].where(~at, 2.0)))
    assert result.met is False and "lowers it in 1 of 1 runs, step by step in 0" in result.text
    none = table[table["removed"] == 0]
    assert found("07_removing_intruders", none).met is None


def test_norm_and_intruders_are_taken_apart_in_words():
    result = found("07_norm_matched", matched((0, 1, 2)))
    assert result.met is True and "in 3 of 3 runs at the run's own norm, by +0.500" in result.text
    assert "in 3 of 3 runs at the norm that removing leaves, by +0.250" in result.text
    assert "In these runs intruders matter beyond size" in result.text and "changes by -0.050" in result.text
    turned = matched().assign(intruders=lambda t: t["intruders"].map({"kept": "removed", "removed": "kept"}))
    opposite = found("07_norm_matched", turned)
    assert opposite.met is False and "in 0 of 1 runs" in opposite.text and "Not in all runs" in opposite.text
    none = matched().assign(relative_norm=0.5)
    assert found("07_norm_matched", none).met is None


@pytest.mark.parametrize("measured_at, met, words", [
    (2.2, True, "1.10 in the median"), (4.0, False, "in 0% (one seed)"), (float("inf"), False, "predicted in 0%")])
def test_strengths_are_near_their_prediction_or_not(measured_at, met, words):
    result = found("07_critical_strength", strengths(0).assign(measured=measured_at))
    assert result.met is met and words in result.text
    known = found("07_critical_strength", strengths(1).assign(predicted=lambda t: t["measured"]))
    assert known.met is True and "In 1 no finite strength" in known.text


def released(*losses: float, rank: int = 16) -> pd.DataFrame:
    """A model's losses at lambda 0.7 and 1, its base's 2."""
    return pd.DataFrame({"group": "metamath", "method": f"LoRA r={rank}", "r": rank, "lambda": [0.7, 1.0],
                         "loss_nats_per_token": losses, "base_loss_nats_per_token": 2.0})


@pytest.mark.parametrize("table, met, words", [
    (released(2.3, 2.4), True, "metamath LoRA r=16 -25.0 % (the paper: -28.2 %)"),
    (released(2.5, 2.4), False, "+25.0 %"),
    (released(1.8, 1.9), None, "No released model"), (released(2.3, 2.4).iloc[1:], None, "No released model"),
    (released(2.3, 2.4, rank=4), True, "LoRA r=4 -25.0 %. It falls in 1 of 1")])
def test_released_models_are_said_beside_table_4(table, met, words):
    load_studies()
    result = FINDINGS["07_released_scaling"](load_profile("laptop"), table)
    assert result.met is met and words in result.text


@pytest.mark.parametrize("profile", ["laptop", "smoke"])
def test_every_figure_of_notebook_07_finds_something_in_the_reference(profile):
    load_studies()
    ours = {name: figure for name, figure in FIGURES.items() if name.startswith("07_") and figure.measurements}
    assert len(ours) == 6 and set(ours) | {"07_released_scaling"} <= set(FINDINGS)
    for name, figure in ours.items():
        table = reference_table(figure.measurements[0], profile)
        result = FINDINGS[name](Measured("x", load_profile(profile), (3,), table.iloc[:1], table, paper_scaling()))
        assert "the reference (seeds 0, 1, 2)" in result.text and "nan" not in result.text
