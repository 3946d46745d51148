"""What notebook 07's figures show, said from their tables, and whether it is what the notebook expects."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from utils.profiles import Profile
from utils.reporting.drawn import Found, all_met, finding
from utils.reporting.measured import Measured
from utils.reporting.statistics import mean_interval
from utils.reporting.words import both, listed, over_seeds, with_range
from utils.studies.cause.figures import NORMS
from utils.studies.cause.measure import KINDS
from utils.studies.cause.published import paper_scaling
from utils.studies.cause.rules import forgetting_at_equal_accuracy, strength_predicted

SAID = (0.7, 0.5, 0.9, 0.3, 0.1)  # the lambda that is told is the first of these that was measured
FLAT_DOWN_TO, FLAT = 0.7, 2.0  # lambda, and percent of accuracy: less than what the paper's text calls little
MANY = 5  # times: from here on one number is "many times" another
HALF = 0.5  # the lambda at which accuracies are made equal, as in the claim
WITHIN, SHARE = 1.5, 0.9  # a factor, and the share of matrices that have to lie within it, as in the claim


def _in_runs(table: pd.DataFrame, holds: Callable[[pd.DataFrame], bool]) -> list[bool]:
    """Whether something holds, run by run."""
    return [bool(holds(part)) for _, part in table.groupby(["method", "seed"], sort=False)]


def _of(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)} runs"


def _every(flags: list[bool]) -> bool | None:
    """Whether it holds in every run; None where there is none."""
    return all(flags) if flags else None


@finding("07_scaling_intruders")
def scaling_intruders_found(scaled: Measured) -> Found:
    """Whether loss follows the intruder and accuracy does not, and whether changing the neighbour hurts both."""
    table = scaled.best.assign(moved=lambda t: t["forgetting"] - t["forgetting"].where(t["factor"] == 1).groupby(
        [t["run"], t["kind"]]).transform("max"))
    changed = table[(table["changed"] > 0) & (table["factor"] != 1)]
    intruder, beside = (changed[changed["kind"] == kind] for kind in ("intruder", "neighbour"))
    if intruder.empty:
        return Found(f"No run has an intruder to scale, {scaled.source}.", None)
    lowered = _in_runs(intruder[intruder["factor"] < 1], lambda t: (t["moved"] < 0).all())
    raised = _in_runs(intruder[intruder["factor"] > 1], lambda t: (t["moved"] > 0).all())
    flat = _in_runs(intruder[intruder["factor"].between(FLAT_DOWN_TO, 1)],
                    lambda t: t["accuracy_change"].abs().max() <= FLAT)
    hurt = _in_runs(beside, lambda t: ((t["moved"] > 0) & (t["accuracy_change"] < 0)).all())
    said = [text for flags, text in (
        (lowered, f"scaled down it lowers the loss at every lambda in {_of(lowered)}"),
        (raised, f"scaled up it raises the loss in {_of(raised)}"),
        (flat, f"and down to lambda {FLAT_DOWN_TO} accuracy stays within {FLAT:g} % in {_of(flat)}")) if flags]
    text = f"The intruder, {scaled.source}: {', '.join(said)}."
    if hurt:
        most = changed[changed["factor"].isin(beside["factor"])].groupby("kind")["moved"].apply(lambda t: t.abs().max())
        text += (f" Changing the neighbour hurts loss and accuracy each time in {_of(hurt)}; at its lambdas the loss "
                 f"moves by at most so many nats per token: {listed(most.reindex(KINDS).dropna(), '{:.3f}')}.")
    return Found(text, all_met(*map(_every, (lowered, raised, flat, hurt))))


@finding("07_beside_table_3")
def beside_table_3_found(scaled: Measured) -> Found:
    """Our changes beside the paper's at one lambda, and how many times the first reading is the second."""
    rows = scaled.best[(scaled.best["kind"] == "intruder") & (scaled.best["changed"] > 0)]
    # Of a run that forgot nothing the first reading is a percentage of nothing, or of less.
    rows = rows[(rows["factor"] < 1) & (rows["forgetting_change"] * rows["loss_change"] > 0)]
    factor = next((one for one in SAID if one in set(rows["factor"])), None)
    if factor is None:
        return Found(f"No run had forgotten something and has an intruder to scale, {scaled.source}.", None)
    at = rows[rows["factor"] == factor]
    paper = scaled.published[(scaled.published["table"] == 3) & (scaled.published["factor"] == factor)]
    said, alike = [], []
    for rank, part in at.groupby("r"):
        theirs = paper[paper["r"] == rank]
        there = ", ".join(f"{row.task.upper()} {row.forgetting_change:+.1f} and {row.accuracy_change:+.1f} %"
                          for row in theirs.itertuples())
        ours = part[["forgetting_change", "accuracy_change"]].mean()
        said.append(f"by {ours['forgetting_change']:+.1f} and {ours['accuracy_change']:+.1f} % at r = {rank}"
                    + (f" (the paper: {there})" if there else ""))
        alike += list(np.sign(theirs["forgetting_change"]) == np.sign(ours["forgetting_change"]))
    times = (at["forgetting_change"] / at["loss_change"]).groupby(at["r"]).mean()
    signs = f" Forgetting has the paper's sign in {sum(alike)} of {len(alike)} comparisons." if alike else ""
    first_reading = both(f"{value:.0f} times (r = {rank})" for rank, value in times.items())
    return Found(f"At lambda {factor:g} forgetting and accuracy change {both(said)}; {scaled.source}.{signs} The first "
                 f"reading is {first_reading} the second.", bool(times.min() >= MANY))


