"""Which files of a folder are the checkpoint, what is missing, and whose format it is if it is none of ours."""

import json
import shutil

import pytest
import torch
from checkpoint_shelf import assert_says, refused
from small_checkpoints import (
    CUSTOM,
    INDEX,
    SQUARE,
    UP,
    added,
    blocks,
    counted,
    factors,
    matrices,
    normal,
    shapes_of,
    tuned,
    write,
    write_adapter,
)

pytestmark = pytest.mark.usefixtures("shelf_cache")
TENSORS = blocks("model.layers")
AFTER = tuned(TENSORS)
WANTED = matrices(TENSORS, AFTER)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n"


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", TENSORS)


def halves(tensors: dict) -> list[dict]:
    return [{name: tensor for name, tensor in tensors.items() if f".{layer}." in name} for layer in range(2)]


def sharded(folder, tensors: dict, *, stem: str = "model", index: str | None = INDEX, count: int = 2):
    """Two shards by layer, with an index or without."""
    places = {}
    for place, part in enumerate(halves(tensors), 1):
        file = f"{stem}-{place:05d}-of-{count:05d}.safetensors"
        write(folder, part, file=file)
        places |= dict.fromkeys(part, file)
    if index:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


# Which file ---------------------------------------------------------------------------------------------------------


def test_one_file_comes_before_an_index(tmp_path, base):
    """save_pretrained over an older sharded save leaves its index behind, and perhaps its shards."""
    folder = sharded(tmp_path / "tuned", blocks("model.layers", seed=7))
    write(folder, AFTER)
    assert_says(counted(tmp_path, base, folder, WANTED)["notes"][0], "model.safetensors", INDEX)


def test_a_configuration_may_name_the_file(tmp_path, capsys, base):
    """transformers_weights in config.json, which transformers looks at before everything else."""
    config = CUSTOM | {"transformers_weights": "new.safetensors"}
    folder = write(tmp_path / "tuned", blocks("model.layers", seed=7), config)
    write(folder, AFTER, None, file="new.safetensors")
    counted(tmp_path, base, folder, WANTED)
    for name in ("../base/model.safetensors", "new.bin", 5):
        (folder / "config.json").write_text(json.dumps(CUSTOM | {"transformers_weights": name}))
        assert_says(refused(capsys, base, folder), "transformers_weights", name)


@pytest.mark.parametrize("index", [INDEX, None])
@pytest.mark.parametrize("stem", ["model", "ft-model", "model.fp16"])
def test_shards_with_an_index_or_complete_without(tmp_path, base, stem, index):
    counted(tmp_path, base, sharded(tmp_path / "tuned", AFTER, stem=stem, index=index), WANTED)


@pytest.mark.parametrize("stem", ["model", "ft-model"])
@pytest.mark.parametrize("gap", ["first", "last"])
def test_a_gap_in_the_numbers_is_named(tmp_path, capsys, base, gap, stem):
    """The same layers missing on both sides would be counted without a word."""
    pair = []
    for role, tensors in (("before", TENSORS), ("after", AFTER)):
        folder = sharded(tmp_path / role, tensors, stem=stem, index=None)
        lost = folder / f"{stem}-0000{1 if gap == 'first' else 2}-of-00002.safetensors"
        lost.unlink()
        pair.append(folder)
    assert_says(refused(capsys, *pair), lost.name, "numbered up to 2")


def test_an_index_that_names_fewer_shards_than_their_names_say(tmp_path, capsys, base):
    folder = sharded(tmp_path / "tuned", AFTER, count=3)
    assert_says(refused(capsys, base, folder), "model-00003-of-00003.safetensors", INDEX)


def test_an_index_of_another_save_is_named(tmp_path, capsys, base):
    folder = sharded(tmp_path / "tuned", AFTER)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.9.other.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert_says(refused(capsys, base, folder), "model-00001-of-00002.safetensors", "model.layers.9.other.weight")


