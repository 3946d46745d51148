"""Scaling intruders beside its controls, removing them, and the strength at which one appears (notebook 07)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panels
from utils.reporting.style import method_style, method_styles
from utils.reporting.words import both, listed, over_seeds
from utils.studies.cause.changed import KINDS
from utils.studies.cause.resampled import changes

OUTCOMES = {"accuracy": "accuracy", "forgetting": "forgetting, nats"}
CHANGES = {"accuracy_change": "change of accuracy, %", "forgetting_change": "change of forgetting, %"}
READINGS = {"intruder": "of W0 + ΔW", "update triplet": "of ΔW alone"}  # which SVD the scaled triplet is taken from
CONTROLS = tuple(kind for kind in KINDS if kind != "update triplet")  # what stands beside lambda
FACTOR = "lambda, or share of the learning rate"
NORMS = {"own": "at the run's own norm", "smaller": "at the norm that removing leaves"}
SHOWN_FACTORS = (0.0, 0.25, 0.5, 0.7)
LEAST = 0.5  # the strength down to which the whole update sets the axes: below it, it leaves all else a line


def main_run(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the run of the largest rank, one per seed: what the figures show."""
    first = table.sort_values(["r", "learning_rate"], ascending=[False, True], kind="stable")["method"]
    return table[table["method"] == (first.iloc[0] if len(first) else "")]


def _main(measured: Measured) -> tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame]:
    """The main run's rows of own, reference and of the better of the two."""
    reference = None if measured.reference is None else main_run(measured.reference)
    return main_run(measured.own), reference, main_run(measured.best)


def _title(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"{row['method'].split(',')[0]}, learning rate {row['learning_rate']:g}"


def _of(table: pd.DataFrame | None, **where) -> pd.DataFrame | None:
    """The rows with these values; None stays None."""
    for column, value in where.items():
        table = None if table is None else table[table[column] == value]
    return table


@figure("07_scaling_intruders", measurements=("interventions",), place="Illusion v3, Figs 8 and 12")
def scaling_intruders(scaled: Measured) -> Drawn:
    """What scaling changes in accuracy (left) and in forgetting (right), one line per kind, smaller rates beside them.

    Bands are the bootstrap's 95 % over seeds and items. The whole update leaves the axes below lambda 0.5 and above 1.
    """
    own, reference, best = _main(scaled)
    styles, measured = method_styles(CONTROLS), {name: changes(rows) for name, rows in (
        ("own", own), ("best", best)) if rows is not None}
    drawn, axes = panels(2, height=4.4)
    for axis, (column, label) in zip(axes, OUTCOMES.items(), strict=True):
        for kind, style in styles.items():
            _band(axis, _of(measured["best"], kind=kind), column, bare=reference is not None, **style)
            line = _of(measured["own"], kind=kind).sort_values("factor")
            axis.plot(line["factor"], line[column], label=kind, markersize=6, **style)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xlabel=FACTOR, ylabel=f"change of {label}")
        _limits(axis, pd.concat(measured.values()), column)
    outer_legend(drawn, axes)
    drawn.suptitle(_title(best), fontsize="medium")
    table = measured["best"].query("factor != 1")
    said = table[table["factor"].isin((0.5, 0.7))].sort_values(["factor", "kind"])
    alt = ("Line plots of the change of accuracy (left) and of forgetting (right) against lambda, one line each for "
           f"{both(CONTROLS)}. {_title(best)}, {scaled.source}: " + "; ".join(
               f"{row.kind} at {row.factor:g}: accuracy {row.accuracy:+.3f} ({row.accuracy_low:+.3f} to "
               f"{row.accuracy_high:+.3f}), forgetting {row.forgetting:+.3f} ({row.forgetting_low:+.3f} to "
               f"{row.forgetting_high:+.3f})" for row in said.itertuples()) + ".")
    shares = best.groupby("kind")["base_share"].mean()
    shown = table[table["factor"].isin(SHOWN_FACTORS)].assign(
        share=lambda t: t["kind"].map(shares), order=lambda t: t["factor"] != 0.5).sort_values("order", kind="stable")
    return Drawn(drawn, alt, "What changes when each matrix's first intruder, or something else, is scaled by lambda, "
                 "and what a smaller learning rate gives; bands are 95 % over seeds, test rows and passages.", own,
                 shown_table(shown, {"kind": "what is scaled", "factor": "lambda", "accuracy": "change of accuracy",
                                     "forgetting": "of forgetting, nats", "share": "W0's share of σ"}))


def _band(axis: Axes, line: pd.DataFrame, column: str, *, bare: bool, **style) -> None:
    """A kind's interval at each strength, with the mean as a thin line where no other line shows it."""
    line = line.sort_values("factor")
    axis.fill_between(line["factor"], line[f"{column}_low"], line[f"{column}_high"], color=style["color"], alpha=0.15,
                      linewidth=0)
    if bare:
        axis.plot(line["factor"], line[column], color=style["color"], alpha=0.5, linewidth=1, label="_reference",
                  marker=style["marker"], markersize=3)


