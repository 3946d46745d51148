"""What is a linear map and which way round it lies: by shapes and modules' kinds, and nothing left out in silence."""

import json
import shutil

import pytest
import torch
from checkpoint_shelf import assert_says, refused, report_of
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
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from utils.sources.checkpoints.linear import transposed_modules, widths
from utils.sources.checkpoints.stacks import stacked_experts

pytestmark = pytest.mark.usefixtures("shelf_cache")
GPT2 = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": SQUARE, "mlp.c_fc": (WIDTH, INNER),
        "mlp.c_proj": (INNER, WIDTH)}
ALL_SQUARE = {"attn.c_proj": SQUARE, "mlp.c_fc": SQUARE, "mlp.c_proj": SQUARE}
ALL = r"\.c_"
EXPERTS = 3


def both(tmp_path, tensors: dict, config: dict | None = CUSTOM, *, which: str = "weight$", after: dict | None = None):
    """Base and tuned folder, and the tuned tensors."""
    after = tuned(tensors, which=which) if after is None else after
    return write(tmp_path / "base", tensors, config), write(tmp_path / "tuned", after, config), after


# What is a map ------------------------------------------------------------------------------------------------------


def test_no_word_in_a_name_hides_a_linear_map(tmp_path):
    """Names that a rule by words would pass over, and a norm, which has one dimension whatever it is called."""
    shapes = {"norm_block.proj": UP, "score.fc": SQUARE, "pooler.dense": SQUARE, "position_mix": SQUARE,
              "rotary_gate": (4, WIDTH), "ln_mlp.lm_head": UP, "one": (1, WIDTH), "classifier": SQUARE}
    tensors = blocks("model.blocks", shapes) | {f"model.blocks.{place}.plain.weight": torch.ones(WIDTH)
                                                for place in range(2)}
    base, changed, after = both(tmp_path, tensors)
    report = counted(tmp_path, base, changed, matrices(tensors, after, r"blocks.*(?<!plain)\.weight"))
    assert len(report["matrices"]) == 16


def test_a_sequence_of_maps_is_counted(tmp_path):
    """nn.Sequential has the number last; the figure needs a place for it too."""
    tensors = {f"net.{place}.weight": normal(*shape, seed=place) for place, shape in ((0, UP), (2, UP[::-1]))}
    base, changed, after = both(tmp_path, tensors)
    counted(tmp_path, base, changed, matrices(tensors, after), "--figure", tmp_path / "figure.png")


def test_a_table_inside_a_block_is_left_out_by_name(tmp_path):
    """T5 keeps an embedding of relative positions in its first block; transformers says what it is."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=30, d_model=WIDTH, d_kv=6, d_ff=INNER, num_layers=1,
                                                num_heads=4))
    model.save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    after = tuned(tensors)
    write(tmp_path / "tuned", after, json.loads((tmp_path / "base" / "config.json").read_text()))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".0." in name]
    wanted = {name: pair for name, pair in matrices(tensors, after).items() if name in linear}
    report = counted(tmp_path, tmp_path / "base", tmp_path / "tuned", wanted)
    assert len(wanted) == 16
    assert_says(" ".join(report["notes"]), "Left out", "relative_attention_bias", "shared.weight")


def test_what_is_left_out_is_named_by_its_kinds(tmp_path):
    """Twenty layers of one kind do not hide another."""
    tensors = blocks("model.layers", {"fc": SQUARE}, layers=20) | {
        f"model.layers.{layer}.{name}": normal(*shape, seed=layer) for layer in range(20) for name, shape in (
            ("conv.weight", (4, 1, 3)), ("A_log", (WIDTH, 4)), ("mixer.w1", (3 * WIDTH, WIDTH)))}
    base, changed, after = both(tmp_path, tensors)
    notes = " ".join(counted(tmp_path, base, changed, matrices(tensors, after))["notes"])
    assert_says(notes, "'model.layers.*.conv.weight' (20)", "'model.layers.*.A_log' (20)",
                "'model.layers.*.mixer.w1' (20)")


# Attention in one piece ---------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """nn.MultiheadAttention and a convolution in numbered blocks, which PEFT can wrap."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.ModuleDict({
            "attn": nn.MultiheadAttention(WIDTH, 4), "fc": nn.Linear(WIDTH, INNER), "conv": nn.Conv2d(4, 6, 3),
            "point": nn.Conv1d(6, 8, 1), "norm": nn.LayerNorm(WIDTH)}) for _ in range(2)])


