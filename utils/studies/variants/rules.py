"""The rules that judge the sequel's claims (notebook 14), on the tables of ``variant_sweep`` and ``variant_hessian``.

Of the sweep each seed chooses its own best rates, among the rates at which no run of a method diverged; the Hessian was
measured at the rates that are best over all seeds of its table.
"""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, at_least, by_seed, rows_where, trend, value_at, with_every
from utils.reporting.selection import runs_that_learnt
from utils.studies.variants.measure import published_best
from utils.studies.variants.tables import (
    LACKING,
    LOSS,
    VANILLA,
    best_by_seed,
    best_rate_against,
    borrowed_rate,
    main_grid,
    spread,
)

GRID = ("seed", "experiment", "variant", "run", "learning_rate", "steps", "diverged", LOSS, "token_accuracy",
        "learning", "forgetting", "n_intruders", "relative_norm")
CURVATURE = ("seed", "variant", "block", "at", "largest")


def _by_variant(part: pd.DataFrame, column: str) -> pd.Series:
    return part.set_index("variant")[column]


def study_methods() -> list[str]:
    """The ten methods of the study, vanilla LoRA among them."""
    return published_best()["method"].tolist()


@rule(needs=(*GRID, "{column}"))
def best_variant_beyond_vanilla(table: pd.DataFrame, *, column: str) -> Effects:
    """How much better the best of the nine variants is in `column` than vanilla LoRA, each at its own best rate."""
    best, sign, methods = best_by_seed(table), -1 if column == LOSS else 1, study_methods()

    def effect(part: pd.DataFrame) -> float:
        values = sign * value_at(_by_variant(part, column), methods)
        return values.drop(VANILLA).max() - values[VANILLA]

    return by_seed(best, effect, outcome=best.loc[~best["variant"].isin(LACKING), column])


@rule(needs=(*GRID, "{column}"))
def spread_at_best(table: pd.DataFrame, *, column: str) -> Effects:
    """Best minus worst of the study's ten methods in `column`, each at its own best rate."""
    best = best_by_seed(table)
    best, methods = best[~best["variant"].isin(LACKING)], study_methods()

    def effect(part: pd.DataFrame) -> float:
        values = value_at(_by_variant(part, column), methods)
        return values.max() - values.min()

    return by_seed(best, effect, outcome=column)


@rule(needs=GRID)
def least_rate_ratio(table: pd.DataFrame, *, variants: list[str]) -> Effects:
    """Vanilla LoRA's best rate over that of each of `variants`, in decades: the smallest."""
    best = best_by_seed(table)
    best = best[best["variant"].isin([VANILLA, *variants])]

    def effect(part: pd.DataFrame) -> float:
        rates = _by_variant(part, "learning_rate")
        return float(np.log10(value_at(rates, VANILLA) / value_at(rates, variants)).min())

    return by_seed(best, effect, outcome="learning_rate")


@rule(needs=GRID)
def rates_beside_published(table: pd.DataFrame) -> Effects:
    """Spearman's rho between our best rates and the study's over the ten methods."""
    best, published = best_by_seed(table), published_best().set_index("method")["learning_rate"]
    best = best[best["variant"].isin(published.index)]
    return by_seed(best, lambda part: trend(published, value_at(_by_variant(part, "learning_rate"),
                                                                list(published.index))), outcome="learning_rate")


@rule(needs=GRID)
def lost_beyond_vanilla(table: pd.DataFrame, *, variant: str) -> Effects:
    """What `variant` loses at vanilla LoRA's best rate minus what vanilla LoRA loses at the variant's, in nats."""
    def effect(part: pd.DataFrame) -> float:
        row = rows_where(borrowed_rate(part), variant=variant).iloc[0]
        return row["lost_nats"] - row["vanilla_lost_nats"]

    grid = main_grid(table)
    return by_seed(table, effect, outcome=grid.loc[grid["variant"].isin([VANILLA, variant]), LOSS])


@rule(needs=(*GRID, "{column}"))
def spread_at_one_rate(table: pd.DataFrame, *, column: str) -> Effects:
    """Spread of the ten methods at vanilla LoRA's best rate, as a multiple of their spread at their own best."""
    methods = study_methods()

    def effect(part: pd.DataFrame) -> float:
        value_at(main_grid(part).groupby("variant").size(), methods)
        row = spread(part).set_index("measure").loc[column]
        return row["at_one_rate"] / row["spread"]

    return by_seed(table, effect, outcome=main_grid(table)[column])


