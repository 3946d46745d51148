"""The kit that draws: panels, lines with bands, hollow runs, one look per method and rank for the whole course."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from utils.reporting.panels import by_value, outer_legend, panel_lines, panels
from utils.reporting.selection import LEARNT_SHARE, marked, runs_that_learnt
from utils.reporting.style import RANKS, VARIANTS, method_style, method_styles
from utils.reporting.words import both, listed, over_seeds


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def drawn(figure: Figure, count: int) -> Figure:
    """It renders, with as many panels, each with something in it."""
    figure.canvas.draw()
    assert len(figure.axes) == count
    assert all(axis.lines or axis.collections or axis.images for axis in figure.axes)
    return figure


def lines_of(axis) -> dict[str, list]:
    """Heights of every line that has any, by its label."""
    return {line.get_label(): list(line.get_ydata()) for line in axis.lines
            if len(line.get_ydata()) and not line.get_label().startswith("_")}


def bands(axis) -> list[tuple[float, float]]:
    """Smallest and largest height of each filled band that has any."""
    paths = [collection.get_paths()[0].vertices for collection in axis.collections if collection.get_paths()]
    return [(path[:, 1].min(), path[:, 1].max()) for path in paths if len(path)]


def points(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["panel", "method", "x", "y"])


OWN = points([("one", "full", 1, 2.0), ("one", "full", 2, 4.0), ("one", "LoRA r=8", 1, 5.0),
              ("one", "LoRA r=8", 2, 6.0)])
AXES = {"x": "x", "y": "y", "panel": "panel", "xlabel": "step", "ylabel": "count"}


@pytest.mark.parametrize("count", [1, 3])
def test_panel_lines_draw_own_lines_with_and_without_bands(count):
    """The line is the mean over own rows, the band spans the reference's; the left panels have the label."""
    own = pd.concat([OWN, OWN.assign(y=OWN["y"] + 2)]).merge(pd.DataFrame({"number": range(count)}), how="cross")
    own["panel"] = own["panel"] + own["number"].astype(str)
    reference = pd.concat([own.assign(y=own["y"] - 1), own.assign(y=own["y"] + 1)])
    alone, whole = (drawn(panel_lines(own, other, **AXES), count) for other in (None, reference))
    for figure in (alone, whole):
        assert [axis.get_title() for axis in figure.axes] == [f"one{number}" for number in range(count)]
        assert lines_of(figure.axes[-1]) == {"full": [3, 5], "LoRA r=8": [6, 7]}
        assert [axis.get_ylabel() for axis in figure.axes] == ["count", "", "count"][:count]
    assert bands(alone.axes[0]) == [] and bands(whole.axes[0]) == [(1, 7), (4, 9)]


def test_a_panel_that_only_the_reference_has_is_drawn():
    reference = pd.concat([OWN, OWN.assign(panel="two"), OWN.assign(panel="two", y=9.0)])
    figure = drawn(panel_lines(OWN, reference, **AXES), 2)
    assert figure.axes[1].get_title() == "two" and bands(figure.axes[1]) == [(2, 9), (5, 9)]


def test_a_reference_line_has_markers_where_the_reader_has_none():
    """Else the legend promises a marker that nobody finds; beside one's own line it stays thin and bare."""
    reference = pd.concat([OWN, OWN.assign(method="LoRA r=64")])
    axis = drawn(panel_lines(OWN, reference, **AXES), 1).axes[0]
    marked_lines = [line.get_marker() for line in axis.lines if line.get_label() == "_reference"]
    assert marked_lines == ["None", "None", RANKS[64][1]]


def test_at_most_two_panels_stand_in_a_row_and_spare_ones_are_gone():
    figure, axes = panels(5)
    assert len(axes) == len(figure.axes) == 5
    left = [axis.get_subplotspec().is_first_col() for axis in axes]
    assert left == [True, False, True, False, True]
    assert figure.get_size_inches()[0] * 80 < 900, "shown at its own size on a code host"


def test_the_legend_names_each_line_once_and_covers_no_data():
    figure, axes = panels(2)
    for axis in axes:
        axis.plot([0, 1], [0, 1], label="full")
    axes[1].plot([0, 1], [1, 0], label="LoRA r=8")
    outer_legend(figure, axes)
    figure.canvas.draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "LoRA r=8"]
    box = figure.legends[0].get_window_extent()
    assert not any(box.overlaps(axis.get_window_extent()) for axis in axes)


def test_runs_that_did_not_learn_are_hollow_and_enter_no_mean():
    own = pd.concat([OWN.assign(learnt=True), OWN.assign(y=100.0, learnt=False)])
    axis = drawn(panel_lines(own, own, **AXES), 1).axes[0]
    assert lines_of(axis) == {"full": [2, 4], "LoRA r=8": [5, 6]} and max(top for _, top in bands(axis)) == 6
    hollow = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 4 and all(set(line.get_ydata()) == {100.0} for line in hollow)


