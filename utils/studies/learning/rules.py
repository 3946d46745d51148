"""The rules of learning and forgetting: what LoRA learns and forgets beside full fine-tuning, one effect per seed.

Losses, forgetting and KL are in nats per token, exact match and choice are accuracies. Of what is no measure of
learning itself, only runs that learnt count (:func:`utils.reporting.selection.runs_that_learnt`).
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import (
    Effects,
    MissingRun,
    at_least,
    by_seed,
    full_row,
    of_experiment,
    rank_of,
    rows_where,
    trend,
    value_at,
)
from utils.reporting.selection import last_steps, runs_that_learnt
from utils.studies.learning.published import matched_learning

RUN = ("experiment", "method", "r", "run", "seed", "step")
LEARNING = ("loss_nats_per_token", "learning", "exact_match")
DOSES = ["weight_decay", "attention_dropout"]
FULL_RANK = 0  # of full fine-tuning in the column r, and the last in every order of ranks


def _counted(table: pd.DataFrame, experiment: str | None, column: str) -> pd.DataFrame:
    """The rows of an experiment; of runs that learnt alone where `column` measures something else than learning."""
    rows = of_experiment(table, experiment)
    return rows if column in LEARNING else runs_that_learnt(rows)


def _ends(part: pd.DataFrame, column: str, ranks: list[int]) -> pd.Series:
    """`column` at the last step by rank; MissingRun where a rank has no run, or none on which it was measured."""
    values = value_at(last_steps(part).groupby("r")[column].mean(), ranks)
    if values.isna().any():
        raise MissingRun(f"no {column} measured at r = {values.index[values.isna()][0]}")
    return values


@rule(needs=(*RUN, "{column}"))
def step_in_rank(table: pd.DataFrame, *, column: str, which: Literal["smallest", "largest"],
                 in_experiment: str | None = None, guessing: float | None = None) -> Effects:
    """The smallest or largest change of `column` from one rank of LoRA to the next and from the highest to full.

    Above 0 for the smallest: it rises with every rank up to full fine-tuning. Below 0 for the largest: it falls.

    Parameters
    ----------
    guessing : float, optional
        What is reached without having learnt anything; where no run exceeds it, an order decides nothing.
    """
    at = _counted(table, in_experiment, column)
    order = [*sorted(at.loc[at["method_kind"] == "lora", "r"].unique()), FULL_RANK]

    def effect(part: pd.DataFrame) -> float:
        at_least(len(order), 2, "ranks, full fine-tuning among them,")
        steps = _ends(part, column, order).diff().iloc[1:]
        return {"smallest": steps.min, "largest": steps.max}[which]()

    outcomes = last_steps(at)[column]
    found = by_seed(at, effect, outcome=outcomes)
    if guessing is not None and outcomes.max() <= guessing:
        found = replace(found, no_power=f"no run exceeds the {column.replace('_', ' ')} of {guessing:g} that guessing "
                                        "reaches")
    return found


@rule(needs=(*RUN, "{column}"))
def minus_full(table: pd.DataFrame, *, column: str, rank: Literal["lowest", "highest", "every"],
               in_experiment: str | None = None) -> Effects:
    """LoRA's `column` minus full fine-tuning's at the last step; of `every` rank the one with the largest difference.

    Forgetting that no run shows cannot be spared: where none is above 0, the claim has no power.
    """
    at = _counted(table, in_experiment, column)

    def effect(part: pd.DataFrame) -> float:
        ranks = sorted(at.loc[at["method_kind"] == "lora", "r"].unique()) if rank == "every" else [rank_of(at, rank)]
        at_least(len(ranks), 1, "ranks of LoRA")
        values = _ends(part, column, [*ranks, FULL_RANK])
        return (values.loc[ranks] - values.loc[FULL_RANK]).max()

    outcomes = last_steps(at)[column]
    found = by_seed(at, effect, outcome=outcomes)
    return replace(found, no_power="no run forgets anything") if _nothing_forgotten(column, outcomes) else found


def _nothing_forgotten(column: str, outcomes: pd.Series) -> bool:
    return column == "forgetting" and len(outcomes) > 0 and outcomes.max() <= 0


@rule(needs=(*RUN, "loss_nats_per_token"))
def gap_widens(table: pd.DataFrame, *, earlier: int, rank: Literal["lowest", "highest"],
               in_experiment: str | None = None) -> Effects:
    """LoRA's loss minus full's at the longest duration, less the same at an earlier one (`earlier`: its position)."""
    at = of_experiment(table, in_experiment)

    def effect(part: pd.DataFrame) -> float:
        loss = part.pivot_table(index="step", columns="r", values="loss_nats_per_token").sort_index()
        at_least(len(loss), earlier + 2, "durations")
        pair = value_at(loss.T, [rank_of(at, rank), FULL_RANK]).T.iloc[[earlier, -1]]
        if pair.isna().any(axis=None):
            raise MissingRun(f"no pair of runs at step {pair.index[pair.isna().any(axis=1)][0]}")
        gap = pair.iloc[:, 0] - pair.iloc[:, 1]
        return gap.iloc[1] - gap.iloc[0]

    return by_seed(at, effect, outcome="loss_nats_per_token")


@rule(needs=(*RUN, "{column}"))
def grows_with_duration(table: pd.DataFrame, *, column: str, rank: Literal["full", "lowest", "highest"],
                        in_experiment: str | None = None) -> Effects:
    """Spearman's rho between duration and `column` for one rank."""
    at = _counted(table, in_experiment, column)

    def effect(part: pd.DataFrame) -> float:
        rows = rows_where(part, r=rank_of(at, rank))
        return trend(rows["step"], rows[column])

    return by_seed(at, effect, outcome=column)


