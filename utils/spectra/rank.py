"""The size and the effective rank of an update."""

from collections.abc import Mapping

import pandas as pd
import torch

from utils.low_rank import LowRankUpdate
from utils.spectra.base import gram, rounding_level


def effective_rank(singular_values: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values: n for n equal ones, 1 for a rank-one matrix.

    Parameters
    ----------
    singular_values : torch.Tensor of shape (q,)
        Not negative; zeros add nothing. All zero gives 0.

    References
    ----------
    Roy & Vetterli, "The effective rank", EUSIPCO 2007; arXiv 2410.21228v3, appendix H.

    Examples
    --------
    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    total = singular_values.double().sum()
    if total == 0:
        return 0.0
    p = singular_values.double() / total
    p = p[p > 0]
    return torch.exp(-(p * p.log()).sum()).item()


def update_singular_values(update: torch.Tensor | LowRankUpdate) -> torch.Tensor:
    """Singular values of an update, given densely or by its factors.

    From factors only an r x r core is decomposed: BA = Q_B (R_B R_A^T) Q_A^T. A dense update's are the square roots of
    its float64 Gram matrix's eigenvalues, which costs less than a float32 SVD and errs less; those that drown in
    rounding, below about 3e-7 of the largest, are 0.

    Returns
    -------
    torch.Tensor
        float64, descending.
    """
    if isinstance(update, torch.Tensor):
        squares = torch.linalg.eigvalsh(gram(update)).flip(0)
        return squares.where(squares > rounding_level(update.shape, update.double().norm().item()), 0.0).sqrt()
    b, a, scale = update
    core = torch.linalg.qr(b.double()).R @ torch.linalg.qr(a.double().T).R.T
    return abs(scale) * torch.linalg.svdvals(core)


def update_table(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor],
                 factors: Mapping[str, LowRankUpdate] | None = None) -> pd.DataFrame:
    """Per matrix: Frobenius norm of the update, alone and relative to W0's, and the update's effective rank.

    Parameters
    ----------
    base, tuned : mapping of str to torch.Tensor
        W0 and merged Wt by name, (out, in), float32 or float64.
    factors : mapping of str to LowRankUpdate, optional
        Of a LoRA run: the update's spectrum then comes from its r x r core.

    Returns
    -------
    pandas.DataFrame
        One row per matrix: ``matrix``, ``update_norm``, ``base_norm``, ``relative_norm`` (the first over the second),
        ``effective_rank``.
    """
    rows = []
    for name, weight in tuned.items():
        values = update_singular_values(factors[name] if factors else weight - base[name])
        norm = base[name].norm().item()
        rows.append({"matrix": name, "update_norm": values.square().sum().sqrt().item(), "base_norm": norm,
                     "relative_norm": values.square().sum().sqrt().item() / norm,
                     "effective_rank": effective_rank(values)})
    return pd.DataFrame(rows)
