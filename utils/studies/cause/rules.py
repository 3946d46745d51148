"""The rules that judge notebook 07's claims: one effect per seed, in natural units and with the quantity's own sign.

Effects of changed models come with a paired bootstrap over seeds, test rows and passages.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, by_seed, rows_where
from utils.reporting.selection import runs_that_learnt
from utils.studies.cause.resampled import Powerless, Resampled, bootstrapped, interval
from utils.studies.cause.strengths import separation

SCALED = ("seed", "r", "learning_rate", "kind", "factor", "changed", "accuracy", "forgetting", "base_pseudo_loss",
          "right", "passage_nats")


def _gentlest(table: pd.DataFrame, rank: int) -> dict:
    """Rank and learning rate of the runs that are judged: the smallest rate that was scaled at this rank."""
    return {"r": rank, "learning_rate": table.loc[table["r"] == rank, "learning_rate"].min()}


def _judged(table: pd.DataFrame, run: dict, effect: Callable[[Resampled], np.ndarray], *, outcome: pd.Series
            ) -> Effects:
    """The effect in one run of each seed; a seed that lacks the run is named."""
    return bootstrapped(table, lambda all_rows: effect(Resampled(rows_where(all_rows.rows, **run))), outcome=outcome)


def _among(table: pd.DataFrame, column: str, **where) -> pd.Series:
    """The values that an effect compares, of the rows where each column has one of these values."""
    chosen = table
    for name, values in where.items():
        chosen = chosen[chosen[name].isin(values if isinstance(values, list) else [values])]
    return chosen[column]


@rule(needs=(*SCALED, "{column}"))
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
        In percent of what fine-tuning forgot, or of the accuracy at lambda 1. Where what a run forgot is not above zero
        for certain there is nothing to restore, and the seed has no effect.
    """
    run, pick = _gentlest(table, rank), {"largest": np.max, "smallest": np.min}[take]

    def effect(models: Resampled) -> np.ndarray:
        measure = models.forgetting if column == "forgetting_change" else models.accuracy
        there = [measure(kind=kind, factor=factor) for factor in factors]  # first: what cannot be scaled is said
        before = measure(kind=kind, factor=1)
        if column == "forgetting_change" and (before[0] <= 0 or interval(before)[0] <= 0):
            raise Powerless("nothing was forgotten that could be restored")
        return pick([100 * (one - before) / before for one in there], axis=0)

    return _judged(table, run, effect, outcome=_among(table, column, **run, kind=kind, factor=[1.0, *factors]))


@rule(needs=(*SCALED, "{column}"))
def kinds_apart(table: pd.DataFrame, *, rank: int, factor: float, kind: str, beside: str, column: str) -> Effects:
    """`column` after scaling one kind of direction minus the same after scaling another (`beside`), at one strength.

    Parameters
    ----------
    column : {"accuracy", "forgetting"}
    """
    run = _gentlest(table, rank)

    def effect(models: Resampled) -> np.ndarray:
        measure = {"accuracy": models.accuracy, "forgetting": models.forgetting}[column]
        one, other = (measure(kind=name, factor=factor) for name in (kind, beside))
        return one - other

    return _judged(table, run, effect, outcome=_among(table, column, **run, kind=[kind, beside], factor=factor))


@rule(needs=SCALED)
def forgetting_at_equal_accuracy(table: pd.DataFrame, *, rank: int, factor: float, beside: str) -> Effects:
    """Forgetting after scaling intruders minus another kind's at equal accuracy, nats per token.

    The other kind's Pareto front, its lambdas (or shares of the learning rate) from 0 to 1, is interpolated at the
    accuracy that scaling intruders by `factor` leaves, anew in every draw of the bootstrap. Beyond an end of the front
    its last point stands: no accuracy is made up, and what is said of such a run leaves the verdict open.
    """
    run = _gentlest(table, rank)

    def effect(models: Resampled) -> np.ndarray:
        accuracy, forgetting = (measure(kind="intruder", factor=factor)
                                for measure in (models.accuracy, models.forgetting))
        others = rows_where(models.rows, kind=beside)
        factors = [one for one in others["factor"] if one <= 1]
        if set(factors) <= {1.0}:
            raise MissingRun(f"no {beside} to compare with")
        points = [np.stack([measure(kind=beside, factor=one) for one in factors], axis=1)
                  for measure in (models.accuracy, models.forgetting)]
        return forgetting - on_the_front(*points, accuracy)

    effects = _judged(table, run, effect, outcome=_among(table, "forgetting", **run, kind=["intruder", beside]))
    beyond = [out_of_reach(part, beside, factor=factor) for seed, part in table.groupby("seed")
              if seed in effects.values.dropna().index]
    return replace(effects, undecided=f"in {sum(beyond)} of {len(beyond)} runs that accuracy is never had and the "
                   "nearest point stands in" if any(beyond) else "")


