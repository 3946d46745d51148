"""The rules that judge the second paper's claims; of the same form as those of :mod:`utils.reporting.rules`."""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, rank_of


def _best(part: pd.DataFrame) -> pd.Series:
    """The row of the smallest loss; ValueError without any."""
    return part.loc[part["loss_nats_per_token"].idxmin()]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The sweep of experiment `rates`."""
    return table[table["experiment"] == "rates"]


@rule(needs=("r", "seed"))
def rate_ratio_near(table: pd.DataFrame, *, ratio, rank) -> Effects:
    """0.5 minus the distance of log10(LoRA's best rate over full's) from log10 of `ratio`: within a factor of 3.2."""
    rank = rank_of(_plain(table), rank)

    def effect(part: pd.DataFrame) -> float:
        lora, full = (_best(part[part["r"] == r])["learning_rate"] for r in (rank, 0))
        return 0.5 - abs(np.log10(lora / full) - np.log10(ratio))

    return by_seed(_plain(table), effect, outcome=None)


@rule(needs=("learning", "r", "seed"))
def fewer_good_rates(table: pd.DataFrame, *, share, rank) -> Effects:
    """How many more rates bring full fine-tuning to `share` of its own best learning than bring LoRA to its own."""
    rank = rank_of(_plain(table), rank)

    def good(part: pd.DataFrame) -> int:
        best = _best(part)["learning"]
        return int((part["learning"] >= share * best).sum())

    return by_seed(_plain(table), lambda part: float(good(part[part["r"] == 0]) - good(part[part["r"] == rank])), outcome=None)


@rule(needs=("experiment", "lora_alpha", "r", "seed"))
def two_r_is_best(table: pd.DataFrame, *, rank) -> Effects:
    """Best loss over the rates with any smaller alpha minus with alpha = 2r, at one rank."""
    at = table[table["experiment"].isin(["rates", "alpha"])]
    rank = rank_of(at, rank)
    at = at[at["r"] == rank]
    smaller = sorted(at.loc[at["lora_alpha"] < 2 * rank, "lora_alpha"].unique())

    def effect(part: pd.DataFrame) -> float:
        best = part.groupby("lora_alpha")["loss_nats_per_token"].min()
        return best.loc[smaller].min(skipna=False) - best.loc[2 * rank]

    return by_seed(at, effect, outcome=None)


@rule(needs=("experiment", "seed"))
def module_gap(table: pd.DataFrame, *, targets, tolerance=0.0) -> Effects:
    """Best loss of LoRA on the first of `targets` minus on the second, plus `tolerance`; equal parameter counts."""
    def effect(part: pd.DataFrame) -> float:
        best = part.groupby("targets")["loss_nats_per_token"].min()
        return best.loc[targets[0]] - best.loc[targets[1]] + tolerance

    return by_seed(table[table["experiment"] == "modules"], effect, outcome=None)


@rule(needs=("experiment", "learning_rate", "loss_nats_per_token", "optimiser", "r", "seed"))
def lion_not_worse(table: pd.DataFrame, *, rank) -> Effects:
    """Best loss with AdamW minus with Lion over the rates tried, for one rank.

    NaN where Lion loses and its best rate is the highest that was tried: a higher one might win.
    """
    at = table[table["experiment"].isin(["rates", "optimisers"])]

    def effect(part: pd.DataFrame) -> float:
        adamw, lion = (_best(part[part["optimiser"] == name]) for name in ("adamw", "lion"))
        difference = adamw["loss_nats_per_token"] - lion["loss_nats_per_token"]
        highest = part.loc[part["optimiser"] == "lion", "learning_rate"].max()
        return float("nan") if difference < 0 and lion["learning_rate"] == highest else difference

    return by_seed(at[at["r"] == rank_of(at, rank)], effect, outcome=None)


@rule(needs=("experiment", "lora_alpha", "r", "scaling", "seed"))
def rate_falls_with_rank(table: pd.DataFrame) -> Effects:
    """Slope of log best rate against log rank under alpha / r, with alpha fixed, minus the slope with alpha = 2r.

    Over the ranks that have two rates or more under both; fewer than three say nothing. Where the fixed alpha is 2r,
    a run belongs to both.
    """
    at = table[table["experiment"].isin(["scalings", "rates"]) & (table["r"] > 0)].drop_duplicates(["seed", "run"])

    def best_rates(part: pd.DataFrame) -> pd.Series:
        tried = part.groupby("r")["learning_rate"].transform("nunique")
        return part[tried > 1].groupby("r")[["learning_rate", "loss_nats_per_token"]].apply(_best)["learning_rate"]

    def effect(part: pd.DataFrame) -> float:
        alphas = part.loc[part["scaling"] == "alpha / r", "lora_alpha"]
        fixed = best_rates(part[part["lora_alpha"].isin(alphas) & part["scaling"].isin(["alpha / r", "alpha = 2r"])])
        rising = best_rates(part[part["scaling"] == "alpha = 2r"])
        ranks = fixed.index.intersection(rising.index)
        if len(ranks) < 3:
            raise ValueError("a slope over fewer than three ranks says nothing")
        slopes = [np.polyfit(np.log(ranks), np.log(best.loc[ranks]), 1)[0] for best in (fixed, rising)]
        return float(slopes[0] - slopes[1])

    return by_seed(at, effect, outcome=None)


@rule(needs=("batch_size", "experiment", "r", "seed"))
def batch_costs_more(table: pd.DataFrame, *, times, rank) -> Effects:
    """What a batch `times` the sweep's own costs LoRA beyond what it costs full: best loss there minus at its own."""
    at = table[table["experiment"].isin(["rates", "batches"])]
    rank, usual = rank_of(at, rank), _plain(table)["batch_size"].max()

    def penalty(part: pd.DataFrame) -> float:
        best = part.groupby("batch_size")["loss_nats_per_token"].min()
        return best.loc[times * usual] - best.loc[usual]

    return by_seed(at, lambda part: penalty(part[part["r"] == rank]) - penalty(part[part["r"] == 0]), outcome=None)
