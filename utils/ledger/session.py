"""What was measured in this process: :func:`measured` is the one way from a measurement's name to its tables.

A notebook is one process, or one session of a process: ``begin`` starts it, ``measured`` adds to it, and ``conclude``
judges the claims from it, so that nothing is mapped by hand.
"""

import pandas as pd

from utils.ledger.reference import measurement_named, reference_table
from utils.profiles import Profile
from utils.reporting.measured import Measured
from utils.reporting.selection import marked

_MEASURED: dict[tuple[str, str], pd.DataFrame] = {}


def measured(name: str, profile: Profile, seeds: tuple[int, ...]) -> Measured:
    """A measurement on the reader's own runs, with the reference's table and the published numbers beside it.

    Parameters
    ----------
    name : str
        Of a registered measurement, such as ``"intruder_counts"``.
    seeds : tuple of int
        What ``begin`` returned.

    Raises
    ------
    UsageError
        If there is no such measurement; the nearest names are given.
    CourseError
        If its table lacks a column that it declares.
    """
    chosen = measurement_named(name)
    own = marked(chosen.checked(chosen.function(profile, seeds), f"what {chosen.function.__module__} returns"))
    _MEASURED[profile.profile, name] = own
    published = chosen.published() if chosen.published else None
    return Measured(name, profile, tuple(seeds), own, reference_table(name, profile), published)


def start_session() -> None:
    """Forget what was measured before."""
    _MEASURED.clear()


def measured_tables(profile: Profile) -> dict[str, pd.DataFrame]:
    """The reader's own tables of this session, by measurement."""
    return {name: table for (where, name), table in _MEASURED.items() if where == profile.profile}
