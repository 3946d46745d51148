"""Progress of long work over a known number of things: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(things: Iterable[T], *, total: int, label: str, interval_s: float = 20.0) -> Iterator[T]:
    """The things themselves, with a bar and time left on a terminal, and a plain line every `interval_s` elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(things, total=total, desc=label, leave=False, dynamic_ncols=True)
        return
    started = last = time.monotonic()
    for done, thing in enumerate(things, start=1):
        yield thing
        now = time.monotonic()
        if now - last >= interval_s:
            last = now
            left = (now - started) / done * (total - done)
            print(f"{label}: {done}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)
