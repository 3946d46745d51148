"""``python -m utils intruders`` on checkpoints as transformers and PEFT write them, judged by the plain definition."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import standin_checkpoints as standin
import standin_hub
import torch
from checkpoint_shelf import (
    EPSILONS,
    INDEX,
    assert_is_the_definition,
    assert_same,
    assert_says,
    models_before_and_after,
    moved,
    real_looking,
    refused,
    report_of,
)
from PIL import Image
from standin_checkpoints import MATRICES, NARROW, WIDTH, configured, definition, edited, save_adapter
from standin_hub import COMMIT, PICKLED, ROBERTA, SHARDED
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from utils.course.cli import main
from utils.paths import ROOT
from utils.spectra.fast import Pair, leading_cosines
from utils.spectra.precision import precision_floor

pytestmark = pytest.mark.usefixtures("shelf_cache")


# Whole models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", MATRICES)
def test_a_whole_model_is_counted_as_defined(shelf, tmp_path, architecture):
    """Encoders, decoders, grouped and fused attention, two stacks, and GPT-2's weights, which are stored (in, out)."""
    report = report_of(tmp_path, shelf.base(architecture), shelf.tuned(architecture))
    assert len(report["matrices"]) == MATRICES[architecture]
    assert_is_the_definition(report, *models_before_and_after(architecture))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_right_vectors_are_those_of_the_input_side(shelf, tmp_path, architecture):
    report = report_of(tmp_path, shelf.base(architecture), shelf.tuned(architecture), "--vectors", "right")
    shapes = [(out > into) - (out < into) for out, into in (row["shape"] for row in report["matrices"])]
    assert report["vectors"] == "right" and set(shapes) == {-1, 0, 1}, "tall, wide and square ones should be there"
    assert_is_the_definition(report, *models_before_and_after(architecture), vectors="right")


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_narrow_matrices_are_computed_directly(shelf, tmp_path, architecture):
    report = report_of(tmp_path, shelf.base(architecture, NARROW), shelf.tuned(architecture, NARROW))
    assert {row["method"] for row in report["matrices"]} == {"full-svd"}
    assert_is_the_definition(report, *models_before_and_after(architecture, NARROW))


@pytest.mark.parametrize("lacks", ["base", "tuned", "both"])
def test_gpt2_without_its_configuration_is_read_the_right_way_round(shelf, tmp_path, lacks):
    """Weights lie as (in, out); biases say so, and other matrices of one name say it of those that are square."""
    pair = {"base": shelf.base("gpt2"), "tuned": shelf.tuned("gpt2")}
    for role in pair:
        if lacks in (role, "both"):
            pair[role] = shutil.copytree(pair[role], tmp_path / role)
            (pair[role] / "config.json").unlink()
    assert_is_the_definition(report_of(tmp_path, *pair.values()), *models_before_and_after("gpt2"))


@pytest.mark.parametrize("bare", ["base", "tuned"])
def test_a_body_without_head_meets_one_with_head(shelf, tmp_path, bare):
    """The names of one have a prefix that those of the other lack; they are the same matrices."""
    base, tuned = shelf.base("bert"), shelf.tuned("bert")
    BertModel.from_pretrained({"base": base, "tuned": tuned}[bare]).save_pretrained(tmp_path / "body")
    base, tuned = (tmp_path / "body", tuned) if bare == "base" else (base, tmp_path / "body")
    before, after = models_before_and_after("bert")
    if bare == "base":
        before, after = ({name.removeprefix("bert."): weight for name, weight in part.items()}
                         for part in (before, after))
    assert_is_the_definition(report_of(tmp_path, base, tuned), before, after)


def test_a_head_of_another_task_is_no_obstacle(shelf, tmp_path):
    BertForSequenceClassification.from_pretrained(shelf.tuned("bert")).save_pretrained(tmp_path / "classifier")
    report = report_of(tmp_path, shelf.base("bert"), tmp_path / "classifier")
    assert_is_the_definition(report, *models_before_and_after("bert"))


