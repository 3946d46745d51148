"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row


@rule(needs=("r", "seed", "{column}"))
def lora_minus_full(table: pd.DataFrame, *, column, sign=1, least=0.0) -> Effects:
    """`column` of the showcase LoRA run minus full fine-tuning's, times `sign`, less `least`."""
    def effect(part: pd.DataFrame) -> float:
        difference = part[part["r"] > 0][column].mean() - full_row(part)[column]
        return sign * difference - least

    return by_seed(table, effect, outcome=None, experiment="ranks")


@rule(needs=("seed",))
def lora_minus_full_window(table: pd.DataFrame, *, width) -> Effects:
    """Intruders that are left at a window width: LoRA's minus full fine-tuning's."""
    return lora_minus_full(table[table["width"] == width], column="n_intruders")


@rule(needs=("index", "max_cosine", "ratio", "seed"))
def planted_on_top(table: pd.DataFrame, *, epsilon) -> Effects:
    """Above the largest singular value the planted direction has index 1 and lies below epsilon; margin to it."""
    at = table[table["ratio"] > 1]
    return by_seed(at, lambda part: epsilon - part["max_cosine"].max() if (part["index"] == 1).all() else -1.0, outcome=None, experiment="ranks")
