"""Accuracy at every checkpoint of every run."""

import pandas as pd

from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import Seeds, checkpoint_metrics


@measurement
def accuracy_over_steps(profile: Profile, seeds: Seeds = None,
                        experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Test accuracy with its binomial standard error at each checkpoint of each run."""
    return checkpoint_metrics(profile, seeds, experiments)
