"""Publishing a figure and telling what was found: where it goes, what is shown, what is refused."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from utils.errors import CourseError
from utils.ledger import session
from utils.ledger.session import measured, measured_tables, start_session
from utils.profiles import load_profile
from utils.reporting import publish as publish_module
from utils.reporting import registry
from utils.reporting.drawn import Drawn, Found, figure, finding, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import panels
from utils.reporting.publish import PUBLISH_VARIABLE, STAMP, found, publish, published_alt

ALT = "A line plot of intruder dimensions against epsilon: 12 for LoRA and 0 for full fine-tuning at 0.5."
CAPTION = "Intruder dimensions against epsilon."
TABLE = pd.DataFrame({"method": ["full", "LoRA r=8"], "n_intruders": [0, 12], "run": ["run-b2", "run-a1"],
                      "seed": [3, 3]})
LAPTOP = load_profile("laptop")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of figures, registries of the test's own, and what was displayed."""
    monkeypatch.setenv("LORA_COURSE_FIGURES", str(tmp_path))
    monkeypatch.delenv(PUBLISH_VARIABLE, raising=False)
    for name in ("FIGURES", "FINDINGS"):
        monkeypatch.setattr(registry, name, {})
    monkeypatch.setattr(publish_module, "FINDINGS", registry.FINDINGS)
    return tmp_path


@pytest.fixture
def displayed(monkeypatch) -> list:
    shown: list = []
    monkeypatch.setattr(publish_module, "display", shown.append)
    return shown


def data(profile=LAPTOP, reference=None) -> Measured:
    return Measured("counts", profile, (3,), TABLE, reference)


def count_figure(**changes):
    """A registered figure function that draws one line."""
    @figure("04_count", measurements=("counts",), place="Fig 4")
    def count(counts: Measured) -> Drawn:
        drawn, (axis,) = panels(1, width=4, height=3)
        axis.plot([0, 1], [0, 12])
        return Drawn(**({"figure": drawn, "alt": ALT, "caption": CAPTION, "table": counts.own,
                         "shown": shown_table(counts.own, {"method": "method", "n_intruders": "intruders"})} | changes))

    return count


def test_a_readers_figure_goes_to_yours_and_a_published_one_beside_it(folder, displayed, monkeypatch):
    draw = count_figure()
    publish(draw(data()))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == {"yours/laptop/04_count.png"}
    monkeypatch.setenv(PUBLISH_VARIABLE, "1")
    publish(draw(data()))
    assert (folder / "laptop" / "04_count.png").exists() and published_alt("04_count", "laptop") == ALT


def test_publishing_writes_image_table_and_provenance(folder, displayed):
    publish(count_figure()(data()))
    place = folder / "yours" / "laptop"
    assert {path.name for path in place.iterdir()} == {f"04_count.{kind}" for kind in ("png", "svg", "csv", "json")}
    assert plt.imread(place / "04_count.png").size and "</svg>" in (place / "04_count.svg").read_text(encoding="utf-8")
    pd.testing.assert_frame_equal(pd.read_csv(place / "04_count.csv"), TABLE, check_dtype=False)
    entry = json.loads((place / "04_count.json").read_text(encoding="utf-8"))
    assert (entry["alt"], entry["caption"], entry["rows"], entry["evidence"]) == (ALT, CAPTION, 2, True)
    assert entry["runs"] == ["run-a1", "run-b2"] and {"torch", "peft"} <= set(entry["provenance"]["packages"])
    assert plt.get_fignums() == [], "a course of many figures must not pile them up in memory"


def test_the_alt_text_is_in_the_image_alone_and_no_run_hash_is_shown(folder, displayed):
    publish(count_figure()(data()))
    image, caption, table = displayed
    assert image.alt == ALT and caption.data.startswith(f"*{CAPTION}* Table: ") and ALT not in caption.data
    assert list(table.data.columns) == ["method", "intruders"]
    assert "run-" not in caption.data + table.to_html()


def test_an_executed_notebook_differs_only_where_a_number_does(folder, displayed):
    draw = count_figure()
    for _ in range(2):
        publish(draw(data()))
    assert displayed[2].to_html() == displayed[5].to_html()


def test_a_label_longer_than_its_panel_is_broken_and_nothing_is_cut_off(folder, displayed):
    drawn = count_figure()(data())
    axis = drawn.figure.axes[0]
    axis.set(ylabel="intruder dimensions of the tuned encoder model", title="epsilon", xlabel="$a b$")
    publish(drawn)
    image = plt.imread(folder / "yours" / "laptop" / "04_count.png")[..., :3]
    edges = (image[:2], image[-2:], image[:, :2], image[:, -2:])
    assert min(edge.min() for edge in edges) > 0.9, "something dark touches the image's edge"
    assert axis.get_ylabel() == "intruder dimensions of\nthe tuned encoder model"
    assert (axis.get_title(), axis.get_xlabel()) == ("epsilon", "$a b$"), "what fits stays as it is"


