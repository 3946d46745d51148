"""Committed reference tables, whole and cut as small as a reader's own may be, and what a finding says of them."""

from collections.abc import Callable

import pandas as pd

from utils.ledger.reference import measurement_named, reference_table
from utils.profiles import load_profile
from utils.reporting.drawn import Found
from utils.reporting.measured import Measured
from utils.reporting.registry import FIGURES, FINDINGS


def _smallest_rates(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["learning_rate"] == table.groupby("method")["learning_rate"].transform("min")]


CUTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "whole": lambda table: table,
    "one seed": lambda table: table[table["seed"] == table["seed"].min()],
    "one rate of each method": _smallest_rates,
    "full alone": lambda table: table[table["r"] == 0],
    "LoRA alone": lambda table: table[table["r"] > 0],
    "one method": lambda table: table[table["method"] == table["method"].iloc[-1]],
    "last checkpoints": lambda table: table[table["step"] == table["step"].max()] if "step" in table else table,
    "none learnt": lambda table: table.assign(learnt=False)}


def found_on_reference(identifier: str, cut: str) -> Found:
    """What a finding says of the laptop's committed tables, cut by one of CUTS, as if they were a reader's own."""
    given = []
    for name in FIGURES[identifier].measurements:
        entry, table = measurement_named(name), reference_table(name, "laptop")
        published = entry.published() if entry.published else None
        given.append(Measured(name, load_profile("laptop"), (0,), CUTS[cut](table), None, published))
    return FINDINGS[identifier](*given)
