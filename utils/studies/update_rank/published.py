"""What "LoRA Learns Less and Forgets Less" published, and learning set against forgetting, the paper's or our own.

The numbers are those of the paper's supplementary Tables S1-S16 (Biderman et al., TMLR 2024, arXiv 2405.09673v2): one
trained model per row, without a spread. A table for the functions on the trade-off has the columns ``dataset``,
``method``, ``duration``, ``learning`` and ``remembering``, of both of which more is better, and ``seed`` where there
are several.
"""

import pandas as pd

from utils.studies.learning.published import _read


def published_memory() -> pd.DataFrame:
    """Tables S14-S16 of arXiv 2405.09673v2: calculated memory of weights, gradients and optimiser states.

    Columns ``table``, ``model``, ``parameters_billion``, ``method`` ("full, Adam", "LoRA, Lion", …), ``gpus``,
    ``gigabytes`` of one GPU. :func:`utils.evaluation.memory.memory_table` computes them anew.
    """
    return _read("learns_less_memory.csv").copy()
