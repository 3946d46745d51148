"""What is damaged, hostile or of another kind ends in one sentence and status 2; nothing ends in a wrong count."""

import os
import pickle
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from checkpoint_shelf import CONFIG, FACTOR, INDEX, QUERY, assert_same, assert_says, refused, report_of
from peft import IA3Config, VeraConfig
from standin_checkpoints import NARROW, WIDTH, configured, edited, pickled, save_adapter
from transformers import BertForMaskedLM, LlamaForCausalLM

pytestmark = pytest.mark.usefixtures("shelf_cache")


# Misuse -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, parts", [
    (["--layers", "layer.9"], ["No matrix is left", "layer.9", "layer.0.attention"]),
    (["--layers", "("], ["--layers", "'(' is not a regular expression"]),
    (["--epsilon", "0"], ["--epsilon", "'0'", "above 0 and up to 1"]),
    (["--epsilon", "1.5"], ["--epsilon", "'1.5'", "above 0 and up to 1"]),
    (["--epsilon", "0.5", "abc"], ["--epsilon", "'abc'", "above 0 and up to 1"]),
    (["--epsilon", "nan"], ["--epsilon", "'nan'", "above 0 and up to 1"]),
    (["--k", "0"], ["--k", "'0'", "1 or more"]),
    (["--k", "2.5"], ["--k", "'2.5'", "whole number"]),
    (["--vectors", "up"], ["--vectors", "'up'", "left", "right"]),
    (["--figure", "figure.jpg"], ["--figure", "'figure.jpg'", ".png, .svg or .pdf"]),
    (["--device", "tpu"], ["--device", "'tpu'", "cpu", "cuda"]),
], ids=lambda value: " ".join(value) if value and value[0].startswith("--") else None)
def test_misuse_is_one_sentence(shelf, capsys, options, parts):
    assert_says(refused(capsys, shelf.base("bert"), shelf.tuned("bert"), *options), *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(shelf, capsys):
    assert_says(refused(capsys, shelf.base("bert"), shelf.tuned("bert"), "--device", "cuda"), "--device cuda", "no GPU",
                "--device cpu")


def test_an_adapter_is_no_base(shelf, capsys):
    assert_says(refused(capsys, shelf.adapter(), shelf.adapter()), shelf.adapter(), "is an adapter", "first argument")


# Checkpoints that do not go together --------------------------------------------------------------------------------


def cut_rows(tensors: dict) -> None:
    tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"][:100].contiguous()


def without_one(tensors: dict) -> None:
    del tensors[f"{QUERY}.weight"]


def one_more_layer(tensors: dict) -> None:
    tensors["bert.encoder.layer.2.attention.self.query.weight"] = tensors[f"{QUERY}.weight"].clone()


@pytest.mark.parametrize("edit, parts", [
    (cut_rows, [QUERY, "(144, 144)", "(100, 144)", "base", "tuned"]),
    (without_one, [f"lacks '{QUERY}'"]),
    (one_more_layer, ["also has 'bert.encoder.layer.2.attention.self.query'"]),
])
def test_models_of_two_architectures(shelf, tmp_path, capsys, edit, parts):
    tuned = edited(shelf.tuned("bert"), tmp_path / "tuned", edit)
    assert_says(refused(capsys, shelf.base("bert"), tuned), *parts)


def test_models_of_two_families_name_a_few_of_their_matrices(shelf, capsys):
    sentence = refused(capsys, shelf.base("bert"), shelf.tuned("llama"))
    assert_says(sentence, "lacks", "bert.encoder.layer.0.attention", "9 more")


def widened(tensors: dict) -> None:
    tensors[f"{FACTOR}.lora_A.weight"] = torch.ones(4, 100)


def of_a_seventh_layer(tensors: dict) -> None:
    for part in ("lora_A", "lora_B"):
        tensors[f"{FACTOR}.{part}.weight".replace("layer.1", "layer.7")] = tensors[f"{FACTOR}.{part}.weight"].clone()


def without_b(tensors: dict) -> None:
    del tensors[f"{FACTOR}.lora_B.weight"]


def of_two_ranks(tensors: dict) -> None:
    tensors[f"{FACTOR}.lora_A.weight"] = tensors[f"{FACTOR}.lora_A.weight"][:2].contiguous()


def short_magnitude(tensors: dict) -> None:
    tensors[f"{FACTOR}.lora_magnitude_vector"] = tensors[f"{FACTOR}.lora_magnitude_vector"][:100].contiguous()


def with_a_whole_weight(tensors: dict) -> None:
    tensors[f"{FACTOR}.weight"] = torch.ones(WIDTH, WIDTH)


def without_factors(tensors: dict) -> None:
    tensors.clear()
    tensors["something.else"] = torch.ones(2)


@pytest.mark.parametrize("edit, parts", [
    (widened, [QUERY, "(144, 144)", "(144, 100)"]),
    (of_a_seventh_layer, ["layer.7.attention.self.query"]),
    (without_b, [QUERY, "lora_B"]),
    (of_two_ranks, [QUERY]),
    (short_magnitude, [QUERY]),
    (with_a_whole_weight, [QUERY, "merge_and_unload"]),
    (without_factors, ["no LoRA factors"]),
])
def test_an_adapter_that_does_not_fit(shelf, tmp_path, capsys, edit, parts):
    source = shelf.adapter(use_dora=True) if edit is short_magnitude else shelf.adapter()
    adapter = edited(source, tmp_path / "adapter", edit)
    assert_says(refused(capsys, shelf.base("bert"), adapter), *parts)


def test_an_adapter_of_another_family(shelf, tmp_path, capsys):
    adapter = save_adapter(tmp_path / "adapter", shelf.base("llama"), LlamaForCausalLM, r=4, target_modules=["q_proj"])
    assert_says(refused(capsys, shelf.base("bert"), adapter), "model.layers.0.self_attn.q_proj")


# Adapters of another kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, settings", [
    ("IA3", {"config_class": IA3Config, "target_modules": ["query"], "feedforward_modules": []}),
    ("VERA", {"config_class": VeraConfig, "target_modules": ["query"], "r": 4}),
    ("pissa", {"init_lora_weights": "pissa", "target_modules": ["query"], "r": 4}),
    ("pissa_niter_2", {"init_lora_weights": "pissa_niter_2", "target_modules": ["query"], "r": 4}),
    ("olora", {"init_lora_weights": "olora", "target_modules": ["query"], "r": 4}),
])
def test_what_is_more_than_scale_b_a_is_refused_with_a_way_out(shelf, tmp_path, capsys, name, settings):
    """Saved by PEFT itself; for each the factors alone do not say what the tuned weight is."""
    adapter = save_adapter(tmp_path / "adapter", shelf.base("bert"), BertForMaskedLM, **settings)
    assert_says(refused(capsys, shelf.base("bert"), adapter), adapter, name, "merge_and_unload")


