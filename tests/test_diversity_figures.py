"""The figures of notebook 11 draw what their tables hold, with code run and without."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.selection import marked
from utils.studies.diversity import figures as diversity_figures
from utils.studies.diversity import model_figures

SMOKE = load_profile("smoke")
LOW, HIGH = SMOKE.decoder_evaluation.temperature, SMOKE.decoder_evaluation.high_temperature

UNIQUE = {"base": {"t1": 8, "t2": 6}, "full": {"t1": 2, "t2": 4}, "LoRA r=8": {"t1": 5, "t2": 5}}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def diversity(run: bool, seeds=(0,)) -> pd.DataFrame:
    """Two problems of eight generations; where code was run, three pass, and each higher seed has one string more."""
    rows = []
    for method, counts in UNIQUE.items():
        for seed in seeds:
            for task, unique in counts.items():
                shares = {"passed": (3, 1), "failed": (5, unique - 1)} if run else {
                    "passed": (0, 0), "failed": (0, 0), "not run": (8, unique)}
                rows += [{"method": method, "r": 8 * ("LoRA" in method), "seed": seed, "temperature": temperature,
                          "task_id": task, "outcome": outcome, "n": n, "unique": found + seed, "m": 4,
                          "unique_ratio": found / 8, "rarefied": float(found), "distinct_1": 0.5, "distinct_2": 0.25,
                          "self_bleu": 0.75, "mean_tokens": 10.0 + found}
                         for outcome, (n, found) in (shares | {"all": (8, unique)}).items()
                         for temperature in (LOW, HIGH)]
    return pd.DataFrame(rows)


def measured(run: bool, seeds=None, run_there: bool | None = None) -> Measured:
    """Seed 0 as the reader's own; `seeds` as the reference's, where code was run or not."""
    reference = None if seeds is None else marked(diversity(run if run_there is None else run_there, seeds))
    return Measured("diversity", SMOKE, (0,), marked(diversity(run)), reference)


def rates(seeds=(0,)) -> pd.DataFrame:
    values = {"base": 0.1, "full": 0.3}
    return pd.DataFrame([{"method": method, "seed": seed, "temperature": temperature, "k": k,
                          "pass_at_k": value * k + 0.1 * seed, "low": value * k - 0.05, "high": value * k + 0.05}
                         for method, value in values.items() for seed in seeds for temperature in (0.2, 0.8)
                         for k in (1, 2)])


def means(axis) -> list[float]:
    """What the large markers show, by method."""
    return [float(one.lines[0].get_ydata()[0]) for one in axis.containers]


def test_without_code_only_all_generations_are_counted():
    kept = diversity_figures.outcome_rows(diversity(run=False))
    assert kept["outcome"].unique().tolist() == ["all"]
    assert kept[kept["temperature"] == LOW]["unique"].tolist() == [8, 6, 2, 4, 5, 5]
    run = diversity_figures.outcome_rows(diversity(run=True))
    assert set(run["panel"]) == {"passing", "failing", "passing or not"}
    assert diversity_figures.outcome_rows(None) is None


def test_means_over_problems_skip_those_without_a_value():
    table = diversity(run=True).assign(rarefied=[float("nan") if task == "t2" else 3.0 for task in
                                                 diversity(run=True)["task_id"]])
    found = diversity_figures.over_problems(table[table["temperature"] == LOW], ["unique", "rarefied"])
    found = found.set_index(["method", "outcome"])
    assert found.loc[("base", "failed"), "unique"] == (7 + 5) / 2
    assert found.loc[("base", "all"), "rarefied"] == 3.0
    assert len(found) == 9


def test_figure_5_has_a_panel_per_outcome_with_means_intervals_and_problems():
    drawn = diversity_figures.unique_strings(measured(run=True))
    assert [axis.get_title() for axis in drawn.figure.axes] == ["passing", "failing", "passing or not"]
    failing = drawn.figure.axes[1]
    assert means(failing) == [6.0, 2.0, 4.0]
    assert [label.get_text() for label in failing.get_xticklabels()] == ["base", "full", "LoRA r=8"]
    problems = [line for line in failing.get_lines() if line.get_alpha() == 0.35]
    assert [sorted(line.get_ydata()) for line in problems] == [[5, 7], [1, 3], [4, 4]]
    bar = failing.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert tuple(bar) == (5, 7), "a bootstrap over two problems reaches from one to the other, and no further"
    assert to_hex(failing.containers[1].lines[0].get_color()) == "#000000", "full fine-tuning is black"
    assert "failing, full: 2.0 of 5.0" in drawn.alt and len(drawn.shown) == 6


def test_the_band_is_the_seeds_means_and_a_panel_without_own_code_says_so():
    drawn = diversity_figures.unique_strings(measured(run=False, seeds=(0, 1), run_there=True))
    axes = drawn.figure.axes
    assert [axis.get_title() for axis in axes] == ["passing", "failing", "passing or not"]
    assert [len(axis.texts) for axis in axes] == [1, 1, 0]
    assert means(axes[0]) == [] and means(axes[2]) == [7.0, 3.0, 5.0]
    edges = axes[2].collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (7.0, 8.0), "base: seed 0 has 8 and 6, seed 1 one more of each"
    assert "passing or not, base: 7.5 of 8.0" in drawn.alt and "the reference (seeds 0, 1)" in drawn.alt


def test_without_code_there_is_one_panel_and_rows_of_several_seeds_are_one_problem():
    both = marked(diversity(run=False, seeds=(0, 1)))
    (axis,) = diversity_figures.unique_strings(Measured("diversity", SMOKE, (0, 1), both)).figure.axes
    problems = [line for line in axis.get_lines() if line.get_alpha() == 0.35]
    assert [sorted(line.get_ydata()) for line in problems] == [[6.5, 8.5], [2.5, 4.5], [5.5, 5.5]]


def test_unique_strings_stand_against_their_number():
    drawn = diversity_figures.unique_against_count(measured(run=True))
    assert [axis.get_title() for axis in drawn.figure.axes] == ["passing", "failing"]
    lines = {line.get_label(): line for line in drawn.figure.axes[1].get_lines()}
    assert lines["full"].get_xdata().tolist() == [5, 5] and lines["full"].get_ydata().tolist() == [1, 3]
    assert tuple(lines["all different"].get_xdata()) == tuple(lines["all different"].get_ydata()) == (0, 5)
    assert "8% of the points" in drawn.alt, "base fails on its second problem five times in five ways"


def test_the_difference_from_the_base_is_paired_by_problem():
    shown = diversity_figures.normalised(measured(run=True)).shown
    low = shown[shown["temperature"] == LOW].set_index("method")
    assert low["minus base"].to_dict() == {"full": -4.0, "LoRA r=8": -2.0} and set(low["problems"]) == {2}


@pytest.mark.parametrize("draw, told", [
    (diversity_figures.normalised, "full: share 0.38, rarefied 3.00"),
    (diversity_figures.token_diversity, "full: 0.500, 0.250, 0.750, 13.0"),
    (diversity_figures.unique_against_length, "correlation over all 6 points"),
    (diversity_figures.temperatures, f"full at {HIGH:g}: 3.0")])
def test_the_alt_texts_tell_the_tables_numbers(draw, told):
    assert told in draw(measured(run=True)).alt


def test_entropy_begins_at_certainty_and_is_compared_with_the_base():
    rows = [{"method": method, "r": 0, "seed": 0, "text": "problems", "entropy_nats": value, "tokens": 9}
            for method, value in (("base", 3.0), ("full", 3.25))]
    drawn = model_figures.token_entropy(Measured("token_entropy", SMOKE, (0,), marked(pd.DataFrame(rows))))
    (axis,) = drawn.figure.axes
    assert means(axis) == [3.0, 3.25] and axis.get_ylim()[0] == 0 and not axis.containers[0].has_yerr
    assert drawn.shown["minus base"].tolist() == [0.0, 0.25] and "problems, full: 3.250" in drawn.alt


def test_pass_curves_have_a_panel_per_temperature_and_intervals():
    drawn = model_figures.pass_curves(Measured("pass_rates", SMOKE, (0,), rates(), rates((0, 1))))
    axes = drawn.figure.axes
    assert [axis.get_title() for axis in axes] == ["temperature 0.2", "temperature 0.8"]
    full = [line for line in axes[1].get_lines() if line.get_label() == "full"]
    assert full[0].get_ydata().tolist() == pytest.approx([0.3, 0.6])
    ends = [end for one in axes[1].collections if isinstance(one, LineCollection) for segment in one.get_segments()
            for end in segment[:, 1]]
    assert ends == pytest.approx([0.05, 0.15, 0.15, 0.25, 0.25, 0.35, 0.55, 0.65])
    bands = [one.get_paths()[0].vertices[:, 1] for one in axes[1].collections if not isinstance(one, LineCollection)]
    assert (bands[0].min(), bands[0].max()) == pytest.approx((0.1, 0.3)), "base at k = 1 of seed 0, at k = 2 of seed 1"
    assert "full at 0.8 pass@1 0.35" in drawn.alt, "the reference's mean"


def test_without_own_code_the_reference_is_drawn_and_named():
    drawn = model_figures.pass_curves(Measured("pass_rates", SMOKE, (0,), pd.DataFrame(), rates((0, 1))))
    assert drawn.figure.axes[0].get_title() == "temperature 0.2, reference"
    base = [line for line in drawn.figure.axes[0].get_lines() if line.get_label() == "base"]
    assert base[0].get_ydata().tolist() == pytest.approx([0.15, 0.25]), "the mean of two seeds"
