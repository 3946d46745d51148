"""The ledger: what the papers say, and what our tables say to it. A verdict is computed, never typed.

A rule takes a measurement's table and returns one effect per seed, positive where the claim holds. All seeds positive
is "reproduced", some "partly", none "not reproduced"; fewer seeds than the claim asks for is no verdict at all.
"""

import json
import tomllib
from functools import cache

import pandas as pd
from pydantic import BaseModel, ConfigDict

from utils.errors import CourseError
from utils.files import write_text
from utils.ledger.reference import reference_note, reference_table
from utils.paths import NOTEBOOKS, PAPER, ensure_dir, reference_dir
from utils.profiles import Profile
from utils.reporting.registry import RULES
from utils.reporting.statistics import mean_interval

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
OUT_OF_REACH, TOO_FEW = "out of reach at this scale", "too few seeds to say"


class Claim(BaseModel):
    """One entry of ``data/paper/claims.toml``; further keys are the rule's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    notebook: str
    paper: str
    figure: str
    sentence: str
    published: str
    measurement: str
    rule: str
    control: str
    min_seeds: int
    out_of_reach: tuple[str, ...] = ()


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the file."""
    with open(PAPER / "claims.toml", "rb") as stream:
        found = tuple(Claim(**entry) for entry in tomllib.load(stream)["claim"])
    for claim in found:
        if claim.rule not in RULES:
            raise CourseError(f"claims.toml: claim '{claim.id}' names the rule '{claim.rule}'; the known ones are "
                              f"{', '.join(RULES)}.")
    return found


@cache
def claim_link(claim_id: str) -> str:
    """Where a claim's table is measured: notebook and heading, such as ``04_….ipynb#Random-controls``.

    The heading is the last one before the first cell that calls the claim's measurement, in the form that Jupyter's
    links have; the notebook alone where no cell names it.
    """
    claim = next(claim for claim in claims() if claim.id == claim_id)
    path = next(iter(sorted(NOTEBOOKS.glob(f"{claim.notebook}_*.ipynb"))), None)
    if path is None:
        return ""
    heading = ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next((line for line in reversed(source.splitlines()) if line.startswith("#")), heading)
        elif f".{claim.measurement}(" in source:
            break
    else:
        heading = ""
    return path.name + (f"#{heading.lstrip('# ').replace(' ', '-')}" if heading else "")


def verdict(claim: Claim, table: pd.DataFrame | None, profile: str) -> dict:
    """Judge one claim from a measurement's table.

    Returns
    -------
    dict
        ``verdict``, ``seeds`` (how many were judged), ``holds`` (in how many it holds), ``effect`` (mean over seeds)
        with its 95 % t-interval ``low`` … ``high``.
    """
    empty = {"seeds": 0, "holds": 0, "effect": None, "low": None, "high": None}
    if profile in claim.out_of_reach:
        return {"verdict": OUT_OF_REACH} | empty
    if table is None or table.empty:
        return {"verdict": TOO_FEW} | empty
    effects = RULES[claim.rule](table, claim.model_extra).dropna()
    if len(effects) < claim.min_seeds:
        word = TOO_FEW
    else:
        share = (effects > 0).mean()
        word = REPRODUCED if share == 1 else PARTLY if share > 0 else NOT_REPRODUCED
    if effects.empty:
        return {"verdict": TOO_FEW} | empty
    mean, low, high = mean_interval(effects)
    return {"verdict": word, "seeds": len(effects), "holds": int((effects > 0).sum()), "effect": round(mean, 4),
            "low": round(low, 4), "high": round(high, 4)}


def verdicts(profile: Profile | str, notebook: str | None = None) -> pd.DataFrame:
    """The ledger as a table: every claim (of one notebook) judged on the profile's reference results."""
    name = profile if isinstance(profile, str) else profile.profile
    rows = []
    for claim in claims():
        if notebook in (None, claim.notebook):
            judged = verdict(claim, reference_table(claim.measurement, name), name)
            rows.append({"notebook": claim.notebook, "claim": claim.id, "paper": claim.paper, "figure": claim.figure,
                         "sentence": claim.sentence, "published": claim.published, "control": claim.control} | judged)
    return pd.DataFrame(rows)


def own_verdicts(tables: dict[str, pd.DataFrame], profile: Profile, notebook: str) -> pd.DataFrame:
    """For each claim of a notebook: the reference's verdict, and whether it holds in the reader's own runs.

    Parameters
    ----------
    tables : dict of str to DataFrame
        The reader's own measurements by name.
    """
    rows = []
    for claim in claims():
        if claim.notebook != notebook or profile.profile in claim.out_of_reach or claim.measurement not in tables:
            continue
        judged = verdict(claim, tables[claim.measurement], profile.profile)
        rows.append({"claim": claim.id, "holds in your seeds": f"{judged['holds']} of {judged['seeds']}",
                     "your effect": judged["effect"]})
    ledger = verdicts(profile, notebook)[["claim", "figure", "sentence", "verdict", "seeds", "effect", "low", "high"]]
    own = pd.DataFrame(rows, columns=["claim", "holds in your seeds", "your effect"])
    return ledger.merge(own, on="claim", how="left")


def write_ledger(profile: Profile) -> str:
    """Write ``data/reference/<profile>/LEDGER.md`` from the reference results and return its text."""
    table = verdicts(profile)
    lines = [f"# Ledger of claims, profile {profile.profile}", "", reference_note(profile), "",
             "Generated by `python -m utils claims`. An effect is positive where the sentence holds; the interval is "
             "the 95 % t-interval over seeds. Where it includes zero, the seeds agree on the sign and not yet on "
             "the size.", "",
             "| claim | where | the sentence | published | verdict | holds | effect | control | measured in |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in table.to_dict("records"):
        effect = "" if pd.isna(row["effect"]) else f"{row['effect']:g} ({row['low']:g} … {row['high']:g})"
        lines.append(f"| {row['claim']} | {row['paper']}, {row['figure']} | {row['sentence']} | {row['published']} | "
                     f"**{row['verdict']}** | {row['holds']} of {row['seeds']} seeds | {effect} | {row['control']} | "
                     f"[{row['notebook']}](../../../notebooks/{claim_link(row['claim'])}) |")
    text = "\n".join(lines) + "\n"
    write_text(ensure_dir(reference_dir() / profile.profile) / "LEDGER.md", text)
    return text
