"""The rules that judge the second paper's claims; of the same form as those of :mod:`utils.reporting.rules`."""

from dataclasses import replace

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, of_experiment, rank_of, trend
from utils.reporting.selection import last_steps
from utils.studies.learning.published import matched_learning


@rule(needs=("r", "seed", "{column}"))
def ordered_by_rank(table: pd.DataFrame, *, column, sign=1, in_experiment=None) -> Effects:
    """Smallest fall of `column` from one rank of LoRA to the next and then to full, at the last step, times `sign`."""
    at = of_experiment(table, in_experiment)
    order = [*sorted(at.loc[at["r"] > 0, "r"].unique()), 0]

    def effect(part: pd.DataFrame) -> float:
        values = last_steps(part).groupby("r")[column].mean().loc[order]
        return float((-sign * values.diff().iloc[1:]).min(skipna=False))

    return by_seed(at, effect, outcome=None)


@rule(needs=("r", "seed", "{column}"))
def below_full(table: pd.DataFrame, *, rank, column, sign=1, in_experiment=None) -> Effects:
    """How far `column` lies below full fine-tuning's at the last step, times `sign`, for one rank or (`every`) all."""
    at = of_experiment(table, in_experiment)
    ranks = sorted(at.loc[at["r"] > 0, "r"].unique()) if rank == "every" else [rank_of(at, rank)]

    def effect(part: pd.DataFrame) -> float:
        values = last_steps(part).groupby("r")[column].mean()
        return float((sign * (values.loc[0] - values.loc[ranks])).min(skipna=False))

    return by_seed(at, effect, outcome=None)


@rule(needs=("seed",))
def gap_widens(table: pd.DataFrame, *, earlier, rank, in_experiment=None) -> Effects:
    """LoRA's loss minus full's at the longest duration, less the same at an earlier one (`earlier`: its position)."""
    at = of_experiment(table, in_experiment)
    rank = rank_of(at, rank)

    def effect(part: pd.DataFrame) -> float:
        loss = part.pivot_table(index="step", columns="r", values="loss_nats_per_token").sort_index()
        gap = loss[rank] - loss[0]
        return gap.iloc[-1] - gap.iloc[:-1].iloc[earlier]

    return by_seed(at, effect, outcome=None)


@rule(needs=("r", "seed"))
def close_to_full(table: pd.DataFrame, *, tolerance, rank, in_experiment=None) -> Effects:
    """`tolerance` minus what LoRA's loss is above full fine-tuning's at the last step."""
    at = of_experiment(table, in_experiment)
    rank = rank_of(at, rank)

    def effect(part: pd.DataFrame) -> float:
        loss = last_steps(part).groupby("r")["loss_nats_per_token"].mean()
        return tolerance - (loss.loc[rank] - loss.loc[0])

    return by_seed(at, effect, outcome=None)


@rule(needs=("r", "seed", "step", "{column}"))
def grows_with_duration(table: pd.DataFrame, *, column, rank, in_experiment=None) -> Effects:
    """Spearman's rho between duration and `column` for one rank."""
    at = of_experiment(table, in_experiment)
    return by_seed(at[at["r"] == rank_of(at, rank)], lambda part: trend(part["step"], part[column]), outcome=None)


@rule(needs=("experiment", "r", "seed", "{column}"))
def more_on_first_task(table: pd.DataFrame, *, column, experiments) -> Effects:
    """Full fine-tuning's `column` at the last step on the first of `experiments` minus on the second."""
    def effect(part: pd.DataFrame) -> float:
        last = last_steps(part[part["r"] == 0]).set_index("experiment")[column]
        return last.loc[experiments[0]] - last.loc[experiments[1]]

    return by_seed(table, effect, outcome=None)


@rule(needs=("base_exact_match", "experiment", "r", "seed"))
def above_base(table: pd.DataFrame, *, least, rank) -> Effects:
    """Exact match of one rank minus the base's and `least`, at the last step on the mathematics."""
    at = table[table["experiment"] == "mathematics"]
    return by_seed(at[at["r"] == rank_of(at, rank)], lambda part: last_steps(part)["exact_match"].iloc[0]
                   - part["base_exact_match"].iloc[0] - least, outcome=None)


@rule(needs=("experiment", "forgetting", "learning", "method", "r", "seed", "step"))
def forgets_less_when_matched(table: pd.DataFrame, *, rank, in_experiment=None) -> Effects:
    """How much less one rank forgets than full fine-tuning at the most that both have learnt, in nats per token."""
    at = of_experiment(table, in_experiment)
    rank = rank_of(at, rank)
    curves = pd.DataFrame({"dataset": at["experiment"], "method": at["r"].map(lambda r: "full" if r == 0 else f"r={r}"),
                           "seed": at["seed"], "duration": at["step"], "learning": at["learning"],
                           "remembering": -at["forgetting"]})

    def effect(part: pd.DataFrame) -> float:
        if "full" not in set(part["method"]):
            raise KeyError("full")
        found = matched_learning(part).set_index("method")
        return found.loc[f"r={rank}", "difference"]

    return by_seed(curves, effect, outcome=None)


@rule(needs=("seed",))
def forgets_more_when_matched(table: pd.DataFrame, *, rank, in_experiment=None) -> Effects:
    """The same with the opposite sign."""
    less = forgets_less_when_matched(table, rank=rank, in_experiment=in_experiment)
    return replace(less, values=-less.values)


@rule(needs=("decay_towards", "r", "seed", "weight_decay", "{column}"))
def like_full(table: pd.DataFrame, *, column, tolerance) -> Effects:
    """`tolerance` minus the largest relative distance in `column` of full fine-tuning with a regulariser from without.

    Of weight decay (towards zero) and of attention dropout the largest value in the table is compared.
    """
    doses = ["weight_decay", "attention_dropout"]
    last = last_steps(table)
    last = last[(last["r"] == 0) & ((last["decay_towards"] == "zero") | (last["weight_decay"] == 0))]
    largest = last[doses].max()

    def effect(part: pd.DataFrame) -> float:
        plain = part[(part[doses] == 0).all(axis=1)][column].iloc[0]
        values = [part[part[dose] == largest[dose]][column].iloc[0] for dose in doses]
        if not largest.all():
            raise ValueError("a regulariser was never tried")
        return tolerance - float(np.max(np.abs(np.array(values) / plain - 1)))

    return by_seed(last, effect, outcome=None)


@rule(needs=("seed", "{x}", "{y}"))
def goes_along(table: pd.DataFrame, *, x, y, least, in_experiment=None) -> Effects:
    """Spearman's rho of two columns over every row of a seed, less `least`."""
    return by_seed(of_experiment(table, outcome=None, experiment=in_experiment), lambda part: trend(part[x], part[y]) - least, outcome=None)


@rule(needs=("control", "r", "seed"))
def trained_forgets_more(table: pd.DataFrame) -> Effects:
    """Forgetting of full fine-tuning's update minus that of a random one of the same norm in every matrix."""
    def effect(part: pd.DataFrame) -> float:
        values = part[part["r"] == 0].set_index("control")["forgetting"]
        return values.loc["trained"] - values.loc["random, full rank"]

    return by_seed(table, effect, outcome=None)
