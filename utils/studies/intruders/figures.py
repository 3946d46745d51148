"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.reporting.panels import PANEL, draw_lines, panels, task_panels
from utils.reporting.style import method_styles, use_style


def counts_against_epsilon(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, level: float) -> Figure:
    """Intruders summed over the model against epsilon, one panel per task (paper's Fig 4)."""
    figure, axes = task_panels(own, reference, x="epsilon", y="n_intruders")
    for axis in axes:
        axis.axvspan(0, level, color="grey", alpha=0.2)
        axis.set(xlabel="epsilon", ylabel="intruder dimensions, whole model", xlim=(0, 1))
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=-0.2)
    return figure


def growth(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Through training: number of intruders, singular value of the strongest, least cosine, accuracy (Fig 5)."""
    figure, axes = panels(4, width=3.9)
    styles = method_styles(list(own["method"].unique()))
    for axis, (column, label) in zip(axes, {
            "n_intruders": "intruder dimensions", "strongest_ratio": "strongest intruder / W0's largest",
            "least_cosine": "least maximal cosine, leading k", "accuracy": "test accuracy"}.items(), strict=True):
        draw_lines(axis, own, reference, x="step", y=column, styles=styles)
        axis.set(xlabel="optimiser step", ylabel=label)
    axes[0].legend()
    return figure


def one_intruder(trace: pd.DataFrame, *, epsilon: float, largest: float) -> Figure:
    """One intruder through training: its index, its singular value, its cosines, the accuracy (paper's Fig 5)."""
    figure, axes = panels(4, width=3.9)
    lines = {"index": "index among the tuned vectors", "singular_value": "singular value",
             "max_cosine": "largest |cosine| with W0's", "accuracy": "test accuracy"}
    for axis, (column, label) in zip(axes, lines.items(), strict=True):
        axis.plot(trace["step"], trace[column], "s--", color="C0", markersize=5, label="nearest tuned vector")
        axis.set(xlabel="optimiser step", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].invert_yaxis()
    axes[1].axhline(largest, color="grey", linestyle=":", label="W0's largest")
    axes[1].legend(fontsize="x-small")
    axes[2].plot(trace["step"], trace["overlap"], "o-", color="C1", markersize=4, label="|cosine| with its final self")
    axes[2].axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon}")
    axes[2].legend(fontsize="x-small")
    return figure


def counts_against_k(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Intruders against the share of tuned vectors that is examined, one panel per task (paper's Fig 15)."""
    figure, axes = task_panels(own, reference, x="k", y="n_intruders")
    for axis in axes:
        axis.set(xlabel="share of the tuned vectors examined", ylabel="intruder dimensions")
        axis.set_yscale("symlog", linthresh=1)
    return figure


def control_curves(runs: pd.DataFrame, controls: pd.DataFrame) -> Figure:
    """Counts of each run beside random updates of the same norm, one panel per control."""
    names = list(controls["control"].unique())
    figure, axes = panels(1 + len(names), sharey=True)
    styles = method_styles(list(runs["method"].unique()))
    frames = {"trained": runs} | {name: controls[controls["control"] == name] for name in names}
    for axis, (title, frame) in zip(axes, frames.items(), strict=True):
        present = {m: styles[m] for m in frame["method"].unique()}
        draw_lines(axis, frame, None, x="epsilon", y="n_intruders", styles=present)
        axis.set(xlabel="epsilon", title=title, xlim=(0, 1))
        axis.set_yscale("symlog", linthresh=1)
    axes[0].set_ylabel("intruder dimensions, whole model")
    axes[0].legend()
    return figure


def _count_map(axis: Axes, grid: pd.DataFrame, top: float):
    """Counts by layer (rows) and type (columns) as a heat-map with the numbers in it; returns the image."""
    image = axis.imshow(grid.values, vmin=0, vmax=top, cmap="magma_r", aspect="auto")
    for (row, column), value in np.ndenumerate(grid.values):
        axis.text(column, row, "" if np.isnan(value) else f"{value:g}", ha="center", va="center", fontsize=8,
                  color="white" if value > top / 2 else "black")
    axis.set(xticks=range(grid.shape[1]), yticks=range(grid.shape[0]), ylabel="layer")
    axis.set_xticklabels(grid.columns, rotation=40, ha="right", fontsize=7)
    axis.set_yticklabels(grid.index, fontsize=8)
    axis.grid(False)
    return image


def places(table: pd.DataFrame, methods: list[str]) -> Figure:
    """Intruders by layer and matrix type, one heat-map per method."""
    figure, axes = panels(len(methods), width=4.2, height=3.6)
    top, types = max(1, table[table["method"].isin(methods)]["n_intruders"].max()), list(table["type"].unique())
    for axis, method in zip(axes, methods, strict=True):
        grid = table[table["method"] == method].pivot_table(index="layer", columns="type", values="n_intruders",
                                                            aggfunc="mean").reindex(columns=types)
        image = _count_map(axis, grid, top)
        axis.set(title=method)
    figure.colorbar(image, ax=list(axes), label="intruders", ticks=MaxNLocator(integer=True))
    return figure


def intruder_overview(counts: pd.DataFrame, places: pd.DataFrame, *, title: str, epsilon: float,
                      level: float) -> Figure:
    """Of one pair of checkpoints: intruders against epsilon, and where they are.

    Parameters
    ----------
    counts : pandas.DataFrame
        ``epsilon``, ``n_intruders`` of the whole model.
    places : pandas.DataFrame
        ``layer``, ``type``, ``n_intruders`` at `epsilon`.
    """
    types, layers = list(places["type"].unique()), places["layer"].nunique()
    use_style()
    size = (PANEL[0] + max(5.0, 0.75 * len(types)), max(4.0, 0.28 * layers))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1, 1.2))
    left.axvspan(0, level, color="grey", alpha=0.2, label="below a random direction's level")
    left.plot(counts["epsilon"], counts["n_intruders"], "o-", markersize=4)
    left.set(xlabel="epsilon", ylabel="intruder dimensions", xlim=(0, 1))
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(-0.2, 2 * counts["n_intruders"].max() + 1)
    left.legend(fontsize="x-small", loc="upper left")
    grid = places.pivot_table(index="layer", columns="type", values="n_intruders", aggfunc="sum").reindex(columns=types)
    image = _count_map(right, grid, max(1, np.nanmax(grid.values)))
    right.set(title=f"at epsilon = {epsilon:g}")
    figure.suptitle(title, fontsize="medium")
    figure.colorbar(image, ax=right, label="intruders", ticks=MaxNLocator(integer=True))
    return figure
