"""One claim: what is said, by whom and where, the rule that judges it, and the verdict on a measurement's table.

A study keeps its claims in ``utils/studies/<study>/claims.toml``::

    [[claim]]
    id = "accuracy-parity"
    notebook = "02"
    kind = "paper"                       # the paper's own statement; "ours" for a softer, stronger or further one
    paper = "Illusion v3"
    sentence = "LoRA at every rank reaches the accuracy of full fine-tuning within 0.03."
    measurement = "accuracy_over_steps"
    rule = "largest_difference_from_full"
    parameters = { column = "accuracy" }
    unit = "accuracy"                    # of the effect, in natural units
    expect = { within = 0.03 }           # or above = …, or below = …
    control = "a learning-rate sweep for each method"
    out_of_reach = ["smoke"]             # profiles that cannot test it
    published = { statement = "…", place = "Tables 1 and 2", numbers = "…", interval = false }

A claim of ours about a paper's statement keeps ``published``, and says in ``reading`` how it differs from it.
"""

import math
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from utils.errors import CourseError
from utils.profiles import PROFILE_NAMES
from utils.reporting.registry import MEASUREMENTS, RULES, nearest
from utils.reporting.rules import CLAIM_EPSILONS, Effects, MissingRun
from utils.reporting.verdicts import OUT_OF_REACH, TOO_FEW, Expectation, Verdict, judge

BOUNDS = {"Spearman's rho": (-1.0, 1.0), "area under the curve": (0.0, 1.0)}  # of an effect, by the start of its unit


class Published(BaseModel):
    """What the paper says: its statement in our words, its place, its numbers, and whether it gives an interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statement: str
    place: str
    numbers: str = ""
    interval: bool = False


class Claim(BaseModel):
    """One entry of a study's ``claims.toml``; the module's text shows the form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    notebook: str
    kind: Literal["paper", "ours", "arithmetic"]
    paper: str
    sentence: str
    measurement: str | None = None
    rule: str | None = None
    parameters: dict = Field(default_factory=dict)
    unit: str = ""
    expect: Expectation | None = None
    control: str
    out_of_reach: tuple[str, ...] = ()
    published: Published | None = None
    reading: str = ""
    study: str = ""

    @model_validator(mode="after")
    def _judged(self):
        everywhere = set(PROFILE_NAMES) <= set(self.out_of_reach)
        judged = [self.measurement, self.rule, self.expect, self.unit]
        if not everywhere and not all(judged):
            raise ValueError("Expected measurement, rule, unit and expect, which only a claim out of reach of every "
                             "profile goes without")
        if self.kind == "paper" and self.published is None:
            raise ValueError("Expected 'published' for a claim of kind 'paper'")
        return self

    @property
    def epsilons(self) -> tuple[float | None, ...]:
        """The epsilons at which the claim is judged: the course's two for a rule about counts, else none."""
        takes = self.rule is not None and "epsilon" in RULES[self.rule].parameters
        return CLAIM_EPSILONS if takes else (None,)


def check_claim(claim: Claim, where: str) -> None:
    """CourseError if a claim's rule, measurement, parameter or column does not exist, with the nearest names."""
    def refuse(what: str, name: str, known) -> None:
        raise CourseError(f"{where}: claim '{claim.id}' names the {what} '{name}', which does not exist "
                          f"({nearest(name, known)}).")

    if claim.rule is None:
        return
    if claim.measurement not in MEASUREMENTS:
        refuse("measurement", str(claim.measurement), MEASUREMENTS)
    if claim.rule not in RULES:
        refuse("rule", claim.rule, RULES)
    rule, columns = RULES[claim.rule], MEASUREMENTS[claim.measurement].columns
    for name in claim.parameters:
        if name not in rule.parameters or name == "epsilon":
            refuse(f"parameter of rule '{claim.rule}'", name, [one for one in rule.parameters if one != "epsilon"])
    for name, parameter in rule.parameters.items():
        if parameter.default is parameter.empty and name != "epsilon" and name not in claim.parameters:
            raise CourseError(f"{where}: claim '{claim.id}' lacks the parameter '{name}' of rule '{claim.rule}'; give "
                              "it in 'parameters'.")
    for column in rule.columns({**_defaults(rule), **claim.parameters}):
        if column not in columns:
            refuse(f"column of measurement '{claim.measurement}'", column, columns)


def _defaults(rule) -> dict:
    return {name: parameter.default for name, parameter in rule.parameters.items()
            if parameter.default is not parameter.empty}


def effects_of(claim: Claim, table: pd.DataFrame, epsilon: float | None = None) -> Effects:
    """What a claim's rule makes of its measurement's table.

    Raises
    ------
    CourseError
        Naming claim, rule and what is missing, if the rule does not find a column, row or value: only a run that is
        missing may go without a value.
    """
    rule = RULES[claim.rule]
    MEASUREMENTS[claim.measurement].checked(table, f"the table that claim '{claim.id}' is judged on")
    given = claim.parameters if epsilon is None else claim.parameters | {"epsilon": epsilon}
    try:
        effects = rule.function(table, **given)
    except CourseError:
        raise
    except MissingRun as reason:  # before any seed was looked at: no seed has the run
        seeds = sorted(table["seed"].unique()) if "seed" in table else []
        return Effects(pd.Series(float("nan"), index=seeds, dtype=float), missing=dict.fromkeys(seeds, str(reason)))
    except Exception as error:
        raise CourseError(f"Claim '{claim.id}': rule '{claim.rule}' did not find what it needs in measurement "
                          f"'{claim.measurement}' ({type(error).__name__}: {error}); mend the rule, or make the table "
                          "anew.") from error
    if not isinstance(effects, Effects):
        raise CourseError(f"Claim '{claim.id}': expected Effects from rule '{claim.rule}', got "
                          f"{type(effects).__name__}; return what by_seed returns.")
    return effects


def judge_claim(claim: Claim, table: pd.DataFrame | None, profile_name: str, *,
                epsilon: float | None = None) -> Verdict:
    """The verdict on one claim from a measurement's table, or why there is none."""
    if profile_name in claim.out_of_reach:
        return Verdict(OUT_OF_REACH)
    if table is None or table.empty:
        return Verdict(TOO_FEW, why=f"no table of '{claim.measurement}' at this profile")
    bounds = next((bounds for start, bounds in BOUNDS.items() if claim.unit.startswith(start)), (-math.inf, math.inf))
    return judge(effects_of(claim, table, epsilon), claim.expect, kind=claim.kind, bounds=bounds)
