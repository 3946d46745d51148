"""What else the count was looked at by: the amount of data, LoRA's variants, the place (paper's Figs 10, 16 and 23)."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.reporting.drawn import Drawn, Found, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import PANEL, chance_bands, draw_lines, label_left, outer_legend, panels
from utils.reporting.rules import CLAIM_EPSILONS
from utils.reporting.selection import best_rates, runs_that_learnt
from utils.reporting.style import DASHES, method_styles, use_style
from utils.reporting.words import listed, over_seeds
from utils.studies.intruders.figures import COUNT, count_axis


def _data_panels(counts: Measured, *, x: str, xlabel: str, chance: pd.DataFrame | None = None) -> Figure:
    """Counts by the number of training rows: one panel per method, light to dark as the data grow."""
    table = counts.best
    methods, amounts = list(table["method"].unique()), sorted(table["train_rows"].unique())
    figure_, axes = panels(len(methods), sharey=True)
    shades = sns.color_palette("crest", len(amounts))
    for axis, method in zip(axes, methods, strict=True):
        for number, amount in enumerate(amounts):
            part = table[(table["method"] == method) & (table["train_rows"] == amount)]
            band = part.groupby(x)["n_intruders"].agg(["min", "mean", "max"])
            axis.fill_between(band.index, band["min"], band["max"], color=shades[number], alpha=0.15, linewidth=0)
            axis.plot(band.index, band["mean"], color=shades[number], linestyle=DASHES[number % len(DASHES)],
                      label=f"{amount} rows")
        if chance is not None:
            chance_bands(axis, chance)
        axis.set(title=method, xlabel=xlabel)
        count_axis(axis, table["n_intruders"].max())
    label_left(axes, COUNT)
    outer_legend(figure_, axes)
    return figure_


def _data_means(counts: Measured, epsilon: float) -> pd.DataFrame:
    at = counts.best[counts.best["epsilon"] == epsilon]
    return at.groupby(["method", "train_rows"], sort=False)["n_intruders"].agg(["mean", "size"]).reset_index()


@figure("04b_amount_of_data", measurements=("data_counts",), place="Illusion v3, Fig 16 left")
def amount_of_data(counts: Measured, *, chance: pd.DataFrame) -> Drawn:
    """Count against epsilon on subsets of the training rows, one panel per method.

    `chance`: where a random direction's largest cosine lies.
    """
    figure_ = _data_panels(counts, x="epsilon", xlabel="epsilon", chance=chance)
    means = _data_means(counts, CLAIM_EPSILONS[0])
    alt = ("Line plots of intruder dimensions against epsilon, one line per number of training rows, one panel per "
           f"method. Mean at epsilon {CLAIM_EPSILONS[0]}: " + "; ".join(
               f"{method}: " + listed({f"{row.train_rows} rows": row.mean for row in part.itertuples()}, "{:.1f}")
               for method, part in means.groupby("method", sort=False)) + ".")
    shown = means.rename(columns={"train_rows": "training rows", "mean": f"intruders at ε = {CLAIM_EPSILONS[0]}",
                                  "size": "seeds"}).head(8)
    return Drawn(figure_, alt, "The count by the number of training rows seen; fewer rows are fewer steps, here as in "
                               "the paper. Grey: the largest cosine of a random direction.", counts.own, shown)


@finding("04b_amount_of_data")
def amount_of_data_found(counts: Measured, *, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`amount_of_data`, and whether it is what was expected."""
    parts, rises = [], {}
    for method, part in _data_means(counts, CLAIM_EPSILONS[0]).groupby("method", sort=False):
        ordered = part.sort_values("train_rows")
        parts.append(f"{method} " + " → ".join(f"{value:.2g}" for value in ordered["mean"]) + (
            "" if ordered["size"].min() > 1 else " (one seed on the subsets)"))
        rises[method] = ordered["mean"].iloc[-1] - ordered["mean"].iloc[0]
    return Found(f"From the fewest rows to the most, at epsilon {CLAIM_EPSILONS[0]}: {'; '.join(parts)}, "
                 f"{counts.source}.",
                 bool(all(rise > 0 for method, rise in rises.items() if method == "LoRA r=8")))


