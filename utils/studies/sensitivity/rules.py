"""The rules of notebook 13: what a method gains or loses by a setting, each side at its own best learning rate.

A best rate at the end of its grid is a bound: beyond it a better one may lie. Such a run counts as missing. Rates are
chosen over all seeds of the table (:func:`utils.reporting.selection.best_rate`). Runs that have not learnt count here:
whether a rate teaches anything is what is asked.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, at_least, by_seed, rank_of, rows_where
from utils.studies.sensitivity.tables import LOSS, best_rate_table, runs_once, selection

MIN_RANKS = 3  # a slope over two ranks is one grid step
RUNS = ("run", "step", "seed", "method", "r", "experiment", "learning_rate", LOSS)


def _runs(table: pd.DataFrame, *experiments: str) -> pd.DataFrame:
    """The runs of the sweep of rates and of further experiments, each once."""
    return runs_once(table[table["experiment"].isin(["rates", *experiments])])


def _inside(best: pd.Series, what: str) -> pd.Series:
    """A row of :func:`best_rate_table`, unless its best rate is the end of its grid."""
    if best["edge"]:
        end = "the only one tried" if best["edge"] == "only" else f"the {best['edge']} of its grid"
        raise MissingRun(f"the best learning rate of {what}, {best['learning_rate']:g}, is {end}")
    return best


def _losses(table: pd.DataFrame, by: Sequence[str]) -> Callable[..., float]:
    """A function of one seed's rows and a group, such as ``targets="mlp"``: the loss at the group's best rate."""
    best = best_rate_table(table, by)

    def loss(part: pd.DataFrame, **group) -> float:
        what = ", ".join(f"{name} {value}" for name, value in group.items())
        rate = _inside(rows_where(best, **group).iloc[0], what)["learning_rate"]
        return float(rows_where(part, **group, learning_rate=rate)[LOSS].iloc[0])

    return loss


def _of_rank(table: pd.DataFrame, rank: str) -> pd.DataFrame:
    """The runs of full fine-tuning, or of LoRA's lowest or highest rank."""
    kind = "full" if rank == "full" else "lora"
    return table[(table["method_kind"] == kind) & (table["r"] == rank_of(table, rank))]


@rule(needs=(*RUNS, "scaling"))
def decades_above_full(table: pd.DataFrame, *, rank: str, times: float = 1.0, scalings: bool = False) -> Effects:
    """Decades by which LoRA's best rate lies above `times` full's, both at the vertex of a parabola through the best.

    Parameters
    ----------
    table : pandas.DataFrame
        The sweep of rates.
    rank : {"lowest", "highest"}
    scalings : bool
        Among the ranks of the comparison of scalings as well (alpha = 2r there), which reach higher.
    """
    at = _runs(table, *["scalings"] * scalings)
    at = at[(at["method_kind"] == "full") | (at["scaling"] == "alpha = 2r")]
    lora = _of_rank(at, rank)

    def vertex(part: pd.DataFrame, what: str) -> float:
        at_least(len(part), 1, f"runs of {what}")
        return _inside(best_rate_table(part, ["r"]).iloc[0], what)["fine_rate"]

    def effect(part: pd.DataFrame) -> float:
        own = part[part["run"].isin(lora["run"])]
        return float(np.log10(vertex(own, "LoRA") / vertex(part[part["method_kind"] == "full"], "full") / times))

    return by_seed(at, effect, outcome=LOSS)


@rule(needs=(*RUNS, "learning"))
def more_good_rates(table: pd.DataFrame, *, rank: str, share: float) -> Effects:
    """How many more rates bring full fine-tuning to `share` of its own best learning than bring LoRA to its own."""
    at = _runs(table)
    highest = rank_of(at, rank)

    def good(part: pd.DataFrame) -> int:
        return int((part["learning"] >= share * part["learning"].max()).sum())

    def effect(part: pd.DataFrame) -> float:
        full, lora = rows_where(part, method_kind="full"), rows_where(part, method_kind="lora", r=highest)
        return float(good(full) - good(lora))

    return by_seed(at, effect, outcome="learning")


@rule(needs=(*RUNS, "lora_alpha"))
def two_r_gains(table: pd.DataFrame, *, rank: str) -> Effects:
    """Loss of the best smaller alpha minus that of alpha = 2r, at one rank, each alpha at its best rate."""
    at = _of_rank(_runs(table, "alpha"), rank)
    loss = _losses(at, ["lora_alpha"])
    two_r = 2 * at["r"].max()
    smaller = sorted(at.loc[at["lora_alpha"] < two_r, "lora_alpha"].unique())

    def effect(part: pd.DataFrame) -> float:
        at_least(len(smaller), 1, "smaller alphas")
        return min(loss(part, lora_alpha=alpha) for alpha in smaller) - loss(part, lora_alpha=two_r)

    return by_seed(at, effect, outcome=LOSS)


