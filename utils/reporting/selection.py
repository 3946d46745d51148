"""Which rows of a table count: last steps, runs that learnt, best rates, the front of a trade-off."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def last_steps(table: pd.DataFrame, by: tuple[str, ...] | list[str] = ("experiment", "run")) -> pd.DataFrame:
    """Of a table with one row per checkpoint, the row of each run's last step."""
    return table.loc[table.groupby(list(by))["step"].idxmax()]


def runs_that_learnt(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table with ``seed``, ``run``, ``step``, ``accuracy``: the runs within 0.1 of their seed's best at the end.

    A run that did not learn its task has intruders and forgetting that say nothing about a method.
    """
    last = last_steps(table, by=["run"])
    best = last.groupby("seed")["accuracy"].transform("max")
    return table[table["run"].isin(last.loc[last["accuracy"] >= best - 0.1, "run"])]


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table with ``method``, ``learning_rate``, ``seed`` and ``accuracy``: each method at its best mean accuracy.

    A comparison of methods at one rate each says more about the rates than about the methods. Rates are compared over
    the seeds that all of a method's rates have: one made with the first seed alone wins or loses on that seed. Where
    they share none, those with the most seeds are compared; of equal ones the smaller rate is taken.
    """
    best = {method: _best_rate(part) for method, part in table.groupby("method", sort=False)}
    return table[table["learning_rate"] == table["method"].map(best)]


def _best_rate(table: pd.DataFrame) -> float:
    seeds = table.groupby("learning_rate")["seed"].agg(set)
    shared = set.intersection(*seeds)
    if not shared:
        most = seeds.map(len)
        table = table[table["learning_rate"].isin(most.index[most == most.max()])]
    means = (table[table["seed"].isin(shared)] if shared else table).groupby("learning_rate")["accuracy"].mean()
    return means.idxmax()


def pareto_front(table: pd.DataFrame, *, x: str = "remembering", y: str = "learning",
                 by: Sequence[str] = ()) -> pd.Series:
    """Which points no other beats: none is at least as good on both axes and better on one.

    Parameters
    ----------
    table : pandas.DataFrame
    x, y : str
        Columns of which more is better; a row with NaN in either is on no front.
    by : sequence of str
        Columns within whose groups the points compete, such as ``["dataset"]``; by default all compete.

    Returns
    -------
    pandas.Series of bool
        In the order and with the index of `table`; equal points are on the front together.

    Examples
    --------
    >>> points = pd.DataFrame({"remembering": [1, 2, 3, 2], "learning": [3, 2, 1, 1]})
    >>> pareto_front(points).tolist()
    [True, True, True, False]
    """
    flags = np.zeros(len(table), dtype=bool)
    groups = [*table.groupby(list(by), dropna=False).indices.values()] if by else [np.arange(len(table))]
    for places in groups:
        points = table[[x, y]].to_numpy(dtype=float)[places]
        no_worse = (points[:, None] >= points[None]).all(axis=2)  # [i, j]: i is at least as good as j on both axes
        better = (points[:, None] > points[None]).any(axis=2)
        flags[places] = ~(no_worse & better).any(axis=0) & ~np.isnan(points).any(axis=1)
    return pd.Series(flags, index=table.index, name="on_front")
