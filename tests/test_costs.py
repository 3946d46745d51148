"""Costs by formula against values worked out by hand, against live tensors of real steps, and against a process."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from utils.errors import CourseError, UsageError
from utils.evaluation.costs import (
    NF4,
    Shape,
    adapter_parameters,
    changes,
    fits,
    gpu,
    memory_parts,
    moments,
    run_cost,
    shape_of,
    state_bytes,
    step_flops,
    trained_parameters,
    training_hours,
    verdict,
    weight_bytes,
)
from utils.evaluation.memory import training_bytes
from utils.paths import MODELS, PAPER
from utils.profiles import PROFILE_NAMES, load_profile
from utils.studies.costs import measure, tables
from utils.training import footprint
from utils.training.recipe import Recipe

DECODER = MODELS / "small-decoder"
TINY = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, head_dim=4, vocabulary=10, tied=True)


def test_parameters_by_hand():
    """q 64, k and v 32 each, o 64, three of 128: 576 a layer; embeddings 80; norms 5 x 8."""
    assert TINY.linear == 2 * 576 and TINY.parameters == 2 * 576 + 80 + 40
    assert replace(TINY, tied=False).parameters == TINY.parameters + 80


def test_parameters_of_a_real_model():
    config = AutoConfig.from_pretrained(DECODER)
    model = AutoModelForCausalLM.from_config(config)
    assert shape_of(config).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_the_models_in_the_table():
    published = pd.read_csv(PAPER / "small_models.csv").set_index("model")["parameters_million"]
    for name, shape in tables.model_shapes().items():
        assert shape.parameters / 1e6 == pytest.approx(published[name], rel=3e-4), name


def test_adapter_by_hand():
    """r (out + in): q 16, k and v 12 each, o 16, three of 24 make 128 a layer and rank."""
    assert adapter_parameters(TINY, Recipe("lora", r=3)) == 2 * 3 * 128
    assert adapter_parameters(TINY, Recipe("lora", r=3, targets="qv")) == 2 * 3 * 28
    assert adapter_parameters(TINY, Recipe()) == 0
    assert trained_parameters(TINY, Recipe()) == TINY.parameters


def test_bytes_agree_with_the_second_papers():
    """16 bytes a parameter with Adam in mixed precision, as utils.evaluation.memory has them; 12 with Lion."""
    for optimiser, name in (("adamw", "adam"), ("lion", "lion")):
        parts = moments(TINY, Recipe(precision="mixed", optimiser=optimiser)).loc["update"]
        assert parts[["weights", "gradients", "optimiser"]].sum() == training_bytes(TINY.parameters, optimiser=name)


def test_states_by_hand():
    """Two moments of a byte with a scale of 4 bytes per 256; Adafactor's rows and columns; LoRA's in float32."""
    assert state_bytes(TINY, Recipe(optimiser="adamw8bit")) == 2 * (1 + 4 / 256) * TINY.parameters
    assert state_bytes(TINY, Recipe(optimiser="sgd")) == 0
    assert state_bytes(TINY, Recipe(optimiser="adafactor")) == 4 * (2 * 128 + 18 + 40)
    assert state_bytes(TINY, Recipe("lora", r=1, precision="bfloat16")) == 8 * 256
    assert weight_bytes(TINY, Recipe("qlora", precision="bfloat16")) == NF4 * 1152 + 2 * 120
    assert pytest.approx(0.516, abs=5e-4) == NF4  # QLoRA's 4.127 bits


LIVE = [{}, {"checkpointing": True}, {"method": "lora"}, {"method": "lora", "checkpointing": True},
        {"method": "lora", "targets": "qv"}, {"optimiser": "sgd"}, {"optimiser": "adafactor"}, {"optimiser": "lion"},
        {"attention": "eager"}, {"method": "lora", "attention": "eager"}, {"precision": "bfloat16"},
        {"method": "lora", "precision": "bfloat16"}, {"method": "lora", "precision": "bfloat16", "targets": "qv"}]


@pytest.mark.parametrize("way", LIVE, ids=lambda way: ", ".join(map(str, way.values())) or "full")
@pytest.mark.parametrize("size", [(4, 128), (1, 16)], ids=["activations", "states"])
def test_the_formula_counts_the_live_tensors_of_real_steps(way, size):
    """Every tensor alive at any operation of two steps of the small decoder, against the formula: one percent."""
    recipe, shape = Recipe(batch=size[0], length=size[1], **way), shape_of(AutoConfig.from_pretrained(DECODER))
    live, _ = footprint.live_peak(footprint.build(DECODER, recipe), recipe)
    assert memory_parts(shape, recipe)["total"] == pytest.approx(live, rel=0.01)


def test_grouped_keys_and_untied_embeddings_are_counted(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, tie_word_embeddings=False).save_pretrained(tmp_path)
    shape = shape_of(AutoConfig.from_pretrained(tmp_path))
    for method in ("full", "lora"):
        recipe = Recipe(method, batch=4, length=64)
        live, _ = footprint.live_peak(footprint.build(tmp_path, recipe), recipe)
        assert memory_parts(shape, recipe)["total"] == pytest.approx(live, rel=0.02)


def test_the_formula_is_near_what_peft_reports_for_a_gpu():
    """Their 36.2, 20.76 and 21.0 GiB, with nothing fitted; the trained parameters agree exactly."""
    table = tables.peft_predictions()
    assert (table["trained"] == table["trained_published"]).all()
    assert table["ratio"].between(0.9, 1.1).all()


@pytest.mark.process
def test_measured_in_a_process_of_its_own():
    """At this size the process's own unrest is as large as the model: only the tensors and the form are checked."""
    recipe = Recipe("lora", r=2, batch=1, length=16)
    found = footprint.measure(DECODER, recipe)
    shape = shape_of(AutoConfig.from_pretrained(DECODER))
    assert found["trained"] == adapter_parameters(shape, recipe) and found["note"] == ""
    assert found["live_gib"] == pytest.approx(memory_parts(shape, recipe)["total"] / 2**30, rel=0.02)
    assert found["peak_gib"] > 0.9 * found["live_gib"] and found["tokens_per_second"] > 0


