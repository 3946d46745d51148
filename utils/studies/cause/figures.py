"""Scaling intruders beside its controls, removing them, and the strength at which one appears (notebook 07)."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panels
from utils.reporting.style import method_style, method_styles
from utils.reporting.words import both, listed, over_seeds
from utils.studies.cause.measure import KINDS

OUTCOMES = {"accuracy": "test accuracy", "pseudo_loss": "pseudo-loss, nats per token"}
CHANGES = {"accuracy_change": "change of accuracy, %", "forgetting_change": "change of forgetting, %"}
TABLE_3 = (0.1, 0.3, 0.5, 0.7, 0.9)
NORMS = {"own": "at the run's own norm", "smaller": "at the norm that removing leaves"}


def _methods(measured: Measured) -> list[str]:
    """The runs of own and reference, by rank and rate; each is drawn, whoever made it."""
    return list(dict.fromkeys([*measured.own["method"], *measured.best["method"]]))


def _of(table: pd.DataFrame | None, **where) -> pd.DataFrame | None:
    """The rows with these values; None stays None."""
    for column, value in where.items():
        table = None if table is None else table[table[column] == value]
    return table


@figure("07_scaling_intruders", measurements=("interventions",), place="Illusion v3, Figs 8 and 12")
def scaling_intruders(scaled: Measured) -> Drawn:
    """Accuracy and pseudo-loss against lambda: one row of panels per run, one line per kind of change.

    The axis of the loss holds every kind down to lambda 0, and those but the whole update above 1, which leaves it.
    """
    methods, styles = _methods(scaled), method_styles(KINDS)
    drawn, axes = panels(2 * len(methods), height=3.6)
    for place, method in enumerate(methods):
        own, reference = (_of(table, method=method) for table in (scaled.own, scaled.reference))
        for axis, (column, label) in zip(axes[2 * place:2 * place + 2], OUTCOMES.items(), strict=True):
            draw_lines(axis, _by_kind(own), _by_kind(reference), x="factor", y=column, styles=styles)
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set(title=method, ylabel=label, xlabel="lambda: 0 removes, 1 changes nothing")
        rows = pd.concat([table for table in (own, reference) if table is not None])
        axis.axhline(rows["base_pseudo_loss"].iloc[0], color="grey", linestyle=":", label="untouched base")
        held = rows[(rows["kind"] != "whole update") | (rows["factor"] <= 1)]["pseudo_loss"]
        lowest, highest = min(held.min(), rows["base_pseudo_loss"].min()), held.max()
        axis.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    outer_legend(drawn, axes)
    intruder = _of(scaled.best, kind="intruder")
    means = intruder[intruder["factor"].isin([0, 0.5, 1, 1.5])].groupby(["method", "factor"], sort=False)[
        ["accuracy", "pseudo_loss", "forgetting"]].mean().reset_index()
    alt = ("Line plots of accuracy (left) and pseudo-loss (right) against lambda, one row per run, one line each for "
           f"intruder, neighbour, random direction and whole update. The intruder, {scaled.source}: " + "; ".join(
               f"{row.method} at lambda {row.factor:g}: accuracy {row.accuracy:.3f}, loss {row.pseudo_loss:.2f}"
               for row in means.itertuples()) + ".")
    return Drawn(drawn, alt, "Accuracy and pseudo-loss when each matrix's first intruder, or something else of its "
                 "size, is scaled by lambda; the whole update's loss leaves the axis above 1.", scaled.own,
                 shown_table(means, {"method": "run", "factor": "lambda", "accuracy": "accuracy",
                                     "pseudo_loss": "pseudo-loss", "forgetting": "forgetting, nats"}))


def _by_kind(table: pd.DataFrame | None) -> pd.DataFrame | None:
    return None if table is None else table.assign(method=table["kind"])


@figure("07_beside_table_3", measurements=("interventions",), place="Illusion v3, Table 3")
def beside_table_3(scaled: Measured) -> Drawn:
    """Change of accuracy and of forgetting in percent against lambda, ours beside the paper's RoBERTa models."""
    own, reference, best = (_down(table) for table in (scaled.own, scaled.reference, scaled.best))
    paper = scaled.published[scaled.published["table"] == 3]
    tasks = both(sorted(paper["task"].str.upper().unique()))
    drawn, axes = panels(2)
    for axis, (column, label) in zip(axes, CHANGES.items(), strict=True):
        for (rank, _), line in paper.groupby(["r", "task"]):
            axis.plot(line["factor"], line[column], color="0.5", linestyle=":", linewidth=0.8, markersize=5,
                      marker=method_style(f"LoRA r={rank}")["marker"], markerfacecolor="none", zorder=1,
                      label=f"paper, r={rank}: RoBERTa on {tasks}")
        draw_lines(axis, own, reference, x="factor", y=column, styles=method_styles(_methods(scaled)))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xlabel="lambda: 0 removes, 1 changes nothing", ylabel=label)
    outer_legend(drawn, axes)
    means = best.groupby(["r", "factor"])[[*CHANGES, "loss_change"]].mean().reset_index().assign(source="ours")
    means = means[means["factor"].isin([0.5, 0.7])]
    theirs = paper[(paper["task"] == "mnli") & paper["factor"].isin([0.5, 0.7])].assign(source="paper, MNLI")
    alt = ("Two line plots against lambda from 0 to 1: change of accuracy and of forgetting in percent, ours and the "
           f"paper's RoBERTa models. Ours is {scaled.source}: " + "; ".join(
               f"{row.source}, r={row.r}, lambda {row.factor:g}: accuracy {row.accuracy_change:+.1f} %, forgetting "
               f"{row.forgetting_change:+.1f} %" for row in pd.concat([means, theirs]).itertuples()) + ".")
    shown = shown_table(pd.concat([means, theirs]).sort_values(["source", "r"], kind="stable"), {
        "source": "source", "r": "rank", "factor": "lambda", "accuracy_change": "accuracy, %",
        "forgetting_change": "of what was forgotten, %", "loss_change": "of the loss, %"})
    return Drawn(drawn, alt, "What scaling intruders changes, in percent of accuracy and of what was forgotten, "
                 "beside Table 3 of the paper; other base and tasks, so signs and sizes compare, not digits.", own,
                 shown)


