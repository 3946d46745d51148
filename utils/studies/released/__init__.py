"""The released LLaMA checkpoints of the papers, read matrix by matrix: counts, scaling, heat-maps.

Notebooks 04, 04b and 07 at profile `paper`: Figs 1, 4a to 4c, 13 and 15b to 15d of *An Illusion of Equivalence* (v3).
"""
