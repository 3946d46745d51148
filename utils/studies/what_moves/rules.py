"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import pandas as pd
from scipy.stats import spearmanr

from utils.reporting.registry import rule
from utils.reporting.rules import by_seed, trend
from utils.reporting.selection import last_steps, runs_that_learnt


@rule
def higher_rates_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between learning rate and `column` over one rank's runs that learnt, at the last step."""
    lora = last_steps(runs_that_learnt(table[table["r"] > 0]))
    return by_seed(lora, lambda part: trend(part["learning_rate"], part[rule["column"]]), "learning_rates")


@rule
def goes_together(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho of two columns over the checkpoints of one rank's learnt runs, minus `least`; `sign` -1 turns it.

    NaN where one of the columns never changes, as where no run has an intruder: then nothing can go together.
    """
    def effect(part: pd.DataFrame) -> float:
        column, other = part[rule["column"]], part[rule["other"]]
        if min(part["learning_rate"].nunique(), column.nunique(), other.nunique()) < 2:
            return float("nan")
        return rule.get("sign", 1) * spearmanr(column, other).statistic - rule.get("least", 0.0)

    return by_seed(runs_that_learnt(table[table["r"] > 0]), effect, "learning_rates")


@rule
def largest_rate_passes_full(table: pd.DataFrame, rule: dict) -> pd.Series:
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

    return by_seed(runs_that_learnt(last), effect, "learning_rates")


@rule
def falls_with_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Minus Spearman's rho between rank and count over the runs of an experiment that trained at all.

    Runs whose accuracy lies more than `tolerance` below the experiment's best did not learn the task: what they have
    of intruders says nothing about the rank.
    """
    def effect(part: pd.DataFrame) -> float:
        trained = part[(part["r"] > 0) & (part["accuracy"] >= part["accuracy"].max() - rule["tolerance"])]
        if trained["r"].nunique() < 3:
            return float("nan")
        return -trend(trained["r"], trained["n_intruders"])

    return by_seed(table, effect, rule["in_experiment"])


@rule
def alpha_adds(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` at alpha = 8 minus alpha = 2r for one rank, each in its own experiment (rates as the rule sets them).

    An `allowance` is added, so that the sentence "no more than so much below" holds where the effect is positive.
    """
    at = table[table["epsilon"] == rule["epsilon"]] if "epsilon" in rule else table
    at = at[(at["r"] == rule["rank"]) & at["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("experiment")[rule["column"]].mean()
        return values.loc["alpha_8"] - values.loc["rule"] + rule.get("allowance", 0.0)

    return by_seed(at, effect, None)


@rule
def alpha_alone(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` at the smaller alpha minus the larger, among runs of one rank at one and the same learning rate.

    The mean over such rates. Runs of another scaling (rsLoRA) are another method, not another alpha.
    """
    def effect(part: pd.DataFrame) -> float:
        alike = ["method", "learning_rate"]
        pairs = part[part["r"] == rule["rank"]].drop_duplicates("run").groupby(alike).filter(
            lambda same: same["lora_alpha"].nunique() > 1)
        ordered = pairs.sort_values("lora_alpha").groupby(alike)[rule["column"]]
        return float((ordered.first() - ordered.last()).mean())

    return by_seed(table, effect, None)


@rule
def larger_effective_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean effective rank of the update at one rank minus another's (0 is full fine-tuning) in an experiment."""
    at = table[table["experiment"] == rule["in_experiment"]]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("r")["effective_rank"].mean()
        return means.loc[rule["higher"]] - rule.get("times", 1.0) * means.loc[rule["lower"]]

    return by_seed(at, effect, rule["in_experiment"])


@rule
def alpha_collapses_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean effective rank under alpha = 2r minus under alpha = 8, at one rank."""
    at = table[(table["r"] == rule["rank"]) & table["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("experiment")["effective_rank"].mean()
        return means.loc["rule"] - means.loc["alpha_8"]

    return by_seed(at, effect, None)
