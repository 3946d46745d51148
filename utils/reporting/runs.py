"""Runs as tables: the runs of an experiment, what is measured on one of them, and the columns that name it.

Each result is kept beside its run; asking again reads it.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import pandas as pd

from utils.errors import CourseError, UsageError
from utils.evaluation.pseudo import corpus_loss, pseudo_loss
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import PseudoLoss, Spectra
from utils.reporting.selection import last_steps, runs_that_learnt
from utils.sources.corpora import pretraining_passages
from utils.sources.models import BaseModel
from utils.spectra import (
    Pair,
    SingularTriplets,
    SpectrumCache,
    is_intruder,
    leading_cosines,
    leading_table,
    thin_svd,
    update_table,
)
from utils.training.data import tokenizer_of
from utils.training.spec import run_specs
from utils.training.store import Run, RunStore, undiverged
from utils.training.targets import split_name
from utils.training.weights import base_matrices

Seeds = tuple[int, ...] | None
ALL_VECTORS = 2**31
RUN_COLUMNS = ("profile", "experiment", "task", "seed", "method", "r", "lora_alpha", "learning_rate", "run")


def experiment_runs(profile: Profile, experiment: str, seeds: Seeds = None, *, diverged: bool = False) -> list[Run]:
    """The finished runs of an experiment, trained now where missing; diverged ones are left out unless asked for."""
    store = RunStore()
    runs = [store.get(spec) for spec in run_specs(profile, experiment, seeds)]
    return runs if diverged else undiverged(runs)


def find_run(profile: Profile, *, method: str, r: int = 0, experiment: str = "ranks", seeds: Seeds = None) -> Run:
    """The first run of a method and rank in an experiment, such as ``find_run(profile, method="full")``."""
    for run in experiment_runs(profile, experiment, seeds):
        if run.spec.method.kind == method and (run.spec.method.r or 0) == r:
            return run
    raise UsageError(f"Experiment '{experiment}' of profile {profile.profile} has no finished run of method "
                     f"'{method}' with r={r}.")


def learnt_runs(runs: list[Run]) -> list[Run]:
    """Those of an experiment's runs that learnt their task, by :func:`utils.reporting.selection.mark_learnt`."""
    if not runs:
        return []
    kept = set(runs_that_learnt(pd.concat([run.metrics() for run in runs], ignore_index=True))["run"])
    return [run for run in runs if run.spec.key in kept]


@lru_cache(maxsize=64)
def _say_once(sentence: str) -> None:
    print(sentence)


def showcase_runs(profile: Profile, seeds: Seeds = None) -> list[Run]:
    """One LoRA run of the main experiment for each seed, to look at closely: the profile's showcase rank.

    Where that run did not learn its task, which happens at rates near the edge, the run of the nearest rank that did
    stands in for it, and a line says so: what a failed run has of intruders says nothing.
    """
    wanted, chosen = profile.spectra.showcase_rank, []
    runs = experiment_runs(profile, "ranks", seeds)
    # A few steps teach nothing; where results are no evidence any run is as good to look at.
    learnt = [run for run in (learnt_runs(runs) if profile.evidence else runs) if run.spec.method.r]
    for seed in dict.fromkeys(run.spec.seed for run in runs):
        nearest = sorted((run for run in learnt if run.spec.seed == seed),
                         key=lambda run: abs(math.log2(run.spec.method.r / wanted)))
        if not nearest:
            raise CourseError(f"No LoRA run of experiment 'ranks' learnt its task with seed {seed}; lower the learning "
                              "rates in the profile, or give another seed.")
        if nearest[0].spec.method.r != wanted:
            _say_once(f"LoRA r={wanted} did not learn its task with seed {seed}; {nearest[0].spec.method.label} is "
                      "shown instead.")
        chosen.append(nearest[0])
    return chosen


@lru_cache(maxsize=2)
def base_triplets(base: BaseModel) -> dict[str, SingularTriplets]:
    """Thin SVD of every W0 of a base model, computed once per process."""
    return {name: thin_svd(weight, name=f"base matrix {name}") for name, weight in base_matrices(base.folder).items()}


@lru_cache(maxsize=1)
def base_spectra() -> SpectrumCache:
    """The spectra of base matrices, kept on disk for all runs."""
    return SpectrumCache(device=device_name())


def run_pairs(run: Run, step: int | None = None) -> list[Pair]:
    """W0 and what a run made of it, matrix by matrix: the factors of LoRA, the whole weight of full fine-tuning."""
    base, factors = run.base_matrices(), run.factors(step)
    if factors:
        return [Pair(name, lambda name=name: (base[name], factors[name])) for name in base]
    tuned = run.tuned_matrices(step)
    return [Pair(name, lambda name=name: (base[name], tuned[name])) for name in base]


def cosine_table(pairs: list[Pair], spectra: Spectra, k: int | None = None) -> pd.DataFrame:
    """Vector table of the k leading vectors, or of all, whose counts are the definition's at the profile's epsilons."""
    return leading_table(leading_cosines(pairs, k=k or ALL_VECTORS, epsilons=spectra.epsilons,
                                         spectrum=base_spectra().spectrum, device=device_name()))


