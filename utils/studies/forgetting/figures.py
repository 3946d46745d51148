"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import pandas as pd
from matplotlib.figure import Figure

from utils.reporting.panels import panels
from utils.reporting.style import method_styles


def forgetting_against_rank(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Pseudo-loss against LoRA rank, full fine-tuning and the base as lines, one panel per task (Fig 6b, v1's U)."""
    tasks = list(own["task"].unique())
    figure, axes = panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        part = own[own["task"] == task]
        band = None if reference is None else reference[reference["task"] == task]
        lora = part[part["r"] > 0].groupby("r")["pseudo_loss"].mean()
        places = {r: index for index, r in enumerate(lora.index)}
        if band is not None:
            seeds = band[band["r"].isin(lora.index)].groupby("r")["pseudo_loss"].agg(["min", "max"])
            axis.fill_between(seeds.index.map(places), seeds["min"], seeds["max"], alpha=0.2, color="C0",
                              label="LoRA, reference seeds")
            full = band[band["r"] == 0]["pseudo_loss"]
            axis.axhspan(full.min(), full.max(), alpha=0.2, color="black", label="full, reference seeds")
        axis.plot(lora.index.map(places), lora.values, "o-", color="C0", label="LoRA, yours")
        axis.axhline(part[part["r"] == 0]["pseudo_loss"].mean(), color="black", label="full, yours")
        axis.axhline(part["base_pseudo_loss"].iloc[0], color="C2", linestyle=":", label="base")
        axis.set(xticks=range(len(places)), xticklabels=list(places), xlabel="LoRA rank",
                 ylabel="pseudo-loss, nats per token", title=f"task: {task}")
    axes[0].legend(fontsize="x-small")
    return figure


def scatter_by_method(table: pd.DataFrame, xs: dict[str, str], *, y: str, label: str,
                      reference: pd.DataFrame | None = None) -> Figure:
    """One point per run against each of `xs` (column -> axis label); faint points are the reference's seeds."""
    figure, axes = panels(len(xs), sharey=True)
    styles = method_styles(list(table["method"].unique()))
    for axis, (column, name) in zip(axes, xs.items(), strict=True):
        for method, style in styles.items():
            look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
            if reference is not None:
                seeds = reference[reference["method"] == method]
                axis.plot(seeds[column], seeds[y], alpha=0.35, markersize=6, **look)
            part = table[table["method"] == method]
            axis.plot(part[column], part[y], label=method, markersize=9, markeredgecolor="black", **look)
        axis.set(xlabel=name)
    axes[0].set_ylabel(label)
    axes[0].legend(fontsize="x-small")
    return figure
