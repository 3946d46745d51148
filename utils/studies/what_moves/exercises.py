"""What must hold of the choice of a rate that readers write in notebook 05."""

import math

import pandas as pd


def _runs(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["learning_rate", "seed", "validation_accuracy", "accuracy"])


def _three(*means: float, test: tuple[float, ...] = (0.5, 0.5, 0.5)) -> pd.DataFrame:
    """Three rates, two seeds each around its mean."""
    return _runs(*((rate, seed, mean + shift, at_test) for rate, mean, at_test in
                   zip((1e-3, 2e-3, 4e-3), means, test, strict=True) for seed, shift in ((0, 0.02), (1, -0.02))))


def _is(value, rate: float) -> bool:
    return math.isclose(float(value), rate)


CHOOSE_RATE = {
    "the rate of the best mean validation accuracy is chosen": lambda choose: _is(choose(_three(0.7, 0.8, 0.75)), 2e-3),
    "a single lucky seed does not decide": lambda choose: _is(choose(_runs(
        (1e-3, 0, 0.70, 0), (1e-3, 1, 0.70, 0), (2e-3, 0, 0.80, 0), (2e-3, 1, 0.80, 0), (4e-3, 0, 0.95, 0),
        (4e-3, 1, 0.50, 0))), 2e-3),
    "test accuracy is not looked at": lambda choose: _is(choose(_three(0.7, 0.8, 0.75, test=(0.9, 0.1, 0.2))), 2e-3),
    "a best rate on either edge of the grid is no choice: then it returns nan": lambda choose: all(
        math.isnan(float(choose(_three(*means)))) for means in ((0.8, 0.7, 0.6), (0.6, 0.7, 0.8))),
}
