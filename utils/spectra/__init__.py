"""SVD, similarity, intruder dimensions, effective rank, planted directions and random controls.

Everything here is a pure function of float32 (or float64) matrices: no files, no models, no profile.
"""

from utils.spectra.controls import planted_matrix, random_update, toy_sweep
from utils.spectra.intruders import count_intruders, first_intruders, trace_direction, vector_table
from utils.spectra.rank import effective_rank, update_table
from utils.spectra.svd import Factors, max_cosines, random_level, similarity, thin_svd

__all__ = ["Factors", "count_intruders", "effective_rank", "first_intruders", "max_cosines", "planted_matrix",
           "random_level", "random_update", "similarity", "thin_svd", "toy_sweep", "trace_direction", "update_table",
           "vector_table"]
