"""The rules of the heat-maps: what LoRA's leading vectors are like beside full fine-tuning's, in one matrix each."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row, rows_where


@rule(needs=("experiment", "seed", "method", "r", "{column}"))
def lora_minus_full(table: pd.DataFrame, *, column: str) -> Effects:
    """`column` of the showcase LoRA run minus full fine-tuning's."""
    def effect(part: pd.DataFrame) -> float:
        return rows_where(part, method_kind="lora")[column].mean() - full_row(part)[column]

    return by_seed(table, effect, outcome=column, experiment="ranks")


@rule(needs=("experiment", "seed", "method", "r", "width", "n_intruders"))
def lora_minus_full_window(table: pd.DataFrame, *, width: int) -> Effects:
    """Intruders that are left at a window width: LoRA's minus full fine-tuning's."""
    return lora_minus_full(rows_where(table, width=width), column="n_intruders")


@rule(needs=("experiment", "seed", "ratio", "index", "max_cosine"))
def planted_on_top(table: pd.DataFrame, *, epsilon: float) -> Effects:
    """Share of the strengths above W0's largest singular value at which the planted direction leads and is foreign."""
    at = table[table["ratio"] > 1]
    return by_seed(at, lambda part: ((part["index"] == 1) & (part["max_cosine"] < epsilon)).mean(),
                   outcome="max_cosine", experiment="ranks")
