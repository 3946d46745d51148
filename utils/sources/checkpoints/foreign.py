"""Checkpoints of other tools, told by their files or by their tensors' names: what they are, and the way from there.

Nothing here is converted: each has a converter of its own, whose authors know the format.
"""

import re
from collections.abc import Iterable
from pathlib import Path

_PICKLE = "a pickle that may run code; load it where it was written and `save_pretrained` it"
# What lies in the folder, by the first pattern that has a match: what it is, why it is not read, what to do.
_FILES = (
    ("*.gguf",
     ("a GGUF file ({file}), llama.cpp's format, whose weights are rounded and in an order of their own; give "
      "the checkpoint that it was made from, or load it in transformers with `gguf_file=` and `save_pretrained` "
      "it")),
    ("pytorch_lora_weights.safetensors",
     ("a LoRA of diffusers ({file}), which carries no configuration with rank and alpha; fuse it into its "
      "pipeline with `fuse_lora`, save that, and give the folders of the model before and after")),
    ("adapters.safetensors",
     ("an adapter of MLX ({file}), which stores lora_a as (in, r) and a scale of its own; fuse it with "
      "`mlx_lm.fuse --dequantize` and give the fused model")),
    ("adapters.npz", "an adapter of MLX ({file}); fuse it with `mlx_lm.fuse --dequantize` and give the fused model"),
    ("*.npz", "NumPy arrays ({file}), as MLX wrote models once; convert them to safetensors under transformers' names"),
    ("zero_to_fp32.py",
     ("a checkpoint of DeepSpeed ZeRO, whose weights lie in pieces, one for each process; run its {file}, then "
      "save the model with `save_pretrained`")),
    ("global_step*",
     ("a checkpoint of DeepSpeed ({file}), whose weights lie in pieces, one for each process; run DeepSpeed's "
      "zero_to_fp32.py on it, then save the model with `save_pretrained`")),
    ("*.distcp",
     ("pieces of torch.distributed.checkpoint ({file}); put them together with `accelerate merge-weights` or "
      "torch.distributed.checkpoint.format_utils, then save the model with `save_pretrained`")),
    ("*/*.distcp",
     ("pieces of torch.distributed.checkpoint ({file}); put them together with `accelerate merge-weights` or "
      "torch.distributed.checkpoint.format_utils, then save the model with `save_pretrained`")),
    ("recipe_state.pt",
     ("a checkpoint of torchtune that is to be resumed; give the epoch's folder, written with "
      "`safe_serialization: True`")),
    ("hf_model_*.pt", f"a model of torchtune ({{file}}), {_PICKLE}, or set `safe_serialization: True`"),
    ("adapter_[0-9]*.pt", f"an adapter of torchtune ({{file}}), {_PICKLE}, or set `safe_serialization: True`"),
    ("adapter_model.pt", f"an adapter of torchtune ({{file}}), {_PICKLE}"),
    ("pytorch_adapter.bin",
     ("an adapter of the library Adapters ({file}), not PEFT's; merge it there with `merge_adapter` and save the "
      "model")),
    ("lit_model*.pth", "a model of LitGPT ({file}); convert it with `litgpt convert_from_litgpt`"),
    ("consolidated.*.pth",
     f"a model in Meta's own format ({{file}}), {_PICKLE}, or take the copy in transformers' format"),
    ("*.nemo", "an archive of NeMo ({file}); export it to transformers' format with NeMo"),
    ("optimizer*.*", "an optimiser's state ({file}) and no model; give the folder that the model was saved to"),
    ("rng_state*",
     "what a trainer keeps to be resumed ({file}) and no model; give the folder that the model was saved to"),
    ("wandb-*.json",
     "what a tracker keeps of a run ({file}) and no model; give the folder that the model was saved to"),
    ("events.out.tfevents*",
     "what TensorBoard keeps of a run ({file}) and no model; give the folder that the model was saved to"),
    ("MLmodel",
     ("a model as MLflow logs it ({file}), without weights of its own; give the folder below with its "
      "config.json")),
    ("*.ckpt", f"a checkpoint of Lightning or TensorFlow ({{file}}), {_PICKLE}"),
    ("*.pth", f"weights of torch.save ({{file}}), {_PICKLE}"),
    ("*.pt", f"weights of torch.save ({{file}}), {_PICKLE}"),
    ("*.msgpack",
     ("weights of Flax ({file}), stored as (in, out); load them in transformers 4 with `from_flax=True` and "
      "`save_pretrained` them")),
    ("*.h5",
     ("weights of TensorFlow ({file}), stored as (in, out); load them in transformers 4 with `from_tf=True` and "
      "`save_pretrained` them")),
    ("*.onnx", "an ONNX graph ({file}); give the checkpoint that it was exported from"),
    ("*.pdparams", "weights of Paddle ({file}), stored as (in, out); convert them to transformers' format"),
    ("mergekit_config.yml", "the recipe of a merge ({file}) without the merged weights; run `mergekit-yaml` again"),
)
# Tensors of adapters that are not PEFT's, by how their names end or begin.
_TENSORS = (
    (r"\.lora_(?:down|up)\.weight$|^lora_(?:unet|te\d?)_",
     "a LoRA of Kohya's scripts",
     ("its names have the model's dots as underscores and its alpha lies beside each factor, so no module of the "
      "base can be told for certain; convert it to PEFT's format, or merge it into its base with the tool that "
      "made it and give the merged copy")),
    (r"\.lora_[ab]$|\.lora_[ab]\.weight$",
     "factors named lora_a and lora_b, as MLX and torchtune write them",
     ("MLX stores them transposed, torchtune does not, and neither says alpha in PEFT's way; fuse them with the "
      "tool that made them and give the fused copy")),
    (r"\.(?:lora\.(?:up|down)|lora_linear_layer\.(?:up|down)|processor\..*_lora\..*)\.weight$",
     "a LoRA of diffusers",
     ("it carries no configuration with rank and alpha; fuse it into its pipeline with `fuse_lora` and give the "
      "model before and after")),
    (r"\.lokr_w\d|\.hada_w\d|\.oft_blocks|\.oft_diag|\.boft_",
     "a LyCORIS adapter (LoKr, LoHa or OFT)",
     "its update is more than scale * B A; merge it into its base and give the merged copy"),
    (r"(?:^|\.)(?:exp_avg|exp_avg_sq)(?:$|\.)",
     "an optimiser's state",
     "it is no model; give the folder of the model itself"),
    (r"(?:^|\.)_?flat_param(?:$|\.|_)",
     "FSDP's flattened pieces",
     "their matrices cannot be told apart; save the model with FSDP's full state dict"),
)


