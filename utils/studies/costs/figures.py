"""Figures of notebook 15: footprints, the PEFT benchmark, small models, compression, few-shot evaluation.

As in :mod:`utils.reporting.plots`: tables in, a figure out. Predictions are hollow, measurements filled.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from utils.reporting.panels import panels
from utils.reporting.style import DASHES, FRONT, MARKERS, method_styles

PARTS = ("weights", "adapter", "gradients", "optimiser", "activations", "temporary")
HATCHES = ("", "//", "..", "xx", "\\\\", "--")
HIGHLIGHTED = ("full", "LoRA", "rsLoRA", "DoRA")


def _plain_ticks(*sides: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten on log axes, as plain numbers."""
    for side in sides:
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())


def predicted_against_measured(table: pd.DataFrame, reference: pd.DataFrame | None = None, *,
                               tolerance: float = 0.1) -> Figure:
    """Predicted against measured peak memory on log axes, with the diagonal and a band of `tolerance`.

    Parameters
    ----------
    table, reference : pandas.DataFrame
        :func:`utils.reporting.costs.footprints`; rows without a measurement are left out. The reference is hollow.
    """
    known = table[table["peak_gib"].notna()]
    figure, (axis,) = panels(1, width=7.5)
    values = known[["peak_gib", "predicted_gib"]]
    ends = np.array([values.min(axis=None) / 1.4, values.max(axis=None) * 1.4])
    axis.plot(ends, ends, color="black", linewidth=1)
    axis.fill_between(ends, (1 - tolerance) * ends, (1 + tolerance) * ends, color="grey", alpha=0.2, linewidth=0)
    for recipe, style in method_styles([f"full #{name}" if name.startswith("full") else name
                                        for name in known["recipe"]]).items():
        name = recipe.removeprefix("full #")
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        for frame, more in ((reference, {"markerfacecolor": "none", "markersize": 13, "label": "_reference"}),
                            (known, {"markersize": 8, "label": name})):
            if frame is not None:
                part = frame[(frame["recipe"] == name) & frame["peak_gib"].notna()]
                axis.plot(part["peak_gib"], part["predicted_gib"], **look, **more)
    axis.set(xscale="log", yscale="log", xlabel="measured peak, GiB", ylabel="predicted peak, GiB", xlim=ends,
             ylim=ends)
    _plain_ticks(axis.xaxis, axis.yaxis)
    handles = axis.get_legend_handles_labels()[0]
    handles.append(Line2D([], [], color="black", linewidth=1, label=f"equal (band: {tolerance:.0%})"))
    figure.legend(handles=handles, loc="outside right center")
    return figure


def _parts_bars(axis: Axes, table: pd.DataFrame) -> None:
    """Stacked predicted parts, one bar per recipe, with the measured peak as a diamond."""
    places, left = np.arange(len(table)), np.zeros(len(table))
    for colour, hatch, part in zip(sns.color_palette("colorblind"), HATCHES, PARTS, strict=False):
        values = table[f"{part}_gib"].to_numpy()
        axis.barh(places, values, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=part)
        left = left + values
    axis.plot(table["peak_gib"], places, "D", color="black", markersize=6, label="measured peak")
    axis.set(xlabel="GiB at the predicted peak", yticks=places, yticklabels=table["recipe"])
    axis.invert_yaxis()


def cost_bars(table: pd.DataFrame) -> Figure:
    """Parameters, memory and time of every recipe, side by side.

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.reporting.costs.footprints`.
    """
    figure, (parameters, memory, times) = panels(3, width=4.6, height=0.42 * len(table) + 1.6)
    _parts_bars(memory, table)
    places = np.arange(len(table))
    parameters.barh(places, table["trained"] / 1e6, color="C7")
    parameters.set(xscale="log", xlabel="trained parameters, millions", yticks=places, yticklabels=table["recipe"])
    parameters.xaxis.set_major_formatter("{x:g}")
    parameters.invert_yaxis()
    times.barh(places, table["time_ratio"], color="C7", label="measured")
    times.plot(table["flops_ratio"], places, "o", color="black", markerfacecolor="none", label="operations (formula)")
    times.axvline(1, color="grey", linewidth=1, linestyle=":")
    times.set(xlabel="time of a step / full's", yticks=places, yticklabels=[])
    times.invert_yaxis()
    memory.set_yticklabels([])
    memory.legend(fontsize="x-small")
    times.legend(fontsize="x-small")
    return figure


