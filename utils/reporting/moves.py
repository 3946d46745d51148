"""What moves the count of intruder dimensions: rank, alpha, learning rate, amount of data, the variant of LoRA."""

import pandas as pd

from utils.profiles import Profile
from utils.reporting.measure import Seeds, base_pseudo_loss, experiment_runs, forgetting, identity, intruder_counts, \
    intruder_counts_by_k, run_intruders, run_pseudo_loss, update_sizes, with_places
from utils.training.store import Run

MOVES = ("learning_rates", "rule", "fixed_rate", "alpha_8", "matched_alpha", "rank_stabilised")


def what_moves(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Count, accuracy, forgetting and size of the update for every run of notebook 05."""
    return forgetting(profile, seeds, MOVES)


def sweep_over_steps(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 7: count, accuracy and forgetting at every checkpoint, for the showcase rank's rates and full fine-tuning.

    Full fine-tuning is taken at its first rate in the profile, its usual one.
    """
    spectra, rows = profile.spectra, []
    runs = experiment_runs(profile, "learning_rates", seeds)
    usual = next((run.spec.learning_rate for run in runs if run.spec.method.r is None), None)
    for run in runs:
        if run.spec.method.r != spectra.showcase_rank and (run.spec.method.r or run.spec.learning_rate != usual):
            continue
        before = base_pseudo_loss(run.base, profile.pseudo_loss)
        for metric in run.metrics().to_dict("records"):
            loss = run_pseudo_loss(run, profile.pseudo_loss, metric["step"])
            rows.append(identity(profile, "learning_rates", run) | {
                "step": metric["step"], "accuracy": metric["accuracy"], "pseudo_loss": loss,
                "forgetting": loss - before, "n_intruders": run_intruders(run, spectra, metric["step"])})
    return pd.DataFrame(rows)


def alpha_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 19, top: count against epsilon under alpha = 2r (the rule) and alpha = 8, with accuracy."""
    return intruder_counts(profile, seeds, ("rule", "alpha_8"))


def alpha_counts_by_k(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 19, bottom: count at the profile's epsilon against the share of vectors examined, under both alphas."""
    return intruder_counts_by_k(profile, seeds, ("rule", "alpha_8"))


def data_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 16, left: count against epsilon by the number of training rows seen; the main runs are the largest."""
    return _with_rows(intruder_counts(profile, seeds, ("data", "ranks")), profile, seeds)


def data_counts_by_k(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 16, right: count against the share of vectors examined, by the number of training rows seen."""
    return _with_rows(intruder_counts_by_k(profile, seeds, ("data", "ranks")), profile, seeds)


def variant_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Figs 10 and 23: count against epsilon for LoRA's variants, with accuracy."""
    return intruder_counts(profile, seeds, ("variants",))


def update_ranks(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 14: effective rank of every matrix's update, under alpha = 2r (main runs and the rule) and alpha = 8."""
    return with_places(update_sizes(profile, seeds, ("ranks", "rule", "alpha_8"))).drop(columns=["base_norm"])


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table with ``method``, ``learning_rate``, ``seed`` and ``accuracy``: each method at its best mean accuracy.

    A comparison of methods at one rate each says more about the rates than about the methods. Rates are compared over
    the seeds that all of a method's rates have: one made with the first seed alone wins or loses on that seed. Where
    they share none, those with the most seeds are compared; of equal ones the smaller rate is taken.
    """
    best = {method: _best_rate(part) for method, part in table.groupby("method", sort=False)}
    return table[table["learning_rate"] == table["method"].map(best)]


def _best_rate(table: pd.DataFrame) -> float:
    seeds = table.groupby("learning_rate")["seed"].agg(set)
    shared = set.intersection(*seeds)
    if not shared:
        most = seeds.map(len)
        table = table[table["learning_rate"].isin(most.index[most == most.max()])]
    means = (table[table["seed"].isin(shared)] if shared else table).groupby("learning_rate")["accuracy"].mean()
    return means.idxmax()


def _with_rows(table: pd.DataFrame, profile: Profile, seeds: Seeds) -> pd.DataFrame:
    """Only the methods (rank and rate) of experiment ``data``, with ``train_rows``: how many rows a run saw."""
    subsets, main = ({run.spec.key: run for run in experiment_runs(profile, name, seeds)} for name in ("data", "ranks"))
    methods = {(run.spec.method, run.spec.learning_rate) for run in subsets.values()}
    seen = {key: _rows_seen(run) for key, run in (main | subsets).items()
            if (run.spec.method, run.spec.learning_rate) in methods}
    return table[table["run"].isin(seen)].assign(train_rows=lambda part: part["run"].map(seen))


def _rows_seen(run: Run) -> int:
    """Different training rows that a run saw: never more than its set has."""
    taken = run.result["measured"]["steps"] * run.spec.batch_size
    return min(taken, run.spec.sizes.train_rows or run.result["run"].get("train_rows", taken))
