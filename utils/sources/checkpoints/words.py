"""How names of tensors are listed in a sentence, and put in order."""

from collections.abc import Iterable


def some(names: Iterable[str]) -> str:
    """A few of the names, and how many more there are.

    >>> some(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:3]) or "nothing"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def natural(name: str) -> list:
    """Sort key under which layer 2 comes before layer 10.

    >>> sorted(["h.10.c", "h.2.c", "h.2.a"], key=natural)
    ['h.2.a', 'h.2.c', 'h.10.c']
    """
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]
