"""The rules of the heat-maps: what LoRA's leading vectors are like beside full fine-tuning's in the matrices shown."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, by_seed, full_row, of_experiment, rows_where
from utils.studies.similarity.choice import chosen_matrices


def _lora_minus_full(part: pd.DataFrame, column: str) -> float:
    """`column` of one seed's showcase LoRA run minus full fine-tuning's."""
    return rows_where(part, method_kind="lora")[column].mean() - full_row(part)[column]


@rule(needs=("experiment", "seed", "method", "r", "matrix", "flattest", "{column}"))
def lora_minus_full_where_shown(table: pd.DataFrame, *, column: str, role: str) -> Effects:
    """`column` of the showcase LoRA run minus full fine-tuning's, in the matrix that the *other* seeds choose.

    `role` is one of :data:`utils.studies.similarity.choice.ROLES`.
    """
    at = of_experiment(table, "ranks")

    def effect(part: pd.DataFrame) -> float:
        named = {one.role: one.matrix for one in chosen_matrices(at, part["seed"].iloc[0])}
        if role not in named:
            raise MissingRun("no other seed to choose the matrix on")
        return _lora_minus_full(rows_where(part, matrix=named[role]), column)

    return by_seed(at, effect, outcome=column)


@rule(needs=("experiment", "seed", "method", "r", "width", "n_intruders"))
def lora_minus_full_window(table: pd.DataFrame, *, width: int) -> Effects:
    """Intruders that are left at a window width: LoRA's minus full fine-tuning's."""
    return by_seed(rows_where(table, width=width), lambda part: _lora_minus_full(part, "n_intruders"),
                   outcome="n_intruders", experiment="ranks")


@rule(needs=("seed", "ratio", "index", "max_cosine"))
def planted_on_top(table: pd.DataFrame, *, epsilon: float) -> Effects:
    """Share of the strengths above W0's largest singular value at which the planted direction leads and is foreign."""
    at = table[table["ratio"] > 1]
    return by_seed(at, lambda part: ((part["index"] == 1) & (part["max_cosine"] < epsilon)).mean(),
                   outcome="max_cosine")
