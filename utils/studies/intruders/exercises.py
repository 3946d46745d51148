"""What must hold of what readers write: the control of notebook 04, and the direction followed in notebook 04b."""

import math

import torch


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 30, generator=generator)
    return base, base + 0.1 * torch.randn(40, 2, generator=generator) @ torch.randn(2, 30, generator=generator)


def _same_norm(control) -> bool:
    base, tuned = _pair()
    return all(torch.isclose((control(base, tuned, seed) - base).norm(), (tuned - base).norm(), rtol=1e-4)
               for seed in (0, 1, 2))


def _other_directions(control) -> bool:
    base, tuned = _pair()
    drawn, trained = (matrix - base for matrix in (control(base, tuned, 0), tuned))
    return abs(float((drawn * trained).sum() / drawn.norm() / trained.norm())) < 0.2


def _a_draw_of_its_own(control) -> bool:
    base, tuned = _pair()
    return torch.equal(control(base, tuned, 0), control(base, tuned, 0)) and not torch.allclose(
        control(base, tuned, 0), control(base, tuned, 1))


def _same_rank(control) -> bool:
    base, tuned = _pair()
    values = torch.linalg.svdvals(control(base, tuned, 0) - base)
    return bool(values[2] < 1e-4 * values[0] < values[1])


NORM_CONTROL = {
    "the update's Frobenius norm is the trained one's": _same_norm,
    "its directions have nothing to do with the trained update's": _other_directions,
    "the seed alone decides the draw": _a_draw_of_its_own,
    "its rank is the trained update's (here 2)": _same_rank,
}


def _growing() -> tuple[list[torch.Tensor], torch.Tensor, list[int]]:
    """Left vectors at four steps of a matrix in which one foreign direction grows, that direction, its index at each.

    It is added where the base is weakest, so that it passes one singular value of the base after another.
    """
    generator = torch.Generator().manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(40, 30, dtype=torch.float64, generator=generator))
    base, foreign = left[:, :30] * values @ right, left[:, -1]
    steps, indices = [], []
    for strength in (1.0, 4.0, 8.0, 16.0):
        grown = base + strength * torch.outer(foreign, right[-1])
        steps.append(torch.linalg.svd(grown, full_matrices=False).U)
        indices.append(1 + int((values[:-1] > math.hypot(float(values[-1]), strength)).sum()))
    return steps, foreign, indices


def _indices(follow, steps: list[torch.Tensor], direction: torch.Tensor) -> list[int]:
    return [int(index) for index in follow(steps, direction)]


def _one_for_each(follow) -> bool:
    steps, foreign, _ = _growing()
    return all(len(_indices(follow, steps[:count], foreign)) == count for count in (1, 4))


def _climbs(follow) -> bool:
    steps, foreign, indices = _growing()
    return _indices(follow, steps, foreign) == indices


def _signs_mean_nothing(follow) -> bool:
    steps, foreign, indices = _growing()
    return all(_indices(follow, [sign * left for left in steps], foreign) == indices for sign in (1, -1))


FOLLOWED = {
    "it gives one index for each checkpoint": _one_for_each,
    "a direction that grows is found at its own index, 1 being the largest singular value": _climbs,
    "the sign of a singular vector does not matter": _signs_mean_nothing,
}
