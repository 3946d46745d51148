"""The rule that judges claims about released checkpoints: a group of them stands where elsewhere a seed does."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects


@rule(needs=("group", "method", "epsilon", "n_intruders"))
def released_lora_above_full(table: pd.DataFrame, *, epsilon: float) -> Effects:
    """Per group of released models: the smallest count of a LoRA model minus full fine-tuning's largest."""
    at = table[table["epsilon"] == epsilon]
    full = at["method"].str.startswith("full")
    smallest, largest = at[~full].groupby("group")["n_intruders"].min(), at[full].groupby("group")["n_intruders"].max()
    return Effects((smallest - largest).astype(float), at["n_intruders"].to_numpy(dtype=float), "n_intruders")
