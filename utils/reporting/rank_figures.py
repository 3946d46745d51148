"""Figures of notebook 12: the rank of the update beside what noise, a random update and rounding would need.

As in :mod:`utils.reporting.plots`: tables in, a figure out.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.reporting.plots import panels
from utils.reporting.style import method_styles


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
