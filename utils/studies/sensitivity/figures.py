"""Figures of notebook 13: loss and forgetting against the learning rate, modules, best rate against rank.

As in :mod:`utils.reporting.plots`: tables in, a figure out. Own runs have large outlined markers, the reference's runs
are faint points with a thin line at their mean over seeds.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from utils.reporting.panels import panels
from utils.reporting.style import method_styles
from utils.studies.sensitivity.tables import LOSS

OWN = {"markersize": 9, "markeredgecolor": "black", "zorder": 4}
SEEDS = {"linestyle": "none", "markersize": 5, "alpha": 0.4, "zorder": 2}


def _all_of(own: pd.DataFrame, reference: pd.DataFrame | None, column: str) -> list:
    """The values of a column in both tables, the reader's first."""
    both = own[column] if reference is None else pd.concat([own[column], reference[column]])
    return list(dict.fromkeys(both))


def _series(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, style: dict, *, x: str, y: str) -> None:
    """One series: its own runs over the reference's seeds and their mean."""
    if reference is not None and len(reference):
        axis.plot(reference[x], reference[y], color=style["color"], marker=style["marker"], label="_seeds", **SEEDS)
        means = reference.groupby(x)[y].mean()
        axis.plot(means.index, means, color=style["color"], linestyle=style["linestyle"], linewidth=1, label="_mean")
    means = own.groupby(x)[y].mean()
    axis.plot(means.index, means, **style, **OWN, linewidth=1.5, label="_own")


def _legend(figure: Figure, styles: dict[str, dict], *, reference: bool, more: tuple[Line2D, ...] = ()) -> None:
    """The series beside the panels, and how the reader's runs and the reference's look."""
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    handles.append(Line2D([], [], color="grey", marker="o", markeredgecolor="black", markersize=9, linestyle="none",
                          label="your runs, mean"))
    if reference:
        handles.append(Line2D([], [], color="grey", marker="o", markersize=5, alpha=0.5, linewidth=1,
                              label="reference: seeds, mean"))
    figure.legend(handles=[*handles, *more], loc="outside right center", fontsize="x-small")


def _rate_ticks(side: Axis) -> None:
    """Ticks at 1 and 3 times powers of ten, as the rates are spaced; the usual minor labels would overlap."""
    side.set_major_locator(LogLocator(subs=(1, 3)))
    side.set_major_formatter("{x:g}")
    side.set_minor_formatter(NullFormatter())
    side.set_tick_params(labelsize="x-small")


def rate_panels(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, y: str = LOSS,
                ylabel: str = "held-out loss, nats per token", x: str = "learning_rate",
                xlabel: str = "learning rate") -> Figure:
    """A measure against the learning rate, one line per series, one panel per ``panel`` (Figures S1 to S3 and 7).

    Parameters
    ----------
    own, reference : pandas.DataFrame
        :func:`utils.reporting.sensitivity.selection`: ``panel``, ``series``, `x`, `y`, one row per run.
    x : str
        Positive; its axis is logarithmic.
    """
    names, rates = _all_of(own, reference, "panel"), _all_of(own, reference, x)
    figure, axes = panels(len(names), sharey=True, width=4.6)
    styles = method_styles(_all_of(own, reference, "series"))
    for axis, name in zip(axes, names, strict=True):
        for series, style in styles.items():
            mine, theirs = (None if table is None else table[(table["panel"] == name) & (table["series"] == series)]
                            for table in (own, reference))
            if len(mine) or (theirs is not None and len(theirs)):
                _series(axis, mine, theirs, style, x=x, y=y)
        axis.set(xscale="log", xlabel=xlabel, title=name, xlim=(min(rates) / 1.3, max(rates) * 1.3))
        _rate_ticks(axis.xaxis)
    axes[0].set_ylabel(ylabel)
    _legend(figure, styles, reference=reference is not None)
    return figure


