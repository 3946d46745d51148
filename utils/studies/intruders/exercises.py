"""What must hold of the control that readers write in notebook 04."""

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
