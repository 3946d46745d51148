"""The account of a plan that is being trained: what waits, what became of the rest, and how long it will still take.

Every engine keeps one: the pool of this machine, and whatever trains on others.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tqdm import tqdm

from utils.training.plan import Planned
from utils.training.store import RunStore


@dataclass
class Outcomes:
    """What became of the planned runs, by key: labels of those done, sentences for those that were not.

    Attributes
    ----------
    durations_s : dict of str to float
        Seconds of each run that is done.
    seconds, peak_gib : float
        That all of it took, and the most memory that its processes held together (0 where it was not measured).
    workers : int
        Runs at a time.
    """

    done: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    durations_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_gib: float = 0.0
    workers: int = 1

    def __len__(self) -> int:
        return len(self.done) + len(self.failed) + len(self.left_out)


class Account:
    """Hands out the planned runs as they may be trained, and takes in how they ended.

    Parameters
    ----------
    planned : list of Planned
        Of :func:`utils.training.plan.plan`, in the order in which they are to be started.
    say : callable
        Takes one line for each run that ended, where there is no terminal for a bar.
    """

    def __init__(self, planned: list[Planned], *, say: Callable[[str], None] = print):
        self.waiting, self.running = list(planned), dict[str, Planned]()
        self.outcomes, self.say, self.total = Outcomes(), say, len(planned)
        self._done_s, self._took = 0.0, dict[tuple, tuple[float, float]]()  # shape -> seconds, and those expected
        self._started, self._since = time.monotonic(), dict[str, float]()
        self._bar = tqdm(total=round(self._left_s(self._started)), unit="s", dynamic_ncols=True, leave=False,
                         bar_format="{desc} {bar} {percentage:3.0f}% about {remaining} left"
                         ) if sys.stderr.isatty() else None

    def take(self, fits: Callable[[Planned], bool] = lambda one: True) -> Planned | None:
        """The first waiting run that waits for no other and fits, which counts as running from here; None if none."""
        held = {one.spec.key for one in self.waiting} | self.running.keys()
        for one in self.waiting:
            if not one.after & held and fits(one):
                self.waiting.remove(one)
                self.running[one.spec.key] = one
                self._since[one.spec.key] = time.monotonic()
                return one
        return None

    def put_back(self, one: Planned) -> None:
        """Let a running run wait again: what it was trained on is gone, and it goes on from its last resume point."""
        del self.running[one.spec.key]
        self.waiting.insert(0, one)

    def ended(self, one: Planned, seconds: float, why: str | None = None) -> None:
        """Take in a run that ended after `seconds`: finished and in the store, unless `why` says why it is not."""
        del self.running[one.spec.key]
        spec = one.spec
        result = RunStore().result(spec) if why is None else None
        if result is None:
            why = why or "its result is not in the store"
            self.outcomes.failed[spec.key] = f"{spec.label} ({spec.key}): {why}"
            self._leave_out(spec.key, f"{spec.label} failed")
            how = f"failed: {why}"
        else:
            self.outcomes.done[spec.key], self.outcomes.durations_s[spec.key] = spec.label, seconds
            diverged = result["run"]["status"] == "diverged"
            if diverged:
                self._leave_out(spec.key, f"{spec.label} diverged")
            how = "diverged" if diverged else f"{seconds:.0f} s"
            self._learn(one, seconds)
        self._done_s += seconds
        self._tell(f"{spec.label}: {how}")

    def close(self) -> Outcomes:
        """End the account; what still waits or runs is in no list of it."""
        if self._bar is not None:
            self._bar.close()
        self.outcomes.seconds = time.monotonic() - self._started
        return self.outcomes

    def _leave_out(self, key: str, why: str) -> None:
        """Drop what waits for a run that has no weights to go on from."""
        for one in [one for one in self.waiting if key in one.after]:
            self.waiting.remove(one)
            self.outcomes.left_out[one.spec.key] = why
            self._leave_out(one.spec.key, why)

    def _learn(self, one: Planned, seconds: float) -> None:
        for shape in one.shapes:
            took, expected = self._took.get(shape, (0.0, 0.0))
            self._took[shape] = (took + seconds, expected + one.seconds)

    def _expected_s(self, one: Planned) -> float:
        """What a run is expected to take, by how wrong that has been for the runs most like it.

        Before anything of a kind was ever measured, it may be wrong by ten times, and not alike for every kind.
        """
        for shape in one.shapes:
            if shape in self._took:
                took, expected = self._took[shape]
                return one.seconds * took / max(expected, 1e-9)
        return one.seconds

    def _left_s(self, now: float) -> float:
        """Seconds of work that is left; a run that takes longer than expected takes nothing off the others."""
        return sum(self._expected_s(one) for one in self.waiting) + sum(
            max(0.0, self._expected_s(one) - (now - self._since[key])) for key, one in self.running.items())

    def _tell(self, line: str) -> None:
        now = time.monotonic()
        done, left = self._done_s + sum(now - self._since[key] for key in self.running), self._left_s(now)
        if self._bar is not None:
            self._bar.total, self._bar.n = round(done + left), round(done)
            self._bar.set_description_str(f"{len(self.outcomes)}/{self.total}")
            return
        minutes = (now - self._started) / max(done, 1e-9) * left / 60
        self.say(f"[{len(self.outcomes)}/{self.total}] {line}; about {minutes:.0f} min left")


def summary(outcomes: Outcomes) -> Iterator[str]:
    """What became of a plan, in lines: how many were trained, and each that was not with why."""
    yield f"{len(outcomes.done)} runs trained in {outcomes.seconds / 60:.1f} min."
    for why in outcomes.failed.values():
        yield f"failed: {why}"
    if outcomes.left_out:
        why = next(iter(outcomes.left_out.values()))
        yield f"not trained: {len(outcomes.left_out)} runs that wait for another ({why})."
