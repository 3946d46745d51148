"""Figures of notebook 12 about trained updates: their rank by layer, through training, beside noise and rounding."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panel_lines, panels
from utils.reporting.style import MARKERS, method_styles
from utils.training.targets import ATTENTION

PAPER = "Learns less v2, Fig 6"


def with_parts(table: pd.DataFrame) -> pd.DataFrame:
    """A table with ``type``, and the ``part`` of the network that each matrix belongs to: attention or MLP."""
    return table.assign(part=np.where(table["type"].isin(ATTENTION), "attention", "MLP"))


def at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each experiment's longest duration."""
    return table[table["step"] == table.groupby("experiment")["step"].transform("max")]


def _by_layer(ranks: Measured, experiment: str, *, unit: str) -> Drawn:
    """Directions for 90 % by layer, a panel per matrix type, a line per duration: the lighter the longer.

    Parameters
    ----------
    unit : {"tokens", "steps"}
        Of the durations in the legend.
    """
    ranks = _same_shapes(ranks.where(f"experiment == '{experiment}' and method_kind == 'full'"))
    own, reference = (None if table is None else table.assign(method=_durations(table, unit))
                      for table in (ranks.own, ranks.reference))
    types = list(own["type"].unique())
    styles = _duration_styles(own, reference)
    drawing, axes = panels(len(types), height=2.9)
    for axis, type_ in zip(axes, types, strict=True):
        part = own[own["type"] == type_]
        band = None if reference is None else reference[reference["type"] == type_]
        draw_lines(axis, part, band, x="layer", y="update_rank", styles=styles)
        axis.axhline(part["null_rank"].mean(), color="black", linestyle="--", linewidth=1, label="Gaussian noise")
        rows, columns = part[["rows", "columns"]].iloc[0]
        axis.set(title=f"{type_}, {rows} × {columns}", ylim=(0, min(rows, columns)))
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[-2:]:
        axis.set_xlabel("layer")
    label_left(axes, "directions for 90 %")
    outer_legend(drawing, axes)
    ends = _ends(ranks.own)
    return Drawn(
        drawing,
        alt="Line plots of the directions that 90 % of the update's energy needs against layer after full fine-tuning, "
            f"one panel per matrix type, one line per duration ({experiment}). {_ends_in_words(ends)} "
            f"{_layers_in_words(ranks.own)}",
        caption=f"How many directions full fine-tuning's update needs ({experiment}), layer by layer; the lighter the "
                "longer the training, bands are the reference's seeds, dashed is noise.",
        table=ranks.own, shown=ends)


def _same_shapes(ranks: Measured) -> Measured:
    """Without the reference where it is of another model: a direction of 576 is not one of 128."""
    shapes = [None if table is None else {*table[["type", "rows", "columns"]].itertuples(index=False, name=None)}
              for table in (ranks.own, ranks.reference)]
    return ranks if shapes[0] == shapes[1] else replace(ranks, reference=None)


def _durations(table: pd.DataFrame, unit: str) -> pd.Series:
    return table["step"].map("{} steps".format) if unit == "steps" else (
        table["train_tokens"] / 1000).map("{:g} thousand tokens".format)


def _duration_styles(own: pd.DataFrame, reference: pd.DataFrame | None) -> dict[str, dict]:
    """A shade and a marker for each duration in rising order."""
    both = own if reference is None else pd.concat([own, reference])
    names = both.sort_values("step")["method"].unique()
    shades = sns.color_palette("mako", len(names) + 2)[1:-1]
    return {name: {"color": shade, "marker": MARKERS[index % len(MARKERS)], "linestyle": "-", "linewidth": 1}
            for index, (name, shade) in enumerate(zip(names, shades, strict=True))}


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over layers after the shortest and the longest training, beside noise, by matrix type."""
    first, last = table["step"].min(), table["step"].max()
    by = table.pivot_table(index="type", columns="step", values="update_rank", sort=False)
    noise = table.groupby("type", sort=False)["null_rank"].mean()
    found = pd.DataFrame({"matrices": by.index, "shortest training": by[first].to_numpy(),
                          "longest training": by[last].to_numpy(), "noise": noise[by.index].to_numpy()})
    return found if first != last else found.drop(columns="shortest training")


def _ends_in_words(ends: pd.DataFrame) -> str:
    columns = list(ends.columns[1:])
    return f"Mean over layers, {', '.join(columns)}: " + "; ".join(
        f"{row['matrices']}: " + ", ".join(f"{row[name]:.0f}" for name in columns)
        for row in ends.to_dict("records")) + "."


def _layers_in_words(table: pd.DataFrame) -> str:
    """Whether the first and the last layer lie below those between, after the longest training."""
    layers = at_the_end(table).groupby("layer")["update_rank"].mean().sort_index()
    if len(layers) < 3:
        return ""
    middle = layers.iloc[1:-1].mean()
    first, last = ("below" if end < middle else "not below" for end in (layers.iloc[0], layers.iloc[-1]))
    return (f"The first layer's mean of {layers.iloc[0]:.0f} is {first} the mean {middle:.0f} of the layers between, "
            f"the last layer's {layers.iloc[-1]:.0f} is {last} it.")


@figure("12_rank_by_layer_code", measurements=("rank_dynamics",), place=PAPER)
def by_layer_code(ranks: Measured) -> Drawn:
    """Rank of full fine-tuning's update on code, by layer, matrix type and duration."""
    return _by_layer(ranks, "code", unit="tokens")


