"""How much each method depends on its settings (notebook 13): tables in, tables out.

`table` is that of :func:`utils.studies.learning.measure.sensitivity` or some of its rows. A run that several
experiments share, the same key in ``run``, counts once wherever rows are put together. Losses are held-out, in nats
per token.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from utils.errors import UsageError
from utils.reporting.remembered import remembered
from utils.reporting.selection import comparable_rates
from utils.training.targets import ATTENTION, split_name

LOSS = "loss_nats_per_token"
SERIES = {
    "rates": lambda row: row["method"],
    "optimisers": lambda row: {"adamw": "AdamW", "lion": "Lion"}[row["optimiser"]],
    "alpha": lambda row: f"alpha = {row['lora_alpha']:g}",
    "modules": lambda row: f"{row['targets']}, r={row['r']}",
    "batches": lambda row: f"batches of {row['batch_size']}",
    "scalings": lambda row: f"LoRA r={row['r']}",
}
PANELS = {"optimisers": "method", "batches": "method", "scalings": "scaling"}


def runs_once(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The last step of every run, one row for each run and group of `by`; the first experiment that names it stays."""
    return table.sort_values("step", kind="stable", ascending=False).drop_duplicates(["run", *by]).sort_index()


def selection(table: pd.DataFrame | None, experiment: str) -> pd.DataFrame | None:
    """The runs of an experiment, with those of ``rates`` that belong to it: the same methods at its usual settings.

    To ``rates`` itself belong the further ranks of alpha = 2r that are among the scalings.

    Parameters
    ----------
    table : pandas.DataFrame or None
        None, where there is no reference, is handed back.
    experiment : str
        A key of ``SERIES``.

    Returns
    -------
    pandas.DataFrame
        Each run once, with ``series`` (what is compared: the optimiser, alpha, …) and ``panel`` (what is kept apart).
        For ``scalings``, a run of alpha = 2r whose alpha is also that of the constant alpha counts under both.

    Raises
    ------
    UsageError
        If the experiment is not known.
    """
    if experiment not in SERIES:
        raise UsageError(f"Expected an experiment of {', '.join(SERIES)}, got '{experiment}'; name one of them.")
    if table is None:
        return None
    further = (table["experiment"] == "scalings") & (table["scaling"] == "alpha = 2r") & (experiment == "rates")
    own = table[(table["experiment"] == experiment) | further]
    usual = table[(table["experiment"] == "rates") & table["method"].isin(own["method"])]
    rows = runs_once(pd.concat([usual, own], ignore_index=True))
    if experiment == "scalings":
        rows = _with_shared_alpha(rows)
    return rows.assign(series=[SERIES[experiment](row) for row in rows.to_dict("records")],
                       panel=rows[PANELS[experiment]] if experiment in PANELS else "")


def _with_shared_alpha(rows: pd.DataFrame) -> pd.DataFrame:
    """Where alpha = 2r is the constant alpha itself, the same run is a point of both rules."""
    constant = rows["scaling"] == "alpha / r"
    shared = rows[(rows["scaling"] == "alpha = 2r") & rows["lora_alpha"].isin(rows.loc[constant, "lora_alpha"])]
    rows = pd.concat([rows, shared.assign(scaling="alpha / r")], ignore_index=True)
    alphas = [f", alpha = {row.lora_alpha:g}" * (row.scaling != "alpha = 2r") for row in rows.itertuples()]
    return rows.assign(scaling=rows["scaling"] + alphas)


