"""What notebook 05 measures: count, accuracy, forgetting and the update, over rates, ranks and alphas."""

import pandas as pd

from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    base_pseudo_loss,
    experiment_runs,
    identity,
    run_intruders,
    run_pseudo_loss,
    update_sizes,
    with_places,
)
from utils.studies.forgetting.measure import forgetting
from utils.studies.intruders.measure import intruder_counts, intruder_counts_by_k
from utils.studies.what_moves.published import effective_rank_levels, rate_correlations

MOVES = ("learning_rates", "rule", "fixed_rate", "alpha_8", "matched_alpha", "rank_stabilised")


@measurement(columns=(*RUN_COLUMNS, "pseudo_loss", "base_pseudo_loss", "n_intruders", "accuracy", "accuracy_se",
                      "forgetting", "relative_norm"), runs=MOVES)
def what_moves(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Count, accuracy, forgetting and size of the update for every run of notebook 05."""
    return forgetting(profile, seeds, MOVES)


@measurement(columns=(*RUN_COLUMNS, "step", "accuracy", "pseudo_loss", "forgetting", "n_intruders"),
             published=rate_correlations, runs=("learning_rates",))
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


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders", "accuracy", "accuracy_se"), runs=("rule", "alpha_8"))
def alpha_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 19, top: count against epsilon under alpha = 2r (the rule) and alpha = 8, with accuracy."""
    return intruder_counts(profile, seeds, ("rule", "alpha_8"))


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders"), runs=("rule", "alpha_8"))
def alpha_counts_by_k(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 19, bottom: count at the profile's epsilon against the share of vectors examined, under both alphas."""
    return intruder_counts_by_k(profile, seeds, ("rule", "alpha_8"))


@measurement(columns=(*RUN_COLUMNS, "matrix", "update_norm", "relative_norm", "effective_rank", "layer", "type"),
             published=effective_rank_levels, runs=("ranks", "rule", "alpha_8"))
def update_ranks(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 14: effective rank of every matrix's update, under alpha = 2r (main runs and the rule) and alpha = 8."""
    return with_places(update_sizes(profile, seeds, ("ranks", "rule", "alpha_8"))).drop(columns=["base_norm"])