@figure("12_rank_by_layer_mathematics", measurements=("rank_dynamics",))
def by_layer_mathematics(ranks: Measured) -> Drawn:
    """The same on generated mathematics."""
    return _by_layer(ranks, "mathematics", unit="tokens")


@figure("12_rank_by_layer_instruction", measurements=("rank_dynamics",))
def by_layer_instruction(ranks: Measured) -> Drawn:
    """The same after instruction tuning, at its last step."""
    return _by_layer(ranks, "instruction", unit="steps")


@figure("12_ratio_through_training", measurements=("rank_dynamics",))
def ratio_through_training(ranks: Measured) -> Drawn:
    """Rank of full fine-tuning's update over noise's against tokens, attention and MLP, mean over matrices."""
    ranks = ranks.where("method_kind == 'full' and experiment != 'instruction'")
    by = ["experiment", "part", "seed", "train_tokens"]
    own, reference = (None if table is None else with_parts(table).groupby(by, sort=False)["ratio"].mean().reset_index()
                      for table in (ranks.own, ranks.reference))
    drawing = panel_lines(own.rename(columns={"part": "method"}),
                          None if reference is None else reference.rename(columns={"part": "method"}),
                          x="train_tokens", y="ratio", panel="experiment", xscale="log", xlabel="training tokens",
                          ylabel="rank of the update / rank of noise")
    for axis in drawing.axes:
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set_ylim(0, 1.05)
    _token_ticks(drawing.axes, own, reference)
    last = at_the_end(with_parts(ranks.own))
    means = last.groupby(["experiment", "part"], sort=False)["ratio"].mean()
    shown = last.pivot_table(index="type", columns="experiment", values="ratio", sort=False).reset_index()
    return Drawn(
        drawing,
        alt="Line plots of the update's rank over Gaussian noise's against training tokens, one line for attention and "
            "one for the MLP, one panel per data set; a dashed line at 1 is noise. After the longest training: "
            + "; ".join(f"{experiment}, {part} {value:.2f}" for (experiment, part), value in means.items()) + ".",
        caption="The rank of full fine-tuning's update in units of what noise of the same shape needs (in the table, "
                "after the longest training); bands are the reference's seeds.",
        table=ranks.own, shown=shown.rename_axis(columns=None).rename(columns={"type": "matrices"}))


def _token_ticks(axes: Iterable[Axes], *tables: pd.DataFrame | None) -> None:
    """The durations themselves as ticks: they span little more than a decade."""
    tokens = sorted(pd.concat([table for table in tables if table is not None])["train_tokens"].unique())
    for axis in axes:
        axis.set_xticks(tokens, [f"{value / 1000:.0f}k" for value in tokens])


@figure("12_rank_by_method", measurements=("rank_dynamics",))
def by_method(ranks: Measured) -> Drawn:
    """Mean rank of the update against training tokens, one line per method."""
    ranks = ranks.where("experiment != 'instruction'")
    by = ["experiment", "method", "r", "seed", "train_tokens"]
    own, reference = (None if table is None else table.groupby(by, sort=False)["update_rank"].mean().reset_index()
                      for table in (ranks.own, ranks.reference))
    drawing = panel_lines(own, reference, x="train_tokens", y="update_rank", panel="experiment", xscale="log",
                          yscale="log", xlabel="training tokens", ylabel="directions for 90 % (mean)")
    _token_ticks(drawing.axes, own, reference)
    last = own[own["train_tokens"] == own["train_tokens"].max()]
    means = last.groupby(["experiment", "method", "r"], sort=False)["update_rank"].mean().reset_index()
    return Drawn(
        drawing,
        alt="Line plots on log axes of the mean rank of the update against training tokens, one line per method, one "
            "panel per data set. After the longest training: " + "; ".join(
                f"{row.experiment}, {row.method}: {row.update_rank:.1f}" for row in means.itertuples()) + ".",
        caption="How many directions each method's update needs, of which LoRA's has no more than its rank "
                "(in the table, after the longest training).",
        table=own, shown=shown_table(means, {"experiment": "data", "method": "method", "update_rank": "directions"}))