@finding("07_released_scaling")
def released_scaling_found(profile: Profile, table: pd.DataFrame) -> Found:
    """Change of what the released models had forgotten at lambda 0.7, beside the paper's Table 4."""
    paper, factor = paper_scaling(), SAID[0]
    theirs = paper[(paper["table"] == 4) & (paper["factor"] == factor)].set_index(["task", "r"])["forgetting_change"]
    forgotten = table.assign(forgotten=table["loss_nats_per_token"] - table["base_loss_nats_per_token"]).pivot_table(
        index=["group", "method", "r"], columns="lambda", values="forgotten", sort=False)
    if not {factor, 1.0} <= set(forgotten.columns):
        return Found("No released model has intruders to scale at that lambda.", None)
    known = forgotten[(forgotten[1.0] > 0) & forgotten[factor].notna()]
    changes = 100 * (known[factor] - known[1.0]) / known[1.0]
    if changes.empty:
        return Found("No released model that had forgotten something has intruders to scale.", None)
    said = [f"{group} {method} {change:+.1f} %"
            + (f" (the paper: {theirs[group, rank]:+.1f} %)" if (group, rank) in theirs.index else "")
            for (group, method, rank), change in changes.items()]
    return Found(f"At lambda {factor:g} what was forgotten changes in the released models: {', '.join(said)}. It falls "
                 f"in {(changes < 0).sum()} of {len(changes)}.", bool((changes < 0).all()))


@finding("07_pareto")
def trade_off_found(scaled: Measured) -> Found:
    """Intruders against the whole update at equal accuracy, by the rule that judges the claim.

    Undecided where the interval over seeds holds zero, or where a run's accuracy could not be made equal.
    """
    said, sides, beyond = [], [], []
    for method, part in scaled.best.groupby("method", sort=False):
        gaps = forgetting_at_equal_accuracy(part, rank=int(part["r"].iloc[0]), factor=HALF,
                                            beside="whole update").values.dropna()
        if gaps.empty:
            continue
        mean, low, high = mean_interval(gaps)
        outside = [_out_of_reach(of_seed) for seed, of_seed in part.groupby("seed") if seed in gaps.index]
        sides.append(0 if any(outside) else -1 if high < 0 else 1 if low > 0 else 0)
        beyond += outside
        said.append(f"{mean:+.3f} in {method} " + (
            "(one seed)" if len(gaps) == 1 else f"(95 % interval {low:+.3f} to {high:+.3f}, {len(gaps)} seeds)"))
    if not said:
        return Found(f"No run has an intruder to scale by {HALF}, {scaled.source}, so nothing can be compared.", None)
    met = None if not any(sides) else 1 not in sides
    verdict = {True: "the intruder's line lies lower", False: "the intruder's line lies higher",
               None: "which line lies lower is undecided"}[met]
    nearest = (f" In {_of(beyond)} the shrunk update never has that accuracy, and its nearest point stands in."
               if any(beyond) else "")
    return Found("At equal accuracy, interpolated between the whole update's lambdas, forgetting with intruders scaled "
                 f"by {HALF} minus that of the shrunk update is, in nats per token, {both(said)}, {scaled.source}: "
                 f"{verdict}.{nearest}", met)


