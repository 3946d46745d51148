"""Figures of notebook 05: the numbers that they draw, tell and find, with and without a reference."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from small_tables import CUTS, found_on_reference

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.registry import FIGURES, FINDINGS
from utils.reporting.selection import marked
from utils.studies import load_studies
from utils.studies.what_moves import figures, found
from utils.studies.what_moves.published import effective_rank_levels, rate_correlations


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def measured(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    return Measured("x", load_profile("laptop"), (0,), own, reference, effective_rank_levels())


def row(experiment: str, r: int, rate: float, seed: int = 0, **values) -> dict:
    """One run of LoRA with alpha = 2r (8 in its own experiment), or of full fine-tuning; it learnt unless told."""
    method = f"LoRA r={r}" if r else "full"
    return {"experiment": experiment, "task": "movies", "seed": seed, "method": method, "r": r,
            "lora_alpha": 8 if experiment == "alpha_8" else 2 * r, "learning_rate": rate, "accuracy": 0.75,
            "run": f"{experiment}/{method}/{rate}/{seed}", "n_intruders": 0, "forgetting": 0.5} | values


def lines(axis) -> dict[str, list[float]]:
    """Heights of the labelled lines; of lines of one label the last."""
    return {line.get_label(): [float(value) for value in line.get_ydata()] for line in axis.lines}


def hollow(axis) -> list[float]:
    return [float(value) for line in axis.lines if line.get_label() == "_did not learn" for value in line.get_ydata()]


def steps(*seeds: int, failed: tuple[int, ...] = ()) -> pd.DataFrame:
    """Rank 8 at 1e-3 (no intruders) and 3e-3 (2, then 4 and the seed), and full; 3e-3 fails in some seeds."""
    rows = [row("learning_rates", r, rate, seed, step=step, n_intruders=count, forgetting=step / 100,
                accuracy=0.5 if rate == 3e-3 and seed in failed else 0.75)
            for seed in seeds for r, rate, counts in ((8, 1e-3, (0, 0)), (8, 3e-3, (2, 4 + seed)), (0, 1e-4, (0, 0)))
            for step, count in zip((10, 20), counts, strict=True)]
    return marked(pd.DataFrame(rows))


def test_rates_have_a_line_each_and_full_one_without_a_rate():
    drawn = figures.rates_through_training(measured(steps(0)))
    _check(drawn)
    counts, accuracy, forgetting = drawn.figure.axes
    assert lines(counts) == {"full": [0, 0], "LoRA r=8, 0.001": [0, 0], "LoRA r=8, 0.003": [2, 4]}
    assert lines(accuracy)["full"] == [0.75, 0.75] and lines(forgetting)["LoRA r=8, 0.003"] == [0.1, 0.2]
    assert "LoRA r=8, 0.003: 4 intruders, accuracy 0.750, forgetting 0.20" in drawn.alt
    assert drawn.alt.endswith("Every run learnt.")


def test_runs_that_did_not_learn_are_hollow_and_told_apart():
    drawn = figures.rates_through_training(measured(steps(0), steps(0, 1, 2, failed=(1, 2))))
    _check(drawn)
    assert sorted(hollow(drawn.figure.axes[0])) == [2, 2, 5, 6]
    assert "LoRA r=8, 0.003: 4 intruders" in drawn.alt and "Runs that did not learn: LoRA r=8, 0.003 2" in drawn.alt
    assert drawn.shown.set_index("method, rate").loc["LoRA r=8, 0.003", "seeds"] == 1


def moves(*seeds: int, failed: tuple[int, ...] = ()) -> pd.DataFrame:
    """Counts by the rule 8 / r and the seed, at one rate r, with alpha = 8 none; r = 8 at one rate may fail."""
    rows = [made for seed in seeds for made in (
        *(row("rule", r, 6e-3 / r, seed, n_intruders=8 // r + seed) for r in (1, 8)),
        *(row("fixed_rate", r, 1e-3, seed, n_intruders=r, accuracy=0.5 if r == 8 and seed in failed else 0.75)
          for r in (1, 8)),
        row("alpha_8", 8, 1.5e-3, seed), row("matched_alpha", 8, 1.5e-3, seed, lora_alpha=32, n_intruders=99),
        row("rank_stabilised", 8, 2e-3, seed, method="rsLoRA r=8", n_intruders=99))]
    return marked(pd.DataFrame(rows))


@pytest.mark.parametrize("reference", [None, moves(0, 1, 2, failed=(2,))], ids=["own", "with reference"])
def test_ranks_are_drawn_under_each_setting(reference):
    drawn = figures.ranks_under_rules(measured(moves(0), reference))
    _check(drawn)
    counts = drawn.figure.axes[0]
    found = {name: heights for name, heights in lines(counts).items() if not name.startswith("_")}
    assert found == {"alpha = 2r, the rule": [8, 1], "alpha = 2r, one rate": [1, 8], "alpha = 8": [0]}
    assert [tick.get_text() for tick in counts.get_xticklabels()] == ["1", "8"]
    rule = "r=1 8, r=8 1" if reference is None else "r=1 9, r=8 2"
    assert f"alpha = 2r, the rule: {rule}; alpha = 2r, one rate: r=1 1, r=8 8; alpha = 8: r=8 0" in drawn.alt
    assert f"{int(reference is not None)} runs did not learn" in drawn.alt
    assert hollow(counts) == ([] if reference is None else [8])


def test_the_map_has_the_mean_of_the_runs_that_learnt_in_each_cell():
    """Ranks down, rates across; a cross where none learnt; other alphas and rsLoRA are no part of it."""
    table = moves(0, 1, failed=(0, 1))
    drawn = figures.rank_by_rate(measured(table[table["seed"] == 0], table))
    _check(drawn)
    axis = drawn.figure.axes[0]
    rates = [tick.get_text() for tick in axis.get_xticklabels()]
    cells = {(axis.get_yticklabels()[y].get_text(), rates[x]): text.get_text()
             for text in axis.texts for x, y in [text.get_position()]}
    assert cells == {("1", "0.006"): "8.5", ("8", "0.00075"): "1.5", ("1", "0.001"): "1", ("8", "0.001"): "×"}
    assert "over 8 runs, of which 2 did not learn" in drawn.alt and "epsilon 0.5 1 to 8.5" in drawn.alt


def test_a_run_that_two_experiments_share_is_pooled_once():
    table = moves(0)
    shared = pd.concat([table, table[table["experiment"] == "rule"].assign(experiment="learning_rates")])
    assert len(figures.pooled_runs(measured(table, shared))) == len(table)


def alpha_counts(column: str, values: tuple, *seeds: int) -> pd.DataFrame:
    """Counts 0 and 1 + seed with alpha = 2r and 0 and 5 with alpha = 8, over two epsilons or shares."""
    return marked(pd.DataFrame([row(experiment, 64, rate, seed, n_intruders=count) | {column: value}
                                for seed in seeds for experiment, rate, counts in (
                                    ("rule", 1e-4, (0, 1 + seed)), ("alpha_8", 1.5e-3, (0, 5)))
                                for value, count in zip(values, counts, strict=True)]))


@pytest.mark.parametrize("seeds, mean", [((0,), "1"), ((0, 1), "1.5")], ids=["own", "with reference"])
def test_both_alphas_have_a_panel_against_epsilon_and_against_k(seeds, mean):
    def both(column: str, values: tuple) -> Measured:
        reference = alpha_counts(column, values, *seeds) if len(seeds) > 1 else None
        return measured(alpha_counts(column, values, 0), reference)

    counts, by_k = both("epsilon", (0.3, 0.5)), both("k", (0.1, 1.0))
    for drawn in (figures.alpha_against_epsilon(counts), figures.alpha_against_k(by_k, counts)):
        _check(drawn)
        assert [axis.get_title() for axis in drawn.figure.axes] == ["alpha = 2r, the rule", "alpha = 8"]
        assert [lines(axis)["LoRA r=64"] for axis in drawn.figure.axes] == [[0, 1], [0, 5]]
        assert f"alpha = 2r, the rule: LoRA r=64 {mean}; alpha = 8: LoRA r=64 5." in drawn.alt
    assert figures.alpha_against_epsilon(counts).shown["ε = 0.5"].tolist() == [float(mean), 5]


def test_shares_take_from_the_counts_which_runs_learnt():
    """The table over k has no accuracy of its own."""
    counts = alpha_counts("epsilon", (0.3, 0.5), 0, 1)
    counts = counts.assign(learnt=counts["seed"] == 0)
    by_k = alpha_counts("k", (0.1, 1.0), 0, 1).drop(columns=["learnt", "accuracy"])
    drawn = figures.alpha_against_k(measured(by_k), measured(counts))
    assert "alpha = 2r, the rule: LoRA r=64 1; alpha = 8: LoRA r=64 5." in drawn.alt
    assert hollow(drawn.figure.axes[0]) == [0, 2]


@pytest.mark.parametrize("reference", [False, True])
def test_effective_ranks_are_means_over_a_layers_matrices_beside_the_papers_levels(reference):
    """Bands span seeds: both seeds have matrices of 4 and 16 in layer 0, so the band has no height there."""
    def sizes(*seeds: int) -> pd.DataFrame:
        return marked(pd.DataFrame([
            row(name, r, 1e-3, seed) | {"layer": layer, "matrix": kind, "effective_rank": value + layer * seed}
            for seed in seeds for name, r in (("ranks", 0), ("rule", 8), ("alpha_8", 8)) for layer in (0, 1)
            for kind, value in (("query", 4.0), ("key", 16.0))]))

    drawn = figures.effective_rank(measured(sizes(0), sizes(0, 1) if reference else None))
    _check(drawn)
    panels = {axis.get_title(): axis for axis in drawn.figure.axes}
    assert list(panels) == ["main runs", "alpha = 2r, the rule", "alpha = 8"]
    assert lines(panels["main runs"])["full"] == [10, 10]
    assert [panels[name].texts[0].get_text() for name in panels] == [
        "paper: full above 400 (width 768)", "paper: LoRA r=768 above 100 (width 768)",
        "paper: LoRA r=768 below 50 (width 768)"]
    assert f"main runs: full {'10.2' if reference else '10'};" in drawn.alt
    if reference:
        corners = panels["main runs"].collections[0].get_paths()[0].vertices
        assert {x: sorted(set(corners[corners[:, 0] == x][:, 1])) for x in (0, 1)} == {0: [10], 1: [10, 11]}


# Findings -----------------------------------------------------------------------------------------------------------

TABLED = ("05_learning_rate_through_training", "05_rank_by_rule_and_at_fixed_rate", "05_rank_by_rate",
          "05_alpha_against_epsilon", "05_alpha_against_k", "05_effective_rank")


def test_every_figure_of_notebook_05_has_a_finding():
    load_studies()
    ours = [name for name in FIGURES if name.startswith("05_")]
    assert len(ours) >= 9 and set(ours) <= set(FINDINGS)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("identifier", TABLED)
def test_every_finding_is_told_of_the_committed_reference_whole_or_cut(identifier, cut):
    told = found_on_reference(identifier, cut)
    assert told.text.endswith(".") and "nan" not in told.text and told.met in (True, False, None)


RATES = {1e-3: ((0, 0, 0), (0.1, 0.2, 0.3)), 2e-3: ((0, 1, 2), (0.2, 0.4, 0.6)), 3e-3: ((1, 4, 6), (0.5, 0.9, 1.5))}


def swept(by_rate: dict[float, tuple], full: tuple[int, ...] = (0, 0, 0)) -> Measured:
    """Counts and forgetting of rank 8 at three checkpoints by rate, in two seeds, beside full fine-tuning's."""
    runs = [(8, rate, *values) for rate, values in by_rate.items()] + [(0, 1e-4, full, (0.2, 0.4, 0.8))]
    table = marked(pd.DataFrame([row("learning_rates", r, rate, seed, step=10 * place, n_intruders=n, forgetting=lost)
                                 for seed in (0, 1) for r, rate, counts, forgetting in runs
                                 for place, (n, lost) in enumerate(zip(counts, forgetting, strict=True), start=1)]))
    return Measured("x", load_profile("laptop"), (0,), table, None, rate_correlations())