def test_an_index_says_which_of_two_copies_counts(tmp_path, capsys, base):
    folder = sharded(tmp_path / "tuned", AFTER)
    write(folder, halves(AFTER)[1] | halves(blocks("model.layers", seed=7))[0], file="model-00002-of-00002.safetensors")
    counted(tmp_path, base, folder, WANTED)
    (folder / INDEX).unlink()
    assert_says(refused(capsys, base, folder), "Two files", "model.layers.0")


def test_two_sets_of_shards_are_refused(tmp_path, capsys, base):
    folder = sharded(tmp_path / "tuned", AFTER, index=None)
    write(folder, halves(AFTER)[0], file="model-00001-of-00001.safetensors")
    assert_says(refused(capsys, base, folder), "several sets", "-of-00001")


def test_one_file_of_another_name_is_read_and_two_are_not(tmp_path, capsys, base):
    folder = write(tmp_path / "tuned", AFTER, file="model.fp16.safetensors")
    counted(tmp_path, base, folder, WANTED)
    write(folder, AFTER, file="model.fp32.safetensors")
    assert_says(refused(capsys, base, folder), "'model.fp16.safetensors', 'model.fp32.safetensors'", "several")


def test_what_lies_beside_a_pickle_is_not_the_model(tmp_path, capsys, base):
    """An optimiser, or a part of its own: transformers reads the pickle."""
    folder = write(tmp_path / "tuned", blocks("model.layers", seed=7), file="optimizer.safetensors")
    write(folder, blocks("model.layers", seed=8), file="sparse.safetensors")
    pickled(folder, AFTER)
    assert_says(refused(capsys, base, folder), "pytorch_model.bin", "--allow-pickle")
    counted(tmp_path, base, folder, WANTED, "--allow-pickle")


def test_the_other_copy_in_mistrals_format_is_not_read(tmp_path, base):
    folder = sharded(tmp_path / "tuned", AFTER)
    write(folder, {"layers.0.attention.wq.weight": normal(*SQUARE, seed=1)}, file="consolidated.safetensors")
    counted(tmp_path, base, folder, WANTED)


def test_files_that_a_desktop_hides_are_not_weights(tmp_path, base):
    folder = write(tmp_path / "tuned", AFTER, file="weights.safetensors")
    (folder / "._weights.safetensors").write_bytes(b"Mac OS X")
    counted(tmp_path, base, folder, WANTED)


# What is no weight file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content, part", [
    (POINTER.encode(), "git lfs pull"), (b"<!DOCTYPE html><html>", "web page"), (b"\n<html>", "web page"),
    (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"), (b"PK\x03\x04" + bytes(64), "zip"), (b"# xet version 0\n", "Xet")])
@pytest.mark.parametrize("place", ["model", "model-00001-of-00002", "adapter_model"])
def test_what_stands_in_for_a_file_is_named(tmp_path, capsys, base, place, content, part):
    folder = {"model": lambda: write(tmp_path / "tuned", AFTER), "adapter_model": lambda: write_adapter(
        tmp_path / "tuned", factors(shapes_of(TENSORS, "q_proj")))}.get(
            place, lambda: sharded(tmp_path / "tuned", AFTER))()
    file = folder / f"{place}.safetensors"
    file.write_bytes(content)
    assert_says(refused(capsys, base, folder), file, part)


@pytest.mark.parametrize("place", ["config.json", INDEX, "adapter_config.json"])
def test_a_pointer_in_place_of_a_configuration(tmp_path, capsys, base, place):
    parts = factors(shapes_of(TENSORS, "q_proj"))
    folder = write_adapter(tmp_path / "tuned", parts) if "adapter" in place else sharded(tmp_path / "tuned", AFTER)
    (folder / place).write_text(POINTER)
    assert_says(refused(capsys, base, folder), folder / place, "git lfs pull")


def test_a_pointer_in_place_of_a_pickle(tmp_path, capsys, base):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_text(POINTER)
    assert_says(refused(capsys, base, folder, "--allow-pickle"), "pytorch_model.bin", "git lfs pull")


@pytest.mark.parametrize("shape", [(0,), (0, 24)])
@pytest.mark.parametrize("role", ["base", "tuned", "both"])
def test_placeholders_of_pieces_that_were_not_gathered(tmp_path, capsys, base, shape, role):
    spoiled = dict(TENSORS) | {"model.layers.1.mlp.up_proj.weight": torch.empty(shape)}
    pair = [write(tmp_path / name, spoiled if role in (name, "both") else TENSORS) for name in ("base", "tuned")]
    assert_says(refused(capsys, *pair), "model.layers.1.mlp.up_proj.weight", "ZeRO-3")


# Pickles ------------------------------------------------------------------------------------------------------------


def pickled(folder, content, name: str = "pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / name)
    return folder


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_weights_one_level_down(tmp_path, base, key):
    folder = pickled(tmp_path / "tuned", {key: AFTER, "step": 5, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}},
                                                                              "param_groups": [{"lr": 0.1}]}})
    report = counted(tmp_path, base, folder, WANTED, "--allow-pickle")
    assert_says(report["notes"][0], f"'{key}'", "pytorch_model.bin")


