"""The rules that judge the sequel's claims (notebook 14); of the same form as those of :mod:`utils.reporting.rules`.

`table` is that of :func:`utils.reporting.vanilla.variant_sweep` or :func:`utils.reporting.sharpness.variant_hessian`.
Each seed chooses its own best rates, among the rates at which no run of the method diverged.
"""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, trend
from utils.studies.variants.measure import (
    LACKING,
    LOSS,
    VANILLA,
    best_of_each,
    best_rate_against,
    borrowed_rate,
    published_best,
    spread,
)


def _best(part: pd.DataFrame) -> pd.DataFrame:
    return best_of_each(part).set_index("variant")


@rule(needs=("seed", "{column}"))
def vanilla_within(table: pd.DataFrame, *, column, tolerance) -> Effects:
    """`tolerance` minus what the best of the nine variants has on vanilla LoRA in `column`, each at its best rate."""
    sign = 1 if column == LOSS else -1

    def effect(part: pd.DataFrame) -> float:
        values = sign * _best(part)[column]
        others = values.drop(index=[VANILLA, *LACKING], errors="ignore")
        if len(others) < 9:
            raise ValueError("a variant is missing")
        return tolerance - (values.loc[VANILLA] - others.min())

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed",))
def rates_below_vanilla(table: pd.DataFrame, *, variants) -> Effects:
    """Smallest log10 of vanilla LoRA's best rate over that of each of `variants`."""
    def effect(part: pd.DataFrame) -> float:
        return float(np.log10(_best(part)["ratio"].loc[variants]).min(skipna=False))

    return by_seed(table, effect, outcome=None)


@rule(needs=("method", "seed"))
def rates_as_published(table: pd.DataFrame, *, least) -> Effects:
    """Spearman's rho between our best rates and the study's over the ten methods, less `least`."""
    published = published_best().set_index("method")["learning_rate"]

    def effect(part: pd.DataFrame) -> float:
        ours = _best(part)["learning_rate"].loc[published.index]
        return trend(published, ours) - least

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed",))
def worse_at_borrowed_rate(table: pd.DataFrame, *, variant) -> Effects:
    """What `variant` loses at vanilla LoRA's best rate minus what vanilla LoRA loses at the variant's, in nats."""
    def effect(part: pd.DataFrame) -> float:
        row = borrowed_rate(part).set_index("variant").loc[variant]
        return row["lost_nats"] - row["vanilla_lost_nats"]

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed", "{column}"))
def one_rate_misleads(table: pd.DataFrame, *, column, times) -> Effects:
    """Spread of the ten methods at vanilla LoRA's best rate over their spread at their own best, minus `times`."""
    def effect(part: pd.DataFrame) -> float:
        row = spread(part).set_index("measure").loc[column]
        return row["at_one_rate"] / row["spread"] - times

    return by_seed(table, effect, outcome=None)


@rule(needs=("learning_rate", "seed", "variant"))
def best_rate_moves(table: pd.DataFrame, *, setting, sign) -> Effects:
    """Slope of log best rate of vanilla LoRA against the log of a `setting`, times `sign`.

    A best rate at the end of its grid is a bound and left out; fewer than three values say nothing.
    """
    def effect(part: pd.DataFrame) -> float:
        found = best_rate_against(part, setting)
        found = found[(found["variant"] == VANILLA) & (found["edge"] == "")]
        if len(found) < 3:
            raise ValueError("fewer than three values")
        slope = np.polyfit(np.log(found["setting"]), np.log(found["learning_rate"]), 1)[0]
        return sign * round(float(slope), 9)  # equal rates are no trend, whatever the rounding says

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed", "variant"))
def better_with_rank(table: pd.DataFrame) -> Effects:
    """Smallest fall of vanilla LoRA's best loss from one rank to the next larger, the rate tuned at each."""
    def effect(part: pd.DataFrame) -> float:
        found = best_rate_against(part, "rank")
        losses = found[found["variant"] == VANILLA].sort_values("setting")["loss"]
        if len(losses) < 3:
            raise ValueError("fewer than three ranks")
        return float(-losses.diff().iloc[1:].max())

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed",))
def more_intruders_than_full(table: pd.DataFrame) -> Effects:
    """Intruders of the adapter that has fewest, at its best rate, minus those of full fine-tuning at its own."""
    def effect(part: pd.DataFrame) -> float:
        counts = _best(part)["n_intruders"]
        return float(counts.drop(index="full").min() - counts.loc["full"])

    return by_seed(table, effect, outcome=None)


