"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from utils.reporting.panels import draw_lines, panels, task_panels
from utils.reporting.style import method_styles


def accuracy_curves(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Test accuracy against steps, one panel per task, one line per method; bands are the reference's seeds."""
    figure, axes = task_panels(own, reference, x="step", y="accuracy")
    for axis in axes:
        axis.set(xlabel="optimiser step", ylabel="test accuracy")
    return figure


def accuracy_beside_paper(own: pd.DataFrame, paper: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Accuracy of LoRA minus accuracy of full fine-tuning, by rank: paper (alpha = 8 and 2r), reference and own.

    All frames carry ``task``, ``r`` and ``difference``; the paper's also ``table``.
    """
    figure, axes = panels(2, sharey=True)
    ranks = sorted({*own["r"], *paper["r"], *([] if reference is None else reference["r"])})
    place = {r: index for index, r in enumerate(ranks)}
    for axis, (table, title) in zip(axes, ((1, "paper's Table 1: alpha = 8"), (2, "paper's Table 2: alpha = 2r")),
                                    strict=True):
        for index, (task, part) in enumerate(paper[paper["table"] == table].groupby("task", sort=False)):
            axis.plot(part["r"].map(place), part["difference"], marker="osD^vP"[index % 6], color="grey",
                      alpha=0.7, linewidth=0.8, markerfacecolor="none", label=f"paper, {task}")
        axis.axhline(0, color="black", linewidth=1)
        axis.set(xticks=range(len(ranks)), xticklabels=ranks, xlabel="LoRA rank", title=title)
    tasks, colours = list(own["task"].unique()), sns.color_palette("colorblind")
    for index, task in enumerate(tasks):
        shift = 0.24 * (index - (len(tasks) - 1) / 2)
        if reference is not None:
            band = reference[reference["task"] == task].groupby("r")["difference"].agg(["min", "max"])
            axes[1].vlines(band.index.map(place) + shift, band["min"], band["max"], color=colours[index], linewidth=6,
                           alpha=0.35, label=f"reference seeds, {task}")
        mean = own[own["task"] == task].groupby("r")["difference"].mean()
        axes[1].plot(mean.index.map(place) + shift, mean, "*PXD"[index % 4], color=colours[index], markersize=11,
                     label=f"yours, {task}")
    axes[0].set_ylabel("accuracy minus full's")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", fontsize="x-small")
    return figure


def learning_rate_curves(sweep: pd.DataFrame, values: dict[str, str]) -> Figure:
    """Final values against learning rate, one panel per column of `values` (column -> axis label)."""
    figure, axes = panels(len(values))
    styles = method_styles(list(sweep["method"].unique()))
    for axis, (column, label) in zip(axes, values.items(), strict=True):
        draw_lines(axis, sweep, None, x="learning_rate", y=column, styles=styles)
        axis.set(xscale="log", xlabel="learning rate", ylabel=label)
    axes[0].legend()
    return figure


def base_curve(curve: pd.DataFrame) -> Figure:
    """Held-out masked-LM loss of the laptop base while it was made."""
    figure, (axis,) = panels(1, height=3.2)
    axis.plot(curve["step"], curve["heldout_loss_nats_per_token"], "o-", markersize=4)
    axis.set(xlabel="optimiser step", ylabel="held-out loss, nats/token")
    return figure


def scaling_curves(table: pd.DataFrame) -> Figure:
    """Norm of the first update against rank, one line per scaling rule."""
    figure, (axis,) = panels(1, height=3.6)
    for index, (rule, part) in enumerate(table.groupby("scaling", sort=False)):
        axis.plot(part["r"], part["update_norm"], marker="os^D"[index], linestyle=("-", "--", "-.", ":")[index],
                  label=rule)
    axis.set(xscale="log", yscale="log", xlabel="rank r", ylabel="norm of first update")
    axis.legend()
    return figure
