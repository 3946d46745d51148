"""From tidy frame to figure, for every study: panels side by side, lines with the reference's band.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.reporting.style import method_styles, use_style

PANEL = (5.2, 4.0)  # inches of one panel


def panels(count: int, *, height: float = PANEL[1], width: float = PANEL[0], sharey: bool = False):
    """A figure in the project's style with `count` panels side by side, and their axes."""
    use_style()
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, sharey=sharey)
    return figure, axes[0]


def draw_lines(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str,
               styles: dict[str, dict]) -> None:
    """One line per method of `own` (mean over its seeds) over the reference's smallest-to-largest band.

    The thin line is the reference's mean: where it holds a single seed, a band alone would not be seen.
    """
    for method, style in styles.items():
        if reference is not None:
            band = reference[reference["method"] == method].groupby(x)[y].agg(["min", "mean", "max"])
            axis.fill_between(band.index, band["min"], band["max"], color=style["color"], alpha=0.15, linewidth=0)
            axis.plot(band.index, band["mean"], color=style["color"], alpha=0.5, linewidth=1, label="_reference",
                      marker=style["marker"] if len(band) == 1 else None)  # a line of one point is not seen
        line = own[own["method"] == method].groupby(x)[y].mean()
        axis.plot(line.index, line.values, label=method, markersize=4, **style)


def task_panels(own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str):
    """One panel per task with one line per method; the legend, of the first task's methods, stands outside."""
    tasks = list(own["task"].unique())
    figure, axes = panels(len(tasks))
    styles = method_styles(list(own["method"].unique()))
    for axis, task in zip(axes, tasks, strict=True):
        part = own[own["task"] == task]
        band = None if reference is None else reference[reference["task"] == task]
        draw_lines(axis, part, band, x=x, y=y, styles={method: styles[method] for method in part["method"].unique()})
        axis.set_title(f"task: {task}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure, axes


def panel_lines(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, x: str, y: str, panel: str,
                by: str = "method", xlabel: str, ylabel: str, xscale: str = "linear", yscale: str = "linear",
                sharey: bool = True) -> Figure:
    """Lines of `y` against `x`, one per value of column `by`, in one panel per value of column `panel`.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Tidy; several rows at one place (seeds, matrices) are averaged, and give the reference its band.
    yscale : {"linear", "log", "symlog"}
        ``symlog`` is linear up to 1, for counts that may be zero.
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
        axis.set(xlabel=xlabel, title=str(title), xscale=xscale)
        if xscale == "log":
            axis.xaxis.set_minor_formatter(NullFormatter())  # below a decade their labels run into each other
        axis.set_yscale(yscale, **({"linthresh": 1} if yscale == "symlog" else {}))
    axes[0].set_ylabel(ylabel)
    handles = dict(pair for axis in axes for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", title=None if by == "method" else by)
    return figure


def by_value(table: pd.DataFrame | None, values: dict[str, str]) -> pd.DataFrame | None:
    """A table in long form, one row per measured column: ``panel`` (its label) and ``value``, for :func:`panel_lines`.

    >>> by_value(pd.DataFrame({"step": [1], "accuracy": [0.5]}), {"accuracy": "test accuracy"})["panel"].tolist()
    ['test accuracy']
    """
    if table is None:
        return None
    return pd.concat([table.assign(panel=label, value=table[column]) for column, label in values.items()],
                     ignore_index=True)
