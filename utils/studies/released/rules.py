"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule


@rule
def released_lora_above_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Per group of released models: the smallest count of a LoRA model minus full fine-tuning's largest."""
    at = table[table["epsilon"] == rule["epsilon"]]
    full = at["method"].str.startswith("full")
    return at[~full].groupby("group")["n_intruders"].min() - at[full].groupby("group")["n_intruders"].max()
