"""Figures of notebook 13: loss and forgetting against the learning rate, by what else is varied; best rate and rank."""

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import panel_lines, panels
from utils.reporting.style import method_styles
from utils.studies.sensitivity.tables import LOSS, best_rate_table, in_words, selection

LOSS_LABEL, FORGETTING_LABEL = "held-out loss, nats per token", "forgetting, nats per token"
HOLLOW = "hollow runs have not learnt, thin lines and bands are the reference's"
OWN = {"markersize": 9, "markeredgecolor": "black", "zorder": 4}


def _against_rate(own: pd.DataFrame, reference: pd.DataFrame | None, *, y: str = LOSS, ylabel: str = LOSS_LABEL,
                  x: str = "learning_rate", xlabel: str = "learning rate") -> Figure:
    """A measure against the learning rate, one line per series, one panel per ``panel``.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        :func:`utils.studies.sensitivity.tables.selection`: ``panel``, ``series``, `x`, `y`, one row per run.
    """
    named = [None if table is None else table.assign(method=table["series"]) for table in (own, reference)]
    drawing = panel_lines(*named, x=x, y=y, panel="panel", xlabel=xlabel, ylabel=ylabel, xscale="log")
    for axis in drawing.axes:
        _rate_ticks(axis.xaxis)
    if len(drawing.axes) == 1:
        drawing.set_size_inches(7.5, 4.6)
    return drawing


def _rate_ticks(side: Axis) -> None:
    """Ticks at 1 and 3 times powers of ten, as the rates are spaced; the usual minor labels would overlap."""
    side.set_major_locator(LogLocator(subs=(1, 3)))
    side.set_major_formatter("{x:g}")
    side.set_minor_formatter(NullFormatter())
    side.set_tick_params(labelsize="small")


def _best(runs: Measured, experiment: str, by: dict[str, str]) -> pd.DataFrame:
    """The best rate of each group, from the reference where there is one: `by` under its names and four columns."""
    best = best_rate_table(selection(runs.best, experiment), list(by))
    return shown_table(best, by | {"learning_rate": "best rate", "loss": "loss there", "seeds": "seeds there",
                                   "edge": "end of the grid"})


def _in_words(runs: Measured, experiment: str, *, y: str = LOSS) -> str:
    """The reader's values at every rate."""
    return f"Your runs: {in_words(selection(runs.own, experiment), y=y)}"


def _least(runs: Measured, experiment: str) -> str:
    """Where the reader's runs have their least loss, series by series."""
    best = best_rate_table(selection(runs.own, experiment), ["panel", "series"])
    return "Least loss: " + "; ".join(
        f"{row.panel}{', ' * bool(row.panel)}{row.series}: {row.loss:.2f} at {row.learning_rate:g}"
        for row in best.itertuples()) + "."


def _loss_figure(runs: Measured, experiment: str, by: dict[str, str], *, what: str, caption: str) -> Drawn:
    """Loss against the rate with, under it, the best rate of each group of `by` (columns -> names)."""
    own = selection(runs.own, experiment)
    return Drawn(_against_rate(own, selection(runs.reference, experiment)),
                 alt=f"Held-out loss against the learning rate, logarithmic, {what}. {_least(runs, experiment)} "
                     + _in_words(runs, experiment),
                 caption=f"Held-out loss against the learning rate, {caption}; {HOLLOW}.", table=own,
                 shown=_best(runs, experiment, by))


@figure("13_learning_rate", measurements=("sensitivity",), place="Learns less v2, Fig S1")
def learning_rate(runs: Measured) -> Drawn:
    """Held-out loss on code against the learning rate, one line per method."""
    return _loss_figure(runs, "rates", {"method": "method"}, what="one line per method",
                        caption="each method on its own grid")


@figure("13_forgetting_against_rate", measurements=("sensitivity",))
def forgetting_against_rate(runs: Measured) -> Drawn:
    """Forgetting against the learning rate, one line per method."""
    own = selection(runs.own, "rates")
    return Drawn(
        _against_rate(own, selection(runs.reference, "rates"), y="forgetting", ylabel=FORGETTING_LABEL),
        alt="Forgetting, the rise of the loss on held-out English, against the learning rate, one line per method. "
            + _in_words(runs, "rates", y="forgetting"),
        caption=f"Forgetting of the base's own English against the learning rate; {HOLLOW}.", table=own)


@figure("13_optimisers", measurements=("sensitivity",), place="Learns less v2, Fig S2")
def optimisers(runs: Measured) -> Drawn:
    """Held-out loss against the learning rate with AdamW and with Lion, one panel per method."""
    return _loss_figure(runs, "optimisers", {"method": "method", "series": "optimiser"},
                        what="one panel per method, one line for AdamW and one for Lion", caption="by optimiser")


@figure("13_alpha", measurements=("sensitivity",), place="Learns less v2, Fig S3")
def alpha(runs: Measured) -> Drawn:
    """Held-out loss of LoRA at one rank against the learning rate, one line per alpha."""
    return _loss_figure(runs, "alpha", {"series": "alpha"}, what="of LoRA at one rank, one line per alpha",
                        caption="for three alphas at one rank")


