"""Figures of notebook 16: agreement with preferences over steps, rewards, what was paid for them, intruders.

Own runs have outlined markers, the reference's seeds are faint points; bars are 95 % intervals of a share of held-out
pairs (1.96 binomial standard errors), not of seeds.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panels
from utils.reporting.style import MARKERS, method_styles
from utils.studies.preferences.measure import beside, best_rates

NAMES = {"sft": "SFT", "dpo": "DPO", "swapped": "DPO, pairs swapped", "orpo": "ORPO", "online_dpo": "online DPO"}
TRAINED_ON_PAIRS = ("dpo", "swapped", "online_dpo")
WIDTH = 1.96  # standard errors to either side
OWN = {"markersize": 8, "markeredgecolor": "black", "zorder": 4}
SEEDS = {"linestyle": "none", "markersize": 5, "alpha": 0.4, "zorder": 2}


def series_of(table: pd.DataFrame) -> pd.Series:
    """What a run is called in a legend, such as ``DPO, full``."""
    return table["experiment"].map(NAMES).fillna(table["experiment"]) + ", " + table["method"]


def series_styles(*tables: pd.DataFrame | None) -> dict[str, dict]:
    """Colour by method as in the whole course, marker by what was trained."""
    present = [table for table in tables if table is not None]
    pairs = pd.concat([table[["experiment", "method"]].assign(name=series_of(table)) for table in present])
    looks = method_styles(pairs["method"].unique())
    places = {name: place for place, name in enumerate(NAMES)}
    return {row.name: looks[row.method] | {"marker": MARKERS[places.get(row.experiment, len(places)) % len(MARKERS)]}
            for row in pairs.drop_duplicates("name")[["experiment", "method", "name"]].itertuples(index=False)}


def _handles(styles: dict[str, dict], *, reference: bool) -> list[Line2D]:
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    more = Line2D([], [], color="grey", marker="o", alpha=0.5, linestyle="none", label="reference: seeds")
    return [*handles, more] if reference else handles


def _legend(figure_: Figure, handles: list[Line2D]) -> None:
    figure_.legend(handles=handles, loc="outside lower center", ncols=3)


def _over_steps(own: pd.DataFrame, columns: Mapping[str, str], levels: Mapping[str, float]) -> Figure:
    """Columns (column -> axis label) against the optimiser step, one line per series of one rate each."""
    figure_, axes = panels(len(columns))
    styles = series_styles(own)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for name, style in styles.items():
            means = own[series_of(own) == name].groupby("step")[
                [one for one in (column, f"{column}_se") if one in own]].mean()
            axis.plot(means.index, means[column], **(style | OWN))
            if f"{column}_se" in means:
                axis.errorbar(means.index, means[column], yerr=WIDTH * means[f"{column}_se"], fmt="none",
                              ecolor=style["color"], elinewidth=1, alpha=0.6)
        if column in levels:
            axis.axhline(levels[column], color="grey", linestyle="--", linewidth=1)
        axis.set(xlabel="optimiser step", ylabel=label)
    _legend(figure_, _handles(styles, reference=False))
    return figure_


def _at_best(outcomes: Measured, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves of the runs trained on pairs at their best rates, and their last rows."""
    best = best_rates(outcomes.own)
    chosen = curves[curves["run"].isin(best["run"]) & curves["experiment"].isin(TRAINED_ON_PAIRS)]
    return chosen, best[best["experiment"].isin(TRAINED_ON_PAIRS)]


@figure("16_agreement", measurements=("preference_outcomes",))
def agreement(outcomes: Measured, curves: pd.DataFrame) -> Drawn:
    """Agreement with held-out pairs and margin of implicit rewards against the step, each method at its best rate."""
    chosen, last = _at_best(outcomes, curves)
    drawn = _over_steps(chosen, {"accuracy": "agreement with held-out pairs", "margin": "margin of implicit rewards"},
                        {"accuracy": 0.5, "margin": 0})
    alt = "Agreement and margin against the step. At the end: " + "; ".join(
        f"{row.experiment}, {row.method}: {row.accuracy:.3f} ({row.margin:.2f})" for row in last.itertuples()) + "."
    shown = shown_table(last.assign(series=series_of(last)), {
        "series": "trained", "learning_rate": "learning rate", "accuracy": "agreement", "margin": "margin"})
    return Drawn(drawn, alt, "Agreement with held-out pairs and the margin of implicit rewards through training, in "
                             "your runs.",
                 chosen, shown)


