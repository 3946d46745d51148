"""Figures of the studies: what moves the count, scaling intruders, tasks in sequence. From tidy frame to figure.

As in :mod:`utils.reporting.plots`: no files, no models; own results are lines with markers, the reference is a band
from its smallest to its largest seed.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.reporting.panels import PANEL, draw_lines
from utils.reporting.style import method_styles, use_style


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
