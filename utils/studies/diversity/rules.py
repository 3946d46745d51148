"""The rules of diversity: untouched base, LoRA and full fine-tuning on the same problems, pair by pair.

Every model answers every problem, so effects are differences problem by problem, and the verdict's interval is a
bootstrap over problems and seeds together. The base has one seed, which stands beside all.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, rank_of, rows_where

FEWEST = 5  # problems that a bootstrap over them asks for
Kind = Literal["base", "lora", "full"]


def paired(table: pd.DataFrame, column: str, *, first: Kind, second: Kind) -> Effects:
    """`column` of one kind of model minus another's, problem by problem; several ranks of LoRA are averaged.

    Only problems that have a value in both models of every seed count, so that all seeds speak of the same ones; with
    fewer than five of them no seed has an effect. A seed that lacks a model is left out.

    Parameters
    ----------
    table : pandas.DataFrame
        ``method_kind``, ``seed``, ``task_id``, `column`.
    """
    seeds = sorted(table.loc[table["method_kind"] != "base", "seed"].unique())
    whole = [_by_problem(table, column, kind=kind, seeds=seeds) for kind in (first, second)]
    missing = {seed: f"no run with method_kind = {kind}" for kind in (first, second)
               for seed in set(seeds) - _seeds_of(table, kind, seeds)}
    difference = (whole[0] - whole[1]).drop(index=list(missing)).dropna(axis=1)
    if len(difference) and difference.shape[1] < FEWEST:
        missing |= dict.fromkeys(difference.index, f"{difference.shape[1]} problems have a value in every model, "
                                                   f"{FEWEST} needed")
        difference = difference.iloc[:0]
    items = difference.rename_axis(index="seed", columns="item").stack().rename("difference").reset_index()
    return Effects(difference.mean(axis=1).reindex(seeds).astype(float), table[column].dropna().to_numpy(dtype=float),
                   column, missing, items if len(items) else None)


def _seeds_of(table: pd.DataFrame, kind: Kind, seeds: list[int]) -> set:
    found = set(table.loc[table["method_kind"] == kind, "seed"])
    return set(seeds) if kind == "base" and found else found


def _of_all_models(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The table with no value of `column` on problems where any model of any seed has none."""
    known = table.dropna(subset=[column]).drop_duplicates(["task_id", "method", "seed"]).groupby("task_id").size()
    whole = known.index[known == table.groupby(["method", "seed"]).ngroups]
    return table.assign(**{column: table[column].where(table["task_id"].isin(whole))})


def _by_problem(table: pd.DataFrame, column: str, *, kind: Kind, seeds: list[int]) -> pd.DataFrame:
    """Seeds as rows, problems as columns."""
    values = table[table["method_kind"] == kind].pivot_table(index="seed", columns="task_id", values=column)
    if kind == "base":
        return pd.DataFrame([values.mean()] * len(seeds), index=seeds)
    return values.reindex(seeds)


def weakest(pairs: list[Effects], choose: Callable) -> Effects:
    """Of several pairs that all have to hold, the one that comes nearest to failing; one without a value first."""
    return next((one for one in pairs if one.values.isna().all()), None) or choose(
        pairs, key=lambda one: one.values.mean())


@rule(needs=("method", "r", "seed", "task_id", "temperature", "outcome", "{column}"))
def step_from_base(table: pd.DataFrame, *, column: str, which: Literal["smallest", "largest"], temperature: float,
                   outcome: str) -> Effects:
    """The smaller or larger change of `column` from the base to LoRA and from LoRA to full fine-tuning.

    Above 0 for the smaller: it rises along base, LoRA, full. Below 0 for the larger: it falls.
    """
    at = _of_all_models(table[np.isclose(table["temperature"], temperature) & (table["outcome"] == outcome)], column)
    return weakest([paired(at, column, first="lora", second="base"), paired(at, column, first="full", second="lora")],
                   {"smallest": min, "largest": max}[which])


@rule(needs=("method", "r", "seed", "task_id", "temperature", "outcome", "n"))
def passes_more(table: pd.DataFrame, *, pairs: list[tuple[Kind, Kind]], temperature: float,
                rank: Literal["lowest", "highest"] = "highest") -> Effects:
    """pass@1 of the first model of a pair minus the second's; of several pairs the one with the smallest difference.

    pass@1 of a problem is the share of its generations that passed.
    """
    at = table[np.isclose(table["temperature"], temperature)]
    lora = at["method_kind"] == "lora"
    if lora.any():
        at = at[~lora | (at["r"] == rank_of(at, rank))]
    keys = ["method_kind", "seed", "task_id"]
    drawn, passed = (rows_where(at, outcome=name).set_index(keys)["n"] for name in ("all", "passed"))
    shares = (passed / drawn).rename("pass_at_1").reset_index()
    return weakest([paired(shares, "pass_at_1", first=first, second=second) for first, second in pairs], min)


@rule(needs=("method", "r", "seed", "text", "entropy_nats"))
def entropy_minus_base(table: pd.DataFrame, *, text: str, model: Kind) -> Effects:
    """Entropy of the next token on a text: a tuned model's minus the untouched base's."""
    at = rows_where(table, text=text)
    tuned = at[at["method_kind"] != "base"]

    def effect(part: pd.DataFrame) -> float:
        return rows_where(part, method_kind=model)["entropy_nats"].mean() - rows_where(at, method_kind="base")[
            "entropy_nats"].mean()

    return by_seed(tuned, effect, outcome=at["entropy_nats"])
