"""Forgetting: the rules of both versions of the paper by hand, and the figures of notebook 06."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from utils.ledger.reference import reference_table
from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.registry import FIGURES, FINDINGS
from utils.reporting.selection import marked
from utils.studies.forgetting import figures, refit_figures, rules
from utils.studies.forgetting.readout import broken_readout, readout_limit


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def losses(*seeds: dict[int, float], experiment: str = "ranks", task: str = "movies",
           **accuracy: float) -> pd.DataFrame:
    """Pseudo-loss by rank (0 is full), seed by seed; a rank's accuracy as ``r8=0.5``, else 0.75."""
    return marked(pd.DataFrame([
        {"experiment": experiment, "task": task, "seed": seed, "r": r, "method": f"LoRA r={r}" if r else "full",
         "run": f"{task}{r}-{seed}", "accuracy": accuracy.get(f"r{r}", 0.75), "pseudo_loss": loss,
         "base_pseudo_loss": 4.0, "forgetting": loss - 4, "relative_norm": r / 1000, "n_intruders": r}
        for seed, by_rank in enumerate(seeds) for r, loss in by_rank.items()]))


def by_seed(effects) -> dict:
    return effects.values.to_dict()


def test_full_is_compared_with_the_worst_rank_up_to_the_highest_asked():
    table = losses({0: 5.0, 1: 4.5, 8: 4.75, 64: 4.25, 384: 9.0}, {0: 5.0, 1: 4.5, 8: 5.5, 64: 4.25, 384: 1.0})
    found = rules.full_minus_worst_lora(table, in_experiment="ranks", max_rank=64)
    assert by_seed(found) == {0: 0.25, 1: -0.5} and found.outcome == "pseudo_loss"


def test_every_task_means_the_one_where_it_holds_least():
    table = pd.concat([losses({0: 5.0, 8: 4.0}, {0: 5.0, 8: 4.0}),
                       losses({0: 5.0, 8: 4.75}, {0: 4.5, 8: 5.0}, experiment="second", task="topics")])
    assert by_seed(rules.full_minus_worst_lora_on_every_task(table, max_rank=64)) == {0: 0.25, 1: -0.5}


def test_both_ends_must_lie_above_the_low_rank_for_a_u():
    table = losses({0: 5.0, 1: 4.75, 8: 4.5, 64: 4.5, 384: 5.5}, {0: 5.0, 1: 4.25, 8: 4.5, 64: 4.5, 384: 5.5},
                   {0: 5.0, 1: 4.75, 8: 4.5, 64: 4.5, 384: 4.25})
    assert by_seed(rules.ends_minus_low_rank(table, low_rank=8)) == {0: 0.25, 1: -0.25, 2: -0.25}


@pytest.mark.parametrize("changed, effect", [({}, 0.25), ({1: 4.5}, -0.5), ({384: 4.875}, -0.125), ({8: 5.5}, -0.5),
                                             ({64: 5.0}, 0.0)])
def test_the_first_versions_u_lies_around_full(changed, effect):
    """r = 1 and full width above full fine-tuning, r = 8 and 64 below: where it holds least."""
    table = losses({0: 5.0, 1: 5.5, 8: 4.5, 64: 4.75, 384: 5.5} | changed)
    assert by_seed(rules.u_around_full(table, low_ranks=[8, 64])) == {0: effect}


RULES = {"worst": lambda table: rules.full_minus_worst_lora(table, in_experiment="ranks", max_rank=64),
         "every task": lambda table: rules.full_minus_worst_lora_on_every_task(table, max_rank=64),
         "U": lambda table: rules.ends_minus_low_rank(table, low_rank=8),
         "around full": lambda table: rules.u_around_full(table, low_ranks=[8])}
WHOLE = {0: 5.0, 1: 4.5, 8: 4.75, 384: 9.0}


@pytest.mark.parametrize("name, lacking", [("worst", 0), ("worst", 8), ("every task", 0), ("U", 1), ("U", 8),
                                           ("U", 384), ("around full", 0), ("around full", 1), ("around full", 8)])
@pytest.mark.parametrize("way", ["gone", "did not learn"])
def test_a_seed_that_lacks_a_run_is_not_judged(name, lacking, way):
    """A run that did not learn says nothing about forgetting, whatever it forgot."""
    table = losses(WHOLE, WHOLE)
    at = (table["seed"] == 1) & (table["r"] == lacking)
    lame = table[~at] if way == "gone" else table.assign(learnt=~at)
    found = RULES[name](lame)
    assert found.values.dropna().index.tolist() == [0] and set(found.missing) == {1}


@pytest.mark.parametrize("name", RULES)
def test_a_lost_column_is_loud(name):
    with pytest.raises(KeyError, match="pseudo_loss"):
        RULES[name](losses(WHOLE).drop(columns="pseudo_loss"))


