"""Figures of a planted direction (paper's Fig 2a) and of vectors that only turned within a cluster (ours)."""

import numpy as np
import pandas as pd

from utils.reporting.drawn import Drawn, Found, figure, finding, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import chance_bands, label_left, outer_legend, panels
from utils.reporting.style import method_styles
from utils.reporting.words import listed, over_seeds

IDENTIFIED = 0.5  # overlap from which on one tuned vector can be called the planted one


@figure("03_planted_direction", measurements=("planted_directions",), place="Illusion v3, Fig 2a and appendix A.2")
def planted_direction(planted: Measured, predicted: pd.DataFrame, *, chance: pd.DataFrame) -> Drawn:
    """The planted direction's likeness, overlap and index against its strength, beside the prediction.

    Parameters
    ----------
    predicted : pandas.DataFrame
        ``ratio`` (strength over W0's largest singular value), ``max_cosine``, ``overlap``, ``index`` by
        :func:`utils.spectra.predicted_spike`.
    chance : pandas.DataFrame
        Where a random direction's largest cosine lies in this matrix, of :func:`utils.spectra.random_ranges`.
    """
    own = planted.own[planted.own["seed"] == planted.seeds[0]].sort_values("ratio")
    clear = own["overlap"] >= IDENTIFIED
    figure_, axes = panels(2, height=3.8)
    for column, colour, label in (("max_cosine", "C0", "largest |cosine| with a pretrained vector"),
                                  ("overlap", "C1", "|cosine| with the planted direction"),
                                  ("index", "C2", "its index")):
        axis = axes[1] if column == "index" else axes[0]
        told = predicted[predicted["overlap"] >= IDENTIFIED]  # below, no single vector carries the direction
        axis.plot(told["ratio"], told[column], color=colour, linestyle=":", linewidth=2,
                  label="predicted from W0's spectrum" if column == "overlap" else None)
        axis.plot(own["ratio"][clear], own[column][clear], "o-", color=colour, markersize=5, label=label)
        axis.plot(own["ratio"][~clear], own[column][~clear], "o", color=colour, markersize=5, markerfacecolor="none",
                  label="nearest vector, not identified" if column == "overlap" else None)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xlabel="planted strength / largest singular value")
    chance_bands(axes[0], chance, upright=False)
    axes[0].set(ylabel="|cosine|", ylim=(0, 1.03))
    axes[1].set(ylabel="index of its tuned vector", yscale="log")
    outer_legend(figure_, axes)
    start, end = _crossing(own, planted), own.iloc[-1]
    alt = ("Left: the planted vector's largest cosine with a pretrained vector and its cosine with the planted "
           "direction, against strength, beside their prediction. Right: its index. It counts as an intruder from "
           f"{start:.2f} times the largest singular value on; at {end['ratio']:g} times it has index "
           f"{end['index']:.0f} and overlap "
           f"{end['overlap']:.2f}.")
    shown = shown_table(own[own["ratio"].isin([0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0])], {
        "ratio": "strength / largest", "index": "index", "max_cosine": "largest |cosine|", "overlap": "overlap"})
    return Drawn(figure_, alt, f"A random direction planted with growing strength in {own['matrix'].iloc[0]}, the "
                               "middle matrix of the base: hollow where no single vector is it, dotted what W0's "
                               "spectrum predicts.", own, shown)


def _crossing(table: pd.DataFrame, planted: Measured) -> float:
    """The smallest strength at which the direction is an intruder among the k leading vectors."""
    spectra = planted.profile.spectra
    return table[(table["max_cosine"] < spectra.epsilon) & (table["index"] <= spectra.k)]["ratio"].min()


@finding("03_planted_direction")
def planted_direction_found(planted: Measured, predicted: pd.DataFrame, *, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`planted_direction`, and whether it is what was expected."""
    best = planted.best
    starts = [_crossing(part, planted) for _, part in best.groupby("seed")]
    leads = [part.loc[part["index"] == 1, "ratio"].min() for _, part in best.groupby("seed")]
    return Found(f"The direction counts as an intruder from {over_seeds(starts)} times W0's largest singular value on "
                 f"and has index 1 from {over_seeds(leads)} times on, of the strengths tried, {planted.source}. Below, "
                 "it is dissolved among other vectors.", bool(np.nanmax(starts) < 1 and np.nanmax(leads) <= 1.2))


@figure("03_windows", measurements=("window_counts",), place="ours")
def windows(counts: Measured, cosines: pd.DataFrame, *, levels: dict[int, float]) -> Drawn:
    """Projection onto a window of pretrained vectors against the largest single cosine, one panel per width above 1.

    Parameters
    ----------
    cosines : pandas.DataFrame
        ``method``, ``matrix``, ``index``, ``width`` (1 among them), ``max_cosine``.
    levels : dict of int to float
        What a random direction reaches at each width.
    """
    epsilon = counts.profile.spectra.epsilon
    wide = cosines.pivot_table(index=["method", "matrix", "index"], columns="width", values="max_cosine").reset_index()
    widths = sorted(set(cosines["width"]) - {1})
    figure_, axes = panels(len(widths), sharey=True, height=3.6)
    for axis, width in zip(axes, widths, strict=True):
        for method, style in method_styles(cosines["method"].unique()).items():
            part = wide[wide["method"] == method]
            axis.plot(part[1], part[width], linestyle="none", marker=style["marker"], color=style["color"],
                      markersize=4, alpha=0.6, label=method)
        axis.plot((0, 1), (0, 1), color="grey", linewidth=1)
        axis.axvline(epsilon, color="black", linestyle="--", linewidth=1)
        axis.axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon:g}")
        axis.axhline(levels[width], color="grey", linestyle=":", linewidth=1, label="a random direction")
        axis.set(xlabel="largest |cosine|, single vectors", title=f"window of {width}", xlim=(0, 1.03), ylim=(0, 1.03))
    label_left(axes, "projection onto the window")
    outer_legend(figure_, axes)
    at = counts.own.pivot_table(index="method", columns="width", values="n_intruders", sort=False)
    alt = (f"Scatter plots, one per window width, of a vector's projection onto the window against its largest single "
           f"cosine. Below epsilon {epsilon} by width: " + "; ".join(
               f"{method}: " + listed({f"width {width}:": row[width] for width in at.columns}, "{:.0f}")
               for method, row in at.iterrows()) + ".")
    shown = at.reset_index().rename(columns={width: f"foreign to {width}" for width in at.columns})
    return Drawn(figure_, alt, "Leading vectors against single pretrained vectors and against spans of neighbouring "
                               "ones; "
                 "low and right of the diagonal is foreign to both.", cosines, shown)


@finding("03_windows")
def windows_found(counts: Measured, cosines: pd.DataFrame, *, levels: dict[int, float]) -> Found:
    """What the tables say to :func:`windows`, and whether it is what was expected."""
    lora = counts.best[counts.best["method_kind"] == "lora"]
    single, eight = (lora[lora["width"] == width]["n_intruders"] for width in (1, 8))
    left = eight.sum() / single.sum() if single.sum() else float("nan")
    judged = "Most were only turned within a cluster." if left < 0.5 else "Most are foreign to the whole neighbourhood."
    return Found(f"Of LoRA's {over_seeds(single)} intruders {over_seeds(eight)} stay foreign to the span of eight "
                 f"neighbours, {counts.source}. {judged}", bool(eight.gt(0).all()))
