"""Training what is missing before anything asks for it: for notebooks, for measurements, for the command `train`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.ledger.cells import measured_in
from utils.ledger.reference import measured_before
from utils.profiles import Profile
from utils.reporting.registry import MEASUREMENTS
from utils.studies import load_studies
from utils.training.cluster.engine import train_on_ray
from utils.training.outcomes import Outcomes, summary
from utils.training.plan import Costs, Planned, makespan, plan, shard
from utils.training.pool import memory_note, train_side_by_side, usable_workers
from utils.training.spec import RunSpec
from utils.training.store import RunStore
from utils.training.wanted import wanted_specs


@dataclass(frozen=True)
class Asked:
    """What is to be trained, and where.

    Attributes
    ----------
    specs : dict of str to RunSpec
        By their keys.
    workers : int or None
        Runs at a time; one for each core, or each GPU, by default.
    part, parts : int
        This machine's share, counted from 1, where several train one plan.
    engine, address : str
        ``local`` or ``ray``; of a Ray cluster, if there is one.
    """

    specs: dict[str, RunSpec]
    workers: int | None = None
    part: int = 1
    parts: int = 1
    engine: str = "local"
    address: str | None = None


def specs_of_notebooks(profile: Profile, paths: Iterable[Path], seeds: tuple[int, ...] | None) -> dict[str, RunSpec]:
    """The runs that notebooks ask for: those of the measurements that their cells name."""
    return specs_of_measurements(profile, (name for path in paths for name in measured_in(path)), seeds)


def specs_of_measurements(profile: Profile, names: Iterable[str], seeds: tuple[int, ...] | None
                          ) -> dict[str, RunSpec]:
    """The runs that measurements ask for, by their keys."""
    load_studies()
    return wanted_specs(profile, (group for name in names for group in MEASUREMENTS[name].runs), seeds)


def specs_of_reference(profile: Profile, names: Iterable[str] | None, seeds: tuple[int, ...]) -> dict[str, RunSpec]:
    """The runs that reference tables ask for, without those that a measurement by run has in its table already.

    Parameters
    ----------
    profile : Profile
        With its reference runs.
    names : iterable of str or None
        Of measurements; all by default.
    seeds : tuple of int
    """
    load_studies()
    found: dict[str, RunSpec] = {}
    for name in names or MEASUREMENTS:
        known = measured_before(MEASUREMENTS[name], profile)
        done = set() if known is None else set(known["run"])
        found |= {key: spec for key, spec in specs_of_measurements(profile, [name], seeds).items() if key not in done}
    return found


def planned_runs(asked: Asked) -> list[Planned]:
    """The share of this machine in the runs that are missing, the longest chain first.

    Shares are dealt from all runs, finished or not, by times that no run has measured yet: machines that begin hours
    apart on one store deal out the same, so that none is left over or trained for another.
    """
    planned = plan(asked.specs.values(), RunStore())
    if asked.parts == 1:
        return planned
    dealt = shard(plan(asked.specs.values(), RunStore(), Costs(), finished_too=True), asked.part, asked.parts)
    mine = {one.spec.key for one in dealt}
    return [one for one in planned if one.spec.key in mine]


def train_missing(asked: Asked, *, always_say: bool = False) -> Outcomes:
    """Train what is missing side by side, saying what is planned and what came of it.

    Parameters
    ----------
    always_say : bool
        Also say that nothing is missing.
    """
    planned = planned_runs(asked)
    if not planned:
        if always_say:
            print("Every run is there; nothing is to be trained." if asked.parts == 1 else
                  f"Every run of share {asked.part}/{asked.parts} is there; nothing is to be trained here.")
        return Outcomes()
    if asked.engine == "ray":
        outcomes = train_on_ray(planned, address=asked.address, workers=asked.workers)
    else:
        print(announcement(planned, asked), flush=True)
        outcomes = train_side_by_side(planned, workers=usable_workers(planned, asked.workers))
    print("\n".join(summary(outcomes)), flush=True)
    return outcomes


def announcement(planned: list[Planned], asked: Asked) -> str:
    """How many runs there are to train, and about how long that will take; with a sentence where memory is short.

    Of a cluster elsewhere this machine knows neither cores nor memory: it says the work there is in all.
    """
    if asked.address is not None:
        hours = sum(one.seconds for one in planned) / 3600
        return (f"{len(planned)} runs to train on the cluster at {asked.address}: about {hours:.1f} h of one worker as "
                "fast as those measured here, shared by as many as it has room for.")
    workers = usable_workers(planned, asked.workers)
    minutes = makespan(planned, workers)[0] / 60
    said = (f"{len(planned)} runs to train, {workers} at a time: "
            f"{f'about {minutes:.0f} min' if minutes >= 1 else 'less than a minute'}.")
    note = memory_note(planned, workers)
    return f"{said}\n{note}" if note else said


def listed(planned: list[Planned]) -> str:
    """A line for each planned run: its key, what it is, what it is expected to take."""
    return "\n".join(f"{one.spec.key} {one.spec.label}, learning rate {one.spec.learning_rate:g}, "
                     f"{f'{one.spec.steps} steps' if one.spec.steps else f'{one.spec.epochs:g} epochs'}: about "
                     f"{one.seconds:.0f} s, {one.peak_gib:.1f} GiB{', after others' if one.after else ''}"
                     for one in planned)

