"""Figures of notebook 11: how different a model's generations are, and how often they pass.

As in :mod:`utils.reporting.plots`: tables in, a figure out. The tables are those of :mod:`utils.reporting.generations`.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.reporting.panels import draw_lines, panels
from utils.reporting.statistics import mean_interval
from utils.reporting.style import method_styles

OUTCOMES = {"passed": "passing", "failed": "failing", "all": "passing or not"}
NOT_RUN = "not run"


def outcome_rows(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """The rows that say something: no counts of passing and failing generations where no code was run.

    Parameters
    ----------
    table : pandas.DataFrame or None
        :func:`utils.reporting.generations.diversity`. Without code its ``passed`` and ``failed`` rows are all zero,
        which would look like a count, and its ``not run`` rows are those of ``all``.

    Returns
    -------
    pandas.DataFrame or None
        With ``panel``, the outcome's title.

    Examples
    --------
    >>> outcome_rows(pd.DataFrame({"outcome": ["passed", "not run", "all"]}))["panel"].tolist()
    ['passing or not']
    """
    if table is None:
        return None
    known = ["all"] if (table["outcome"] == NOT_RUN).any() else list(OUTCOMES)
    kept = table[table["outcome"].isin(known)]
    return kept.assign(panel=kept["outcome"].map(OUTCOMES))


def over_problems(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Means over problems, one row per method, seed, temperature and outcome; problems without a value are left out."""
    keys = ["method", "seed", "temperature", "outcome"]
    return table.groupby(keys, sort=False)[columns].mean().reset_index()


def _panel_order(own: pd.DataFrame, reference: pd.DataFrame | None) -> list[str]:
    found = list(dict.fromkeys([*own["panel"], *([] if reference is None else reference["panel"])]))
    return sorted(found, key=list(OUTCOMES.values()).index) if set(found) <= set(OUTCOMES.values()) else found


def _seed_band(axis: Axes, place: int, reference: pd.DataFrame, *, y: str, colour) -> None:
    """The reference's seeds: from the smallest to the largest mean over problems, with a line at their mean."""
    means = reference.groupby("seed")[y].mean().dropna()
    if len(means):
        axis.fill_between([place - 0.3, place + 0.3], means.min(), means.max(), color=colour, alpha=0.2, linewidth=0)
        axis.hlines(means.mean(), place - 0.3, place + 0.3, color=colour, linewidth=1, alpha=0.6)


def method_points(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, y: str, ylabel: str,
                  unit: str = "task_id", sharey: bool = False) -> Figure:
    """A value of each method, one panel per ``panel``: a faint point per unit, their mean with its 95 % interval.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        ``panel``, ``method``, ``seed``, `unit`, `y`. The reference is a band of its seeds' means; a panel that only it
        has says so.
    y, ylabel : str
    unit : str
        Over which the interval is taken, such as problems; its rows of several seeds are averaged first.

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Figure 5, is this with unique strings per problem.
    """
    titles, methods = _panel_order(own, reference), list(own["method"].unique())
    styles = method_styles(methods)
    figure, axes = panels(len(titles), sharey=sharey, width=4.2)
    for axis, title in zip(axes, titles, strict=True):
        part = own[own["panel"] == title]
        for place, method in enumerate(methods):
            if reference is not None:
                band = reference[(reference["panel"] == title) & (reference["method"] == method)]
                _seed_band(axis, place, band, y=y, colour=styles[method]["color"])
            values = part[part["method"] == method].groupby(unit)[y].mean().dropna()
            if len(values):
                _spread(axis, place, values.to_numpy(), styles[method])
        axis.set(title=title, xlim=(-0.5, len(methods) - 0.5))
        axis.set_xticks(range(len(methods)), methods)
        if part.empty:
            axis.text(0.5, 0.94, "code not run here: reference only", transform=axis.transAxes, ha="center",
                      fontsize="small")
    axes[0].set_ylabel(ylabel)
    return figure


def _spread(axis: Axes, place: int, values: np.ndarray, style: dict) -> None:
    """The values beside one another, and their mean with its interval."""
    shifts = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0]
    axis.plot(place + np.asarray(shifts), np.sort(values), linestyle="none", marker=style["marker"], alpha=0.35,
              markersize=4, color=style["color"])
    mean, low, high = mean_interval(values)
    axis.errorbar(place, mean, yerr=None if np.isnan(low) else [[mean - low], [high - mean]], marker=style["marker"],
                  color=style["color"], markersize=9, capsize=4, markeredgecolor="white", linestyle="none")


def unique_against_count(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Unique strings of each problem against how many generations there were; the diagonal is the most.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Of :func:`outcome_rows`, without ``all`` where code was run: its count is the same for every problem.
    """
    titles = _panel_order(own, reference)
    styles = method_styles(list(own["method"].unique()))
    figure, axes = panels(len(titles), width=4.6)
    for axis, title in zip(axes, titles, strict=True):
        most = 1
        for place, (method, style) in enumerate(styles.items()):
            shift = 0.15 * (place - (len(styles) - 1) / 2)  # whole numbers lie on each other
            look = {"marker": style["marker"], "color": style["color"], "linestyle": "none"}
            if reference is not None:
                faint = reference[(reference["panel"] == title) & (reference["method"] == method)]
                axis.plot(faint["n"] + shift, faint["unique"], alpha=0.25, markersize=4, **look)
                most = max(most, faint["n"].max() if len(faint) else 1)
            part = own[(own["panel"] == title) & (own["method"] == method)]
            axis.plot(part["n"] + shift, part["unique"], alpha=0.7, label=method, **look)
            most = max(most, part["n"].max() if len(part) else 1)
        axis.plot((0, most), (0, most), color="grey", linewidth=1, label="all different")
        axis.set(title=title, xlabel="generations", xlim=(-0.5, most + 0.5), ylim=(-0.5, most + 0.5))
    axes[0].set_ylabel("unique strings")
    axes[0].legend(fontsize="x-small")
    return figure


def pass_curves(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """pass@k against k, one panel per temperature, one line per method (Figure S9).

    Parameters
    ----------
    own, reference : pandas.DataFrame
        :func:`utils.reporting.generations.pass_rates`: ``method``, ``temperature``, ``k``, ``pass_at_k``, ``low``,
        ``high``. Bars are the interval over problems of the first seed; without rows of our own, the reference alone is
        drawn. One of the two must have rows.
    """
    shown = reference if own.empty else own
    temperatures = sorted(shown["temperature"].unique())
    styles = method_styles(list(shown["method"].unique()))
    figure, axes = panels(len(temperatures), sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        part = shown[shown["temperature"] == temperature]
        band = None if reference is None else reference[reference["temperature"] == temperature]
        draw_lines(axis, part, band, x="k", y="pass_at_k", styles=styles)
        for place, (method, style) in enumerate(styles.items()):
            first = part[(part["method"] == method) & (part["seed"] == part["seed"].min())]
            spread = first["k"] * 1.03 ** (place - len(styles) / 2)
            axis.vlines(spread, first["low"], first["high"], color=style["color"], linewidth=1, alpha=0.6)
        ks = sorted(part["k"].unique())
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [f"{k:g}" for k in ks])
        axis.set(xlabel="k", ylim=(-0.02, 1.02),
                 title=f"temperature {temperature:g}" + ", reference" * own.empty)
    axes[0].set_ylabel("pass@k")
    axes[0].legend()
    return figure
