"""First factors against values worked out by hand, shapes that a variant cannot have, and LoFT against AdamW itself."""

import pytest
import torch
from torch import nn

from utils.errors import UsageError
from utils.training.initialisations import STABLE_GAMMA, check_shapes, gradient_factors, minor_factors, uniform_factors
from utils.training.loft import LoFT, gram_inverse, second_moment_of_product

torch.manual_seed(0)


# --- first factors --------------------------------------------------------------------------------------------------


def test_milora_takes_the_smallest_triplets_and_shares_their_values():
    """diag(5, 3, 2, 1), r = 2, scale 2: B A is the part of 2 and 1 over the scale; both factors carry sqrt(s / 2)."""
    b, a, _ = minor_factors(torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0])), 2, 2.0)
    torch.testing.assert_close(2.0 * b @ a, torch.diag(torch.tensor([0.0, 0.0, 2.0, 1.0])))
    torch.testing.assert_close(b.norm(dim=0), torch.tensor([1.0, 0.5**0.5]))
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_init_ab_stays_within_one_over_the_root_of_its_fan_in():
    """A's fan in is the width, 64: up to 1/8; B's is the rank, 4: up to 1/2. Both fill their range."""
    b, a, _ = uniform_factors(torch.empty(128, 64), 4, 1.0)
    assert a.shape == (4, 64) and b.shape == (128, 4)
    assert 0.11 < a.abs().max() <= 1 / 8 and 0.48 < b.abs().max() <= 1 / 2


def test_lora_ga_takes_the_first_right_and_the_next_left_directions_of_the_gradient():
    """A gradient of diag(4, 3, 2, 1) on 16 rows: A is e1, e2; B is e3, e4; both times 16^(1/4) / 16^(1/2) = 1/2.

    PEFT 0.21 multiplies B by the gradient's singular values (2 and 1 here) and leaves A at length 1.
    """
    gradient = torch.zeros(16, 5)
    gradient[range(4), range(4)] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    b, a, _ = gradient_factors(gradient, 2, 1.0)
    assert STABLE_GAMMA == 16
    torch.testing.assert_close(a.abs(), 0.5 * torch.eye(5)[:2])
    torch.testing.assert_close(b.abs(), 0.5 * torch.eye(16)[:, 2:4])


@pytest.mark.parametrize("variant, r, shapes, words", [
    ("pissa", 9, {"q": (8, 20)}, "PiSSA of rank 9 .* q has only 8; choose a rank up to 8"),
    ("olora", 9, {"q": (20, 8)}, "OLoRA of rank 9"), ("milora", 9, {"q": (8, 8)}, "MiLoRA of rank 9"),
    ("lora_ga", 5, {"k": (8, 20)}, "LoRA-GA of rank 5 .*twice as many.* k has only 8; choose a rank up to 4"),
    ("lora_ga_peft", 5, {"k": (8, 20)}, "LoRA-GA .PEFT. of rank 5"),
    ("gralora", 4, {"up": (9, 8)}, "GraLoRA cuts .* up is 9 x 8 and the rank 4; all three must be divisible by 2"),
    ("gralora", 3, {"up": (8, 8)}, "the rank 3")])
def test_a_variant_that_the_shapes_do_not_allow_is_one_sentence(variant, r, shapes, words):
    with pytest.raises(UsageError, match=words) as caught:
        check_shapes(variant, r, shapes)
    assert "\n" not in str(caught.value) and str(caught.value).count(".") <= 1


@pytest.mark.parametrize("variant, r, shapes", [
    ("pissa", 8, {"q": (8, 20)}), ("lora_ga", 4, {"q": (8, 20)}), ("gralora", 4, {"q": (8, 6)}),
    ("lora", 40, {"q": (8, 8)}), ("dora", 40, {"q": (9, 8)})])
def test_a_variant_that_just_fits_is_let_through(variant, r, shapes):
    check_shapes(variant, r, shapes)


# --- LoFT -----------------------------------------------------------------------------------------------------------


def pair(m: int = 6, r: int = 3, n: int = 5, *, zero: bool = False) -> tuple[nn.Parameter, nn.Parameter]:
    b = torch.zeros(m, r) if zero else torch.randn(m, r, dtype=torch.float64)
    return nn.Parameter(b.double()), nn.Parameter(torch.randn(r, n, dtype=torch.float64))


def test_second_moments_of_a_product_are_those_of_its_rows():
    """Mean over draws of (g O)^2, once from the draws themselves and once from E[g g^T]."""
    draws, other = torch.randn(7, 4, 3, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    moments = (draws[..., :, None] * draws[..., None, :]).mean(0)
    torch.testing.assert_close(second_moment_of_product(moments, other), ((draws @ other) ** 2).mean(0))


def test_with_a_square_a_lofts_first_step_is_adamws_on_the_full_weight():
    """An invertible A hides nothing: B A moves exactly as W would under AdamW (its epsilon is LoFT's here)."""
    torch.manual_seed(1)
    b, a = pair(r=5, n=5, zero=True)
    weight, gradient = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64)), torch.randn(6, 5, dtype=torch.float64)
    loft = LoFT([(b, a, 1.0)], lr=0.1)
    adam = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, eps=1e-4)
    b.grad, a.grad, weight.grad = gradient @ a.detach().T, b.detach().T @ gradient, gradient
    before = a.detach().clone()
    loft.step()
    adam.step()
    torch.testing.assert_close((b @ a).detach(), weight.detach(), rtol=0, atol=1e-6)
    assert torch.equal(a, before), "B has the first turn alone"


