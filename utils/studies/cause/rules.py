"""The rules that judge notebook 07's claims: one effect per seed, in natural units and with the quantity's own sign."""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, by_seed, rows_where, trend
from utils.reporting.selection import pareto_front, runs_that_learnt
from utils.studies.cause.strengths import separation


def _gentlest(table: pd.DataFrame, rank: int) -> dict:
    """Rank and learning rate of the runs that are judged: the smallest rate that was scaled at this rank."""
    return {"r": rank, "learning_rate": table.loc[table["r"] == rank, "learning_rate"].min()}


def _among(table: pd.DataFrame, column: str, **where) -> pd.Series:
    """The values that an effect compares, of the rows where each column has one of these values."""
    chosen = table
    for name, values in where.items():
        chosen = chosen[chosen[name].isin(values if isinstance(values, list) else [values])]
    return chosen[column]


def _scaled_row(part: pd.DataFrame, *, kind: str, factor: float, **run) -> pd.Series:
    """One kind of change at one strength; MissingRun where the run has no matrix that it could change."""
    row = rows_where(part, **run, kind=kind, factor=factor).iloc[0]
    if row["changed"] == 0:
        raise MissingRun(f"no {kind} to scale")
    return row


@rule(needs=("seed", "r", "learning_rate", "kind", "factor", "changed", "loss_change", "{column}"))
def change_when_scaled(table: pd.DataFrame, *, rank: int, factors: list[float], take: str, kind: str = "intruder",
                       column: str = "forgetting_change") -> Effects:
    """Change in percent when one kind of direction is scaled; over several strengths the largest or smallest change.

    Parameters
    ----------
    factors : list of float
        The strengths (lambda) that are judged together.
    take : {"largest", "smallest"}
        Which change stands for them: the one that is hardest on the claim.
    column : {"forgetting_change", "accuracy_change"}
        In percent of what fine-tuning forgot, or of the accuracy at lambda 1. Where a run forgot less than nothing
        the first has no meaning, and the seed has no effect.
    """
    run, pick = _gentlest(table, rank), {"largest": max, "smallest": min}[take]

    def effect(part: pd.DataFrame) -> float:
        rows = [_scaled_row(part, kind=kind, factor=factor, **run) for factor in factors]
        if column == "forgetting_change" and any(row[column] * row["loss_change"] < 0 for row in rows):
            raise MissingRun("nothing was forgotten")
        return pick(row[column] for row in rows)

    return by_seed(table, effect, outcome=_among(table, column, **run, kind=kind, factor=[1.0, *factors]))


@rule(needs=("seed", "r", "learning_rate", "kind", "factor", "changed", "{column}"))
def kinds_apart(table: pd.DataFrame, *, rank: int, factor: float, kind: str, beside: str, column: str) -> Effects:
    """`column` after scaling one kind of direction minus the same after scaling another (`beside`), at one strength."""
    run = _gentlest(table, rank)

    def effect(part: pd.DataFrame) -> float:
        one, other = (_scaled_row(part, kind=name, factor=factor, **run)[column] for name in (kind, beside))
        return one - other

    return by_seed(table, effect, outcome=_among(table, column, **run, kind=[kind, beside], factor=factor))


@rule(needs=("seed", "r", "learning_rate", "kind", "factor", "changed", "accuracy", "forgetting"))
def forgetting_at_equal_accuracy(table: pd.DataFrame, *, rank: int, factor: float, beside: str) -> Effects:
    """Forgetting after scaling intruders minus another kind's at equal accuracy, nats per token.

    The other kind's Pareto front, its lambdas from 0 to 1, is interpolated at the accuracy that scaling intruders by
    `factor` leaves. Beyond an end of the front its last point stands: no accuracy is made up.
    """
    run = _gentlest(table, rank)

    def effect(part: pd.DataFrame) -> float:
        row = _scaled_row(part, kind="intruder", factor=factor, **run)
        other = rows_where(part, **run, kind=beside)
        other = other[other["factor"] <= 1].assign(remembering=lambda t: -t["forgetting"])
        front = other[pareto_front(other, y="accuracy")].sort_values("accuracy")
        return row["forgetting"] - float(np.interp(row["accuracy"], front["accuracy"], front["forgetting"]))

    return by_seed(table, effect, outcome=_among(table, "forgetting", **run, kind=["intruder", beside]))


@rule(needs=("seed", "r", "learning_rate", "kind", "removed", "forgetting"))
def removal_trend(table: pd.DataFrame, *, rank: int, kind: str = "intruders") -> Effects:
    """Spearman's rho between how many directions of one kind are removed and forgetting."""
    run = _gentlest(table, rank)

    def effect(part: pd.DataFrame) -> float:
        rows = rows_where(part, **run, kind=kind)
        return trend(rows["removed"], rows["forgetting"])

    return by_seed(table, effect, outcome=_among(table, "forgetting", **run, kind=kind))


@rule(needs=("seed", "r", "learning_rate", "norm", "intruders", "relative_norm", "forgetting"))
def intruders_beyond_norm(table: pd.DataFrame, *, rank: int) -> Effects:
    """Forgetting with intruders minus without, nats per token, at one norm of every matrix's update.

    The norm is that which removing the intruders leaves. A run in which removing changes no norm had none to remove,
    and its seed has no effect.
    """
    run = _gentlest(table, rank)

    def effect(part: pd.DataFrame) -> float:
        own, kept, without = (rows_where(part, **run, norm=norm, intruders=which).iloc[0] for norm, which in (
            ("own", "kept"), ("smaller", "kept"), ("smaller", "removed")))
        if own["relative_norm"] == kept["relative_norm"]:
            raise MissingRun("no intruder to remove")
        return kept["forgetting"] - without["forgetting"]

    return by_seed(table, effect, outcome=_among(table, "forgetting", **run, norm="smaller"))


@rule(needs=("seed", "measured", "predicted"))
def strength_predicted(table: pd.DataFrame, *, factor: float) -> Effects:
    """Share of matrices whose critical strength is predicted within a factor.

    Where no strength makes an intruder (infinity), the prediction has to say so.
    """
    def effect(part: pd.DataFrame) -> float:
        right = (part["measured"] / part["predicted"]).between(1 / factor, factor)
        never = np.isinf(part["measured"]) & np.isinf(part["predicted"])
        return float((right | never).mean())

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed", "r", "method", "learning_rate", "n_intruders", "ratio"))
def threshold_separates(table: pd.DataFrame, *, rank: int) -> Effects:
    """Area under the curve of strength over critical strength as a sign of intruders: mean over one rank's runs.

    A run in which all matrices or none have intruders has no such area.
    """
    learnt = runs_that_learnt(table)

    def effect(part: pd.DataFrame) -> float:
        areas = separation(rows_where(part, r=rank))["auc"].dropna()
        if areas.empty:
            raise MissingRun(f"no run of r = {rank} with intruders in some matrices only")
        return areas.mean()

    return by_seed(learnt, effect, outcome=_among(learnt, "n_intruders", r=rank))
