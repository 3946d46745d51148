"""Figures of notebook 15 on training: memory predicted and measured, its parts, small models, PEFT's benchmark.

Predictions are hollow or bars, measurements filled.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import outer_legend, panels
from utils.reporting.style import DASHES, FRONT, MARKERS, method_styles

PARTS = ("weights", "adapter", "gradients", "optimiser", "activations", "temporary")
HATCHES = ("", "//", "..", "xx", "\\\\", "--")
HIGHLIGHTED = ("full", "LoRA", "rsLoRA", "DoRA")
TOLERANCE = 0.1  # of the claim about the formula, drawn as a band


def plain_ticks(*sides: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten on log axes, as plain numbers."""
    for side in sides:
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())


@figure("15_predicted_against_measured", measurements=("footprints",), place="ours")
def predicted_against_measured(footprints: Measured) -> Drawn:
    """Predicted against measured peak memory on log axes, with the diagonal and the claim's band.

    Recipes without a measurement are left out. The reference is a ring; a profile that is no evidence measures another
    model and has none.
    """
    known = footprints.own[footprints.own["peak_gib"].notna()]
    values = known[["peak_gib", "predicted_gib"]]
    ends = np.array([values.min(axis=None) / 1.4, values.max(axis=None) * 1.4])
    figure_, (axis,) = panels(1, width=7.5, height=5.5)
    axis.plot(ends, ends, color="black", linewidth=1, label=f"equal (band: {TOLERANCE:.0%})")
    axis.fill_between(ends, (1 - TOLERANCE) * ends, (1 + TOLERANCE) * ends, color="grey", alpha=0.2, linewidth=0)
    for recipe, style in method_styles(known["recipe"]).items():
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        if footprints.reference is not None and footprints.profile.evidence:
            ring = footprints.reference[footprints.reference["recipe"] == recipe]
            axis.plot(ring["peak_gib"], ring["predicted_gib"], **look | {"markerfacecolor": "none"}, markersize=13,
                      label="_reference")
        part = known[known["recipe"] == recipe]
        axis.plot(part["peak_gib"], part["predicted_gib"], **look, markersize=8, label=recipe)
    axis.set(xscale="log", yscale="log", xlabel="measured peak, GiB", ylabel="predicted peak, GiB", xlim=ends,
             ylim=ends)
    plain_ticks(axis.xaxis, axis.yaxis)
    outer_legend(figure_, (axis,), columns=2)
    pairs = "; ".join(f"{row.recipe} {row.predicted_gib:.3f}, {row.peak_gib:.3f}" for row in known.itertuples())
    alt = ("Scatter on log axes of predicted against measured peak memory in GiB, one point per recipe, with the "
           f"diagonal and a band of {TOLERANCE:.0%}. Predicted, measured: {pairs}. Ratio from "
           f"{known['ratio'].min():.3f} to {known['ratio'].max():.3f}.")
    columns = {"recipe": "recipe", "moment": "peak at", "predicted_gib": "predicted, GiB", "live_gib":
               "live tensors, GiB", "peak_gib": "measured, GiB", "ratio": "ratio"}
    return Drawn(figure_, alt, f"Predicted beside measured memory of {len(known)} of {len(footprints.own)} recipes; "
                 "the others need a GPU, or a profile that is evidence.", footprints.own,
                 shown_table(footprints.own, columns))


@figure("15_parameters_memory_time", measurements=("footprints",), place="ours; beside Learns less v2, Fig S10")
def parameters_memory_time(footprints: Measured) -> Drawn:
    """Parameters, memory by part and time of every recipe, in rows of the same order."""
    table = footprints.own
    figure_, (parameters, memory, times) = panels(3, height=0.34 * len(table) + 1.2)
    places = np.arange(len(table))
    parameters.barh(places, table["trained"] / 1e6, color="C7")
    parameters.set(xscale="log", xlabel="trained parameters, millions")
    parameters.xaxis.set_major_formatter("{x:g}")
    _parts_bars(memory, table)
    times.barh(places, table["time_ratio"], color="C7", label="time, measured")
    times.plot(table["flops_ratio"], places, "o", color="black", markerfacecolor="none", label="operations, by formula")
    times.axvline(1, color="grey", linewidth=1, linestyle=":")
    times.set(xlabel="time of a step over full's")
    for axis in (parameters, memory, times):
        axis.set(yticks=places, yticklabels=table["recipe"], ylim=(len(table) - 0.5, -0.5))
    outer_legend(figure_, (memory, times), columns=5)
    numbers = "; ".join(f"{row.recipe}: {row.trained / 1e6:.2f} million, {row.predicted_gib:.2f} GiB predicted, time "
                        f"ratio {'not measured' if pd.isna(row.time_ratio) else format(row.time_ratio, '.2f')}, "
                        f"operations {row.flops_ratio:.2f}" for row in table.itertuples())
    alt = ("Three bar charts by recipe: trained parameters on a log axis, predicted memory by part with the measured "
           "peak as a diamond, and time of a step over that of full fine-tuning with AdamW, with the ratio of "
           f"operations as a circle. {numbers}.")
    shown = table.dropna(subset="time_ratio").assign(millions=lambda rows: rows["trained"] / 1e6)
    columns = {"recipe": "recipe", "millions": "trained, millions", "seconds_per_step": "seconds a step",
               "tokens_per_second": "tokens a second", "time_ratio": "time / full's", "flops_ratio":
               "operations / full's"}
    return Drawn(figure_, alt, "What each recipe trains, needs and takes; times are of processor time on a CPU.", table,
                 shown_table(shown, columns))


