"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

import numpy as np
import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed, trend
from utils.studies.cause.strengths import separation


def _scaled(table: pd.DataFrame, rank) -> pd.DataFrame:
    """The intervention's rows of one rank, at the smallest of its learning rates: the gentlest run."""
    at = table[table["r"] == rank]
    return at[at["learning_rate"] == at["learning_rate"].min()]


def _change(row: pd.Series) -> float:
    """Forgetting's change in percent; NaN without an intruder to scale, and where nothing had been forgotten.

    A change of what was forgotten and a change of the loss have different signs where the run forgot less than nothing.
    """
    if row["changed"] == 0 or row["forgetting_change"] * row["loss_change"] < 0:
        return float("nan")
    return row["forgetting_change"]


@rule(needs=("accuracy_change", "kind", "seed"))
def scaling_helps(table: pd.DataFrame, *, factor, tolerance, rank) -> Effects:
    """Scaling intruders down: the fall of forgetting in percent, if accuracy falls by less than `tolerance` percent."""
    at = _scaled(table, rank)
    at = at[(at["kind"] == "intruder") & (at["factor"] == factor)]

    def effect(part: pd.DataFrame) -> float:
        row = part.iloc[0]
        change = _change(row)
        return -change if np.isnan(change) or row["accuracy_change"] > -tolerance else row["accuracy_change"]

    return by_seed(at, effect, outcome=None)


@rule(needs=("kind", "seed"))
def scaling_up_hurts(table: pd.DataFrame, *, factor, rank) -> Effects:
    """Forgetting's change in percent when intruders are scaled up."""
    at = _scaled(table, rank)
    at = at[(at["kind"] == "intruder") & (at["factor"] == factor)]
    return by_seed(at, lambda part: _change(part.iloc[0]), outcome=None)


@rule(needs=("factor", "kind", "seed"))
def neighbour_hurts(table: pd.DataFrame, *, factors, rank) -> Effects:
    """The smaller rise of forgetting, in percent, when the neighbour is scaled down or up by the given factors."""
    at = _scaled(table, rank)
    at = at[at["kind"] == "neighbour"]

    def effect(part: pd.DataFrame) -> float:
        rows = part.set_index("factor")
        changes = [_change(rows.loc[factor]) for factor in factors]
        return float("nan") if np.isnan(changes).any() else min(changes)

    return by_seed(at, effect, outcome=None)


@rule(needs=("accuracy", "changed", "forgetting", "seed"))
def intruder_beats(table: pd.DataFrame, *, factor, kind, rank) -> Effects:
    """Forgetting saved per accuracy lost: how much lower the intruder's curve is than another kind's at equal accuracy.

    The other kind's frontier (its points than which none is as accurate and forgets no more) is interpolated at the
    accuracy that scaling intruders by `factor` leaves; its curve includes factor 1. Nats per token, positive where
    scaling intruders forgets less; NaN without an intruder to scale.
    """
    def effect(part: pd.DataFrame) -> float:
        row = part[(part["kind"] == "intruder") & (part["factor"] == factor)].iloc[0]
        other = part[(part["kind"] == kind) & (part["factor"] <= 1)]
        if row["changed"] == 0 or other.empty:
            return float("nan")
        least = other.groupby("accuracy")["forgetting"].min()
        frontier = least[least < least[::-1].cummin()[::-1].shift(-1, fill_value=np.inf)]
        return float(np.interp(row["accuracy"], frontier.index, frontier) - row["forgetting"])

    return by_seed(_scaled(table, rank), effect, outcome=None)


@rule(needs=("forgetting", "kind", "removed", "seed"))
def removal_monotone(table: pd.DataFrame, *, rank) -> Effects:
    """Minus Spearman's rho between how many intruders are removed and forgetting; NaN where there is none to remove."""
    at = _scaled(table, rank)
    at = at[at["kind"] == "intruders"]
    return by_seed(at, lambda part: -trend(part["removed"], part["forgetting"]), outcome=None)


@rule(needs=("forgetting", "relative_norm", "seed"))
def intruders_beyond_norm(table: pd.DataFrame, *, rank) -> Effects:
    """Forgetting with intruders minus without, at one and the same norm of every matrix's update (the smaller one).

    NaN where removing them leaves the norm as it was: there was none to remove.
    """
    def effect(part: pd.DataFrame) -> float:
        by = part.set_index(["norm", "intruders"])
        norms, values = by["relative_norm"], by["forgetting"]
        if norms.loc["own", "kept"] == norms.loc["smaller", "kept"]:
            return float("nan")
        return values.loc["smaller", "kept"] - values.loc["smaller", "removed"]

    return by_seed(_scaled(table, rank), effect, outcome=None)


@rule(needs=("measured", "predicted", "seed"))
def predicts_strength(table: pd.DataFrame, *, factor, least) -> Effects:
    """Share of matrices whose critical strength is predicted within `factor`, minus `least`.

    Where no strength makes an intruder (infinity), the prediction has to say so.
    """
    def effect(part: pd.DataFrame) -> float:
        right = (part["measured"] / part["predicted"]).between(1 / factor, factor)
        never = np.isinf(part["measured"]) & np.isinf(part["predicted"])
        return float((right | never).mean()) - least

    return by_seed(table, effect, outcome=None)


@rule(needs=("r", "seed"))
def threshold_separates(table: pd.DataFrame, *, rank, least) -> Effects:
    """Mean over one rank's runs of the area under the curve of strength over critical strength, minus `least`."""
    return by_seed(table[table["r"] == rank], lambda part: separation(part)["auc"].mean() - least,
                    "learning_rates", outcome=None, experiment="ranks")
