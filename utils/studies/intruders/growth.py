"""Intruders through training: all of them at each checkpoint, and one of them followed back (paper's Fig 5)."""

from itertools import pairwise

import pandas as pd
from matplotlib.ticker import MaxNLocator

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, Found, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import chance_bands, draw_lines, outer_legend, panels
from utils.reporting.style import method_styles
from utils.reporting.words import over_seeds
from utils.spectra import is_intruder

PANELS = {"n_intruders": "intruder dimensions", "strongest_ratio": "strongest intruder / W0's largest",
          "least_cosine": "least largest cosine, leading k", "accuracy": "test accuracy"}


@figure("04b_through_training", measurements=("intruder_growth",), place="Illusion v3, Fig 5")
def through_training(growth: Measured, *, chance: pd.DataFrame) -> Drawn:
    """Number of intruders, singular value of the strongest, least cosine and accuracy at each checkpoint.

    `chance`: where a random direction's largest cosine lies.
    """
    figure_, axes = panels(4, height=3.2)
    known = growth.own if growth.reference is None else pd.concat([growth.own, growth.reference])
    styles = method_styles(known["method"].unique())
    for axis, (column, label) in zip(axes, PANELS.items(), strict=True):
        draw_lines(axis, growth.own, growth.reference, x="step", y=column, styles=styles)
        axis.set(xlabel="optimiser step", ylabel=label)
    chance_bands(axes[list(PANELS).index("least_cosine")], chance, upright=False)
    outer_legend(figure_, axes)
    lora = growth.own[growth.own["method_kind"] == "lora"].sort_values("step")
    first, last = lora.iloc[0], lora.iloc[-1]
    alt = (f"Four line plots against training steps for full fine-tuning and {first['method']}: intruder dimensions "
           f"(LoRA {first['n_intruders']} at first, {last['n_intruders']} at the end), singular value of the strongest "
           f"intruder, least largest cosine (LoRA {first['least_cosine']:.2f} to {last['least_cosine']:.2f}), and test "
           f"accuracy ({first['accuracy']:.3f} to {last['accuracy']:.3f}).")
    means = growth.best.groupby(["method", "step"], sort=False)[list(PANELS)].mean().reset_index()
    shown = means[means["method"] != "full"].drop(columns="method").rename(columns={
        "n_intruders": "intruders", "strongest_ratio": "strongest / largest", "least_cosine": "least cosine"})
    return Drawn(figure_, alt, "Intruder dimensions, their strength and the accuracy through training; the table has "
                               "LoRA's means over the seeds. Grey: the largest cosine of a random direction.",
                 growth.own, shown.head(8))


