"""What scaling intruders does to a run's accuracy and forgetting, with the controls: notebook 07's measurements.

Every row of a table is the same run with some of its matrices changed and nothing trained: accuracy and pseudo-loss
are measured as everywhere else, through one classifier and one masked-LM whose matrices are exchanged.
"""

from collections.abc import Callable

import pandas as pd

from utils.errors import CourseError
from utils.evaluation.pseudo import corpus_loss
from utils.machine import device_name
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    base_pseudo_loss,
    base_spectra,
    experiment_runs,
    learnt_runs,
    model_pseudo_loss,
    run_intruders,
    run_pairs,
    with_identity,
)
from utils.reporting.selection import runs_that_learnt
from utils.spectra.intervention import (
    Direction,
    Directions,
    leading_directions,
    neighbour,
    random_direction,
    require_factor,
    scaled,
    shrunk,
    with_norm,
)
from utils.studies.cause.published import paper_scaling
from utils.training.data import classification_data, evaluation_batches
from utils.training.metrics import accuracy, predict
from utils.training.mitigation import mitigated_by_peft
from utils.training.store import Run
from utils.training.wanted import INTERVENTION
from utils.training.weights import Tensors, load_into

VERSION = 1  # of every measurement here, part of what its kept table is known by
KINDS = ("intruder", "neighbour", "random direction", "whole update")


class Changed:
    """One run whose matrices can be exchanged: accuracy and pseudo-loss of what results."""

    def __init__(self, run: Run, profile: Profile):
        self.run, self.settings = run, profile.pseudo_loss
        self.classifier, self.masked_lm = (model.to(device_name()) for model in (run.classifier(), run.masked_lm()))
        _, test = classification_data(run.spec.task, run.spec.sizes, run.base.folder)
        self.batches = evaluation_batches(test, run.base.folder)

    def measure(self, matrices: Tensors) -> dict:
        """``accuracy`` and ``pseudo_loss`` (nats per token) with these matrices in the run's place."""
        for model in (self.classifier, self.masked_lm):
            load_into(model, matrices)
        shares = accuracy(*predict(self.classifier, self.batches))
        losses = model_pseudo_loss(self.run.base, self.masked_lm, self.settings)
        return {"accuracy": shares["accuracy"], "pseudo_loss": corpus_loss(losses)}


def chosen_runs(profile: Profile, seeds: Seeds = None) -> list[Run]:
    """The runs that the profile's intervention names, but for those that did not learn their task.

    Where none of them did, which happens with a seed at rates near the edge, the LoRA run of the same experiment with
    the most intruders that did learn stands in, and a line says so: a reader's seed must not stop the notebook.

    Raises
    ------
    CourseError
        If the intervention's experiment has no LoRA run that learnt.
    """
    settings = profile.intervention
    runs = experiment_runs(profile, settings.experiment, seeds)
    first = runs[0].spec.seed if runs else None
    included = [one for one in settings.runs if profile.whole or not one.reference_only]
    found = [run for run in runs if any(
        (run.spec.method.r, run.spec.learning_rate) == (one.r, one.learning_rate)
        and (run.spec.seed == first or not one.first_seed_only) for one in included)]
    if profile.evidence:
        found = _without_failed(found, pd.concat([run.metrics() for run in runs], ignore_index=True))
    if not found and profile.evidence:
        found = _standing_in(runs, profile)
    if not found:
        wanted = ", ".join(f"r = {one.r} at {one.learning_rate:g}" for one in included)
        raise CourseError(f"Experiment '{settings.experiment}' of profile {profile.profile} has no finished run of "
                          f"those that 'intervention' names ({wanted}).")
    return found


def _standing_in(runs: list[Run], profile: Profile) -> list[Run]:
    learnt = [run for run in learnt_runs(runs) if run.spec.method.kind == "lora"]
    if not learnt:
        return []
    most = max(learnt, key=lambda run: run_intruders(run, profile.spectra))
    print(f"None of the runs that the intervention names learnt its task; {most.spec.method.label} at "
          f"{most.spec.learning_rate:g}, seed {most.spec.seed}, is scaled instead.")
    return [most]


