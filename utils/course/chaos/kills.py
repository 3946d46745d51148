"""Kills: a run of every kind there is, killed at some moment, goes on to the weights of one that was left alone.

Moments are the changes of files that a run makes (its resume points, checkpoints, result, and each single deletion),
and random times, which also hit what libraries write by themselves. Some are killed a second time while they go on.
"""

import random
import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from utils.course.chaos.apart import DELETES, run_apart
from utils.course.chaos.case import Case
from utils.profiles import load_profile
from utils.sources.tasks import task
from utils.training.spec import RunSpec
from utils.training.store import Run, RunStore
from utils.training.wanted import every_spec

QUICK = "LoRA python cooled"
DELETED = ("full mathematics", "dpo answers from a run")  # killed at every deletion that they make
EVENTS, TIMES = 1, 1  # moments of either sort for each kind of run; at random times it is killed twice


class Whole(NamedTuple):
    """A run that was left alone: its store, and the changes of files that it made."""

    store: Path
    run: Run
    events: tuple[str, ...]
    seconds: float


@cache
def kinds() -> dict[str, RunSpec]:
    """One run of every kind that profile smoke has: method, objective, optimiser, scaling, start and cooldown."""
    found: dict[str, RunSpec] = {}
    for spec in every_spec(load_profile("smoke").with_reference_runs(), (0,)).values():
        found.setdefault(_name(spec), spec)
    return found


def _name(spec: RunSpec) -> str:
    words = ["" if spec.objective == "likelihood" else spec.objective, spec.method.label.split(" r=")[0],
             "by Lion" if spec.optimiser == "lion" else "", spec.task,
             "as instructions" if task(spec.task).kind == "causal" else "", "cooled" if spec.durations else "",
             "from a run" if spec.start else ""]
    if spec.objective == "dpo" and spec.method.kind == "full":
        words.remove("full")
    return " ".join(filter(None, words))


def cases(*, quick: bool) -> list[Case]:
    """All kills; with `quick` a few of one kind of run."""
    chosen = [name for name in kinds() if not quick or name == QUICK]
    found = []
    for name in chosen:
        events = [(part + 0.5) / EVENTS for part in range(EVENTS)] if not quick else [0.3, 0.6, 1.0]
        found += [Case(f"{name}: killed at {share:.0%} of its changes of files", "file event",
                       partial(_killed_at, name, share)) for share in events]
        found += [Case(f"{name}: killed at a random time, number {number}", "random time",
                       partial(_killed_after, name, number)) for number in range(0 if quick else TIMES)]
    return found if quick else found + list(_deletions())


def _deletions() -> Iterator[Case]:
    for name in DELETED:
        places = [place for place, event in enumerate(whole(name).events) if event in DELETES]
        for number, place in enumerate(places):
            yield Case(f"{name}: killed at deletion {number + 1} of {len(places)}", "deletion",
                       partial(_killed, name, kill_at=place))


@cache
def whole(name: str) -> Whole:
    """A kind's run, trained without a kill in a store of its own, for this process's lifetime."""
    folder = Path(mkdtemp(prefix="chaos-"))
    (folder / "runs").mkdir()  # as it is there where it is killed: the changes of files are counted
    spec, store = kinds()[name], RunStore(folder / "runs")
    for other in (spec.start, spec.reward):
        if other is not None:
            store.get(other)
    ended = run_apart(lambda: RunStore(folder / "runs").get(spec), folder)
    if ended.code:
        raise RuntimeError(f"The run that was left alone ended with {ended.code}: {ended.output[-500:]}")
    run = store.get(spec)
    return Whole(folder / "runs", run, ended.events, run.result["measured"]["train_seconds"])


def _killed_at(name: str, share: float, folder: Path) -> str | None:
    last = len(whole(name).events) - 1
    return _killed(name, folder, kill_at=min(last, round(share * last)))


def _killed_after(name: str, number: int, folder: Path) -> str | None:
    """Twice at random times, the second while it goes on; drawn by the case's name, so that it can be tried again."""
    drawn = random.Random(f"{name} {number}")
    for _ in range(2):
        seconds = drawn.uniform(0.05, 1.0) * (whole(name).seconds + 1.0)
        if problem := _killed(name, folder, kill_after_s=seconds, then_check=False):
            return problem
    return _killed(name, folder)


def _killed(name: str, folder: Path, *, kill_at: int | None = None, kill_after_s: float | None = None,
            then_check: bool = True) -> str | None:
    """Kill, go on, compare; None if the weights are those of the run that was left alone."""
    left_alone, store = whole(name), folder / "runs"
    spec = left_alone.run.spec
    if not store.exists():
        shutil.copytree(left_alone.store, store, ignore=lambda _, names: {spec.key} & set(names))
    if kill_at is not None or kill_after_s is not None:
        killed = run_apart(lambda: RunStore(store).get(spec), folder, kill_at=kill_at, kill_after_s=kill_after_s)
        if killed.code not in (0, -9):
            return f"it ended with {killed.code} before it was killed: {killed.output.strip()[-300:]}"
        if kill_at is not None and killed.code == 0:
            return "it ended before the moment at which it was to be killed"
    if not then_check:
        return None
    again = run_apart(lambda: RunStore(store).get(spec), folder)
    if again.code:
        return f"it did not go on: {again.output.strip()[-300:]}"
    return difference(RunStore(store).get(spec), left_alone.run)


def difference(run: Run, other: Run) -> str | None:
    """In what two finished runs differ besides time, in a few words; None if in nothing, to the last bit."""
    for step in {*run.steps, *other.steps}:
        if step not in run.steps or step not in other.steps:
            return f"step {step} has a checkpoint in one of the two only"
        mine, theirs = (load_file(one.folder / "checkpoints" / f"step-{step:06d}.safetensors") for one in (run, other))
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in mine):
            return f"the weights at step {step} are others"
    timed = ["train_seconds", "hot_seconds"]
    tables = [one.metrics().drop(columns=timed, errors="ignore") for one in (run, other)]
    return None if tables[0].equals(tables[1]) else "the metrics are others"
