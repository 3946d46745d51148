"""What notebook 07's figures show, said from their tables, and whether it is what the notebook expects."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from utils.profiles import Profile
from utils.reporting.drawn import Found, all_met, finding
from utils.reporting.measured import Measured
from utils.reporting.verdicts import interval
from utils.reporting.words import both, over_seeds, with_range
from utils.studies.cause.figures import CONTROLS, NORMS, READINGS, main_run
from utils.studies.cause.published import paper_scaling
from utils.studies.cause.resampled import changes
from utils.studies.cause.rules import forgetting_after_removal, forgetting_at_equal_accuracy, strength_predicted

SAID = (0.7, 0.5, 0.9, 0.3, 0.1)  # the lambda that is told is the first of these that was measured
FLAT_DOWN_TO, FLAT = 0.7, 2.0  # lambda, and percent of accuracy: less than what the paper's text calls little
MANY = 5  # times: from here on one number is "many times" another
HALF = 0.5  # the lambda at which accuracies are made equal, as in the claim
LOW = (0.1, 0.3)  # the paper's two smallest strengths
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
    """Whether loss follows the intruder and accuracy does not, what the controls do, and whose the triplet was."""
    table = main_run(scaled.best)
    table = table.assign(moved=table["forgetting"] - table["forgetting"].where(table["factor"] == 1).groupby(
        [table["run"], table["kind"]]).transform("max"))
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
        (flat, f"and down to lambda {FLAT_DOWN_TO} accuracy stays within {FLAT:g} % in {_of(flat)}"),
        (hurt, f"changing the neighbour hurts loss and accuracy each time in {_of(hurt)}")) if flags]
    return Found(f"The intruder, {scaled.source}: {', '.join(said)}.{_controls_said(table)}{_share_said(intruder)}",
                 all_met(*map(_every, (lowered, raised, flat, hurt))))


def _controls_said(table: pd.DataFrame) -> str:
    """What every kind does at a half, with intervals: a smaller rate is one of them."""
    found = changes(table[table["kind"].isin(CONTROLS)])
    found = found[found["factor"] == HALF].set_index("kind").reindex(CONTROLS).dropna()
    said = [f"{kind} {row['forgetting']:+.3f} ({row['forgetting_low']:+.3f} to {row['forgetting_high']:+.3f}) at "
            f"accuracy {row['accuracy']:+.3f}" for kind, row in found.iterrows()]
    return f" At a half, forgetting changes in nats per token by: {', '.join(said)}." if said else ""


def _share_said(rows: pd.DataFrame) -> str:
    """How much of the scaled triplets is W0's own, over runs; nothing where it was not measured."""
    shares = rows.groupby(["method", "seed"])["base_share"].first().dropna()
    return "" if shares.empty else (f" Of what is scaled {with_range(100 * shares, '{:.0f}', '%')} is W0's own: "
                                    "lambda moves that, too, and not the update alone.")


@finding("07_beside_table_3")
def beside_table_3_found(scaled: Measured) -> Found:
    """Our changes beside the paper's at one lambda, the caption's two readings, and which SVD the numbers fit."""
    rows = scaled.best[scaled.best["kind"].isin(READINGS) & (scaled.best["changed"] > 0)]
    # Of a run that forgot nothing the first reading is a percentage of nothing, or of less.
    rows = rows[(rows["factor"] < 1) & (rows["forgetting_change"] * rows["loss_change"] > 0)]
    of_intruder = rows[rows["kind"] == "intruder"]
    factor = next((one for one in SAID if one in set(of_intruder["factor"])), None)
    if factor is None:
        return Found(f"No run had forgotten something and has an intruder to scale, {scaled.source}.", None)
    at = of_intruder[of_intruder["factor"] == factor]
    paper = scaled.published[scaled.published["table"] == 3]
    said, alike = [], []
    for rank, part in at.groupby("r"):
        theirs = paper[(paper["r"] == rank) & (paper["factor"] == factor)]
        there = ", ".join(f"{row.task.upper()} {row.forgetting_change:+.1f} and {row.accuracy_change:+.1f} %"
                          for row in theirs.itertuples())
        ours = part[["forgetting_change", "accuracy_change"]].mean()
        said.append(f"by {ours['forgetting_change']:+.1f} and {ours['accuracy_change']:+.1f} % at r = {rank}"
                    + (f" (the paper: {there})" if there else ""))
        alike += list(np.sign(theirs["forgetting_change"]) == np.sign(ours["forgetting_change"]))
    times = (at["forgetting_change"] / at["loss_change"]).groupby(at["r"]).mean()
    signs = f" Forgetting has the paper's sign in {sum(alike)} of {len(alike)} comparisons." if alike else ""
    first_reading = both(f"{value:.0f} times (r = {rank})" for rank, value in times.items())
    which, fits = _which_svd(rows, paper)
    return Found(f"At lambda {factor:g} forgetting and accuracy change {both(said)}; {scaled.source}.{signs} The first "
                 f"reading is {first_reading} the second.{which}", all_met(times.min() >= MANY, *fits))


