"""The course runner: missing runs first, then Papermill over the notebooks, with time left, and resuming.

An executed notebook goes to ``cache/course/<profile>/``. While it runs, and if it fails, it is there as
``<name>.partial.ipynb``; a course that was cut short goes on with the first notebook that did not finish.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.kernelspec import NoSuchKernel
from papermill.exceptions import PapermillException, PapermillExecutionError
from pydantic import TypeAdapter, ValidationError
from traitlets.config import Config

from utils.course.doctor import require
from utils.course.forked import warm_kernels
from utils.course.kernels import kernel_config, with_its_processes_ended
from utils.course.training import Asked, specs_of_notebooks, train_missing
from utils.course.turns import only_one
from utils.course.watch import UNKNOWN_SECONDS, Watch
from utils.errors import CourseError, UsageError, reason_of
from utils.files import read_json, sha256_of, write_json
from utils.ledger.cells import read_notebook
from utils.ledger.reference import COSTS, measured_costs, measured_training
from utils.machine import available_cores
from utils.paths import NOTEBOOKS, ROOT, cache_dir, ensure_dir, figures_dir, notebook_files, reference_dir
from utils.profiles import Profile
from utils.profiles.used import remember
from utils.provenance import provenance
from utils.reporting.publish import PUBLISH_VARIABLE
from utils.sealed import MANIFEST
from utils.training.outcomes import Outcomes
from utils.training.pool import free_memory_gib
from utils.training.spec import with_starts

STATE = "state.json"
KERNEL_GIB = 1.5  # of a notebook that trains nothing; the largest that runs beside others was measured at 1.1
ALONE = "alone"  # in a notebook's metadata: it measures time, or tells of all the others


@dataclass(frozen=True)
class Outcome:
    """What one notebook did: seconds, peak memory of its largest process, and how many runs it had to train."""

    notebook: str
    seconds: float
    peak_gib: float
    trained_runs: int


def notebook_paths(only: list[str] | None = None) -> list[Path]:
    """The notebooks in order, or those whose numbers are in `only`.

    Raises
    ------
    UsageError
        If a number has no notebook, or `only` is empty.
    CourseError
        If there are no notebooks at all.
    """
    found = notebook_files(NOTEBOOKS)
    if not found:
        raise CourseError(f"There are no notebooks in {NOTEBOOKS}; get the course's folder whole.")
    if only is not None and not only:
        raise UsageError(f"Expected numbers of notebooks, got none; the numbers are {', '.join(found)}.")
    for number in only or []:
        if number not in found:
            raise UsageError(f"There is no notebook '{number}'; the numbers are {', '.join(found)}.")
    return [found[number] for number in dict.fromkeys(only or found)]


def declared_parameters(path: Path) -> dict[str, Any]:
    """What a notebook's cell of parameters declares; CourseError if the file is no whole notebook."""
    read_notebook(path)
    try:
        return papermill.inspect_notebook(_verbatim(path))
    except (ValueError, KeyError, PapermillException) as error:
        raise CourseError(f"The parameters of {path} cannot be read ({reason_of(error)}); get the notebook's file "
                          "anew.") from error


