"""The figures of notebook 11: how different a model's generations are, counted, inside the text, and by length."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.reporting.drawn import Drawn, figure
from utils.reporting.measured import Measured
from utils.reporting.panels import by_value, label_left, outer_legend, panels
from utils.reporting.statistics import summarise
from utils.reporting.style import method_styles

OUTCOMES = {"passed": "passing", "failed": "failing", "all": "passing or not"}
NOT_RUN = "not run"
DRAWS = 2000


def outcome_rows(table: pd.DataFrame | None) -> pd.DataFrame | None:
    """The rows that say something: no counts of passing and failing generations where no code was run.

    Parameters
    ----------
    table : pandas.DataFrame or None
        :func:`utils.studies.diversity.measure.diversity`. Without code its ``passed`` and ``failed`` rows are all zero,
        which would look like a count, and its ``not run`` rows are those of ``all``.

    Returns
    -------
    pandas.DataFrame or None
        With ``panel``, the outcome's title.

    Examples
    --------
    >>> outcome_rows(pd.DataFrame({"outcome": ["passed", "not run", "all"]}))["panel"].tolist()
    ['passing or not']
    """
    if table is None:
        return None
    known = ["all"] if (table["outcome"] == NOT_RUN).any() else list(OUTCOMES)
    kept = table[table["outcome"].isin(known)]
    return kept.assign(panel=kept["outcome"].map(OUTCOMES))


def over_problems(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Means over problems, one row per method, seed, temperature and outcome; problems without a value are left out."""
    keys = ["method", "seed", "temperature", "outcome"]
    return table.groupby(keys, sort=False)[columns].mean().reset_index()


def over_units(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over problems with the 95 % interval of a bootstrap over them, which stays within their range.

    >>> over_units(np.array([2.0, 2.0]))
    (2.0, 2.0, 2.0)
    """
    drawn = np.random.default_rng(seed).choice(values, size=(DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def at_low(diversity: Measured) -> Measured:
    """The rows of the low temperature, that of the paper's pass@1."""
    return diversity.where(f"temperature == {diversity.profile.decoder_evaluation.temperature}")


def _panel_order(own: pd.DataFrame, reference: pd.DataFrame | None) -> list[str]:
    found = list(dict.fromkeys([*own["panel"], *([] if reference is None else reference["panel"])]))
    return sorted(found, key=list(OUTCOMES.values()).index) if set(found) <= set(OUTCOMES.values()) else found


def _seed_band(axis: Axes, place: int, reference: pd.DataFrame, *, y: str, colour) -> None:
    """The reference's seeds: from the smallest to the largest mean over problems, with a line at their mean."""
    means = reference.groupby("seed")[y].mean().dropna()
    if len(means):
        axis.fill_between([place - 0.3, place + 0.3], means.min(), means.max(), color=colour, alpha=0.2, linewidth=0)
        axis.hlines(means.mean(), place - 0.3, place + 0.3, color=colour, linewidth=1, alpha=0.6)


def method_points(own: pd.DataFrame, reference: pd.DataFrame | None, *, y: str, ylabel: str,
                  unit: str = "task_id") -> Figure:
    """A value of each method, one panel per ``panel``: a faint point per unit, their mean with its 95 % interval.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        ``panel``, ``method``, ``seed``, `unit`, `y`. The reference is a band of its seeds' means; a panel that only it
        has says so.
    unit : str
        Over which the interval is taken, such as problems; its rows of several seeds are averaged first.

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Figure 5, is this with unique strings per problem; its plot type is not known.
    """
    titles, methods = _panel_order(own, reference), list(own["method"].unique())
    styles = method_styles(methods)
    drawn, axes = panels(len(titles), height=3.5)
    for axis, title in zip(axes, titles, strict=True):
        part = own[own["panel"] == title]
        for place, method in enumerate(methods):
            if reference is not None:
                band = reference[(reference["panel"] == title) & (reference["method"] == method)]
                _seed_band(axis, place, band, y=y, colour=styles[method]["color"])
            values = part[part["method"] == method].groupby(unit)[y].mean().dropna()
            if len(values):
                _spread(axis, values.to_numpy(), place=place, style=styles[method])
        axis.set(title=title, xlim=(-0.5, len(methods) - 0.5))
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])  # differences beside what they are differences of
        axis.set_xticks(range(len(methods)), methods)
        if part.empty:
            axis.text(0.5, 0.94, "code not run here: reference only", transform=axis.transAxes, ha="center",
                      fontsize="small")
    label_left(axes, ylabel)
    return drawn


