"""Heat-maps of singular vectors: rules by hand, figures by what they draw, tell and find."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.registry import FINDINGS
from utils.reporting.selection import marked
from utils.studies.released.rules import released_lora_above_full
from utils.studies.similarity import figures, planted, rules

LAPTOP = load_profile("laptop")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def summary(**lora) -> Measured:
    """similarity_summary with full fine-tuning as the paper has it and LoRA as given."""
    full = {"shift": 0.0, "mean_cosine": 0.97, "blank_rows": 0, "flattest": 0.99}
    rows = [{"experiment": "ranks", "seed": seed, "method": method, "r": r, "matrix": "w"} | values
            for seed in (0, 1, 2) for method, r, values in (("full", 0, full), ("LoRA r=8", 8, full | lora))]
    table = marked(pd.DataFrame(rows))
    return Measured("similarity_summary", LAPTOP, (3,), table, table)


SHIFTED = {"shift": 1.0, "mean_cosine": 0.83, "blank_rows": 1, "flattest": 0.2}


@pytest.mark.parametrize("column, effect", [("shift", 1), ("mean_cosine", -0.14), ("blank_rows", 1),
                                            ("flattest", -0.79)])
def test_the_effect_is_lora_minus_full(column, effect):
    found = rules.lora_minus_full(summary(**SHIFTED).own, column=column)
    assert found.values.tolist() == pytest.approx([effect] * 3) and found.outcome == column
    alone = rules.lora_minus_full(summary().own.query("method != 'full'"), column=column)
    assert alone.values.isna().all() and alone.missing[0] == "no run with method_kind = full"


def test_a_window_has_its_own_counts():
    table = pd.concat([summary().own.assign(width=width, n_intruders=count * (summary().own["r"] > 0))
                       for width, count in ((1, 4), (8, 2))])
    assert rules.lora_minus_full_window(table, width=8).values.tolist() == [2, 2, 2]


def test_a_planted_direction_leads_and_is_foreign():
    table = pd.DataFrame({"experiment": "ranks", "seed": 0, "ratio": [0.5, 1.2, 1.5, 2.0], "index": [7, 1, 2, 1],
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


def test_the_offset_of_matched_vectors_is_drawn_and_told():
    assert figures.best_offset(np.eye(5, k=-1))[1:].tolist() == [1, 1, 1, 1]
    drawn = figures.similarity(summary(**SHIFTED), maps(1), matrix="w")
    assert "full 0, LoRA r=8 1" in drawn.alt and len(drawn.table) == 2 * 30 * 30
    lines = {line.get_label(): line for axis in drawn.figure.axes for line in axis.lines}
    assert len(lines["LoRA r=8"].get_xdata()) == 29, "the foreign vector has no place"
    assert set(lines["LoRA r=8"].get_ydata()) == {1} and set(lines["full"].get_ydata()) == {0}


@pytest.mark.parametrize("lora, met", [(SHIFTED, True), ({}, False)])
@pytest.mark.parametrize("name", ["03_similarity", "03_top_ten"])
def test_findings_follow_the_reference(name, lora, met):
    result = FINDINGS[name](summary(**lora), maps(1), matrix="w")
    assert result.met is met and "in all 3 seeds" in result.text


def test_foreign_columns_are_outlined_and_named():
    drawn = figures.top_ten(summary(**SHIFTED), maps(2), matrix="w")
    assert "full: none; LoRA r=8: 1 and 2" in drawn.alt
    assert [len(axis.patches) for axis in drawn.figure.axes[:2]] == [0, 2]
    assert drawn.figure.axes[1].patches[0].get_x() == 0.5, "tuned vectors stand in columns, as in the paper"


def test_the_best_match_is_drawn_with_chance_as_a_band():
    vectors = pd.DataFrame({"method": ["full", "full", "LoRA r=8", "LoRA r=8"], "index": [1, 2, 1, 2],
                            "max_cosine": [0.9, 1.0, 0.2, 0.8]})
    given = summary(**SHIFTED)
    drawn = figures.best_match(given, vectors, level=(0.14, 0.19))
    assert "full: mean 0.95, least 0.90; LoRA r=8: mean 0.50, least 0.20" in drawn.alt and "0.14 to 0.19" in drawn.alt
    assert FINDINGS["03_best_match"](given, vectors, level=(0.14, 0.19)).met
    assert not FINDINGS["03_best_match"](summary(), vectors, level=(0.14, 0.19)).met


def test_one_foreign_vector_is_told_with_where_its_length_lies():
    rows = np.vstack([np.eye(40)[0], np.full(40, 0.15)])
    given = summary(**SHIFTED)
    assert "first is 1.00, of the second only 0.15" in figures.one_vector(given, rows).alt
    assert "evenly over all" in FINDINGS["03_one_vector"](given, rows).text
    lopsided = np.vstack([np.eye(40)[0], np.where(np.arange(40) < 4, 0.3, 0.01)])
    assert "unevenly: 9" in FINDINGS["03_one_vector"](given, lopsided).text


def sweep(threshold: float) -> pd.DataFrame:
    """A direction that is one vector of its own from a strength on."""
    rows = [{"experiment": "ranks", "seed": seed, "ratio": ratio, "overlap": 0.9 if ratio >= threshold else 0.1,
             "max_cosine": 0.2 if ratio >= threshold else 0.95, "index": 1 if ratio >= threshold else 20}
            for seed in (0, 3) for ratio in (0.2, 0.6, 1.0, 2.0)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("threshold, met", [(0.6, True), (2.0, False)])
def test_a_planted_direction_is_hollow_where_no_vector_is_it(threshold, met):
    given = Measured("planted_directions", LAPTOP, (3,), sweep(threshold), sweep(threshold))
    drawn = planted.planted_direction(given, sweep(threshold), level=(0.14, 0.19))
    assert f"from {threshold:.2f} times" in drawn.alt
    hollow = [line for line in drawn.figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert all((line.get_xdata() < threshold).all() for line in hollow) and hollow
    assert FINDINGS["03_planted_direction"](given, sweep(threshold), level=(0.14, 0.19)).met is met


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
