"""What each method gives at its own best learning rate, drawn: test accuracy (notebook 02) and forgetting (06).

The rates are those of the grid that notebook 05 opens with, chosen on validation rows; no test row chose anything.
"""

import pandas as pd
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, Found, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import label_left, panels
from utils.reporting.rules import CLAIM_EPSILONS
from utils.reporting.selection import runs_that_learnt
from utils.reporting.style import method_style
from utils.reporting.words import both, listed
from utils.studies.what_moves.grid import GRIDS, at_chosen_rates

MAX_RANK = 64  # the highest that the paper's sentence on forgetting speaks of
PARITY = 0.02


def best_runs(grid: pd.DataFrame) -> pd.DataFrame:
    """The grids' runs that learnt at their methods' chosen rates, one row each, by task, rank and seed; full first.

    Parameters
    ----------
    grid : pandas.DataFrame
        As :func:`~utils.studies.what_moves.grid.rate_grid` measures it.
    """
    rows = grid[grid["experiment"].isin(GRIDS) & (grid["epsilon"] == CLAIM_EPSILONS[0])]
    return runs_that_learnt(at_chosen_rates(rows)).sort_values(["experiment", "r", "seed"], kind="stable")


def counts_at_best(grid: pd.DataFrame) -> pd.DataFrame:
    """Mean intruder dimensions at the chosen rates: a row per method (eight at most), a column per task and epsilon."""
    rows = grid[grid["experiment"].isin(GRIDS)]
    best = pd.concat([runs_that_learnt(at_chosen_rates(part)) for _, part in rows.groupby("epsilon")])
    best = best.assign(column=best["task"] + ", ε = " + best["epsilon"].astype(str)).sort_values("r", kind="stable")
    wide = best.pivot_table(index="method", columns="column", values="n_intruders", sort=False)
    return wide[sorted(wide.columns)].rename_axis(columns=None).reset_index().head(8)


def headline(grid: pd.DataFrame, *, max_rank: int = 16) -> str:
    """The sentence that notebook 04 begins with: how many runs at the chosen rates have an intruder, task by task.

    Parameters
    ----------
    grid : pandas.DataFrame
        As :func:`~utils.studies.what_moves.grid.rate_grid` measures it.
    max_rank : int
        Up to this rank; the paper finds intruders consistently up to 16.
    """
    rows = grid[grid["experiment"].isin(GRIDS) & (grid["r"] <= max_rank)]
    best = pd.concat([runs_that_learnt(at_chosen_rates(part)) for _, part in rows.groupby("epsilon")])
    tasks = [f"on {task} " + " and ".join(_with_some(part, kind) for kind in ("lora", "full"))
             for task, part in best.groupby("task", sort=False)]
    strict, lenient = CLAIM_EPSILONS
    return ("At the learning rates that validation rows choose, this many runs have an intruder dimension at "
            f"ε = {strict} (at ε = {lenient}): {'; '.join(tasks)}.")


def _with_some(runs: pd.DataFrame, kind: str) -> str:
    """How many runs of one kind have an intruder dimension, in words: ``0 (2) of the 6 of LoRA (r = 1, 8)``."""
    chosen = runs[runs["method_kind"] == kind]
    some = (chosen["n_intruders"] > 0).groupby(chosen["epsilon"]).agg(["sum", "size"])
    strict, lenient = (some.loc[epsilon] for epsilon in CLAIM_EPSILONS)
    ranks = ", ".join(map(str, sorted(chosen["r"].unique())))
    whose = "full fine-tuning" if kind == "full" else f"LoRA (r = {ranks})"
    return f"{strict['sum']} ({lenient['sum']}) of the {strict['size']} of {whose}"


def _by_method(grid: Measured, column: str, label: str) -> Drawn:
    grid = grid.rows(best_runs)
    best = grid.best
    tasks = list(best["task"].unique())
    drawn, axes = panels(max(len(tasks), 1), height=3.6)
    for axis, task in zip(axes, tasks, strict=False):
        _panel(axis, best[best["task"] == task], column)
        axis.set(title=f"task: {task}", xlabel="method, at its best rate")
    label_left(axes, label)
    means = best.groupby(["task", "method"], sort=False)[column].mean()
    alt = (f"One panel per task, a point per seed and method: {label}, each method at its best learning rate, "
           f"{grid.source}. Means: {_said(means, '{:.3f}', best)}.")
    wide = means.unstack("task", sort=False).reset_index()
    caption = (f"{label[0].upper()}{label[1:]} of each method at the rate that validation rows chose; small points are "
               "seeds, the dashed line is full fine-tuning's mean.")
    return Drawn(drawn, alt, caption,
                 best.drop(columns=["right", "passage_nats"]), wide.head(8))


