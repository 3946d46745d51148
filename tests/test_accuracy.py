"""Equal accuracy: its rule by hand, the paper's tables, and the figures of notebooks 00, 01 and 02 with findings."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from small_tables import CUTS, found_on_reference

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.publish import _check
from utils.reporting.registry import FIGURES, FINDINGS
from utils.reporting.selection import marked
from utils.studies import load_studies
from utils.studies.accuracy import by_hand, figures, found, rules
from utils.studies.accuracy.published import paper_accuracies
from utils.training.spec import Method


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def runs(*seeds: dict[int, float], experiment: str = "ranks", task: str = "movies") -> pd.DataFrame:
    """Final accuracy by rank (0 is full), seed by seed; each run's first checkpoint lies far off and must not count."""
    rows = []
    for seed, by_rank in enumerate(seeds):
        for r, value in by_rank.items():
            run = {"experiment": experiment, "task": task, "seed": seed, "r": r, "lora_alpha": 2 * r, "run":
                   f"{task}{r}-{seed}", "method": f"LoRA r={r}" if r else "full", "learning_rate": 1e-3 / (r or 10)}
            rows += [run | {"step": step, "accuracy": accuracy, "accuracy_se": 0.01, "pseudo_loss": 5.5}
                     for step, accuracy in ((20, value), (10, 0.5 + r / 1000))]
    return marked(pd.DataFrame(rows))


def judged(table: pd.DataFrame, **parameters):
    return rules.largest_distance_from_full(table, column="accuracy", **{"in_experiment": "ranks"} | parameters)


def test_the_largest_distance_counts_whatever_its_side():
    table = runs({0: 0.75, 1: 0.78125, 8: 0.625, 64: 0.75}, {0: 0.75, 1: 0.75, 8: 0.75, 64: 0.875})
    assert judged(table).values.to_dict() == {0: 0.125, 1: 0.125}
    assert judged(table, max_rank=8).values.to_dict() == {0: 0.125, 1: 0.0}
    assert judged(table).outcome == "accuracy" and len(judged(table).outcomes) == 8


def test_another_experiment_is_another_task():
    table = pd.concat([runs({0: 0.75, 8: 0.5}), runs({0: 0.75, 8: 0.6875}, experiment="second", task="topics")])
    assert judged(table, in_experiment="second").values.to_dict() == {0: 0.0625}


def test_a_run_that_did_not_learn_is_no_equal():
    """Accuracy is what is judged: leaving out who failed would make every method equal."""
    table = runs({0: 0.875, 8: 0.5})
    assert not table[table["r"] == 8]["learnt"].any() and judged(table).values.to_dict() == {0: 0.375}


@pytest.mark.parametrize("lacking", ["r == 0", "r == 8"])
def test_a_seed_that_lacks_a_run_has_no_effect(lacking):
    table = runs({0: 0.75, 8: 0.75}, {0: 0.75, 8: 0.75})
    found = judged(table.drop(table.query(f"seed == 1 and {lacking}").index))
    assert found.values.dropna().to_dict() == {0: 0.0} and set(found.missing) == {1}


def test_a_lost_column_is_loud():
    with pytest.raises(KeyError, match="accuracy"):
        judged(runs({0: 0.75, 8: 0.75}).drop(columns="accuracy"))


def test_the_papers_tables_are_the_printed_ones():
    """Spot values of Tables 1 and 2 of arXiv 2410.21228v3, and their size: 7 methods x 6 tasks each."""
    paper = paper_accuracies()
    assert len(paper) == 84 and not paper["accuracy"].isna().any()
    assert [tuple(sorted(part["r"].unique())) for _, part in paper.groupby("table")] == [(0, 1, 2, 4, 8, 16, 64)] * 2
    value = paper.set_index(["table", "r", "task"])["accuracy"]
    assert value[1, 8, "mnli"] == 0.8648 and value[2, 8, "mnli"] == 0.8704 and value[2, 64, "fever"] == 0.6864
    assert value[1, 0, "mnli"] == value[2, 0, "mnli"] == 0.8745


