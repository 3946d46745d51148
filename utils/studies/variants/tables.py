"""What the sweep of variants says (notebook 14): tables in, tables out.

`table` is that of :func:`utils.studies.variants.measure.variant_sweep` or some of its rows.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.reporting.remembered import remembered
from utils.reporting.statistics import mean_interval
from utils.studies.sensitivity.tables import best_rate_table

LOSS = "loss_nats_per_token"
VANILLA = "LoRA"
LACKING = ("rsLoRA", "LoRA+", "full", "LoRA-GA (PEFT)")  # rows of ours, which the study does not have
MEANS = (LOSS, "token_accuracy", "forgetting", "n_intruders", "relative_norm")
SETTINGS = {"rank": ("vanilla_ranks", "r"), "batch size": ("vanilla_batches", "batch_size"),
            "steps": ("vanilla_durations", "steps")}


def in_order(variants: Sequence[str]) -> list[str]:
    """Vanilla LoRA first, the study's variants by name, and last what the study lacks."""
    known = list(dict.fromkeys(variants))
    study = sorted(name for name in known if name != VANILLA and name not in LACKING)
    return [name for name in (VANILLA,) if name in known] + study + [name for name in LACKING if name in known]


def main_grid(table: pd.DataFrame) -> pd.DataFrame:
    """The runs at the usual rank, batch and duration, diverged ones left out."""
    return table[(table["experiment"] == "vanilla") & ~table["diverged"].astype(bool)]


def best_of_each(table: pd.DataFrame) -> pd.DataFrame:
    """Best learning rate of every method: by mean loss over seeds, and at that rate the means with intervals.

    The rate is chosen on the same held-out rows that it is judged on, for every method alike.

    Returns
    -------
    pandas.DataFrame
        In order of loss: ``variant``, ``learning_rate``, ``edge`` (as in
        :func:`utils.studies.sensitivity.tables.best_rate_table`), ``rates`` (tried), ``ratio`` (of vanilla LoRA's best
        rate to this one), mean of ``loss_nats_per_token``, ``token_accuracy``, ``forgetting``, ``n_intruders`` and
        ``relative_norm`` with ``<name>_low`` and ``<name>_high`` (95 % t-intervals over seeds), ``seeds``.
    """
    return _bests(main_grid(table)[["variant", "run", "seed", "steps", "learning_rate", *MEANS]])


@remembered
def _bests(grid: pd.DataFrame) -> pd.DataFrame:
    grid = complete_rates(grid)
    best = best_rate_table(grid.assign(step=grid["steps"]), ["variant"])
    vanilla = best.loc[best["variant"] == VANILLA, "learning_rate"]
    at = dict(iter(grid[["variant", "learning_rate", *MEANS]].groupby("variant")))
    rows = []
    for row in best.to_dict("records"):
        runs = at[row["variant"]]
        chosen = runs[np.isclose(runs["learning_rate"], row["learning_rate"])]
        found = {name: row[name] for name in ("variant", "learning_rate", "edge", "rates")}
        found["ratio"] = vanilla.iloc[0] / row["learning_rate"] if len(vanilla) else np.nan
        for name in MEANS:
            found[name], found[f"{name}_low"], found[f"{name}_high"] = mean_interval(chosen[name])
        rows.append(found | {"seeds": len(chosen)})
    return pd.DataFrame(rows).sort_values(LOSS, ignore_index=True)