def _out_of_reach(rows: pd.DataFrame) -> bool:
    """Whether scaling the intruder leaves an accuracy that shrinking the whole update never has."""
    whole = rows[(rows["kind"] == "whole update") & (rows["factor"] <= 1)]["accuracy"]
    left = rows[(rows["kind"] == "intruder") & (rows["factor"] == HALF)]["accuracy"].iloc[0]
    return not whole.min() <= left <= whole.max()


@finding("07_removing_intruders")
def removing_intruders_found(removed: Measured) -> Found:
    """Whether forgetting falls with every intruder removed and rises with every neighbour, run by run."""
    said, parts = [], []
    for kind, many, sign, verb in (("intruders", "all", -1, "lowers"), ("neighbours", "as many", 1, "raises")):
        courses = [run.sort_values("removed")["forgetting"].to_numpy() for _, run in removed.best[
            removed.best["kind"] == kind].groupby(["method", "seed"], sort=False) if run["removed"].max() > 0]
        steps = [bool((sign * np.diff(course) > 0).all()) for course in courses]
        parts.append(_every(steps))
        if courses:
            moved = [course[-1] - course[0] for course in courses]
            as_expected = [bool(sign * one > 0) for one in moved]
            said.append(f"removing {many} {kind} changes forgetting by "
                        f"{with_range(moved, '{:+.3f}', 'nats per token')} and {verb} it in "
                        f"{_of(as_expected)}, step by step in {sum(steps)}")
    if not said:
        return Found(f"No run has an intruder to remove, {removed.source}.", None)
    text = "; ".join(said)
    return Found(f"{text[0].upper()}{text[1:]}; {removed.source}.", all_met(*parts))


@finding("07_norm_matched")
def with_and_without_found(norms: Measured) -> Found:
    """Whether runs forget less without their intruders at equal norm, and what that costs in accuracy."""
    wide = norms.best.pivot_table(index=["method", "seed"], columns=["norm", "intruders"], sort=False,
                                  values=["forgetting", "accuracy", "relative_norm"])
    wide = wide[wide["relative_norm", "own", "kept"] != wide["relative_norm", "smaller", "kept"]]
    if wide.empty:
        return Found(f"No run has an intruder to remove, {norms.source}, so nothing can be compared.", None)
    gaps = {norm: wide["forgetting", norm, "kept"] - wide["forgetting", norm, "removed"] for norm in NORMS}
    more = {norm: list(gap > 0) for norm, gap in gaps.items()}
    said = both(f"in {_of(more[norm])} {NORMS[norm]}, by {with_range(gap, '{:+.3f}', 'nats per token')}"
                for norm, gap in gaps.items())
    met = all(flag for flags in more.values() for flag in flags)
    cost = wide["accuracy", "own", "removed"] - wide["accuracy", "own", "kept"]
    caution = ", so part of that may be paid for with what was learnt" if met and cost.mean() < 0 else ""
    return Found(f"At equal norm an update forgets more with its intruders than without {said}; {norms.source}. "
                 f"{'In these' if met else 'Not in all'} runs intruders matter beyond size; without them accuracy "
                 f"changes by {with_range(cost, '{:+.3f}')} at the run's own norm{caution}.", met)


@finding("07_critical_strength")
def predicted_strengths_found(critical: Measured) -> Found:
    """How near measured critical strengths lie to those predicted from W0's spectrum alone."""
    table = critical.best
    known = table[np.isfinite(table[["predicted", "measured"]]).all(axis=1)]
    share = strength_predicted(table, factor=WITHIN).values
    right = f"{over_seeds(share, '{:.0%}')} of the matrices"
    if known.empty:
        return Found(f"No matrix has a finite strength both predicted and measured, {critical.source}; that none makes "
                     f"an intruder was predicted in {right}.", bool(share.min() >= SHARE))
    ratio = known["measured"] / known["predicted"]
    never = len(table) - len(known)
    left_out = f" In {never} no finite strength was predicted or measured." if never else ""
    return Found(f"Measured over predicted strength is {ratio.median():.2f} in the median and {ratio.min():.2f} to "
                 f"{ratio.max():.2f} over {len(known)} measurements, {critical.source}; it is within a factor of "
                 f"{WITHIN:g} in {right}.{left_out}", bool(share.min() >= SHARE))