def test_the_claimed_bound_is_the_largest_distance_of_the_papers_table():
    """Table 2: WinoGrande, r = 64, .6212 against .6582."""
    differences = figures.minus_full(paper_accuracies(), ["table", "task"])
    second = differences[differences["table"] == 2]
    assert second["difference"].abs().max() == pytest.approx(0.037)
    assert second.loc[second["difference"].idxmin(), ["task", "r"]].tolist() == ["winogrande", 64]


# Figures ------------------------------------------------------------------------------------------------------------

SEEDS = {0: 0.75, 1: 0.71875, 8: 0.8125}, {0: 0.8125, 1: 0.75, 8: 0.75}, {0: 0.75, 1: 0.8125, 64: 0.75}
OWN, THREE = runs(SEEDS[0]), runs(*SEEDS)


def measured(own: pd.DataFrame = OWN, reference: pd.DataFrame | None = None) -> Measured:
    return Measured("x", load_profile("laptop"), (0,), own, reference, paper_accuracies())


def lines(axis) -> dict[str, list[float]]:
    return {line.get_label(): [float(value) for value in line.get_ydata()] for line in axis.lines}


@pytest.mark.parametrize("reference", [None, THREE], ids=["own", "with reference"])
def test_accuracy_over_steps_ends_where_the_runs_did(reference):
    drawn = figures.accuracy_curves(measured(reference=reference))
    _check(drawn)
    (axis,) = drawn.figure.axes
    assert lines(axis)["full"] == [0.5, 0.75] and lines(axis)["LoRA r=1"] == [0.501, 0.71875]
    assert "movies: full 0.75, LoRA r=1 0.719, LoRA r=8 0.812" in drawn.alt
    expected = [0.75, 0.71875, 0.8125, 1] if reference is None else [0.771, 0.75, 0.781, 3]
    shown = drawn.shown.loc[0, ["full", "LoRA, lowest", "LoRA, highest", "seeds"]]
    assert shown.tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("reference", [None, THREE], ids=["own", "with reference"])
def test_differences_stand_beside_the_papers(reference):
    """Ours in the panel of alpha = 2r, the paper's six tasks in both, and a rank that the reference alone has."""
    drawn = figures.accuracy_beside_paper(measured(reference=reference))
    _check(drawn)
    left, right = drawn.figure.axes
    assert lines(right)["yours, movies"] == [-0.03125, 0.0625] and "yours, movies" not in lines(left)
    assert lines(left)["paper, mnli"][0] == pytest.approx(-0.0098) and len(lines(right)) == 6 + 1 + 1
    assert "between -0.031 and 0.062" in drawn.alt and "between -0.041 and 0.035" in drawn.alt
    table = drawn.shown.set_index("rank")
    assert table.loc[64, "paper, alpha = 2r"] == pytest.approx(-0.0136, abs=1e-4)
    assert table.loc[1, "ours, movies"] == pytest.approx(-0.03125 if reference is None else -0.0104, abs=1e-4)
    assert drawn.table["difference"].tolist() == [-0.03125, 0.0625]
    assert len(right.collections) == (reference is not None)