def _spread(axis: Axes, values: np.ndarray, *, place: int, style: dict) -> None:
    """The values beside one another, and their mean with its interval."""
    shifts = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0]
    marker = "o" if style["marker"] == "_" else style["marker"]
    axis.plot(place + np.asarray(shifts), np.sort(values), linestyle="none", marker=marker, alpha=0.35, markersize=4,
              color=style["color"])
    mean, low, high = over_units(values)
    axis.errorbar(place, mean, yerr=[[mean - low], [high - mean]] if len(values) > 1 else None, marker=marker,
                  color=style["color"], markersize=9, capsize=4, markeredgecolor="white", linestyle="none")


def _means(table: pd.DataFrame, columns: list[str], by: list[str]) -> pd.DataFrame:
    return table.groupby(by, sort=False)[columns].mean()


@figure("11_unique_strings", measurements=("diversity",), place="Learns less v2, Fig 5")
def unique_strings(diversity: Measured) -> Drawn:
    """Unique strings among each problem's generations, passing and failing apart where code was run."""
    low = at_low(diversity)
    own, reference, best = (outcome_rows(table) for table in (low.own, low.reference, low.best))
    drawn = method_points(own, reference, y="unique", ylabel="unique strings per problem")
    means = _means(best, ["n", "unique", "unique_ratio", "rarefied"], ["panel", "method"])
    alt = ("Points: unique strings among each problem's generations at temperature "
           f"{diversity.profile.decoder_evaluation.temperature:g}, one panel per outcome, one column per method. "
           f"Means, {diversity.source}: " + "; ".join(f"{panel}, {method}: {row['unique']:.1f} of {row['n']:.1f}"
                                               for (panel, method), row in means.iterrows()) + ".")
    shown = means.reset_index().rename(columns={"panel": "generations", "n": "how many",
                                                "unique_ratio": "unique share"})
    if len(shown) > 8:
        shown = shown[shown["generations"] != OUTCOMES["all"]]
    return Drawn(drawn, alt, "Unique strings among each problem's generations: a faint point is a problem, bars are a "
                 "bootstrap over problems, bands the reference's seeds.", own, shown.head(8))


@figure("11_unique_against_count", measurements=("diversity",), place="ours")
def unique_against_count(diversity: Measured) -> Drawn:
    """Unique strings of each problem against how many generations there were; the diagonal is the most."""
    low = at_low(diversity)
    own, reference = (_apart(outcome_rows(table)) for table in (low.own, low.reference))
    titles, styles = _panel_order(own, reference), method_styles(own["method"].unique())
    drawn, axes = panels(len(titles))
    for axis, title in zip(axes, titles, strict=True):
        most = 1
        for place, (method, style) in enumerate(styles.items()):
            shift = 0.15 * (place - (len(styles) - 1) / 2)  # whole numbers lie on each other
            look = {"marker": "o" if style["marker"] == "_" else style["marker"], "color": style["color"],
                    "linestyle": "none"}
            for table, alpha, label in ((reference, 0.25, "_reference"), (own, 0.7, method)):
                if table is not None:
                    part = table[(table["panel"] == title) & (table["method"] == method)]
                    axis.plot(part["n"] + shift, part["unique"], alpha=alpha, markersize=5, label=label, **look)
                    most = max(most, part["n"].max() if len(part) else 1)
        axis.plot((0, most), (0, most), color="grey", linewidth=1, label="all different")
        axis.set(title=title, xlabel="generations", xlim=(-0.5, most + 0.5), ylim=(-0.5, most + 0.5))
    label_left(axes, "unique strings")
    outer_legend(drawn, axes)
    known = own[own["n"] > 0]
    share = (known["unique"] == known["n"]).mean()
    alt = ("Scatter of unique strings against the number of generations, one point per problem and method, with the "
           f"line on which all differ: {share:.0%} of the points with any generation lie on it.")
    return Drawn(drawn, alt, "Unique strings against how many generations there were; what lies on the line could not "
                 "be higher.", own)