@figure("04b_amount_of_data_by_k", measurements=("data_counts_by_k",), place="Illusion v3, Fig 16 right")
def amount_of_data_by_k(counts: Measured) -> Drawn:
    """Count against the share of vectors examined, on subsets of the training rows."""
    figure_ = _data_panels(counts, x="k", xlabel="share of the tuned vectors examined")
    every = counts.own[counts.own["k"] == counts.own["k"].max()]
    alt = ("Line plots of intruder dimensions against the share of vectors examined, one line per number of training "
           "rows. Yours with all vectors examined: " + ", ".join(
               f"{row.method} on {row.train_rows} rows {row.n_intruders}" for row in every.itertuples()) + ".")
    return Drawn(figure_, alt, "The same against the share of each matrix's vectors that is examined.", counts.own)


@finding("04b_amount_of_data_by_k")
def amount_of_data_by_k_found(counts: Measured) -> Found:
    """What the tables say to :func:`amount_of_data_by_k`, and whether it is what was expected."""
    every = counts.best[counts.best["k"] == counts.best["k"].max()]
    means = every.groupby(["method", "train_rows"], sort=False)["n_intruders"].mean()
    text = "; ".join(f"{method} " + " → ".join(f"{value:.0f}" for value in part.sort_index(level=1))
                     for method, part in means.groupby(level=0, sort=False))
    rising = all(part.sort_index(level=1).is_monotonic_increasing for _, part in means.groupby(level=0))
    return Found(f"With every vector examined, from the fewest rows to the most: {text}, "
                 f"{counts.source}.", bool(rising))


@figure("04b_variants", measurements=("variant_counts",), place="Illusion v3, Figs 10 and 23")
def variants(counts: Measured, *, chance: pd.DataFrame) -> Drawn:
    """Count against epsilon for LoRA's variants, each at its best learning rate by accuracy.

    `chance`: where a random direction's largest cosine lies.
    """
    own, reference = (None if table is None else best_rates(table) for table in (counts.own, counts.reference))
    drawn = own if reference is None else reference
    figure_, axes = panels(2, sharey=True)
    names = list(drawn["method"].unique())
    plain = [name for name in names if name == "full" or name.startswith("LoRA r")]
    for axis, title, chosen in ((axes[0], "full and LoRA", plain),
                                (axes[1], "variants", [name for name in names if name not in plain])):
        draw_lines(axis, own, reference, x="epsilon", y="n_intruders", styles=method_styles(chosen))
        chance_bands(axis, chance)
        axis.set(xlabel="epsilon", xlim=(0, 1), title=title)
        count_axis(axis, drawn["n_intruders"].max())
    label_left(axes, COUNT)
    outer_legend(figure_, axes)
    at = drawn[drawn["epsilon"] == CLAIM_EPSILONS[0]]
    means = at.groupby("method", sort=False)[["n_intruders", "accuracy"]].mean()
    failed = at[~at["learnt"].astype(bool)].groupby("method", sort=False).size()
    alt = ("Line plots of intruder dimensions against epsilon, one line per variant at its best learning rate. At "
           f"epsilon {CLAIM_EPSILONS[0]}: "
           "" + "; ".join(f"{method} {row['n_intruders']:.1f} (accuracy {row['accuracy']:.3f})"
                                                for method, row in means.iterrows()) + ".")
    shown = means.assign(failed=failed).fillna({"failed": 0}).reset_index().rename(columns={
        "n_intruders": f"intruders at ε = {CLAIM_EPSILONS[0]}", "failed": "seeds that did not learn"}).head(8)
    return Drawn(figure_, alt, "Variants of LoRA, each at its best rate by accuracy; hollow points did not learn "
                               "their task. Grey: the largest cosine of a random direction.", drawn, shown)