def _without_failed(runs: list[Run], accuracies: pd.DataFrame) -> list[Run]:
    """The runs that learnt their task; each other one is said: what scaling does to a failed run means nothing."""
    kept = set(runs_that_learnt(accuracies)["run"])
    for run in runs:
        if run.spec.key not in kept:
            print(f"{run.spec.method.label} at learning rate {run.spec.learning_rate:g}, seed {run.spec.seed}: "
                  f"accuracy {run.metrics()['accuracy'].iloc[-1]:.2f}, it did not learn its task and is left out.")
    return [run for run in runs if run.spec.key in kept]


def run_directions(run: Run, profile: Profile) -> dict[str, Directions]:
    """Intruders and other leading directions of every matrix of a run, at the profile's k and epsilon."""
    return {pair.name: leading_directions(pair, k=profile.spectra.k, epsilon=profile.spectra.epsilon,
                                          spectrum=base_spectra().spectrum) for pair in run_pairs(run)}


def changed_matrices(run: Run, directions: dict[str, Directions], *, kind: str, factor: float) -> Tensors:
    """Every matrix of a run with one kind of change at strength `factor` (lambda).

    Parameters
    ----------
    directions : dict of str to Directions
        From :func:`run_directions`; matrices without an intruder stay as they are, but for ``whole update``.
    kind : {"intruder", "neighbour", "random direction", "whole update", "all intruders"}
        ``intruder`` is the paper's: the highest-ranked one of each matrix.
    factor : float
        0 removes, 1 changes nothing.
    """
    require_factor(factor)
    tuned = run.tuned_matrices()
    if factor == 1:
        return tuned  # to the last bit, which W0 + (Wt - W0) is not
    if kind == "whole update":
        base = run.base_matrices()
        return {name: shrunk(base[name], weight, factor) for name, weight in tuned.items()}
    for place, (name, found) in enumerate(directions.items()):
        for direction in _picked(found, kind, seed=run.spec.seed * 1_000_003 + place):
            tuned[name] = scaled(tuned[name], direction, factor)
    return tuned


def _picked(found: Directions, kind: str, *, seed: int) -> list[Direction]:
    if not found.intruders:
        return []
    first = found.intruders[0]
    beside = neighbour(found)
    return {"intruder": [first], "all intruders": found.intruders, "neighbour": [beside] if beside else [],
            "random direction": [random_direction(first, seed=seed)]}[kind]


@measurement(columns=(*RUN_COLUMNS, "kind", "factor", "changed", "accuracy", "pseudo_loss", "base_pseudo_loss",
                      "forgetting", "accuracy_change", "forgetting_change", "loss_change"), published=paper_scaling,
             runs=(INTERVENTION,))
