"""Scaling one direction of one matrix: what is found, what is changed, and the controls, on planted intruders."""

import math

import pytest
import torch
from planted_intruders import direction, gaussian, planted_pair, tuned_of

from utils.errors import UsageError
from utils.spectra.intervention import (
    Direction,
    Directions,
    leading_directions,
    leading_intruder,
    neighbour,
    random_direction,
    require_factor,
    scaled,
    shrunk,
    update_direction,
    with_norm,
)

K, EPSILON = 10, 0.5


@pytest.mark.parametrize("low_rank", [True, False], ids=["factors", "dense"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32), (200, 160)], ids=str)
@pytest.mark.parametrize("intruders", [0, 1, 2])
def test_leading_directions_are_those_of_a_plain_svd(shape, intruders, low_rank):
    """On planted intruders, by the definition alone: which vectors are foreign, their sigma, u and v up to one sign."""
    pair = planted_pair(intruders, shape, low_rank)
    found = leading_directions(pair, k=6, epsilon=EPSILON)
    tuned = tuned_of(pair)
    u, s, vt = torch.linalg.svd(tuned, full_matrices=False)
    cosines = (torch.linalg.svd(pair.load()[0].double(), full_matrices=False)[0].T @ u[:, :6]).abs().amax(0)
    foreign = [place + 1 for place in range(6) if cosines[place] < EPSILON]
    assert len(foreign) == intruders and [one.index for one in found.intruders] == foreign
    if not intruders:
        assert found == Directions([], []), "a matrix without an intruder is left alone, and nothing is computed for it"
        return
    assert [one.index for one in found.others] == [place for place in range(1, 7) if place not in foreign]
    for one in (*found.intruders, *found.others):
        place = one.index - 1
        assert one.sigma == pytest.approx(s[place].item(), rel=1e-9)
        torch.testing.assert_close(torch.outer(one.u, one.v), torch.outer(u[:, place], vt[place]), rtol=0, atol=1e-7)


def test_the_leading_intruder_is_the_highest_ranked():
    """The paper scales the first intruder alone; which one that is follows from sigma, not from the cosine."""
    pair = planted_pair(2)
    found = leading_directions(pair, k=K)
    assert leading_intruder(pair, k=K).index == found.intruders[0].index == 1
    assert found.intruders[0].sigma > found.intruders[1].sigma
    assert leading_intruder(planted_pair(0), k=K) is None


def test_epsilon_and_k_decide_what_is_an_intruder():
    """The planted cosine is about 0.35: an epsilon below it finds nothing, and k = 1 leaves no other vector."""
    pair = planted_pair(1)
    assert leading_directions(pair, k=K, epsilon=0.2) == Directions([], [])
    alone = leading_directions(pair, k=1, epsilon=EPSILON)
    assert len(alone.intruders) == 1 and alone.others == [] and neighbour(alone) is None


@pytest.mark.parametrize("intruder, others, nearest", [
    (5.0, [9.0, 4.0, 1.0], 4.0), (8.0, [9.0, 4.0, 1.0], 9.0), (0.5, [9.0, 4.0, 1.0], 1.0), (5.0, [], None)])
def test_the_neighbour_has_the_nearest_singular_value(intruder, others, nearest):
    """On either side; nothing where every leading vector is an intruder."""
    found = neighbour(Directions([direction(1, intruder), direction(9, 4.1)],
                                 [direction(place, sigma) for place, sigma in enumerate(others)]))
    assert found is None if nearest is None else found.sigma == nearest
    assert neighbour(Directions([], [direction(1, 3.0)])) is None


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_scaling_changes_one_singular_value_and_nothing_else(factor):
    """W_new's SVD is Wt's with one sigma multiplied: the paper's formula, read off a plain SVD."""
    pair = planted_pair(2)
    tuned, one = tuned_of(pair), leading_directions(pair, k=K).intruders[1]
    before = torch.linalg.svdvals(tuned).tolist()
    expected = sorted([*before[:one.index - 1], factor * one.sigma, *before[one.index:]], reverse=True)
    after = scaled(tuned, one, factor)
    torch.testing.assert_close(torch.linalg.svdvals(after), torch.tensor(expected, dtype=torch.float64), rtol=1e-7,
                               atol=1e-7)
    assert (after - tuned).norm().item() == pytest.approx(abs(factor - 1) * one.sigma, abs=1e-9)