def refitted(*seeds: dict[int, tuple[float, float]]) -> pd.DataFrame:
    """Rise of the pseudo-loss and what is left of it with the readout refitted, by rank (0 is full), seed by seed."""
    return marked(pd.DataFrame([
        {"experiment": "second", "task": "topics", "seed": seed, "r": r, "method": f"LoRA r={r}" if r else "full",
         "run": f"{r}-{seed}", "accuracy": 0.9, "base_pseudo_loss": 5.0, "pseudo_loss": 5 + rise,
         "refitted_loss": 5 + left, "forgetting": rise, "body": left, "readout": rise - left,
         **{f"{part}_{end}": value + step for part, value in (("forgetting", rise), ("body", left),
                                                              ("readout", rise - left))
            for end, step in (("low", -0.125), ("high", 0.125))}}
        for seed, by_rank in enumerate(seeds) for r, (rise, left) in by_rank.items()]))


MOSTLY_READOUT = {0: (4.0, 1.0), 1: (0.5, 0.25), 64: (2.0, 0.75)}


def test_the_readouts_share_of_full_and_the_order_that_is_left():
    table = refitted(MOSTLY_READOUT, {0: (2.0, 1.5), 1: (0.5, 0.25), 64: (2.0, 1.75)})
    assert by_seed(rules.readout_share_of_full(table)) == {0: 0.75, 1: 0.25}
    assert by_seed(rules.full_minus_worst_refitted(table, max_rank=64)) == {0: 0.25, 1: -0.25}
    assert by_seed(rules.full_minus_worst_refitted(table, max_rank=8)) == {0: 0.75, 1: 1.25}
    nothing = rules.readout_share_of_full(refitted({0: (-0.5, 0.0)}))
    assert nothing.values.isna().all() and "adds nothing" in nothing.missing[0]


# Figures ------------------------------------------------------------------------------------------------------------

OWN = losses({0: 5.0, 1: 4.75, 8: 4.5})
THREE = losses({0: 5.0, 1: 4.75, 8: 4.5}, {0: 5.5, 1: 4.25, 8: 4.5}, {0: 6.0, 1: 4.5, 64: 4.75})


def measured(own: pd.DataFrame = OWN, reference: pd.DataFrame | None = None) -> Measured:
    return Measured("x", load_profile("laptop"), (0,), own, reference)


