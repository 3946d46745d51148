"""What the second paper trained with and torch lacks: Lion, and weight decay that does not scale with the rate."""

from collections.abc import Iterable

import torch


class Lion(torch.optim.Optimizer):
    """Lion: the sign of an interpolated momentum, times the learning rate.

    u = sign(b1 m + (1 - b1) g); w <- w - rate * u; m <- b2 m + (1 - b2) g

    Parameters
    ----------
    parameters : iterable of nn.Parameter
    lr : float
        Every entry moves by exactly this much in a step, so good rates lie 3 to 10 times under AdamW's.
    betas : tuple of float
        The paper's own are 0.9 and 0.95 (its appendix A), Lion's default 0.9 and 0.99.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", arXiv 2302.06675; arXiv 2405.09673, appendix A.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> weight.grad = torch.tensor([0.3, -7.0])
    >>> Lion([weight], lr=0.1).step()
    >>> weight.tolist() == torch.tensor([0.9, -0.9]).tolist()
    True
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.95)):
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no line search, so nothing to call
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.sub_(group["lr"] * torch.lerp(parameter.grad, momentum, first).sign())
                momentum.lerp_(parameter.grad, 1 - second)


def decay_weights(optimiser: torch.optim.Optimizer, share: float, *, towards_start: bool) -> None:
    """Before every step take `share` times rate over peak rate of the weights, or of their way from where they are now.

    The second paper's DecoupledLionW decays so: 1e-4 takes that share of a weight at every step at the peak rate,
    whatever the rate is. AdamW's `weight_decay` of the same effect is `share` divided by the peak rate.

    Parameters
    ----------
    optimiser : torch.optim.Optimizer
        Its groups' rates are read at each step; ``initial_lr``, which a scheduler writes, is the peak.
    share : float
        In [0, 1).
    towards_start : bool
        Towards the weights as they are now (W0) instead of towards zero.

    References
    ----------
    arXiv 2405.09673, Fig 4 and appendix A; llm-foundry's DecoupledLionW. Towards W0: L2-SP, arXiv 1802.01483.
    """
    start = {parameter: parameter.detach().clone() for group in optimiser.param_groups
             for parameter in group["params"]} if towards_start else {}

    @torch.no_grad()
    def decay(optimiser: torch.optim.Optimizer, arguments: tuple, keywords: dict) -> None:
        for group in optimiser.param_groups:
            taken = share * group["lr"] / group.get("initial_lr", group["lr"])
            for parameter in group["params"]:
                if towards_start:  # a trainer may have moved the model since
                    start[parameter] = start[parameter].to(parameter.device)
                    parameter.lerp_(start[parameter], taken)
                else:
                    parameter.mul_(1 - taken)

    optimiser.register_step_pre_hook(decay)
