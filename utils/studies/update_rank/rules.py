"""The rules of notebook 12: how many directions the update of full fine-tuning needs, and what else may say so."""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, at_least, by_seed, of_experiment, rank_of, rows_where, with_every
from utils.training.targets import ATTENTION

RUNS = ("experiment", "seed", "method", "r", "step")


def _full(table: pd.DataFrame, in_experiment: str) -> pd.DataFrame:
    at = of_experiment(table, in_experiment)
    return at[at["method_kind"] == "full"]


@rule(needs=(*RUNS, "update_rank"))
def update_rank_over_lora(table: pd.DataFrame, *, rank: str, in_experiment: str) -> Effects:
    """Mean rank of full fine-tuning's update at the duration where it is least, over LoRA's lowest or highest rank."""
    at, full = of_experiment(table, in_experiment), _full(table, in_experiment)
    lora = rank_of(at, rank)

    def effect(part: pd.DataFrame) -> float:
        means = with_every(rows_where(part, method_kind="full"), full, "step").groupby("step")["update_rank"].mean()
        return means.min() / lora

    return by_seed(at, effect, outcome=full["update_rank"])


@rule(needs=(*RUNS, "update_rank"))
def update_rank_rises(table: pd.DataFrame, *, in_experiment: str) -> Effects:
    """Mean rank of full fine-tuning's update at the longest duration minus at the shortest."""
    full = _full(table, in_experiment)

    def effect(part: pd.DataFrame) -> float:
        means = with_every(rows_where(part, method_kind="full"), full, "step").groupby("step")["update_rank"].mean()
        at_least(len(means), 2, "durations")
        return means.loc[means.index.max()] - means.loc[means.index.min()]

    return by_seed(of_experiment(table, in_experiment), effect, outcome=full["update_rank"])


@rule(needs=(*RUNS, "ratio"))
def update_rank_over_noise(table: pd.DataFrame, *, in_experiment: str) -> Effects:
    """Mean rank of full fine-tuning's update over what Gaussian noise of its shape needs, at the longest duration."""
    full = _full(table, in_experiment)
    return by_seed(of_experiment(table, in_experiment), lambda part: rows_where(
        part, method_kind="full", step=full["step"].max())["ratio"].mean(), outcome=full["ratio"])


@rule(needs=(*RUNS, "type", "{column}"))
def mlp_above_attention(table: pd.DataFrame, *, column: str, in_experiment: str, every_kind: bool = False) -> Effects:
    """Mean of `column` over the MLP's matrices minus over the attention's, after full fine-tuning's longest duration.

    With `every_kind` minus that of the attention's kind (q, k, v or o) whose mean is highest.
    """
    full = _full(table, in_experiment)

    def effect(part: pd.DataFrame) -> float:
        last = rows_where(part, method_kind="full", step=full["step"].max())
        attention = last["type"].isin(ATTENTION)
        at_least(min(attention.sum(), (~attention).sum()), 1, "matrices of attention and of the MLP")
        beside = last[attention].groupby("type")[column].mean().max() if every_kind else last[attention][column].mean()
        return last[~attention][column].mean() - beside

    return by_seed(of_experiment(table, in_experiment), effect, outcome=full[column])


@rule(needs=(*RUNS, "layer", "update_rank"))
def middle_above_ends(table: pd.DataFrame, *, in_experiment: str) -> Effects:
    """Mean rank of full fine-tuning's update in the layers between, minus in the first or last, whichever is higher."""
    full = _full(table, in_experiment)

    def effect(part: pd.DataFrame) -> float:
        last = rows_where(part, method_kind="full", step=full["step"].max())
        layers = last.groupby("layer")["update_rank"].mean().sort_index()
        at_least(len(layers), 3, "layers")
        return layers.iloc[1:-1].mean() - max(layers.iloc[0], layers.iloc[-1])

    return by_seed(of_experiment(table, in_experiment), effect, outcome=full["update_rank"])


@rule(needs=(*RUNS, "base_rank", "tuned_rank"))
def own_rank_moved(table: pd.DataFrame, *, in_experiment: str) -> Effects:
    """Mean relative change of a weight's own rank for 90 % by full fine-tuning's longest duration."""
    full = _full(table, in_experiment)

    def effect(part: pd.DataFrame) -> float:
        last = rows_where(part, method_kind="full", step=full["step"].max())
        return (last["tuned_rank"] / last["base_rank"] - 1).abs().mean()

    return by_seed(of_experiment(table, in_experiment), effect, outcome=full["tuned_rank"])


@rule(needs=("seed", "scale", "deviation"))
def deviation_slope(table: pd.DataFrame, *, below: float) -> Effects:
    """By how much the slope of the log deviation over the log scale exceeds 1, over the scales up to `below`."""
    def effect(part: pd.DataFrame) -> float:
        at = part[part["scale"] <= below]
        at_least(at["scale"].nunique(), 2, f"scales up to {below:g}")
        return float(np.polyfit(np.log(at["scale"]), np.log(at["deviation"]), 1)[0] - 1)

    return by_seed(table, effect, outcome="deviation")


@rule(needs=("seed", "agrees"))
def cells_that_agree(table: pd.DataFrame) -> Effects:
    """Share of the published cells that the formula gives to the printed decimals."""
    return by_seed(table, lambda part: float(part["agrees"].mean()), outcome=None)
