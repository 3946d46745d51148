"""The rules that judge notebook 15's claims; of the same form as those of :mod:`utils.reporting.rules`."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import by_seed


@rule
def predicted_within(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`tolerance` minus the largest relative distance of predicted from measured memory, where measured."""
    known = table[table["peak_gib"].notna()]
    return by_seed(known, lambda part: rule["tolerance"] - (part["ratio"] - 1).abs().max(), None)


@rule
def lora_needs_less(table: pd.DataFrame, rule: dict) -> pd.Series:
    """1 - `least` minus measured memory of LoRA over full fine-tuning's, both with AdamW and without checkpointing."""
    at = table[(table["optimiser"] == "adamw") & ~table["checkpointing"].astype(bool)]

    def effect(part: pd.DataFrame) -> float:
        peak = part.set_index("method")["peak_gib"]
        return 1 - rule["least"] - peak.loc["lora"] / peak.loc["full"]

    return by_seed(at, effect, None)


@rule
def full_forgets_least_matched(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Least forgetting among the others that are no less accurate than full (`methods`, or all) minus full's."""
    def effect(part: pd.DataFrame) -> float:
        full = part[part["method"] == "full"].iloc[0]
        others = part[(part["method"] != "full") & (part["accuracy"] >= full["accuracy"])]
        if "methods" in rule:
            others = others[others["method"].isin(rule["methods"])]
        return others["forgetting"].min() - full["forgetting"]

    return by_seed(table, effect, None)


@rule
def no_intruders_from(table: pd.DataFrame, rule: dict) -> pd.Series:
    """0.5 minus the count of one `way` of compression: positive for exactly zero."""
    return by_seed(table[table["way"] == rule["way"]], lambda part: 0.5 - part["n_intruders"].iloc[0], None)


@rule
def shots_cost_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Tokens with the most examples over tokens with none minus `least`, the smaller of all tasks."""
    most = table[table["shots"] == table["shots"].max()]
    return by_seed(most, lambda part: part["token_ratio"].min() - rule["least"], None)
