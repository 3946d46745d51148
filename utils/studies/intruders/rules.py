"""The rules of the intruder count. A rule with `epsilon` is judged at each epsilon of the course's claims."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import (
    Effects,
    MissingRun,
    at_least,
    by_seed,
    full_row,
    rows_where,
    trend,
    value_at,
    with_every,
)
from utils.reporting.selection import best_rates, runs_that_learnt

COUNTS = ("experiment", "seed", "method", "r", "run", "task", "epsilon", "n_intruders", "accuracy")


def _main_runs(table: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """The runs of the main experiment that learnt their task, at one epsilon."""
    return runs_that_learnt(table[(table["epsilon"] == epsilon) & (table["experiment"] == "ranks")])


@rule(needs=COUNTS)
def count_of_full(table: pd.DataFrame, *, epsilon: float) -> Effects:
    """The count of full fine-tuning; LoRA's counts say whether this epsilon finds anything at all."""
    return by_seed(_main_runs(table, epsilon), lambda part: full_row(part)["n_intruders"], outcome="n_intruders")


@rule(needs=COUNTS)
def most_at_equal_accuracy(table: pd.DataFrame, *, epsilon: float, tolerance: float) -> Effects:
    """The largest count of any rank minus full's, among LoRA runs within `tolerance` of full's accuracy."""
    def effect(part: pd.DataFrame) -> float:
        return _near_full(part, tolerance)["n_intruders"].max() - full_row(part)["n_intruders"]

    return by_seed(_main_runs(table, epsilon), effect, outcome="n_intruders")


@rule(needs=COUNTS)
def least_up_to_rank(table: pd.DataFrame, *, epsilon: float, max_rank: int) -> Effects:
    """The smallest count of any rank up to `max_rank`: above zero where every one of them has intruders."""
    at = _main_runs(table, epsilon)
    low = at[(at["method_kind"] == "lora") & (at["r"] <= max_rank)]
    return by_seed(low, lambda part: with_every(part, low, "r")["n_intruders"].min(), outcome=at["n_intruders"])


def _near_full(part: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    distance = (part["accuracy"] - full_row(part)["accuracy"]).abs()
    near = part[(part["method_kind"] == "lora") & (distance <= tolerance)]
    at_least(len(near), 1, f"run of LoRA within {tolerance:g} of full fine-tuning's accuracy")
    return near


@rule(needs=COUNTS)
def count_at_full_width(table: pd.DataFrame, *, epsilon: float, low_rank: int) -> Effects:
    """Count at the highest rank minus count at the low rank."""
    at = _main_runs(table, epsilon)

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("r")["n_intruders"]
        return value_at(counts, at["r"].max()) - value_at(counts, low_rank)

    return by_seed(at, effect, outcome="n_intruders")


@rule(needs=COUNTS)
def trend_from_rank(table: pd.DataFrame, *, epsilon: float, from_rank: int) -> Effects:
    """Spearman's rho between rank and count over the ranks from `from_rank` on."""
    at = _main_runs(table, epsilon)
    high = at[(at["method_kind"] == "lora") & (at["r"] >= from_rank)]
    return by_seed(high, lambda part: trend(part["r"], with_every(part, high, "r")["n_intruders"]),
                   outcome="n_intruders")


@rule(needs=("experiment", "seed", "method", "r", "step", "{column}"))
def last_minus_first(table: pd.DataFrame, *, column: str) -> Effects:
    """LoRA's `column` at the last checkpoint that has one minus at the first."""
    def effect(part: pd.DataFrame) -> float:
        values = rows_where(part, method_kind="lora").sort_values("step")[column].dropna()
        at_least(len(values), 2, f"checkpoints with {column}")
        return values.iloc[-1] - values.iloc[0]

    return by_seed(table, effect, outcome=column, experiment="ranks")


@rule(needs=("experiment", "seed", "method", "r", "k", "n_intruders"))
def least_above_full_over_k(table: pd.DataFrame, *, rank: int) -> Effects:
    """Smallest difference of counts, LoRA at one rank minus full fine-tuning, over the shares of vectors examined."""
    def effect(part: pd.DataFrame) -> float:
        lora, full = (rows_where(part, r=r).set_index("k")["n_intruders"] for r in (rank, 0))
        return (lora - full).min()

    return by_seed(table, effect, outcome="n_intruders", experiment="ranks")


@rule(needs=("seed", "r", "epsilon", "n_intruders", "train_rows"))
def trend_with_data(table: pd.DataFrame, *, epsilon: float, rank: int) -> Effects:
    """Spearman's rho between training rows and count at one rank, over three amounts of data or more."""
    at = _data(table, epsilon, rank)
    return by_seed(at, lambda part: trend(part["train_rows"], _three(part)["n_intruders"]), outcome="n_intruders")


@rule(needs=("seed", "r", "epsilon", "n_intruders", "train_rows"))
def change_with_data(table: pd.DataFrame, *, epsilon: float, rank: int) -> Effects:
    """Largest minus smallest count at one rank over three amounts of data or more."""
    at = _data(table, epsilon, rank)
    return by_seed(at, lambda part: _three(part)["n_intruders"].max() - part["n_intruders"].min(),
                   outcome="n_intruders")


def _data(table: pd.DataFrame, epsilon: float, rank: int) -> pd.DataFrame:
    return table[(table["epsilon"] == epsilon) & (table["r"] == rank)]


def _three(part: pd.DataFrame) -> pd.DataFrame:
    at_least(part["train_rows"].nunique(), 3, "amounts of data")
    return part


def _variants(table: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """Each method at its best rate by accuracy over the seeds, without the runs that did not learn."""
    return runs_that_learnt(best_rates(table[(table["epsilon"] == epsilon) & (table["experiment"] == "variants")]))


@rule(needs=(*COUNTS, "learning_rate"))
def method_minus_method(table: pd.DataFrame, *, epsilon: float, method: str, beside: str) -> Effects:
    """Count of `method` minus count of `beside`, each at its best rate by accuracy over the seeds."""
    at = _variants(table, epsilon)
    both = at[at["method"].isin([method, beside])]

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("method")["n_intruders"]
        return value_at(counts, method) - value_at(counts, beside)

    return by_seed(both, effect, outcome="n_intruders")


@rule(needs=(*COUNTS, "learning_rate"))
def least_of_variants(table: pd.DataFrame, *, epsilon: float) -> Effects:
    """The smallest count of LoRA or any variant at its best rate."""
    at = _variants(table, epsilon)
    adapters = at[at["method_kind"] == "lora"]
    return by_seed(adapters, lambda part: with_every(part, adapters, "method")["n_intruders"].min(),
                   outcome=at["n_intruders"])


@rule(needs=COUNTS)
def methods_beyond_seeds(table: pd.DataFrame, *, epsilon: float) -> Effects:
    """Largest gap between methods' mean counts, minus the largest distance of a seed's counts from those means."""
    at = _main_runs(table, epsilon)
    means = at.groupby("method")["n_intruders"].mean()

    def effect(part: pd.DataFrame) -> float:
        if at["seed"].nunique() < 2:
            raise MissingRun("a second seed to differ from")
        counts = with_every(part, at, "method").set_index("method")["n_intruders"]
        return means.max() - means.min() - (counts - means).abs().max()

    return by_seed(at, effect, outcome="n_intruders")
