"""The ledger: what it reads, what it counts, where it leads. Verdicts themselves are tested in test_verdicts.py."""

import json
import math

import pandas as pd
import pytest

from utils.errors import CourseError, UsageError
from utils.ledger import page
from utils.ledger import reference as reference_module
from utils.ledger.claims import claim_link, claims
from utils.ledger.page import (
    as_page,
    as_text,
    keep_own,
    own_kept,
    summary,
    summary_markdown,
    verdict_bars,
    write_ledger,
)
from utils.ledger.reference import build_reference, reference_note, reference_table
from utils.paths import NOTEBOOKS, notebook_number
from utils.profiles import load_profile
from utils.reporting.registry import MEASUREMENTS, Measurement

LAPTOP = load_profile("laptop")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def references(tmp_path, monkeypatch):
    """A folder of reference results with nothing in it."""
    (tmp_path / "laptop").mkdir()
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    """The committed ledger; computed once."""
    return page.ledger(LAPTOP)


def kept(claim: str, agree: int, seeds: int, effect: float | None = 0.5) -> pd.DataFrame:
    return pd.DataFrame([{"claim": claim, "epsilon": math.nan, "own_effect": effect, "own_agree": agree,
                          "own_seeds": seeds}])


def judged(monkeypatch, verdict: str, **more) -> None:
    """One claim with a verdict of the reference, whatever the tables say."""
    row = {"notebook": "04", "claim": "a", "kind": "paper", "paper": "Illusion v3", "place": "Fig 1", "unit": "nats",
           "sentence": "It holds.", "published": "It holds.", "numbers": "", "control": "none", "verdict": verdict,
           "epsilon": math.nan, "seeds": 3, "agree": 3, "effect": 0.25, "low": 0.1, "high": 0.4, "p": 0.01, "why": ""}
    monkeypatch.setattr(page, "verdicts", lambda profile: pd.DataFrame([row | more]))
    monkeypatch.setattr(page, "claim_link", lambda claim: "04_intruder_dimensions.ipynb#A-heading")


def test_what_a_notebook_concludes_is_kept_for_the_ledger(cache):
    """Each notebook's own file, the later run in place of the earlier one; nothing before any has run."""
    profile = load_profile("smoke")
    assert own_kept(profile).empty
    keep_own(kept("a", 1, 1), profile, "04")
    keep_own(kept("b", 0, 1), profile, "05")
    keep_own(kept("a", 2, 2), profile, "04")
    assert own_kept(profile).set_index("claim")["own_agree"].to_dict() == {"a": 2, "b": 0}
    keep_own(kept("b", 1, 1), profile, "05b")
    assert own_kept(profile).set_index("claim")["own_agree"].to_dict() == {"a": 2, "b": 1}, "moved from 05 to 05b"
    assert own_kept(LAPTOP).empty, "another profile's runs are not this one's"
    (cache / "verdicts" / "smoke" / "06.csv").write_text("claim,holds in your seeds\na,1 of 1\n")
    assert len(own_kept(profile)) == 2, "what an older version left is no fault"


@pytest.mark.parametrize("verdict, agree, seeds, agrees", [
    ("reproduced", 3, 3, True), ("reproduced", 2, 3, False), ("holds", 1, 1, True), ("not reproduced", 0, 1, True),
    ("does not hold", 1, 1, False), ("same direction", 1, 1, None), ("no power", 1, 1, None)])
def test_whether_the_readers_runs_agree(cache, monkeypatch, verdict, agree, seeds, agrees):
    judged(monkeypatch, verdict)
    profile = load_profile("smoke")
    keep_own(kept("a", agree, seeds), profile, "04")
    row = page.ledger(profile).iloc[0]
    assert row["agrees"] is agrees or row["agrees"] == agrees
    assert row["yours"] == f"0.5, {agree} of {seeds} seeds"
    assert row["reference"] == "0.25 (0.1 … 0.4) nats, 3 of 3 seeds"


