"""The rules of notebook 05: over learning rates, over ranks, and between two alphas. Only runs that learnt count."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import (
    Effects,
    MissingRun,
    at_least,
    by_seed,
    gap_between,
    of_experiment,
    rows_where,
    trend,
    value_at,
    with_every,
)
from utils.reporting.selection import last_steps, runs_that_learnt

RUNS = ("experiment", "seed", "task", "run", "method", "r", "accuracy")


def _learnt_lora(table: pd.DataFrame, experiment: str | None = None) -> pd.DataFrame:
    """The rows of LoRA runs that learnt their task, of one experiment or of all."""
    learnt = of_experiment(runs_that_learnt(table), experiment)
    return learnt[learnt["method_kind"] == "lora"]


@rule(needs=(*RUNS, "step", "learning_rate", "{column}"))
def trend_over_rates(table: pd.DataFrame, *, column: str) -> Effects:
    """Spearman's rho between learning rate and `column` over one rank's runs, at the last step."""
    last = last_steps(_learnt_lora(table, "learning_rates"))
    return by_seed(last, lambda part: trend(part["learning_rate"], part[column]), outcome=column)


@rule(needs=(*RUNS, "step", "{column}"))
def trend_through_training(table: pd.DataFrame, *, column: str) -> Effects:
    """Spearman's rho between step and `column` over a run's checkpoints, the mean over one rank's runs.

    A run whose `column` never changes counts as 0: nothing grows there.
    """
    def effect(part: pd.DataFrame) -> float:
        runs = [trend(run["step"], run[column]) for _, run in part.groupby("run") if run["step"].nunique() > 1]
        at_least(len(runs), 1, "run with several checkpoints")
        return sum(runs) / len(runs)

    return by_seed(_learnt_lora(table, "learning_rates"), effect, outcome=column)


@rule(needs=(*RUNS, "step", "learning_rate", "{column}", "{other}"))
def rho_over_checkpoints(table: pd.DataFrame, *, column: str, other: str) -> Effects:
    """Spearman's rho of two columns over the checkpoints of one rank's runs at two learning rates or more.

    0 where `column` never changes, as where no run has an intruder.
    """
    def effect(part: pd.DataFrame) -> float:
        at_least(part["learning_rate"].nunique(), 2, "learning rates")
        return trend(part[other], part[column])

    return by_seed(_learnt_lora(table, "learning_rates"), effect, outcome=column)


@rule(needs=(*RUNS, "step", "learning_rate", "forgetting"))
def largest_rate_minus_full(table: pd.DataFrame) -> Effects:
    """Forgetting at LoRA's largest rate minus full fine-tuning's at its smallest rate, its usual one; at the last step.

    Missing where the run at that rate did not learn its task.
    """
    last = last_steps(table[table["experiment"] == "learning_rates"])
    largest = last.loc[last["method_kind"] == "lora", "learning_rate"].max()
    usual = last.loc[last["method_kind"] == "full", "learning_rate"].min()

    def effect(part: pd.DataFrame) -> float:
        learnt = runs_that_learnt(part)
        if not ((learnt["method_kind"] == "lora") & (learnt["learning_rate"] == largest)).any():
            raise MissingRun(f"no run of LoRA learnt at its largest rate, {largest:g}")
        lora = rows_where(learnt, method_kind="lora", learning_rate=largest).iloc[0]
        return lora["forgetting"] - rows_where(learnt, method_kind="full", learning_rate=usual).iloc[0]["forgetting"]

    return by_seed(last, effect, outcome="forgetting")


@rule(needs=(*RUNS, "{column}"))
def trend_over_ranks(table: pd.DataFrame, *, in_experiment: str, column: str) -> Effects:
    """Spearman's rho between rank and `column` over an experiment's runs, of three ranks or more."""
    def effect(part: pd.DataFrame) -> float:
        at_least(part["r"].nunique(), 3, "ranks that learnt")
        return trend(part["r"], part[column])

    return by_seed(_learnt_lora(table, in_experiment), effect, outcome=column)


@rule(needs=(*RUNS, "epsilon", "n_intruders"))
def count_trend_over_ranks(table: pd.DataFrame, *, in_experiment: str, epsilon: float) -> Effects:
    """:func:`trend_over_ranks` of the count at one epsilon."""
    return trend_over_ranks(_at(table, epsilon), in_experiment=in_experiment, column="n_intruders")


@rule(needs=(*RUNS, "lora_alpha", "learning_rate", "{column}"))
def higher_rank_minus_lower(table: pd.DataFrame, *, column: str) -> Effects:
    """`column` at the highest rank minus the lowest at one and the same learning rate, with alpha = 2r.

    The mean over the rates at which two ranks or more learnt.
    """
    lora = _learnt_lora(table).drop_duplicates("run")
    plain = lora[(lora["lora_alpha"] == 2 * lora["r"]) & lora["method"].str.startswith("LoRA ")]

    def effect(part: pd.DataFrame) -> float:
        shared = part.sort_values("r").groupby("learning_rate").filter(lambda at: at["r"].nunique() > 1)
        at_least(len(shared), 2, "ranks at one learning rate")
        by_rate = shared.groupby("learning_rate")[column]
        return (by_rate.last() - by_rate.first()).mean()

    return by_seed(plain, effect, outcome=column)


@rule(needs=("experiment", "seed", "r", "{column}"))
def alpha_8_minus_rule(table: pd.DataFrame, *, rank: int, column: str) -> Effects:
    """Mean of `column` at alpha = 8 minus at alpha = 2r for one rank, each at its own rate."""
    learnt = runs_that_learnt(table)
    at = learnt[(learnt["r"] == rank) & learnt["experiment"].isin(["rule", "alpha_8"])]

    return by_seed(at, lambda part: gap_between(part, column, by="experiment", of="alpha_8", minus="rule"),
                   outcome=column)


@rule(needs=(*RUNS, "epsilon", "n_intruders"))
def count_at_alpha_8_minus_rule(table: pd.DataFrame, *, rank: int, epsilon: float) -> Effects:
    """:func:`alpha_8_minus_rule` of the count at one epsilon."""
    return alpha_8_minus_rule(_at(table, epsilon), rank=rank, column="n_intruders")


@rule(needs=(*RUNS, "epsilon", "n_intruders"))
def least_count_of_any_rank(table: pd.DataFrame, *, in_experiment: str, epsilon: float) -> Effects:
    """The smallest count of any rank in an experiment: above zero where every rank has intruders."""
    ranks = _at(table[table["experiment"] == in_experiment], epsilon)
    return by_seed(_learnt_lora(ranks), lambda part: with_every(part, ranks, "r")["n_intruders"].min(),
                   outcome="n_intruders")


@rule(needs=(*RUNS, "lora_alpha", "learning_rate", "{column}"))
def smaller_alpha_minus_larger(table: pd.DataFrame, *, rank: int, column: str) -> Effects:
    """`column` at the smaller alpha minus the larger, among runs of one rank at one and the same learning rate.

    The mean over such rates. Runs of another scaling (rsLoRA) are another method, not another alpha.
    """
    lora, alike = _learnt_lora(table).drop_duplicates("run"), ["method", "learning_rate"]

    def effect(part: pd.DataFrame) -> float:
        pairs = part.groupby(alike).filter(lambda same: same["lora_alpha"].nunique() > 1)
        at_least(len(pairs), 2, f"alphas at one rate with r = {rank}")
        ordered = pairs.sort_values("lora_alpha").groupby(alike)[column]
        return (ordered.first() - ordered.last()).mean()

    return by_seed(lora[lora["r"] == rank], effect, outcome=column)


@rule(needs=("experiment", "seed", "method", "effective_rank"))
def effective_rank_ratio(table: pd.DataFrame, *, in_experiment: str, higher: str, lower: list[str]) -> Effects:
    """Mean effective rank of one method's updates over the largest such mean of the methods `lower`."""
    at = table[table["experiment"] == in_experiment]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("method")["effective_rank"].mean()
        return value_at(means, higher) / value_at(means, lower).max()

    return by_seed(at, effect, outcome=at[at["method"].isin([higher, *lower])]["effective_rank"])


def _at(table: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    return table[table["epsilon"] == epsilon]
