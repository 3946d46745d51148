"""The ledger: what it reads, whom it believes, where it leads. Verdicts themselves are tested in test_reporting."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from utils.ledger import page as ledger
from utils.ledger import page as page
from utils.ledger.claims import claim_link, claims, own_verdicts
from utils.ledger.page import as_page, as_text, keep_own, own_kept, summary, summary_markdown, verdict_bars
from utils.paths import NOTEBOOKS
from utils.profiles import load_profile


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    return tmp_path


def kept(claim: str, holds: str, effect: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame([{"claim": claim, "sentence": "left out", "holds in your seeds": holds, "your effect": effect}])


def judged(monkeypatch, verdict: str, **more) -> None:
    """One claim with a verdict of the reference, whatever the tables say."""
    row = {"notebook": "04", "claim": "a", "paper": "Illusion v3", "figure": "Fig 1", "sentence": "It holds.",
           "published": "1.0", "control": "none", "verdict": verdict, "seeds": 3, "holds": 3, "effect": 0.25,
           "low": 0.1, "high": 0.4}
    monkeypatch.setattr(ledger, "verdicts", lambda profile: pd.DataFrame([row | more]))
    monkeypatch.setattr(ledger, "claim_link", lambda claim: "04_intruder_dimensions.ipynb#A-heading")


def test_what_a_notebook_concludes_is_kept_for_the_ledger(cache):
    """Each notebook's own file, the later run in place of the earlier one; nothing before any has run."""
    profile = load_profile("smoke")
    assert own_kept(profile).empty
    keep_own(kept("a", "1 of 1"), profile, "04")
    keep_own(kept("b", "0 of 1"), profile, "05")
    keep_own(kept("a", "2 of 2"), profile, "04")
    assert own_kept(profile).set_index("claim")["holds in your seeds"].to_dict() == {"a": "2 of 2", "b": "0 of 1"}
    assert own_kept(load_profile("laptop")).empty, "another profile's runs are not this one's"


@pytest.mark.parametrize("verdict, holds, agrees", [
    ("reproduced", "3 of 3", True), ("reproduced", "2 of 3", False), ("not reproduced", "0 of 1", True),
    ("not reproduced", "1 of 1", False), ("partly", "1 of 1", None), ("out of reach at this scale", "1 of 1", None),
    ("reproduced", "0 of 0", None)])
def test_whether_the_readers_runs_agree(cache, monkeypatch, verdict, holds, agrees):
    judged(monkeypatch, verdict)
    profile = load_profile("smoke")
    keep_own(kept("a", holds), profile, "04")
    row = page.ledger(profile).iloc[0]
    assert row["agrees"] is agrees or row["agrees"] == agrees
    assert row["yours"] == ("" if holds == "0 of 0" else f"0.5, {holds} seeds")
    assert row["reference"] == "0.25 (0.1 … 0.4), 3 of 3 seeds"


def test_a_claim_without_a_number_says_nothing_instead_of_nan(cache, monkeypatch):
    judged(monkeypatch, "out of reach at this scale", effect=float("nan"), low=float("nan"), high=float("nan"))
    table = page.ledger(load_profile("smoke"))
    assert table.loc[0, "reference"] == "" and table.loc[0, "yours"] == "" and table.loc[0, "agrees"] is None
    assert "nan" not in as_text(table) + as_page(table, table.loc[0, "paper"])


def test_the_summary_counts_every_claim_once(cache):
    profile = load_profile("laptop")
    table = page.ledger(profile)
    counts = summary(table)
    assert len(table) == len(claims()) == counts["claims"].sum()
    assert counts[list(page.LOOKS)].sum(axis=1).tolist() == counts["claims"].tolist()
    assert set(table["verdict"]) <= set(page.LOOKS), "a verdict without a colour is not drawn"
    assert {claim.paper for claim in claims()} <= set(page.PAPERS), "a paper without a title"
    figure = verdict_bars(counts)
    drawn = sum(bar.get_width() for container in figure.axes[0].containers for bar in container)
    assert drawn == len(table)
    plt.close("all")
    assert str(counts["claims"].max()) in summary_markdown(profile)


def test_every_claim_leads_to_a_heading_that_is_there():
    """A link to a heading that was renamed leads to the top of a notebook, and nobody notices."""
    for claim in claims():
        name, _, anchor = claim_link(claim.id).partition("#")
        cells = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
        headings = {line.lstrip("# ").replace(" ", "-") for cell in cells if cell["cell_type"] == "markdown"
                    for line in "".join(cell["source"]).splitlines() if line.startswith("#")}
        assert name.startswith(claim.notebook) and (not anchor or anchor in headings), claim.id
    assert sum("#" in claim_link(claim.id) for claim in claims()) > 0.8 * len(claims())


def test_the_page_and_the_terminal_hold_the_same_claims(cache):
    table = page.ledger(load_profile("laptop"))
    text = as_text(table)
    for paper, part in table.groupby("paper"):
        assert as_page(table, paper).count("\n") == len(part) + 1 and paper in text
        assert all(sentence in text for sentence in part["sentence"])


def test_own_verdicts_have_the_columns_that_are_kept():
    table = own_verdicts({}, load_profile("laptop"), "04")
    assert set(page.YOURS) <= set(table.columns) and "claim" in table