def adapted(folder, **settings):
    """A base and an adapter as PEFT writes it; the layers that hold both, for their own merge."""
    model = Attention()
    write(folder / "base", model.state_dict())
    wrapped = get_peft_model(model, LoraConfig(r=RANK, **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    wrapped.save_pretrained(folder / "tuned")
    return dict(wrapped.double().base_model.model.named_modules()), load_file(folder / "base" / "model.safetensors")


def thirds(name: str, before: torch.Tensor, after: torch.Tensor) -> dict:
    pairs = zip(before.double().chunk(3), after.double().chunk(3), strict=True)
    return {f"{name}[{part}]": pair for part, pair in zip("qkv", pairs, strict=True)}


def test_queries_keys_and_values_in_one_tensor_are_three_maps(tmp_path):
    tensors = Attention().state_dict()
    base, changed, after = both(tmp_path, tensors, which="attn.*weight$")
    wanted = matrices(tensors, after, "attn.out_proj|fc")
    for layer in range(2):
        name = f"layers.{layer}.attn.in_proj_weight"
        wanted |= thirds(name, tensors[name], after[name])
    counted(tmp_path, base, changed, wanted)


def test_an_adapter_of_attention_in_one_piece(tmp_path):
    """As PEFT applies it, which adds the output's part twice, in its merge and in its forward pass."""
    modules, tensors = adapted(tmp_path, target_modules=["attn", "fc"], rank_pattern={"layers.1.attn": 3},
                               alpha_pattern={r"^layers\.0\.attn": 32})
    wanted = {}
    for layer in range(2):
        name = f"layers.{layer}.attn"
        modules[name].merge()
        merged = modules[name].get_base_layer()
        wanted |= thirds(f"{name}.in_proj_weight", tensors[f"{name}.in_proj_weight"], merged.in_proj_weight.detach())
        wanted[f"{name}.out_proj"] = (tensors[f"{name}.out_proj.weight"].double(),
                                      merged.out_proj.get_base_layer().weight.detach())
        linear = modules[f"layers.{layer}.fc"]
        linear.merge()
        wanted[f"layers.{layer}.fc"] = tensors[f"layers.{layer}.fc.weight"].double(), linear.weight.detach()
    counted(tmp_path, tmp_path / "base", tmp_path / "tuned", wanted)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_convolutions_is_counted_on_the_flattened_map(tmp_path, dora):
    modules, tensors = adapted(tmp_path, target_modules=["conv", "fc"] if dora else ["conv", "point", "fc"],
                               use_dora=dora)
    wanted = {}
    for name, module in modules.items():
        if hasattr(module, "lora_A"):
            module.merge()
            wanted[name] = (tensors[f"{name}.weight"].double().flatten(1),
                            module.get_base_layer().weight.detach().flatten(1))
    assert len(wanted) == (4 if dora else 6)
    counted(tmp_path, tmp_path / "base", tmp_path / "tuned", wanted)


def test_an_adapter_of_a_grouped_convolution_is_refused(tmp_path, capsys):
    """PEFT itself cannot merge one: its factors run over all channels, the weight over a group's."""
    tensors = blocks("layers", {"fc": SQUARE}) | {"layers.0.conv.weight": normal(8, 2, 3, seed=1)}
    parts = factors({"layers.0.fc": SQUARE, "layers.0.conv": (8, 4, 3)})
    sentence = refused(capsys, write(tmp_path / "base", tensors), write_adapter(tmp_path / "tuned", parts))
    assert_says(sentence, "layers.0.conv", "(8, 6)", "(8, 12)")


# Stacked experts ----------------------------------------------------------------------------------------------------


def stacks(shapes: dict) -> dict:
    return blocks("model.layers", {"self_attn.q_proj": SQUARE, "mlp.gate": (EXPERTS, WIDTH)}) | {
        f"model.layers.{layer}.mlp.experts.{name}": normal(EXPERTS, *shape, seed=layer * 10 + place)
        for layer in range(2) for place, (name, shape) in enumerate(shapes.items())}


FUSED, TURNED = ({"gate_up_proj": (2 * INNER, WIDTH), "down_proj": (WIDTH, INNER)},
                 {"gate_up_proj": (WIDTH, 2 * INNER), "down_proj": (INNER, WIDTH)})
APART = {"gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj.weight": (WIDTH, INNER)}


@pytest.mark.parametrize("shapes, turn", [(FUSED, False), (TURNED, True), (APART, False)],
                         ids=["out in", "in out", "three"])
def test_stacked_experts_are_counted_one_by_one(tmp_path, shapes, turn):
    """Mixtral's and gpt-oss's ways round are told apart by shapes."""
    tensors = stacks(shapes)
    base, changed, after = both(tmp_path, tensors, CUSTOM | {"num_local_experts": EXPERTS}, which="weight$|experts")
    wanted = matrices(tensors, after)
    for name in tensors:
        for place in range(EXPERTS if "experts" in name else 0):
            pair = tensors[name][place].double(), after[name][place].double()
            wanted[f"{name.removesuffix('.weight')}[{place}]"] = tuple(one.T if turn else one for one in pair)
    counted(tmp_path, base, changed, wanted)


@pytest.mark.parametrize("shapes, config", [
    (FUSED, {}), ({"gate_up_proj": (2 * WIDTH, WIDTH), "down_proj": SQUARE}, {"num_experts": EXPERTS}),
    ({"mix": (INNER, WIDTH)}, {"num_experts": EXPERTS}),
    ({"w1": (INNER, WIDTH), "w2": (INNER, WIDTH)}, {"text_config": {"num_experts": EXPERTS}}),
], ids=["how many is not said", "as wide as the model", "alone", "which gives is not told"])
def test_stacks_whose_way_round_is_open_are_left_out_by_name(tmp_path, shapes, config):
    tensors = stacks(shapes)
    base, changed, after = both(tmp_path, tensors, CUSTOM | config, which="weight$|experts")
    notes = counted(tmp_path, base, changed, matrices(tensors, after))["notes"]
    assert_says(notes[0], "Left out", *[f"model.layers.*.mlp.experts.{name}" for name in shapes])


def test_the_width_is_what_all_matrices_have_in_common():
    assert widths({"a.0.q": (8, 8), "a.0.k": (2, 8), "a.1.up": (20, 8), "b.0.q": (4, 4), "b.0.up": (9, 5)}) == {"a": 8}
    assert stacked_experts({"a.0.e.x": (3, 16, 8), "a.0.e.y": (3, 8, 8)}, {"a": 8}, {"num_experts": 3}) == {}


# Which way round ----------------------------------------------------------------------------------------------------


def with_biases(tensors: dict, out: int) -> dict:
    return tensors | {name.replace("weight", "bias"): torch.ones(tensor.shape[out]) for name, tensor in tensors.items()}


def turned(tensors: dict) -> dict:
    return {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("config", [None, CUSTOM, {"model_type": "gpt2"}], ids=["none", "custom", "gpt2"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("way", ["Conv1D", "Linear"])
def test_names_of_gpt2s_family_are_read_by_their_shapes(tmp_path, way, biases, config):
    """nanoGPT and Qwen keep c_attn as a Linear, GPT-2 as a Conv1D; whatever a configuration says of the type."""
    tensors = blocks("transformer.h", GPT2)
    tensors = turned(tensors) if way == "Linear" else tensors
    tensors = with_biases(tensors, way == "Conv1D") if biases else tensors
    base, changed, after = both(tmp_path, tensors, config)
    counted(tmp_path, base, changed, matrices(tensors, after, transposed=ALL if way == "Conv1D" else "$never"))


@pytest.mark.parametrize("config, transposed", [
    ({"model_type": "gpt2"}, True), ({"model_type": "imagegpt"}, True), ({"model_type": "gpt_bigcode"}, False)],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "")
def test_squares_are_read_as_transformers_says(tmp_path, config, transposed):
    tensors = blocks("transformer.h", ALL_SQUARE)
    base, changed, after = both(tmp_path, tensors, config)
    counted(tmp_path, base, changed, matrices(tensors, after, transposed=ALL if transposed else "$never"))


@pytest.mark.parametrize("config", [None, CUSTOM])
def test_squares_that_nothing_tells_are_refused(tmp_path, capsys, config):
    base, changed, _ = both(tmp_path, blocks("transformer.h", ALL_SQUARE), config)
    assert_says(refused(capsys, base, changed), "transformer.h.0.attn.c_proj", "(out, in)", "(in, out)", "config.json")


def test_a_layer_of_another_shape_is_damaged_and_not_turned():
    """Its bias is as long as its second side, but its fellows lie the other way."""
    shapes = {"h.0.fc": (8, 12), "h.1.fc": (12, 8)}
    header = {"h.1.fc.bias": type("Bias", (), {"shape": (8,)})()}
    assert transposed_modules("x", shapes, header, ask=lambda: None) == set()
    assert transposed_modules("x", {"h.1.fc": (12, 8)}, header, ask=lambda: None) == {"h.1.fc"}


class Mixed(nn.Module):
    """Maps by names of nobody's, some of them transformers' Conv1D."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.ModuleDict({"up": Conv1D(INNER, WIDTH), "mix": nn.Linear(WIDTH, WIDTH)})
                                     for _ in range(2)])


def test_a_conv1d_of_another_name_is_known_by_its_bias(tmp_path):
    tensors = Mixed().state_dict()
    base, changed, after = both(tmp_path, tensors)
    counted(tmp_path, base, changed, matrices(tensors, after, transposed=r"\.up\."))


def test_an_adapters_factors_and_configuration_say_which_way_round(tmp_path):
    """Without biases, factors of the other shape and fan_in_fan_out show that the base lies as (in, out)."""
    tensors = {name: tensor for name, tensor in Mixed().state_dict().items() if name.endswith("up.weight")}
    parts = factors({name.removesuffix(".weight"): tuple(tensor.shape[::-1]) for name, tensor in tensors.items()})
    base = write(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "tuned", parts, fan_in_fan_out=True)
    wanted = added({name: tensor.T for name, tensor in tensors.items()}, parts)
    counted(tmp_path, base, adapter, wanted)


def test_a_square_of_which_only_the_adapter_says_that_it_is_turned(tmp_path, capsys):
    """PEFT resets fan_in_fan_out on a Linear; where nothing shows which it is, nothing is believed."""
    tensors = blocks("model.layers", {"mix": SQUARE})
    adapter = write_adapter(tmp_path / "tuned", factors(shapes_of(tensors, "mix")), fan_in_fan_out=True)
    assert_says(refused(capsys, write(tmp_path / "base", tensors), adapter), "fan_in_fan_out", "model.layers.0.mix")
    llama = blocks("model.layers", {"self_attn.q_proj": SQUARE})
    parts = factors(shapes_of(llama, "q_proj"))
    counted(tmp_path, write(tmp_path / "llama", llama, {"model_type": "llama"}),
            write_adapter(tmp_path / "over llama", parts, fan_in_fan_out=True), added(llama, parts))


def test_experts_that_one_side_keeps_apart_and_the_other_stacked(tmp_path, capsys):
    base = write(tmp_path / "base", blocks("model.layers", BLOCK | {f"mlp.experts.{place}.up_proj": UP
                                                                    for place in range(EXPERTS)}))
    changed = write(tmp_path / "tuned", blocks("model.layers", BLOCK) | {
        f"model.layers.{layer}.mlp.experts.up_proj": normal(EXPERTS, *UP, seed=layer) for layer in range(2)})
    assert_says(refused(capsys, base, changed), "model.layers.0.mlp.experts.0.up_proj", "stack")


def test_a_shape_that_does_not_fit_is_an_error_and_not_turned(tmp_path, capsys):
    tensors = blocks("model.layers", {"up": UP})
    adapter = write_adapter(tmp_path / "tuned", factors({f"model.layers.{layer}.up": UP[::-1] for layer in range(2)}))
    assert_says(refused(capsys, write(tmp_path / "base", tensors), adapter), "model.layers.0.up", UP, UP[::-1])


def test_a_whole_model_keeps_its_notes_in_the_report(tmp_path):
    tensors = blocks("model.layers") | {"lm_head.weight": normal(9, WIDTH, seed=3)}
    base, changed, _ = both(tmp_path, tensors)
    assert_says(" ".join(report_of(tmp_path, base, changed)["notes"]), "outside of numbered blocks", "'lm_head.weight'")
    shutil.rmtree(changed)