@pytest.mark.parametrize("changes", [
    {"target_parameters": ["mlp.experts.down_proj"]}, {"layer_replication": [[0, 1], [0, 2]]}, {"use_qalora": True}])
def test_variants_beyond_lora_are_named(shelf, tmp_path, capsys, changes):
    adapter = configured(shelf.adapter(), tmp_path / "adapter", **changes)
    assert_says(refused(capsys, shelf.base("bert"), adapter), *changes, "merge_and_unload")


@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal", "eva"])
def test_starts_that_leave_the_base_alone_are_read(shelf, tmp_path, start):
    adapter = configured(shelf.adapter(), tmp_path / "adapter", init_lora_weights=start)
    assert report_of(tmp_path, "-", adapter)["total"] == report_of(tmp_path, "-", shelf.adapter())["total"]


# Damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDTH, NARROW])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", ["base", "tuned", "lora_A", "lora_B", "lora_magnitude_vector"])
def test_a_value_that_is_no_number_is_placed(shelf, tmp_path, capsys, where, value, width):
    """The matrix is named, and whether it is the base's or the tuned one's; the fast path and the direct one agree."""
    base, tuned = shelf.base("bert", width), shelf.tuned("bert", width)
    source = {"base": base, "tuned": tuned}.get(where) or shelf.adapter(
        width, **{"use_dora": True} if "magnitude" in where else {})

    def spoil(tensors: dict) -> None:
        part = "weight" if where in ("base", "tuned") else where
        key = next(name for name in tensors if QUERY in name and part in name)
        tensors[key].view(-1)[5] = value

    spoiled = edited(source, tmp_path / "spoiled", spoil)
    sentence = refused(capsys, *((spoiled, tuned) if where == "base" else (base, spoiled)))
    assert_says(sentence, "base matrix" if where == "base" else "tuned matrix", QUERY, "NaN or infinite")