@figure("12_random_control", measurements=("rank_dynamics", "random_ranks"))
def random_control(ranks: Measured, random: Measured) -> Drawn:
    """Rank of trained updates and of random ones of equal norm over noise's, by matrix type, a point per layer."""
    trained = ranks.where("method_kind == 'full' and experiment == 'code'")
    own = pd.concat([at_the_end(trained.own).assign(update="trained"),
                     random.own.assign(update="random, equal norm")], ignore_index=True)
    reference = None
    if trained.reference is not None and random.reference is not None:
        reference = pd.concat([at_the_end(trained.reference).assign(update="trained"),
                               random.reference.assign(update="random, equal norm")], ignore_index=True)
    drawing, (axis,) = panels(1, width=8)
    _ratio_points(axis, own, reference)
    outer_legend(drawing, (axis,))
    means = own.groupby("update", sort=False)["ratio"].agg(["mean", "min", "max"]).reset_index()
    return Drawn(
        drawing,
        alt="Points: rank of updates over that of Gaussian noise, by matrix type, one point per layer. " + "; ".join(
            f"{row['update']}: mean {row['mean']:.2f}, {row['min']:.2f} to {row['max']:.2f}"
            for row in means.to_dict("records")) + ".",
        caption="Trained updates beside random ones of the same norm, both over what noise needs; bars span the "
                "reference's layers and seeds.",
        table=own[["update", "seed", "type", "layer", "rows", "columns", "update_rank", "null_rank", "ratio"]],
        shown=means.rename(columns={"mean": "mean of rank / noise", "min": "smallest", "max": "largest"}))


def _ratio_points(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None) -> None:
    types, names = list(own["type"].unique()), list(own["update"].unique())
    for index, (name, style) in enumerate(method_styles(names).items()):
        shift = 0.22 * (index - (len(names) - 1) / 2)
        for place, type_ in enumerate(types):
            if reference is not None:
                held = reference[(reference["update"] == name) & (reference["type"] == type_)]["ratio"]
                axis.vlines([place + shift] * bool(len(held)), held.min(), held.max(), linewidth=7, alpha=0.25,
                            color=style["color"])
            values = own[(own["update"] == name) & (own["type"] == type_)].groupby("layer")["ratio"].mean()
            axis.plot([place + shift] * len(values), values, linestyle="none", marker=style["marker"],
                      color=style["color"], markersize=6, label=name if place == 0 else "_")
    axis.axhline(1, color="black", linestyle="--", linewidth=1, label="Gaussian noise")
    axis.set_xticks(range(len(types)), types)
    axis.set(ylabel="rank of the update / rank of noise", ylim=(0, None))


@figure("12_rounding", measurements=("rounding_effects",))
def rounding(effects: Measured) -> Drawn:
    """What rounding to bfloat16 does to an update: its noise by matrix type, and the ranks it makes of exact ones."""
    table = effects.own
    types, steps = list(table["type"].unique()), sorted(table["step"].unique())
    drawing, (left, right) = panels(2)
    for step, marker, fill in zip((steps[0], steps[-1]), "os", ("none", "full"), strict=True):
        part = table[table["step"] == step]
        for column, name, colour, rank in (("noise", "tuned rounded", "C1", "tuned_rounded_rank"),
                                           ("both_noise", "both rounded", "C0", "both_rounded_rank")):
            look = {"marker": marker, "fillstyle": fill, "color": colour, "linestyle": "none", "alpha": 0.8}
            means = part.groupby("type")[column].mean().reindex(types)
            left.plot(range(len(types)), means, label=f"{name}, step {step}", **look)
            right.plot(part["update_rank"], part[rank], markersize=4, **look)
    ends = np.array([table["update_rank"].min(), table["update_rank"].max()])
    right.plot(ends, ends, color="black", linewidth=1, label="unchanged")
    left.set_xticks(range(len(types)), types, rotation=40, ha="right", fontsize="small")
    left.set(yscale="log", ylabel="rounding / update, Frobenius norm")
    right.set(xlabel="rank of the exact update", ylabel="rank after rounding")
    outer_legend(drawing, (left, right))
    means = table.groupby("step")[["noise", "both_noise", "update_rank", "tuned_rounded_rank",
                                   "both_rounded_rank"]].mean().reset_index()
    names = {"step": "step", "noise": "noise, tuned rounded", "both_noise": "noise, both rounded",
             "update_rank": "exact rank", "tuned_rounded_rank": "tuned rounded", "both_rounded_rank": "both rounded"}
    return Drawn(
        drawing,
        alt="Left: Frobenius norm of bfloat16 rounding over the update's, by matrix type. Right: rank after rounding "
            "against the exact update's. " + "; ".join(
                f"Step {row['step']:.0f}: noise {row['noise']:.4f} (both rounded {row['both_noise']:.4f}), mean rank "
                f"{row['update_rank']:.1f} exact, {row['tuned_rounded_rank']:.1f} tuned rounded, "
                f"{row['both_rounded_rank']:.1f} both" for row in means.to_dict("records")) + ".",
        caption="What keeping weights in bfloat16 adds to an update, and what it makes of its rank "
                "(in the table, means over matrices).",
        table=table, shown=shown_table(means, names))