@rule(needs=(*RUNS, "lora_alpha"))
def two_r_gains_at_every_rate(table: pd.DataFrame, *, rank: str) -> Effects:
    """The least, over learning rates, of a smaller alpha's loss minus that of alpha = 2r at the same rate and rank."""
    at = _of_rank(_runs(table, "alpha"), rank)
    return by_seed(at, lambda part: _least_gain(part, part["lora_alpha"] == 2 * part["r"]), outcome=LOSS)


@rule(needs=(*RUNS, "optimiser"))
def lion_gains(table: pd.DataFrame, *, rank: str) -> Effects:
    """Loss with AdamW minus loss with Lion for one rank, each at its best rate."""
    at = _of_rank(_runs(table, "optimisers"), rank)
    loss = _losses(at, ["optimiser"])
    return by_seed(at, lambda part: loss(part, optimiser="adamw") - loss(part, optimiser="lion"), outcome=LOSS)


@rule(needs=(*RUNS, "optimiser"))
def lion_gains_at_every_rate(table: pd.DataFrame, *, rank: str) -> Effects:
    """The least, over the rates tried with both, of the loss with AdamW minus the loss with Lion, for one rank."""
    at = _of_rank(_runs(table, "optimisers"), rank)
    return by_seed(at, lambda part: _least_gain(part, part["optimiser"] == "lion"), outcome=LOSS)


def _least_gain(part: pd.DataFrame, chosen: pd.Series) -> float:
    """The least gain in loss of the chosen runs over the best other at the same rate; of two shared rates or more."""
    others = part[~chosen].groupby("learning_rate")[LOSS].min()
    gains = (others - part[chosen].groupby("learning_rate")[LOSS].min()).dropna()
    at_least(len(gains), 2, "learning rates tried with both")
    return float(gains.min())


@rule(needs=(*RUNS, "targets"))
def module_gap(table: pd.DataFrame, *, targets: list) -> Effects:
    """Loss of LoRA on the first of `targets` minus on the second, each at its best rate; equal numbers trained."""
    at = runs_once(table[table["experiment"] == "modules"])
    loss = _losses(at, ["targets"])
    return by_seed(at, lambda part: loss(part, targets=targets[0]) - loss(part, targets=targets[1]), outcome=LOSS)


@rule(needs=(*RUNS, "lora_alpha", "scaling"))
def rate_falls_with_rank(table: pd.DataFrame) -> Effects:
    """Slope of log best rate over log rank under alpha / r with alpha fixed, minus the slope with alpha = 2r.

    Over the ranks whose best rate is inside its grid under both; fewer than three say nothing.
    """
    def slopes(part: pd.DataFrame) -> tuple[float, float]:
        best = best_rate_table(selection(part, "scalings"), ["scaling", "r"])
        best = best[best["edge"] == ""]
        fixed, rising = (best[best["scaling"].str.startswith(name)].set_index("r")["learning_rate"]
                         for name in ("alpha / r", "alpha = 2r"))
        ranks = sorted(set(fixed.index) & set(rising.index))
        at_least(len(ranks), MIN_RANKS, "ranks whose best rate is inside its grid under both scalings")
        return tuple(np.polyfit(np.log(ranks), np.log(rates.loc[ranks]), 1)[0] for rates in (fixed, rising))

    return by_seed(table[table["experiment"].isin(["rates", "scalings"])],
                   lambda part: float(np.subtract(*slopes(part))), outcome=LOSS)


@rule(needs=(*RUNS, "batch_size"))
def batch_costs_more(table: pd.DataFrame, *, rank: str, times: int) -> Effects:
    """What a batch `times` the sweep's own costs LoRA beyond what it costs full: loss there minus at its own."""
    at, usual = _runs(table, "batches"), int(_runs(table)["batch_size"].max())
    at = pd.concat([_of_rank(at, "full"), _of_rank(at, rank)])
    loss = _losses(at, ["method_kind", "batch_size"])

    def penalty(part: pd.DataFrame, kind: str) -> float:
        return (loss(part, method_kind=kind, batch_size=times * usual)
                - loss(part, method_kind=kind, batch_size=usual))

    return by_seed(at, lambda part: penalty(part, "lora") - penalty(part, "full"), outcome=LOSS)
