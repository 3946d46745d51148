"""Claims: read and refused with one sentence, bound to what exists, judged on the committed tables, found by id."""

import math
import os
import re

import pandas as pd
import pytest

import utils.studies
from utils.errors import CourseError, UsageError
from utils.ledger import claims as ledger_claims
from utils.ledger import reference
from utils.ledger.claims import claim_named, claims, own_verdicts, verdicts
from utils.ledger.notebook import begin
from utils.ledger.reference import reference_table
from utils.ledger.where import where
from utils.profiles import PROFILE_NAMES, load_profile
from utils.reporting import registry
from utils.reporting.claims import Claim, effects_of, judge_claim
from utils.reporting.registry import MEASUREMENTS, RULES, Measurement, measurement, rule
from utils.reporting.rules import CLAIM_EPSILONS, Effects, by_seed
from utils.reporting.verdicts import NO_POWER, OUT_OF_REACH, TOO_FEW
from utils.studies import load_studies

load_studies()

CLAIM = {"id": "x", "notebook": "04", "kind": "paper", "paper": "Illusion v3", "sentence": "It falls.",
         "measurement": "intruder_counts", "rule": "trend_from_rank", "parameters": {"from_rank": 8},
         "unit": "Spearman's rho", "expect": {"below": 0}, "control": "none",
         "published": {"statement": "It falls.", "place": "Fig 4"}}


