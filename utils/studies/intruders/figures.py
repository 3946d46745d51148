"""The count of intruder dimensions against its two thresholds, and its controls (paper's Figs 4, 15 and 22)."""

import pandas as pd
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, Found, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import chance_bands, draw_lines, label_left, outer_legend, panels, task_panels
from utils.reporting.rules import CLAIM_EPSILONS
from utils.reporting.selection import runs_that_learnt
from utils.reporting.style import DASHES, method_styles
from utils.reporting.words import both, listed, over_seeds

COUNT = "intruder dimensions, whole model"


def count_axis(axis: Axes, top: float) -> None:
    """A vertical axis for counts: zero and the first few are seen, hundreds fit; 0 to 1 takes little of it."""
    axis.set_yscale("symlog", linthresh=1, linscale=0.3)
    axis.set_ylim(-0.3, max(2, 1.5 * top))


def by_method(table: pd.DataFrame, value: str = "n_intruders") -> pd.Series:
    """Mean of a column by method over the runs that learnt, methods in order of appearance."""
    return runs_that_learnt(table).groupby("method", sort=False)[value].mean()


@figure("04_count_against_epsilon", measurements=("intruder_counts",), place="Illusion v3, Fig 4d")
def count_against_epsilon(counts: Measured, *, chance: pd.DataFrame, examined: int) -> Drawn:
    """Intruders summed over the model against epsilon, one panel per task.

    Parameters
    ----------
    chance : pandas.DataFrame
        Where a random direction's largest cosine lies, of :func:`utils.studies.intruders.measure.random_directions`.
    examined : int
        How many vectors of the whole model were looked at, for the caption.
    """
    figure_, axes = task_panels(counts.own, counts.reference, x="epsilon", y="n_intruders", chance=chance)
    for axis in axes:
        axis.set(xlabel="epsilon", xlim=(0, 1))
        count_axis(axis, counts.own["n_intruders"].max())
    label_left(axes, COUNT)
    at = counts.own[counts.own["epsilon"] == counts.profile.spectra.epsilon]
    alt = ("Line plots of the number of intruder dimensions in the whole model against epsilon, one panel per task, "
           f"one line per method. At epsilon {counts.profile.spectra.epsilon}: " + "; ".join(
               f"{task}: {listed(part.groupby('method', sort=False)['n_intruders'].mean())}"
               for task, part in at.groupby("task", sort=False)) + f". {random_words(chance)}.")
    return Drawn(figure_, alt, f"Intruder dimensions among the {examined} leading vectors of the model, against "
                               "epsilon; bands are the reference's seeds, hollow runs did not learn. Grey: the largest "
                               "cosine of a random direction.", counts.own, _few(counts))


def random_words(chance: pd.DataFrame) -> str:
    """Where a random direction's largest cosine lies, in words, for each length of the vectors."""
    return "A random direction's largest cosine is " + both(
        f"{row.median:.2f} ({row.low:.2f} to {row.high:.2f}) where matrices have {row.dimension} outputs"
        for row in chance.itertuples())


def _few(counts: Measured) -> pd.DataFrame:
    """Mean counts of the first task at a few epsilons, with accuracy: what the small table shows."""
    first = counts.best[counts.best["task"] == counts.best["task"].iloc[0]]
    table = runs_that_learnt(first[first["epsilon"].isin([0.3, 0.5, 0.7, 0.9])])
    wide = table.pivot_table(index="method", columns="epsilon", values="n_intruders", sort=False)
    wide.columns = [f"ε = {epsilon:g}" for epsilon in wide.columns]
    wide.insert(0, "accuracy", table.groupby("method", sort=False)["accuracy"].mean())
    return wide.reset_index().head(8)


@finding("04_count_against_epsilon")
def count_against_epsilon_found(counts: Measured, *, chance: pd.DataFrame, examined: int) -> Found:
    """What the tables say to :func:`count_against_epsilon`, and whether it is what was expected."""
    main = runs_that_learnt(counts.best[counts.best["experiment"] == "ranks"])
    strict, lenient = (dict(iter(main[main["epsilon"] == epsilon].groupby("method_kind")))
                       for epsilon in CLAIM_EPSILONS)
    full = strict["full"]["n_intruders"]
    least = strict["lora"].groupby("method", sort=False)["n_intruders"].min()
    always, never = (both(least.index[chosen]) for chosen in (least > 0, strict["lora"].groupby(
        "method", sort=False)["n_intruders"].max() == 0))
    text = (f"At epsilon {CLAIM_EPSILONS[0]} full fine-tuning has {over_seeds(full)} intruders, {counts.source}; LoRA "
            f"has some in every seed at {always or 'no rank'}, and none in any seed at {never or 'no rank'}. At "
            f"epsilon {CLAIM_EPSILONS[1]} LoRA's mean counts are {listed(by_method(lenient['lora']), '{:.0f}')}, full "
            f"fine-tuning's {over_seeds(lenient['full']['n_intruders'])}. {_beside_chance(main, chance)}")
    return Found(text, bool(full.eq(0).all() and always))


