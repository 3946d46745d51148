"""Kills in a Ray cluster: a worker, the process that trains for it, a whole node, or the driver, at some moment.

The cluster is on this machine: a head that trains nothing, and two nodes of one core each. The plan, and what has to
hold, are those of the kills in a pool; what was left alone was trained by the pool, without Ray.
"""

import atexit
import importlib.util
import os
import random
import signal
import subprocess
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil

from utils.course.chaos.case import Case
from utils.course.chaos.pool_kills import PATIENCE_S, WORKERS_END_S, begin, compared, ended, left_alone, seals, specs
from utils.training.cluster.connection import prepare

MOMENTS = {"a worker": 3, "the process that trains": 2, "a node": 3, "the driver": 2}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 4 * 2**30}


def cases(*, quick: bool) -> list[Case]:
    """Every victim at every moment; with `quick` a node at one. None where Ray is not installed, which is said."""
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed, so no cluster is killed; `pip install 'lora-vs-full-course[ray]'` brings it.")
        return []
    victims = ["a node"] if quick else list(MOMENTS)
    return [Case(f"{victim} is killed, moment {moment + 1} of {MOMENTS[victim]}", victim,
                 partial(_killed, victim=victim, moment=moment))
            for victim in victims for moment in ([1] if quick else range(MOMENTS[victim]))]


@cache
def _cluster() -> Any:
    """A head and two nodes, for this process's lifetime."""
    prepare(own=True)
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
    atexit.register(started.shutdown)
    for _ in range(2):
        started.add_node(**NODE)
    return started


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _workers(node: Any) -> list[psutil.Process]:
    """The workers of a node that have a run; Ray names them by it."""
    names = {f"ray::{spec.label}"[:15] for spec in specs().values()}  # as long as Linux keeps them
    found = []
    for process in _raylet(node).children(recursive=True):
        try:
            if process.name()[:15] in names:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _training() -> list[psutil.Process]:
    """All processes below the workers that have a run: fork servers, and what they have forked."""
    found = []
    for worker in [worker for node in _cluster().worker_nodes for worker in _workers(node)]:
        try:
            found += worker.children(recursive=True)
        except psutil.Error:
            continue
    return found


def _trains(process: psutil.Process) -> bool:
    """Whether a process is one that was forked to train: its parent is a fork server, and it is none itself."""
    try:
        parent = process.parent()
        return parent is not None and "forkserver" in " ".join(parent.cmdline()) and not process.children()
    except psutil.Error:
        return False


def _strike(victim: str, process: subprocess.Popen, *, drawn: random.Random) -> list[psutil.Process]:
    """Kill the victim, if there is one now; what trained at that moment."""
    busy = [node for node in list(_cluster().worker_nodes) if _workers(node)]
    training = _training()
    if victim == "the driver":
        os.kill(process.pid, signal.SIGKILL)
    elif victim == "a node" and busy:
        _cluster().remove_node(drawn.choice(busy), allow_graceful=False)
        _cluster().add_node(**NODE)
    elif victim == "a worker" and busy:
        _workers(drawn.choice(busy))[0].kill()
    elif victim == "the process that trains" and (forked := [one for one in training if _trains(one)]):
        drawn.choice(forked).kill()
    return training


def _killed(folder: Path, *, victim: str, moment: int) -> str | None:
    alone, store, drawn = left_alone(), folder / "cache" / "runs", random.Random(f"{victim} {moment}")
    words = ("--engine", "ray", "--address", _cluster().address)
    process, total = begin(folder, *words), len(seals(alone.store))
    deadline = time.monotonic() + PATIENCE_S
    # By what is finished and not by the clock: how fast a cluster is that shares two cores is anybody's guess.
    while len(seals(store)) < moment / MOMENTS[victim] * total or not any(map(_trains, _training())):
        if process.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    time.sleep(drawn.uniform(0.0, alone.seconds / total))
    if process.poll() is not None:
        return f"it had ended before the kill: {ended(process) or 'well'}"
    finished, training = seals(store), _strike(victim, process, drawn=drawn)
    if victim == "the driver":
        process.communicate()
        if psutil.wait_procs(training, timeout=WORKERS_END_S)[1]:
            return "its workers live on without it"
        process = begin(folder, *words)
    return ended(process) or compared(store, alone.store, finished)
