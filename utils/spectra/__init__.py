"""SVD, similarity, intruder dimensions, effective rank, planted directions, random controls, and the fast core.

Two extensions of the intruder count: :mod:`~utils.spectra.spiked` predicts when an update becomes an intruder, and
:mod:`~utils.spectra.clusters` compares with spans of pretrained vectors instead of single ones.

Everything here is a pure function of matrices: no profile, no files but in :mod:`utils.spectra.cache`, and no models
but in :mod:`~utils.spectra.hessian`, whose products with vectors need the loss.
The definition stands in :mod:`~utils.spectra.intruders`; :mod:`~utils.spectra.fast` gives the same counts sooner.
"""

from utils.low_rank import LowRankUpdate
from utils.spectra.cache import SpectrumCache
from utils.spectra.chance import random_cosines, random_ranges
from utils.spectra.clusters import window_cosines, window_level, window_table
from utils.spectra.controls import planted_matrix, random_update, toy_sweep
from utils.spectra.fast import Pair, leading_cosines, leading_table, leading_triplets, vectors_between
from utils.spectra.intervention import leading_intruder, scaled
from utils.spectra.intruders import count_intruders, first_intruders, is_intruder, trace_direction, vector_table
from utils.spectra.rank import effective_rank, update_table
from utils.spectra.spiked import adapter_strengths, critical_strength, measured_critical_strength, predicted_spike
from utils.spectra.svd import SingularTriplets, max_cosines, random_level, similarity, thin_svd

__all__ = ["LowRankUpdate", "Pair", "SingularTriplets", "SpectrumCache", "adapter_strengths", "count_intruders",
           "critical_strength", "effective_rank", "first_intruders", "is_intruder", "leading_cosines",
           "leading_intruder", "leading_table", "leading_triplets", "max_cosines", "measured_critical_strength",
           "planted_matrix", "predicted_spike", "random_cosines", "random_level", "random_ranges", "random_update",
           "scaled", "similarity", "thin_svd", "toy_sweep", "trace_direction", "update_table", "vector_table",
           "vectors_between", "window_cosines", "window_level", "window_table"]
