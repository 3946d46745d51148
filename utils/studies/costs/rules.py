"""The rules that judge notebook 15's claims; of the same form as those of :mod:`utils.reporting.rules`."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed


@rule(needs=("peak_gib", "ratio", "seed"))
def predicted_within(table: pd.DataFrame, *, tolerance) -> Effects:
    """`tolerance` minus the largest relative distance of predicted from measured memory, where measured."""
    known = table[table["peak_gib"].notna()]
    return by_seed(known, lambda part: tolerance - (part["ratio"] - 1).abs().max(), outcome=None)


@rule(needs=("checkpointing", "method", "optimiser", "seed"))
def lora_needs_less(table: pd.DataFrame, *, least) -> Effects:
    """1 - `least` minus measured memory of LoRA over full fine-tuning's, both with AdamW and without checkpointing."""
    at = table[(table["optimiser"] == "adamw") & ~table["checkpointing"].astype(bool)]

    def effect(part: pd.DataFrame) -> float:
        peak = part.set_index("method")["peak_gib"]
        return 1 - least - peak.loc["lora"] / peak.loc["full"]

    return by_seed(at, effect, outcome=None)


@rule(needs=("accuracy", "forgetting", "method", "seed"))
def full_forgets_least_matched(table: pd.DataFrame, *, methods=None) -> Effects:
    """Least forgetting among the others that are no less accurate than full (`methods`, or all) minus full's."""
    def effect(part: pd.DataFrame) -> float:
        full = part[part["method"] == "full"].iloc[0]
        others = part[(part["method"] != "full") & (part["accuracy"] >= full["accuracy"])]
        if methods is not None:
            others = others[others["method"].isin(methods)]
        return others["forgetting"].min() - full["forgetting"]

    return by_seed(table, effect, outcome=None)


@rule(needs=("n_intruders", "seed"))
def no_intruders_from(table: pd.DataFrame, *, way) -> Effects:
    """0.5 minus the count of one `way` of compression: positive for exactly zero."""
    return by_seed(table[table["way"] == way], lambda part: 0.5 - part["n_intruders"].iloc[0], outcome=None)


@rule(needs=("seed", "shots", "token_ratio"))
def shots_cost_more(table: pd.DataFrame, *, least) -> Effects:
    """Tokens with the most examples over tokens with none minus `least`, the smaller of all tasks."""
    most = table[table["shots"] == table["shots"].max()]
    return by_seed(most, lambda part: part["token_ratio"].min() - least, outcome=None)
