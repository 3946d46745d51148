"""Figures of notebook 08: the right numbers drawn and told, with and without a reference."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from axes import named

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.selection import marked
from utils.studies.continual import figures

SEEDS = (0, 1, 2)
ALPHAS = {"full": 0, "LoRA r=1": 2, "LoRA r=8": 16, "LoRA r=64": 128}


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def measured(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    return Measured("x", load_profile("laptop"), (0,), marked(own), None if reference is None else marked(reference))


def rank_of(method: str) -> int:
    return 0 if method == "full" else int(method.split("=")[1])


def sequence(tasks: int, methods=("full", "LoRA r=8"), seeds=(0,), alpha: int | None = None) -> pd.DataFrame:
    """Every task's accuracy rises to 0.9 when trained and falls by 0.05 at each later stage, faster by seed."""
    return pd.DataFrame([{"method": method, "r": rank_of(method), "lora_alpha": alpha or ALPHAS[method], "seed": seed,
                          "learning_rate": 0.001, "stage": stage, "tested_task": f"task {place}", "tested_place": place,
                          "base_accuracy": 0.5 + place / 64,
                          "accuracy": 0.5 if stage < place else 0.9 - (0.05 + seed / 100) * (stage - place)}
                         for method in methods for seed in seeds for stage in range(tasks + 1)
                         for place in range(tasks, 0, -1)])


@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize("seeds", [None, SEEDS], ids=["own", "with reference"])
def test_a_sequence_has_one_panel_per_task_in_order(tasks, seeds):
    """However the rows are ordered, panels follow the sequence; each says when it is trained and what the base has."""
    reference = None if seeds is None else sequence(tasks, ("full", "LoRA r=1", "LoRA r=8"), seeds)
    drawn = figures.accuracy_through_the_sequence(measured(sequence(tasks), reference))
    _check(drawn)
    assert [axis.get_title() for axis in drawn.figure.axes] == [f"{n}. task {n}" for n in range(1, tasks + 1)]
    axis = drawn.figure.axes[1]
    assert named(axis, "full") == [pytest.approx([0.5, 0.5, *(0.9 - 0.05 * late for late in range(tasks - 1))])]
    assert named(axis, "untouched base") == [[0.53125, 0.53125]]
    legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert ("LoRA r=1" in legend) == (seeds is not None), "a rank of the reference alone is drawn and named"
    assert len(drawn.figure.axes[0].get_subplotspec().get_gridspec().get_geometry()) == 2
    assert drawn.figure.axes[0].get_subplotspec().get_gridspec().ncols == min(2, tasks)
    end = 0.9 - (0.05 if seeds is None else 0.06) * (tasks - 1)
    assert f"full 0.900 and {end:.3f}" in drawn.alt


def test_the_end_is_the_references_own_end():
    """A short sequence of the reader's beside a reference of six tasks: 0.9 falls five times by 0.05."""
    drawn = figures.accuracy_through_the_sequence(measured(sequence(2), sequence(6)))
    assert "full 0.900 and 0.650" in drawn.alt and len(drawn.figure.axes) == 2


def test_chains_of_another_alpha_are_no_part_of_the_main_figures():
    own = pd.concat([sequence(2), sequence(2, ("LoRA r=64",), alpha=8).assign(accuracy=0.0)])
    drawn = figures.accuracy_through_the_sequence(measured(own))
    assert set(drawn.table["method"]) == {"full", "LoRA r=8"} and "r=64" not in drawn.alt


def test_what_is_kept_is_averaged_over_all_tasks_but_the_last():
    """Three tasks at 0.9 after their own stage; the first ends two stages later, the second one: 0.8 and 0.85."""
    shown = figures.accuracy_through_the_sequence(measured(sequence(3))).shown.set_index("method")
    assert shown.loc["full"].tolist() == pytest.approx([0.9, 0.825, -0.075, 1])