def sweep(seeds: int) -> pd.DataFrame:
    """LoRA r = 8 at two rates; the larger one fails with the second seed."""
    values = {("full", 0, 1e-4): (0.75, 0.75), ("LoRA r=8", 8, 1e-3): (0.75, 0.8125),
              ("LoRA r=8", 8, 3e-3): (0.8125, 0.5)}
    return marked(pd.DataFrame([
        {"experiment": "learning_rates", "task": "movies", "seed": seed, "method": method, "r": r,
         "learning_rate": rate, "run": f"{method}{rate}{seed}", "accuracy": by_seed[seed],
         "pseudo_loss": 5 + rate, "n_intruders": 2 * seed}
        for (method, r, rate), by_seed in values.items() for seed in range(seeds)]))


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_sweep_tells_each_methods_best_rate(seeds):
    drawn = figures.learning_rate_curves(measured(sweep(1), sweep(2) if seeds == 2 else None))
    _check(drawn)
    assert [axis.get_title() for axis in drawn.figure.axes] == ["test accuracy", "pseudo-loss, nats per token",
                                                                "intruder dimensions, epsilon 0.5"]
    assert lines(drawn.figure.axes[0])["LoRA r=8"] == [0.75, 0.8125]
    best = ["0.003", 0.8125] if seeds == 1 else ["0.001", 0.78125]
    assert drawn.shown.set_index("method").loc["LoRA r=8", ["best of them", "accuracy there"]].tolist() == best
    assert f"{seeds - 1} of {3 * seeds} runs did not learn" in drawn.alt
    hollow = [line for line in drawn.figure.axes[0].lines if line.get_label() == "_did not learn"]
    assert [list(line.get_ydata()) for line in hollow] == ([] if seeds == 1 else [[0.5]])


def test_the_base_models_curve():
    drawn = figures.base_curve(load_profile("laptop"), curve=pd.DataFrame(
        {"step": [0, 100], "heldout_loss_nats_per_token": [10.5, 5.5]}))
    _check(drawn)
    assert drawn.figure.axes[0].lines[0].get_ydata().tolist() == [10.5, 5.5]
    assert "10.50 to 5.50 nats per token in 100 steps" in drawn.alt


def test_the_first_update_is_a_mean_over_draws():
    table = pd.DataFrame([{"scaling": rule, "r": r, "draw": draw, "update_norm": norm * (1 + draw)}
                          for rule, norms in (("alpha = 2r", (1.0, 4.0)), ("alpha = 8", (2.0, 0.5)))
                          for r, norm in zip((1, 16), norms, strict=True) for draw in (0, 1)])
    drawn = figures.first_update(load_profile("laptop"), table=table)
    _check(drawn)
    (axis,) = drawn.figure.axes
    assert lines(axis)["alpha = 2r"] == [1.5, 6] and (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert "r = 1 to r = 16" in drawn.alt and "4 (alpha = 2r), 0.25 (alpha = 8)" in drawn.alt
    assert drawn.shown["alpha = 8"].tolist() == [3, 0.75]


# Training in the open -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [Method(kind="full"), Method(kind="lora", r=2, lora_alpha=4)])
def test_both_ways_of_training_begin_with_the_same_numbers_and_rows(spec, method):
    run = spec(method=method)
    (one, batches), (two, again) = by_hand.start(run, steps=3), by_hand.start(run, steps=3)
    assert by_hand.largest_difference(one, two) == 0 and len(batches) == 3
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    assert one.training and one(**batches[0]).loss == one(**batches[0]).loss, "dropout is off"


@pytest.mark.parametrize("method", [Method(kind="full"), Method(kind="lora", r=2, lora_alpha=4)])
def test_the_library_trains_as_a_plain_loop_does(spec, method):
    run = spec(method=method, learning_rate=1e-2)
    model, batches = by_hand.start(run, steps=3)
    untrained, _ = by_hand.start(run, steps=3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0, fused=True)
    for step, batch in enumerate(batches):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 3)
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    library = by_hand.trained_by_library(run, steps=3)
    assert by_hand.largest_difference(untrained, library) > 1e-2
    assert by_hand.largest_difference(model, library) < 1e-5


# Findings -----------------------------------------------------------------------------------------------------------

LAPTOP = load_profile("laptop")
TABLED = ("02_accuracy_over_steps", "02_accuracy_beside_the_paper", "02_learning_rates")


def test_every_figure_has_a_finding():
    load_studies()
    ours = [name for name in FIGURES if name.startswith(("00_", "01_", "02_"))]
    assert len(ours) == 6 and set(ours) <= set(FINDINGS)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("identifier", TABLED)
