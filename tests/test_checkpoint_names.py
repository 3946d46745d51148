"""Which matrix a name means: wrappers, heads, towers, and models that transformers renames in memory."""

import pytest
import torch
import transformers
from checkpoint_shelf import assert_says, refused
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_checkpoints import (
    BLOCK,
    CUSTOM,
    INNER,
    RANK,
    SQUARE,
    UP,
    WIDTH,
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

from utils.sources.checkpoints import match_names
from utils.sources.checkpoints.names import matched, towers, unwrapped

pytestmark = pytest.mark.usefixtures("shelf_cache")
LAYER = "model.layers.1.self_attn.q_proj"
TEXT, VISION = "language_model.model.layers", "vision_tower.vision_model.encoder.layers"
LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
QWEN2_VL = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
QWEN2_AUDIO = {"architectures": ["Qwen2AudioForConditionalGeneration"], "model_type": "qwen2_audio"}


def renamed(tensors: dict, *pairs: tuple[str, str]) -> dict:
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


# Names alone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "module.model.layers.1.self_attn.q_proj", "model.layers.1._fsdp_wrapped_module.self_attn.q_proj",
    "_forward_module.model.layers.1._checkpoint_wrapped_module.self_attn._orig_mod.q_proj",
    "base_model.model.model.layers.1.self_attn.q_proj", "policy.base_model.model.model.layers.1.self_attn.q_proj",
    "student.model.layers.1.self_attn.q_proj", "layers.1.self_attn.q_proj"])
def test_wrappers_are_seen_through_wherever_they_stand(name):
    assert match_names([name], [LAYER, LAYER.replace("1", "11")]) == {name: LAYER}


def test_the_very_name_comes_before_every_likeness():
    """A model with a part called "module" has names that a wrapper could have left."""
    names = ["module.layers.0.fc", "layers.0.fc", "decoder.layers.0.fc"]
    assert match_names(names, names) == {name: name for name in names}


def test_what_could_mean_two_matrices_means_none():
    two = ["encoder.layers.0.fc", "decoder.layers.0.fc"]
    assert match_names(["layers.0.fc", "model.layers.0.fc"], two) == {}
    assert matched(["layers.0.fc"], two).open == {"layers.0.fc": two}
    assert match_names(["x.encoder.layers.0.fc"], two) == {"x.encoder.layers.0.fc": two[0]}


def test_a_name_of_one_stack_never_means_another():
    """Encoder and decoder share every ending; a matrix that the base lacks is not handed on to its twin."""
    assert match_names(["decoder.layers.0.fc"], ["encoder.layers.0.fc"]) == {}
    assert match_names(["model.language_model.layers.0.fc"], ["vision_tower.encoder.layers.0.fc"]) == {}
    assert match_names(["model.layers.0.fc"], ["model.visual.layers.0.fc"]) == {}
    assert match_names(["talker.model.layers.0.fc"], ["thinker.model.layers.0.fc"]) == {}


def test_a_matrix_that_cannot_be_read_still_keeps_its_name():
    """Of two towers only vision's is plain; the text's factors are not taken for vision's."""
    vision, text = f"{VISION}.0.fc", f"{TEXT}.0.fc"
    assert matched(["layers.0.fc"], [vision], others=[text]).found == {"layers.0.fc": text}


def test_a_model_of_one_tower_needs_no_prefix():
    assert match_names(["vit.encoder.layer.0.fc"], ["encoder.layer.0.fc"]) == {
        "vit.encoder.layer.0.fc": "encoder.layer.0.fc"}
    assert match_names(["roberta.encoder.layer.0.fc"], ["bert.encoder.layer.0.fc"]) != {}


@pytest.mark.parametrize("name, found", [
    ("model.layers.0.vision", set()), ("model.visual.blocks.0.attn", {"vision"}),
    ("model.language_model.layers.0.mlp", {"text"}), ("audio_tower.layers.0.fc1", {"audio"}),
    ("talker.model.layers.0.mlp", {"talker"})])
def test_a_tower_is_what_stands_before_the_number(name, found):
    assert towers(name) == found


def test_a_name_that_is_nothing_but_wrappers_stays():
    assert unwrapped("module") == "module" and unwrapped("base_model.model") == "base_model.model"


# Checkpoints --------------------------------------------------------------------------------------------------------


def vision_language(text: str = TEXT, vision: str = VISION) -> dict:
    return blocks(text) | blocks(vision, seed=1) | {"multi_modal_projector.linear_1.weight": normal(*SQUARE, seed=9)}


