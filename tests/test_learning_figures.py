"""Notebooks 09 and 10: what their figures draw, compare and tell, on tables small enough to work out by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.selection import marked
from utils.studies.learning import forgets_less, learns_less, published_figures, tables
from utils.studies.learning.published import published_curves

LAPTOP = load_profile("laptop")
WITH_AND_WITHOUT = pytest.mark.parametrize("seeds", [None, (0, 1)], ids=["alone", "beside the reference"])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def runs(seeds=(0,), **columns) -> pd.DataFrame:
    """Two durations of two methods: full's loss falls 6, 4 and LoRA's 7, 5.5; forgetting rises 1, 2 and 0.5, 1."""
    rows = [{"experiment": "code", "task": "python", "method": method, "r": r, "seed": seed, "step": step,
             "train_tokens": 2048 * step, "learning_rate": rate, "loss_nats_per_token": loss + seed,
             "base_loss_nats_per_token": 9.0, "learning": 9.0 - loss, "forgetting": rise, "kl_nats_per_token": 2 * rise,
             "choice": 0.5 - rise / 10, "choice_se": 0.05, "base_choice": 0.6, "base_choice_se": 0.04,
             "base_general_loss": 3.0, "exact_match": rise / 10, "base_exact_match": 0.0, "run": f"{method}/{seed}"}
            for seed in seeds
            for method, r, rate, points in (("full", 0, 0.003, ((10, 6.0, 1.0), (20, 4.0, 2.0))),
                                            ("LoRA r=8", 8, 0.01, ((10, 7.0, 0.5), (20, 5.5, 1.0))))
            for step, loss, rise in points]
    return marked(pd.DataFrame(rows).assign(**columns))


def measured(seeds=(0, 1), name="learning_curves", **columns) -> Measured:
    """Seed 0 as the reader's own, `seeds` as the reference's (None for no reference)."""
    reference = None if seeds is None else runs(seeds, **columns)
    return Measured(name, LAPTOP, (0,), runs(**columns), reference, published_curves())


def line(axis, label: str):
    (found,) = [one for one in axis.get_lines() if one.get_label() == label]
    return found


# --- the tables that are drawn

def curves(seeds=(0,)) -> pd.DataFrame:
    return tables.as_curves(runs(seeds))


def test_nothing_measured_stays_nothing():
    assert tables.as_curves(None) is None and tables.as_curves(pd.DataFrame()).empty


def test_gap_is_positive_where_lora_learnt_less():
    gaps = tables.gap_table(curves((0, 1)))
    assert gaps["method"].unique().tolist() == ["LoRA r=8"] and gaps["duration"].tolist() == [20.48, 40.96] * 2
    assert gaps["gap"].tolist() == [1.0, 1.5, 1.0, 1.5], "each seed against its own full fine-tuning"
    growth = tables.gap_growth(gaps.iloc[::-1])
    assert growth[["shortest", "longest", "growth"]].values.tolist() == [[1.0, 1.5, 0.5]] * 2, "in any order"


def test_a_duration_without_full_has_no_gap():
    table = curves()
    assert tables.gap_table(table[(table["method"] != "full") | (table["step"] == 10)])["duration"].tolist() == [20.48]


def test_a_run_beside_the_curve_at_its_own_learning():
    # Full learns 3 and 5 and forgets 1 and 2; at 4 it has forgotten 1.5. The slow run learnt 4 and forgot 1.2.
    slow = runs().head(1).assign(learning=4.0, forgetting=1.2, learning_rate=0.001)
    found = tables.equal_learning(curves(), tables.as_curves(slow))
    assert found["method"].tolist() == ["full, rate 0.001"]
    assert found[["level", "forgetting", "forgetting_against", "spared"]].iloc[0].tolist() == pytest.approx(
        [4.0, 1.2, 1.5, 0.3])
    assert tables.equal_learning(curves(), tables.as_curves(slow.assign(seed=7))).empty, "no curve of this seed"


def test_decay_of_the_paper_and_ours_leave_the_same_share():
    """1e-4 a step over 3,088 steps of a cosine (facts: 0.86) is what 7e-4 does over 240 that cool down at the end."""
    cosine = (1 + np.cos(np.pi * np.linspace(0, 1, 3088))) / 2
    assert tables.kept_share(1e-4, cosine) == pytest.approx(0.86, abs=0.005)
    assert tables.kept_share(7e-4, tables.cooled(240)) == pytest.approx(0.86, abs=0.005)


# --- published

def test_figure_1_from_its_tables():
    drawn = published_figures.published_learning(LAPTOP)
    axes = drawn.figure.axes
    assert [axis.get_title() for axis in axes] == [
        "code, continued pretraining: starcoder", "code, instruction tuning: magicoder",
        "math, continued pretraining: openwebmath", "math, instruction tuning: metamath"]
    full = line(axes[0], "full, published")
    assert (full.get_xdata()[-1], full.get_ydata()[-1]) == (20, 0.263)
    assert to_hex(full.get_color()) == "#000000" and full.get_markerfacecolor() == "none"
    assert [line(axis, "base model").get_ydata()[0] for axis in axes] == [0.138, 0.138, 0.145, 0.145]
    assert sorted(axes[0].get_xticks()) == [0.25, 0.5, 1, 2, 4, 8, 20], "16 would touch 20"
    assert "starcoder: full 0.263, LoRA r=256 0.224" in drawn.alt and drawn.shown.shape == (4, 5)


def test_figure_2_has_the_other_tables_values():
    axes = published_figures.published_forgetting(LAPTOP).figure.axes
    assert line(axes[1], "LoRA r=64, published").get_ydata().tolist() == [0.652, 0.651, 0.632, 0.580, 0.510]
    assert {line(axis, "base model").get_ydata()[0] for axis in axes} == {0.671}


def test_tulu_has_a_panel_per_metric_and_no_base_where_none_was_published():
    drawn = published_figures.published_chat(LAPTOP)
    assert [axis.get_title() for axis in drawn.figure.axes] == [
        f"published: tulu, {metric}" for metric in ("MT-bench", "MMLU", "GSM8K", "mean of three")]
    assert [any(one.get_label() == "base model" for one in axis.get_lines()) for axis in drawn.figure.axes] == [
        True, False, True, True]
    assert "MT-bench: full 5.862" in drawn.alt


def front(axis) -> np.ndarray:
    (found,) = [one for one in axis.get_lines() if one.get_drawstyle() == "steps-pre"]
    return np.column_stack(found.get_data())


def test_figure_3_and_its_front():
    drawn = published_figures.published_tradeoff(LAPTOP)
    axes = drawn.figure.axes
    assert front(axes[2]).tolist() == [[0.631, 0.498], [0.632, 0.417], [0.659, 0.385]], (
        "full's best, .497, is beaten by r = 256 on both axes")
    areas = axes[0].collections[0].get_sizes()
    assert len(areas) == 8 and (np.diff(areas) > 0).all(), "longer is larger"
    assert all(len(collection.get_facecolors()) == 0 for collection in axes[0].collections), "hollow"
    assert "magicoder: LoRA r=256, learning 0.498" in drawn.alt


# --- ours

def test_base_beside_its_ngrams():
    curve = pd.DataFrame({"step": [0, 200], "heldout_loss_nats_per_token": [7.6, 5.0]})
    drawn = learns_less.the_base(LAPTOP, curve, ngrams={1: 6.4, 2: 4.3})
    assert line(drawn.figure.axes[0], "2-gram model").get_ydata()[0] == 4.3
    assert "from 7.60 to 5.00" in drawn.alt and "2-gram 4.30" in drawn.alt


@WITH_AND_WITHOUT
def test_learning_curves_stand_below_the_published_ones_and_up_is_better_in_both(seeds):
    drawn = learns_less.learning_against_tokens(measured(seeds))
    axes = drawn.figure.axes
    assert [axis.get_title() for axis in axes] == ["published: starcoder", "published: openwebmath",
                                                   "ours: python, base 9.00"]
    assert [axis.yaxis_inverted() for axis in axes] == [False, False, True]
    assert line(axes[2], "full").get_ydata().tolist() == [6.0, 4.0], "the reader's own line in either case"
    told = "full 4.000, LoRA r=8 5.500" if seeds is None else "full 4.500, LoRA r=8 6.000"
    assert told in drawn.alt and ("your runs" if seeds is None else "the reference (seeds 0, 1)") in drawn.alt
    assert drawn.shown["python"].tolist() == ([4.0, 5.5] if seeds is None else [4.5, 6.0])
    bands = [one.get_paths()[0].vertices[:, 1] for one in axes[2].collections]
    assert (bands == []) if seeds is None else (bands[0].min(), bands[0].max()) == (4.0, 7.0)


@WITH_AND_WITHOUT
def test_gap_figure_has_its_zero_and_says_how_it_grew(seeds):
    drawn = learns_less.gap_to_full(measured(seeds))
    (axis,) = drawn.figure.axes
    assert line(axis, "LoRA r=8").get_ydata().tolist() == [1.0, 1.5]
    assert any(list(one.get_ydata()) == [0, 0] for one in axis.get_lines())
    assert "python, LoRA r=8 1.000 to 1.500" in drawn.alt
    assert drawn.shown["growth, 95 % interval"].tolist() == ["one seed" if seeds is None else "0.500 to 0.500"]


@WITH_AND_WITHOUT
def test_the_table_of_rates_says_which_is_best_and_which_was_chosen(seeds):
    slow = runs(seeds or (0,), experiment="rates", learning_rate=0.0003)
    slow["loss_nats_per_token"] += 1
    table = pd.concat([runs(seeds or (0,), experiment="rates"), slow], ignore_index=True)
    sweep = Measured("sensitivity", LAPTOP, (0,), table[table["seed"] == 0], None if seeds is None else table)
    drawn = learns_less.learning_rates(sweep, measured(seeds))
    assert drawn.shown[["method", "best rate", "chosen rate"]].values.tolist() == [
        ["full", "0.003", "0.003"], ["LoRA r=8", "0.01", "0.01"]]
    assert line(drawn.figure.axes[0], "full").get_xdata().tolist() == [0.0003, 0.003]


@WITH_AND_WITHOUT
def test_exact_answers_stand_beside_guessing_and_the_control(seeds, monkeypatch):
    monkeypatch.setattr(learns_less, "guessing", lambda questions: 0.15)
    empty = Measured("shuffled_answers", LAPTOP, (0,), pd.DataFrame(),
                     None if seeds is None else runs(seeds).query("step == 20").assign(exact_match=0.125))
    drawn = learns_less.exact_answers(measured(seeds), empty)
    (axis,) = drawn.figure.axes
    assert line(axis, "each kind's most frequent answer").get_ydata()[0] == 0.15
    assert line(axis, "full").get_ydata().tolist() == [0.1, 0.2]
    assert "full 0.200, LoRA r=8 0.100" in drawn.alt
    assert ("full, shuffled answers 0.125" in drawn.alt) == (seeds is not None)


def test_instruction_tuning_has_points_and_every_rate_that_was_tried():
    drawn = learns_less.instruction_tuning(measured(name="instruction_curves", experiment="instruction",
                                                    task="functions"))
    ours = drawn.figure.axes[2]
    assert {one.get_linestyle() for one in ours.get_lines()} == {"None"} and ours.get_xlabel() == "rows seen"
    assert drawn.shown["rate"].tolist() == ["0.003", "0.01"]
    assert "train_rows" in drawn.table and "train_tokens" not in drawn.table, "rows are not tokens"


@WITH_AND_WITHOUT
def test_forgetting_curves_are_reversed_too(seeds):
    drawn = forgets_less.forgetting_against_tokens(measured(seeds))
    ours = drawn.figure.axes[2]
    assert ours.yaxis_inverted() and line(ours, "LoRA r=8").get_ydata().tolist() == [0.5, 1.0]
    assert "python: full 2.00, LoRA r=8 1.00" in drawn.alt


@WITH_AND_WITHOUT
def test_accuracies_with_their_errors(seeds):
    drawn = forgets_less.multiple_choice(measured(seeds))
    (axis,) = drawn.figure.axes
    assert line(axis, "base model").get_ydata()[0] == 0.6
    bars = [np.ptp(container.lines[2][0].get_segments()[0][:, 1]) for container in axis.containers]
    assert bars == pytest.approx([0.1, 0.1]), "one standard error up and one down"
    assert drawn.shown[["minus full, mean", "largest, in errors"]].iloc[0].tolist() == pytest.approx(
        [0.1, 0.1 / (0.05 * 2**0.5)])
    assert "full 0.300 (error 0.050)" in drawn.alt


@WITH_AND_WITHOUT
def test_the_trade_off_has_its_axis_reversed_its_front_and_no_base(seeds):
    drawn = forgets_less.learning_against_forgetting(measured(seeds))
    (axis,) = drawn.figure.axes
    assert axis.xaxis_inverted() and not [one for one in axis.get_lines() if one.get_marker() == "x"]
    # Learning and forgetting: full (3, 1), (5, 2); LoRA (2, 0.5), (3.5, 1), which beats full's first.
    assert front(axis) == pytest.approx(np.array([[2, 5], [1, 3.5], [0.5, 2]]))
    assert "python: full, learning 5.00, forgetting 2.00" in drawn.alt


@WITH_AND_WITHOUT
def test_rates_stand_beside_their_points_and_runs_that_did_not_learn_are_not_compared(seeds):
    table = runs(seeds or (0,), experiment="rates").query("step == 20")
    hot = table.assign(learning_rate=0.1, learning=1.0, run=table["run"] + "x")
    table = marked(pd.concat([table, hot], ignore_index=True))
    sweep = Measured("sensitivity", LAPTOP, (0,), table[table["seed"] == 0], None if seeds is None else table)
    drawn = forgets_less.rates_in_the_plane(sweep, measured(seeds))
    assert sorted(text.get_text() for text in drawn.figure.axes[0].texts) == ["0.003", "0.01", "0.1", "0.1"]
    # LoRA learnt 3.5 and forgot 1; full, stopped there, forgot 1.25.
    assert drawn.shown.set_index("method")["forgetting spared, nats"].to_dict() == pytest.approx(
        {"LoRA r=8, rate 0.01": 0.25, "full, rate 0.003": 0.0})


@WITH_AND_WITHOUT
def test_regularisers_of_all_seeds_are_drawn_and_compared_at_matched_learning(seeds):
    def table(chosen):
        full = runs(chosen)[runs(chosen)["method"] == "full"]
        decayed = full.assign(method="full, decay 0.1 to W0", forgetting=full["forgetting"] / 2, run=full["run"] + "d")
        once = full[full["seed"] == 0].assign(method="full, attention dropout 0.05", run="once")
        return pd.concat([runs(chosen), decayed, *([] if chosen == (0,) else [once])], ignore_index=True)

    drawn = forgets_less.regularisers(Measured("regulariser_curves", LAPTOP, (0,), table((0,)),
                                               None if seeds is None else table(seeds)))
    loss, forgetting = drawn.figure.axes
    assert line(loss, "full").get_ydata().tolist() == [6, 4] and line(forgetting, "full").get_ydata().tolist() == [1, 2]
    assert "dropout 0.05" not in drawn.alt, "of one seed"
    spared = drawn.shown.set_index("method")["spared at matched learning, nats"]
    assert spared.to_dict() == pytest.approx({"full, decay 0.1 to W0": 1.0, "LoRA r=8": 0.25})


@WITH_AND_WITHOUT
def test_forgetting_against_kl_and_learning_with_their_correlations(seeds):
    drawn = forgets_less.forgetting_against_kl(measured(seeds))
    left, right = drawn.figure.axes
    assert left.get_xlabel().startswith("KL") and right.get_xlabel().startswith("learning")
    assert line(left, "full").get_xdata().tolist() == [2, 4] and line(left, "full").get_ydata().tolist() == [1, 2]
    assert drawn.shown["rho"].iloc[0] == 1.0 and "python, kl_nats_per_token 1.000" in drawn.alt


@WITH_AND_WITHOUT
def test_controls_stand_beside_what_was_trained(seeds):
    table = pd.DataFrame({"method": ["full", "full", "LoRA r=8"],
                          "control": ["trained", "random, full rank", "trained"],
                          "forgetting": [2.0, 0.25, 1.0], "seed": 0})
    reference = None if seeds is None else table
    drawn = forgets_less.random_updates(Measured("norm_controls", LAPTOP, (0,), table, reference))
    (axis,) = drawn.figure.axes
    trained = line(axis, "trained")
    assert trained.get_ydata().tolist() == [2.0, 1.0] and trained.get_xdata().tolist() == pytest.approx([-0.1, 0.9])
    assert "full, random, full rank 0.25" in drawn.alt and drawn.shown["trained"].tolist() == [2.0, 1.0]