def test_values_in_long_form_make_panels():
    table = pd.DataFrame({"method": "full", "step": [1, 2], "accuracy": [0.5, 0.75], "loss": [3.0, 4.0]})
    long = by_value(table, {"accuracy": "test accuracy", "loss": "nats"})
    assert list(zip(long["panel"], long["value"], strict=True)) == [
        ("test accuracy", 0.5), ("test accuracy", 0.75), ("nats", 3.0), ("nats", 4.0)]
    assert by_value(None, {"accuracy": "test accuracy"}) is None


# One look for the whole course --------------------------------------------------------------------------------------


def test_a_method_and_rank_looks_the_same_in_every_company():
    alone = method_styles(["LoRA r=8"])
    among = method_styles(["full", "PiSSA r=8", "LoRA r=1", "LoRA r=8", "LoRA r=64"])
    assert alone["LoRA r=8"] == among["LoRA r=8"] == method_style("LoRA r=8")
    assert to_hex(among["full"]["color"]) == "#000000" and among["full"]["linestyle"] == "-"


def test_no_two_ranks_and_no_two_variants_share_a_look():
    looks = method_styles([*(f"LoRA r={rank}" for rank in RANKS), *(f"{name} r=8" for name in VARIANTS), "full",
                           "base"])
    seen = {(to_hex(style["color"]), style["marker"], str(style["linestyle"])) for style in looks.values()}
    assert len(seen) == len(looks)
    assert len({style["marker"] for name, style in looks.items() if name.startswith("LoRA r")}) == len(RANKS)


def test_a_second_run_of_one_method_differs_by_line_and_marker_not_by_colour():
    looks = method_styles(["LoRA r=8", "LoRA r=8, 0.002", "full", "full #2"])
    for one, other in (("LoRA r=8", "LoRA r=8, 0.002"), ("full", "full #2")):
        assert looks[one]["color"] == looks[other]["color"]
        assert looks[one]["linestyle"] != looks[other]["linestyle"] and looks[one]["marker"] != looks[other]["marker"]


def test_what_is_no_method_takes_the_palette_in_order():
    looks = method_styles(["600", "1200"])
    assert method_style("600") is None and method_style("LoRA r=0") is None
    assert looks["600"]["color"] != looks["1200"]["color"]


# What has learnt ------------------------------------------------------------------------------------------------------


def runs(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["run", "seed", "task", "step", "accuracy"]).assign(method="LoRA r=8", r=8)


def test_a_run_has_learnt_at_two_thirds_of_what_the_best_of_its_seed_gained_over_guessing():
    """Movies have two labels: guessing is 0.5, the best gains 0.3, so 0.7 has learnt and 0.69 has not."""
    table = runs(("a", 0, "movies", 100, 0.8), ("b", 0, "movies", 100, 0.7 + 1e-9), ("c", 0, "movies", 100, 0.69),
                 ("d", 1, "movies", 100, 0.69))
    assert LEARNT_SHARE == 2 / 3
    assert marked(table)["learnt"].tolist() == [True, True, False, True], "each seed has its own best"
    assert runs_that_learnt(table)["run"].tolist() == ["a", "b", "d"]


def test_the_last_step_decides_about_all_rows_of_a_run():
    table = runs(("a", 0, "movies", 50, 0.5), ("a", 0, "movies", 100, 0.8), ("b", 0, "movies", 50, 0.8),
                 ("b", 0, "movies", 100, 0.5))
    assert marked(table)["learnt"].tolist() == [True, True, False, False]


def test_runs_of_other_lengths_and_tasks_are_no_measure():
    table = runs(("long", 0, "movies", 300, 0.9), ("short", 0, "movies", 100, 0.6), ("other", 0, "topics", 300, 0.5))
    assert marked(table)["learnt"].all()


def test_losses_are_judged_by_what_was_learnt():
    table = pd.DataFrame({"run": ["a", "b"], "seed": 0, "task": "python", "step": 10, "learning": [3.0, 1.9],
                          "method": ["full", "base"], "r": 0})
    assert marked(table)["learnt"].tolist() == [True, False]
    assert marked(table)["method_kind"].tolist() == ["full", "base"]


def test_agreement_with_pairs_is_no_accuracy_over_guessing():
    table = runs(("a", 0, "answers", 100, 0.6), ("b", 0, "answers", 100, 0.4))
    assert "learnt" not in marked(table) and len(runs_that_learnt(table)) == 2


def test_a_table_that_cannot_tell_stays_as_it_is():
    table = pd.DataFrame({"seed": [0], "n_intruders": [3]})
    assert marked(table) is table and runs_that_learnt(table) is table


# Words ----------------------------------------------------------------------------------------------------------------


def test_numbers_in_words():
    assert listed({"full": 0, "LoRA r=8": 4.33}, "{:.1f}") == "full 0.0, LoRA r=8 4.3"
    assert over_seeds([1, 2, 3]) == "2 (1 to 3 over 3 seeds)" and over_seeds([5]) == "5 (one seed)"
    assert over_seeds([0, 0]) == "0 (in all 2 seeds)"
    assert both([]) == "" and both(["a"]) == "a" and both(["a", "b", "c"]) == "a, b and c"
    assert np.isfinite(float(over_seeds([0.5]).split()[0]))