def best_by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`best_of_each` seed by seed, with ``seed``: every seed chooses its own best rates."""
    return pd.concat([best_of_each(part).assign(seed=seed) for seed, part in main_grid(table).groupby("seed")],
                     ignore_index=True)


def complete_rates(grid: pd.DataFrame) -> pd.DataFrame:
    """Without the rates at which a seed is missing: a mean over the seeds that survived would flatter a rate."""
    counts = grid.groupby(["variant", "learning_rate"])["seed"].transform("nunique")
    return grid[counts == counts.groupby(grid["variant"]).transform("max")]


def borrowed_rate(table: pd.DataFrame) -> pd.DataFrame:
    """What each method loses at vanilla LoRA's best rate, and what vanilla LoRA loses at each method's.

    Returns
    -------
    pandas.DataFrame
        ``variant``, ``own_rate``, ``borrowed_rate`` (the nearest rate of the method's own grid to vanilla's best, in
        the logarithm), ``lost_nats`` and ``lost_accuracy`` (its own best minus at the borrowed rate, positive is a
        loss), ``vanilla_lost_nats`` (vanilla LoRA at the method's best rate), ``seeds``; means over seeds.
    """
    grid, best = main_grid(table), best_of_each(table).set_index("variant")
    means = grid.groupby(["variant", "learning_rate"])[[LOSS, "token_accuracy"]].mean()
    if VANILLA not in best.index:
        return pd.DataFrame(columns=["variant", "own_rate", "borrowed_rate", "lost_nats", "lost_accuracy",
                                     "vanilla_lost_nats", "seeds"])
    rows, lowest = [], means.loc[(VANILLA, best.loc[VANILLA, "learning_rate"]), LOSS]
    for variant, row in best.iterrows():
        borrowed = _nearest(means.loc[variant].index, best.loc[VANILLA, "learning_rate"])
        lent = _nearest(means.loc[VANILLA].index, row["learning_rate"])
        at, own = means.loc[(variant, borrowed)], means.loc[(variant, row["learning_rate"])]
        rows.append({"variant": variant, "own_rate": row["learning_rate"], "borrowed_rate": borrowed,
                     "lost_nats": at[LOSS] - own[LOSS], "lost_accuracy": own["token_accuracy"] - at["token_accuracy"],
                     "vanilla_lost_nats": means.loc[(VANILLA, lent), LOSS] - lowest,
                     "seeds": row["seeds"]})
    return pd.DataFrame(rows)


def _nearest(rates: pd.Index, wanted: float) -> float:
    return rates[np.abs(np.log(np.asarray(rates) / wanted)).argmin()]


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Best minus worst of the study's ten methods, each at its own best rate, beside what seeds alone do.

    Returns
    -------
    pandas.DataFrame
        One row for every measure (``loss_nats_per_token``, ``token_accuracy``): ``measure``, ``best``, ``worst``
        (methods), ``spread`` (absolute, of the means), ``seed_deviation`` (mean over methods of the standard deviation
        over seeds; NaN for one seed), ``at_one_rate`` (the spread with every method at vanilla LoRA's best rate).
    """
    best, borrowed = best_of_each(table), borrowed_rate(table)
    ours = best[~best["variant"].isin(LACKING)].merge(borrowed, on="variant")
    grid, rows = main_grid(table), []
    for measure, lost in ((LOSS, "lost_nats"), ("token_accuracy", "lost_accuracy")):
        sign = 1 if measure == LOSS else -1
        values = ours.set_index("variant")[measure] * sign
        at_one = values + ours.set_index("variant")[lost]
        chosen = grid.merge(ours[["variant", "learning_rate"]], on=["variant", "learning_rate"])
        rows.append({"measure": measure, "best": values.idxmin(), "worst": values.idxmax(),
                     "spread": values.max() - values.min(),
                     "seed_deviation": chosen.groupby("variant")[measure].std(ddof=1).mean(),
                     "at_one_rate": at_one.max() - at_one.min()})
    return pd.DataFrame(rows)


def varied(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The runs of one varied setting with those of the main grid that share all others.

    Parameters
    ----------
    setting : {"rank", "batch size", "steps"}

    Returns
    -------
    pandas.DataFrame
        Rows of the sweep with ``setting`` (its value) and ``step``; diverged runs left out.
    """
    experiment, column = SETTINGS[setting]
    rows = table[~table["diverged"].astype(bool)]
    own = rows[rows["experiment"] == experiment]
    usual = main_grid(table)
    usual = usual[usual["variant"].isin(own["variant"])]
    both = pd.concat([own, usual], ignore_index=True)
    return both.assign(setting=both[column], step=both["steps"])


def best_rate_against(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Best learning rate at each value of a setting: ``variant``, ``setting``, and ``best_rate_table``'s columns."""
    rows = varied(table, setting)
    return best_rate_table(rows, ["variant", "setting"])
