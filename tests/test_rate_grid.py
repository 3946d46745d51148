"""The grid of rates: validation rows, the choice of a rate, every rule by hand, tables made over several sittings."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import utils.ledger.reference as reference_module
import utils.training.spec as spec_module
from utils.course.cli import main
from utils.errors import CourseError, UsageError
from utils.ledger.reference import reference_table
from utils.paths import NOTEBOOKS
from utils.profiles import Profile, load_profile
from utils.profiles.schema import TaskSizes
from utils.reporting import runs as runs_module
from utils.reporting.items import packed, passage_losses, right_answers, unpacked
from utils.reporting.measured import Measured
from utils.reporting.registry import Measurement
from utils.reporting.rules import CLAIM_EPSILONS, MissingRun
from utils.reporting.selection import marked
from utils.reporting.statistics import mcnemar_p
from utils.reporting.verdicts import NO_POWER, NOT_REPRODUCED, TOO_FEW, UNDECIDED, Expectation, judge
from utils.sources.tasks import load_task
from utils.studies.what_moves import best_figures, grid_figures, grid_rules, longer_figures
from utils.studies.what_moves import grid as grid_module
from utils.studies.what_moves.grid import at_chosen_rates, chosen_rates, rate_grid
from utils.training.data import validation_data
from utils.training.spec import run_specs

LAPTOP, SMOKE = load_profile("laptop"), load_profile("smoke")
RATES = (1e-3, 2e-3, 4e-3)
UP = Expectation(above=0)


# Validation rows ----------------------------------------------------------------------------------------------------

def test_validation_rows_are_trained_on_by_no_run_whatever_its_size():
    whole = load_task("movies", TaskSizes(max_length=64))
    split = load_task("movies", TaskSizes(validation_rows=100, max_length=64))
    small = load_task("movies", TaskSizes(train_rows=50, test_rows=30, validation_rows=100, max_length=64))
    assert len(whole.validation) == 0 and len(split.validation) == 100
    assert pd.concat([split.train, split.validation], ignore_index=True).equals(whole.train)
    assert small.validation.equals(split.validation) and small.train.equals(split.train.head(50))
    assert not set(split.validation["text"]) & (set(split.train["text"]) | set(split.test["text"]))
    assert split.test.equals(whole.test), "the test rows stay the same"


def test_validation_rows_leave_some_to_train_on():
    with pytest.raises(UsageError, match="'validation_rows' below the .* training rows of topics, got 5000; give"):
        load_task("topics", TaskSizes(validation_rows=5000, max_length=48))


def test_a_task_without_validation_rows_chooses_no_rate(tmp_path):
    with pytest.raises(UsageError, match="Expected validation rows of task movies, got none"):
        validation_data("movies", TaskSizes(max_length=64), tmp_path)


def test_text_has_no_validation_rows_of_this_kind():
    text = LAPTOP.decoder_experiments["rates"].model_copy(update={"validation_rows": 10})
    profile = LAPTOP.model_copy(update={"decoder_experiments": LAPTOP.decoder_experiments | {"rates": text}})
    with pytest.raises(UsageError, match="'rates' .* validation rows of python, which is no classification task"):
        run_specs(profile, "rates")


def test_validation_rows_make_another_run_and_no_rows_the_same_as_ever():
    grid = LAPTOP.experiments["grid"]
    without = LAPTOP.model_copy(update={"experiments": LAPTOP.experiments | {
        "grid": grid.model_copy(update={"validation_rows": None})}})
    here, there = ({spec.key for spec in run_specs(profile, "grid")} for profile in (LAPTOP, without))
    assert len(here) == len(there) and not here & there


def test_further_seeds_and_longer_runs_are_at_the_rates_that_validation_chose(monkeypatch):
    """What the profile names beside the grid follows from the committed grid, by :func:`chosen_rates`."""
    monkeypatch.setattr(spec_module, "resolve", lambda reference: SimpleNamespace(revision="any"))
    whole, reference = LAPTOP.with_reference_runs(), reference_table("rate_grid", LAPTOP)
    chosen = chosen_rates(reference[reference["experiment"].isin(grid_module.GRIDS)])
    wanted = {(one.task, one.method): one.learning_rate for one in chosen.itertuples()}
    for experiment in (*grid_module.GRIDS, "longer"):
        seeds = whole.experiments[experiment].further_seeds if experiment != "longer" else (0,)
        specs = run_specs(whole, experiment, seeds)
        named = {(spec.task, spec.method.label): spec.learning_rate for spec in specs}
        assert named == {key: wanted[key] for key in named}, experiment
        if experiment != "longer" and seeds:
            assert len(seeds) == 2 and len(specs) == 14, "five seeds of every method"


@pytest.mark.parametrize("name", ["laptop", "workstation", "gpu", "paper"])
@pytest.mark.parametrize("experiment", ["grid", "grid_second"])
def test_the_grids_are_fine_and_wide(name, experiment, monkeypatch):
    """Five rates or more of every method, no two neighbours more than a factor of two apart."""
    monkeypatch.setattr(spec_module, "resolve", lambda reference: SimpleNamespace(revision="any"))
    whole = load_profile(name).with_reference_runs()
    rates: dict[str, set] = {}
    for spec in run_specs(whole, experiment, (0,)):
        rates.setdefault(spec.method.label, set()).add(spec.learning_rate)
    assert {"full", "LoRA r=1", "LoRA r=4", "LoRA r=8", "LoRA r=16", "LoRA r=64"} <= set(rates) and len(rates) == 7
    for method, found in rates.items():
        ordered = np.array(sorted(found))
        assert len(ordered) >= 5 and (ordered[1:] / ordered[:-1] <= 2.001).all(), (method, ordered)


# The choice ---------------------------------------------------------------------------------------------------------

def table(*rows: dict) -> pd.DataFrame:
    """Runs at both epsilons with what is not said: movies, seed 0, r = 8, accuracy and validation 0.75, no intruder."""
    filled = []
    for given in rows:
        row = {"experiment": "grid", "task": "movies", "seed": 0, "r": 8, "learning_rate": 1e-3, "accuracy": 0.75,
               "validation_accuracy": 0.75, "n_intruders": 0, "n_random": 0, "relative_norm": 0.1, "pseudo_loss": 5.0,
               "forgetting": 0.5, "steps": 300, "right": packed([True] * 60),
               "passage_nats": " ".join(["5.0"] * 60)} | given
        row |= {"lora_alpha": 2 * row["r"], "method": f"LoRA r={row['r']}" if row["r"] else "full"} | given
        name = "/".join(str(row[key]) for key in ("experiment", "seed", "method", "learning_rate"))
        filled += [{"run": name, "epsilon": epsilon} | row for epsilon in CLAIM_EPSILONS]
    return marked(pd.DataFrame(filled))


def method(r: int, validation, counts=(0, 0, 0), seeds=(0, 1, 2), rates=RATES, **others) -> list[dict]:
    """One method at three rates: its validation accuracies and counts in their order, for every seed."""
    return [{"r": r, "seed": seed, "learning_rate": rate, "validation_accuracy": accuracy, "n_intruders": count}
            | others for seed in seeds for rate, accuracy, count in zip(rates, validation, counts, strict=True)]


def test_a_rate_is_chosen_on_validation_and_not_on_test_rows():
    rows = method(8, (0.7, 0.8, 0.7))
    for row in rows:
        row["accuracy"] = 0.9 if row["learning_rate"] == 1e-3 else 0.75
    chosen = chosen_rates(table(*rows))
    assert chosen[["method", "learning_rate", "rates", "seeds", "edge"]].values.tolist() == [
        ["LoRA r=8", 2e-3, 3, 3, ""]] and chosen["validation_accuracy"].item() == pytest.approx(0.8)


@pytest.mark.parametrize(("validation", "edge"), [((0.8, 0.7, 0.6), "lowest"), ((0.6, 0.7, 0.8), "highest"),
                                                  ((0.7, 0.8, 0.7), "")])
def test_a_best_rate_on_the_edge_is_said(validation, edge):
    assert chosen_rates(table(*method(8, validation)))["edge"].tolist() == [edge]


def test_a_diverged_run_counts_against_its_rate():
    rows = method(8, (0.70, 0.80, 0.75))
    next(row for row in rows if row["learning_rate"] == 2e-3)["validation_accuracy"] = np.nan
    assert chosen_rates(table(*rows))["learning_rate"].item() == 4e-3


def test_rates_are_compared_on_the_seeds_that_all_have():
    rows = [*method(8, (0.7, 0.8, 0.7), seeds=(0, 1)), {"learning_rate": 4e-3, "seed": 2, "validation_accuracy": 1.0}]
    chosen = chosen_rates(table(*rows))
    assert chosen["learning_rate"].item() == 2e-3 and chosen["seeds"].item() == 2


def test_tasks_and_methods_choose_apart():
    rows = [*method(8, (0.7, 0.8, 0.7)), *method(0, (0.8, 0.7, 0.7)),
            *method(8, (0.7, 0.7, 0.8), experiment="grid_second", task="topics")]
    best = at_chosen_rates(table(*rows)).drop_duplicates(["task", "method"]).set_index(["task", "method"])
    assert best["learning_rate"].to_dict() == {("movies", "LoRA r=8"): 2e-3, ("movies", "full"): 1e-3,
                                               ("topics", "LoRA r=8"): 4e-3}


def test_a_grid_that_is_not_measured_yet_has_no_choice_and_no_verdict():
    """As after a sitting that measured the second task alone."""
    other = table(*method(8, (0.7, 0.8, 0.7), experiment="grid_second", task="topics"))
    assert chosen_rates(other.iloc[:0]).empty and at_chosen_rates(other.iloc[:0]).empty
    for rule in (grid_rules.count_at_best_rate, grid_rules.count_at_equal_norm):
        with pytest.raises(MissingRun, match="no run of grid is measured yet"):
            at(rule, other, rank=8)


# Items --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
def test_flags_come_back_as_they_went(count):
    flags = np.random.default_rng(count).random(count) < 0.5
    assert unpacked(packed(flags)).tolist() == flags.tolist()


@pytest.mark.parametrize("text", ["", "a0", "x:a0", "9:a0", "3:zz", np.nan])
def test_flags_that_are_none_are_refused(text):
    with pytest.raises(CourseError, match="flags"):
        unpacked(text)


# Rules --------------------------------------------------------------------------------------------------------------

MIDDLE = (0.7, 0.8, 0.7)


def by_seed(effects) -> dict:
    return effects.values.to_dict()


def at(function, frame, **given):
    return function(frame, epsilon=0.5, in_experiment="grid", **given)


def test_the_headline_is_judged_at_the_best_rates_alone():
    """At 2e-3, the best, LoRA has 3 and full 1; at the larger rate LoRA has 90."""
    frame = table(*method(8, MIDDLE, (0, 3, 90)), *method(0, MIDDLE, (0, 1, 0)))
    found = at(grid_rules.count_at_best_rate, frame, rank=8)
    assert by_seed(found) == {0: 2, 1: 2, 2: 2} and found.undecided == ""


def test_no_intruder_at_the_best_rate_is_a_result_where_larger_rates_have_some():
    frame = table(*method(8, MIDDLE, (0, 0, 9)), *method(0, MIDDLE))
    assert judge(at(grid_rules.count_at_best_rate, frame, rank=8), UP).verdict == NOT_REPRODUCED
    never = table(*method(8, MIDDLE), *method(0, MIDDLE))
    assert judge(at(grid_rules.count_at_best_rate, never, rank=8), UP).verdict == NO_POWER


@pytest.mark.parametrize(("lora", "full", "said"), [
    (MIDDLE, (0.8, 0.7, 0.6), "full, 0.001, is the lowest"),
    ((0.6, 0.7, 0.8), MIDDLE, "LoRA r=8, 0.004, is the highest")])
def test_an_edge_leaves_the_claim_undecided(lora, full, said):
    frame = table(*method(8, lora, (4, 5, 6)), *method(0, full))
    verdict = judge(at(grid_rules.count_at_best_rate, frame, rank=8), UP)
    assert verdict.verdict == UNDECIDED and said in verdict.why


def test_a_run_that_failed_at_the_best_rate_is_a_seed_less():
    rows = [*method(8, MIDDLE, (0, 3, 9)), *method(0, MIDDLE)]
    next(row for row in rows if row["r"] == 8 and row["learning_rate"] == 2e-3)["accuracy"] = 0.5
    verdict = judge(at(grid_rules.count_at_best_rate, table(*rows), rank=8), UP)
    assert verdict.verdict == TOO_FEW and verdict.seeds == 2 and "r = 8" in verdict.why


def test_full_at_its_best_rate():
    frame = table(*method(8, MIDDLE, (0, 9, 9)), *method(0, MIDDLE, (0, 0, 7)))
    found = at(grid_rules.count_of_full_at_best_rate, frame)
    assert by_seed(found) == {0: 0, 1: 0, 2: 0} and found.outcomes.max() == 9


def test_the_trend_with_the_rate_is_of_one_rank():
    frame = table(*method(8, MIDDLE, (0, 2, 5)), *method(1, MIDDLE, (5, 2, 0)))
    assert by_seed(at(grid_rules.count_trend_with_rate, frame, rank=8)) == pytest.approx({0: 1, 1: 1, 2: 1})
    assert by_seed(at(grid_rules.count_trend_with_rate, frame, rank=1)) == pytest.approx({0: -1, 1: -1, 2: -1})


def ranks_at(counts: dict[tuple[int, float], int]) -> pd.DataFrame:
    return table(*({"r": r, "learning_rate": rate, "n_intruders": count, "seed": seed}
                   for seed in (0, 1, 2) for (r, rate), count in counts.items()))


def test_rank_at_one_rate_and_by_the_rule_are_told_apart():
    """One rate for all ranks: the count rises with rank; alpha times rate constant: it falls."""
    one = {(r, 1e-3): r for r in (1, 4, 8, 16)}
    rule = {(r, 8e-3 / r): 20 - r for r in (1, 4, 16, 64)}
    frame = ranks_at(one | rule)
    assert by_seed(at(grid_rules.count_trend_at_fixed_rate, frame)) == pytest.approx({0: 1, 1: 1, 2: 1})
    assert by_seed(at(grid_rules.count_trend_by_rule, ranks_at(rule))) == pytest.approx({0: -1, 1: -1, 2: -1})


def test_where_no_rank_has_any_nothing_can_fall():
    zeros = ranks_at({(r, 1e-3): 0 for r in (1, 4, 8, 16)})
    assert judge(at(grid_rules.count_trend_at_fixed_rate, zeros), Expectation(below=0)).verdict == TOO_FEW


def test_what_time_adds_is_counted_at_one_rate():
    """After 400 steps r = 1 has 5 more and r = 8 one more than at that rate before; r = 64 and other rates are out."""
    short = [row for r, counts in ((1, (0, 2, 90)), (8, (0, 3, 90)), (64, (0, 0, 0)), (0, (0, 0, 0)))
             for row in method(r, MIDDLE, counts, experiment="grid_second", task="topics", steps=100)]
    after = [row for r, count in ((1, 7), (8, 4), (64, 80), (0, 9))
             for row in method(r, (0.8,), (count,), rates=(2e-3,), experiment="longer", task="topics", steps=400)]
    found = grid_rules.count_gained_by_time(table(*short, *after), epsilon=0.5, in_experiment="grid_second",
                                            longer="longer", max_rank=16)
    assert by_seed(found) == {0: 3, 1: 3, 2: 3} and sorted(set(found.outcomes)) == [2, 3, 4, 7]
    with pytest.raises(MissingRun, match="no run of longer"):
        grid_rules.count_gained_by_time(table(*short), epsilon=0.5, in_experiment="grid_second", longer="longer",
                                        max_rank=16)


def test_what_is_found_at_the_best_rates_goes_with_the_table():
    """Accuracy (02), forgetting (06) and counts (04): LoRA a little worse and forgetting less, then the opposite."""
    rows = [row | {"accuracy": 0.75 + (row["r"] > 0) * step, "forgetting": 1 + (row["r"] > 0) * forgets}
            for r, counts in ((0, (0, 0, 0)), (8, (0, 4, 9))) for row in method(r, MIDDLE, counts)
            for step, forgets in ((-0.01, -0.5),)]
    frame = table(*rows)
    grid = Measured("rate_grid", LAPTOP, (3,), frame.iloc[:0], frame)
    accuracy = best_figures.accuracy_at_best_rates_found(grid)
    forgetting = best_figures.forgetting_at_best_rates_found(grid)
    assert accuracy.met is True and "movies (3 seeds): LoRA r=8 -0.010" in accuracy.text
    assert forgetting.met is True and "no LoRA forgets more" in forgetting.text
    worse = frame.assign(accuracy=np.where(frame["r"] == 0, 0.75, 0.72), forgetting=np.where(frame["r"] == 0, 1, 2))
    grid = Measured("rate_grid", LAPTOP, (3,), frame.iloc[:0], worse)
    assert best_figures.accuracy_at_best_rates_found(grid).met is False
    found = best_figures.forgetting_at_best_rates_found(grid)
    assert found.met is False and "LoRA r=8 (movies) forgets more" in found.text
    for draw in (best_figures.accuracy_at_best_rates, best_figures.forgetting_at_best_rates):
        drawn = draw(grid)
        assert len(drawn.figure.axes) == 1 and "movies (3 seeds): full" in drawn.alt and len(drawn.table) == 6
    counts = best_figures.counts_at_best(frame).set_index("method")
    assert counts.loc["LoRA r=8"].tolist() == [4, 4] and counts.loc["full"].tolist() == [0, 0]


def test_notebook_04_begins_with_what_the_committed_grid_says():
    notebook = json.loads((NOTEBOOKS / "04_intruder_dimensions.ipynb").read_text("utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    said = best_figures.headline(reference_table("rate_grid", LAPTOP))
    assert said in " ".join(first.split()), f"write into the first cell of notebook 04: {said}"


def test_the_headline_counts_runs():
    frame = table(*method(8, MIDDLE, (0, 4, 9)), *method(16, MIDDLE, (0, 0, 9)), *method(64, MIDDLE, (0, 7, 9)),
                  *method(0, MIDDLE, (0, 0, 1)))
    assert best_figures.headline(frame) == (
        "At the learning rates that validation rows choose, this many runs have an intruder dimension at ε = 0.5 (at "
        "ε = 0.8): on movies 3 (3) of the 6 of LoRA (r = 8, 16) and 0 (0) of the 3 of full fine-tuning.")


def test_longer_runs_are_drawn_beside_those_of_their_rates():
    short = [row for r, counts in ((1, (0, 2, 90)), (0, (0, 0, 0)))
             for row in method(r, MIDDLE, counts, experiment="grid_second", task="topics", steps=100)]
    after = [row for r, count in ((1, 7), (0, 0))
             for row in method(r, (0.8,), (count,), rates=(2e-3,), experiment="longer", task="topics", steps=400)]
    frame = table(*short, *after)
    grid = Measured("rate_grid", LAPTOP, (3,), frame.iloc[:0], frame)
    drawn = longer_figures.longer(grid)
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn.figure.axes[0].get_lines()}
    assert [[100, 2], [400, 7]] in [line.get_xydata().tolist() for line in drawn.figure.axes[0].get_lines()]
    assert "full" in lines and "LoRA r=1 at 0.002, 400 steps: 7 and 7" in drawn.alt
    found = longer_figures.longer_found(grid)
    assert found.met is True and "at epsilon 0.5 the mean count changes by LoRA r=1 5" in found.text
    alone = Measured("rate_grid", LAPTOP, (3,), frame.iloc[:0], table(*short))
    assert longer_figures.longer_found(alone).met is None
    more_seeds = table(*short, *({**row, "seed": 4, "n_intruders": 50} for row in short if row["seed"] == 0), *after)
    assert longer_figures.longer_found(Measured("rate_grid", LAPTOP, (3,), frame.iloc[:0], more_seeds)) == found
    at_best = grid_figures.lora_at_best(frame, 0.5)
    assert set(at_best["experiment"]) == {"grid_second"}, "longer runs are no rate of the grid"


def test_ranks_at_their_best_rates():
    rows = [row for r, best in ((1, 9), (4, 6), (8, 3), (16, 0)) for row in method(r, MIDDLE, (50, best, 50))]
    assert by_seed(at(grid_rules.count_trend_at_best_rates, table(*rows))) == pytest.approx({0: -1, 1: -1, 2: -1})


def test_equal_norm_takes_full_between_its_nearest_norms():
    """LoRA has 6 at norm 0.15; full 2 at 0.1 and 4 at 0.2, so 3 between; LoRA's run at 0.9 has nothing beside it."""
    rows = [{"r": 0, "learning_rate": rate, "relative_norm": norm, "n_intruders": count, "seed": seed}
            for seed in (0, 1, 2) for rate, norm, count in ((1e-4, 0.1, 2), (2e-4, 0.2, 4))]
    rows += [{"learning_rate": rate, "relative_norm": norm, "n_intruders": count, "seed": seed}
             for seed in (0, 1, 2) for rate, norm, count in ((1e-3, 0.15, 6), (4e-3, 0.9, 99))]
    assert by_seed(at(grid_rules.count_at_equal_norm, table(*rows), rank=8)) == {0: 3, 1: 3, 2: 3}


