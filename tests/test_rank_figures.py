"""The figures of notebook 12 draw what their tables hold."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from utils.spectra.perturbation import bf16_effect, gaussian_rank
from utils.studies.update_rank import figures as update_rank_figures


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def lines(axis) -> dict:
    return {line.get_label(): line for line in axis.get_lines()}


def test_the_null_is_a_line_and_each_shape_a_point_on_it():
    curve = pd.DataFrame([{"aspect": aspect, "share": gaussian_rank((100, 100 * aspect)) / 100}
                          for aspect in (1, 2, 4)])
    shapes = pd.DataFrame({"model": ["paper", "ours", "ours"], "aspect": [1, 2, 4], "share": curve["share"]})
    (axis,) = update_rank_figures.null_by_aspect(curve, shapes).axes
    assert lines(axis)["Gaussian matrix"].get_ydata().tolist() == curve["share"].tolist()
    assert lines(axis)["ours"].get_xdata().tolist() == [2, 4]
    assert lines(axis)["paper"].get_ydata()[0] == pytest.approx(0.51, abs=0.001), "half of a square one's directions"
    assert axis.get_xticks().tolist() == [1, 2, 3, 4]


def ratios(seeds=(0,)) -> pd.DataFrame:
    return pd.DataFrame([{"update": update, "seed": seed, "type": type_, "layer": layer,
                          "ratio": value + 0.1 * layer + 0.02 * seed}
                         for update, value in (("trained", 0.5), ("random", 0.9)) for seed in seeds
                         for type_ in ("q_proj", "up_proj") for layer in (0, 1)])


def test_ratios_have_a_point_per_layer_and_the_null_at_one():
    (axis,) = update_rank_figures.ratios_by_type(ratios((0, 1)), ratios((0, 1))).axes
    assert lines(axis)["trained"].get_ydata().tolist() == pytest.approx([0.51, 0.61]), "seeds are averaged"
    assert lines(axis)["random"].get_ydata().tolist() == pytest.approx([0.91, 1.01])
    assert set(lines(axis)["Gaussian noise"].get_ydata()) == {1}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["q_proj", "up_proj"]
    spans = [segment[:, 1].tolist() for one in axis.collections for segment in one.get_segments()]
    assert spans[0] == pytest.approx([0.5, 0.62]), "from the smallest to the largest layer and seed"
    assert len(spans) == 4


def test_ratios_without_a_reference_have_no_bars_and_places_apart():
    (axis,) = update_rank_figures.ratios_by_type(ratios()).axes
    assert not axis.collections
    assert lines(axis)["trained"].get_xdata()[0] < 0 < lines(axis)["random"].get_xdata()[0]


def test_rounding_shows_noise_by_type_and_ranks_against_exact_ones():
    torch.manual_seed(0)
    base = {"a.q_proj": torch.randn(32, 32), "b.up_proj": torch.randn(64, 32)}
    parts = []
    for step, size in ((5, 1e-3), (50, 1.0)):
        tuned = {name: weight + size * torch.outer(torch.ones(len(weight)), torch.ones(32))
                 for name, weight in base.items()}
        parts.append(bf16_effect(base, tuned).assign(step=step, type=["q_proj", "up_proj"]))
    table = pd.concat(parts, ignore_index=True)
    left, right = update_rank_figures.rounding_panels(table).axes
    early, late = lines(left)["tuned rounded, step 5"].get_ydata(), lines(left)["tuned rounded, step 50"].get_ydata()
    assert early.tolist() == table[table["step"] == 5]["noise"].tolist()
    assert (early > 100 * late).all(), "rounding is the larger beside the smaller update"
    drawn = right.get_lines()
    assert drawn[0].get_xdata().tolist() == [1, 1], "the exact update has rank one"
    assert drawn[0].get_ydata().tolist() == table[table["step"] == 5]["tuned_rounded_rank"].tolist()
    assert min(drawn[0].get_ydata()) > 5, "and its rounded one noise's"
    assert drawn[2].get_ydata().tolist() == [1, 1], "a large update keeps its rank"
