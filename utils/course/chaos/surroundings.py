"""What lies around the command: variables, and files of the course and of the cache that are broken."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_notebook

from utils.course import runner
from utils.course.chaos.ask import Patch, refusal
from utils.course.chaos.case import Case
from utils.ledger import claims, page
from utils.ledger.reference import COSTS as COSTS_FILE
from utils.paths import DATA

Text = str | bytes
Make = Callable[[Path], Any]
CELLS = '"metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
COST = '{"notebooks": {"00_one": {"cold": {"seconds": "x", "peak_gib": 1, "trained_runs": 0}}}}'
BASE = '{"base": {"source": 1, "name": 2}}'
JSON: dict[str, Text] = {
    "nothing": "", "no JSON": "{", "a list": "[]", "a number": "7", "null": "null", "no UTF-8": b"\xff{",
    "100,000 brackets": "[" * 100_000, "an empty mapping": "{}"}
COSTS: dict[str, Text] = JSON | {
    "a list of notebooks": '{"notebooks": []}', "a notebook of words": '{"notebooks": {"00_one": "slow"}}',
    "seconds in words": COST, "no seconds": '{"notebooks": {"00_one": {"warm": {"peak_gib": 1}}}}'}
NOTEBOOKS: dict[str, Text] = JSON | {
    "cells that are a number": '{"cells": 7, ' + CELLS, "no kernel": '{"cells": [], ' + CELLS,
    "cells without a source": '{"cells": [{"cell_type": "code"}], ' + CELLS,
    "format 99": '{"cells": [], "metadata": {}, "nbformat": 99, "nbformat_minor": 5}',
    "format in words": '{"cells": [], "metadata": {}, "nbformat": "x"}',
    "half of one": '{"cells": [{"cell_type": "code", "metadata": {}, "sour'}
TABLES: dict[str, Text] = {
    "nothing": "", "a header alone": "a,b\n", "another header": "a,b\n1,2\n", "bytes": bytes(range(256)) * 9,
    "no UTF-8": b"\xff,\n", "a quote that does not end": 'a,b\n"1,2\n', "a page": "<html></html>",
    "rows of other lengths": "a,b\n1,2\n1,2,3,4\n"}
CLAIMS: dict[str, Text] = {
    "nothing": "", "no TOML": "[[claim", "no UTF-8": b"\xff", "a list of numbers": "claim = [1]",
    "a key too many": "x = 1\n[[claim]]\n", "an empty claim": "[[claim]]\n",
    "a claim that names its study": '[[claim]]\nid = "x"\nstudy = "y"\n', "a date": "[[claim]]\nid = 2026-01-01\n",
    "100,000 brackets": "a = " + "[" * 100_000, "a list of parameters": '[[claim]]\nid = "x"\nparameters = [1]\n'}
RESULTS: dict[str, Text] = JSON | {
    "a run of words": '{"run": "x", "measured": 1}',
    "a specification of words": '{"run": {"spec": "x"}, "measured": {}}',
    "metrics of words": f'{{"run": {{"spec": {BASE}, "status": 3}}, "measured": {{"metrics": "x"}}}}'}


def one_notebook(folder: Path, *sources: str) -> None:
    """A whole notebook of a cell of parameters and one for each source, in the case's own folder of notebooks."""
    cells = [new_code_cell("PROFILE = None", metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
    book = new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(book, folder / "notebooks" / "00_one.ipynb")


def _put(name: str, text: Text) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return make


def _reference(name: str, text: Text) -> Make:
    """A copy of the committed results in which one file is another."""
    def make(folder: Path) -> None:
        shutil.copytree(DATA / "reference" / "laptop", folder / "reference" / "laptop")
        _put(f"reference/laptop/{name}", text)(folder)

    return make


def _both(*makers: Make) -> Make:
    return lambda folder: [make(folder) for make in makers]


def _first_table() -> str:
    return next(iter(sorted((DATA / "reference" / "laptop").glob("*.csv")))).name


def _its_reference(folder: Path) -> dict[str, str]:
    return {"LORA_COURSE_REFERENCE": str(folder / "reference")}


def _its_notebooks(folder: Path) -> list[Patch]:
    return [(runner, "NOTEBOOKS", folder / "notebooks")]


@cache
def _verdicts_once() -> pd.DataFrame:
    return claims.verdicts("laptop")


def _judged_before(folder: Path) -> list[Patch]:
    """The verdicts of the committed results, which take seconds, judged once for all cases."""
    return [(page, "verdicts", lambda profile: _verdicts_once())]


def _its_claims(folder: Path) -> list[Patch]:
    return [(claims, "STUDIES", folder / "studies"), (claims, "claims", claims.claims.__wrapped__)]


def variables(*, quick: bool) -> list[Case]:
    """Folders that variables name."""
    places = {"under a file": lambda folder: f"{folder}/file/cache", "a file": lambda folder: f"{folder}/file",
              "a device": lambda _: "/dev/null", "of nobody": lambda _: "~nobody9/cache",
              "no UTF-8": lambda _: "/tmp/\udcff",
              "too long": lambda folder: f"{folder}/{'x' * 300}", "a circle": lambda folder: f"{folder}/circle/x",
              "in /proc": lambda _: "/proc/cache"}
    fine = {"with a brace": lambda folder: f"{folder}/{{x}}", "with a line break": lambda folder: f"{folder}/a\nb",
            "with a percent": lambda folder: f"{folder}/%s", "with a space": lambda folder: f"{folder}/a b",
            "that does not exist yet": lambda folder: f"{folder}/a/b/c", "empty": lambda _: "",
            "relative": lambda folder: os.path.relpath(folder / "here")}

    def prepare(folder: Path) -> None:
        (folder / "file").touch()
        (folder / "circle").symlink_to(folder / "circle")

    made = [refusal(f"a cache {name}", "variables", ["runs"], prepare=prepare, status=(1, 2),
                    variables=lambda folder, place=place: {"LORA_COURSE_CACHE": place(folder)})
            for name, place in places.items()]
    made += [refusal(f"a cache {name}", "variables", ["runs"] if name != "empty" else ["where", "accuracy-parity"],
                     status=(0,), variables=lambda folder, place=place: {"LORA_COURSE_CACHE": place(folder)})
             for name, place in fine.items()]
    made += [refusal(f"{variable} of nobody", "variables", ["claims"], status=(1, 2), variables={variable: "~nobody9"})
             for variable in ("LORA_COURSE_REFERENCE", "LORA_COURSE_FIGURES")]
    return made[::6] if quick else made


def cases(*, quick: bool) -> list[Case]:
    """Broken files, one at a time, and the command that reads them; on copies."""
    def broken(what: str, texts: dict[str, Text], words: list[str], *, make: Callable[[Text], Make], kind: str,
               **given: Any) -> list[Case]:
        return [refusal(f"{what}: {name}", kind, words, prepare=make(text), **given) for name, text in texts.items()]

    course, moved = ["course", "--profile", "smoke"], {"patches": _its_notebooks}
    made = [refusal("a folder without notebooks", "notebooks", course, status=(1, 2), **moved)]
    made += broken("a notebook", NOTEBOOKS, course, kind="notebooks", status=(1, 2), **moved,
                   make=lambda text: _put("notebooks/00_one.ipynb", text))
    made += broken(COSTS_FILE, COSTS, course, kind="reference", status=(1,), variables=_its_reference, **moved,
                   make=lambda text: _both(one_notebook, _put(f"reference/smoke/{COSTS_FILE}", text)))
    made += broken("claims", CLAIMS, ["where", "x"], kind="claims", status=(1, 2), patches=_its_claims,
                   make=lambda text: _put("studies/one/claims.toml", text))
    made += broken("provenance", JSON, ["claims", "--publish"], kind="reference", status=(1,), patches=_judged_before,
                   variables=_its_reference, make=lambda text: _reference("provenance.json", text))
    made += broken("a reference table", TABLES, ["claims"], kind="reference", status=(1,), variables=_its_reference,
                   make=lambda text: _reference(_first_table(), text))
    made += broken("a result", RESULTS, ["runs"], kind="results", status=(0,),
                   make=lambda text: _put("cache/runs/0123456789abcdef/result.json", text))
    made += broken("the reader's verdicts", TABLES, ["claims"], kind="results", status=(0,), patches=_judged_before,
                   make=lambda text: _put("cache/verdicts/laptop/04.csv", text))
    made += broken("a record of a profile", JSON, ["runs"], kind="results", status=(0,),
                   make=lambda text: _put("cache/profiles/0.json", text))
    return variables(quick=quick) + (made[:35:11] if quick else made)
