"""The base model, LoRA's first step, and what every method reaches, beside the paper's tables."""

from itertools import combinations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, Found, all_met, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import by_value, label_left, outer_legend, panel_lines, panels, task_panels
from utils.reporting.selection import best_rates, last_steps, runs_that_learnt
from utils.reporting.words import both, listed

PAPER_TABLES = {1: "paper's Table 1: alpha = 8", 2: "paper's Table 2: alpha = 2r"}
TWICE, EIGHT, STABILISED = "alpha = 2r", "alpha = 8", "rsLoRA, alpha = 8"  # the scaling rules of notebook 01
SMALL_RANK = 8  # up to here the norm of the first step is expected to go as a power of the rank


@figure("00_base_model")
def base_curve(profile: Profile, *, curve: pd.DataFrame) -> Drawn:
    """Held-out masked-LM loss (``heldout_loss_nats_per_token`` by ``step``) of a base while it was made."""
    drawn, (axis,) = panels(1, height=3.2, width=6.5)
    loss = curve["heldout_loss_nats_per_token"]
    axis.plot(curve["step"], loss, "o-", markersize=4)
    axis.set(xlabel="optimiser step", ylabel="held-out loss, nats/token")
    return Drawn(drawn, "Line plot of held-out masked-LM loss against steps while the laptop base was made: it goes "
                 f"from {loss.iloc[0]:.2f} to {loss.iloc[-1]:.2f} nats per token in {curve['step'].max()} steps.",
                 "Masked-LM loss of the laptop base on held-out text, in nats per token, while it was made.", curve)


@finding("00_base_model")
def base_curve_found(profile: Profile, *, curve: pd.DataFrame) -> Found:
    """How much of the fall lies in the first and in the last quarter of the steps, and whether it has ended."""
    steps, loss = curve["step"].to_numpy(), curve["heldout_loss_nats_per_token"].to_numpy()
    told = f"The loss goes from {loss[0]:.2f} to {loss[-1]:.2f} nats per token in {steps[-1]} steps"
    fall = loss[0] - loss[-1]
    if fall <= 0:
        return Found(f"{told}; it does not fall.", False)
    early, late = (np.interp(steps[0] + share * (steps[-1] - steps[0]), steps, loss) for share in (0.25, 0.75))
    first, last = (loss[0] - early) / fall, (late - loss[-1]) / fall
    goes_on = loss[-1] == loss.min()
    ending = "The last value is the lowest, so the fall has not ended." if goes_on else (
        f"The lowest value, {loss.min():.2f}, is not the last, so the fall has ended.")
    return Found(f"{told}, {first:.0%} of the fall in the first quarter of the steps and {last:.0%} in the last. "
                 f"{ending}", all_met(first > 0.5, last < 0.25, goes_on))


@figure("01_first_update", place="Illusion v3, appendix E")
def first_update(profile: Profile, *, table: pd.DataFrame) -> Drawn:
    """Norm of LoRA's first SGD update against rank, one line per scaling rule.

    Parameters
    ----------
    table : pandas.DataFrame
        ``scaling``, ``r``, ``draw`` and ``update_norm``; the line is the mean over draws of A, the band their range.
    """
    drawn, (axis,) = panels(1, height=4.2, width=6.5)
    norms = table.groupby(["scaling", "r"], sort=False)["update_norm"].agg(["mean", "min", "max"])
    for index, (rule, part) in enumerate(norms.groupby(level=0, sort=False)):
        band = part.droplevel(0)
        axis.fill_between(band.index, band["min"], band["max"], alpha=0.2, color=f"C{index}", linewidth=0)
        axis.plot(band.index, band["mean"], marker="os^D"[index], linestyle=("-", "--", "-.", ":")[index],
                  color=f"C{index}", label=rule)
    axis.set(xscale="log", yscale="log", xlabel="rank r", ylabel="norm of the first update")
    outer_legend(drawn, [axis])
    wide = norms["mean"].unstack(sort=False)
    ends = (wide[wide.columns[-1]] / wide[wide.columns[0]]).to_dict()
    alt = ("Log-log line plot of the norm of the first SGD update against LoRA's rank, one line per scaling rule. From "
           f"r = {wide.columns[0]} to r = {wide.columns[-1]} the norm changes by a factor of "
           + ", ".join(f"{ratio:.3g} ({rule})" for rule, ratio in ends.items()) + ".")
    shown = wide.T.rename_axis(columns=None).reset_index().rename(columns={"r": "rank"})
    return Drawn(drawn, alt, "Norm of LoRA's first update against the rank under three scaling rules; bands: draws.",
                 table, shown.head(8))


