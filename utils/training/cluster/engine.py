"""The same plan that :mod:`utils.training.pool` trains on one machine, as tasks of a Ray cluster.

A task asks for one core and the memory that its run is expected to take, or for one GPU where the cluster has any.
The driver alone decides what is trained next and keeps the account; Ray places tasks and tells which were lost with
their worker or node. Those wait again and go on from their last resume point where the store is shared. Ray's own
retries are off: they would know neither of the order nor of how often a run was lost.

The code is not sent to the workers: the pinned libraries and the committed models have to be there anyway, and a
result names the commit that it was trained by. That each worker has the driver's code and libraries is checked.

Nothing is trained twice: the driver gives each key to one task at a time, and below that holds the store's own lock.
filelock locks by flock, which Linux passes on to the server on NFS (v4, or v3 with lockd), as do CephFS and GPFS, and
Lustre if it is mounted with `flock`; on a bucket that is mounted as a folder it holds within one machine at most. Where
it does not hold, two trainings of one run are possible only if a node that Ray holds for dead still lives, or if two
drivers share the store: both then write the same bytes by atomic renames.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import CourseError, reason_of
from utils.files import write_text
from utils.paths import ROOT, cache_dir, ensure_dir
from utils.training.cluster.archive import pack, unpack
from utils.training.cluster.connection import connected
from utils.training.cluster.worker import Answer, Asked, versions
from utils.training.outcomes import Account, Outcomes
from utils.training.plan import Planned, makespan
from utils.training.process import ATTEMPTS
from utils.training.spec import RunSpec, with_starts
from utils.training.store import RunStore

NODES_LOST = 10  # times that a run's node may be gone: rented ones are taken away whatever runs there
LOOK_S = 90.0  # that a node may take to start a worker and answer
SEEN_S = 60.0  # that a network disk may take to show what another machine has written
LEAST_IN_FLIGHT = 2


def train_on_ray(planned: list[Planned], *, address: str | None = None, workers: int | None = None,
                 say: Callable[[str], None] = print) -> Outcomes:
    """Train the planned runs on a Ray cluster, the longest chain first, as many at a time as it has room for.

    Parameters
    ----------
    planned : list of Planned
        Of :func:`utils.training.plan.plan`.
    address : str, optional
        ``auto``, ``host:port`` or ``ray://host:port``; a Ray of its own on this machine by default.
    workers : int, optional
        Runs at a time at most.
    say : callable
        Takes one line for each run that ended, where there is no terminal for a bar, and what is worth knowing of the
        cluster.

    Raises
    ------
    CourseError
        If Ray is not installed, nobody answers at the address, the cluster is lost, or a machine of it has other code
        or libraries than this one.
    """
    with connected(address, workers) as ray:
        token = _left_in(ensure_dir(cache_dir()))
        driver = _Driver(ray, Account(planned, say=say), token=token, workers=workers)
        try:  # the cluster may go at any moment
            driver.look_around()
            driver.run()
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise CourseError(f"The Ray cluster is gone ({_first_line(error)}); the same command goes on from "
                              "here.") from error
        finally:
            (cache_dir() / token).unlink(missing_ok=True)
            driver.account.close()
        return driver.account.outcomes


def _left_in(folder: Path) -> str:
    """The name of a new file in a folder, by which workers know it; one that `sweep` takes away if we are killed."""
    name = f".cluster.{os.getpid()}-{secrets.token_hex(4)}.part"
    write_text(folder / name, "The driver's store.\n")
    return name


def _caller(root: str) -> Callable[..., Any]:
    """What Ray runs on a worker: a function of :mod:`utils.training.cluster.worker`, by name.

    It is made in a function, so that it travels as code: the worker may not know the course before it has run, nor does
    what stands between driver and cluster where the address is ray://, which is why only plain values pass. The
    driver's folder comes first where the worker sees it, as on a shared disk; else the course is installed there.
    """
    def call(name: str, given: dict[str, Any]) -> Any:
        import importlib
        import os
        import sys

        if root not in sys.path and os.path.isdir(os.path.join(root, "utils")):  # noqa: PTH112, PTH118
            sys.path.insert(0, root)
        worker = importlib.import_module("utils.training.cluster.worker")
        if name == "look":
            return worker.look(**given)
        import ray

        return vars(worker.train(worker.Asked(**given), ray.get))

    return call


class _Driver:
    def __init__(self, ray: Any, account: Account, *, token: str, workers: int | None):
        self.ray, self.account, self.token, self.limit = ray, account, token, workers
        self.call = ray.remote(max_retries=0, max_calls=0)(_caller(str(ROOT)))
        self.running: dict[Any, Planned] = {}
        self.lost: dict[str, Counter[str]] = {"worker": Counter(), "node": Counter()}
        self.sending = False  # whether some machine does not see the store
        self.sent: dict[str, Any] = {}  # archives of finished runs, in Ray's object store
        self.gpus, self.slots, self.largest_bytes = False, 0, 0
        self.measured_at = 0.0

    def look_around(self) -> None:
        """See that every machine has our code and libraries, and whether it sees our store."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {"like": versions(), "driver_cache": str(cache_dir()), "token": self.token}
        answers = [self.call.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(
            node["NodeID"], soft=False)).remote("look", asked) for node in self._nodes()]
        try:
            found = self.ray.get(answers, timeout=LOOK_S)
        except self.ray.exceptions.GetTimeoutError as error:
            raise CourseError(f"Not every machine of the cluster answered within {LOOK_S:.0f} s; see `ray status`, and "
                              "start the same command again.") from error
        except self.ray.exceptions.RayTaskError as error:
            raise CourseError(f"A machine of the cluster cannot run the course ({reason_of(error.cause)}); install it "
                              "there as it is installed here.") from error
        for _, _, other in found:
            self._refuse(other)
        blind = sorted({host for host, shared, _ in found if not shared})
        if blind:
            self._send_from_here(blind)
        self._measure()
        self.account.outcomes.workers = at_once = max(1, min(self.slots, self.limit or self.slots))
        planned = self.account.waiting
        self.account.say(f"{len(planned)} runs to train on Ray, {at_once} at a time, machines: {len(found)}; about "
                         f"{makespan(planned, at_once)[0] / 60:.0f} min.")

    def run(self) -> None:
        """Hand out what may be trained, take in what ends, until nothing is left."""
        while self.account.waiting or self.running:
            self._measure()
            # Twice as many as there is room for: the order is kept where it matters, no machine waits for the driver,
            # and a cluster that grows by demand sees some.
            room = min(max(LEAST_IN_FLIGHT, 2 * self.slots), self.limit or 2**30)
            while len(self.running) < room and (one := self.account.take()) is not None:
                self._start(one)
            ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=5.0)
            for reference in ready:
                self._take_in(reference, self.running.pop(reference))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _measure(self) -> None:
        """What the cluster has now; machines come and go."""
        if self.slots and time.monotonic() - self.measured_at < 5.0:
            return
        resources = [node["Resources"] for node in self._nodes()]
        self.gpus = any(one.get("GPU") for one in resources)
        self.slots = int(sum(one.get("GPU" if self.gpus else "CPU", 0) for one in resources))
        with_room = [one for one in resources if one.get("GPU" if self.gpus else "CPU")]
        self.largest_bytes = int(max((one.get("memory", 0) for one in with_room), default=0))
        self.measured_at = time.monotonic()

    def _start(self, one: Planned) -> None:
        # Where there are GPUs, what is expected of a run is its card's memory. A run that expects more than the largest
        # machine has is trained alone on one.
        demands = {"num_gpus": 1} if self.gpus else {
            "num_cpus": 1, "memory": min(round(one.peak_gib * 2**30), self.largest_bytes or 2**62)}
        starts = {spec.key: self._archive(spec) for spec in list(with_starts(one.spec))[:-1]}
        asked = Asked(one.spec.key, one.spec.model_dump_json(), like=versions(), cache=str(cache_dir()),
                      token=self.token, starts=starts, on_gpu=self.gpus)
        reference = self.call.options(name=one.spec.label, **demands).remote("train", vars(asked))
        self.running[reference] = one

    def _archive(self, spec: RunSpec) -> Any:
        """A reference to a finished run's archive; None while every machine sees the store."""
        if not self.sending:
            return None
        if spec.key not in self.sent:
            self.sent[spec.key] = self.ray.put(pack(RunStore().folder / spec.key))
        return self.sent[spec.key]

    def _take_in(self, reference: Any, one: Planned) -> None:
        errors = self.ray.exceptions
        try:
            answer = Answer(**self.ray.get(reference))
        except (errors.NodeDiedError, errors.ObjectLostError) as error:
            return self._again(one, "node", f"the machine that it was trained on was lost ({_first_line(error)})")
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return self._again(one, "worker", f"its worker was killed ({_first_line(error)})")
        except errors.RayTaskError as error:
            return self.account.ended(one, 0.0, reason_of(error.cause))
        self._refuse(answer.refused)
        if answer.killed:
            return self._again(one, "worker", f"its process was killed ({answer.killed})")
        if answer.lacks_starts:  # of a machine that came later
            self._send_from_here([answer.host])
            return self.account.put_back(one)
        why = answer.why or self._arrived(one.spec, answer.archive)
        self.account.ended(one, answer.seconds, why)
        self._forget_what_nobody_needs()
        return None

    def _again(self, one: Planned, what: str, how: str) -> None:
        """Let a run that was lost wait again, unless that has happened too often."""
        key, most = one.spec.key, {"worker": ATTEMPTS, "node": NODES_LOST}[what]
        self.lost[what][key] += 1
        if self.lost[what][key] < most:
            self.account.put_back(one)
        else:
            self.account.ended(one, 0.0, f"{most} times {how}, which a lack of memory does")

    def _arrived(self, spec: RunSpec, archive: bytes | None) -> str | None:
        """Have a finished run in our store; why not, if that fails."""
        if archive is not None:
            try:
                unpack(archive, cache_dir(), spec.key)
            except CourseError as error:
                return str(error)
        until = time.monotonic() + SEEN_S
        while not RunStore().stored(spec) and time.monotonic() < until:
            with suppress(OSError):  # looking through the folder makes a network disk ask its server
                os.listdir(RunStore().folder)  # noqa: PTH208
            time.sleep(0.2)
        return None

    def _send_from_here(self, blind: list[str]) -> None:
        if not self.sending:
            self.account.say(f"The store at {cache_dir()} is not seen from {_some(blind)}; results are sent back here, "
                             "and a run that is lost there begins anew elsewhere.")
        self.sending = True

    def _forget_what_nobody_needs(self) -> None:
        planned = [*self.account.waiting, *self.account.running.values()]
        needed = {spec.key for one in planned for spec in with_starts(one.spec)}
        self.sent = {key: archive for key, archive in self.sent.items() if key in needed}

    def _refuse(self, other: str | None) -> None:
        if other is not None:
            raise CourseError(f"The runs planned here cannot be trained on this cluster: {other}; install the same "
                              "commit and requirements.txt on every machine.")


def _first_line(error: Exception) -> str:
    return reason_of(Exception(str(error).strip().split("\n")[0]))


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} machines ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
