"""Which runs are missing, what each waits for, and what each will take: the plan that a pool trains by.

Times and peaks are those of finished runs of the same shape; where there is none, of the nearest kind; where nothing
was ever trained, they follow from the size of the model. They decide the order and how many fit, never a result.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush

from utils.errors import UsageError
from utils.machine import device_name
from utils.sources.models import resolve, weight_files
from utils.training.spec import RunSpec, with_starts
from utils.training.store import RunStore

GUESSED_OPERATIONS_PER_SECOND = {"cpu": 4e10, "cuda": 2e13}  # a laptop's core, a consumer GPU; before any was measured
GUESSED_COPIES = 6  # of the weights in memory: weights, gradients, two moments, activations
LEAST_GIB = 1.0  # of a process that has imported everything
RESUME_POINTS = 4  # that a run makes, evenly


@dataclass(frozen=True)
class Planned:
    """A missing run: what it waits for, how long it and all that waits for it will take.

    Attributes
    ----------
    spec : RunSpec
    seconds, peak_gib : float
        Expected; the peak is of a GPU's memory where there is one.
    after : frozenset of str
        Keys of the missing runs that it goes on from or is judged by.
    chain_seconds : float
        Of the longest chain of runs that begins with it; the pool starts the largest first.
    """

    spec: RunSpec
    seconds: float
    peak_gib: float
    after: frozenset[str] = frozenset()
    chain_seconds: float = 0.0

    @cached_property
    def shapes(self) -> list[tuple]:
        """What its cost is learnt by, the finest first; the last is that of every run."""
        return [*cost_shapes(self.spec.model_dump(mode="json")), ()]


@dataclass
class Costs:
    """What runs took: seconds per step and peak memory by shape, learnt from finished ones."""

    seconds_per_step: dict[tuple, list[float]] = field(default_factory=dict)
    peaks_gib: dict[tuple, float] = field(default_factory=dict)

    def learn(self, spec: dict, measured: dict) -> None:
        """Take in a finished run: its specification as it is stored, and the ``measured`` block of its result."""
        for shape in cost_shapes(spec):
            self.seconds_per_step.setdefault(shape, []).append(measured["train_seconds"] / max(1, measured["steps"]))
            self.peaks_gib[shape] = max(measured["peak_gib"], self.peaks_gib.get(shape, 0.0))

    def of(self, spec: RunSpec) -> tuple[float, float]:
        """Expected seconds and peak in GiB."""
        steps = spec.steps or 100  # epochs of rows that were not counted yet
        for shape in cost_shapes(spec.model_dump(mode="json")):
            if shape in self.seconds_per_step:
                return steps * statistics.median(self.seconds_per_step[shape]), self.peaks_gib[shape]
        size = sum(file.stat().st_size for file in weight_files(resolve(spec.base).folder))
        tokens = spec.batch_size * spec.gradient_accumulation * spec.sizes.max_length
        seconds = steps * tokens * 6 * (size / 4) / GUESSED_OPERATIONS_PER_SECOND[device_name()]
        return seconds, LEAST_GIB + GUESSED_COPIES * size / 2**30


def cost_shapes(spec: dict) -> list[tuple]:
    """What a run's cost depends on, from everything to the base and the kind of method alone."""
    base, method = spec["base"]["name"], spec["method"]
    rows = spec["batch_size"] * spec["gradient_accumulation"] * spec["sizes"]["max_length"]
    whole = (base, method["kind"], method["variant"], spec["objective"], rows, bool(spec["durations"]), method["r"])
    return [whole, whole[:6], (base, method["kind"], spec["objective"], rows), (base, method["kind"])]


def known_costs(store: RunStore) -> Costs:
    """What the finished runs of a store took."""
    costs = Costs()
    for _, result in store.results():
        costs.learn(result["run"]["spec"], result["measured"])
    return costs