@rule(needs=(*RUN, "{column}"))
def first_minus_second(table: pd.DataFrame, *, column: str, experiments: tuple[str, str]) -> Effects:
    """Full fine-tuning's `column` at the last step in the first of two experiments minus in the second."""
    at = _counted(table, None, column)
    at = at[(at["method_kind"] == "full") & at["experiment"].isin(list(experiments))]

    def effect(part: pd.DataFrame) -> float:
        first, second = (last_steps(rows_where(part, experiment=name))[column].mean() for name in experiments)
        return first - second

    return by_seed(at, effect, outcome=last_steps(at)[column])


@rule(needs=(*RUN, "exact_match", "base_exact_match"))
def above_base(table: pd.DataFrame, *, rank: Literal["full", "lowest", "highest"],
               in_experiment: str | None = None) -> Effects:
    """Exact match of one rank at the last step minus the untouched base's."""
    at = of_experiment(table, in_experiment)

    def effect(part: pd.DataFrame) -> float:
        chosen = rank_of(at, rank)
        return (_ends(part, "exact_match", [chosen]) - _ends(part, "base_exact_match", [chosen])).iloc[0]

    return by_seed(at, effect, outcome=last_steps(at)["exact_match"])


def _forgetting_against_full(part: pd.DataFrame) -> pd.Series:
    """By method, what it forgets beyond full fine-tuning at the most that both learnt, along each one's own front."""
    if "full" not in set(part["method"]):
        raise MissingRun("no run of full fine-tuning")
    curves = pd.DataFrame({"dataset": "these runs", "method": part["method"], "learning": part["learning"],
                           "remembering": -part["forgetting"]})
    return -matched_learning(curves).set_index("method")["difference"]


@rule(needs=(*RUN, "learning", "forgetting"))
def forgets_when_matched(table: pd.DataFrame, *, rank: Literal["lowest", "highest"],
                         in_experiment: str | None = None) -> Effects:
    """What one rank forgets beyond full fine-tuning at the most that both have learnt, along each one's own front.

    The front is taken over every run and duration of the experiment: in a sweep, over its learning rates.
    """
    at = _counted(table, in_experiment, "forgetting")

    def effect(part: pd.DataFrame) -> float:
        return value_at(_forgetting_against_full(part), f"LoRA r={rank_of(at, rank)}")

    return by_seed(at, effect, outcome="forgetting")