def _bests_of_vanilla(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Vanilla LoRA's best rate at each value of a setting, seed by seed."""
    found = pd.concat([best_rate_against(part, setting).assign(seed=seed) for seed, part in table.groupby("seed")])
    return found[found["variant"] == VANILLA]


@rule(needs=(*GRID, "r", "batch_size"))
def best_rate_slope(table: pd.DataFrame, *, setting: str) -> Effects:
    """Slope of the log of vanilla LoRA's best rate against the log of a `setting`.

    A best rate at the end of its grid is a bound and left out; fewer than three values say nothing.
    """
    def effect(part: pd.DataFrame) -> float:
        at_least(len(part), 3, f"values of {setting}")
        slope = np.polyfit(np.log(part["setting"].astype(float)), np.log(part["learning_rate"].astype(float)), 1)[0]
        return round(float(slope), 9)  # equal rates are no trend, whatever the rounding says

    found = _bests_of_vanilla(table, setting)
    return by_seed(found[found["edge"] == ""], effect, outcome="learning_rate")


@rule(needs=(*GRID, "r"))
def least_gain_with_rank(table: pd.DataFrame) -> Effects:
    """Smallest fall of vanilla LoRA's best loss from one rank to the next larger, the rate tuned at each."""
    def effect(part: pd.DataFrame) -> float:
        at_least(len(part), 3, "ranks")
        return float(-part.sort_values("setting")["loss"].diff().iloc[1:].max())

    return by_seed(_bests_of_vanilla(table, "rank"), effect, outcome="loss")


@rule(needs=GRID)
def fewest_above_full(table: pd.DataFrame) -> Effects:
    """Intruders of the adapter that has fewest, at its best rate, minus those of full fine-tuning at its own."""
    best = best_by_seed(table)

    def effect(part: pd.DataFrame) -> float:
        counts = _by_variant(with_every(part, best, "variant"), "n_intruders")
        return float(counts.drop("full").min() - value_at(counts, "full"))

    return by_seed(best, effect, outcome="n_intruders")


@rule(needs=(*GRID, "task", "{column}"))
def intruders_follow(table: pd.DataFrame, *, column: str) -> Effects:
    """Spearman's rho between intruders and `column` over all runs of the main grid that learnt."""
    grid = runs_that_learnt(main_grid(table))
    return by_seed(grid, lambda part: trend(part[column], part["n_intruders"]), outcome="n_intruders")


def _place(table: pd.DataFrame, block: str, at: str) -> pd.DataFrame:
    return table[(table["block"] == block) & (table["at"] == at)]


@rule(needs=CURVATURE)
def least_sharpness_ratio(table: pd.DataFrame, *, variants: list[str], block: str, at: str = "initialisation"
                          ) -> Effects:
    """Largest eigenvalue of each of `variants` over vanilla LoRA's, in decades: the smallest."""
    def effect(part: pd.DataFrame) -> float:
        values = _by_variant(part, "largest")
        return float(np.log10(value_at(values, variants) / value_at(values, VANILLA)).min())

    rows = _place(table, block, at)
    return by_seed(rows[rows["variant"].isin([VANILLA, *variants])], effect, outcome="largest")


@rule(needs=(*CURVATURE, "best_learning_rate"))
def rate_follows_sharpness(table: pd.DataFrame, *, block: str, at: str = "initialisation",
                           methods: list[str] | None = None) -> Effects:
    """Spearman's rho between the largest eigenvalue and the best rate, over `methods` or all that were measured."""
    rows = _place(table, block, at).dropna(subset=["largest", "best_learning_rate"])
    rows = rows if methods is None else rows[rows["variant"].isin(methods)]

    def effect(part: pd.DataFrame) -> float:
        known = with_every(part, rows, "variant").set_index("variant")
        known = known if methods is None else value_at(known, methods)
        at_least(len(known), 5, "methods")
        return trend(known["largest"], known["best_learning_rate"])

    return by_seed(rows, effect, outcome="best_learning_rate")


@rule(needs=(*CURVATURE, "smallest"))
def ratio_of_ends(table: pd.DataFrame, *, block: str, at: str = "initialisation") -> Effects:
    """Minus the smallest eigenvalue of vanilla LoRA over its largest: 1 where both ends are equally far from zero."""
    def effect(part: pd.DataFrame) -> float:
        row = rows_where(part, variant=VANILLA).iloc[0]
        return -row["smallest"] / row["largest"]

    rows = _place(table, block, at)
    return by_seed(rows, effect, outcome=rows.loc[rows["variant"] == VANILLA, "smallest"])


@rule(needs=(*CURVATURE, "smallest", "gradient_bound"))
def ends_off_gradient(table: pd.DataFrame, *, block: str, at: str = "initialisation") -> Effects:
    """How far vanilla LoRA's ends lie from what the loss's gradient alone gives them, as a share of it: the farther."""
    def effect(part: pd.DataFrame) -> float:
        row = rows_where(part, variant=VANILLA).iloc[0]
        return max(abs(row["largest"] / row["gradient_bound"] - 1), abs(row["smallest"] / row["gradient_bound"] + 1))

    rows = _place(table, block, at)
    return by_seed(rows, effect, outcome=rows.loc[rows["variant"] == VANILLA, "largest"])


@rule(needs=(*CURVATURE, "preconditioned", "best_learning_rate"))
def deviation_saved_by_adam(table: pd.DataFrame, *, block: str, at: str) -> Effects:
    """Deviation over methods of log10(eigenvalue times best rate): plain Hessian's minus that in AdamW's coordinates.

    Over the methods whose two eigenvalues are positive, as a logarithm needs.
    """
    rows = _place(table, block, at).dropna(subset=["preconditioned"])
    rows = rows[(rows["preconditioned"] > 0) & (rows["largest"] > 0)]

    def effect(part: pd.DataFrame) -> float:
        at_least(len(part), 5, "methods")
        plain, adam = (np.log10(part[name] * part["best_learning_rate"]).std(ddof=1)
                       for name in ("largest", "preconditioned"))
        return float(plain - adam)

    return by_seed(rows, effect, outcome="preconditioned")
