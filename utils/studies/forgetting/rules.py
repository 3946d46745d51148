"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row, with_every


@rule(needs=("experiment", "r", "seed"))
def full_forgets_more(table: pd.DataFrame, *, max_rank) -> Effects:
    """Full's pseudo-loss minus the largest one of LoRA up to the given rank."""
    at = table[(table["experiment"] == "ranks") & (table["r"] <= max_rank)]
    return by_seed(at, lambda part: full_row(part)["pseudo_loss"] - with_every(part, at, "r")[
        part["r"] > 0]["pseudo_loss"].max(), outcome=None, experiment="ranks")


@rule(needs=("r", "seed"))
def u_shape(table: pd.DataFrame, *, low_rank) -> Effects:
    """The smaller of: r = 1 minus the low rank, and the highest rank minus the low rank, in pseudo-loss."""
    width = table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        lora = part.set_index("r")["pseudo_loss"]
        return min(lora.loc[1], lora.loc[width]) - lora.loc[low_rank]

    return by_seed(table, effect, outcome=None, experiment="ranks")