def test_equal_accuracy_is_what_the_same_rows_do_not_tell_apart():
    """r = 8 answers like full at 1e-3 and 2e-3 (0 and 4 intruders) and misses twenty rows more at 4e-3 (90)."""
    right = {1e-3: packed([True] * 60), 2e-3: packed([False] + [True] * 59), 4e-3: packed([False] * 20 + [True] * 40)}
    rows = [*method(8, MIDDLE, (0, 4, 90)), *method(0, MIDDLE, (0, 1, 0))]
    frame = table(*(row | ({"right": right[row["learning_rate"]]} if row["r"] else {}) for row in rows))
    lenient = frame["epsilon"] == CLAIM_EPSILONS[1]
    frame.loc[lenient, "right"] = np.nan  # as the committed table has it
    for epsilon in CLAIM_EPSILONS:
        found = grid_rules.count_at_equal_accuracy(frame, epsilon=epsilon, in_experiment="grid", rank=8)
        assert by_seed(found) == {0: 1, 1: 1, 2: 1} and found.undecided == ""
    apart = frame[(frame["r"] == 0) | (frame["learning_rate"] == 4e-3)]
    found = at(grid_rules.count_at_equal_accuracy, apart, rank=8)
    assert found.values.isna().all() and "as accurate as full" in found.missing[0]


