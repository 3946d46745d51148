"""Figures of notebook 12: the rank of the update beside what noise, a random update and rounding would need.

As in :mod:`utils.reporting.plots`: tables in, a figure out.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.reporting.panels import draw_lines, panels
from utils.reporting.style import DASHES, MARKERS, method_styles, use_style
from utils.studies.learning.tradeoffs import _doubling_axis


def spectra_panels(table: pd.DataFrame, *, share: float = 0.9, relative: bool = False, title: str = "") -> Figure:
    """Singular values, and the share of the energy that the first of them hold (Figure S7).

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.spectra.perturbation.spectrum_table`, with ``every=1`` for a true mark at `share`.
    relative : bool
        Divide each spectrum by its largest value, to compare their shapes.
    """
    figure, (left, right) = panels(2)
    for index, (name, part) in enumerate(table.groupby("spectrum", sort=False)):
        look = {"color": f"C{index}", "linestyle": DASHES[index % len(DASHES)]}
        reached = part[part["share"] >= share - 1e-9]["index"]
        unit = part["singular_value"].max() if relative else 1
        left.plot(part["index"], part["singular_value"] / unit, label=name, **look)
        right.plot(part["index"], part["share"], **look,
                   label=name if reached.empty else f"{name}: {share:.0%} at {reached.iloc[0]}")
        if len(reached):
            right.plot(reached.iloc[0], share, MARKERS[index % len(MARKERS)], color=look["color"], markersize=6)
    right.axhline(share, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="index", ylabel="singular value" + " / largest of its own" * relative, ylim=(0, None))
    right.set(xlabel="number of directions", ylabel="share of the energy", ylim=(0, 1.03))
    left.legend()
    right.legend(loc="lower right")
    figure.suptitle(title, fontsize="medium")
    return figure


def toy_panels(spectra: pd.DataFrame, sweep: pd.DataFrame) -> Figure:
    """A Gaussian matrix changed by another: spectra, and how far singular values move (Figure S8).

    Parameters
    ----------
    spectra, sweep : pandas.DataFrame
        :func:`~utils.spectra.perturbation.toy_perturbation` and :func:`~utils.spectra.perturbation.deviation_sweep`.
    """
    figure, (left, right) = panels(2)
    largest = spectra["singular_value"].max()
    for index, (name, part) in enumerate(spectra.groupby("spectrum", sort=False)):
        left.plot(part["index"], part["singular_value"] / largest, color=f"C{index}", linestyle=DASHES[index],
                  linewidth=2, label=name)
    left.set(xlabel="index", ylabel="singular value / largest of all", ylim=(0, 1.03))
    left.legend()
    c, deviation = sweep["scale"].to_numpy(), sweep["deviation"].to_numpy()
    right.plot(c, deviation / deviation[0], "o-", markersize=4, color="C0", label="measured")
    right.plot(c, c / c[0], "--", color="grey", linewidth=1, label="proportional to c")
    right.plot(c, deviation[-1] / deviation[0] * (c / c[-1]) ** 2, ":", color="grey", linewidth=1.5,
               label="proportional to c²")
    right.set(xscale="log", yscale="log", xlabel="c", ylim=(0.3, 3 * deviation[-1] / deviation[0]),
              ylabel="mean change of the singular values\n(1 at the smallest c)")
    right.legend()
    return figure


def rank_by_layer(table: pd.DataFrame, *, y: str = "update_rank", ylabel: str = "directions for 90 % of the energy",
                  duration: str = "duration", unit: str = "") -> Figure:
    """How many directions the update needs, layer by layer, one panel per matrix type; lighter is longer (Figure 6).

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`~utils.spectra.perturbation.update_ranks` with ``layer``, ``type`` and `duration`. The dashed line is its
        ``null_rank``, the top of each panel the smaller side of the matrix.
    unit : str
        Of the durations, for the legend.
    """
    use_style()
    types, durations = list(table["type"].unique()), sorted(table[duration].unique())
    rows = -(-len(types) // 4)
    columns = -(-len(types) // rows)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.2 * rows), squeeze=False)
    colours = sns.color_palette("mako", len(durations) + 2)[1:-1]
    for axis, type_ in zip(axes.flat, types, strict=False):
        part = table[table["type"] == type_]
        for index, length in enumerate(durations):
            line = part[part[duration] == length].groupby("layer")[y].mean()
            axis.plot(line.index, line, color=colours[index], marker=MARKERS[index % len(MARKERS)], markersize=4,
                      linewidth=1, label=f"{length:g} {unit}".strip())
        axis.axhline(part["null_rank"].mean(), color="black", linestyle="--", linewidth=1, label="Gaussian noise")
        full = part[["rows", "columns"]].min(axis=1).iloc[0]
        axis.set(title=f"{type_}\n{part['rows'].iloc[0]} × {part['columns'].iloc[0]}", ylim=(0, full))
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes.flat[len(types):]:
        axis.remove()
    figure.supxlabel("layer", fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def memory_panel(table: pd.DataFrame, published: pd.DataFrame | None = None, *,
                 limits: Mapping[str, float] | None = None) -> Figure:
    """Gigabytes per GPU against the number of GPUs, one panel per model (Tables S14-S16).

    Parameters
    ----------
    table, published : pandas.DataFrame
        ``model``, ``method``, ``gpus``, ``gigabytes``; published values are hollow grey circles.
    limits : mapping of str to float, optional
        Gigabytes that a GPU has, by its name: dotted lines.
    """
    models = list(table["model"].unique())
    figure, axes = panels(len(models), width=4.4)
    names = {method: f"full #{method}" if method.startswith("full") else method for method in table["method"].unique()}
    known = method_styles(list(names.values()))
    styles = {method: known[name] for method, name in names.items()}
    for axis, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
        draw_lines(axis, part, None, x="gpus", y="gigabytes", styles=styles)
        if published is not None:
            cells = published[published["model"] == model]
            axis.plot(cells["gpus"], cells["gigabytes"], "o", color="grey", markerfacecolor="none", markersize=9,
                      label="published")
        for index, (name, size) in enumerate((limits or {}).items()):
            axis.axhline(size, color="grey", linestyle=DASHES[(3 + index) % len(DASHES)], linewidth=1, label=name)
        _doubling_axis(axis, part["gpus"])
        axis.set(yscale="log", xlabel="GPUs", title=model)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("gigabytes per GPU")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def null_by_aspect(curve: pd.DataFrame, shapes: pd.DataFrame) -> Figure:
    """Share of the shorter side that a Gaussian matrix needs, against how oblong it is.

    Parameters
    ----------
    curve : pandas.DataFrame
        ``aspect`` (long over short side), ``share`` (:func:`~utils.spectra.perturbation.gaussian_rank` over the short
        side).
    shapes : pandas.DataFrame
        The same with ``model``; one point each.
    """
    figure, (axis,) = panels(1, width=6.5)
    axis.plot(curve["aspect"], curve["share"], color="grey", linewidth=1, label="Gaussian matrix")
    for index, (model, style) in enumerate(method_styles(list(shapes["model"].unique())).items()):
        part = shapes[shapes["model"] == model]
        axis.plot(part["aspect"], part["share"], linestyle="none", marker=style["marker"], color=style["color"],
                  markersize=max(4, 14 - 4 * index), label=model)  # points of one shape lie on each other
    axis.set(xscale="log", xlabel="long side / short side", ylabel="directions / short side", ylim=(0.45, 1))
    ticks = [tick for tick in (1, 2, 3, 4, 6, 8) if tick <= curve["aspect"].max()]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend()
    return figure


def ratios_by_type(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Rank of updates over the Gaussian null's, by matrix type: one point per layer, one symbol per ``update``.

    Parameters
    ----------
    table, reference : pandas.DataFrame
        ``update`` (such as trained, random), ``type``, ``layer``, ``ratio``. The reference is a bar from its smallest
        to its largest layer and seed.
    """
    types = list(table["type"].unique())
    names = list(table["update"].unique())
    styles = method_styles(names)
    figure, (axis,) = panels(1, width=8)
    for index, name in enumerate(names):
        shift = 0.22 * (index - (len(names) - 1) / 2)
        for place, type_ in enumerate(types):
            if reference is not None:
                held = reference[(reference["update"] == name) & (reference["type"] == type_)]["ratio"]
                axis.vlines([place + shift] * bool(len(held)), held.min(), held.max(), linewidth=7, alpha=0.25,
                            color=styles[name]["color"])
            values = table[(table["update"] == name) & (table["type"] == type_)].groupby("layer")["ratio"].mean()
            axis.plot([place + shift] * len(values), values, linestyle="none", marker=styles[name]["marker"],
                      color=styles[name]["color"], markersize=6, label=name if place == 0 else "_")
    axis.axhline(1, color="black", linestyle="--", linewidth=1, label="Gaussian noise")
    axis.set_xticks(range(len(types)), types)
    axis.set(ylabel="rank of the update / rank of noise", ylim=(0, None))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def rounding_panels(table: pd.DataFrame) -> Figure:
    """What rounding to bfloat16 does to an update: its noise by type, and the ranks it makes of exact ones.

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.reporting.updates.rounding_effects`: ``type``, ``step``, ``noise``, ``both_noise``,
        ``update_rank``, ``tuned_rounded_rank``, ``both_rounded_rank``.
    """
    types, steps = list(table["type"].unique()), sorted(table["step"].unique())
    figure, (left, right) = panels(2)
    ways = {"noise": ("tuned rounded", "C1", "tuned_rounded_rank"), "both_noise": ("both rounded", "C0",
                                                                                 "both_rounded_rank")}
    for step, marker, fill in zip((steps[0], steps[-1]), "os", ("none", "full"), strict=True):
        part = table[table["step"] == step]
        for column, (name, colour, rank) in ways.items():
            look = {"marker": marker, "fillstyle": fill, "color": colour, "linestyle": "none", "alpha": 0.8}
            means = part.groupby("type")[column].mean().reindex(types)
            left.plot(range(len(types)), means, label=f"{name}, step {step}", **look)
            right.plot(part["update_rank"], part[rank], markersize=4, **look)
    ends = np.array([table["update_rank"].min(), table["update_rank"].max()])
    right.plot(ends, ends, color="black", linewidth=1)
    left.set_xticks(range(len(types)), types, rotation=40, ha="right", fontsize="small")
    left.set(yscale="log", ylabel="rounding / update, Frobenius norm")
    right.set(xlabel="rank of the exact update", ylabel="rank after rounding")
    left.legend(fontsize="x-small")
    return figure
