"""The processes that train a run together: how they are started, what each does, and why they ended.

:func:`train_together` starts them with ``accelerate launch`` on this machine and waits; :func:`take_part` is what each
does, whoever started it, so that a launcher of several machines will do as well. Where one process ends, its launcher
ends the others; the run is then unfinished, and goes on from its last whole resume point.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import psutil
import torch.distributed as dist
from torch import nn

from utils.errors import CourseError, UsageError, reason_of
from utils.machine import available_cores, device_name, hardware, set_up_process
from utils.paths import ROOT, cache_dir, ensure_dir
from utils.sources.models import BaseModel, resolve
from utils.training.process import end_with_parent
from utils.training.sharded import Sharded, most_processes, refuse
from utils.training.spec import RunSpec, with_starts
from utils.training.store import Run, RunStore
from utils.training.train import train
from utils.training.weights import Tensors

CONFIGURATION = Path(__file__).with_name("together.yaml")
SHARE = 0.7  # of a card's memory for a run's share of weights, gradients, moments; a layer put together needs some, too
LOST = "lost: "  # begins the last line of a process that ended because another did


def check(specs: list[RunSpec], processes: int, of: int | None = None) -> None:
    """UsageError if so many processes cannot train these runs here, with those that they go on from.

    `of` is how many they are with those on other machines.
    """
    if processes > (most := most_processes()):
        what = "GPU" if device_name() == "cuda" else "core"
        raise UsageError(f"Expected up to {most} processes on this machine, one for each {what}, got {processes}; give "
                         "a smaller number.")
    for spec in specs:
        for one in with_starts(spec):
            refuse(one, of or processes)


def processes_for(spec: RunSpec, peak_gib: float) -> int:
    """How many GPUs of this machine a run needs that expects so much memory; 1 where one, or no GPU, will do.

    Raises
    ------
    UsageError
        If it needs more than one, and cannot be trained by as many as there are.
    """
    card = hardware()["accelerator"]
    if card is None or peak_gib <= card["memory_gib"]:
        return 1
    rows = spec.batch_size * spec.gradient_accumulation
    fitting = [count for count in range(2, most_processes() + 1)
               if rows % count == 0 and peak_gib / count <= SHARE * card["memory_gib"]]
    if not fitting:
        raise UsageError(f"Run {spec.key} expects {peak_gib:.0f} GiB, but this machine's {most_processes()} GPUs of "
                         f"{card['memory_gib']:.0f} GiB cannot share its {rows} rows a step within that; use more or "
                         "larger ones.")
    refuse(spec, fitting[0])
    return fitting[0]


def train_together(specs: list[RunSpec], processes: int) -> None:
    """Train what is missing of some runs by processes of their own, and wait for them.

    What the first of them says is printed; the rest goes to a log in the cache.

    Raises
    ------
    UsageError
        If so many processes cannot train these runs, before anything is started.
    CourseError
        If they ended before the runs were finished, with the reason of the one that ended first.
    """
    check(specs, processes)
    missing = [spec for spec in specs if not RunStore().stored(spec)]
    if not missing:
        return
    log = _log(missing[0])
    with log.open("w", encoding="utf-8") as stream:
        status = _waited_for(subprocess.Popen(command(missing, processes), cwd=ROOT, stderr=stream,
                                              env=os.environ | _threads(processes)))
    unfinished = [spec.key for spec in missing if not RunStore().stored(spec)]
    if status or unfinished:
        which = unfinished[0] if unfinished else missing[0].key
        raise CourseError(f"Run {which} is not finished: {_why(log, status)}; the same command goes on from "
                          f"its last resume point (all that was said is in {log}).")
    for spec in specs:
        _log(spec).unlink(missing_ok=True)  # of an earlier attempt, too


def _waited_for(launcher: subprocess.Popen) -> int:
    """The status of a launcher; if this process is stopped meanwhile, the launcher and all that it started end first.

    At once by force: what they trained since their last resume point is lost either way.
    """
    try:
        return launcher.wait()
    except BaseException:
        with contextlib.suppress(psutil.Error):
            every = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
            for process in every:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        launcher.wait()
        raise


def _log(spec: RunSpec) -> Path:
    return ensure_dir(cache_dir() / "logs") / f"{spec.key}-together.log"


def command(specs: list[RunSpec], processes: int) -> list[str]:
    """What starts the processes on this machine."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATION),
            "--num_processes", str(processes), "-m", "utils.training.together",
            *(spec.model_dump_json() for spec in specs)]


