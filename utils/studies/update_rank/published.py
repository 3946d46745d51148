"""The paper's memory by formula: Tables S14 to S16 of "LoRA Learns Less and Forgets Less" (arXiv 2405.09673v2)."""

import pandas as pd

from utils.paths import PAPER


def published_memory() -> pd.DataFrame:
    """Calculated memory of weights, gradients and optimiser states.

    Columns ``table``, ``model``, ``parameters_billion``, ``method`` ("full, Adam", "LoRA, Lion", …), ``gpus``,
    ``gigabytes`` of one GPU. :func:`utils.evaluation.memory.memory_table` computes them anew.
    """
    return pd.read_csv(PAPER / "learns_less_memory.csv")