def out_of_reach(rows: pd.DataFrame, beside: str, *, factor: float) -> bool:
    """Whether scaling one run's intruders leaves an accuracy that none of the other kind's models encloses."""
    other = rows[(rows["kind"] == beside) & (rows["factor"] <= 1)]["accuracy"]
    left = rows_where(rows, kind="intruder", factor=factor)["accuracy"].iloc[0]
    return not other.min() <= left <= other.max()


def on_the_front(accuracies_D_P: np.ndarray, forgetting_D_P: np.ndarray, at_D: np.ndarray) -> np.ndarray:
    """What the best of P models forget at an accuracy, on the straight lines between them, draw by draw.

    >>> on_the_front(np.array([[0.5, 1.0, 0.75]]), np.array([[0.0, 1.0, 2.0]]), np.array([0.75])).tolist()
    [0.5]
    """
    order = np.argsort(accuracies_D_P, axis=1, kind="stable")
    accuracies, forgetting = (np.take_along_axis(one, order, axis=1) for one in (accuracies_D_P, forgetting_D_P))
    lines = zip(at_D, accuracies, forgetting, ~_beaten(accuracies, forgetting), strict=True)
    return np.array([np.interp(at, line[best], lost[best]) for at, line, lost, best in lines])


def _beaten(accuracies_D_P: np.ndarray, forgetting_D_P: np.ndarray) -> np.ndarray:
    """Which of P models another one beats, in each draw: as :func:`utils.reporting.selection.pareto_front` has it."""
    more, less = accuracies_D_P[:, :, None], forgetting_D_P[:, :, None]
    no_worse = (more >= accuracies_D_P[:, None]) & (less <= forgetting_D_P[:, None])  # [d, i, j]: i is as good as j
    better = (more > accuracies_D_P[:, None]) | (less < forgetting_D_P[:, None])
    return (no_worse & better).any(axis=1)


@rule(needs=("seed", "r", "learning_rate", "kind", "removed", "forgetting", "base_pseudo_loss", "passage_nats"))
def forgetting_after_removal(table: pd.DataFrame, *, rank: int, beside: str = "neighbours") -> Effects:
    """Forgetting with all intruders removed minus that with as many of `beside` removed, nats per token."""
    run = _gentlest(table, rank)

    def effect(models: Resampled) -> np.ndarray:
        left = []
        for kind in ("intruders", beside):
            count = rows_where(models.rows, kind=kind)["removed"].max()
            if count == 0:
                raise Powerless(f"no {kind} to remove")
            left.append(models.forgetting(kind=kind, removed=count))
        return left[0] - left[1]

    return _judged(table, run, effect, outcome=_among(table, "forgetting", **run))


@rule(needs=("seed", "r", "learning_rate", "norm", "intruders", "relative_norm", "forgetting", "base_pseudo_loss",
             "passage_nats"))
def intruders_beyond_norm(table: pd.DataFrame, *, rank: int) -> Effects:
    """Forgetting with intruders minus without, nats per token, at one norm of every matrix's update.

    The norm is that which removing the intruders leaves. A run in which removing changes no norm had none to remove,
    and its seed has no effect.
    """
    run = _gentlest(table, rank)

    def effect(models: Resampled) -> np.ndarray:
        own, smaller = (models.row(norm=norm, intruders="kept") for norm in ("own", "smaller"))
        if own["relative_norm"] == smaller["relative_norm"]:
            raise Powerless("no intruder to remove")
        kept, without = (models.forgetting(norm="smaller", intruders=which) for which in ("kept", "removed"))
        return kept - without

    return _judged(table, run, effect, outcome=_among(table, "forgetting", **run, norm="smaller"))


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
