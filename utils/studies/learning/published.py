"""What "LoRA Learns Less and Forgets Less" published, and learning set against forgetting, the paper's or our own.

The numbers are those of the paper's supplementary Tables S1-S16 (Biderman et al., TMLR 2024, arXiv 2405.09673v2): one
trained model per row, without a spread. A table for the functions on the trade-off has the columns ``dataset``,
``method``, ``duration``, ``learning`` and ``remembering``, of both of which more is better, and ``seed`` where there
are several.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from utils.errors import UsageError
from utils.paths import PAPER
from utils.reporting.selection import pareto_front

CONDITION = ["dataset", "regime", "domain", "method", "r", "duration", "unit"]


@cache
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(PAPER / name)


def _measured(name: str) -> pd.DataFrame:
    table = _read(name)
    return table[table["method"] != "base"].reset_index(drop=True)


def published_curves() -> pd.DataFrame:
    """Tables S1-S8 of arXiv 2405.09673v2, the points of its Figures 1 to 3: Llama-2-7B tuned on four data sets.

    Returns
    -------
    pandas.DataFrame
        ``table``, ``dataset`` (starcoder, openwebmath, magicoder, metamath), ``regime`` (continued pretraining,
        instruction tuning), ``domain`` (code, math), ``quantity`` (learning, forgetting), ``metric`` (HumanEval, GSM8K,
        mean of three: the accuracies on HellaSwag, ARC-Challenge and WinoGrande, of which more is less forgetting),
        ``method`` (full, LoRA r=16, …), ``r`` (0 for full), ``duration``, ``unit`` (billion tokens, epochs),
        ``value`` (0 … 1), ``source``.
    """
    return _measured("learns_less_curves.csv")


def published_tulu() -> pd.DataFrame:
    """Tables S10-S13 of arXiv 2405.09673v2: Llama-2-7B on the chat mixture Tulu-v2, one run per method.

    The columns are those of :func:`published_curves`; ``metric`` is MT-bench (1 … 10), MMLU, GSM8K or mean of
    three. MT-bench comes without its standard errors.
    """
    return _measured("learns_less_tulu.csv")


def published_base() -> pd.DataFrame:
    """What untuned Llama-2-7B reaches: the dashed lines of the paper's Figures 1, 2, S4 and S5.

    The columns are those of :func:`published_curves`; ``table`` names the figure, ``method`` is base, and ``source``
    says "text" where the paper states the number, "read off the figure" (within 0.001) where it only draws the line.
    MMLU's is neither.
    """
    both = pd.concat([_read("learns_less_curves.csv"), _read("learns_less_tulu.csv")], ignore_index=True)
    return both[both["method"] == "base"].reset_index(drop=True)


def tradeoff_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Learning and forgetting side by side, one row per trained model (the paper's Figure 3).

    Parameters
    ----------
    curves : pandas.DataFrame
        As :func:`published_curves`, of one learning metric per data set.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``regime``, ``domain``, ``method``, ``r``, ``duration``, ``unit``, ``metric`` (of learning),
        ``learning``, ``remembering`` (the mean of three).

    Raises
    ------
    UsageError
        If a data set comes with several learning metrics.
    """
    learning = curves[curves["quantity"] == "learning"]
    metrics = learning.groupby("dataset")["metric"].nunique()
    if (metrics > 1).any():
        raise UsageError(f"Expected one learning metric per data set, but {metrics.idxmax()} came with "
                         f"{metrics.max()}; keep the rows of one of them.")
    learning = learning.rename(columns={"value": "learning"})[[*CONDITION, "metric", "learning"]]
    forgetting = curves[curves["quantity"] == "forgetting"].rename(columns={"value": "remembering"})
    return learning.merge(forgetting[[*CONDITION, "remembering"]], on=CONDITION, validate="one_to_one")


def remembering_at(curve: pd.DataFrame, level: float) -> float:
    """The most that one method remembers where it has learnt at least `level`; NaN if it never has.

    Points that another of the same method beats on both axes are left out; between the rest it is linear in learning.
    Below the least learning of these it is what that point remembers.

    Examples
    --------
    >>> curve = pd.DataFrame({"learning": [0.2, 0.3, 0.4], "remembering": [0.5, 0.7, 0.6]})
    >>> round(remembering_at(curve, 0.35), 3), remembering_at(curve, 0.1), remembering_at(curve, 0.5)
    (0.65, 0.7, nan)
    """
    front = curve[pareto_front(curve)].sort_values("learning")
    if front.empty or np.isnan(level):
        return float("nan")
    return float(np.interp(level, front["learning"], front["remembering"], right=np.nan))


def with_method(table: pd.DataFrame, method: str = "full") -> pd.DataFrame:
    """The rows of those data sets, and seeds of them, that have a method: full fine-tuning may have learnt nothing."""
    keys = ["dataset", "seed"] if "seed" in table else ["dataset"]
    return table[table.assign(has=table["method"] == method).groupby(keys)["has"].transform("any")]


def matched_learning(table: pd.DataFrame, *, against: str = "full",
                     levels: Sequence[float] | None = None) -> pd.DataFrame:
    """What each method remembers at equal learning, beside what full fine-tuning remembers there.

    Along each method's own frontier, by :func:`remembering_at`: dominated checkpoints do not count, as one would not
    keep them.

    Parameters
    ----------
    table : pandas.DataFrame
        ``dataset``, ``method``, ``learning``, ``remembering``, and ``seed`` where there are several: each seed is
        compared with the same seed of `against`. Other columns are ignored.
    against : str
        The method to compare with.
    levels : sequence of float, optional
        Learning values, the same for every data set. By default one for each method: the most that both reach.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, [``seed``,] ``method``, ``level``, ``remembering``, ``remembering_against``, ``difference``
        (positive: the method forgets less). NaN where a method never reaches the level.

    Raises
    ------
    UsageError
        If a data set, or a seed of one, lacks `against`.
    """
    keys, rows = ["dataset", "seed"] if "seed" in table else ["dataset"], []
    for group, part in table.groupby(keys, sort=False):
        other = part[part["method"] == against]
        if other.empty:
            raise UsageError(f"Expected rows of method '{against}' to compare with, but none came for {group}.")
        for method, curve in part[part["method"] != against].groupby("method", sort=False):
            shared = [min(curve["learning"].max(), other["learning"].max())]
            for level in shared if levels is None else levels:
                own, theirs = remembering_at(curve, level), remembering_at(other, level)
                rows.append(dict(zip(keys, group, strict=True)) | {
                    "method": method, "level": level, "remembering": own, "remembering_against": theirs,
                    "difference": own - theirs})
    return pd.DataFrame(rows, columns=[*keys, "method", "level", "remembering", "remembering_against", "difference"])