def test_larger_rates_have_more_and_forget_more_or_not():
    told = found.rates_through_training_found(swept(RATES))
    assert told.met is True
    assert "at the rates 0.001, 0.002 and 0.003, 0, 2 and 6 intruders and forget 0.30, 0.60 and 1.50" in told.text
    assert "minus full fine-tuning's is 0.70 (in all 2 seeds)" in told.text and "has no intruders" in told.text
    assert "between intruders and forgetting (the paper: 0.971)" in told.text
    turned = found.rates_through_training_found(swept(dict(zip(RATES, reversed(RATES.values()), strict=True))))
    assert turned.met is False and "6, 2 and 0 intruders" in turned.text and "is -0.50 (in all 2 seeds)" in turned.text
    crowded = found.rates_through_training_found(swept(RATES, full=(0, 0, 3)))
    assert crowded.met is False and "up to 3 intruders" in crowded.text


def ranked(by_rule: dict[int, int], at_one_rate: dict[int, int], failed: int | None = None, **alpha_8) -> Measured:
    """Counts by rank in two seeds; one rank may fail at one rate; rank 64 with alpha = 8 may forget so much."""
    return measured(marked(pd.DataFrame([made for seed in (0, 1) for made in (
        *(row("rule", r, 6e-3 / r, seed, n_intruders=n) for r, n in by_rule.items()),
        *(row("fixed_rate", r, 1e-3, seed, n_intruders=n, accuracy=0.5 if r == failed else 0.75)
          for r, n in at_one_rate.items()),
        *([row("alpha_8", 64, 1.5e-3, seed, **alpha_8)] if alpha_8 else ()))])))