def _down(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """The intruder's rows at lambda 0 to 1."""
    return None if table is None else table[(table["kind"] == "intruder") & (table["factor"] <= 1)]


@figure("07_pareto", measurements=("interventions",), place="Illusion v3, review thread (in words)")
def trade_off(scaled: Measured) -> Drawn:
    """Forgetting against accuracy as lambda runs from 1 to 0: one panel per run, one line per kind of change."""
    methods, styles = _methods(scaled), method_styles(KINDS)
    own, reference, best = (None if table is None else table[table["factor"] <= 1]
                            for table in (scaled.own, scaled.reference, scaled.best))
    drawn, axes = panels(len(methods))
    for axis, method in zip(axes, methods, strict=True):
        for kind, style in styles.items():
            if reference is not None:
                _curve(axis, _of(reference, method=method, kind=kind), label="_reference", linewidth=1, alpha=0.5,
                       **style)
            _curve(axis, _of(own, method=method, kind=kind), label=kind, **style)
        start = _of(best if method in set(best["method"]) else own, method=method, factor=1)
        _curve(axis, start, color="red", marker="o", linestyle="none", markersize=11, fillstyle="none",
               label="lambda = 1")
        axis.set(title=method, xlabel="test accuracy")
    label_left(axes, "forgetting, nats per token")
    outer_legend(drawn, axes)
    half = best[best["factor"] == 0.5].groupby(["method", "kind"], sort=False)[["accuracy", "forgetting"]].mean()
    alt = ("Forgetting against accuracy as lambda falls from 1 to 0, one line per kind of change, one panel per run. "
           f"At lambda 0.5, {scaled.source}: " + "; ".join(
               f"{method}, {kind}: accuracy {row['accuracy']:.3f}, forgetting {row['forgetting']:.2f}"
               for (method, kind), row in half.iterrows()) + ".")
    shown = shown_table(half.reset_index(), {"method": "run", "kind": "scaled by 0.5", "accuracy": "accuracy",
                                             "forgetting": "forgetting, nats"})
    return Drawn(drawn, alt, "What is forgotten at which accuracy, as lambda runs from 1 (circle) to 0; thin lines are "
                 "the reference's means.", own, shown)


def _curve(axis: Axes, rows: pd.DataFrame, **look) -> None:
    """The means by lambda, joined in lambda's order."""
    line = rows.groupby("factor")[["accuracy", "forgetting"]].mean().sort_index()
    axis.plot(line["accuracy"], line["forgetting"], **({"markersize": 5} | look))


@figure("07_removing_intruders", measurements=("removals",), place="Illusion v3, review thread (promised)")
def removing_intruders(removed: Measured) -> Drawn:
    """Forgetting against the number of directions removed, intruders and neighbours: one line per run, no means.

    Seeds have different numbers of intruders, so that a mean would jump where one of them ends.
    """
    methods, styles = _methods(removed), method_styles(["intruders", "neighbours"])
    drawn, axes = panels(len(methods))
    for axis, method in zip(axes, methods, strict=True):
        for kind, style in styles.items():
            for table, look in ((removed.reference, {"linewidth": 1, "alpha": 0.5, "label": "_reference"}),
                                (removed.own, {"label": kind})):
                for _, line in _runs(_of(table, method=method, kind=kind)):
                    axis.plot(line["removed"], line["forgetting"], markersize=4, **style | look)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set(title=method, xlabel="how many are removed, the strongest first")
    label_left(axes, "forgetting, nats per token")
    outer_legend(drawn, axes)
    ends = removed.best.sort_values("removed").groupby(["method", "kind", "seed"], sort=False).agg(
        removed=("removed", "last"), before=("forgetting", "first"), after=("forgetting", "last")).reset_index()
    ends = ends.sort_values(["method", "seed", "kind"])
    alt = ("Line plots of forgetting against the number of directions removed, intruders and neighbours, one panel per "
           f"method and one line per seed. From none to all, {removed.source}: " + "; ".join(
               f"{row.method}, seed {row.seed}, {row.removed} {row.kind}: {row.before:.2f} to {row.after:.2f}"
               for row in ends.itertuples()) + " nats per token.")
    shown = shown_table(ends, {"method": "run", "seed": "seed", "kind": "removed", "removed": "how many",
                               "before": "forgetting before, nats", "after": "after, nats"})
    return Drawn(drawn, alt, "Forgetting as one intruder after the other is removed, the strongest first, and as many "
                 "of their neighbours; one line per seed, the reference's thin.", removed.own, shown)


def _runs(table: pd.DataFrame | None) -> list[tuple]:
    """A table's runs one by one; none of no table."""
    return [] if table is None else list(table.groupby("run", sort=False))


@figure("07_norm_matched", measurements=("norm_matched",), place="ours")
def with_and_without(norms: Measured) -> Drawn:
    """Forgetting with and without intruders, at two norms of the update: one row of panels per method, a line a run."""
    methods = _methods(norms)
    drawn, axes = panels(2 * len(methods), height=3.4)
    for axis, (method, norm) in zip(axes, product(methods, NORMS), strict=True):
        for table, look in ((norms.reference, {"linewidth": 1, "alpha": 0.5}), (norms.own, {})):
            for _, rows in _runs(_of(table, method=method, norm=norm)):
                values = rows.set_index("intruders")["forgetting"].reindex(["kept", "removed"])
                axis.plot([0, 1], values, markersize=6, **method_style(method) | look)
        axis.set_xticks([0, 1], ["with intruders", "without"])
        axis.set(title=f"{method}, {NORMS[norm]}", xlim=(-0.3, 1.3))
    for left, right in zip(axes[::2], axes[1::2], strict=True):
        left.sharey(right)
        left.autoscale(axis="y")
    label_left(axes, "forgetting, nats per token")
    wide = norms.best.pivot_table(index=["method", "norm", "seed"], columns="intruders", sort=False,
                                  values=["forgetting", "relative_norm"]).reset_index()
    shown = pd.DataFrame({"run": wide["method"], "seed": wide["seed"], "norm": wide["norm"].map(NORMS),
                          "mean |update| / |W0|": wide["relative_norm", "kept"],
                          "forgetting with, nats": wide["forgetting", "kept"],
                          "without, nats": wide["forgetting", "removed"]}).sort_values(["run", "norm", "seed"])
    gap = (wide["forgetting", "kept"] - wide["forgetting", "removed"]).groupby([wide["method"], wide["norm"]])
    alt = ("Forgetting of each run with its intruders and with all of them removed, at two norms matched matrix by "
           f"matrix, one line per seed. With minus without, {norms.source}: " + "; ".join(
               f"{method} {NORMS[norm]}: {over_seeds(values, '{:+.3f}')}" for (method, norm), values in gap)
           + " nats per token.")
    return Drawn(drawn, alt, "What a run forgets with its intruders and without them, at equal norm of every matrix's "
                 "update; a falling line says that intruders matter beyond size. The reference's seeds are thin.",
                 norms.own, shown.head(8).reset_index(drop=True))


@figure("07_critical_strength", measurements=("critical_strengths",), place="ours, an extension of appendix A.2")
def predicted_strengths(critical: Measured) -> Drawn:
    """Critical strength of a planted direction, predicted against measured: a symbol per matrix, a bar for its draws.

    Matrices in which no strength makes an intruder (infinity) are not drawn.
    """
    table = critical.own
    known = table[np.isfinite(table[["predicted", "measured"]]).all(axis=1)]
    drawn, (axis,) = panels(1, width=6.5, height=5.0)
    for type_, style in method_styles(known["type"].unique()).items():
        part = known[known["type"] == type_]
        axis.hlines(part["predicted"], part["smallest"], part["largest"], color=style["color"], linewidth=1, alpha=0.6)
        axis.plot(part["measured"], part["predicted"], style["marker"], color=style["color"], markersize=6,
                  label=type_, markeredgecolor="black", markeredgewidth=0.5)
    if len(known):
        ends = np.array([known[["predicted", "measured"]].min().min(), known[["predicted", "measured"]].max().max()])
        axis.plot(ends * (0.9, 1.1), ends * (0.9, 1.1), color="black", linewidth=1, label="equal", zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="measured critical strength", ylabel="predicted from W0's spectrum")
    for side in (axis.xaxis, axis.yaxis):  # they span less than a decade
        side.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())
    outer_legend(drawn, [axis])
    ratio = (known["measured"] / known["predicted"]).groupby(known["type"], sort=False)
    said = listed(ratio.median(), "{:.2f}") or "none is finite"
    alt = (f"Scatter of measured against predicted critical strength of a planted direction for {len(known)} of "
           f"{len(table)} base matrices and seeds. Measured over predicted, median by type: {said}.")
    shown = ratio.agg(["size", "min", "median", "max"]).reset_index().rename(columns={
        "type": "matrix type", "size": "matrices", "min": "measured / predicted, least", "max": "largest"})
    return Drawn(drawn, alt, "From which strength on a random direction is an intruder in each base matrix: predicted "
                 "from singular values alone, and measured by planting.", table, shown.head(8))
