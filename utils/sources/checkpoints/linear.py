"""Which tensors are linear maps, and which way round they are stored: by shapes, and by the kinds of modules.

A word in a name decides nothing ("norm_attn_norm.attn.Wqkv" is a linear map): a norm's weight has one dimension.
Counted is a matrix ``….weight`` inside a numbered block; embeddings and heads outside of the blocks are not. Where a
shape leaves something open, transformers is asked what the module is.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from utils.errors import UsageError
from utils.sources.checkpoints.architecture import Architecture
from utils.sources.checkpoints.quantised import Stored

_BLOCK = re.compile(r"(?:^|\.)\d+\.")
# Modules of GPT-2's family, which transformers keeps as Conv1D, (in, out), and others as Linear: whether the model's
# own width is what they take or what they give.
_EITHER = {"c_attn": "in", "c_fc": "in", "q_attn": "in", "c_proj": "out"}
# Tables that some models keep inside a block; only that a name may be one is told by these words.
_MAYBE_TABLE = re.compile(r"embed|bias|position|table|codebook|vocab|wte|wpe|token")


def in_block(tensor: str) -> bool:
    """Whether a tensor stands inside a numbered block.

    >>> [in_block(name) for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight", "net.2.weight")]
    [True, False, True]
    """
    return _BLOCK.search(tensor) is not None


def stack_of(name: str) -> str:
    """What stands before the first number: blocks of one stack have it in common.

    >>> stack_of("decoder.h.0.attn.c_attn")
    'decoder.h'
    """
    parts = name.split(".")
    return ".".join(parts[:next((place for place, part in enumerate(parts) if part.isdecimal()), 0)])


def widths(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The width of the model in each stack: the one size that all its matrices have in common, where there is one."""
    common: dict[str, set[int]] = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            stack = stack_of(name)
            common[stack] = common.get(stack, set(shape)) & set(shape)
    return {stack: next(iter(sizes)) for stack, sizes in common.items() if len(sizes) == 1}


def transposed_modules(source: str, shapes: Mapping[str, tuple[int, ...]], header: Mapping[str, Stored],
                       *, ask: Callable[[], Architecture | None]) -> set[str]:
    """Modules whose weights are stored as (in, out).

    Told by the length of a module's bias; for names that GPT-2's family shares by the model's width, by other modules
    of that name or family in the same stack, and last by what transformers says.

    Parameters
    ----------
    source : str
        How the reader called the checkpoint.
    shapes : mapping of str to tuple
        Every module with a matrix as its weight, and its shape as stored.
    header : mapping of str to Stored
        Every tensor, for the biases.
    ask : callable
        Returns what transformers knows of the model, or None.

    Raises
    ------
    UsageError
        If it cannot be told for one of them.
    """
    alike: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        alike.setdefault((stack_of(name), _leaf(name)), set()).add(shape)
    # A single layer of another shape than its fellows is damaged, not turned.
    even = {name for name in shapes if len(alike[stack_of(name), _leaf(name)]) == 1 or _leaf(name) in _EITHER}
    told = {name: _by_bias(shape, header.get(f"{name}.bias")) if name in even else None
            for name, shape in shapes.items()}
    unsure = [name for name in shapes if told[name] is None and _leaf(name) in _EITHER]
    width = widths(shapes) if unsure else {}
    for name in unsure:
        told[name] = _by_width(shapes[name], _EITHER[_leaf(name)], width.get(stack_of(name)))
    for kind in (lambda one: (stack_of(one), _leaf(one)), stack_of):
        _follow(told, unsure, kind)
    for name in unsure:
        if told[name] is None:
            known = ask()
            kind = known.kind(name) if known is not None else None
            told[name] = {"Conv1D": True, "Linear": False}.get(str(kind))
        if told[name] is None:
            raise UsageError(f"{source} does not tell whether weights such as '{name}', {shapes[name]}, are stored as "
                             "(out, in) or, as GPT-2's are, as (in, out): neither a bias, another matrix nor "
                             "config.json says it; copy the whole checkpoint, with its config.json.")
    return {name for name, way in told.items() if way}


def tables(modules: Iterable[str], ask: Callable[[], Architecture | None]) -> set[str]:
    """Modules inside blocks that transformers says are embeddings, such as T5's table of relative positions."""
    found = set()
    for name in modules:
        if _MAYBE_TABLE.search(_leaf(name)) or _MAYBE_TABLE.search(stack_of(name).rpartition(".")[2]):
            known = ask()
            if known is not None and "Embedding" in (known.kind(name) or ""):
                found.add(name)
    return found


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _by_bias(shape: tuple[int, ...], bias: Stored | None) -> bool | None:
    """A bias is as long as what the map gives."""
    if bias is None or len(bias.shape) != 1 or shape[0] == shape[1] or bias.shape[0] not in shape:
        return None
    return bias.shape[0] == shape[1]


def _by_width(shape: tuple[int, ...], role: str, width: int | None) -> bool | None:
    if width is None or shape[0] == shape[1] or width not in shape:
        return None
    return (shape[0] == width) == (role == "in")


def _follow(told: dict[str, bool | None], unsure: list[str], kind_of: Callable[[str], object]) -> None:
    """Let a module that is unsure go with those of its kind that are known, where these agree."""
    known: dict[object, set[bool]] = {}
    for name in told:
        if told[name] is not None and _leaf(name) in _EITHER:
            known.setdefault(kind_of(name), set()).add(bool(told[name]))
    for name in unsure:
        ways = known.get(kind_of(name), set())
        if told[name] is None and len(ways) == 1:
            told[name] = next(iter(ways))
