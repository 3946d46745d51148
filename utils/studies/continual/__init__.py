"""Tasks one after the other: which method keeps what it learnt, and whether intruders pile up (notebook 08).

Reproduces Figs 9, 17, 18 and 21 of the first paper (arXiv 2410.21228v3). ``measure`` trains the chains and fits a head
on the frozen body after every stage, ``figures`` draws accuracies and spectra stage by stage, ``rules`` and
``claims.toml`` judge.
"""
