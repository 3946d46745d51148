"""From tidy frame to figure. The same function draws the reader's own data, the reference band and published values.

No function here reads a file or a model: give it tables. Own results are lines with markers, the reference is a band
from its smallest to its largest seed with a thin line at its mean, published values are hollow grey symbols.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from utils.reporting.style import method_styles, use_style

PANEL = (5.2, 4.0)  # inches of one panel


def panels(count: int, *, height: float = PANEL[1], width: float = PANEL[0], sharey: bool = False):
    """A figure in the project's style with `count` panels side by side, and their axes."""
    use_style()
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, sharey=sharey)
    return figure, axes[0]


def draw_lines(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str,
               styles: dict[str, dict]) -> None:
    """One line per method of `own` (mean over its seeds) over the reference's smallest-to-largest band.

    The thin line is the reference's mean: where it holds a single seed, a band alone would not be seen.
    """
    for method, style in styles.items():
        if reference is not None:
            band = reference[reference["method"] == method].groupby(x)[y].agg(["min", "mean", "max"])
            axis.fill_between(band.index, band["min"], band["max"], color=style["color"], alpha=0.15, linewidth=0)
            axis.plot(band.index, band["mean"], color=style["color"], alpha=0.5, linewidth=1, label="_reference",
                      marker=style["marker"] if len(band) == 1 else None)  # a line of one point is not seen
        line = own[own["method"] == method].groupby(x)[y].mean()
        axis.plot(line.index, line.values, label=method, markersize=4, **style)


def _task_panels(own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, y: str):
    """One panel per task with one line per method; the legend, of the first task's methods, stands outside."""
    tasks = list(own["task"].unique())
    figure, axes = panels(len(tasks))
    styles = method_styles(list(own["method"].unique()))
    for axis, task in zip(axes, tasks, strict=True):
        part = own[own["task"] == task]
        band = None if reference is None else reference[reference["task"] == task]
        draw_lines(axis, part, band, x=x, y=y, styles={method: styles[method] for method in part["method"].unique()})
        axis.set_title(f"task: {task}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure, axes


def accuracy_curves(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Test accuracy against steps, one panel per task, one line per method; bands are the reference's seeds."""
    figure, axes = _task_panels(own, reference, x="step", y="accuracy")
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


def counts_against_epsilon(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, level: float) -> Figure:
    """Intruders summed over the model against epsilon, one panel per task (paper's Fig 4)."""
    figure, axes = _task_panels(own, reference, x="epsilon", y="n_intruders")
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
    figure, axes = _task_panels(own, reference, x="k", y="n_intruders")
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
