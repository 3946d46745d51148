"""Figures of notebook 12 that need no training: the Gaussian toy, the null, one matrix's spectra, memory by formula."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panels
from utils.reporting.style import DASHES, MARKERS, method_styles
from utils.spectra.perturbation import SHARE, gaussian_rank

GPU_MEMORY = {"24 GB": 24, "80 GB": 80}  # of one consumer's and one server's card, GB
PAPER_SHAPES = {"q, k, v, o": (4096, 4096), "gate, up": (11008, 4096), "down": (4096, 11008)}  # Llama-2-7B
PAPER_MODEL = "Llama-2-7B (the paper's)"


@figure("12_gaussian_toy", measurements=("toy_deviations",), place="Learns less v2, Fig S8")
def gaussian_toy(deviations: Measured, *, spectra: pd.DataFrame) -> Drawn:
    """A Gaussian matrix changed by another: its spectra, and how far its singular values move.

    Parameters
    ----------
    deviations : Measured
        ``toy_deviations``: ``scale``, ``deviation``, ``seed``.
    spectra : pandas.DataFrame
        :func:`utils.spectra.perturbation.toy_perturbation`.
    """
    drawing, (left, right) = panels(2)
    _spectrum_lines(left, spectra, unit=spectra["singular_value"].max())
    left.set(xlabel="index", ylabel="singular value / largest of all", ylim=(0, 1.03))
    means = deviations.own.groupby("scale")["deviation"].mean()
    _deviation_lines(right, means, deviations)
    outer_legend(drawing, (left, right))
    largest = spectra.groupby("spectrum", sort=False)["singular_value"].max()
    ratio = means / means.index
    table = means.rename("mean change").reset_index().assign(over=ratio.to_numpy())
    return Drawn(
        drawing,
        alt="Two line plots. Spectra of A, A + 0.1 B and 0.1 B, largest values " + ", ".join(
            f"{name}: {value:.1f}" for name, value in largest.items())
        + f". Mean change of singular values against c on log axes: {ratio.iloc[0]:.2f} c at the smallest c, "
          f"{ratio.iloc[-1]:.2f} c at c = {means.index[-1]:g}.",
        caption="What a change of full rank does to a spectrum, and how far singular values move with its scale c.",
        table=deviations.own,
        shown=shown_table(table.iloc[::2], {"scale": "c", "mean change": "mean change", "over": "mean change / c"}))


def _spectrum_lines(axis: Axes, spectra: pd.DataFrame, *, unit: float | None = None) -> None:
    """Singular values by index, over `unit` or, without one, each spectrum over its own largest."""
    for index, (name, part) in enumerate(spectra.groupby("spectrum", sort=False)):
        over = unit or part["singular_value"].max()
        axis.plot(part["index"], part["singular_value"] / over, color=f"C{index}", linestyle=DASHES[index], linewidth=2,
                  label=name)


def _deviation_lines(axis: Axes, means: pd.Series, deviations: Measured) -> None:
    """Mean change over its smallest, with the two powers of c as guides through the ends."""
    c, relative = means.index.to_numpy(), (means / means.iloc[0]).to_numpy()
    axis.plot(c, relative, "o-", markersize=4, color="C0", label="measured, your seeds")
    if deviations.reference is not None:
        band = deviations.reference.groupby("scale")["deviation"].agg(["min", "max"]) / means.iloc[0]
        axis.fill_between(band.index, band["min"], band["max"], color="C0", alpha=0.15, linewidth=0)
    axis.plot(c, c / c[0], "--", color="grey", linewidth=1, label="proportional to c")
    axis.plot(c, relative[-1] * (c / c[-1]) ** 2, ":", color="grey", linewidth=1.5, label="proportional to c²")
    axis.set(xscale="log", yscale="log", xlabel="c", ylim=(0.3, 3 * relative[-1]),
             ylabel="mean change of singular values\n(1 at the smallest c)")


def shape_table(ranks: pd.DataFrame) -> pd.DataFrame:
    """The shapes of the paper's matrices and of ours, and what noise of each needs.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``type``, ``rows``, ``columns``, ``aspect`` (long over short side), ``null_rank``, ``share`` (of the
        short side).
    """
    parts = [pd.DataFrame([{"model": PAPER_MODEL, "type": name, "rows": shape[0], "columns": shape[1]}
                           for name, shape in PAPER_SHAPES.items()])]
    tuned = np.where(ranks["experiment"] == "instruction", "ours, instruction", "ours, continued")
    kinds = ranks.assign(model=tuned).drop_duplicates(["model", "type"])
    same = kinds.groupby(["model", "rows", "columns"], sort=False)["type"].agg(", ".join).reset_index()
    table = pd.concat([*parts, same], ignore_index=True)
    sides = table[["rows", "columns"]]
    table["aspect"] = sides.max(axis=1) / sides.min(axis=1)
    table["null_rank"] = [gaussian_rank(shape) for shape in sides.itertuples(index=False)]
    return table.assign(share=table["null_rank"] / sides.min(axis=1))


@figure("12_gaussian_null", measurements=("rank_dynamics",))
def gaussian_null(ranks: Measured) -> Drawn:
    """Share of the shorter side that a Gaussian matrix needs, against how oblong it is, with the models' shapes."""
    shapes = shape_table(ranks.own)
    drawing, (axis,) = panels(1, width=7)
    aspects = np.arange(1, 8.05, 0.1)
    axis.plot(aspects, [gaussian_rank((1000, round(1000 * aspect))) / 1000 for aspect in aspects], color="grey",
              linewidth=1, label="Gaussian matrix")
    for index, (model, style) in enumerate(method_styles(list(shapes["model"].unique())).items()):
        part = shapes[shapes["model"] == model]
        axis.plot(part["aspect"], part["share"], linestyle="none", marker=style["marker"], color=style["color"],
                  markersize=max(5, 14 - 4 * index), label=model)  # points of one shape lie on each other
    axis.set(xscale="log", xlabel="long side / short side", ylabel="directions / short side", ylim=(0.45, 1))
    axis.set_xticks((1, 2, 3, 4, 6, 8), list("123468"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    outer_legend(drawing, (axis,))
    return Drawn(
        drawing,
        alt="Line: directions that hold 90 % of a Gaussian matrix's energy, as a share of its shorter side, against "
            "long over short side; points are the shapes of the paper's model and ours. " + "; ".join(
                f"{row.model}, {row.type}: {row.null_rank:.0f} of {min(row.rows, row.columns)}"
                for row in shapes.itertuples()) + ".",
        caption="How many of the shorter side's directions noise alone needs for 90 % of its energy, by shape.",
        table=shapes,
        shown=shown_table(shapes, {"model": "model", "type": "matrices", "rows": "rows", "columns": "columns",
                                   "null_rank": "directions of noise", "share": "of the short side"}))


@figure("12_one_matrix", place="Learns less v2, Fig S7")
def one_matrix(profile: Profile, *, spectra: pd.DataFrame, name: str, shape: tuple[int, int]) -> Drawn:
    """Singular values of W0, the tuned weight and the update; the same over the largest; their share of the energy.

    Parameters
    ----------
    spectra : pandas.DataFrame
        :func:`utils.spectra.perturbation.spectrum_table` of every index.
    name : str
        Of the matrix, of `shape`.
    """
    drawing, (absolute, relative, share) = panels(3, height=3.4)
    _spectrum_lines(absolute, spectra, unit=1)
    _spectrum_lines(relative, spectra)
    reached = spectra[spectra["share"] >= SHARE - 1e-9].groupby("spectrum", sort=False)["index"].first()
    for index, (label, part) in enumerate(spectra.groupby("spectrum", sort=False)):
        share.plot(part["index"], part["share"], color=f"C{index}", linestyle=DASHES[index], label=label)
        share.plot(reached[label], SHARE, MARKERS[index], color=f"C{index}", markersize=6, label="_90 %")
    share.axhline(SHARE, color="grey", linestyle=":", linewidth=1)
    absolute.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    relative.set(xlabel="index", ylabel="the same over its largest", ylim=(0, None))
    share.set(xlabel="number of directions", ylabel="share of the energy", ylim=(0, 1.03))
    outer_legend(drawing, (absolute, relative, share), title=name)
    noise, largest = gaussian_rank(shape), spectra.groupby("spectrum", sort=False)["singular_value"].max()
    shown = pd.DataFrame({"matrix": reached.index, "directions for 90 %": reached.to_numpy(),
                          "noise needs": round(noise, 1), "of": min(shape),
                          "largest singular value": largest[reached.index].to_numpy()})
    return Drawn(
        drawing,
        alt=f"Three line plots of {name}: singular values of W0, the fully fine-tuned weight and the update, the same "
            "over the largest of each, and their cumulative share of the energy. Directions for 90 %: " + ", ".join(
                f"{key} {value}" for key, value in reached.items()) + f", Gaussian noise {noise:.0f}, of {min(shape)}. "
            "Largest singular values: " + ", ".join(f"{key} {value:.2f}" for key, value in largest.items()) + ".",
        caption="One matrix before and after full fine-tuning, and what was added to it.", table=spectra, shown=shown)


@figure("12_memory", measurements=("memory_formulas",), place="Learns less v2, Tables S14 to S16")
def memory(formulas: Measured) -> Drawn:
    """Gigabytes per GPU against the number of GPUs, one panel per model; the paper's cells as hollow circles."""
    table = formulas.own
    names = {method: f"full #{method}" if method.startswith("full") else method for method in table["method"].unique()}
    known = method_styles(list(names.values()))
    drawing, axes = panels(table["model"].nunique(), height=3.6)
    for axis, (model, part) in zip(axes, table.groupby("model", sort=False), strict=True):
        draw_lines(axis, part, None, x="gpus", y="gigabytes", styles={one: known[name] for one, name in names.items()})
        axis.plot(part["gpus"], part["gigabytes_published"], "o", color="grey", markerfacecolor="none", markersize=9,
                  label="published")
        for index, (name, size) in enumerate(GPU_MEMORY.items()):
            axis.axhline(size, color="grey", linestyle=DASHES[3 + index], linewidth=1, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(part["gpus"].unique()))
        axis.set(yscale="log", xlabel="GPUs", title=model)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    label_left(axes, "gigabytes per GPU")
    outer_legend(drawing, axes)
    single = table[table["gpus"] == 1]
    apart = (table["gigabytes"] / table["gigabytes_published"] - 1).abs().max()
    shown = single.pivot(index="model", columns="method", values="gigabytes").loc[table["model"].unique()].reset_index()
    return Drawn(
        drawing,
        alt="Line plots on log axes of gigabytes per GPU against the number of GPUs, one panel per model. One GPU: "
            + "; ".join(f"{row.model} {row.method} {row.gigabytes:.1f}" for row in single.itertuples())
            + f". Of the paper's {len(table)} cells {int(table['agrees'].sum())} are ours to the printed decimals; the "
              f"largest difference is {apart:.1%}.",
        caption="Gigabytes of weights, gradients and optimiser states by formula, with the paper's own cells "
                "(in the table, on one GPU).",
        table=table, shown=shown.rename_axis(columns=None).rename(columns={"model": "model, one GPU"}))
