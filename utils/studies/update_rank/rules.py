"""The rules that judge the second paper's claims; of the same form as those of :mod:`utils.reporting.rules`."""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, of_experiment, rank_of
from utils.training.targets import ATTENTION


@rule(needs=("seed", "step"))
def update_rank_at_least(table: pd.DataFrame, *, times, rank, in_experiment=None) -> Effects:
    """Mean rank of full fine-tuning's update at the duration where it is least, minus `times` LoRA's rank."""
    least = times * rank_of(of_experiment(table, in_experiment), rank)
    return by_seed(_full_updates(table, outcome=None, experiment=in_experiment), lambda part: float(
        part.groupby("step")["update_rank"].mean().min(skipna=False)) - least, outcome=None)


@rule(needs=("seed", "step"))
def update_rank_rises(table: pd.DataFrame, *, in_experiment=None) -> Effects:
    """Mean rank of full fine-tuning's update at the longest duration minus at the shortest."""
    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("step")["update_rank"].mean().sort_index()
        return means.iloc[1:].iloc[-1] - means.iloc[0]  # a single duration shows no rise

    return by_seed(_full_updates(table, outcome=None, experiment=in_experiment), effect, outcome=None)


@rule(needs=("seed", "step", "type", "{column}"))
def mlp_above_attention(table: pd.DataFrame, *, column, in_experiment=None) -> Effects:
    """Mean of `column` over the MLP's matrices minus over the attention's, at the longest duration."""
    def effect(part: pd.DataFrame) -> float:
        attention = part["type"].isin(ATTENTION)
        return part[~attention][column].mean() - part[attention][column].mean()

    at = _full_updates(table, in_experiment)
    return by_seed(at[at["step"] == at["step"].max()], effect, outcome=None)


@rule(needs=("base_rank", "seed", "tuned_rank"))
def spectrum_unmoved(table: pd.DataFrame, *, tolerance, in_experiment=None) -> Effects:
    """`tolerance` minus the mean relative change of a weight's own rank for 90 % by full fine-tuning."""
    at = _full_updates(table, in_experiment).dropna(subset=["tuned_rank"])
    return by_seed(at, lambda part: tolerance - (part["tuned_rank"] / part["base_rank"] - 1).abs().mean(), outcome=None)


def _full_updates(table: pd.DataFrame, in_experiment=None) -> pd.DataFrame:
    at = of_experiment(table, in_experiment)
    return at[at["r"] == 0]


@rule(needs=("deviation", "scale", "seed"))
def deviation_slopes(table: pd.DataFrame, *, below, tolerance) -> Effects:
    """`tolerance` minus the distance of the log-log slope of the deviation from 1 below the scale `below`."""
    def effect(part: pd.DataFrame) -> float:
        at = part[part["scale"] <= below]
        return tolerance - abs(np.polyfit(np.log(at["scale"]), np.log(at["deviation"]), 1)[0] - 1)

    return by_seed(table, effect, outcome=None)


@rule(needs=("agrees", "seed"))
def formulas_agree(table: pd.DataFrame, *, least) -> Effects:
    """Share of the published cells that the formula gives to the printed decimals, minus `least`."""
    return by_seed(table, lambda part: float(part["agrees"].mean()) - least, outcome=None)
