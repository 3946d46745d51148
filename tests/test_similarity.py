"""Heat-maps of singular vectors: rules by hand, figures by what they draw, tell and find."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.registry import FINDINGS
from utils.reporting.selection import marked
from utils.spectra import random_ranges
from utils.studies.released.rules import released_lora_above_full
from utils.studies.similarity import choice, figures, planted, rules

LAPTOP = load_profile("laptop")
CHANCE = random_ranges([(384, 384)])


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


FULL_AS_PUBLISHED = {"shift": 0.0, "mean_cosine": 0.97, "blank_rows": 0, "flattest": 0.99}


def summary(**lora) -> Measured:
    """similarity_summary with full fine-tuning as the paper has it and LoRA as given, in one matrix of three seeds."""
    rows = [{"experiment": "ranks", "seed": seed, "method": method, "r": r, "matrix": "w", "run": f"{method}{seed}"}
            | values for seed in (0, 1, 2) for method, r, values in (
                ("full", 0, FULL_AS_PUBLISHED), ("LoRA r=8", 8, FULL_AS_PUBLISHED | lora))]
    table = marked(pd.DataFrame(rows))
    return Measured("similarity_summary", LAPTOP, (3,), table, table)


def clearness(*by_seed: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Least cosine of full fine-tuning and of LoRA by matrix, seed by seed."""
    rows = [{"experiment": "ranks", "seed": seed, "method": method, "r": r, "matrix": matrix, "run": f"{method}{seed}",
             "flattest": least, "mean_cosine": least, "shift": float(r > 0), "blank_rows": int(least < 0.5)}
            for seed, matrices in enumerate(by_seed) for matrix, pair in matrices.items()
            for method, r, least in zip(("full", "LoRA r=8"), (0, 8), pair, strict=True)]
    return marked(pd.DataFrame(rows))


THREE = clearness({"a": (0.9, 0.2), "b": (0.7, 0.8), "c": (0.8, 0.5)},
                  {"a": (0.9, 0.6), "b": (0.8, 0.9), "c": (0.6, 0.35)},
                  {"a": (0.9, 0.4), "b": (0.9, 0.7), "c": (0.9, 0.6)})


@pytest.mark.parametrize("seed, chosen", [(0, ["c", "c", "a"]), (1, ["a", "b", "c"]), (2, ["a", "c", "c"]),
                                          (3, ["a", "c", "c"])])
def test_matrices_are_chosen_on_the_other_seeds(seed, chosen):
    """For LoRA, for full fine-tuning, and the middle one by LoRA's mean; seed 3 is none of the table's."""
    shown = choice.chosen_matrices(THREE, seed)
    assert [one.matrix for one in shown] == chosen and [one.role for one in shown] == list(choice.ROLES)
    assert all(seed not in one.seeds and len(one.seeds) >= 2 for one in shown)


