"""Figures of the studies: what moves the count, scaling intruders, tasks in sequence. From tidy frame to figure.

As in :mod:`utils.reporting.plots`: no files, no models; own results are lines with markers, the reference is a band
from its smallest to its largest seed.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.reporting.plots import PANEL, draw_lines, panels
from utils.reporting.style import method_styles, use_style


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


def rank_rate_maps(table: pd.DataFrame, values: dict[str, str]) -> Figure:
    """Rank by learning rate, one heat-map per column of `values`; each cell the mean over seeds, written in it."""
    figure, axes = panels(len(values), width=6.0, height=4.0)
    for axis, (column, label) in zip(axes, values.items(), strict=True):
        grid = table.pivot_table(index="r", columns="learning_rate", values=column, aggfunc="mean")
        image = axis.imshow(grid.values, cmap="cividis", aspect="auto")
        low, high = np.nanmin(grid.values), np.nanmax(grid.values)
        for (row, place), value in np.ndenumerate(grid.values):
            if not np.isnan(value):
                axis.text(place, row, f"{value:.2g}", ha="center", va="center", fontsize=8,
                          color="white" if value <= (low + high) / 2 else "black")
        axis.set(xticks=range(grid.shape[1]), yticks=range(grid.shape[0]), title=label, xlabel="learning rate")
        axis.set_xticklabels([f"{rate:.2g}" for rate in grid.columns], rotation=50, ha="right", fontsize=8)
        axis.set_yticklabels(grid.index)
        axis.grid(False)
        figure.colorbar(image, ax=axis, shrink=0.8)
    axes[0].set_ylabel("LoRA rank")
    return figure


def intervention_curves(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Accuracy (top) and pseudo-loss (bottom) against lambda, one column per run, one line per kind (Figs 8, 12)."""
    names = list(own["method"].unique())
    use_style()
    figure, grid = plt.subplots(2, len(names), figsize=(PANEL[0] * len(names), 1.7 * PANEL[1]), squeeze=False,
                                sharex=True)
    styles = method_styles(list(own["kind"].unique()))
    for place, name in enumerate(names):
        part = own[own["method"] == name].assign(method=lambda t: t["kind"])
        band = None if reference is None else reference[reference["method"] == name].assign(method=lambda t: t["kind"])
        for axis, (column, label) in zip(grid[:, place], {"accuracy": "test accuracy",
                                                          "pseudo_loss": "pseudo-loss, nats per token"}.items(),
                                         strict=True):
            draw_lines(axis, part, band, x="factor", y=column, styles=styles)
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set_ylabel(label if place == 0 else "")
        grid[1, place].axhline(part["base_pseudo_loss"].iloc[0], color="grey", linestyle=":", label="base")
        grid[0, place].set_title(name)
        grid[1, place].set_xlabel("lambda: 0 removes, 1 changes nothing")
    figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def pareto_curves(own: pd.DataFrame) -> Figure:
    """Forgetting against accuracy as lambda runs from 1 to 0, one line per kind, one panel per run."""
    names = list(own["method"].unique())
    figure, axes = panels(len(names))
    styles = method_styles(list(own["kind"].unique()))
    for axis, name in zip(axes, names, strict=True):
        down = own[(own["method"] == name) & (own["factor"] <= 1)]
        for kind, style in styles.items():
            line = down[down["kind"] == kind].groupby("factor")[["accuracy", "forgetting"]].mean().sort_index()
            axis.plot(line["accuracy"], line["forgetting"], label=kind, markersize=5, **style)
        start = down[down["factor"] == 1][["accuracy", "forgetting"]].mean()
        axis.plot(start["accuracy"], start["forgetting"], "o", color="red", markersize=11, fillstyle="none",
                  label="lambda = 1")
        axis.set(title=name, xlabel="test accuracy", ylabel="forgetting, nats per token")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def norm_matched_points(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Forgetting against the update's norm, with intruders and without them; bars are the reference's seeds."""
    names = list(own["method"].unique())
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for kept, marker, colour in (("kept", "s-", "C1"), ("removed", "o--", "C0")):
            part = own[(own["method"] == name) & (own["intruders"] == kept)]
            line = part.groupby("norm")[["relative_norm", "forgetting"]].mean().sort_values("relative_norm")
            axis.plot(line["relative_norm"], line["forgetting"], marker, color=colour, label=f"intruders {kept}",
                      markersize=8)
            if reference is not None:
                seeds = reference[(reference["method"] == name) & (reference["intruders"] == kept)].groupby("norm")
                spread = seeds["forgetting"].agg(["min", "max"])
                axis.vlines(seeds["relative_norm"].mean(), spread["min"], spread["max"], color=colour, alpha=0.35,
                            linewidth=6)
        axis.set(title=name, xlabel="mean of |update| / |W0|", ylabel="forgetting, nats per token")
    axes[0].legend()
    return figure


def sequence_curves(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Accuracy of each task against the stage, one panel per task (Figs 9a, 17, 21).

    Grey: before the task is trained; vertical line: the stage that trains it; dotted: a head on the untouched base.
    """
    tasks = list(own.sort_values("tested_place")["tested_task"].unique())
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    use_style()
    figure, grid = plt.subplots(rows, columns, figsize=(0.85 * PANEL[0] * columns, 0.8 * PANEL[1] * rows),
                                squeeze=False, sharex=True)
    styles = method_styles(list(own["method"].unique()))
    for axis, task in zip(grid.flat, tasks, strict=False):
        part = own[own["tested_task"] == task]
        band = None if reference is None else reference[reference["tested_task"] == task]
        draw_lines(axis, part, band, x="stage", y="accuracy", styles=styles)
        place = part["tested_place"].iloc[0]
        axis.axvspan(0, place, color="grey", alpha=0.12)
        axis.axvline(place, color="black", linewidth=1)
        axis.axhline(part["base_accuracy"].mean(), color="black", linestyle=":", linewidth=1)
        axis.set(title=f"{place}. {task}", xticks=range(len(tasks) + 1))
    for place, axis in enumerate(grid.flat):
        if place >= len(tasks):
            axis.remove()
        elif place + columns >= len(tasks):  # the lowest of its column, though perhaps not in the last row
            axis.tick_params(labelbottom=True)
    figure.supxlabel("stage: tasks trained so far", fontsize="small")
    figure.supylabel("accuracy, head refitted", fontsize="small")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def map_grid(maps: dict[str, dict[str, np.ndarray]], *, matrix: str) -> Figure:
    """Small heat-maps of absolute cosines: one row per method, one column per stage (Figs 9b, 9c, 18)."""
    use_style()
    columns = len(next(iter(maps.values())))
    figure, grid = plt.subplots(len(maps), columns, figsize=(2.3 * columns + 1, 2.5 * len(maps)), squeeze=False)
    for axes, (method, stages) in zip(grid, maps.items(), strict=True):
        for axis, (title, values) in zip(axes, stages.items(), strict=True):
            image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
            axis.set(title=title, xticks=[], yticks=[])
            axis.title.set_fontsize(9)
            axis.grid(False)
        axes[0].set_ylabel(f"{method}\ntuned vector", fontsize=9)
    figure.supxlabel("pretrained vector", fontsize=9)
    figure.colorbar(image, ax=grid.ravel().tolist(), label="|cosine|", shrink=0.8)
    figure.suptitle(matrix, fontsize="medium")
    return figure
