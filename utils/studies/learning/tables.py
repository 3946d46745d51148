"""What the figures and comparisons of learning and forgetting are made of: tables in, tables out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.sources.domains import mathematics_questions
from utils.studies.learning.published import matched_learning
from utils.training.cooldown import cooldown_start

TOKENS, ROWS = 1000, 1  # of one unit of the axis: thousand tokens, single rows


def as_curves(table: pd.DataFrame | None, *, unit: float = TOKENS) -> pd.DataFrame | None:
    """A table of learning with the columns that figures and the comparison at matched learning ask for.

    Parameters
    ----------
    table : pandas.DataFrame or None
        ``task``, ``train_tokens``, ``forgetting`` (nats per token); None and an empty table come back as they are.
    unit : float
        Tokens (rows, in instruction tuning) of one unit of the axis.

    Returns
    -------
    pandas.DataFrame
        The same rows with ``dataset`` (the task), ``duration`` (in units) and ``remembering`` (minus the forgetting, so
        that more is better).

    Examples
    --------
    >>> row = pd.DataFrame({"task": ["python"], "train_tokens": [30720], "forgetting": [0.2]})
    >>> as_curves(row)[["dataset", "duration", "remembering"]].values.tolist()
    [['python', 30.72, -0.2]]
    """
    if table is None or table.empty:
        return table
    return table.assign(dataset=table["task"], duration=table["train_tokens"] / unit, remembering=-table["forgetting"])


def at_longest(curves: pd.DataFrame) -> pd.DataFrame:
    """The rows of each data set's longest duration."""
    return curves[curves["duration"] == curves.groupby("dataset")["duration"].transform("max")]


def gap_table(curves: pd.DataFrame, *, y: str = "loss_nats_per_token", against: str = "full") -> pd.DataFrame:
    """By how much `y` of each method exceeds that of `against` at the same duration, seed by seed.

    Parameters
    ----------
    curves : pandas.DataFrame
        Of :func:`as_curves`.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``seed``, ``duration``, ``method``, ``gap`` (of a loss: positive means that the method learnt
        less); without rows of `against`.
    """
    keys = ["dataset", "seed", "duration"]
    other = curves.loc[curves["method"] == against, [*keys, y]].rename(columns={y: "other"})
    pairs = curves[curves["method"] != against].merge(other, on=keys, validate="many_to_one")
    return pairs.assign(gap=pairs[y] - pairs["other"])[[*keys, "method", "gap"]]


def gap_growth(gaps: pd.DataFrame) -> pd.DataFrame:
    """Each seed's gap at the shortest and at the longest duration: ``shortest``, ``longest``, ``growth``.

    Of a single duration the growth is 0.
    """
    ordered = gaps.sort_values("duration").groupby(["dataset", "method", "seed"], sort=False)["gap"]
    return ordered.agg(shortest="first", longest="last").reset_index().assign(
        growth=lambda t: t["longest"] - t["shortest"])


def equal_learning(curves: pd.DataFrame, runs: pd.DataFrame, *, against: str = "full") -> pd.DataFrame:
    """Single runs, such as those of a sweep of rates, beside a learning curve at equal learning, seed by seed.

    Parameters
    ----------
    curves, runs : pandas.DataFrame
        Of :func:`as_curves`; of `curves` only the rows of `against` count. Runs whose seed has no such curve are left
        out.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``seed``, ``method`` ("full, rate 0.001"), ``level`` (of learning), ``forgetting`` of the run,
        ``forgetting_against`` (the curve's) and ``spared`` (positive: the run forgets less).
    """
    line = curves[curves["method"] == against]
    known = runs.merge(line[["dataset", "seed"]].drop_duplicates(), on=["dataset", "seed"])
    named = known.assign(method=[f"{row.method}, rate {row.learning_rate:g}" for row in known.itertuples()])
    found = matched_learning(pd.concat([line, named], ignore_index=True), against=against)
    return found.assign(forgetting=-found["remembering"], forgetting_against=-found["remembering_against"],
                        spared=found["difference"])[["dataset", "seed", "method", "level", "forgetting",
                                                     "forgetting_against", "spared"]]


def with_control(curves: pd.DataFrame | None, shuffled: pd.DataFrame | None) -> pd.DataFrame | None:
    """The rows whose questions were asked, and those of the control under names of their own; None for neither.

    Parameters
    ----------
    curves, shuffled : pandas.DataFrame or None
        Of :func:`as_curves`; `shuffled` was trained on questions with another question's answer.
    """
    parts = [] if curves is None else [curves[curves["exact_match"].notna()]]
    if shuffled is not None and len(shuffled):
        parts.append(shuffled.assign(method=shuffled["method"] + ", shuffled answers"))
    return pd.concat(parts, ignore_index=True) if parts else None


def guessing(questions: int) -> float:
    """Share of the first held-out questions that their kind's most frequent answer in training gets right."""
    common = mathematics_questions("train").groupby("kind")["answer"].agg(lambda answers: answers.mode().iloc[0])
    asked = mathematics_questions("heldout").head(questions)
    return float((asked["answer"] == asked["kind"].map(common)).mean())


def cooled(steps: int) -> list[float]:
    """Rate over peak at each of a run's steps, the cooldown over its last fifth included; warm-up left out.

    >>> cooled(10)[-3:]
    [1.0, 1.0, 0.5]
    """
    start = cooldown_start(steps)
    return [1.0 if step < start else (steps - step) / (steps - start) for step in range(steps)]


def kept_share(decay: float, multipliers: Sequence[float]) -> float:
    """The share of a weight that is left when every step takes `decay` times the schedule's multiplier of it.

    References
    ----------
    arXiv 2405.09673, Fig 4; llm-foundry's DecoupledLionW, as in :func:`utils.training.optimisers.decay_weights`.

    Examples
    --------
    >>> kept_share(0.5, [1, 1, 0])
    0.25
    """
    return float(np.prod(1 - decay * np.asarray(multipliers, dtype=float)))