def _parts_bars(axis: Axes, table: pd.DataFrame) -> None:
    """Stacked predicted parts, one bar per recipe, with the measured peak as a diamond."""
    places, left = np.arange(len(table)), np.zeros(len(table))
    for colour, hatch, part in zip(sns.color_palette("colorblind"), HATCHES, PARTS, strict=False):
        values = table[f"{part}_gib"].to_numpy()
        axis.barh(places, values, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=part)
        left = left + values
    axis.plot(table["peak_gib"], places, "D", color="black", markersize=6, label="measured peak")
    axis.set_xlabel("GiB at the predicted peak")


def gpu_lines(axis: Axes, limits: dict[str, float]) -> None:
    """Dotted lines at the memory of GPUs, named beside the panel, where no data stand."""
    for name, size in limits.items():
        axis.axhline(size, color="grey", linestyle=":", linewidth=1)
        axis.annotate(name, (1, size), xycoords=axis.get_yaxis_transform(), xytext=(4, 0), va="center", color="0.3",
                      textcoords="offset points", fontsize="small")


@figure("15_memory_by_batch", place="ours")
def memory_by_batch(profile: Profile, *, grid: pd.DataFrame, limits: dict[str, float]) -> Drawn:
    """Predicted memory against batch size, one line per recipe, GPUs as dotted lines.

    Parameters
    ----------
    grid : pandas.DataFrame
        Of :func:`utils.studies.costs.tables.batch_grid`.
    limits : dict of str to float
        GiB by GPU.
    """
    figure_, (axis,) = panels(1, width=8, height=5)
    plain = method_styles(grid.loc[~grid["checkpointing"], "recipe"])
    for (name, again), part in grid.groupby(["recipe", "checkpointing"], sort=False):
        style = plain[name.removesuffix(", checkpointing")] | {"linestyle": "--" if again else "-"}
        axis.plot(part["batch"], part["predicted_gib"], **style, markerfacecolor="none" if again else None, label=name)
    gpu_lines(axis, limits)
    batches = sorted(grid["batch"].unique())
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="predicted peak, GiB")
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.xaxis.set_minor_formatter(NullFormatter())
    plain_ticks(axis.yaxis)
    outer_legend(figure_, (axis,), columns=2)
    wide = grid.pivot_table(index="recipe", columns="batch", values="predicted_gib", sort=False)
    ends = wide[[batches[0], batches[-1]]]
    model, numbers = grid["model"].iloc[0], "; ".join(f"{name} {row.iloc[0]:.1f} and {row.iloc[1]:.1f} GiB"
                                                      for name, row in ends.iterrows())
    alt = (f"Lines on log axes: predicted peak memory of {model} against batch size for full, LoRA and QLoRA with and "
           f"without checkpointing, dotted lines for GPUs. At batches of {batches[0]} and {batches[-1]}: {numbers}.")
    shown = wide[[batch for batch in batches if batch != 2]].rename(columns="batch {}".format).reset_index()
    return Drawn(figure_, alt, f"Peak memory of {model} by the formula, in GiB, against the batch size; broken lines "
                 "are with checkpointing.", grid, shown.rename_axis(columns=None))


@figure("15_small_models", place="ours")
def small_models(profile: Profile, *, models: pd.DataFrame, limits: dict[str, float]) -> Drawn:
    """Small models: tokens seen in pretraining, and memory to serve and to train, against parameters.

    Parameters
    ----------
    models : pandas.DataFrame
        Of :func:`utils.studies.costs.tables.small_models`.
    """
    figure_, (tokens, memory) = panels(2, height=4.4)
    below = models["tokens_trillion"].duplicated(keep="last")  # of two names at one height the first goes down
    for index, row in enumerate(models.itertuples()):
        tokens.plot(row.parameters_million, row.tokens_trillion, MARKERS[index % len(MARKERS)], color=f"C{index % 10}",
                    markersize=8)
        tokens.annotate(row.model, (row.parameters_million, row.tokens_trillion), fontsize="x-small",
                        xytext=(7, -12 if below.iloc[index] else 4), textcoords="offset points")
    tokens.margins(x=0.25, y=0.1)
    tokens.set(ylabel="pretraining tokens, trillions")
    ways = {"weights_gib": "weights, bfloat16", "qlora_gib": "QLoRA r=8", "lora_gib": "LoRA r=8", "full_gib": "full"}
    styles = method_styles(ways.values())
    for index, (column, label) in enumerate(ways.items()):
        memory.plot(models["parameters_million"], models[column], label=label, **styles[label] | {
            "linestyle": DASHES[index]})
    gpu_lines(memory, limits)
    memory.set(ylabel="GiB")
    for axis in (tokens, memory):
        axis.set(xscale="log", yscale="log", xlabel="parameters, millions")
        plain_ticks(axis.xaxis, axis.yaxis)
        axis.tick_params(labelsize="small")
    outer_legend(figure_, (memory,))
    alt = "Left: pretraining tokens against parameters on log axes; right: GiB to hold and to train. " + "; ".join(
        f"{row.model}: {row.parameters_million:.0f} million, {row.tokens_trillion:g} trillion tokens, full "
        f"{row.full_gib:.1f}, LoRA {row.lora_gib:.1f}, QLoRA {row.qlora_gib:.1f} GiB"
        for row in models.itertuples()) + "."
    columns = {"model": "model", "tokens_per_parameter": "tokens per parameter", "embedding_share":
               "embeddings' share", "full_gib": "full, GiB", "lora_gib": "LoRA, GiB", "qlora_gib": "QLoRA, GiB"}
    return Drawn(figure_, alt, "Tokens as published; memory by the formula for batches of 4 × 512 tokens with "
                 "checkpointing.", models, shown_table(models, columns))