@figure("16_log_probabilities", measurements=("preference_outcomes",))
def log_probabilities(outcomes: Measured, curves: pd.DataFrame) -> Drawn:
    """Log-probability of chosen and rejected answers against the step."""
    chosen, last = _at_best(outcomes, curves)
    start = curves[curves["experiment"] == "sft"].sort_values("step").groupby("seed").tail(1)["chosen_logp"].mean()
    drawn = _over_steps(chosen, {"chosen_logp": "log-probability of chosen, nats",
                                 "rejected_logp": "log-probability of rejected, nats"}, {"chosen_logp": start})
    alt = (f"Log-probability of chosen and rejected answers against the step; chosen after SFT: {start:.2f}. At the "
           "end, chosen and rejected: " + "; ".join(f"{row.experiment}, {row.method}: {row.chosen_logp:.2f} and "
                                               f"{row.rejected_logp:.2f}" for row in last.itertuples()) + ".")
    return Drawn(drawn, alt, "What the pairs did to the likelihood of either answer; dashed, the chosen answers after "
                             "SFT.",
                 chosen)


def _dots(outcomes: Measured, columns: Mapping[str, str]) -> tuple[Figure, pd.DataFrame]:
    """One dot for each series at its best rate, in panels by column, with the interval where there is one."""
    own = best_rates(outcomes.own)
    reference = beside(outcomes.reference, own)
    figure_, axes = panels(len(columns), height=3.4)
    styles = series_styles(own, reference)
    place = {name: index for index, name in enumerate(styles)}
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for name, style in styles.items():
            look = {"color": style["color"], "marker": style["marker"]}
            if reference is not None:
                values = reference.loc[series_of(reference) == name, column]
                axis.plot([place[name]] * len(values), values, **look, **SEEDS)
            part = own[series_of(own) == name]
            if len(part):
                error = WIDTH * part[f"{column}_se"].mean() if f"{column}_se" in part else None
                axis.errorbar([place[name]], [part[column].mean()], yerr=error, linestyle="none", **look, **OWN)
        axis.set(ylabel=label, xlim=(-0.5, len(place) - 0.5), xticks=[])
    _legend(figure_, _handles({name: style | {"linestyle": "none"} for name, style in styles.items()},
                              reference=reference is not None))
    return figure_, own


@figure("16_methods", measurements=("preference_outcomes",))
def methods(outcomes: Measured) -> Drawn:
    """Agreement by implicit reward, by log-probability, and exact match, each method at its best rate."""
    drawn, own = _dots(outcomes, {"accuracy": "agreement, implicit reward",
                                  "raw_accuracy": "agreement, log-probability",
                                  "exact_match": "exact match of greedy answers"})
    alt = "Agreement by implicit reward, by log-probability, and exact match: " + "; ".join(
        f"{row.experiment}, {row.method}: {row.accuracy:.3f}, {row.raw_accuracy:.3f}, {row.exact_match:.3f}"
        for row in own.itertuples()) + "."
    shown = shown_table(own.assign(series=series_of(own)), {
        "series": "trained", "learning_rate": "learning rate", "accuracy": "by reward",
        "raw_accuracy": "by log-probability", "exact_match": "exact match"})
    return Drawn(drawn, alt, "Three measures of what was learnt, each method at its rate of least held-out "
                             "loss.", own, shown)


@figure("16_intruders", measurements=("preference_outcomes",))
def intruders(outcomes: Measured) -> Drawn:
    """Forgetting since the base, and intruders against W0 and against the start, each method at its best rate."""
    drawn, own = _dots(outcomes, {"forgetting": "forgetting, nats per token", "n_intruders": "intruders against W0",
                                  "n_intruders_start": "intruders against the start"})
    spectra = outcomes.profile.spectra
    alt = (f"Forgetting since the base, and intruders (epsilon {spectra.epsilon:g}, k {spectra.k}) against W0 and "
           "against the start: "
           "" + "; ".join(f"{row.experiment}, {row.method}: {row.forgetting:.2f}, {row.n_intruders:g} and "
                                 f"{row.n_intruders_start:g}" for row in own.itertuples()) + ".")
    shown = shown_table(own.assign(series=series_of(own)), {
        "series": "trained", "learning_rate": "learning rate", "forgetting": "forgetting, nats per token",
        "n_intruders": "intruders against W0", "n_intruders_start": "against the start"})
    return Drawn(drawn, alt, "What was forgotten since the base, and intruders against the base and against the "
                             "start.", own,
                 shown)


