"""How many leading singular vectors of a tuned model are foreign to the base, and what the count depends on.

Notebook 04: Algorithm 1 and Figs 4, 5, 10, 15, 16, 22 and 23 of *An Illusion of Equivalence* (arXiv 2410.21228v3), with
random updates as the negative control.
"""
