"""SVD, similarity, intruder dimensions, effective rank, planted directions, random controls, and the fast core.

Two extensions of the intruder count: :mod:`~utils.spectra.spiked` predicts when an update becomes an intruder, and
:mod:`~utils.spectra.clusters` compares with spans of pretrained vectors instead of single ones.

Everything here is a pure function of matrices: no profile, no files but in :mod:`utils.spectra.cache`, and no models
but in :mod:`~utils.spectra.hessian`, whose products with vectors need the loss.
The definition stands in :mod:`~utils.spectra.intruders`; :mod:`~utils.spectra.fast` gives the same counts sooner.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.low_rank import LowRankUpdate
    from utils.spectra.cache import SpectrumCache
    from utils.spectra.chance import random_cosines, random_ranges
    from utils.spectra.clusters import window_cosines, window_level, window_table
    from utils.spectra.controls import planted_matrix, random_update, toy_sweep
    from utils.spectra.fast import Pair, leading_cosines, leading_table, leading_triplets, vectors_between
    from utils.spectra.intervention import leading_intruder, scaled
    from utils.spectra.intruders import count_intruders, first_intruders, trace_direction, vector_table
    from utils.spectra.rank import effective_rank, update_table
    from utils.spectra.spiked import adapter_strengths, critical_strength, measured_critical_strength, predicted_spike
    from utils.spectra.svd import SingularTriplets, is_intruder, max_cosines, random_level, similarity, thin_svd

__all__ = ["LowRankUpdate", "Pair", "SingularTriplets", "SpectrumCache", "adapter_strengths", "count_intruders",
           "critical_strength", "effective_rank", "first_intruders", "is_intruder", "leading_cosines",
           "leading_intruder", "leading_table", "leading_triplets", "max_cosines", "measured_critical_strength",
           "planted_matrix", "predicted_spike", "random_cosines", "random_level", "random_ranges", "random_update",
           "scaled", "similarity", "thin_svd", "toy_sweep", "trace_direction", "update_table", "vector_table",
           "vectors_between", "window_cosines", "window_level", "window_table"]

# Each name is looked up when it is first asked for: the command that only counts needs neither pandas nor scipy, whose
# imports took longer than the count. The list above is for readers and type checkers; a test keeps the two together.
_HOMES = {"utils.low_rank": "LowRankUpdate",
          "utils.spectra.cache": "SpectrumCache",
          "utils.spectra.chance": "random_cosines random_ranges",
          "utils.spectra.clusters": "window_cosines window_level window_table",
          "utils.spectra.controls": "planted_matrix random_update toy_sweep",
          "utils.spectra.fast": "Pair leading_cosines leading_table leading_triplets vectors_between",
          "utils.spectra.intervention": "leading_intruder scaled",
          "utils.spectra.intruders": "count_intruders first_intruders trace_direction vector_table",
          "utils.spectra.rank": "effective_rank update_table",
          "utils.spectra.spiked": "adapter_strengths critical_strength measured_critical_strength predicted_spike",
          "utils.spectra.svd": "SingularTriplets is_intruder max_cosines random_level similarity thin_svd"}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found = getattr(import_module(home), name)
    globals()[name] = found
    return found
