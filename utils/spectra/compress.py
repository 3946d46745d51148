"""Quantising and pruning a weight matrix: the matrix that inference then multiplies with, as dense numbers.

What is stored would be smaller; :data:`WAYS` says how many bits a weight takes. Symmetric rounding and pruning by size,
without calibration data: what GPTQ, AWQ or SparseGPT improve on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.stats import norm

from utils.errors import UsageError
from utils.spectra.svd import thin_svd

SCALE_BITS = 16  # of each row's or block's scale
DENSE_BITS = 16  # of an uncompressed weight
_OFFSET = 0.9677083  # bitsandbytes': the outermost quantiles are those of (1 - 1/32 + 1 - 1/30) / 2


def rounded(matrix: torch.Tensor, bits: int, *, block: int | None = None) -> torch.Tensor:
    """Round to nearest on an even, symmetric grid of 2^bits - 1 levels, one scale per row or per block.

    Parameters
    ----------
    matrix : torch.Tensor of shape (out, in)
    bits : int
        2 to 16.
    block : int, optional
        Neighbours along a row that share a scale; the whole row by default. The last block of a row may be shorter.

    Examples
    --------
    >>> rounded(torch.tensor([[1.0, 0.4, -0.1]]), 2)
    tensor([[1., 0., -0.]])
    """
    if not 2 <= bits <= 16:
        raise UsageError(f"Expected 2 to 16 bits, got {bits}; do give such a number.")
    highest = 2 ** (bits - 1) - 1
    blocks, size = _blocks(matrix, matrix.shape[1] if block is None else block)
    scale = blocks.abs().amax(-1, keepdim=True) / highest
    scale = torch.where(scale == 0, 1.0, scale)
    return ((blocks / scale).round() * scale).flatten(1)[:, :size]


def _blocks(matrix: torch.Tensor, block: int) -> tuple[torch.Tensor, int]:
    """(out, blocks, block) with zeros behind the last one, and the width without them."""
    if block < 1:
        raise UsageError(f"Expected a block of 1 weight or more, got {block}; do give such a one.")
    size = matrix.shape[1]
    padded = torch.nn.functional.pad(matrix, (0, -size % block))
    return padded.unflatten(1, (-1, block)), size


def nf4_levels() -> torch.Tensor:
    """The 16 levels of NF4 in [-1, 1]: quantiles of the normal distribution, zero among them.

    References
    ----------
    Dettmers et al., "QLoRA", arXiv 2305.14314, section 3 and appendix E; bitsandbytes' ``create_normal_map``.
    """
    positive, negative = (norm.ppf(torch.linspace(_OFFSET, 0.5, count, dtype=torch.float64)[:-1].numpy())
                          for count in (9, 8))
    levels = torch.tensor(sorted([*-negative, 0.0, *positive]), dtype=torch.float64)
    return levels / levels.abs().max()


def nf4(matrix: torch.Tensor, *, block: int = 64) -> torch.Tensor:
    """Round to NF4, QLoRA's four bits: each block over its largest absolute value takes the nearest levels."""
    blocks, size = _blocks(matrix, block)
    scale = blocks.abs().amax(-1, keepdim=True)
    scale = torch.where(scale == 0, 1.0, scale)
    levels = nf4_levels().to(matrix.dtype)
    borders = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize((blocks / scale).contiguous(), borders)] * scale).flatten(1)[:, :size]


