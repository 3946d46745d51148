"""Notebook 14's figures: the numbers that they draw and tell, with and without a reference."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from variant_cases import curvature_table, measured, rows, two_methods, varied_table

from utils.studies.variants import best_figures, figures, hessian_figures
from utils.studies.variants.tables import in_order

RATIOS = pd.DataFrame({"method": ["LoRA", "PiSSA", "GraLoRA", "OLoRA"], "lambda_ratio": [1, 12, math.nan, 58],
                       "learning_rate": [2e-4, 2e-5, 3.6e-4, 1.1e-5]})


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def points(axis, marker: str | None = None) -> list[tuple]:
    """Every point on the axis with finite coordinates, of one marker or all."""
    lines = [line for line in axis.get_lines() if line.get_marker() == marker or marker is None]
    return [point for line in lines for point in zip(*(np.round(np.asarray(part, dtype=float), 9)
                                                          for part in line.get_data()), strict=True)
            if np.isfinite(point).all()]


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def sweep(reference: bool = True):
    return measured("variant_sweep", two_methods(), pd.concat([two_methods(1), two_methods(2)]) if reference else None)


def curvature(own: pd.DataFrame, reference: pd.DataFrame | None = None):
    return measured("variant_hessian", own, reference, published=RATIOS)


def test_the_order_of_methods_puts_vanilla_first_and_what_the_study_lacks_last():
    assert in_order(["full", "PiSSA", "LoRA", "DoRA", "rsLoRA"]) == ["LoRA", "DoRA", "PiSSA", "rsLoRA", "full"]


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("draw", [figures.accuracy_against_rate, figures.loss_against_rate, best_figures.best_dots,
                                  figures.intruders_against_rate, figures.intruders_against_update,
                                  best_figures.rate_ratios, best_figures.borrowed_bars])
def test_every_figure_of_the_sweep_draws_and_tells_with_and_without_a_reference(draw, reference):
    drawn = draw(sweep(reference))
    drawn.figure.draw_without_rendering()
    assert "LoRA" in drawn.alt and "PiSSA" in drawn.alt and drawn.identifier.startswith("14_")
    assert drawn.table["variant"].isin(["LoRA", "PiSSA"]).all() and drawn.caption.endswith(".")


def test_the_alt_texts_have_the_numbers():
    """Best 2.0 at 0.1 and 2.1 at 0.01; PiSSA loses 1.0 at LoRA's rate, LoRA 0.5 at PiSSA's."""
    assert "LoRA 2.000 at 0.1; PiSSA 2.100 at 0.01" in figures.loss_against_rate(sweep()).alt
    assert "LoRA 2.000, PiSSA 2.100 nats" in best_figures.best_dots(sweep()).alt
    assert "LoRA 1, PiSSA 10" in best_figures.rate_ratios(sweep()).alt
    assert "PiSSA 1.00 and 0.50" in best_figures.borrowed_bars(sweep()).alt


def test_a_diverged_run_is_a_cross_under_the_others():
    table = pd.concat([two_methods(), pd.DataFrame(rows("PiSSA", {1.0: float("nan")}))], ignore_index=True)
    figure = figures.loss_against_rate(measured("variant_sweep", table)).figure
    (panel,) = figure.axes
    ((rate, height),) = points(panel, "x")
    assert rate == 1.0 and height < table["loss_nats_per_token"].min()


def test_a_run_that_did_not_learn_is_hollow_and_on_no_line():
    table = pd.concat([two_methods(), pd.DataFrame(rows("PiSSA", {10.0: 6.9}))], ignore_index=True)
    (panel,) = figures.loss_against_rate(measured("variant_sweep", table)).figure.axes
    hollow = [line for line in panel.get_lines() if line.get_markerfacecolor() == "none"]
    assert (10.0, 6.9) in [point for line in hollow for point in zip(*line.get_data(), strict=True)]
    assert all(10.0 not in line.get_xdata() for line in panel.get_lines() if line not in hollow)


def test_the_rows_of_own_and_published_line_up():
    """Panels in another order of rows let published dots be read against wrong names."""
    loss, accuracy = best_figures.best_dots(sweep()).figure.axes
    assert loss.get_ylim() == accuracy.get_ylim()
    names = [[label.get_text() for label in axis.get_yticklabels()] for axis in (loss, accuracy)]
    assert names == [["LoRA", "PiSSA"]] * 2 and {(49.60, 0), (49.43, 1)} <= set(points(accuracy, "D"))


def test_the_best_rate_against_settings_has_the_studys_points_and_a_cross_for_a_single_rate():
    drawn = figures.best_rate_against_settings(measured("variant_sweep", varied_table()))
    (rank,) = drawn.figure.axes
    assert {(2, 1.0), (8, 0.1), (32, 0.01)} <= set(points(rank)) and (256, 3.6e-4) in points(rank, "D")
    assert drawn.shown["best rates"].tolist() == ["1, 0.1, 0.01"]
    one = pd.DataFrame(rows("LoRA", {0.1: 2.0}) + rows("LoRA", {0.1: 1.0}, experiment="vanilla_durations", steps=180))
    (steps,) = figures.best_rate_against_settings(measured("variant_sweep", one)).figure.axes
    assert set(points(steps, "x")) == {(60, 0.1), (180, 0.1)}


def test_the_small_table_keeps_vanilla_and_full_and_the_ends():
    best = pd.DataFrame({"variant": [*"abcdefgh", "LoRA", "full"], "learning_rate": 0.0032,
                         "loss_nats_per_token": [*range(8), 3.5, 9.0]})
    shown = figures.telling(best.sort_values("loss_nats_per_token"), {"variant": "method", "learning_rate": "rate"})
    assert shown["method"].tolist() == ["a", "b", "c", "LoRA", "f", "g", "h", "full"]
    assert shown["rate"].iloc[0] == "0.0032"


# --- the Hessian ----------------------------------------------------------------------------------------------------


def test_sharpness_has_a_row_per_method_and_the_studys_ratios_beside():
    drawn = hessian_figures.sharpness(curvature(curvature_table(), curvature_table((0, 1, 2))))
    module, adapter, ratio = drawn.figure.axes
    assert [label.get_text() for label in module.get_yticklabels()] == ["LoRA", "GraLoRA", "PiSSA"]
    assert {(2.0, -0.15), (20.0, 1.85), (4.0, 0.85)} <= set(points(module, "o")), "at initialisation"
    assert (1.0, 0.15) in points(module, "^") and (10.0, 0.15) in points(adapter, "^"), "trained"
    assert (2.4, -0.15) in points(module, "o"), "the reference's third seed"
    assert set(points(module, "x")) == {(20.0, 1.85), (10.0, 2.15)}, "what did not converge is crossed out"
    assert {(1.0, 0.0), (10.0, 2.0), (2.0, 1.0)} == set(points(ratio, "o"))
    assert set(points(ratio, "D")) == {(1.0, 0.0), (12.0, 2.0)}, "OLoRA was not run, GraLoRA not published"
    assert {"not converged", "published", "reference, each seed"} <= set(legend_of(drawn.figure))
    assert "LoRA 2, PiSSA 20" in drawn.alt


def test_own_seeds_are_averaged():
    axis = hessian_figures.sharpness(curvature(curvature_table((0, 1, 2)))).figure.axes[0]
    assert (2.2, -0.15) in points(axis, "o") and (2.4, -0.15) not in points(axis, "o")


def test_the_ratio_is_to_vanilla_of_the_same_seed_and_moment():
    table = hessian_figures.over_vanilla(curvature_table((0, 2)))
    assert table.groupby("variant")["ratio"].agg(["min", "max"]).loc["PiSSA"].tolist() == pytest.approx([10, 10])
    assert hessian_figures.over_vanilla(curvature_table(variants=("DoRA", "PiSSA")))["ratio"].isna().all()


def test_rates_stand_against_sharpness_with_the_inverse_line_through_vanilla():
    figure = hessian_figures.rate_against_sharpness(curvature(curvature_table(variants=("LoRA", "PiSSA")))).figure
    module, _, published = figure.axes
    assert all(axis.get_xscale() == axis.get_yscale() == "log" for axis in figure.axes)
    assert sorted(point for marker in ("D",) for point in points(module, marker)) == [(2, 0.005), (20, 0.0005)]
    (line,) = [line for line in module.get_lines() if line.get_linestyle() == "--"]
    assert line.get_xdata() * line.get_ydata() == pytest.approx([0.01, 0.01])
    assert {text.get_text() for text in published.texts} == {"LoRA", "PiSSA", "OLoRA"}
    assert published.get_title().endswith("-1.00"), "the study's three are monotone"


def test_the_ends_stand_over_the_gradients_part():
    table = curvature_table(variants=("LoRA", "PiSSA", "GraLoRA"))
    drawn = hessian_figures.gradient_part(curvature(table, curvature_table((0, 1))))
    assert len(drawn.figure.axes) == 4, "two blocks at two moments"
    start = drawn.figure.axes[0]
    assert [label.get_text() for label in start.get_yticklabels()] == ["LoRA", "PiSSA"], "GraLoRA has no bound"
    assert (2.0, 0.0) in points(start, "^") and (-1.0, 0.0) in points(start, "v") and (0.5, 0.0) in points(start, "D")
    assert [line.get_xdata()[0] for line in start.get_lines() if line.get_linestyle() == "--"] == [-1, 1]
    assert set(points(start, "x")) == {(20.0, 1.0), (-10.0, 1.0)}, "Gauss and Newton's matrix has no such column"
    assert "LoRA 2.00 and -1.00" in drawn.alt


def test_adams_sharpness_is_times_the_rate_beside_its_threshold():
    """1e4 times 0.01 over 2, 20 and 4: 50, 5 and 25, of which one lies beyond 38."""
    drawn = hessian_figures.adam_sharpness(curvature(curvature_table()))
    (axis,) = drawn.figure.axes
    assert set(points(axis, "^")) == {(50.0, 0.0), (5.0, 2.0), (25.0, 1.0)}, "the whole adapter, trained, alone"
    (bound,) = [line.get_xdata()[0] for line in axis.get_lines() if line.get_linestyle() == "--"]
    assert bound == pytest.approx(38)
    assert "1 of 3 methods" in drawn.caption
    assert not points(axis, "x"), "the table says whether the Hessian's ends converged, not whether Adam's did"
