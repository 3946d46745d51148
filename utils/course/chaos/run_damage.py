"""Damage to runs: a file of a finished or an unfinished run is harmed, and the run still ends with its own numbers.

Every file is tried under eight kinds of harm; and what copying, kills and other programs leave in a run's folder is put
there. It holds if weights, metrics and a measured table are those of the run that was left alone, and if a run whose
harmed file counted says so in one sentence.
"""

import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd

from utils.course.chaos.apart import run_apart
from utils.course.chaos.case import Case
from utils.course.chaos.harms import HARMS, Harm
from utils.course.chaos.kills import difference, kinds, whole
from utils.files import sweep
from utils.sealed import MANIFEST
from utils.tables import cached_table
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
    left = [Case(f"{state} run: {name}", f"left in an {state} run" if state == "unfinished" else "left in a run",
                 partial(_left_in, state, leave, damage="in the place of" in name))
            for state, left in LEFT.items() for name, leave in left.items()]
    return found + (left[::4] if quick else left)


def _files_of_others(run: Path) -> None:
    for name in ("._result.json", "checkpoints/._step", "result.json~", "checkpoints/.nfs000000000001", ".DS_Store"):
        (run / name).write_bytes(b"Mac OS X")


def _halves(run: Path) -> None:
    """As a kill in the midst of a write leaves them; a day later they are swept."""
    for name in (".spec.json", "checkpoints/.step-000001.safetensors"):
        (run / f"{name}.4194399-0123abcd.part").write_bytes(b"half")


def _odd_points(run: Path) -> None:
    point = max((run / "resume").iterdir())
    shutil.copytree(point, point.with_name(f"{point.name} (copy)"))
    point.with_name("checkpoint-best").write_bytes(b"")


def _replaced(run: Path, *, name: str, link: bool = False) -> None:
    path = max((run / "resume").iterdir()) if name == "point" else run / name
    if path.exists():
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    if link:
        path.symlink_to(run / "nowhere")
    elif name == "result.json":
        path.mkdir()
    else:
        path.write_bytes(b"x")


def _table_of_another(run: Path) -> None:
    (run / "measurements").mkdir(exist_ok=True)
    other = run.parent / "0123456789abcdef" / "measurements" / "norms.parquet"
    cached_table(other, {"version": 1}, lambda: pd.DataFrame({"name": ["x"], "norm": [1.0]}))
    shutil.copy(other, run / "measurements" / other.name)


LEFT: dict[str, dict[str, Callable[[Path], object]]] = {
    "finished": {"files of others": _files_of_others, "halves of writes": _halves,
                 "another run's table": _table_of_another},
    "unfinished": {
        "files of others": _files_of_others, "halves of writes": _halves, "points under odd names": _odd_points,
        "another run's table": _table_of_another, "a file for a resume point": partial(_replaced, name="point"),
        "a link into nowhere for a resume point": partial(_replaced, name="point", link=True),
        "a file in the place of checkpoints": partial(_replaced, name="checkpoints"),
        "a file in the place of resume": partial(_replaced, name="resume"),
        "a link into nowhere in the place of resume": partial(_replaced, name="resume", link=True),
        "a folder in the place of the result": partial(_replaced, name="result.json")}}


def _left_in(state: str, leave: Callable[[Path], object], folder: Path, *, damage: bool) -> str | None:
    """Nothing but what stands in a file's or a folder's place is damage, now and after a day."""
    template, table = _template(state)
    spec, store = kinds()[KIND], folder / "runs"
    shutil.copytree(template, store)
    leave(store / spec.key)
    for said_before in (damage, False):
        problem, output = _gone_on_with(store, table, folder)
        if problem is None and ("is damaged" in output) != said_before:
            problem = f"it said of the damage: {output.strip()[-300:]!r}"
        if problem:
            return problem
        sweep(store, older_s=0.0)
    return None


def _gone_on_with(store: Path, table: pd.DataFrame, folder: Path) -> tuple[str | None, str]:
    """Ask a store for the run: in what it differs from the one that was left alone, or None; and what was said."""
    spec = kinds()[KIND]
    ended = run_apart(lambda: _measured(RunStore(store).get(spec)), folder)
    if ended.code:
        return f"it ended with {ended.code}: {ended.output.strip()[-300:]}", ended.output
    run = RunStore(store).get(spec)
    problem = difference(run, whole(KIND).run)
    if problem is None and not _measured(run).equals(table):
        problem = "what was measured on it is other"
    return problem, ended.output


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
    problem, output = _gone_on_with(store, table, folder)
    if problem is None and to_be_said and "is damaged" not in output:
        problem = "it said nothing of the damage"
    return problem