def test_a_claim_without_a_number_says_why_instead_of_nan(cache, monkeypatch):
    judged(monkeypatch, "too few seeds", why="seed 1: no run with r = 8",
           **dict.fromkeys(("effect", "low", "high", "p"), math.nan))
    keep_own(kept("a", 0, 0, None), load_profile("smoke"), "04")
    table = page.ledger(load_profile("smoke"))
    row = table.iloc[0]
    assert row["reference"] == "seed 1: no run with r = 8" and row["yours"] == "" and row["agrees"] is None
    assert "nan" not in as_text(table) + as_page(table, row["title"])


@pytest.mark.parametrize("kind, title", [("paper", page.PAPERS["Illusion v3"]), ("ours", page.OURS),
                                         ("arithmetic", page.BY_ARITHMETIC)])
def test_only_the_papers_own_statements_stand_under_its_title(cache, monkeypatch, kind, title):
    judged(monkeypatch, "reproduced", kind=kind)
    assert page.ledger(load_profile("smoke"))["title"].tolist() == [title]


def test_the_summary_counts_every_row_once(whole):
    counts = summary(whole)
    assert len(whole) == sum(len(claim.epsilons) for claim in claims()) == counts["claims"].sum()
    assert counts[list(page.LOOKS)].sum(axis=1).tolist() == counts["claims"].tolist()
    drawn = verdict_bars(LAPTOP, counts)
    axis = drawn.figure.axes[0]
    assert sum(bar.get_width() for bars in axis.containers for bar in bars) == pytest.approx(100 * len(counts))
    assert sum(int(text.get_text()) for text in axis.texts) == len(whole)
    assert str(counts["claims"].max()) in summary_markdown(LAPTOP)


def test_the_ledger_says_how_much_of_it_chance_could_have_made(whole):
    note = page.chance_note(whole)
    tested = int(whole["p"].notna().sum())
    assert f"Of {tested} tests (a claim that is judged at two ε counts as two)" in note
    assert f"about {tested * 0.025:.1f} would come out" in note
    assert note in summary_markdown(LAPTOP)


def test_every_claim_leads_to_a_heading_that_is_there():
    """A link to a heading that was renamed leads to the top of a notebook, and nobody notices."""
    headings = {path.name: {line.lstrip("# ").replace(" ", "-")
                            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                            if cell["cell_type"] == "markdown"
                            for line in "".join(cell["source"]).splitlines() if line.startswith("#")}
                for path in NOTEBOOKS.glob("*.ipynb")}
    anchored = 0
    for claim in claims():
        name, _, anchor = claim_link(claim.id).partition("#")
        assert notebook_number(name) == claim.notebook and (not anchor or anchor in headings[name]), claim.id
        assert anchor or claim.measurement is None, f"{claim.id}: no cell of {name} measures {claim.measurement}"
        anchored += bool(anchor)
    assert anchored > 0.8 * len(claims())


def test_the_page_and_the_terminal_hold_the_same_claims(whole):
    text = as_text(whole)
    for title, part in whole.groupby("title"):
        assert as_page(whole, title).count("\n") == len(part) + 1 and title in text
        assert all(sentence in text for sentence in part["sentence"])


def test_the_committed_ledger_is_what_the_code_writes(references, tmp_path, monkeypatch):
    """LEDGER.md is generated: a claim that was changed without it would be read in its old words."""
    monkeypatch.delenv("LORA_COURSE_REFERENCE")
    committed = (page.reference_dir() / "laptop" / "LEDGER.md").read_text(encoding="utf-8")
    target = tmp_path / "written"
    monkeypatch.setattr(page, "reference_dir", lambda: target)
    monkeypatch.setattr(page, "own_kept", lambda profile: pd.DataFrame(
        columns=["claim", "epsilon", "own_effect", "own_agree", "own_seeds"]).astype(
            {"epsilon": float, "own_effect": float}))
    assert write_ledger(LAPTOP) == committed


# The reference -------------------------------------------------------------------------------------------------------


def test_smoke_is_shown_against_the_laptop():
    pd.testing.assert_frame_equal(reference_table("forgetting", "smoke"), reference_table("forgetting", "laptop"))
    assert reference_table("forgetting", "gpu") is None
    with pytest.raises(UsageError, match=r"Unknown measurement 'forgeting' \(the nearest: forgetting"):
        reference_table("forgeting", "laptop")