def test_the_count_falls_with_rank_by_the_rule_or_not():
    falling, none = {1: 9, 8: 2, 64: 0}, {1: 0, 8: 0, 64: 0}
    told = found.ranks_under_rules_found(ranked(falling, none, failed=64, forgetting=0.9))
    assert told.met is True and "r=1 9, r=8 2, r=64 0, and the count falls in all 2 seeds," in told.text
    assert "of too few ranks to tell a trend" in told.text and "r = 64 at one rate (2 of 2 runs)" in told.text
    assert "At r = 64 LoRA forgets 0.90 nats per token with alpha = 8 and 0.50 by the rule" in told.text
    turned = found.ranks_under_rules_found(ranked({1: 0, 8: 2, 64: 9}, falling))
    assert turned.met is False and "the count rises in all 2 seeds" in turned.text
    assert "Did not learn" not in turned.text
    empty = found.ranks_under_rules_found(ranked(none, none))
    assert empty.met is None and "is zero throughout in all 2 seeds: nothing could fall or rise" in empty.text


@pytest.mark.parametrize("counts, met, words", [
    ((0, 2, 0, 5), True, "with the rank, the mean count is zero throughout in 1 and rises in 1 of 2 rates"),
    ((2, 0, 5, 0), False, "with the rate, the mean count falls in all 2 ranks"),
    ((2, 5, 0, 2), False, "with the rank, the mean count falls in all 2 rates"),
    ((0, 0, 0, 0), None, "is zero throughout in all 2 ranks")])
