"""The released LLaMA checkpoints of the papers, read matrix by matrix: counts, scaling, heat-maps.

Notebooks 04 and 07 at profile `paper`: Figs 4a to 4c, 13 and 15b to 15d of *An Illusion of Equivalence* (v3).
"""