def toml(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Claims of a study of its own; returns a function that writes them and reads all claims anew."""
    (tmp_path / "one").mkdir()
    monkeypatch.setattr(ledger_claims, "STUDIES", tmp_path)

    def read(*changes: dict, text: str | None = None) -> tuple[Claim, ...]:
        entries = [CLAIM | change for change in changes]
        lines = [line for entry in entries for line in ("[[claim]]", *(
            f"{key} = {toml(value)}" for key, value in entry.items() if value is not None))]
        (tmp_path / "one" / "claims.toml").write_text(text or "\n".join(lines), encoding="utf-8")
        return claims.__wrapped__()

    return read


def test_a_claim_is_read_with_its_study(file):
    claim, = file({})
    assert claim.study == "one" and claim.epsilons == CLAIM_EPSILONS and claim.published.place == "Fig 4"


@pytest.mark.parametrize("change, sentence", [
    ({"rule": "trend_from_rnk"}, (r"claim 'x' names the rule 'trend_from_rnk', which does not exist \(the nearest: "
                                  "trend_from_rank")),
    ({"measurement": "intruder_count"}, r"names the measurement 'intruder_count'.*the nearest: intruder_counts"),
    ({"parameters": {"from_rnk": 8}}, r"names the parameter of rule 'trend_from_rank' 'from_rnk'.*nearest: from_rank"),
    ({"parameters": {"from_rank": 8, "epsilon": 0.7}}, "names the parameter of rule 'trend_from_rank' 'epsilon'"),
    ({"parameters": {}}, "claim 'x' lacks the parameter 'from_rank' of rule 'trend_from_rank'"),
    ({"rule": "last_minus_first", "measurement": "intruder_growth", "parameters": {"column": "n_intruder"}},
     "column of measurement 'intruder_growth' 'n_intruder'.*the nearest: n_intruders"),
    ({"measurement": "intruder_places"}, "column of measurement 'intruder_places' 'accuracy'"),
    ({"rule": "goes_along", "measurement": "learning_curves",
      "parameters": {"x": "learning", "y": "forgetting", "in_experiment": "cod"}},
     "names the experiment 'cod', which no profile has .*code"),
    ({"expect": {"above": 0, "below": 1}}, "claim 'x', expect: .*exactly one of"),
    ({"expect": None}, "claim 'x', the claim: .*Expected measurement, rule, unit and expect"),
    ({"published": None}, "Expected 'published' for a claim of kind 'paper'"),
    ({"paper": "Ilusion v3"}, r"names the paper 'Ilusion v3', which does not exist \(the nearest: Illusion v3"),
    ({"notebook": "4"}, r"names the notebook '4', which does not exist \(the nearest: "),
    ({"out_of_reach": ["lptop"]}, r"names the profile 'lptop', which does not exist \(the nearest: laptop"),
    ({"expect": {"above": math.nan}}, "claim 'x', expect.above: .*finite number"),
    ({"kind": "theirs"}, "claim 'x', kind: "), ({"rul": "x"}, "claim 'x', rul: "),
])
def test_a_claim_that_names_what_does_not_exist_is_refused_when_claims_load(file, change, sentence):
    with pytest.raises(CourseError, match=r"^one/claims.toml: .*" + sentence) as refusal:
        file(change)
    assert "\n" not in str(refusal.value)


def test_a_claim_twice_and_a_broken_file_are_refused(file):
    with pytest.raises(CourseError, match="Expected one claim of each id, got 'x' in one and in one"):
        file({}, {})
    with pytest.raises(CourseError, match="one/claims.toml is not TOML: .*line 1"):
        file(text="[[claim]")


@pytest.mark.parametrize("text, got", [("[[claims]]\nid = 'x'", "claims"), ("[claim]\nid = 'x'", "claim"),
                                       ("# none", "nothing"), ("claim = [1]", "claim"),
                                       ("rule = 'x'\n[[claim]]\nid = 'x'", "rule, claim")])
def test_claims_that_would_be_passed_over_in_silence_are_refused(file, text, got):
    with pytest.raises(CourseError, match=rf"one/claims.toml: expected tables headed \[\[claim\]\] .*, got {got};"):
        file(text=text)


def test_a_file_of_claims_that_nothing_reads_is_named(file, tmp_path):
    (tmp_path / "one" / "claim.toml").write_text("")
    with pytest.raises(CourseError, match="Expected claims in <study>/claims.toml alone, got one/claim.toml"):
        file({})
    (tmp_path / "one" / "claim.toml").rename(tmp_path / "one" / ".kept.toml")
    assert len(file({})) == 1, "what an editor keeps is no file of claims"
    (tmp_path / "one" / "claims.toml").write_bytes(b"# \xe4")
    with pytest.raises(CourseError, match="one/claims.toml is not UTF-8"):
        claims.__wrapped__()


def test_a_claim_out_of_reach_everywhere_needs_no_rule(file):
    nothing = dict.fromkeys(("measurement", "rule", "parameters", "unit", "expect"))
    claim, = file(nothing | {"out_of_reach": list(PROFILE_NAMES)})
    assert judge_claim(claim, None, "laptop").verdict == OUT_OF_REACH and claim.epsilons == (None,)


def test_a_study_that_nothing_imports_is_named(tmp_path, monkeypatch):
    (tmp_path / "forgotten").mkdir()
    (tmp_path / "forgotten" / "rules.py").write_text("")
    monkeypatch.setattr(utils.studies, "__path__", [*utils.studies.__path__, str(tmp_path)])
    with pytest.raises(CourseError, match="The study forgotten has no __init__.py, so nothing imports it"):
        load_studies.__wrapped__()


@pytest.mark.parametrize("place", ["loose.py", "deep/in/rules.py"])
def test_a_module_that_nothing_imports_is_named(tmp_path, monkeypatch, place):
    for hidden in (tmp_path / ".ipynb_checkpoints" / "copy.py", tmp_path / place):
        hidden.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_text("")
    monkeypatch.setattr(utils.studies, "__path__", [*utils.studies.__path__, str(tmp_path)])
    with pytest.raises(CourseError, match=f"Expected modules in studies/<study>/ alone, got studies/{place}"):
        load_studies.__wrapped__()
    (tmp_path / place).unlink()
    assert "intruders" in load_studies.__wrapped__(), "what an editor keeps is no study"


@pytest.fixture
def registries(monkeypatch):
    """Registries that a test may add to."""
    for name in ("RULES", "MEASUREMENTS", "FIGURES", "FINDINGS"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def test_two_of_a_name_are_refused_and_a_reloaded_module_is_not(registries):
    def other_place():
        @rule(needs=("seed",))
        def trend_from_rank(table):
            return None

    with pytest.raises(CourseError, match="There are two rules named 'trend_from_rank', in utils.studies.intruders"):
        other_place()
    function = RULES["trend_from_rank"].function
    assert rule(needs=())(function) is function


def test_a_figure_without_its_measurement_and_a_finding_without_its_figure_are_named(registries):
    registry.add_finding("04_count_against_epsilom", where)
    with pytest.raises(CourseError, match="names the figure '04_count_against_epsilom', which does not exist .*ilon"):
        load_studies.__wrapped__()
    registry.FINDINGS.pop("04_count_against_epsilom")
    registry.add_figure(registry.FigureEntry("99_new", where, ("intruder_count",), "ours"))
    with pytest.raises(CourseError, match="'99_new' names the measurement 'intruder_count', which .*intruder_counts"):
        load_studies.__wrapped__()


def test_a_rule_with_a_positional_parameter_is_refused():
    with pytest.raises(CourseError, match="Rule 'one' takes a table and keyword-only parameters; got"):
        @rule(needs=("seed",))
        def one(table, rank):
            return None


def test_a_measurement_without_its_columns_is_named(registries):
    @measurement(columns=("seed", "accuracy"))
    def short(profile, seeds=None):
        return pd.DataFrame({"seed": [0]})

    found: Measurement = registry.MEASUREMENTS["short"]
    with pytest.raises(CourseError, match="Expected the column 'accuracy' of measurement 'short' in a test, got seed"):
        found.checked(short(None), "a test")
    with pytest.raises(CourseError, match="Expected a table of measurement 'short' in a test, got a NoneType"):
        found.checked(None, "a test")
    assert found.checked(pd.DataFrame(), "a test").empty, "no rows is no measurement, and no fault"


def test_a_reference_table_without_a_declared_column_is_named(tmp_path, monkeypatch):
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / "intruder_growth.csv").write_text("seed,r\n0,8\n")
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    with pytest.raises(CourseError, match="Expected the column '.*' of measurement 'intruder_growth' in .*growth.csv"):
        reference_table("intruder_growth", "laptop")


def test_a_rule_that_finds_nothing_fails_loudly_and_is_not_a_missing_run():
    table = reference_table("intruder_counts", "laptop").assign(r=lambda t: t["r"].astype(str))
    with pytest.raises(CourseError, match="Claim 'count-falls-beyond-a-rank': rule 'trend_from_rank' did not find what "
                                          "it needs in measurement 'intruder_counts' .*TypeError"):
        effects_of(claim_named("count-falls-beyond-a-rank"), table, 0.5)


def test_a_rule_that_returns_something_else_is_named(monkeypatch):
    claim = claim_named("count-falls-beyond-a-rank")
    monkeypatch.setitem(RULES, claim.rule, registry.Rule(claim.rule, lambda table, **given: pd.Series([1.0]), ()))
    with pytest.raises(CourseError, match="expected Effects from rule 'trend_from_rank', got Series"):
        effects_of(claim, reference_table("intruder_counts", "laptop"), 0.5)


# The claims that are committed --------------------------------------------------------------------------------------


def test_the_claims_are_sound():
    for claim in claims():
        assert claim.control and claim.sentence.endswith("."), claim.id
        assert re.fullmatch(r"\d\d[a-z]?", claim.notebook) and set(claim.out_of_reach) <= set(PROFILE_NAMES), claim.id
        assert claim.unit != "margin", f"{claim.id}: an effect is told in natural units"
        assert claim.kind != "paper" or not claim.reading, f"{claim.id}: a reading is a claim of ours"
        assert claim.kind != "ours" or claim.published is None or claim.reading, f"{claim.id}: how does it differ?"
        assert "too" not in claim.control.split()[:1]
    assert len(claims()) >= 125


@pytest.mark.parametrize("claim", [claim for claim in claims() if "laptop" not in claim.out_of_reach],
                         ids=lambda claim: claim.id)
def test_a_committed_table_answers_its_claim(claim):
    """The measurement's own columns are those the rule reads: a seed has an effect, or a reason why it has none."""
    table = reference_table(claim.measurement, "laptop")
    assert table is not None, f"no reference table of {claim.measurement}"
    every = [effects_of(claim, table, epsilon) for epsilon in claim.epsilons]
    for found in every:
        assert isinstance(found, Effects)
        assert not any(reason.startswith("the effect is") for reason in found.missing.values()), found.missing
        assert set(found.values.index[found.values.isna()]) <= set(found.missing), "no value, and no reason"
    found = every[0]
    assert found.values.notna().any() or set(found.missing) == set(found.values.index) != set()


@pytest.fixture(scope="module")
def laptop_verdicts() -> pd.DataFrame:
    return verdicts("laptop")


def test_claims_about_counts_are_judged_at_the_courses_epsilons(laptop_verdicts):
    table = laptop_verdicts
    judged = table[table["claim"] == "full-no-intruders"]
    assert judged["epsilon"].tolist() == list(CLAIM_EPSILONS)
    assert set(table["epsilon"].dropna()) == set(CLAIM_EPSILONS)


def test_a_floor_is_no_finding(laptop_verdicts):
    """At one fixed rate no run has an intruder at epsilon 0.5: nothing could fall with the rank."""
    floor = laptop_verdicts[laptop_verdicts["verdict"] == NO_POWER]
    assert len(floor) and floor["p"].isna().all() and floor["why"].str.len().gt(10).all()


# Every figure and table of the papers is named by a claim, by panel where panels say different things.
FIGURES = {"Illusion v3": ("1 2a 2b 2c 3 4a 4b 4c 4d 5 6a 6b 7 8 9a 9b 9c 10 11 12 13 14a 14b 15a 15b 15c 15d 16 17 "
                           "18 19 20 21 22 23").split()}
TABLES = {"Illusion v3": "1 2 3 4 5".split()}


def named_in(text: str, word: str) -> set[str]:
    """Numbers and panels after "Fig", "Figs", "Table" or "Tables": "Figs 9b, 9c and 18", "Fig 15b-d".

    >>> sorted(named_in("Figs 8 and 12, Table 3", "Fig"))
    ['12', '8']
    """
    found = set()
    for span in re.findall(rf"\b{word}s? ((?:\d+[a-z]?(?:-[a-z])?(?:, | and )?)+)", text):
        for number, first, end in re.findall(r"(\d+)([a-z]?)(?:-([a-z]))?", span):
            panels = [chr(code) for code in range(ord(first), ord(end or first) + 1)] if first else [""]
            found |= {number + panel for panel in panels}
    return found


@pytest.mark.parametrize("paper", FIGURES)
def test_every_figure_and_table_of_the_paper_has_a_claim(paper):
    """By its panel, or the whole figure where the claim speaks of all; and no claim names one that is not there."""
    texts = [claim.published.place for claim in claims() if claim.paper == paper and claim.published]
    figures, tables = (set().union(*(named_in(text, word) for text in texts)) for word in ("Fig", "Table"))
    assert [one for one in FIGURES[paper] if one not in figures and one.rstrip("abcd") not in figures] == []
    assert set(TABLES[paper]) == tables
    assert figures <= set(FIGURES[paper]) | {one.rstrip("abcd") for one in FIGURES[paper]}


# The reader's runs beside the reference ------------------------------------------------------------------------------


@pytest.fixture
def toy_claim(registries, file, monkeypatch):
    """One claim of ours on a table of two methods, judged at no epsilon."""
    @measurement(columns=("seed", "method", "r", "loss"))
    def toy_losses(profile, seeds=None):
        return pd.DataFrame()

    @rule(needs=("seed", "r", "loss"))
    def loss_gap(table):
        return by_seed(table, lambda part: part["loss"].iloc[1] - part["loss"].iloc[0], outcome="loss")

    from utils.reporting import claims as reporting_claims
    for module in (reporting_claims, ledger_claims):
        monkeypatch.setattr(module, "RULES", registry.RULES)
    for module in (reporting_claims, reference):
        monkeypatch.setattr(module, "MEASUREMENTS", registry.MEASUREMENTS)
    found = file({"measurement": "toy_losses", "rule": "loss_gap", "parameters": {}, "unit": "nats per token",
                  "expect": {"above": 0}})
    monkeypatch.setattr(ledger_claims, "claims", lambda: found)
    return found[0]


def losses(*gaps: float) -> pd.DataFrame:
    return pd.DataFrame([{"seed": seed, "method": method, "r": r, "loss": loss} for seed, gap in enumerate(gaps)
                         for method, r, loss in (("full", 0, 1.0), ("LoRA r=8", 8, 1.0 + gap))])


def test_own_runs_stand_beside_the_reference(toy_claim):
    table = own_verdicts({"toy_losses": losses(0.5, -0.25)}, load_profile("laptop"), "04")
    row, = table.to_dict("records")
    assert (row["claim"], row["own_agree"], row["own_seeds"]) == ("x", 1, 2) and row["own_effect"] == 0.125
    assert own_verdicts({}, load_profile("laptop"), "04").empty
    assert own_verdicts({"toy_losses": losses(0.5)}, load_profile("laptop"), "05").empty


@pytest.mark.parametrize("table, word", [(None, TOO_FEW), (pd.DataFrame(), TOO_FEW),
                                         (losses(0.5, 0.6, 0.55), "reproduced"), (losses(0.5, 0.6), TOO_FEW)])
def test_a_claim_is_judged_on_a_table(toy_claim, table, word):
    found = judge_claim(toy_claim, table, "laptop")
    assert found.verdict == word and (found.why or word != TOO_FEW)


def test_the_same_files_are_judged_once_and_changed_ones_anew(toy_claim, tmp_path, monkeypatch):
    """A verdict of yesterday's table is wrong, however quickly it comes: another content, another place, no file."""
    asked, judged = [], ledger_claims.judge_claim
    monkeypatch.setattr(ledger_claims, "judge_claim", lambda *given, **how: asked.append(1) or judged(*given, **how))
    for place in ("one", "other"):
        (tmp_path / place / "laptop").mkdir(parents=True)

    def verdict(place: str) -> str:
        monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path / place))
        found = verdicts("laptop")
        word = found["verdict"].item()
        found["verdict"] = "changed by who asked"
        return word

    def write(place: str, *gaps: float) -> None:
        path = tmp_path / place / "laptop" / "toy_losses.csv"
        state = path.stat() if path.exists() else None
        path.write_text(losses(*gaps).to_csv(index=False))
        if state is not None:  # the same size and the same time, as on a coarse clock
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    write("one", 0.5, 0.6, 0.5)
    assert [verdict("one") for _ in range(3)] == ["reproduced"] * 3 and len(asked) == 1
    write("one", 0.5, 0.6, 0.4)
    assert verdict("one") == "reproduced" and len(asked) == 2, "another table of the same size and time"
    assert verdict("other") == TOO_FEW and len(asked) == 3
    write("other", -0.5, -0.6, -0.5)
    assert (verdict("other"), verdict("one")) == ("not reproduced", "reproduced") and len(asked) == 4
    (tmp_path / "one" / "laptop" / "toy_losses.csv").unlink()
    assert verdict("one") == TOO_FEW


