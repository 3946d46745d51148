"""What several figures of learning and forgetting are drawn with: published panels, curves, planes of a trade-off.

Published values have hollow markers and panels of their own (another model, another measure), own results are filled,
the reference is a band or faint points. More is better upwards and to the right: axes of what is better small are
reversed.
"""

from collections.abc import Collection, Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.reporting.panels import doubling_axis, draw_lines, outer_legend, panels
from utils.reporting.selection import pareto_front
from utils.reporting.style import FRONT, method_styles

METRIC_LABELS = {"mean of three": "mean of HellaSwag,\nARC-Challenge, WinoGrande", "HumanEval": "HumanEval, pass@1",
                 "GSM8K": "GSM8K, accuracy", "MT-bench": "MT-bench, 1 to 10", "MMLU": "MMLU, accuracy"}
BASE_LINE = {"color": "black", "linestyle": "--", "linewidth": 1}


def published_panel(axis: Axes, part: pd.DataFrame, base: pd.DataFrame, *, title: str = "") -> None:
    """One published data set and metric: hollow markers, the base as a dashed line where its value is known.

    Parameters
    ----------
    part : pandas.DataFrame
        Rows of :func:`~utils.studies.learning.published.published_curves` or ``published_tulu``, of one metric.
    base : pandas.DataFrame
        :func:`~utils.studies.learning.published.published_base`.
    """
    dataset, metric = part["dataset"].iloc[0], part["metric"].iloc[0]
    for method, style in method_styles(part["method"].unique()).items():
        line = part[part["method"] == method]
        axis.plot(line["duration"], line["value"], label=f"{method}, published", markersize=5, markerfacecolor="none",
                  **style)
    for value in base[(base["dataset"] == dataset) & (base["metric"] == metric)]["value"]:
        axis.axhline(value, label="base model", **BASE_LINE)
    axis.set(xlabel=part["unit"].iloc[0], ylabel=METRIC_LABELS.get(metric, metric),
             title=title or f"published: {dataset}")
    doubling_axis(axis, part["duration"])


def over_durations(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, *, y: str, methods: Iterable[str],
                   joined: bool = True) -> None:
    """One data set of ours against how long was trained: a line for each method over the reference's band.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        ``method``, ``duration`` (above 0), `y`; a row per seed.
    methods : iterable of str
        All of the figure, so that each looks the same in every panel.
    joined : bool
        False for points alone, the reference's faint: two durations are no curve.
    """
    present = methods_of(own, reference)
    styles = {method: style for method, style in method_styles(methods).items() if method in present}
    if joined:
        draw_lines(axis, own, reference, x="duration", y=y, styles=styles)
    for method, style in {} if joined else styles.items():
        for table, look in ((reference, {"alpha": 0.35, "label": "_reference"}), (own, {"label": method})):
            if table is not None:
                axis.plot(*table.loc[table["method"] == method, ["duration", y]].to_numpy().T, **style | look | {
                    "linestyle": "none"})
    doubling_axis(axis, own["duration"])


def of(table: pd.DataFrame | None, column: str, value) -> pd.DataFrame | None:
    """The rows with a value in a column, or None of None."""
    return None if table is None else table[table[column] == value]


def methods_of(*tables: pd.DataFrame | None) -> list[str]:
    """The methods of all tables that are there, plain full fine-tuning first, then in order of appearance."""
    names = dict.fromkeys(name for table in tables if table is not None for name in table["method"])
    return sorted(names, key=lambda name: name != "full")  # the plain one first: it keeps its look


