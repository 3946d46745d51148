"""Figures of notebook 14's second half: the loss's curvature at each method's start and end.

The table has one row per method, block, moment and seed; what was not measured is NaN. Own values are large outlined
markers (mean over seeds), the reference's seeds faint ones, published values hollow and grey. Where Lanczos did not
converge in some seed, the own marker of an eigenvalue is crossed out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import panels
from utils.reporting.style import method_styles
from utils.reporting.words import listed
from utils.spectra.hessian import adam_threshold
from utils.studies.variants.looks import (
    OWN,
    PUBLISHED,
    SEEDS,
    legend_below,
    log_ticks,
    name_rows,
    names_in,
    rows_height,
    symbol,
    whose,
)
from utils.studies.variants.sharpness import sharpness_correlation
from utils.studies.variants.tables import VANILLA

BLOCKS = {"module": "one module", "adapter": "whole adapter"}
MOMENTS = {"initialisation": {"color": "C0", "marker": "o"}, "trained": {"color": "C1", "marker": "^"}}
PARTS = {"largest": {"color": "C3", "marker": "^"}, "smallest": {"color": "C0", "marker": "v"},
         "gauss_newton": {"color": "C2", "marker": "D"}}
EIGENVALUES = ("largest", "smallest", "ratio")  # what the column ``converged`` speaks of
APART = 0.15  # of a row's height: how far the two moments of one method stand from its middle


def over_vanilla(table: pd.DataFrame) -> pd.DataFrame:
    """``ratio``: the largest eigenvalue over vanilla LoRA's of the same block, moment and seed; NaN without one.

    >>> rows = pd.DataFrame({"variant": ["LoRA", "PiSSA"], "block": "module", "at": "trained", "seed": 0,
    ...                      "largest": [2.0, 6.0]})
    >>> over_vanilla(rows)["ratio"].tolist()
    [1.0, 3.0]
    """
    keys = ["block", "at", "seed"]
    vanilla = table.loc[table["variant"] == VANILLA, [*keys, "largest"]].rename(columns={"largest": "vanilla"})
    joined = table.merge(vanilla, on=keys, how="left", validate="many_to_one")
    return joined.assign(ratio=joined["largest"] / joined["vanilla"])


def start_of_module(table: pd.DataFrame) -> pd.DataFrame:
    """One module's rows at initialisation, the study's own block and moment; means over seeds, by ``variant``."""
    rows = table[(table["block"] == "module") & (table["at"] == "initialisation")]
    numbers = ["largest", "smallest", "gauss_newton", "gradient_bound", "best_learning_rate", "iterations"]
    return rows.groupby("variant", sort=False)[numbers].mean()


@figure("14_largest_eigenvalue", measurements=("variant_hessian",), place="Rates v2, Fig C3")
def sharpness(curvature: Measured) -> Drawn:
    """Largest eigenvalue of every method at its start and its end, a panel per block; beside it the study's ratios."""
    names, blocks = names_in(curvature), _blocks(curvature, "largest")
    figure_, axes = panels(len(blocks) + 1, height=rows_height(names))
    for axis, block in zip(axes[:-1], blocks, strict=True):
        for at in MOMENTS:
            _symbols(axis, curvature.where(f"block == '{block}' and at == '{at}'"), names, column="largest",
                     look=MOMENTS[at], shift=-APART if at == "initialisation" else APART)
        axis.set(xlabel="largest eigenvalue", title=BLOCKS[block])
    published = curvature.published.set_index("method")["lambda_ratio"]
    axes[-1].plot(published.reindex(names), range(len(names)), **PUBLISHED)
    start = curvature.where("block == 'module' and at == 'initialisation'")
    _symbols(axes[-1], _changed(start, over_vanilla), names, column="ratio", look=MOMENTS["initialisation"])
    axes[-1].set(xlabel="over vanilla LoRA's, at initialisation", title="one module, and published")
    log_ticks(axes)
    name_rows(axes, names)
    handles = [Line2D([], [], label=f"at {at}" if at == "initialisation" else at, linestyle="none", **look)
               for at, look in MOMENTS.items()]
    legend_below(axes, [*handles, *whose(curvature.reference is not None, "published"), *_crossed(curvature.own)])
    means = start_of_module(curvature.best)
    six = means.loc[[name for name in published.dropna().index if name in means.index]].reset_index()
    alt = ("Largest Hessian eigenvalue of each adapter at initialisation and after training, one module and the whole "
           "adapter, beside the study's ratios to LoRA. One module at initialisation: "
           f"{listed(start_of_module(curvature.own)['largest'])}.")
    return Drawn(figure_, alt, "Largest eigenvalue of the Hessian before and after training; the table has one module "
                 "at the start, for the six methods that the study measured.", curvature.own,
                 shown_table(six, {"variant": "method", "largest": "largest", "smallest": "smallest",
                                   "gauss_newton": "Gauss-Newton, largest", "iterations": "Lanczos steps"}))


