"""Curvature of the causal loss with respect to an adapter: extreme Hessian eigenvalues, and what they are made of.

Model and batches in, numbers out. Everything is of the mean loss in nats per predicted token over all batches together,
exactly: batches of unequal length are weighted by their tokens. arXiv 2602.04998 compares the largest eigenvalue of one
module's block at initialisation with the best learning rate; three companions say what that number means:

- :func:`gradient_bounds`: how much of it is the gradient's size alone, as the product B A is not linear in (A, B).
- ``kind="gauss_newton"``: the curvature without that part, never negative.
- :func:`preconditioned_extremes`: the curvature in Adam's own coordinates, which has a threshold in the learning rate.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from utils.errors import CourseError, UsageError
from utils.spectra.derivatives import (
    Batches,
    adapter_parameters,
    check_attention,
    counted_logits,
    differentiated,
    module_parameters,
    only_module,
    second_derivatives,
    token_count,
)
from utils.spectra.lanczos import lanczos

__all__ = ["GaussNewtonProduct", "HessianProduct", "adam_threshold", "adapter_parameters", "extremes", "gradient_bound",
           "gradient_bounds", "module_parameters", "preconditioned", "preconditioned_extremes", "second_moment"]

Product = Callable[[torch.Tensor], torch.Tensor]
Tensors = torch.Tensor | tuple[torch.Tensor, ...]


# --- products with a vector -----------------------------------------------------------------------------------------

class _Curvature:
    """A symmetric operator on the flat vector of some parameters, summed over batches.

    Parameters
    ----------
    model : nn.Module
        Returns an object with ``logits`` (B, T, V); its mode and gradients are left as they were.
    batches : list of dict
        ``input_ids``, ``attention_mask`` and ``labels`` (B, T); labels of -100 are not counted.
    parameters : list of nn.Parameter
        From :func:`module_parameters` or :func:`adapter_parameters`; they must not change while the operator lives.
    keep_graphs : bool
        Keep what the first derivative needs of every batch instead of computing it again for each product. About half
        the time, for memory in proportion to the tokens of all batches instead of one.

    Attributes
    ----------
    size : int
        Length of the vector.
    """

    def __init__(self, model: nn.Module, batches: Batches, parameters: list[nn.Parameter], *, keep_graphs: bool = True):
        check_attention(model)
        if not parameters:
            raise UsageError("Expected one or more parameters, got none; do give a model whose adapter trains.")
        self.model, self.batches, self.parameters = model, batches, parameters
        self.size, self.tokens = sum(one.numel() for one in parameters), token_count(batches)
        self.dtype, self.device = parameters[0].dtype, parameters[0].device
        self._graphs, self._versions = list(self._built()) if keep_graphs else None, self._current()

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """The operator times a flat vector of shape (size,)."""
        if self._graphs is not None and self._current() != self._versions:
            raise CourseError("Expected the weights that the kept graphs were built with, but the model was trained "
                              "since; do build the product anew.")
        parts = [piece.view_as(one) for piece, one in
                 zip(vector.split([one.numel() for one in self.parameters]), self.parameters, strict=True)]
        total = torch.zeros_like(vector)
        with second_derivatives():
            for graph in self._built() if self._graphs is None else self._graphs:
                total += self._product(graph, parts)
        return total

    def _current(self) -> list[int]:
        """How often each weight was changed in place: torch's own check covers only those a graph had to save."""
        return [one._version for one in self.model.parameters()]

    def _built(self) -> Iterator[tuple]:
        for batch in self.batches:
            with differentiated(self.model, self.parameters), second_derivatives():
                graph = self._graph(*counted_logits(self.model, batch))
            yield graph

    def _pulled(self, outputs: Tensors, weights: Tensors) -> torch.Tensor:
        """Flat sum of `weights` times the derivative of `outputs` with respect to the parameters."""
        pulled = torch.autograd.grad(outputs, self.parameters, weights, retain_graph=self._graphs is not None,
                                     materialize_grads=True)
        return torch.cat([one.flatten() for one in pulled])

    def _graph(self, logits: torch.Tensor, target: torch.Tensor) -> tuple:
        raise NotImplementedError

    def _product(self, graph: tuple, parts: list[torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError


class HessianProduct(_Curvature):
    """Exact products with the Hessian: the gradient is differentiated once more along the vector.

    DoRA's norm of the columns is a constant to PEFT's gradient, as its paper asks; so it is here, and the Hessian is
    that of the loss with the norms frozen, which is what training follows.
    """

    def _graph(self, logits: torch.Tensor, target: torch.Tensor) -> tuple:
        loss = cross_entropy(logits, target, reduction="sum") / self.tokens
        return torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)

    def _product(self, graph: tuple, parts: list[torch.Tensor]) -> torch.Tensor:
        bent = [(gradient, part) for gradient, part in zip(graph, parts, strict=True) if gradient.requires_grad]
        if not bent:  # the loss is linear in all of them
            return torch.cat([torch.zeros_like(part).flatten() for part in parts])
        return self._pulled(*zip(*bent, strict=True))


class GaussNewtonProduct(_Curvature):
    """Exact products with the generalised Gauss-Newton matrix J^T H J: H is the loss's Hessian in the logits alone.

    It leaves out how the logits themselves bend, so it has no gradient part and no negative eigenvalue.

    References
    ----------
    Schraudolph, Neural Computation 14 (2002), section 3. J v by differentiating u^T J with respect to u.
    """

    def _graph(self, logits: torch.Tensor, target: torch.Tensor) -> tuple:
        dual = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, self.parameters, dual, create_graph=True, materialize_grads=True)
        return logits, logits.detach().softmax(-1), dual, pulled

    def _product(self, graph: tuple, parts: list[torch.Tensor]) -> torch.Tensor:
        logits, chances, dual, pulled = graph
        (pushed,) = torch.autograd.grad(pulled, dual, parts, retain_graph=True)  # J v, (n, V)
        weighted = chances * pushed
        return self._pulled(logits, (weighted - chances * weighted.sum(-1, keepdim=True)) / self.tokens)