def _threads(processes: int) -> dict[str, str]:
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, available_cores() // processes))
    return {"OMP_NUM_THREADS": threads}


def _why(log: Path, status: int) -> str:
    """Why the processes ended: in the words of one that knew, else by which signal, else as the others saw it."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if said := re.search(r"^error: (.*?)\.?$", text, re.M):
        return said[1]
    for rank, number in re.findall(r"rank +: (\d+) .*\n +exitcode +: -(\d+)", text):
        if int(number) != signal.SIGTERM:  # that is how the launcher ends the others
            return f"process {rank} was ended by signal {number} ({signal.Signals(int(number)).name})"
    if said := re.search(rf"^{LOST}(.*)$", text, re.M):
        return said[1]
    return f"its processes ended with {status}"


# What each does -------------------------------------------------------------------------------------------------------


class ShardedStore(RunStore):
    """The run store of the first process: what it trains, it trains with the others."""

    def __init__(self, way: Sharded, folder: Path | None = None):
        super().__init__(folder)
        self.way, self.training = way, False

    def _result(self, spec: RunSpec, base: BaseModel, folder: Path, *, start: Tensors | None,
                reward: nn.Module | None) -> dict:
        refuse(spec, self.way.processes)
        self.way.tell((spec.model_dump_json(), str(folder)))
        self.training = True
        result = train(spec, base, folder, start=start, way=self.way)
        self.training = False
        return self._with_provenance(result, base, sharding={
            "kind": "FSDP2", "processes": self.way.processes, "backend": dist.get_backend(),
            "held": round(self.way.held, 3)})


def take_part(specs: list[RunSpec]) -> list[Run]:
    """Train what is missing of some runs as one of the processes that a launcher started.

    Returns
    -------
    list of Run
        In the first process; none in the others.
    """
    way = Sharded()
    if not way.writes:
        while (told := way.tell()) is not None:
            spec = RunSpec.model_validate_json(told[0])
            train(spec, resolve(spec.base), Path(told[1]), way=way)
        return []
    store = ShardedStore(way)
    try:
        return [store.get(spec) for spec in specs]
    finally:
        if not store.training:  # else the others are within the training, and end with it
            way.tell()


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    if any(not os.environ.get(name, "").isdigit() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")):
        return False  # batch systems set one or another of them on their own
    return int(os.environ["WORLD_SIZE"]) > 1


def join(specs: list[RunSpec]) -> int:
    """:func:`take_part` as the last thing that a process does; the exit status.

    Where it fails it says why in one line, and ends at once: whatever waits for the others would wait long.
    """
    end_with_parent()
    try:
        take_part(specs)
        dist.destroy_process_group()
    except Exception as error:
        status = error.exit_status if isinstance(error, CourseError) else 1
        print(_last_words(error), file=sys.stderr, flush=True)
        os._exit(status)
    return 0


def _last_words(error: Exception) -> str:
    if isinstance(error, CourseError):
        return f"error: {error}"
    traceback.print_exc()
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return f"{LOST}the connection to another process broke"
    return f"error: {type(error).__name__}: {reason_of(error)}"


if __name__ == "__main__":
    set_up_process()
    sys.exit(join([RunSpec.model_validate_json(word) for word in sys.argv[1:]]))
