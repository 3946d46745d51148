"""What is left of forgetting where the readout is refitted on the frozen body (notebook 06)."""

import pandas as pd
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, Found, all_met, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import outer_legend, panels
from utils.reporting.selection import runs_that_learnt
from utils.reporting.style import BASE, method_styles
from utils.reporting.words import both, listed, over_seeds, with_range
from utils.studies.forgetting.readout import readout_limit
from utils.studies.forgetting.rules import full_minus_worst_refitted, readout_share_of_full

HIGHEST = 64  # the highest rank of version 3's figure
LOOKS = (("forgetting", "the base's own head", -0.15, None), ("body", "readout refitted", 0.15, "none"))


@figure("06_readout_refitted", measurements=("refitted_readouts",), place="ours")
def readout_refitted(refitted: Measured) -> Drawn:
    """Rise of the pseudo-loss over the base through its own head and through a refitted one, method by method."""
    drawn, (axis,) = panels(1, width=8.5, height=4.4)
    styles = method_styles(dict.fromkeys([*refitted.own["method"], *refitted.best["method"]]))
    for place, (method, style) in enumerate(styles.items()):
        for table, own in ((refitted.reference, False), (refitted.own, True)):
            if table is not None:
                _pair(axis, runs_that_learnt(table[table["method"] == method]), place=place, style=style, own=own)
    axis.axhline(0, color=BASE["color"], linestyle=":", label="base")
    limit, top = _rise_to_limit(refitted), axis.get_ylim()[1]
    if limit is not None and limit < top:
        axis.axhspan(limit, top, color="0.9", zorder=0, label="above word frequencies: broken readout, no forgetting")
        axis.set_ylim(top=top)
    axis.set(xticks=range(len(styles)), xticklabels=list(styles), xlim=(-0.5, len(styles) - 0.5),
             title=f"task: {refitted.own['task'].iloc[0]}", ylabel="pseudo-loss above the base's,\nnats per token")
    outer_legend(drawn, [axis])
    means = runs_that_learnt(refitted.best).groupby("method", sort=False)[["forgetting", "readout", "body"]].mean()
    alt = ("Two points per method: rise of the pseudo-loss over the base's through the base's own head, and through "
           f"one refitted on the frozen body. Means in nats per token, {refitted.source}: own head "
           f"{listed(means['forgetting'], '{:.2f}')}; refitted {listed(means['body'], '{:.2f}')}.")
    shown = means.assign(share=means["readout"] / means["forgetting"]).reset_index().rename(columns={
        "forgetting": "rise, own head", "readout": "of it readout", "body": "left with the body",
        "share": "share of the readout"})
    return Drawn(drawn, alt, "Rise of the pseudo-loss through the base's own head and through one refitted on the "
                             "frozen body by other text. Bars: 95 % over passages, of your runs; faint: the "
                             "reference's seeds.", refitted.own, shown)


def _pair(axis: Axes, runs: pd.DataFrame, *, place: int, style: dict, own: bool) -> None:
    """One method's two points: with intervals over passages of one's own runs, faint for the reference's."""
    for column, label, shift, face in LOOKS:
        ends = (runs[column] - runs[f"{column}_low"], runs[f"{column}_high"] - runs[column])
        axis.errorbar([place + shift] * len(runs), runs[column], linestyle="none", marker="o" if face is None else "D",
                      color=style["color"], markerfacecolor=face or style["color"], alpha=1 if own else 0.35,
                      yerr=ends if own else None, capsize=3, markersize=8 if own else 5,
                      label=label if own and place == 0 else "_another")


def _rise_to_limit(refitted: Measured) -> float | None:
    """Word frequencies' loss above the base's, in nats per token; None where there is none, or the base lies above."""
    limit, base = readout_limit(refitted.profile), refitted.own["base_pseudo_loss"].iloc[0]
    return None if limit is None or limit <= base else limit - base


@finding("06_readout_refitted")
def readout_refitted_found(refitted: Measured) -> Found:
    """How much of the rise the readout was, method by method, and whether full fine-tuning still forgets most."""
    learnt = runs_that_learnt(refitted.best)
    parts = learnt.groupby("method", sort=False)
    shares = readout_share_of_full(refitted.best).values.dropna()
    gaps = full_minus_worst_refitted(refitted.best, max_rank=HIGHEST).values.dropna()
    full = learnt[learnt["method_kind"] == "full"]
    told = "No run of full fine-tuning learnt its task" if full.empty else (
        f"Refitting the readout takes back {over_seeds(full['readout'], '{:.2f}')} of the "
        f"{over_seeds(full['forgetting'], '{:.2f}')} nats per token that full fine-tuning adds")
    left = both(f"{method} {with_range(part['body'], '{:.2f}')}" for method, part in parts)
    order = "; whether it still lies above every rank cannot be said" if gaps.empty else (
        f"; full fine-tuning still lies above every rank up to {HIGHEST} in {(gaps > 0).sum()} of {len(gaps)} seeds")
    limit = readout_limit(refitted.best_profile)
    within = None if limit is None else bool((learnt["refitted_loss"] < limit).all())
    back = "" if within is None else (" With it every run lies below the loss of word frequencies." if within else
                                      " With it, too, some run lies above the loss of word frequencies.")
    return Found(f"{told}, {refitted.source}. What is left above the base: {left} nats per token{order}.{back}",
                 all_met(bool((shares > 0.5).all()) if len(shares) else None,
                         bool((gaps > 0).all()) if len(gaps) else None, within if limit is not None else True))
