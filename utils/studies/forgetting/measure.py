"""Forgetting of every run: the rise of its pseudo-loss over its base's, with accuracy, count and norm beside it."""

import pandas as pd

from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    base_pseudo_loss,
    experiment_runs,
    final_accuracy,
    identity,
    run_intruders,
    run_pseudo_loss,
    update_sizes,
)
from utils.training.wanted import SHOWN


@measurement(columns=(*RUN_COLUMNS, "pseudo_loss", "base_pseudo_loss", "n_intruders", "accuracy", "accuracy_se",
                      "forgetting", "relative_norm"), runs=(SHOWN,))
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


@measurement(columns=(*RUN_COLUMNS, "pseudo_loss", "base_pseudo_loss", "n_intruders", "accuracy", "accuracy_se",
                      "forgetting", "relative_norm"), runs=("learning_rates",))
def learning_rate_sweep(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """:func:`forgetting` over the learning-rate sweep."""
    return forgetting(profile, seeds, ("learning_rates",))