@pytest.mark.parametrize("profile, stamped", [("smoke", True), ("laptop", False)])
def test_only_a_profile_without_evidence_is_stamped(folder, displayed, profile, stamped):
    drawn = count_figure()(data(load_profile(profile)))
    publish(drawn)
    assert (STAMP in [text.get_text() for text in drawn.figure.texts]) is stamped
    entry = json.loads((folder / "yours" / profile / "04_count.json").read_text(encoding="utf-8"))
    assert entry["evidence"] is not stamped


def test_equal_figures_are_equal_files(folder, displayed):
    """No date or random id in the images: a figure that did not change makes no difference to review."""
    draw, seen = count_figure(), []
    for _ in range(2):
        publish(draw(data()))
        seen.append([(folder / "yours" / "laptop" / f"04_count.{kind}").read_bytes() for kind in ("png", "svg", "csv")])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("changes, sentence", [
    ({"table": TABLE.iloc[:0]}, "needs a table with rows and an alt text"), ({"alt": "A plot."}, "alt text"),
    ({"caption": "Short."}, "needs a caption of one sentence"), ({"caption": "No full stop at its end"}, "caption"),
    ({"shown": pd.DataFrame({name: [1] for name in "abcdefg"})}, "has 1 rows and 7 columns; show at most 8 and 6"),
    ({"shown": pd.DataFrame({"a": range(9)})}, "has 9 rows and 1 columns")])
def test_what_a_reader_cannot_use_is_refused_before_anything_is_written(folder, displayed, changes, sentence):
    with pytest.raises(CourseError, match=sentence):
        publish(count_figure(**changes)(data()))
    assert not list(folder.rglob("*.*"))


def test_a_figure_without_a_profile_or_a_name_is_refused(folder, displayed):
    with pytest.raises(CourseError, match="Figure '04_count' was given neither a measured table nor a profile"):
        count_figure()(TABLE)
    unnamed = Drawn(plt.figure(), ALT, CAPTION, TABLE, profile=LAPTOP)
    with pytest.raises(CourseError, match="Expected what a registered figure function returns"):
        publish(unnamed)


# What was found -------------------------------------------------------------------------------------------------------


def test_a_finding_is_computed_from_the_figures_own_tables_and_says_the_opposite_where_they_do(folder, displayed):
    @finding("04_count")
    def count_found(counts: Measured) -> Found:
        lora = counts.best.set_index("method").loc["LoRA r=8", "n_intruders"]
        return Found(f"LoRA has {lora} intruders, {counts.source}.", bool(lora > 0))

    none = TABLE.assign(n_intruders=0, seed=[0, 1])
    draw = count_figure()
    for given in (data(), data(reference=none)):
        found(draw(given))
    first, second = (shown.data for shown in displayed)
    assert first == "**Found.** LoRA has 12 intruders, your runs (seed 3). *As expected.*"
    assert second == ("**Found.** LoRA has 0 intruders, the reference (seeds 0, 1). *Not what was expected.*")


def test_a_figure_without_a_finding_is_named(folder, displayed):
    with pytest.raises(CourseError, match="Figure '04_count' has no finding; write one beside its function"):
        found(count_figure()(data()))


# One object from measurement to verdict -------------------------------------------------------------------------------


def test_measured_knows_own_reference_and_published_and_is_remembered(monkeypatch):
    calls = []

    def measure(profile, seeds):
        calls.append((profile.profile, seeds))
        return pd.DataFrame({"seed": [3], "method": ["full"], "r": [0], "loss": [1.0]})

    printed = pd.DataFrame({"loss": [0.5]})
    one = registry.Measurement("toy", measure, ("seed", "loss"), lambda: printed)
    monkeypatch.setattr(session, "measurement_named", lambda name: one)
    monkeypatch.setattr(session, "reference_table", lambda name, profile: None)
    start_session()
    result = measured("toy", LAPTOP, (3,))
    assert calls == [("laptop", (3,))] and result.published is printed and result.reference is None
    assert result.best is result.own and result.own["method_kind"].tolist() == ["full"]
    assert list(measured_tables(LAPTOP)) == ["toy"] and measured_tables(load_profile("smoke")) == {}
    start_session()
    assert measured_tables(LAPTOP) == {}


def test_rows_are_chosen_in_own_and_reference_alike():
    both = Measured("counts", LAPTOP, (3,), TABLE, TABLE.assign(n_intruders=7))
    chosen = both.where("method == 'full'")
    assert len(chosen.own) == len(chosen.reference) == 1 and chosen.reference["n_intruders"].tolist() == [7]
