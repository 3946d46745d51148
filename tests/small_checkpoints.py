"""Checkpoints written tensor by tensor, 24 wide, and the definition on the matrices that have to be counted of them.

Where ``standin_checkpoints.py`` has transformers and PEFT write whole models, these are the odd ones that other tools,
wrappers and crashes leave behind.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from checkpoint_shelf import report_of
from safetensors.torch import save_file
from standin_checkpoints import definition

WIDTH, INNER, RANK, LAYERS = 24, 40, 2, 2
SQUARE, UP, DOWN = (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)
BLOCK = {"self_attn.q_proj": SQUARE, "self_attn.v_proj": SQUARE, "mlp.up_proj": UP, "mlp.down_proj": DOWN}
CUSTOM = {"model_type": "custom"}
INDEX = "model.safetensors.index.json"


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(stack: str, shapes: dict = BLOCK, *, seed: int = 0, layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """Weights of a stack of blocks by name, each from a seed of its own."""
    names = [(f"{stack}.{layer}.{name}.weight", shape) for layer in range(layers) for name, shape in shapes.items()]
    return {name: normal(*shape, seed=1000 * seed + place) for place, (name, shape) in enumerate(names)}


def tuned(tensors: dict[str, torch.Tensor], *, which: str = "weight$") -> dict[str, torch.Tensor]:
    """A copy in which matrices, and every slice of stacks of them, have a strong new direction."""
    changed = dict(tensors)
    for place, (name, tensor) in enumerate(tensors.items()):
        if tensor.ndim > 1 and re.search(which, name):
            left, right = normal(*tensor.shape[:-1], 1, seed=900 + place), normal(tensor.shape[-1], seed=300 + place)
            changed[name] = tensor + 4 * left * right / WIDTH**0.5
    return changed


def write(folder: Path, tensors: dict, config: dict | None = CUSTOM, *, file: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / file,
              metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def factors(shapes: dict[str, tuple[int, ...]], *, rank: int = RANK, seed: int = 50) -> dict[str, tuple]:
    """Module -> (B, A) of a convolution's or a linear map's shape."""
    return {module: (normal(shape[0], rank, *[1] * (len(shape) - 2), seed=seed + place),
                     normal(rank, *shape[1:], seed=seed + 100 + place)) for place, (module, shape) in
            enumerate(shapes.items())}


def write_adapter(folder: Path, parts: dict[str, tuple], *, prefix: str = "base_model.model.", infix: str = "",
                  more: dict | None = None, file: str = "adapter_model.safetensors", **settings) -> Path:
    """An adapter as PEFT names it; a setting of ... is left away."""
    tensors = {f"{prefix}{module}.lora_{letter}{infix}.weight": factor for module, (b, a) in parts.items()
               for letter, factor in (("B", b), ("A", a))}
    write(folder, tensors | (more or {}), None, file=file)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "init_lora_weights": True} | settings
    (folder / "adapter_config.json").write_text(json.dumps({key: value for key, value in config.items()
                                                            if value is not ...}))
    return folder


def shapes_of(tensors: dict[str, torch.Tensor], which: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the modules whose name matches, for :func:`factors`."""
    return {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in tensors.items()
            if name.endswith(".weight") and re.search(which, name)}


def added(tensors: dict[str, torch.Tensor], parts: dict[str, tuple], scale=2.0) -> dict[str, tuple]:
    """Module -> (W0, W0 + scale B A) in float64; `scale` is a number or a function of the module."""
    found = {}
    for module, (b, a) in parts.items():
        base = tensors[f"{module}.weight"].double().flatten(1)
        update = b.double().flatten(1) @ a.double().flatten(1)
        found[module] = base, base + (scale(module) if callable(scale) else scale) * update
    return found


def matrices(before: dict, after: dict, which: str = "weight$", *, transposed: str = "$never") -> dict[str, tuple]:
    """Name -> (W0, Wt) as (out, in) in float64 of two whole models, by the base's names."""
    def turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.T if re.search(transposed, name) else tensor).double()

    return {name.removesuffix(".weight"): (turned(name, before[name]), turned(name, after[name]))
            for name in before if re.search(which, name) and before[name].ndim == 2 and re.search(r"\.\d+\.", name)}


def counted(tmp_path: Path, base, changed, wanted: dict[str, tuple], *options) -> dict:
    """The report of a run, after its matrices were compared with the definition on the wanted ones."""
    report = report_of(tmp_path, base, changed, *options)
    rows = {row["name"]: row for row in report["matrices"]}
    assert set(rows) == set(wanted)
    for name, (before, after) in wanted.items():
        _, cosines = definition(before.numpy(), after.numpy())
        assert tuple(rows[name]["shape"]) == tuple(before.shape), name
        np.testing.assert_allclose(rows[name]["max_cosines"], cosines, atol=1e-7, err_msg=name)
        assert rows[name]["counts"]["0.5"] == int((cosines < 0.5).sum()), name
    assert report["total"]["0.9"] > 0, "nothing new in any matrix, so nothing was tested"
    return report