@rule(needs=(*RUN, "learning", "forgetting", "weight_decay", "decay_towards"))
def forgets_beside_decay(table: pd.DataFrame) -> Effects:
    """What the best rank of LoRA forgets beyond full fine-tuning that decays towards W0.

    Both are compared with plain full fine-tuning at the most that each has learnt as well.
    """
    at = _counted(table, None, "forgetting")

    def effect(part: pd.DataFrame) -> float:
        against = _forgetting_against_full(part)
        decayed = part[(part["decay_towards"] == "base") & (part["weight_decay"] > 0)]["method"].unique()
        at_least(len(decayed), 1, "runs with decay towards W0")
        ranks = rows_where(part, method_kind="lora")["method"].unique()
        return value_at(against, list(ranks)).min() - value_at(against, list(decayed)).min()

    return by_seed(at, effect, outcome="forgetting")


@rule(needs=(*RUN, *DOSES, "decay_towards", "{column}"))
def distance_from_plain(table: pd.DataFrame, *, column: str) -> Effects:
    """How far `column` of regularised full fine-tuning lies from plain's, either way, as a share of it.

    The farther one of weight decay towards zero and attention dropout, each at the largest value in the table.
    """
    last = last_steps(_counted(table, None, column))
    last = last[(last["method_kind"] == "full") & ((last["decay_towards"] == "zero") | (last["weight_decay"] == 0))]
    largest = last[DOSES].max()

    def effect(part: pd.DataFrame) -> float:
        for dose in DOSES:
            at_least(int(largest[dose] > 0), 1, f"runs with {dose}")
        plain = full_row(rows_where(part, **dict.fromkeys(DOSES, 0)))[column]
        return max(abs(rows_where(part, **{dose: largest[dose]})[column].iloc[0] / plain - 1) for dose in DOSES)

    return by_seed(last, effect, outcome=column)


@rule(needs=(*RUN, "{x}", "{y}"))
def goes_along(table: pd.DataFrame, *, x: str, y: str, in_experiment: str | None = None) -> Effects:
    """Spearman's rho of two columns over every run and duration of a seed."""
    return by_seed(_counted(table, in_experiment, y), lambda part: trend(part[x], part[y]), outcome=y)


@rule(needs=(*RUN, "{x}", "{other}", "{y}"))
def goes_along_more(table: pd.DataFrame, *, x: str, other: str, y: str, in_experiment: str | None = None) -> Effects:
    """Spearman's rho of `y` with `x` minus its rho with another column, over every run and duration of a seed."""
    return by_seed(_counted(table, in_experiment, y), lambda part: trend(part[x], part[y]) - trend(
        part[other], part[y]), outcome=y)


@rule(needs=(*RUN, "{x}", "{y}"))
def share_beyond_full_at_equal(table: pd.DataFrame, *, x: str, y: str, rank: Literal["lowest", "highest"],
                               in_experiment: str | None = None) -> Effects:
    """LoRA's `y` over full fine-tuning's, less 1, at the largest `x` that both reach; linear between durations."""
    at = _counted(table, in_experiment, y)

    def effect(part: pd.DataFrame) -> float:
        curves = [rows_where(part, r=one).sort_values(x) for one in (rank_of(at, rank), FULL_RANK)]
        level = min(curve[x].max() for curve in curves)
        if level < max(curve[x].min() for curve in curves):
            raise MissingRun(f"no {x} that both methods reach")
        lora, full = (np.interp(level, curve[x], curve[y]) for curve in curves)
        return lora / full - 1

    return by_seed(at, effect, outcome=y)


@rule(needs=("control", "method", "r", "seed", "forgetting"))
def trained_minus_random(table: pd.DataFrame, *, rank: Literal["full", "lowest", "highest"], control: str) -> Effects:
    """Forgetting of the trained update minus that of a random one of the same norm in every matrix."""
    def effect(part: pd.DataFrame) -> float:
        values = rows_where(part, r=rank_of(table, rank)).set_index("control")["forgetting"]
        return value_at(values, "trained") - value_at(values, control)

    return by_seed(table, effect, outcome="forgetting")
