"""Notebook 15's rules and figures: worked by hand, and drawn with and without a reference."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from transformers import AutoConfig

from utils.errors import CourseError
from utils.evaluation.costs import prediction
from utils.evaluation.step_memory import memory_parts, shape_of
from utils.ledger.claims import claim_named, verdicts
from utils.paths import MODELS
from utils.profiles import load_profile
from utils.reporting.claims import effects_of
from utils.reporting.measured import Measured
from utils.studies.costs import compression_figures, figures, measure, rules, tables
from utils.training.recipe import Recipe

LAPTOP = load_profile("laptop")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def measured(name: str, own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    return Measured(name, LAPTOP, (0,), own, reference)


def footprints() -> pd.DataFrame:
    """Full fine-tuning predicted 10 % too low, LoRA exactly, QLoRA not measured; LoRA takes 0.6 of full's memory."""
    shape, rows = shape_of(AutoConfig.from_pretrained(MODELS / "small-decoder")), []
    measured_rows = ((Recipe(), 1.0, 1.0), (Recipe("lora"), 0.6, 0.75), (Recipe("qlora"), math.nan, math.nan))
    for recipe, peak, time in measured_rows:
        row = prediction(shape, recipe) | {"peak_gib": peak, "live_gib": peak, "time_ratio": time, "flops_ratio": time,
                                           "seconds_per_step": time, "tokens_per_second": 1 / time, "seed": 0}
        rows.append(row | {"ratio": {"full": 0.9, "lora": 1.0}.get(recipe.method, math.nan)})
    return pd.DataFrame(rows)


def value(effects) -> float:
    """The effect of the only seed; NaN where a run is missing, with a reason."""
    (found,) = effects.values.to_list()
    assert np.isnan(found) == bool(effects.missing)
    return found


# Rules --------------------------------------------------------------------------------------------------------------


def test_the_formulas_error_is_that_of_the_worst_recipe_that_was_measured():
    assert value(rules.largest_prediction_error(footprints())) == pytest.approx(0.1)
    assert value(rules.largest_prediction_error(footprints().assign(ratio=[0.9, 1.3, math.nan]))) == pytest.approx(0.3)
    assert rules.largest_prediction_error(footprints().assign(peak_gib=math.nan)).values.empty


def test_lora_saves_a_share_of_full_fine_tunings_memory():
    table = footprints()
    assert value(rules.memory_saved_by_lora(table)) == pytest.approx(0.4)
    assert np.isnan(value(rules.memory_saved_by_lora(table[table["method"] != "lora"])))


def test_forgetting_at_an_accuracy_that_is_no_lower():
    """Of the three others two are as accurate as full; the one that forgets less is not."""
    table = pd.DataFrame({"method": ["full", "LoRA", "rsLoRA", "VeRA"], "accuracy": [0.5, 0.5, 0.6, 0.4],
                          "forgetting": [0.03, 0.05, 0.11, 0.01], "seed": 0})
    assert value(rules.least_forgetting_beyond_full(table)) == pytest.approx(0.02)
    assert value(rules.least_forgetting_beyond_full(table, methods=["rsLoRA"])) == pytest.approx(0.08)
    assert np.isnan(value(rules.least_forgetting_beyond_full(table, methods=["VeRA"])))
    assert np.isnan(value(rules.least_forgetting_beyond_full(table[table["method"] != "full"])))


def test_counts_of_a_way_of_compression():
    table = pd.DataFrame({"way": ["int8, per row", "80 % pruned"], "n_intruders": [0, 94], "seed": 0})
    assert value(rules.intruders_of_way(table, way="80 % pruned")) == 94
    assert np.isnan(value(rules.intruders_of_way(table, way="int2")))


def test_tokens_with_the_most_examples_of_the_cheapest_task():
    table = pd.DataFrame({"task": ["a", "a", "b", "b"], "shots": [0, 2, 0, 2], "token_ratio": [1, 3.1, 1, 2.9],
                          "seed": 0})
    assert value(rules.least_token_ratio(table)) == 2.9


def test_a_renamed_column_is_loud():
    table = measure.peft_benchmark(LAPTOP)
    with pytest.raises(CourseError, match="forgetting"):
        effects_of(claim_named("full-on-front"), table.rename(columns={"forgetting": "drift"}))


def test_what_stands_on_one_measurement_says_so():
    """One seed is no evidence of a difference, and arithmetic is none at all."""
    words = verdicts("laptop", "15").set_index("claim")["verdict"].to_dict()
    for claim in ("memory-predicted", "lora-memory", "full-on-front"):
        assert words[claim] == "too few seeds"
    for claim in ("rslora-forgets-more", "int8-no-intruders", "few-shot-cost"):
        assert words[claim] == "arithmetic"


# Figures ------------------------------------------------------------------------------------------------------------


def test_predictions_stand_on_their_measurements():
    drawn = figures.predicted_against_measured(measured("footprints", footprints(), footprints()))
    legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert legend == ["equal (band: 10%)", "full, AdamW", "LoRA r=8, AdamW"]
    assert "Ratio from 0.900 to 1.000" in drawn.alt and "2 of 3 recipes" in drawn.caption
    rings = [line for line in drawn.figure.axes[0].get_lines() if line.get_label() == "_reference"]
    assert len(rings) == 2
    alone = figures.predicted_against_measured(measured("footprints", footprints()))
    assert not [line for line in alone.figure.axes[0].get_lines() if line.get_label() == "_reference"]


