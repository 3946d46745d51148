"""What must hold of the functions that readers write in notebooks 01 and 02."""

import torch


def _layer(r: int = 3, alpha: float = 6.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(r)
    weight, a, b, x = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                       for shape in ((5, 4), (r, 4), (5, r), (7, 4)))
    return weight, a, b, alpha, r, x


def _same_answers(merge) -> bool:
    for r in (1, 3, 4):
        weight, a, b, alpha, _, x = _layer(r)
        beside = x @ weight.T + (x @ a.T) @ b.T * (alpha / r)
        if not torch.allclose(x @ merge(weight, a, b, alpha, r).T, beside):
            return False
    return True


def _starts_at_the_base(merge) -> bool:
    weight, a, b, alpha, r, _ = _layer()
    return torch.equal(merge(weight, a, torch.zeros_like(b), alpha, r), weight)


def _linear_in_alpha(merge) -> bool:
    weight, a, b, alpha, r, _ = _layer()
    once, twice = (merge(weight, a, b, times * alpha, r) - weight for times in (1, 2))
    return torch.allclose(twice, 2 * once)


def _leaves_its_input(merge) -> bool:
    weight, a, b, alpha, r, _ = _layer()
    before = weight.clone()
    merge(weight, a, b, alpha, r)
    return torch.equal(weight, before)


MERGE = {
    "with B = 0 the merged matrix is W itself": _starts_at_the_base,
    "the merged layer answers as layer and adapter side by side do, at every rank": _same_answers,
    "doubling alpha doubles what is added": _linear_in_alpha,
    "the matrix that was given stays as it was": _leaves_its_input,
}


def _answers(*counts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows two models answer rightly: both, only the one, only the other, neither, as often as is said."""
    each = ((True, True), (True, False), (False, True), (False, False))
    kinds = [kind for kind, count in zip(each, counts, strict=True) for _ in range(count)]
    return tuple(torch.tensor(column) for column in zip(*kinds, strict=True))


MCNEMAR = {
    "two models that answer alike have p = 1": lambda p: abs(p(*_answers(5, 0, 0, 3)) - 1) < 1e-9,
    "rows that both answer rightly, or neither, change nothing":
        lambda p: abs(p(*_answers(50, 9, 2, 30)) - p(*_answers(1, 9, 2, 1))) < 1e-9,
    "it does not matter which model is named first":
        lambda p: abs(p(*_answers(5, 9, 2, 3)) - p(*_answers(5, 2, 9, 3))) < 1e-9,
    "p halves with each further row that only one of them has right, where the other never wins":
        lambda p: all(abs(p(*_answers(1, n, 0, 1)) - 2 * p(*_answers(1, n + 1, 0, 1))) < 1e-9 for n in (3, 5, 8)),
    "as many wins on either side say nothing": lambda p: p(*_answers(4, 6, 6, 4)) > 0.999,
}
