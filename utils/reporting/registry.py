"""What the studies register by decorator: measurements, rules, figures and findings, each known by its name.

A study's modules are imported by :func:`utils.studies.load_studies`; only then are the registries whole. A decorated
function stays the plain function that it was; only a figure is wrapped, so that it knows its own name.
"""

import difflib
import inspect
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from utils.errors import CourseError


@dataclass(frozen=True)
class Measurement:
    """A function of profile and seeds that returns a tidy table with declared columns.

    `runs` names the experiments whose runs it asks for, as :func:`utils.training.wanted.wanted_specs` takes them. One
    that is measured `by_run` looks at each run by itself (:func:`utils.reporting.runs.collect_by_run`), so that its
    reference can be made over several sittings.
    """

    name: str
    function: Callable[..., pd.DataFrame]
    columns: tuple[str, ...]
    published: Callable[[], pd.DataFrame] | None
    runs: tuple[str, ...] = ()
    by_run: bool = False

    def checked(self, table: pd.DataFrame, where: str) -> pd.DataFrame:
        """`table` itself if it has the declared columns (or no rows); CourseError naming the first that it lacks."""
        if not isinstance(table, pd.DataFrame):
            raise CourseError(f"Expected a table of measurement '{self.name}' in {where}, got a "
                              f"{type(table).__name__}; return a DataFrame, without rows where there is nothing.")
        lacking = [name for name in self.columns if name not in table.columns]
        if lacking and len(table):
            raise CourseError(f"Expected the column '{lacking[0]}' of measurement '{self.name}' in {where}, got "
                              f"{', '.join(map(str, table.columns))}; declare what it returns, or make the table anew.")
        return table


@dataclass(frozen=True)
class Rule:
    """A function of a measurement's table and a claim's parameters that returns one effect per seed.

    `needs` are the columns that it reads; one in braces, such as ``"{column}"``, is named by the claim's parameter.
    """

    name: str
    function: Callable
    needs: tuple[str, ...]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The rule's own parameters: everything after the table, keyword-only."""
        return dict(list(inspect.signature(self.function).parameters.items())[1:])

    def columns(self, given: dict) -> list[str]:
        """The columns that the rule reads under these parameters."""
        found: list[str] = []
        for need in self.needs:
            names = [field for _, field, _, _ in string.Formatter().parse(need) if field]
            values = given.get(names[0]) if names else need
            found += [values] if isinstance(values, str) else list(values or ())
        return found


@dataclass(frozen=True)
class FigureEntry:
    """A figure function, the measurements that it draws, and where the paper has the figure."""

    identifier: str
    function: Callable
    measurements: tuple[str, ...]
    place: str


RULES: dict[str, Rule] = {}
MEASUREMENTS: dict[str, Measurement] = {}
FIGURES: dict[str, FigureEntry] = {}
FINDINGS: dict[str, Callable] = {}  # by the figure's identifier


def measurement(*, columns: Iterable[str], published: Callable[[], pd.DataFrame] | None = None,
                runs: Iterable[str] = (), by_run: bool = False) -> Callable:
    """Register a measurement under its function's name.

    Parameters
    ----------
    columns : iterable of str
        What its table has at least, whatever the profile.
    published : callable, optional
        Returns the paper's own numbers in a table, drawn and told beside ours.
    runs : iterable of str
        The experiments whose runs it asks for, so that they can be trained side by side before it does.
    by_run : bool
        It takes ``known`` and ``trained_only`` as :func:`utils.reporting.runs.collect_by_run` does.
    """
    def register(function: Callable) -> Callable:
        entry = Measurement(function.__name__, function, tuple(columns), published, tuple(runs), by_run)
        _add(MEASUREMENTS, function.__name__, entry, what="measurement", function=function)
        return function

    return register


def rule(*, needs: Iterable[str]) -> Callable:
    """Register a rule under its function's name; see :class:`Rule` for `needs`."""
    def register(function: Callable) -> Callable:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters):
            raise CourseError(f"Rule '{function.__name__}' takes a table and keyword-only parameters; got "
                              f"{inspect.signature(function)}.")
        _add(RULES, function.__name__, Rule(function.__name__, function, tuple(needs)), what="rule", function=function)
        return function

    return register


def add_figure(entry: FigureEntry) -> None:
    """Register a figure; :func:`utils.reporting.drawn.figure` does it for every figure function."""
    _add(FIGURES, entry.identifier, entry, what="figure", function=entry.function)


def add_finding(identifier: str, function: Callable) -> None:
    """Register what is found in a figure; :func:`utils.reporting.drawn.finding` does it."""
    _add(FINDINGS, identifier, function, what="finding", function=function)


def check_figures() -> None:
    """CourseError for a figure of a measurement, or a finding of a figure, that does not exist."""
    for entry in FIGURES.values():
        for name in entry.measurements:
            if name not in MEASUREMENTS:
                raise CourseError(f"Figure '{entry.identifier}' names the measurement '{name}', which does not exist "
                                  f"({nearest(name, MEASUREMENTS)}).")
    for identifier, function in FINDINGS.items():
        if identifier not in FIGURES:
            raise CourseError(f"The finding {function.__name__} of {function.__module__} names the figure "
                              f"'{identifier}', which does not exist ({nearest(identifier, FIGURES)}).")


def _add(register: dict, name: str, entry, *, what: str, function: Callable) -> None:
    other = register.get(name)
    other_function = getattr(other, "function", other)
    if other is not None and (other_function.__module__, other_function.__qualname__) != (
            function.__module__, function.__qualname__):  # a reloaded module registers its own again
        raise CourseError(f"There are two {what}s named '{name}', in {other_function.__module__} and in "
                          f"{function.__module__}; give one another name.")
    register[name] = entry


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, for an error's last words.

    >>> nearest("intruder_count", ["intruder_counts", "forgetting"])
    'the nearest: intruder_counts'
    """
    known = list(known)
    return f"the nearest: {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:3])}"
