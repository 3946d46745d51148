"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.reporting.panels import panels
from utils.reporting.style import method_styles


def similarity_maps(maps: dict[str, np.ndarray], *, matrix: str) -> Figure:
    """Absolute cosines as heat-maps: rows tuned vectors, columns pretrained ones, both by index."""
    figure, axes = panels(len(maps), width=4.6, height=4.4)
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        size = values.shape
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="upper", aspect="equal",
                            interpolation="nearest", extent=(0.5, size[1] + 0.5, size[0] + 0.5, 0.5))
        axis.set(title=title, xlabel="pretrained vector", ylabel="tuned vector")
        axis.grid(False)
    figure.colorbar(image, ax=list(axes), label="|cosine|", shrink=0.8)
    figure.suptitle(matrix, fontsize="medium")
    return figure


def outline_rows(figure: Figure, panel: int, rows: list[int]) -> None:
    """Outline the given rows (indices from 1) of a heat-map, as the paper outlines intruders in magenta."""
    axis = figure.axes[panel]
    width = axis.images[0].get_array().shape[1]
    for row in rows:
        axis.add_patch(plt.Rectangle((0.5, row - 0.5), width, 1, fill=False, edgecolor="magenta", linewidth=2,
                                     clip_on=False, zorder=3))


def cosines_by_index(vectors: pd.DataFrame, *, epsilon: float, level: float) -> Figure:
    """Largest cosine with any pretrained vector against the tuned vector's index, one series per method."""
    figure, (axis,) = panels(1, width=7)
    for method, style in method_styles(list(vectors["method"].unique())).items():
        part = vectors[vectors["method"] == method]
        axis.plot(part["index"], part["max_cosine"], style["marker"], color=style["color"], markersize=4, label=method,
                  alpha=0.8)
    axis.axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon}")
    axis.axhline(level, color="grey", linestyle=":", linewidth=1, label="a random direction")
    axis.set(xlabel="index of the tuned singular vector", ylabel="largest |cosine|", ylim=(0, 1.03))
    axis.legend()
    return figure


def one_vector(profiles: dict[str, np.ndarray]) -> Figure:
    """|cosine| of single tuned vectors with every pretrained vector (paper's Fig 2c)."""
    figure, axes = panels(len(profiles), sharey=True, height=3.2)
    for axis, (title, values) in zip(axes, profiles.items(), strict=True):
        axis.vlines(range(1, len(values) + 1), 0, values, color="C0", linewidth=1)
        axis.set(title=title, xlabel="index of the pretrained vector", ylim=(0, 1.03))
    axes[0].set_ylabel("|cosine|")
    return figure


def toy_curves(sweep: pd.DataFrame, *, level: float) -> Figure:
    """The planted direction: maximal cosine, overlap and index against its strength."""
    figure, (left, right) = panels(2, height=3.6)
    for column, style, label in (("max_cosine", "o-", "largest |cosine| with a pretrained vector"),
                                 ("overlap", "s--", "|cosine| with the planted direction")):
        left.plot(sweep["ratio"], sweep[column], style, label=label, markersize=4)
    left.axhline(level, color="grey", linestyle=":", label="a random direction")
    left.axvline(1, color="black", linewidth=1)
    left.set(xlabel="planted strength / largest singular value", ylabel="|cosine|", ylim=(0, 1.03))
    left.legend(fontsize="x-small")
    right.plot(sweep["ratio"], sweep["index"], "D-", color="C2", markersize=4)
    right.axvline(1, color="black", linewidth=1)
    right.set(xlabel="planted strength / largest singular value", ylabel="index of its tuned vector",
              yscale="log")
    return figure


def windows_against_cosines(table: pd.DataFrame, *, epsilon: float, levels: dict[int, float] | None = None) -> Figure:
    """Projection onto a window of pretrained vectors against the maximal cosine, one panel per width above 1.

    Points left of the vertical line are intruders by the definition; those above the horizontal one as well resemble
    a cluster of pretrained vectors after all.

    Parameters
    ----------
    table : pandas.DataFrame
        ``method``, ``matrix``, ``index``, ``width`` (1 among them), ``max_cosine``.
    levels : dict of int to float, optional
        What a random direction reaches at each width.
    """
    wide = table.pivot_table(index=["method", "matrix", "index"], columns="width", values="max_cosine").reset_index()
    widths = sorted(set(table["width"]) - {1})
    figure, axes = panels(len(widths), sharey=True)
    for axis, width in zip(axes, widths, strict=True):
        for method, style in method_styles(list(table["method"].unique())).items():
            part = wide[wide["method"] == method]
            axis.plot(part[1], part[width], style["marker"], color=style["color"], markersize=4, alpha=0.7,
                      label=method)
        axis.plot((0, 1), (0, 1), color="grey", linewidth=1)
        axis.axvline(epsilon, color="black", linestyle="--", linewidth=1)
        axis.axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon:g}")
        if levels and width in levels:
            axis.axhline(levels[width], color="grey", linestyle=":", linewidth=1, label="a random direction")
        axis.set(xlabel="maximal |cosine|, single vectors", title=f"window of {width}", xlim=(0, 1.03), ylim=(0, 1.03))
    axes[0].set_ylabel("projection onto the window")
    axes[-1].legend(fontsize="x-small", loc="lower right")
    return figure