def test_answers_to_other_rows_are_not_compared():
    with pytest.raises(ValueError, match="answers to the same rows, got 2 and 3"):
        mcnemar_p([True, False], [True, False, True])


def test_the_random_twin_is_taken_off_where_there_is_anything():
    """Counts 0, 4, 9 against random 0, 1, 2: the mean of 3 and 7; where both are zero nothing is compared."""
    rows = method(8, MIDDLE, (0, 4, 9))
    for row in rows:
        row["n_random"] = {1e-3: 0, 2e-3: 1, 4e-3: 2}[row["learning_rate"]]
    assert by_seed(at(grid_rules.count_beyond_random, table(*rows), rank=8)) == {0: 5, 1: 5, 2: 5}
    nothing = at(grid_rules.count_beyond_random, table(*method(8, MIDDLE)), rank=8)
    assert judge(nothing, UP).verdict == TOO_FEW


def test_accuracy_is_paired_row_by_row():
    """LoRA answers 45 of 60 rows rightly where full answers 30 of them: a gap of a quarter, row by row."""
    frame = table(*method(8, MIDDLE, right=packed([True] * 45 + [False] * 15)),
                  *method(0, MIDDLE, right=packed([True] * 30 + [False] * 30)))
    found = grid_rules.accuracy_gap_at_best_rates(frame, in_experiment="grid", rank=8)
    assert by_seed(found) == pytest.approx({0: 0.25, 1: 0.25, 2: 0.25}) and len(found.items) == 180
    assert found.items["difference"].value_counts().to_dict() == {0.0: 135, 1.0: 45}