def spectra(seeds=(0,), methods=("full", "LoRA r=8")) -> pd.DataFrame:
    return pd.DataFrame([{"method": method, "r": rank_of(method), "lora_alpha": ALPHAS[method], "seed": seed,
                          "stage": stage, "n_intruders": rank_of(method) * stage, "forgetting": stage / 4 + seed}
                         for method in methods for seed in seeds for stage in (1, 2, 3)])


@pytest.mark.parametrize("reference", [None, spectra(SEEDS, ("full", "LoRA r=1"))], ids=["own", "with reference"])
def test_spectra_are_told_after_the_last_stage(reference):
    drawn = figures.spectra_through_the_sequence(measured(spectra(), reference))
    _check(drawn)
    counts, losses = drawn.figure.axes
    assert named(counts, "LoRA r=8") == [[8, 16, 24]] and named(losses, "full") == [[0.25, 0.5, 0.75]]
    told = "LoRA r=8: 24 intruders, 0.75 nats" if reference is None else "LoRA r=1: 3 intruders, 1.75 nats"
    assert told in drawn.alt
    assert all(float(tick).is_integer() for tick in (*counts.get_yticks(), *counts.get_xticks()))


def test_alphas_are_told_apart_at_the_highest_rank_of_the_reference():
    """The reader's own rank 8 is not drawn where the reference has rank 64 with both alphas."""
    reference = pd.concat([sequence(2, ("full", "LoRA r=64")), sequence(2, ("LoRA r=64",), alpha=8).assign(
        accuracy=0.25, learning_rate=0.002)])
    drawn = figures.alpha_8_in_sequence(measured(sequence(2), reference))
    _check(drawn)
    assert named(drawn.figure.axes[0], "alpha = 8") == [[0.25] * 3]
    assert named(drawn.figure.axes[0], "alpha = 2r") == [pytest.approx([0.5, 0.9, 0.85])]
    assert "LoRA r=64" in drawn.alt and "alpha = 2r 0.875, alpha = 8 0.250" in drawn.alt
    assert drawn.shown.set_index("alpha")["alpha times rate"].to_dict() == pytest.approx(
        {"alpha = 2r": 0.128, "alpha = 8": 0.016})


def test_without_a_chain_of_alpha_8_the_highest_rank_stands_alone():
    drawn = figures.alpha_8_in_sequence(measured(sequence(2)))
    _check(drawn)
    assert drawn.shown["alpha"].tolist() == ["alpha = 2r"] and "LoRA r=8" in drawn.alt


def test_a_grid_of_maps_has_a_column_per_method_and_a_row_per_stage():
    """All on one scale from 0 to 1; a leading vector whose match is a pretrained one far down is no blank column."""
    profile = load_profile("laptop")
    far = np.zeros((8, 2))
    far[0, 0], far[7, 1] = 0.25, 0.75  # the first matches nothing, the second the eighth pretrained vector
    maps = {"full": {"1. movies": np.eye(8, 2), "2. topics": np.eye(8, 2)},
            "LoRA r=8": {"1. movies": np.eye(8, 2), "2. topics": far}}
    drawn = figures.similarity_by_stage(profile, maps, matrices={"full": "layer 0 key", "LoRA r=8": "layer 1 value"})
    _check(drawn)
    axes = [axis for axis in drawn.figure.axes if axis.get_label() != "<colorbar>"]
    assert [axis.get_title() for axis in axes] == [
        f"{method}: after {stage}" for stage in ("1. movies", "2. topics") for method in maps]
    assert axes[3].images[0].get_array().tolist() == [[0.25, 0], [0, 0]]
    assert {axis.images[0].get_clim() for axis in axes} == {(0, 1)} and len(drawn.figure.axes) == 5
    assert "full in layer 0 key: 0, 0; LoRA r=8 in layer 1 value: 0, 1" in drawn.alt
    assert "full 1.00, LoRA r=8 0.25" in drawn.alt and len(drawn.table) == 8
