"""LoFT: AdamW on the full weight, carried out within the adapter's subspace, one factor after the other.

With W = W0 + B A, the step of the factor whose turn it is (say B, with A held) is that of AdamW on W, projected onto
A's rows: gradients are divided by A A^T, and both moments are those of the *projected full gradient*. When A has moved,
what was gathered under the old A is carried over to the new one. B begins, since A has no gradient while B is zero.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.adamw import adamw

DAMPING = {"A": 1e-6, "B": 1e-8}  # added to the other factor's Gram matrix, as in the authors' code
EPSILON = 1e-4  # theirs as well; it stands beside the root of a second moment of the full weight's gradient


def gram_inverse(other: torch.Tensor, damping: float) -> torch.Tensor:
    """(O O^T + damping I)^-1 of a factor with r rows."""
    identity = torch.eye(len(other), dtype=other.dtype, device=other.device)
    return torch.linalg.inv(other @ other.T + damping * identity)


def second_moment_of_product(moments: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """E[(g O)^2] element by element from E[g g^T] row by row.

    Parameters
    ----------
    moments : Tensor of shape (n, r, r)
        Second moments of each row g of the projected gradient, cross terms included.
    other : Tensor of shape (r, m)

    Returns
    -------
    Tensor of shape (n, m)

    Examples
    --------
    >>> g, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]])
    >>> second_moment_of_product(g[:, :, None] * g[:, None, :], other).item() == (g @ other).item() ** 2
    True
    """
    return ((moments @ other) * other).sum(dim=1).clamp(min=0)


class LoFT(torch.optim.Optimizer):
    """LoFT's AdamW over pairs of factors.

    Parameters
    ----------
    pairs : list of (nn.Parameter, nn.Parameter, float)
        B (out, r), A (r, in) and the scale of their product, for each adapted matrix.
    lr : float
        In units of the full weight, as for full fine-tuning.
    betas : tuple of float
    max_norm : float or None
        Largest norm of the projected full gradient over all matrices, of the factor whose turn it is; the paper clips
        there because the factors' own gradients have another scale.
    others : sequence of nn.Parameter
        What is trained besides, such as a classifier: by plain AdamW at the same rate.

    Notes
    -----
    The authors' code carries B's second moment over as R S R^T; for rows g -> g R it is R^T S R, which is done here.

    References
    ----------
    Tastan et al., "LoFT: Low-Rank Adaptation That Behaves Like Full Fine-Tuning", arXiv 2505.21289 (ICLR 2026).
    """

    def __init__(self, pairs: list[tuple[nn.Parameter, nn.Parameter, float]], lr: float,
                 betas: tuple[float, float] = (0.9, 0.999), *, max_norm: float | None = None,
                 others: Sequence[nn.Parameter] = ()):
        self.pairs, self.max_norm, self.others = pairs, max_norm, list(others)
        factors = [factor for b, a, _ in pairs for factor in (b, a)]
        super().__init__(factors + self.others, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no line search, so nothing to call
        """Gather the moments of both factors; move B at odd steps and A at even ones."""
        group = self.param_groups[0]
        gathered: dict[str, list[tuple[nn.Parameter, _Side]]] = {"B": [], "A": []}
        for b, a, scale in self.pairs:
            if b.grad is not None and a.grad is not None:
                gathered["B"].append((b, _Side(b.grad, scale * a, DAMPING["B"])))
                # A's rows are columns of the weight: the same algebra on the transposed problem.
                gathered["A"].append((a, _Side(a.grad.T, (scale * b).T, DAMPING["A"])))
        for which, sides in gathered.items():
            share = self._share(sides)
            for factor, side in sides:
                state = self.state[factor]
                _gather(state, side, share, betas=group["betas"])
                if (state["step"] % 2 == 1) == (which == "B"):
                    update = _projected_adam(state, side, group["betas"])
                    factor.sub_(group["lr"] * (update if which == "B" else update.T))
        for parameter in self.others:
            _adam(parameter, self.state[parameter], group)

    def _share(self, sides: list) -> float:
        if self.max_norm is None or not sides:
            return 1.0
        norm = torch.stack([torch.linalg.norm(side.gradient @ side.other) for _, side in sides]).norm()
        return min(1.0, self.max_norm / (float(norm) + 1e-6))


class _Side:
    """One factor's projected gradient (n, r), the other factor (r, m), and the inverse of its Gram matrix."""

    def __init__(self, gradient: torch.Tensor, other: torch.Tensor, damping: float):
        self.other, self.inverse = other.clone(), gram_inverse(other, damping)
        self.gradient = gradient @ self.inverse


def _gather(state: dict, side: _Side, share: float, *, betas: tuple[float, float]) -> None:
    """Carry the moments over to the other factor as it is now, and add this step's gradient."""
    gradient = share * side.gradient
    if not state:
        n, r = gradient.shape
        state |= {"step": 0, "first": torch.zeros_like(gradient), "second": gradient.new_zeros(n, r, r)}
    else:
        moved = state["other"] @ side.other.T @ side.inverse  # rows under the old factor, in terms of the new one
        state["first"] = state["first"] @ moved
        state["second"] = moved.T @ state["second"] @ moved
    state["other"], state["step"] = side.other, state["step"] + 1
    state["first"].lerp_(gradient, 1 - betas[0])
    state["second"].lerp_(gradient[:, :, None] * gradient[:, None, :], 1 - betas[1])


def _projected_adam(state: dict, side: _Side, betas: tuple[float, float]) -> torch.Tensor:
    """AdamW's step on the full weight (n, m), projected back to the factor (n, r)."""
    first = state["first"] @ side.other / (1 - betas[0] ** state["step"])
    second = second_moment_of_product(state["second"], side.other) / (1 - betas[1] ** state["step"])
    return (first / (second.sqrt() + EPSILON)) @ side.other.T @ side.inverse


def _adam(parameter: nn.Parameter, state: dict, group: dict) -> None:
    if parameter.grad is None:
        return
    if not state:
        state |= {"step": torch.zeros(()), "first": torch.zeros_like(parameter), "second": torch.zeros_like(parameter)}
    adamw([parameter], [parameter.grad], [state["first"]], [state["second"]], [], [state["step"]],
          amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=0.0, eps=1e-8,
          maximize=False, foreach=False)