def test_parts_add_up_to_the_prediction_in_every_row():
    table = footprints()
    drawn = figures.parameters_memory_time(measured("footprints", table))
    bars = drawn.figure.axes[1].patches
    assert len(bars) == 3 * len(figures.PARTS)
    assert sum(bar.get_width() for bar in bars[::3]) == pytest.approx(table["predicted_gib"].iloc[0])
    assert len({axis.get_ylim() for axis in drawn.figure.axes}) == 1, "the rows of the panels line up"
    assert "time ratio not measured" in drawn.alt and len(drawn.shown) == 2


def test_batches_compare_each_method_in_its_own_numbers():
    """Full in the recipe's mixed precision, 16 bytes a parameter; LoRA on a base of bfloat16."""
    recipe = Recipe(precision="mixed", padded=True)
    grid = tables.batch_grid("SmolLM2-1.7B", recipe, (1, 2))
    full = grid[(grid["method"] == "full") & (grid["batch"] == 1) & ~grid["checkpointing"]]["predicted_gib"].item()
    shape = tables.model_shapes()["SmolLM2-1.7B"]
    assert full == memory_parts(shape, recipe)["total"] / 2**30 > 16 * shape.parameters / 2**30
    lora = grid[(grid["method"] == "lora") & (grid["batch"] == 1) & ~grid["checkpointing"]]["predicted_gib"].item()
    assert lora == memory_parts(shape, Recipe("lora", precision="bfloat16", padded=True))["total"] / 2**30
    drawn = figures.memory_by_batch(LAPTOP, grid=grid, limits={"RTX 4090": 24})
    assert [text.get_text() for text in drawn.figure.axes[0].texts] == ["RTX 4090"]
    assert f"full, AdamW {full:.1f} and" in drawn.alt


def test_the_benchmarks_numbers_are_matched_by_the_error_of_a_difference():
    """sqrt(2) times one error of 0.01 to either side: 0.475 is within two errors of a difference, not of one."""
    table = pd.DataFrame({"method": ["full", "LoRA", "DoRA", "VeRA"], "accuracy": [0.5, 0.475, 0.46, 0.5],
                          "accuracy_se": 0.01, "forgetting": [0.03, 0.05, 0.02, 0.04], "on_front": False})
    found = figures.numbered(table)
    assert found["method"].tolist() == ["full", "LoRA"] and found["number"].tolist() == ["1", "2"]


def test_every_number_in_the_benchmark_is_in_its_table():
    drawn = figures.peft_pareto(measured("peft_benchmark", measure.peft_benchmark(LAPTOP)))
    assert [text.get_text() for text in drawn.figure.axes[0].texts] == drawn.shown["number"].tolist()
    assert "rsLoRA rank64-rslora: accuracy 0.513, forgetting 0.111, 21.0 GiB, on the front" in drawn.alt


def test_small_models_are_named():
    models = tables.small_models()
    drawn = figures.small_models(LAPTOP, models=models, limits={"RTX 5080": 16})
    assert {text.get_text() for text in drawn.figure.axes[0].texts} == set(models["model"])
    assert "SmolLM2-135M: 135 million, 2 trillion tokens" in drawn.alt


@pytest.mark.parametrize("reference", [True, False])
def test_compression_draws_every_way_and_the_reference_as_a_ring(reference):
    table = pd.DataFrame({"way": ["int8, per row", "80 % pruned"], "bits": [8.1, 4.2], "loss_rise": [0.0, 2.576],
                          "relative_error": [0.007, 0.577], "n_intruders": [0, 94], "lowest_cosine": [0.97, 0.31],
                          "matrices": 28, "seed": 0})
    drawn = compression_figures.compression(measured("compression", table, table if reference else None))
    lines = drawn.figure.axes[1].get_lines()
    assert len(lines) == 2 + reference and list(lines[1].get_ydata()) == [94]
    assert "80 % pruned (4.2 bits): loss +2.576 nats, 94 intruders" in drawn.alt


@pytest.mark.parametrize("reference", [True, False])
def test_examples_against_accuracy_and_tokens(reference):
    table = pd.DataFrame({"task": "news_cloze", "shots": [0, 1], "accuracy": [0.408, 0.383], "standard_error": 0.045,
                          "tokens_per_question": [279.0, 568.0], "difference": [0.0, -0.025], "window": 256,
                          "difference_se": [0.0, 0.019], "token_ratio": [1.0, 2.03], "longest": [109, 181]})
    drawn = compression_figures.few_shot(measured("evaluation_costs", table, table if reference else None))
    assert "news_cloze, 1: accuracy 0.383 ± 0.045, 568 tokens" in drawn.alt and "256 tokens" in drawn.caption
    assert list(drawn.figure.axes[1].get_lines()[0].get_ydata()) == [279, 568]


def test_a_compressed_matrix_tells_its_leading_cosines_from_its_tails():
    spectra = pd.DataFrame({"way": "NF4", "index": range(1, 41), "before": range(40, 0, -1),
                            "singular_value": range(40, 0, -1), "cosine": [1.0] * 20 + [0.5] * 20})
    drawn = compression_figures.compressed_spectrum(LAPTOP, spectra=spectra, matrix="q_proj")
    assert "NF4 1.000, 0.500" in drawn.alt and drawn.shown.iloc[0].tolist() == ["NF4", 1.0, 0.5]
