"""What scaling intruders does to a run's accuracy and forgetting, with the controls: notebook 07's measurements.

Every row of a table is the same run with some of its matrices changed and nothing trained, or the same run trained at a
smaller rate: see :mod:`utils.studies.cause.changed`. What answered which test row and what each passage adds to the
loss is kept beside every number, so that two of them can be compared item by item.
"""

from collections.abc import Callable

import pandas as pd

from utils.errors import CourseError
from utils.machine import device_name
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, experiment_runs, learnt_runs, run_intruders, with_identity
from utils.reporting.selection import runs_that_learnt
from utils.spectra.intervention import Direction, Directions, base_share, scaled, with_norm
from utils.studies.cause.changed import KINDS, Changed, changed_matrices, picked, run_directions
from utils.studies.cause.published import paper_scaling
from utils.training.mitigation import head_accuracies, mitigated_by_peft
from utils.training.spec import intervention_specs, share_of_rate
from utils.training.store import Run, RunStore, undiverged
from utils.training.wanted import INTERVENTION
from utils.training.weights import Tensors

VERSION = 2  # of every measurement here, part of what its kept table is known by
ITEMS = ("right", "passage_nats")
LOSSES = ("pseudo_loss", "base_pseudo_loss", "forgetting", "passage_nats")
SHRINKING = 0.5  # the lambda at which PEFT's own mitigation is compared: one that is measured here anyway


def chosen_runs(profile: Profile, seeds: Seeds = None) -> list[Run]:
    """The runs that the profile's intervention names, but for those that did not learn their task.

    Where none of them did, which happens with a seed at rates near the edge, the LoRA run of the same experiment with
    the most intruders that did learn stands in, and a line says so: a reader's seed must not stop the notebook.

    Raises
    ------
    CourseError
        If the intervention's experiment has no LoRA run that learnt.
    """
    settings, runs = profile.intervention, intervention_runs(profile, seeds)
    named = {(one.r, one.learning_rate) for one in settings.runs}
    found = [run for run in runs if (run.spec.method.r, run.spec.learning_rate) in named]
    if profile.evidence and runs:
        found = _without_failed(found, pd.concat([run.metrics() for run in runs], ignore_index=True))
    if not found and profile.evidence:
        found = _standing_in(experiment_runs(profile, settings.experiment, seeds), profile)
    if not found:
        wanted = ", ".join(f"r = {r} at {rate:g}" for r, rate in sorted(named))
        raise CourseError(f"Experiment '{settings.experiment}' of profile {profile.profile} has no finished run of "
                          f"those that 'intervention' names ({wanted}).")
    return found


def intervention_runs(profile: Profile, seeds: Seeds = None) -> list[Run]:
    """The finished runs that are scaled, and those at smaller rates beside them, trained now where missing."""
    store = RunStore()
    return undiverged([store.get(spec) for spec in intervention_specs(profile, seeds)])


def smaller_rates(run: Run, profile: Profile) -> dict[float, Run]:
    """What was trained as this run was, but at a share of its learning rate: by that share, the larger first."""
    store, specs = RunStore(), intervention_specs(profile, (run.spec.seed,))
    shares = {share_of_rate(spec, run.spec): spec for spec in specs}
    found = {share: store.get(shares[share]) for share in profile.intervention.smaller_rates if share in shares}
    return {share: one for share, one in sorted(found.items(), reverse=True) if not one.diverged}


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


@measurement(columns=(*RUN_COLUMNS, "kind", "factor", "changed", "base_share", "accuracy", *LOSSES, "right",
                      "accuracy_change", "forgetting_change", "loss_change"), published=paper_scaling,
             runs=(INTERVENTION,))
