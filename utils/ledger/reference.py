"""Reference results: the same measurements with more seeds than a reader waits for, committed with provenance."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from utils.errors import CourseError, UsageError, reason_of
from utils.files import read_json, read_text, write_json, write_text
from utils.paths import ensure_dir, reference_dir, relative
from utils.profiles import Profile
from utils.profiles.used import remember
from utils.provenance import provenance
from utils.reporting.registry import MEASUREMENTS, Measurement, nearest
from utils.reporting.runs import Seeds
from utils.reporting.selection import marked
from utils.studies import load_studies

PROVENANCE, COSTS = "provenance.json", "course.json"
T = TypeVar("T")


@dataclass
class _Cost:
    seconds: float
    peak_gib: float
    trained_runs: int


@dataclass
class _Training(_Cost):
    workers: int


_COSTS = TypeAdapter(dict[str, dict[Literal["cold", "warm"], _Cost]])


def build_reference(profile: Profile, seeds: Seeds = None, *, only: list[str] | None = None,
                    trained_only: bool = False) -> list[str]:
    """Measure everything with the profile's reference seeds and write ``data/reference/<profile>``.

    What is measured run by run goes on from the committed table: its rows stay, as far as the profile asks for their
    runs, and those of further runs and seeds are added.

    Parameters
    ----------
    only : list of str, optional
        These measurements alone; the other tables stay as they are.
    trained_only : bool
        Take the runs that are trained already; what is not measured run by run is left as it is.

    Raises
    ------
    UsageError
        If the profile's results are no evidence (smoke), or a measurement is unknown.
    """
    check_reference(profile, only, trained_only=trained_only)
    seeds = seeds or profile.reference_seeds
    folder = ensure_dir(reference_dir() / profile.profile)
    whole = profile.with_reference_runs()
    remember(profile, seeds)
    made_by, written = provenance(), {}
    for name, one in MEASUREMENTS.items():
        if (only and name not in only) or (trained_only and not one.by_run):
            continue
        if one.by_run:
            table, made = _added(one, whole, seeds, trained_only=trained_only)
        else:
            table, made = one.function(whole, seeds), {"seeds": list(seeds)}
        table = one.checked(table, f"what {one.function.__module__} returns")
        if table.empty:
            continue  # a profile without a learning-rate sweep, or without leave to run generated code
        # Digits that mean something, and not decimals: scales and rates reach 1e-6.
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.7g"))
        written[name] = made | {"provenance": made_by}
        write_json(folder / PROVENANCE, _where_tables_come_from(folder, written))
        print(f"reference {profile.profile}: {name}, {len(table)} rows, seeds {made['seeds']}", flush=True)
    return only or list(MEASUREMENTS)


def _added(one: Measurement, whole: Profile, seeds: tuple[int, ...], *, trained_only: bool
           ) -> tuple[pd.DataFrame, dict]:
    """The table of a measurement by run and what its record says: rows that were committed, and those of `seeds`.

    Rows of runs that the profile no longer asks for are dropped. The record has ``seeds`` and how many runs were new.
    """
    known = measured_before(one, whole)
    every = tuple(dict.fromkeys((*whole.reference_seeds, *seeds, *([] if known is None else known["seed"]))))
    new = one.function(whole, seeds, known=known, trained_only=trained_only)
    both = new if known is None or new.empty else pd.concat([new, known[~known["run"].isin(new["run"])]])
    table = one.function(whole, every, known=known if new.empty else both, trained_only=True)
    if table.empty:
        return table, {"seeds": []}
    before = set() if known is None else set(known["run"])
    return table, {"seeds": sorted({int(seed) for seed in table["seed"]}),
                   "new_runs": len(set(table["run"]) - before), "earlier_runs": len(set(table["run"]) & before)}


def measured_before(one: Measurement, profile: Profile) -> pd.DataFrame | None:
    """The committed rows of a measurement by run; None where there are none."""
    path = reference_dir() / profile.profile / f"{one.name}.csv"
    return _read(one, path) if one.by_run and path.exists() else None


def _where_tables_come_from(folder: Path, written: dict[str, dict]) -> dict:
    """Seeds and provenance that most tables share, and under ``tables`` those of each of the others.

    A table that was made before is still as it was made; one that is written anew takes its new place.
    """
    before = _committed(folder / PROVENANCE, lambda content: content | {}) if (folder / PROVENANCE).exists() else {}
    older = {"seeds": before.get("seeds"), "provenance": before.get("provenance")}
    tables = {name: before.get("tables", {}).get(name, older) for name in MEASUREMENTS
              if (folder / f"{name}.csv").exists()} | written
    newest_first = list(reversed(written.values())) + list(tables.values())
    usual = max(newest_first, key=list(tables.values()).count)
    return usual | {"tables": {name: one for name, one in tables.items() if one != usual}}


def check_reference(profile: Profile, only: list[str] | None = None, *, trained_only: bool = False) -> None:
    """UsageError if a reference of this profile, or of these measurements, cannot be made; before any work."""
    if not profile.evidence:
        raise UsageError(f"Profile {profile.profile} is not evidence, so it has no reference results.")
    load_studies()
    if only is not None and not only:
        raise UsageError(f"Expected names of measurements, got none; the names are {', '.join(MEASUREMENTS)}.")
    for name in only or ():
        if not measurement_named(name).by_run and trained_only:
            raise UsageError(f"{name} is not measured run by run: it needs all of its runs; leave --trained-only out.")


def reference_folder(profile: Profile | str) -> Path:
    """Where the results lie that a profile's own are shown beside: for smoke the laptop's, so no part is lacking."""
    name = profile if isinstance(profile, str) else profile.profile
    return reference_dir() / ("laptop" if name == "smoke" else name)


def measured_costs(profile_name: str) -> dict:
    """Notebook -> {"cold": …, "warm": …} as committed in ``data/reference/<profile>/course.json``."""
    path = reference_dir() / profile_name / COSTS
    return _committed(path, _checked_costs) if path.exists() else {}


def measured_training(profile_name: str) -> dict | None:
    """What training all runs of a first course took, as committed; None before it was measured.

    With ``seconds``, ``peak_gib`` (of all processes together), ``trained_runs`` and ``workers`` (runs at a time).
    """
    path = reference_dir() / profile_name / COSTS
    return _committed(path, _checked_training) if path.exists() else None


def _checked_training(content: dict) -> dict | None:
    if (found := content.get("training")) is not None:
        TypeAdapter(_Training).validate_python(found)
    return found


def _checked_costs(content: dict) -> dict:
    _COSTS.validate_python(content["notebooks"])
    return content["notebooks"]


def _committed(path: Path, take: Callable[[Any], T]) -> T:
    """What a committed file holds, as `take` finds it there; CourseError if the file is not as it was written."""
    try:
        return take(read_json(path))
    except (ValidationError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CourseError(f"{relative(path)} is not as it was written ({reason_of(error)[:200]}); get the file "
                          "anew, or make the results anew.") from error


def reference_table(name: str, profile: Profile | str) -> pd.DataFrame | None:
    """The committed table of a measurement with ``learnt`` marked, or None where this profile has none yet.

    Smoke's is the laptop's; see :func:`reference_folder`.

    Raises
    ------
    CourseError
        If the table lacks a column that the measurement declares.
    """
    chosen = measurement_named(name)
    path = reference_folder(profile) / f"{name}.csv"
    if not path.exists():
        return None
    table = _read(chosen, path)
    try:
        return marked(table)
    except (ValueError, TypeError, KeyError) as error:
        raise _no_table(chosen, path, error) from error


def _read(chosen: Measurement, path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.StringIO(read_text(path)))
        if table.empty:  # none is written without rows
            raise ValueError("it has no rows")
        return chosen.checked(table, f"{relative(path)}")
    except (ValueError, TypeError, KeyError, pd.errors.ParserError) as error:
        raise _no_table(chosen, path, error) from error


def _no_table(chosen: Measurement, path: Path, error: Exception) -> CourseError:
    return CourseError(f"{relative(path)} is no table ({reason_of(error)[:200]}); get the file anew, or make it "
                       f"anew with `python -m utils reference --only {chosen.name}`.")


def measurement_named(name: str) -> Measurement:
    """The registered measurement; UsageError with the nearest names where there is none."""
    load_studies()
    if name not in MEASUREMENTS:
        raise UsageError(f"Unknown measurement '{name}' ({nearest(name, MEASUREMENTS)}).")
    return MEASUREMENTS[name]


def reference_note(profile: Profile | str) -> str:
    """One line on where the reference results come from."""
    path = reference_folder(profile) / PROVENANCE
    if not path.exists():
        name = profile if isinstance(profile, str) else profile.profile
        return f"No reference results are committed for {name}: only your own are drawn."
    return _committed(path, _note)


def _note(content: dict) -> str:
    made = content["provenance"]
    return (f"Reference: seeds {content['seeds']}, {made['hardware']['device']} "
            f"({made['hardware']['threads']} threads), {made['date'][:10]}, torch {made['packages']['torch']}.")
