"""Figures of notebook 08: the right numbers drawn and told, with and without a reference."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from axes import named

from utils.ledger.reference import reference_table
from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.registry import FIGURES, FINDINGS
from utils.reporting.selection import marked
from utils.studies import load_studies
from utils.studies.continual import figures
from utils.studies.continual.noise import forgetting_beside_noise
from utils.studies.similarity.choice import FULL, LORA, Shown

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
                          "stage": stage, "n_intruders": rank_of(method) * stage, "forgetting": stage / 4 + seed,
                          "pseudo_loss": 4 + stage / 4 + seed}
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


def test_a_stage_with_a_broken_readout_has_no_forgetting():
    """Word frequencies alone give 7.60 nats per token: full fine-tuning's last two stages lie above them."""
    table = spectra().assign(pseudo_loss=lambda t: np.where(
        (t["method"] == "full") & (t["stage"] > 1), 8.0, 5.0), forgetting=lambda t: t["pseudo_loss"] - 4.5)
    drawn = figures.spectra_through_the_sequence(measured(table))
    _check(drawn)
    counts, losses = drawn.figure.axes
    full, = named(losses, "full")
    assert full[0] == 0.5 and np.isnan(full[1:]).all() and named(losses, "LoRA r=8") == [[0.5] * 3]
    assert len(named(counts, "full")[0]) == 3 and "a broken readout" in drawn.alt
    assert drawn.table["forgetting"].max() == 3.5, "what was measured stays in the table"


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
    drawn = figures.similarity_by_stage(profile, maps, shown={
        "full": Shown(FULL, "layer 0 key", (0, 1)), "LoRA r=8": Shown(LORA, "layer 1 value", (0, 1))})
    _check(drawn)
    axes = [axis for axis in drawn.figure.axes if axis.get_label() != "<colorbar>"]
    assert [axis.get_title() for axis in axes] == [
        f"{method}: after {stage}" for stage in ("1. movies", "2. topics") for method in maps]
    assert axes[3].images[0].get_array().tolist() == [[0.25, 0], [0, 0]]
    assert {axis.images[0].get_clim() for axis in axes} == {(0, 1)} and len(drawn.figure.axes) == 5
    assert "full in layer 0 key: 0, 0; LoRA r=8 in layer 1 value: 0, 1" in drawn.alt
    assert "LoRA r=8: clearest for LoRA, chosen on seeds 0 and 1" in drawn.caption
    assert "full 1.00, LoRA r=8 0.25" in drawn.alt and len(drawn.table) == 8


# What is found ------------------------------------------------------------------------------------------------------


def found(name: str, table: pd.DataFrame, *args, **given):
    load_studies()
    return FINDINGS[name](measured(table, table), *args, **given)


def falling(**fall: float) -> pd.DataFrame:
    """Six tasks, three seeds: each at 0.9 after its own stage, and lower by so much at each later one, by method."""
    names = {"full": "full", "r1": "LoRA r=1", "r8": "LoRA r=8"}
    return pd.concat([sequence(6, (names[name],), SEEDS).assign(accuracy=lambda t, lost=lost: np.where(
        t["stage"] < t["tested_place"], 0.5, 0.9 - lost * (t["stage"] - t["tested_place"])))
        for name, lost in fall.items()])


@pytest.mark.parametrize("fall, met, words", [
    ({"full": 0.01, "r1": 0.09, "r8": 0.05}, True, "6 of 9 chains exceed that"),
    ({"full": 0.09, "r1": 0.01, "r8": 0.02}, False, "LoRA r=1 +0.240, LoRA r=8 +0.210"),
    ({"full": 0.01, "r1": 0.05, "r8": 0.09}, False, "LoRA r=1 -0.120, LoRA r=8 -0.240"),
    ({"full": 0.001, "r1": 0.003, "r8": 0.002}, None, "no chain exceeds that"),
    ({"r1": 0.09}, None, "No seed has both"), ({"full": 0.09}, None, "No seed has both")])
def test_a_fall_is_said_beside_fulls_and_beside_noise(fall, met, words):
    """At 0.09 a stage tasks lose 0.27 on average, 0.05 gives 0.15; 200 rows alone give about 0.03 at most."""
    result = found("08_accuracy_through_the_sequence", falling(**fall))
    assert result.met is met and words in result.text and "200 fresh rows" in result.text
    assert "the reference (seeds 0, 1, 2)" in result.text


def test_methods_that_do_not_tie_are_not_as_expected():
    """However they fall: full fine-tuning is at 0.7 after each task's own stage."""
    table = falling(full=0.001, r8=0.001)
    apart = table.assign(accuracy=table["accuracy"] - 0.2 * (table["method"] == "full"))
    result = found("08_accuracy_through_the_sequence", apart)
    assert result.met is False and "is LoRA r=8 +0.200" in result.text


def test_whether_few_rows_tie_cannot_be_said():
    """32 rows of each task: a difference of 0.05 may be theirs, one of 0.2 over three seeds is not."""
    table = falling(full=0.001, r8=0.001)
    for apart, met in ((0.05, None), (0.2, False)):
        moved = marked(table.assign(accuracy=table["accuracy"] - apart * (table["method"] == "full")))
        load_studies()
        result = FINDINGS["08_accuracy_through_the_sequence"](Measured("x", load_profile("smoke"), (0,), moved))
        assert result.met is met and "32 fresh rows" in result.text