def _panel(axis: Axes, rows: pd.DataFrame, column: str) -> None:
    """A large point at each method's mean, small ones at its seeds; full fine-tuning's mean as a line across."""
    for place, (method, part) in enumerate(rows.groupby("method", sort=False)):
        style = method_style(method) or {}
        look = {"color": style.get("color"), "marker": style.get("marker"), "linestyle": "none"}
        axis.plot([place + 0.2] * len(part), part[column], markersize=4, alpha=0.5, **look)
        axis.plot([place], [part[column].mean()], markersize=8, **look)
    full = rows.loc[rows["method_kind"] == "full", column]
    if len(full):
        axis.axhline(full.mean(), color="black", linestyle="--", linewidth=1)
    names = [name.removeprefix("LoRA ") for name in rows["method"].unique()]
    axis.set_xticks(range(len(names)), names, fontsize="small")


def _gaps(best: pd.DataFrame, column: str) -> pd.Series:
    """LoRA's mean minus full fine-tuning's by task and method, of :func:`best_runs`."""
    means = best.groupby(["task", "method"], sort=False)[column].mean()
    parts = [part.droplevel("task").drop("full") - part[(task, "full")] for task, part in means.groupby(
        level="task", sort=False) if (task, "full") in part.index]
    names = [task for task, part in means.groupby(level="task", sort=False) if (task, "full") in part.index]
    return pd.concat(parts, keys=names) if parts else pd.Series(dtype=float)


def _said(values: pd.Series, number: str, best: pd.DataFrame) -> str:
    """Values by task and method in words, with how many seeds of each task have runs."""
    seeds = best.groupby("task")["seed"].nunique()
    return "; ".join(f"{task} ({seeds[task]} seed{'s' if seeds[task] > 1 else ''}): {listed(values[task], number)}"
                     for task in values.index.unique(0))


@figure("02_at_best_rates", measurements=("rate_grid",), place="Illusion v3, Table 2")
def accuracy_at_best_rates(grid: Measured) -> Drawn:
    """Test accuracy of each method at its best rate, by task."""
    return _by_method(grid, "accuracy", "test accuracy")


@finding("02_at_best_rates")
def accuracy_at_best_rates_found(grid: Measured) -> Found:
    """What the tables say to :func:`accuracy_at_best_rates`, and whether it is what was expected."""
    grid = grid.rows(best_runs)
    gaps = _gaps(grid.best, "accuracy")
    if gaps.empty:
        return Found("The grid has no task with full fine-tuning and LoRA yet.", None)
    return Found(f"Test accuracy minus full fine-tuning's, each at its best rate, {grid.source}: "
                 f"{_said(gaps, '{:+.3f}', grid.best)}. The largest difference is {gaps.abs().max():.3f}.",
                 bool((gaps.abs() <= PARITY).all()))


@figure("06_at_best_rates", measurements=("rate_grid",), place="Illusion v3, Fig 6b")
def forgetting_at_best_rates(grid: Measured) -> Drawn:
    """Forgetting of each method at its best rate, by task."""
    return _by_method(grid, "forgetting", "forgetting, nats per token")


@finding("06_at_best_rates")
def forgetting_at_best_rates_found(grid: Measured) -> Found:
    """What the tables say to :func:`forgetting_at_best_rates`, and whether it is what was expected."""
    grid = grid.rows(best_runs)
    gaps = _gaps(grid.best, "forgetting")
    if gaps.empty:
        return Found("The grid has no task with full fine-tuning and LoRA yet.", None)
    ranks = grid.best.drop_duplicates("method").set_index("method")["r"]
    low = gaps[gaps.index.get_level_values(1).map(ranks) <= MAX_RANK]
    more = both(f"{method} ({task})" for (task, method), gap in low.items() if gap > 0)
    return Found("Forgetting minus full fine-tuning's in nats per token, each at its best rate, "
                 f"{grid.source}: {_said(gaps, '{:+.2f}', grid.best)}. Up to r = {MAX_RANK} "
                 f"{more or 'no LoRA'} forgets more than full fine-tuning.", bool((low < 0).all()))