@figure("16_cost", measurements=("preference_outcomes", "preference_controls"))
def cost(outcomes: Measured, controls: Measured) -> Drawn:
    """Forgetting since the start against agreement, and against the KL from the start, beside random updates."""
    best = best_rates(outcomes.own)
    own = best[best["experiment"].isin(TRAINED_ON_PAIRS)]
    nearby = beside(outcomes.reference, best)
    reference = None if nearby is None else nearby[nearby["experiment"].isin(TRAINED_ON_PAIRS)]
    random = controls.own[controls.own["run"].isin(best["run"]) & (controls.own["control"] != "trained")]
    figure_, axes = panels(2, sharey=True)
    styles = series_styles(own, reference)
    for axis, (column, label) in zip(axes, (("accuracy", "agreement with held-out pairs"),
                                            ("kl_nats_per_token", "KL from the start, nats per token")), strict=True):
        for name, style in styles.items():
            look = {"color": style["color"], "marker": style["marker"]}
            for table, more in ((reference, SEEDS), (own, OWN | {"linestyle": "none"})):
                if table is not None:
                    part = table[series_of(table) == name]
                    axis.plot(part[column], part["forgetting_since_start"], **look, **more)
        axis.plot(random[column], random["forgetting_since_start"], "x", color="grey", markersize=7)
        axis.axhline(0, color="grey", linewidth=1)
        axis.set(xlabel=label)
    label_left(axes, "forgetting since the start, nats per token")
    _legend(figure_, [*_handles({name: style | {"linestyle": "none"} for name, style in styles.items()},
                                reference=reference is not None),
                      Line2D([], [], color="grey", marker="x", linestyle="none", label="random update, equal norm")])
    alt = ("Forgetting since the start against agreement and against KL. Agreement, KL, forgetting: " + "; ".join(
        f"{row.experiment}, {row.method}: {row.accuracy:.3f}, {row.kl_nats_per_token:.3f}, "
        f"{row.forgetting_since_start:.3f}"
        for row in own.itertuples()) + ". Random updates of equal norm forget " + ", ".join(
            f"{value:.3f}" for value in random["forgetting_since_start"]) + " nats per token.")
    shown = shown_table(random, {"method": "method", "control": "random update", "accuracy": "agreement",
                                 "kl_nats_per_token": "KL, nats per token",
                                 "forgetting_since_start": "forgetting, nats per token"})
    return Drawn(figure_, alt, "What preference tuning forgets since its start; crosses are random updates with its "
                               "norm.", own,
                 shown)


@figure("16_rates", measurements=("preference_outcomes",))
def rates(outcomes: Measured) -> Drawn:
    """DPO at every rate tried: held-out loss, agreement, forgetting since the start, intruders against the start."""
    columns = {"preference_loss": "held-out DPO loss", "accuracy": "agreement",
               "forgetting_since_start": "forgetting since the start", "n_intruders_start": "intruders against the "
                                                                                            "start"}
    sweep = outcomes.best[outcomes.best["experiment"] == "dpo"]
    figure_, axes = panels(len(columns), height=3.2)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        draw_lines(axis, sweep, None, x="learning_rate", y=column, styles=method_styles(sweep["method"].unique()))
        axis.set(xscale="log", xlabel="learning rate", ylabel=label)
    outer_legend(figure_, axes)
    means = sweep.groupby(["method", "learning_rate"])[list(columns)].mean().reset_index()
    start = "DPO at every rate tried; loss, agreement, forgetting since the start, intruders, mean over seeds: "
    alt = start + "; ".join(
        f"{row['method']} at {row['learning_rate']:g}: " + ", ".join(f"{row[name]:.3g}" for name in columns)
        for row in means.to_dict("records")) + "."
    return Drawn(figure_, alt, "Every rate of DPO that was tried: the best is that of least held-out loss.", sweep,
                 means.rename(columns={"preference_loss": "held-out loss", "accuracy": "agreement",
                                       "forgetting_since_start": "forgetting",
                                       "n_intruders_start": "intruders"}).head(8))


@figure("16_judge", measurements=("reward_readings",))
def judge(readings: Measured) -> Drawn:
    """A reward model's agreement under each template, with its interval; chance is the dashed line."""
    own, reference = readings.own, readings.reference
    figure_, (axis,) = panels(1, width=6)
    names = list(dict.fromkeys(own["template"]))
    means = own.groupby("template", sort=False)[["accuracy", "accuracy_se"]].mean().loc[names]
    axis.errorbar(range(len(names)), means["accuracy"], yerr=WIDTH * means["accuracy_se"], fmt="o", color="black",
                  **OWN)
    if reference is not None:
        known = reference[reference["template"].isin(names)]
        axis.plot(known["template"].map(names.index), known["accuracy"], "o", color="grey", **SEEDS)
    axis.axhline(0.5, color="grey", linestyle="--", linewidth=1)
    axis.set(ylabel="agreement with held-out pairs", xlim=(-0.5, len(names) - 0.5))
    axis.set_xticks(range(len(names)), names)
    alt = (f"Agreement of the reward model with {own['n'].iloc[0]} held-out pairs: "
           + "; ".join(f"{name} {value:.3f}" for name, value in means["accuracy"].items()) + ". Chance is 0.5.")
    return Drawn(figure_, alt, "How many held-out pairs the reward model orders rightly, by the template it reads "
                               "them under.",
                 own)