def memory_by_batch(table: pd.DataFrame, limits: dict[str, float]) -> Figure:
    """Predicted memory against batch size, one line per recipe, GPUs as dotted lines.

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.reporting.costs.batch_grid`.
    limits : dict of str to float
        GiB by GPU.
    """
    figure, (axis,) = panels(1, width=8)
    names = list(table["recipe"].unique())
    for index, name in enumerate(names):
        part = table[table["recipe"] == name]
        axis.plot(part["batch"], part["predicted_gib"], color=f"C{index // 2}", marker=MARKERS[index],
                  linestyle=DASHES[index % 2], label=name)
    for gpu, size in limits.items():
        axis.axhline(size, color="grey", linestyle=":", linewidth=1)
        axis.annotate(gpu, (table["batch"].min(), size), fontsize="x-small", va="bottom", color="0.3")
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="predicted peak, GiB")
    axis.set_xticks(sorted(table["batch"].unique()), [str(batch) for batch in sorted(table["batch"].unique())])
    axis.xaxis.set_minor_formatter(NullFormatter())
    _plain_ticks(axis.yaxis)
    figure.legend(loc="outside right center", fontsize="small")
    return figure


def peft_pareto(table: pd.DataFrame) -> Figure:
    """Accuracy against forgetting in PEFT's benchmark: a marker's area is memory, bars are one binomial sigma.

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.reporting.costs.peft_benchmark`. Rows that hardly learnt (under 0.2) or forgot more than 0.5 nats
        lie outside the axes.
    """
    figure, (axis,) = panels(1, width=9.5, height=5.4)
    shown = table[(table["accuracy"] >= 0.2) & (table["forgetting"] <= 0.5)]
    front = shown[shown["on_front"]].sort_values("forgetting")
    axis.plot(front["forgetting"], front["accuracy"], drawstyle="steps-post", zorder=1, label="Pareto front", **FRONT)
    styles = method_styles(["full", *HIGHLIGHTED[1:]])
    for name, part in shown.groupby(shown["method"].where(shown["method"].isin(HIGHLIGHTED), "other"), sort=False):
        look = styles.get(name, {"color": "0.6", "marker": "o"})
        axis.errorbar(part["forgetting"], part["accuracy"], yerr=part["accuracy_se"], fmt="none", ecolor=look["color"],
                      elinewidth=0.8, alpha=0.5, zorder=2)
        axis.scatter(part["forgetting"], part["accuracy"], s=5 * part["memory_gib"] - 60, marker=look["marker"],
                     color=look["color"], edgecolors="white", linewidths=0.6, zorder=3, label=name,
                     alpha=0.55 if name == "other" else 1)
    named = shown[shown["on_front"] | shown["method"].isin(HIGHLIGHTED)].sort_values("accuracy")
    for place, row in enumerate(named.itertuples()):
        rank = "" if pd.isna(row.r) else f" r={row.r:.0f}"
        above = row.on_front  # the front's names stand above it, the others below
        axis.annotate(f"{row.method}{rank}", (row.forgetting, row.accuracy), fontsize="x-small",
                      xytext=(-4, 8 + 13 * (place % 2)) if above else (8, -12 - 9 * (place % 2)),
                      textcoords="offset points", ha="right" if above else "left",
                      arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5})
    axis.set(xscale="log", xlabel="forgetting: rise of the loss on Wikipedia, nats per token (log)",
             ylabel="GSM8K accuracy")
    _plain_ticks(axis.xaxis)
    handles = axis.get_legend_handles_labels()[0]
    sizes = [Line2D([], [], linestyle="none", marker="o", color="grey", markersize=(5 * size - 60) ** 0.5,
                    label=f"{size} GiB") for size in (19, 24, 36)]
    figure.legend(handles=[*handles, *sizes], loc="outside right center", fontsize="small")
    return figure