def test_noise_stands_beside_what_each_chain_lost():
    table = pd.concat([falling(full=0.0), sequence(6, ("LoRA r=64",), (0,), alpha=8)])
    beside = forgetting_beside_noise(measured(table)).set_index("chain")
    assert list(beside.index) == ["full"] * 3 + ["LoRA r=64, alpha 8"]
    lost = beside.loc["LoRA r=64, alpha 8"]
    assert lost["average_forgetting"] == pytest.approx(0.05 * (5 + 4 + 3 + 2 + 1) / 5) == pytest.approx(-lost["change"])
    assert lost["after"] == pytest.approx(0.9) and (beside["average_forgetting"][:3] == 0).all()
    assert (beside["null_mean"] > 0.005).all() and (beside["null_95"] > beside["null_mean"]).all()


def test_noise_is_that_of_the_rows_that_the_reference_was_tested_on():
    """A reader at smoke is shown the laptop's reference: 200 rows, not 32."""
    smoke, table = load_profile("smoke"), marked(falling(full=0.0))
    own, reference = (Measured("x", smoke, (0,), table, given) for given in (None, table.assign(profile="laptop")))
    assert own.best_profile is smoke and reference.best_profile is load_profile("laptop")
    levels = [forgetting_beside_noise(one)["null_95"].mean() for one in (own, reference)]
    assert levels[0] / levels[1] == pytest.approx((200 / 32) ** 0.5, rel=0.15)


@pytest.mark.parametrize("changes, met, words", [
    ({}, True, "8 to 24 in LoRA r=8"), ({"n_intruders": 1}, False, "1 to 1 in full and 1 to 1 in LoRA r=8"),
    ({"forgetting": lambda t: -t["forgetting"]}, False, "-1.25 to -1.75 in LoRA r=8")])
def test_the_course_of_intruders_and_loss_is_said(changes, met, words):
    result = found("08_spectra_through_the_sequence", spectra(SEEDS).assign(**changes))
    assert result.met is met and words in result.text and "readout" not in result.text
    alone = found("08_spectra_through_the_sequence", spectra(methods=("LoRA r=8",)))
    assert alone.met is None, "without full fine-tuning"
    broken = found("08_spectra_through_the_sequence", spectra(SEEDS).assign(pseudo_loss=lambda t: 7 + t["forgetting"]))
    assert "full (3 of 3 runs) and LoRA r=8 (3 of 3 runs)" in broken.text


def two_alphas(usual: float, fixed: float, rate: float = 0.016) -> pd.DataFrame:
    """Rank 64 with alpha 128 at a rate of 0.001, and with alpha 8: what each loses per stage."""
    lost = {128: usual, 8: fixed}
    return pd.concat([sequence(6, ("LoRA r=64",), alpha=alpha).assign(
        learning_rate=0.001 if alpha == 128 else rate, accuracy=lambda t, alpha=alpha: np.where(
            t["stage"] < t["tested_place"], 0.5, 0.9 - lost[alpha] * (t["stage"] - t["tested_place"])))
        for alpha in lost])


@pytest.mark.parametrize("usual, fixed, met, words", [
    (0.01, 0.1, True, "0.300 with alpha = 8 and 0.030 with alpha = 2r"), (0.1, 0.01, False, "0.030 with alpha = 8"),
    (0.001, 0.002, None, "cannot be told from noise")])
def test_two_alphas_are_said_beside_noise(usual, fixed, met, words):
    result = found("08_alpha_8_in_sequence", two_alphas(usual, fixed))
    assert result.met is met and words in result.text and "Alpha times the rate" not in result.text
    mixed = found("08_alpha_8_in_sequence", two_alphas(usual, fixed, rate=0.001))
    assert "Alpha times the rate differs, too (0.008 and 0.128)" in mixed.text
    assert found("08_alpha_8_in_sequence", sequence(2)).met is None, "one alpha alone"


DARK = np.array([[1, 0], [0, 0.2], [0, 0.2]])


@pytest.mark.parametrize("full, lora, met, words", [
    (np.eye(3, 2), DARK, True, "1 in LoRA r=8 (1 after a later stage only)"),
    (np.eye(3, 2), np.eye(3, 2), False, "none in LoRA r=8 at any stage (least best match 1.00)"),
    (DARK, DARK, False, "1 in full (1 after"),
    (0.8 * np.eye(3, 2), DARK, False, "1.00 to 0.80 in full")])
def test_dark_columns_and_the_diagonal_are_said(full, lora, met, words):
    load_studies()
    maps = {"full": {"1. a": np.eye(3, 2), "2. b": full}, "LoRA r=8": {"1. a": np.eye(3, 2), "2. b": lora}}
    result = FINDINGS["08_similarity_by_stage"](load_profile("laptop"), maps, shown=dict.fromkeys(
        maps, Shown(LORA, "w", (0,))))
    assert result.met is met and words in result.text


@pytest.mark.parametrize("profile", ["laptop", "smoke"])
def test_every_figure_of_notebook_08_finds_something_in_the_reference(profile):
    load_studies()
    ours = {name: figure for name, figure in FIGURES.items() if name.startswith("08_") and figure.measurements}
    assert len(ours) == 3 and set(ours) | {"08_similarity_by_stage"} <= set(FINDINGS)
    for name, figure in ours.items():
        table = reference_table(figure.measurements[0], profile)
        result = FINDINGS[name](Measured("x", load_profile(profile), (3,), table.iloc[:1], table))
        assert "the reference (seeds 0, 1)" in result.text and "nan" not in result.text
        assert "fresh rows" not in result.text or "200 fresh rows" in result.text
