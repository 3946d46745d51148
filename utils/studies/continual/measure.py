"""Continual learning: tasks one after the other, heads refitted on the frozen body after each stage (notebook 08)."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from transformers import AutoModel, PreTrainedModel

from utils.errors import CourseError
from utils.evaluation.continual import sequence_summary
from utils.evaluation.probe import first_token_states, head_accuracy
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import TaskSizes
from utils.reporting.registry import measurement
from utils.reporting.runs import Seeds, base_pseudo_loss, base_triplets, run_intruders, run_pseudo_loss
from utils.sources.models import BaseModel
from utils.spectra import similarity, thin_svd
from utils.training.data import classification_data, evaluation_batches
from utils.training.spec import continual_specs
from utils.training.store import Run, RunStore
from utils.training.weights import load_into

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
                      "trained_task", "tested_task", "accuracy", "base_accuracy", "tested_place"), runs=("continual",))
def sequence_accuracies(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Accuracy on every task after every stage, each by a head refitted on the frozen body (Figs 9a, 17, 21).

    Returns
    -------
    pandas.DataFrame
        One row per chain, ``stage`` (0 is the untouched base) and ``tested_task``: ``trained_task`` (empty at stage
        0), ``tested_place`` (from 1, the stage at which that task is trained), ``accuracy``, ``base_accuracy``.
    """
    sizes, parts = probe_sizes(profile), []
    places = {name: place for place, name in enumerate(sizes, start=1)}
    for chain in sequence_runs(profile, seeds):
        base = _probed(chain[0], "probe-base", sizes=sizes, probe=lambda run: base_probe(run, sizes))
        stages = [base] + [_probed(run, "probe", sizes=sizes, probe=lambda run: stage_probe(run, sizes))
                           for run in chain]
        for stage, accuracies in enumerate(stages):
            parts.append(_chain_columns(profile, chain, stage).merge(accuracies, how="cross").merge(
                base.rename(columns={"accuracy": "base_accuracy"}), on="tested_task"))
    if not parts:
        return pd.DataFrame()  # reference results of seeds that the sequence is not made for
    table = pd.concat(parts, ignore_index=True)
    return table.assign(tested_place=table["tested_task"].map(places))


@measurement(columns=("profile", "seed", "method", "r", "lora_alpha", "learning_rate", "average_accuracy",
                      "average_forgetting", "backward_transfer", "forward_transfer"), runs=("continual",))
def sequence_summaries(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """:func:`utils.evaluation.continual.sequence_summary` of every chain."""
    rows, table = [], sequence_accuracies(profile, seeds)
    by = ["profile", "seed", "method", "r", "lora_alpha", "learning_rate"]
    for keys, part in table.groupby(by, sort=False) if len(table) else ():
        matrix = part.pivot(index="stage", columns="tested_place", values="accuracy").sort_index()
        rows.append(dict(zip(by, keys, strict=True)) | sequence_summary(matrix.to_numpy()))
    return pd.DataFrame(rows)


@measurement(columns=("profile", "seed", "method", "r", "lora_alpha", "learning_rate", "run", "stage",
                      "trained_task", "n_intruders", "pseudo_loss", "forgetting"), runs=("continual",))
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


def stage_maps(chain: list[Run], matrix: str, profile: Profile) -> dict[str, np.ndarray]:
    """Similarity of one matrix with the original base's after every stage.

    Returns
    -------
    dict of str to ndarray
        By stage's title: absolute cosines of all pretrained (rows) and the k leading tuned vectors (columns).
    """
    base, k = base_triplets(chain[0].base)[matrix], profile.spectra.k
    return {f"{stage}. {run.spec.task}": similarity(thin_svd(run.tuned_matrices()[matrix]), base, top=k).T.numpy()
            for stage, run in enumerate(chain, start=1)}


def _chain_columns(profile: Profile, chain: list[Run], stage: int) -> pd.DataFrame:
    columns = chain[max(0, stage - 1)].spec.columns
    return pd.DataFrame([{"profile": profile.profile} | {
        name: columns[name] for name in ("seed", "method", "r", "lora_alpha", "learning_rate", "run")} | {
        "stage": stage, "trained_task": columns["task"] if stage else ""}])


def probe_sizes(profile: Profile) -> dict[str, TaskSizes]:
    """Every task of the sequence with as many rows as a head is fitted and tested on."""
    settings = profile.continual
    rows = {"train_rows": settings.probe_train_rows, "test_rows": settings.probe_test_rows}
    return {task: profile.tasks[task].model_copy(update=rows) for task in settings.tasks}


def _probed(run: Run, name: str, *, sizes: dict[str, TaskSizes],
            probe: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    """``tested_task`` and ``accuracy`` as `probe` says, kept beside the run under `name`."""
    key = {"version": VERSION, "tasks": {task: size.model_dump() for task, size in sizes.items()}}
    return run.measured(name, key, probe)[["tested_task", "accuracy"]]


def stage_probe(run: Run, sizes: dict[str, TaskSizes]) -> pd.DataFrame:
    """Head-only accuracy on each task for what a run made of its base."""
    return head_accuracies(run.base, load_into(_body(run.base), run.tuned_matrices()), sizes)


def task_states(run: Run, tested_task: str, sizes: dict[str, TaskSizes]) -> tuple[tuple, tuple]:
    """What a head is fitted on and tested on: states and labels of a task's train and test rows, body frozen.

    Parameters
    ----------
    run : Run
        Whose tuned body reads the rows.
    tested_task : str
    sizes : dict of str to TaskSizes
        As :func:`probe_sizes` gives them.
    """
    body = load_into(_body(run.base), run.tuned_matrices()).to(device_name())
    train, test = (first_token_states(body, evaluation_batches(part, run.base.folder))
                   for part in classification_data(tested_task, sizes[tested_task], run.base.folder))
    return train, test


def base_probe(run: Run, sizes: dict[str, TaskSizes]) -> pd.DataFrame:
    """Head-only accuracy on each task for the run's untouched base."""
    return pd.DataFrame(_base_accuracies(run.base, tuple(sizes.items())))


@lru_cache(maxsize=2)
def _base_accuracies(base: BaseModel, sizes: tuple[tuple[str, TaskSizes], ...]) -> list[dict]:
    """The same for every chain, so measured once in a process."""
    return head_accuracies(base, _body(base), dict(sizes)).to_dict("records")


def _body(base: BaseModel) -> PreTrainedModel:
    return AutoModel.from_pretrained(base.folder, dtype=torch.float32,
                                     use_safetensors=True, trust_remote_code=False).eval()


def head_accuracies(base: BaseModel, body: PreTrainedModel, sizes: dict[str, TaskSizes]) -> pd.DataFrame:
    """``tested_task`` and ``accuracy`` of a head fitted for each task on a frozen body of this base."""
    body, rows = body.to(device_name()), []
    for task, size in sizes.items():
        train, test = (first_token_states(body, evaluation_batches(part, base.folder))
                       for part in classification_data(task, size, base.folder))
        rows.append({"tested_task": task, "accuracy": head_accuracy(train, test)})
    return pd.DataFrame(rows)
