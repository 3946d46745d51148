"""Progress of long work over a known number of things: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
INTERVAL_S = 20.0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Lines:
    """A plain line with the time left, every `interval_s` seconds of work over `total` things.

    Parameters
    ----------
    label : str
    total : int
    first : int
        How many were done before, by an earlier process: they say nothing about the pace.
    unit : str
        Stands before the count, such as ``"step "``.
    interval_s : float
        Seconds between lines; the first comes that long after the start.
    say : callable
        Takes a line; prints it to stderr by default.
    """

    def __init__(self, label: str, total: int, *, first: int = 0, unit: str = "", interval_s: float = INTERVAL_S,
                 say: Callable[[str], None] = _to_stderr):
        self.label, self.total, self.first, self.unit = label, total, first, unit
        self.interval_s, self.say = interval_s, say
        self.started = self.last = time.monotonic()

    def count(self, done: int) -> None:
        """Say how far the work is, if it is time to."""
        now = time.monotonic()
        if now - self.last >= self.interval_s:
            self.last = now
            left = (now - self.started) / max(1, done - self.first) * max(0, self.total - done)
            self.say(f"{self.label}: {self.unit}{done}/{self.total}, about {left:.0f} s left")


def track(things: Iterable[T], *, total: int, label: str, interval_s: float = INTERVAL_S) -> Iterator[T]:
    """The things themselves, with a bar and time left on a terminal, and a plain line every `interval_s` elsewhere.

    Parameters
    ----------
    things : iterable
    total : int
        How many they are.
    label : str
        What the bar or line begins with.
    interval_s : float
        Seconds between lines.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(things, total=total, desc=label, leave=False, dynamic_ncols=True)
        return
    lines = Lines(label, total, interval_s=interval_s)
    for done, thing in enumerate(things, start=1):
        yield thing
        lines.count(done)
