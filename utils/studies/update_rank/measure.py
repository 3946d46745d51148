"""The rank of what training changed (notebook 12): spectra of updates by layer, type and duration."""

import pandas as pd

from utils.evaluation.memory import memory_table
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    experiment_runs,
    identity,
    run_intruders,
    with_identity,
    with_places,
)
from utils.spectra import count_intruders, vector_table
from utils.spectra.controls import random_updates
from utils.spectra.perturbation import bf16_effect, deviation_sweep, update_ranks
from utils.studies.update_rank.published import published_memory
from utils.training.store import Run

VERSION = 1
EXPERIMENTS = ("code", "mathematics", "instruction")


@measurement(columns=(*RUN_COLUMNS, "matrix", "rows", "columns", "update_rank", "null_rank", "ratio", "layer",
                      "type", "step", "train_tokens", "base_rank", "tuned_rank"), runs=EXPERIMENTS)
def rank_dynamics(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Rank for 90 % of each update's squared spectrum, by matrix and duration, beside the Gaussian null (Fig 6)."""
    parts = []
    for experiment in EXPERIMENTS:
        for run in experiment_runs(profile, experiment, seeds):
            for step in run.steps if run.spec.durations else run.steps[-1:]:
                table = run.measured(f"update_ranks-{step:06d}", {"version": VERSION},
                                     lambda run, step=step: _ranks(run, step))
                parts.append(with_identity(profile, experiment, with_places(table)).assign(
                    step=step, train_tokens=step * run.spec.batch_size * run.spec.gradient_accumulation
                    * run.spec.sizes.max_length))
    return pd.concat(parts, ignore_index=True)


def _ranks(run: Run, step: int) -> pd.DataFrame:
    # The weights' own ranks take two SVDs each: at the end of a curve alone.
    whole = run.spec.durations is not None and step == run.steps[-1]
    return update_ranks(run.base_matrices(), run.tuned_matrices(step), run.factors(step), update_only=not whole)


@measurement(columns=(*RUN_COLUMNS, "matrix", "rows", "columns", "null_rank", "update_rank", "tuned_rounded_rank",
                      "both_rounded_rank", "noise", "both_noise", "layer", "type", "step"), runs=("code",))
def rounding_effects(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """What bfloat16 rounding of the tuned weights does to the update's rank, for full fine-tuning on code."""
    parts = []
    for run in experiment_runs(profile, "code", seeds):
        if run.spec.method.kind != "full":
            continue
        for step in sorted({run.steps[0], run.steps[-1]}):
            table = run.measured(f"rounding-{step:06d}", {"version": VERSION}, lambda run, step=step: bf16_effect(
                run.base_matrices(), run.tuned_matrices(step)))
            parts.append(with_identity(profile, "code", with_places(table)).assign(step=step))
    return pd.concat(parts, ignore_index=True)


@measurement(columns=(*RUN_COLUMNS, "matrix", "rows", "columns", "update_rank", "null_rank", "ratio", "layer",
                      "type"), runs=("code",))
def random_ranks(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """The control of Fig 6: a random update of the same norm, matrix by matrix, and its rank for 90 %."""
    parts = []
    for run in experiment_runs(profile, "code", seeds):
        if run.spec.method.kind == "full":
            moved = random_updates(run.base_matrices(), run.tuned_matrices(), rank=None, seed=run.spec.seed)
            table = with_places(update_ranks(run.base_matrices(), moved, None, update_only=True))
            parts.append(pd.DataFrame(identity(profile, "code", run), index=table.index).join(table))
    return pd.concat(parts, ignore_index=True)


def beside_intruders(profile: Profile, seeds: tuple[int, ...], ranks: pd.DataFrame) -> pd.DataFrame:
    """Rank, intruders and relative norm of the first seed's runs on code, and of noise of full fine-tuning's norm.

    Parameters
    ----------
    ranks : pandas.DataFrame
        :func:`rank_dynamics`: ``run``, ``step``, ``update_rank``.
    """
    rows, epsilon, k = [], profile.spectra.epsilon, profile.spectra.k
    random = random_ranks(profile, seeds[:1])["update_rank"].mean()
    for run in experiment_runs(profile, "code", seeds[:1]):
        base, tuned, label = run.base_matrices(), run.tuned_matrices(), run.spec.method.label
        size = sum(((tuned[key] - base[key]).norm() / base[key].norm()).item() for key in base) / len(base)
        own = ranks[(ranks["run"] == run.spec.key) & (ranks["step"] == run.steps[-1])]
        rows.append((label, own["update_rank"].mean(), run_intruders(run, profile.spectra), size))
        if run.spec.method.kind == "full":
            moved = vector_table(base, random_updates(base, tuned, rank=None, seed=run.spec.seed))
            rows.append(("random, full's norm", random, count_intruders(moved, [epsilon], [k])["n_intruders"].item(),
                         size))
    return pd.DataFrame(rows, columns=["update", "mean rank", f"intruders, epsilon {epsilon}", "mean |update| / |W0|"])


@measurement(columns=("scale", "deviation", "seed", "profile", "experiment"))
def toy_deviations(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Mean shift of the singular values of a Gaussian matrix by a scaled second one, by scale (Fig S8b)."""
    parts = [deviation_sweep(seed=seed).assign(seed=seed) for seed in seeds or profile.seeds]
    return pd.concat([part.assign(profile=profile.profile, experiment="toy") for part in parts], ignore_index=True)


@measurement(columns=("table", "model", "parameters_billion", "method", "gpus", "gigabytes_published", "gigabytes",
                      "agrees", "seed", "profile", "experiment"), published=published_memory)
def memory_formulas(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """The published cells of Tables S14 to S16 beside the formula's; the printed decimals round or cut off."""
    published = published_memory()
    sizes = published.drop_duplicates("model").set_index("model")["parameters_billion"].to_dict()
    ours = memory_table(sizes, sorted(published["gpus"].unique()))
    keys = ["model", "method", "gpus"]
    both = published.merge(ours[[*keys, "gigabytes"]], on=keys, suffixes=("_published", ""))
    unit = both["gigabytes_published"].map(lambda value: 10.0 ** -len(f"{value:g}".partition(".")[2]))
    return both.assign(agrees=(both["gigabytes"] - both["gigabytes_published"]).abs() < unit - 1e-9, seed=0,
                       profile=profile.profile, experiment="formula")