# --- both ends of the spectrum --------------------------------------------------------------------------------------

KINDS = {"hessian": HessianProduct, "gauss_newton": GaussNewtonProduct}


def extremes(model: nn.Module, batches: Batches, parameters: list[nn.Parameter], *, kind: str = "hessian",
             keep_graphs: bool = True, **search: Any) -> dict:
    """Largest and smallest eigenvalue over a block of parameters, as one tidy row.

    Parameters
    ----------
    kind : str
        ``hessian`` or ``gauss_newton``.
    keep_graphs : bool
        As in :class:`HessianProduct`.
    **search
        ``tolerance``, ``residual_tolerance``, ``max_iterations``, ``seed``: as in
        :func:`utils.spectra.lanczos.lanczos`.

    Returns
    -------
    dict
        The fields of :class:`~utils.spectra.lanczos.Extremes`, ``parameters`` (their number) and ``seconds``.

    References
    ----------
    arXiv 2602.04998: one module's A and B at initialisation.
    """
    began = time.perf_counter()
    product = _product_of(kind, model, batches, parameters=parameters, keep_graphs=keep_graphs)
    found = lanczos(product, product.size, dtype=product.dtype, device=product.device, **search)
    return asdict(found) | {"parameters": product.size, "seconds": time.perf_counter() - began}


def _product_of(kind: str, model: nn.Module, batches: Batches, *, parameters: list[nn.Parameter], keep_graphs: bool
                ) -> _Curvature:
    if kind not in KINDS:
        raise UsageError(f"Expected a kind of {' or '.join(KINDS)}, got '{kind}'; do choose one of them.")
    return KINDS[kind](model, batches, parameters, keep_graphs=keep_graphs)


# --- what of it is the gradient -------------------------------------------------------------------------------------