def test_what_this_machine_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr(footprint, "device_name", lambda: "cpu")
    for recipe in (Recipe("qlora"), Recipe(optimiser="adamw8bit")):
        found = footprint.measure(DECODER, recipe)
        assert found["peak_gib"] is None and found["note"] == "needs bitsandbytes and a GPU"


@pytest.mark.process
def test_a_failed_process_is_one_sentence(tmp_path):
    with pytest.raises(CourseError, match="^Measuring LoRA r=8, AdamW failed: .*[.]$"):
        footprint.measure(tmp_path / "nothing", Recipe("lora"))


def test_operations_by_hand():
    """One token: 2 x 1152 for the maps, 4 x 1 x 8 x 2 for attention, 2 x 80 for the output, three times for full."""
    forward = 2 * 1152 + 64 + 160
    assert step_flops(TINY, Recipe(length=1)) == 3 * forward
    assert step_flops(TINY, Recipe(length=1, checkpointing=True)) == 4 * forward - 160
    assert step_flops(TINY, Recipe("lora", r=1, length=1)) == 2 * forward + 64 + 6 * 256
    assert step_flops(TINY, Recipe(length=1, batch=5)) == 5 * 3 * forward


def test_hours_by_hand():
    """7e9 parameters, 6 N D over 1e9 tokens at 30 % of 100 TFLOPS: 6 x 7e18 / 3e13 s is 389 hours."""
    shape = Shape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, head_dim=128, vocabulary=32000,
                  tied=False)
    expected = step_flops(shape, Recipe(length=1)) * 1e9 / (100e12 * 0.3) / 3600
    assert training_hours(shape, Recipe(length=1), 1e9, tflops=100) == pytest.approx(expected)
    assert expected == pytest.approx(6 * 6.6e9 * 1e9 / 3e13 / 3600, rel=0.02)
    for bad in ({"tflops": 0.0}, {"tflops": 100.0, "utilisation": 1.5}):
        with pytest.raises(UsageError, match="^Expected"):
            training_hours(shape, Recipe(), 1e9, **bad)


