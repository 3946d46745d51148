"""What training side by side gains: the same short runs one after another with all threads, and by the pool."""

import math
import tempfile
import time
from pathlib import Path

from utils.course.own_cache import own_cache
from utils.errors import CourseError
from utils.profiles import load_profile
from utils.training.outcomes import Outcomes
from utils.training.plan import Planned, known_costs, makespan, plan
from utils.training.pool import default_workers, train_side_by_side
from utils.training.spec import RunSpec
from utils.training.store import Run, RunStore
from utils.training.wanted import every_spec
from utils.training.weights import Tensors


def sample(steps: int, *, each: int = 1, profile: str = "laptop") -> list[RunSpec]:
    """Short runs of every kind that a profile trains from the pretrained base: by task, method and objective.

    Parameters
    ----------
    steps : int
        Optimiser steps of each, as far as the profile's own run takes so many.
    each : int
        How many of a kind, of different seeds.
    profile : str
    """
    kinds: dict[tuple, RunSpec] = {}
    for spec in every_spec(load_profile(profile)).values():
        if spec.start is None and spec.reward is None:
            kinds.setdefault((spec.task, spec.method.kind, spec.objective), spec)
    return [spec.model_copy(update={"steps": min(steps, spec.steps or steps), "epochs": None, "durations": None,
                                    "checkpoints": 1, "seed": seed})
            for spec in kinds.values() for seed in range(100, 100 + each)]


def side_by_side_row(steps: int, *, each: int = 1, profile: str = "laptop") -> dict:
    """One row of the benchmark: seconds both ways, and how far the two ways' results lie apart.

    Returns
    -------
    dict
        ``plain_seconds`` (one after another), ``seconds`` (side by side), ``ratio`` of the two, ``workers``,
        ``runs``, ``ratio_on_four`` (the same with four workers, simulated from the durations side by side),
        ``update_difference`` (the largest, over runs, of the relative difference of the trained update that the
        number of threads makes) and ``metric_difference`` (the largest change of what a run measures at its end).
    """
    specs, workers = sample(steps, each=each, profile=profile), default_workers()
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        with own_cache(Path(folder) / "one-after-another"):
            RunStore().get(specs[0].model_copy(update={"steps": 1}))  # libraries and texts are read once
            started = time.perf_counter()
            plain = {spec.key: RunStore().get(spec) for spec in specs}
            plain_s = time.perf_counter() - started
            costs = known_costs(RunStore())  # what a reader's store knows after the first run of a kind
        with own_cache(Path(folder) / "side-by-side"):
            planned = plan(specs, RunStore(), costs)
            started = time.perf_counter()
            outcomes = train_side_by_side(planned, workers=workers)
            seconds = time.perf_counter() - started
            fast = {spec.key: RunStore().get(spec) for spec in specs if not outcomes.failed}
            _require_done(outcomes)
        apart = [_apart(plain[key], fast[key]) for key in plain]
    ratio, four = plain_s / seconds, _on_four(planned, outcomes)
    return {"what": f"{len(specs)} short runs side by side, {workers} at a time", "against": "one after another, all "
            "threads", "plain_seconds": round(plain_s, 4), "seconds": round(seconds, 4), "ratio": round(ratio, 2),
            "ratio_min": round(ratio, 2), "ratio_max": round(ratio, 2), "workers": workers, "runs": len(specs),
            "steps": steps, "ratio_on_four": round(plain_s / four, 2),
            "update_difference": max(update for update, _ in apart),
            "metric_difference": max(metric for _, metric in apart)}


def _require_done(outcomes: Outcomes) -> None:
    if outcomes.failed:
        raise CourseError(f"A run of the benchmark failed: {next(iter(outcomes.failed.values()))}")


def _on_four(planned: list[Planned], outcomes: Outcomes) -> float:
    """Seconds with four workers, from what each run took beside another."""
    return makespan([Planned(one.spec, outcomes.durations_s[one.spec.key], one.peak_gib,
                             chain_seconds=outcomes.durations_s[one.spec.key]) for one in planned], 4)[0]


def _apart(one: Run, other: Run) -> tuple[float, float]:
    """How far two trainings of one run lie apart: relative to the update's norm, and in what they measured."""
    mine, theirs, start = one.trained(), other.trained(), one.base_matrices()
    update = {name: tensor - start[name] if name in start else tensor for name, tensor in mine.items()}
    difference = _norm({name: tensor - theirs[name] for name, tensor in mine.items()}) / _norm(update)
    measured = [run.metrics().iloc[-1] for run in (one, other)]
    metrics = [name for name in ("accuracy", "loss_nats_per_token") if name in measured[0]]
    return difference, max((abs(float(measured[0][name] - measured[1][name])) for name in metrics), default=0.0)


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
