"""Figures of the released LLaMA checkpoints, drawn at profile `paper` (paper's Figs 1, 4a to 4c, 13 and 15b to 15d)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure
from utils.reporting.measured import Measured
from utils.reporting.panels import chance_bands, draw_lines, label_left, outer_legend, panels
from utils.reporting.style import method_styles
from utils.studies.similarity.figures import long_form, side_by_side


def _group_panels(table: pd.DataFrame, *, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """One panel per group of released models; their methods differ, the looks do not."""
    groups = list(table["group"].unique())
    figure_, axes = panels(len(groups))
    for axis, group in zip(axes, groups, strict=True):
        part = table[table["group"] == group]
        draw_lines(axis, part, None, x=x, y=y, styles=method_styles(part["method"].unique()))
        axis.set(title=group)
    return figure_, axes


def _count_panels(table: pd.DataFrame, *, x: str, xlabel: str, chance: pd.DataFrame | None = None) -> Figure:
    figure_, axes = _group_panels(table, x=x, y="n_intruders")
    for axis in axes:
        if chance is not None:
            chance_bands(axis, chance)
        axis.set(xlabel=xlabel, xlim=(0, 1))
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=-0.2)
    label_left(axes, "intruder dimensions, all matrices")
    outer_legend(figure_, axes)
    return figure_


@figure("04_released", measurements=("released_counts",), place="Illusion v3, Figs 4a to 4c")
def released(counts: Measured, *, chance: pd.DataFrame) -> Drawn:
    """Intruders of released models against epsilon, one panel per group.

    `chance`: where a random direction's largest cosine lies, of :func:`utils.spectra.random_ranges`.
    """
    epsilon = counts.profile.spectra.epsilon
    at = counts.own[counts.own["epsilon"] == epsilon]
    alt = ("Line plots of intruder dimensions against epsilon, one panel per group of released LLaMA models: "
           + ", ".join(f"{row.group} {row.method} {row.n_intruders}" for row in at.itertuples())
           + f" at epsilon {epsilon}.")
    return Drawn(_count_panels(counts.own, x="epsilon", xlabel="epsilon", chance=chance), alt,
                 "Intruder dimensions of the released LLaMA models, against epsilon; grey: the largest cosine of a "
                 "random direction.", counts.own,
                 at[["group", "method", "r", "n_intruders"]].head(8))


@figure("04b_released_by_k", place="Illusion v3, Figs 15b to 15d")
def released_by_k(profile: Profile, counts: pd.DataFrame) -> Drawn:
    """Intruders of released models against the share of vectors examined, one panel per group."""
    alt = ("Line plots of intruder dimensions in released LLaMA models against the share of vectors examined, up to "
           f"{counts['k'].max():.0%}, one panel per group; at most {counts['n_intruders'].max()}.")
    return Drawn(_count_panels(counts, x="k", xlabel="share of the tuned vectors examined"), alt,
                 "Intruder dimensions of the released models as more vectors are examined.", counts)


@figure("04_released_heat_map", place="Illusion v3, Fig 1")
def released_heat_map(profile: Profile, maps: Mapping[str, np.ndarray], *, matrix: str) -> Drawn:
    """Absolute cosines of leading tuned (rows of each array) and pretrained vectors in one matrix of the models."""
    diagonal = {name: np.diagonal(cosines).mean() for name, cosines in maps.items()}
    alt = ("Heat-maps of absolute cosines between the leading tuned (columns) and pretrained (rows) vectors of "
           f"{matrix}. Mean on the diagonal: "
           "" + ", ".join(f"{name} {value:.2f}" for name, value in diagonal.items()) + ".")
    return Drawn(side_by_side(maps, matrix=matrix)[0], alt, "Leading tuned against pretrained vectors of one matrix of "
                 "the released models, the middle one by its place.", long_form(maps))


@figure("07_released_scaling", place="Illusion v3, Fig 13")
def released_scaling(profile: Profile, table: pd.DataFrame) -> Drawn:
    """Causal loss of released models against lambda, the factor of their intruders; the base's as a dotted line.

    `table`: ``group``, ``method``, ``lambda``, ``loss_nats_per_token``, ``base_loss_nats_per_token``.
    """
    figure_, axes = _group_panels(table, x="lambda", y="loss_nats_per_token")
    for axis in axes:
        base = table[table["group"] == axis.get_title()]["base_loss_nats_per_token"].iloc[0]
        axis.axhline(base, color="grey", linestyle=":", label="base")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xlabel="lambda: the intruders' factor")
    label_left(axes, "loss, nats per token")
    outer_legend(figure_, axes)
    least = table.loc[table.groupby(["group", "method"])["loss_nats_per_token"].idxmin()]
    alt = ("Line plots of the loss on general text against lambda, one panel per group of released models. Least loss: "
           + ", ".join(f"{row['group']} {row['method']} {row['loss_nats_per_token']:.3f} nats per token at "
                       f"{row['lambda']:g}" for row in least.to_dict("records")) + ".")
    return Drawn(figure_, alt, "Loss of the released models when their intruders are scaled by lambda.", table)
