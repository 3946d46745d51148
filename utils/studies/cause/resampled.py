"""Accuracy and loss of changed models as they would be on other test rows and other passages: the paired bootstrap.

Every model of a table answered the same test rows and read the same passages. Drawing both anew, the same for all
models, gives what any comparison of them would have been: also one that is no mean over items, such as forgetting at
equal accuracy. The first entry of every array is the sample itself.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from utils.reporting.items import passage_losses, right_answers
from utils.reporting.rules import Effects, MissingRun, by_seed, rows_where

DRAWS = 2000
LEVELS = (0.025, 0.975)


class Powerless(MissingRun):
    """The run is there, but has nothing that an intervention could change or restore."""


@lru_cache(maxsize=8)
def _weights(count: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """How much each of `count` items weighs in the sample (first row) and in every draw with replacement."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws) / count
    return np.vstack([np.full(count, 1 / count), drawn])


class Resampled:
    """Outcomes of one run's changed models, in the sample and in each draw: arrays of shape (1 + draws,).

    Parameters
    ----------
    rows : pandas.DataFrame
        Of one run, with ``passage_nats``, ``base_pseudo_loss`` and, for accuracies, ``right``.
    """

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows
        self._known: dict[tuple, np.ndarray] = {}

    def row(self, **where) -> pd.Series:
        """The one row with these values; MissingRun where there is none, or where nothing could be changed."""
        found = rows_where(self.rows, **where)
        if "factor" in where and (found["changed"] == 0).all():
            raise Powerless(f"no {where['kind']} to scale")
        there = _with_items(found)
        if where.get("factor") == 1 and there.empty:  # all kinds share it, and one holds its items
            there = _with_items(rows_where(self.rows, factor=1))
        if there.empty:
            raise MissingRun("no items to compare")
        return there.iloc[0]

    def accuracy(self, **where) -> np.ndarray:
        """Test accuracy of the model of that row."""
        return self._once("right", self.row(**where), right_answers)

    def forgetting(self, **where) -> np.ndarray:
        """Pseudo-loss over the untouched base's; where the table has no passages of that, it stays as it is."""
        base = self.rows[(self.rows["kind"] == "whole update") & (self.rows["factor"] == 0)] \
            if "factor" in self.rows else self.rows.iloc[:0]
        row = self.row(**where)
        before = self._once("passage_nats", base.iloc[0], passage_losses) if len(base) else row["base_pseudo_loss"]
        return self._once("passage_nats", row, passage_losses) - before

    def _once(self, column: str, row: pd.Series, read: Callable[[pd.Series], np.ndarray]) -> np.ndarray:
        """Means of a row's items in the sample and in every draw; rows are asked for many times."""
        if (column, row.name) not in self._known:
            values = read(row).astype(float)
            self._known[column, row.name] = _weights(len(values), seed=len(column)) @ values
        return self._known[column, row.name]


def _with_items(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["passage_nats"].fillna("") != ""]


def bootstrapped(table: pd.DataFrame, effect: Callable[[Resampled], np.ndarray], *, outcome: pd.Series) -> Effects:
    """Effects by seed, and their mean over seeds in every draw of seeds, test rows and passages.

    Parameters
    ----------
    table : pandas.DataFrame
        The rows of one run per seed.
    effect : callable
        Takes one seed's :class:`Resampled` and returns the effect in the sample and in each draw, or raises MissingRun.
    outcome : pandas.Series
        As in :func:`utils.reporting.rules.by_seed`.

    Returns
    -------
    Effects
        With ``draws``; with ``no_power`` where no seed has anything to compare, for want of intruders or of forgetting.
    """
    drawn: list[np.ndarray] = []
    powerless: list[str] = []

    def in_the_sample(part: pd.DataFrame) -> float:
        try:
            values = effect(Resampled(part))
        except Powerless as reason:
            powerless.append(str(reason))
            raise
        drawn.append(values[1:])
        return float(values[0])

    found = by_seed(table, in_the_sample, outcome=outcome)
    nothing = bool(powerless) and len(powerless) == len(found.values)
    return replace(found, draws=_over_drawn_seeds(drawn) if drawn else None,
                   no_power="; ".join(dict.fromkeys(powerless)) if nothing else "")


def _over_drawn_seeds(values: list[np.ndarray]) -> np.ndarray:
    """Mean over seeds that are drawn with replacement, too, in each draw."""
    return np.einsum("ds,sd->d", _weights(len(values), seed=2)[1:], np.array(values))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws behind an array of this module."""
    low, high = np.quantile(values[1:], LEVELS)
    return float(low), float(high)


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """What each kind of change does to one run's accuracy and forgetting: means over seeds with their intervals.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of :func:`utils.studies.cause.measure.interventions`, of one run per seed.

    Returns
    -------
    pandas.DataFrame
        One row per ``kind`` and ``factor``: ``accuracy`` and ``forgetting`` (nats per token), each minus that of the
        run itself, with ``_low`` and ``_high``. Seeds without an intruder are in no row but the whole update's and the
        smaller rates'.
    """
    seeds = [Resampled(part) for _, part in rows.groupby("seed")]
    found = []
    for kind, factor in rows[["kind", "factor"]].drop_duplicates().itertuples(index=False):
        row = {"kind": kind, "factor": factor}
        for column in ("accuracy", "forgetting"):
            moved = []
            for models in seeds:
                measure = getattr(models, column)
                try:
                    moved.append(measure(kind=kind, factor=factor) - measure(kind=kind, factor=1))
                except MissingRun:
                    continue
            if moved:
                low, high = np.quantile(_over_drawn_seeds([one[1:] for one in moved]), LEVELS)
                row |= {column: float(np.mean([one[0] for one in moved])), f"{column}_low": float(low),
                        f"{column}_high": float(high)}
        found += [row] if "accuracy" in row else []
    return pd.DataFrame(found, columns=["kind", "factor", *(f"{column}{end}" for column in ("accuracy", "forgetting")
                                                            for end in ("", "_low", "_high"))])
