"""Intruder dimensions, exactly as defined: leading tuned singular vectors that no pretrained one resembles.

For every tuned matrix, with thin SVDs of W0 and of the merged Wt, s_j is the largest absolute cosine of tuned left
vector j with any pretrained left vector. Vector j is an intruder at (epsilon, k) if j <= k and s_j < epsilon (strict).
A model's count is the sum over its tuned matrices.

References
----------
arXiv 2410.21228v3, Definition 3.1 and Algorithm 1; the absolute value and the strict sign follow the authors' code.
"""

from collections.abc import Iterable, Mapping

import pandas as pd
import torch

from utils.errors import CourseError
from utils.spectra.svd import SingularTriplets, is_intruder, max_cosines, thin_svd


def vector_table(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], *, vectors: str = "left",
                 base_triplets: Mapping[str, SingularTriplets] | None = None) -> pd.DataFrame:
    """Singular value and maximal cosine of every tuned singular vector: all counts follow from this one table.

    Parameters
    ----------
    base, tuned : mapping of str to torch.Tensor
        W0 and merged Wt by matrix name, float32 or float64, (out, in); every tuned name must be in `base`.
    vectors : {"left", "right"}
    base_triplets : mapping of str to SingularTriplets, optional
        Thin SVDs of `base`, so that they are computed once for many tuned models.

    Returns
    -------
    pandas.DataFrame
        One row per matrix and vector: ``matrix``, ``index`` (1 is the largest singular value), ``singular_value``,
        ``max_cosine`` (0 … 1), ``out``, ``in``.

    Raises
    ------
    CourseError
        If a matrix is missing, shapes differ, or values are not finite.
    """
    parts = []
    for name, weight in tuned.items():
        if name not in base:
            raise CourseError(f"The base model has no matrix '{name}'; are the two checkpoints of one architecture?")
        if base[name].shape != weight.shape:
            raise CourseError(f"Matrix '{name}' is {tuple(base[name].shape)} in the base model but "
                              f"{tuple(weight.shape)} in the tuned one; are they of the same architecture?")
        factors = base_triplets[name] if base_triplets else thin_svd(base[name], name=f"base matrix {name}")
        of_tuned = thin_svd(weight, name=f"tuned matrix {name}")
        cosines = max_cosines(of_tuned, factors, vectors=vectors)
        parts.append(pd.DataFrame({
            "matrix": name, "index": range(1, len(cosines) + 1), "singular_value": of_tuned.s.numpy(),
            "max_cosine": cosines.numpy(), "out": weight.shape[0], "in": weight.shape[1]}))
    return pd.concat(parts, ignore_index=True)


def count_intruders(vectors: pd.DataFrame, epsilons: Iterable[float], ks: Iterable[int | float],
                    *, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Counts at every epsilon and k, in one pass over a vector table.

    Parameters
    ----------
    vectors : pandas.DataFrame
        From :func:`vector_table`; other columns (run, seed, …) may be named in `by`.
    epsilons : iterable of float
        Thresholds on the maximal cosine; the comparison is strict.
    ks : iterable of int or float
        How many leading vectors are examined: a whole number, or a fraction of each matrix's own vectors, which are
        min(out, in) where the table has those columns, and else as many as it has rows for.
    by : tuple of str
        Columns that group the counts; empty sums over everything.

    Returns
    -------
    pandas.DataFrame
        Columns of `by`, ``epsilon``, ``k``, ``n_intruders``, zero counts included.

    Examples
    --------
    >>> table = pd.DataFrame({"matrix": "w", "index": [1, 2, 3], "max_cosine": [0.5, 0.2, 0.1]})
    >>> count_intruders(table, [0.5], [1, 2, 1.0])["n_intruders"].tolist()
    [0, 1, 2]
    """
    groups, parts = list(by), []
    size = vectors["index"]  # of a table without rows
    if {"out", "in"} <= set(vectors):
        size = vectors[["out", "in"]].min(axis=1)  # a table of leading vectors does not have them all
    elif len(vectors):
        size = vectors.groupby([*groups, "matrix"])["index"].transform("max")
    for k in ks:
        # 0.7 * 90 is 62.99… in floating point; the 63rd vector must not be lost to that.
        examined = vectors["index"] <= (k * size + 1e-9 if isinstance(k, float) else k)
        for epsilon in epsilons:
            hit = examined & is_intruder(vectors["max_cosine"], epsilon)
            if groups:
                counts = hit.groupby([vectors[column] for column in groups], sort=False).sum().rename("n_intruders")
                part = counts.reset_index()
            else:
                part = pd.DataFrame({"n_intruders": [int(hit.sum())]})
            parts.append(part.assign(epsilon=epsilon, k=k))
    table = pd.concat(parts, ignore_index=True)
    return table[[*groups, "epsilon", "k", "n_intruders"]]


def trace_direction(base: SingularTriplets, tuned: Mapping[int, torch.Tensor], direction: torch.Tensor) -> pd.DataFrame:
    """Follow one output-side direction through checkpoints of a matrix.

    Parameters
    ----------
    base : SingularTriplets
        Thin SVD of W0.
    tuned : mapping of int to torch.Tensor
        The merged matrix by step.
    direction : torch.Tensor of shape (out,)
        A unit vector, such as the left singular vector of an intruder at the last step.

    Returns
    -------
    pandas.DataFrame
        One row per step, of the tuned vector nearest to the direction: ``step``, ``index`` (from 1),
        ``singular_value``, ``max_cosine`` with any pretrained vector, ``overlap`` with the direction.

    References
    ----------
    arXiv 2410.21228v3, Fig 5: an intruder rises in rank, grows, and goes on turning.
    """
    rows = []
    for step, weight in tuned.items():
        factors = thin_svd(weight, name=f"matrix at step {step}")
        overlaps = (factors.u.T @ direction).abs()
        index = int(overlaps.argmax())
        rows.append({"step": step, "index": index + 1, "singular_value": factors.s[index].item(),
                     "max_cosine": (factors.u[:, index] @ base.u).abs().max().clamp(max=1.0).item(),
                     "overlap": overlaps[index].clamp(max=1.0).item()})
    return pd.DataFrame(rows)


def first_intruders(vectors: pd.DataFrame, *, epsilon: float, k: int) -> pd.DataFrame:
    """The rows of a vector table that are intruders, highest-ranked first within each matrix.

    Parameters
    ----------
    vectors : pandas.DataFrame
        With ``matrix``, ``index`` (from 1) and ``max_cosine``, as from :func:`vector_table`.
    epsilon : float
        The comparison is strict.
    k : int
        Leading vectors examined of each matrix.
    """
    examined = vectors[vectors["index"] <= k]
    return examined[is_intruder(examined["max_cosine"], epsilon)].sort_values(["matrix", "index"])
