"""The rules of forgetting: full fine-tuning against every rank, and the U over the ranks."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, by_seed, full_row, joined, rows_where, value_at, with_every
from utils.reporting.selection import runs_that_learnt

REFITTED = ("seed", "task", "run", "method", "r", "accuracy", "pseudo_loss", "refitted_loss", "base_pseudo_loss")
LOSSES = ("experiment", "seed", "task", "run", "method", "r", "accuracy", "pseudo_loss")


@rule(needs=LOSSES)
def full_minus_worst_lora(table: pd.DataFrame, *, in_experiment: str, max_rank: int) -> Effects:
    """Full fine-tuning's pseudo-loss minus the largest one of LoRA up to `max_rank`, over runs that learnt."""
    return _full_minus_worst(table[table["experiment"] == in_experiment], "pseudo_loss", max_rank=max_rank)


def _full_minus_worst(table: pd.DataFrame, column: str, *, max_rank: int) -> Effects:
    at = table[table["r"] <= max_rank]

    def effect(part: pd.DataFrame) -> float:
        lora = rows_where(with_every(part, at, "r"), method_kind="lora")
        return full_row(part)[column] - lora[column].max()

    return by_seed(runs_that_learnt(at), effect, outcome=column)


@rule(needs=REFITTED)
def full_minus_worst_refitted(table: pd.DataFrame, *, max_rank: int) -> Effects:
    """:func:`full_minus_worst_lora` with every run's readout refitted on its frozen body."""
    return _full_minus_worst(table, "refitted_loss", max_rank=max_rank)


@rule(needs=REFITTED)
def readout_share_of_full(table: pd.DataFrame) -> Effects:
    """Of what full fine-tuning adds to the base's pseudo-loss the share that refitting the readout takes back."""
    def effect(part: pd.DataFrame) -> float:
        full = full_row(part)
        rise = full["pseudo_loss"] - full["base_pseudo_loss"]
        if rise <= 0:
            raise MissingRun("full fine-tuning adds nothing to the pseudo-loss")
        return (full["pseudo_loss"] - full["refitted_loss"]) / rise

    return by_seed(runs_that_learnt(table), effect, outcome="refitted_loss")


@rule(needs=LOSSES)
def full_minus_worst_lora_on_every_task(table: pd.DataFrame, *, max_rank: int) -> Effects:
    """The smallest of :func:`full_minus_worst_lora` over the table's tasks: above zero where it is so on all."""
    return joined([full_minus_worst_lora(table, in_experiment=name, max_rank=max_rank)
                   for name in table["experiment"].unique()], min)


@rule(needs=LOSSES)
def ends_minus_low_rank(table: pd.DataFrame, *, low_rank: int) -> Effects:
    """The smaller of r = 1 and the highest rank, minus the low rank, in pseudo-loss: above zero for a U."""
    at, width = _main_runs(table), table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        lora = part.set_index("r")["pseudo_loss"]
        return value_at(lora, [1, width]).min() - value_at(lora, low_rank)

    return by_seed(at, effect, outcome="pseudo_loss")


@rule(needs=LOSSES)
def u_around_full(table: pd.DataFrame, *, low_ranks: list[int]) -> Effects:
    """By how much the U holds around full fine-tuning's pseudo-loss, at the place where it holds least.

    The smallest of: r = 1 above full, the highest rank above full, and full above each of `low_ranks`.
    """
    at, width = _main_runs(table), table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        lora, full = part.set_index("r")["pseudo_loss"], full_row(part)["pseudo_loss"]
        return min((value_at(lora, [1, width]) - full).min(), (full - value_at(lora, low_ranks)).min())

    return by_seed(at, effect, outcome="pseudo_loss")


def _main_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of the main experiment that learnt their task."""
    return runs_that_learnt(table[table["experiment"] == "ranks"])
