"""How the singular vectors of a tuned matrix line up with the pretrained ones.

Notebook 03: Figs 1, 2a, 2b, 2c, 3 and appendix A.2 of *An Illusion of Equivalence* (arXiv 2410.21228v3), and an
extension of ours, the comparison with spans of neighbouring vectors.
"""