@finding("01_first_update")
def first_update_found(profile: Profile, *, table: pd.DataFrame) -> Found:
    """By which factor the norm changes over the ranks under each rule, and at which ranks two rules are one."""
    norms = table.groupby(["r", "scaling"], sort=False)["update_norm"].mean().unstack(sort=False).sort_index()
    low, high = norms.index[0], norms.index[-1]
    changes = both(f"{'grows' if end >= start else 'falls'} by a factor of {max(start, end) / min(start, end):.4g} "
                   f"with {rule}" for rule, (start, end) in norms.loc[[low, high]].items())
    one = both(f"r = {r} ({first} and {second})" for r, row in norms.iterrows()
               for first, second in combinations(norms.columns, 2) if _same(row[first], row[second]))
    text = f"From r = {low} to r = {high} the norm {changes}"
    if TWICE in norms and (power := _power(norms[TWICE])) is not None:
        text += f"; up to r = {SMALL_RANK} it goes as r to the power {power:.2f} with {TWICE}"
    text += f". Two rules give one number at {one or 'no rank'}"
    if STABILISED in norms:
        largest = both(f"r = {r}" for r in norms.index[_largest(norms, STABILISED)])
        text += f"; {STABILISED}, has the largest step of all at {largest or 'no rank'}"
    return Found(f"{text}.", _as_derived(norms))


def _same(one, other):
    """Equal but for rounding."""
    return np.isclose(one, other, rtol=1e-6, atol=0)


def _largest(norms: pd.DataFrame, rule: str) -> pd.Series:
    """By rank, whether a rule's norm exceeds every other's by more than rounding."""
    others = norms.drop(columns=rule).max(axis=1)
    return (norms[rule] > others) & ~_same(norms[rule], others)


def _power(norms: pd.Series) -> float | None:
    """The power of the rank as which a norm goes, from the lowest rank to the highest up to SMALL_RANK."""
    small = norms[norms.index <= SMALL_RANK]
    if len(small) < 2:
        return None
    return float(np.log(small.iloc[-1] / small.iloc[0]) / np.log(small.index[-1] / small.index[0]))


def _as_derived(norms: pd.DataFrame) -> bool | None:
    """Whether the norms (a row per rank, a column per rule) go as the scales do; None where a part cannot be said."""
    if not {TWICE, EIGHT, STABILISED} <= set(norms.columns) or len(norms) < 2:
        return None
    twice, eight, stabilised = norms[TWICE], norms[EIGHT], norms[STABILISED]
    power, beyond = _power(twice), norms[norms.index > 16]
    return all_met(
        twice.is_monotonic_increasing, eight.is_monotonic_decreasing, None if power is None else abs(power - 0.5) < 0.1,
        _same(twice[4], eight[4]) if 4 in norms.index else None,
        (_largest(norms, STABILISED) == ((norms.index >= 2) & (norms.index <= 15))).all(),
        _same(twice[16], stabilised[16]) if 16 in norms.index else None,
        ((beyond[EIGHT] < beyond[STABILISED]) & (beyond[STABILISED] < beyond[TWICE])).all() if len(beyond) else None)


