"""What the first paper prints of scaling intruder dimensions."""

import pandas as pd

from utils.paths import PAPER


def paper_scaling() -> pd.DataFrame:
    """Tables 3 and 4 of arXiv 2410.21228v3: percent change of accuracy and forgetting when intruders are scaled.

    Columns ``table``, ``base``, ``task``, ``r``, ``factor``, ``accuracy_change``, ``forgetting_change``.
    """
    return pd.read_csv(PAPER / "scaling_tables.csv")
