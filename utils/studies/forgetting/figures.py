"""Forgetting against rank, and against what could explain it (notebook 06)."""

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, Found, all_met, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import label_left, outer_legend, panels
from utils.reporting.rules import trend
from utils.reporting.selection import runs_that_learnt
from utils.reporting.style import BASE, FULL, method_styles
from utils.reporting.words import both, listed, with_range
from utils.studies.forgetting.readout import broken_readout, is_broken, readout_limit
from utils.studies.forgetting.rules import ends_minus_low_rank, full_minus_worst_lora

LORA_COLOUR = "#0173b2"  # of LoRA as a whole: its ranks are on the axis here
HIGHEST, LOW = 64, 8  # the highest rank of version 3's figure, and the low rank at which version 1's U dips
ORDERED = 0.9  # from this rank correlation on, one quantity alone is said to order the methods


@figure("06_pseudo_loss_against_rank", measurements=("forgetting",), place="Illusion v3, Fig 6b; v1, Fig 9")
def forgetting_against_rank(losses: Measured) -> Drawn:
    """Pseudo-loss against LoRA's rank, full fine-tuning and the base as lines, one panel per task.

    A run above word frequencies alone is a cross at that height: how far above it lies is no forgetting.
    """
    own, reference = _with_broken(losses)
    best = own if reference is None else reference
    tasks = list(own["task"].unique())
    drawn, axes = panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        _against_rank(axis, own[own["task"] == task], None if reference is None else
                      reference[reference["task"] == task], limit=readout_limit(losses.profile))
        axis.set(xlabel="LoRA rank", title=f"task: {task}")
    label_left(axes, "pseudo-loss, nats per token")
    outer_legend(drawn, axes)
    learnt = runs_that_learnt(best)
    means = learnt[~learnt["broken"]].groupby(["task", "method"], sort=False)["pseudo_loss"].mean()
    broken = broken_readout(_by_method_and_task(learnt), readout_limit(losses.best_profile))
    alt = ("Line plots of pseudo-loss against LoRA rank with full fine-tuning and the base as horizontal lines, one "
           f"panel per task. Base {best['base_pseudo_loss'].iloc[0]:.2f} nats per token. Means, "
           f"{losses.source}: "
           + "; ".join(f"{task}: {listed(part.droplevel(0))}"
                       for task, part in means.groupby(level=0, sort=False)) + f".{broken}")
    return Drawn(drawn, alt, "Pseudo-loss on pre-training text after fine-tuning, in nats per token: LoRA's ranks "
                 "beside full fine-tuning and the base. Crosses lie above word frequencies: broken readouts, no "
                 "forgetting.", losses.own, _means_or_broken(learnt))


def _with_broken(losses: Measured) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Own and reference rows with ``broken``, each by the word frequencies of the text that it was measured on."""
    own = losses.own.assign(broken=is_broken(losses.own, readout_limit(losses.profile)))
    if losses.reference is None:
        return own, None
    return own, losses.reference.assign(broken=is_broken(losses.reference, readout_limit(losses.best_profile)))


def _by_method_and_task(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {f"{method} on {task}": part for (task, method), part in runs.groupby(["task", "method"], sort=False)}


def _means_or_broken(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean pseudo-loss by method (rows) and task, in words where every readout is broken."""
    def said(part: pd.DataFrame) -> str:
        read = part[~part["broken"]]["pseudo_loss"]
        return f"{read.mean():.3f}" if len(read) else "broken readout"

    cells = {key: said(part) for key, part in runs.groupby(["method", "task"], sort=False)}
    wide = pd.Series(cells).unstack(sort=False).fillna("").rename_axis(index="method", columns=None)
    return wide.reset_index().head(8)