def test_forgetting_is_paired_passage_by_passage():
    frame = table(*method(8, MIDDLE, passage_nats=" ".join(["5.0"] * 60), pseudo_loss=5.0),
                  *method(0, MIDDLE, passage_nats=" ".join(["5.5"] * 30 + ["6.5"] * 30), pseudo_loss=6.0))
    found = grid_rules.forgetting_gap_at_best_rates(frame, in_experiment="grid", rank=8)
    verdict = judge(found, Expectation(below=0))
    assert by_seed(found) == pytest.approx({0: -1, 1: -1, 2: -1}) and verdict.high < 0 and verdict.p < 0.01


def losing(losses: dict[int, float], experiment="grid") -> list[dict]:
    """Runs of these ranks whose pseudo-loss at the best rate is as given, and 9 at the others."""
    task = {"grid": "movies", "grid_second": "topics"}[experiment]
    return [row | {"pseudo_loss": loss if row["learning_rate"] == 2e-3 else 9.0}
            for r, loss in losses.items() for row in method(r, MIDDLE, experiment=experiment, task=task)]


def test_forgetting_of_every_rank_is_judged_on_the_worse_task():
    movies = losing({0: 6.0, 1: 5.5, 64: 5.9, 384: 8.0})
    less, more = (losing({0: 6.0, 1: 5.0, 64: worst}, "grid_second") for worst in (5.7, 6.4))
    found = grid_rules.full_minus_worst_lora_at_best_rates(table(*movies, *less), ranks=[1, 64])
    assert by_seed(found) == pytest.approx({0: 0.1, 1: 0.1, 2: 0.1})
    found = grid_rules.full_minus_worst_lora_at_best_rates(table(*movies, *more), ranks=[1, 64])
    assert by_seed(found) == pytest.approx({0: -0.4, 1: -0.4, 2: -0.4})
    with pytest.raises(MissingRun, match="grid_second"):
        grid_rules.full_minus_worst_lora_at_best_rates(table(*movies), ranks=[1, 64])
    lacking = grid_rules.full_minus_worst_lora_at_best_rates(table(*movies, *less), ranks=[1, 4, 64])
    assert lacking.values.isna().all() and "no run with r = 4" in lacking.missing[0], "every rank means every rank"


