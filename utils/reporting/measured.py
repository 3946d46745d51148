"""One object from measurement to verdict: what the reader's runs gave, what the reference has, what was published."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from utils.profiles import Profile, load_profile


@dataclass(frozen=True, eq=False)
class Measured:
    """A measurement's tables, as figures, findings and claims take them.

    Attributes
    ----------
    own : pandas.DataFrame
        Of the reader's own runs.
    reference : pandas.DataFrame or None
        The committed table of more seeds; None where the profile has none.
    published : pandas.DataFrame or None
        The paper's own numbers, where it prints them.
    """

    name: str
    profile: Profile
    seeds: tuple[int, ...]
    own: pd.DataFrame
    reference: pd.DataFrame | None = None
    published: pd.DataFrame | None = None

    @property
    def best(self) -> pd.DataFrame:
        """The reference where there is one, else the reader's own: what a sentence about the result speaks of."""
        return self.own if self.reference is None else self.reference

    @property
    def source(self) -> str:
        """Whose numbers :attr:`best` holds, in words: ``the reference (seeds 0, 1, 2)``."""
        table, whose = (self.own, "your runs") if self.reference is None else (self.reference, "the reference")
        seeds = sorted(set(table["seed"])) if "seed" in table else []
        named = f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})" if seeds else ""
        return whose + named

    @property
    def best_profile(self) -> Profile:
        """The profile that :attr:`best` was measured at: the reference of ``smoke`` is the laptop's."""
        if self.reference is None or "profile" not in self.reference or self.reference.empty:
            return self.profile
        return load_profile(self.reference["profile"].iloc[0])

    def where(self, query: str) -> "Measured":
        """The same with only the rows that a pandas query chooses, of own and reference alike."""
        return self.rows(lambda table: table.query(query))

    def rows(self, choose: Callable[[pd.DataFrame], pd.DataFrame]) -> "Measured":
        """The same with only the rows that `choose` keeps of a table, of own and reference alike."""
        chosen = None if self.reference is None else choose(self.reference)
        return replace(self, own=choose(self.own), reference=chosen)