@pytest.mark.parametrize("which", ["model", "adapter"])
@pytest.mark.parametrize("left", ["half", "in the header", "all but a byte", "four bytes", "nothing"])
def test_a_file_that_was_cut_off_is_named(shelf, tmp_path, capsys, left, which):
    shutil.copytree(shelf.tuned("bert") if which == "model" else shelf.adapter(), tmp_path / "cut")
    file = next((tmp_path / "cut").glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:{"half": len(whole) // 2, "in the header": 100, "all but a byte": len(whole) - 1,
                             "four bytes": 4, "nothing": 0}[left]])
    assert_says(refused(capsys, shelf.base("bert"), tmp_path / "cut"), file, "truncated or damaged")


@pytest.fixture
def sharded(shelf, tmp_path) -> Path:
    BertForMaskedLM.from_pretrained(shelf.tuned("bert")).save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
    return tmp_path / "sharded"


def test_a_shard_that_is_missing_is_named(shelf, sharded, capsys):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    assert_says(refused(capsys, shelf.base("bert"), sharded), gone.name, INDEX)


def test_a_shard_that_is_empty_is_named(shelf, sharded, capsys):
    empty = sorted(sharded.glob("*.safetensors"))[1]
    empty.write_bytes(b"")
    assert_says(refused(capsys, shelf.base("bert"), sharded), empty.name, "truncated or damaged")


@pytest.mark.parametrize("content", [b'{"metadata": {}, "weight_m', b"", b"[]", b"\xff\xfe\x00\x01",
                                     b'{"weight_map": ["a"]}', b'{"weight_map": {"a": 5}}'])
def test_a_damaged_index_is_named(shelf, sharded, capsys, content):
    (sharded / INDEX).write_bytes(content)
    assert_says(refused(capsys, shelf.base("bert"), sharded), INDEX)


@pytest.mark.parametrize("content", [b'{"peft_type": "LO', b"", b"[]", b"\xff\xfe\x00\x01"])
def test_a_damaged_adapter_configuration_is_named(shelf, tmp_path, capsys, content):
    shutil.copytree(shelf.adapter(), tmp_path / "adapter")
    (tmp_path / "adapter" / CONFIG).write_bytes(content)
    assert_says(refused(capsys, shelf.base("bert"), tmp_path / "adapter"), tmp_path / "adapter" / CONFIG)


@pytest.mark.parametrize("changes", [{"lora_alpha": "sixteen"}, {"lora_alpha": None}, {"alpha_pattern": {"(": 3}}],
                         ids=str)
def test_an_adapter_configuration_that_makes_no_sense_is_named(shelf, tmp_path, capsys, changes):
    adapter = configured(shelf.adapter(), tmp_path / "adapter", **changes)
    assert_says(refused(capsys, shelf.base("bert"), adapter), adapter, *changes)


