"""How notebook 14's figures show whose number a symbol is: own, a seed of the reference, or published."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from utils.reporting.measured import Measured
from utils.studies.variants.tables import LOSS, in_order

OWN = {"linestyle": "none", "markersize": 9, "markeredgecolor": "black", "zorder": 4}
SEEDS = {"linestyle": "none", "markersize": 5, "alpha": 0.4, "zorder": 2}
PUBLISHED = {"color": "grey", "marker": "D", "markerfacecolor": "none", "linestyle": "none", "markersize": 7}
LABELS = {LOSS: "held-out loss, nats per token", "token_accuracy": "held-out token accuracy",
          "forgetting": "forgetting, nats per token", "n_intruders": "intruder dimensions",
          "relative_norm": "mean norm of the update over W0's"}


def names_in(measured: Measured) -> list[str]:
    """The methods of own and reference in the order of every figure."""
    tables = [table for table in (measured.own, measured.reference) if table is not None]
    return in_order(pd.concat([table["variant"] for table in tables]))


def symbol(style: dict) -> dict:
    """A style's colour and marker, without its line."""
    return {"color": style["color"], "marker": style["marker"]}


def name_rows(axes: Iterable[Axes], names: Sequence[str]) -> None:
    """One row per method, the first on top, at the same heights in every panel."""
    for axis in axes:
        axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))


def rows_height(names: Sequence[str]) -> float:
    """Inches of a panel with one row per method."""
    return 1.6 + 0.3 * max(4, len(names))


def legend_below(axes: Sequence[Axes], handles: Sequence[Line2D]) -> None:
    """The handles in one legend under the figure, three a row, where they hide no data."""
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=3)


def log_ticks(axes: Iterable[Axes]) -> None:
    """Plain numbers on logarithmic horizontal axes: 1, 2, 5 within a decade or two, powers of ten beyond."""
    for axis in axes:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def rate(value: float) -> str:
    """A learning rate as a reader writes it; three decimals would make 0.0032 and 0.0028 the same."""
    return f"{value:g}"


def whose(reference: bool, published: str = "") -> list[Line2D]:
    """Legend handles of the symbols: own, a seed of the reference if there is one, and what was published."""
    handles = [Line2D([], [], label="your runs, mean", color="white", marker="o", **OWN)]
    if reference:
        handles.append(Line2D([], [], label="reference, each seed", color="black", marker="o", **SEEDS))
    return handles + ([Line2D([], [], label=published, **PUBLISHED)] if published else [])