def test_every_finding_is_told_of_the_committed_reference_whole_or_cut(identifier, cut):
    told = found_on_reference(identifier, cut)
    assert told.text.endswith(".") and "nan" not in told.text and told.met in (True, False, None)


@pytest.mark.parametrize("losses, met, words", [
    ((10, 6, 5, 4.8, 4.7), True, ("75% of the fall in the first quarter", "2% in the last", "has not ended")),
    ((10, 9, 8, 7, 6), False, ("25% of the fall in the first quarter", "25% in the last")),
    ((10, 6, 5, 4.7, 4.8), False, ("The lowest value, 4.70, is not the last",)), ((5, 6), False, ("does not fall",))])
def test_a_curve_falls_steeply_and_then_slowly_or_not(losses, met, words):
    told = figures.base_curve_found(LAPTOP, curve=pd.DataFrame(
        {"step": [100 * place for place in range(len(losses))], "heldout_loss_nats_per_token": losses}))
    assert told.met is met and all(word in told.text for word in words), told.text


SCALES = {"alpha = 2r": lambda r: 2, "alpha = 8": lambda r: 8 / r, "rsLoRA, alpha = 8": lambda r: 8 / r**0.5}


def first_steps(scales: dict) -> pd.DataFrame:
    """The norm as the algebra has it for small ranks: scale squared times the root of the rank; two draws."""
    return pd.DataFrame([{"scaling": rule, "r": r, "draw": draw, "update_norm": scale(r)**2 * r**0.5 * (1 + draw)}
                         for rule, scale in scales.items() for r in (1, 2, 4, 8, 16, 64) for draw in (0, 1)])


def test_the_first_step_goes_as_the_scales_do_or_not():
    told = figures.first_update_found(LAPTOP, table=first_steps(SCALES))
    assert told.met is True and "r to the power 0.50" in told.text
    assert "grows by a factor of 8 with alpha = 2r, falls by a factor of 512 with alpha = 8" in told.text
    assert "r = 4 (alpha = 2r and alpha = 8)" in told.text
    assert "largest step of all at r = 2, r = 4 and r = 8." in told.text
    swapped = first_steps(SCALES | {"alpha = 2r": SCALES["alpha = 8"], "alpha = 8": SCALES["alpha = 2r"]})
    turned = figures.first_update_found(LAPTOP, table=swapped)
    assert turned.met is False and "falls by a factor of 512 with alpha = 2r" in turned.text
    lacking = first_steps({"alpha = 2r": SCALES["alpha = 2r"]})
    assert figures.first_update_found(LAPTOP, table=lacking).met is None


def courses(by_rank: dict[int, tuple[float, ...]]) -> Measured:
    """Accuracy at steps 10, 20, … by rank (0 is full), alike in two seeds; LoRA's rate is 1e-4 times the rank."""
    return measured(marked(pd.DataFrame([
        {"experiment": "ranks", "task": "movies", "seed": seed, "r": r, "run": f"{r}-{seed}", "accuracy": accuracy,
         "method": f"LoRA r={r}" if r else "full", "learning_rate": 1e-4 * (r or 1), "step": 10 * place,
         "accuracy_se": 0.01} for seed in (0, 1) for r, values in by_rank.items()
        for place, accuracy in enumerate(values, start=1)])))


def test_curves_meet_at_the_end_and_larger_rates_are_rougher_or_not():
    told = found.accuracy_curves_found(courses({
        0: (0.60, 0.70, 0.80), 1: (0.62, 0.70, 0.79), 4: (0.70, 0.69, 0.79), 8: (0.72, 0.69, 0.80)}))
    assert told.met is True and "make rougher curves" in told.text and "is 1.00 on movies." in told.text
    assert "end between 0.790 (LoRA r=1) and 0.800 (full), within two standard errors of a difference" in told.text
    assert "at the first checkpoint they stand between 0.600 (full) and 0.720 (LoRA r=8), beyond two" in told.text
    turned = found.accuracy_curves_found(courses({
        0: (0.60, 0.70, 0.80), 1: (0.61, 0.55, 0.75), 4: (0.60, 0.59, 0.80), 8: (0.60, 0.70, 0.80)}))
    assert turned.met is False and "do not make rougher curves" in turned.text and "is -1.00 on movies." in turned.text
    assert "0.750 (LoRA r=1) and 0.800 (full), beyond two" in turned.text and "0.610 (LoRA r=1), within" in turned.text
    alone = found.accuracy_curves_found(courses({1: (0.6, 0.8)}))
    assert alone.met is None and "LoRA r=1 alone learnt" in alone.text


