"""The course runner: Papermill over the notebooks in order, with time left, resuming, and a table at the end.

An executed notebook goes to ``cache/course/<profile>/``. While it runs, and if it fails, it is there as
``<name>.partial.ipynb``; a course that was cut short goes on with the first notebook that did not finish.
"""

import hashlib
import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import papermill
import psutil
from jupyter_client.kernelspec import NoSuchKernel
from papermill.exceptions import PapermillException, PapermillExecutionError
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from utils.course.doctor import require
from utils.course.kernels import kernel_config, with_its_processes_ended
from utils.course.turns import only_one
from utils.errors import CourseError, UsageError, reason_of
from utils.files import read_json, sha256_of, write_json
from utils.ledger.cells import read_notebook
from utils.ledger.reference import COSTS, measured_costs
from utils.paths import NOTEBOOKS, ROOT, cache_dir, ensure_dir, figures_dir, reference_dir
from utils.profiles import Profile
from utils.provenance import provenance
from utils.reporting.publish import PUBLISH_VARIABLE
from utils.sealed import MANIFEST

STATE = "state.json"
UNKNOWN_SECONDS = 60.0  # what a notebook is expected to take before it was ever measured


@dataclass(frozen=True)
class Outcome:
    """What one notebook did: seconds, peak memory of its largest process, and how many runs it had to train."""

    notebook: str
    seconds: float
    peak_gib: float
    trained_runs: int