@pytest.mark.parametrize("reference", [None, THREE], ids=["own", "with reference"])
def test_full_and_base_are_levels_and_lora_a_curve(reference):
    drawn = figures.forgetting_against_rank(measured(reference=reference))
    _check(drawn)
    (axis,) = drawn.figure.axes
    levels = {line.get_label(): [float(value) for value in line.get_ydata()] for line in axis.lines}
    assert levels == {"LoRA, yours": [4.75, 4.5], "full, yours": [5.0, 5.0], "base": [4.0, 4.0]}
    ranks = ["1", "8"] if reference is None else ["1", "8", "64"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ranks
    full = "full 5, LoRA r=1 4.75" if reference is None else "full 5.5, LoRA r=1 4.5"
    assert "Base 4.00 nats per token" in drawn.alt and f"movies: {full}, LoRA r=8 4.5" in drawn.alt
    assert drawn.shown.set_index("method").loc["full", "movies"] == ("5.000" if reference is None else "5.500")


@pytest.mark.parametrize("reference", [None, losses({0: 8.0, 1: 4.75, 8: 4.5}, {0: 9.0, 1: 4.5, 8: 8.5})],
                         ids=["own", "with reference"])
def test_a_broken_readout_is_a_named_cross_and_no_forgetting(reference):
    """Above the 7.60 nats per token of word frequencies a loss is not drawn at its height, and enters no mean."""
    drawn = figures.forgetting_against_rank(measured(losses({0: 9.0, 1: 4.75, 8: 4.5}), reference))
    _check(drawn)
    (axis,) = drawn.figure.axes
    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    assert [text.get_text() for text in axis.texts] == ["full: broken readout"] + (
        ["LoRA r=8: broken readout"] if reference is not None else [])
    assert [float(line.get_ydata()[0]) for line in crosses] == pytest.approx([7.60] * len(crosses), abs=0.005)
    assert len(crosses) == len(axis.texts)
    assert not any(line.get_label() == "full, yours" for line in axis.lines) and axis.get_ylim()[1] < 8.5
    shown = drawn.shown.set_index("method")["movies"]
    assert shown["full"] == "broken readout" and shown["LoRA r=8"] == "4.500"
    assert "full on movies (" in drawn.alt and "movies: LoRA r=1" in drawn.alt


def test_a_broken_readout_is_left_out_beside_what_could_explain_it():
    drawn = figures.forgetting_against_what(measured(losses({0: 9.0, 1: 4.75, 8: 4.5})))
    assert "1 of your runs with a broken readout" in drawn.caption and set(drawn.table["method"]) == {
        "LoRA r=1", "LoRA r=8"}
    assert "full" not in drawn.alt.split("Mean forgetting")[1]
    whole = figures.forgetting_against_what(measured(losses({0: 5.0, 1: 4.75})))
    assert "broken" not in whole.caption and len(whole.table) == 2


def test_a_run_that_did_not_learn_is_in_no_mean():
    drawn = figures.forgetting_against_rank(measured(losses({0: 5.0, 1: 4.75, 8: 9.0}, r8=0.5)))
    (axis,) = drawn.figure.axes
    assert [list(line.get_ydata()) for line in axis.lines if line.get_label() == "LoRA, yours"] == [[4.75]]
    assert "r=8" not in drawn.alt


@pytest.mark.parametrize("reference", [None, THREE], ids=["own", "with reference"])
def test_forgetting_has_one_point_per_run_against_each_candidate(reference):
    drawn = figures.forgetting_against_what(measured(reference=reference))
    _check(drawn)
    for axis, x in zip(drawn.figure.axes, ([0.75], [0.008], [8]), strict=True):
        (own,) = (line for line in axis.lines if line.get_label() == "LoRA r=8")
        assert (list(own.get_xdata()), list(own.get_ydata())) == (x, [0.5])
    forgotten = "full 1, LoRA r=1 0.75" if reference is None else "full 1.5, LoRA r=1 0.5"
    assert f"Mean forgetting in nats per token, {measured(reference=reference).source}: {forgotten}" in drawn.alt


def test_a_failed_run_is_a_hollow_point():
    drawn = figures.forgetting_against_what(measured(losses({0: 5.0, 1: 4.75, 8: 7.0}, r8=0.5)))
    hollow = [line for line in drawn.figure.axes[0].lines
              if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in hollow] == [[3.0]]


# What is found ------------------------------------------------------------------------------------------------------


def found(name: str, table: pd.DataFrame):
    return FINDINGS[name](measured(OWN, table))


@pytest.mark.parametrize("reference", [None, refitted(MOSTLY_READOUT, MOSTLY_READOUT)], ids=["own", "with reference"])
def test_both_readouts_are_points_with_intervals_and_a_level_of_broken_ones(reference):
    drawn = refit_figures.readout_refitted(measured(refitted(MOSTLY_READOUT), reference))
    _check(drawn)
    (axis,) = drawn.figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["full", "LoRA r=1", "LoRA r=64"]
    own = [line for line in axis.lines if line.get_marker() == "o" and line.get_markersize() == 8]
    assert [float(line.get_ydata()[0]) for line in own] == [4.0, 0.5, 2.0]
    (level,) = axis.patches
    assert level.get_y() == pytest.approx(7.60 - 5.0, abs=0.005), "word frequencies, above the base"
    assert "own head full 4.00, LoRA r=1 0.50, LoRA r=64 2.00; refitted full 1.00, LoRA r=1 0.25" in drawn.alt
    assert drawn.shown["share of the readout"].tolist() == [0.75, 0.5, 0.625]


@pytest.mark.parametrize("changed, met, words", [
    ({}, True, ["3.00 (one seed) of the 4.00 (one seed) nats per token", "in 1 of 1 seeds", "every run lies below"]),
    ({0: (4.0, 2.5)}, False, ["1.50 (one seed) of the 4.00"]),  # less than half, and the order holds
    ({64: (2.0, 1.5)}, False, ["above every rank up to 64 in 0 of 1 seeds"]),
    ({0: (8.0, 3.0)}, False, ["some run lies above the loss of word frequencies"])])
def test_what_refitting_gives_back_is_said_as_the_tables_have_it(changed, met, words):
    result = FINDINGS["06_readout_refitted"](measured(refitted(MOSTLY_READOUT | changed)))
    assert result.met is met and all(word in result.text for word in words)


def test_without_full_fine_tuning_nothing_is_said_of_its_share():
    result = FINDINGS["06_readout_refitted"](measured(refitted({1: (0.5, 0.25), 64: (2.0, 0.75)})))
    assert result.met is None and "No run of full fine-tuning learnt" in result.text and "cannot be said" in result.text


ORDERED = {0: 5.5, 1: 5.25, 8: 4.75, 64: 5.0, 384: 5.25}


@pytest.mark.parametrize("changed, met, words", [
    ({}, True, ["on movies in 1 of 1 seeds, over the worst rank by 0.25 nats", "both above r = 8) is there in 1 of 1"]),
    ({0: 5.0}, False, ["on movies in 0 of 1 seeds, over the worst rank by -0.25"]),
    ({1: 4.5}, True, ["is there in 0 of 1"])])
def test_the_order_and_the_u_are_said_as_the_tables_have_them(changed, met, words):
    result = found("06_pseudo_loss_against_rank", losses(ORDERED | changed))
    assert result.met is met and all(word in result.text for word in words)
    assert "the reference (seed 0)" in result.text and "readout" not in result.text


def test_every_task_has_to_have_the_order():
    table = pd.concat([losses(ORDERED), losses(ORDERED | {0: 4.5}, experiment="second", task="topics")])
    result = found("06_pseudo_loss_against_rank", table)
    assert result.met is False and "on movies in 1 of 1" in result.text and "on topics in 0 of 1" in result.text


@pytest.mark.parametrize("table", [losses({0: 5.0}), losses({8: 5.0}), losses(ORDERED, r0=0.5)],
                         ids=["full alone", "LoRA alone", "full did not learn"])
def test_what_cannot_be_compared_is_said_to_be_so(table):
    result = found("06_pseudo_loss_against_rank", table)
    assert result.met is None and result.text.startswith("On movies no seed has full fine-tuning and every rank")


def test_a_loss_above_word_frequencies_is_a_broken_readout():
    """Of the laptop's passages: 7.60 nats per token. A run that did not learn is not spoken of."""
    result = found("06_pseudo_loss_against_rank", losses({0: 8.0, 8: 5.0}, {0: 7.5, 8: 7.7}, {0: 6.0, 8: 5.0}))
    assert "full on movies (1 of 3 runs) and LoRA r=8 on movies (1 of 3 runs)" in result.text
    assert "a broken readout" in result.text and "7.60 nats" in result.text
    assert "readout" not in found("06_pseudo_loss_against_rank", losses({0: 5.0, 8: 8.0}, r8=0.5)).text


def test_words_are_counted_for_the_text_that_is_asked():
    """The openings of articles are harder than the whole, of which the base's record says 7.04; other text has none."""
    limits = {name: readout_limit(load_profile(name)) for name in ("laptop", "workstation", "gpu")}
    assert 7.04 < limits["workstation"] < limits["laptop"] == pytest.approx(7.60, abs=0.005) and limits["gpu"] is None
    runs = losses({0: 7.0, 8: 9.0})
    assert broken_readout({"full": runs}, None) == "" == broken_readout({"full": runs}, 9.0)
    above_at_first = runs.assign(forgetting=0.5)
    assert "(1 of 2 runs)" in broken_readout({"full": runs}, 7.0)
    assert broken_readout({"full": above_at_first}, 7.0) == "", "the base itself lies above it"


def with_norms(*norms: float) -> pd.DataFrame:
    """Full fine-tuning and r = 8, both forgetting 1, 2, 3 in three seeds; full's norms as given, r = 8's rising."""
    table = losses({0: 5.0, 8: 5.5}, {0: 6.0, 8: 6.5}, {0: 6.5, 8: 6.75})
    return table.assign(relative_norm=[norm for full, eight in zip(norms, (4, 5, 6), strict=True)
                                       for norm in (full, eight)])


@pytest.mark.parametrize("norms, met, words", [
    ((1, 2, 3), True, "in 2 of 2 methods, the reference"), ((3, 2, 1), False, "in 1 of 2 methods (not in full)")])
def test_growth_with_the_norm_is_said_method_by_method(norms, met, words):
    result = found("06_forgetting_against_what", with_norms(*norms))
    assert result.met is met and words in result.text and "from 3 runs each" in result.text
    assert "Between" not in result.text, "two methods have no rank correlation"


@pytest.mark.parametrize("norms, words", [({1: 1, 8: 2, 0: 3}, "+1.00, so size alone orders"),
                                          ({1: 3, 8: 2, 0: 1}, "-1.00, so size alone does not order")])
def test_methods_are_compared_by_their_means(norms, words):
    table = losses({1: 4.25, 8: 4.5, 0: 5.0})
    result = found("06_forgetting_against_what", table.assign(relative_norm=table["r"].map(norms)))
    assert words in result.text and result.met is None and "one run each" in result.text


@pytest.mark.parametrize("profile", ["laptop", "smoke"])
def test_every_figure_of_notebook_06_finds_something_in_the_reference(profile):
    ours = [name for name, figure in FIGURES.items()
            if name.startswith("06_") and figure.measurements == ("forgetting",)]
    assert len(ours) == 2
    for name in ours:
        result = FINDINGS[name](Measured("forgetting", load_profile(profile), (3,), OWN,
                                         reference_table("forgetting", profile)))
        assert "the reference (seeds 0, 1, 2)" in result.text and "nan" not in result.text
