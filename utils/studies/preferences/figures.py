"""Figures of notebook 16: agreement with preferences over steps, rewards, what was paid for them, intruders.

As in :mod:`utils.reporting.plots`: tables in, a figure out. Own runs have outlined markers, the reference's seeds are
faint points; bars are 95 % intervals of a share of held-out pairs (1.96 binomial standard errors), not of seeds.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.reporting.panels import panels
from utils.reporting.style import method_styles

NAMES = {"sft": "SFT", "dpo": "DPO", "swapped": "DPO, pairs swapped", "orpo": "ORPO", "online_dpo": "online DPO"}
WIDTH = 1.96  # standard errors to either side
OWN = {"markersize": 8, "markeredgecolor": "black", "zorder": 4}
SEEDS = {"linestyle": "none", "markersize": 5, "alpha": 0.4, "zorder": 2}


def series_of(table: pd.DataFrame) -> pd.Series:
    """What a run is called in a legend, such as ``DPO, full``."""
    return table["experiment"].map(NAMES).fillna(table["experiment"]) + ", " + table["method"]


def _styles(*tables: pd.DataFrame | None) -> dict[str, dict]:
    return method_styles(list(dict.fromkeys(pd.concat([series_of(table) for table in tables if table is not None]))))


def curves_over_steps(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, columns: dict[str, str],
                      levels: dict[str, float] | None = None) -> Figure:
    """Columns against the optimiser step, one panel per column (column -> axis label), one line per series.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Rows of :func:`utils.reporting.preferences.preference_curves`, one learning rate for each series.
    levels : dict of str to float, optional
        A dashed line for a column, such as chance.
    """
    figure, axes = panels(len(columns))
    styles = _styles(own, reference)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for name, style in styles.items():
            for table, look in ((reference, SEEDS | {"marker": style["marker"]}), (own, style | OWN)):
                part = None if table is None else table[series_of(table) == name]
                if part is not None and len(part):
                    _line(axis, part, column, look | {"color": style["color"]}, bars=table is own)
        if column in (levels or {}):
            axis.axhline(levels[column], color="grey", linestyle="--", linewidth=1)
        axis.set(xlabel="optimiser step", ylabel=label)
    figure.legend(handles=_handles(styles, reference), loc="outside right center", fontsize="x-small")
    return figure


def _line(axis: Axes, part: pd.DataFrame, column: str, look: dict, *, bars: bool) -> None:
    means = part.groupby("step")[[name for name in (column, f"{column}_se") if name in part]].mean()
    if bars:
        axis.plot(means.index, means[column], **look)
        if f"{column}_se" in means:
            axis.errorbar(means.index, means[column], yerr=WIDTH * means[f"{column}_se"], fmt="none",
                          ecolor=look["color"], elinewidth=1, alpha=0.6)
    else:
        axis.plot(part["step"], part[column], **look)


def _handles(styles: dict[str, dict], reference: pd.DataFrame | None) -> list[Line2D]:
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    if reference is not None:
        handles.append(Line2D([], [], color="grey", marker="o", alpha=0.5, linestyle="none", label="reference: seeds"))
    return handles


def dots_by_series(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, columns: dict[str, str],
                   level: float | None = None) -> Figure:
    """One dot for each series, in panels by column (column -> axis label), with the interval where there is one."""
    figure, axes = panels(len(columns), width=4.6)
    styles = _styles(own, reference)
    place = {name: index for index, name in enumerate(styles)}
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for name, style in styles.items():
            look = {"color": style["color"], "marker": style["marker"]}
            if reference is not None:
                values = reference.loc[series_of(reference) == name, column]
                axis.plot([place[name]] * len(values), values, **look, **SEEDS)
            part = own[series_of(own) == name]
            if len(part):
                error = WIDTH * part[f"{column}_se"].mean() if f"{column}_se" in part else None
                axis.errorbar([place[name]], [part[column].mean()], yerr=error, linestyle="none", **look, **OWN)
        if level is not None:
            axis.axhline(level, color="grey", linestyle="--", linewidth=1)
        axis.set(ylabel=label, xlim=(-0.5, len(place) - 0.5))
        axis.set_xticks(list(place.values()), list(place), rotation=40, ha="right", fontsize="x-small")
    return figure


def cost_of_preference(own: pd.DataFrame, reference: pd.DataFrame | None = None, *,
                       controls: pd.DataFrame | None = None) -> Figure:
    """Forgetting since the start against agreement, every run a point; and the same against the KL from the start.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        :func:`utils.reporting.preferences.preference_outcomes`.
    controls : pandas.DataFrame, optional
        :func:`utils.reporting.preferences.preference_controls`: its random updates are drawn as crosses.
    """
    figure, axes = panels(2, sharey=True)
    styles = _styles(own, reference)
    for axis, (column, label) in zip(axes, (("accuracy", "agreement with held-out pairs"),
                                            ("kl_nats_per_token", "KL from the start, nats per token")), strict=True):
        for name, style in styles.items():
            look = {"color": style["color"], "marker": style["marker"]}
            for table, more in ((reference, SEEDS), (own, OWN | {"linestyle": "none"})):
                if table is not None:
                    part = table[series_of(table) == name]
                    axis.plot(part[column], part["forgetting_since_start"], **look, **more)
        if controls is not None:
            random = controls[controls["control"] != "trained"]
            axis.plot(random[column], random["forgetting_since_start"], "x", color="grey", markersize=7)
        axis.axhline(0, color="grey", linewidth=1)
        axis.set(xlabel=label)
    axes[0].set_ylabel("forgetting since the start, nats per token")
    more = [] if controls is None else [Line2D([], [], color="grey", marker="x", linestyle="none",
                                               label="random update, equal norm")]
    figure.legend(handles=_handles({name: style | {"linestyle": "none"} for name, style in styles.items()}, reference)
                  + more, loc="outside right center", fontsize="x-small")
    return figure


def template_bars(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """A reward model's agreement under each template, with its interval; chance is the dashed line."""
    figure, (axis,) = panels(1, width=5)
    names = list(dict.fromkeys(own["template"]))
    means = own.groupby("template", sort=False)[["accuracy", "accuracy_se"]].mean().loc[names]
    axis.errorbar(range(len(names)), means["accuracy"], yerr=WIDTH * means["accuracy_se"], fmt="o", color="black",
                  **OWN)
    if reference is not None:
        axis.plot(reference["template"].map(names.index), reference["accuracy"], "o", color="grey", **SEEDS)
    axis.axhline(0.5, color="grey", linestyle="--", linewidth=1)
    axis.set(ylabel="agreement with held-out pairs", xlim=(-0.5, len(names) - 0.5))
    axis.set_xticks(range(len(names)), names)
    return figure