def test_money_by_hand():
    """Rented: 12 h x 0.40. Bought: 2000 over 5000 h is 0.40 an hour, and 450 W at 0.30 is 0.135."""
    assert run_cost(12, price_per_hour=0.4) == pytest.approx(4.8)
    assert run_cost(10, purchase_price=2000, lifetime_hours=5000, watts=450, price_per_kwh=0.3) == pytest.approx(5.35)
    for bad in ({}, {"price_per_hour": 1.0, "purchase_price": 1.0}, {"price_per_hour": -1.0},
                {"purchase_price": 1.0, "lifetime_hours": 0}, {"price_per_hour": math.nan}):
        with pytest.raises(UsageError, match="^Expected"):
            run_cost(1, **bad)


# The calculator -----------------------------------------------------------------------------------------------------


def test_a_gpu_missing_from_the_table_is_one_clear_sentence():
    with pytest.raises(UsageError, match="^Expected a GPU .* got 'RTX 9999'; do take one of RTX 3090, .*[.]$"):
        tables.calculator("SmolLM2-1.7B", "RTX 9999", Recipe())
    with pytest.raises(UsageError, match="^Expected a model of the table, got 'GPT-9'; take one of SmolLM2-135M, "):
        tables.calculator("GPT-9", "RTX 4090", Recipe())
    assert gpu(tables.gpus(), " rtx 4090 ")["memory_gib"] == 24


def test_seven_billion_parameters_by_hand():
    """Weights alone: 6.74e9 x 2 B are 12.55 GiB, x 16 B 100.4 GiB: LoRA fits 24 GiB, full no consumer GPU."""
    lora = tables.calculator("Llama-2-7B", "RTX 4090", Recipe("lora", precision="bfloat16"))
    assert lora["fits"].tolist() == [True] and 12.55 + 1 < lora["needed_gib"].iloc[0] < 24
    full = tables.calculator("Llama-2-7B", "RTX 4090", Recipe(precision="mixed"))
    assert not full["fits"].iloc[0] and full["needed_gib"].iloc[0] > 101.4
    assert full["change"].tolist() == ["", "gradient checkpointing", "an 8-bit optimiser", "LoRA of rank 8"]
    assert full["fits"].tolist() == [False, False, False, True]
    assert "then LoRA of rank 8" in verdict(full) and verdict(lora).startswith("It fits: LoRA r=8")


def test_the_least_harmful_change_comes_first():
    """SmolLM2-1.7B, full in bfloat16 with batches of 8: smaller batches are enough for 24 GiB."""
    table = tables.calculator("SmolLM2-1.7B", "RTX 4090", Recipe(precision="bfloat16", batch=8, length=1024))
    assert table["change"].tolist() == ["", "batches of 1, accumulated 8 times"]
    steps = [change for change, _ in changes(Recipe(precision="mixed", batch=2))]
    assert steps == ["batches of 1, accumulated 2 times", "gradient checkpointing", "an 8-bit optimiser",
                     "LoRA of rank 8", "QLoRA of rank 8"]


def test_each_change_needs_less():
    for shape in tables.model_shapes().values():
        start = Recipe(precision="mixed", batch=8, length=1024)
        needed = [memory_parts(shape, recipe)["total"] for _, recipe in [("", start), *changes(start)]]
        assert needed == sorted(needed, reverse=True)


def test_nothing_helps_on_too_small_a_gpu():
    table = fits(tables.model_shapes()["Llama-2-7B"], Recipe(precision="mixed"), 2.0)
    assert not table["fits"].any() and "a smaller model" in verdict(table)
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError, match="^Expected the GPU's memory"):
            fits(TINY, Recipe(), bad)