@pytest.mark.parametrize("sharded", ["base", "tuned", "both"])
def test_shards_make_no_difference(shelf, tmp_path, sharded):
    base, tuned = shelf.base("llama"), shelf.tuned("llama")
    whole = report_of(tmp_path, base, tuned)
    for role, source in (("base", base), ("tuned", tuned)):
        if sharded in (role, "both"):
            LlamaForCausalLM.from_pretrained(source).save_pretrained(tmp_path / role, max_shard_size="200KB")
            assert len(list((tmp_path / role).glob("*.safetensors"))) > 2 and (tmp_path / role / INDEX).exists()
    report = report_of(tmp_path, *(tmp_path / role if sharded in (role, "both") else source
                                   for role, source in (("base", base), ("tuned", tuned))))
    assert_same(report, whole)


def test_a_second_copy_of_the_weights_is_not_counted_twice(shelf, tmp_path):
    """Some repositories carry the same weights again, under another name."""
    shutil.copytree(shelf.tuned("bert"), tmp_path / "twice")
    shutil.copy(tmp_path / "twice" / "model.safetensors", tmp_path / "twice" / "model.fp32.safetensors")
    report = report_of(tmp_path, shelf.base("bert"), tmp_path / "twice")
    assert_is_the_definition(report, *models_before_and_after("bert"))


