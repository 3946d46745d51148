"""A figure function returns what it drew: the figure, its alt text, a caption, its table; and what is found in it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from utils.errors import CourseError
from utils.profiles import Profile
from utils.reporting.measured import Measured
from utils.reporting.registry import FigureEntry, add_figure, add_finding
from utils.reporting.style import use_style

MOST_COLUMNS, MOST_ROWS = 6, 8


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure ready to be published.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    alt : str
        What a reader who cannot see it needs: the kind of plot, its axes and what it shows, with numbers.
    caption : str
        One sentence for everybody.
    table : pandas.DataFrame
        Everything of our own results that was drawn; it becomes the figure's CSV.
    shown : pandas.DataFrame or None
        At most six well-named columns and eight rows, printed under the figure; None for no table there.
    """

    figure: Figure
    alt: str
    caption: str
    table: pd.DataFrame
    shown: pd.DataFrame | None = None
    identifier: str = ""
    profile: Profile | None = None
    inputs: tuple[tuple, dict[str, Any]] = field(default=((), {}), repr=False)


@dataclass(frozen=True)
class Found:
    """One to three sentences on what a figure shows, and whether that is what was expected (None: cannot be said)."""

    text: str
    met: bool | None


def all_met(parts: Iterable[bool | None]) -> bool | None:
    """Whether all that was expected was found: False where a part was not, None where a part, or all, cannot be said.

    >>> all_met([True, True]), all_met([True, None]), all_met([None, False]), all_met([])
    (True, None, False, None)
    """
    said = [None if part is None else bool(part) for part in parts]
    if False in said:
        return False
    return None if None in said or not said else True


def figure(identifier: str, *, measurements: Iterable[str] = (), place: str = "ours") -> Callable:
    """Register a function of :class:`Measured` objects (or of a profile and tables) that returns :class:`Drawn`.

    Parameters
    ----------
    identifier : str
        File name without suffix, such as ``"04_count_against_epsilon"``.
    measurements : iterable of str
        Names of the measurements that it draws.
    place : str
        Where the paper has it, such as ``"Illusion v3, Fig 4"``.
    """
    def register(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
        @wraps(function)
        def draw(*args, **keywords) -> Drawn:
            profile = _profile_of(identifier, args, keywords)
            use_style()
            return replace(function(*args, **keywords), identifier=identifier, profile=profile, inputs=(args, keywords))

        add_figure(FigureEntry(identifier, function, tuple(measurements), place))
        return draw

    return register


def finding(identifier: str) -> Callable:
    """Register a function of the same arguments as the figure's that returns :class:`Found`."""
    def register(function: Callable[..., Found]) -> Callable[..., Found]:
        add_finding(identifier, function)
        return function

    return register


def _profile_of(identifier: str, args: tuple, keywords: dict) -> Profile:
    for value in (*args, *keywords.values()):
        if isinstance(value, Measured):
            return value.profile
        if isinstance(value, Profile):
            return value
    raise CourseError(f"Figure '{identifier}' was given neither a measured table nor a profile; give it one, so that "
                      "it is published in the right folder.")


def shown_table(table: pd.DataFrame, columns: dict[str, str], *, rows: int = MOST_ROWS) -> pd.DataFrame:
    """The first rows of a table's columns under names that a reader understands (column -> name)."""
    return table[list(columns)].rename(columns=columns).head(rows).reset_index(drop=True)
