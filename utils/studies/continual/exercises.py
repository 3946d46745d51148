"""What must hold of the simulation that readers write in notebook 08."""

import math

NULL_FORGETTING = {
    "of endless test rows nothing is forgotten": lambda null: abs(null(0.8, 10_000_000, 4)) < 1e-3,
    "a task that is tested once cannot be forgotten": lambda null: abs(null(0.8, 100, 1)) < 1e-12,
    "with two tests it is the mean of the positive part of a difference, √(p (1 − p) / (π n))":
        lambda null: abs(null(0.8, 400, 2) - math.sqrt(0.8 * 0.2 / (math.pi * 400))) < 2e-3,
    "the more often a task is tested, the larger it is":
        lambda null: null(0.8, 200, 2) < null(0.8, 200, 4) < null(0.8, 200, 8),
}
