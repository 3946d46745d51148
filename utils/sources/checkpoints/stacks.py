"""Experts that are stored as one tensor: (experts, out, in) in some models and (experts, in, out) in others.

Which way round is told by shapes: of the maps of one block, those into the experts take the model's width and that out
of them gives it. Where the width is as large as the experts', or the number of experts is not that of the
configuration, nothing is guessed and the stack is left out by name.
"""

from collections.abc import Iterator, Mapping

from utils.sources.checkpoints.linear import stack_of

_DEEPEST = 8  # parts within parts of a configuration


def stacked_experts(shapes: Mapping[str, tuple[int, ...]], width: Mapping[str, int],
                    config: dict | None) -> dict[str, bool]:
    """Stacks of experts that can be counted expert by expert: name -> whether they are stored as (in, out).

    Parameters
    ----------
    shapes : mapping of str to tuple
        Tensors of three dimensions inside blocks, by name without ``.weight``.
    width : mapping of str to int
        The model's width by stack of blocks (:func:`utils.sources.checkpoints.linear.widths`).
    config : dict, optional
        The model's configuration, for the number of experts.
    """
    counts, found = set(_numbers(config or {}, "expert")), {}
    sizes = set(_numbers(config or {}, "hidden_size"))
    hidden = next(iter(sizes)) if len(sizes) == 1 else None
    together: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if shape[0] in counts:
            together.setdefault(name.rpartition(".")[0], {})[name] = shape
    for parts in together.values():
        size = width.get(stack_of(next(iter(parts))), hidden)
        found |= _ways(parts, size) if size is not None else {}
    return found


def _ways(parts: dict[str, tuple[int, ...]], width: int) -> dict[str, bool]:
    """The way round of the stacks of one block, or nothing where shapes do not tell."""
    place, other = {}, {}
    for name, (_, first, second) in parts.items():
        if (first == width) == (second == width):
            return {}
        place[name], other[name] = (0, second) if first == width else (1, first)
    giving = _giving(place, other)
    if giving is None:
        return {}
    # Stored as (out, in), the width is first in what gives it and last in what takes it.
    ways = {name: (place[name] == 0) != (name == giving) for name in parts}
    return ways if len(set(ways.values())) == 1 else {}


def _giving(place: dict[str, int], other: dict[str, int]) -> str | None:
    """Which of two or three stacks gives the model's width: the fused two take twice as much; of three it is alone."""
    names = list(place)
    if len(names) == 2:
        first, second = sorted(names, key=other.__getitem__)
        return first if other[second] == 2 * other[first] else None
    if len(names) == 3 and len(set(other.values())) == 1:
        alone = [name for name in names if list(place.values()).count(place[name]) == 1]
        return alone[0] if len(alone) == 1 else None
    return None


def _numbers(config: dict, word: str, depth: int = 0) -> Iterator[int]:
    """Every whole number above 1 that a configuration, or a part of it, gives under a key with `word` in it."""
    for key, value in config.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _numbers(value, word, depth + 1)
        elif word in key and "per_tok" not in key and isinstance(value, int) and value > 1:
            yield value
