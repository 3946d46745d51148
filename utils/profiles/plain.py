"""YAML as people type it, read as what JSON knows: nothing that a tag, a date or a circle could bring in."""

import math
from typing import Any

import yaml

from utils.errors import reason_of

DEEPEST, MOST = 40, 100_000  # levels and values; the largest profile has 8 and about 1,500
MOST_ALIASES = 30  # beside a merge, which copies what it names: a few dozen would grow beyond any memory


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # six times as fast, where built
    """YAML that refuses a key given twice; PyYAML alone keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            seen: list = []
            for key, _ in node.value:
                name = None if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key, deep=deep)
                if name is not None and name in seen:
                    raise yaml.YAMLError(f"the key '{name}' is given twice on or after line {node.start_mark.line + 1}")
                seen.append(name)
        return super().construct_mapping(node, deep=deep)


# A date stays the text that it is; JSON has no dates.
_Plain.yaml_implicit_resolvers = {first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
                                  for first, pairs in _Plain.yaml_implicit_resolvers.items()}


def plain_yaml(text: str) -> Any:
    """What a YAML text says, of strings, finite numbers, truth values, nothing, lists and mappings alone.

    Parameters
    ----------
    text : str
        One document. Anchors and merges are followed; dates stay text.

    Raises
    ------
    ValueError
        In one sentence without its full stop: why the text is no such YAML, and on which line or at which key.

    Examples
    --------
    >>> plain_yaml("{date: 2026-01-01, ranks: [1, 8]}")
    {'date': '2026-01-01', 'ranks': [1, 8]}
    """
    try:
        _check_events(text)
        content = yaml.load(text, Loader=_Plain)
    except yaml.YAMLError as error:
        raise ValueError(reason_of(error).replace(' in "<unicode string>",', " on")[:200]) from error
    except RecursionError as error:
        raise ValueError("it refers to itself") from error
    _check(content, "", within=(), left=[MOST])
    return content


def _check_events(text: str) -> None:
    """Before anything is built of it: building goes as deep as the text does, and does as a tag says."""
    depth, aliases, merges = 0, 0, False
    for event in yaml.parse(text, Loader=_Plain):
        line = event.start_mark.line + 1 if event.start_mark else 0
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep on line {line}")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"it has the tag '{tag}' on line {line}; leave it out")
        aliases += isinstance(event, yaml.AliasEvent)
        merges |= getattr(event, "value", None) == "<<"
        if merges and aliases > MOST_ALIASES:
            raise ValueError(f"it has merges (<<) and more than {MOST_ALIASES} aliases; write out what they name")


def _check(value: Any, place: str, *, within: tuple[int, ...], left: list[int]) -> None:
    at, left[0] = f" at '{place[1:]}'" if place else "", left[0] - 1
    if left[0] < 0:
        raise ValueError(f"it has more than {MOST:,} values once its anchors are followed")
    if isinstance(value, dict | list):
        if id(value) in within:
            raise ValueError(f"it refers to itself{at}")
        if len(within) >= DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep{at}")
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise ValueError(f"the key '{key}'{at} is read as a {type(key).__name__}; put it in quotes")
            _check(inner, f"{place}.{str(key)[:100]}" if len(place) < 300 else place, within=(*within, id(value)),
                   left=left)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number{at} is infinite or none")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"a whole number{at} is too large")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"a {type(value).__name__}{at} is no text, number, truth value, list or mapping")
