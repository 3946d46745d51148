"""Missing runs, trained side by side on this machine: a process for each, as many as cores, GPUs and memory bear.

Every process trains one run by the store's own :meth:`~utils.training.store.RunStore.get`, so that what comes out does
not depend on what ran beside it; it is forked from a server that has imported the libraries once. A run that fails
stops nothing but what waits for it. Whatever is interrupted goes on from its last resume point at the next start.
"""

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from tqdm import tqdm

from utils.errors import CourseError, reason_of
from utils.machine import available_cores, device_name, memory_limit_gib, set_up_process
from utils.paths import cache_dir, ensure_dir
from utils.training.plan import Planned
from utils.training.spec import RunSpec
from utils.training.store import RunStore

SPARE = 0.9  # share of the memory that is free at the start which runs may take
PRELOADED = ["utils.training.store", "trl", "peft"]


@dataclass
class Outcomes:
    """What became of the planned runs, by key: labels of those done, sentences for those that were not."""

    done: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class _Running:
    process: BaseProcess
    one: Planned
    device: int
    started: float


def default_workers() -> int:
    """One for each GPU, or for each core that this process may use."""
    return len(_gpus()) or available_cores()


def free_memory_gib() -> float:
    """What runs may take of this machine's memory now."""
    return SPARE * min(psutil.virtual_memory().available / 2**30, memory_limit_gib())


def fitting_workers(planned: list[Planned], workers: int, say: Callable[[str], None]) -> int:
    """As many workers as memory bears if each trained the largest run; fewer than were asked for is said."""
    largest = max((one.peak_gib for one in planned), default=0.0)
    fitting = max(1, min(workers, int(free_memory_gib() / largest))) if largest else workers
    if fitting < workers:
        say(f"Memory bears {fitting} of the largest runs at a time ({largest:.1f} GiB each), so it may be fewer than "
            f"{workers} at times.")
    return workers


def train_side_by_side(planned: list[Planned], *, workers: int, memory_gib: float | None = None,
                       say: Callable[[str], None] = print) -> Outcomes:
    """Train the planned runs, `workers` at a time as far as memory allows, the longest chain first.

    Parameters
    ----------
    planned : list of Planned
        Of :func:`utils.training.plan.plan`.
    workers : int
        Processes at a time, of one thread each on a CPU and one GPU each on a machine with GPUs.
    memory_gib : float, optional
        What all of them may take together; a share of what is free now by default. A run that alone expects more is
        trained alone.
    say : callable
        Takes one line for each run that ended, where there is no terminal for a bar.
    """
    budget = free_memory_gib() if memory_gib is None else memory_gib
    pool = _Pool(planned, workers=workers, budget=budget, say=say)
    try:
        pool.run()
    finally:
        pool.end()
    return pool.outcomes


