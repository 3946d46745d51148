"""From one effect per seed to a verdict, by its interval; never by hand, and never by counting signs alone.

The claim says which way its effect must go (``above`` or ``below`` a number) or within which bound it must stay
(``within``, for claims of equality). The interval is the 95 % t-interval over seeds, or a paired bootstrap over test
items and seeds where the rule gives differences item by item, or has drawn them itself.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from utils.reporting.remembered import remembered
from utils.reporting.rules import Effects
from utils.reporting.statistics import mean_interval

CONFIDENCE = 0.95
MIN_SEEDS = 3
REPRODUCED, SAME_DIRECTION, UNDECIDED = "reproduced", "same direction", "undecided"
NOT_REPRODUCED, NO_POWER, TOO_FEW = "not reproduced", "no power", "too few seeds"
OUT_OF_REACH, ARITHMETIC = "out of reach", "arithmetic"
HOLDS, DOES_NOT_HOLD = "holds", "does not hold"  # of claims of ours: nothing was published to reproduce
VERDICTS = (REPRODUCED, SAME_DIRECTION, UNDECIDED, NOT_REPRODUCED, NO_POWER, TOO_FEW, OUT_OF_REACH, HOLDS,
            DOES_NOT_HOLD, ARITHMETIC)
# Outcomes that cannot fall below or rise above a number, by column.
LIMITS = {"n_intruders": (0.0, None), "accuracy": (0.0, 1.0), "exact_match": (0.0, 1.0), "token_accuracy": (0.0, 1.0),
          "pass_at_k": (0.0, 1.0), "blank_rows": (0.0, None)}


class Expectation(BaseModel):
    """Where a claim's effect has to lie: exactly one of ``above``, ``below`` and ``within``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)
    within: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one(self):
        if sum(value is not None for value in (self.above, self.below, self.within)) != 1:
            raise ValueError("Expected exactly one of 'above', 'below' and 'within'")
        return self

    def margin(self, effect):
        """How far an effect (or several) lies on the claim's side; negative where it contradicts the claim.

        >>> Expectation(within=0.5).margin(-0.25), Expectation(below=0.5).margin(2.0)
        (0.25, -1.5)
        """
        if self.within is not None:
            return self.within - abs(effect)
        return effect - self.above if self.above is not None else self.below - effect

    def __str__(self) -> str:
        if self.within is not None:
            return f"within ±{self.within:g}"
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


@dataclass(frozen=True)
class Verdict:
    """What came out of a claim: the word, and the numbers that it follows from.

    ``effect`` is the mean over seeds with its interval ``low`` … ``high``, all in the claim's unit; ``agree`` says in
    how many of ``seeds`` the effect lies on the claim's side; ``p`` tests the claim's border (two-sided, or the
    larger of the two one-sided tests for equality); ``why`` says in words what stood in the way.
    """

    verdict: str
    seeds: int = 0
    agree: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str = ""


def judge(effects: Effects, expect: Expectation, *, kind: Literal["paper", "ours", "arithmetic"] = "paper",
          bounds: tuple[float, float] = (-math.inf, math.inf)) -> Verdict:
    """The verdict on one claim.

    Parameters
    ----------
    effects : Effects
        Of its rule, on the reference's table (or the reader's).
    expect : Expectation
    kind : {"paper", "ours", "arithmetic"}
        Claims of ours hold or do not hold; what is true by arithmetic is no evidence and says so.
    bounds : tuple of float
        Where an effect can lie at all, such as -1 and 1 for a correlation; the interval ends there.
    """
    values = effects.values.dropna()
    missing = "; ".join(f"seed {seed}: {reason}" for seed, reason in effects.missing.items())
    if values.empty:
        if effects.no_power:
            return Verdict(NO_POWER, why=effects.no_power)
        return Verdict(TOO_FEW, why=missing or "no seed has the runs that the rule needs")
    agree, mean = int((expect.margin(values) > 0).sum()), float(values.mean())
    if kind == "arithmetic":
        word = ARITHMETIC if agree == len(values) else DOES_NOT_HOLD
        return Verdict(word, len(values), agree, mean, why="true by arithmetic" if word == ARITHMETIC else "")
    if len(values) < MIN_SEEDS:
        return Verdict(TOO_FEW, len(values), agree, mean, why=missing or f"{MIN_SEEDS} seeds are needed")
    low, high = (min(max(end, bounds[0]), bounds[1]) for end in interval(effects))
    found = Verdict("", len(values), agree, mean, low, high, p_value(effects, expect))
    word, why = _word(effects, expect, found)
    return Verdict(_ours(word) if kind == "ours" else word, found.seeds, agree, mean, low, high,
                   None if word == NO_POWER else found.p, why or missing)