@figure("13_alpha_as_rate", measurements=("sensitivity",))
def alpha_as_rate(runs: Measured) -> Drawn:
    """The same losses against the learning rate times alpha / r: one curve, if alpha were but a factor on the rate."""
    own, reference = (None if table is None else table.assign(
        step_size=table["learning_rate"] * table["lora_alpha"] / table["r"])
        for table in (selection(runs.own, "alpha"), selection(runs.reference, "alpha")))
    means = own.groupby(["series", "step_size"], sort=False)[LOSS].mean()
    return Drawn(
        _against_rate(own, reference, x="step_size", xlabel="learning rate × alpha / r"),
        alt="The same losses against the learning rate times alpha / r, one line per alpha: " + "; ".join(
            f"{series}, {size:.4g}: {loss:.2f}" for (series, size), loss in means.items()) + " nats per token.",
        caption=f"The losses of the figure above against the learning rate times alpha / r; {HOLLOW}.", table=own)


@figure("13_modules", measurements=("sensitivity",), place="Learns less v2, Fig 7")
def modules(runs: Measured) -> Drawn:
    """Held-out loss of LoRA on all modules, on attention or on the MLP, at nearly equal numbers trained."""
    return _loss_figure(runs, "modules", {"series": "modules"},
                        what="of LoRA on all modules, on attention and on the MLP, at nearly equal numbers of trained "
                             "parameters", caption="by the modules that LoRA tunes, at equal numbers of parameters")


@figure("13_batches", measurements=("sensitivity",))
def batches(runs: Measured) -> Drawn:
    """Held-out loss against the learning rate, one line per batch size at equal tokens, one panel per method."""
    return _loss_figure(runs, "batches", {"method": "method", "series": "batch"},
                        what="one panel per method, one line per batch size at equal tokens",
                        caption="by batch size, for the same tokens")


@figure("13_scalings", measurements=("sensitivity",))
def scalings(runs: Measured) -> Drawn:
    """Held-out loss against the learning rate, one line per rank, one panel per rule for the scale."""
    drawn = _loss_figure(runs, "scalings", {"panel": "scaling", "r": "rank"},
                         what="one panel per scaling rule, one line per rank",
                         caption="by rank, for three rules of scaling")
    return replace(drawn, shown=None)  # the next figure shows the best rates


@figure("13_best_rate_against_rank", measurements=("sensitivity",))
def best_rate_against_rank(runs: Measured) -> Drawn:
    """Best learning rate against rank on logarithmic axes, one line per scaling.

    Where the best lies at the end of its grid an arrow points to where the true one may be; a rank of which a single
    rate was tried is a small cross, as nothing was compared.
    """
    own, reference = (None if table is None else best_rate_table(selection(table, "scalings"), ["scaling", "r"])
                      for table in (runs.own, runs.reference))
    drawing, (axis,) = panels(1, width=7.5, height=4.6)
    both = own if reference is None else pd.concat([reference, own])
    styles = method_styles(list(dict.fromkeys(both["scaling"])))
    for index, (name, style) in enumerate(styles.items()):
        shift = 1.05 ** (index - (len(styles) - 1) / 2)  # equal best rates would hide each other
        for table, look in ((reference, {"markersize": 5, "linewidth": 1, "alpha": 0.6}), (own, OWN)):
            if table is not None:
                part = table[table["scaling"] == name].sort_values("r")
                _best_line(axis, part.assign(r=part["r"] * shift), style | look)
    _rank_axes(axis, both)
    _best_legend(drawing, styles, reference=reference is not None)
    known = own if reference is None else reference
    return Drawn(
        drawing,
        alt="Best learning rate against rank, both logarithmic, one line per scaling. Your runs: " + "; ".join(
            f"{row.scaling}, r = {row.r}: {row.learning_rate:g}" + f" (edge: {row.edge})" * bool(row.edge)
            for row in own.itertuples()) + ".",
        caption="The best learning rate of those tried against the rank, under three rules of scaling.", table=own,
        shown=known.pivot(index="scaling", columns="r", values="learning_rate").rename(
            columns="best rate, r = {}".format).reset_index().rename_axis(columns=None))


def _rank_axes(axis: Axes, best: pd.DataFrame) -> None:
    axis.set(xscale="log", yscale="log", xlabel="rank r", ylabel="best learning rate of those tried")
    _rate_ticks(axis.yaxis)
    axis.xaxis.set_major_locator(FixedLocator(sorted(best["r"].unique())))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(best["learning_rate"].min() / 3, best["learning_rate"].max() * 3)


def _best_line(axis: Axes, part: pd.DataFrame, look: dict) -> None:
    """The line of one scaling through the ranks with several rates, arrows at bounds, crosses where one was tried."""
    several, single = part[part["edge"] != "only"], part[part["edge"] == "only"]
    axis.plot(several["r"], several["learning_rate"], label="_best", **look)
    axis.plot(single["r"], single["learning_rate"], "x", color=look["color"], markersize=7, label="_only")
    for row in several[several["edge"] != ""].itertuples():
        axis.annotate("", (row.r, row.learning_rate * (1.9 if row.edge == "highest" else 1 / 1.9)),
                      (row.r, row.learning_rate), arrowprops={"arrowstyle": "->", "color": look["color"]})


def _best_legend(drawing: Figure, styles: dict[str, dict], *, reference: bool) -> None:
    grey = {"color": "grey", "linestyle": "none"}
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    handles += [Line2D([], [], marker="o", markeredgecolor="black", markersize=9, label="your runs", **grey)]
    handles += [Line2D([], [], marker="o", markersize=5, alpha=0.6, label="reference", **grey)] * reference
    handles += [Line2D([], [], marker=r"$\uparrow$", label="end of the grid: a bound", **grey),
                Line2D([], [], marker="x", label="only one rate tried", **grey)]
    drawing.legend(handles=handles, loc="outside lower center", ncols=3)
