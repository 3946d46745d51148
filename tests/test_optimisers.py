"""Lion and rate-free weight decay against numbers worked out by hand, and through what a trainer puts around them."""

import pytest
import torch
from torch import nn

from utils.training.optimisers import Lion, decay_weights


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(optimiser, parameter: nn.Parameter, *gradients: tuple[float, ...]) -> list[float]:
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)
        optimiser.step()
    return parameter.tolist()


def no_gradient(optimiser, parameter: nn.Parameter) -> list[float]:
    return stepped(optimiser, parameter, (0.0,) * len(parameter))


# --- Lion


def test_lions_second_step_follows_its_momentum():
    """Betas 0.9 and 0.95, gradients 1 and then -0.05, -1 and 0.

    m after the first step is 0.05. In the second u = sign(0.9 * 0.05 + 0.1 * g) = sign(0.045 + 0.1 g): positive for
    g = -0.05 (0.04), negative for -1 (-0.055), positive for 0. m becomes 0.95 * 0.05 + 0.05 g.
    """
    parameter = weight(1.0, 1.0, 1.0)
    optimiser = Lion([parameter], lr=0.1)
    assert stepped(optimiser, parameter, (1.0, 1.0, 1.0)) == pytest.approx([0.9, 0.9, 0.9])
    assert stepped(optimiser, parameter, (-0.05, -1.0, 0.0)) == pytest.approx([0.8, 1.0, 0.8])
    assert optimiser.state[parameter]["momentum"].tolist() == pytest.approx([0.045, -0.0025, 0.0475])


def test_lions_betas_are_the_papers_and_decide_in_their_own_places():
    """With betas 0.5 and 0 the momentum is the last gradient: u = sign(0.5 * 1 - 0.5 * 0.6) = 1; others differ."""
    assert Lion([weight(1.0)], lr=0.1).param_groups[0]["betas"] == (0.9, 0.95)
    for betas, expected in (((0.5, 0.0), 0.8), ((0.1, 0.0), 1.0), ((0.5, 0.95), 1.0)):
        parameter = weight(1.0)
        assert stepped(Lion([parameter], lr=0.1, betas=betas), parameter, (1.0,), (-0.6,)) == pytest.approx([expected])


def test_lion_takes_the_sign_alone_and_leaves_what_has_no_gradient():
    parameter, frozen = weight(1.0, -1.0, 2.0), weight(3.0)
    optimiser = Lion([parameter, frozen], lr=0.25)
    assert stepped(optimiser, parameter, (1e-8, -1e8, 0.0)) == [0.75, -0.75, 2.0]
    assert frozen.tolist() == [3.0] and frozen not in optimiser.state


def test_lions_state_goes_on_after_it_was_stored():
    """A copy that is cooled down, and a resumed run, start from a state that was taken out and put back."""
    one, two = weight(1.0), weight(1.0)
    first, second = Lion([one], lr=0.1), Lion([two], lr=0.1)
    stepped(first, one, (1.0,))
    stepped(second, two, (1.0,))
    kept = {"state": {0: {"momentum": first.state_dict()["state"][0]["momentum"].clone()}},
            "param_groups": first.state_dict()["param_groups"]}
    stepped(first, one, (-9.0,))  # another history in between
    first.load_state_dict(kept)
    with torch.no_grad():
        one.fill_(two.item())
    assert stepped(first, one, (-0.3,)) == stepped(second, two, (-0.3,)) == pytest.approx([0.8])


# --- decay


def test_decay_takes_its_share_at_the_peak_and_follows_the_schedule_down():
    """Share 0.1: rates 1/1, 1/2 and 0 of the peak take 0.1, 0.05 and nothing."""
    parameter = weight(2.0, -4.0)
    optimiser = torch.optim.SGD([parameter], lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)  # writes initial_lr, as Trainer's schedulers do
    decay_weights(optimiser, 0.1, towards_start=False)
    expected = torch.tensor([2.0, -4.0], dtype=torch.float64)
    for part in (1.0, 0.5, 0.0):
        optimiser.param_groups[0]["lr"] = 0.01 * part
        expected = expected * (1 - 0.1 * part)
        assert no_gradient(optimiser, parameter) == pytest.approx(expected.tolist(), rel=1e-12)
    assert expected.tolist() == pytest.approx([1.71, -3.42])


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1.0])
def test_decay_does_not_scale_with_the_rate(rate):
    parameter = weight(2.0)
    optimiser = torch.optim.SGD([parameter], lr=rate)
    decay_weights(optimiser, 0.25, towards_start=False)
    assert no_gradient(optimiser, parameter) == [1.5]


def test_decay_towards_the_start_leaves_it_where_it_is_and_pulls_back_what_left():
    parameter = weight(2.0, -4.0)
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    decay_weights(optimiser, 0.25, towards_start=True)
    assert no_gradient(optimiser, parameter) == [2.0, -4.0]
    assert stepped(optimiser, parameter, (-4.0, 0.0)) == [6.0, -4.0]
    assert no_gradient(optimiser, parameter) == [5.0, -4.0], "a quarter of the way back from 6 to 2"


def test_decay_comes_before_the_step():
    """Towards zero from 2 by a half, then a step of 1: 0; the other way round it would be 0.5."""
    parameter = weight(2.0)
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    decay_weights(optimiser, 0.5, towards_start=False)
    assert stepped(optimiser, parameter, (1.0,)) == [0.0]


def test_every_group_decays_by_its_own_rate():
    fast, slow = weight(1.0), weight(1.0)
    optimiser = torch.optim.SGD([{"params": [fast], "lr": 0.1}, {"params": [slow], "lr": 0.1}])
    decay_weights(optimiser, 0.5, towards_start=False)
    for group, part in zip(optimiser.param_groups, (1.0, 0.2), strict=True):
        group |= {"initial_lr": 0.1, "lr": 0.1 * part}
    no_gradient(optimiser, fast)
    assert (fast.item(), slow.item()) == pytest.approx((0.5, 0.9))


def test_decay_equals_adamws_own_divided_by_the_peak_rate():
    """The paper's 1e-4 at rate 5e-5 is AdamW's 2.0; through a warm-up and a fall they stay the same."""
    gradients = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for own in (True, False):
        parameter = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        optimiser = torch.optim.AdamW([parameter], lr=5e-3, weight_decay=0.0 if own else 0.01 / 5e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, step / 3) * (12 - step) / 12)
        if own:
            decay_weights(optimiser, 0.01, towards_start=False)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimiser.step()
            schedule.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-14)
    assert (ends[0] - torch.linspace(-1, 1, 5, dtype=torch.float64)).abs().max() > 0.01


def test_decay_towards_the_start_goes_where_the_model_is_moved():
    """A trainer puts the model on the GPU after the optimiser was made; the kept start was still on the CPU."""
    layer = nn.Linear(2, 2, bias=False)
    parameter = layer.weight
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    decay_weights(optimiser, 0.5, towards_start=True)
    torch.__future__.set_swap_module_params_on_conversion(True)  # the only way to another device that is no GPU
    try:
        layer.to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    parameter.grad = torch.zeros(2, 2, device="meta")
    optimiser.step()
    assert layer.weight is parameter and parameter.device.type == "meta"