def gradient_bounds(model: nn.Module, batches: Batches, module_names: list[str]) -> dict[str, float]:
    r"""s sigma_max(dL/dW) of LoRA modules: the extreme eigenvalues that the gradient alone gives the block of (A, B).

    L(W + s (B + dB)(A + dA)) has the second-order term s <G, dB dA> with G = dL/dW at the point, beside the curvature
    s^2 / 2 times that of L in W along dB A + B dA. As a quadratic form in (dA, dB) the first has the eigenvalues
    +-s sigma_i(G), each r times, and zeros. At B = 0 the second touches dB alone, so that where L is convex in W the
    smallest eigenvalue lies between -s sigma_max(G) and 0, and the largest above +s sigma_max(G). With every B at zero
    the blocks of A are zero across modules too: for a whole adapter the largest of these bounds takes its place.

    Parameters
    ----------
    module_names : list of str
        Names as :func:`module_parameters` takes them, of modules with LoRA's A and B (DoRA's too).

    Returns
    -------
    dict of str to float
        In the Hessian's unit, 0 or larger.

    Raises
    ------
    UsageError
        If a module has no A and B with one scale.
    """
    modules: dict[str, Any] = {name: only_module(model, name) for name in module_names}  # PEFT's layers
    if unfit := [name for name, module in modules.items() if not hasattr(module, "lora_A")]:
        raise UsageError(f"Expected modules with LoRA's A and B, got {unfit[0]} without; do leave such methods out.")
    weights, tokens = [module.get_base_layer().weight for module in modules.values()], token_count(batches)
    totals = [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        with differentiated(model, weights):
            logits, target = counted_logits(model, batch)
            gradients = torch.autograd.grad(cross_entropy(logits, target, reduction="sum"), weights)
            for total, one in zip(totals, gradients, strict=True):
                total.add_(one / tokens)
    return {name: abs(module.scaling["default"]) * float(torch.linalg.matrix_norm(total, 2))
            for (name, module), total in zip(modules.items(), totals, strict=True)}


def gradient_bound(model: nn.Module, module_name: str, batches: Batches) -> float:
    """:func:`gradient_bounds` of one module.

    Parameters
    ----------
    model : nn.Module
        A causal model with PEFT's LoRA.
    module_name : str
        Such as ``layers.0.self_attn.q_proj``.
    batches : sequence of dict
        With ``input_ids``, ``attention_mask`` and ``labels``.
    """
    return gradient_bounds(model, batches, [module_name])[module_name]


# --- in Adam's coordinates ------------------------------------------------------------------------------------------

def second_moment(model: nn.Module, batches: Batches, parameters: list[nn.Parameter]) -> torch.Tensor:
    """Mean over batches of the squared gradient of each batch's mean loss: what Adam's v would settle at; (size,).

    It falls as batches grow, since their gradients agree better: give batches of the size that trains.

    Parameters
    ----------
    model : nn.Module
    batches : sequence of dict
        With ``input_ids``, ``attention_mask`` and ``labels``.
    parameters : list of nn.Parameter
        Whose gradients are taken, side by side in this order.
    """
    total = torch.zeros(sum(one.numel() for one in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    for batch in batches:
        with differentiated(model, parameters):
            loss = cross_entropy(*counted_logits(model, batch))
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        total += torch.cat([one.flatten() for one in gradients]).square()
    return total / len(batches)


def preconditioned(product: Product, moment: torch.Tensor, *, epsilon: float = 1e-8, keep_zeros: bool = False
                   ) -> tuple[Product, int]:
    """D^-1/2 H D^-1/2 with D = sqrt(v) + epsilon, and the number of its rows.

    Parameters
    ----------
    product : callable
        Times H, on flat vectors.
    moment : torch.Tensor of shape (size,)
        v, as from :func:`second_moment`.
    keep_zeros : bool
        Keep parameters whose gradient was exactly zero in every batch, such as A where B = 0. They would be divided by
        epsilon alone, and the result would measure epsilon; Adam leaves them where they are. By default they are out.
    """
    kept = torch.ones_like(moment, dtype=torch.bool) if keep_zeros else moment > 0
    scale = (moment[kept].sqrt() + epsilon).rsqrt()

    def operator(vector: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros_like(moment)
        whole[kept] = scale * vector
        return scale * product(whole)[kept]
    return operator, int(kept.sum())


def preconditioned_extremes(model: nn.Module, batches: Batches, parameters: list[nn.Parameter], *,
                            training_batches: Batches, epsilon: float = 1e-8, keep_zeros: bool = False,
                            kind: str = "hessian", keep_graphs: bool = True, **search: Any) -> dict:
    """Both ends of the preconditioned Hessian, in 1 / learning rate; compare ``largest`` with :func:`adam_threshold`.

    Parameters
    ----------
    batches : list of dict
        For the Hessian.
    training_batches : list of dict
        For :func:`second_moment`: of the size that trains.
    epsilon, keep_zeros
        As in :func:`preconditioned`.
    kind, keep_graphs, **search
        As in :func:`extremes`.

    Returns
    -------
    dict
        As :func:`extremes`, with ``excluded``: how many parameters were left out for a gradient of exactly zero.

    Raises
    ------
    CourseError
        If every gradient is exactly zero.
    """
    began = time.perf_counter()
    moment = second_moment(model, training_batches, parameters)
    product = _product_of(kind, model, batches, parameters=parameters, keep_graphs=keep_graphs)
    operator, size = preconditioned(product, moment, epsilon=epsilon, keep_zeros=keep_zeros)
    if not size:
        raise CourseError("Expected a gradient to precondition with, but every one is exactly zero; do give parameters "
                          "that the loss depends on.")
    found = lanczos(operator, size, dtype=product.dtype, device=product.device, **search)
    return asdict(found) | {"parameters": size, "excluded": product.size - size,
                            "seconds": time.perf_counter() - began}


def adam_threshold(learning_rate: float, beta1: float = 0.9) -> float:
    """Preconditioned sharpness above which full-batch Adam diverges on a quadratic: (2 + 2 b) / ((1 - b) lr).

    References
    ----------
    Cohen et al., arXiv 2207.14484, section 2: 38 / lr at b = 0.9.

    Examples
    --------
    >>> round(adam_threshold(1e-3))
    38000
    """
    return (2 + 2 * beta1) / ((1 - beta1) * learning_rate)