def plan(specs: Iterable[RunSpec], store: RunStore, costs: Costs | None = None, *,
         finished_too: bool = False) -> list[Planned]:
    """The runs that are missing, with those that they go on from, each after what it waits for; longest chain first.

    Parameters
    ----------
    specs : iterable of RunSpec
        What is wanted; finished runs drop out.
    store : RunStore
        What there is.
    costs : Costs, optional
        Of the store's own finished runs by default.
    finished_too : bool
        As if none of them were finished.
    """
    missing: dict[str, RunSpec] = {}
    for spec in specs:
        for one in with_starts(spec):
            if finished_too or not store.stored(one):
                missing.setdefault(one.key, one)
    if costs is None:
        costs = known_costs(store) if missing else Costs()  # reading every result takes a while
    after = {key: frozenset(other.key for other in (spec.start, spec.reward) if other and other.key in missing)
             for key, spec in missing.items()}
    expected = {key: costs.of(spec) for key, spec in missing.items()}
    chains = {key: seconds for key, (seconds, _) in expected.items()}
    for key in reversed(missing):  # what goes on from a run was met after it
        for other in after[key]:
            chains[other] = max(chains[other], expected[other][0] + chains[key])
    found = [Planned(spec, *expected[key], after=after[key], chain_seconds=chains[key])
             for key, spec in missing.items()]
    return sorted(found, key=lambda one: -one.chain_seconds)


def shard(planned: list[Planned], part: int, parts: int) -> list[Planned]:
    """The share of machine number `part` of `parts`, counted from 1: whole chains, dealt out so that none waits long.

    Raises
    ------
    UsageError
        If there is no such part.
    """
    if not 1 <= part <= parts:
        raise UsageError(f"Expected a shard from 1/{parts} to {parts}/{parts}, got {part}/{parts}.")
    loads, home = [0.0] * parts, {}
    groups = _chains(planned)
    for group in sorted(groups, key=lambda group: -sum(one.seconds for one in group)):
        place = loads.index(min(loads))
        loads[place] += sum(one.seconds for one in group)
        home.update({one.spec.key: place for one in group})
    return [one for one in planned if home[one.spec.key] == part - 1]


def _chains(planned: list[Planned]) -> list[list[Planned]]:
    """Runs in groups that wait for nothing outside."""
    group_of: dict[str, list[Planned]] = {one.spec.key: [one] for one in planned}
    for one in planned:
        for other in one.after & group_of.keys():
            mine, theirs = group_of[one.spec.key], group_of[other]
            if mine is not theirs:
                theirs.extend(mine)
                group_of.update({member.spec.key: theirs for member in mine})
    return list({id(group): group for group in group_of.values()}.values())


def makespan(planned: list[Planned], workers: int, *,
             killed: Callable[[Planned, int], float | None] = lambda one, attempt: None) -> tuple[float, float]:
    """Expected seconds with so many workers, and the bound that no order can beat (mean load, or the longest chain).

    A worker that is free takes the ready run with the longest chain behind it, as the pool does.

    Parameters
    ----------
    planned : list of Planned
    workers : int
    killed : callable, optional
        Of a run and the number of its attempt, from 0: the share of what is left of it after which its worker is
        killed, or None. It waits again and goes on from its last resume point; what is done twice is in the bound.
    """
    waits = {one.spec.key: set(one.after) for one in planned}
    by_key, then = {one.spec.key: one for one in planned}, defaultdict(list)
    for one in planned:
        for other in one.after:
            then[other].append(one.spec.key)
    left, attempts = {one.spec.key: one.seconds for one in planned}, Counter[str]()
    ready = [(-one.chain_seconds, one.spec.key) for one in planned if not one.after]
    heapify(ready)
    running: list[tuple[float, str]] = []
    now = worked = 0.0
    while ready or running:
        while ready and len(running) < max(1, workers):
            _, key = heappop(ready)
            seconds, left[key] = _attempt(by_key[key], left[key], killed(by_key[key], attempts[key]))
            attempts[key] += 1
            worked += seconds
            heappush(running, (now + seconds, key))
        now, ended = heappop(running)
        if left[ended]:
            heappush(ready, (-by_key[ended].chain_seconds, ended))
            continue
        for key in then[ended]:
            waits[key].discard(ended)
            if not waits[key]:
                heappush(ready, (-by_key[key].chain_seconds, key))
    return now, max(worked / max(1, workers), max((one.chain_seconds for one in planned), default=0.0))


def _attempt(one: Planned, left: float, killed: float | None) -> tuple[float, float]:
    """Seconds that an attempt at a run takes, and what is left of the run after it."""
    if killed is None:
        return left, 0.0
    point = one.seconds / RESUME_POINTS
    reached = one.seconds - left + killed * left
    return killed * left, max(1e-9, one.seconds - reached // point * point)
