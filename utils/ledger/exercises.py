"""Exercises in which the reader writes a function: it is judged by what must hold of it, and the answer is nowhere."""

from collections.abc import Callable, Mapping
from typing import Any

Properties = Mapping[str, Callable[[Callable], bool]]  # what must hold, in words -> whether it does


class _Unanswered(Exception):
    pass


def try_out(function: Callable[..., Any], properties: Properties, *, hint: str = "") -> None:
    """Say whether a reader's function has every property, or which it lacks first.

    Parameters
    ----------
    function : callable
        The reader's; one that returns None is not written yet, which is no error.
    properties : mapping of str to callable
        What must hold in words, and a function of the reader's function that says whether it does.
    hint : str
        Shown where something is missing.
    """
    def answered(*args: Any, **named: Any) -> Any:
        if (value := function(*args, **named)) is None:
            raise _Unanswered
        return value

    for sentence, holds in properties.items():
        try:
            right = bool(holds(answered))
        except _Unanswered:
            print("Not answered yet: write the function above and run both cells again.")
            return
        except Exception as error:  # the reader's own mistake, of whatever kind
            print(f"Not yet: {type(error).__name__} ({error}) where it should hold that {sentence}. {hint}".strip())
            return
        if not right:
            print(f"Not yet: it should hold that {sentence}. {hint}".strip())
            return
    print(f"Right: all {len(properties)} properties hold.")
