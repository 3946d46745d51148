"""Notebooks 09 and 10: what their figures draw and compare, on tables small enough to work out by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.studies.learning import figures as learning_figures
from utils.studies.learning.tradeoffs import tradeoff_panels


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def measured(seeds=(0,)) -> pd.DataFrame:
    """Two durations of two methods: full's loss falls 6, 4 and LoRA's 7, 5.5; forgetting rises 1, 2 and 0.5, 1."""
    rows = [{"task": "python", "method": method, "seed": seed, "step": step, "train_tokens": 2048 * step,
             "learning_rate": 0.003, "loss_nats_per_token": loss + seed, "base_loss_nats_per_token": 9.0,
             "learning": 9.0 - loss - seed, "forgetting": rise, "kl_nats_per_token": 2 * rise,
             "choice": 0.5 - rise / 10, "choice_se": 0.05, "base_choice": 0.6, "base_choice_se": 0.04}
            for seed in seeds for method, points in (("full", ((10, 6.0, 1.0), (20, 4.0, 2.0))),
                                                     ("LoRA r=8", ((10, 7.0, 0.5), (20, 5.5, 1.0))))
            for step, loss, rise in points]
    return pd.DataFrame(rows)


def curves(seeds=(0,)) -> pd.DataFrame:
    return learning_figures.as_curves(measured(seeds))


def line(axis, label: str):
    (found,) = [one for one in axis.get_lines() if one.get_label() == label]
    return found


def test_nothing_measured_stays_nothing():
    assert learning_figures.as_curves(None) is None
    assert learning_figures.as_curves(pd.DataFrame()).empty


def test_gap_is_positive_where_lora_learnt_less():
    gaps = learning_figures.gap_table(curves((0, 1)))
    assert gaps["method"].unique().tolist() == ["LoRA r=8"]
    assert gaps["duration"].tolist() == [20.48, 40.96] * 2
    assert gaps["gap"].tolist() == [1.0, 1.5, 1.0, 1.5], "each seed against its own full fine-tuning"
    growth = learning_figures.gap_growth(gaps.iloc[::-1])
    assert growth[["shortest", "longest", "growth"]].values.tolist() == [[1.0, 1.5, 0.5]] * 2, "in any order"


def test_a_duration_without_full_has_no_gap():
    table = curves()
    kept = table[(table["method"] != "full") | (table["step"] == 10)]
    assert learning_figures.gap_table(kept)["duration"].tolist() == [20.48]


def test_a_run_beside_the_curve_at_its_own_learning():
    # Full learns 3 and 5 and forgets 1 and 2; at 4 it has forgotten 1.5. The slow run learnt 4 and forgot 1.2.
    slow = measured().head(1).assign(learning=4.0, forgetting=1.2, learning_rate=0.001)
    found = learning_figures.equal_learning(curves(), learning_figures.as_curves(slow))
    assert found["method"].tolist() == ["full, rate 0.001"]
    assert found[["level", "forgetting", "forgetting_against", "spared"]].iloc[0].tolist() == pytest.approx(
        [4.0, 1.2, 1.5, 0.3])


def test_a_run_of_a_seed_without_curve_is_left_out():
    stray = learning_figures.as_curves(measured().head(1).assign(seed=7))
    assert learning_figures.equal_learning(curves(), stray).empty


def test_base_beside_its_ngrams():
    curve = pd.DataFrame({"step": [0, 200], "heldout_loss_nats_per_token": [7.6, 5.0]})
    (axis,) = learning_figures.base_and_ngrams(curve, {1: 6.4, 2: 4.3}).axes
    assert line(axis, "decoder").get_ydata().tolist() == [7.6, 5.0]
    assert line(axis, "2-gram model").get_ydata()[0] == 4.3


def test_gap_figure_has_its_zero():
    (axis,) = learning_figures.gap_panels(learning_figures.gap_table(curves()), None, ylabel="gap", xlabel="tokens").axes
    assert line(axis, "LoRA r=8").get_ydata().tolist() == [1.0, 1.5]
    assert any(list(one.get_ydata()) == [0, 0] for one in axis.get_lines())


def test_quantities_side_by_side_with_methods_of_the_reference_alone():
    extra = curves((0, 1))
    extra = pd.concat([extra, extra[extra["method"] == "full"].assign(method="full, decay 0.1 to zero")])
    left, right = learning_figures.quantity_panels(curves(), extra, {"loss_nats_per_token": "loss", "forgetting": "forgetting"},
                                          xlabel="tokens").axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss", "forgetting")
    assert line(left, "full").get_ydata().tolist() == [6.0, 4.0] and line(right, "full").get_ydata().tolist() == [1, 2]
    assert line(left, "base model").get_ydata()[0] == 9.0, "the base's loss is known"
    assert not [one for one in right.get_lines() if one.get_label() == "base model"], "forgetting starts at 0"
    assert "full, decay 0.1 to zero" in left.get_legend_handles_labels()[1]
    band = left.collections[-1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (4.0, 7.0), "seeds 0 and 1 of the method that the reference alone has"


def test_accuracies_with_their_errors():
    last = curves().query("step == 20")
    (axis,) = learning_figures.accuracy_points(last, curves((0, 1)).query("step == 20"), value="choice", error="choice_se",
                                      ylabel="choice").axes
    assert line(axis, "base model").get_ydata()[0] == 0.6
    bars = [np.ptp(container.lines[2][0].get_segments()[0][:, 1]) for container in axis.containers]
    assert bars == pytest.approx([0.1, 0.1]), "one standard error up and one down"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["full", "LoRA r=8"]
    faint = [one for one in axis.get_lines() if one.get_label() == "_reference"]
    assert [len(one.get_ydata()) for one in faint] == [2, 2]


def test_controls_stand_beside_what_was_trained():
    table = pd.DataFrame({"method": ["full", "full", "LoRA r=8"], "control": ["trained", "random", "trained"],
                          "forgetting": [2.0, 0.3, 1.0]})
    (axis,) = learning_figures.control_points(table, table, value="forgetting", ylabel="forgetting").axes
    trained, random = line(axis, "trained"), line(axis, "random")
    assert trained.get_ydata().tolist() == [2.0, 1.0] and trained.get_xdata().tolist() == pytest.approx([-0.1, 0.9])
    assert random.get_ydata().tolist() == [0.3]


def test_scatter_has_a_panel_per_data_set_and_quantity():
    other = curves().assign(dataset="mathematics", forgetting=0.1)
    both = pd.concat([curves(), other])
    axes = learning_figures.scatter_panels(both, None, xs={"kl_nats_per_token": "KL", "learning": "learning"}, y="forgetting",
                                  ylabel="forgetting", datasets=["python", "mathematics"]).axes
    assert [(axis.get_title(), axis.get_xlabel()) for axis in axes] == [
        ("python", "KL"), ("python", "learning"), ("mathematics", "KL"), ("mathematics", "learning")]
    assert [axis.get_ylabel() for axis in axes] == ["forgetting", "", "forgetting", ""]
    assert line(axes[0], "full").get_xdata().tolist() == [2.0, 4.0]
    assert line(axes[3], "full").get_ydata().tolist() == [0.1, 0.1]


def test_decay_of_the_paper_and_ours_leave_the_same_share():
    """1e-4 a step over 3,088 steps of a cosine (facts: 0.86) is what 7e-4 does over 240 that cool down at the end."""
    cosine = (1 + np.cos(np.pi * np.linspace(0, 1, 3088))) / 2
    cooled = np.concatenate([np.ones(192), np.linspace(1, 0, 48, endpoint=False)])
    assert learning_figures.kept_share(1e-4, cosine) == pytest.approx(0.86, abs=0.005)
    assert learning_figures.kept_share(7e-4, cooled) == pytest.approx(0.86, abs=0.005)
    assert learning_figures.kept_share(0.5, [1, 1, 0]) == 0.25


def test_marker_sizes_may_mean_the_rate():
    table = curves().assign(learning_rate=[0.001, 0.01, 0.001, 0.01], remembering=lambda t: -t["forgetting"])
    figure = tradeoff_panels(table, size="learning_rate", larger="larger rate", xlabel="x")
    areas = figure.axes[0].collections[0].get_sizes()
    assert len(areas) == 2 and areas[0] < areas[1]
    assert "larger marker: larger rate" in [text.get_text() for text in figure.legends[0].get_texts()]
