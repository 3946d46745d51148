"""Which matrices are shown: chosen on other seeds than the one shown, so that what it came to has no say in it.

The paper does not say which matrix its heat-maps show. One that was chosen for what is seen in it shows that and
nothing else; one that other seeds chose can contradict.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from utils.errors import CourseError
from utils.reporting.measured import Measured
from utils.reporting.words import both

LORA, FULL, MEDIAN, BY_NAME = ("clearest for LoRA", "clearest for full fine-tuning", "median for LoRA",
                               "the middle one by its place")
ROLES = (LORA, FULL, MEDIAN)


class Shown(NamedTuple):
    """A matrix that is shown, for what it stands, and the seeds on which it was chosen (none: by its place alone)."""

    role: str
    matrix: str
    seeds: tuple[int, ...]

    @property
    def words(self) -> str:
        """The choice in words, for captions."""
        return f"{self.role}, chosen on seed{'s' if len(self.seeds) > 1 else ''} {both(map(str, self.seeds))}" \
            if self.seeds else self.role


def chosen_matrices(table: pd.DataFrame, seed: int) -> list[Shown]:
    """The matrices that the table's other seeds choose for one that is shown, in the order of :data:`ROLES`.

    Clearest for a method is the matrix with its least pretrained-like leading vector in any of those seeds; the median
    is the middle one when the matrices are put in the order of LoRA's least cosine, averaged over those seeds.

    Parameters
    ----------
    table : pandas.DataFrame
        ``seed``, ``method_kind``, ``matrix`` and ``flattest``, one row per run and matrix: ``similarity_summary``.
    seed : int
        The seed that is shown; its rows are not looked at.

    Returns
    -------
    list of Shown
        Without any other seed the one of :func:`middle_matrix`.

    Raises
    ------
    CourseError
        If the table names no matrix.
    """
    if table.empty:
        raise CourseError("Expected rows of matrices to choose from, got none; measure similarity_summary first.")
    others = table[table["seed"] != seed]
    lora, full = (others[others["method_kind"] == kind] for kind in ("lora", "full"))
    if lora.empty or full.empty:
        return [Shown(BY_NAME, middle_matrix(table["matrix"]), ())]
    seeds = tuple(sorted({int(one) for one in others["seed"]}))
    order = lora.groupby("matrix", sort=False)["flattest"].mean().sort_values(kind="stable").index
    chosen = (_clearest(lora), _clearest(full), order[len(order) // 2])
    return [Shown(role, matrix, seeds) for role, matrix in zip(ROLES, chosen, strict=True)]


def _clearest(rows: pd.DataFrame) -> str:
    return rows.loc[rows["flattest"].idxmin(), "matrix"]


def middle_matrix(names: Sequence[str] | pd.Series) -> str:
    """The middle one of a model's matrices in the order in which they come: a choice that looks at no weights.

    >>> middle_matrix(["layer.0.query", "layer.0.key", "layer.1.query", "layer.1.key"])
    'layer.1.query'
    """
    different = list(dict.fromkeys(names))
    return different[len(different) // 2]


def matrix_for(kind: str, seed: int, *, known: pd.DataFrame | None, names: Sequence[str]) -> Shown:
    """The matrix to show of a run of another experiment: the clearest for its kind by the seeds of a known table.

    Parameters
    ----------
    kind : {"full", "lora"}
    seed : int
        The one that is shown.
    known : pandas.DataFrame or None
        ``similarity_summary`` of other seeds, such as the reference's.
    names : sequence of str
        The model's matrices; without a known table the middle one is taken.
    """
    chosen = [] if known is None or known.empty else chosen_matrices(known, seed)
    role = FULL if kind == "full" else LORA
    return next((one for one in chosen if one.role == role), Shown(BY_NAME, middle_matrix(names), ()))


def shown_matrices(summary: Measured, seed: int) -> list[Shown]:
    """The matrices to show of one of the reader's seeds, chosen on the reader's other seeds and the reference's."""
    known = summary.own if summary.reference is None else pd.concat([summary.own, summary.reference])
    return chosen_matrices(known, seed)


def in_shown(table: pd.DataFrame, role: str) -> pd.DataFrame:
    """Of each seed the rows of the matrix that the others choose for a role; of a single seed those of its middle one.

    A seed that lacks the matrix has no rows.
    """
    parts = []
    for seed, part in table.groupby("seed", sort=False):
        shown = chosen_matrices(table, seed)
        names = {one.role: one.matrix for one in shown}
        parts.append(part[part["matrix"] == names.get(role, shown[0].matrix)])
    return pd.concat(parts) if parts else table