@settings(max_examples=25, deadline=None)
@given_any(st.integers(0, 2), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_what_the_shown_seed_came_to_has_no_say(seed, outcomes):
    changed = THREE.copy()
    changed.loc[changed["seed"] == seed, "flattest"] = outcomes
    assert choice.chosen_matrices(changed, seed) == choice.chosen_matrices(THREE, seed)


def test_without_another_seed_the_place_decides_and_the_reference_is_one():
    alone = clearness({"a": (0.9, 0.2), "b": (0.7, 0.8), "c": (0.8, 0.5)}).assign(seed=3)
    (shown,) = choice.chosen_matrices(alone, 3)
    assert shown == (choice.BY_NAME, "b", ()) and "no other seed" in figures.choice_words([shown])
    given = Measured("similarity_summary", LAPTOP, (3,), alone, THREE)
    assert [one.matrix for one in choice.shown_matrices(given, 3)] == ["a", "c", "c"]
    assert "by seeds 0, 1 and 2, not by the one shown" in figures.choice_words(choice.shown_matrices(given, 3))
    assert choice.matrix_for("full", 3, known=THREE, names="abc").matrix == "c"
    assert choice.matrix_for("lora", 3, known=None, names="abc") == (choice.BY_NAME, "b", ())


def test_a_rule_judges_each_seed_in_the_matrix_that_the_others_choose():
    """LoRA minus full fine-tuning: seed 0 in c (0.5 - 0.8), seed 1 in a (0.6 - 0.9), seed 2 in a (0.4 - 0.9)."""
    found = rules.lora_minus_full_where_shown(THREE, column="mean_cosine", role=choice.LORA)
    assert found.values.tolist() == pytest.approx([-0.3, -0.3, -0.5])
    alone = rules.lora_minus_full_where_shown(THREE[THREE["seed"] == 1], column="mean_cosine", role=choice.LORA)
    assert alone.values.isna().all() and alone.missing[1] == "no other seed to choose the matrix on"
    lacking = rules.lora_minus_full_where_shown(THREE[(THREE["seed"] != 0) | (THREE["matrix"] != "c")],
                                                column="mean_cosine", role=choice.LORA)
    assert lacking.missing == {0: "no run with matrix = c"}


SHIFTED = {"shift": 1.0, "mean_cosine": 0.83, "blank_rows": 1, "flattest": 0.2}


@pytest.mark.parametrize("column, effect", [("shift", 1), ("mean_cosine", -0.14), ("blank_rows", 1),
                                            ("flattest", -0.79)])
def test_the_effect_is_lora_minus_full(column, effect):
    found = rules.lora_minus_full_where_shown(summary(**SHIFTED).own, column=column, role=choice.LORA)
    assert found.values.tolist() == pytest.approx([effect] * 3) and found.outcome == column


def test_a_window_has_its_own_counts():
    table = pd.concat([summary().own.assign(width=width, n_intruders=count * (summary().own["r"] > 0))
                       for width, count in ((1, 4), (8, 2))])
    assert rules.lora_minus_full_window(table, width=8).values.tolist() == [2, 2, 2]


def test_a_planted_direction_leads_and_is_foreign():
    table = pd.DataFrame({"seed": 0, "ratio": [0.5, 1.2, 1.5, 2.0], "index": [7, 1, 2, 1],
                          "max_cosine": [0.9, 0.3, 0.2, 0.7]})
    assert rules.planted_on_top(table, epsilon=0.5).values.tolist() == pytest.approx([1 / 3])
    assert rules.planted_on_top(table, epsilon=0.8).values.tolist() == pytest.approx([2 / 3])


def test_released_models_are_judged_group_by_group():
    table = pd.DataFrame({"group": ["a", "a", "a", "b", "b"], "method": ["full #1", "full #2", "LoRA", "full", "LoRA"],
                          "epsilon": 0.5, "n_intruders": [1, 3, 9, 4, 2]})
    assert released_lora_above_full(table, epsilon=0.5).values.to_dict() == {"a": 6, "b": -2}


def maps(shift: int, size: int = 30) -> dict[str, np.ndarray]:
    """A clean diagonal for full fine-tuning, one moved down by `shift` places for LoRA, the first vectors foreign."""
    return {"full": np.eye(size), "LoRA r=8": np.eye(size, k=-shift)}


SHOWN = [choice.Shown(choice.LORA, "w", (0, 1, 2)), choice.Shown(choice.FULL, "v", (0, 1, 2)),
         choice.Shown(choice.MEDIAN, "w", (0, 1, 2))]


def test_the_offset_of_matched_vectors_is_drawn_and_told():
    assert figures.best_offset(np.eye(5, k=-1))[1:].tolist() == [1, 1, 1, 1]
    drawn = figures.similarity(summary(**SHIFTED), {"w": maps(1), "v": maps(0)}, shown=SHOWN)
    assert "clearest for LoRA and median for LoRA, LoRA r=8: 0.00 and 1" in drawn.alt
    assert "clearest for full fine-tuning, LoRA r=8: 1.00 and 0" in drawn.alt
    assert "by seeds 0, 1 and 2, not by the one shown" in drawn.caption
    assert len([axis for axis in drawn.figure.axes if axis.images]) == 4, "two methods in two matrices"
    cells = drawn.table[(drawn.table["tuned"] <= figures.SEEN) & (drawn.table["pretrained"] <= figures.SEEN)]
    assert len(cells) == 2 * 2 * figures.SEEN**2 and set(drawn.table["matrix"]) == {"w", "v"}
    lines = {line.get_label(): line for axis in drawn.figure.axes for line in axis.lines}
    assert len(lines["LoRA r=8"].get_xdata()) == 29, "the foreign vector has no place"
    assert set(lines["LoRA r=8"].get_ydata()) == {1} and set(lines["full"].get_ydata()) == {0}


@pytest.mark.parametrize("lora, met", [(SHIFTED, True), ({}, False)])
@pytest.mark.parametrize("name", ["03_similarity", "03_top_ten"])
def test_findings_follow_the_reference(name, lora, met):
    result = FINDINGS[name](summary(**lora), {"w": maps(1), "v": maps(0)}, shown=SHOWN)
    assert result.met is met and "in all 3 seeds" in result.text


@pytest.mark.parametrize("name", ["03_similarity", "03_top_ten"])
def test_a_table_without_the_chosen_matrix_finds_nothing(name):
    """Each seed measured in a matrix of its own alone, as tables before this choice were."""
    partial = THREE[[seed == "abc".index(matrix) for seed, matrix in zip(THREE["seed"], THREE["matrix"], strict=True)]]
    given = Measured("similarity_summary", LAPTOP, (3,), partial, partial[partial["seed"] > 0])
    assert FINDINGS[name](given, {"w": maps(1), "v": maps(0)}, shown=SHOWN).met is None


def test_how_many_of_all_matrices_have_a_blank_column_is_said():
    given = Measured("similarity_summary", LAPTOP, (3,), THREE, THREE)
    text = FINDINGS["03_top_ten"](given, {"w": maps(1), "v": maps(0)}, shown=SHOWN).text
    assert "Of all matrices 33% have one or more after LoRA, 0% after full fine-tuning" in text


def test_foreign_columns_are_outlined_and_named():
    drawn = figures.top_ten(summary(**SHIFTED), {"w": maps(2), "v": maps(0)}, shown=SHOWN)
    assert "clearest for LoRA and median for LoRA, LoRA r=8: 1 and 2" in drawn.alt
    assert "clearest for full fine-tuning, LoRA r=8: none" in drawn.alt
    assert [len(axis.patches) for axis in drawn.figure.axes[:4]] == [0, 2, 0, 0]
    assert drawn.figure.axes[1].patches[0].get_x() == 0.5, "tuned vectors stand in columns, as in the paper"


def test_the_best_match_is_drawn_with_chance_as_a_band():
    vectors = pd.DataFrame({"method": ["full", "full", "LoRA r=8", "LoRA r=8"], "index": [1, 2, 1, 2],
                            "max_cosine": [0.9, 1.0, 0.2, 0.8]})
    given = summary(**SHIFTED)
    drawn = figures.best_match(given, vectors, shown=SHOWN[0], chance=CHANCE)
    assert "full: mean 0.95, least 0.90; LoRA r=8: mean 0.50, least 0.20" in drawn.alt and "0.14 to 0.19" in drawn.alt
    assert FINDINGS["03_best_match"](given, vectors, shown=SHOWN[0], chance=CHANCE).met
    assert not FINDINGS["03_best_match"](summary(), vectors, shown=SHOWN[0], chance=CHANCE).met


def test_one_foreign_vector_is_told_with_where_its_length_lies():
    rows = np.vstack([np.eye(40)[0], np.full(40, 0.15)])
    given = summary(**SHIFTED)
    assert "first is 1.00, of the second only 0.15" in figures.one_vector(given, rows, shown=SHOWN[0]).alt
    assert "evenly over all" in FINDINGS["03_one_vector"](given, rows, shown=SHOWN[0]).text
    lopsided = np.vstack([np.eye(40)[0], np.where(np.arange(40) < 4, 0.3, 0.01)])
    assert "unevenly: 9" in FINDINGS["03_one_vector"](given, lopsided, shown=SHOWN[0]).text


def sweep(threshold: float) -> pd.DataFrame:
    """A direction that is one vector of its own from a strength on."""
    rows = [{"seed": seed, "matrix": "w", "ratio": ratio, "overlap": 0.9 if ratio >= threshold else 0.1,
             "max_cosine": 0.2 if ratio >= threshold else 0.95, "index": 1 if ratio >= threshold else 20}
            for seed in (0, 3) for ratio in (0.2, 0.6, 1.0, 2.0)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("threshold, met", [(0.6, True), (2.0, False)])
def test_a_planted_direction_is_hollow_where_no_vector_is_it(threshold, met):
    given = Measured("planted_directions", LAPTOP, (3,), sweep(threshold), sweep(threshold))
    drawn = planted.planted_direction(given, sweep(threshold), chance=CHANCE)
    assert f"from {threshold:.2f} times" in drawn.alt
    hollow = [line for line in drawn.figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert all((line.get_xdata() < threshold).all() for line in hollow) and hollow
    assert FINDINGS["03_planted_direction"](given, sweep(threshold), chance=CHANCE).met is met


@pytest.mark.parametrize("left, word", [(1, "only turned within a cluster"), (4, "foreign to the whole")])
def test_windows_say_how_many_stay_foreign(left, word):
    own = pd.concat([summary().own.assign(width=width, n_intruders=count * (summary().own["r"] > 0))
                     for width, count in ((1, 4), (8, left))])
    given = Measured("window_counts", LAPTOP, (3,), own, own)
    cosines = pd.DataFrame([{"method": method, "matrix": "w", "index": 1, "width": width, "max_cosine": 0.3}
                            for method in ("full", "LoRA r=8") for width in (1, 8)])
    drawn = planted.windows(given, cosines, levels={8: 0.3})
    assert f"width 8: {left}" in drawn.alt
    assert word in FINDINGS["03_windows"](given, cosines, levels={8: 0.3}).text