def test_the_reference_note_says_where_results_come_from(references):
    (references / "laptop" / "provenance.json").write_text(json.dumps({"seeds": [0, 1, 2], "provenance": {
        "hardware": {"device": "cpu", "threads": 2}, "date": "2026-01-02T03:04:05Z", "packages": {"torch": "9.9"}}}))
    assert reference_note("smoke") == "Reference: seeds [0, 1, 2], cpu (2 threads), 2026-01-02, torch 9.9."
    assert reference_note("gpu").startswith("No reference results are committed for gpu")


def test_smoke_makes_no_reference(references):
    with pytest.raises(UsageError, match="smoke is not evidence"):
        build_reference(load_profile("smoke"))


def test_reference_tables_keep_learning_rates_whole(references, monkeypatch):
    """Of a rate of 1.5625e-6 six decimals left 2e-6, which is no run's; seven digits keep small numbers too."""
    table = pd.DataFrame({"run": ["a", "b"], "learning_rate": [1.5625e-6, 9.375e-5], "n_intruders": [1, 2],
                          "accuracy": [2 / 3, 0.5]})

    def toy(profile, seeds):
        return table.assign(seed=seeds[0], whole=profile.whole)

    toys = {"toy": Measurement("toy", toy, ("run", "seed"), None),
            "none": Measurement("none", lambda profile, seeds: pd.DataFrame(), ("run",), None)}
    monkeypatch.setattr(reference_module, "MEASUREMENTS", toys)
    build_reference(LAPTOP, (5,))
    read = reference_table("toy", "laptop")
    assert read["learning_rate"].tolist() == [1.5625e-6, 9.375e-5] and read["n_intruders"].tolist() == [1, 2]
    assert read["accuracy"].tolist() == [0.6666667, 0.5] and read["seed"].tolist() == [5, 5] and read["whole"].all()
    assert reference_table("none", "laptop") is None


def test_references_can_be_made_one_by_one(references, monkeypatch):
    made = []
    toys = {name: Measurement(name, lambda profile, seeds, name=name: made.append(name) or pd.DataFrame({"seed": [0]}),
                              ("seed",), None) for name in ("one", "two")}
    monkeypatch.setattr(reference_module, "MEASUREMENTS", toys)
    build_reference(LAPTOP, only=["two"])
    assert made == ["two"] and not (references / "laptop" / "one.csv").exists()
    with pytest.raises(UsageError, match="Unknown measurement 'three'"):
        build_reference(LAPTOP, only=["three"])
    assert made == ["two"], "refused before anything is measured"


def test_a_table_that_stays_keeps_where_it_comes_from(references, monkeypatch):
    """Only what is made anew gets a new date: a table of last month is not of today because its neighbour is."""
    toys = {name: Measurement(name, lambda profile, seeds: pd.DataFrame({"seed": list(seeds)}), ("seed",), None)
            for name in ("one", "two", "three")}
    dates = iter(range(1, 9))
    monkeypatch.setattr(reference_module, "MEASUREMENTS", toys)
    monkeypatch.setattr(reference_module, "provenance", lambda: {"date": next(dates)})
    record = references / "laptop" / "provenance.json"

    def origins() -> dict[str, tuple]:
        found = json.loads(record.read_text())
        usual = {name: {"seeds": found["seeds"], "provenance": found["provenance"]} for name in toys}
        return {name: (one["provenance"]["date"], one["seeds"]) for name, one in (usual | found["tables"]).items()}

    build_reference(LAPTOP, (5,))
    assert origins() == dict.fromkeys(toys, (1, [5])) and json.loads(record.read_text())["tables"] == {}
    build_reference(LAPTOP, (6, 7), only=["two"])
    assert origins() == {"one": (1, [5]), "two": (2, [6, 7]), "three": (1, [5])}
    build_reference(LAPTOP, (8,), only=["three"])
    assert origins() == {"one": (1, [5]), "two": (2, [6, 7]), "three": (3, [8])}
    record.write_text("[]")
    with pytest.raises(CourseError, match="is not as it was written"):
        build_reference(LAPTOP, only=["one"])


def test_every_measurement_says_what_it_is():
    for entry in MEASUREMENTS.values():
        assert entry.function.__doc__ and entry.columns, entry.name