def _apart(rows: pd.DataFrame | None) -> pd.DataFrame | None:
    """Passing and failing where code was run; "all" has the same count for every problem."""
    return rows if rows is None or rows["outcome"].eq("all").all() else rows[rows["outcome"] != "all"]


def _measure_panels(whole: Measured, labels: dict[str, str], *, ylabel: str) -> tuple[Figure, pd.DataFrame]:
    """One panel of points per measure (column -> label), and the measures' means by method."""
    drawn = method_points(by_value(whole.own, labels), by_value(whole.reference, labels), y="value", ylabel=ylabel)
    return drawn, _means(whole.best, list(labels), ["method"])


@figure("11_normalised_diversity", measurements=("diversity",), place="ours")
def normalised(diversity: Measured) -> Drawn:
    """Share of unique strings, and the number expected among a common number of generations."""
    whole = at_low(diversity).where("outcome == 'all'")
    labels = {"unique_ratio": "unique / generations", "rarefied": f"different among {whole.own['m'].iloc[0]} drawn"}
    drawn, means = _measure_panels(whole, labels, ylabel="passing or not")
    alt = ("Points: share of unique strings, and number expected among a common number of generations, per problem and "
           f"method. Means, {diversity.source}: " + "; ".join(
               f"{method}: share {row['unique_ratio']:.2f}, rarefied {row['rarefied']:.2f}"
               for method, row in means.iterrows()) + " (nan: too few generations).")
    return Drawn(drawn, alt, "Unique strings as a share and at equal numbers; the table is the difference from the "
                 "base, problem by problem.", whole.own, _minus_base(diversity.best).head(8))


def _minus_base(table: pd.DataFrame) -> pd.DataFrame:
    """Unique strings minus the base's, paired by problem (means over seeds), with a t-interval over problems."""
    wide = table[table["outcome"] == "all"].pivot_table(index=["temperature", "task_id"], columns="method",
                                                        values="unique", sort=False)
    pairs = wide.drop(columns="base").sub(wide["base"], axis=0).stack().rename("minus base").reset_index()
    found = summarise(pairs, "minus base", ["temperature", "method"])
    return found.rename(columns={"seeds": "problems"})[["temperature", "method", "minus base", "low", "high",
                                                        "problems"]]


@figure("11_token_diversity", measurements=("diversity",), place="ours")
def token_diversity(diversity: Measured) -> Drawn:
    """distinct-1, distinct-2, self-BLEU and length of each problem's generations."""
    whole = at_low(diversity).where("outcome == 'all'")
    labels = {"distinct_1": "distinct-1", "distinct_2": "distinct-2", "self_bleu": "self-BLEU (lower: more diverse)",
              "mean_tokens": "tokens per generation"}
    drawn, means = _measure_panels(whole, labels, ylabel="per problem")
    alt = ("Points per problem and method, four panels: distinct-1, distinct-2, self-BLEU and tokens per generation. "
           f"Means, {diversity.source}: " + "; ".join(
               f"{method}: {row['distinct_1']:.3f}, {row['distinct_2']:.3f}, {row['self_bleu']:.3f}, "
               f"{row['mean_tokens']:.1f}" for method, row in means.iterrows()) + ".")
    shown = means.reset_index().rename(columns={name: name.replace("_", " ") for name in labels})
    return Drawn(drawn, alt, "How alike the texts of one problem are inside, and how long; the shown values are means "
                 "over problems and seeds.", whole.own, shown.head(8))


