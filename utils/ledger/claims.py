"""All claims of all studies, and what the reference results and the reader's runs say to them."""

import tomllib
from functools import cache
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

import utils.studies
from utils.errors import CourseError, UsageError, reason_of
from utils.files import read_text, sha256_of
from utils.ledger.cells import notebook_cells
from utils.ledger.reference import reference_folder, reference_table
from utils.paths import NOTEBOOKS, PAPER, notebook_files
from utils.profiles import PROFILE_NAMES, Profile, load_profile
from utils.reporting.claims import Claim, check_claim, judge_claim
from utils.reporting.registry import RULES, nearest
from utils.reporting.verdicts import Verdict
from utils.studies import load_studies

STUDIES = Path(utils.studies.__file__).parent
ILLUSION = "LoRA vs Full Fine-tuning: An Illusion of Equivalence (arXiv 2410.21228)"
PAPERS = {"Illusion v3": ILLUSION, "Illusion v1": ILLUSION,
          "Learns less v2": "LoRA Learns Less and Forgets Less (arXiv 2405.09673v2)",
          "Rates v2": "Learning Rate Matters: Vanilla LoRA May Suffice (arXiv 2602.04998v2)",
          "PEFT benchmark": "PEFT's method comparison on MetaMathQA (huggingface/peft)"}
MOST_JUDGED = 8  # ledgers, whole or of a notebook, that a process keeps
_JUDGED: dict[tuple, pd.DataFrame] = {}


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim of every study, by notebook and then in the order of the study's file.

    Raises
    ------
    CourseError
        If a claim cannot be read, is there twice, or names what does not exist.
    """
    load_studies()
    for path in sorted(path.relative_to(STUDIES) for path in STUDIES.rglob("*.toml")):
        hidden = any(part.startswith(".") for part in path.parts)  # what an editor keeps
        if not hidden and (path.name != "claims.toml" or len(path.parts) != 2):
            raise CourseError(f"Expected claims in <study>/claims.toml alone, got {path.as_posix()}, which nothing "
                              "reads; move or rename it.")
    found = [claim for path in sorted(STUDIES.glob("*/claims.toml")) for claim in _read(path)]
    seen: dict[str, str] = {}
    for claim in found:
        if claim.id in seen:
            raise CourseError(f"Expected one claim of each id, got '{claim.id}' in {seen[claim.id]} and in "
                              f"{claim.study}; rename one.")
        seen[claim.id] = claim.study
    return tuple(sorted(found, key=lambda claim: claim.notebook))


def _read(path: Path) -> list[Claim]:
    where = f"{path.parent.name}/{path.name}"
    try:
        content = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CourseError(f"{where} is not TOML: {reason_of(error)}; mend that line.") from error
    entries = content.get("claim")
    if set(content) != {"claim"} or not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise CourseError(f"{where}: expected tables headed [[claim]] and nothing else, got "
                          f"{', '.join(content) or 'nothing'}; begin every claim with [[claim]].")
    found = []
    for entry in entries:
        if "study" in entry:
            raise CourseError(f"{where}: claim '{entry.get('id', '?')}' names its study, which its folder does; leave "
                              "the key 'study' out.")
        try:
            claim = Claim.model_validate(entry | {"study": path.parent.name})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the claim"
            raise CourseError(f"{where}: claim '{entry.get('id', '?')}', {place}: {first['msg']}.") from error
        check_claim(claim, where)
        _check_places(claim, where)
        _check_experiments(claim, where)
        found.append(claim)
    return found


def _check_places(claim: Claim, where: str) -> None:
    """CourseError if a claim names a notebook, a profile or, as a paper's own statement, a paper that is not there."""
    notebooks = notebook_files(NOTEBOOKS)
    named = [("notebook", claim.notebook, notebooks), *(("profile", one, PROFILE_NAMES) for one in claim.out_of_reach)]
    for what, name, known in [*named, *([("paper", claim.paper, PAPERS)] if claim.kind == "paper" else [])]:
        if name not in known:
            raise CourseError(f"{where}: claim '{claim.id}' names the {what} '{name}', which does not exist "
                              f"({nearest(name, known)}).")


def _check_experiments(claim: Claim, where: str) -> None:
    given = claim.parameters.get("in_experiment", claim.parameters.get("experiments", ()))
    for name in [given] if isinstance(given, str) else given:
        if name not in _experiments():
            raise CourseError(f"{where}: claim '{claim.id}' names the experiment '{name}', which no profile has "
                              f"({nearest(name, _experiments())}).")


@cache
def _experiments() -> frozenset[str]:
    names: set[str] = set()
    for profile in map(load_profile, PROFILE_NAMES):
        names |= {*profile.experiments, *profile.decoder_experiments}
        names |= set(profile.preferences.runs) if profile.preferences else set()
    return frozenset(names)


def claim_named(claim_id: str) -> Claim:
    """The claim of an id; CourseError with the nearest ids where there is none."""
    for claim in claims():
        if claim.id == claim_id:
            return claim
    raise CourseError(f"There is no claim '{claim_id}' ({nearest(claim_id, [claim.id for claim in claims()])}).")