def _beside_chance(runs: pd.DataFrame, chance: pd.DataFrame) -> str:
    """What the claims' epsilons mean at these widths: squared length on one vector, a random direction's beside it."""
    shares = both(f"{epsilon**2:.0%} at epsilon {epsilon}" for epsilon in CLAIM_EPSILONS)
    said = (f"{random_words(chance)}, so it has about {both(f'{median**2:.1%}' for median in chance['median'])} of its "
            f"squared length on one pretrained vector, where what is counted may have up to {shares}.")
    lora, strict = runs[runs["method_kind"] == "lora"], CLAIM_EPSILONS[0]
    beyond = lora.loc[(lora["epsilon"] >= chance["high"].max()) & (lora["epsilon"] < strict), "epsilon"].min()
    counted = lora.loc[lora["epsilon"] == strict, "n_intruders"].sum()
    if not counted or pd.isna(beyond):
        return said
    alike = lora.loc[lora["epsilon"] == beyond, "n_intruders"].sum()
    return (f"{said} Of all of LoRA's {counted:.0f} at epsilon {strict}, {alike:.0f} would count at {beyond:g}, just "
            "above chance, too.")


@figure("04_random_updates", measurements=("random_controls", "intruder_counts"), place="ours")
def random_updates(controls: Measured, counts: Measured, *, chance: pd.DataFrame) -> Drawn:
    """Counts of the trained runs beside random updates of the same norm, of full rank and of the run's own rank.

    `chance`: where a random direction's largest cosine lies.
    """
    chosen = counts.where("experiment == 'ranks'")
    names = list(controls.own["control"].unique())
    figure_, axes = panels(1 + len(names), sharey=True, height=3.6)
    styles = method_styles(chosen.own["method"].unique())
    parts = {"trained": chosen} | {name: controls.where(f"control == '{name}'") for name in names}
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        present = {method: styles[method] for method in part.own["method"].unique()}
        draw_lines(axis, part.own, part.reference, x="epsilon", y="n_intruders", styles=present)
        chance_bands(axis, chance)
        axis.set(xlabel="epsilon", title=title, xlim=(0, 1))
        count_axis(axis, chosen.own["n_intruders"].max())
    label_left(axes, COUNT)
    outer_legend(figure_, axes)
    shown = _beside(controls, counts).reset_index().rename(columns={"method": "method"})
    largest = {name: shown[name].max() for name in parts}
    alt = ("Counts against epsilon for the trained runs, random updates of equal norm and full rank, and random "
           f"updates of equal norm and the run's rank. Largest mean count at epsilon {CLAIM_EPSILONS[0]}: "
           f"{listed(largest)}.")
    return Drawn(figure_, alt, "Trained runs beside random updates with the same norm in every matrix; grey: the "
                               "largest cosine of a random direction.", controls.own, shown)


def _beside(controls: Measured, counts: Measured, epsilon: float = CLAIM_EPSILONS[0]) -> pd.DataFrame:
    """Mean counts at one epsilon by method: trained, and each random control."""
    trained = counts.best[(counts.best["experiment"] == "ranks") & (counts.best["epsilon"] == epsilon)]
    random = controls.best[controls.best["epsilon"] == epsilon]
    table = random.pivot_table(index="method", columns="control", values="n_intruders", sort=False)
    table.insert(0, "trained", by_method(trained))
    return table


