"""The rules that judge the second paper's claims; of the same form as those of :mod:`utils.reporting.rules`."""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, rank_of


@rule(needs=("method", "r", "seed", "{column}"))
def less_diverse(table: pd.DataFrame, *, column, temperature, outcome) -> Effects:
    """Mean of `column` over problems, base over LoRA over full: the smaller of the two differences."""
    base = _diversity(table[table["method"] == "base"], column, temperature, outcome)

    def effect(part: pd.DataFrame) -> float:
        lora, full = (_diversity(rows, column, temperature, outcome) for rows in (part[part["r"] > 0], part[part["r"] == 0]))
        return float(np.min([base - lora, lora - full]))  # NaN where one of them is

    return by_seed(table[table["method"] != "base"], effect, outcome=None)


@rule(needs=("seed", "{column}"))
def more_alike(table: pd.DataFrame, *, column, temperature, outcome) -> Effects:
    """The same for a column that is larger where texts resemble each other."""
    return less_diverse(table.assign(**{column: -table[column]}), column=column, temperature=temperature,
                        outcome=outcome)


def _diversity(part: pd.DataFrame, column: str, temperature: float, outcome: str) -> float:
    at = part[np.isclose(part["temperature"], temperature) & (part["outcome"] == outcome)]
    return float(at[column].mean())


@rule(needs=("method", "r", "seed"))
def passes_more(table: pd.DataFrame, *, temperature, k, rank) -> Effects:
    """pass@k of full fine-tuning minus LoRA's at `k` and the given temperature."""
    at = table[np.isclose(table["temperature"], temperature) & (table["k"] == k)]
    rank = rank_of(at, rank)

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("r")["pass_at_k"].mean()
        return values.loc[0] - values.loc[rank]

    return by_seed(at[at["method"] != "base"], effect, outcome=None)