def _limits(axis: Axes, table: pd.DataFrame, column: str) -> None:
    held = table[(table["kind"] != "whole update") | table["factor"].between(LEAST, 1)]
    low, high = held[[column, f"{column}_low"]].min().min(), held[[column, f"{column}_high"]].max().max()
    margin = 0.05 * (high - low) or 0.01
    axis.set_ylim(low - margin, high + margin)


@figure("07_beside_table_3", measurements=("interventions",), place="Illusion v3, Table 3")
def beside_table_3(scaled: Measured) -> Drawn:
    """Change of accuracy and forgetting in percent against lambda, by both readings of whose triplet is scaled.

    Ours beside the paper's RoBERTa models of the same rank.
    """
    own, reference, best = (_readings(table) for table in (scaled.own, scaled.reference, scaled.best))
    paper = scaled.published[scaled.published["table"] == 3]
    tasks, ranks = both(sorted(paper["task"].str.upper().unique())), set(scaled.best["r"])
    names = list(dict.fromkeys([*own["method"], *best["method"]]))
    drawn, axes = panels(2, height=4.4)
    for axis, (column, label) in zip(axes, CHANGES.items(), strict=True):
        for (rank, _), line in paper[paper["r"].isin(ranks)].groupby(["r", "task"]):
            axis.plot(line["factor"], line[column], color="0.5", linestyle=":", linewidth=0.8, markersize=5,
                      marker=method_style(f"LoRA r={rank}")["marker"], markerfacecolor="none", zorder=1,
                      label=f"paper, r={rank}: RoBERTa on {tasks}")
        draw_lines(axis, own, reference, x="factor", y=column, styles={
            name: style | ({"color": "C0"} if name.endswith(READINGS["update triplet"]) else {})
            for name, style in method_styles(names).items()})
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xlabel="lambda: 0 removes, 1 changes nothing", ylabel=label)
    outer_legend(drawn, axes)
    means = best.groupby(["method", "r", "factor"], sort=False)[[*CHANGES, "loss_change"]].mean().reset_index().rename(
        columns={"method": "source"})
    means = means[means["factor"].isin([0.5, 0.7])]
    theirs = paper[(paper["task"] == "mnli") & paper["factor"].isin([0.5, 0.7]) & paper["r"].isin(ranks)].assign(
        source=lambda t: "paper, MNLI, r=" + t["r"].astype(str))
    alt = ("Two line plots against lambda from 0 to 1: change of accuracy and of forgetting in percent, ours by two "
           f"readings and the paper's RoBERTa models. Ours is {scaled.source}: " + "; ".join(
               f"{row.source}, lambda {row.factor:g}: accuracy {row.accuracy_change:+.1f} %, forgetting "
               f"{row.forgetting_change:+.1f} %" for row in pd.concat([means, theirs]).itertuples()) + ".")
    shown = shown_table(pd.concat([means, theirs]).sort_values(["factor", "r", "source"], kind="stable"), {
        "source": "source", "factor": "lambda", "accuracy_change": "accuracy, %",
        "forgetting_change": "of what was forgotten, %", "loss_change": "of the loss, %"})
    return Drawn(drawn, alt, "What scaling changes, in percent of accuracy and of what was forgotten, beside Table 3 "
                 "of the paper; other base and tasks, so signs and sizes compare, not digits.",
                 own if len(own) else shown, shown)  # runs without an intruder have nothing to scale


