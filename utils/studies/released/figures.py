"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import pandas as pd
from matplotlib.figure import Figure

from utils.reporting.panels import draw_lines, panels
from utils.reporting.style import method_styles


def _group_panels(table: pd.DataFrame, *, x: str, y: str):
    """One panel per group of released models, each with a legend of its own: their methods differ."""
    groups = list(table["group"].unique())
    figure, axes = panels(len(groups), width=4.6)
    for axis, group in zip(axes, groups, strict=True):
        part = table[table["group"] == group]
        draw_lines(axis, part, None, x=x, y=y, styles=method_styles(list(part["method"].unique())))
        axis.set(title=group)
        axis.legend(fontsize="x-small")
    return figure, axes


def released_counts(counts: pd.DataFrame, *, x: str = "epsilon", level: float | None = None) -> Figure:
    """Intruders of released models, one panel per group, against epsilon or k (paper's Figs 4a-c and 15b-d).

    Parameters
    ----------
    counts : pandas.DataFrame
        ``group``, ``method``, `x`, ``n_intruders``.
    x : {"epsilon", "k"}
    level : float, optional
        The largest cosine of a random direction; what lies left of it is shaded.
    """
    figure, axes = _group_panels(counts, x=x, y="n_intruders")
    for axis in axes:
        if level is not None:
            axis.axvspan(0, level, color="grey", alpha=0.2)
        axis.set(xlabel="epsilon" if x == "epsilon" else "share of the tuned vectors examined", xlim=(0, 1))
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=-0.2)
    axes[0].set_ylabel("intruder dimensions, all matrices")
    return figure


def released_scaling(table: pd.DataFrame) -> Figure:
    """Causal loss of released models against lambda, the base's as a dotted line (paper's Fig 13)."""
    figure, axes = _group_panels(table, x="lambda", y="loss_nats_per_token")
    for axis in axes:
        base = table[table["group"] == axis.get_title()]["base_loss_nats_per_token"].iloc[0]
        axis.axhline(base, color="grey", linestyle=":", label="base")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xlabel="lambda: the intruders' factor")
        axis.legend(fontsize="x-small")
    axes[0].set_ylabel("loss, nats per token")
    return figure