def run_vectors(run: Run, spectra: Spectra, step: int | None = None, *, k: int | None = None) -> pd.DataFrame:
    """Vector table of a run at a step, of its k leading vectors or of all, with ``layer`` and ``type``; kept."""
    step = step or run.steps[-1]
    table = run.measured(
        f"vectors-{step:06d}" + (f"-k{k}" if k else ""), {"version": 2, "step": step, "epsilons": spectra.epsilons},
        lambda run: cosine_table(run_pairs(run, step), spectra, k).assign(step=step))
    return with_places(table)


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """A table with ``matrix``, and its ``layer`` and ``type``."""
    named = {name: split_name(name) for name in table["matrix"].unique()}
    return table.assign(layer=table["matrix"].map(lambda name: named[name][0]),
                        type=table["matrix"].map(lambda name: named[name][1]))


def run_intruders(run: Run, spectra: Spectra, step: int | None = None) -> int:
    """Intruders of a run at a step among the k leading vectors of all matrices, at the profile's epsilon."""
    return int(is_intruder(run_vectors(run, spectra, step, k=spectra.k)["max_cosine"], spectra.epsilon).sum())


def all_vectors(profile: Profile, seeds: Seeds = None, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Vector tables of the final weights of every run."""
    return collect(profile, seeds, lambda run: run_vectors(run, profile.spectra), experiments=experiments)


def checkpoint_metrics(profile: Profile, seeds: Seeds = None,
                        experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Test accuracy with its binomial standard error at each checkpoint of each run."""
    return collect(profile, seeds, lambda run: run.metrics(), experiments=experiments)


def update_sizes(profile: Profile, seeds: Seeds = None, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Relative norm and effective rank of each matrix's update, for every run."""
    def measure(run: Run) -> pd.DataFrame:
        return run.measured("updates", {"version": 1}, lambda run: update_table(
            run.base_matrices(), run.tuned_matrices(), run.factors()))

    return collect(profile, seeds, measure, experiments=experiments)


def run_pseudo_loss(run: Run, settings: PseudoLoss, step: int | None = None) -> float:
    """Pseudo-loss of a run at a step (the last by default) in nats per token; kept beside the run."""
    at = "" if step in (None, run.steps[-1]) else f"-{step:06d}"
    return corpus_loss(run.measured(f"pseudo_loss{at}", {"version": 1} | settings.model_dump(), lambda run: (
        model_pseudo_loss(run.base, run.masked_lm(step), settings))))


def base_masked_lm(base: BaseModel):
    """The untouched base with its masked-LM head, in evaluation mode."""
    import torch
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(base.folder, dtype=torch.float32,
                                                use_safetensors=True, trust_remote_code=False).eval()


@lru_cache(maxsize=4)
def base_passage_losses(base: BaseModel, settings: PseudoLoss) -> pd.DataFrame:
    """Pseudo-loss of each passage under the untouched base, as :func:`utils.evaluation.pseudo.pseudo_loss` has it."""
    return model_pseudo_loss(base, base_masked_lm(base), settings)


def base_pseudo_loss(base: BaseModel, settings: PseudoLoss) -> float:
    """Pseudo-loss of the untouched base, nats per token."""
    return corpus_loss(base_passage_losses(base, settings))


def model_pseudo_loss(base: BaseModel, model, settings: PseudoLoss) -> pd.DataFrame:
    """Pseudo-loss of each passage of the settings' text, for a masked-LM on a base's tokenizer."""
    texts = pretraining_passages(settings.corpus, settings.passages)
    return pseudo_loss(model.to(device_name()), tokenizer_of(base.folder), texts, tokens=settings.tokens)


def identity(profile: Profile, experiment: str, run: Run) -> dict:
    """The columns that say which run of which experiment a row is about."""
    return {"profile": profile.profile, "experiment": experiment} | run.spec.columns


def with_identity(profile: Profile, experiment: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table of one run with profile and experiment as its first columns."""
    return pd.DataFrame({"profile": profile.profile, "experiment": experiment}, index=table.index).join(table)


def collect(profile: Profile, seeds: Seeds, measure: Callable[[Run], pd.DataFrame],
            *, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """One tidy table of what `measure` returns for every run of the experiments, the main ones by default."""
    parts = [with_identity(profile, experiment, measure(run))
             for experiment in experiments or profile.shown_experiments
             for run in experiment_runs(profile, experiment, seeds)]
    return pd.concat(parts, ignore_index=True)


def collect_by_run(profile: Profile, seeds: Seeds, measure: Callable[[Run], pd.DataFrame], *,
                   experiments: tuple[str, ...], known: pd.DataFrame | None = None,
                   trained_only: bool = False) -> pd.DataFrame:
    """As :func:`collect`, for what is measured of each run by itself, diverged ones too, over several sittings.

    Parameters
    ----------
    known : pandas.DataFrame, optional
        Rows of earlier sittings; a run that has some is neither trained nor measured again.
    trained_only : bool
        Leave out the runs that are not trained yet.
    """
    store, parts = RunStore(), []
    for experiment in experiments:
        for spec in run_specs(profile, experiment, seeds):
            before = None if known is None else known[(known["experiment"] == experiment) & (known["run"] == spec.key)]
            if before is not None and len(before):
                parts.append(before)
            elif not trained_only or store.stored(spec):
                parts.append(with_identity(profile, experiment, measure(store.get(spec))))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def final_accuracy(profile: Profile, seeds: Seeds, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Each run's accuracy at its last step, with its binomial standard error, by run."""
    last = last_steps(checkpoint_metrics(profile, seeds, experiments), by=["run"])
    return last[["run", "accuracy", "accuracy_se"]].reset_index(drop=True)
