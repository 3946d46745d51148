"""What the first paper prints about the learning rate and about the update's effective rank."""

import pandas as pd


def rate_correlations() -> pd.DataFrame:
    """Spearman's rho over rates and epochs of RoBERTa on MNLI, r = 8 (arXiv 2410.21228v3, Fig 7).

    Columns ``other`` (what intruders go with), ``rho``, ``p`` (NaN where it is given as far below 0.001). The paper
    prints no number of points.
    """
    return pd.DataFrame([{"other": "forgetting", "rho": 0.971, "p": float("nan")},
                         {"other": "accuracy", "rho": -0.3381, "p": 0.218}])


def effective_rank_levels() -> pd.DataFrame:
    """Levels of the effective rank of RoBERTa's updates on MNLI, width 768 (arXiv 2410.21228v3, Fig 14).

    Columns ``experiment`` (as in our tables), ``method``, ``side`` ("above" or "below"), ``effective_rank``.
    """
    return pd.DataFrame([
        {"experiment": "ranks", "method": "full", "side": "above", "effective_rank": 400},
        {"experiment": "rule", "method": "LoRA r=768", "side": "above", "effective_rank": 100},
        {"experiment": "alpha_8", "method": "LoRA r=768", "side": "below", "effective_rank": 50}])
