"""Figures of "LoRA Learns Less and Forgets Less": curves over training, the trade-off, spectra of the update, memory.

As in :mod:`utils.reporting.plots`: tables in, a figure out. Full fine-tuning is black, published values have hollow
markers and panels of their own (another model, another measure), reference results are a band or faint points.
"""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from utils.reporting.panels import PANEL, draw_lines
from utils.reporting.selection import pareto_front
from utils.reporting.style import FRONT, method_styles, use_style

METRIC_LABELS = {"mean of three": "mean of HellaSwag,\nARC-Challenge, WinoGrande", "HumanEval": "HumanEval, pass@1",
                 "GSM8K": "GSM8K, accuracy"}
TICK_GAP = 0.08  # of the axis, so that labels do not touch


def _doubling_axis(axis: Axes, values: Sequence[float]) -> None:
    """A log2 axis with its ticks at the durations themselves; one too near the next longer has none."""
    known, ticks = sorted({value for value in values if value > 0}, reverse=True), []
    for value in known:
        if not ticks or np.log(ticks[-1] / value) > TICK_GAP * np.log(known[0] / known[-1]):
            ticks.append(value)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize="small")
    axis.xaxis.set_minor_locator(NullLocator())


def _published_panel(axis: Axes, part: pd.DataFrame, base: pd.DataFrame | None, styles: dict[str, dict]) -> None:
    """One published data set: hollow markers, the base as a dashed line."""
    for method in part["method"].unique():
        line = part[part["method"] == method]
        axis.plot(line["duration"], line["value"], label=method, markersize=5, markerfacecolor="none", **styles[method])
    if base is not None:
        known = base[(base["dataset"] == part["dataset"].iloc[0]) & (base["metric"] == part["metric"].iloc[0])]
        for value in known["value"]:
            axis.axhline(value, color="black", linestyle="--", linewidth=1, label="base model")
    metric = part["metric"].iloc[0]
    axis.set(xlabel=part["unit"].iloc[0], ylabel=METRIC_LABELS.get(metric, metric),
             title=f"published: {part['dataset'].iloc[0]}")
    _doubling_axis(axis, part["duration"])