def module_dots(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, y: str = LOSS,
                ylabel: str = "held-out loss, nats per token") -> Figure:
    """Which modules are tuned, at equal numbers of trained parameters: a dot per run, a colour per rate (Figure 7).

    Parameters
    ----------
    own, reference : pandas.DataFrame
        ``series`` (the modules and the rank), ``learning_rate``, `y`.
    """
    figure, (axis,) = panels(1, width=6)
    places = {name: place for place, name in enumerate(_all_of(own, reference, "series"))}
    rates = sorted(_all_of(own, reference, "learning_rate"))
    styles = method_styles([f"rate {rate:g}" for rate in rates])
    for index, (rate, style) in enumerate(zip(rates, styles.values(), strict=True)):
        look, shift = {"color": style["color"], "marker": style["marker"]}, 0.2 * (index - (len(rates) - 1) / 2)
        if reference is not None:
            part = reference[reference["learning_rate"] == rate]
            axis.plot(_placed(part["series"], places) + shift, part[y], label="_seeds", **look, **SEEDS)
            means = part.groupby("series", sort=False)[y].mean()
            axis.plot(_placed(means.index, places) + shift, means, "_", color=style["color"], markersize=16,
                      label="_mean")
        means = own[own["learning_rate"] == rate].groupby("series", sort=False)[y].mean()
        axis.plot(_placed(means.index, places) + shift, means, linestyle="none", label="_own", **look, **OWN)
    axis.set(xticks=list(places.values()), xticklabels=list(places), ylabel=ylabel, xlim=(-0.5, len(places) - 0.5))
    _legend(figure, {name: style | {"linestyle": "none"} for name, style in styles.items()},
            reference=reference is not None)
    return figure


def _placed(names, places: dict[str, int]) -> np.ndarray:
    """Places of names on an axis; of none as well, where a rate is the reference's alone."""
    return np.array([places[name] for name in names], dtype=float)


def best_rate_lines(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Best learning rate against rank on logarithmic axes, one line per scaling.

    Where the best lies at the end of its grid an arrow points to where the true one may be; a rank of which a single
    rate was tried is a small cross, as nothing was compared.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        :func:`utils.reporting.sensitivity.best_rates` by ``scaling`` and ``r``.
    """
    figure, (axis,) = panels(1, width=6)
    styles = method_styles(_all_of(own, reference, "scaling"))
    known = pd.concat([table for table in (own, reference) if table is not None])
    for index, (name, style) in enumerate(styles.items()):
        shift = 1.05 ** (index - (len(styles) - 1) / 2)  # equal best rates would hide each other
        for table, look in ((reference, {"markersize": 5, "linewidth": 1, "alpha": 0.6}), (own, OWN)):
            if table is not None:
                part = table[table["scaling"] == name].sort_values("r")
                _best_line(axis, part.assign(r=part["r"] * shift), style | look)
    ranks = sorted(known["r"].unique())
    axis.set(xscale="log", yscale="log", xlabel="rank r", ylabel="best learning rate of those tried")
    _rate_ticks(axis.yaxis)
    axis.xaxis.set_major_locator(FixedLocator(ranks))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(known["learning_rate"].min() / 3, known["learning_rate"].max() * 3)
    more = (Line2D([], [], color="grey", marker=r"$\uparrow$", linestyle="none", label="end of the grid: a bound"),
            Line2D([], [], color="grey", marker="x", linestyle="none", label="only one rate tried"))
    _legend(figure, styles, reference=reference is not None, more=more)
    return figure


def _best_line(axis: Axes, part: pd.DataFrame, look: dict) -> None:
    """The line of one scaling through the ranks with several rates, arrows at bounds, crosses where one was tried."""
    several, single = part[part["edge"] != "only"], part[part["edge"] == "only"]
    axis.plot(several["r"], several["learning_rate"], label="_best", **look)
    axis.plot(single["r"], single["learning_rate"], "x", color=look["color"], markersize=7, label="_only")
    for row in several[several["edge"] != ""].itertuples():
        axis.annotate("", (row.r, row.learning_rate * (1.9 if row.edge == "highest" else 1 / 1.9)),
                      (row.r, row.learning_rate), arrowprops={"arrowstyle": "->", "color": look["color"]})
