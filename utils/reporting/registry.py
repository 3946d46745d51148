"""What the studies register by decorator: measurements, rules, figures and findings, each known by its name.

A study's modules are imported by :func:`utils.studies.load_studies`; only then are the registries whole.
"""

from collections.abc import Callable




RULES: dict[str, Callable] = {}
MEASUREMENTS: dict[str, Callable] = {}


def rule(function: Callable) -> Callable:
    RULES[function.__name__] = function
    return function


def measurement(function: Callable) -> Callable:
    MEASUREMENTS[function.__name__] = function
    return function
