"""Which matrix of the base a name of the tuned checkpoint means, though the two were not saved by the same code.

Tried in this order, and each step only for the names that the steps before left open: the very name; the name without
the wrappers that training frameworks leave in it; one name as the end of the other, as with and without a head; the
names that transformers gives both when it loads them; and the longest common ending, where it is that of one matrix
only and of the same tower. What could mean two matrices means none.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Renaming = Callable[[str], str | None]

# What wrappers leave in the middle of names: DDP, torch.compile, FSDP, activation checkpointing, Fabric, fairscale.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
                       "_fpw_module", "_wrapped_module"})
_PEFT = ("base_model", "model")
# Components before the block's number that say which tower it belongs to; a match between two towers is none.
_TOWERS = {"vision": r"vision|visual|image|img|pixel|video|vit\b|vit_|deit|beit|dino|swin|siglip",
           "audio": r"audio|speech|whisper|acoustic|sound",
           "talker": r"talker|token2wav|code2wav|code_predictor|mtp",
           "text": r"language|text|llm"}
_STACKS = ("encoder", "decoder")


@dataclass
class Matched:
    """What became of the names: matrix of the base by name, and the candidates of those that could mean several."""

    found: dict[str, str] = field(default_factory=dict)
    open: dict[str, list[str]] = field(default_factory=dict)


def match_names(names: Iterable[str], base_names: Iterable[str]) -> dict[str, str]:
    """Which base matrix each name means, by the names alone; a name that means none, or could mean two, is left out.

    >>> match_names(["bert.encoder.layer.0.output.dense"], ["encoder.layer.0.output.dense"])
    {'bert.encoder.layer.0.output.dense': 'encoder.layer.0.output.dense'}
    >>> match_names(["module.model.layers.0._orig_mod.mlp.fc1"], ["model.layers.0.mlp.fc1"])
    {'module.model.layers.0._orig_mod.mlp.fc1': 'model.layers.0.mlp.fc1'}
    >>> match_names(["lm_head"], ["encoder.layer.0.output.dense"])
    {}
    """
    return matched(names, base_names).found


def matched(names: Iterable[str], base_names: Iterable[str], *, others: Iterable[str] = (),
            renaming: Callable[[], Renaming | None] = lambda: None) -> Matched:
    """Which matrix of the base each name means.

    Parameters
    ----------
    names : iterable of str
        Of the tuned checkpoint.
    base_names : iterable of str
        Matrices of the base that are counted.
    others : iterable of str
        What else the base has, such as matrices in a quantised form: a name may mean one of these, and is not handed
        on to the next best.
    renaming : callable
        Returns what gives a name of either checkpoint the name that transformers has for it in memory, or None if that
        is not known; called only where names are still open, since it imports transformers.
    """
    known = list(dict.fromkeys([*base_names, *others]))
    result, rest = Matched(), list(dict.fromkeys(names))
    rest = _settle(result, rest, _Index(known, lambda name: name).exact)
    index = _Index(known, unwrapped)
    rest = _settle(result, rest, index.exact)
    rest = _settle(result, rest, index.ending)
    if rest and (rename := renaming()) is not None:
        index = _Index(known, lambda name: rename(unwrapped(name)))
        rest = _settle(result, rest, index.exact)
        rest = _settle(result, rest, index.ending)
        rest = _settle(result, rest, index.longest_ending)
    _settle(result, rest, _Index(known, unwrapped).longest_ending)
    return result


def _settle(result: Matched, names: list[str], find: Callable[[str], list[str]]) -> list[str]:
    """Take down what was found for each name; returns the names that are still open."""
    for name in names:
        candidates = find(name)
        if len(candidates) == 1:
            result.found[name] = candidates[0]
            result.open.pop(name, None)
        elif candidates:
            result.open[name] = candidates
    return [name for name in names if name not in result.found]


class _Index:
    """The base's names under a spelling that both sides are brought to."""

    def __init__(self, names: list[str], spelling: Renaming):
        self.spelling = spelling
        self.whole: dict[str, list[str]] = {}
        self.ends: dict[str, list[str]] = {}
        self.towers = set()
        for name in names:
            spelt = spelling(name)
            if spelt is None:
                continue
            self.whole.setdefault(spelt, []).append(name)
            for end in _tails(spelt):
                self.ends.setdefault(end, []).append(name)
            self.towers.add(frozenset(towers(spelt)))

    def exact(self, name: str) -> list[str]:
        """The base's matrices that are spelt the same."""
        return self.whole.get(self.spelling(name) or "", [])

    def ending(self, name: str) -> list[str]:
        """Those of which the name is the end, or which are an end of it."""
        spelt = self.spelling(name)
        if spelt is None:
            return []
        shorter = next((self.whole[end] for end in _tails(spelt) if end in self.whole), [])
        return [base for base in self.ends.get(spelt, []) or shorter if self._one_tower(spelt, base)]

    def longest_ending(self, name: str) -> list[str]:
        """Those with the longest end in common, within one tower and one stack."""
        spelt = self.spelling(name)
        for end in _tails(spelt) if spelt is not None else ():
            fitting = [base for base in self.ends.get(end, ()) if self._one_tower(spelt, base, strict=True)]
            if fitting:
                return fitting
        return []

    def _one_tower(self, spelt: str, base: str, *, strict: bool = False) -> bool:
        own, other = towers(spelt), towers(self.spelling(base))
        if own and other:
            return bool(own & other)
        if own or other:
            # A text model's factors carry no tower's name; a vision model of its own need not either.
            if (own | other) <= {"text"}:
                return True
            return len(self.towers) == 1 and not strict
        stacks = [[part for part in spelling.split(".") if part in _STACKS] for spelling in (
            _before(spelt), _before(self.spelling(base)))]
        return not strict or not all(stacks) or stacks[0] == stacks[1]


def unwrapped(name: str) -> str:
    """A name without what wrappers and PEFT left in it.

    >>> unwrapped("thinker.base_model.model.model._orig_mod.layers.0.mlp")
    'thinker.model.layers.0.mlp'
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    for place in range(len(parts) - 1):
        if tuple(parts[place:place + 2]) == _PEFT:
            return ".".join(parts[:place] + parts[place + 2:]) or name
    return ".".join(parts) or name


def towers(name: str) -> set[str]:
    """Which towers the components before the first number speak of: "vision", "audio", "talker", "text".

    >>> sorted(towers("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1"))
    ['vision']
    """
    return {tower for tower, words in _TOWERS.items() if re.search(words, _before(name))}


def _before(name: str) -> str:
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[:first])


def _tails(name: str) -> list[str]:
    """A name from every component on up to the first number, longest first."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), 0)
    return [".".join(parts[place:]) for place in range(first + 1)]
