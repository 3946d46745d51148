"""One fault, tried: what it is called, what kind it is of, and how to try it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One try of the campaign.

    Attributes
    ----------
    name : str
        What is tried, unique within its part, in words that a report can print.
    kind : str
        The family of faults that it belongs to; the report counts by it.
    attempt : callable
        Takes an empty folder of the case's own; returns None if the course held, else one sentence on what it did
        instead. An exception counts as not held.
    """

    name: str
    kind: str
    attempt: Callable[[Path], str | None]
