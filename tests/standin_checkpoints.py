"""Tiny checkpoints of many architectures, tuned copies and LoRA adapters of them, and the definition to judge by.

The definition is written out in numpy alone, on weights that transformers and PEFT themselves load and merge, so that
nothing here shares a line with the code under test.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

WIDTH, NARROW = 144, 48  # from width 129 on the fast path is taken
SMALL = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 20}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _gpt2_config(width: int, **changes) -> GPT2Config:
    return GPT2Config(vocab_size=60, n_embd=width, n_layer=2, n_head=4, n_positions=20, n_inner=width * 4 // 3, **ENDS,
                      **changes)


def _bert_config(width: int) -> BertConfig:
    return BertConfig(hidden_size=width, intermediate_size=width * 4 // 3, **SMALL)


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "bert": lambda width: BertForMaskedLM(_bert_config(width)),
    "roberta": lambda width: RobertaForMaskedLM(RobertaConfig(
        hidden_size=width, intermediate_size=width * 4 // 3, **SMALL | ENDS)),
    "llama": lambda width: LlamaForCausalLM(LlamaConfig(
        hidden_size=width, intermediate_size=width * 4 // 3, num_key_value_heads=2, **SMALL | ENDS)),
    "gpt2": lambda width: GPT2LMHeadModel(_gpt2_config(width)),
    "neox": lambda width: GPTNeoXForCausalLM(GPTNeoXConfig(
        hidden_size=width, intermediate_size=width * 4 // 3, **SMALL | ENDS)),
    "t5": lambda width: T5ForConditionalGeneration(T5Config(
        vocab_size=60, d_model=width, d_kv=width // 4, d_ff=width * 4 // 3, num_layers=2, num_heads=4)),
    "bart": lambda width: BartForConditionalGeneration(BartConfig(
        vocab_size=60, d_model=width, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=width * 4 // 3, decoder_ffn_dim=width * 4 // 3,
        max_position_embeddings=20, decoder_start_token_id=1, forced_eos_token_id=1, **ENDS)),
    "bert2gpt2": lambda width: EncoderDecoderModel(
        encoder=BertModel(_bert_config(width)),
        decoder=GPT2LMHeadModel(_gpt2_config(width, add_cross_attention=True, is_decoder=True))),
}
MATRICES = {"bert": 12, "roberta": 12, "llama": 14, "gpt2": 8, "neox": 8, "t5": 32, "bart": 32, "bert2gpt2": 26}


def build(architecture: str, width: int = WIDTH, *, seed: int = 0) -> nn.Module:
    """A tiny model with random weights, the same ones for the same seed."""
    torch.manual_seed(seed)
    return ARCHITECTURES[architecture](width).eval()


def _linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """What the command counts: linear maps inside numbered blocks, by transformers' own module names."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and any(part.isdigit() for part in name.split("."))}


def matrices(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of those weights as (out, in) in float64; a Conv1D keeps (in, out)."""
    return {name: (module.weight.T if isinstance(module, Conv1D) else module.weight).detach().double().numpy().copy()
            for name, module in _linear_modules(model).items()}


@torch.no_grad()
def tune(model: nn.Module, *, seed: int = 1, small: float = 0.02, strong: float = 0.5) -> nn.Module:
    """Change every matrix in place: a little everywhere, and of every other one strongly along three directions."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for place, module in enumerate(_linear_modules(model).values()):
        weight = module.weight
        change = small * noise(*weight.shape) / weight.numel()**0.5
        if place % 2 == 0:
            change += strong * noise(len(weight), 3) @ noise(3, weight.shape[1]) / weight.numel()**0.5
        weight += change * weight.norm().item()
    return model


@torch.no_grad()
def save_adapter(folder: Path, base: Path, model_class: type, *, config_class=LoraConfig, **settings) -> Path:
    """A PEFT adapter over `base` with random, not zero, factors, so that it plants intruders; as PEFT saves it."""
    torch.manual_seed(3)
    model = get_peft_model(model_class.from_pretrained(base, dtype=torch.float32), config_class(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05)
        elif "lora_magnitude_vector" in name:
            parameter.mul_(torch.rand_like(parameter) + 0.5)
        elif "modules_to_save" in name:
            parameter.normal_()
    model.save_pretrained(folder)
    return folder


def merged_matrices(base: Path, adapter: Path, model_class: type) -> tuple[dict, dict]:
    """Matrices before and after PEFT's own merge, in float64, where its rounding is out of sight."""
    plain = model_class.from_pretrained(base, dtype=torch.float64)
    before = matrices(plain)
    tuned = PeftModel.from_pretrained(plain, adapter, autocast_adapter_dtype=False).double().merge_and_unload()
    return before, matrices(tuned)


def definition(base: np.ndarray, tuned: np.ndarray, *, k: int = 10, vectors: str = "left") -> tuple:
    """(singular values, s_j = max_i |<u_j, u0_i>|) of the k leading vectors, by two thin SVDs in float64."""
    of_base, of_tuned = (np.linalg.svd(weight, full_matrices=False) for weight in (base, tuned))
    if vectors == "left":
        return of_tuned[1][:k], np.abs(of_tuned[0].T[:k] @ of_base[0]).max(1)
    return of_tuned[1][:k], np.abs(of_tuned[2][:k] @ of_base[2].T).max(1)


def edited(source: Path, folder: Path, edit: Callable[[dict], None]) -> Path:
    """A copy of a model or adapter whose tensors were edited."""
    shutil.copytree(source, folder)
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def configured(source: Path, folder: Path, **changes) -> Path:
    """A copy of an adapter with other entries in its configuration."""
    shutil.copytree(source, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def pickled(source: Path, folder: Path, save: Callable[[dict, Path], None] = torch.save) -> Path:
    """A copy of a model or adapter whose weights are a pickle, by the name that it has in old repositories."""
    shutil.copytree(source, folder)
    file = next(folder.glob("*.safetensors"))
    save(load_file(file), folder / {"model": "pytorch_model.bin", "adapter_model": "adapter_model.bin"}[file.stem])
    file.unlink()
    return folder


def write_sharded_llama(folder: Path, *, layers: int, width: int, inner: int, tuned: bool) -> int:
    """A float16 checkpoint laid out as LLaMA-7B is, four layers to a shard; returns how many weights it has."""
    folder.mkdir()
    own, change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    shapes = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"} | {
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    places, total = {}, 0
    for first in range(0, layers, 4):
        tensors = {}
        for layer in range(first, min(layers, first + 4)):
            for name, (out, into) in shapes.items():
                weight = 0.02 * torch.randn(out, into, generator=own)
                if tuned:
                    weight += 0.02 * torch.randn(out, 1, generator=change) @ torch.randn(1, into, generator=change)
                tensors[f"model.layers.{layer}.{name}.weight"] = weight.half()
        file = f"model-{first // 4 + 1:05d}-of-{-(-layers // 4):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.numel() for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return total