def rate_means(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds at each learning rate: `by`, ``learning_rate``, loss, ``learning``, ``forgetting``, ``seeds``."""
    grouped = runs_once(table, by).groupby([*by, "learning_rate"], sort=False)
    means = grouped[[LOSS, "learning", "forgetting"]].mean().assign(seeds=grouped["seed"].nunique())
    means = means.reset_index()
    place = means.groupby(list(by), sort=False).ngroup()
    return means.assign(place=place).sort_values(["place", "learning_rate"], ignore_index=True).drop(columns="place")


def best_rate_table(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row per group: the learning rate of least loss (:func:`utils.reporting.selection.best_rate`), and its edge.

    Parameters
    ----------
    table : pandas.DataFrame
        ``run``, ``step``, ``seed``, ``learning_rate``, the loss, ``learning``, ``forgetting`` and the columns `by`.
    by : sequence of str

    Returns
    -------
    pandas.DataFrame
        `by`, ``learning_rate``, ``loss`` (mean over the seeds at that rate), ``seeds`` (how many), ``rates`` (tried),
        ``edge`` ("lowest", "highest" or "only" where the best is the end of the grid, so a bound; else empty),
        ``loss_below`` and ``loss_above`` (of the neighbouring rates), ``fine_rate`` (vertex of the parabola through the
        best and its neighbours in the logarithm of the rate). The last three are of the seeds that all rates have, and
        NaN at an edge that lacks them.

    Examples
    --------
    >>> runs = pd.DataFrame({"method": "full", "run": list("abc"), "step": 80, "seed": 0, "learning": 0.0,
    ...                      "forgetting": 0.0, "learning_rate": [0.01, 0.1, 1.0], LOSS: [4.0, 3.0, 4.0]})
    >>> best_rate_table(runs, ["method"])[["learning_rate", "edge"]].values.tolist()
    [[0.1, '']]
    """
    needed = dict.fromkeys([*by, "run", "step", "seed", "learning_rate", LOSS])
    return _best_rates(runs_once(table[list(needed)], by), tuple(by))


@remembered
def _best_rates(runs: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    by = list(columns)
    runs = runs.dropna(subset=by).assign(group=lambda kept: kept.groupby(by, sort=False).ngroup())
    means = comparable_rates(runs, ["group"]).groupby(["group", "learning_rate"])[LOSS].mean()
    every = runs.groupby(["group", "learning_rate"]).agg(loss=(LOSS, "mean"), seeds=("seed", "nunique"))
    rows = [keys | _best(means.loc[group], every.loc[group])
            for group, keys in runs.drop_duplicates("group").set_index("group")[by].to_dict("index").items()]
    return pd.DataFrame(rows, columns=[*by, "learning_rate", "loss", "seeds", "rates", "edge", "loss_below",
                                       "loss_above", "fine_rate"])


def _best(means: pd.Series, every: pd.DataFrame) -> dict:
    """The best of one group's rates, beside its neighbours.

    Parameters
    ----------
    means : pandas.Series
        Mean loss by learning rate, ascending, of the seeds that are compared.
    every : pandas.DataFrame
        ``loss`` (mean) and ``seeds`` by learning rate, of all runs.
    """
    losses, rates = means.to_numpy(), means.index.to_numpy()
    place, last = int(means.argmin()), len(means) - 1
    edge = "only" if not last else {0: "lowest", last: "highest"}.get(place, "")
    around, at = slice(place - 1, place + 2), every.loc[rates[place]]
    return {"learning_rate": rates[place], "loss": at["loss"], "seeds": int(at["seeds"]), "rates": len(every),
            "edge": edge, "loss_below": losses[place - 1] if place else np.nan,
            "loss_above": losses[place + 1] if place < last else np.nan,
            "fine_rate": np.nan if edge else parabola_minimum(rates[around], losses[around])}


def parabola_minimum(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Rate at the vertex of the parabola through three points in log rate; NaN where it has no minimum.

    >>> round(parabola_minimum([0.01, 0.1, 1.0], [2.0, 1.0, 2.0]), 6)
    0.1
    """
    middle = np.log(rates[1])
    curvature, slope, _ = np.polyfit(np.log(rates) - middle, losses, 2)
    return float(np.exp(middle - slope / (2 * curvature))) if curvature > 1e-9 else float("nan")


def rates_within(table: pd.DataFrame, share: float = 0.9) -> pd.DataFrame:
    """How many learning rates reach a share of the method's own best learning (Figure S1's tolerance).

    Learning is the base's loss minus the run's. The paper counts accuracies; the grid's spacing decides the count, so
    ``span``, the highest such rate over the lowest, comes with it.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``best_rate``, ``best_learning``, ``rates`` (tried), ``within`` (the best included), ``span``,
        ``edge`` ("lowest", "highest", "both" where the end of the grid is within, so more rates might be; else empty).
    """
    rows = []
    for (method,), group in rate_means(selection(table, "rates"), ["method"]).groupby(["method"], sort=False):
        best = group.loc[group["learning"].idxmax()]
        inside = group["learning"] >= share * best["learning"]
        rates = group.loc[inside, "learning_rate"]
        ends = (bool(inside.iloc[0]), bool(inside.iloc[-1]))
        rows.append({"method": method, "best_rate": best["learning_rate"], "best_learning": best["learning"],
                     "rates": len(group), "within": int(inside.sum()), "span": rates.max() / rates.min(),
                     "edge": {(True, True): "both", (True, False): "lowest", (False, True): "highest"}.get(ends, "")})
    return pd.DataFrame(rows, columns=["method", "best_rate", "best_learning", "rates", "within", "span", "edge"])


def rate_ratio(table: pd.DataFrame, against: str = "full") -> pd.DataFrame:
    """Each LoRA's best learning rate over full fine-tuning's (LoRA Without Regret: about 10).

    Returns
    -------
    pandas.DataFrame
        ``method``, ``learning_rate``, ``edge``, ``ratio`` (on the grid), ``fine_ratio`` (of the parabolas' vertices;
        NaN where either best is at an edge), ``bound`` ("at least", "at most", "unknown"; empty where both are inside).

    Raises
    ------
    UsageError
        If no row is of method `against`.
    """
    best = best_rate_table(selection(table, "rates"), ["method"])
    if against not in set(best["method"]):
        raise UsageError(f"Expected rows of method '{against}' to compare with, got none; measure it at several rates.")
    other = best[best["method"] == against].iloc[0]
    found = best[best["method"] != against].reset_index(drop=True)
    return found[["method", "learning_rate", "edge"]].assign(
        ratio=found["learning_rate"] / other["learning_rate"], fine_ratio=found["fine_rate"] / other["fine_rate"],
        bound=[_bound(edge, other["edge"]) for edge in found["edge"]])


def _bound(edge: str, other: str) -> str:
    """What a ratio of two best rates is where the numerator's or the denominator's lies at the end of its grid."""
    known = {("", ""): "", ("highest", ""): "at least", ("", "lowest"): "at least", ("highest", "lowest"): "at least",
             ("lowest", ""): "at most", ("", "highest"): "at most", ("lowest", "highest"): "at most"}
    return known.get((edge, other), "unknown")


def best_rate_slope(table: pd.DataFrame) -> pd.DataFrame:
    """Slope of log best rate against log rank under each scaling (LoRA Without Regret: near 0 under alpha / r).

    Returns
    -------
    pandas.DataFrame
        ``scaling``, ``ranks`` (how many), ``slope`` (-1: the best rate halves as the rank doubles; NaN for one rank),
        ``fine_slope`` (of the parabolas' vertices; NaN where one lies at an edge), ``edges`` (ranks whose best is one).
    """
    best, rows = best_rate_table(selection(table, "scalings"), ["scaling", "r"]), []
    for scaling, group in best.groupby("scaling", sort=False):
        rows.append({"scaling": scaling, "ranks": len(group), "edges": int((group["edge"] != "").sum()),
                     "slope": _log_slope(group["r"], group["learning_rate"]),
                     "fine_slope": _log_slope(group["r"], group["fine_rate"])})
    return pd.DataFrame(rows, columns=["scaling", "ranks", "slope", "fine_slope", "edges"])


def _log_slope(x: pd.Series, y: pd.Series) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 and y.notna().all() else float("nan")


def batch_penalty(table: pd.DataFrame) -> pd.DataFrame:
    """Loss at another batch size minus that at the usual one, each at its own best rate among those tried.

    The tokens are the same, so a larger batch takes fewer steps. The usual size is that of ``rates``.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``batch_size``, ``usual_size``, ``learning_rate``, ``edge``, ``loss``, ``usual_loss``, ``penalty``
        (nats per token; positive: the other size is worse).
    """
    best = best_rate_table(selection(table, "batches"), ["method", "batch_size"])
    sizes = table.loc[table["experiment"] == "rates", "batch_size"]
    usual = best[best["batch_size"].isin(sizes)]
    usual = usual.rename(columns={"batch_size": "usual_size", "loss": "usual_loss"})
    both = best[~best["batch_size"].isin(sizes)].merge(usual[["method", "usual_size", "usual_loss"]], on="method")
    return both.assign(penalty=both["loss"] - both["usual_loss"])[
        ["method", "batch_size", "usual_size", "learning_rate", "edge", "loss", "usual_loss", "penalty"]]


def gentler_rate(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """What one rate below the best keeps of the learning, and of the forgetting; NaN where none lower was tried.

    Returns
    -------
    pandas.DataFrame
        `by`, ``best_rate``, ``lower_rate``, ``learning``, ``forgetting`` (both at the best), ``learning_kept``,
        ``forgetting_kept`` (those of the lower rate as shares of them).
    """
    rows = []
    for keys, part in rate_means(table, by).groupby(list(by), sort=False):
        group = part.reset_index(drop=True)
        place = int(group[LOSS].idxmin())
        best, lower = group.loc[place], group.loc[place - 1] if place else None
        kept = {name: lower[name] / best[name] if place else np.nan for name in ("learning", "forgetting")}
        rows.append(dict(zip(by, keys, strict=True)) | {
            "best_rate": best["learning_rate"], "lower_rate": lower["learning_rate"] if place else np.nan,
            "learning": best["learning"], "forgetting": best["forgetting"],
            "learning_kept": kept["learning"], "forgetting_kept": kept["forgetting"]})
    return pd.DataFrame(rows, columns=[*by, "best_rate", "lower_rate", "learning", "forgetting", "learning_kept",
                                       "forgetting_kept"])


def beaten_by(table: pd.DataFrame, against: str = "full") -> pd.DataFrame:
    """How many rates of full fine-tuning have a lower mean loss than a method's best (Figure S1: four).

    Returns
    -------
    pandas.DataFrame
        ``method``, ``loss`` (at its best rate), ``beaten_by`` (rates of `against`), ``of`` (rates of `against` tried).
    """
    runs = selection(table, "rates")
    other = rate_means(runs[runs["method"] == against], ["method"])[LOSS]
    best = best_rate_table(runs[runs["method"] != against], ["method"])
    return best[["method", "loss"]].assign(beaten_by=[int((other < loss).sum()) for loss in best["loss"]],
                                           of=len(other))


def adapter_numbers(table: pd.DataFrame, shapes: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Trained numbers of each kind of adapter in the table: r (rows + columns) summed over the matrices it targets.

    Parameters
    ----------
    table : pandas.DataFrame
        ``targets`` (all, attention or mlp), ``r``; rows of r = 0 are left out.
    shapes : mapping of str to (rows, columns)
        Of every linear matrix of the base, by short name.

    Returns
    -------
    pandas.DataFrame
        ``targets``, ``r``, ``matrices``, ``numbers``.
    """
    kinds = table.loc[table["r"] > 0, ["targets", "r"]].drop_duplicates().reset_index(drop=True)
    parts = {name: "attention" if split_name(name)[1] in ATTENTION else "mlp" for name in shapes}
    chosen = [[shape for name, shape in shapes.items() if targets in ("all", parts[name])]
              for targets in kinds["targets"]]
    return kinds.assign(matrices=[len(some) for some in chosen],
                        numbers=[r * sum(map(sum, some)) for r, some in zip(kinds["r"], chosen, strict=True)])


def recommendations(table: pd.DataFrame) -> pd.DataFrame:
    """Section 4.7's advice as numbers of the table: ``advice``, ``measured``, ``value``; NaN where runs are lacking.

    Every loss is at its own best rate. References: Biderman et al., arXiv 2405.09673v2, section 4.7.
    """
    rank, targets, alpha = (_losses(table, experiment, column) for experiment, column in (
        ("rates", "r"), ("modules", "targets"), ("alpha", "lora_alpha")))
    lora = rank.drop(0, errors="ignore")
    rows = [("a", "best LoRA's loss minus full's", lora.min() - rank.get(0, np.nan)),
            ("b", "loss of the lowest rank minus that of the highest",
             lora.iloc[0] - lora.iloc[-1] if len(lora) > 1 else np.nan),
            ("b", "attention's loss minus that of all modules", _difference(targets, "attention", "all")),
            ("b", "the MLP's loss minus that of all modules", _difference(targets, "mlp", "all")),
            ("c", "loss of the smallest alpha minus that of the largest",
             alpha.iloc[0] - alpha.iloc[-1] if len(alpha) > 1 else np.nan),
            ("d", "largest ratio of LoRA's best rate to full's", rate_ratio(table)["ratio"].max())]
    return pd.DataFrame(rows, columns=["advice", "measured", "value"])


def _losses(table: pd.DataFrame, experiment: str, column: str) -> pd.Series:
    """Loss at the best rate, by one column, in its order."""
    return best_rate_table(selection(table, experiment), [column]).set_index(column)["loss"].sort_index()


def _difference(losses: pd.Series, one: str, other: str) -> float:
    return losses.get(one, np.nan) - losses.get(other, np.nan)


def in_words(table: pd.DataFrame, *, y: str = LOSS, unit: str = "nats per token") -> str:
    """A selection's means for an alternative text: each series with its values by learning rate."""
    parts = []
    for (panel, series), group in rate_means(table, ["panel", "series"]).groupby(["panel", "series"], sort=False):
        values = ", ".join(f"{row[y]:.2f} at {row['learning_rate']:g}" for _, row in group.iterrows())
        parts.append(f"{panel}{', ' if panel else ''}{series}: {values}")
    return "; ".join(parts) + f" ({unit}, at the learning rate)."
