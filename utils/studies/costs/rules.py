"""The rules that judge notebook 15's claims; its tables have one seed each, for nothing in them is drawn anew."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, at_least, by_seed, rows_where


@rule(needs=("seed", "peak_gib", "ratio"))
def largest_prediction_error(table: pd.DataFrame) -> Effects:
    """Largest relative distance of predicted from measured memory, over the recipes that could be measured."""
    known = table[table["peak_gib"].notna()]
    return by_seed(known, lambda part: (part["ratio"] - 1).abs().max(), outcome="ratio")


@rule(needs=("seed", "method", "optimiser", "checkpointing", "peak_gib"))
def memory_saved_by_lora(table: pd.DataFrame) -> Effects:
    """Share of full fine-tuning's measured memory that LoRA saves, both with AdamW and without checkpointing."""
    plain = (table["optimiser"] == "adamw") & ~table["checkpointing"].astype(bool)
    known = table[plain & table["peak_gib"].notna()]

    def effect(part: pd.DataFrame) -> float:
        lora, full = (rows_where(part, method=method)["peak_gib"].iloc[0] for method in ("lora", "full"))
        return 1 - lora / full

    return by_seed(known, effect, outcome="peak_gib")


@rule(needs=("seed", "method", "accuracy", "forgetting"))
def least_forgetting_beyond_full(table: pd.DataFrame, *, methods: list[str] | None = None) -> Effects:
    """Least forgetting among the others that are no less accurate than full (`methods`, or all) minus full's."""
    def effect(part: pd.DataFrame) -> float:
        full = rows_where(part, method="full").iloc[0]
        others = part[(part["method"] != "full") & (part["accuracy"] >= full["accuracy"])]
        others = others if methods is None else others[others["method"].isin(methods)]
        at_least(len(others), 1, "methods that are no less accurate than full fine-tuning")
        return others["forgetting"].min() - full["forgetting"]

    return by_seed(table, effect, outcome="forgetting")


@rule(needs=("seed", "way", "n_intruders"))
def intruders_of_way(table: pd.DataFrame, *, way: str) -> Effects:
    """Intruder dimensions of one `way` of compression against the original weights."""
    return by_seed(table, lambda part: rows_where(part, way=way)["n_intruders"].iloc[0], outcome="n_intruders")


@rule(needs=("seed", "shots", "token_ratio"))
def least_token_ratio(table: pd.DataFrame) -> Effects:
    """Tokens with the most worked examples over tokens with the fewest: the smallest of all tasks."""
    most = table[table["shots"] == table["shots"].max()]
    return by_seed(most, lambda part: part["token_ratio"].min(), outcome=table["token_ratio"])