def test_a_seed_of_one_task_alone_says_nothing_about_both():
    movies, topics = losing({0: 6.0, 1: 5.5}), losing({0: 6.0, 1: 5.0}, "grid_second")
    more = [row | {"seed": 4} for row in topics if row["seed"] == 0]
    found = grid_rules.full_minus_worst_lora_at_best_rates(table(*movies, *topics, *more), ranks=[1])
    assert found.values.dropna().to_dict() == pytest.approx({0: 0.5, 1: 0.5, 2: 0.5}) and set(found.missing) == {4}


def test_the_u_needs_both_ends_above_full_and_the_middle_below():
    u = {0: 6.0, 1: 6.5, 8: 5.0, 64: 5.8, 384: 6.3}
    def least(losses):
        return by_seed(grid_rules.u_around_full_at_best_rates(
            table(*losing(losses)), in_experiment="grid", low_ranks=[8, 64]))
    assert least(u) == pytest.approx({0: 0.2, 1: 0.2, 2: 0.2})
    assert least(u | {1: 5.5}) == pytest.approx({0: -0.5, 1: -0.5, 2: -0.5})
    assert least(u | {64: 6.1}) == pytest.approx({0: -0.1, 1: -0.1, 2: -0.1})
    assert all(np.isnan(list(least({r: loss for r, loss in u.items() if r != 384}).values()))), "64 is no full width"


