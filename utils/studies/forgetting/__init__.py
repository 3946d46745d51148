"""Forgetting: how far the pseudo-loss on pre-training text rises, by method, rank and learning rate.

Notebook 06; *Illusion of Equivalence* v3, Fig 6, and the U-curve of its first version (v1 Fig 9).
"""