def test_two_sets_of_weights_one_level_down(tmp_path, capsys, base):
    folder = pickled(tmp_path / "tuned", {"model": AFTER, "ema": TENSORS})
    assert_says(refused(capsys, base, folder, "--allow-pickle"), "'model', 'ema'")


@pytest.mark.parametrize("index", [True, False])
def test_pickled_shards_are_complete_or_refused(tmp_path, capsys, base, index):
    folder, places = tmp_path / "tuned", {}
    for place, part in enumerate(halves(AFTER), 1):
        pickled(folder, part, name := f"pytorch_model-{place:05d}-of-00002.bin")
        places |= dict.fromkeys(part, name)
    if index:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    counted(tmp_path, base, folder, WANTED, "--allow-pickle")
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    assert_says(refused(capsys, base, folder, "--allow-pickle"), "pytorch_model-00001-of-00002.bin")


# Folders ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_checkpoints_names_the_last(tmp_path, capsys, base):
    for step in (500, 1000, 90):
        write(tmp_path / "tuned" / f"checkpoint-{step}", AFTER)
    for name in ("runs", "wandb", ".cache"):
        (tmp_path / "tuned" / name).mkdir()
    (tmp_path / "tuned" / "optimizer.pt").write_bytes(b"x")
    sentence = refused(capsys, base, tmp_path / "tuned")
    assert_says(sentence, "'checkpoint-90', 'checkpoint-500', 'checkpoint-1000'", f"{tmp_path}/tuned/checkpoint-1000.")


@pytest.mark.parametrize("below", ["0_Transformer", "artifacts/model", "epoch_2"])
def test_weights_further_down_are_named(tmp_path, capsys, base, below):
    write(tmp_path / "tuned" / below, AFTER)
    (tmp_path / "tuned" / "MLmodel").write_text("flavors: {}")
    assert_says(refused(capsys, base, tmp_path / "tuned"), f"'{below}'", f"{tmp_path}/tuned/{below}.")


def test_adapters_of_checkpoints_are_named_as_folders(tmp_path, capsys, base):
    write_adapter(tmp_path / "tuned" / "checkpoint-5", factors(shapes_of(TENSORS, "q_proj")))
    assert_says(refused(capsys, base, tmp_path / "tuned"), "'checkpoint-5'", f"{tmp_path}/tuned/checkpoint-5.")


OTHERS = {
    "model-Q4_K_M.gguf": ["GGUF", "gguf_file="], "adapters.safetensors": ["MLX", "mlx_lm.fuse"],
    "pytorch_lora_weights.safetensors": ["diffusers", "fuse_lora"], "zero_to_fp32.py": ["DeepSpeed", "zero_to_fp32.py"],
    "global_step50/mp_rank_00_model_states.pt": ["DeepSpeed", "zero_to_fp32.py"],
    "pytorch_model_fsdp_0/__0_0.distcp": ["torch.distributed.checkpoint", "merge-weights"],
    "hf_model_0001_0.pt": ["torchtune", "safe_serialization"], "adapter_0.pt": ["torchtune"],
    "lit_model.pth": ["LitGPT", "convert_from_litgpt"], "consolidated.00.pth": ["Meta"], "model.nemo": ["NeMo"],
    "optimizer.pt": ["optimiser"], "rng_state.pth": ["resumed"], "wandb-summary.json": ["tracker"],
    "events.out.tfevents.17.host": ["TensorBoard"], "last.ckpt": ["Lightning"], "ckpt.pt": ["torch.save"],
    "flax_model.msgpack": ["Flax", "(in, out)"], "tf_model.h5": ["TensorFlow"], "model.onnx": ["ONNX"],
    "mergekit_config.yml": ["mergekit-yaml"], "weights.npz": ["MLX"]}