def test_fewer_than_fifty_items_are_no_bootstrap():
    short = {"right": packed([True] * 20)}
    frame = table(*method(8, MIDDLE, **short), *method(0, MIDDLE, **short))
    verdict = judge(grid_rules.accuracy_gap_at_best_rates(frame, in_experiment="grid", rank=8), Expectation(within=0.1))
    assert verdict.verdict == TOO_FEW and "20 items to compare, 50 needed" in verdict.why


# Figures and findings -----------------------------------------------------------------------------------------------

def both_tasks(counts, full=(0, 0, 0), ranks=(1, 4, 8, 16), validation=MIDDLE) -> Measured:
    rows = [row for experiment, task in (("grid", "movies"), ("grid_second", "topics"))
            for r, of in [(0, full), *((r, counts) for r in ranks)]
            for row in method(r, validation, of, experiment=experiment, task=task)]
    frame = table(*rows)
    return Measured("rate_grid", LAPTOP, (3,), frame[frame["experiment"] == "grid"].query("seed == 0"), frame)


def test_the_finding_says_what_the_table_says_and_its_opposite():
    some, none = (grid_figures.rate_grid_found(both_tasks(counts)) for counts in ((0, 4, 9), (0, 0, 9)))
    assert some.met is True and "LoRA r=8 (4)" in some.text and "none in any seed in no LoRA" in some.text
    assert none.met is False and "intruders on average in no LoRA" in none.text
    edge = grid_figures.rate_grid_found(both_tasks((4, 4, 4), validation=(0.6, 0.7, 0.8)))
    assert edge.met is None and "lies on the edge of the grid for full (highest tried)" in edge.text


