"""The figures of the second paper draw what their tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from utils.studies.learning import tradeoffs as learning_tradeoffs
from utils.studies.learning.published import published_base, published_curves, published_tulu, tradeoff_table


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def own(seeds=(0,)) -> pd.DataFrame:
    """Made-up runs of two data sets; full fine-tuning has the lower loss and the larger rise."""
    rows = [{"dataset": dataset, "method": method, "seed": seed, "duration": duration, "loss": loss - 0.1 * step + seed,
             "rise": rise * step, "base_loss": 9.0}
            for dataset in ("code", "sums") for method, loss, rise in (("full", 5, 0.2), ("LoRA r=8", 6, 0.1))
            for step, duration in enumerate((18, 75, 300)) for seed in seeds]
    return pd.DataFrame(rows)


def line(axis, label: str):
    (found,) = [one for one in axis.get_lines() if one.get_label() == label]
    return found


def test_figure_1_from_its_tables():
    figure = learning_tradeoffs.published_panels(published_curves(), published_base(), "learning")
    assert [axis.get_title() for axis in figure.axes] == [
        "code, continued pretraining: starcoder", "code, instruction tuning: magicoder",
        "math, continued pretraining: openwebmath", "math, instruction tuning: metamath"]
    full = line(figure.axes[0], "full")
    assert (full.get_xdata()[-1], full.get_ydata()[-1]) == (20, 0.263)
    assert to_hex(full.get_color()) == "#000000" and full.get_markerfacecolor() == "none"
    assert [line(axis, "base model").get_ydata()[0] for axis in figure.axes] == [0.138, 0.138, 0.145, 0.145]
    assert figure.axes[0].get_xscale() == "log" and figure.axes[0].get_xlabel() == "billion tokens"


def test_figure_2_has_the_other_tables_values():
    figure = learning_tradeoffs.published_panels(published_curves(), published_base(), "forgetting")
    assert line(figure.axes[1], "LoRA r=64").get_ydata().tolist() == [0.652, 0.651, 0.632, 0.580, 0.510]
    assert {line(axis, "base model").get_ydata()[0] for axis in figure.axes} == {0.671}


def test_tulu_has_a_panel_per_metric_and_no_base_where_none_was_published():
    figure = learning_tradeoffs.tulu_panels(published_tulu(), published_base())
    assert [axis.get_title() for axis in figure.axes] == ["MT-bench", "MMLU", "GSM8K", "mean of three"]
    assert [any(one.get_label() == "base model" for one in axis.get_lines()) for axis in figure.axes] == [
        True, False, True, True]


def test_ticks_of_durations_do_not_touch():
    figure = learning_tradeoffs.published_panels(published_curves(), published_base(), "learning")
    assert sorted(figure.axes[0].get_xticks()) == [0.25, 0.5, 1, 2, 4, 8, 20], "16 would touch 20"
    assert sorted(figure.axes[1].get_xticks()) == [1, 2, 4, 8, 16]


def test_published_above_ours_below():
    curves = published_curves()
    published = curves[curves["table"].isin(["S1", "S5"])]
    figure = learning_tradeoffs.learning_curves(published, own(), own((0, 1)), y="loss", ylabel="loss", xlabel="steps",
                                       base="base_loss", published_base=published_base())
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["published: starcoder", "published: magicoder", "code", "sums"]
    below = figure.axes[2]
    assert line(below, "full").get_ydata().tolist() == pytest.approx([5.0, 4.9, 4.8])
    assert line(below, "base model").get_ydata()[0] == 9.0
    band = below.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((4.8, 6.0)), "the reference's smallest and largest seed"
    assert [axis.get_legend() is not None for axis in figure.axes] == [False, True, False, True]


def test_ours_alone_is_one_row():
    figure = learning_tradeoffs.learning_curves(None, own(), y="rise", ylabel="rise", xlabel="steps")
    assert [axis.get_title() for axis in figure.axes] == ["code", "sums"]
    assert not any(one.get_label() == "base model" for one in figure.axes[0].get_lines())


def test_more_published_panels_than_ours():
    figure = learning_tradeoffs.learning_curves(published_curves().query("quantity == 'learning'"),
                                       own().query("dataset == 'code'"), y="rise", ylabel="rise", xlabel="steps")
    assert len(figure.axes) == 5


def front(axis) -> np.ndarray:
    (found,) = [one for one in axis.get_lines() if one.get_drawstyle() == "steps-pre"]
    return np.column_stack(found.get_data())


def test_figure_3_and_its_front():
    figure = learning_tradeoffs.tradeoff_panels(tradeoff_table(published_curves()), hollow=True)
    assert [axis.get_title() for axis in figure.axes] == ["starcoder", "openwebmath", "magicoder", "metamath"]
    assert front(figure.axes[2]).tolist() == [[0.631, 0.498], [0.632, 0.417], [0.659, 0.385]], (
        "full's best, .497, is beaten by r = 256 on both axes")
    assert not figure.axes[0].xaxis_inverted()
    areas = figure.axes[0].collections[0].get_sizes()
    assert len(areas) == 8 and (np.diff(areas) > 0).all(), "longer is larger"
    assert all(len(collection.get_facecolors()) == 0 for collection in figure.axes[0].collections), "hollow"


def test_losses_are_drawn_so_that_up_and_right_is_better():
    figure = learning_tradeoffs.tradeoff_panels(own(), own((0, 1)), x="rise", y="loss", xlabel="rise", ylabel="loss",
                                       smaller_is_better=("rise", "loss"), base={"code": (0, 9.0)})
    axis = figure.axes[0]
    assert axis.xaxis_inverted() and axis.yaxis_inverted()
    # Full is (0, 5), (0.2, 4.9), (0.4, 4.8) and beats LoRA's (0, 6), (0.1, 5.9), (0.2, 5.8) throughout.
    assert front(axis) == pytest.approx(np.array([[0.4, 4.8], [0.2, 4.9], [0, 5]]))
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "loss"]
    marks = [[one for one in axis.get_lines() if one.get_marker() == "x"] for axis in figure.axes]
    assert [len(one) for one in marks] == [1, 0], "the base where it is given"