@figure("15_peft_pareto", measurements=("peft_benchmark",), place="PEFT method_comparison/MetaMathQA")
def peft_pareto(benchmark: Measured) -> Drawn:
    """Accuracy against forgetting in PEFT's benchmark: a marker's area is memory, bars are one binomial sigma.

    Rows that hardly learnt (under 0.2) or forgot more than 0.5 nats lie outside the axes. Full fine-tuning, the LoRA
    family of the course and the front are numbered in order of forgetting; the small table has their names.
    """
    table = benchmark.own.sort_values("forgetting")
    shown = table[(table["accuracy"] >= 0.2) & (table["forgetting"] <= 0.5)]
    figure_, (axis,) = panels(1, width=9, height=5.4)
    front = shown[shown["on_front"]]
    axis.plot(front["forgetting"], front["accuracy"], drawstyle="steps-post", zorder=1, label="Pareto front", **FRONT)
    styles = method_styles(HIGHLIGHTED)
    for name, part in shown.groupby(shown["method"].where(shown["method"].isin(HIGHLIGHTED), "other"), sort=False):
        look = styles.get(name, {"color": "0.6", "marker": "o"})
        axis.errorbar(part["forgetting"], part["accuracy"], yerr=part["accuracy_se"], fmt="none", ecolor=look["color"],
                      elinewidth=0.8, alpha=0.5, zorder=2)
        axis.scatter(part["forgetting"], part["accuracy"], s=5 * part["memory_gib"] - 60, marker=look["marker"],
                     color=look["color"], edgecolors="white", linewidths=0.6, zorder=3, label=name,
                     alpha=0.55 if name == "other" else 1)
    named = numbered(table)
    for index, row in enumerate(named.itertuples()):  # neighbours stand close together: left, below, above in turn
        axis.annotate(row.number, (row.forgetting, row.accuracy), xytext=((-18, -3), (7, -16), (-2, 14))[index % 3],
                      textcoords="offset points", zorder=5, fontweight="bold")
    axis.set(xscale="log", xlabel="forgetting: rise of the loss on Wikipedia, nats per token", ylabel="GSM8K accuracy")
    plain_ticks(axis.xaxis)
    sizes = [Line2D([], [], linestyle="none", marker="o", color="grey", markersize=(5 * size - 60) ** 0.5,
                    label=f"{size} GiB") for size in (19, 24, 36)]
    figure_.legend(handles=[*axis.get_legend_handles_labels()[0], *sizes], loc="outside lower center", ncols=5)
    alt = ("Scatter of GSM8K accuracy against forgetting on a log axis with the Pareto front as a step, marker area "
           "memory, bars one binomial sigma. " + "; ".join(
               f"{row.method} {row.variant}: accuracy {row.accuracy:.3f}, forgetting {row.forgetting:.3f}, "
               f"{row.memory_gib:.1f} GiB" + ", on the front" * row.on_front for row in named.itertuples()) + ".")
    columns = {"number": "number", "method": "method", "variant": "variant", "accuracy": "accuracy",
               "forgetting": "forgetting", "memory_gib": "GiB"}
    return Drawn(figure_, alt, "Accuracy against forgetting in PEFT's benchmark, one seed and one rate per row; of "
                 "those no less accurate than full by two errors, full, LoRA, rsLoRA, DoRA and the front have numbers.",
                 benchmark.own, shown_table(named, columns))


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Full fine-tuning, the highlighted methods and the front, no less accurate than full within two errors.

    Returns
    -------
    pandas.DataFrame
        At most eight rows in order of forgetting, with ``number``.
    """
    full = table[table["method"] == "full"].iloc[0]
    error = (table["accuracy_se"] ** 2 + full["accuracy_se"] ** 2) ** 0.5  # of a difference, not of one accuracy
    matched = table["accuracy"] >= full["accuracy"] - 2 * error
    chosen = table[matched & (table["on_front"] | table["method"].isin(HIGHLIGHTED))].sort_values("forgetting").head(8)
    return chosen.assign(number=[str(place) for place in range(1, len(chosen) + 1)])
