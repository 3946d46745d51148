"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row, trend, with_every
from utils.reporting.selection import best_rates


@rule(needs=("seed",))
def no_intruders_in_full(table: pd.DataFrame, *, epsilon) -> Effects:
    """0.5 minus the count of full fine-tuning: positive for a count of exactly zero."""
    at = table[table["epsilon"] == epsilon]
    return by_seed(at, lambda part: 0.5 - full_row(part)["n_intruders"], outcome=None, experiment="ranks")


@rule(needs=("accuracy", "n_intruders", "r", "seed"))
def more_intruders_at_equal_accuracy(table: pd.DataFrame, *, epsilon, tolerance) -> Effects:
    """Largest LoRA count minus full's, among LoRA runs within the tolerance of full's accuracy."""
    at = table[table["epsilon"] == epsilon]

    def effect(part: pd.DataFrame) -> float:
        full = full_row(part)
        near = part[(part["r"] > 0) & ((part["accuracy"] - full["accuracy"]).abs() <= tolerance)]
        return near["n_intruders"].max() - full["n_intruders"] if len(near) else float("nan")

    return by_seed(at, effect, outcome=None, experiment="ranks")


@rule(needs=("r", "seed"))
def fewer_at_full_width(table: pd.DataFrame, *, epsilon, low_rank) -> Effects:
    """Count at the low rank minus count at the highest rank."""
    at, width = table[table["epsilon"] == epsilon], table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("r")["n_intruders"]
        return counts.loc[low_rank] - counts.loc[width]

    return by_seed(at, effect, outcome=None, experiment="ranks")


@rule(needs=("n_intruders", "r", "seed", "strongest_ratio"))
def grows_through_training(table: pd.DataFrame) -> Effects:
    """LoRA's count at the last checkpoint minus the first; the strongest intruder must not be weaker at the end."""
    def effect(part: pd.DataFrame) -> float:
        lora = part[part["r"] > 0].sort_values("step")
        first, last = lora.iloc[0], lora.iloc[-1]
        strengths = lora["strongest_ratio"].dropna()
        weaker = len(strengths) > 1 and strengths.iloc[-1] < strengths.iloc[0]
        return -1.0 if weaker else last["n_intruders"] - first["n_intruders"]

    return by_seed(table, effect, outcome=None, experiment="ranks")


@rule(needs=("k", "r", "seed"))
def above_full_at_every_k(table: pd.DataFrame, *, low_rank) -> Effects:
    """Smallest difference LoRA minus full over k, plus a half, so that a tie counts as holding."""
    def effect(part: pd.DataFrame) -> float:
        low = part[part["r"] == low_rank].set_index("k")["n_intruders"]
        return (low - part[part["r"] == 0].set_index("k")["n_intruders"]).min() + 0.5

    return by_seed(table, effect, outcome=None, experiment="ranks")


@rule(needs=("n_intruders", "r", "seed", "train_rows"))
def grows_with_data(table: pd.DataFrame, *, epsilon, rank, flat=None) -> Effects:
    """Spearman's rho between training rows and count at one rank; with `flat`, the allowed change minus the change.

    A change of exactly `flat` counts as allowed. Fewer than three amounts of data show no course.
    """
    at = table[(table["epsilon"] == epsilon) & (table["r"] == rank)]

    def effect(part: pd.DataFrame) -> float:
        if part["train_rows"].nunique() < 3:
            return float("nan")
        counts = part["n_intruders"]
        return flat + 0.5 - (counts.max() - counts.min()) if flat is not None else trend(
            part["train_rows"], counts)

    return by_seed(at, effect, outcome=None)


@rule(needs=("experiment", "seed"))
def variant_below(table: pd.DataFrame, *, epsilon, beside, method) -> Effects:
    """Count of method `beside` minus count of `method`, each at its best rate by accuracy over the seeds."""
    at = best_rates(table[(table["epsilon"] == epsilon) & (table["experiment"] == "variants")])

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("method")["n_intruders"]
        return counts.loc[beside] - counts.loc[method]

    return by_seed(at, effect, outcome=None, experiment="variants")


@rule(needs=("experiment", "r", "seed"))
def every_variant_has(table: pd.DataFrame, *, epsilon) -> Effects:
    """The smallest count of any variant at its best rate, minus a half: positive where all have an intruder."""
    at = best_rates(table[(table["epsilon"] == epsilon) & (table["r"] > 0)
                          & (table["experiment"] == "variants")])
    return by_seed(at, lambda part: with_every(part, at, "method")["n_intruders"].min() - 0.5, outcome=None, experiment="variants")


@rule(needs=("experiment", "method", "seed"))
def seeds_overlap(table: pd.DataFrame, *, epsilon) -> Effects:
    """Largest gap between methods' mean counts, minus the largest distance of a seed's counts from those means.

    NaN for a single seed, which has nothing to differ from.
    """
    at = table[(table["epsilon"] == epsilon) & (table["experiment"] == "ranks")]
    means = at.groupby("method")["n_intruders"].mean()

    def effect(part: pd.DataFrame) -> float:
        if at["seed"].nunique() < 2:
            return float("nan")
        counts = with_every(part, at, "method").set_index("method")["n_intruders"]
        return means.max() - means.min() - (counts - means).abs().max()

    return by_seed(at, effect, outcome=None, experiment="ranks")
