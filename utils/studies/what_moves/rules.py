"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd
from scipy.stats import spearmanr

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, by_seed, trend
from utils.reporting.selection import last_steps, runs_that_learnt


@rule(needs=("learning_rate", "r", "seed", "{column}"))
def higher_rates_more(table: pd.DataFrame, *, column) -> Effects:
    """Spearman's rho between learning rate and `column` over one rank's runs that learnt, at the last step."""
    lora = last_steps(runs_that_learnt(table[table["r"] > 0]))
    return by_seed(lora, lambda part: trend(part["learning_rate"], part[column]), outcome=None, experiment="learning_rates")


@rule(needs=("learning_rate", "r", "seed", "{column}", "{other}"))
def goes_together(table: pd.DataFrame, *, column, other, sign=1, least=0.0) -> Effects:
    """Spearman's rho of two columns over the checkpoints of one rank's learnt runs, minus `least`; `sign` -1 turns it.

    NaN where one of the columns never changes, as where no run has an intruder: then nothing can go together.
    """
    def effect(part: pd.DataFrame) -> float:
        if min(part[name].nunique() for name in ("learning_rate", column, other)) < 2:
            raise MissingRun(f"two values of learning rate, {column} and {other}")
        return sign * spearmanr(part[column], part[other]).statistic - least

    return by_seed(runs_that_learnt(table[table["r"] > 0]), effect, outcome=None, experiment="learning_rates")


@rule(needs=("experiment", "forgetting", "learning_rate", "r", "seed"))
def largest_rate_passes_full(table: pd.DataFrame) -> Effects:
    """Forgetting at LoRA's largest rate minus full fine-tuning's at its smallest rate, its usual one, last step.

    NaN where the run at that rate did not learn its task.
    """
    last = last_steps(table[table["experiment"] == "learning_rates"])
    largest = last[last["r"] > 0]["learning_rate"].max()
    smallest = last[last["r"] == 0]["learning_rate"].min()

    def effect(part: pd.DataFrame) -> float:
        lora = part[(part["r"] > 0) & (part["learning_rate"] == largest)].iloc[0]
        full = part[(part["r"] == 0) & (part["learning_rate"] == smallest)].iloc[0]
        return lora["forgetting"] - full["forgetting"]

    return by_seed(runs_that_learnt(last), effect, outcome=None, experiment="learning_rates")


@rule(needs=("accuracy", "n_intruders", "r", "seed"))
def falls_with_rank(table: pd.DataFrame, *, tolerance, in_experiment) -> Effects:
    """Minus Spearman's rho between rank and count over the runs of an experiment that trained at all.

    Runs whose accuracy lies more than `tolerance` below the experiment's best did not learn the task: what they have
    of intruders says nothing about the rank.
    """
    def effect(part: pd.DataFrame) -> float:
        trained = part[(part["r"] > 0) & (part["accuracy"] >= part["accuracy"].max() - tolerance)]
        if trained["r"].nunique() < 3:
            return float("nan")
        return -trend(trained["r"], trained["n_intruders"])

    return by_seed(table, effect, outcome=None, experiment=in_experiment)


@rule(needs=("experiment", "r", "seed", "{column}"))
def alpha_adds(table: pd.DataFrame, *, rank, column, epsilon=None, allowance=0.0) -> Effects:
    """`column` at alpha = 8 minus alpha = 2r for one rank, each in its own experiment (rates as the rule sets them).

    An `allowance` is added, so that the sentence "no more than so much below" holds where the effect is positive.
    """
    at = table[table["epsilon"] == epsilon] if epsilon is not None else table
    at = at[(at["r"] == rank) & at["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("experiment")[column].mean()
        return values.loc["alpha_8"] - values.loc["rule"] + allowance

    return by_seed(at, effect, outcome=None)


@rule(needs=("lora_alpha", "r", "seed", "{column}"))
def alpha_alone(table: pd.DataFrame, *, rank, column) -> Effects:
    """`column` at the smaller alpha minus the larger, among runs of one rank at one and the same learning rate.

    The mean over such rates. Runs of another scaling (rsLoRA) are another method, not another alpha.
    """
    def effect(part: pd.DataFrame) -> float:
        alike = ["method", "learning_rate"]
        pairs = part[part["r"] == rank].drop_duplicates("run").groupby(alike).filter(
            lambda same: same["lora_alpha"].nunique() > 1)
        ordered = pairs.sort_values("lora_alpha").groupby(alike)[column]
        return float((ordered.first() - ordered.last()).mean())

    return by_seed(table, effect, outcome=None)


@rule(needs=("experiment", "r", "seed"))
def larger_effective_rank(table: pd.DataFrame, *, in_experiment, higher, lower, times=1.0) -> Effects:
    """Mean effective rank of the update at one rank minus another's (0 is full fine-tuning) in an experiment."""
    at = table[table["experiment"] == in_experiment]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("r")["effective_rank"].mean()
        return means.loc[higher] - times * means.loc[lower]

    return by_seed(at, effect, outcome=None, experiment=in_experiment)


@rule(needs=("experiment", "r", "seed"))
def alpha_collapses_rank(table: pd.DataFrame, *, rank) -> Effects:
    """Mean effective rank under alpha = 2r minus under alpha = 8, at one rank."""
    at = table[(table["r"] == rank) & table["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("experiment")["effective_rank"].mean()
        return means.loc["rule"] - means.loc["alpha_8"]

    return by_seed(at, effect, outcome=None)
