"""Weights that are stored in fewer bits: which formats become numbers again exactly, and which are refused by name.

Read are formats whose rule is one product, as the installed transformers and PEFT apply it:

- bitsandbytes 8-bit: ``weight`` (int8) times ``SCB`` / 127 of its row;
- FP8, and int8 of compressed-tensors: (``weight`` - ``weight_zero_point``) times a scale for the tensor, for each row,
  or for each block (``weight_scale_inv`` multiplies too, whatever its name says);
- MXFP4 (gpt-oss): two e2m1 numbers a byte in ``…_blocks``, times 2 to the power of ``…_scales`` - 127.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import UsageError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the numbers of four bits, without the sign
_INT8_RANGE = 127
_BLOCK_OF_FP8 = (128, 128)  # transformers' FineGrainedFP8Config, where a configuration does not say
_SCALED_METHODS = {"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"}
# Tensors that stand in a weight's place where it is packed in a way that we do not undo …
_PACKED = {".qweight": "GPTQ's or AWQ's packed integers", ".weight_packed": "compressed-tensors' packed integers",
           ".weight.absmax": "bitsandbytes' 4-bit numbers", ".W_q": "HQQ's packed integers", ".codes": "AQLM's codes",
           ".Qidxs": "QuIP#'s codes", ".q_weight": "ExLlama's packed integers", ".trellis": "ExLlama's codes",
           ".indices": "VPTQ's codes", ".weight._data": "Quanto's packed integers", ".dense_weights": "SpQR's codes",
           ".weight_bitmask": "compressed-tensors' sparse weights"}
# … and tensors beside a weight that say so of it.
_BESIDE = {".weight_scale_2": "NVFP4's packed numbers", ".weight_scales": "EETQ's integers",
           ".weight_g_idx": "integers in reordered groups", ".scales": "MLX's packed integers"}


class Stored(NamedTuple):
    """Where a tensor lies, its shape, and its type: a name such as "I8" where it is not a plain floating one."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | str

    @property
    def is_plain(self) -> bool:
        """Whether it holds floating-point numbers that need no scale."""
        return isinstance(self.dtype, torch.dtype)


@dataclass(frozen=True)
class Scheme:
    """How stored integers or short floats become numbers: which tensors multiply them, and in which blocks."""

    scale: str
    zero_point: str | None = None
    block: tuple[int, int] | None = None
    divisor: int = 1
    packed: bool = False  # MXFP4
    order: str | None = None  # bitsandbytes: 0 for rows one after another, else the order of a GPU's tiles


def packed_modules(header: Mapping[str, Stored]) -> dict[str, str]:
    """Modules whose weights are packed, and as what; by the names of the tensors that such formats have."""
    found: dict[str, str] = {}
    for name, stored in header.items():
        for suffix, what in (_PACKED | _BESIDE).items():
            module = name.removesuffix(suffix)
            if module == name:
                continue
            weight = header.get(f"{module}.weight")
            in_place = suffix in _PACKED and (weight is None or not weight.is_plain) and not stored.is_plain
            if in_place or (suffix in _BESIDE and weight is not None and not weight.is_plain):
                found.setdefault(module, what)
    return found


def scheme_of(module: str, header: Mapping[str, Stored], config: dict | None, *, source: str) -> Scheme | None:
    """How the weight of a module becomes numbers, or None if it is stored in a way that we cannot undo.

    Parameters
    ----------
    module : str
        One whose ``weight`` is a matrix of another type than plain floating ones.
    header : mapping of str to Stored
        Every tensor of the checkpoint.
    config : dict, optional
        The model's configuration.
    source : str
        How the reader called the checkpoint.

    Raises
    ------
    UsageError
        If the scales beside it do not fit the weight.
    """
    weight, given = header[f"{module}.weight"], (config or {}).get("quantization_config")
    settings = given if isinstance(given, dict) else {}
    if weight.dtype == "I8" and f"{module}.SCB" in header:
        _check(module, source, (f"{module}.SCB", header), (weight.shape[0],), (weight.shape[0], 1))
        order = f"{module}.weight_format"
        return Scheme(f"{module}.SCB", divisor=_INT8_RANGE, order=order if order in header else None)
    scale = next((f"{module}.{name}" for name in ("weight_scale_inv", "weight_scale") if f"{module}.{name}" in header),
                 None)
    method = str(settings.get("quant_method"))
    known = str(weight.dtype).startswith("F8_E") or (weight.dtype == "I8" and method == "compressed-tensors")
    if scale is None or not known or method not in _SCALED_METHODS or settings.get("transform_config"):
        return None
    zero_point = f"{module}.weight_zero_point"
    return Scheme(scale, zero_point if zero_point in header else None,
                  _block(module, (scale, header), settings, source=source))