@pytest.mark.parametrize("file", OTHERS)
def test_formats_of_other_tools_are_named_with_the_way_from_there(tmp_path, capsys, base, file):
    path = tmp_path / "tuned" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not read")
    (tmp_path / "tuned" / "config.json").write_text("{}")
    for pair in ((base, tmp_path / "tuned"), (tmp_path / "tuned", base)):
        assert_says(refused(capsys, *pair), tmp_path / "tuned", *OTHERS[file])


@pytest.mark.parametrize("names, parts", [
    (["lora_unet_blocks_0_attn_q.lora_down.weight", "lora_unet_blocks_0_attn_q.lora_up.weight"], ["Kohya"]),
    (["model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"], ["MLX", "torchtune"]),
    (["unet.blocks.0.attn.to_q.lora.down.weight"], ["diffusers", "fuse_lora"]),
    (["unet.blocks.0.attn.processor.to_q_lora.up.weight"], ["diffusers"]),
    (["lycoris_blocks_0.lokr_w1"], ["LyCORIS"]), (["state.0.exp_avg"], ["optimiser"]),
    (["_fsdp_wrapped_module.layers.0._flat_param"], ["FSDP"])])
@pytest.mark.parametrize("place", ["alone", "adapter"])
def test_factors_of_other_tools_are_known_by_their_names(tmp_path, capsys, base, names, parts, place):
    tensors = {name: normal(2, 24, seed=1) for name in names}
    if place == "alone":
        folder = write(tmp_path / "tuned", tensors, None, file="my_lora.safetensors")
    else:
        folder = write_adapter(tmp_path / "tuned", {}, more=tensors)
    assert_says(refused(capsys, base, folder), names[0], *parts)


@pytest.mark.parametrize("config, part", [
    ({"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0}, "model": "mlx-community/x"}, "MLX"),
    ({"config": {"architecture": "lora", "r": 8}, "model_type": "roberta", "hidden_size": 768}, "library Adapters"),
    ({"r": 8, "lora_alpha": 16}, "kind unknown")])
def test_a_configuration_of_another_library(tmp_path, capsys, base, config, part):
    folder = write_adapter(tmp_path / "tuned", factors(shapes_of(TENSORS, "q_proj")))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert_says(refused(capsys, base, folder), folder, part)


@pytest.mark.parametrize("which", ["alone", "beside a model"])
def test_an_adapter_without_its_configuration(tmp_path, capsys, base, which):
    folder = write_adapter(tmp_path / "tuned", factors(shapes_of(TENSORS, "q_proj")))
    (folder / "adapter_config.json").unlink()
    if which == "alone":
        assert_says(refused(capsys, base, folder), folder, "adapter_config.json")
        return
    write(folder, AFTER)
    assert_says(counted(tmp_path, base, folder, WANTED)["notes"][0], "adapter_config.json", "the model was read")


def test_factors_of_what_stands_outside_of_blocks_are_named(tmp_path, base):
    parts = factors(shapes_of(TENSORS, "q_proj"))
    more = factors({"lm_head": UP})
    adapter = write_adapter(tmp_path / "tuned", parts | more)
    assert_says(" ".join(counted(tmp_path, base, adapter, added(TENSORS, parts))["notes"]), "factors of 'lm_head'")


def test_a_merge_of_mergekits_is_read_as_any_other(tmp_path, base):
    folder = sharded(tmp_path / "tuned", AFTER)
    (folder / "mergekit_config.yml").write_text("models: []")
    counted(tmp_path, base, folder, WANTED)
    shutil.rmtree(folder)