def published_above(own: pd.DataFrame, reference: pd.DataFrame | None, *, published: pd.DataFrame, base: pd.DataFrame,
                    y: str, xlabel: str, ylabel: str, titles: dict[str, str], joined: bool = True,
                    sharey: bool = False) -> Figure:
    """Published panels above, ours below with the axis reversed, so that up is better in both: one per data set each.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        With ``dataset``, as for :func:`over_durations`.
    published, base : pandas.DataFrame
        As for :func:`published_panel`.
    titles : dict of str to str
        Of our data sets' panels.
    sharey : bool
        Whether our panels have one scale.
    """
    above = [part for _, part in published.groupby("dataset", sort=False)]
    names = list(own["dataset"].unique())
    figure, axes = panels(len(above) + len(names), height=3.7)
    for axis, part in zip(axes, above, strict=False):
        published_panel(axis, part, base)
    ours = axes[len(above):]
    for axis, name in zip(ours, names, strict=True):
        over_durations(axis, of(own, "dataset", name), of(reference, "dataset", name), y=y, joined=joined,
                       methods=methods_of(own, reference))
        axis.set(xlabel=xlabel, ylabel=ylabel, title=titles.get(name, f"ours: {name}"))
    if sharey:
        limits = [end for axis in ours for end in axis.get_ylim()]
        for axis in ours:
            axis.set_ylim(min(limits), max(limits))
    for axis in ours:
        axis.invert_yaxis()
    outer_legend(figure, axes)
    return figure


def marker_areas(values: pd.Series) -> dict[float, float]:
    """Marker areas in points squared that grow with the order of the values, such as durations.

    >>> list(marker_areas(pd.Series([10, 40, 20])).values())
    [25.0, 87.5, 150.0]
    """
    known = sorted(values.unique())
    return {value: 25 + 125 * index / max(1, len(known) - 1) for index, value in enumerate(known)}


def front(axis: Axes, part: pd.DataFrame, *, x: str, y: str, smaller_is_better: Collection[str] = ()) -> None:
    """The Pareto front of all methods as a step: what lies below and left of it is beaten."""
    goodness = part.assign(**{column: -part[column] for column in (x, y) if column in smaller_is_better})
    best = goodness[pareto_front(goodness, x=x, y=y)].sort_values([x, y], ascending=[True, False]).index
    axis.plot(part.loc[best, x], part.loc[best, y], drawstyle="steps-pre", zorder=1, **FRONT)


def plane(axis: Axes, part: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str, styles: dict[str, dict],
          size: str, hollow: bool = False, labels: str | None = None) -> None:
    """Every model as a point whose area grows with `size`; a line joins the means of each value of it.

    Parameters
    ----------
    part, reference : pandas.DataFrame
        ``method``, `x`, `y`, `size`; reference points are faint.
    labels : str, optional
        A column whose values are written beside our points.
    """
    areas = marker_areas(part[size])
    for method, style in styles.items():
        look = {"color": style["color"], "marker": style["marker"]}
        if reference is not None:
            seeds = reference[reference["method"] == method]
            axis.plot(seeds[x], seeds[y], linestyle="none", alpha=0.3, markersize=4, **look)
        points = part[part["method"] == method]
        axis.scatter(points[x], points[y], s=points[size].map(areas), zorder=3, marker=style["marker"], alpha=0.85,
                     edgecolors=style["color"], facecolors="none" if hollow else style["color"])
        line = points.groupby(size)[[x, y]].mean()
        axis.plot(line[x], line[y], color=style["color"], linestyle=style["linestyle"], linewidth=0.9, alpha=0.7)
        for row in points.itertuples() if labels else ():
            axis.annotate(f"{getattr(row, labels):g}", (getattr(row, x), getattr(row, y)), textcoords="offset points",
                          xytext=(6, 5), fontsize="x-small", color=style["color"])


def plane_legend(figure: Figure, styles: dict[str, dict], *, larger: str, hollow: bool = False,
                 base: bool = False) -> None:
    """The methods, the front and what size means, under the panels."""
    handles = [Line2D([], [], color=style["color"], marker=style["marker"], linestyle=style["linestyle"], label=method,
                      markerfacecolor="none" if hollow else style["color"]) for method, style in styles.items()]
    if base:
        handles.append(Line2D([], [], color="black", marker="x", linestyle="none", label="base model"))
    handles.append(Line2D([], [], label="Pareto front", **FRONT))
    handles.append(Line2D([], [], linestyle="none", label=f"larger marker: {larger}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