def interventions(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Accuracy and forgetting against lambda for each kind of change (Figs 8 and 12, Tables 3 and 4, controls).

    Returns
    -------
    pandas.DataFrame
        One row per run, ``kind`` and ``factor``: ``accuracy``, ``pseudo_loss``, ``forgetting`` (over the base),
        ``changed`` (how many matrices), and the paper's percentages: ``accuracy_change`` relative to factor 1,
        ``forgetting_change`` of what was forgotten, ``loss_change`` of the loss itself (the caption's two readings).
    """
    settings = profile.intervention
    grids = {"intruder": settings.lambdas} | dict.fromkeys(KINDS[1:], settings.control_lambdas)

    def compute(run: Run) -> pd.DataFrame:
        changed, directions = Changed(run, profile), run_directions(run, profile)
        rows = [{"kind": "unchanged", "factor": 1.0, "changed": 0} | changed.measure(run.tuned_matrices())]
        for kind, factors in grids.items():
            count = len(directions) if kind == "whole update" else sum(
                bool(_picked(found, kind, seed=0)) for found in directions.values())
            for factor in factors:
                same = factor == 1 or count == 0  # then nothing changes, and nothing needs measuring
                values = {key: rows[0][key] for key in ("accuracy", "pseudo_loss")} if same \
                    else changed.measure(changed_matrices(run, directions, kind=kind, factor=factor))
                rows.append({"kind": kind, "factor": factor, "changed": count} | values)
        return pd.DataFrame(rows[1:])

    settings_key = {"version": VERSION, "grids": {kind: list(grid) for kind, grid in grids.items()}}
    tables = _of_every_run(profile, seeds, "interventions", settings=settings_key, compute=compute)
    return pd.concat([_percentages(table) for table in tables], ignore_index=True)


def _percentages(table: pd.DataFrame) -> pd.DataFrame:
    at_one = table[table["factor"] == 1].iloc[0]
    moved = table["pseudo_loss"] - at_one["pseudo_loss"]
    return table.assign(
        accuracy_change=100 * (table["accuracy"] - at_one["accuracy"]) / at_one["accuracy"],
        forgetting_change=100 * moved / at_one["forgetting"], loss_change=100 * moved / at_one["pseudo_loss"])


@measurement(columns=(*RUN_COLUMNS, "kind", "removed", "accuracy", "pseudo_loss", "base_pseudo_loss", "forgetting"),
             runs=(INTERVENTION,))
def removals(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Forgetting against how many intruders are removed, the strongest first; their neighbours removed as control.

    The paper's authors promised this curve in review and did not publish it.

    Returns
    -------
    pandas.DataFrame
        One row per run, ``kind`` (``intruders`` or ``neighbours``) and ``removed`` (0, 1, 2, 4 … all): ``accuracy``,
        ``pseudo_loss``, ``forgetting``.
    """
    def compute(run: Run) -> pd.DataFrame:
        changed, rows = Changed(run, profile), []
        for kind, ordered in _removal_orders(run_directions(run, profile)).items():
            for count in doubling(len(ordered)):
                matrices = run.tuned_matrices()
                for name, direction in ordered[:count]:
                    matrices[name] = scaled(matrices[name], direction, 0.0)
                rows.append({"kind": kind, "removed": count} | changed.measure(matrices))
        return pd.DataFrame(rows)

    tables = _of_every_run(profile, seeds, "removals", settings={"version": VERSION}, compute=compute)
    return pd.concat(tables, ignore_index=True)


def _removal_orders(directions: dict[str, Directions]) -> dict[str, list[tuple[str, Direction]]]:
    """Intruders by singular value, the largest first; beside each matrix's, as many of its other leading directions."""
    intruders = [(name, one) for name, found in directions.items() for one in found.intruders]
    intruders.sort(key=lambda entry: -entry[1].sigma)
    waiting = {name: sorted(found.others, key=lambda one, s=found.intruders[0].sigma: abs(one.sigma - s))
               for name, found in directions.items() if found.intruders}
    beside = [(name, waiting[name].pop(0)) for name, _ in intruders if waiting[name]]
    return {"intruders": intruders, "neighbours": beside}


def doubling(most: int) -> list[int]:
    """0, 1, 2, 4 … and `most` itself.

    >>> doubling(5)
    [0, 1, 2, 4, 5]
    """
    counts, next_count = [0], 1
    while next_count < most:
        counts.append(next_count)
        next_count *= 2
    return counts + ([most] if most else [])


@measurement(columns=(*RUN_COLUMNS, "intruders", "norm", "relative_norm", "accuracy", "pseudo_loss",
                      "base_pseudo_loss", "forgetting"), runs=(INTERVENTION,))
def norm_matched(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Norm and intruders taken apart: the update with and without its intruders, each at two norms. Ours.

    Returns
    -------
    pandas.DataFrame
        Per run four rows, ``intruders`` (kept or removed) by ``norm`` (the run's own, or what removing leaves), matrix
        by matrix: ``accuracy``, ``pseudo_loss``, ``forgetting``, and ``relative_norm``, the mean of |update| / |W0|.
    """
    def compute(run: Run) -> pd.DataFrame:
        base, tuned = run.base_matrices(), run.tuned_matrices()
        removed = changed_matrices(run, run_directions(run, profile), kind="all intruders", factor=0.0)
        sizes = {kind: {name: (weights[name] - base[name]).norm().item() for name in base}
                 for kind, weights in (("own", tuned), ("smaller", removed))}
        changed, rows = Changed(run, profile), []
        for kept, weights in (("kept", tuned), ("removed", removed)):
            for norm in ("own", "smaller"):
                matrices = {name: with_norm(base[name], weights[name], sizes[norm][name]) for name in base}
                relative = [(matrices[name] - base[name]).norm().item() / base[name].norm().item() for name in base]
                rows.append({"intruders": kept, "norm": norm, "relative_norm": sum(relative) / len(relative)}
                            | changed.measure(matrices))
        return pd.DataFrame(rows)

    tables = _of_every_run(profile, seeds, "norm-matched", settings={"version": VERSION}, compute=compute)
    return pd.concat(tables, ignore_index=True)


def mitigations(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """PEFT's ``reduce_intruder_dimension`` beside the same intervention done on the merged matrices.

    Returns
    -------
    pandas.DataFrame
        One row per run and ``way``: ``unchanged``; ``ours, all intruders``; ``ours, first intruder`` (the paper's);
        ``PEFT's factors`` (what PEFT's re-truncated adapter merges to, with the run's own head); ``PEFT's model`` (as
        PEFT leaves it, head included; no pseudo-loss). All at lambda 0.75, PEFT's default.
    """
    factor = 0.75

    def compute(run: Run) -> pd.DataFrame:
        changed, directions = Changed(run, profile), run_directions(run, profile)
        theirs, model = mitigated_by_peft(run, k=profile.spectra.k, epsilon=profile.spectra.epsilon, factor=factor)
        ways = {"unchanged": run.tuned_matrices(),
                "ours, first intruder": changed_matrices(run, directions, kind="intruder", factor=factor),
                "ours, all intruders": changed_matrices(run, directions, kind="all intruders", factor=factor),
                "PEFT's factors": theirs}
        whole = ways["ours, all intruders"]
        rows = [{"way": way} | changed.measure(matrices) | {"distance": _distance(matrices, whole)}
                for way, matrices in ways.items()]
        as_left = accuracy(*predict(model.to(device_name()).eval(), changed.batches))["accuracy"]
        return pd.DataFrame([*rows, {"way": "PEFT's model, as left", "accuracy": as_left}])

    settings = {"version": VERSION, "factor": factor}
    tables = _of_every_run(profile, seeds, "mitigations", settings=settings, compute=compute)
    return pd.concat(tables, ignore_index=True)


def _distance(matrices: Tensors, others: Tensors) -> float:
    """Relative Frobenius distance of two models' matrices."""
    apart = sum((matrices[name] - other).double().square().sum().item() for name, other in others.items())
    return (apart / sum(other.double().square().sum().item() for other in others.values()))**0.5


def _of_every_run(profile: Profile, seeds: Seeds, name: str, *, settings: dict,
                  compute: Callable[[Run], pd.DataFrame]) -> list[pd.DataFrame]:
    """What `compute` says of every chosen run, kept beside it under `name`, with the forgetting of each row.

    ``method`` names the learning rate, too: several of one method's rates may be scaled.
    """
    spectra = profile.spectra
    key = settings | {"k": spectra.k, "epsilon": spectra.epsilon} | profile.pseudo_loss.model_dump()
    tables = []
    for run in chosen_runs(profile, seeds):
        table = with_identity(profile, profile.intervention.experiment, run.measured(name, key, compute))
        before = base_pseudo_loss(run.base, profile.pseudo_loss)
        label = f"{run.spec.method.label}, {run.spec.learning_rate:g}"
        tables.append(table.assign(method=label, base_pseudo_loss=before, forgetting=table["pseudo_loss"] - before))
    return tables