def _against_rank(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, *, limit: float | None) -> None:
    """One task: LoRA's line over its ranks, full fine-tuning and base as horizontal lines, the reference as bands."""
    learnt = runs_that_learnt(own)
    band = learnt.iloc[:0] if reference is None else runs_that_learnt(reference)
    places = {r: index for index, r in enumerate(sorted({*learnt["r"], *band["r"]} - {0}))}
    read, seen = learnt[~learnt["broken"]], band[~band["broken"]]
    lora = read[read["method_kind"] == "lora"].groupby("r")["pseudo_loss"].mean()
    seeds = seen[seen["method_kind"] == "lora"].groupby("r")["pseudo_loss"].agg(["min", "max"])
    if reference is not None:
        axis.fill_between(seeds.index.map(places), seeds["min"], seeds["max"], alpha=0.2, color=LORA_COLOUR,
                          linewidth=0, label="LoRA, reference seeds")
    axis.plot(lora.index.map(places), lora.values, "o-", color=LORA_COLOUR, label="LoRA, yours")
    full, spread = (part[part["method_kind"] == "full"]["pseudo_loss"] for part in (read, seen))
    if len(spread):
        axis.axhspan(spread.min(), spread.max(), alpha=0.15, color=FULL["color"], linewidth=0,
                     label="full, reference seeds")
    if len(full):
        axis.axhline(full.mean(), color=FULL["color"], label="full, yours")
    broken = pd.concat([learnt, band])
    if limit is not None and broken["broken"].any():
        _crosses(axis, broken[broken["broken"]], limit, places=places)
    axis.axhline(own["base_pseudo_loss"].iloc[0], color=BASE["color"], linestyle=":", label="base")
    axis.set(xticks=range(len(places)), xticklabels=list(places))


def _crosses(axis: Axes, broken: pd.DataFrame, limit: float, *, places: dict[int, int]) -> None:
    """The loss of word frequencies as a line, and on it a named cross for each method whose readout is broken."""
    axis.axhline(limit, color="0.5", linestyle="--", linewidth=1, label="word frequencies alone")
    for row in broken.drop_duplicates("method").itertuples():
        at = places.get(row.r, len(places) - 0.5)  # full fine-tuning has no rank: beside the highest
        colour = FULL["color"] if row.method_kind == "full" else LORA_COLOUR
        axis.plot([at], [limit], "x", color=colour, markersize=9, markeredgewidth=2)
        axis.annotate(f"{row.method}: broken readout", (at, limit), xytext=(-6, 6), textcoords="offset points",
                      ha="right", fontsize="small")


@finding("06_pseudo_loss_against_rank")
def forgetting_against_rank_found(losses: Measured) -> Found:
    """Whether full fine-tuning lies above every rank, as version 3 has it, or the ranks make a U, as version 1 has it.

    By the rules that judge the claims of both versions.
    """
    table, learnt = losses.best, runs_that_learnt(losses.best)
    gaps = {task: full_minus_worst_lora(table, in_experiment=experiment, max_rank=HIGHEST).values.dropna()
            for experiment, task in table[["experiment", "task"]].drop_duplicates().itertuples(index=False)}
    said = [f"on {task} in {(gap > 0).sum()} of {len(gap)} seeds, over the worst rank by "
            f"{with_range(gap, '{:.2f}', 'nats per token')}" for task, gap in gaps.items() if len(gap)]
    lacking = both(f"{task}" for task, gap in gaps.items() if gap.empty)
    order = [f"Full fine-tuning lies above LoRA of every rank up to {HIGHEST} {both(said)}; {losses.source}."] if said \
        else []
    if lacking:
        order.append(f"On {lacking} no seed has full fine-tuning and every rank, all of them learnt, so nothing is "
                     f"compared; {losses.source}.")
    width = table["r"].max()
    dips = ends_minus_low_rank(table, low_rank=LOW).values.dropna() if width > LOW else ()
    shape = (f"A U (r = 1 and r = {width} both above r = {LOW}) is there in {sum(dips > 0)} of {len(dips)} seeds."
             if len(dips) else "Whether the ranks make a U cannot be said.")
    broken = broken_readout(_by_method_and_task(learnt), readout_limit(losses.best_profile))
    return Found(f"{' '.join(order)} {shape}{broken}",
                 all_met(*(bool((gap > 0).all()) if len(gap) else None for gap in gaps.values())))


