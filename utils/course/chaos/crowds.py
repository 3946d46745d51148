"""Crowds: two, four and eight processes want the same thing at once, and the one that makes it may be killed.

What they want is a run, a table, or a source that has to be unpacked. It holds if every process that was not killed
ends with the same answer, and, where none was killed, nothing half-written stays.
"""

import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from utils.course.chaos.apart import Ended, run_apart
from utils.course.chaos.case import Case
from utils.course.chaos.kills import difference, whole
from utils.files import atomic_write
from utils.sealed import check, sealed_folder
from utils.tables import cached_table
from utils.training.store import RunStore

SIZES = (2, 4, 8)
KIND = "full mathematics"
ROUNDS = {"a run": 4, "a table": 6, "a folder": 7}  # of each size


def cases(*, quick: bool) -> list[Case]:
    """Every round; with `quick` one of two processes for each thing that they want."""
    tried: dict[str, Callable[..., str | None]] = {"a run": _one_run, "a table": _one_table, "a folder": _one_folder}
    return [Case(f"{size} processes want {what}, round {number}{', one is killed' if number % 2 else ''}", what,
                 partial(attempt, size=size, number=number))
            for what, attempt in tried.items() for size in (SIZES[:1] if quick else SIZES)
            for number in ([1] if quick else range(ROUNDS[what]))]


def _crowd(action: Callable[[], object], folder: Path, *, size: int, number: int, longest_s: float) -> list[Ended]:
    """`size` processes at once; in odd rounds the first is killed at a random time of up to `longest_s` seconds."""
    drawn = random.Random(f"{folder.name} {size} {number}")
    kills = [drawn.uniform(0.0, longest_s) if number % 2 and not one else None for one in range(size)]
    ended: list[Ended] = []

    def one(place: int) -> None:
        own = folder / f"process-{place}"
        own.mkdir()
        ended.append(run_apart(action, own, kill_after_s=kills[place]))

    threads = [threading.Thread(target=one, args=(place,)) for place in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def _failed(ended: list[Ended], folder: Path, *, number: int) -> str | None:
    killed = [one for one in ended if one.code == -9]
    if len(killed) > number % 2:
        return f"{len(killed)} processes were killed or never ended"
    failed = next((f"a process ended with {one.code}: {one.output.strip()[-300:]}" for one in ended
                   if one.code not in (0, -9)), None)
    return failed if failed or killed else _left_over(folder)


def _left_over(folder: Path) -> str | None:
    found = next((path for path in folder.rglob("*") if path.name.startswith(".") and path.suffix == ".part"), None)
    return f"{found.name} was left half-written" if found else None


def _one_run(folder: Path, *, size: int, number: int) -> str | None:
    left_alone, store = whole(KIND), folder / "runs"
    spec = left_alone.run.spec
    shutil.copytree(left_alone.store, store, ignore=lambda _, names: {spec.key} & set(names))
    ended = _crowd(lambda: RunStore(store).get(spec), folder, size=size, number=number, longest_s=3.0)
    return _failed(ended, folder, number=number) or difference(RunStore(store).get(spec), left_alone.run)


def _one_table(folder: Path, *, size: int, number: int) -> str | None:
    table = pd.DataFrame({"value": [number / 7, -0.0, 1e300], "name": ["", "NA", "ε"]})
    path, copies = folder / "tables" / "one.parquet", folder / "answers"
    copies.mkdir()

    def want() -> None:
        answer = cached_table(path, {"number": number}, table.copy)
        with atomic_write(copies / f"{os.getpid()}.pickle") as temporary:
            answer.to_pickle(temporary)

    ended = _crowd(want, folder, size=size, number=number, longest_s=0.2)
    if problem := _failed(ended, folder, number=number):
        return problem
    answers = [pd.read_pickle(answer) for answer in sorted(copies.glob("[0-9]*.pickle"))]
    kept = cached_table(path, {"number": number}, pd.DataFrame)
    return None if all(answer.equals(table) for answer in [*answers, kept]) else "the table is another"


def _one_folder(folder: Path, *, size: int, number: int) -> str | None:
    target = folder / "cache" / "thing"

    def build(scratch: Path) -> None:
        for part in range(20):
            (scratch / f"part-{part}").write_bytes(bytes([number, part]) * 50_000)

    ended = _crowd(lambda: sealed_folder(target, build, about={"number": number}), folder, size=size, number=number,
                   longest_s=0.2)
    if problem := _failed(ended, folder, number=number):
        return problem
    sealed_folder(target, build, about={"number": number})
    wrong = [part for part in range(20) if (target / f"part-{part}").read_bytes() != bytes([number, part]) * 50_000]
    return check(target, about={"number": number}) or (f"part {wrong[0]} is another" if wrong else None)