def test_cost_per_run_by_hand():
    """At a measured 1,000 tokens a second 3.6 million tokens take an hour; the RTX 4090 draws 450 W."""
    recipe, prices = Recipe("lora", precision="bfloat16"), {
        "RTX 4090": {"purchase_price": 2000, "lifetime_hours": 4000, "price_per_kwh": 0.2},
        "L4": {"price_per_hour": 0.7}}
    table = tables.run_table("SmolLM2-1.7B", recipe, tokens=3.6e6, prices=prices,
                             tokens_per_second={"RTX 4090": 1000, "L4": 500})
    table = table.set_index("gpu")
    assert table.loc["RTX 4090", "cost"] == pytest.approx(0.5 + 0.09) and table.loc["L4", "hours"] == 2
    assert table.loc["L4", "cost"] == pytest.approx(1.4) and math.isnan(table.loc["RTX 5090", "cost"])
    assert table.loc["A100 80 GB", "hours"] > 0 and math.isnan(table.loc["RTX 5090", "hours"])
    with pytest.raises(UsageError, match="^Expected a GPU of the table, got 'Voodoo 2'"):
        tables.run_table("SmolLM2-1.7B", recipe, tokens=1e6, prices={"Voodoo 2": {"price_per_hour": 1.0}})


@pytest.mark.parametrize("bad", [{"method": "prefix"}, {"optimiser": "adam"}, {"batch": 0}, {"precision": "int8"}])
def test_an_impossible_recipe_is_one_sentence(bad):
    with pytest.raises(UsageError, match="^Expected .*, got .*; do (give|choose) .*[.]$"):
        Recipe(**bad)


def test_other_architectures_are_refused(tiny_base):
    with pytest.raises(UsageError, match="^Expected a model of one of the types llama, .* got 'bert'; do choose "):
        shape_of(AutoConfig.from_pretrained(tiny_base))


# Tables and figures -------------------------------------------------------------------------------------------------


def test_peft_benchmark_and_its_front():
    """63 rows; sqrt(p (1 - p) / 1319) of full's 0.4716 is 0.01375; no row on the front is beaten."""
    table = measure.peft_benchmark()
    full = table[table["method"] == "full"].iloc[0]
    assert len(table) == 63 and full["accuracy_se"] == pytest.approx(0.013745, abs=1e-6)
    for row in table[table["on_front"]].itertuples():
        better = (table["accuracy"] >= row.accuracy) & (table["forgetting"] <= row.forgetting)
        assert better.sum() == 1
    assert set(table[table["on_front"]].index) <= set(table[table["on_front_3"]].index)
    assert (table["on_front"] <= table["near_front"]).all()


def test_gpu_table_is_complete_and_has_its_sources():
    table = tables.gpus()
    assert table["gpu"].is_unique and table[["memory_gib", "bandwidth_gb_s", "watts", "source"]].notna().all(axis=None)
    bits = table.set_index("gpu")["bandwidth_gb_s"]
    assert bits["RTX 4070 Ti SUPER"] == 256 * 21 / 8 and bits["RTX 5090"] == 512 * 28 / 8


def test_worked_examples_come_from_another_split_and_cost_tokens():
    """The course's own tasks take the number asked for; without one nothing changes."""
    from transformers import AutoTokenizer

    from utils.evaluation.harness import _task, item_results
    from utils.profiles.schema import ModelReference
    from utils.sources.cloze import cloze_items
    from utils.sources.models import resolve

    folder = resolve(ModelReference(source="packaged", name="small-decoder")).folder
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seen = {}
    for shots in (None, 0, 1):
        with measure._counted(model) as seen[shots]:
            items = item_results(model, tokenizer, ["news_cloze"], limit=2, num_fewshot=shots)
        assert set(items["num_fewshot"]) == {shots or 0}
    assert seen[None]["tokens"] == seen[0]["tokens"] and 1.5 < seen[1]["tokens"] / seen[0]["tokens"] < 3
    examples = {row["choices"][row["answer"]] for row in _task("news_cloze", 1).fewshot_docs()}
    asked = {row["choices"][row["answer"]] for row in cloze_items().to_dict("records")}
    assert examples and not examples & asked


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_profile_says_what_is_measured(name):
    profile = load_profile(name)
    assert profile.costs.shots[0] == 0 and len({recipe.label for recipe in measure.recipes(profile)}) == 8