def _readings(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """Both readings' rows at lambda 0 to 1, under names that say which SVD the triplet is of."""
    if table is None:
        return None
    rows = table[table["kind"].isin(READINGS) & (table["factor"] <= 1) & (table["changed"] > 0)]
    return rows.assign(method=rows["method"] + ", triplet " + rows["kind"].map(READINGS))


@figure("07_pareto", measurements=("interventions",), place="Illusion v3, review thread (in words)")
def trade_off(scaled: Measured) -> Drawn:
    """Forgetting against accuracy as lambda runs from 1 to 0, one line per kind; the reference left, own runs right."""
    own, reference, best = _main(scaled)
    styles = method_styles(CONTROLS)
    sides = {f"{scaled.source}: means": best} if reference is not None else {}
    sides |= {f"your runs: {_title(own)}" if reference is not None else _title(own): own} if len(own) else {}
    drawn, axes = panels(len(sides), height=4.6)
    for axis, (title, table) in zip(axes, sides.items(), strict=True):
        held = table[(table["factor"] <= 1) & (table["kind"] != "whole update") | table["factor"].between(LEAST, 1)]
        for kind, style in styles.items():
            line = _mean_line(table, kind)
            axis.plot(line["accuracy"], line["forgetting"], label=kind, markersize=5, **style)
        start = table[table["factor"] == 1].groupby("seed")[["accuracy", "forgetting"]].first().mean()
        axis.plot(start["accuracy"], start["forgetting"], color="red", marker="o", linestyle="none", markersize=11,
                  fillstyle="none", label="lambda = 1")
        _frame(axis, held.groupby(["kind", "factor"])[["accuracy", "forgetting"]].mean())
        axis.set(title=title, xlabel="test accuracy")
    label_left(axes, "forgetting, nats per token")
    outer_legend(drawn, axes)
    half = best[best["factor"].isin([0.25, 0.5])].groupby(["kind", "factor"])[["accuracy", "forgetting"]].mean()
    alt = ("Forgetting against accuracy as lambda falls from 1 to 0, one line per kind of change, and of runs at "
           f"smaller learning rates. {_title(best)}, {scaled.source}: " + "; ".join(
               f"{kind} at {factor:g}: accuracy {row['accuracy']:.3f}, forgetting {row['forgetting']:.2f}"
               for (kind, factor), row in half.iterrows()) + ".")
    shown = shown_table(half.reset_index(), {"kind": "what is scaled", "factor": "lambda", "accuracy": "accuracy",
                                             "forgetting": "forgetting, nats"})
    return Drawn(drawn, alt, "What is forgotten at which accuracy, as lambda runs from 1 (circle) to 0, and by runs at "
                 "a half and a quarter of the learning rate; right and below is better.", own, shown)


def _mean_line(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The means by lambda from 1 to 0, joined in lambda's order."""
    rows = table[(table["kind"] == kind) & (table["factor"] <= 1) & (table["changed"] > 0)]
    return rows.groupby("factor")[["accuracy", "forgetting"]].mean().sort_index()


def _frame(axis: Axes, points: pd.DataFrame) -> None:
    for column, place in (("accuracy", axis.set_xlim), ("forgetting", axis.set_ylim)):
        low, high = points[column].min(), points[column].max()
        margin = 0.07 * (high - low) or 0.01
        place(low - margin, high + margin)


@figure("07_removing_intruders", measurements=("removals",), place="Illusion v3, review thread (promised)")
def removing_intruders(removed: Measured) -> Drawn:
    """Forgetting against the number of directions removed, intruders and neighbours: one line per run, no means.

    Seeds have different numbers of intruders, so that a mean would jump where one of them ends.
    """
    own, reference, best = _main(removed)
    styles = method_styles(["intruders", "neighbours"])
    drawn, (axis,) = panels(1, width=7.5, height=4.6)
    for kind, style in styles.items():
        for table, look in ((reference, {"linewidth": 1, "alpha": 0.6, "label": "_reference"}), (own, {"label": kind})):
            for _, line in _runs(_of(table, kind=kind)):
                axis.plot(line["removed"], line["forgetting"], markersize=5, **style | look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set(title=_title(best), xlabel="how many are removed, the strongest first",
             ylabel="forgetting, nats per token")
    outer_legend(drawn, [axis])
    ends = best.sort_values("removed").groupby(["kind", "seed"], sort=False).agg(
        removed=("removed", "last"), before=("forgetting", "first"), after=("forgetting", "last"),
        share=("base_share", "last")).reset_index().sort_values(["seed", "kind"])
    alt = ("Line plot of forgetting against the number of directions removed, intruders and neighbours, one line per "
           f"seed. From none to all, {removed.source}: " + "; ".join(
               f"seed {row.seed}, {row.removed} {row.kind}: {row.before:.2f} to {row.after:.2f}"
               for row in ends.itertuples()) + " nats per token.")
    shown = shown_table(ends, {"seed": "seed", "kind": "removed", "removed": "how many", "share": "W0's share of σ",
                               "before": "forgetting before, nats", "after": "after, nats"})
    return Drawn(drawn, alt, "Forgetting as one intruder after the other is removed, the strongest first, and as many "
                 "of their neighbours; one line per seed, the reference's thin.", own, shown)


def _runs(table: pd.DataFrame | None) -> list[tuple]:
    """A table's runs one by one; none of no table."""
    return [] if table is None else list(table.groupby("run", sort=False))


@figure("07_norm_matched", measurements=("norm_matched",), place="ours")
def with_and_without(norms: Measured) -> Drawn:
    """Forgetting with and without intruders, at two norms of the update: a panel each, a line a run."""
    own, reference, best = _main(norms)
    drawn, axes = panels(2, height=4.0, sharey=True)
    for axis, (norm, title) in zip(axes, NORMS.items(), strict=True):
        for table, look in ((reference, {"linewidth": 1, "alpha": 0.5}), (own, {})):
            for _, rows in _runs(_of(table, norm=norm)):
                values = rows.set_index("intruders")["forgetting"].reindex(["kept", "removed"])
                axis.plot([0, 1], values, markersize=6, **method_style(rows["method"].iloc[0]) | look)
        axis.set_xticks([0, 1], ["with intruders", "without"])
        axis.set(title=title, xlim=(-0.15, 1.15))
    label_left(axes, "forgetting, nats per token")
    wide = best.pivot_table(index=["method", "norm", "seed"], columns="intruders", sort=False,
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
                 own, shown.head(8).reset_index(drop=True))


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