def _grid(count: int):
    """Axes for `count` panels: one row of up to three, or rows of two."""
    use_style()
    columns = count if count < 4 else 2
    rows = -(-count // columns)
    width = PANEL[0] * max(columns, 1.6)  # beside a single panel the legend would take most of the width
    figure, axes = plt.subplots(rows, columns, figsize=(width, PANEL[1] * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def published_panels(curves: pd.DataFrame, base: pd.DataFrame, quantity: str) -> Figure:
    """The paper's Figure 1 or 2 from its tables: continued pretraining left, instruction tuning right; code above math.

    Parameters
    ----------
    curves, base : pandas.DataFrame
        :func:`~utils.reporting.published.published_curves`, :func:`~utils.reporting.published.published_base`.
    quantity : {"learning", "forgetting"}
    """
    use_style()
    curves = curves[curves["quantity"] == quantity]
    figure, axes = plt.subplots(2, 2, figsize=(2 * PANEL[0], 1.7 * PANEL[1]))
    styles = method_styles(list(curves["method"].unique()))
    for row, domain in zip(axes, ("code", "math"), strict=True):
        for axis, regime in zip(row, ("continued pretraining", "instruction tuning"), strict=True):
            part = curves[(curves["domain"] == domain) & (curves["regime"] == regime)]
            _published_panel(axis, part, base, styles)
            axis.set_title(f"{domain}, {regime}: {part['dataset'].iloc[0]}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def tulu_panels(tulu: pd.DataFrame, base: pd.DataFrame) -> Figure:
    """The paper's Figures S4 to S6 from Tables S10-S13: one panel per metric.

    Parameters
    ----------
    tulu, base : pandas.DataFrame
        :func:`~utils.reporting.published.published_tulu`, :func:`~utils.reporting.published.published_base`. A metric
        whose base value was not published has no dashed line.
    """
    figure, axes = _grid(tulu["metric"].nunique())
    styles = method_styles(list(tulu["method"].unique()))
    for axis, (metric, part) in zip(axes, tulu.groupby("metric", sort=False), strict=True):
        _published_panel(axis, part, base, styles)
        axis.set_title(metric)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def draw_over_durations(axis: Axes, part: pd.DataFrame, reference: pd.DataFrame | None, *, y: str,
                        styles: dict[str, dict], base: str | None = None) -> None:
    """One data set of ours: a line for each of `styles` over the reference's band, the base as a dashed line."""
    present = {*part["method"], *([] if reference is None else reference["method"])}
    draw_lines(axis, part, reference, x="duration", y=y,
               styles={method: style for method, style in styles.items() if method in present})
    if base is not None:
        axis.axhline(part[base].mean(), color="black", linestyle="--", linewidth=1, label="base model")
    _doubling_axis(axis, part["duration"])


def learning_curves(published: pd.DataFrame | None, own: pd.DataFrame, reference: pd.DataFrame | None = None, *, y: str,
                    ylabel: str, xlabel: str, base: str | None = None,
                    published_base: pd.DataFrame | None = None) -> Figure:
    """A measure against how long was trained, one panel per data set: published above, ours below.

    Parameters
    ----------
    published : pandas.DataFrame or None
        Rows of :func:`~utils.reporting.published.published_curves` of one quantity; None leaves the upper row out.
    own, reference : pandas.DataFrame
        ``dataset``, ``method``, ``duration`` (above 0), `y`; a row per seed. The reference is a band.
    y, ylabel, xlabel : str
        Our column, and the labels of our axes.
    base : str, optional
        The column of `own` with the untuned model's value, drawn as a dashed line.
    published_base : pandas.DataFrame, optional
        :func:`~utils.reporting.published.published_base`.
    """
    use_style()
    above = [] if published is None else [part for _, part in published.groupby("dataset", sort=False)]
    below = [part for _, part in own.groupby("dataset", sort=False)]
    columns, rows = max(len(above), len(below)), 1 + bool(above)
    figure, axes = plt.subplots(rows, columns, figsize=(PANEL[0] * columns, 0.9 * PANEL[1] * rows), squeeze=False)
    for axis, part in zip(axes[0], above, strict=False):
        _published_panel(axis, part, published_base, method_styles(list(published["method"].unique())))
    for axis, part in zip(axes[-1], below, strict=False):
        name = part["dataset"].iloc[0]
        band = None if reference is None else reference[reference["dataset"] == name]
        draw_over_durations(axis, part, band, y=y, base=base, styles=method_styles(list(own["method"].unique())))
        axis.set(xlabel=xlabel, ylabel=ylabel, title=name)
    for row, parts in zip(axes, ([above] if above else []) + [below], strict=True):
        row[len(parts) - 1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
        for axis in row[len(parts):]:
            axis.remove()
    return figure


def _marker_areas(values: pd.Series) -> dict[float, float]:
    """Marker areas in points squared that grow with the order of the values, such as durations."""
    known = sorted(values.unique())
    return {value: 25 + 125 * index / max(1, len(known) - 1) for index, value in enumerate(known)}


def _draw_front(axis: Axes, part: pd.DataFrame, *, x: str, y: str, smaller_is_better: Collection[str]) -> None:
    """The Pareto front of all methods as a step: what lies below and left of it is beaten."""
    goodness = part.assign(**{column: -part[column] for column in (x, y) if column in smaller_is_better})
    front = goodness[pareto_front(goodness, x=x, y=y)].sort_values([x, y], ascending=[True, False]).index
    axis.plot(part.loc[front, x], part.loc[front, y], drawstyle="steps-pre", zorder=1, **FRONT)


def _tradeoff_panel(axis: Axes, part: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str,
                    styles: dict[str, dict], hollow: bool, size: str) -> None:
    """Every model as a point whose area grows with `size`; a line joins the means of each value of it."""
    for method, style in styles.items():
        look = {"color": style["color"], "marker": style["marker"]}
        if reference is not None:
            seeds = reference[reference["method"] == method]
            axis.plot(seeds[x], seeds[y], linestyle="none", alpha=0.3, markersize=4, **look)
        points = part[part["method"] == method]
        faces = "none" if hollow else style["color"]
        axis.scatter(points[x], points[y], s=points[size].map(_marker_areas(part[size])), zorder=3,
                     marker=style["marker"], edgecolors=style["color"], facecolors=faces, alpha=0.85)
        line = points.groupby(size)[[x, y]].mean()
        axis.plot(line[x], line[y], color=style["color"], linestyle=style["linestyle"], linewidth=0.9, alpha=0.7)


def _tradeoff_legend(figure: Figure, styles: dict[str, dict], *, hollow: bool, base: bool, larger: str) -> None:
    """The methods, the front and what size means, beside the panels."""
    handles = [Line2D([], [], color=style["color"], marker=style["marker"], linestyle=style["linestyle"], label=method,
                      markerfacecolor="none" if hollow else style["color"]) for method, style in styles.items()]
    if base:
        handles.append(Line2D([], [], color="black", marker="x", linestyle="none", label="base model"))
    handles.append(Line2D([], [], label="Pareto front", **FRONT))
    handles.append(Line2D([], [], linestyle="none", label=f"larger marker: {larger}"))
    figure.legend(handles=handles, loc="outside right center")


def tradeoff_panels(table: pd.DataFrame, reference: pd.DataFrame | None = None, *, x: str = "remembering",
                    y: str = "learning", xlabel: str = "mean of HellaSwag, ARC-C, WinoGrande",
                    ylabel: str | None = None, smaller_is_better: Collection[str] = (),
                    base: Mapping[str, tuple[float, float]] | None = None, hollow: bool = False,
                    size: str = "duration", larger: str = "longer training") -> Figure:
    """Learning against forgetting, one point per model, one panel per data set; right is forgetting less (Figure 3).

    Parameters
    ----------
    table, reference : pandas.DataFrame
        ``dataset``, ``method``, `size`, `x`, `y`; reference points are faint.
    x, y : str
        Columns; the axis of one in `smaller_is_better`, such as a rise of loss, is reversed.
    ylabel : str, optional
        By default the data set's ``metric``, else `y`.
    base : mapping of str to (x, y), optional
        The untuned model by data set.
    hollow : bool
        For published values.
    size, larger : str
        The column that a marker's area grows with, along which a line joins the points, and what a larger one means.
    """
    groups = [part.reset_index(drop=True) for _, part in table.groupby("dataset", sort=False)]
    figure, axes = _grid(len(groups))
    styles = method_styles(list(table["method"].unique()))
    for axis, part in zip(axes, groups, strict=True):
        name = part["dataset"].iloc[0]
        band = None if reference is None else reference[reference["dataset"] == name]
        _draw_front(axis, part, x=x, y=y, smaller_is_better=smaller_is_better)
        _tradeoff_panel(axis, part, band, x=x, y=y, styles=styles, hollow=hollow, size=size)
        if base and name in base:
            axis.plot(*base[name], "x", color="black", markersize=8)
        metric = part["metric"].iloc[0] if "metric" in part else y
        axis.set(ylabel=ylabel or METRIC_LABELS.get(metric, metric), title=name)
        axis.set_xlabel(f"{xlabel}\nforgets less →", fontsize="small")
        if x in smaller_is_better:
            axis.invert_xaxis()
        if y in smaller_is_better:
            axis.invert_yaxis()
    _tradeoff_legend(figure, styles, hollow=hollow, base=bool(base), larger=larger)
    return figure