@pytest.mark.parametrize("infix", ["", ".default", ".sft"])
def test_wrappers_within_an_adapters_names(tmp_path, infix):
    """As FSDP with activation checkpointing leaves them, and with the adapter's name where PEFT leaves it away."""
    tensors = blocks("model.layers")
    parts = factors(shapes_of(tensors, "q_proj|down"))
    wrapped = {module.replace("layers.1.", "layers.1._checkpoint_wrapped_module."): part
               for module, part in parts.items()}
    adapter = write_adapter(tmp_path / "adapter", wrapped, prefix="_fsdp_wrapped_module.base_model.model.", infix=infix)
    counted(tmp_path, write(tmp_path / "base", tensors), adapter, added(tensors, parts))


def test_patterns_are_matched_without_wrappers(tmp_path):
    tensors = blocks("model.layers")
    parts = factors(shapes_of(tensors, "q_proj"))
    wrapped = {module.replace(".self_attn", "._orig_mod.self_attn"): part for module, part in parts.items()}
    adapter = write_adapter(tmp_path / "adapter", wrapped, alpha_pattern={r"^model\.layers\.1\.self_attn\.q_proj": 20})
    counted(tmp_path, write(tmp_path / "base", tensors), adapter,
            added(tensors, parts, lambda module: 10.0 if ".1." in module else 2.0))


@pytest.mark.parametrize("config, disk, memory", [
    (LLAVA, (TEXT, VISION), ("model.language_model.layers", "model.vision_tower.vision_model.encoder.layers")),
    (LLAVA, ("model.language_model.layers", "model.vision_tower.vision_model.encoder.layers"), (TEXT, VISION)),
    (QWEN2_VL, ("model.layers", "visual.blocks"), ("model.language_model.layers", "model.visual.blocks")),
    (QWEN2_AUDIO, (TEXT, "audio_tower.layers"), ("model.language_model.layers", "model.audio_tower.layers")),
], ids=["llava", "llava, new names on disk", "qwen2-vl", "qwen2-audio"])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_models_that_transformers_renames(tmp_path, config, disk, memory, kind):
    """Both towers have a layers.0.self_attn.q_proj; transformers' own rules say which is which."""
    tensors = vision_language(*disk)
    base = write(tmp_path / "base", tensors, config)
    if kind == "model":
        after = tuned(tensors)
        changed = write(tmp_path / "tuned", renamed(after, *[(f"{old}.", f"{new}.") for old, new in zip(
            disk, memory, strict=True)]), config)
        counted(tmp_path, base, changed, matrices(tensors, after))
        return
    parts = factors(shapes_of(tensors, f"^{disk[0]}.*q_proj|^{disk[1]}.*up_proj"))
    adapter = write_adapter(tmp_path / "tuned", {
        module.replace(f"{disk[0]}.", f"{memory[0]}.").replace(f"{disk[1]}.", f"{memory[1]}."): part
        for module, part in parts.items()})
    counted(tmp_path, base, adapter, added(tensors, parts))


SMALL = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4}
SEEING = SMALL | {"image_size": 32, "patch_size": 16}
READING = SMALL | {"vocab_size": 30, "num_key_value_heads": 2, "max_position_embeddings": 20, "bos_token_id": 0,
                   "eos_token_id": 1, "pad_token_id": 2}
MODELS = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SEEING)),
    "swin": lambda: transformers.SwinForImageClassification(transformers.SwinConfig(
        embed_dim=12, depths=[1, 1], num_heads=[2, 4], image_size=32, patch_size=4, window_size=4)),
    "clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(
        text_config={key: value for key, value in READING.items() if key != "num_key_value_heads"},
        vision_config=SEEING, projection_dim=WIDTH)),
    "dbrx": lambda: transformers.DbrxForCausalLM(transformers.DbrxConfig(
        d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=20, vocab_size=30,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": WIDTH})),
    "mistral3": lambda: transformers.Mistral3ForConditionalGeneration(transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**READING, head_dim=6).to_dict(),
        vision_config=transformers.PixtralVisionConfig(**SEEING).to_dict())),
    "whisper": lambda: transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(
        vocab_size=30, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, pad_token_id=2, bos_token_id=0,
        eos_token_id=1, decoder_start_token_id=1)),
}


@pytest.mark.parametrize("model", MODELS)
def test_adapters_that_peft_writes_over_what_transformers_writes(tmp_path, model):
    """Names on disk and in memory are paired by the weights themselves, so no rule for names is believed."""
    torch.manual_seed(0)
    made = MODELS[model]()
    made.save_pretrained(tmp_path / "base")
    disk = {tensor.numpy().tobytes(): name.removesuffix(".weight") for name, tensor in load_file(
        tmp_path / "base" / "model.safetensors").items()}
    leaves = {name.rpartition(".")[2] for name, module in made.named_modules() if isinstance(module, torch.nn.Linear)}
    wrapped = get_peft_model(made, LoraConfig(r=RANK, target_modules=sorted(leaves & {
        "query", "value", "q_proj", "v_proj", "Wqkv", "out_proj"})))
    wanted = {}
    with torch.no_grad():
        for module in [module for module in wrapped.modules() if hasattr(module, "lora_B") and module.lora_B]:
            module.lora_B["default"].weight.normal_()
            weight = module.get_base_layer().weight
            b, a = module.lora_B["default"].weight.double(), module.lora_A["default"].weight.double()
            update = module.scaling["default"] * (b @ a)
            wanted[disk[weight.numpy().tobytes()]] = weight.double(), weight.double() + update
    wrapped.save_pretrained(tmp_path / "tuned")
    assert len(wanted) >= 4
    counted(tmp_path, tmp_path / "base", tmp_path / "tuned", wanted)