def test_a_table_that_is_written_while_it_is_judged_is_judged_anew(toy_claim, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    path = tmp_path / "laptop" / "toy_losses.csv"
    path.parent.mkdir()
    path.write_text(losses(0.5, 0.6, 0.55).to_csv(index=False))
    read = ledger_claims.reference_table

    def written_meanwhile(*given) -> pd.DataFrame:
        found = read(*given)
        path.write_text(losses(-0.5, -0.6, -0.55).to_csv(index=False))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ledger_claims, "reference_table", written_meanwhile)
        assert verdicts("laptop")["verdict"].item() == "reproduced"
    assert verdicts("laptop")["verdict"].item() == "not reproduced"


def test_a_notebook_without_claims_concludes_with_one_sentence():
    with pytest.raises(UsageError, match=r"There is no claim about notebook '4' \(the nearest: .*04"):
        verdicts("laptop", "4")


@pytest.mark.parametrize("seeds", [[1, 1], [-1], "0,1", 3, [0.5], [True]])
def test_seeds_that_are_no_list_of_different_numbers_are_refused_at_the_beginning(seeds):
    with pytest.raises(UsageError, match=r"Expected SEEDS to be a list of different whole numbers such as \[0, 1\]"):
        begin("04", "smoke", seeds)


# Where the code is ---------------------------------------------------------------------------------------------------