def test_factor_one_gives_the_same_bits_back():
    """In float32, too: a table's row at lambda 1 is the run itself."""
    weight = gaussian(24, 16, seed=3)
    one = Direction(1, gaussian(24, seed=4).double(), 7.3, gaussian(16, seed=5).double())
    assert torch.equal(scaled(weight, one, 1.0), weight) and scaled(weight, one, 0.5).dtype == torch.float32


def test_a_random_direction_changes_the_norm_by_as_much():
    """Unit vectors, the intruder's sigma, one direction per seed: at every lambda the same size of change."""
    pair = planted_pair(1)
    tuned, one = tuned_of(pair), leading_intruder(pair)
    other = random_direction(one, seed=3)
    assert other.u.norm().item() == pytest.approx(1) and other.v.norm().item() == pytest.approx(1)
    assert (len(other.u), len(other.v), other.sigma) == (40, 24, one.sigma)
    assert torch.equal(random_direction(one, seed=3).u, other.u)
    assert not torch.equal(random_direction(one, seed=4).u, other.u)
    for factor in (0.0, 0.5, 2.0):
        sizes = [(scaled(tuned, which, factor) - tuned).norm().item() for which in (one, other)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-9)
    assert abs(float(other.u @ one.u)) < 0.5


@pytest.mark.parametrize("factor", [-0.01, 4.01, math.nan, math.inf, -math.inf])
def test_a_factor_out_of_range_is_one_sentence(factor):
    """NaN compares false with everything, so a check written the other way round lets it through."""
    weight, one = gaussian(3, 3), Direction(1, gaussian(3), 1.0, gaussian(3))
    for attempt in (lambda: require_factor(factor), lambda: scaled(weight, one, factor),
                    lambda: shrunk(weight, weight, factor)):
        with pytest.raises(UsageError, match="lambda must lie between 0 .remove. and 4") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [0, 1, 4, 0.0, 4.0])
def test_the_ends_of_the_range_are_allowed(factor):
    require_factor(factor)


def test_shrinking_the_whole_update():
    base, tuned = gaussian(5, 4, seed=1), gaussian(5, 4, seed=2)
    assert torch.equal(shrunk(base, tuned, 0.0), base)
    torch.testing.assert_close(shrunk(base, tuned, 1.0), tuned)
    torch.testing.assert_close(shrunk(base, tuned, 2.0), 2 * tuned - base)


def test_an_update_of_another_norm_keeps_its_direction():
    """The norm asked for, the same direction; a matrix without an update stays, whatever norm is asked for."""
    base, tuned = gaussian(5, 4, seed=1), gaussian(5, 4, seed=2)
    moved = with_norm(base, tuned, 0.7)
    assert (moved - base).norm().item() == pytest.approx(0.7, rel=1e-5)
    torch.testing.assert_close((moved - base) / 0.7, (tuned - base) / (tuned - base).norm())
    assert torch.equal(with_norm(base, base, 3.0), base) and torch.equal(with_norm(base, tuned, 0.0), base)


@pytest.mark.parametrize("low_rank", [True, False], ids=["factors", "dense"])
def test_the_triplet_of_the_update_is_that_of_its_own_svd(low_rank):
    """Option (b) of the authors' issue 3: sigma and vectors of Wt - W0, and only where they resemble nothing of W0."""
    pair = planted_pair(2, low_rank=low_rank)
    base, _ = pair.load()
    u, s, vt = torch.linalg.svd(tuned_of(pair) - base.double(), full_matrices=False)
    found = update_direction(pair)
    assert found.index == 1 and found.sigma == pytest.approx(s[0].item(), rel=1e-6)
    torch.testing.assert_close(torch.outer(found.u, found.v), torch.outer(u[:, 0], vt[0]), rtol=0, atol=1e-5)
    assert update_direction(planted_pair(0, low_rank=low_rank)) is None, "W0's own first directions grew"