class _Pool:
    def __init__(self, planned: list[Planned], *, workers: int, budget: float, say: Callable[[str], None]):
        self.waiting, self.outcomes = list(planned), Outcomes()
        self.running: dict[int, _Running] = {}  # by what tells that the process has ended
        self.devices, self.budget, self.say = set(range(max(1, workers))), budget, say
        self.total, self.started = len(planned), time.monotonic()
        self.planned_s, self.done_s = sum(one.seconds for one in planned), 0.0
        self.context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            self.context.set_forkserver_preload(PRELOADED)
        self.length = round(self.planned_s)
        self.bar = tqdm(total=self.length, unit="s", dynamic_ncols=True, leave=False,
                        bar_format="{desc} {bar} {percentage:3.0f}% about {remaining} left"
                        ) if sys.stderr.isatty() else None

    def run(self) -> None:
        """Start what fits, take in what ends, until nothing is left."""
        while self.waiting or self.running:
            while (one := self._next()) is not None:
                self._start(one)
            for sentinel in wait(list(self.running), timeout=1.0):
                self._take_in(self.running.pop(cast(int, sentinel)))

    def end(self) -> None:
        """End the processes that still run; what they trained since their last resume point is lost."""
        for running in self.running.values():
            running.process.terminate()
        for running in self.running.values():
            running.process.join()
        if self.bar is not None:
            self.bar.close()

    def _next(self) -> Planned | None:
        """The ready run with the longest chain that memory bears beside those that run."""
        if not self.devices:
            return None
        taken = sum(running.one.peak_gib for running in self.running.values())
        held = {one.spec.key for one in self.waiting} | {running.one.spec.key for running in self.running.values()}
        for one in self.waiting:
            fits = taken + one.peak_gib <= self.budget or not self.running
            if fits and not one.after & held:
                self.waiting.remove(one)
                return one
        return None

    def _start(self, one: Planned) -> None:
        device = min(self.devices)
        self.devices.remove(device)
        # The server that processes are forked from has the variables of the moment when it was first needed.
        gpus = _gpus()
        own = {"CUDA_VISIBLE_DEVICES": gpus[device % len(gpus)]} if gpus else {"OMP_NUM_THREADS": "1"}
        arguments = (one.spec.model_dump_json(), str(_log(one.spec)), dict(os.environ) | own)
        process = self.context.Process(target=_train, args=arguments)
        process.start()
        self.running[process.sentinel] = _Running(process, one, device, time.monotonic())

    def _take_in(self, ended: _Running) -> None:
        ended.process.join()
        self.devices.add(ended.device)
        spec, log = ended.one.spec, _log(ended.one.spec)
        label = f"{spec.task}, {spec.method.label}, seed {spec.seed}"
        result = RunStore().result(spec)
        if ended.process.exitcode == 0 and result is not None:
            self.outcomes.done[spec.key] = label
            log.unlink(missing_ok=True)
            diverged = result["run"]["status"] == "diverged"
            if diverged:
                self._leave_out(spec.key, f"{label} diverged")
            how = "diverged" if diverged else f"{time.monotonic() - ended.started:.0f} s"
        else:
            why = _last_line(log) or f"its process ended with {ended.process.exitcode}"
            self.outcomes.failed[spec.key] = f"{label} ({spec.key}): {why}"
            self._leave_out(spec.key, f"{label} failed")
            how = f"failed: {why}"
        self.done_s += ended.one.seconds
        self._tell(f"{label}: {how}")

    def _leave_out(self, key: str, why: str) -> None:
        """Drop what waits for a run that has no weights to go on from."""
        for one in [one for one in self.waiting if key in one.after]:
            self.waiting.remove(one)
            self.outcomes.left_out[one.spec.key] = why
            self.done_s += one.seconds
            self._leave_out(one.spec.key, why)

    def _tell(self, line: str) -> None:
        ended = len(self.outcomes.done) + len(self.outcomes.failed) + len(self.outcomes.left_out)
        if self.bar is not None:
            self.bar.n = min(round(self.done_s), self.length)
            self.bar.set_description_str(f"{ended}/{self.total}")
            return
        spent = time.monotonic() - self.started
        left = spent / max(self.done_s, 1e-9) * max(0.0, self.planned_s - self.done_s)
        self.say(f"[{ended}/{self.total}] {line}; about {left / 60:.0f} min left")


def _gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if device_name() != "cuda":
        return []
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")


def _log(spec: RunSpec) -> Path:
    return ensure_dir(cache_dir() / "logs") / f"{spec.key}.log"


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _train(text: str, log: str, variables: dict[str, str]) -> None:
    """The life of one process: train a run, with its output in a log, whose last line says why if it fails.

    It sees one GPU alone, for Trainer takes all that it sees.
    """
    os.environ.update(variables)
    with Path(log).open("w", encoding="utf-8", buffering=1) as stream, contextlib.redirect_stdout(stream), \
            contextlib.redirect_stderr(stream):
        try:
            set_up_process()
            RunStore().get(RunSpec.model_validate_json(text))
        except Exception as error:
            if not isinstance(error, CourseError):
                traceback.print_exc()
            print(str(error) if isinstance(error, CourseError) else f"{type(error).__name__}: {reason_of(error)}")
            sys.exit(1)


def summary(outcomes: Outcomes, seconds: float) -> Iterable[str]:
    """What became of a plan, in lines: how many were trained, and each that was not with why."""
    yield f"{len(outcomes.done)} runs trained in {seconds / 60:.1f} min."
    for why in outcomes.failed.values():
        yield f"failed: {why}"
    if outcomes.left_out:
        why = next(iter(outcomes.left_out.values()))
        yield f"not trained: {len(outcomes.left_out)} runs that wait for another ({why})."
