"""What moves the count: learning rate, rank under two rules, alpha, and the update's effective rank."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from utils.reporting.drawn import Drawn, figure
from utils.reporting.measured import Measured
from utils.reporting.panels import by_value, panel_lines, panels
from utils.reporting.selection import last_steps, runs_that_learnt
from utils.reporting.words import listed

SETTINGS = {"ranks": "main runs", "rule": "alpha = 2r, the rule", "fixed_rate": "alpha = 2r, one rate",
            "alpha_8": "alpha = 8"}
RANK_EXPERIMENTS = ("rule", "fixed_rate", "alpha_8")
OUTCOMES = ["n_intruders", "accuracy", "forgetting"]


def _names(measured: Measured) -> dict[str, str]:
    """The three outcomes with their axis labels."""
    return {"n_intruders": f"intruder dimensions, epsilon {measured.profile.spectra.epsilon}",
            "accuracy": "test accuracy", "forgetting": "forgetting, nats per token"}


@figure("05_learning_rate_through_training", measurements=("sweep_over_steps",), place="Illusion v3, Fig 7")
def rates_through_training(sweep: Measured) -> Drawn:
    """Intruders, accuracy and forgetting at every checkpoint, one line per learning rate of the showcase rank."""
    names = _names(sweep)
    own, reference, best = (_by_rate(table) for table in (sweep.own, sweep.reference, sweep.best))
    drawn = panel_lines(by_value(own, names), by_value(reference, names), x="step", y="value", panel="panel",
                        xlabel="optimiser step", ylabel="", sharey=False)
    last = last_steps(best)
    failed = last[~last["learnt"].astype(bool)].groupby("method").size()
    means = last[last["learnt"]].groupby("method", sort=False)[OUTCOMES].mean()
    alt = ("Three line plots against training steps, one line per learning rate: intruder dimensions, accuracy and "
           f"forgetting. At the last step, {sweep.source}: " + "; ".join(
               f"{name}: {row.n_intruders:.3g} intruders, accuracy {row.accuracy:.3f}, forgetting {row.forgetting:.2f}"
               for name, row in means.iterrows())
           + (f". Runs that did not learn: {listed(failed)}." if len(failed) else ". Every run learnt."))
    shown = means.assign(seeds=last[last["learnt"]].groupby("method").size()).reset_index()
    return Drawn(drawn, alt, "One rank at several learning rates, from checkpoint to checkpoint, beside full "
                 "fine-tuning; hollow runs did not learn.", sweep.own,
                 shown.rename(columns={"method": "method, rate", "n_intruders": "intruders"}).head(8))


def _by_rate(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """The table with the learning rate in LoRA's names; full fine-tuning has its usual rate alone."""
    if table is None:
        return None
    full = table["method_kind"] == "full"
    named = table["method"] + ", " + table["learning_rate"].map("{:g}".format)
    return table.assign(method=table["method"].where(full, named))


@figure("05_rank_by_rule_and_at_fixed_rate", measurements=("what_moves",), place="Illusion v3, Figs 4d and 20")
def ranks_under_rules(moves: Measured) -> Drawn:
    """Intruders, accuracy and forgetting against rank: by the paper's rule, at one fixed rate, and with alpha = 8."""
    chosen, names = moves.where(f"experiment in {RANK_EXPERIMENTS}"), _names(moves)
    own, reference = (_of_setting(table) for table in (chosen.own, chosen.reference))
    drawn = panel_lines(by_value(own, names), by_value(reference, names), x="r", y="value", panel="panel", by="setting",
                        xlabel="LoRA rank", ylabel="", xscale="log", sharey=False)
    ranks = sorted({*chosen.own["r"], *chosen.best["r"]})
    for axis in drawn.axes:
        axis.set_xticks(ranks, [str(rank) for rank in ranks])
    learnt = runs_that_learnt(chosen.best)
    means = learnt.groupby(["experiment", "r"], sort=False)["n_intruders"].mean()
    alt = ("Three line plots against LoRA rank (intruder dimensions, accuracy, forgetting), one line per setting. Mean "
           f"count of the runs that learnt, {moves.source}: " + "; ".join(
               f"{SETTINGS[name]}: {listed({f'r={r}': value for r, value in part.droplevel(0).sort_index().items()})}"
               for name, part in means.groupby(level=0, sort=False))
           + f". {len(chosen.best) - len(learnt)} runs did not learn; they are hollow.")
    shown = learnt.pivot_table(index="r", columns="experiment", values="n_intruders")[
        [name for name in RANK_EXPERIMENTS if name in set(learnt["experiment"])]]
    shown.columns = [f"intruders, {SETTINGS[name]}" for name in shown.columns]
    return Drawn(drawn, alt, "Rank by the paper's rule (rate falls as 1/r), at one rate for all ranks, and with alpha "
                 "= 8; hollow runs did not learn.", chosen.own,
                 shown.reset_index().rename(columns={"r": "rank"}).head(8))