@pytest.mark.parametrize("k", [1, 3, 40, 500])
def test_k_is_how_many_vectors_are_examined(shelf, tmp_path, k):
    """More than a matrix has means all of them."""
    report = report_of(tmp_path, shelf.base("llama"), shelf.tuned("llama"), "--k", k)
    assert {len(row["max_cosines"]) for row in report["matrices"]} == {min(k, q) for q in (WIDTH // 2, WIDTH)}
    assert_is_the_definition(report, *models_before_and_after("llama"), k=k)


# Adapters -----------------------------------------------------------------------------------------------------------

ADAPTERS = {
    "plain": ("bert", BertForMaskedLM, {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value", "dense"]}),
    "rslora": ("bert", BertForMaskedLM, {"r": 8, "use_rslora": True, "target_modules": ["query", "value"]}),
    "patterns": ("bert", BertForMaskedLM, {
        "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "rank_pattern": {"value": 3},
        "alpha_pattern": {"layer.1.attention.self.query": 40, "value": 5}}),
    "regular patterns of rslora": ("bert", BertForMaskedLM, {
        "r": 8, "use_rslora": True, "target_modules": ["query", "value"], "rank_pattern": {r"layer\.0\..*\.value": 3},
        "alpha_pattern": {r"layer\.1\..*": 40, "value": 5}}),
    "dora": ("bert", BertForMaskedLM, {"r": 4, "use_dora": True, "target_modules": ["query", "output.dense"]}),
    "gpt2": ("gpt2", GPT2LMHeadModel, {"r": 4, "target_modules": ["c_attn", "c_fc", "c_proj"],
                                       "fan_in_fan_out": True}),
    "dora on gpt2": ("gpt2", GPT2LMHeadModel, {"r": 4, "use_dora": True, "target_modules": ["c_attn", "c_fc"],
                                               "fan_in_fan_out": True}),
    "one layer only": ("llama", LlamaForCausalLM, {"r": 4, "target_modules": ["q_proj", "k_proj", "down_proj"],
                                                   "layers_to_transform": [1]}),
    "of high rank": ("llama", LlamaForCausalLM, {"r": 64, "target_modules": "all-linear", "lora_alpha": 256}),
    "of more than full rank": ("neox", GPTNeoXForCausalLM, {"r": 160, "lora_alpha": 2000,
                                                            "target_modules": ["query_key_value"]}),
    "with biases": ("neox", GPTNeoXForCausalLM, {"r": 4, "target_modules": ["query_key_value"], "bias": "all",
                                                 "lora_bias": True}),
    "two stacks": ("t5", T5ForConditionalGeneration, {"r": 4, "target_modules": ["q", "wo"]}),
    "with a classifier": ("bert", BertForSequenceClassification, {
        "r": 4, "target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}),
    "with embeddings": ("bert", BertForMaskedLM, {"r": 4, "target_modules": ["query", "word_embeddings"]}),
    "of the bare body": ("bert", BertModel, {"r": 4, "target_modules": ["query", "pooler.dense"]}),
}


@pytest.mark.parametrize("vectors", ["left", "right"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_counted_as_merged(shelf, tmp_path, kind, vectors):
    """What PEFT's own merge makes of the base is what is judged, and only matrices that the adapter changes."""
    architecture, model_class, settings = ADAPTERS[kind]
    base = shelf.base(architecture)
    adapter = save_adapter(tmp_path / "adapter", base, model_class, **settings)
    before, after = standin.merged_matrices(base, adapter, model_class)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert 0 < len(changed) < len(before) or settings["target_modules"] in ("all-linear", ["c_attn", "c_fc", "c_proj"])
    report = report_of(tmp_path, base, adapter, "--vectors", vectors)
    prefix = "bert." if model_class is BertModel else ""
    assert_is_the_definition(report, before, after, names=changed, vectors=vectors, prefix=prefix)
    dense = kind.startswith("dora") or "rank" in kind
    assert {row["method"] for row in report["matrices"] if min(row["shape"]) == WIDTH} == {
        "leading-vectors" if dense else "lowrank-core"}


def test_a_direct_adapter_is_counted_as_merged(shelf, tmp_path):
    """Below width 129 the merged matrix goes through the definition itself."""
    for settings in ({}, {"use_dora": True}, {"use_rslora": True}):
        base, adapter = shelf.base("bert", NARROW), shelf.adapter(NARROW, **settings)
        before, after = standin.merged_matrices(base, adapter, BertForMaskedLM)
        changed = [name for name in before if not np.array_equal(before[name], after[name])]
        report = report_of(tmp_path, base, adapter)
        assert {row["method"] for row in report["matrices"]} == {"full-svd"}
        assert_is_the_definition(report, before, after, names=changed)


# Stored types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_not_refused(shelf, tmp_path, dtype):
    """The counts are those of the stored numbers; how far rounding had moved them is said beside."""
    name = str(dtype).removeprefix("torch.")
    standin.build("llama").to(dtype).save_pretrained(tmp_path / "base")
    standin.tune(standin.build("llama")).to(dtype).save_pretrained(tmp_path / "tuned")
    report = report_of(tmp_path, tmp_path / "base", tmp_path / "tuned")
    assert_is_the_definition(report, *models_before_and_after("llama", dtype=dtype))
    assert {tuple(row["stored"]) for row in report["matrices"]} == {(name, name)}
    exact = report_of(tmp_path, shelf.base("llama"), shelf.tuned("llama"))
    mixed = report_of(tmp_path, shelf.base("llama"), tmp_path / "tuned")
    assert {tuple(row["stored"]) for row in exact["matrices"]} == {("float32", "float32")}
    assert {tuple(row["stored"]) for row in mixed["matrices"]} == {("float32", name)}
    for row, other, least in zip(report["matrices"], mixed["matrices"], exact["matrices"], strict=True):
        assert 0 < least["precision_floor"] < other["precision_floor"] < row["precision_floor"] <= 1
    assert report["precision_floor"] == max(row["precision_floor"] for row in report["matrices"])
    within = sum(abs(cosine - epsilon) < row["precision_floor"] for row in report["matrices"]
                 for cosine in row["max_cosines"] for epsilon in EPSILONS)
    assert report["within_floor"] == within


def test_an_adapter_over_a_bfloat16_base(shelf, tmp_path):
    standin.build("bert").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    before, after = standin.merged_matrices(tmp_path / "base", shelf.adapter(), BertForMaskedLM)
    report = report_of(tmp_path, tmp_path / "base", shelf.adapter())
    names = [name for name in before if "query" in name or "value" in name]
    assert_is_the_definition(report, before, after, names=names)
    assert {row["stored"][0] for row in report["matrices"]} == {"bfloat16"}


@pytest.mark.parametrize("vectors", ["left", "right"])
@pytest.mark.parametrize("shape", [(192, 192), (192, 256), (256, 192)], ids=["square", "wide", "tall"])
def test_the_precision_floor_is_about_what_rounding_does(shape, vectors):
    far, floors, changes = (shape[0] > shape[1]) == (vectors == "left"), {}, {}
    for dtype in (torch.bfloat16, torch.float16):
        squares = {"floor": [], "change": []}
        for seed in range(4):
            base = real_looking(shape, seed)
            tuned = moved(base, seed=seed + 10)[0]
            exact = definition(base.numpy(), tuned.numpy(), vectors=vectors)[1]
            base, tuned = base.to(dtype), tuned.to(dtype)
            found = next(leading_cosines([Pair("w", lambda base=base, tuned=tuned: (base, tuned))], vectors=vectors))
            rounded = definition(base.double().numpy(), tuned.double().numpy(), vectors=vectors)[1]
            squares["change"].append((rounded - exact)**2)
            squares["floor"].append(precision_floor(found, dtype, dtype, far=far).numpy()**2)
        floors[dtype], changes[dtype] = (np.sqrt(np.mean(squares[key])) for key in ("floor", "change"))
        assert 0.1 < floors[dtype] / changes[dtype] < 10, (dtype, floors[dtype], changes[dtype])
    assert floors[torch.bfloat16] / floors[torch.float16] == pytest.approx(8, rel=0.1)  # three bits of mantissa


# The report ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, methods", [
    ("dense", {WIDTH: "leading-vectors", WIDTH // 2: "full-svd"}),
    ("lora", {WIDTH: "lowrank-core", WIDTH // 2: "full-svd"}),
    ("dora", {WIDTH: "leading-vectors", WIDTH // 2: "full-svd"}),
])
def test_the_report_has_everything_that_the_counts_follow_from(shelf, tmp_path, kind, methods):
    base = shelf.base("llama")
    tuned = shelf.tuned("llama") if kind == "dense" else save_adapter(
        tmp_path / "adapter", base, LlamaForCausalLM, r=8, target_modules=["q_proj", "k_proj"], use_dora=kind == "dora")
    report = report_of(tmp_path, base, tuned, "--epsilon", "0.5", "0.25", "0.75", "--k", "7")
    assert {"base", "tuned", "k", "epsilons", "vectors", "total", "matrices", "seconds", "provenance"} <= set(report)
    assert (report["base"], report["tuned"], report["k"], report["vectors"]) == (str(base), str(tuned), 7, "left")
    assert report["epsilons"] == [0.25, 0.5, 0.75] and list(report["total"]) == ["0.25", "0.5", "0.75"]
    assert report["seconds"] > 0 and report["provenance"]["packages"]["torch"] == torch.__version__
    names = [row["name"] for row in report["matrices"]]
    assert len(set(names)) == len(names) and all("layers.0." in name for name in names[:len(names) // 2])
    for row in report["matrices"]:
        assert {"name", "shape", "method", "singular_values", "max_cosines", "margin", "counts"} <= set(row)
        assert row["method"] == methods[min(row["shape"])]
        values, cosines = row["singular_values"], row["max_cosines"]
        assert len(values) == len(cosines) == 7 and values == sorted(values, reverse=True) and values[-1] >= 0
        assert all(0 <= cosine <= 1 for cosine in cosines)
        assert row["margin"] == pytest.approx(min(abs(cosine - epsilon) for cosine in cosines
                                                  for epsilon in report["epsilons"]), abs=1e-15)
        assert row["counts"] == {f"{epsilon:g}": sum(cosine < epsilon for cosine in cosines)
                                 for epsilon in report["epsilons"]}
    for key, total in report["total"].items():
        assert isinstance(total, int) and total == sum(row["counts"][key] for row in report["matrices"])


def test_the_summary_says_the_counts(shelf, tmp_path, capsys):
    report = report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"))
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("intruders"))
    assert [int(word) for word in row.split()[1:]] == list(report["total"].values())
    assert_says(printed, "12 matrices", "left vectors", "k = 10", "float32", "12 leading-vectors")


def test_two_thresholds_that_agree_to_six_digits_are_two(shelf, tmp_path):
    """0.5000001 and 0.50000011 are asked for separately, and answered separately."""
    report = report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"), "--epsilon", "0.5000001", "0.50000011",
                       "--figure", tmp_path / "figure.png")
    assert len(report["epsilons"]) == len(report["total"]) == 2


def test_matrices_of_zeros_are_no_reason_to_fail(shelf, tmp_path):
    """A projection that starts at zero and stays there has singular vectors of no meaning, but the rest is counted."""
    name = "bert.encoder.layer.0.intermediate.dense.weight"

    def zeroed(tensors: dict) -> None:
        tensors[name] = torch.zeros_like(tensors[name])

    base = edited(shelf.base("bert"), tmp_path / "base", zeroed)
    tuned = edited(shelf.tuned("bert"), tmp_path / "tuned", zeroed)
    report, whole = report_of(tmp_path, base, tuned), report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"))
    counts, wanted = ({row["name"]: row["counts"] for row in one["matrices"]} for one in (report, whole))
    assert counts.keys() == wanted.keys()
    assert [key for key in counts if counts[key] != wanted[key]] in ([], [name.removesuffix(".weight")])


def test_layers_are_chosen_by_the_names_of_the_base(shelf, tmp_path):
    report = report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"), "--layers", r"layer\.1\..*(query|key)$")
    assert [row["name"] for row in report["matrices"]] == [
        f"bert.encoder.layer.1.attention.self.{part}" for part in ("key", "query")]
    report = report_of(tmp_path, shelf.base("bert"), shelf.adapter(), "--layers", "layer.0")
    assert [row["name"] for row in report["matrices"]] == [
        f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "value")]


# The figure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_the_figure_is_a_picture_that_says_what_it_shows(shelf, tmp_path, architecture):
    file = tmp_path / "made" / "figure.png"
    report = report_of(tmp_path, shelf.base(architecture), shelf.tuned(architecture), "--figure", file)
    with Image.open(file) as picture:
        words, pixels = picture.info["Description"], np.asarray(picture.convert("L"))
    assert_says(words, shelf.tuned(architecture), f"{report['total']['0.5']} at epsilon 0.5", "heat-map")
    assert min(pixels.shape) >= 400 and pixels.std() > 10 and len(np.unique(pixels)) > 50


@pytest.mark.parametrize("suffix, start", [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_figures_come_in_three_formats(shelf, tmp_path, suffix, start):
    file = tmp_path / f"figure.{suffix}"
    assert main(["intruders", str(shelf.base("bert")), str(shelf.adapter()), "--figure", str(file),
                 "--epsilon", "0.4", "--vectors", "right"]) == 0
    content = file.read_bytes()
    assert content.startswith(start) and len(content) > 5000
    if suffix == "svg":
        assert b"Intruder dimensions of" in content and content.count(b"<path") > 10


# The base that an adapter names -------------------------------------------------------------------------------------


def test_a_dash_is_the_base_that_the_adapter_names(shelf, tmp_path):
    report = report_of(tmp_path, "-", shelf.adapter())
    assert report["base"] == str(shelf.base("bert")) and report["notes"] == []
    assert_same(report, report_of(tmp_path, shelf.base("bert"), shelf.adapter()))


def test_another_base_than_the_named_one_is_noted_and_used(shelf, tmp_path, capsys):
    shutil.copytree(shelf.base("bert"), tmp_path / "moved")
    report = report_of(tmp_path, tmp_path / "moved", shelf.adapter())
    assert len(report["notes"]) == 1
    assert_says(report["notes"][0], shelf.base("bert"), tmp_path / "moved")
    assert report["notes"][0] in capsys.readouterr().out
    assert report["total"] == report_of(tmp_path, shelf.base("bert"), shelf.adapter())["total"]


@pytest.mark.parametrize("tuned, parts", [
    ("model", ["whole model", "names no base"]),
    ("none", ["names no base model", "give the base"]),
    ("gone", ["There is no folder /no/such/base"]),
    ("adapter", ["is an adapter", "the model that it was trained on"]),
])
def test_a_dash_needs_an_adapter_that_names_a_base(shelf, tmp_path, capsys, tuned, parts):
    named = {"none": None, "gone": "/no/such/base", "adapter": str(shelf.adapter())}
    folder = shelf.tuned("bert") if tuned == "model" else configured(
        shelf.adapter(), tmp_path / "adapter", base_model_name_or_path=named[tuned])
    assert_says(refused(capsys, "-", folder), *parts)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty one, for a test of what is written there."""
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# The Hub ------------------------------------------------------------------------------------------------------------


def inside_hub_names() -> dict:
    """Runs in the process that sees only the stand-in Hub: status, output and report of several commands."""
    from transformers import RobertaForMaskedLM

    folder = Path(os.environ["LORA_COURSE_CACHE"])
    adapter = save_adapter(folder / "adapter", ROBERTA, RobertaForMaskedLM, r=4, target_modules=["query"])
    found = {}
    for label, words in {"same": [ROBERTA, SHARDED], "adapter": ["-", str(adapter)], "pickled": [ROBERTA, PICKLED],
                         "unknown": [ROBERTA, "nobody/unknown-model"], "bad": ["no body/at all", SHARDED]}.items():
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["intruders", *words, "--json", str(folder / f"{label}.json")])
        report = json.loads((folder / f"{label}.json").read_text()) if status == 0 else None
        found[label] = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "report": report}
    return found


@pytest.fixture(scope="module")
def hub_answers(standin, tmp_path_factory) -> dict:
    answers = standin.ask("test_intruders_command", "inside_hub_names",
                          LORA_COURSE_CACHE=str(tmp_path_factory.mktemp("hub-cache")))
    return standin_hub.answer(answers, "inside_hub_names")


def test_hub_names_are_read_with_the_network_shut_off(hub_answers):
    report = hub_answers["same"]["report"]
    assert hub_answers["same"]["status"] == 0 and hub_answers["same"]["err"] == ""
    assert len(report["matrices"]) == 12 and set(report["total"].values()) == {0}
    assert (report["base"], report["tuned"]) == (ROBERTA, SHARDED)
    assert report["provenance"]["base_folder"] == COMMIT


def test_an_adapter_names_its_base_on_the_hub(hub_answers):
    found = hub_answers["adapter"]
    assert found["status"] == 0, found["err"]
    assert found["report"]["base"] == ROBERTA and found["report"]["notes"] == []
    assert found["report"]["total"]["0.5"] > 0 and len(found["report"]["matrices"]) == 2


@pytest.mark.parametrize("label, parts", [
    ("pickled", ["pytorch_model.bin", "--allow-pickle"]),
    ("unknown", ["nobody/unknown-model", "neither in the cache nor within reach"]),
    ("bad", ["no body/at all"]),
])
def test_a_hub_name_that_cannot_be_used_is_one_sentence(hub_answers, label, parts):
    found = hub_answers[label]
    assert found["status"] == 2 and found["out"] == "" and found["err"].count("\n") == 1
    assert found["err"].startswith("error: ") and "unexpected" not in found["err"]
    assert_says(found["err"], *parts)


def test_the_command_from_end_to_end(shelf, variables, tmp_path):
    """A shell sees the summary on stdout, nothing on stderr, both files, and no connection that was tried."""
    done = standin_hub.run(["-m", "utils", "intruders", str(shelf.base("bert")), str(shelf.tuned("bert")),
                            "--json", str(tmp_path / "report.json"), "--figure", str(tmp_path / "figure.svg")],
                           variables)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert_is_the_definition(report, *models_before_and_after("bert"))
    assert "12 matrices" in done.stdout and (tmp_path / "figure.svg").stat().st_size > 5000


# Base spectra are kept ----------------------------------------------------------------------------------------------


def test_base_spectra_are_computed_once(shelf, tmp_path, cache):
    """A second run, another tuned model and an adapter over the same base find all of it there."""
    def kept() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (cache / "spectra").iterdir()}

    first = report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"))
    files = kept()
    assert len(files) == MATRICES["bert"]
    again = report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"))
    assert_same(again, first)
    assert kept() == files
    standin.tune(standin.build("bert"), seed=9, strong=0.3).save_pretrained(tmp_path / "other")
    other = report_of(tmp_path, shelf.base("bert"), tmp_path / "other")
    after = standin.matrices(BertForMaskedLM.from_pretrained(tmp_path / "other"))
    assert_is_the_definition(other, models_before_and_after("bert")[0], after)
    assert report_of(tmp_path, "-", shelf.adapter())["total"] and kept() == files


def test_a_kept_spectrum_that_was_damaged_is_made_anew(shelf, tmp_path, cache):
    first = report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"))
    for place, file in enumerate(sorted((cache / "spectra").iterdir())):
        whole = file.read_bytes()
        spoiled = bytearray(whole)
        spoiled[len(whole) // 2] ^= 0x40
        file.write_bytes((b"", whole[:len(whole) // 2], bytes(spoiled))[place % 3])
    assert_same(report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert")), first)


# Memory -------------------------------------------------------------------------------------------------------------

_MEASURED = r"""
import json, re, sys
from utils.course.intruders import analyse

def memory(key):
    return int(re.search(key + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024

base, tuned = sys.argv[1:]
analyse(base, tuned, layers=re.compile(r"layers\.0\."), device="cpu")  # libraries and buffers of every shape
before = {key: memory(key) for key in ("VmHWM", "RssAnon")}
report = analyse(base, tuned, device="cpu")
print(json.dumps({"peak": memory("VmHWM") - before["VmHWM"], "anonymous": memory("RssAnon") - before["RssAnon"],
                  "matrices": len(report["matrices"])}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """Growth in MiB while a sharded pair is analysed in a process of its own.

    VmHWM is ru_maxrss of this process alone; ru_maxrss itself starts at what pytest had when it started the process.
    """
    status = Path("/proc/self/status")
    if not status.exists() or not {"VmHWM", "RssAnon"} <= {line.split(":")[0] for line in status.open()}:
        pytest.skip("only Linux tells how much of a process is in memory, and of which kind")
    folder = tmp_path_factory.mktemp("seven")
    layout = {"layers": 24, "width": 320, "inner": 864}
    weights = sum(standin.write_sharded_llama(folder / name, tuned=name == "tuned", **layout)
                  for name in ("base", "tuned"))
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(folder / "base"), str(folder / "tuned")], cwd=ROOT,
                          env=os.environ | {"LORA_COURSE_CACHE": str(folder / "cache")}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    found = json.loads(done.stdout.splitlines()[-1]) | {"pair": weights * 4 / 2**20}
    assert found["matrices"] == 24 * 7
    return found


@pytest.mark.process
def test_no_weights_are_kept_in_memory_of_its_own(measured):
    assert measured["anonymous"] < measured["pair"] / 10, measured


@pytest.mark.process
def test_peak_memory_is_that_of_a_few_matrices(measured):
    """A pair that is twice as large as the machine's memory would still pass through it."""
    assert measured["peak"] < measured["pair"] / 3, measured
