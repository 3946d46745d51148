"""The code behind a figure or a claim, by its id: ``python -m utils where 04_count_against_epsilon``."""

import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import utils.ledger.page  # noqa: F401  its figure registers itself
from utils.errors import UsageError
from utils.ledger.cells import notebook_cells
from utils.ledger.claims import claims
from utils.ledger.reference import measurement_named
from utils.paths import NOTEBOOKS, PAPER, notebook_files, notebook_number, reference_dir, relative
from utils.reporting.claims import Claim
from utils.reporting.registry import FIGURES, FINDINGS, RULES, FigureEntry, nearest
from utils.studies import load_studies


def where(identifier: str) -> str:
    """File and line of everything behind a figure or a claim.

    Raises
    ------
    UsageError
        If nothing has this id; the nearest ids are given.
    """
    load_studies()
    known = {claim.id: claim for claim in claims()}
    if identifier in FIGURES:
        return _text(_figure_lines(FIGURES[identifier]))
    if identifier in known:
        return _text(_claim_lines(known[identifier]))
    raise UsageError(f"There is no figure and no claim '{identifier}' ({nearest(identifier, [*FIGURES, *known])}).")


def _text(lines: Iterable[tuple[str, str]]) -> str:
    lines = list(dict.fromkeys(lines))
    width = max(len(what) for what, _ in lines)
    return "\n".join(f"{what:{width}}  {place}" for what, place in lines)


def _figure_lines(entry: FigureEntry) -> Iterable[tuple[str, str]]:
    notebook = notebook_number(entry.identifier)
    yield "figure", f"{entry.identifier} ({entry.place})"
    yield "notebook cell", _cell(notebook, f"{entry.function.__name__}(")
    yield "figure function", _place(entry.function)
    if entry.identifier in FINDINGS:
        yield "what is found", _place(FINDINGS[entry.identifier])
    for name in entry.measurements:
        yield from _measurement_lines(name)
    for claim in claims():
        if claim.measurement in entry.measurements and claim.notebook == notebook:
            yield f"claim {claim.id}", _claim_place(claim)


def _claim_lines(claim: Claim) -> Iterable[tuple[str, str]]:
    yield "claim", claim.sentence
    yield "written in", _claim_place(claim)
    if claim.published:
        yield "published", f"{claim.paper}, {claim.published.place}: {claim.published.statement}"
    if claim.rule is None:
        yield "judged", "nowhere: out of reach of every profile"
        return
    yield "rule", _place(RULES[claim.rule].function)
    yield from _measurement_lines(claim.measurement)
    for entry in FIGURES.values():
        if claim.measurement in entry.measurements and notebook_number(entry.identifier) == claim.notebook:
            yield f"figure {entry.identifier}", _place(entry.function)


def _measurement_lines(name: str) -> Iterable[tuple[str, str]]:
    found = measurement_named(name)
    yield f"measurement {name}", _place(found.function)
    yield "notebook cell", _cell(None, f'measured("{name}"')
    tables = sorted(reference_dir().glob(f"*/{name}.csv"))
    yield "reference table", ", ".join(str(relative(path)) for path in tables) or "none"
    if found.published:
        files = [path.name for path in sorted(PAPER.glob("*.csv")) if path.name in inspect.getsource(found.published)]
        yield "published numbers", ", ".join([_place(found.published), *(f"data/paper/{name}" for name in files)])


def _place(function: Callable) -> str:
    function = inspect.unwrap(function)
    line = inspect.getsourcelines(function)[1]
    return f"{relative(Path(inspect.getsourcefile(function)))}:{line} ({function.__name__})"


def _claim_place(claim: Claim) -> str:
    path = Path(__file__).parent.parent / "studies" / claim.study / "claims.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    return f"{relative(path)}:{1 + next(n for n, line in enumerate(lines) if line == f'id = {json.dumps(claim.id)}')}"


def _cell(notebook: str | None, call: str) -> str:
    """The first cell that makes a call, as ``notebooks/04_….ipynb cell 12``, cells counted from 1."""
    for path in [path for number, path in notebook_files(NOTEBOOKS).items() if notebook in (None, number)]:
        for number, (kind, source) in enumerate(notebook_cells(path), start=1):
            if kind == "code" and call in source:
                return f"{relative(path)}, cell {number}"
    return "none"
