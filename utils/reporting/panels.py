"""From tidy frame to figure, for every study: panels side by side, lines with the reference's band.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from utils.reporting.style import method_styles, use_style

PANEL = (5.2, 4.0)  # inches of one panel
CHANCE = ("0.75", "0.55", "0.85")  # greys of what a random direction reaches, one for each length of the vectors
TICK_GAP = 0.08  # of a doubling axis, so that its labels do not touch
MOST_COLUMNS = 2  # panels in a row: more cannot be read at the 900 pixels of a code host


def panels(count: int, *, height: float = PANEL[1], width: float = PANEL[0], sharey: bool = False,
           columns: int = MOST_COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure in the project's style with `count` panels, at most two in a row, and their axes in reading order."""
    use_style()
    across = min(count, columns)
    down = -(-count // across)
    figure, axes = plt.subplots(down, across, figsize=(width * across, height * down), squeeze=False, sharey=sharey)
    flat = list(axes.flat)
    for spare in flat[count:]:
        spare.remove()
    if sharey:
        for axis in flat[:count]:
            axis.tick_params(labelleft=True)
    return figure, flat[:count]


def outer_legend(figure: Figure, axes: Iterable[Axes], *, title: str | None = None, columns: int | None = None) -> None:
    """One legend of all panels' labels under the figure, where it hides no data; a label in several panels once."""
    handles = dict(pair for axis in axes for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for axis in axes:
        if axis.get_legend():
            axis.get_legend().remove()
    width = figure.get_size_inches()[0]
    longest = max((len(label) for label in handles), default=1)
    fitting = max(1, int(width * 10 / (longest + 6)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", title=title,
                  ncols=columns or min(len(handles) or 1, fitting))


def draw_lines(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str,
               styles: dict[str, dict]) -> None:
    """One line per method of `own` (mean over its seeds) over the reference's smallest-to-largest band.

    The thin line is the reference's mean: where it holds a single seed, a band alone would not be seen. It has markers
    where `own` lacks the method, so that the legend can be read. Rows whose ``learnt`` is False enter neither mean nor
    band; they are drawn as hollow markers.
    """
    mine = set(own["method"])
    for method, style in styles.items():
        if reference is not None:
            rows, failed = _by_learning(reference[reference["method"] == method])
            band = rows.groupby(x)[y].agg(["min", "mean", "max"])
            axis.fill_between(band.index, band["min"], band["max"], color=style["color"], alpha=0.15, linewidth=0)
            bare = method in mine and len(band) > 1  # a line of one point is not seen
            axis.plot(band.index, band["mean"], color=style["color"], alpha=0.5, linewidth=1, label="_reference",
                      marker=None if bare else style["marker"], markersize=4)
            _hollow(axis, failed, x=x, y=y, style=style)
        rows, failed = _by_learning(own[own["method"] == method])
        line = rows.groupby(x)[y].mean()
        axis.plot(line.index, line.values, label=method, markersize=4, **style)
        _hollow(axis, failed, x=x, y=y, style=style)


def _by_learning(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    if "learnt" not in rows:
        return rows, rows.iloc[:0]
    learnt = rows["learnt"].astype(bool)
    return rows[learnt], rows[~learnt]


def _hollow(axis: Axes, failed: pd.DataFrame, *, x: str, y: str, style: dict) -> None:
    """Runs that did not learn their task, as hollow markers without a line."""
    if len(failed):
        axis.plot(failed[x], failed[y], linestyle="none", marker=style["marker"], markersize=5, markerfacecolor="none",
                  markeredgecolor=style["color"], alpha=0.6, label="_did not learn")


def chance_bands(axis: Axes, chance: pd.DataFrame, *, upright: bool = True) -> None:
    """Shade where a random direction's largest |cosine| lies, 5 to 95 %: one band for each length of the vectors.

    Parameters
    ----------
    axis : Axes
        With cosines or thresholds of them along it.
    chance : pandas.DataFrame
        ``dimension``, ``low``, ``high``, as from :func:`utils.spectra.random_ranges`.
    upright : bool
        The cosines lie along the horizontal axis; else along the vertical one.
    """
    span = axis.axvspan if upright else axis.axhspan
    for number, row in enumerate(chance.itertuples()):
        span(row.low, row.high, color=CHANCE[number % len(CHANCE)], alpha=0.5, linewidth=0, zorder=0,
             label=f"a random direction in {row.dimension} dimensions (5 to 95 %)")


def task_panels(own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str,
                chance: pd.DataFrame | None = None) -> tuple[Figure, list[Axes]]:
    """One panel per task with one line per method; one legend for all under the figure.

    `chance` has what :func:`chance_bands` shades, where `x` is a threshold of cosines.
    """
    tasks = list(own["task"].unique())
    figure, axes = panels(len(tasks))
    styles = method_styles(list(own["method"].unique()))
    for axis, task in zip(axes, tasks, strict=True):
        part = own[own["task"] == task]
        band = None if reference is None else reference[reference["task"] == task]
        draw_lines(axis, part, band, x=x, y=y, styles={method: styles[method] for method in part["method"].unique()})
        if chance is not None:
            chance_bands(axis, chance)
        axis.set_title(f"task: {task}")
    outer_legend(figure, axes)
    return figure, axes


def panel_lines(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, x: str, y: str, panel: str,
                by: str = "method", xlabel: str, ylabel: str, xscale: str = "linear", yscale: str = "linear",
                sharey: bool = True, chance: pd.DataFrame | None = None) -> Figure:
    """Lines of `y` against `x`, one per value of column `by`, in one panel per value of column `panel`.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Tidy; several rows at one place (seeds, matrices) are averaged, and give the reference its band.
    yscale : {"linear", "log", "symlog"}
        ``symlog`` is linear up to 1, for counts that may be zero.
    chance : pandas.DataFrame, optional
        What :func:`chance_bands` shades, where `x` is a threshold of cosines.
    """
    titles = list(dict.fromkeys([*own[panel], *([] if reference is None else reference[panel])]))
    figure, axes = panels(len(titles), sharey=sharey)
    names = list(dict.fromkeys([*own[by], *([] if reference is None else reference[by])]))
    styles = method_styles([str(name) for name in names])
    for axis, title in zip(axes, titles, strict=True):
        part = own[own[panel] == title].assign(method=lambda t: t[by].astype(str))
        band = None if reference is None else reference[reference[panel] == title].assign(
            method=lambda t: t[by].astype(str))
        present = [name for name in styles if name in set(part["method"]) | set([] if band is None else band["method"])]
        draw_lines(axis, part, band, x=x, y=y, styles={name: styles[name] for name in present})
        if chance is not None:
            chance_bands(axis, chance)
        axis.set(xlabel=xlabel, title=str(title), xscale=xscale)
        if xscale == "log":
            axis.xaxis.set_minor_formatter(NullFormatter())  # below a decade their labels run into each other
        axis.set_yscale(yscale, **({"linthresh": 1} if yscale == "symlog" else {}))
    label_left(axes, ylabel)
    outer_legend(figure, axes, title=None if by == "method" else by)
    return figure


def label_left(axes: Iterable[Axes], ylabel: str) -> None:
    """`ylabel` on the panels that stand leftmost in their row."""
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(ylabel)


def doubling_axis(axis: Axes, values: Iterable[float], form: str = "g") -> None:
    """A log2 axis with its ticks at the values themselves, such as durations; one too near the next larger has none."""
    known, ticks = sorted({value for value in values if value > 0}, reverse=True), []
    for value in known:
        if not ticks or np.log(ticks[-1] / value) > TICK_GAP * np.log(known[0] / known[-1]):
            ticks.append(value)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:{form}}" for tick in ticks], fontsize="small")
    axis.xaxis.set_minor_locator(NullLocator())


def by_value(table: pd.DataFrame | None, values: dict[str, str]) -> pd.DataFrame | None:
    """A table in long form, one row per measured column: ``panel`` (its label) and ``value``, for :func:`panel_lines`.

    >>> by_value(pd.DataFrame({"step": [1], "accuracy": [0.5]}), {"accuracy": "test accuracy"})["panel"].tolist()
    ['test accuracy']
    """
    if table is None:
        return None
    return pd.concat([table.assign(panel=label, value=table[column]) for column, label in values.items()],
                     ignore_index=True)