def named_tool(folder: Path, files: Iterable[Path]) -> str | None:
    """What of another tool lies in a folder, and what to do with it, as the end of a sentence; None if nothing does.

    Parameters
    ----------
    folder : Path
    files : iterable of Path
        Safetensors that are about to be read; with any of these, only formats that lie in safetensors count.
    """
    reading = {path.name for path in files}
    for pattern, words in _FILES:
        if reading and not pattern.endswith(".safetensors"):
            continue
        found = next((path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")), None)
        if found is not None:
            return words.format(file=found.relative_to(folder))
    return None


def named_tensors(names: Iterable[str]) -> str | None:
    """What an adapter of another tool, or an optimiser's state, is by its tensors' names; None if it is neither."""
    names = list(names)
    for pattern, what, why in _TENSORS:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            return f"{what} ('{found}'): {why}"
    return None


def named_settings(config: dict) -> str | None:
    """Whose an ``adapter_config.json`` is that is not PEFT's, and what to do, as the end of a sentence; else None."""
    if "lora_parameters" in config or "fine_tune_type" in config:
        return ("is an adapter of MLX, which stores its factors transposed and with a scale of its own, not PEFT's; "
                "fuse it with `mlx_lm.fuse --dequantize` and give the fused model")
    if isinstance(config.get("config"), dict) and {"model_type", "hidden_size", "model_class"} & set(config):
        return ("is an adapter of the library Adapters, not PEFT's; merge it there with `merge_adapter` and save the "
                "model")
    return None