def test_the_factors_take_turns():
    torch.manual_seed(2)
    b, a = pair()
    loft, moved = LoFT([(b, a, 1.0)], lr=0.01), []
    for _ in range(4):
        kept = b.detach().clone(), a.detach().clone()
        b.grad, a.grad = torch.randn_like(b), torch.randn_like(a)
        loft.step()
        moved.append((not torch.equal(b, kept[0]), not torch.equal(a, kept[1])))
    assert moved == [(True, False), (False, True), (True, False), (False, True)]


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.25])
def test_the_scale_of_the_product_does_not_change_the_step_of_the_weight(scale):
    """With W = W0 + s B A, what the product moves by is the full weight's step, whatever s is."""
    torch.manual_seed(3)
    gradient, a_start = torch.randn(6, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    b, a = nn.Parameter(torch.zeros(6, 3, dtype=torch.float64)), nn.Parameter(a_start.clone())
    b.grad, a.grad = scale * gradient @ a_start.T, scale * b.detach().T @ gradient
    LoFT([(b, a, scale)], lr=0.1).step()
    projected = gradient @ a_start.T @ torch.linalg.inv(a_start @ a_start.T) @ a_start
    full = 0.1 * projected / (projected.abs() + 1e-4)
    expected = -full @ a_start.T @ torch.linalg.inv(a_start @ a_start.T) @ a_start
    torch.testing.assert_close((scale * b @ a).detach(), expected, rtol=0, atol=1e-5)


def test_moments_are_carried_over_when_the_other_factor_turns():
    """A replaced by T A spans the same rows: the moments of the full gradient must not notice.

    With rows g under the old A, g A = (g R) (T A) for R = T^-1. The authors' R S R^T fails here unless R is symmetric.
    """
    torch.manual_seed(4)
    b, a = pair()
    loft = LoFT([(b, a, 1.0)], lr=0.0, betas=(0.9, 0.9))
    gradient = torch.randn(6, 5, dtype=torch.float64)
    b.grad, a.grad = gradient @ a.detach().T, b.detach().T @ gradient
    loft.step()
    state = loft.state[b]
    before = state["first"] @ a.detach(), second_moment_of_product(state["second"], a.detach())
    with torch.no_grad():
        a.copy_(torch.randn(3, 3, dtype=torch.float64) @ a)
    b.grad, a.grad = torch.zeros_like(b), torch.zeros_like(a)
    loft.step()
    after = state["first"] @ a.detach(), second_moment_of_product(state["second"], a.detach())
    torch.testing.assert_close(after[0], 0.9 * before[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after[1], 0.9 * before[1], rtol=1e-4, atol=1e-6)


def test_the_projected_full_gradient_is_what_is_clipped():
    """Gradients ten times as large, clipped to the same norm, leave the same moments; small ones are left alone."""
    def moments(times: float, max_norm: float | None) -> torch.Tensor:
        torch.manual_seed(5)
        b, a = pair()
        gradient = times * torch.randn(6, 5, dtype=torch.float64)
        b.grad, a.grad = gradient @ a.detach().T, b.detach().T @ gradient
        loft = LoFT([(b, a, 1.0)], lr=0.0, max_norm=max_norm)
        loft.step()
        return loft.state[b]["first"] @ a.detach() / 0.1

    assert moments(10, 1.0).norm() == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(moments(10, 1.0), moments(100, 1.0), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(moments(1e-3, 1.0), moments(1e-3, None))


def test_what_is_no_factor_is_trained_by_adamw():
    """A classifier beside the adapters: the same five steps as torch's own AdamW takes."""
    torch.manual_seed(6)
    b, a = pair()
    ours, theirs = (nn.Parameter(torch.ones(4)) for _ in range(2))
    loft, adam = LoFT([(b, a, 1.0)], lr=0.1, others=[ours]), torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(4)
        ours.grad, theirs.grad, b.grad, a.grad = gradient, gradient.clone(), torch.zeros_like(b), torch.zeros_like(a)
        loft.step()
        adam.step()
    torch.testing.assert_close(ours.detach(), theirs.detach())


def test_a_gram_matrix_without_an_inverse_is_damped():
    """Two equal rows: only the damping makes it invertible, and the result is large but finite."""
    inverse = gram_inverse(torch.ones(2, 3, dtype=torch.float64), 1e-6)
    assert inverse.isfinite().all() and 1e5 < inverse.abs().max() < 1e7
