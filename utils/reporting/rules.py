"""What the rules of every study share: one effect per seed, and the helpers that find a run or say that it is missing."""

from collections.abc import Callable

import pandas as pd
from scipy.stats import spearmanr

Effect = Callable[[pd.DataFrame], float]


def by_seed(table: pd.DataFrame, effect: Effect, experiment: str | None = "ranks") -> pd.Series:
    """Apply `effect` to the rows of each seed of an experiment (of all for None)."""
    def effect_or_nan(part: pd.DataFrame) -> float:
        try:
            return effect(part)
        except (IndexError, KeyError, ValueError):
            return float("nan")

    chosen = table if experiment is None else table[table["experiment"] == experiment]
    return pd.Series({seed: effect_or_nan(part) for seed, part in chosen.groupby("seed")}, dtype=float)


def full_row(part: pd.DataFrame) -> pd.Series:
    return part[part["r"] == 0].iloc[0]


def with_every(part: pd.DataFrame, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One seed's rows, if they have every value of `column` that any seed has: for sentences about all of them."""
    if set(table[column]) - set(part[column]):
        raise ValueError(f"a run of those that differ in {column} is missing")
    return part


def trend(setting: pd.Series, outcome: pd.Series) -> float:
    """Spearman's rho: 0 where all outcomes are equal (no trend), NaN where fewer than two settings are left."""
    if setting.nunique() < 2:
        return float("nan")
    return 0.0 if outcome.nunique() == 1 else float(spearmanr(setting, outcome).statistic)


def of_experiment(table: pd.DataFrame, rule: dict) -> pd.DataFrame:
    return table[table["experiment"] == rule["in_experiment"]] if "in_experiment" in rule else table


def rank_of(table: pd.DataFrame, rule: dict) -> int:
    """The rank that a rule speaks of: ``full``, or the ``lowest`` or ``highest`` rank of LoRA in the table."""
    ranks = table.loc[table["r"] > 0, "r"]
    return {"full": 0, "lowest": ranks.min(), "highest": ranks.max()}[rule["rank"]]