def interventions(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Accuracy and forgetting against lambda for each kind of change (Figs 8 and 12, Tables 3 and 4, controls).

    Returns
    -------
    pandas.DataFrame
        One row per run, ``kind`` and ``factor`` (lambda; for ``smaller rate`` the share of the learning rate):
        ``accuracy``, ``pseudo_loss``, ``forgetting`` (over the base), ``changed`` (how many matrices), ``base_share``
        (mean of u^T W0 v / sigma over the scaled triplets: how much of them is W0's), and the paper's percentages:
        ``accuracy_change`` relative to factor 1, ``forgetting_change`` of what was forgotten, ``loss_change`` of the
        loss itself (the caption's two readings). ``right`` and ``passage_nats`` are as
        :meth:`utils.studies.cause.changed.Changed.measure` gives them; a run's kinds share those of factor 1, which
        stand in its first such row. The whole update at factor 0 is the untouched base.
    """
    def compute(run: Run) -> pd.DataFrame:
        changed, directions = Changed(run, profile), run_directions(run, profile)
        start, rows = changed.measure(run.tuned_matrices()), []
        for kind, factors in _grids(run, profile).items():
            found = [] if kind == "whole update" else picked(run, directions, kind)
            row = {"kind": kind, "changed": len(directions) if kind == "whole update" else len(found),
                   "base_share": _mean_share(run, found)}
            for factor in factors:
                same = factor == 1 or row["changed"] == 0  # then nothing changes, and nothing needs measuring
                values = start if same else changed.measure(changed_matrices(run, directions, kind=kind, factor=factor))
                rows.append(row | {"factor": factor} | values | (dict.fromkeys(ITEMS, "") if same and rows else {}))
        rows += _at_smaller_rates(run, profile, start, count=len(directions))
        return pd.DataFrame(rows).assign(base_pseudo_loss=_base_loss(changed))

    def settings(run: Run) -> dict:
        return {"grids": {kind: list(grid) for kind, grid in _grids(run, profile).items()},
                "smaller": [other.spec.key for other in smaller_rates(run, profile).values()]}

    tables = _of_every_run(profile, seeds, "interventions", settings=settings, compute=compute, scaled_only=True)
    return pd.concat([_percentages(table) for table in tables], ignore_index=True)


def _grids(run: Run, profile: Profile) -> dict[str, list[float]]:
    """Kind -> strengths, 1 among them and the whole update's 0; the first row of all is the run itself."""
    lambdas = profile.intervention.lambdas_of(run.spec.method.r, run.spec.learning_rate, whole=profile.whole)
    chosen = {kind: {1.0, *getattr(lambdas, kind.replace(" ", "_"))} for kind in KINDS[:-1]}
    chosen["whole update"].add(0.0)
    return {kind: sorted(factors, key=lambda factor: (factor != 1, factor)) for kind, factors in chosen.items()
            if len(factors) > 1}


def _mean_share(run: Run, found: list[tuple[str, Direction]]) -> float:
    base = run.base_matrices() if found else {}
    return sum(base_share(base[name], one) for name, one in found) / len(found) if found else float("nan")


def _at_smaller_rates(run: Run, profile: Profile, start: dict, *, count: int) -> list[dict]:
    row = {"kind": "smaller rate", "changed": count, "base_share": float("nan")}
    smaller = smaller_rates(run, profile)
    return [row | {"factor": 1.0} | start | dict.fromkeys(ITEMS, "")] * bool(smaller) + [
        row | {"factor": share} | Changed(other, profile).measure(other.tuned_matrices())
        for share, other in smaller.items()]


def _base_loss(changed: Changed) -> float:
    return changed.measure(changed.run.base_matrices(), answers=False)["pseudo_loss"]


def _percentages(table: pd.DataFrame) -> pd.DataFrame:
    at_one = table[table["factor"] == 1].iloc[0]
    moved = table["pseudo_loss"] - at_one["pseudo_loss"]
    return table.assign(
        accuracy_change=100 * (table["accuracy"] - at_one["accuracy"]) / at_one["accuracy"],
        forgetting_change=100 * moved / at_one["forgetting"], loss_change=100 * moved / at_one["pseudo_loss"])


@measurement(columns=(*RUN_COLUMNS, "kind", "removed", "base_share", *LOSSES), runs=(INTERVENTION,))
def removals(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Forgetting against how many intruders are removed, the strongest first; their neighbours removed as control.

    The paper's authors promised this curve in review and did not publish it.

    Returns
    -------
    pandas.DataFrame
        One row per run, ``kind`` (``intruders`` or ``neighbours``) and ``removed`` (0, 1, 2, 4 … all; a reader's runs 0
        and all): ``pseudo_loss``, ``forgetting``, ``base_share`` of what is removed.
    """
    def compute(run: Run) -> pd.DataFrame:
        changed, base, rows = Changed(run, profile), run.base_matrices(), []
        for kind, ordered in _removal_orders(run_directions(run, profile)).items():
            for count in doubling(len(ordered)) if profile.whole else sorted({0, len(ordered)}):
                matrices, shares = run.tuned_matrices(), []
                for name, direction in ordered[:count]:
                    shares.append(base_share(base[name], direction))
                    matrices[name] = scaled(matrices[name], direction, 0.0)
                share = sum(shares) / count if count else float("nan")
                rows.append({"kind": kind, "removed": count, "base_share": share}
                            | changed.measure(matrices, answers=False))
        return pd.DataFrame(rows).assign(base_pseudo_loss=_base_loss(changed))

    tables = _of_every_run(profile, seeds, "removals", settings=lambda _: {"whole": profile.whole}, compute=compute)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


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


@measurement(columns=(*RUN_COLUMNS, "intruders", "norm", "relative_norm", "accuracy", "right", *LOSSES),
             runs=(INTERVENTION,))
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
        for kept, weights, size in (("kept", tuned, sizes["own"]), ("removed", removed, sizes["smaller"])):
            for norm in ("own", "smaller"):
                matrices = {name: weights[name] if size[name] == sizes[norm][name]  # to the bit, and known already
                            else with_norm(base[name], weights[name], sizes[norm][name]) for name in base}
                relative = [(matrices[name] - base[name]).norm().item() / base[name].norm().item() for name in base]
                rows.append({"intruders": kept, "norm": norm, "relative_norm": sum(relative) / len(relative)}
                            | changed.measure(matrices))
        return pd.DataFrame(rows).assign(base_pseudo_loss=_base_loss(changed))

    tables = _of_every_run(profile, seeds, "norm-matched", settings=lambda _: {}, compute=compute)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def mitigations(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """PEFT's ``reduce_intruder_dimension`` beside the same intervention done on the merged matrices.

    Returns
    -------
    pandas.DataFrame
        One row per run and ``way``, at lambda 0.5: ``unchanged``; ``ours, first intruder`` (the paper's); ``ours, all
        intruders``; ``PEFT's factors`` (what PEFT's re-truncated adapter merges to, with the run's own head); ``PEFT's
        model, untrained heads`` (the head that PEFT leaves is an untrained one; here the mean over many, each drawn
        with another seed than the run's, with ``standard_error``, ``lowest`` and ``highest``; no loss).
        ``distance`` is relative, to ``ours, all intruders``.
    """
    def compute(run: Run) -> pd.DataFrame:
        changed, directions = Changed(run, profile), run_directions(run, profile)
        theirs, model = mitigated_by_peft(run, k=profile.spectra.k, epsilon=profile.spectra.epsilon, factor=SHRINKING)
        ways = {"unchanged": run.tuned_matrices(),
                "ours, first intruder": changed_matrices(run, directions, kind="intruder", factor=SHRINKING),
                "ours, all intruders": changed_matrices(run, directions, kind="all intruders", factor=SHRINKING),
                "PEFT's factors": theirs}
        whole = ways["ours, all intruders"]
        rows = [{"way": way} | changed.measure(matrices) | {"distance": _distance(matrices, whole)}
                for way, matrices in ways.items()]
        heads = head_accuracies(model.to(device_name()).eval(), changed.batches, seed=run.spec.seed)
        untrained = {"way": "PEFT's model, untrained heads", "accuracy": heads.mean().item(),
                     "standard_error": (heads.std() / len(heads)**0.5).item(), "lowest": heads.min().item(),
                     "highest": heads.max().item()}
        return pd.DataFrame([*rows, untrained]).drop(columns=list(ITEMS)).assign(base_pseudo_loss=_base_loss(changed))

    tables = _of_every_run(profile, seeds, "mitigations", settings=lambda _: {"factor": SHRINKING}, compute=compute)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _distance(matrices: Tensors, others: Tensors) -> float:
    """Relative Frobenius distance of two models' matrices."""
    apart = sum((matrices[name] - other).double().square().sum().item() for name, other in others.items())
    return (apart / sum(other.double().square().sum().item() for other in others.values()))**0.5


def _of_every_run(profile: Profile, seeds: Seeds, name: str, *, settings: Callable[[Run], dict],
                  compute: Callable[[Run], pd.DataFrame], scaled_only: bool = False) -> list[pd.DataFrame]:
    """What `compute` says of every chosen run, kept beside it under `name`, with the forgetting of each row.

    ``method`` names the learning rate, too: several of one method's rates may be scaled. `settings` are what the
    numbers depend on beside spectra, text and version. Runs that the profile scales at strengths of their own are
    scaled and nothing more: `scaled_only` says that this is it.
    """
    spectra, intervention = profile.spectra, profile.intervention
    key = {"version": VERSION, "k": spectra.k, "epsilon": spectra.epsilon, "every": intervention.masked_every}
    with_own = {(one.r, one.learning_rate) for one in intervention.runs if one.lambdas}
    tables = []
    for run in chosen_runs(profile, seeds):
        if not scaled_only and (run.spec.method.r, run.spec.learning_rate) in with_own:
            continue
        known_by = key | settings(run) | profile.pseudo_loss.model_dump()
        table = with_identity(profile, intervention.experiment, run.measured(name, known_by, compute))
        label = f"{run.spec.method.label}, {run.spec.learning_rate:g}"
        tables.append(table.assign(method=label, forgetting=table["pseudo_loss"] - table["base_pseudo_loss"]))
    return tables
