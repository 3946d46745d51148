"""What the first page tells of the course: its words stand where it says, no exercise and no verdict is left out."""

import json
import tomllib

import pandas as pd
import pytest

from utils.errors import CourseError
from utils.ledger import guide
from utils.ledger.page import BY_ARITHMETIC, OURS
from utils.paths import NOTEBOOKS, notebook_files
from utils.profiles import load_profile
from utils.reporting.verdicts import HOLDS, REPRODUCED, VERDICTS

LAPTOP = load_profile("laptop")


@pytest.fixture(scope="module")
def words() -> pd.DataFrame:
    return guide.glossary()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A course of four notebooks; returns a function that writes its glossary."""
    texts = {"00_start": "Everything: gadget.", "01_one": "A **Widget** holds.", "02_two": "Two blue\nwidgets.",
             "02b_more": r"The gizmo $\Delta W$, of which it holds; the gizmology."}
    for name, text in texts.items():
        cells = [{"cell_type": "markdown", "source": [text]}]
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    monkeypatch.setattr(guide, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(guide, "GLOSSARY", tmp_path / "glossary.toml")

    def write(*terms: str, since: str = "") -> pd.DataFrame:
        lines = ["[since]", since, "[words.Things]", *(f'"{term}" = "Some thing."' for term in terms)]
        (tmp_path / "glossary.toml").write_text("\n".join(lines), encoding="utf-8")
        return guide.glossary()

    return write


# Words ----------------------------------------------------------------------------------------------------------------


def test_every_word_stands_in_the_notebook_that_is_named(words):
    texts = {}
    for number in words["notebook"].unique():
        [path] = NOTEBOOKS.glob(f"{number}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells).replace(r"\Delta W", "ΔW")
        texts[number] = " ".join(text.lower().split())
    assert [row.term for row in words.itertuples() if row.term.lower() not in texts[row.notebook]] == []
    assert len(words) > 50


def test_every_word_is_there_once_and_says_something(words):
    assert words["term"].str.lower().is_unique
    assert words["meaning"].str.endswith(".").all() and words["meaning"].str.len().between(20, 240).all()
    since = tomllib.loads(guide.GLOSSARY.read_text(encoding="utf-8"))["since"]
    assert set(since) <= set(words["term"]), "a word that is not there"


def test_every_verdict_has_a_meaning(words):
    assert set(words.loc[words["theme"] == guide.VERDICTS, "term"]) == set(VERDICTS)


def test_a_word_is_first_where_it_first_stands_whole(small):
    found = small("widget", "blue widget", "gizmo", "ΔW")
    assert found["notebook"].tolist() == ["01", "02", "02b", "02b"]


def test_an_everyday_word_counts_from_where_it_means_what_it_means_here(small):
    assert small("holds")["notebook"].tolist() == ["01"]
    assert small("holds", since='"holds" = "02"')["notebook"].tolist() == ["02b"]


@pytest.mark.parametrize("term, since, said", [
    ("gadget", "", "Expected the word 'gadget' of glossary.toml in a notebook, got it in none"),
    ("gizmolog", "", "Expected the word 'gizmolog'"),
    ("widget", '"widget" = "03"', "in a notebook from 03 on, got it in none")])
def test_a_word_that_no_notebook_uses_is_an_error(small, term, since, said):
    with pytest.raises(CourseError, match=said):
        small(term, since=since)


def test_a_word_in_two_cases_is_an_error(small):
    with pytest.raises(CourseError, match=r"Expected each word once in glossary.toml, got 'Widget' twice"):
        small("widget", "Widget")


def test_the_page_has_every_word_but_those_of_verdicts(words):
    page = guide.glossary_page()
    shown = [line.split("**")[1] for line in page.splitlines() if line.startswith("| **")]
    assert shown == words.loc[words["theme"] != guide.VERDICTS, "term"].tolist()
    assert all(f"\n\n**{theme}**\n\n" in f"\n\n{page}" for theme in words["theme"].unique() if theme != guide.VERDICTS)


# Notebooks, exercises, verdicts ---------------------------------------------------------------------------------------


def rows(page: str) -> list[list[str]]:
    """The cells of a Markdown table below its head."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines()[2:]]


def test_every_notebook_is_listed_with_a_link_that_leads_there():
    listed = rows(guide.notebook_list(LAPTOP))
    assert [row[0].split("](")[1].rstrip(")") for row in listed] == sorted(
        path.name for path in notebook_files(NOTEBOOKS).values())
    assert all(len(row) == 5 and len(row[1]) > 40 and "nan" not in row for row in listed)


def test_no_exercise_is_left_out():
    """Whoever writes the marks of an exercise in another form would have it missing from the list."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lines = [line for cell in cells if cell["cell_type"] == "markdown"
                 for line in "".join(cell["source"]).splitlines() if "●●" in line or "●○" in line]
        assert len(guide.exercises(path)) == len(lines), path.name
    assert guide.exercises(NOTEBOOKS / "01_lora_from_scratch.ipynb") == ["●○○ 5 minutes"]


def test_every_claim_is_counted_under_its_verdict():
    table = pd.DataFrame([("A paper", REPRODUCED), ("A paper", REPRODUCED), (OURS, HOLDS), (OURS, REPRODUCED),
                          (BY_ARITHMETIC, "arithmetic")], columns=["title", "verdict"])
    counted = {row[0].strip("*"): row[2:] for row in rows(guide.verdict_list(table))}
    assert set(counted) == set(VERDICTS)
    assert counted[REPRODUCED] == ["2", "1"] and counted[HOLDS] == ["0", "1"] and counted["arithmetic"] == ["0", "1"]


def test_a_bar_in_a_cell_ends_no_column():
    assert guide._markdown(("a",), [("|x|",)]).splitlines()[-1] == r"| \|x\| |"