@figure("02_accuracy_over_steps", measurements=("accuracy_over_steps",), place="ours")
def accuracy_curves(accuracy: Measured) -> Drawn:
    """Test accuracy against steps, one panel per task, one line per method."""
    drawn, axes = task_panels(accuracy.own, accuracy.reference, x="step", y="accuracy")
    for axis in axes:
        axis.set(xlabel="optimiser step")
    label_left(axes, "test accuracy")
    final = runs_that_learnt(last_steps(accuracy.own))
    alt = ("Line plots of test accuracy against optimiser steps, one panel per task, one line per method with the "
           "reference's seeds as bands. Final accuracies: " + "; ".join(
               f"{task}: {listed(part.groupby('method', sort=False)['accuracy'].mean())}"
               for task, part in final.groupby("task", sort=False)) + ".")
    return Drawn(drawn, alt, "Test accuracy over the steps of training; bands are the reference's seeds.", accuracy.own,
                 _final_accuracies(accuracy.best))


def _final_accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """Mean final accuracies by task of runs that learnt: full's, the lowest and highest of LoRA, one standard error."""
    rows = []
    for task, part in runs_that_learnt(last_steps(table)).groupby("task", sort=False):
        full = part[part["method_kind"] == "full"]["accuracy"].mean()
        lora = part[part["method_kind"] == "lora"].groupby("method")["accuracy"].mean()
        rows.append({"task": task, "full": full, "LoRA, lowest": lora.min(), "LoRA, highest": lora.max(),
                     "standard error of one": part["accuracy_se"].mean(),
                     "seeds": part["seed"].nunique()})
    return pd.DataFrame(rows)