def test_an_adapter_of_the_text_over_a_renamed_model(tmp_path):
    """Trained on the text model alone, over Qwen2-VL as transformers now keeps it."""
    tensors = vision_language("model.language_model.layers", "model.visual.blocks")
    parts = factors(shapes_of(tensors, "language_model.*v_proj"))
    adapter = write_adapter(tmp_path / "tuned", {module.replace(".language_model", ""): part
                                                 for module, part in parts.items()})
    counted(tmp_path, write(tmp_path / "base", tensors, QWEN2_VL), adapter, added(tensors, parts))


def test_factors_of_a_text_that_is_not_there(tmp_path, capsys):
    """The base is a vision tower alone; its layers.0.self_attn.q_proj is not the text's."""
    base = write(tmp_path / "base", blocks(VISION), LLAVA)
    adapter = write_adapter(tmp_path / "tuned", factors({f"model.language_model.layers.0.{name}": shape
                                                         for name, shape in BLOCK.items()}))
    assert_says(refused(capsys, base, adapter), "model.language_model.layers.0.self_attn.q_proj", "knows nothing")


@pytest.mark.parametrize("only", ["base", "tuned"])
def test_a_tower_that_one_side_lacks_is_noted(tmp_path, only):
    """The text of a vision-language model saved alone, and a language model with a vision tower put before it."""
    whole, text = vision_language(), blocks(TEXT)
    after = tuned(whole)
    changed = after if only == "tuned" else {name: after[name] for name in text}
    base = write(tmp_path / "base", whole if only == "base" else text)
    report = counted(tmp_path, base, write(tmp_path / "tuned", changed), matrices(text, after))
    assert_says(" ".join(report["notes"]), f"Only {tmp_path / only} has", VISION.replace("layers", "layers.*"))


def test_layers_beyond_the_configurations_number_may_be_missing(tmp_path):
    """DeepSeek's repositories carry one for speculation, which transformers neither loads nor saves."""
    tensors = blocks("model.layers", layers=3)
    after = tuned({name: tensor for name, tensor in tensors.items() if ".2." not in name})
    base = write(tmp_path / "base", tensors, CUSTOM | {"num_hidden_layers": 2})
    kept = {name: tensors[name] for name in after}
    report = counted(tmp_path, base, write(tmp_path / "tuned", after), matrices(kept, after))
    assert "self_attn.q_proj" in report["notes"][0]


def test_two_towers_under_names_that_nobody_knows_are_not_left_out(tmp_path, capsys):
    """What is unmatched on both sides is probably the same; counting the rest would say nothing of it."""
    tensors = blocks("model.trunk.layers") | blocks("model.side", {"fc": UP}, seed=1)
    after = renamed(tuned(tensors), ("model.side", "aside"), (".fc", ".linear"))
    sentence = refused(capsys, write(tmp_path / "base", tensors), write(tmp_path / "tuned", after))
    assert_says(sentence, "lacks 'model.side.0.fc'")


def test_text_of_a_model_that_thinks_and_talks(tmp_path):
    """Qwen's omni models have one stack for thinking and one for talking; a text adapter means the first."""
    tensors = blocks("thinker.model.layers") | blocks("talker.model.layers", seed=1)
    parts = factors(shapes_of(tensors, "thinker.*q_proj"))
    adapter = write_adapter(tmp_path / "tuned", {module.removeprefix("thinker."): part
                                                 for module, part in parts.items()})
    counted(tmp_path, write(tmp_path / "base", tensors), adapter, added(tensors, parts))


def test_the_state_of_an_adapted_model_is_not_a_tuned_model(tmp_path, capsys):
    """FSDP saves base_layer and factors together; taken as a model it would be the base, without any intruder."""
    tensors = blocks("model.layers")
    state = {f"base_model.model.{name.replace('.weight', '.base_layer.weight')}": tensor
             for name, tensor in tensors.items()}
    more = {f"base_model.model.{LAYER}.lora_A.default.weight": normal(2, 24, seed=1),
            f"base_model.model.{LAYER}.lora_B.default.weight": normal(24, 2, seed=2)}
    base = write(tmp_path / "base", tensors)
    for name, content in (("both", state | more), ("base layers alone", state)):
        assert_says(refused(capsys, base, write(tmp_path / name, content)), "base_model.model", "merge_and_unload")
