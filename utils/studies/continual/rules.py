"""The rules that judge notebook 08's claims: one effect per seed, in natural units and with the quantity's own sign."""

from collections.abc import Callable

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row, rows_where, with_every

FULL_RANK = 0


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of full fine-tuning and of LoRA with alpha = 2r, the paper's main setting."""
    return table[(table["method_kind"] == "full") | (table["lora_alpha"] == 2 * table["r"])]


def _lora(part: pd.DataFrame, rank: int) -> pd.DataFrame:
    return rows_where(part, method_kind="lora", r=rank, lora_alpha=2 * rank)


def _over_ranks(table: pd.DataFrame, column: str, effect: Callable[[pd.Series, float], float]) -> Effects:
    """`effect` of one value per rank of LoRA and full fine-tuning's value; a seed without every rank has none."""
    chosen = plain(table)

    def of_seed(part: pd.DataFrame) -> float:
        values = with_every(part, chosen, "r").groupby("r")[column].mean()
        return effect(values.drop(FULL_RANK), float(full_row(part)[column]))

    return by_seed(chosen, of_seed, outcome=column)


@rule(needs=("seed", "method", "r", "lora_alpha", "{column}"))
def summary_minus_full(table: pd.DataFrame, *, rank: int, column: str) -> Effects:
    """A summary of the sequence for LoRA at one rank (alpha = 2r) minus full fine-tuning's."""
    chosen = plain(table)
    chosen = chosen[chosen["r"].isin([rank, FULL_RANK])]
    return by_seed(chosen, lambda part: _lora(part, rank)[column].iloc[0] - full_row(part)[column], outcome=column)


@rule(needs=("seed", "method", "r", "lora_alpha", "{column}"))
def largest_minus_full(table: pd.DataFrame, *, column: str) -> Effects:
    """The largest of LoRA's summaries over its ranks (alpha = 2r) minus full's: for what every rank does."""
    return _over_ranks(table, column, lambda ranks, full: ranks.max() - full)


@rule(needs=("seed", "method", "r", "lora_alpha", "{column}"))
def lowest_rank_minus_others(table: pd.DataFrame, *, column: str) -> Effects:
    """LoRA's summary at its lowest rank minus the smallest at any other rank (alpha = 2r)."""
    return _over_ranks(table, column, lambda ranks, full: ranks.iloc[0] - ranks.iloc[1:].min())


@rule(needs=("seed", "method", "r", "lora_alpha", "{column}"))
def summary_between_alphas(table: pd.DataFrame, *, rank: int, column: str, alpha: int, beside: int) -> Effects:
    """LoRA's summary at one rank and alpha minus that at the same rank and another alpha."""
    chosen = table[(table["method_kind"] == "lora") & (table["r"] == rank)]

    def effect(part: pd.DataFrame) -> float:
        one, other = (rows_where(part, method_kind="lora", r=rank, lora_alpha=value)[column].iloc[0]
                      for value in (alpha, beside))
        return one - other

    return by_seed(table, effect, outcome=chosen[column])


@rule(needs=("seed", "method", "r", "lora_alpha", "stage", "tested_task", "tested_place", "accuracy"))
def tie_on_the_first_task(table: pd.DataFrame) -> Effects:
    """Accuracy on the first task right after its own stage: the largest difference from full of any rank of LoRA.

    With its sign; alpha = 2r.
    """
    first = table[(table["tested_place"] == 1) & (table["stage"] == 1)]

    def furthest(ranks: pd.Series, full: float) -> float:
        apart = ranks - full
        return apart.loc[apart.abs().idxmax()]

    return _over_ranks(first, "accuracy", furthest)


def _by_stage(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows.sort_values("stage")[column]


@rule(needs=("seed", "method", "r", "lora_alpha", "stage", "{column}"))
def last_stage_minus_full(table: pd.DataFrame, *, rank: int, column: str) -> Effects:
    """A measure of the whole model after the last stage: LoRA at one rank (alpha = 2r) minus full fine-tuning."""
    chosen = plain(table)
    return summary_minus_full(chosen[chosen["stage"] == chosen["stage"].max()], rank=rank, column=column)


@rule(needs=("seed", "method", "r", "lora_alpha", "stage", "n_intruders"))
def accumulates(table: pd.DataFrame, *, rank: int) -> Effects:
    """Intruders gained between the first and the last stage: LoRA at one rank (alpha = 2r) minus full fine-tuning.

    What full fine-tuning loses of them is no gain of LoRA's: its difference counts where it rises.
    """
    chosen = plain(table)
    chosen = chosen[chosen["r"].isin([rank, FULL_RANK])]

    def effect(part: pd.DataFrame) -> float:
        lora, full = (_by_stage(rows, "n_intruders") for rows in (_lora(part, rank),
                                                                  rows_where(part, method_kind="full")))
        return (lora.iloc[-1] - lora.iloc[0]) - max(0, full.iloc[-1] - full.iloc[0])

    return by_seed(chosen, effect, outcome="n_intruders")
