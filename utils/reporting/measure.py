"""Every measurement of the course as one function: profile and seeds in, tidy DataFrame out.

Notebooks and ``python -m utils reference`` call the same functions, so the reader's numbers and the reference band
are the same measurement. Each result is kept beside its run; asking again reads it.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import pandas as pd

from utils.errors import UsageError
from utils.evaluation.pseudo import corpus_loss, pseudo_loss
from utils.files import canonical_json
from utils.profiles import Profile
from utils.profiles.schema import PseudoLoss, Spectra
from utils.sources.corpora import pretraining_passages
from utils.sources.models import BaseModel
from utils.spectra import Factors, LowRank, Pair, SpectrumCache, count_intruders, leading_cosines, leading_table, \
    thin_svd, trace_direction, update_table, vector_table
from utils.spectra.controls import random_updates
from utils.spectra.fast import merged_weight
from utils.training.data import tokenizer_of
from utils.training.device import device_name, limit_threads, quiet_libraries
from utils.training.spec import run_specs
from utils.training.store import Run, RunStore
from utils.training.targets import split_name
from utils.training.weights import base_matrices

Seeds = tuple[int, ...] | None
ALL_VECTORS = 2**31
RUN_COLUMNS = ("profile", "experiment", "task", "seed", "method", "r", "lora_alpha", "learning_rate", "run")


def experiment_runs(profile: Profile, experiment: str, seeds: Seeds = None, *, diverged: bool = False) -> list[Run]:
    """The finished runs of an experiment, trained now where missing; diverged ones are left out unless asked for."""
    quiet_libraries()
    store = RunStore()
    runs = [store.get(spec) for spec in run_specs(profile, experiment, seeds)]
    if diverged:
        return runs
    for run in runs:
        if run.diverged:
            print(f"{run.spec.method.label} at learning rate {run.spec.learning_rate:g}, seed {run.spec.seed}: "
                  "diverged, left out of every table.")
    return [run for run in runs if not run.diverged]


def find_run(profile: Profile, *, method: str, r: int = 0, experiment: str = "ranks", seeds: Seeds = None) -> Run:
    """The first run of a method and rank in an experiment, such as ``find_run(profile, method="full")``."""
    for run in experiment_runs(profile, experiment, seeds):
        if run.spec.method.kind == method and (run.spec.method.r or 0) == r:
            return run
    raise UsageError(f"Experiment '{experiment}' of profile {profile.profile} has no finished run of method "
                     f"'{method}' with r={r}.")


@lru_cache(maxsize=2)
def base_factors(base: BaseModel) -> dict[str, Factors]:
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
        return [Pair(name, lambda name=name: (base[name], LowRank(*factors[name]))) for name in base]
    tuned = run.tuned_matrices(step)
    return [Pair(name, lambda name=name: (base[name], tuned[name])) for name in base]


def cosine_table(pairs: list[Pair], spectra: Spectra, k: int | None = None) -> pd.DataFrame:
    """Vector table of the k leading vectors, or of all, whose counts are the definition's at the profile's epsilons."""
    limit_threads()
    return leading_table(leading_cosines(pairs, k=k or ALL_VECTORS, epsilons=spectra.epsilons,
                                         spectrum=base_spectra().spectrum, device=device_name()))


def run_vectors(run: Run, spectra: Spectra, step: int | None = None, k: int | None = None) -> pd.DataFrame:
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
    return int((run_vectors(run, spectra, step, spectra.k)["max_cosine"] < spectra.epsilon).sum())


def least_alike(run: Run, spectra: Spectra) -> pd.Series:
    """The row of a run's least pretrained-like leading vector: a clear example, not a typical one."""
    leading = run_vectors(run, spectra, k=spectra.k)
    return leading.loc[leading["max_cosine"].idxmin()]


def beside_definition(run: Run, spectra: Spectra) -> pd.DataFrame:
    """A run's counts by the definition in float64 and by the fast core, with the seconds that each took here.

    Returns
    -------
    pandas.DataFrame
        Two rows: ``method``, ``way``, ``seconds``, ``computed`` (how many matrices in which way), ``n_intruders`` at
        the profile's epsilon, ``counts`` at all of its epsilons as text.
    """
    pairs = run_pairs(run)
    base, tuned = {}, {}
    for pair in pairs:
        weight, other = pair.load()
        base[pair.name] = weight.double()
        tuned[pair.name] = merged_weight(weight, other)
    cosine_table(pairs, spectra, spectra.k)  # the base's spectra are computed once, and not by this comparison
    rows = []
    for way, compute in {"definition": lambda: vector_table(base, tuned).assign(computed_by="two float64 SVDs"),
                         "fast core": lambda: cosine_table(pairs, spectra, spectra.k)}.items():
        started = time.perf_counter()
        table = compute()
        seconds = time.perf_counter() - started
        counts = count_intruders(table, spectra.epsilons, [spectra.k]).set_index("epsilon")["n_intruders"]
        how = table.drop_duplicates("matrix")["computed_by"].value_counts()
        rows.append({"method": run.spec.method.label, "way": way, "seconds": seconds,
                     "computed": ", ".join(f"{count} by {name}" for name, count in how.items()),
                     "n_intruders": counts[spectra.epsilon], "counts": canonical_json(counts.tolist())})
    return pd.DataFrame(rows)