def test_a_quantised_model_is_refused(shelf, tmp_path, capsys):
    for dtype, name in ((torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3")):
        def quantise(tensors: dict, dtype=dtype) -> None:
            tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(dtype)

        model = edited(shelf.tuned("bert"), tmp_path / name, quantise)
        for pair in ((shelf.base("bert"), model), (model, shelf.tuned("bert"))):
            assert_says(refused(capsys, *pair), QUERY, name, "dequantised")


@pytest.mark.parametrize("source, parts", [
    ("empty", ["empty holds no safetensors weights"]),
    ("file", ["config.json is a file", "folder"]),
    ("nothing", ["There is no folder", "nothing"]),
    ("./here/nothing", ["There is no folder ./here/nothing"]),
    ("one-word", ["There is no folder one-word", "owner/name"]),
    ("a/b/c", ["There is no folder a/b/c"]),
])
def test_what_is_no_checkpoint(shelf, tmp_path, capsys, source, parts):
    (tmp_path / "empty").mkdir()
    source = {"empty": tmp_path / "empty", "file": shelf.base("bert") / "config.json",
              "nothing": tmp_path / "nothing"}.get(source, source)
    assert_says(refused(capsys, source, shelf.tuned("bert")), *parts)
    assert_says(refused(capsys, shelf.base("bert"), source), *parts)


# Pickles ------------------------------------------------------------------------------------------------------------


def old_format(tensors: dict, file: Path) -> None:
    """As torch wrote before 1.6, and as most of the Hub's old repositories still hold it."""
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, old_format])
@pytest.mark.parametrize("which", ["tuned", "base", "adapter"])
def test_a_pickle_is_read_only_when_it_is_allowed(shelf, tmp_path, capsys, which, save):
    base, tuned = shelf.base("bert"), shelf.adapter() if which == "adapter" else shelf.tuned("bert")
    plain = report_of(tmp_path, base, tuned)
    weights = pickled(base if which == "base" else tuned, tmp_path / "pickled", save)
    pair = (weights, tuned) if which == "base" else (base, weights)
    sentence = refused(capsys, *pair)
    assert_says(sentence, next(weights.glob("*.bin")).name, "save_pretrained", "--allow-pickle")
    report = report_of(tmp_path, *pair, "--allow-pickle")
    assert_same(report, plain)


class Hostile:
    """Runs a shell command when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("form", ["zip", "old", "raw"])
@pytest.mark.parametrize("which", ["model", "adapter"])
def test_a_hostile_pickle_is_refused_and_not_run(shelf, tmp_path, capsys, which, form):
    touched = tmp_path / "touched"
    weapon = pickle.dumps(Hostile(touched))
    pickle.loads(weapon)
    assert touched.exists(), "the weapon is not loaded, so nothing is tested"
    touched.unlink()

    def save(tensors: dict, file: Path) -> None:
        if form == "raw":
            file.write_bytes(weapon)
        else:
            torch.save(tensors | {"zzz": Hostile(touched)}, file, _use_new_zipfile_serialization=form == "zip")

    folder = pickled(shelf.tuned("bert") if which == "model" else shelf.adapter(), tmp_path / "hostile", save)
    file = next(folder.glob("*.bin"))
    for pair in ((shelf.base("bert"), folder), (folder, shelf.tuned("bert")))[:1 if which == "adapter" else 2]:
        assert_says(refused(capsys, *pair), "--allow-pickle")
        assert_says(refused(capsys, *pair, "--allow-pickle"), file, "restricted loader")
        assert not touched.exists()


@pytest.mark.parametrize("content", ["nothing", "half", "a list", "numbered"])
def test_a_pickle_that_holds_no_weights_is_named(shelf, tmp_path, capsys, content):
    def save(tensors: dict, file: Path) -> None:
        torch.save({"a list": list(tensors.values()), "numbered": dict(enumerate(tensors.values()))}.get(
            content, tensors), file)
        if content in ("nothing", "half"):
            file.write_bytes(file.read_bytes()[:0 if content == "nothing" else 100_000])

    folder = pickled(shelf.tuned("bert"), tmp_path / "pickled", save)
    assert_says(refused(capsys, shelf.base("bert"), folder, "--allow-pickle"), folder)


def test_a_hub_model_that_is_only_a_pickle_gets_the_same_hint(shelf, tmp_path, capsys, monkeypatch):
    """Pickles are not downloaded, so the snapshot lacks them; the reader still has to learn what to do."""
    hub = pickled(shelf.tuned("bert"), tmp_path / "hub")

    def download(name: str, *, revision=None, allow_patterns: list[str]) -> str:
        snapshot = tmp_path / f"snapshot-{len(allow_patterns)}"
        snapshot.mkdir(exist_ok=True)
        for file in hub.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, snapshot)
        return str(snapshot)

    monkeypatch.setattr("utils.sources.hub.snapshot_download", download)
    report = report_of(tmp_path, shelf.base("bert"), "someone/old-model", "--allow-pickle")
    assert report["total"] == report_of(tmp_path, shelf.base("bert"), shelf.tuned("bert"))["total"]
    assert_says(refused(capsys, shelf.base("bert"), "someone/old-model"), "someone/old-model", "--allow-pickle")
