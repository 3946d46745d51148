"""What the first page tells of the whole course: its notebooks and exercises, what verdicts mean, and its words."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from utils.errors import CourseError
from utils.files import read_text
from utils.ledger.cells import notebook_cells
from utils.ledger.notebook import course_map
from utils.ledger.page import BY_ARITHMETIC, OURS
from utils.paths import NOTEBOOKS, notebook_files
from utils.profiles import Profile

GLOSSARY = Path(__file__).with_name("glossary.toml")
VERDICTS = "Verdicts"  # the theme of the glossary that the first page shows with its counts
FIRST_PAGE = "00"
EXERCISE = re.compile(r"([●○]{3})[ ,(]+(\d+ minutes?|an evening)\)")


def notebook_list(profile: Profile) -> str:
    """Every notebook in Markdown: a link, what it shows, its exercises, and seconds where they were measured."""
    paths, rows = notebook_files(NOTEBOOKS), []
    for row in course_map(profile).to_dict("records"):
        path = paths[row["notebook"]]
        shows = notebook_cells(path)[0][1].split("\n\n")[1]
        seconds = (row["seconds, first run"], row["seconds, again"])
        rows.append((f"[{row['notebook']} · {row['about']}]({path.name})", " ".join(shows.split()),
                     ", ".join(exercises(path)), *("" if pd.isna(time) else f"{time:.0f} s" for time in seconds)))
    return _markdown(("notebook", "shows", "exercises", "first run", "run again"), rows)


def exercises(path: Path) -> list[str]:
    """How hard each exercise of a notebook is and how long it takes, such as ``●●○ 10 minutes``."""
    return [" ".join(found) for kind, source in notebook_cells(path) if kind == "markdown"
            for found in EXERCISE.findall(source)]


def verdict_list(table: pd.DataFrame) -> str:
    """What each verdict means and how many claims came to it, in Markdown (of :func:`utils.ledger.page.ledger`)."""
    words, _ = _words()
    ours, rows = table["title"].isin([OURS, BY_ARITHMETIC]), []
    for row in words[words["theme"] == VERDICTS].to_dict("records"):
        so = table["verdict"] == row["term"]
        rows.append((f"*{row['term']}*", row["meaning"], (so & ~ours).sum(), (so & ours).sum()))
    return _markdown(("verdict", "what it means", "of papers", "of ours"), rows)


def glossary_page() -> str:
    """The words of the course in Markdown, theme by theme, but for those of verdicts."""
    table = glossary()
    return "\n\n".join(f"**{theme}**\n\n" + _markdown(
        ("word", "meaning", "first in"), ((f"**{row['term']}**", row["meaning"], row["notebook"])
                                          for row in part.to_dict("records")))
        for theme, part in table[table["theme"] != VERDICTS].groupby("theme", sort=False))


def glossary() -> pd.DataFrame:
    """Every word that has a meaning of its own in the course, and the notebook in which a reader first meets it.

    Returns
    -------
    pandas.DataFrame
        ``theme``, ``term``, ``meaning`` and ``notebook`` (its number), in the order of ``glossary.toml``.

    Raises
    ------
    CourseError
        If a word is there twice, or in no notebook but the first page.
    """
    texts = {number: _text(path) for number, path in notebook_files(NOTEBOOKS).items() if number != FIRST_PAGE}
    table, since = _words()
    return table.assign(notebook=[_first_with(term, texts, since.get(term, "")) for term in table["term"]])


def _words() -> tuple[pd.DataFrame, dict[str, str]]:
    """The words with their themes and meanings, and from which notebook on everyday ones mean what they mean here."""
    content = tomllib.loads(read_text(GLOSSARY))
    table = pd.DataFrame([(theme, term, " ".join(meaning.split())) for theme, words in content["words"].items()
                          for term, meaning in words.items()], columns=["theme", "term", "meaning"])
    twice = table.loc[table["term"].str.lower().duplicated(), "term"]
    if len(twice):
        raise CourseError(f"Expected each word once in {GLOSSARY.name}, got '{twice.iloc[0]}' twice; remove one.")
    return table, content["since"]


def _first_with(term: str, texts: dict[str, str], since: str) -> str:
    """The first notebook from `since` on in which a word stands, in any case and also in the plural."""
    whole = r"\s+".join(map(re.escape, term.split()))  # a line may end within it
    word = re.compile(rf"(?<!\w){whole}s?(?!\w)", re.IGNORECASE)
    for number, text in texts.items():
        if number >= since and word.search(text):
            return number
    where = f"a notebook from {since} on" if since else "a notebook"
    raise CourseError(f"Expected the word '{term}' of {GLOSSARY.name} in {where}, got it in none; write it as the "
                      "notebooks do, or remove it.")


def _text(path: Path) -> str:
    r"""All cells of a notebook as one text, in which a formula's ``\Delta W`` is ΔW."""
    return "\n".join(source for _, source in notebook_cells(path)).replace(r"\Delta ", "Δ")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
