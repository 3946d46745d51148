"""The figures of notebook 11 draw what their tables hold, with code run and without."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from utils.reporting.statistics import mean_interval
from utils.studies.diversity import figures as diversity_figures

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
                rows += [{"method": method, "seed": seed, "temperature": 0.2, "task_id": task, "outcome": outcome,
                          "n": n, "unique": found + seed}
                         for outcome, (n, found) in (shares | {"all": (8, unique)}).items()]
    return pd.DataFrame(rows)


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
    assert kept["unique"].tolist() == [8, 6, 2, 4, 5, 5]
    run = diversity_figures.outcome_rows(diversity(run=True))
    assert set(run["panel"]) == {"passing", "failing", "passing or not"}
    assert diversity_figures.outcome_rows(None) is None


def test_means_over_problems_skip_those_without_a_value():
    table = diversity(run=True).assign(rarefied=[float("nan") if task == "t2" else 3.0 for task in
                                                 diversity(run=True)["task_id"]])
    found = diversity_figures.over_problems(table, ["unique", "rarefied"]).set_index(["method", "outcome"])
    assert found.loc[("base", "failed"), "unique"] == (7 + 5) / 2
    assert found.loc[("base", "all"), "rarefied"] == 3.0
    assert len(found) == 9


def test_figure_5_has_a_panel_per_outcome_with_means_intervals_and_problems():
    own = diversity_figures.outcome_rows(diversity(run=True))
    figure = diversity_figures.method_points(own, y="unique", ylabel="unique strings")
    assert [axis.get_title() for axis in figure.axes] == ["passing", "failing", "passing or not"]
    failing = figure.axes[1]
    assert means(failing) == [6.0, 2.0, 4.0]
    assert [label.get_text() for label in failing.get_xticklabels()] == ["base", "full", "LoRA r=8"]
    problems = [line for line in failing.get_lines() if line.get_alpha() == 0.35]
    assert [sorted(line.get_ydata()) for line in problems] == [[5, 7], [1, 3], [4, 4]]
    bar = failing.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert tuple(bar) == pytest.approx(mean_interval([7, 5])[1:])
    assert to_hex(failing.containers[1].lines[0].get_color()) == "#000000", "full fine-tuning is black"


def test_the_band_is_the_seeds_means_and_a_panel_without_own_code_says_so():
    own = diversity_figures.outcome_rows(diversity(run=False))
    band = diversity_figures.outcome_rows(diversity(run=True, seeds=(0, 1)))
    figure = diversity_figures.method_points(own, band, y="unique", ylabel="unique strings")
    assert [axis.get_title() for axis in figure.axes] == ["passing", "failing", "passing or not"]
    assert [len(axis.texts) for axis in figure.axes] == [1, 1, 0]
    assert means(figure.axes[0]) == [] and means(figure.axes[2]) == [7.0, 3.0, 5.0]
    edges = figure.axes[2].collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (7.0, 8.0), "base: seed 0 has 8 and 6, seed 1 one more of each"


def test_rows_of_several_seeds_are_one_problem():
    own = diversity_figures.outcome_rows(diversity(run=False, seeds=(0, 1)))
    (axis,) = diversity_figures.method_points(own, y="unique", ylabel="").axes
    problems = [line for line in axis.get_lines() if line.get_alpha() == 0.35]
    assert [sorted(line.get_ydata()) for line in problems] == [[6.5, 8.5], [2.5, 4.5], [5.5, 5.5]]


def test_a_single_value_has_no_interval_and_missing_ones_are_not_drawn():
    entropy = pd.DataFrame({"panel": "general text", "method": ["base", "full"], "seed": 0,
                            "entropy_nats": [3.0, None]})
    (axis,) = diversity_figures.method_points(entropy, y="entropy_nats", unit="seed", ylabel="nats").axes
    assert means(axis) == [3.0] and not axis.containers[0].has_yerr


def test_unique_strings_stand_against_their_number():
    rows = diversity_figures.outcome_rows(diversity(run=True))
    figure = diversity_figures.unique_against_count(rows[rows["outcome"] != "all"])
    assert [axis.get_title() for axis in figure.axes] == ["passing", "failing"]
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert lines["full"].get_xdata().tolist() == [5, 5] and lines["full"].get_ydata().tolist() == [1, 3]
    assert tuple(lines["all different"].get_xdata()) == tuple(lines["all different"].get_ydata()) == (0, 5)


def test_pass_curves_have_a_panel_per_temperature_and_intervals():
    figure = diversity_figures.pass_curves(rates(), rates((0, 1)))
    assert [axis.get_title() for axis in figure.axes] == ["temperature 0.2", "temperature 0.8"]
    full = [line for line in figure.axes[1].get_lines() if line.get_label() == "full"]
    assert full[0].get_ydata().tolist() == pytest.approx([0.3, 0.6])
    drawn = figure.axes[1].collections
    ends = [end for one in drawn if isinstance(one, LineCollection) for segment in one.get_segments()
            for end in segment[:, 1]]
    assert ends == pytest.approx([0.05, 0.15, 0.15, 0.25, 0.25, 0.35, 0.55, 0.65])
    bands = [one.get_paths()[0].vertices[:, 1] for one in drawn if not isinstance(one, LineCollection)]
    assert (bands[0].min(), bands[0].max()) == pytest.approx((0.1, 0.3)), "base at k = 1 of seed 0, at k = 2 of seed 1"


def test_without_own_code_the_reference_is_drawn_and_named():
    figure = diversity_figures.pass_curves(pd.DataFrame(), rates((0, 1)))
    assert figure.axes[0].get_title() == "temperature 0.2, reference"
    base = [line for line in figure.axes[0].get_lines() if line.get_label() == "base"]
    assert base[0].get_ydata().tolist() == pytest.approx([0.15, 0.25]), "the mean of two seeds"
