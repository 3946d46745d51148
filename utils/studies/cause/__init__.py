"""Do intruder dimensions cause forgetting? Scaling them, and scaling other things by as much (notebook 07).

Reproduces Figs 8 and 12 with Table 3 of the first paper (arXiv 2410.21228v3); adds the neighbour, a random direction,
the whole update and smaller learning rates as controls, the triplet of the update's own SVD, removal one by one,
norm-matched pairs, the critical strength of an intruder, and PEFT's own mitigation. ``changed`` exchanges a run's
matrices, ``measure`` makes the tables, ``strengths`` asks from which strength on a direction is an intruder,
``resampled`` draws test rows and passages anew, ``figures`` draws, ``rules`` and ``claims.toml`` judge, ``published``
holds the paper's Tables 3 and 4.
"""