def test_where_leads_from_a_figure_to_its_code():
    text = where("04_count_against_epsilon")
    for part in (r"notebooks/04_intruder_dimensions.ipynb, cell \d+",
                 r"utils/studies/intruders/figures.py:\d+ \(count_against_epsilon\)",
                 r"measurement intruder_counts +utils/studies/intruders/measure.py:\d+",
                 r"claim full-no-intruders +utils/studies/intruders/claims.toml:\d+",
                 r"data/reference/laptop/intruder_counts.csv", "what is found"):
        assert re.search(part, text), (part, text)


def test_where_leads_from_a_claim_to_its_rule_and_figures():
    text = where("lora-intruders-each-rank")
    for part in (r"utils/studies/intruders/claims.toml:\d+", r"rules.py:\d+ \(least_up_to_rank\)",
                 "published +Illusion v3, Fig 4d", "figure 04_count_against_epsilon"):
        assert re.search(part, text), (part, text)
    place = re.search(r"claims.toml:(\d+)", text)[1]
    lines = (ledger_claims.STUDIES / "intruders" / "claims.toml").read_text().splitlines()
    assert "utils/ledger/page.py" in where("17_verdicts"), "the one figure that no study draws"
    assert lines[int(place) - 1] == 'id = "lora-intruders-each-rank"'


def test_where_tells_04b_from_04():
    text = where("04b_seeds")
    assert "notebooks/04b_catalogue_of_intruders.ipynb, cell" in text and "claim seeds-agree" in text
    assert "claim full-no-intruders" not in text, "judged on the same table, in notebook 04"
    text = where("seeds-agree")
    assert "figure 04b_seeds" in text and "figure 04_count_against_epsilon" not in text


def test_where_of_an_unknown_id_names_the_nearest():
    with pytest.raises(UsageError, match=r"There is no figure and no claim '04_count_against_epsilom' \(the nearest: "
                                         "04_count_against_epsilon"):
        where("04_count_against_epsilom")


@pytest.mark.parametrize("identifier", [*registry.FIGURES, *(claim.id for claim in claims())])
def test_everything_has_a_place(identifier):
    assert re.search(r"\.(py|toml):\d+", where(identifier))


def test_every_figure_stands_in_a_notebook_and_names_measurements_that_exist():
    for entry in registry.FIGURES.values():
        assert set(entry.measurements) <= set(MEASUREMENTS), entry.identifier
        assert "cell" in re.search(r"notebook cell +(.*)", where(entry.identifier))[1], entry.identifier