def test_a_task_that_the_reference_lacks_is_the_readers_own():
    own = table(*method(8, (0.7, 0.8, 0.7), (0, 2, 9), seeds=(3,)))
    other = table(*method(8, (0.7, 0.8, 0.7), experiment="grid_second", task="topics"))
    grid = Measured("rate_grid", LAPTOP, (3,), own, other)
    assert "your runs (seed 3)" in grid_figures.rate_grid_found(grid).text
    assert grid_figures.rank_three_ways_found(grid).met is None
    for draw in (grid_figures.rate_grid, grid_figures.rate_grid_second, grid_figures.rank_three_ways):
        assert len(draw(grid).table), "a figure is published with the numbers that it draws"
    assert "not measured yet" in grid_figures.rate_grid_second_found(
        Measured("rate_grid", LAPTOP, (3,), own, None)).text


def test_every_figure_is_drawn_from_the_table_alone():
    grid = both_tasks((0, 4, 9), full=(0, 0, 1))
    for draw in (grid_figures.rate_grid, grid_figures.rate_grid_second, grid_figures.rank_three_ways):
        drawn = draw(grid)
        assert "LoRA r=8" in drawn.alt and len(drawn.shown.columns) <= 6 and len(drawn.figure.axes) == 4
    axis = grid_figures.rate_grid(grid).figure.axes[0]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axis.get_lines()}
    assert drawn["LoRA r=8"] == [0, 4, 9] and drawn["full"] == [0, 0, 1]
    at_best = {line.get_label(): line.get_ydata().tolist() for line in
               grid_figures.rank_three_ways(grid).figure.axes[0].get_lines()}
    assert at_best == {"movies": [4, 4, 4, 4], "topics": [4, 4, 4, 4]}


def test_what_is_found_of_ranks_goes_with_the_table():
    falls = {(r, 8e-3 / r): 20 - r for r in (1, 4, 8, 16)} | {(r, 1e-3): r for r in (1, 4, 8, 16)}
    found = grid_figures.rank_three_ways_found(Measured("rate_grid", LAPTOP, (3,), ranks_at(falls)))
    assert found.met is True and "rises in 1." in found.text
    turned = {key: 40 - count for key, count in falls.items()}
    assert grid_figures.rank_three_ways_found(Measured("rate_grid", LAPTOP, (3,), ranks_at(turned))).met is False


# Over several sittings ----------------------------------------------------------------------------------------------

class FakeRun:
    def __init__(self, spec):
        self.spec = spec


@pytest.fixture
def store(monkeypatch):
    """A store in which runs are trained by asking; ``asked`` lists the keys, ``there`` those that are trained."""
    class Store:
        asked, there = [], set()

        def get(self, spec):
            self.asked.append(spec.key)
            self.there.add(spec.key)
            return FakeRun(spec)

        def stored(self, spec):
            return spec.key in self.there

    Store.asked, Store.there = [], set()
    monkeypatch.setattr(runs_module, "RunStore", Store)
    return Store


def _measure(run) -> pd.DataFrame:
    return pd.DataFrame([run.spec.columns | {"value": run.spec.learning_rate}])


def test_what_was_measured_is_neither_trained_nor_measured_again(store):
    first = runs_module.collect_by_run(SMOKE, (3,), _measure, experiments=("grid",))
    count = len(store.asked)
    known = first.assign(value=-1.0)
    second = runs_module.collect_by_run(SMOKE, (3, 4), _measure, experiments=("grid",), known=known)
    assert len(store.asked) == 2 * count and (second.loc[second["seed"] == 3, "value"] == -1).all()
    assert (second.loc[second["seed"] == 4, "value"] > 0).all() and len(second) == 2 * len(first)


def test_only_what_is_trained_is_taken(store):
    specs = run_specs(SMOKE, "grid", (3,))
    store.there = {specs[0].key}
    found = runs_module.collect_by_run(SMOKE, (3,), _measure, experiments=("grid",), trained_only=True)
    assert found["run"].tolist() == [specs[0].key] == store.asked
    store.there.clear()
    assert runs_module.collect_by_run(SMOKE, (3,), _measure, experiments=("grid",), trained_only=True).empty


@pytest.fixture
def references(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module, "reference_dir", lambda: tmp_path)
    monkeypatch.setattr(reference_module, "remember", lambda *_: None)
    return tmp_path