def _of_setting(table: pd.DataFrame | None) -> pd.DataFrame | None:
    return None if table is None else table.assign(setting=table["experiment"].map(SETTINGS),
                                                   panel=table["experiment"].map(SETTINGS))


@figure("05_rank_by_rate", measurements=("what_moves",), place="ours")
def rank_by_rate(moves: Measured) -> Drawn:
    """Rank by learning rate with alpha = 2r: the mean over seeds of intruders, accuracy and forgetting in each cell."""
    names = _names(moves)
    grid = plain_lora(pooled_runs(moves))
    learnt = runs_that_learnt(grid)
    drawn, axes = panels(len(names), width=5.6, height=3.6)
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        image = _rank_rate_map(axis, grid, column=column)
        axis.set(title=label, xlabel="learning rate", ylabel="LoRA rank")
        drawn.colorbar(image, ax=axis, shrink=0.8)
    alt = (f"Three heat-maps of LoRA rank by learning rate over {len(grid)} runs, of which {len(grid) - len(learnt)} "
           "did not learn and enter no mean. Cell means: " + "; ".join(
               f"{label} {values.min():.3g} to {values.max():.3g}" for label, values in (
                   (names[column], learnt.groupby(["r", "learning_rate"])[column].mean()) for column in names)) + ".")
    return Drawn(drawn, alt, "All LoRA runs with alpha = 2r by rank and learning rate, mean of the seeds that learnt; "
                 "a cross means that none did.", grid, None)


