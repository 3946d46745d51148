"""Notebook 12: its rules by hand, what its tables are made of, and figures that draw and say what the tables hold."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from utils.errors import CourseError
from utils.evaluation.memory import bytes_per_trained, memory_table, training_bytes
from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.registry import RULES
from utils.reporting.selection import marked
from utils.spectra.perturbation import bf16_effect, deviation_sweep, gaussian_rank, spectrum_table, toy_perturbation
from utils.studies.update_rank import figures, measure, rank_figures, rules
from utils.studies.update_rank.published import published_memory
from utils.training import targets

WEIGHTS = ("q_proj", "o_proj", "up_proj", "down_proj")
SMOKE = load_profile("smoke")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# --- rules by hand

def spectra(*by_step: tuple, seed: int = 0, **values: tuple) -> list[dict]:
    """Ranks of four matrices (q, o, up, down; layers 0 to 3) at each step of full fine-tuning; LoRA's are 99."""
    full = [{"method": "full", "r": 0, "step": 10 * place, "type": name, "layer": i, "update_rank": rank}
            | {key: of[i] if place == len(by_step) else math.nan for key, of in values.items()}
            for place, ranks in enumerate(by_step, start=1)
            for i, (name, rank) in enumerate(zip(WEIGHTS, ranks, strict=True))]
    lora = [{"method": f"LoRA r={r}", "r": r, "step": step, "type": "q_proj", "layer": 0, "update_rank": 99}
            for r in (1, 8) for step in (10, 20)]
    return [{"experiment": "code", "seed": seed} | row for row in [*full, *lora]]


def table(*seeds: list[dict]) -> pd.DataFrame:
    """The rows of seeds 0, 1, …, marked as the course marks every table, and rows of another experiment."""
    rows = pd.DataFrame([row | {"seed": seed} for seed, part in enumerate(seeds) for row in part])
    return marked(pd.concat([rows, rows.assign(experiment="mathematics", update_rank=1)], ignore_index=True))


