"""Average forgetting of every chain beside what its test rows alone would make of a model that forgets nothing."""

import numpy as np
import pandas as pd

from utils.evaluation.continual import null_forgetting, sequence_summary
from utils.reporting.measured import Measured

CHAIN = ["method", "method_kind", "r", "lora_alpha", "learning_rate", "seed"]


def forgetting_beside_noise(accuracies: Measured) -> pd.DataFrame:
    """What each chain lost through the sequence, and what noise alone would give.

    Parameters
    ----------
    accuracies : Measured
        ``sequence_accuracies``; the reference's chains where there are any.

    Returns
    -------
    pandas.DataFrame
        One row per chain: its columns, ``chain`` (its name in a table), ``stages``, ``after`` (mean accuracy of the
        tasks, each right after its own stage), ``change`` (backward transfer), ``average_forgetting``, and of
        :func:`utils.evaluation.continual.null_forgetting` the mean ``null_mean`` and the 95th percentile ``null_95``.
    """
    rows, tested = [], accuracies.best_profile.continual.probe_test_rows
    for keys, part in accuracies.best.groupby(CHAIN, sort=False):
        matrix = part.pivot(index="stage", columns="tested_place", values="accuracy").sort_index().to_numpy()
        found, stages = sequence_summary(matrix), len(matrix) - 1
        since = np.where(np.tri(stages, dtype=bool), matrix[1:], np.nan)  # of each task, from its own stage on
        noise = null_forgetting(np.nanmean(since, axis=0), rows=tested, stages=stages)
        rows.append(dict(zip(CHAIN, keys, strict=True)) | {
            "stages": stages, "after": since.diagonal().mean(), "change": found["backward_transfer"],
            "average_forgetting": found["average_forgetting"], "null_mean": noise.mean(),
            "null_95": np.quantile(noise, 0.95)})
    table = pd.DataFrame(rows)
    return table.assign(chain=chain_names(table))


def chain_names(table: pd.DataFrame) -> pd.Series:
    """A chain's method with its alpha, which tells chains of one rank apart."""
    return table["method"].where(table["method_kind"] == "full",
                                 table["method"] + ", alpha " + table["lora_alpha"].astype(str))