@rule(needs=("diverged", "experiment", "learning", "n_intruders", "seed", "variant", "{column}"))
def intruders_follow(table: pd.DataFrame, *, column, least, without=[]) -> Effects:
    """Spearman's rho between intruders and `column` over all runs of the main grid that learnt, less `least`.

    A run that learnt has at least half of the learning of the seed's best.
    """
    def effect(part: pd.DataFrame) -> float:
        grid = part[(part["experiment"] == "vanilla") & ~part["diverged"].astype(bool)]
        grid = grid[(grid["learning"] >= grid["learning"].max() / 2) & ~grid["variant"].isin(without)]
        return trend(grid[column], grid["n_intruders"]) - least

    return by_seed(table, effect, outcome=None)


def _rows(table: pd.DataFrame, block, at="initialisation") -> pd.DataFrame:
    return table[(table["block"] == block) & (table["at"] == at)]


@rule(needs=("seed", "variant"))
def sharper_than_vanilla(table: pd.DataFrame, *, variants, block, at="initialisation") -> Effects:
    """Smallest log10 of the largest eigenvalue of each of `variants` over vanilla LoRA's."""
    def effect(part: pd.DataFrame) -> float:
        values = part.set_index("variant")["largest"]
        return float(np.log10(values.loc[variants] / values.loc[VANILLA]).min(skipna=False))

    return by_seed(_rows(table, block, at), effect, outcome=None)


@rule(needs=("best_learning_rate", "largest", "seed"))
def sharper_wants_lower_rate(table: pd.DataFrame, *, least, block, at="initialisation") -> Effects:
    """Minus Spearman's rho between the largest eigenvalue and the best rate over the methods, less `least`."""
    def effect(part: pd.DataFrame) -> float:
        part = part.dropna(subset=["largest", "best_learning_rate"])
        if len(part) < 5:
            raise ValueError("fewer than five methods")
        return -trend(part["largest"], part["best_learning_rate"]) - least

    return by_seed(_rows(table, block, at), effect, outcome=None)


@rule(needs=("largest", "seed", "smallest", "variant"))
def gradient_makes_both_ends(table: pd.DataFrame, *, least, block, at="initialisation") -> Effects:
    """|smallest| over largest eigenvalue of vanilla LoRA at B = 0, minus `least`."""
    def effect(part: pd.DataFrame) -> float:
        row = part.set_index("variant").loc[VANILLA]
        return -row["smallest"] / row["largest"] - least

    return by_seed(_rows(table, block, at), effect, outcome=None)


@rule(needs=("best_learning_rate", "largest", "preconditioned", "seed"))
def preconditioned_more_alike(table: pd.DataFrame, *, block, at="initialisation") -> Effects:
    """How much less eigenvalue times rate varies over methods in Adam's coordinates, in decades of one deviation."""
    def effect(part: pd.DataFrame) -> float:
        part = part.dropna(subset=["preconditioned", "largest"])
        part = part[(part["preconditioned"] > 0) & (part["largest"] > 0)]
        if len(part) < 5:
            raise ValueError("fewer than five methods")
        plain, adam = (np.log10(part[name] * part["best_learning_rate"]).std(ddof=1)
                       for name in ("largest", "preconditioned"))
        return float(plain - adam)

    return by_seed(_rows(table, block, at), effect, outcome=None)