def _word(effects: Effects, expect: Expectation, found: Verdict) -> tuple[str, str]:
    if why := powerless(effects, expect):
        return NO_POWER, why
    if effects.undecided:
        return UNDECIDED, effects.undecided
    worst, best = sorted((float(expect.margin(found.low)), float(expect.margin(found.high))))
    if effects.items is None and effects.draws is None and _alike(effects.values.dropna()):  # no spread to judge by
        word = SAME_DIRECTION if worst > 0 else NOT_REPRODUCED
        return word, "every seed gives the same number, so there is no interval"
    if expect.within is not None:
        if -expect.within < found.low and found.high < expect.within:
            return REPRODUCED, ""
        outside = found.low >= expect.within or found.high <= -expect.within
        return (NOT_REPRODUCED if outside else UNDECIDED), ""
    if worst > 0:
        return REPRODUCED, ""
    if best <= 0:
        return NOT_REPRODUCED, ""
    return (SAME_DIRECTION if found.agree == found.seeds else UNDECIDED), ""


def _alike(values: pd.Series) -> bool:
    """Whether all seeds give the same number, but for rounding."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()))


def _ours(word: str) -> str:
    return {REPRODUCED: HOLDS, NOT_REPRODUCED: DOES_NOT_HOLD}.get(word, word)


def powerless(effects: Effects, expect: Expectation) -> str:
    """Why a claim could neither have held nor failed on these outcomes; empty where it could."""
    outcomes = effects.outcomes
    if effects.no_power or not len(outcomes):
        return effects.no_power
    name = effects.outcome or "the outcome"
    if np.ptp(outcomes) == 0:
        return f"{name} is {outcomes[0]:g} in every run"
    floor, ceiling = LIMITS.get(effects.outcome, (None, None))
    if expect.within is not None and floor is not None and outcomes.max() - floor <= expect.within:
        return f"{name} never leaves its floor by more than the bound of {expect.within:g}"
    if expect.within is not None and ceiling is not None and ceiling - outcomes.min() <= expect.within:
        return f"{name} never leaves its ceiling by more than the bound of {expect.within:g}"
    return ""


def interval(effects: Effects) -> tuple[float, float]:
    """95 % interval of the mean effect: t over seeds, or the paired bootstrap where there are items."""
    if (means := _drawn_means(effects)) is not None:
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)
    return mean_interval(effects.values.dropna(), CONFIDENCE)[1:]


def _drawn_means(effects: Effects) -> np.ndarray | None:
    """The mean effect in each draw of a paired bootstrap; None where the rule gives nothing item by item."""
    if effects.draws is not None:
        return effects.draws.round(12) + 0.0  # as below
    return None if effects.items is None else bootstrap_means(effects.items)


@remembered
def bootstrap_means(items: pd.DataFrame, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Mean differences when seeds and test items are both drawn anew, with replacement.

    Parameters
    ----------
    items : pandas.DataFrame
        ``seed``, ``item``, ``difference``; every seed has every item, for the same test set is answered by all.

    References
    ----------
    Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007: rows and columns are drawn independently.
    """
    table = items.pivot(index="seed", columns="item", values="difference")
    if table.isna().any(axis=None):
        raise ValueError("Expected a difference of every item for every seed, got gaps; pair the runs on one test set.")
    values, random = table.to_numpy(), np.random.default_rng(seed)
    seeds, count = values.shape
    by_seed = random.multinomial(seeds, [1 / seeds] * seeds, size=draws) / seeds
    by_item = random.multinomial(count, np.full(count, 1 / count), size=draws) / count
    means = np.einsum("ds,si,di->d", by_seed, values, by_item, optimize=True)
    # Zero is zero: the last digits of a sum depend on the machine, and a verdict must not.
    return means.round(12) + 0.0


def p_value(effects: Effects, expect: Expectation) -> float | None:
    """p of the claim's border: two-sided for a direction, the larger one-sided p of two (TOST) for equality.

    None where all seeds agree to the last digit: a t-test has nothing to divide by.
    """
    if (means := _drawn_means(effects)) is not None:
        def beyond(border: float, side: int) -> float:
            return (1 + float((side * (means - border) <= 0).sum())) / (1 + len(means))
    else:
        values = effects.values.dropna()
        if _alike(values):
            return None

        def beyond(border: float, side: int) -> float:
            return float(stats.ttest_1samp(values, border, alternative="greater" if side > 0 else "less").pvalue)

    if expect.within is not None:
        return max(beyond(-expect.within, 1), beyond(expect.within, -1))
    border = expect.above if expect.above is not None else expect.below
    return min(1.0, 2 * min(beyond(border, 1), beyond(border, -1)))


def chance(table: pd.DataFrame) -> dict:
    """How many verdicts chance alone would give over a whole ledger, and how many stand after correcting for it.

    Parameters
    ----------
    table : pandas.DataFrame
        ``verdict`` and ``p`` of every claim; those without p were not tested.

    Returns
    -------
    dict
        ``tested``; ``expected`` (claims that would come out "reproduced" or "holds" by chance if none were true:
        half of the two-sided 5 % each); ``positive`` (those that did); ``standing`` (those of them that a false
        discovery rate of 5 % leaves, by Benjamini and Hochberg over all tested claims).
    """
    tested = table.dropna(subset=["p"])
    positive = tested["verdict"].isin([REPRODUCED, HOLDS])
    adjusted = stats.false_discovery_control(tested["p"]) if len(tested) else np.array([])
    return {"tested": len(tested), "expected": len(tested) * (1 - CONFIDENCE) / 2, "positive": int(positive.sum()),
            "standing": int((positive & (adjusted <= 1 - CONFIDENCE)).sum())}
