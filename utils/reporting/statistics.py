"""Means with intervals over seeds, and rank correlations with theirs."""

import numpy as np
import pandas as pd
from scipy import stats

MIN_ITEMS = 50  # test items below which a bootstrap's interval means little


def mean_interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t-interval of a sample (one value per seed); a single value has no interval (NaN).

    >>> mean_interval([1.0, 2.0, 3.0])[0]
    2.0
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return mean, mean - half, mean + half


def mcnemar_p(right_a, right_b) -> float:
    """Two-sided p of McNemar's exact test: whether two models are equally accurate on the same test rows.

    Parameters
    ----------
    right_a, right_b : array_like of bool
        Which rows each model has right, in one order.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.

    Examples
    --------
    >>> mcnemar_p([True, True, True], [False, False, True]), mcnemar_p([True, False], [True, False])
    (0.5, 1.0)
    """
    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"Expected answers to the same rows, got {a.size} and {b.size}; compare runs of one task.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def paired_interval(one, other, tokens, *, confidence: float = 0.95, draws: int = 2000) -> tuple[float, float, float]:
    """Difference of two losses per token on the same passages, with its paired bootstrap interval over the passages.

    Parameters
    ----------
    one, other : array of shape (passages,)
        Losses summed over each passage's tokens, in nats.
    tokens : array of shape (passages,)
        By which a passage counts.
    draws : int
        Resamples; equal calls give equal intervals.

    Returns
    -------
    tuple of float
        The difference (one minus other, nats per token) and the ends of its interval; NaN ends for a single passage.

    Examples
    --------
    >>> paired_interval([6, 6], [2, 4], [2, 2])[0]
    1.5
    """
    difference, weights = np.asarray(one, dtype=float) - np.asarray(other, dtype=float), np.asarray(tokens, dtype=float)

    def per_token(values, counts, axis=-1):
        return values.sum(axis) / counts.sum(axis)

    mean = float(per_token(difference, weights))
    if len(difference) < 2:
        return mean, float("nan"), float("nan")
    if np.ptp(difference / weights) == 0:
        return mean, mean, mean
    found = stats.bootstrap((difference, weights), per_token, paired=True, vectorized=True, n_resamples=draws,
                            confidence_level=confidence, method="percentile", rng=np.random.default_rng(0))
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def rank_correlation(x, y, confidence: float = 0.95) -> dict:
    """Spearman's rho with p, exact n, and an interval by Fisher's transformation.

    Returns
    -------
    dict
        ``rho``, ``low``, ``high``, ``p``, ``n``; NaN where a column is constant or fewer than four pairs are given.

    References
    ----------
    Bonett & Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations", 2000: the
    standard error sqrt((1 + rho^2 / 2) / (n - 3)) of atanh(rho).

    Examples
    --------
    >>> rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])["rho"]
    0.9
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    empty = dict.fromkeys(("rho", "low", "high", "p"), float("nan")) | {"n": len(x)}
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return empty
    found = stats.spearmanr(x, y)
    rho, p = round(float(found.statistic), 12), float(found.pvalue)
    if abs(rho) == 1:
        return {"rho": rho, "low": rho, "high": rho, "p": p, "n": len(x)}
    half = stats.norm.ppf((1 + confidence) / 2) * ((1 + rho**2 / 2) / (len(x) - 3)) ** 0.5
    return {"rho": rho, "low": float(np.tanh(np.arctanh(rho) - half)), "high": float(np.tanh(np.arctanh(rho) + half)),
            "p": p, "n": len(x)}


def summarise(table: pd.DataFrame, value: str, by: list[str]) -> pd.DataFrame:
    """Mean, 95 % t-interval, smallest and largest value, and number of seeds of a column, group by group."""
    rows = []
    for keys, group in table.groupby(by, sort=False):
        mean, low, high = mean_interval(group[value])
        rows.append(dict(zip(by, keys if isinstance(keys, tuple) else (keys,), strict=True))
                    | {value: mean, "low": low, "high": high, "min": group[value].min(), "max": group[value].max(),
                       "seeds": len(group)})
    return pd.DataFrame(rows, columns=[*by, value, "low", "high", "min", "max", "seeds"])
