"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row, with_every
from utils.reporting.selection import last_steps


@rule(needs=("experiment", "r", "seed"))
def accuracy_within(table: pd.DataFrame, *, tolerance) -> Effects:
    """Tolerance minus the largest distance of any LoRA run from full fine-tuning, at the last step."""
    last = last_steps(table[table["experiment"] == "ranks"])
    return by_seed(last, lambda part: tolerance - (
        with_every(part, last, "r")[part["r"] > 0]["accuracy"] - full_row(part)["accuracy"]).abs().max(), outcome=None, experiment="ranks")
