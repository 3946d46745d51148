"""The rules that judge the second paper's claims; of the same form as those of :mod:`utils.reporting.rules`."""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import by_seed, rank_of


@rule
def less_diverse(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean of `column` over problems, base over LoRA over full: the smaller of the two differences."""
    base = _diversity(table[table["method"] == "base"], rule)

    def effect(part: pd.DataFrame) -> float:
        lora, full = _diversity(part[part["r"] > 0], rule), _diversity(part[part["r"] == 0], rule)
        return float(np.min([base - lora, lora - full]))  # NaN where one of them is

    return by_seed(table[table["method"] != "base"], effect, None)


@rule
def more_alike(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The same for a column that is larger where texts resemble each other."""
    return less_diverse(table.assign(**{rule["column"]: -table[rule["column"]]}), rule)


def _diversity(part: pd.DataFrame, rule: dict) -> float:
    at = part[np.isclose(part["temperature"], rule["temperature"]) & (part["outcome"] == rule["outcome"])]
    return float(at[rule["column"]].mean())


@rule
def passes_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """pass@k of full fine-tuning minus LoRA's at `k` and the given temperature."""
    at = table[np.isclose(table["temperature"], rule["temperature"]) & (table["k"] == rule["k"])]
    rank = rank_of(at, rule)

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("r")["pass_at_k"].mean()
        return values.loc[0] - values.loc[rank]

    return by_seed(at[at["method"] != "base"], effect, None)
