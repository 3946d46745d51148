"""Fewer bits: formats whose rule is one product are read, in float64, and every other is refused by name."""

import json

import numpy as np
import pytest
import torch
from checkpoint_shelf import assert_says, refused
from safetensors.torch import save_file
from small_checkpoints import (
    CUSTOM,
    SQUARE,
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
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from utils.sources.checkpoints.quantised import Scheme, dequantised
from utils.spectra.precision import precision_floor

pytestmark = pytest.mark.usefixtures("shelf_cache")
SHAPES = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48)}
TENSORS = blocks("model.layers", SHAPES)
FP8 = torch.float8_e4m3fn


def configured(method: str, **settings) -> dict:
    return CUSTOM | {"quantization_config": {"quant_method": method, **settings}}


def int8_rows(name: str, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """As bitsandbytes writes it."""
    largest = weight.abs().amax(1)
    stored = (weight / largest[:, None] * 127).round().to(torch.int8)
    module = name.removesuffix(".weight")
    return ({name: stored, f"{module}.SCB": largest, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)},
            stored.double() * largest.double()[:, None] / 127)


def fp8_blocks(name: str, weight: torch.Tensor, size: int = 16) -> tuple[dict, torch.Tensor]:
    """As DeepSeek writes it; a block at the end may be smaller."""
    rows, columns = (-(-side // size) for side in weight.shape)
    scale = normal(rows, columns, seed=3).abs() + 0.1
    spread = scale.repeat_interleave(size, 0)[:weight.shape[0]].repeat_interleave(size, 1)[:, :weight.shape[1]]
    stored = (weight / spread).to(FP8)
    return {name: stored, f"{name}_scale_inv": scale}, stored.double() * spread.double()


def fp8_rows(name: str, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """As FBGEMM and compressed-tensors write it."""
    scale = weight.abs().amax(1, keepdim=True) / 400
    stored = (weight / scale).to(FP8)
    return {name: stored, f"{name}_scale": scale}, stored.double() * scale.double()


def fp8_whole(name: str, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """As ModelOpt writes it, with a scale for activations that is no matter of the weight."""
    scale = torch.tensor(0.01)
    stored = (weight / scale).to(FP8)
    return ({name: stored, f"{name}_scale": scale, f"{name.removesuffix('weight')}input_scale": torch.tensor(0.5)},
            stored.double() * scale.double())


def int8_groups(name: str, weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """As compressed-tensors writes integers with zero points, in groups of 16 along each row."""
    scale, zero = normal(len(weight), weight.shape[1] // 16, seed=4).abs() + 0.02, torch.full(
        (len(weight), weight.shape[1] // 16), 3, dtype=torch.int8)
    spread, zeros = (one.double().repeat_interleave(16, 1) for one in (scale, zero))
    stored = (weight / spread + zeros).round().clamp(-128, 127).to(torch.int8)
    return ({name: stored, f"{name}_scale": scale, f"{name}_zero_point": zero}, (stored.double() - zeros) * spread)


FORMATS = {
    "bitsandbytes": (int8_rows, configured("bitsandbytes", load_in_8bit=True), "I8"),
    "fp8 blocks": (fp8_blocks, configured("fp8", weight_block_size=[16, 16]), "F8_E4M3"),
    "fp8 rows of FBGEMM": (fp8_rows, configured("fbgemm_fp8"), "F8_E4M3"),
    "fp8 rows of compressed-tensors": (fp8_rows, configured("compressed-tensors", format="float-quantized"), "F8_E4M3"),
    "fp8 of ModelOpt": (fp8_whole, configured("modelopt", quant_algo="FP8"), "F8_E4M3"),
    "integers of compressed-tensors": (int8_groups, configured("compressed-tensors", format="int-quantized"), "I8"),
}


def quantised(tensors: dict, write_one) -> tuple[dict, dict]:
    """What is stored of every matrix, and the numbers that it stands for."""
    stored, numbers = {}, {}
    for name, weight in tensors.items():
        parts, numbers[name] = write_one(name, weight)
        stored |= parts
    return stored, numbers


@pytest.mark.parametrize("kind", FORMATS)
def test_an_adapter_over_a_quantised_base(tmp_path, kind):
    write_one, config, label = FORMATS[kind]
    stored, numbers = quantised(TENSORS, write_one)
    parts = factors(shapes_of(TENSORS, "q_proj|up_proj"))
    report = counted(tmp_path, write(tmp_path / "base", stored, config), write_adapter(tmp_path / "tuned", parts),
                     added(numbers, parts))
    assert {tuple(row["stored"]) for row in report["matrices"]} == {(label, label)} and report["notes"] == []
    assert 0 < report["precision_floor"] <= 1


@pytest.mark.parametrize("side", ["base", "tuned", "both"])
def test_whole_models_of_which_one_is_quantised(tmp_path, side):
    after = tuned(TENSORS)
    pair = {}
    for role, tensors in (("base", TENSORS), ("tuned", after)):
        stored, numbers = quantised(tensors, fp8_blocks)
        chosen = side in (role, "both")
        write(tmp_path / role, stored if chosen else tensors, FORMATS["fp8 blocks"][1] if chosen else CUSTOM)
        pair[role] = numbers if chosen else tensors
    report = counted(tmp_path, tmp_path / "base", tmp_path / "tuned", matrices(pair["base"], pair["tuned"]))
    assert report["notes"] == []


def test_modelopt_keeps_its_configuration_in_a_file_of_its_own(tmp_path):
    stored, numbers = quantised(TENSORS, fp8_whole)
    parts = factors(shapes_of(TENSORS, "q_proj"))
    base = write(tmp_path / "base", stored)
    (base / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"},
                                                           "quantization": {"quant_algo": "FP8"}}))
    counted(tmp_path, base, write_adapter(tmp_path / "tuned", parts), added(numbers, parts))


def test_blocks_are_those_of_transformers():
    """Where the sides are whole blocks, as it asks for; with the scales of DeepSeek and those of MX, in bytes."""
    stored, scale = normal(32, 48, seed=1).to(FP8), normal(2, 3, seed=2).abs()
    whole = Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32)
    ours = dequantised(stored, Scheme("scale", block=(16, 16)), lambda _: scale)
    np.testing.assert_allclose(ours.numpy(), whole.double().numpy(), rtol=1e-6)
    powers = torch.tensor([[120, 127, 130], [125, 126, 128]], dtype=torch.uint8)
    whole = Fp8Dequantize(None)._dequantize_one(stored, powers, torch.float32)
    ours = dequantised(stored, Scheme("scale", block=(16, 16)), lambda _: powers)
    np.testing.assert_array_equal(ours.numpy(), whole.double().numpy())


def test_fp8_without_a_stated_block_has_transformers_own(tmp_path):
    """FineGrainedFP8Config's 128; the last block of a row is smaller."""
    tensors = blocks("model.layers", {"self_attn.q_proj": (130, 144)}, layers=1)
    stored, numbers = quantised(tensors, lambda name, weight: fp8_blocks(name, weight, 128))
    parts = factors(shapes_of(tensors, "q_proj"))
    counted(tmp_path, write(tmp_path / "base", stored, configured("fp8")), write_adapter(tmp_path / "tuned", parts),
            added(numbers, parts))


# MXFP4 --------------------------------------------------------------------------------------------------------------


def test_mxfp4_is_unpacked_as_transformers_does():
    drawn = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (2, 6, 3, 16), generator=drawn, dtype=torch.uint8)
    scales = torch.randint(118, 132, (2, 6, 3), generator=drawn, dtype=torch.uint8)
    whole = convert_moe_packed_tensors(packed, scales, dtype=torch.float32)  # (experts, in, out)
    for expert in range(2):
        ours = dequantised(packed[expert], Scheme("s", packed=True), lambda _, expert=expert: scales[expert])
        np.testing.assert_array_equal(ours.numpy(), whole[expert].T.double().numpy())


def test_experts_of_gpt_oss_are_counted_one_by_one(tmp_path):
    """In MXFP4 in the base, and in bfloat16, which transformers keeps as (in, out), in the tuned model."""
    drawn, config = torch.Generator().manual_seed(0), CUSTOM | {"num_local_experts": 2}
    plain = blocks("model.layers", {"self_attn.q_proj": (64, 64)}, layers=1)
    experts = "model.layers.0.mlp.experts"
    stored, numbers = dict(plain), {}
    for name, (out, groups) in {"gate_up_proj": (64, 2), "down_proj": (64, 1)}.items():
        packed = torch.randint(0, 256, (2, out, groups, 16), generator=drawn, dtype=torch.uint8)
        scales = torch.randint(120, 128, (2, out, groups), generator=drawn, dtype=torch.uint8)
        stored |= {f"{experts}.{name}_blocks": packed, f"{experts}.{name}_scales": scales,
                   f"{experts}.{name}_bias": torch.zeros(2, out)}
        numbers[f"{experts}.{name}"] = convert_moe_packed_tensors(packed, scales, dtype=torch.float32)
    base = write(tmp_path / "base", stored, config)
    # Of the two sides of gate_up_proj, 64 and 64, none is the width's alone, so both stacks are named and left out.
    after = tuned(plain)
    changed = write(tmp_path / "square", after | numbers, config)
    report = counted(tmp_path, base, changed, matrices(plain, after))
    assert_says(report["notes"][0], f"{experts.replace('.0.', '.*.')}.gate_up_proj_blocks", "down_proj")


def test_experts_whose_way_round_shapes_tell(tmp_path):
    drawn, config = torch.Generator().manual_seed(0), CUSTOM | {"num_local_experts": 2}
    plain = blocks("model.layers", {"self_attn.q_proj": (96, 96)}, layers=1)
    experts, stored, numbers = "model.layers.0.mlp.experts", dict(plain), {}
    for name, (out, groups) in {"gate_up_proj": (128, 3), "down_proj": (96, 2)}.items():
        packed = torch.randint(0, 256, (2, out, groups, 16), generator=drawn, dtype=torch.uint8)
        scales = torch.randint(120, 128, (2, out, groups), generator=drawn, dtype=torch.uint8)
        stored |= {f"{experts}.{name}_blocks": packed, f"{experts}.{name}_scales": scales}
        numbers[f"{experts}.{name}"] = convert_moe_packed_tensors(packed, scales, dtype=torch.float32)
    after = tuned(plain | numbers)
    wanted = matrices(plain, after) | {f"{name}[{place}]": (stack[place].T.double(), after[name][place].T.double())
                                       for name, stack in numbers.items() for place in range(2)}
    write(tmp_path / "base", stored, config)
    report = counted(tmp_path, tmp_path / "base", write(tmp_path / "tuned", after, config), wanted)
    assert ["MXFP4", "float32"] in [row["stored"] for row in report["matrices"]]


# What is refused ----------------------------------------------------------------------------------------------------

BYTES = torch.zeros(64, 1, dtype=torch.uint8)
PACKED = {
    "GPTQ": {"qweight": torch.zeros(4, 32, dtype=torch.int32), "qzeros": torch.zeros(1, 4, dtype=torch.int32),
             "scales": torch.ones(1, 32)},
    "4-bit": {"weight": BYTES, "weight.absmax": torch.zeros(8, dtype=torch.uint8), "weight.quant_map": torch.zeros(16)},
    "compressed-tensors": {"weight_packed": torch.zeros(32, 4, dtype=torch.int32), "weight_scale": torch.ones(32, 1)},
    "HQQ": {"W_q": torch.zeros(64, 8, dtype=torch.uint8)}, "AQLM": {"codes": torch.zeros(4, 4, 1, dtype=torch.int16)},
    "MLX": {"weight": torch.zeros(32, 4, dtype=torch.uint32), "scales": torch.ones(32, 1), "biases": torch.ones(32, 1)},
    "EETQ": {"weight": torch.zeros(32, 32, dtype=torch.int8), "weight_scales": torch.ones(32)},
    "NVFP4": {"weight": torch.zeros(32, 16, dtype=torch.uint8), "weight_scale": torch.ones(32, 2).to(FP8),
              "weight_scale_2": torch.tensor(1.0)},
    "Quanto": {"weight._data": torch.zeros(32, 16, dtype=torch.uint8), "weight._scale": torch.ones(32, 1)},
    "F8_E4M3": {"weight": torch.zeros(32, 32).to(FP8)},
    "U8": {"weight": torch.zeros(32, 32, dtype=torch.uint8), "weight_scale": torch.ones(1)},
}


def packed_model(folder, kind: str, *, plain: dict | None = None):
    folder.mkdir()
    tensors = {f"model.layers.{layer}.self_attn.q_proj.{name}": tensor.clone() for layer in range(2)
               for name, tensor in PACKED[kind].items()}
    save_file(tensors | (plain or {}), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(configured("some_method")))
    return folder


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_are_refused_by_name(tmp_path, capsys, kind):
    """Though a gate beside them is plain, in a pair of models and under an adapter."""
    gates = {f"model.layers.{layer}.mlp.gate.weight": normal(4, 32, seed=layer) for layer in range(2)}
    base = packed_model(tmp_path / "base", kind, plain=gates)
    adapter = write_adapter(tmp_path / "adapter", factors({"model.layers.0.self_attn.q_proj": (32, 32)}))
    for changed in (packed_model(tmp_path / "tuned", kind, plain=gates), adapter, write(tmp_path / "plain", TENSORS)):
        sentence = refused(capsys, base, changed)
        assert_says(sentence, "model.layers.0.self_attn.q_proj", kind, "some_method", "dequantised")
    assert_says(refused(capsys, write(tmp_path / "whole", TENSORS), base), kind)


def test_an_adapter_that_touches_plain_matrices_only(tmp_path):
    gates = blocks("model.layers", {"mlp.gate": SQUARE})
    parts = factors(shapes_of(gates, "gate"))
    counted(tmp_path, packed_model(tmp_path / "base", "GPTQ", plain=gates), write_adapter(tmp_path / "tuned", parts),
            added(gates, parts))


def test_a_choice_of_layers_passes_by_what_is_packed(tmp_path):
    gates = blocks("model.layers", {"mlp.gate": SQUARE})
    after = tuned(gates)
    counted(tmp_path, packed_model(tmp_path / "base", "GPTQ", plain=gates),
            packed_model(tmp_path / "tuned", "GPTQ", plain=after), matrices(gates, after), "--layers", "gate")


@pytest.mark.parametrize("wrong", ["shape", "method", "none", "transforms", "order"])
def test_scales_that_do_not_fit_are_not_believed(tmp_path, capsys, wrong):
    write_one = int8_rows if wrong == "order" else fp8_blocks
    stored, _ = quantised(TENSORS, write_one)
    config = configured("fp8", weight_block_size=[16, 16])
    if wrong == "shape":
        stored["model.layers.1.mlp.down_proj.weight_scale_inv"] = torch.ones(7, 5)
    elif wrong == "order":
        stored["model.layers.0.self_attn.q_proj.weight_format"] = torch.tensor(1, dtype=torch.uint8)
        config = configured("bitsandbytes")
    else:
        config = {"method": configured("next_years"), "none": CUSTOM,
                  "transforms": configured("compressed-tensors", transform_config={"a": 1})}[wrong]
    adapter = write_adapter(tmp_path / "tuned", factors(shapes_of(TENSORS, "q_proj")))
    sentence = refused(capsys, write(tmp_path / "base", stored, config), adapter)
    assert_says(sentence, *{"shape": ["weight_scale_inv", "(7, 5)", "(2, 3)"], "order": ["weight_format"]}.get(
        wrong, ["F8_E4M3", "dequantised"]))


def test_the_floor_rises_with_fewer_bits():
    from utils.spectra.fast import Pair, leading_cosines

    base = normal(32, 48, seed=1)
    found = next(leading_cosines([Pair("w", lambda: (base, base + normal(32, 1, seed=2) @ normal(1, 48, seed=3)))]))
    floors = [precision_floor(found, kind, kind, far=False).mean().item()
              for kind in (torch.bfloat16, "I8", "F8_E4M3", "F8_E5M2", "MXFP4")]
    assert floors == sorted(floors) and floors[0] < floors[1]
