"""Accuracy at every checkpoint of every run."""

import pandas as pd

from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, checkpoint_metrics
from utils.studies.accuracy.published import paper_accuracies
from utils.training.wanted import SHOWN


@measurement(columns=(*RUN_COLUMNS, "step", "train_seconds", "accuracy", "accuracy_se", "n"),
             published=paper_accuracies, runs=(SHOWN,))
def accuracy_over_steps(profile: Profile, seeds: Seeds = None,
                        experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Test accuracy with its binomial standard error at each checkpoint of each run."""
    return checkpoint_metrics(profile, seeds, experiments)