@pytest.mark.parametrize("values, met, words", [
    ({0: 0.75, 1: 0.73, 8: 0.76}, True, "between -0.020 and 0.010 on movies (above zero in 1 of 2 runs)"),
    ({0: 0.75, 1: 0.73, 8: 0.74}, False, "(above zero in 0 of 2 runs)"),
    ({0: 0.75, 1: 0.73, 8: 0.82}, False, "Ours do not stay within that distance."),
    ({0: 0.75, 1: 0.73, 8: 0.5}, False, "1 of these runs did not learn"),
    ({1: 0.73, 8: 0.76}, None, "No run of LoRA has one of full fine-tuning beside it")])
def test_differences_are_of_either_sign_and_as_far_as_the_papers_or_not(values, met, words):
    told = found.accuracy_beside_paper_found(measured(runs(values)))
    assert told.met is met and words in told.text and "winogrande 0.041, siqa 0.035" in told.text, told.text


def rated(accuracies: dict[tuple[int, float], tuple[float, ...]]) -> Measured:
    """Accuracies by rank and rate, seed by seed."""
    return measured(marked(pd.DataFrame([
        {"experiment": "learning_rates", "task": "movies", "seed": seed, "r": r, "run": f"{r}-{rate}-{seed}",
         "method": f"LoRA r={r}" if r else "full", "learning_rate": rate, "accuracy": accuracy, "accuracy_se": 0.01}
        for (r, rate), values in accuracies.items() for seed, accuracy in enumerate(values)])))


EDGES = {(0, 1e-4): (0.8, 0.8), (0, 2e-4): (0.8, 0.8), (0, 4e-4): (0.5, 0.8),
         (1, 1e-3): (0.8, 0.8), (1, 2e-3): (0.8, 0.8), (1, 4e-3): (0.8, 0.5),
         (8, 5e-4): (0.8, 0.8), (8, 1e-3): (0.79, 0.8), (8, 2e-3): (0.5, 0.5)}


def test_each_method_has_a_plateau_and_an_edge_or_not():
    told = found.learning_rate_curves_found(rated(EDGES))
    assert told.met is True and told.text.endswith("The edge comes earlier at every higher rank.")
    assert "LoRA r=1 2 of 2 and LoRA r=8 2 of 2" in told.text and "LoRA r=8 0.002 (2 of 2 runs)" in told.text
    turned = found.learning_rate_curves_found(rated({(9 - r if r else 0, rate): values
                                                     for (r, rate), values in EDGES.items()}))
    assert turned.met is False and "The edge does not come earlier at every higher rank." in turned.text
    steep = found.learning_rate_curves_found(rated(EDGES | {(1, 1e-3): (0.72, 0.72)}))
    assert steep.met is False and "LoRA r=1 1 of 2" in steep.text


def test_one_rate_is_no_plateau_and_no_edge():
    told = found.learning_rate_curves_found(rated({(0, 1e-4): (0.8,), (8, 1e-3): (0.8,)}))
    assert told.met is None and "no plateau can be told" in told.text and "did not learn: none met." in told.text
    apart = {(0, 1e-4): (0.8,), (1, 1e-3): (0.8,), (1, 8e-3): (0.5,), (8, 5e-4): (0.8,), (8, 4e-3): (0.5,)}
    assert "these rates do not tell" in found.learning_rate_curves_found(rated(apart)).text
