"""The second paper's figures from its tables (Llama-2-7B, one model per point, no spread): Figs 1 to 3 and S4 to S6."""

import pandas as pd

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure
from utils.reporting.panels import outer_legend, panels
from utils.reporting.style import method_styles
from utils.reporting.words import listed
from utils.studies.learning.drawing import METRIC_LABELS, front, plane, plane_legend, published_panel
from utils.studies.learning.published import published_base, published_curves, published_tulu, tradeoff_table

ORDER = [("code", "continued pretraining"), ("code", "instruction tuning"), ("math", "continued pretraining"),
         ("math", "instruction tuning")]
METHODS = ["full", "LoRA r=256", "LoRA r=64", "LoRA r=16"]


def _ends(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """`value` at each group's longest duration, groups as rows and methods as columns."""
    last = table[table["duration"] == table.groupby(by)["duration"].transform("max")]
    return last.pivot(index=by, columns="method", values="value").loc[table[by].unique(), METHODS]


def _told(ends: pd.DataFrame) -> str:
    return "; ".join(f"{name}: {listed(row, '{:.3f}')}" for name, row in ends.iterrows())


def _four(quantity: str, what: str, caption: str) -> Drawn:
    """Fig 1 or 2: continued pretraining left, instruction tuning right; code above mathematics."""
    curves, base = published_curves(), published_base()
    curves = curves[curves["quantity"] == quantity]
    drawn, axes = panels(4, height=3.6)
    for axis, (domain, regime) in zip(axes, ORDER, strict=True):
        part = curves[(curves["domain"] == domain) & (curves["regime"] == regime)]
        published_panel(axis, part, base, title=f"{domain}, {regime}: {part['dataset'].iloc[0]}")
    outer_legend(drawn, axes)
    ends = _ends(curves, "dataset")
    return Drawn(drawn, f"{what} At the longest duration: {_told(ends)}.",
                 f"Published: {caption}; the shown values are those of the longest duration.", curves,
                 ends.reset_index())


@figure("09_published_learning", place="Learns less v2, Fig 1")
def published_learning(profile: Profile) -> Drawn:
    """Published accuracy on the target domain against how long was trained (Tables S1, S3, S5 and S7)."""
    return _four("learning", "Published accuracy of Llama-2-7B against training duration, four panels (code and "
                 "mathematics, continued pretraining and instruction tuning), one line per method.",
                 "accuracy on the target domain against how long was trained, from the paper's tables")


@figure("10_published_forgetting", place="Learns less v2, Fig 2")
def published_forgetting(profile: Profile) -> Drawn:
    """Published mean of three benchmarks against how long was trained (Tables S2, S4, S6 and S8)."""
    return _four("forgetting", "Published mean accuracy of Llama-2-7B on three benchmarks against training duration, "
                 "four panels, one line per method; higher is less forgetting.",
                 "what is remembered, the mean of three benchmarks, against how long was trained")


@figure("10_published_tradeoff", place="Learns less v2, Fig 3")
def published_tradeoff(profile: Profile) -> Drawn:
    """Published learning against remembering, one point per model, with the Pareto front of all methods."""
    table, base = tradeoff_table(published_curves()), published_base()
    names = list(table["dataset"].unique())
    drawn, axes = panels(len(names), height=3.7)
    styles = method_styles(table["method"].unique())
    for axis, name in zip(axes, names, strict=True):
        part = table[table["dataset"] == name].reset_index(drop=True)
        untuned = base[base["dataset"] == name].set_index("quantity")["value"]
        front(axis, part, x="remembering", y="learning")
        plane(axis, part, None, x="remembering", y="learning", styles=styles, size="duration", hollow=True)
        axis.plot(untuned["forgetting"], untuned["learning"], "x", color="black", markersize=8)
        axis.set(title=f"published: {name}", ylabel=METRIC_LABELS[part["metric"].iloc[0]],
                 xlabel="mean of three, forgets less →")
    plane_legend(drawn, styles, larger="longer training", hollow=True, base=True)
    best = table.loc[table.groupby("dataset", sort=False)["learning"].idxmax()]
    alt = ("Published learning (HumanEval or GSM8K) against remembering (mean of three benchmarks), one panel per data "
           "set, with the Pareto front. The models that learnt most: " + "; ".join(
               f"{row.dataset}: {row.method}, learning {row.learning:.3f}, remembering {row.remembering:.3f}"
               for row in best.itertuples()) + ".")
    return Drawn(drawn, alt, "Published: learning against remembering, a point per model; the shown ones learnt most "
                 "in their data set.", table,
                 best[["dataset", "method", "duration", "unit", "learning", "remembering"]])


@figure("10_published_tulu", place="Learns less v2, Figs S4 to S6")
def published_chat(profile: Profile) -> Drawn:
    """Published results on the chat mixture Tulu-v2, one panel per metric (Tables S10 to S13)."""
    table, base = published_tulu(), published_base()
    drawn, axes = panels(table["metric"].nunique(), height=3.6)
    for axis, (metric, part) in zip(axes, table.groupby("metric", sort=False), strict=True):
        published_panel(axis, part, base, title=f"published: tulu, {metric}")
    outer_legend(drawn, axes)
    ends = _ends(table, "metric")
    alt = ("Published results of Llama-2-7B tuned on the chat mixture Tulu-v2 against epochs, one panel per metric, "
           f"one line per method. After the last epoch: {_told(ends)}.")
    return Drawn(drawn, alt, "Published: a chat mixture, where LoRA of every rank does about as well as full "
                 "fine-tuning; the shown values are those after six epochs.", table, ends.reset_index())
