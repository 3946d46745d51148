"""Two checkpoints as the spectra's functions take them: pairs of matrices, each read when it is its turn."""

from collections.abc import Iterator
from functools import partial

import torch

from utils.sources.checkpoints import Adapter, Checkpoint
from utils.spectra.pairs import Leading, Pair, Tuned, is_far
from utils.spectra.precision import Kind, precision_floor


def checkpoint_pairs(original: Checkpoint, changed: Checkpoint | Adapter, sources: dict[str, str]) -> Iterator[Pair]:
    """The matrices of two checkpoints, each read when it is its turn.

    Parameters
    ----------
    original, changed
        A base and what was tuned from it.
    sources : dict of str to str
        Base matrix -> name in the tuned checkpoint (:func:`utils.sources.pairs.matched_names`).
    """
    def load(base_name: str, tuned_name: str) -> tuple[torch.Tensor, Tuned]:
        weight = original.read(base_name)
        if isinstance(changed, Checkpoint):
            return weight, changed.read(tuned_name)
        entry = original.entries.get(base_name) or original.convolutions[base_name]
        if tuned_name in changed.whole:
            whole = changed.read_whole(tuned_name)
            return weight, whole.T if entry.transposed else whole
        other = changed.read(tuned_name)
        if entry.rows is not None:
            other = other.rows(*entry.rows)
        if other.magnitude is None or (len(other.update.b), other.update.a.shape[1]) != tuple(weight.shape):
            return weight, other.update
        return weight, other.merged(weight)

    for base_name, tuned_name in sources.items():
        yield Pair(base_name, partial(load, base_name, tuned_name))


def stored_types(original: Checkpoint, changed: Checkpoint | Adapter, name: str,
                 *, tuned_name: str) -> tuple[Kind, Kind]:
    """In which types a matrix is stored in the two; an adapter's merged weight is no better known than its base's.

    Parameters
    ----------
    original : Checkpoint
        The base.
    changed : Checkpoint or Adapter
    name, tuned_name : str
        The matrix in either.
    """
    stored = (original.entries.get(name) or original.convolutions[name]).dtype
    if isinstance(changed, Checkpoint):
        return stored, changed.entries[tuned_name].dtype
    return stored, changed.header[changed.whole[tuned_name]].dtype if tuned_name in changed.whole else stored


def stored_floor(found: Leading, stored: tuple[Kind, Kind], vectors: str = "left") -> torch.Tensor:
    """What the stored types leave open of each largest cosine (:func:`utils.spectra.precision.precision_floor`).

    Parameters
    ----------
    found : Leading
        Of one matrix.
    stored : tuple of torch.dtype or str
        As :func:`stored_types` returns them.
    vectors : {"left", "right"}
    """
    return precision_floor(found, *stored, far=is_far(found.shape, vectors))