def _verbatim(path: Path) -> str:
    """A path for Papermill, which would fill parameters into braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def check_parameters(path: Path, parameters: dict) -> None:
    """UsageError for a parameter that the notebook does not declare; Papermill itself would ignore it."""
    declared = declared_parameters(path)
    unknown = [name for name in parameters if name not in declared]
    if unknown:
        raise UsageError(f"{path.name} does not declare the parameter '{unknown[0]}'; it declares "
                         f"{', '.join(declared) or 'none'}.")


def check_completed(path: Path) -> None:
    """CourseError unless every code cell of an executed notebook completed, the last one included.

    Papermill takes ``sys.exit(0)`` in a cell for success and leaves the cells after it unexecuted.
    """
    for number, cell in enumerate(read_notebook(path).cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        status = cell.metadata.get("papermill", {}).get("status")
        if status != "completed" or cell.execution_count is None:
            raise CourseError(f"{path.name}: cell {number} did not complete ({status or 'never started'}).")


def execute(path: Path, target: Path, parameters: dict, *, timeout: int | None, watch: "Watch") -> Outcome:
    """Run one notebook into `target`; the partial notebook stays beside it if anything goes wrong.

    Raises
    ------
    CourseError
        With the notebook, the error's own sentence and the partial notebook's path.
    """
    check_parameters(path, parameters)
    partial = target.with_name(f"{target.stem}.partial.ipynb")
    for earlier in (target, partial):  # beside a partial one an earlier pass's would be taken for this pass's
        earlier.unlink(missing_ok=True)
    before, started, peak = _finished_runs(), time.monotonic(), 0.0
    try:
        with kernel_config() as config:
            watch.begin(path.stem, _folder_of(config))
            try:
                _execute(path, partial, parameters, timeout=timeout, config=config)
            finally:
                peak = watch.finish(path.stem)
        check_completed(partial)
    except PapermillExecutionError as error:
        reason = f"{error.evalue}" if error.ename in ("CourseError", "UsageError") else f"{error.ename}: {error.evalue}"
        raise CourseError(f"{path.name} failed in cell [{error.exec_count}]: {' '.join(reason.split())[:600]} "
                          f"(as far as it got: {partial})") from error
    except NoSuchKernel as error:
        raise CourseError(f"{path.name} failed: there is no kernel named python3 in this environment; run `make "
                          "setup`, or `pip install -r requirements.txt`.") from error
    except (OSError, RuntimeError) as error:  # a full disk; nbclient's timeout and dead kernels
        reason = f"{reason_of(error)}." if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise CourseError(f"{path.name} failed: {reason} (as far as it got: {partial})") from error
    partial.replace(target)
    return Outcome(path.stem, round(time.monotonic() - started, 1), round(peak, 2), _finished_runs() - before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _folder_of(config: Config) -> str | None:
    address = config.get("KernelManager", {}).get("ip")
    return address and str(Path(address).parent)


def _execute(path: Path, partial: Path, parameters: dict, *, timeout: int | None, config: Config) -> None:
    """Papermill's part."""
    with_its_processes_ended(lambda: papermill.execute_notebook(
        _verbatim(path), _verbatim(partial), parameters=parameters, config=config, progress_bar=False,
        execution_timeout=timeout, kernel_name="python3", log_output=False,
        cwd=None if Path.cwd() == ROOT else str(ROOT)))  # whole-process in Papermill: the course is there already


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """What Papermill logs of a dead kernel or a timeout comes as an exception as well."""
    loggers = [logging.getLogger(name) for name in ("traitlets", "papermill", "asyncio")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _finished_runs() -> int:
    return sum(1 for _ in (cache_dir() / "runs").glob(f"*/{MANIFEST}"))


@dataclass(frozen=True)
class Course:
    """What a pass over the notebooks did: each one's outcome in their order, and what was trained before them.

    Attributes
    ----------
    wanted_runs : int
        How many runs the notebooks ask for, with those that they go on from.
    """

    notebooks: list[Outcome]
    training: Outcomes
    wanted_runs: int = 0


@dataclass(frozen=True)
class Pass:
    """How the notebooks are run.

    Attributes
    ----------
    seeds : tuple of int or None
        The profile's own by default.
    given, where_declared : dict
        Parameters of every notebook, each of which must declare them; and of those alone that declare them.
    timeout : int or None
        Seconds that one cell may take.
    workers : int or None
        Runs that are trained at a time; one for each core or GPU by default.
    side_by_side : int
        Notebooks at a time, each with its share of the cores. Those that are marked ``alone`` come last, one by one.
    warm : bool
        Whether kernels are forked from one that has imported the libraries, which one notebook gains nothing by.
    """

    seeds: tuple[int, ...] | None = None
    given: dict = field(default_factory=dict)
    where_declared: dict = field(default_factory=dict)
    timeout: int | None = None
    workers: int | None = None
    side_by_side: int = 1
    warm: bool = False


def run_course(profile: Profile, *, profile_name: str, only: list[str] | None = None, how: Pass = Pass()) -> Course:
    """Train what is missing, run the notebooks; stop at the first that fails, go on from there at the next start.

    Parameters
    ----------
    profile_name : str
        What the notebooks are given as ``PROFILE``: the profile's name or its file.
    only : list of str, optional
        Numbers of notebooks, such as ``04`` and ``04b``.
    how : Pass
    """
    paths = notebook_paths(only)
    given = {"PROFILE": profile_name} | ({"SEEDS": list(how.seeds)} if how.seeds else {}) | how.given
    for path in paths:
        check_parameters(path, given)
    require(profile)
    folder = ensure_dir(cache_dir() / "course" / profile.profile)
    with only_one(folder, f"A course at profile {profile.profile}"), contextlib.chdir(ROOT):
        specs = specs_of_notebooks(profile, paths, how.seeds)
        remember(profile, how.seeds or profile.seeds)
        training = train_missing(Asked(specs, workers=how.workers))
        wanted = {one.key for spec in specs.values() for one in with_starts(spec)}
        running = _Running(profile, paths, folder=folder, how=replace(how, given=given))
        warm = warm_kernels() if how.warm and len(paths) > 1 else contextlib.nullcontext()
        with _quiet_loggers(), warm:
            return Course(running.run(), training, len(wanted))


class _Running:
    """The notebooks of one pass; what an interrupted pass of the same had finished is not done again."""

    def __init__(self, profile: Profile, paths: list[Path], *, folder: Path, how: Pass):
        self.paths, self.folder, self.how = paths, folder, how
        self.fingerprint = _fingerprint(profile, paths, how.given | how.where_declared)
        self.done = _done_before(folder, self.fingerprint)
        self.watch, self.said, self.lock = Watch(expected_seconds(profile.profile, paths)), 0, threading.Lock()

    def run(self) -> list[Outcome]:
        """Run all of them; returns their outcomes in their order."""
        try:
            for path in [path for path in self.paths if path.stem in self.done]:
                self.watch.skip(path.stem)
                self._say(f"{path.stem}: already done in this pass")
            left = [path for path in self.paths if path.stem not in self.done]
            together = [path for path in left if not is_alone(path)] if self.how.side_by_side > 1 else []
            if together:
                at_once = notebooks_at_once(self.how.side_by_side, say=print)
                with_its_processes_ended(lambda: self._side_by_side(together, at_once))
            for path in [path for path in left if path not in together]:
                self._one(path)
        finally:
            self.watch.close()
        (self.folder / STATE).unlink(missing_ok=True)  # the pass is complete; the next start is a new one
        return [self.done[path.stem] for path in self.paths]

    def _side_by_side(self, paths: list[Path], at_once: int) -> None:
        """Several at a time; one that fails lets those that run end, and none begin."""
        with _threads_each(at_once), ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(self._one, path) for path in paths]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, path: Path) -> None:
        how = self.how
        declared = declared_parameters(path) if how.where_declared else {}
        also = {name: value for name, value in how.where_declared.items() if name in declared}
        outcome = execute(path, self.folder / path.name, how.given | also, timeout=how.timeout, watch=self.watch)
        with self.lock:
            self.done[path.stem] = outcome
            write_json(self.folder / STATE, {"fingerprint": self.fingerprint,
                                             "done": {name: asdict(one) for name, one in self.done.items()}})
            self._say(f"{path.stem}: {outcome.seconds:.0f} s, peak {outcome.peak_gib} GiB, {outcome.trained_runs} runs "
                      "trained")

    def _say(self, line: str) -> None:
        self.said += 1
        if self.watch.bar is None:
            print(f"[{self.said}/{len(self.paths)}] {line}", flush=True)


