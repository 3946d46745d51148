"""The figures of notebook 10: forgetting, the trade-off with learning, and what else than the method moves it."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, figure
from utils.reporting.measured import Measured
from utils.reporting.panels import PANEL, label_left, outer_legend, panels
from utils.reporting.selection import runs_that_learnt
from utils.reporting.statistics import rank_correlation, summarise
from utils.reporting.style import MARKERS, method_styles
from utils.reporting.words import listed
from utils.studies.learning.drawing import front, methods_of, of, over_durations, plane, plane_legend, published_above
from utils.studies.learning.published import matched_learning, published_base, with_method
from utils.studies.learning.tables import as_curves, at_longest, equal_learning

BESIDE = 0.2  # of the distance between two methods: how far apart what belongs to one method stands
FORGETTING = "rise of loss, nats per token"
PLANE = {"x": "forgetting", "y": "learning"}
RAZOR = {"kl_nats_per_token": "KL from the base on the new task, nats", "learning": "learning, nats per token"}


def tables(measured: Measured) -> list[pd.DataFrame]:
    """Own, reference and best of a measurement as curves."""
    return [as_curves(table) for table in (measured.own, measured.reference, measured.best)]


def _interval(row) -> str:
    return f"{row.low:.3f} to {row.high:.3f}" if pd.notna(row.low) else "one seed"


def over_seeds_table(table: pd.DataFrame, value: str, *, by: list[str], name: str) -> pd.DataFrame:
    """Mean of a column and its 95 % interval in words, group by group."""
    found = summarise(table, value, by)
    return found[by].assign(**{name: found[value], "95 % interval": [_interval(row) for row in found.itertuples()],
                               "seeds": found["seeds"]})


@figure("10_forgetting_curves", measurements=("learning_curves",), place="Learns less v2, Fig 2 A and C")
def forgetting_against_tokens(curves: Measured) -> Drawn:
    """Rise of the loss on held-out pretraining text below the published benchmarks; up is forgetting less in both."""
    own, reference, best = tables(curves)
    published = curves.published.query("quantity == 'forgetting' and regime == 'continued pretraining'")
    drawn = published_above(own, reference, published=published, base=published_base(), y="forgetting", titles={},
                            sharey=True, xlabel="thousand tokens of the new domain", ylabel=f"{FORGETTING}\n(reversed)")
    final = at_longest(runs_that_learnt(best))
    means = final.groupby(["dataset", "method"], sort=False)["forgetting"].mean()
    alt = ("Above, the published mean of three benchmarks against billion tokens; below, our forgetting (rise of the "
           "loss on held-out text of the pretraining) against thousand tokens, one panel per domain, on one reversed "
           f"axis. Base loss {own['base_general_loss'].mean():.2f}. After the longest, {curves.source}: " + "; ".join(
               f"{name}: {listed(part.droplevel(0), '{:.2f}')}" for name, part in means.groupby(level=0, sort=False))
           + " nats per token.")
    shown = over_seeds_table(final, "forgetting", by=["dataset", "method"], name="forgetting, nats")
    return Drawn(drawn, alt, "Forgetting against how long was trained, published above and ours below: up is "
                 "forgetting less.", own, shown.head(8))


@figure("10_cloze_choice", measurements=("learning_curves",), place="ours")
def multiple_choice(curves: Measured) -> Drawn:
    """Accuracy of multiple choice at the last step with its standard error, the untouched base as line and band."""
    chosen, seen, best = (None if table is None else at_longest(table).dropna(subset=["choice"])
                          for table in tables(curves))
    names, styles = list(chosen["dataset"].unique()), method_styles(methods_of(chosen))
    drawn, axes = panels(len(names), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        _accuracies(axis, of(chosen, "dataset", name), of(seen, "dataset", name), styles=styles)
        axis.set_title(name)
    label_left(axes, "multiple choice, accuracy")
    tasks = ", ".join(curves.profile.decoder_evaluation.choice_tasks)
    alt = (f"Points with error bars: accuracy of multiple choice ({tasks}) at the last step, one panel per domain. "
           f"Base {chosen['base_choice'].mean():.3f}, error {chosen['base_choice_se'].mean():.3f}. " + "; ".join(
               f"{name}: " + ", ".join(f"{row.method} {row.choice:.3f} (error {row.choice_se:.3f})"
                                       for row in part.itertuples())
               for name, part in chosen.groupby("dataset", sort=False)) + ".")
    return Drawn(drawn, alt, f"Multiple choice ({tasks}) after training; the difference from full fine-tuning in the "
                 "standard errors of one pair of models.", chosen, _differences(best).head(8))


def _accuracies(axis: Axes, part: pd.DataFrame, reference: pd.DataFrame | None, *, styles: dict[str, dict]) -> None:
    base, spread = part["base_choice"].mean(), part["base_choice_se"].mean()
    axis.axhline(base, color="black", linestyle="--", linewidth=1, label="base model")
    axis.axhspan(base - spread, base + spread, color="grey", alpha=0.15, linewidth=0)
    for place, (method, style) in enumerate(styles.items()):
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        if reference is not None:
            seeds = reference[reference["method"] == method]
            axis.plot([place + BESIDE] * len(seeds), seeds["choice"], alpha=0.35, markersize=5, label="_reference",
                      **look)
        here = part[part["method"] == method]
        axis.errorbar([place] * len(here), here["choice"], yerr=here["choice_se"], capsize=3, label=method, **look)
    axis.set_xticks(range(len(styles)), styles, fontsize="small")


def _differences(last: pd.DataFrame) -> pd.DataFrame:
    """Each method's accuracy minus full fine-tuning's of the same seed, and the largest of them in standard errors.

    The error is taken as if the two models had answered different items, an upper bound: they answered the same ones.
    """
    keys = ["dataset", "seed"]
    full = last.loc[last["method"] == "full", [*keys, "choice", "choice_se"]]
    pairs = last[last["method"] != "full"].merge(full, on=keys, suffixes=("", "_full"))
    difference = pairs["choice"] - pairs["choice_full"]
    errors = difference / np.hypot(pairs["choice_se"], pairs["choice_se_full"])
    grouped = pairs.assign(difference=difference, errors=errors).groupby(["dataset", "method"], sort=False)
    return grouped.agg(**{"minus full, mean": ("difference", "mean"), "seeds": ("seed", "nunique"),
                          "largest, in errors": ("errors", lambda values: max(values, key=abs))}).reset_index()


def _trade_off(own: pd.DataFrame, reference: pd.DataFrame | None, *, size: str, larger: str, labels: str | None = None):
    """Learning against forgetting, one panel per data set; right is forgetting less; without the base, far off."""
    names, styles = list(own["dataset"].unique()), method_styles(methods_of(own))
    drawn, axes = panels(len(names), **({"width": 8.5, "height": 5} if len(names) == 1 else {}))
    for axis, name in zip(axes, names, strict=True):
        part = own[own["dataset"] == name].reset_index(drop=True)
        front(axis, part, smaller_is_better=("forgetting",), **PLANE)
        plane(axis, part, of(reference, "dataset", name), styles=styles, size=size, labels=labels, **PLANE)
        axis.set(title=name, xlabel="forgetting: rise of loss, nats (reversed), less →")
        axis.invert_xaxis()
    label_left(axes, "learning: fall of loss, nats")
    plane_legend(drawn, styles, larger=larger)
    return drawn


@figure("10_tradeoff", measurements=("learning_curves",), place="Learns less v2, Fig 3")
def learning_against_forgetting(curves: Measured) -> Drawn:
    """Fall of the loss on the new domain against its rise on the old text, a point per run and duration."""
    own, reference, best = tables(curves)
    drawn = _trade_off(own, reference, size="duration", larger="longer training")
    reach = best.groupby(["dataset", "method", "duration"], sort=False)[["learning", "forgetting"]].mean().reset_index()
    reach = reach.loc[reach.groupby("dataset", sort=False)["learning"].idxmax()]
    alt = ("Learning (fall of held-out loss on the new domain) against forgetting (rise of loss on held-out text of "
           f"the pretraining), one panel per domain, marker area growing with duration. Learnt most, {curves.source}: "
           + "; ".join(f"{row.dataset}: {row.method}, learning {row.learning:.2f}, forgetting {row.forgetting:.2f} nats"
                       for row in reach.itertuples()) + ".")
    ends = at_longest(best).groupby(["dataset", "method"], sort=False)[["learning", "forgetting"]].mean()
    return Drawn(drawn, alt, "Learning against forgetting: up is learning more, right is forgetting less; the shown "
                 "values are those of the longest duration.", own, ends.reset_index().head(8))


@figure("10_rates", measurements=("sensitivity", "learning_curves"), place="ours")
def rates_in_the_plane(sweep: Measured, curves: Measured) -> Drawn:
    """Learning against forgetting of short runs at several learning rates, which stand beside the points.

    Parameters
    ----------
    curves : Measured
        Of the long runs: full fine-tuning's curve at its chosen rate is what each rate is compared with.
    """
    own, reference, best = tables(sweep.where("experiment == 'rates'"))
    drawn = _trade_off(own, reference, size="learning_rate", larger="larger learning rate", labels="learning_rate")
    means = best.groupby(["method", "learning_rate"], sort=False)[["learning", "forgetting"]].mean().reset_index()
    ends = [means.loc[getattr(means.groupby("method", sort=False)["learning_rate"], which)()]
            for which in ("idxmin", "idxmax")]
    alt = ("Learning against forgetting of short runs on code at several learning rates, marker area growing with the "
           f"rate. Smallest and largest rate of each method, {sweep.source}: " + "; ".join(
               f"{row.method} at {row.learning_rate:g}: learning {row.learning:.2f}, forgetting {row.forgetting:.2f}"
               for row in pd.concat(ends).itertuples()) + " nats per token.")
    beside = equal_learning(tables(curves)[2], runs_that_learnt(best))
    shown = over_seeds_table(beside, "spared", by=["method"], name="forgetting spared, nats")
    shown = shown[shown["seeds"] == shown["seeds"].max()].sort_values("forgetting spared, nats", ascending=False)
    return Drawn(drawn, alt, "Learning rates in the plane of learning and forgetting, and what each run forgot less "
                 "than full fine-tuning at its chosen rate, stopped where it had learnt as much.", own, shown.head(8))


@figure("10_regularisers", measurements=("regulariser_curves",), place="Learns less v2, Fig 4")
def regularisers(decayed: Measured) -> Drawn:
    """Loss and forgetting under weight decay and attention dropout, beside plain full fine-tuning and LoRA."""
    best = tables(decayed)[2]
    seeds = best.groupby("method")["seed"].nunique()
    kept = seeds.index[seeds == seeds.max()]  # a smaller dose was tried on one seed
    own, reference, best = (None if table is None else table[table["method"].isin(kept)] for table in tables(decayed))
    drawn, axes = panels(2)
    labels = {"loss_nats_per_token": "held-out loss, nats per token", "forgetting": "forgetting, nats per token"}
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        over_durations(axis, own, reference, y=column, methods=methods_of(own, reference))
        axis.set(xlabel="thousand tokens of code", ylabel=label)
    outer_legend(drawn, axes)
    ends = at_longest(best).groupby("method", sort=False)[["loss_nats_per_token", "forgetting"]].mean()
    alt = ("Two line plots against thousand tokens of code: held-out loss and forgetting, for full fine-tuning plain "
           f"and with weight decay or attention dropout, and for LoRA. After the longest, {decayed.source}: "
           + "; ".join(
               f"{name}: loss {row.loss_nats_per_token:.3f}, forgetting {row.forgetting:.2f}"
               for name, row in ends.iterrows()) + " nats per token.")
    spared = over_seeds_table(matched_learning(with_method(runs_that_learnt(best))), "difference", by=["method"],
                              name="spared at matched learning, nats")
    return Drawn(drawn, alt, "Regularisers beside LoRA, in continued pretraining on code, and what each forgot less "
                 "than plain full fine-tuning that learnt as much.", own,
                 spared.sort_values("spared at matched learning, nats", ascending=False).head(8))


@figure("10_forgetting_against_kl", measurements=("learning_curves",), place="RL's Razor (ours on these runs)")
def forgetting_against_kl(curves: Measured) -> Drawn:
    """Forgetting against the KL from the base on the new task and against learning; lines join a method's durations."""
    own, reference, best = tables(curves)
    names, styles = list(own["dataset"].unique()), method_styles(methods_of(own))
    drawn, axes = panels(2 * len(names), height=3.5)
    for axis, (name, column) in zip(axes, ((name, column) for name in names for column in RAZOR), strict=True):
        for method, style in styles.items():
            here, seeds = (of(of(table, "dataset", name), "method", method) for table in (own, reference))
            _cloud(axis, here, seeds, x=column, label=method, style=style)
        axis.set(xlabel=RAZOR[column], title=name)
    label_left(axes, "forgetting, nats per token")
    outer_legend(drawn, axes)
    measures = (*RAZOR, "train_tokens")
    ranked = pd.DataFrame([{"dataset": name, "forgetting against": column}
                           | rank_correlation(part[column], part["forgetting"])
                           for name, part in best.groupby("dataset", sort=False) for column in measures])
    alt = ("Plots of forgetting against the KL from the base on the new task and against learning, for each domain, "
           f"one symbol per method, its durations joined. Rank correlations, {curves.source}: " + "; ".join(
               f"{row.dataset}, {measures[place % 3]} {row.rho:.3f}" for place, row in enumerate(ranked.itertuples()))
           + ".")
    return Drawn(drawn, alt, "Forgetting against the distance from the base and against learning: one curve for all "
                 "methods would mean that the axis alone decides.", own,
                 ranked[["dataset", "forgetting against", "rho", "low", "high", "n"]].head(8))


