"""Forgetting: the rules of both versions of the paper by hand, and the figures of notebook 06."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.selection import marked
from utils.studies.forgetting import figures, rules


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
    assert drawn.shown.set_index("method").loc["full", "movies"] == (5.0 if reference is None else 5.5)


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
    drawn = figures.forgetting_against_what(measured(losses({0: 5.0, 1: 4.75, 8: 9.0}, r8=0.5)))
    hollow = [line for line in drawn.figure.axes[0].lines
              if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in hollow] == [[5.0]]