@cache
def claim_link(claim_id: str) -> str:
    """Where a claim's table is measured: notebook and heading, such as ``04_….ipynb#Random-controls``.

    The heading is the last one before the first cell that asks for the claim's measurement, in the form that
    Jupyter's links have; the notebook alone where no cell names it.
    """
    claim = claim_named(claim_id)
    path = notebook_files(NOTEBOOKS).get(claim.notebook)
    if path is None:
        return ""
    heading = ""
    for kind, source in notebook_cells(path):
        if kind == "markdown":
            heading = next((line for line in reversed(source.splitlines()) if line.startswith("#")), heading)
        elif claim.measurement and f'measured("{claim.measurement}"' in source:
            return f"{path.name}#{heading.lstrip('# ').replace(' ', '-')}" if heading else path.name
    return path.name


def verdicts(profile: Profile | str, notebook: str | None = None) -> pd.DataFrame:
    """The ledger as a table: every claim (of one notebook) judged on the profile's reference results.

    A process judges the same claims once, as long as every file that they are judged on holds what it held.

    Returns
    -------
    pandas.DataFrame
        One row per claim, two for a claim about counts (``epsilon``): ``notebook``, ``study``, ``claim``, ``kind``,
        ``paper``, ``place``, ``sentence``, ``published``, ``numbers``, ``control``, ``unit``, ``expect``, ``epsilon``,
        and the fields of :class:`utils.reporting.verdicts.Verdict`.

    Raises
    ------
    UsageError
        If no claim is about the notebook.
    """
    name = profile if isinstance(profile, str) else profile.profile
    chosen = [claim for claim in claims() if notebook in (None, claim.notebook)]
    if not chosen:
        raise UsageError(f"There is no claim about notebook '{notebook}' "
                         f"({nearest(str(notebook), {claim.notebook for claim in claims()})}).")
    measurements = sorted({claim.measurement for claim in chosen if claim.measurement is not None})
    before = _read_by_rules(name, measurements)
    asked = (name, before, *(claim.model_dump_json() for claim in chosen),
             *(RULES[claim.rule].function for claim in chosen if claim.rule is not None))
    if asked not in _JUDGED:
        found = _judged_rows(chosen, {one: reference_table(one, name) for one in measurements}, name)
        if _read_by_rules(name, measurements) != before:  # a file was written meanwhile: nobody knows which was read
            return found
        while len(_JUDGED) >= MOST_JUDGED:
            _JUDGED.pop(next(iter(_JUDGED)))
        _JUDGED[asked] = found
    return _JUDGED[asked].copy()


def _read_by_rules(profile_name: str, measurements: list[str]) -> tuple[str, ...]:
    """The content of every file that a verdict depends on, reference tables and papers' numbers, or why it has none."""
    tables = [reference_folder(profile_name) / f"{name}.csv" for name in measurements]
    return tuple(map(_content, (*tables, *sorted(PAPER.glob("*.csv")))))


def _content(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return type(error).__name__


def _judged_rows(chosen: list[Claim], tables: dict[str, pd.DataFrame | None], profile_name: str) -> pd.DataFrame:
    rows = [_row(claim, epsilon) | vars(_judged(claim, tables.get(claim.measurement), profile_name, epsilon=epsilon))
            for claim in chosen for epsilon in claim.epsilons]
    return pd.DataFrame(rows).astype(dict.fromkeys(("epsilon", "effect", "low", "high", "p"), float))


def _judged(claim: Claim, table: pd.DataFrame | None, profile_name: str, *, epsilon: float | None) -> Verdict:
    try:
        return judge_claim(claim, table, profile_name, epsilon=epsilon)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise CourseError(f"Claim '{claim.id}' cannot be judged on the table {claim.measurement}.csv of profile "
                          f"{profile_name} ({type(error).__name__}: {reason_of(error)[:200]}); get the table's file "
                          "anew, or make it anew.") from error


def _row(claim: Claim, epsilon: float | None) -> dict:
    published = claim.published
    return {"notebook": claim.notebook, "study": claim.study, "claim": claim.id, "kind": claim.kind,
            "paper": claim.paper, "place": published.place if published else "", "sentence": claim.sentence,
            "published": published.statement if published else "", "numbers": published.numbers if published else "",
            "control": claim.control, "unit": claim.unit, "expect": str(claim.expect or ""), "epsilon": epsilon}


def own_verdicts(tables: dict[str, pd.DataFrame], profile: Profile, notebook: str) -> pd.DataFrame:
    """What the reader's own runs say to each claim of a notebook.

    Parameters
    ----------
    tables : dict of str to DataFrame
        The reader's own measurements by name; a claim whose measurement is not among them has no row.

    Returns
    -------
    pandas.DataFrame
        ``claim``, ``epsilon``, ``own_effect``, ``own_agree``, ``own_seeds``.
    """
    rows = []
    for claim in claims():
        if claim.notebook != notebook or claim.measurement not in tables:
            continue
        for epsilon in claim.epsilons:
            found = judge_claim(claim, tables[claim.measurement], profile.profile, epsilon=epsilon)
            rows.append({"claim": claim.id, "epsilon": epsilon, "own_effect": found.effect, "own_agree": found.agree,
                         "own_seeds": found.seeds})
    columns = ["claim", "epsilon", "own_effect", "own_agree", "own_seeds"]
    return pd.DataFrame(rows, columns=columns).astype({"epsilon": float, "own_effect": float})
