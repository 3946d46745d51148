"""The rule of equal accuracy."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, full_row, rows_where, with_every
from utils.reporting.selection import last_steps


@rule(needs=("experiment", "seed", "run", "step", "method", "r", "{column}"))
def largest_distance_from_full(table: pd.DataFrame, *, column: str, in_experiment: str,
                               max_rank: int | None = None) -> Effects:
    """The largest distance of any rank of LoRA (up to `max_rank`) from full fine-tuning, at the last step.

    Of several ranks the largest distance is taken, without its sign, so noise alone makes it larger than zero: what
    stays within a bound all the same is equal indeed. A run that did not learn counts here: what it reached is what
    is judged.
    """
    last = last_steps(table[table["experiment"] == in_experiment])
    if max_rank is not None:
        last = last[last["r"] <= max_rank]

    def effect(part: pd.DataFrame) -> float:
        lora = rows_where(with_every(part, last, "r"), method_kind="lora")
        return (lora[column] - full_row(part)[column]).abs().max()

    return by_seed(last, effect, outcome=column)
