"""SVD, similarity, intruder dimensions, effective rank, planted directions, random controls, and the fast core.

Everything here is a pure function of matrices: no models, no profile, and no files but in :mod:`utils.spectra.cache`.
The definition stands in :mod:`~utils.spectra.intruders`; :mod:`~utils.spectra.fast` gives the same counts sooner.
"""

from utils.spectra.cache import SpectrumCache
from utils.spectra.controls import planted_matrix, random_update, toy_sweep
from utils.spectra.fast import LowRank, Pair, leading_cosines, leading_table, leading_triplets
from utils.spectra.intervention import leading_intruder, scaled
from utils.spectra.intruders import count_intruders, first_intruders, trace_direction, vector_table
from utils.spectra.rank import effective_rank, update_table
from utils.spectra.svd import Factors, max_cosines, random_level, similarity, thin_svd

__all__ = ["Factors", "LowRank", "Pair", "SpectrumCache", "count_intruders", "effective_rank", "first_intruders",
           "leading_cosines", "leading_intruder", "leading_table", "leading_triplets", "max_cosines", "planted_matrix",
           "random_level", "random_update", "scaled", "similarity", "thin_svd", "toy_sweep", "trace_direction",
           "update_table", "vector_table"]
