"""Damage to runs: a file of a finished or an unfinished run is harmed, and the run still ends with its own numbers.

Every file is tried under eight kinds of harm. It holds if weights, metrics and a measured table are those of the run
that was left alone, and if a run whose harmed file counted says so in one sentence.
"""

import shutil
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd

from utils.course.chaos.apart import run_apart
from utils.course.chaos.case import Case
from utils.course.chaos.harms import HARMS, Harm
from utils.course.chaos.kills import difference, kinds, whole
from utils.sealed import MANIFEST
from utils.training.store import Run, RunStore

KIND = "LoRA python cooled"


# Every one of them costs a training, so that these are enough.
CHOSEN = ("the first bit flipped", "a bit flipped", "the last bit flipped", "cut in half", "gone", "empty",
          "changed places with another", "a folder in its place")


def cases(*, quick: bool) -> list[Case]:
    """Every file under every harm; with `quick` every seventh file under one of them, in turn."""
    found = []
    for number, (name, state) in enumerate(_files()[::7 if quick else 1]):
        for harm in [CHOSEN[number % len(CHOSEN)]] if quick else CHOSEN:
            if ("another" in harm and ("/" not in name or "measurements" in name)) or (
                    harm == "gone" and "measurements" in name):
                continue  # beside it lies another kind of file, or none; a table that is not there is measured
            attempt = partial(_harmed, (name, state), HARMS[harm])
            found.append(Case(f"{state} run, {name}: {harm}", f"{state} run", attempt))
    return found


def _measured(run: Run) -> pd.DataFrame:
    return run.measured("norms", {"version": 1}, lambda run: pd.DataFrame(
        {"name": list(run.trained()), "norm": [float(tensor.norm()) for tensor in run.trained().values()]}))


@lru_cache(maxsize=2)
def _template(state: str) -> tuple[Path, pd.DataFrame]:
    """A store with the run in a state, and the table that is measured on it when it is finished."""
    left_alone = whole(KIND)
    store, key = left_alone.store.parent / state, left_alone.run.spec.key
    shutil.copytree(left_alone.store, store)
    table = _measured(left_alone.run)
    if state == "finished":
        _measured(RunStore(store).get(left_alone.run.spec))
    else:
        shutil.rmtree(store / key)
        sealing = max(place for place, event in enumerate(left_alone.events) if event == "os.rename")
        ended = run_apart(lambda: RunStore(store).get(left_alone.run.spec), store.parent, kill_at=sealing)
        if ended.code != -9 or RunStore(store).stored(left_alone.run.spec):
            raise RuntimeError(f"Expected a run killed before its seal, got one that ended with {ended.code}.")
    return store, table


def _files() -> list[tuple[str, str]]:
    """Every file of the run in either state, by its name in the run's folder."""
    found = []
    for state in ("finished", "unfinished"):
        folder = _template(state)[0] / kinds()[KIND].key
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        found += [(name, state) for name in names if not name.endswith(".part") and name.split("/")[1:2] != [_older()]]
    return found


def _older() -> str:
    """The resume point that is read only where the newest one is damaged."""
    points = sorted((_template("unfinished")[0] / kinds()[KIND].key / "resume").iterdir())
    return points[0].name


def _counts(name: str, state: str, path: Path) -> bool:
    """Whether harm has to be said: an unfinished run rests on its points and on the checkpoints so far.

    What has no seal at all was never finished, and is made again without a word.
    """
    sealed = path.name != MANIFEST or path.exists()
    return sealed and (state == "finished" or name.split("/")[0] in ("resume", "checkpoints"))


def _beside(path: Path) -> Path:
    return next((one for one in sorted(path.parent.iterdir()) if one.is_file() and one != path), path)


def _harmed(which: tuple[str, str], harm: Harm, folder: Path) -> str | None:
    name, state = which
    template, table = _template(state)
    spec, store = kinds()[KIND], folder / "runs"
    shutil.copytree(template, store)
    path = store / spec.key / name
    harm(path, _beside(path))
    to_be_said = _counts(name, state, path)
    ended = run_apart(lambda: _measured(RunStore(store).get(spec)), folder)
    if ended.code:
        return f"it ended with {ended.code}: {ended.output.strip()[-300:]}"
    run = RunStore(store).get(spec)
    if problem := difference(run, whole(KIND).run):
        return problem
    if not _measured(run).equals(table):
        return "what was measured on it is other"
    if to_be_said and "is damaged" not in ended.output:
        return "it said nothing of the damage"
    return None
