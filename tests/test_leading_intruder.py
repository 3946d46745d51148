"""The leading intruder of a matrix is the definition's triplet, and scaling it changes that triplet alone."""


import numpy as np
import pytest
import standin_checkpoints as standin
import torch
from checkpoint_shelf import FACTOR, QUERY, moved, real_looking
from safetensors.torch import load_file
from standin_checkpoints import definition
from transformers import BertForMaskedLM

from utils.spectra.fast import LowRankUpdate, Pair
from utils.spectra.intervention import leading_intruder, scaled

pytestmark = pytest.mark.usefixtures("shelf_cache")


# Interventions ------------------------------------------------------------------------------------------------------

SHAPES = {"square": (160, 160), "tall": (224, 144), "wide": (144, 224), "narrow": (120, 90)}


def pair_of(shape: tuple[int, int], kind: str, sigma: float = 0.85) -> tuple[Pair, torch.Tensor, torch.Tensor]:
    """A pair with a planted direction between W0's first two, whose singular values are 1 and 0.71; W0; merged Wt."""
    base = real_looking(shape, 4)
    tuned, b, a = moved(base, rank=1, strength=sigma / base.norm().item(), noise=0.05)
    if kind == "lowrank":
        tuned = base + 2.0 * (b / 2) @ a
        return Pair("w", lambda: (base, LowRankUpdate(b / 2, a, 2.0))), base, tuned
    return Pair("w", lambda: (base, tuned)), base, tuned


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_leading_intruder_is_the_definitions_triplet(shape, kind):
    pair, base, tuned = pair_of(shape, kind)
    u, s, vt = np.linalg.svd(tuned.numpy(), full_matrices=False)
    places = np.flatnonzero(definition(base.numpy(), tuned.numpy())[1] < 0.5)
    assert len(places) and places[0] > 0, "the first vector itself would be too easy"
    place, found = places[0], leading_intruder(pair)
    assert found.index == place + 1 and found.sigma == pytest.approx(s[place], rel=1e-9)
    assert (tuple(found.u.shape), tuple(found.v.shape)) == ((shape[0],), (shape[1],))
    np.testing.assert_allclose(found.sigma * torch.outer(found.u, found.v).numpy(),
                               s[place] * np.outer(u[:, place], vt[place]), atol=1e-6 * s[0])


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scaling_an_intruder_changes_its_singular_value_alone(shape, kind):
    pair, _, tuned = pair_of(shape, kind)
    direction = leading_intruder(pair)
    values = np.linalg.svd(tuned.numpy(), compute_uv=False)
    assert torch.equal(scaled(tuned, direction, 1), tuned)
    for factor in (0, 0.5, 2):
        expected = np.sort(np.append(np.delete(values, direction.index - 1), factor * direction.sigma))[::-1]
        changed = scaled(tuned, direction, factor)
        np.testing.assert_allclose(np.linalg.svd(changed.numpy(), compute_uv=False), expected, atol=1e-6 * values[0])
        assert (changed @ direction.v).norm().item() == pytest.approx(factor * direction.sigma, abs=1e-6 * values[0])
    assert scaled(tuned.bfloat16(), direction, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["lowrank", "dense"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_matrix_without_intruders_has_none(shape, kind):
    pair, base, tuned = pair_of(shape, kind, sigma=1e-4)
    assert (definition(base.numpy(), tuned.numpy())[1] > 0.5).all()
    assert leading_intruder(pair) is None
    planted, base, tuned = pair_of(shape, kind)
    assert leading_intruder(planted, k=1) is None and leading_intruder(planted, epsilon=0.01) is None


def test_the_leading_intruder_of_an_adapter_is_peft_s(shelf):
    """From the files, by the name of a matrix, as a notebook would take it."""
    tensors, adapter = load_file(shelf.base("bert") / "model.safetensors"), load_file(
        shelf.adapter() / "adapter_model.safetensors")
    update = LowRankUpdate(adapter[f"{FACTOR}.lora_B.weight"], adapter[f"{FACTOR}.lora_A.weight"], 8 / 4)
    found = leading_intruder(Pair(QUERY, lambda: (tensors[f"{QUERY}.weight"], update)))
    before, after = standin.merged_matrices(shelf.base("bert"), shelf.adapter(), BertForMaskedLM)
    place = np.flatnonzero(definition(before[QUERY], after[QUERY])[1] < 0.5)[0]
    u, s, vt = np.linalg.svd(after[QUERY])
    assert found.index == place + 1
    np.testing.assert_allclose(found.sigma * torch.outer(found.u, found.v).numpy(),
                               s[place] * np.outer(u[:, place], vt[place]), atol=1e-6)