def notebook_paths(only: list[str] | None = None) -> list[Path]:
    """The notebooks in order, or those whose two-digit numbers are in `only`.

    Raises
    ------
    UsageError
        If a number has no notebook, or `only` is empty.
    CourseError
        If there are no notebooks at all.
    """
    found = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
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
    before, started = _finished_runs(), time.monotonic()
    watch.start(path.stem)
    try:
        _execute(path, partial, parameters, timeout=timeout)
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
    finally:
        peak = watch.stop()
    partial.replace(target)
    return Outcome(path.stem, round(time.monotonic() - started, 1), round(peak, 2), _finished_runs() - before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _execute(path: Path, partial: Path, parameters: dict, *, timeout: int | None) -> None:
    """Papermill's part. What it logs of a dead kernel or a timeout comes as an exception as well."""
    loggers = [logging.getLogger(name) for name in ("traitlets", "papermill", "asyncio")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with kernel_config() as config:
            with_its_processes_ended(lambda: papermill.execute_notebook(
                _verbatim(path), _verbatim(partial), parameters=parameters, cwd=str(ROOT), config=config,
                progress_bar=False, execution_timeout=timeout, kernel_name="python3", log_output=False))
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _finished_runs() -> int:
    return sum(1 for _ in (cache_dir() / "runs").glob(f"*/{MANIFEST}"))


class Watch(threading.Thread):
    """Samples the peak memory of the kernel's processes and moves the bar while a notebook runs."""

    def __init__(self, expected: dict[str, float]):
        super().__init__(daemon=True)
        self.expected, self.done_s, self.name_now, self.peak = expected, 0.0, None, 0.0
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=round(sum(expected.values())), unit="s", dynamic_ncols=True,
                            bar_format="{desc} {bar} {percentage:3.0f}% about {remaining} left")

    def start(self, notebook: str) -> None:
        """Watch a notebook from here on; the thread starts with the first."""
        self.name_now, self.peak, self.started = notebook, 0.0, time.monotonic()
        if not self.is_alive():
            super().start()

    def stop(self) -> float:
        """Leave the notebook; returns its peak memory in GiB."""
        self._sample()
        self.done_s += self.expected.get(self.name_now, UNKNOWN_SECONDS)
        self.name_now = None
        if self.bar is not None:
            self._move(self.done_s)
        return self.peak

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def run(self) -> None:
        """Sample until the process ends, as the thread that it is."""
        while True:
            time.sleep(0.5)
            if (name := self.name_now) is not None:
                self._sample()
                if self.bar is not None:
                    self.bar.set_description_str(name)
                    expected = self.expected.get(name, UNKNOWN_SECONDS)
                    self._move(self.done_s + min(time.monotonic() - self.started, 0.98 * expected))

    def _move(self, position: float) -> None:
        self.bar.n = min(round(position), self.bar.total)
        self.bar.refresh()

    def _sample(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                self.peak = max(self.peak, _peak_gib(process))
            except (psutil.Error, OSError):
                continue  # it ended between the listing and the question


def _peak_gib(process: psutil.Process) -> float:
    """Linux keeps a process's peak (VmHWM); elsewhere the present size is sampled."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**20
    return process.memory_info().rss / 2**30


def run_course(profile: Profile, *, profile_name: str, only: list[str] | None = None, seeds: list[int] | None = None,
               timeout: int | None = None, parameters: dict | None = None,
               where_declared: dict | None = None) -> list[Outcome]:
    """Run the notebooks in order; stop at the first that fails, go on from there at the next start.

    Parameters
    ----------
    profile_name : str
        What the notebooks are given as ``PROFILE``: the profile's name or its file.
    parameters : dict, optional
        Given to every notebook, each of which must declare them.
    where_declared : dict, optional
        Given to the notebooks that declare them.
    """
    paths = notebook_paths(only)
    given = {"PROFILE": profile_name} | ({"SEEDS": seeds} if seeds else {}) | (parameters or {})
    for path in paths:
        check_parameters(path, given)
    require(profile)
    folder = ensure_dir(cache_dir() / "course" / profile.profile)
    with only_one(folder, f"A course at profile {profile.profile}"):
        return _run_all(profile, paths, folder, given=given, timeout=timeout, where_declared=where_declared or {})


def _run_all(profile: Profile, paths: list[Path], folder: Path, *, given: dict, timeout: int | None,
             where_declared: dict) -> list[Outcome]:
    """The notebooks one by one; what an interrupted pass of the same had finished is not done again."""
    fingerprint = _fingerprint(profile, paths, given | where_declared)
    done, outcomes = _done_before(folder, fingerprint), []
    watch = Watch(expected_seconds(profile.profile, paths))
    try:
        for number, path in enumerate(paths, start=1):
            print_line = watch.bar is None
            if path.stem in done:
                outcome = done[path.stem]
                watch.done_s += watch.expected[path.stem]
                if print_line:
                    print(f"[{number}/{len(paths)}] {path.stem}: already done in this pass", flush=True)
            else:
                declared = declared_parameters(path) if where_declared else {}
                also = {name: value for name, value in where_declared.items() if name in declared}
                outcome = execute(path, folder / path.name, given | also, timeout=timeout, watch=watch)
                done[path.stem] = outcome
                write_json(folder / STATE, {"fingerprint": fingerprint,
                                            "done": {name: asdict(one) for name, one in done.items()}})
                if print_line:
                    print(f"[{number}/{len(paths)}] {path.stem}: {outcome.seconds:.0f} s, peak {outcome.peak_gib} GiB, "
                          f"{outcome.trained_runs} runs trained", flush=True)
            outcomes.append(outcome)
    finally:
        watch.close()
    (folder / STATE).unlink(missing_ok=True)  # the pass is complete; the next start is a new one
    return outcomes


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


def record_costs(profile: Profile, outcomes: list[Outcome]) -> None:
    """Merge what was just measured into the committed record; cold if the pass trained any run, else warm."""
    kind = "cold" if any(outcome.trained_runs for outcome in outcomes) else "warm"
    record = measured_costs(profile.profile)
    for outcome in outcomes:
        record.setdefault(outcome.notebook, {})[kind] = {
            "seconds": outcome.seconds, "peak_gib": outcome.peak_gib, "trained_runs": outcome.trained_runs}
    write_json(reference_dir() / profile.profile / COSTS, {"notebooks": record, "provenance": provenance()})
