"""What the run store holds, which of it some profile still asks for, and deleting the rest."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from utils.errors import CourseError, UsageError
from utils.files import read_json
from utils.paths import worded
from utils.profiles import PROFILE_NAMES, Profile, load_profile
from utils.profiles.used import Used, remembered
from utils.reporting.registry import nearest
from utils.sealed import DAMAGED, MANIFEST
from utils.training.spec import with_starts
from utils.training.store import RESULT, RunStore
from utils.training.wanted import every_spec

COLUMNS = ["run", "source", "base", "task", "method", "r", "learning_rate", "seed", "status", "accuracy", "mib"]


def list_runs(store: RunStore) -> pd.DataFrame:
    """One row per finished run: key, base, task, method, learning rate, seed, status, accuracy, size on disk.

    A run whose result cannot be read has the status "unreadable" and nothing else; whoever asks for it trains it anew.
    """
    rows = []
    for folder in store.finished():
        try:
            row = _row(read_json(folder / RESULT))
        except (CourseError, FileNotFoundError, KeyError, TypeError, IndexError, AttributeError):
            row = {"status": "unreadable"}
        rows.append({"run": folder.name} | row | {"mib": _mib(folder)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(result: dict) -> dict:
    spec, last = result["run"]["spec"], (result["measured"]["metrics"] or [{}])[-1]
    return {"source": spec["base"]["source"], "base": spec["base"]["name"], "task": spec["task"],
            "method": spec["method"]["kind"], "r": spec["method"]["r"], "learning_rate": spec["learning_rate"],
            "seed": spec["seed"], "status": result["run"]["status"], "accuracy": last.get("accuracy")}


def _mib(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue  # another process took it away meanwhile
    return round(total / 2**20, 1)


def damaged_runs(store: RunStore) -> list[tuple[Path, float]]:
    """What the store has set aside as damaged: folder and MiB of each."""
    folder = store.folder / DAMAGED
    return [(path, _mib(path)) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def wanted_keys() -> set[str]:
    """Keys of the runs that a profile asks for which is here, or which the reader ran from a file of their own.

    Runs on Hub and local bases are not among them: telling what a profile wants of them would download the base.
    """
    used = remembered()
    wanted: set[str] = set()
    for name in PROFILE_NAMES:
        profile = load_profile(name)
        also = [one.seeds for one in used if not one.own and one.profile.profile == name]
        wanted |= _keys(profile, [profile.seeds, profile.reference_seeds, *also])
    return wanted | _asked_for(one for one in used if one.own)


def outdated_keys() -> set[str]:
    """Keys of the runs that a profile of the course asked for when it was run here, whatever it asks for now."""
    return _asked_for(one for one in remembered() if not one.own)


def _asked_for(used: Iterable[Used]) -> set[str]:
    return {key for one in used
            for key in _keys(one.profile, [one.seeds, one.profile.seeds, one.profile.reference_seeds])}


def _keys(profile: Profile, every_seeds: Iterable[tuple[int, ...]]) -> set[str]:
    """Of each list of seeds by itself, since the first seed of a list has runs that the others have not."""
    if profile.encoder.source != "packaged":
        return set()
    return {needed.key for one in (profile, profile.with_reference_runs())
            for seeds in dict.fromkeys(map(tuple, every_seeds))
            for spec in every_spec(one, seeds).values() for needed in with_starts(spec)}


def prune(store: RunStore, runs: pd.DataFrame, *, named: list[str], unknown_too: bool = False) -> None:
    """Delete runs and what was set aside as damaged, and print what became of each.

    Parameters
    ----------
    store : RunStore
    runs : DataFrame
        Of :func:`list_runs`.
    named : list of str
        Keys of runs to delete, whoever asks for them. If empty: those on packaged bases that only an older version of
        one of the course's profiles asked for.
    unknown_too : bool
        Also those of which no profile is known at all, such as one that ran before profiles were recorded.

    Raises
    ------
    UsageError
        If a named run is not there; nothing is deleted then.
    CourseError
        If something cannot be deleted.
    """
    known = set(runs["run"])
    for key in named:
        if key not in known:
            raise UsageError(f"There is no run '{key}' in {store.folder} ({nearest(key, known)}).")
    if named:
        for key in dict.fromkeys(named):
            _delete(store, key)
        return
    unwanted = set(runs.loc[runs["source"] == "packaged", "run"]) - wanted_keys()
    outdated = unwanted & outdated_keys()
    unknown = unwanted - outdated
    for key in sorted(outdated | (unknown if unknown_too else set())):
        _delete(store, key)
    if unknown and not unknown_too:
        print(f"kept {len(unknown)} runs of which no profile is known ({', '.join(sorted(unknown)[:5])}"
              f"{', …' if len(unknown) > 5 else ''}); --prune --all deletes them, --prune RUN one of them")
    for folder, _ in damaged_runs(store):
        _remove(folder)
        print(f"deleted {DAMAGED}/{folder.name}")


def _delete(store: RunStore, key: str) -> None:
    """Delete a run under its lock, or say that another process has it."""
    lock = FileLock(store.folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"kept {key}: another process is at it")
        return
    try:
        _remove(store.folder / key)
        lock_file = Path(lock.lock_file)
        lock_file.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that it is gone, and makes one
    finally:
        lock.release()
    print(f"deleted {key}")


def _remove(folder: Path) -> None:
    """Delete a folder; it is no run from the first moment, for its seal goes first. A file among them goes too."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink()
            return
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except FileNotFoundError:
        return  # another process deletes it as well
    except OSError as error:
        raise CourseError(worded(error, folder, "deleted")) from error
