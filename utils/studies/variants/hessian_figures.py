"""Figures of notebook 14's second half: the loss's curvature at each method's start and end. Tables in, a figure out.

The table has one row per method, block, moment and seed: ``variant``, ``block`` (module or adapter), ``at``
(initialisation or trained), ``largest``, ``smallest``, ``converged``, ``best_learning_rate``, ``gradient_bound``,
``gauss_newton``, ``preconditioned``, ``seed``; what was not measured is NaN or a column that is not there. Own values
are large outlined markers (mean over seeds), the reference's seeds faint ones, published values hollow and grey. Where
Lanczos did not converge in some seed, the own marker is crossed out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from utils.reporting.panels import panels
from utils.reporting.style import method_styles
from utils.studies.sensitivity.figures import OWN, SEEDS
from utils.studies.variants.figures import PUBLISHED, in_order
from utils.studies.variants.tables import VANILLA

BLOCKS = {"module": "one module", "adapter": "whole adapter"}
MOMENTS = {"initialisation": {"color": "C0", "marker": "o"}, "trained": {"color": "C1", "marker": "^"}}
PARTS = {"largest": {"color": "C3", "marker": "^"}, "smallest": {"color": "C0", "marker": "v"},
         "gauss_newton": {"color": "C2", "marker": "D"}}
APART = 0.15  # of a row's height: how far the two moments of one method stand from its middle


def sharpness(own: pd.DataFrame, reference: pd.DataFrame | None = None, published: pd.DataFrame | None = None
              ) -> Figure:
    """Largest eigenvalue of every method at its start and its end, a panel per block; beside it the study's ratios.

    Parameters
    ----------
    published : pandas.DataFrame, optional
        ``method`` and ``lambda_ratio``: largest eigenvalue of a module at initialisation over vanilla LoRA's
        (:func:`utils.reporting.vanilla.published_best`). Our ratios are drawn from the same block and moment.
    """
    names, blocks = _names(own, reference), _blocks(own, reference)
    figure, axes = panels(len(blocks) + (published is not None), height=_height(names), width=4.6)
    for axis, block in zip(axes, blocks):
        _moments(axis, names, own, reference, column="largest", block=block)
        axis.set(xlabel="largest eigenvalue", title=BLOCKS[block])
    if published is not None:
        ratios = published.set_index("method")["lambda_ratio"].reindex(names)
        axes[-1].plot(ratios, range(len(names)), **PUBLISHED)
        tables = [over_vanilla(_part(table, "module")) for table in (own, reference)]
        _moments(axes[-1], names, *tables, column="ratio", block="module", moments=("initialisation",))
        axes[-1].set(xlabel="over vanilla LoRA's, at initialisation", title="one module")
    _log_ticks(axes)
    _name_rows(axes, names)
    _legend(figure, [*_moment_handles(), *_kinds(own, reference, published)])
    return figure


def over_vanilla(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """``ratio``: the largest eigenvalue over vanilla LoRA's of the same block, moment and seed; NaN without one.

    >>> rows = pd.DataFrame({"variant": ["LoRA", "PiSSA"], "block": "module", "at": "trained", "seed": 0,
    ...                      "largest": [2.0, 6.0]})
    >>> over_vanilla(rows)["ratio"].tolist()
    [1.0, 3.0]
    """
    if table is None:
        return None
    keys = ["block", "at", "seed"]
    vanilla = table.loc[table["variant"] == VANILLA, [*keys, "largest"]].rename(columns={"largest": "vanilla"})
    joined = table.merge(vanilla, on=keys, how="left", validate="many_to_one")
    return joined.assign(ratio=joined["largest"] / joined["vanilla"])


def rate_against_sharpness(own: pd.DataFrame, reference: pd.DataFrame | None = None,
                           published: pd.DataFrame | None = None, *, rho: Mapping[str, float] | None = None) -> Figure:
    """Best learning rate against the largest eigenvalue at initialisation, one symbol per method, both logarithmic.

    The dashed line is a rate in inverse proportion to the eigenvalue, through vanilla LoRA: what gradient descent's
    bound of 2 over the eigenvalue would ask for.

    Parameters
    ----------
    published : pandas.DataFrame, optional
        ``method``, ``lambda_ratio``, ``learning_rate``; a panel of its own.
    rho : mapping of str to float, optional
        Spearman's correlation for the panels' titles: of ``module``, ``adapter`` and ``published``.
    """
    names, blocks, rho = _names(own, reference), _blocks(own, reference), rho or {}
    figure, axes = panels(len(blocks) + (published is not None), height=4.4)
    styles = method_styles(names)
    for axis, block in zip(axes, blocks):
        for table, look in ((reference, SEEDS), (own, OWN)):
            _rate_points(axis, styles, _part(table, block, "initialisation"), look)
        _inverse_line(axis, _part(own if reference is None else reference, block, "initialisation"))
        axis.set(xlabel="largest eigenvalue at initialisation", title=_with_rho(BLOCKS[block], rho.get(block)))
    if published is not None:
        _published_rates(axes[-1], published)
        axes[-1].set_title(_with_rho("published, one module", rho.get("published")))
    for axis in axes:
        axis.set(xscale="log", yscale="log")
    axes[0].set_ylabel("best learning rate")
    handles = [Line2D([], [], label=name, linestyle="none", **_look(style), **OWN) for name, style in styles.items()]
    _legend(figure, [*handles, *_kinds(None, reference, published)])
    return figure


def _published_rates(axis: Axes, published: pd.DataFrame) -> None:
    rows = published.dropna(subset=["lambda_ratio", "learning_rate"]).sort_values("lambda_ratio")
    axis.plot(rows["lambda_ratio"], rows["learning_rate"], **PUBLISHED)
    for index, row in enumerate(rows.itertuples()):
        left = bool(index % 2)  # neighbours may stand on each other
        axis.annotate(row.method, (row.lambda_ratio, row.learning_rate), textcoords="offset points",
                      xytext=(-7 if left else 7, -4), ha="right" if left else "left", fontsize="x-small")
    axis.set(xlabel="eigenvalue over vanilla LoRA's")
    axis.margins(x=0.3, y=0.1)
    _inverse_line(axis, rows.rename(columns={"method": "variant", "lambda_ratio": "largest",
                                             "learning_rate": "best_learning_rate"}))


def gradient_part(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, variants: Sequence[str] | None = None
                  ) -> Figure:
    """Both ends of the spectrum over the gradient's own part: at +-1 stand the eigenvalues of the gradient alone.

    A panel per block and moment that was measured. The Gauss-Newton matrix's largest value, which has no such part, is
    drawn in the same unit.

    Parameters
    ----------
    variants : sequence of str, optional
        By default all that have a ``gradient_bound``.
    """
    whole = pd.concat([table for table in (own, reference) if table is not None])
    bounded = whole[whole["gradient_bound"] > 0]
    names = in_order([name for name in bounded["variant"] if variants is None or name in variants])
    cells = [(block, at) for block in BLOCKS for at in MOMENTS if len(_part(bounded, block, at))]
    figure, axes = panels(max(1, len(cells)), height=_height(names), width=4.2)
    for axis, (block, at) in zip(axes, cells):
        for column, look in PARTS.items():
            for table, size in ((reference, SEEDS), (own, OWN)):
                rows = _part(table, block, at)
                if rows is not None and column in rows:
                    rows = rows if column in ("largest", "smallest") else _without_convergence(rows)
                    rows = rows.assign(ratio=rows[column] / rows["gradient_bound"].where(lambda bound: bound > 0))
                    _points(axis, names, rows, "ratio", look, size)
        for side in (-1, 1):
            axis.axvline(side, color="black", linestyle="--", linewidth=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set(xlabel="eigenvalue / gradient's part", title=f"{BLOCKS[block]}, {at}")
    _name_rows(axes, names)
    labels = {"largest": "largest", "smallest": "smallest", "gauss_newton": "Gauss-Newton, largest"}
    handles = [Line2D([], [], label=labels[part], linestyle="none", **look, **OWN) for part, look in PARTS.items()]
    _legend(figure, [*handles, Line2D([], [], color="black", linestyle="--", label="the gradient alone"),
                     *_kinds(_chosen(own, names), reference, None)])
    return figure


def adam_sharpness(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, threshold: float = 38.0) -> Figure:
    """Preconditioned sharpness times each method's best rate, against the value where full-batch Adam diverges.

    Parameters
    ----------
    threshold : float
        :func:`utils.spectra.hessian.adam_threshold` at a learning rate of 1: 38 for beta1 = 0.9.
    """
    own, reference = (None if table is None else _without_convergence(table).assign(
        product=table["preconditioned"] * table["best_learning_rate"]) for table in (own, reference))
    names, blocks = _names(own, reference), _blocks(own, reference, "product")
    figure, axes = panels(max(1, len(blocks)), height=_height(names), width=7)
    for axis, block in zip(axes, blocks):
        _moments(axis, names, own, reference, column="product", block=block)
        axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="Adam's sharpness x best rate", title=BLOCKS[block])
    _log_ticks(axes)
    _name_rows(axes, names)
    line = Line2D([], [], color="black", linestyle="--", label=f"Adam diverges above {threshold:g}")
    _legend(figure, [*_moment_handles(), line, *_kinds(own, reference, None)])
    return figure


def _names(own: pd.DataFrame, reference: pd.DataFrame | None) -> list[str]:
    return in_order(pd.concat([table["variant"] for table in (own, reference) if table is not None]))


def _blocks(own: pd.DataFrame, reference: pd.DataFrame | None, column: str = "largest") -> list[str]:
    """The blocks of which the column was measured."""
    tables = [table for table in (own, reference) if table is not None]
    found = {block for table in tables for block in table.dropna(subset=[column])["block"]}
    return [block for block in BLOCKS if block in found]


def _without_convergence(table: pd.DataFrame) -> pd.DataFrame:
    """``converged`` is of the Hessian's two ends, not of what else a row holds."""
    return table.drop(columns="converged", errors="ignore")