def _block(module: str, scale: tuple[str, Mapping[str, Stored]], settings: dict, *,
           source: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where the whole tensor, or each row, has one."""
    name, header = scale
    (out, into), given = header[f"{module}.weight"].shape, header[name].shape
    one_each = ((), (1,), (1, 1), (out,), (out, 1))
    if given in one_each:
        return None
    rows, columns = _block_size(settings)
    if given == (out, given[-1]) and len(given) == 2 and into % given[1] == 0 and not name.endswith("_inv"):
        return 1, into // given[1]  # groups along each row
    _check(module, source, scale, *one_each, (-(-out // rows), -(-into // columns)))
    return rows, columns


def _block_size(settings: dict) -> tuple[int, int]:
    """The block's size that a configuration gives, in the way of transformers or of compressed-tensors."""
    groups = settings.get("config_groups")
    weights = [one.get("weights") for one in groups.values() if isinstance(one, dict)] if isinstance(
        groups, dict) else []
    sizes = [settings.get("weight_block_size"),
             *(one.get("block_structure") for one in weights if isinstance(one, dict))]
    found = next((size for size in sizes if isinstance(size, list) and len(size) == 2
                  and all(isinstance(side, int) and 0 < side < 2**20 for side in size)), None)
    return tuple(found) if found else _BLOCK_OF_FP8


def _check(module: str, source: str, scale: tuple[str, Mapping[str, Stored]], *shapes: tuple[int, ...]) -> None:
    name, header = scale
    if header[name].shape not in shapes:
        raise UsageError(f"'{name}' of {source} has shape {header[name].shape}, but the scales of '{module}', "
                         f"{header[f'{module}.weight'].shape}, should have {' or '.join(map(str, shapes[-2:]))}; so "
                         "its quantised weights cannot be told: give the copy that they were made from.")


def mxfp4_stacks(header: Mapping[str, Stored]) -> dict[str, Scheme]:
    """Stacks of experts in MXFP4: name of the blocks -> their scheme, for those whose scales fit."""
    found = {}
    for name, stored in header.items():
        scales = f"{name.removesuffix('_blocks')}_scales"
        if name.endswith("_blocks") and stored.dtype == "U8" and len(stored.shape) == 4 and scales in header \
                and header[scales].dtype == "U8" and header[scales].shape == stored.shape[:-1]:
            found[name] = Scheme(scales, packed=True)
    return found


def unpacked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(experts, out, in) of MXFP4's blocks (experts, out, groups, bytes)."""
    return shape[0], shape[1], shape[2] * shape[3] * 2


def dequantised(stored: torch.Tensor, scheme: Scheme, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """The numbers that a quantised matrix stands for, in float64, in which each product is exact.

    Parameters
    ----------
    stored : torch.Tensor
        (out, in), or the bytes (out, groups, bytes) of one expert in MXFP4.
    scheme : Scheme
    read : callable
        Gives the tensor of a name, for an expert its own slice.

    Raises
    ------
    UsageError
        If the integers lie in an order that we do not undo.
    """
    scale = read(scheme.scale)
    if scheme.order is not None and read(scheme.order).count_nonzero():
        raise UsageError(f"'{scheme.order}' says that the integers lie in the order of a GPU's tiles; save the model "
                         "again with a current bitsandbytes, or give the copy that it was quantised from.")
    if scheme.packed:
        values = torch.tensor([*E2M1, *(-one for one in E2M1)], dtype=torch.float64)
        both = torch.stack([values[(stored & 0xF).long()], values[(stored >> 4).long()]], dim=-1)
        return (both.flatten(-2) * (scale.double() - 127).exp2()[..., None]).flatten(1)
    factor = (scale.double() - 127).exp2() if scale.dtype == torch.uint8 else scale.to(torch.float32).double()
    factor = _spread(factor, scheme, stored.shape) / scheme.divisor
    numbers = stored.to(torch.float32).double()
    if scheme.zero_point is not None:
        numbers = numbers - _spread(read(scheme.zero_point).double(), scheme, stored.shape)
    return numbers * factor


def _spread(factor: torch.Tensor, scheme: Scheme, shape: torch.Size) -> torch.Tensor:
    """A factor of each tensor, row or block, so that it multiplies (out, in)."""
    if factor.numel() == 1:
        return factor.reshape(())
    if scheme.block is None:
        return factor.reshape(-1, 1)
    rows, columns = scheme.block
    return factor.repeat_interleave(rows, 0)[:shape[0]].repeat_interleave(columns, 1)[:, :shape[1]]
