"""Numbers in sentences: what alt texts, captions and findings are filled with."""

from collections.abc import Iterable, Mapping


def listed(values: Mapping[str, float], number: str = "{:.3g}") -> str:
    """Names with their numbers.

    >>> listed({"full": 0, "LoRA r=8": 4.3333})
    'full 0, LoRA r=8 4.33'
    """
    return ", ".join(f"{name} {number.format(value)}" for name, value in values.items())


def over_seeds(values: Iterable[float], number: str = "{:.3g}") -> str:
    """A mean over seeds with its smallest and largest value; one number where they are equal.

    >>> over_seeds([4, 4, 5]), over_seeds([0, 0, 0])
    ('4.33 (4 to 5 over 3 seeds)', '0 (in all 3 seeds)')
    """
    found = [float(value) for value in values]
    mean, low, high = sum(found) / len(found), min(found), max(found)
    if len(found) == 1:
        return f"{number.format(mean)} (one seed)"
    if low == high:
        return f"{number.format(mean)} (in all {len(found)} seeds)"
    return f"{number.format(mean)} ({number.format(low)} to {number.format(high)} over {len(found)} seeds)"


def with_range(values: Iterable[float], number: str = "{:.3g}", unit: str = "") -> str:
    """A mean with its unit, and the smallest and largest value; one number of a single value.

    >>> with_range([1, 2, 6], unit="nats"), with_range([0.5])
    ('3 nats (1 to 6)', '0.5')
    """
    found = [float(value) for value in values]
    mean = f"{number.format(sum(found) / len(found))} {unit}".rstrip()
    return mean if len(found) == 1 else f"{mean} ({number.format(min(found))} to {number.format(max(found))})"


def both(things: Iterable[str]) -> str:
    """Names in a row, the last with "and".

    >>> both(["r = 1", "r = 4", "r = 8"])
    'r = 1, r = 4 and r = 8'
    """
    names = list(things)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))
