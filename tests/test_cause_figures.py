"""Figures of notebook 07: the right numbers drawn and told, with and without a reference."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from axes import named

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.studies.cause import figures
from utils.studies.cause.measure import KINDS
from utils.studies.cause.published import paper_scaling

EIGHT, ONE = "LoRA r=8, 0.002", "LoRA r=1, 0.003"


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def measured(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    return Measured("x", load_profile("laptop"), (0,), own, reference, paper_scaling())


def interventions(methods=(EIGHT,), seeds=(0,)) -> pd.DataFrame:
    """Accuracy 0.7 to 0.85 and forgetting 0 to 1.5 with lambda; the whole update's loss leaves everything above 1."""
    rows = []
    for method in methods:
        for seed in seeds:
            for place, kind in enumerate(KINDS):
                for factor in (0.0, 0.5, 0.7, 1.0, 1.5):
                    loss = 5 + factor + seed / 8 + (90 if kind == "whole update" and factor > 1 else 0)
                    rows.append({"method": method, "r": int(method.split("=")[1].split(",")[0]), "seed": seed,
                                 "run": f"{method} {seed}", "kind": kind, "factor": factor,
                                 "accuracy": 0.7 + factor / 10 + seed / 100, "base_pseudo_loss": 5.0,
                                 "forgetting": factor + seed / 8 + place / 16, "pseudo_loss": loss,
                                 "accuracy_change": -2.0 * (1 - factor), "forgetting_change": -30.0 * (1 - factor),
                                 "loss_change": -1.0 * (1 - factor)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("reference", [None, interventions((EIGHT, ONE), (0, 1, 2))], ids=["own", "with reference"])
def test_scaling_has_a_row_of_panels_per_run(reference):
    """Accuracy left, loss right, the base's loss as a line; what only the reference has is drawn, too."""
    drawn = figures.scaling_intruders(measured(interventions(), reference))
    _check(drawn)
    methods = [EIGHT] if reference is None else [EIGHT, ONE]
    axes = drawn.figure.axes
    assert [axis.get_title() for axis in axes] == [name for name in methods for _ in range(2)]
    assert named(axes[0], "neighbour") == [pytest.approx([0.7, 0.75, 0.77, 0.8, 0.85])]
    assert named(axes[1], "intruder") == [pytest.approx([5, 5.5, 5.7, 6, 6.5])]
    assert named(axes[1], "untouched base") == [[5, 5]]
    assert axes[1].get_ylim()[1] < 7, "the whole update's 96 does not set the axis"
    loss = "5.50" if reference is None else "5.62"
    assert f"{EIGHT} at lambda 0.5: accuracy" in drawn.alt and f"loss {loss};" in drawn.alt
    assert ("the reference (seeds 0, 1, 2)" in drawn.alt) == (reference is not None)
    assert len(drawn.table) == 20 and list(drawn.shown["lambda"])[:4] == [0, 0.5, 1, 1.5]


def test_the_papers_changes_stand_beside_ours():
    """Hollow grey lines at the printed values; the small table has both sources, and the loss's own reading of ours."""
    drawn = figures.beside_table_3(measured(interventions(), interventions((EIGHT,), (0, 1))))
    _check(drawn)
    accuracy, forgetting = drawn.figure.axes
    label = "paper, r=8: RoBERTa on FEVER, MNLI and QQP"
    assert [-5.1, -1.9, -0.6, -0.2, 0.0] in named(accuracy, label) and len(named(accuracy, label)) == 3
    assert [-24.7, -23.1, -19.8, -14.5, -5.9] in named(forgetting, label)
    assert named(forgetting, EIGHT) == [pytest.approx([-30, -15, -9, 0])], "lambda above 1 is no part of it"
    assert "ours, r=8, lambda 0.5: accuracy -1.0 %, forgetting -15.0 %" in drawn.alt
    assert "paper, MNLI, r=1, lambda 0.5: accuracy -2.7 %, forgetting -13.7 %" in drawn.alt
    ours = drawn.shown[drawn.shown["source"] == "ours"]
    assert ours["of the loss, %"].tolist() == pytest.approx([-0.5, -0.3])


@pytest.mark.parametrize("reference", [None, interventions((EIGHT, ONE), (0, 2))], ids=["own", "with reference"])
def test_a_trade_off_starts_in_the_circle(reference):
    """Lambda from 1 down; of several seeds the means, the circle at lambda = 1 included; 1.5 is no part of it."""
    drawn = figures.trade_off(measured(interventions(), reference))
    _check(drawn)
    axis = drawn.figure.axes[0]
    lines = {line.get_label(): np.array(line.get_xydata()) for line in axis.lines}
    assert lines["intruder"] == pytest.approx(np.array([[0.7, 0], [0.75, 0.5], [0.77, 0.7], [0.8, 1.0]]))
    middle = [0.8, 1 + 1.5 / 16] if reference is None else [0.81, 1.125 + 1.5 / 16]
    assert lines["lambda = 1"] == pytest.approx(np.array([middle])), "the mean over kinds and seeds"
    means = [line for line in axis.lines if line.get_label() == "_reference"]
    assert len(means) == (0 if reference is None else len(KINDS))
    assert f"{EIGHT}, whole update: accuracy 0.75" in drawn.alt if reference is None else "accuracy 0.76" in drawn.alt


def removals(seeds=(0,), methods=(EIGHT,)) -> pd.DataFrame:
    """Each intruder removed takes off an eighth, each neighbour adds one; later seeds have more of them."""
    return pd.DataFrame([{"method": method, "seed": seed, "run": f"{method} {seed}", "kind": kind, "removed": count,
                          "forgetting": 1 + seed + sign * count / 8} for method in methods for seed in seeds
                         for kind, sign in (("intruders", -1), ("neighbours", 1)) for count in range(3 + seed)])


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
        assert f"{EIGHT}, seed 2, 4 intruders: 3.00 to 2.50" in drawn.alt
    assert f"{EIGHT}, seed 0, 2 neighbours: 1.00 to 1.25" in drawn.alt
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def matched(seeds=(0,), methods=(EIGHT,)) -> pd.DataFrame:
    return pd.DataFrame([{"method": method, "seed": seed, "run": f"{method} {seed}", "norm": norm, "intruders": which,
                          "relative_norm": size, "forgetting": value + seed / 4} for method in methods for seed in seeds
                         for norm, size in (("own", 0.5), ("smaller", 0.25))
                         for which, value in (("removed", size), ("kept", 2 * size))])


@pytest.mark.parametrize("reference", [None, matched((0, 1, 2), (EIGHT, ONE))], ids=["own", "with reference"])
def test_a_norm_has_a_panel_and_a_run_a_line_from_with_to_without(reference):
    drawn = figures.with_and_without(measured(matched(), reference))
    _check(drawn)
    own_norm, smaller = drawn.figure.axes[:2]
    assert [list(line.get_ydata()) for line in own_norm.lines][-1] == [1.0, 0.5]
    assert [list(line.get_ydata()) for line in smaller.lines][-1] == [0.5, 0.25]
    assert len(own_norm.lines) == (1 if reference is None else 4) and own_norm.get_ylim() == smaller.get_ylim()
    assert own_norm.get_ylim()[1] > (1 if reference is None else 1.5)
    assert own_norm.get_title() == f"{EIGHT}, at the run's own norm"
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