def _which_svd(rows: pd.DataFrame, paper: pd.DataFrame) -> tuple[str, list[bool | None]]:
    """How far each reading of the triplet lies from the paper's rows of that rank, and whether it turns as they do.

    With it whether they fit the triplet of W0 + dW, as its authors say; nothing where one reading is all there is.
    Only W0's own part in a triplet can make removing more of it hurt again: an update taken back leads to the base.
    """
    shared = paper.merge(rows, on=["r", "factor"], suffixes=("_paper", ""))
    shared = shared[shared["r"] == rows["r"].max()]
    shared = shared[shared.groupby("factor")["kind"].transform("nunique") == len(READINGS)]
    if shared.empty:
        return "", []
    squares = sum((shared[column] - shared[f"{column}_paper"]) ** 2 for column in (
        "forgetting_change", "accuracy_change")) / 2
    apart = squares.groupby([shared["task_paper"], shared["seed"], shared["kind"]]).mean().pow(0.5).unstack("kind")
    nearer = (apart["intruder"] - apart["update triplet"]).dropna()
    fit = True if nearer.max() < 0 else False if nearer.min() > 0 else None
    fits = {True: "so they fit the former", False: "so they fit the latter"}.get(
        fit, f"the former is nearer in {(nearer < 0).sum()} of {len(nearer)} pairs of a task and a seed, so they do "
        "not tell the two apart")
    far = apart.mean()
    turns = _turning(paper.assign(line=paper["task"] + paper["r"].astype(str)))
    ours = {kind: _turning(rows[(rows["kind"] == kind) & (rows["r"] == rows["r"].max())].assign(
        line=lambda t: t["seed"])) for kind in READINGS}
    turned = f"; below lambda {LOW[1]:g} forgetting rises again in {_lines(turns)} of the paper, " + both(
        f"{_lines(ours[kind])} with the triplet {READINGS[kind]}" for kind in READINGS) if all(ours.values()) else ""
    said = (f" Which SVD: the paper's rows lie {far['intruder']:.1f} percentage points (root mean square, mean over "
            f"tasks and seeds) from ours with the triplet {READINGS['intruder']} and {far['update triplet']:.1f} from "
            f"those with that {READINGS['update triplet']}: {fits}{turned}.")
    return said, [fit]


def _turning(rows: pd.DataFrame) -> list[bool]:
    """Line by line, whether less is restored at the smaller of two low strengths; of lines that have both."""
    low = rows.pivot_table(index="line", columns="factor", values="forgetting_change")
    return list((low[LOW[0]] > low[LOW[1]]).loc[low[list(LOW)].notna().all(axis=1)]) if set(LOW) <= set(low) else []


def _lines(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)} lines"


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
    """Intruders against the whole update and against smaller rates at equal accuracy, by the rule of the claims.

    Undecided where the interval holds zero, or where a run's accuracy could not be made equal.
    """
    table, said, sides = main_run(scaled.best), [], []
    for beside, name in (("whole update", "of the shrunk update"), ("smaller rate", "of runs at smaller rates")):
        effects = forgetting_at_equal_accuracy(table, rank=int(table["r"].max()), factor=HALF, beside=beside)
        gaps = effects.values.dropna()
        if gaps.empty:
            continue
        low, high = interval(effects)
        sides.append(0 if effects.undecided else -1 if high < 0 else 1 if low > 0 else 0)
        lies = {-1: "the intruder's line lies lower", 1: "the intruder's line lies higher",
                0: "which line lies lower is undecided"}[sides[-1]]
        nearest = f", where {effects.undecided}" if effects.undecided else ""
        said.append(f"minus that {name} {gaps.mean():+.3f} (95 % {low:+.3f} to {high:+.3f}, "
                    f"{len(gaps)} seed{'s' * (len(gaps) > 1)}{nearest}): {lies}")
    if not said:
        return Found(f"No run has an intruder to scale by {HALF}, {scaled.source}, so nothing can be compared.", None)
    met = False if 1 in sides else None if 0 in sides else True
    return Found(f"At equal accuracy forgetting with intruders scaled by {HALF} is, in nats per token, "
                 f"{'; '.join(said)}; {scaled.source}.{_rates_said(table)}", met)


def _rates_said(table: pd.DataFrame) -> str:
    """What runs at smaller rates forget, and how accurate they are."""
    rows = table[(table["kind"] == "smaller rate") & (table["factor"] < 1)]
    said = [f"{part['forgetting'].mean():.2f} at accuracy {part['accuracy'].mean():.3f} with {factor:g} of the rate"
            for factor, part in rows.groupby("factor", sort=False)]
    return f" Trained at a smaller rate a run forgets {both(said)}." if said else ""


@finding("07_removing_intruders")
def removing_intruders_found(removed: Measured) -> Found:
    """Whether forgetting falls with every intruder removed and rises with every neighbour, run by run."""
    said, parts, table = [], [], main_run(removed.best)
    for kind, many, sign, verb in (("intruders", "all", -1, "lowers"), ("neighbours", "as many", 1, "raises")):
        courses = [run.sort_values("removed")["forgetting"].to_numpy() for _, run in table[
            table["kind"] == kind].groupby(["method", "seed"], sort=False) if run["removed"].max() > 0]
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
    return Found(f"{text[0].upper()}{text[1:]}; {removed.source}.{_removal_apart(table)}", all_met(*parts))


def _removal_apart(table: pd.DataFrame) -> str:
    """Intruders removed against neighbours removed, by the rule of the claim, and how much of W0 goes with each."""
    effects = forgetting_after_removal(table, rank=int(table["r"].max()))
    if effects.values.dropna().empty:
        return ""
    low, high = interval(effects)
    last = table[table["removed"] > 0].sort_values("removed").groupby(["kind", "seed"])["base_share"].last()
    shares = both(f"{with_range(100 * last[kind], '{:.0f}', '%')} of the {kind}' σ"
                  for kind in ("intruders", "neighbours"))
    return (f" Without all intruders {effects.values.mean():+.3f} nats per token (95 % {low:+.3f} to {high:+.3f}) are "
            f"forgotten beside what is without as many neighbours; W0's own is {shares}.")


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