CODE = {"in_experiment": "code"}
RISING = spectra((8, 16, 12, 12), (20, 20, 20, 20))
CASES = {  # rule -> parameters, a seed's rows, the effect by hand
    "update_rank_over_lora": (CODE | {"rank": "lowest"}, RISING, 12.0),  # 12 directions over rank 1
    "update_rank_over_lora/highest": (CODE | {"rank": "highest"}, RISING, 1.5),
    "update_rank_rises": (CODE, spectra((8, 16, 12, 12), (0, 0, 0, 0), (20, 20, 20, 20)), 8.0),
    "update_rank_over_noise": (CODE, spectra((9,) * 4, (9,) * 4, ratio=(0.25, 0.5, 0.75, 0.5)), 0.5),
    "mlp_above_attention": (CODE | {"column": "update_rank"}, spectra((9, 9, 1, 1), (4, 8, 7, 9)), 2.0),
    "mlp_above_attention/every_kind": (CODE | {"column": "update_rank", "every_kind": True},
                                       spectra((9, 9, 1, 1), (4, 8, 7, 9)), 0.0),
    "middle_above_ends": (CODE, spectra((0, 0, 0, 0), (4, 8, 7, 5)), 2.5),  # 7.5 against the last layer's 5
    # 2/64, 2/64 and 2/64 of the base's rank, whichever way
    "own_rank_moved": (CODE, spectra((1,) * 4, (1,) * 4, base_rank=(64,) * 4, tuned_rank=(66, 62, 66, 62)), 0.03125),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_gives_each_seed_its_effect(case):
    parameters, rows, effect = CASES[case]
    rule = RULES[case.split("/")[0]].function
    for ordered in (table(rows, rows), table(rows, rows).iloc[::-1]):
        assert rule(ordered, **parameters).values.to_dict() == pytest.approx({0: effect, 1: effect})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lacking", ["method == 'full'", "method == 'full' and step == 20"])
def test_a_missing_run_is_named_and_nothing_stands_in_for_it(case, lacking):
    parameters, rows, effect = CASES[case]
    whole = table(rows, rows)
    last = whole.loc[(whole["method"] == "full") & (whole["seed"] == 1), "step"].max()
    gone = whole.query("seed == 1").query(lacking.replace("20", str(last))).index
    effects = RULES[case.split("/")[0]].function(whole.drop(index=gone), **parameters)
    assert effects.values.dropna().to_dict() == pytest.approx({0: effect}) and list(effects.missing) == [1]


def test_a_single_duration_shows_no_rise():
    assert rules.update_rank_rises(table(spectra((1, 1, 1, 1))), **CODE).missing[0].startswith("1 durations")


def test_a_column_that_is_not_there_is_loud():
    with pytest.raises(KeyError, match="update_rank"):
        rules.update_rank_rises(table(RISING).drop(columns="update_rank"), **CODE)


def test_outcomes_are_of_full_fine_tuning_alone():
    """LoRA's rank is bounded by r: it must not lend power to a claim about full fine-tuning."""
    effects = rules.update_rank_rises(table(spectra((5,) * 4, (5,) * 4)), **CODE)
    assert set(effects.outcomes) == {5.0} and effects.values.tolist() == [0]


@pytest.mark.parametrize("power, effect", [(1, 0), (2, 1)])
def test_the_deviations_slope_above_one(power, effect):
    rows = [{"seed": 0, "scale": c, "deviation": d}
            for c, d in ((1e-4, 1e-4 ** power), (1e-3, 1e-3 ** power), (0.1, 1e3))]
    assert rules.deviation_slope(pd.DataFrame(rows), below=0.003).values.tolist() == pytest.approx([effect])
    assert "scales up to 0.003" in rules.deviation_slope(pd.DataFrame(rows[1:]), below=0.003).missing[0]


def test_cells_that_agree():
    rows = pd.DataFrame({"seed": 0, "agrees": [True, True, True, False]})
    assert rules.cells_that_agree(rows).values.tolist() == [0.75]


def test_attention_is_what_the_adapters_targets_call_attention():
    assert set(WEIGHTS[:2]) <= set(targets.ATTENTION) and not set(WEIGHTS[2:]) & set(targets.ATTENTION)


# --- tables

def test_the_toy_is_one_sweep_for_each_seed(monkeypatch):
    monkeypatch.setattr(measure, "deviation_sweep", lambda seed: pd.DataFrame(
        {"scale": [1e-4, 1e-3], "deviation": [(1 + seed) * 1e-4, (1 + seed) * 1e-3]}))
    found = measure.toy_deviations(SMOKE, (3, 5))
    assert found["seed"].tolist() == [3, 3, 5, 5] and found["scale"].tolist() == [1e-4, 1e-3] * 2
    assert found["deviation"].tolist() == pytest.approx([4e-4, 4e-3, 6e-4, 6e-3])
    assert set(measure.toy_deviations(SMOKE)["seed"]) == set(SMOKE.seeds)


def test_a_small_toy_shifts_in_proportion_to_the_scale():
    values = deviation_sweep(n=40, scales=(1e-5, 1e-4)).set_index("scale")["deviation"]
    assert values.loc[1e-4] / values.loc[1e-5] == pytest.approx(10, rel=1e-3)


def test_formulas_agree_to_the_printed_decimals(monkeypatch):
    """Rounded or cut off in the last printed place agrees; 16 for 14 does not."""
    published = pd.DataFrame([{"table": "S14", "model": "7B", "parameters_billion": 7, "method": "full, Adam",
                               "gpus": gpus, "gigabytes": printed}
                              for gpus, printed in ((1, 112), (16, 7), (32, 3.5), (64, 1.7), (128, 0.87), (8, 16))])
    monkeypatch.setattr(measure, "published_memory", lambda: published)
    found = measure.memory_formulas(SMOKE)
    assert found["gigabytes"].tolist() == [112, 7, 3.5, 1.75, 0.875, 14] and set(found["seed"]) == {0}
    assert found["agrees"].tolist() == [True, True, True, True, True, False]


def test_every_published_cell_but_one_is_recomputed():
    """405B with LoRA and Adam on 16 GPUs is 874.8 / 16 = 54.675; the paper prints 54.65."""
    found = measure.memory_formulas(load_profile("laptop"))
    assert len(found) == len(published_memory()) == 4 * (5 + 5 + 7) and found.notna().all().all()
    wrong = found[~found["agrees"]]
    assert wrong[["model", "method", "gpus", "gigabytes_published"]].values.tolist() == [
        ["405B", "LoRA, Adam", 16, 54.65]]
    assert wrong["gigabytes"].iloc[0] == pytest.approx(54.675)


def test_a_reader_of_the_published_table_cannot_change_it():
    mine = published_memory()
    mine.loc[:, "gigabytes"] = -1.0
    assert (published_memory()["gigabytes"] > 0).all()


def test_bytes_by_hand():
    assert (bytes_per_trained("adam"), bytes_per_trained("lion")) == (16, 12)
    assert training_bytes(1000, optimiser="lion", gpus=4) == 3000
    assert training_bytes(1000, trainable_share=0.5, frozen_bytes=0.5) == 500 + 8000
    assert training_bytes(1000, trainable_share=0) == 2000
    assert training_bytes(7, trainable_share=0.01, frozen_bytes=4) == pytest.approx(29.12), "the paper's in fp32"


@pytest.mark.parametrize("wrong", [{"optimiser": "sgd"}, {"trainable_share": 1.5}, {"trainable_share": -0.1}])
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(CourseError, match="Expected"):
        training_bytes(7, **wrong)


# --- figures

def lines(axis) -> dict:
    return {line.get_label(): line for line in axis.get_lines()}


def given(own: pd.DataFrame, reference: pd.DataFrame | None = None, name: str = "rank_dynamics") -> Measured:
    return Measured(name, SMOKE, (3,), own, reference)


def dynamics(seed: int = 0, *, lift: float = 0.0, ends: float = 0.0) -> pd.DataFrame:
    """Full and LoRA r = 8 on two data sets: three layers of a square and an oblong matrix, two durations."""
    rows = []
    for experiment in ("code", "mathematics"):
        for r, method in ((0, "full"), (8, "LoRA r=8")):
            for type_, width in (("q_proj", 16), ("up_proj", 48)):
                null = gaussian_rank((16, width))
                for layer in range(3):
                    for step in (10, 40):
                        rank = 2 if r else step / 10 + lift + (ends if layer != 1 else 0)
                        rows.append({"experiment": experiment, "method": method, "r": r, "seed": seed, "type": type_,
                                     "layer": layer, "step": step, "train_tokens": 2000 * step, "rows": 16,
                                     "columns": width, "update_rank": rank, "null_rank": null, "ratio": rank / null})
    return marked(pd.DataFrame(rows))


def test_the_null_is_a_line_and_each_shape_a_point_on_it():
    drawn = figures.gaussian_null(given(dynamics()))
    (axis,) = drawn.figure.axes
    drawn_null = lines(axis)
    assert drawn_null["ours, continued"].get_xdata().tolist() == [1, 3]
    assert drawn_null[figures.PAPER_MODEL].get_ydata()[0] == pytest.approx(0.51, abs=0.001), "half of a square one"
    assert drawn_null["Gaussian matrix"].get_ydata()[0] == pytest.approx(0.51, abs=0.001)
    assert "ours, continued, q_proj: 8 of 16" in drawn.alt and "q, k, v, o: 2088 of 4096" in drawn.alt


def test_the_toys_guides_pass_through_its_ends():
    sweep = deviation_sweep(50, (1e-4, 1e-2, 1.0)).assign(seed=0)
    drawn = figures.gaussian_toy(given(sweep, pd.concat([sweep, sweep.assign(seed=1)]), "toy_deviations"),
                                 spectra=toy_perturbation(50))
    left, right = drawn.figure.axes
    assert max(one.get_ydata().max() for one in left.get_lines()) == 1
    measured = lines(right)["measured, your seeds"].get_ydata()
    assert measured[0] == 1 and lines(right)["proportional to c"].get_ydata().tolist() == pytest.approx([1, 100, 1e4])
    square = lines(right)["proportional to c²"].get_ydata()
    assert square[-1] == pytest.approx(measured[-1]) and square[-1] / square[-2] == pytest.approx(1e4)
    first = sweep["deviation"].iloc[0] / 1e-4
    assert f"{first:.2f} c at the smallest c" in drawn.alt


def test_one_matrix_is_shown_as_it_is_by_shape_and_by_share():
    spectrum = spectrum_table({"W0": torch.diag(torch.tensor([1.0, 3.0])), "update": torch.eye(2)})
    drawn = figures.one_matrix(SMOKE, spectra=spectrum, name="w", shape=(2, 2))
    absolute, relative, _ = drawn.figure.axes
    assert lines(absolute)["W0"].get_ydata().tolist() == pytest.approx([3, 1])
    assert lines(relative)["W0"].get_ydata().tolist() == pytest.approx([1, 1 / 3])
    assert drawn.shown["directions for 90 %"].tolist() == [1, 2], "9 of 10, and two halves"
    assert "W0 1, update 2" in drawn.alt and "Largest singular values: W0 3.00, update 1.00" in drawn.alt


def test_memory_of_each_model():
    sizes = memory_table({"7B": 7, "70B": 70}, (1, 8))
    formulas = sizes.assign(gigabytes_published=sizes["gigabytes"] * 1.5, agrees=False)
    drawn = figures.memory(given(formulas, name="memory_formulas"))
    first, second = drawn.figure.axes
    assert [axis.get_title() for axis in (first, second)] == ["7B", "70B"]
    assert lines(first)["full, Adam"].get_ydata().tolist() == pytest.approx([112, 14])
    assert {to_hex(lines(first)[f"full, {name}"].get_color()) for name in ("Adam", "Lion")} == {"#000000"}
    assert max(lines(second)["published"].get_ydata()) == pytest.approx(1680)
    assert lines(first)["24 GB"].get_ydata()[0] == 24
    assert "16 cells 0 are ours" in drawn.alt and "largest difference is 33.3%" in drawn.alt


def test_ranks_by_layer_under_their_null():
    drawn = rank_figures.by_layer_code(given(dynamics(ends=-1), pd.concat([dynamics(ends=-1), dynamics(1, lift=1)])))
    axes = drawn.figure.axes
    assert [axis.get_title() for axis in axes] == ["q_proj, 16 × 16", "up_proj, 16 × 48"]
    short, long = (lines(axes[0])[f"{length} thousand tokens"] for length in (20, 80))
    assert long.get_ydata().tolist() == [3, 4, 3] and short.get_ydata().tolist() == [0, 1, 0]
    assert sum(long.get_color()) > sum(short.get_color()), "lighter is longer"
    assert [lines(axis)["Gaussian noise"].get_ydata()[0] for axis in axes] == [
        gaussian_rank((16, 16)), gaussian_rank((16, 48))]
    assert axes[0].get_ylim() == (0, 16) and len(axes[0].collections) == 2, "a band of the reference for each duration"
    assert "q_proj: 0, 3, 8" in drawn.alt, "means over layers of 1/3 and 10/3"
    assert "first layer's mean of 3 is below" in drawn.alt and "layer's 3 is below" in drawn.alt


def test_the_alternative_text_says_the_opposite_where_the_ends_lie_above():
    drawn = rank_figures.by_layer_mathematics(given(dynamics(ends=2)))
    assert "first layer's mean of 6 is not below" in drawn.alt and "layer's 6 is not below" in drawn.alt
    assert not drawn.figure.axes[0].collections


def test_a_reference_of_another_model_is_not_drawn_on_the_same_axes():
    wide = dynamics().assign(rows=576)
    assert not rank_figures.by_layer_code(given(dynamics(), wide)).figure.axes[0].collections


def test_the_ratio_is_a_mean_over_matrices_of_a_kind():
    own = dynamics()
    drawn = rank_figures.ratio_through_training(given(own, pd.concat([own, dynamics(1, lift=1)])))
    code = drawn.figure.axes[0]
    expected = 4 / gaussian_rank((16, 48))
    assert lines(code)["MLP"].get_ydata()[-1] == pytest.approx(expected)
    assert f"code, MLP {expected:.2f}" in drawn.alt and code.get_title() == "code"
    assert len(code.collections) == 2 and lines(code)["MLP"].get_xdata().tolist() == [20_000, 80_000]


def test_methods_are_drawn_in_the_courses_colours():
    drawn = rank_figures.by_method(given(dynamics()))
    code = drawn.figure.axes[0]
    assert lines(code)["full"].get_ydata().tolist() == [1, 4] and lines(code)["LoRA r=8"].get_ydata().tolist() == [2, 2]
    assert to_hex(lines(code)["full"].get_color()) == "#000000"
    assert "code, full: 4.0" in drawn.alt and "mathematics, LoRA r=8: 2.0" in drawn.alt


def test_random_updates_stand_beside_trained_ones():
    own, random = dynamics(), dynamics().query("r == 0 and step == 40").assign(ratio=1.0)
    drawn = rank_figures.random_control(given(own, pd.concat([own, dynamics(1, lift=1)])),
                                        given(random, random, "random_ranks"))
    (axis,) = drawn.figure.axes
    square = gaussian_rank((16, 16))
    assert lines(axis)["trained"].get_ydata().tolist() == pytest.approx([4 / square] * 3), "at the longest duration"
    assert set(lines(axis)["Gaussian noise"].get_ydata()) == {1}
    spans = [segment[:, 1].tolist() for one in axis.collections for segment in one.get_segments()]
    assert spans[0] == pytest.approx([4 / square, 5 / square]), "from the smallest to the largest layer and seed"
    assert "random, equal norm: mean 1.00, 1.00 to 1.00" in drawn.alt
    alone = rank_figures.random_control(given(own), given(random, None, "random_ranks")).figure.axes[0]
    assert not alone.collections and lines(alone)["trained"].get_xdata()[0] < 0


def test_rounding_shows_noise_by_type_and_ranks_against_exact_ones():
    torch.manual_seed(0)
    base = {"a.q_proj": torch.randn(32, 32), "b.up_proj": torch.randn(64, 32)}
    parts = []
    for step, size in ((5, 1e-3), (50, 1.0)):
        tuned = {name: weight + size * torch.outer(torch.ones(len(weight)), torch.ones(32))
                 for name, weight in base.items()}
        parts.append(bf16_effect(base, tuned).assign(step=step, type=["q_proj", "up_proj"]))
    effects = pd.concat(parts, ignore_index=True)
    drawn = rank_figures.rounding(given(effects, name="rounding_effects"))
    left, right = drawn.figure.axes
    early, late = lines(left)["tuned rounded, step 5"].get_ydata(), lines(left)["tuned rounded, step 50"].get_ydata()
    assert early.tolist() == effects[effects["step"] == 5]["noise"].tolist()
    assert (early > 100 * late).all(), "rounding is the larger beside the smaller update"
    points = right.get_lines()
    assert points[0].get_xdata().tolist() == [1, 1], "the exact update has rank one"
    assert min(points[0].get_ydata()) > 5, "and its rounded one noise's"
    assert points[2].get_ydata().tolist() == [1, 1], "a large update keeps its rank"
    assert "Step 5: noise" in drawn.alt and "mean rank 1.0 exact" in drawn.alt
