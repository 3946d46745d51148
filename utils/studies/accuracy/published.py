"""The accuracies that the first paper prints."""

import pandas as pd

from utils.paths import PAPER


def paper_accuracies() -> pd.DataFrame:
    """Tables 1 and 2 of arXiv 2410.21228v3.

    Columns ``table``, ``lora_alpha_rule``, ``method``, ``r`` (0 for full), ``task``, ``accuracy``.
    """
    return pd.read_csv(PAPER / "accuracy_tables.csv")