@finding("04b_variants")
def variants_found(counts: Measured, *, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`variants`, and whether it is what was expected."""
    at = runs_that_learnt(best_rates(counts.best))
    adapters = at[(at["method_kind"] == "lora") & (at["epsilon"] == CLAIM_EPSILONS[0])]
    means = adapters.groupby("method", sort=False)["n_intruders"].mean()
    alone, lora = (adapters[adapters["method"] == name]["n_intruders"] for name in ("B only r=8", "LoRA r=8"))
    none = [name for name, value in means.items() if value == 0]
    compared = (f"B alone has {over_seeds(alone)} where LoRA has {over_seeds(lora)}" if len(alone) and len(lora)
                else "B alone and LoRA at r = 8 cannot be compared")
    return Found(f"At epsilon {CLAIM_EPSILONS[0]} and best rates {compared}, {counts.source}. Without any: "
                 f"{', '.join(none) or 'no variant'}.",
                 bool(len(alone) and len(lora) and alone.mean() < lora.mean() / 2 and not none))


def count_map(axis: Axes, grid: pd.DataFrame, top: float):
    """Counts by layer (rows) and type (columns) as a heat-map with the numbers in it; returns the image."""
    image = axis.imshow(grid.values, vmin=0, vmax=top, cmap="magma_r", aspect="auto")
    for (row, column), value in np.ndenumerate(grid.values):
        axis.text(column, row, "" if np.isnan(value) else f"{value:g}", ha="center", va="center", fontsize=8,
                  color="white" if value > top / 2 else "black")
    axis.set(xticks=range(grid.shape[1]), yticks=range(grid.shape[0]), ylabel="layer")
    axis.set_xticklabels(grid.columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticklabels(grid.index, fontsize=8)
    axis.grid(False)
    return image


@figure("04b_places", measurements=("intruder_places",), place="Illusion v3, text")
def places(counts: Measured, methods: list[str]) -> Drawn:
    """Intruders by layer and matrix type, one heat-map per method."""
    own = counts.own
    figure_, axes = panels(len(methods), height=3.6)
    top, types = max(1, own[own["method"].isin(methods)]["n_intruders"].max()), list(own["type"].unique())
    for axis, method in zip(axes, methods, strict=True):
        grid = own[own["method"] == method].pivot_table(index="layer", columns="type", values="n_intruders",
                                                        aggfunc="mean").reindex(columns=types)
        image = count_map(axis, grid, top)
        axis.set(title=method)
    figure_.colorbar(image, ax=axes, label="intruders", ticks=MaxNLocator(integer=True))
    totals = own.groupby("method", sort=False)["n_intruders"].sum()[methods]
    by_type = own[own["method"] == methods[-1]].groupby("type")["n_intruders"].sum()
    alt = (f"Heat-maps of intruder dimensions by layer and matrix type. Totals: {listed(totals, '{:.0f}')}. "
           f"{methods[-1]} has most of them in {by_type.idxmax()} ({by_type.max()}).")
    return Drawn(figure_, alt, "Where the intruders are, by layer and matrix type, in your runs.", own)


@finding("04b_places")
def places_found(counts: Measured, methods: list[str]) -> Found:
    """What the tables say to :func:`places`, and whether it is what was expected."""
    lora = counts.best[counts.best["method_kind"] == "lora"]
    by_type = lora.groupby("type")["n_intruders"].sum().sort_values(ascending=False)
    share = by_type.iloc[0] / max(1, by_type.sum())
    return Found(f"Over LoRA's runs the intruders lie in {listed(by_type[by_type > 0], '{:.0f}')}, {counts.source}: "
                 f"{share:.0%} in {by_type.index[0]}. The authors report no systematic place.", bool(share < 0.5))


def intruder_overview(counts: pd.DataFrame, by_place: pd.DataFrame, *, title: str, epsilon: float,
                      chance: pd.DataFrame) -> Figure:
    """Of one pair of checkpoints: intruders against epsilon, and where they are (``python -m utils intruders``).

    Parameters
    ----------
    counts : pandas.DataFrame
        ``epsilon``, ``n_intruders`` of the whole model.
    by_place : pandas.DataFrame
        ``layer``, ``type``, ``n_intruders`` at `epsilon`.
    chance : pandas.DataFrame
        Where a random direction's largest cosine lies, of :func:`utils.spectra.random_ranges`.
    """
    types, layers = list(by_place["type"].unique()), by_place["layer"].nunique()
    use_style()
    size = (PANEL[0] + max(5.0, 0.75 * len(types)), max(4.0, 0.28 * layers))
    figure_, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1, 1.2))
    chance_bands(left, chance)
    left.plot(counts["epsilon"], counts["n_intruders"], "o-", markersize=4)
    left.set(xlabel="epsilon", ylabel="intruder dimensions", xlim=(0, 1))
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(-0.2, 2 * counts["n_intruders"].max() + 1)
    left.legend(fontsize="x-small", loc="upper left")
    grid = by_place.pivot_table(index="layer", columns="type", values="n_intruders", aggfunc="sum").reindex(
        columns=types)
    image = count_map(right, grid, max(1, np.nanmax(grid.values)))
    right.set(title=f"at epsilon = {epsilon:g}")
    figure_.suptitle(title, fontsize="medium")
    figure_.colorbar(image, ax=right, label="intruders", ticks=MaxNLocator(integer=True))
    return figure_