def minus_full(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """LoRA's rows of final accuracies with ``full_accuracy`` and ``difference``: accuracy minus full fine-tuning's.

    Parameters
    ----------
    table : pandas.DataFrame
        ``r`` (0 for full fine-tuning), ``accuracy`` and `keys`, which say what is compared with what: a task's seed.
    """
    full = table[table["r"] == 0][[*keys, "accuracy"]].rename(columns={"accuracy": "full_accuracy"})
    joined = table[table["r"] > 0].merge(full, on=keys)
    return joined.assign(difference=joined["accuracy"] - joined["full_accuracy"])


@figure("02_accuracy_beside_the_paper", measurements=("accuracy_over_steps",), place="Illusion v3, Tables 1 and 2")
def accuracy_beside_paper(accuracy: Measured) -> Drawn:
    """Accuracy of LoRA minus that of full fine-tuning, by rank: the paper's two tables, the reference and own runs.

    Runs that did not learn are in it: what was reached is the question here.
    """
    paper = minus_full(accuracy.published, ["table", "task"])
    own, best = (minus_full(last_steps(table), ["task", "seed"]) for table in (accuracy.own, accuracy.best))
    drawn, axes = panels(2, sharey=True, height=4.4)
    ranks = sorted({*own["r"], *paper["r"], *best["r"]})
    place = {r: index for index, r in enumerate(ranks)}
    for axis, (number, title) in zip(axes, PAPER_TABLES.items(), strict=True):
        for index, (task, part) in enumerate(paper[paper["table"] == number].groupby("task", sort=False)):
            axis.plot(part["r"].map(place), part["difference"], marker="osD^vP"[index % 6], color="grey", alpha=0.7,
                      linewidth=0.8, markerfacecolor="none", label=f"paper, {task}")
        axis.axhline(0, color="black", linewidth=1)
        axis.set(xticks=range(len(ranks)), xticklabels=ranks, xlabel="LoRA rank", title=title)
    _own_differences(axes[1], own, None if accuracy.reference is None else best, place=place)
    label_left(axes, "accuracy minus full's")
    outer_legend(drawn, axes)
    low, high = own["difference"].min(), own["difference"].max()
    alt = ("Accuracy of LoRA minus accuracy of full fine-tuning against rank. Grey hollow symbols are the paper's six "
           f"tasks (alpha = 8 left, alpha = 2r right), between {paper['difference'].min():.3f} and "
           f"{paper['difference'].max():.3f}; filled symbols are this run's tasks with "
           f"alpha = 2r, between {low:.3f} and {high:.3f}.")
    columns = ["task", "seed", "method", "r", "lora_alpha", "learning_rate", "accuracy", "accuracy_se", "full_accuracy",
               "difference", "run"]
    return Drawn(drawn, alt, "Accuracy of LoRA minus that of full fine-tuning on the same task, by rank, beside the "
                 "paper's six tasks.", own[columns], _beside_table(paper, best))


def _own_differences(axis: Axes, own: pd.DataFrame, reference: pd.DataFrame | None, *, place: dict[int, int]) -> None:
    tasks, colours = list(own["task"].unique()), sns.color_palette("colorblind")
    for index, task in enumerate(tasks):
        shift = 0.24 * (index - (len(tasks) - 1) / 2)
        if reference is not None:
            band = reference[reference["task"] == task].groupby("r")["difference"].agg(["min", "max"])
            axis.vlines(band.index.map(place) + shift, band["min"], band["max"], color=colours[index], linewidth=6,
                        alpha=0.35, label=f"reference seeds, {task}")
        mean = own[own["task"] == task].groupby("r")["difference"].mean()
        axis.plot(mean.index.map(place) + shift, mean, "*PXD"[index % 4], color=colours[index], markersize=11,
                  label=f"yours, {task}")


def _beside_table(paper: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Differences by rank: the mean over the paper's tasks in both tables, and ours by task (means over seeds)."""
    theirs = paper.pivot_table(index="r", columns="table", values="difference")
    ours = best.pivot_table(index="r", columns="task", values="difference", sort=False)
    table = theirs.rename(columns={1: "paper, alpha = 8", 2: "paper, alpha = 2r"}).join(
        ours.iloc[:, :3].rename(columns="ours, {}".format), how="outer")
    return table.reset_index().rename(columns={"r": "rank"}).head(8)


@figure("02_learning_rates", measurements=("learning_rate_sweep",), place="ours")
def learning_rate_curves(sweep: Measured) -> Drawn:
    """What each method reaches, forgets and has of intruders, against its learning rate."""
    names = {"accuracy": "test accuracy", "pseudo_loss": "pseudo-loss, nats per token",
             "n_intruders": f"intruder dimensions, epsilon {sweep.profile.spectra.epsilon}"}
    drawn = panel_lines(by_value(sweep.own, names), by_value(sweep.reference, names), x="learning_rate", y="value",
                        panel="panel", xlabel="learning rate", ylabel="", xscale="log", sharey=False)
    failed = (~sweep.best.get("learnt", pd.Series(True, index=sweep.best.index))).sum()
    shown = _at_best_rates(sweep.best)
    alt = (f"Three line plots against learning rate, one line per method, {sweep.source}: test accuracy, pseudo-loss "
           f"and intruder dimensions. Best mean accuracy: " + ", ".join(
               f"{row['method']} {row['accuracy there']:.3f} at {row['best of them']}"
               for row in shown.to_dict("records"))
           + f". {failed} of {len(sweep.best)} runs did not learn; they are hollow.")
    return Drawn(drawn, alt, "Accuracy, pseudo-loss and intruder count of each method against its learning rate; "
                 "hollow runs did not learn.", sweep.own, shown)


def _at_best_rates(sweep: pd.DataFrame) -> pd.DataFrame:
    """By method: how many rates were tried, the one of best mean accuracy, and what was measured there."""
    at = runs_that_learnt(best_rates(sweep)).groupby("method", sort=False)
    table = at[["accuracy", "pseudo_loss", "n_intruders"]].mean()
    table.insert(0, "best", at["learning_rate"].first().map("{:g}".format))
    table.insert(0, "rates", sweep.groupby("method")["learning_rate"].nunique())
    names = {"rates": "rates tried", "best": "best of them", "accuracy": "accuracy there", "pseudo_loss": "pseudo-loss",
             "n_intruders": "intruders"}
    return table.rename(columns=names).reset_index().head(8)