def all_vectors(profile: Profile, seeds: Seeds = None, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Vector tables of the final weights of every run."""
    return collect(profile, seeds, lambda run: run_vectors(run, profile.spectra), experiments)


def accuracy_over_steps(profile: Profile, seeds: Seeds = None,
                        experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Test accuracy with its binomial standard error at each checkpoint of each run."""
    return collect(profile, seeds, lambda run: run.metrics(), experiments)


def last_steps(table: pd.DataFrame, by: tuple[str, ...] | list[str] = ("experiment", "run")) -> pd.DataFrame:
    """Of a table with one row per checkpoint, the row of each run's last step."""
    return table.loc[table.groupby(list(by))["step"].idxmax()]


def learnt(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table with ``seed``, ``run``, ``step``, ``accuracy``: the runs within 0.1 of their seed's best at the end.

    A run that did not learn its task has intruders and forgetting that say nothing about a method.
    """
    last = last_steps(table, by=["run"])
    best = last.groupby("seed")["accuracy"].transform("max")
    return table[table["run"].isin(last.loc[last["accuracy"] >= best - 0.1, "run"])]


def intruder_counts(profile: Profile, seeds: Seeds = None,
                    experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Intruders among the k leading vectors of all matrices, at each epsilon, with the run's final accuracy."""
    spectra = profile.spectra
    vectors = collect(profile, seeds, lambda run: run_vectors(run, spectra, k=spectra.k), experiments)
    counts = count_intruders(vectors, spectra.epsilons, [spectra.k], by=RUN_COLUMNS)
    return counts.merge(final_accuracy(profile, seeds, experiments), on="run")


def intruder_counts_by_k(profile: Profile, seeds: Seeds = None,
                         experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Intruders at the profile's epsilon against the fraction of each matrix's vectors that is examined."""
    vectors, spectra = all_vectors(profile, seeds, experiments), profile.spectra
    return count_intruders(vectors, [spectra.epsilon], spectra.k_fractions, by=RUN_COLUMNS)


def intruder_places(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Intruders by layer and matrix type at the profile's epsilon and k."""
    spectra = profile.spectra
    return count_intruders(all_vectors(profile, seeds, ("ranks",)), [spectra.epsilon], [spectra.k],
                           by=(*RUN_COLUMNS, "layer", "type"))


def intruder_growth(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Count and largest singular value of the intruders at every checkpoint, for full and the showcase rank.

    ``strongest_ratio`` is the largest singular value of any intruder over W0's largest, ``first_index`` the smallest
    index that an intruder reached, ``least_cosine`` the smallest maximal cosine among the k leading vectors.
    """
    spectra, rows = profile.spectra, []
    for run in experiment_runs(profile, "ranks", seeds):
        if run.spec.method.r not in (None, spectra.showcase_rank):
            continue
        for metric in run.metrics().to_dict("records"):
            leading = run_vectors(run, spectra, metric["step"], spectra.k)
            found = leading[leading["max_cosine"] < spectra.epsilon]
            ratio = found["singular_value"] / found["base_largest"]
            rows.append(identity(profile, "ranks", run) | {
                "step": metric["step"], "accuracy": metric["accuracy"], "n_intruders": len(found),
                "strongest_ratio": ratio.max(), "first_index": found["index"].min(),
                "least_cosine": leading["max_cosine"].min()})
    return pd.DataFrame(rows)


def intruder_trace(run: Run, spectra: Spectra) -> tuple[str, pd.DataFrame]:
    """The least pretrained-like of a run's leading vectors, followed back to the base (step 0).

    Returns
    -------
    tuple of str and DataFrame
        The matrix, and :func:`utils.spectra.trace_direction` with the accuracy at each checkpoint (NaN at step 0).
    """
    row = least_alike(run, spectra)
    name, base = row["matrix"], base_factors(run.base)[row["matrix"]]
    direction = thin_svd(run.tuned_matrices()[name]).u[:, int(row["index"]) - 1]
    steps = {0: run.base_matrices()[name]} | {step: run.tuned_matrices(step)[name] for step in run.steps}
    table = trace_direction(base, steps, direction).merge(run.metrics()[["step", "accuracy"]], on="step", how="left")
    return name, table.assign(method=run.spec.method.label, matrix=name, run=run.spec.key)


def random_controls(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Counts after random updates of the same Frobenius norm, matrix by matrix: full rank, and the run's own rank."""
    spectra, rows = profile.spectra, []
    for run in experiment_runs(profile, "ranks", seeds):
        ranks = {"random, full rank": None} | ({"random, rank r": run.spec.method.r} if run.spec.method.r else {})
        for control, rank in ranks.items():
            def compute(run: Run, rank=rank) -> pd.DataFrame:
                base = run.base_matrices()
                moved = random_updates(base, run.tuned_matrices(), rank=rank, seed=run.spec.seed)
                pairs = [Pair(name, lambda name=name: (base[name], moved[name])) for name in moved]
                return count_intruders(cosine_table(pairs, spectra, spectra.k), spectra.epsilons, [spectra.k])

            settings = {"version": 2, "k": spectra.k, "epsilons": spectra.epsilons}
            table = run.measured(f"control-rank-{rank or 'full'}", settings, compute)
            rows.append(with_identity(profile, "ranks", table).assign(control=control))
    return pd.concat(rows, ignore_index=True)


def update_sizes(profile: Profile, seeds: Seeds = None, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Relative norm and effective rank of each matrix's update, for every run."""
    def measure(run: Run) -> pd.DataFrame:
        return run.measured("updates", {"version": 1}, lambda run: update_table(
            run.base_matrices(), run.tuned_matrices(), run.factors()))

    return collect(profile, seeds, measure, experiments)


def forgetting(profile: Profile, seeds: Seeds = None, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Pseudo-loss of every run and of its base, with the final accuracy, the update's norm and the intruder count."""
    rows = []
    for experiment in experiments or profile.shown_experiments:
        for run in experiment_runs(profile, experiment, seeds):
            row = identity(profile, experiment, run)
            row["pseudo_loss"] = run_pseudo_loss(run, profile.pseudo_loss)
            row["base_pseudo_loss"] = base_pseudo_loss(run.base, profile.pseudo_loss)
            row["n_intruders"] = run_intruders(run, profile.spectra)
            rows.append(row)
    table = pd.DataFrame(rows).merge(final_accuracy(profile, seeds, experiments), on="run")
    norms = update_sizes(profile, seeds, experiments).groupby("run")["relative_norm"].mean().reset_index()
    return table.assign(forgetting=table["pseudo_loss"] - table["base_pseudo_loss"]).merge(norms, on="run")


def learning_rate_sweep(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """:func:`forgetting` over the learning-rate sweep."""
    return forgetting(profile, seeds, ("learning_rates",))


def run_pseudo_loss(run: Run, settings: PseudoLoss, step: int | None = None) -> float:
    """Pseudo-loss of a run at a step (the last by default) in nats per token; kept beside the run."""
    at = "" if step in (None, run.steps[-1]) else f"-{step:06d}"
    return corpus_loss(run.measured(f"pseudo_loss{at}", {"version": 1} | settings.model_dump(), lambda run: (
        model_pseudo_loss(run.base, run.masked_lm(step), settings))))


@lru_cache(maxsize=4)
def base_pseudo_loss(base: BaseModel, settings: PseudoLoss) -> float:
    """Pseudo-loss of the untouched base, nats per token."""
    import torch
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(base.folder, dtype=torch.float32).eval()
    return corpus_loss(model_pseudo_loss(base, model, settings))


def model_pseudo_loss(base: BaseModel, model, settings: PseudoLoss) -> pd.DataFrame:
    """Pseudo-loss of each passage of the settings' text, for a masked-LM on a base's tokenizer."""
    limit_threads()
    texts = pretraining_passages(settings.corpus, settings.passages)
    return pseudo_loss(model.to(device_name()), tokenizer_of(base.folder), texts, tokens=settings.tokens)


def identity(profile: Profile, experiment: str, run: Run) -> dict:
    """The columns that say which run of which experiment a row is about."""
    return {"profile": profile.profile, "experiment": experiment} | run.spec.columns


def with_identity(profile: Profile, experiment: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table of one run with profile and experiment as its first columns."""
    return pd.DataFrame({"profile": profile.profile, "experiment": experiment}, index=table.index).join(table)


def collect(profile: Profile, seeds: Seeds, measure: Callable[[Run], pd.DataFrame],
            experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """One tidy table of what `measure` returns for every run of the experiments, the main ones by default."""
    parts = [with_identity(profile, experiment, measure(run))
             for experiment in experiments or profile.shown_experiments
             for run in experiment_runs(profile, experiment, seeds)]
    return pd.concat(parts, ignore_index=True)


def final_accuracy(profile: Profile, seeds: Seeds, experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Each run's accuracy at its last step, with its binomial standard error, by run."""
    last = last_steps(accuracy_over_steps(profile, seeds, experiments), by=["run"])
    return last[["run", "accuracy", "accuracy_se"]].reset_index(drop=True)
