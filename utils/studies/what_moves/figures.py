"""Figures of the studies: what moves the count, scaling intruders, tasks in sequence. From tidy frame to figure.

As in :mod:`utils.reporting.plots`: no files, no models; own results are lines with markers, the reference is a band
from its smallest to its largest seed.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.reporting.panels import panels


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
