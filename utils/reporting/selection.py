"""Which rows of a table count: last steps, runs that learnt, best rates, the front of a trade-off."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.sources.tasks import TASKS

LEARNT_SHARE = 2 / 3


def last_steps(table: pd.DataFrame, by: tuple[str, ...] | list[str] = ("experiment", "run")) -> pd.DataFrame:
    """Of a table with one row per checkpoint, the row of each run's last step."""
    return table.loc[table.groupby(list(by))["step"].idxmax()]


def marked(table: pd.DataFrame) -> pd.DataFrame:
    """A measurement's table as figures and rules read it: with ``method_kind`` and ``learnt`` where they can be told.

    ``method_kind`` is "full", "lora" or "base" (the untouched model), from ``method`` and ``r``: r = 0 alone would
    not tell full fine-tuning from the base.
    """
    if {"method", "r"} <= set(table.columns):
        kinds = np.where(table["method"] == "base", "base", np.where(table["r"] == 0, "full", "lora"))
        table = table.assign(method_kind=kinds)
    return mark_learnt(table)


def mark_learnt(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column ``learnt``: whether each row's run has learnt its task; unchanged where that is unknown.

    The one definition of the whole course: a run has learnt if, at its last step, it has gained at least two thirds
    of what the best run of the same seed, task and number of steps gained over the start. The gain is the accuracy
    above guessing among the task's labels, or the nats per token below the base's loss (``learning``). What a run
    that did not learn has of intruders or forgetting says nothing about a method: it is drawn hollow and enters no
    mean and no claim.

    Parameters
    ----------
    table : pandas.DataFrame
        ``run``, ``seed``, ``task`` and ``accuracy`` or ``learning``; ``step`` where there are several checkpoints, or
        ``steps`` of runs of several lengths with one row each.
    """
    gain = _gain(table)
    if gain is None or table.empty:
        return table
    rows = table.assign(gain=gain, step=next((table[name] for name in ("step", "steps") if name in table), 0))
    last = rows.sort_values("step", kind="stable").drop_duplicates("run", keep="last")
    best = last.groupby(["seed", "task", "step"])["gain"].transform("max")
    learnt = pd.Series((last["gain"] >= LEARNT_SHARE * best).to_numpy(), index=last["run"])
    return table.assign(learnt=table["run"].map(learnt).astype(bool))


def _gain(table: pd.DataFrame) -> pd.Series | None:
    if not {"run", "seed", "task"} <= set(table.columns):
        return None
    if "learning" in table:
        return table["learning"]
    tasks = set(table["task"])
    if "accuracy" not in table or not all(name in TASKS and TASKS[name].kind == "classification" for name in tasks):
        return None  # agreement with pairs of answers, for one, is called accuracy too
    if (table.groupby(["run", "step"] if "step" in table else ["run"])["accuracy"].nunique() > 1).any():
        return None  # rows of one run that differ are of changed models: none of them says what the run learnt
    return table["accuracy"] - table["task"].map({name: 1 / len(TASKS[name].labels) for name in tasks})


def runs_that_learnt(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that learnt their task, by :func:`mark_learnt`; all rows where that cannot be told."""
    marked = table if "learnt" in table else mark_learnt(table)
    return marked[marked["learnt"].astype(bool)] if "learnt" in marked else marked


def best_rates(table: pd.DataFrame, *, value: str = "accuracy", least: bool = False,
               by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """Of each group the rows at its best learning rate, by :func:`best_rate`.

    A comparison of methods at one rate each says more about the rates than about the methods.

    Parameters
    ----------
    table : pandas.DataFrame
        ``learning_rate``, ``seed``, `value` and the columns `by`; one row per run.
    value : str
        What the rates are compared by: the best is that of the largest mean, or of the smallest if `least` (a loss).
    """
    runs = table[["learning_rate", "seed", value]].assign(group=table.groupby(list(by), dropna=False).ngroup())
    means = comparable_rates(runs, ["group"]).groupby(["group", "learning_rate"])[value].mean().groupby("group")
    best = runs["group"].map(dict((means.idxmin() if least else means.idxmax()).tolist()))
    return table[(best == runs["learning_rate"]).to_numpy()]


def best_rate(table: pd.DataFrame, *, value: str = "accuracy", least: bool = False) -> float:
    """The learning rate of the best mean of `value`: the course's one way to choose a rate.

    Of equal rates the smaller is taken. See :func:`comparable_rates` for which seeds count.
    """
    means = comparable_rates(table).groupby("learning_rate")[value].mean()
    return means.idxmin() if least else means.idxmax()


def comparable_rates(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rows by which learning rates are compared (within each group of `by`): of the seeds that all rates have.

    A rate made with the first seed alone would win or lose on that seed. Where the rates share none, those with the
    most seeds are compared.
    """
    group = table.groupby(list(by), dropna=False).ngroup() if by else 0
    runs = table[["learning_rate", "seed"]].assign(group=group).reset_index(drop=True)
    rates, seeds = (runs.groupby(["group", one])[other].transform("nunique")
                    for one, other in (("seed", "learning_rate"), ("learning_rate", "seed")))
    shared = rates == runs.groupby("group")["learning_rate"].transform("nunique")
    most = seeds == seeds.groupby(runs["group"]).transform("max")
    return table[shared.where(shared.groupby(runs["group"]).transform("any"), most).to_numpy(dtype=bool)]


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
