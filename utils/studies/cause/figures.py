"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from utils.reporting.panels import PANEL, draw_lines, panels
from utils.reporting.style import method_styles, use_style


def critical_strengths(table: pd.DataFrame) -> Figure:
    """Critical strength of a planted direction, predicted against measured, one symbol per matrix type.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per matrix: ``type``, ``predicted`` and ``measured``, and with ``smallest`` and ``largest`` the measured
        draws' range; in units of singular values. Rows where one of the two is infinite are not drawn.
    """
    figure, (axis,) = panels(1)
    known = table[np.isfinite(table[["predicted", "measured"]]).all(axis=1)]
    for type_, style in method_styles(list(known["type"].unique())).items():
        part = known[known["type"] == type_]
        if "smallest" in part:
            axis.hlines(part["predicted"], part["smallest"], part["largest"], color=style["color"], linewidth=1,
                        alpha=0.6)
        axis.plot(part["measured"], part["predicted"], style["marker"], color=style["color"], markersize=6,
                  label=type_, markeredgecolor="black", markeredgewidth=0.5)
    if len(known):
        ends = np.array([known[["predicted", "measured"]].min().min(), known[["predicted", "measured"]].max().max()])
        axis.plot(ends * (0.9, 1.1), ends * (0.9, 1.1), color="black", linewidth=1, label="equal", zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="measured critical strength", ylabel="predicted from W0's spectrum")
    for side in (axis.xaxis, axis.yaxis):  # they span less than a decade
        side.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize="x-small")
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