@finding("04_random_updates")
def random_updates_found(controls: Measured, counts: Measured, *, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`random_updates`, and whether it is what was expected."""
    tables = {epsilon: _beside(controls, counts, epsilon) for epsilon in CLAIM_EPSILONS}
    spread = max(table["random, full rank"].max() for table in tables.values())
    lines = []
    for epsilon, table in tables.items():
        low = table.dropna(subset=["random, rank r"])
        above = low.index[low["trained"] > low["random, rank r"]]
        lines.append(f"at epsilon {epsilon} training makes more than a random update of the same rank and norm at "
                     f"{len(above)} of {len(low)} ranks (random: {listed(low['random, rank r'])})")
    exceeds = all((table["trained"] > table["random, rank r"])[table["random, rank r"] > 0].all()
                  for table in tables.values())
    return Found(f"A random update of full rank and equal norm makes at most {spread:.2g} intruders on average, "
                 f"{controls.source}; {'; '.join(lines)}. Low rank and size alone do make "
                 "some.", bool(spread < 1 and exceeds))


@figure("04b_count_against_k", measurements=("intruder_counts_by_k",), place="Illusion v3, Fig 15a")
def count_against_k(counts: Measured) -> Drawn:
    """Intruders against the share of tuned vectors that is examined, one panel per task."""
    figure_, axes = task_panels(counts.own, counts.reference, x="k", y="n_intruders")
    for axis in axes:
        axis.set(xlabel="share of the tuned vectors examined")
        count_axis(axis, counts.own["n_intruders"].max())
    label_left(axes, "intruder dimensions")
    every = counts.own[counts.own["k"] == counts.own["k"].max()]
    alt = (f"Line plots of intruder dimensions at epsilon {counts.profile.spectra.epsilon} against the share of "
           "vectors examined, one panel per task. With all vectors examined: " + "; ".join(
               f"{task}: {listed(part.groupby('method', sort=False)['n_intruders'].mean(), '{:.0f}')}"
               for task, part in every.groupby("task", sort=False)) + ".")
    return Drawn(figure_, alt, "The count as more of each matrix's vectors are examined, from the largest singular "
                               "value down.",
                 counts.own)


@finding("04b_count_against_k")
def count_against_k_found(counts: Measured) -> Found:
    """What the tables say to :func:`count_against_k`, and whether it is what was expected."""
    main = runs_that_learnt(counts.best[counts.best["experiment"] == "ranks"])
    means = main.groupby(["k", "method"], sort=False)["n_intruders"].mean().unstack()
    above = (means.drop(columns="full").ge(means["full"], axis=0)).mean()
    whole = means.loc[means.index.max()].sort_values(ascending=False)
    return Found(f"Share of the depths at which a method lies at or above full fine-tuning: {listed(above, '{:.0%}')}, "
                 f"{counts.source}. With every vector examined the counts are {listed(whole, '{:.0f}')}.",
                 bool(above.ge(0.9).all()))


@figure("04b_seeds", measurements=("intruder_counts",), place="Illusion v3, Fig 22")
def seeds(counts: Measured, *, chance: pd.DataFrame) -> Drawn:
    """Each seed as a line of its own, one panel per method of the main experiment.

    `chance`: where a random direction's largest cosine lies.
    """
    lines = counts.best[counts.best["experiment"] == "ranks"]
    methods = list(lines["method"].unique())
    figure_, axes = panels(len(methods), sharey=True, height=2.7)
    for axis, method in zip(axes, methods, strict=True):
        style = method_styles([method])[method]
        for number, (seed, part) in enumerate(lines[lines["method"] == method].groupby("seed")):
            axis.plot(part["epsilon"], part["n_intruders"], color=style["color"], label=f"seed {seed}",
                      linestyle=DASHES[number % len(DASHES)])
        chance_bands(axis, chance)
        axis.set(title=method, xlabel="epsilon", xlim=(0, 1))
        count_axis(axis, lines["n_intruders"].max())
    label_left(axes, "intruder dimensions")
    outer_legend(figure_, axes[:1])
    spread = _spread(counts)
    alt = ("Line plots of intruder dimensions against epsilon, one panel per method, one line per seed. Smallest and "
           f"largest at epsilon {CLAIM_EPSILONS[0]}: " + "; ".join(f"{method} {row['min']} to {row['max']}"
                                                           for method, row in spread.iterrows()) + ".")
    return Drawn(figure_, alt, "Every seed of the reference as a line of its own; grey: the largest cosine of a random "
                               "direction.", lines, spread.reset_index())


def _spread(counts: Measured, epsilon: float = CLAIM_EPSILONS[0]) -> pd.DataFrame:
    at = counts.best[(counts.best["experiment"] == "ranks") & (counts.best["epsilon"] == epsilon)]
    return at.groupby("method", sort=False)["n_intruders"].agg(["min", "max"])


@finding("04b_seeds")
def seeds_found(counts: Measured, *, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`seeds`, and whether it is what was expected."""
    parts = []
    for epsilon in CLAIM_EPSILONS:
        spread = _spread(counts, epsilon)
        width, apart = (spread["max"] - spread["min"]).max(), spread["max"].max() - spread["max"].min()
        parts.append((epsilon, width, apart))
    text = "; ".join(f"at epsilon {epsilon} seeds of one method differ by up to {width}, methods by up to {apart}"
                     for epsilon, width, apart in parts)
    return Found(f"{text[0].upper()}{text[1:]}, {counts.source}.", all(width < apart for _, width, apart in parts))
