"""What the rules of every study share: one effect per seed in natural units, and the rows that a rule asks for.

A rule returns :class:`Effects`. A run that is missing or diverged raises :class:`MissingRun`, which
:func:`by_seed` turns into a seed without a value; nothing else is caught, so a renamed column stops the ledger.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

CLAIM_EPSILONS = (0.5, 0.8)  # a rule with `epsilon` is judged at both: the paper's own, and a lenient one
Effect = Callable[[pd.DataFrame], float]


class MissingRun(Exception):
    """A run that a rule needs is not in the table, or diverged: the only reason for a seed without an effect."""


@dataclass(frozen=True)
class Effects:
    """One effect per seed, in the claim's unit, and the outcomes that it was taken from.

    Attributes
    ----------
    values : pandas.Series
        By seed; NaN where a run is missing.
    outcomes : numpy.ndarray
        The measured values that the effect compares, over all seeds: where they are all equal or at their floor, the
        claim could neither have held nor have failed.
    outcome : str
        Their column, which decides about floor and ceiling; empty where there is none.
    missing : dict
        Seed -> which run is missing.
    items : pandas.DataFrame, optional
        ``seed``, ``item``, ``difference``: effects test item by test item, for a bootstrap over both.
    draws : numpy.ndarray, optional
        The mean effect in each draw of a bootstrap over both that the rule made itself: of an effect that is no mean
        over items.
    no_power : str
        Why the rule itself finds that its outcomes could decide nothing, such as answers below guessing; else empty.
    undecided : str
        What the comparison rests on and is itself open, such as a best learning rate at the edge of its grid; else
        empty.
    """

    values: pd.Series
    outcomes: np.ndarray = field(default_factory=lambda: np.array([]))
    outcome: str = ""
    missing: dict[Hashable, str] = field(default_factory=dict)
    items: pd.DataFrame | None = None
    draws: np.ndarray | None = None
    no_power: str = ""
    undecided: str = ""


def by_seed(table: pd.DataFrame, effect: Effect, *, outcome: str | pd.Series | None,
            experiment: str | None = None) -> Effects:
    """Apply `effect` to the rows of each seed (of one experiment).

    Parameters
    ----------
    table : pandas.DataFrame
        ``seed``, and ``experiment`` where one is chosen.
    effect : callable
        Takes one seed's rows and returns a number in the claim's unit; raises MissingRun where a run is not there.
    outcome : str, Series or None
        The column whose values in these rows the effect compares, or those values; None where the effect is no
        comparison of measured values, such as a share of cells.
    """
    chosen = of_experiment(table, experiment)
    values, missing = {}, {}
    for seed, part in chosen.groupby("seed"):
        try:
            values[seed] = float(effect(part))
        except MissingRun as reason:
            values[seed], missing[seed] = float("nan"), str(reason)
        if seed not in missing and not np.isfinite(values[seed]):  # said, for it would pass for a missing run
            values[seed], missing[seed] = float("nan"), f"the effect is {values[seed]}"
    column = chosen[outcome] if isinstance(outcome, str) else outcome
    outcomes = np.array([]) if column is None else column.dropna().to_numpy(dtype=float)
    return Effects(pd.Series(values, dtype=float), outcomes, "" if column is None else str(column.name), missing)


def rows_where(part: pd.DataFrame, **where) -> pd.DataFrame:
    """The rows whose columns have these values; MissingRun naming them if there is none.

    >>> rows_where(pd.DataFrame({"r": [0, 8], "accuracy": [0.9, 0.8]}), r=8)["accuracy"].tolist()
    [0.8]
    """
    kept = [(part[column] == value).to_numpy(dtype=bool) for column, value in where.items()]
    found = part[np.logical_and.reduce(kept)]
    if found.empty:
        raise MissingRun("no run with " + ", ".join(f"{column} = {value}" for column, value in where.items()))
    return found


def full_row(part: pd.DataFrame) -> pd.Series:
    """The first row of full fine-tuning; MissingRun without one."""
    return rows_where(part, method_kind="full").iloc[0]


def value_at(values: pd.Series, key):
    """`values.loc[key]` (one key or a list of keys); MissingRun naming the first that is not there."""
    for one in key if isinstance(key, list) else [key]:
        if one not in values.index:
            raise MissingRun(f"no run with {values.index.name or 'setting'} = {one}")
    return values.loc[key]


def gap_between(part: pd.DataFrame, column: str, *, by: str, of: Hashable, minus: Hashable) -> float:
    """Mean of `column` in one group of `by` minus its mean in another; MissingRun where a group has no rows.

    >>> runs = pd.DataFrame({"side": ["a", "b", "b"], "loss": [3.0, 1.0, 2.0]})
    >>> float(gap_between(runs, "loss", by="side", of="a", minus="b"))
    1.5
    """
    means = part.groupby(by)[column].mean()
    return value_at(means, of) - value_at(means, minus)


def at_least(count: int, least: int, what: str) -> None:
    """MissingRun where there are fewer than `least` of `what`."""
    if count < least:
        raise MissingRun(f"{count} {what}, {least} needed")


def with_every(part: pd.DataFrame, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One seed's rows, if they have every value of `column` that any seed has: for sentences about all of them."""
    lacking = sorted(set(table[column]) - set(part[column]), key=str)
    if lacking:
        raise MissingRun(f"no run with {column} = {lacking[0]}")
    return part


def trend(setting: pd.Series, outcome: pd.Series) -> float:
    """Spearman's rho of an outcome over a setting; 0 where all outcomes are equal, MissingRun below two settings."""
    at_least(setting.nunique(), 2, f"values of {setting.name or 'the setting'}")
    return 0.0 if outcome.nunique() == 1 else float(spearmanr(setting, outcome).statistic)


def of_experiment(table: pd.DataFrame, experiment: str | None) -> pd.DataFrame:
    """The rows of an experiment, or all for None."""
    return table if experiment is None else table[table["experiment"] == experiment]


def rank_of(table: pd.DataFrame, rank: str) -> int:
    """The rank that a rule speaks of: ``full`` (0), or the ``lowest`` or ``highest`` rank of LoRA in the table."""
    ranks = table.loc[table["method_kind"] == "lora", "r"]
    if rank != "full" and ranks.empty:
        raise MissingRun("no run of LoRA")
    return {"full": lambda: 0, "lowest": ranks.min, "highest": ranks.max}[rank]()


def joined(effects: Iterable[Effects], combine: Callable[[pd.Series], float]) -> Effects:
    """Several effects of the same seeds as one, such as the smallest of two; NaN where one of them is."""
    parts = list(effects)
    table = pd.concat([one.values for one in parts], axis=1)
    values = table.apply(lambda row: float("nan") if row.isna().any() else combine(row), axis=1).astype(float)
    missing = dict.fromkeys(values.index[values.isna()], "no runs for every part of the sentence")
    missing |= {seed: reason for one in parts for seed, reason in one.missing.items()}
    return Effects(values, np.concatenate([one.outcomes for one in parts]), parts[0].outcome, missing,
                   no_power=next((one.no_power for one in parts if one.no_power), ""),
                   undecided="; ".join(dict.fromkeys(one.undecided for one in parts if one.undecided)))