@figure("06_forgetting_against_what", measurements=("forgetting",), place="ours")
def forgetting_against_what(losses: Measured) -> Drawn:
    """Forgetting on the first task against accuracy, norm of the update and intruder count: one point per run.

    A run above word frequencies alone is not drawn: its readout is broken.
    """
    own, reference = _with_broken(losses.where("experiment == 'ranks'"))
    first = replace(losses, own=own, reference=reference).where("not broken")
    names = {"accuracy": "test accuracy", "relative_norm": "mean of |update| / |W0|",
             "n_intruders": f"intruder dimensions, epsilon {losses.profile.spectra.epsilon}"}
    drawn, axes = panels(len(names), sharey=True, height=3.6)
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        _points(axis, first, column)
        axis.set(xlabel=label)
    label_left(axes, "forgetting, nats per token")
    outer_legend(drawn, axes)
    means = runs_that_learnt(first.best).groupby("method", sort=False)[["forgetting", *names]].mean()
    left_out = len(own) - len(first.own)
    alt = ("Three scatter plots of forgetting (rise of pseudo-loss) against test accuracy, relative update norm and "
           f"number of intruder dimensions, one symbol per method. Mean forgetting in nats per token, {first.source}: "
           f"{listed(means['forgetting'])}; mean relative norm: {listed(means['relative_norm'])}.")
    shown = means.reset_index().rename(columns={"relative_norm": "relative norm", "n_intruders": "intruders"})
    return Drawn(drawn, alt, "Forgetting of each run against what could explain it; faint: the reference's seeds."
                 + (f" Left out: {left_out} of your runs with a broken readout." if left_out else ""),
                 first.own, shown.head(8))


def _points(axis: Axes, runs: Measured, column: str) -> None:
    """One point per run, faint for the reference, hollow where the run did not learn."""
    for method, style in method_styles(runs.best["method"].unique()).items():
        for table, look in ((runs.reference, {"alpha": 0.35, "markersize": 6}),
                            (runs.own, {"markersize": 9, "markeredgecolor": "black"})):
            if table is None:
                continue
            part = table[table["method"] == method]
            learnt = part[part["learnt"].astype(bool)]
            axis.plot(learnt[column], learnt["forgetting"], color=style["color"], marker=style["marker"],
                      linestyle="none", label=method if table is runs.own else "_reference", **look)
            failed = part[~part["learnt"].astype(bool)]
            axis.plot(failed[column], failed["forgetting"], marker=style["marker"], linestyle="none",
                      markerfacecolor="none", markeredgecolor=style["color"], label="_did not learn")


@finding("06_forgetting_against_what")
def forgetting_against_what_found(losses: Measured) -> Found:
    """Whether forgetting grows with the update's norm within each method, and between methods."""
    every = runs_that_learnt(losses.best[losses.best["experiment"] == "ranks"])
    first = every[~is_broken(every, readout_limit(losses.best_profile))]
    several = {method: part for method, part in first.groupby("method", sort=False)
               if part["relative_norm"].nunique() > 1}
    rhos = {method: trend(part["relative_norm"], part["forgetting"]) for method, part in several.items()}
    against = both(method for method, rho in rhos.items() if rho <= 0)
    runs = sorted({len(part) for part in several.values()})
    within = ("Over the seeds of one method forgetting grows with the update's relative norm in "
              f"{sum(rho > 0 for rho in rhos.values())} of {len(rhos)} methods{against and f' (not in {against})'}"
              f", {losses.source}; that is weak evidence, from {' or '.join(map(str, runs))} runs each." if rhos else
              f"Within a method that cannot be said from one run each, {losses.source}.")
    means, between = first.groupby("method")[["relative_norm", "forgetting"]].mean(), ""
    if means["relative_norm"].nunique() > 2:
        rho = trend(means["relative_norm"], means["forgetting"])
        between = (f" Between the methods' means Spearman's rho is {rho:+.2f}, so size alone "
                   f"{'orders' if rho > ORDERED else 'does not order'} them.")
    broken = broken_readout(dict(iter(every.groupby("method", sort=False))), readout_limit(losses.best_profile))
    return Found(f"{within}{between}{broken}", all_met(*(rho > 0 for rho in rhos.values())))