def test_the_map_rises_along_rows_and_does_not_fall_down_columns_or_it_does(counts, met, words):
    cells = [(r, rate) for r in (1, 8) for rate in (1e-3, 2e-3)]
    table = pd.DataFrame([row("rule", r, rate, n_intruders=n) for (r, rate), n in zip(cells, counts, strict=True)])
    told = found.rank_by_rate_found(measured(marked(table)))
    assert told.met is met and words in told.text, told.text
    assert found.rank_by_rate_found(measured(marked(table.head(1)))).met is None


def alphas(column: str, values: tuple, with_8: dict[int, int], by_rule: dict[int, int]) -> Measured:
    """Counts by rank at every value of a column, with alpha = 8 at one rate and by the rule."""
    return measured(marked(pd.DataFrame([
        row(experiment, r, rate or 6e-3 / r, n_intruders=n) | {column: value} for value in values
        for experiment, rate, counts in (("alpha_8", 1.5e-3, with_8), ("rule", None, by_rule))
        for r, n in counts.items()])))


def test_alpha_8_has_more_at_high_ranks_or_not():
    more, fewer = {1: 2, 64: 9}, {1: 1, 64: 0}
    told = found.alpha_against_epsilon_found(alphas("epsilon", (0.5, 0.8), more, fewer))
    assert told.met is True
    assert "at epsilon 0.8 r=1 2 against 1, r=64 9 against 0, so more at r = 1 and r = 64" in told.text
    assert "the larger one at r = 64; r = 1 and r = 64 stand on one seed." in told.text
    turned = found.alpha_against_epsilon_found(alphas("epsilon", (0.5, 0.8), fewer, more))
    assert turned.met is False and "r=64 0 against 9, so more at no rank" in turned.text
    low = found.alpha_against_epsilon_found(alphas("epsilon", (0.5,), {1: 9, 64: 1}, fewer))
    assert low.met is False, "more everywhere, and most of all at the lowest rank"
    nothing = found.alpha_against_epsilon_found(alphas("epsilon", (0.5,), {1: 0, 64: 0}, {1: 0, 64: 0}))
    assert nothing.met is None


