"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import by_seed


@rule
def summary_above_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` of LoRA at one rank (and alpha) minus another's: full fine-tuning's, or that of `beside_alpha`."""
    def effect(part: pd.DataFrame) -> float:
        chosen = part[part["r"] == rule["rank"]]
        if "beside_alpha" in rule:
            by_alpha = chosen.set_index("lora_alpha")[rule["column"]]
            return by_alpha.loc[rule["alpha"]] - by_alpha.loc[rule["beside_alpha"]]
        chosen = chosen[chosen["lora_alpha"] == rule.get("alpha", 2 * rule["rank"])]
        return chosen[rule["column"]].iloc[0] - part[part["r"] == 0][rule["column"]].iloc[0]

    return by_seed(table, effect, None)


@rule
def accumulates(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Count after the last stage minus after the first, at one rank; less full's same difference, where that rises."""
    def effect(part: pd.DataFrame) -> float:
        def rise(rows: pd.DataFrame) -> float:
            ordered = rows.sort_values("stage")["n_intruders"]
            return ordered.iloc[-1] - ordered.iloc[0]

        lora = part[(part["r"] == rule["rank"]) & (part["lora_alpha"] == 2 * rule["rank"])]
        return rise(lora) - max(0, rise(part[part["r"] == 0]))

    return by_seed(table, effect, None)
