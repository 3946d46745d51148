"""How many leading singular vectors of a tuned model are foreign to the base, and what the count depends on.

Of *An Illusion of Equivalence* (arXiv 2410.21228v3) notebook 04 has Algorithm 1 and Fig 4, with random updates as the
negative control, and notebook 04b Figs 5, 10, 15, 16, 22 and 23.
"""