def model_lines(table: pd.DataFrame, limits: dict[str, float]) -> Figure:
    """Small models: tokens seen in pretraining, and memory to serve and to train, against parameters.

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.reporting.costs.small_models`.
    """
    figure, (tokens, memory) = panels(2, width=6.2)
    for index, row in enumerate(table.itertuples()):
        tokens.plot(row.parameters_million, row.tokens_trillion, MARKERS[index % len(MARKERS)], color=f"C{index % 10}",
                    markersize=8)
        left = row.parameters_million > 2000
        tokens.annotate(row.model, (row.parameters_million, row.tokens_trillion), fontsize="x-small",
                        ha="right" if left else "left", xytext=(-5 if left else 7, -12 if left else 3),
                        textcoords="offset points")
    tokens.set(xscale="log", yscale="log", xlabel="parameters, millions", ylabel="pretraining tokens, trillions")
    ways = {"weights_gib": "weights, bfloat16", "qlora_gib": "QLoRA r=8", "lora_gib": "LoRA r=8", "full_gib": "full"}
    for index, (column, label) in enumerate(ways.items()):
        memory.plot(table["parameters_million"], table[column], marker=MARKERS[index], linestyle=DASHES[index],
                    color="black" if label == "full" else f"C{index}", label=label)
    for gpu, size in limits.items():
        memory.axhline(size, color="grey", linestyle=":", linewidth=1)
        memory.annotate(gpu, (table["parameters_million"].min(), size), fontsize="x-small", va="bottom", color="0.3")
    memory.set(xscale="log", yscale="log", xlabel="parameters, millions", ylabel="GiB")
    for axis in (tokens, memory):
        _plain_ticks(axis.xaxis, axis.yaxis)
    memory.legend(fontsize="small")
    return figure


def spectrum_panels(table: pd.DataFrame, *, title: str = "") -> Figure:
    """One matrix compressed: its singular values, and how far the vector of each index still points the same way.

    Parameters
    ----------
    table : pandas.DataFrame
        :func:`utils.spectra.compress.singular_values`.
    """
    figure, (values, angles) = panels(2)
    first = table[table["way"] == table["way"].iloc[0]]
    values.plot(first["index"], first["before"], color="black", linewidth=2.5, alpha=0.5, label="before")
    for index, (way, part) in enumerate(table.groupby("way", sort=False)):
        look = {"color": f"C{index}", "linestyle": DASHES[index % len(DASHES)], "label": way}
        values.plot(part["index"], part["singular_value"], **look)
        angles.plot(part["index"], part["cosine"].rolling(5, center=True, min_periods=1).mean(), **look)
    values.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    angles.set(xlabel="index", ylabel="|cosine| with the vector of equal index\n(mean of five)", ylim=(0, 1.03))
    figure.legend(*values.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def compression_panels(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Rise of the held-out loss and number of intruders against the stored bits per weight.

    Parameters
    ----------
    table, reference : pandas.DataFrame
        :func:`utils.reporting.costs.compression`; the reference is a ring around each point.
    """
    figure, axes = panels(2, width=5.6)
    for axis, column in zip(axes, ("loss_rise", "n_intruders"), strict=True):
        for index, row in enumerate(table.itertuples()):
            look = {"color": f"C{index % 10}", "marker": MARKERS[index % len(MARKERS)], "linestyle": "none"}
            axis.plot(row.bits, getattr(row, column), **look, markersize=8, label=row.way)
        if reference is not None:
            axis.plot(reference["bits"], reference[column], "o", markerfacecolor="none", color="0.5", markersize=13,
                      label="_reference")
        axis.set(xlabel="bits per weight", yscale="symlog" if column == "n_intruders" else "linear")
    axes[0].set(ylabel="rise of the held-out loss, nats per token", yscale="symlog")
    axes[0].set_yscale("symlog", linthresh=0.01)
    axes[1].set_ylabel("intruder dimensions, all matrices")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="x-small")
    return figure


def shot_panels(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Accuracy with its standard error, and tokens per question, against the number of worked examples.

    Parameters
    ----------
    table, reference : pandas.DataFrame
        :func:`utils.reporting.costs.evaluation_costs`.
    """
    figure, (accuracy, tokens) = panels(2)
    styles = method_styles(list(table["task"].unique()))
    for shift, (task, style) in enumerate(styles.items()):
        part = table[table["task"] == task]
        if reference is not None:
            held = reference[reference["task"] == task]
            accuracy.plot(held["shots"], held["accuracy"], color=style["color"], alpha=0.3, linewidth=5)
        accuracy.errorbar(part["shots"] + 0.03 * shift, part["accuracy"], yerr=part["standard_error"], capsize=3,
                          label=task, **style)
        tokens.plot(part["shots"], part["tokens_per_question"], label=task, **style)
    accuracy.axhline(0.25, color="grey", linestyle=":", linewidth=1, label="guessing, 1 of 4")
    for axis in (accuracy, tokens):
        axis.set_xlabel("worked examples before each question")
        axis.set_xticks(sorted(table["shots"].unique()))
    accuracy.set_ylabel("accuracy ± standard error")
    tokens.set(ylabel="tokens per question", ylim=(0, None))
    accuracy.legend()
    return figure