def notebooks_at_once(asked: int, *, say: Callable[[str], None]) -> int:
    """As many notebooks as are asked for, or fewer, which is said, where cores or memory do not bear them."""
    bears = max(1, min(available_cores(), int(free_memory_gib() / KERNEL_GIB)))
    if bears < asked:
        say(f"This machine bears {bears} notebooks at a time ({KERNEL_GIB:g} GiB and a core each), not {asked}.")
    return min(asked, bears)


def is_alone(path: Path) -> bool:
    """Whether a notebook is marked to run by itself: one that measures time, or tells of all the others."""
    return bool(read_notebook(path).metadata.get("course", {}).get(ALONE))


@contextlib.contextmanager
def _threads_each(processes: int) -> Iterator[None]:
    """Give each of so many processes its share of the cores, by the variable that kernels inherit."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // processes))
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _fingerprint(profile: Profile, paths: list[Path], given: dict) -> str:
    """Of everything that decides what the notebooks show: their text and parameters, the profile, code and folders.

    The profile's own content, since a file that was edited keeps its name.
    """
    published = os.environ.get(PUBLISH_VARIABLE, "0")  # a pass that publishes does not go on from one that did not
    code = sorted(path for kind in ("py", "toml", "yaml") for path in (ROOT / "utils").rglob(f"*.{kind}"))
    parts = [given, profile.model_dump(mode="json"), published, str(figures_dir()), str(reference_dir()),
             *((path.name, sha256_of(path)) for path in [*code, *paths])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _done_before(folder: Path, fingerprint: str) -> dict[str, Outcome]:
    """What an interrupted pass with the same fingerprint had finished, as long as its notebooks are still there."""
    try:
        state = read_json(folder / STATE)
        if state["fingerprint"] == fingerprint:
            done = TypeAdapter(dict[str, Outcome]).validate_python(state["done"])
            return {name: one for name, one in done.items() if (folder / f"{name}.ipynb").exists()}
    except (CourseError, FileNotFoundError, KeyError, TypeError, ValidationError):
        pass
    return {}


def expected_seconds(profile_name: str, paths: list[Path]) -> dict[str, float]:
    """Seconds that each notebook took when it was last measured, cold or warm as the store is now."""
    record = measured_costs(profile_name)
    kind = "warm" if _finished_runs() else "cold"
    return {path.stem: record.get(path.stem, {}).get(kind, {}).get("seconds", UNKNOWN_SECONDS) for path in paths}


def record_costs(profile: Profile, course: Course, *, whole: bool) -> None:
    """Merge what was just measured into the committed record; cold if the pass trained any run, else warm.

    Parameters
    ----------
    whole : bool
        Whether all notebooks were run: what was trained before them is then recorded as what a first course trains,
        if none of its runs was there before.
    """
    trained = len(course.training) or any(outcome.trained_runs for outcome in course.notebooks)
    kind, record = "cold" if trained else "warm", measured_costs(profile.profile)
    for outcome in course.notebooks:
        record.setdefault(outcome.notebook, {})[kind] = {
            "seconds": outcome.seconds, "peak_gib": outcome.peak_gib, "trained_runs": outcome.trained_runs}
    training = measured_training(profile.profile)
    if whole and 0 < course.wanted_runs == len(course.training.done):
        training = {"seconds": round(course.training.seconds, 1), "peak_gib": round(course.training.peak_gib, 2),
                    "trained_runs": len(course.training.done), "workers": course.training.workers}
    write_json(reference_dir() / profile.profile / COSTS,
               {"notebooks": record} | ({"training": training} if training else {}) | {"provenance": provenance()})