def test_a_reference_goes_on_from_the_committed_table(store, references, monkeypatch):
    def toy(profile, seeds, *, known=None, trained_only=False):
        return runs_module.collect_by_run(profile, seeds, _measure, experiments=("grid",), known=known,
                                          trained_only=trained_only)

    entry = Measurement("toy", toy, ("experiment", "run", "seed", "value"), None, ("grid",), by_run=True)
    monkeypatch.setattr(reference_module, "MEASUREMENTS", {"toy": entry})
    reference_module.build_reference(LAPTOP, (0,))
    one = pd.read_csv(references / "laptop" / "toy.csv")
    trained = list(store.asked)
    assert set(one["seed"]) == {0} and len(trained) == len(one)

    store.there.clear()  # another machine: no run is there
    (references / "laptop" / "toy.csv").write_text(one.assign(value=-1.0).to_csv(index=False))
    reference_module.build_reference(LAPTOP, (1,))
    two = pd.read_csv(references / "laptop" / "toy.csv")
    assert set(two["seed"]) == {0, 1} and (two.loc[two["seed"] == 0, "value"] == -1).all()
    assert not set(trained) & set(store.asked[len(trained):]), "no run of the first sitting is asked for again"

    changed = LAPTOP.experiments["grid"].model_copy(update={"validation_rows": 17})
    profile = LAPTOP.model_copy(update={"experiments": LAPTOP.experiments | {"grid": changed}})
    reference_module.build_reference(profile, (0,))
    three = pd.read_csv(references / "laptop" / "toy.csv")
    assert set(three["seed"]) == {0} and not set(three["run"]) & set(two["run"]), "rows of runs nobody asks for go"


def test_what_needs_all_of_its_runs_takes_no_part_of_them(capsys):
    assert main(["reference", "--profile", "laptop", "--only", "intruder_counts", "--trained-only"]) == 2
    assert "intruder_counts is not measured run by run" in capsys.readouterr().err


def test_training_leaves_out_what_the_table_has(references, monkeypatch):
    from utils.course import training

    whole = LAPTOP.with_reference_runs()
    every = training.specs_of_reference(whole, ["rate_grid"], (0,))
    some = list(every)[:5]
    monkeypatch.setattr(training, "measured_before", lambda one, _: (
        pd.DataFrame({"run": some}) if one.name == "rate_grid" else None))
    assert list(training.specs_of_reference(whole, ["rate_grid"], (0,))) == list(every)[5:]
    shared = training.specs_of_reference(whole, ["rate_grid", "intruder_counts"], (0,))
    assert not set(some) & set(shared) and set(list(every)[5:]) <= set(shared)


# A run --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def tiny(tiny_base, tmp_path, monkeypatch) -> Profile:
    """Smoke's grids on the tiny base, on few passages, in a cache of its own."""
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    runs_module.base_spectra.cache_clear()
    content = SMOKE.model_dump(mode="json", exclude={"whole", "run_code"})
    content["encoder"] = {"source": "local", "name": str(tiny_base), "revision": None}
    content["pseudo_loss"] |= {"tokens": 12, "paired_passages": 6}
    yield Profile.model_validate(content)
    runs_module.base_spectra.cache_clear()


def test_a_grid_of_real_runs_has_what_the_rules_need(tiny):
    """Every run twice (two epsilons), items of the right number, outcomes that agree with the items."""
    own = rate_grid(tiny, (3,))
    assert all(tuple(epsilons) == CLAIM_EPSILONS for _, epsilons in own.groupby("run")["epsilon"])
    first = own[own["epsilon"] == CLAIM_EPSILONS[0]]
    for row in (row for _, row in first.iterrows()):
        rows = tiny.tasks[row["task"]].test_rows
        assert len(right_answers(row)) == rows and right_answers(row).mean() == pytest.approx(row["accuracy"])
        losses = passage_losses(row)
        assert len(losses) == tiny.pseudo_loss.paired_passages
        assert losses.mean() == pytest.approx(row["pseudo_loss"], rel=0.1)
    counted = first.merge(own[own["epsilon"] == CLAIM_EPSILONS[1]], on=["experiment", "run"])
    assert (counted["n_intruders_x"] <= counted["n_intruders_y"]).all()
    assert (first["relative_norm"] > 0).all() and first["validation_accuracy"].between(0, 1).all()


def test_a_diverged_run_is_a_row_without_outcomes(monkeypatch):
    class Diverged(FakeRun):
        diverged, result = True, {"measured": {"steps": 3}}

    spec = run_specs(SMOKE, "grid", (3,))[0]
    rows = grid_module.grid_rows(Diverged(spec), SMOKE)
    assert len(rows) == len(CLAIM_EPSILONS) and rows[list(grid_module.OUTCOMES)].isna().all(axis=None)
    assert not marked(rows).get("learnt", pd.Series(False, index=rows.index)).any()