def pruned(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """Set the smallest weights of the matrix to zero: a share of all, rounded down.

    >>> pruned(torch.tensor([[3.0, 1.0], [0.5, 2.0]]), 0.5)
    tensor([[3., 0.],
            [0., 2.]])
    """
    if not 0 <= share <= 1:
        raise UsageError(f"Expected a share of 0 to 1 to prune, got {share}; do give such a one.")
    kept = torch.ones(matrix.numel(), dtype=matrix.dtype)
    kept[matrix.abs().flatten().argsort(stable=True)[:int(share * matrix.numel() + 1e-9)]] = 0
    return matrix * kept.reshape(matrix.shape)


def two_of_four(matrix: torch.Tensor) -> torch.Tensor:
    """Keep the two largest of every four neighbours along a row: the pattern that GPUs since Ampere multiply faster."""
    blocks, size = _blocks(matrix, 4)
    kept = torch.zeros_like(blocks).scatter_(-1, blocks.abs().topk(2, -1).indices, 1.0)
    return (blocks * kept).flatten(1)[:, :size]


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of a rank: the leading part of the SVD."""
    if rank < 1:
        raise UsageError(f"Expected a rank of 1 or more, got {rank}; do give such a one.")
    u, s, vt = thin_svd(matrix)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def noised(matrix: torch.Tensor, error: float, *, seed: int = 0) -> torch.Tensor:
    """The control: Gaussian noise whose Frobenius norm is `error` times the matrix's.

    Parameters
    ----------
    matrix : torch.Tensor
        Of any shape and floating type.
    error : float
        Relative, 0 or more.
    seed : int
    """
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed), dtype=matrix.dtype)
    return matrix + noise * (error * matrix.norm() / noise.norm())


@dataclass(frozen=True)
class Way:
    """One way to compress: what it is called, of which kind, the matrix it leaves, and bits per weight by shape."""

    name: str
    kind: str
    apply: Callable[[torch.Tensor], torch.Tensor]
    bits: Callable[[int, int], float]


def _share_rank(matrix: torch.Tensor, share: float) -> int:
    return max(1, round(share * min(matrix.shape)))


GROUP = 32  # weights to a scale: of a matrix 128 wide a quarter of a row
WAYS = (
    Way("int8, per row", "quantised", lambda m: rounded(m, 8), lambda out, width: 8 + SCALE_BITS / width),
    Way("int4, per row", "quantised", lambda m: rounded(m, 4), lambda out, width: 4 + SCALE_BITS / width),
    Way(f"int4, groups of {GROUP}", "quantised", lambda m: rounded(m, 4, block=GROUP),
        lambda out, width: 4 + SCALE_BITS / GROUP),
    Way("NF4, groups of 64", "quantised", nf4, lambda out, width: 4 + 8 / 64 + 32 / (64 * 256)),
    Way(f"int3, groups of {GROUP}", "quantised", lambda m: rounded(m, 3, block=GROUP),
        lambda out, width: 3 + SCALE_BITS / GROUP),
    # One bit says whether a weight is there; two say which of four a kept one is.
    Way("20 % pruned", "pruned", lambda m: pruned(m, 0.2), lambda out, width: 0.8 * DENSE_BITS + 1),
    Way("50 % pruned", "pruned", lambda m: pruned(m, 0.5), lambda out, width: 0.5 * DENSE_BITS + 1),
    Way("2:4 pruned", "pruned", two_of_four, lambda out, width: 0.5 * (DENSE_BITS + 2)),
    Way("80 % pruned", "pruned", lambda m: pruned(m, 0.8), lambda out, width: 0.2 * DENSE_BITS + 1),
    Way("half the directions", "truncated", lambda m: truncated(m, _share_rank(m, 0.5)),
        lambda out, width: DENSE_BITS * round(0.5 * min(out, width)) * (out + width) / (out * width)),
    Way("a quarter of the directions", "truncated", lambda m: truncated(m, _share_rank(m, 0.25)),
        lambda out, width: DENSE_BITS * round(0.25 * min(out, width)) * (out + width) / (out * width)))
NOISE, NOISY = "noise of int4's size", f"int4, groups of {GROUP}"  # the control, and the way whose error it has


def compressed(matrices: dict[str, torch.Tensor],
               ways: tuple[str, ...] | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Every matrix compressed, by name of the way and name of the matrix; by default all ways, noise last."""
    chosen = [way for way in WAYS if ways is None or way.name in ways]
    found = {way.name: {name: way.apply(matrix) for name, matrix in matrices.items()} for way in chosen}
    if ways is None:
        found[NOISE] = {name: noised(matrix, relative_error(matrix, found[NOISY][name]), seed=index)
                        for index, (name, matrix) in enumerate(matrices.items())}
    return found


def relative_error(before: torch.Tensor, after: torch.Tensor) -> float:
    """Frobenius norm of the change over that of the matrix."""
    return float((after.double() - before.double()).norm() / before.double().norm())


def bits_per_weight(matrices: dict[str, torch.Tensor], way: str) -> float:
    """Stored bits per weight, scales and masks included, over all matrices; 16 for what is not compressed."""
    known = {one.name: one for one in WAYS}
    if way not in known:
        return float(DENSE_BITS)
    total = sum(known[way].bits(*matrix.shape) * matrix.numel() for matrix in matrices.values())
    return total / sum(matrix.numel() for matrix in matrices.values())


def singular_values(before: torch.Tensor, after: dict[str, torch.Tensor]) -> pd.DataFrame:
    """Singular values of one matrix before and after.

    Returns
    -------
    pandas.DataFrame
        ``way``, ``index`` (from 1), ``singular_value``, ``before``, and ``cosine``: how well the left vector still
        points where the one of equal index did.
    """
    u, s, _ = thin_svd(before)
    parts = []
    for way, matrix in after.items():
        now = thin_svd(matrix)
        cosine = (now.u * u).sum(0).abs().clamp(max=1.0)
        parts.append(pd.DataFrame({"way": way, "index": range(1, len(s) + 1), "singular_value": now.s.numpy(),
                                   "before": s.numpy(), "cosine": cosine.numpy()}))
    return pd.concat(parts, ignore_index=True)