def _cloud(axis: Axes, part: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, label: str,
           style: dict) -> None:
    look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
    if reference is not None:
        axis.plot(reference[x], reference["forgetting"], alpha=0.3, markersize=4, label="_reference", **look)
    line = part.groupby("duration")[[x, "forgetting"]].mean()
    axis.plot(line[x], line["forgetting"], markersize=6, label=label, linewidth=0.9, **{
        **look, "linestyle": style["linestyle"]})


@figure("10_random_updates", measurements=("norm_controls",), place="ours")
def random_updates(controls: Measured) -> Drawn:
    """Forgetting after the trained update and after random ones of the same norm in every matrix."""
    own = controls.own
    kinds, methods = list(own["control"].unique()), list(own["method"].unique())
    drawn, (axis,) = panels(1, width=1.6 * PANEL[0])
    for index, (kind, colour) in enumerate(zip(kinds, sns.color_palette("colorblind"), strict=False)):
        shift = BESIDE * (index - (len(kinds) - 1) / 2)
        for table, alpha, size, label in ((controls.reference, 0.35, 5, "_reference"), (own, 1, 8, kind)):
            if table is not None:
                part = table[(table["control"] == kind) & table["method"].isin(methods)]
                axis.plot(part["method"].map(methods.index) + shift, part["forgetting"], alpha=alpha, markersize=size,
                          label=label, color=colour, marker=MARKERS[index], linestyle="none")
    axis.axhline(0, color="black", linestyle="--", linewidth=1, label="base model")
    axis.set(xticks=range(len(methods)), xticklabels=methods, ylabel="forgetting, nats per token")
    outer_legend(drawn, [axis])
    means = controls.best.groupby(["method", "control"], sort=False)["forgetting"].mean()
    alt = ("Points of forgetting after the trained update and after random updates of the same norm, per method, "
           f"{controls.source}: " + "; ".join(f"{method}, {control} {value:.2f}"
                                              for (method, control), value in means.items()) + " nats per token.")
    shown = means.unstack(sort=False).rename_axis(columns=None).reset_index()
    return Drawn(drawn, alt, "Forgetting after the trained update of code, and after random updates of its norm in "
                 "every matrix.", own, shown.head(8))
