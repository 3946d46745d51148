"""Questions of mathematics-dataset as JSON lines: ``python -m utils.sources.questions COUNT``, under a fixed hash seed.

A module of its own so that another process can draw them; see :mod:`utils.sources.domains`.
"""

import json
import random
import sys

import numpy as np

# Question kinds of mathematics-dataset that run under today's sympy and numpy, and have answers of a few symbols.
MATHEMATICS = (("arithmetic", "add_or_sub"), ("arithmetic", "mul"), ("arithmetic", "div"),
               ("arithmetic", "add_sub_multiple"), ("algebra", "linear_1d"), ("comparison", "closest"),
               ("comparison", "pair"), ("comparison", "kth_biggest"), ("measurement", "time"),
               ("numbers", "place_value"), ("numbers", "is_factor"), ("numbers", "div_remainder"),
               ("numbers", "round_number"), ("numbers", "gcd"))


def questions(count: int) -> list[dict]:
    """``kind``, ``question``, ``answer`` of `count` draws in turn from every kind; repeated questions left out."""
    kinds = _generators()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the package draws from the global state
    found = {}
    for number in range(count):
        kind, draw = kinds[number % len(kinds)]
        problem = draw()
        found.setdefault(str(problem.question), {"kind": kind, "question": str(problem.question),
                                                 "answer": str(problem.answer)})
    return list(found.values())


def _generators() -> list[tuple[str, object]]:
    """The easy third of the chosen kinds, as the package's own `train-easy` draws them."""
    import sympy.solvers.diophantine  # noqa: F401
    from sympy.solvers.diophantine.diophantine import base_solution_linear

    # Newer sympy moved this function; the package still looks for it in the old place.
    sys.modules["sympy.solvers.diophantine"].base_solution_linear = base_solution_linear
    from mathematics_dataset.modules import modules

    def easy(bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        return low, low + (high - low) / 3

    train = modules.train(easy)
    return [(f"{area}, {kind}", train[area][kind]) for area, kind in MATHEMATICS]


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(row) + "\n" for row in questions(int(sys.argv[1])))