@finding("04b_through_training")
def through_training_found(growth: Measured, *, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`through_training`, and whether it is what was expected."""
    ordered = growth.best.sort_values("step")
    lora, full = (ordered[ordered["method_kind"] == kind] for kind in ("lora", "full"))
    first, last = (lora.groupby("seed")[["n_intruders", "accuracy", "least_cosine"]].nth(place) for place in (0, -1))
    rise = (lora.groupby("seed")["accuracy"].last() - lora.groupby("seed")["accuracy"].nth(0).to_numpy())
    more = (last["n_intruders"].to_numpy() >= first["n_intruders"].to_numpy()).all()
    flat = abs(rise.mean()) <= 0.01
    accuracy = (f"Accuracy changes by {over_seeds(rise, '{:.3f}')} meanwhile, so it had "
                f"{'' if flat else 'not '}flattened.")
    return Found(f"LoRA goes from {over_seeds(first['n_intruders'])} intruders at the first checkpoint to "
                 f"{over_seeds(last['n_intruders'])} at the last, and its least cosine from "
                 f"{over_seeds(first['least_cosine'], '{:.2f}')} to {over_seeds(last['least_cosine'], '{:.2f}')}, "
                 f"{growth.source}. Full fine-tuning has at most {full['n_intruders'].max():.0f}. {accuracy}",
                 bool(more and full["n_intruders"].max() == 0 and flat))


@figure("04b_one_intruder", place="Illusion v3, Fig 5")
def one_intruder(profile: Profile, trace: pd.DataFrame, *, largest: float, chance: pd.DataFrame,
                 choice: str) -> Drawn:
    """One intruder followed back: its index, its singular value, its cosines, the accuracy.

    Parameters
    ----------
    trace : pandas.DataFrame
        Of :func:`utils.studies.intruders.measure.intruder_trace`; step 0 is the base.
    largest : float
        W0's largest singular value.
    chance : pandas.DataFrame
        Where a random direction's largest cosine lies in this matrix, of :func:`utils.spectra.random_ranges`.
    choice : str
        How the matrix was chosen, in words.
    """
    epsilon = profile.spectra.epsilon
    figure_, axes = panels(4, height=3.2)
    colour = method_styles(trace["method"].unique())[trace["method"].iloc[0]]["color"]
    trained = trace[trace["step"] > 0]
    for axis, (column, label) in zip(axes, {"index": "index (1 on top)",
                                            "singular_value": "singular value", "max_cosine": "|cosine|",
                                            "accuracy": "test accuracy"}.items(), strict=True):
        axis.plot(trained["step"], trained[column], "s-", color=colour, markersize=5, label="the vector nearest to it"
                  if column != "max_cosine" else "largest with W0's vectors")
        base = trace[trace["step"] == 0]  # another vector as a rule, so no line leads to it
        axis.plot(base["step"], base[column], "s", color=colour, markersize=6, markerfacecolor="none",
                  label="in the base")
        axis.set(xlabel="optimiser step", ylabel=label)
    axes[0].invert_yaxis()
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].axhline(largest, color="grey", linestyle=":", label="W0's largest")
    axes[2].plot(trained["step"], trained["overlap"], "o--", color="C1", markersize=4, label="with its final self")
    axes[2].axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon}")
    chance_bands(axes[2], chance, upright=False)
    outer_legend(figure_, axes)
    start, end = trace.iloc[0], trace.iloc[-1]
    alt = (f"Four line plots against training steps for one vector of {end['matrix']}: its index at each checkpoint is "
           f"{', '.join(map(str, trace['index']))}; its singular value goes from {start['singular_value']:.2f} to "
           f"{end['singular_value']:.2f} (W0's largest: {largest:.2f}), its largest cosine with a pretrained vector "
           f"from {start['max_cosine']:.2f} to {end['max_cosine']:.2f}, while accuracy ends at {end['accuracy']:.3f}.")
    return Drawn(figure_, alt, "LoRA's least pretrained-like leading vector of one matrix, followed back to the base "
                               f"(hollow: there another vector). The matrix is {choice}.", trace)


@finding("04b_one_intruder")
def one_intruder_found(profile: Profile, trace: pd.DataFrame, *, largest: float, chance: pd.DataFrame,
                       choice: str) -> Found:
    """What the tables say to :func:`one_intruder`, and whether it is what was expected."""
    trained = trace[trace["step"] > 0]
    places, strengths = trained["index"].tolist(), trained["singular_value"]
    climbs = all(later <= earlier for earlier, later in pairwise(places)) and places[-1] < places[0]
    ratio = strengths.iloc[-1] / largest
    top = ": on top from the first checkpoint on, so that no climb is seen," if set(places) == {1} else ""
    epsilon, end = profile.spectra.epsilon, trained["max_cosine"].iloc[-1]
    counted = "an intruder" if is_intruder(end, epsilon) else "no intruder"
    return Found(f"In your run this vector ends as {counted} at epsilon {epsilon} (largest cosine {end:.2f}); its "
                 f"index goes {', '.join(map(str, places))}{top} and its singular value {strengths.iloc[0]:.2f} to "
                 f"{strengths.iloc[-1]:.2f}, which is {ratio:.2f} times W0's largest. At the first checkpoint its "
                 f"cosine with its final self is {trained['overlap'].iloc[0]:.2f}: where that "
                 "is small, \"nearest\" means little.",
                 bool(climbs and strengths.iloc[-1] > strengths.iloc[0] and is_intruder(end, epsilon)))