@figure("14_gradient_part", measurements=("variant_hessian",), place="ours")
def gradient_part(curvature: Measured) -> Drawn:
    """Both ends of the spectrum over the gradient's own part: at +-1 stand the eigenvalues of the gradient alone.

    A panel per block and moment that was measured; the Gauss-Newton matrix's largest value, which has no such part, in
    the same unit.
    """
    bounded = curvature.where("gradient_bound > 0")
    names = names_in(bounded)
    cells = [(block, at) for block in BLOCKS for at in MOMENTS
             if len(bounded.best.query("block == @block and at == @at"))]
    figure_, axes = panels(len(cells), height=rows_height(names))
    for axis, (block, at) in zip(axes, cells, strict=True):
        rows = bounded.where(f"block == '{block}' and at == '{at}'")
        for column, look in PARTS.items():
            _symbols(axis, _changed(rows, _over_bound), names, column=column, look=look)
        for side in (-1, 1):
            axis.axvline(side, color="black", linestyle="--", linewidth=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set(xlabel="eigenvalue / gradient's part", title=f"{BLOCKS[block]}, {at}")
    name_rows(axes, names)
    labels = {"largest": "largest", "smallest": "smallest", "gauss_newton": "Gauss-Newton, largest"}
    handles = [Line2D([], [], label=labels[part], linestyle="none", **look) for part, look in PARTS.items()]
    legend_below(axes, [*handles, Line2D([], [], color="black", linestyle="--", label="the gradient alone"),
                        *whose(curvature.reference is not None), *_crossed(bounded.own)])
    start = _over_bound(start_of_module(bounded.own).reset_index())
    alt = ("Both ends of the spectrum and the Gauss-Newton matrix's largest eigenvalue over what the gradient alone "
           "gives. Your runs, one module at initialisation: " + "; ".join(
               f"{row.variant} {row.largest:.2f} and {row.smallest:.2f}" for row in start.itertuples()) + ".")
    return Drawn(figure_, alt, "Both ends of the Hessian's spectrum in units of what the loss's gradient alone gives "
                 "them: at the dashed lines it explains them.", curvature.own)


def _over_bound(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{part: table[part] / table["gradient_bound"] for part in PARTS})


@figure("14_rate_against_sharpness", measurements=("variant_hessian",), place="Rates v2, Figs C2 and C3")
def rate_against_sharpness(curvature: Measured) -> Drawn:
    """Best learning rate against the largest eigenvalue at initialisation, one symbol per method, both logarithmic.

    The dashed line is a rate in inverse proportion to the eigenvalue, through vanilla LoRA: what gradient descent's
    bound of 2 over the eigenvalue would ask for.
    """
    styles, blocks = method_styles(names_in(curvature)), _blocks(curvature, "largest")
    table = sharpness_correlation(curvature.best)
    over_seeds = table.groupby(["block", "at"], sort=False)[["rho", "n"]].mean().reset_index()
    rho = over_seeds[over_seeds["at"] == "initialisation"].set_index("block")["rho"]
    figure_, axes = panels(len(blocks) + 1, height=3.9)
    for axis, block in zip(axes[:-1], blocks, strict=True):
        rows = curvature.where(f"block == '{block}' and at == 'initialisation' and largest > 0")
        means = rows.own.groupby("variant", sort=False)[["largest", "best_learning_rate"]].mean().reset_index()
        for table, size in ((rows.reference, SEEDS), (means, OWN)):
            for name, part in () if table is None else table.groupby("variant", sort=False):
                axis.plot(part["largest"], part["best_learning_rate"], **symbol(styles[name]), **size)
        _inverse_line(axis, rows.best)
        axis.set(xlabel="largest eigenvalue at initialisation", title=f"{BLOCKS[block]}: Spearman {rho[block]:.2f}")
    _published_rates(axes[-1], curvature.published)
    for axis in axes:
        axis.set(xscale="log", yscale="log", ylabel="best learning rate")
    handles = [Line2D([], [], label=name, **symbol(style), **OWN) for name, style in styles.items()]
    figure_.legend(handles=[*handles, *whose(curvature.reference is not None, "published")[1:]],
                   loc="outside lower center", ncols=5)
    alt = ("Best learning rate against the largest eigenvalue at initialisation, logarithmic, one symbol per method, "
           f"beside the study's. Spearman's rho, mean over seeds: {listed(rho, '{:.2f}')}.")
    return Drawn(figure_, alt, "Best rate against the largest eigenvalue at the start; the dashed line is inverse "
                 "proportion through vanilla LoRA; the table has the mean rank correlation over seeds.", curvature.own,
                 shown_table(over_seeds.astype({"n": int}), {"block": "block", "at": "at", "rho": "Spearman's rho",
                                                             "n": "methods"}))


def _published_rates(axis: Axes, published: pd.DataFrame) -> None:
    rows = published.dropna(subset=["lambda_ratio", "learning_rate"]).sort_values("lambda_ratio")
    axis.plot(rows["lambda_ratio"], rows["learning_rate"], **PUBLISHED)
    for index, row in enumerate(rows.itertuples()):
        left = bool(index % 2)  # neighbours may stand on each other
        axis.annotate(row.method, (row.lambda_ratio, row.learning_rate), textcoords="offset points",
                      xytext=(-7 if left else 7, -4), ha="right" if left else "left", fontsize="small")
    known = rows.rename(columns={"method": "variant", "lambda_ratio": "largest", "learning_rate": "best_learning_rate"})
    _inverse_line(axis, known)
    rho = known["largest"].corr(known["best_learning_rate"], method="spearman")
    axis.set(xlabel="eigenvalue over vanilla LoRA's", title=f"published, one module: Spearman {rho:.2f}")
    axis.margins(x=0.3, y=0.1)


@figure("14_adam_sharpness", measurements=("variant_hessian",), place="ours")
def adam_sharpness(curvature: Measured) -> Drawn:
    """Preconditioned sharpness times each method's best rate, against the value where full-batch Adam diverges."""
    threshold = adam_threshold(1.0)
    chosen = curvature.where("block == 'adapter' and at == 'trained' and preconditioned > 0")
    known = _changed(chosen, lambda rows: rows.assign(product=rows["preconditioned"] * rows["best_learning_rate"]))
    names = names_in(known)
    figure_, (axis,) = panels(1, width=8, height=rows_height(names))
    _symbols(axis, known, names, column="product", look=MOMENTS["trained"])
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axis.set(xlabel="largest eigenvalue in AdamW's coordinates × best rate", title="whole adapter, trained")
    log_ticks((axis,))
    name_rows((axis,), names)
    line = Line2D([], [], color="black", linestyle="--", label=f"Adam diverges above {threshold:g}")
    legend_below((axis,), [line, *whose(curvature.reference is not None)])
    own, best = (table.groupby("variant", sort=False)["product"].mean() for table in (known.own, known.best))
    right = best > threshold
    alt = (f"Preconditioned sharpness times the best rate for each method, against {threshold:g}, where full-batch "
           f"Adam diverges. Your runs: {listed(own, '{:.1f}')}.")
    return Drawn(figure_, alt, "Curvature in AdamW's own coordinates times the best rate: the means of "
                 f"{int(right.sum())} of {len(right)} methods lie beyond the bound of {threshold:g}.", known.own)


def _changed(measured: Measured, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Measured:
    reference = None if measured.reference is None else change(measured.reference)
    return replace(measured, own=change(measured.own), reference=reference)


def _blocks(curvature: Measured, column: str) -> list[str]:
    """The blocks of which the column was measured."""
    found = set(curvature.best.dropna(subset=[column])["block"]) | set(curvature.own.dropna(subset=[column])["block"])
    return [block for block in BLOCKS if block in found]


def _symbols(axis: Axes, rows: Measured, names: Sequence[str], *, column: str, look: dict, shift: float = 0) -> None:
    """Values of one column in their methods' rows: every seed of the reference, the mean of the own ones."""
    place = {name: index + shift for index, name in enumerate(names)}
    if rows.reference is not None:
        axis.plot(rows.reference[column], rows.reference["variant"].map(place), **look, **SEEDS)
    own = rows.own.dropna(subset=[column])
    means = own.groupby("variant", sort=False)[column].mean()
    axis.plot(means, means.index.map(place), **look, **OWN)
    if column in EIGENVALUES:
        short = means[~own.groupby("variant", sort=False)["converged"].agg(lambda one: one.astype(bool).all())]
        axis.plot(short, short.index.map(place), "x", color="black", markersize=8, zorder=5)


def _inverse_line(axis: Axes, rows: pd.DataFrame) -> None:
    vanilla = rows[rows["variant"] == VANILLA][["largest", "best_learning_rate"]].mean()
    ends = np.array([rows["largest"].min(), rows["largest"].max()])
    axis.plot(ends, vanilla["largest"] * vanilla["best_learning_rate"] / ends, color="grey", linestyle="--",
              linewidth=1, zorder=1)


def _crossed(own: pd.DataFrame) -> list[Line2D]:
    if own["converged"].astype(bool).all():
        return []
    return [Line2D([], [], color="black", marker="x", linestyle="none", markersize=8, label="not converged")]
