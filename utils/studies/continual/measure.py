"""Continual learning: tasks one after the other, heads refitted on the frozen body after each stage (notebook 08)."""

from functools import lru_cache

import pandas as pd
import torch
from transformers import AutoModel

from utils.errors import CourseError
from utils.evaluation.continual import sequence_summary
from utils.evaluation.probe import first_token_states, head_accuracy
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import TaskSizes
from utils.reporting.registry import measurement
from utils.reporting.runs import Seeds, base_pseudo_loss, run_intruders, run_pseudo_loss
from utils.sources.models import BaseModel
from utils.training.data import classification_data, evaluation_batches
from utils.training.spec import continual_specs
from utils.training.store import Run, RunStore
from utils.training.weights import Tensors, load_into

VERSION = 1


def sequence_runs(profile: Profile, seeds: Seeds = None) -> list[list[Run]]:
    """The finished chains of the profile's sequence, one run per task, trained now where missing.

    A chain in which a stage diverged is reported and left out: what would follow starts from no weights.

    Raises
    ------
    CourseError
        If that leaves none of the chains.
    """
    store, chains, wanted = RunStore(), [], continual_specs(profile, seeds)
    for chain in wanted:
        runs: list[Run] = []
        for spec in chain:
            runs.append(store.get(spec))
            if runs[-1].diverged:
                print(f"{spec.method.label}, seed {spec.seed}: diverged on {spec.task} (stage {len(runs)}), the whole "
                      "sequence is left out of every table.")
                break
        if not runs[-1].diverged:
            chains.append(runs)
    if wanted and not chains:
        raise CourseError(f"Of profile {profile.profile} every sequence of tasks diverged; lower the learning rates of "
                          "its 'continual' runs.")
    return chains


@measurement(columns=("profile", "seed", "method", "r", "lora_alpha", "learning_rate", "run", "stage",
                      "trained_task", "tested_task", "accuracy", "base_accuracy", "tested_place",))
def sequence_accuracies(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Accuracy on every task after every stage, each by a head refitted on the frozen body (Figs 9a, 17, 21).

    Returns
    -------
    pandas.DataFrame
        One row per chain, ``stage`` (0 is the untouched base) and ``tested_task``: ``trained_task`` (empty at stage
        0), ``tested_place`` (from 1, the stage at which that task is trained), ``accuracy``, ``base_accuracy``.
    """
    settings, parts = profile.continual, []
    places = {name: place for place, name in enumerate(settings.tasks, start=1)}
    for chain in sequence_runs(profile, seeds):
        base = _kept_probe(chain[0], profile, "probe-base", lambda run: None)
        stages = [base] + [_kept_probe(run, profile, "probe", lambda run: run.tuned_matrices()) for run in chain]
        for stage, accuracies in enumerate(stages):
            parts.append(_chain_columns(profile, chain, stage).merge(accuracies, how="cross").merge(
                base.rename(columns={"accuracy": "base_accuracy"}), on="tested_task"))
    if not parts:
        return pd.DataFrame()  # reference results of seeds that the sequence is not made for
    table = pd.concat(parts, ignore_index=True)
    return table.assign(tested_place=table["tested_task"].map(places))


@measurement(columns=("profile", "seed", "method", "r", "lora_alpha", "learning_rate", "average_accuracy",
                      "average_forgetting", "backward_transfer", "forward_transfer",))
def sequence_summaries(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """:func:`utils.evaluation.continual.sequence_summary` of every chain."""
    rows, table = [], sequence_accuracies(profile, seeds)
    by = ["profile", "seed", "method", "r", "lora_alpha", "learning_rate"]
    for keys, part in table.groupby(by, sort=False) if len(table) else ():
        matrix = part.pivot(index="stage", columns="tested_place", values="accuracy").sort_index()
        rows.append(dict(zip(by, keys, strict=True)) | sequence_summary(matrix.to_numpy()))
    return pd.DataFrame(rows)


@measurement(columns=("profile", "seed", "method", "r", "lora_alpha", "learning_rate", "run", "stage",
                      "trained_task", "n_intruders", "pseudo_loss", "forgetting",))
def sequence_spectra(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Intruders against the original base, and pseudo-loss, after every stage of every chain (Figs 9b, 9c, 18)."""
    spectra, settings, rows = profile.spectra, profile.pseudo_loss, []
    for chain in sequence_runs(profile, seeds):
        before = base_pseudo_loss(chain[0].base, settings)
        for stage, run in enumerate(chain, start=1):
            loss = run_pseudo_loss(run, settings)
            rows.append(_chain_columns(profile, chain, stage).iloc[0].to_dict() | {
                "n_intruders": run_intruders(run, spectra), "pseudo_loss": loss,
                "forgetting": loss - before})
    return pd.DataFrame(rows)


def _chain_columns(profile: Profile, chain: list[Run], stage: int) -> pd.DataFrame:
    columns = chain[max(0, stage - 1)].spec.columns
    return pd.DataFrame([{"profile": profile.profile} | {
        name: columns[name] for name in ("seed", "method", "r", "lora_alpha", "learning_rate", "run")} | {
        "stage": stage, "trained_task": columns["task"] if stage else ""}])


def _kept_probe(run: Run, profile: Profile, name: str, matrices) -> pd.DataFrame:
    settings = profile.continual
    sizes = {task: _probe_sizes(profile, task) for task in settings.tasks}
    key = {"version": VERSION, "tasks": {task: size.model_dump() for task, size in sizes.items()}}
    table = run.measured(name, key, lambda run: _probe(run.base, matrices(run), sizes))
    return table[["tested_task", "accuracy"]]


def _probe_sizes(profile: Profile, task: str) -> TaskSizes:
    settings = profile.continual
    return profile.tasks[task].model_copy(update={"train_rows": settings.probe_train_rows,
                                                  "test_rows": settings.probe_test_rows})


def _probe(base: BaseModel, matrices: Tensors | None, sizes: dict[str, TaskSizes]) -> pd.DataFrame:
    """Head-only accuracy on each task for the base (no `matrices`) or what a run made of it."""
    if matrices is None:
        return pd.DataFrame(_base_probe(base, tuple(sizes.items())))
    body = AutoModel.from_pretrained(base.folder, dtype=torch.float32).eval()
    load_into(body, matrices).to(device_name())
    rows = []
    for task, size in sizes.items():
        train, test = (first_token_states(body, evaluation_batches(part, base.folder))
                       for part in classification_data(task, size, base.folder))
        rows.append({"tested_task": task, "accuracy": head_accuracy(train, test)})
    return pd.DataFrame(rows)


@lru_cache(maxsize=2)
def _base_probe(base: BaseModel, sizes: tuple[tuple[str, TaskSizes], ...]) -> list[dict]:
    """The base's own accuracies: the same for every chain, so measured once in a process."""
    return _probe(base, {}, dict(sizes)).to_dict("records")
