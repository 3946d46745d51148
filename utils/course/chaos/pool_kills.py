"""Kills in a pool: a worker, the server that workers are forked from, or the driver, at some moment of a plan.

The plan is that of a notebook whose runs go on from one another, trained by the command as it is. It holds if the
command that was not killed ends well (or the next one does, where the driver was), if nothing that was finished at the
kill was trained again, and if every run is to the last bit that of a plan that was left alone.
"""

import atexit
import os
import random
import shutil
import signal
import subprocess
import time
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import psutil

from utils.course.chaos.ask import in_a_process
from utils.course.chaos.case import Case
from utils.course.chaos.kills import difference
from utils.course.own_cache import link_cache
from utils.course.runner import notebook_paths
from utils.course.training import specs_of_notebooks
from utils.profiles import load_profile
from utils.sealed import MANIFEST
from utils.training.spec import RunSpec
from utils.training.store import RunStore

NOTEBOOK, SEED = "08", 7
WORDS = ["train", "--profile", "smoke", "--only", NOTEBOOK, "--seeds", str(SEED), "--workers", "2"]
VICTIMS = ("a worker", "the fork server", "the driver")
MOMENTS = 10  # for each of them
PATIENCE_S = 240.0
WORKERS_END_S = 20.0  # once their driver is gone


class Plan(NamedTuple):
    """A plan that was left alone: its store, and the seconds from the first worker to the end."""

    store: Path
    seconds: float


def cases(*, quick: bool) -> list[Case]:
    """Every victim at every moment; with `quick` the driver at one."""
    victims = VICTIMS[-1:] if quick else VICTIMS
    return [Case(f"{victim} is killed, moment {moment + 1} of {MOMENTS}", victim,
                 partial(_killed, victim=victim, moment=moment))
            for victim in victims for moment in ([4] if quick else range(MOMENTS))]


@cache
def specs() -> dict[str, RunSpec]:
    """The runs of the plan."""
    return specs_of_notebooks(load_profile("smoke"), notebook_paths([NOTEBOOK]), (SEED,))


@cache
def left_alone() -> Plan:
    """The plan without a kill, for this process's lifetime."""
    folder = Path(mkdtemp(prefix="chaos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    process = begin(folder)
    _first_worker(process)
    started = time.monotonic()
    if problem := ended(process):
        raise RuntimeError(f"The plan that was left alone: {problem}")
    return Plan(folder / "cache" / "runs", time.monotonic() - started)


def begin(folder: Path, *words: str) -> subprocess.Popen:
    """The command, with further words, on a cache of its own that shares what is only read."""
    link_cache(folder / "cache")
    return in_a_process(folder, [*WORDS, *words], variables={"OMP_NUM_THREADS": "1"})


def _first_worker(process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _workers(process) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _server(process: subprocess.Popen) -> psutil.Process | None:
    """The fork server of a driver that runs."""
    try:
        return next((one for one in psutil.Process(process.pid).children()
                     if "forkserver import main" in " ".join(one.cmdline())), None)
    except psutil.Error:
        return None


def _workers(process: subprocess.Popen) -> list[psutil.Process]:
    server = _server(process)
    try:
        return server.children() if server else []
    except psutil.Error:
        return []


def ended(process: subprocess.Popen) -> str | None:
    """None once the command has ended well; else how it ended."""
    try:
        output, said = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"it did not end within {PATIENCE_S:.0f} s"
    if process.returncode:
        return f"it ended with {process.returncode}: {(output + said).decode(errors='replace').strip()[-300:]}"
    return None


def seals(store: Path) -> dict[str, int]:
    """Of every finished run when it was sealed."""
    return {path.parent.name: path.stat().st_mtime_ns for path in store.glob(f"*/{MANIFEST}")}


def _killed(folder: Path, *, victim: str, moment: int) -> str | None:
    alone, store = left_alone(), folder / "cache" / "runs"
    wait_s = random.Random(f"{victim} {moment}").uniform(moment, moment + 1) / MOMENTS * alone.seconds
    process = begin(folder)
    _first_worker(process)
    time.sleep(wait_s)
    finished, workers = seals(store), _workers(process)
    target = {"a worker": next(iter(workers), None), "the fork server": _server(process),
              "the driver": psutil.Process(process.pid) if process.poll() is None else None}[victim]
    if target is not None:
        with_its_end = [*workers, target]
        os.kill(target.pid, signal.SIGKILL)
        if victim == "the driver":
            process.communicate()
            if psutil.wait_procs(with_its_end, timeout=WORKERS_END_S)[1]:
                return "its workers live on without it"
            process = begin(folder)
    return ended(process) or compared(store, alone.store, finished)


def compared(store: Path, other: Path, finished: dict[str, int]) -> str | None:
    """What of a plan that was killed is not as in one that was left alone, or was trained again after the kill."""
    after = seals(store)
    if again := [key for key, sealed in finished.items() if after.get(key) != sealed]:
        return f"{again[0]} was finished and trained again"
    for spec in specs().values():
        if problem := difference(RunStore(store).get(spec), RunStore(other).get(spec)):
            return f"{spec.label}: {problem}"
    return None