def test_alpha_8_has_more_at_every_depth_or_not():
    more, fewer = {1: 2, 64: 9}, {1: 1, 64: 0}
    for with_8, by_rule, met, words in ((more, fewer, True, "(seed 0): r=1 100%, r=64 100%."),
                                        (fewer, more, False, "(seed 0): r=1 0%, r=64 0%.")):
        by_k, counts = (alphas(column, values, with_8, by_rule) for column, values in (
            ("k", (0.1, 1.0)), ("epsilon", (0.5, 0.8))))
        told = found.alpha_against_k_found(by_k, counts)
        assert told.met is met and words in told.text
    assert "the counts are r=1 1 against 2, r=64 0 against 9." in told.text


@pytest.mark.parametrize("full, with_8, met, words", [
    (200, 18, True, "effective rank of 200, 5 times the largest of LoRA's (r = 64: 40)"),
    (60, 18, False, "effective rank of 60, 1.5 times"), (200, 34, False, "at r = 64 alpha = 8 has 34 and the rule 34")])
def test_fulls_update_has_the_higher_effective_rank_or_not(full, with_8, met, words):
    table = pd.DataFrame([row(experiment, r, 1e-3) | {"effective_rank": float(value)} for experiment, r, value in (
        ("ranks", 0, full), ("ranks", 1, 1), ("ranks", 64, 40), ("rule", 1, 1), ("rule", 64, 34),
        ("alpha_8", 64, with_8))])
    told = found.effective_rank_found(measured(marked(table)))
    assert told.met is met and words in told.text, told.text
    assert "full above 400, LoRA r=768 above 100 with alpha = 2r and LoRA r=768 below 50 with alpha = 8." in told.text
