"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed


@rule(needs=("lora_alpha", "r", "seed", "{column}"))
def summary_above_full(table: pd.DataFrame, *, rank, column, alpha=None, beside_alpha=None) -> Effects:
    """`column` of LoRA at one rank (and alpha) minus another's: full fine-tuning's, or that of `beside_alpha`."""
    def effect(part: pd.DataFrame) -> float:
        chosen, scaled = part[part["r"] == rank], 2 * rank if alpha is None else alpha
        if beside_alpha is not None:
            by_alpha = chosen.set_index("lora_alpha")[column]
            return by_alpha.loc[scaled] - by_alpha.loc[beside_alpha]
        chosen = chosen[chosen["lora_alpha"] == scaled]
        return chosen[column].iloc[0] - part[part["r"] == 0][column].iloc[0]

    return by_seed(table, effect, outcome=None)


@rule(needs=("lora_alpha", "r", "seed"))
def accumulates(table: pd.DataFrame, *, rank) -> Effects:
    """Count after the last stage minus after the first, at one rank; less full's same difference, where that rises."""
    def effect(part: pd.DataFrame) -> float:
        def rise(rows: pd.DataFrame) -> float:
            ordered = rows.sort_values("stage")["n_intruders"]
            return ordered.iloc[-1] - ordered.iloc[0]

        lora = part[(part["r"] == rank) & (part["lora_alpha"] == 2 * rank)]
        return rise(lora) - max(0, rise(part[part["r"] == 0]))

    return by_seed(table, effect, outcome=None)
