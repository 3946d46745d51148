"""Missing runs, trained side by side on this machine: a process for each, as many as cores, GPUs and memory bear.

Every process trains one run by the store's own :meth:`~utils.training.store.RunStore.get`, so that what comes out does
not depend on what ran beside it; it is forked from a server that has imported the libraries once. A run that fails
stops nothing but what waits for it; one whose process was killed goes on from its last resume point.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import cast

import psutil
import torch

from utils.machine import available_cores, device_name, hardware, memory_limit_gib
from utils.paths import cache_dir, ensure_dir
from utils.sealed import MANIFEST
from utils.training.outcomes import Account, Outcomes
from utils.training.plan import Planned
from utils.training.process import ATTEMPTS, forks, last_line, log_of, train_one
from utils.training.store import RunStore

SPARE = 0.9  # share of the memory that is free at the start which runs may take


@dataclass
class _Running:
    process: BaseProcess
    one: Planned
    device: int
    started: float


def default_workers() -> int:
    """One for each GPU, or for each core that this process may use."""
    return len(_gpus()) or available_cores()


def usable_workers(planned: list[Planned], asked: int | None) -> int:
    """As many as are asked for, but no more than there are runs, or GPUs where there are any."""
    return max(1, min(asked or default_workers(), len(planned), len(_gpus()) or len(planned)))


def free_memory_gib() -> float:
    """What runs may take of this machine's memory now."""
    return SPARE * min(psutil.virtual_memory().available / 2**30, memory_limit_gib())


def memory_note(planned: list[Planned], workers: int) -> str | None:
    """One sentence where memory does not bear so many of the largest runs at a time; None where it does.

    On GPUs each run has a card of its own; there it is said of runs that expect more than one has.
    """
    if (card := hardware()["accelerator"]) is not None:
        larger = [one for one in planned if one.peak_gib > card["memory_gib"]]
        return (f"{len(larger)} runs expect more than the {card['memory_gib']:g} GiB of a card ({larger[0].spec.label} "
                f"{larger[0].peak_gib:.0f} GiB, for one); `train-sharded --run {larger[0].spec.key}` trains such a run "
                "on several.") if larger else None
    largest = max((one.peak_gib for one in planned), default=0.0)
    fitting = max(1, int(free_memory_gib() / largest)) if largest else workers
    if fitting >= workers:
        return None
    return (f"Memory bears {fitting} of the largest runs at a time ({largest:.1f} GiB each), so it may be fewer than "
            f"{workers} at times.")


def train_side_by_side(planned: list[Planned], *, workers: int, memory_gib: float | None = None,
                       say: Callable[[str], None] = print) -> Outcomes:
    """Train the planned runs, `workers` at a time as far as memory allows, the longest chain first.

    Parameters
    ----------
    planned : list of Planned
        Of :func:`utils.training.plan.plan`.
    workers : int
        Processes at a time, of one thread each on a CPU and one GPU each on a machine with GPUs; see
        :func:`usable_workers`.
    memory_gib : float, optional
        What all of them may take together on a CPU; a share of what is free now by default. A run that alone expects
        more is trained alone.
    say : callable
        Takes one line for each run that ended, where there is no terminal for a bar.
    """
    _sweep_logs()
    budget = free_memory_gib() if memory_gib is None else memory_gib
    pool = _Pool(Account(planned, say=say), workers=workers, budget=budget)
    try:
        pool.run()
    finally:
        pool.end()
        pool.account.close()
    return pool.account.outcomes


class _Pool:
    def __init__(self, account: Account, *, workers: int, budget: float):
        self.account, self.budget = account, budget
        account.outcomes.workers = workers
        self.running: dict[int, _Running] = {}  # by what tells that the process has ended
        self.devices, self.killed = set(range(max(1, workers))), Counter[str]()
        self.context = forks()

    def run(self) -> None:
        """Start what fits, take in what ends, until nothing is left."""
        while self.account.waiting or self.running:
            while self.devices and (one := self.account.take(self._fits)) is not None:
                self._start(one)
            for sentinel in wait(list(self.running), timeout=1.0):
                self._take_in(self.running.pop(cast(int, sentinel)))
            held = sum(_held_gib(cast(int, running.process.pid)) for running in self.running.values())
            self.account.outcomes.peak_gib = max(self.account.outcomes.peak_gib, held)

    def end(self) -> None:
        """End the processes that still run; what they trained since their last resume point is lost."""
        for running in self.running.values():
            running.process.terminate()
        for running in self.running.values():
            running.process.join()

    def _fits(self, one: Planned) -> bool:
        if _gpus():
            return True  # what is expected of a run there is its card's memory, and a free card is what it waits for
        taken = sum(running.one.peak_gib for running in self.running.values())
        return taken + one.peak_gib <= self.budget or not self.running

    def _start(self, one: Planned) -> None:
        device = min(self.devices)
        self.devices.remove(device)
        # The server that processes are forked from has the variables of the moment when it was first needed.
        gpus = _gpus()
        own = {"CUDA_VISIBLE_DEVICES": gpus[device % len(gpus)]} if gpus else {"OMP_NUM_THREADS": "1"}
        arguments = (one.spec.model_dump_json(), str(log_of(one.spec.key, cache_dir())), dict(os.environ) | own)
        process = self.context.Process(target=train_one, args=arguments)
        process.start()
        self.running[process.sentinel] = _Running(process, one, device, time.monotonic())

    def _take_in(self, ended: _Running) -> None:
        ended.process.join()
        self.devices.add(ended.device)
        log, code = log_of(ended.one.spec.key, cache_dir()), ended.process.exitcode
        if code not in (0, 1):  # killed, or its end was not heard of: it said nothing about itself
            self.killed[ended.one.spec.key] += 1
            if self.killed[ended.one.spec.key] < ATTEMPTS:
                self.account.put_back(ended.one)
                return
        why = None if code == 0 else last_line(log) if code == 1 else (
            f"its process was killed {ATTEMPTS} times (exit {code}), which a lack of memory does; its log: {log}")
        if why is None:
            log.unlink(missing_ok=True)
        self.account.ended(ended.one, time.monotonic() - ended.started, why)


def _held_gib(pid: int) -> float:
    """Memory of a process, its share of what it has in common with others (all of that where no system tells)."""
    with contextlib.suppress(psutil.Error, OSError):
        held = psutil.Process(pid).memory_full_info()
        return getattr(held, "pss", held.rss) / 2**30
    return 0.0


def _gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if device_name() != "cuda":
        return []
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")


def _sweep_logs() -> None:
    """Delete the logs of runs that are finished: they ended well after their driver was killed."""
    store = RunStore()
    for log in ensure_dir(cache_dir() / "logs").glob("*.log"):
        if (store.folder / log.stem / MANIFEST).exists():
            log.unlink(missing_ok=True)