def _chosen(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table[table["variant"].isin(names)]


def _height(names: Sequence[str]) -> float:
    return 1.8 + 0.32 * max(4, len(names))


def _part(table: pd.DataFrame | None, block: str, at: str | None = None) -> pd.DataFrame | None:
    if table is None:
        return None
    return table[(table["block"] == block) & ((table["at"] == at) if at else True)]


def _moments(axis: Axes, names: list[str], own: pd.DataFrame | None, reference: pd.DataFrame | None, *, column: str,
             block: str, moments: Sequence[str] = tuple(MOMENTS)) -> None:
    """A row per method: initialisation a little above its middle, trained a little below."""
    for at, look in ((at, MOMENTS[at]) for at in moments):
        shift = (-APART if at == "initialisation" else APART) if len(moments) > 1 else 0
        for table, size in ((reference, SEEDS), (own, OWN)):
            rows = _part(table, block, at)
            if rows is not None:
                _points(axis, names, rows, column, look, size, shift=shift, positive=True)


def _points(axis: Axes, names: list[str], rows: pd.DataFrame, column: str, look: dict, size: dict, *, shift: float = 0,
            positive: bool = False) -> None:
    """Values of one column in the rows of their methods: every seed of the reference, the mean of the own ones.

    A logarithmic axis has no place for a value that is not `positive`; NaN has none on any.
    """
    rows = rows[rows["variant"].isin(names)].dropna(subset=[column])
    rows = rows[rows[column] > 0] if positive else rows
    place = {name: index + shift for index, name in enumerate(names)}
    if size is SEEDS:
        axis.plot(rows[column], rows["variant"].map(place), **look, **SEEDS)
        return
    means = rows.groupby("variant", sort=False)[column].mean()
    axis.plot(means, means.index.map(place), linestyle="none", **look, **OWN | {"markersize": 8})
    if "converged" in rows:
        short = means[~rows.groupby("variant", sort=False)["converged"].agg(lambda one: one.astype(bool).all())]
        axis.plot(short, short.index.map(place), "x", color="black", markersize=8, zorder=5)


def _rate_points(axis: Axes, styles: dict[str, dict], rows: pd.DataFrame | None, size: dict) -> None:
    if rows is None:
        return
    rows = rows[(rows["largest"] > 0) & (rows["best_learning_rate"] > 0)]
    for name, part in rows.groupby("variant", sort=False):
        points = part[["largest", "best_learning_rate"]]
        points = points.mean().to_frame().T if size is OWN else points
        look = _look(styles[name]) | {"linestyle": "none"} | size
        axis.plot(points["largest"], points["best_learning_rate"], **look)


def _inverse_line(axis: Axes, rows: pd.DataFrame) -> None:
    rows = rows[(rows["largest"] > 0) & (rows["best_learning_rate"] > 0)]
    vanilla = rows[rows["variant"] == VANILLA][["largest", "best_learning_rate"]].mean()
    if vanilla.isna().any():
        return
    ends = np.array([rows["largest"].min(), rows["largest"].max()])
    axis.plot(ends, vanilla["largest"] * vanilla["best_learning_rate"] / ends, color="grey", linestyle="--",
              linewidth=1, zorder=1)


def _log_ticks(axes: Sequence[Axes]) -> None:
    """Plain numbers: 1, 2, 5 within a decade or two, powers of ten beyond."""
    for axis in axes:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def _look(style: dict) -> dict:
    return {name: style[name] for name in ("color", "marker")}


def _with_rho(title: str, rho: float | None) -> str:
    return title if rho is None or np.isnan(rho) else f"{title}: Spearman {rho:.2f}"


def _name_rows(axes: Sequence[Axes], names: list[str]) -> None:
    for index, axis in enumerate(axes):
        axis.set(yticks=range(len(names)), yticklabels=names if index == 0 else [], ylim=(len(names) - 0.5, -0.5))


def _moment_handles() -> list[Line2D]:
    return [Line2D([], [], label="at initialisation" if at == "initialisation" else at, linestyle="none", **look, **OWN)
            for at, look in MOMENTS.items()]


def _kinds(own: pd.DataFrame | None, reference: pd.DataFrame | None, published: pd.DataFrame | None) -> list[Line2D]:
    crossed = own is not None and "converged" in own and not own["converged"].astype(bool).all()
    cross = {"color": "black", "marker": "x", "linestyle": "none", "markersize": 8}
    marks = {"not converged": cross if crossed else {},
             "reference: seeds": {"color": "black", "marker": "o"} | SEEDS if reference is not None else {},
             "published": PUBLISHED if published is not None else {}}
    return [Line2D([], [], label=label, **look) for label, look in marks.items() if look]


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside right center", fontsize="x-small")