def plain_lora(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of LoRA itself, no variant of it, with alpha = 2r."""
    return runs[(runs["lora_alpha"] == 2 * runs["r"]) & runs["method"].str.startswith("LoRA ")]


def pooled_runs(moves: Measured) -> pd.DataFrame:
    """Own runs and those of the reference together, each run once, whatever experiments share it."""
    tables = [table for table in (moves.reference, moves.own) if table is not None]
    return pd.concat(tables, ignore_index=True).drop_duplicates("run", ignore_index=True)


def _rank_rate_map(axis: Axes, grid: pd.DataFrame, *, column: str) -> AxesImage:
    """One heat-map: means over the runs that learnt, a cross in the cells whose runs all failed."""
    ranks, rates = sorted(grid["r"].unique()), sorted(grid["learning_rate"].unique())
    tried = grid.pivot_table(index="r", columns="learning_rate", values="seed", aggfunc="count")
    tried = tried.reindex(index=ranks, columns=rates).notna().to_numpy()
    values = runs_that_learnt(grid).pivot_table(index="r", columns="learning_rate", values=column).reindex(
        index=ranks, columns=rates).to_numpy()
    image = axis.imshow(values, cmap="cividis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, place), value in np.ndenumerate(values):
        if not np.isnan(value):
            axis.text(place, row, f"{value:.2g}", ha="center", va="center", fontsize=8,
                      color="white" if value <= middle else "black")
        elif tried[row, place]:
            axis.text(place, row, "×", ha="center", va="center", fontsize=11, color="0.3")
    axis.set_xticks(range(len(rates)), [f"{rate:.2g}" for rate in rates], rotation=50, ha="right", fontsize=8)
    axis.set_yticks(range(len(ranks)), ranks)
    axis.grid(visible=False)
    return image


@figure("05_alpha_against_epsilon", measurements=("alpha_counts",), place="Illusion v3, Fig 19, top")
def alpha_against_epsilon(counts: Measured, *, chance: pd.DataFrame | None = None) -> Drawn:
    """Count against epsilon under the paper's rule and with alpha = 8.

    `chance`: where a random direction's largest cosine lies, shaded if given.
    """
    drawn = panel_lines(_of_setting(counts.own), _of_setting(counts.reference), x="epsilon", y="n_intruders",
                        panel="panel", xlabel="epsilon", ylabel="intruder dimensions, whole model", yscale="symlog",
                        chance=chance)
    level = counts.profile.spectra.epsilon
    at = runs_that_learnt(counts.best[counts.best["epsilon"] == level])
    alt = (f"Line plots of intruder dimensions against epsilon, one panel for alpha = 2r by the paper's rule and one "
           f"for alpha = 8. At epsilon {level}, {counts.source}: {_counts_by_setting(at)}.")
    return Drawn(drawn, alt, "Intruder dimensions against epsilon with alpha = 2r and with alpha = 8, both at equal "
                 "alpha times rate; grey: the largest cosine of a random direction.", counts.own,
                 _few_epsilons(counts.best))


@figure("05_alpha_against_k", measurements=("alpha_counts_by_k", "alpha_counts"), place="Illusion v3, Fig 19, bottom")
def alpha_against_k(by_k: Measured, counts: Measured) -> Drawn:
    """Count against the share of vectors examined, under the paper's rule and with alpha = 8.

    `counts` is of the same runs and says which of them learnt.
    """
    own, reference, best = (_learnt_as_in(*tables) for tables in (
        (by_k.own, counts.own), (by_k.reference, counts.reference), (by_k.best, counts.best)))
    drawn = panel_lines(_of_setting(own), _of_setting(reference), x="k", y="n_intruders", panel="panel",
                        xlabel="share of the tuned vectors examined", ylabel="intruder dimensions", yscale="symlog")
    every = runs_that_learnt(best[best["k"] == best["k"].max()])
    alt = ("Line plots of intruder dimensions against the share of vectors examined, for alpha = 2r and alpha = 8. All "
           f"vectors examined, {by_k.source}: {_counts_by_setting(every)}.")
    return Drawn(drawn, alt, f"Intruder dimensions at epsilon {by_k.profile.spectra.epsilon} as more of each matrix's "
                 "vectors are examined, under both alphas.", by_k.own)


def _learnt_as_in(table: pd.DataFrame | None, other: pd.DataFrame | None) -> pd.DataFrame | None:
    """A table with ``learnt`` from another of the same runs."""
    if table is None or other is None:
        return table
    return table.assign(learnt=table["run"].map(other.groupby("run")["learnt"].first()).astype(bool))


def _counts_by_setting(table: pd.DataFrame) -> str:
    return "; ".join(f"{SETTINGS[name]}: {listed(part.groupby('method', sort=False)['n_intruders'].mean())}"
                     for name, part in table.groupby("experiment", sort=False))


def _few_epsilons(counts: pd.DataFrame) -> pd.DataFrame:
    """Mean counts at a few epsilons of the ranks that both alphas have."""
    table = runs_that_learnt(counts[counts["epsilon"].isin([0.3, 0.5, 0.7, 0.8])])
    shared = table.groupby("r")["experiment"].transform("nunique") == table["experiment"].nunique()
    wide = table[shared].assign(alpha=table["experiment"].map(SETTINGS)).pivot_table(
        index=["method", "alpha"], columns="epsilon", values="n_intruders", sort=False)
    wide.columns = [f"ε = {epsilon:g}" for epsilon in wide.columns]
    return wide.sort_index().reset_index().head(8)


@figure("05_effective_rank", measurements=("update_ranks",), place="Illusion v3, Fig 14")
def effective_rank(sizes: Measured) -> Drawn:
    """Effective rank of the update by layer, the mean over a layer's matrices; the paper's levels in grey."""
    own, reference = (_by_layer(table) for table in (sizes.own, sizes.reference))
    drawn = panel_lines(own, reference, x="layer", y="effective_rank", panel="panel", xlabel="layer",
                        ylabel="effective rank of the update", yscale="log")
    for axis in drawn.axes:
        for level in sizes.published.to_dict("records"):
            if SETTINGS[level["experiment"]] == axis.get_title():
                axis.axhline(level["effective_rank"], color="grey", linestyle="--", linewidth=1)
                axis.annotate(f"paper: {level['method']} {level['side']} {level['effective_rank']} (width 768)",
                              (0.02, level["effective_rank"]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                              textcoords="offset points", fontsize="x-small", color="0.35")
    means = sizes.best.groupby(["experiment", "method"], sort=False)["effective_rank"].mean()
    alt = (f"Line plots of the update's effective rank against layer, one line per method. Means, {sizes.source}: "
           + "; ".join(f"{SETTINGS[name]}: {listed(part.droplevel(0))}"
                       for name, part in means.groupby(level=0, sort=False)) + ".")
    wide = means.unstack(0, sort=False).rename(columns=SETTINGS).rename_axis(columns=None)
    return Drawn(drawn, alt, "Effective rank of the update by layer, mean over the layer's matrices; bands are the "
                 "reference's seeds, grey lines the paper's levels at width 768.", sizes.own,
                 wide.reset_index().head(8))


def _by_layer(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """Means over the matrices of a layer, run by run, so that bands span seeds."""
    if table is None:
        return None
    keys = ["experiment", "method", "method_kind", "r", "seed", "layer"]
    return _of_setting(table.groupby(keys, sort=False)["effective_rank"].mean().reset_index())