@figure("11_unique_against_length", measurements=("diversity",), place="ours")
def unique_against_length(diversity: Measured) -> Drawn:
    """Unique strings of each problem against the mean length of its generations."""
    whole = at_low(diversity).where("outcome == 'all'")
    drawn, (axis,) = panels(1, width=7)
    for method, style in method_styles(whole.own["method"].unique()).items():
        look = {"color": style["color"], "marker": "o" if style["marker"] == "_" else style["marker"],
                "linestyle": "none"}
        for table, alpha, label in ((whole.reference, 0.3, "_reference"), (whole.own, 1, method)):
            if table is not None:
                part = table[table["method"] == method]
                axis.plot(part["mean_tokens"], part["unique"], alpha=alpha, label=label, **look)
    axis.set(xlabel="tokens per generation", ylabel="unique strings", ylim=(0, None))
    outer_legend(drawn, [axis])
    rho = whole.best[["mean_tokens", "unique"]].corr().iloc[0, 1]
    alt = ("Scatter of unique strings per problem against mean tokens per generation at temperature "
           f"{diversity.profile.decoder_evaluation.temperature:g}, one symbol per method; correlation over all "
           f"{len(whole.best)} points, {diversity.source}: {rho:.2f}.")
    return Drawn(drawn, alt, "Unique strings against the length of a generation: on one cloud, length explains the "
                 "difference between methods.", whole.own)


def at_places(axis: Axes, table: pd.DataFrame, *, x: str, y: str, places: Callable, styles: dict[str, dict],
              faint: bool = False) -> None:
    """Points at categories on the x axis, methods beside one another: nothing is measured between them."""
    for index, (method, style) in enumerate(styles.items()):
        part = table[table["method"] == method]
        shift = 0.15 * (index - (len(styles) - 1) / 2)
        axis.plot(part[x].map(places) + shift, part[y], linestyle="none", color=style["color"],
                  marker="o" if style["marker"] == "_" else style["marker"], alpha=0.3 if faint else 1,
                  markersize=5 if faint else 8, label="_reference" if faint else method)


@figure("11_temperature", measurements=("diversity",), place="ours")
def temperatures(diversity: Measured) -> Drawn:
    """Unique strings, distinct-2 and self-BLEU at both temperatures, methods beside one another."""
    labels = {"unique": "unique strings", "distinct_2": "distinct-2", "self_bleu": "self-BLEU (lower: more diverse)"}
    whole = diversity.where("outcome == 'all'")
    own, reference, best = (None if table is None else over_problems(table, list(labels))
                            for table in (whole.own, whole.reference, whole.best))
    known, styles = sorted(own["temperature"].unique()), method_styles(own["method"].unique())
    drawn, axes = panels(len(labels), height=3.5)
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for table, faint in ((reference, True), (own, False)):
            if table is not None:
                at_places(axis, table, x="temperature", y=column, places=known.index, styles=styles, faint=faint)
        axis.set(title=label, xlabel="temperature", xlim=(-0.5, len(known) - 0.5))
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
        axis.set_xticks(range(len(known)), [f"{value:g}" for value in known])
    label_left(axes, "mean over problems")
    outer_legend(drawn, axes)
    means = best.groupby(["method", "temperature"], sort=False)[list(labels)].mean().reset_index()
    alt = ("Points at two temperatures, three panels (unique strings, distinct-2 and self-BLEU), one symbol per "
           f"method. Unique strings, {diversity.source}: " + "; ".join(
               f"{row.method} at {row.temperature:g}: {row.unique:.1f}" for row in means.itertuples()) + ".")
    shown = means.rename(columns={"unique": "unique strings", "distinct_2": "distinct-2", "self_bleu": "self-BLEU"})
    return Drawn(drawn, alt, "Diversity at two temperatures; faint points are the reference's seeds.", own,
                 shown.head(8))
