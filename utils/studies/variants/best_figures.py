"""Figures of notebook 14 on each method's best rate: what it reaches, where it stands, what borrowing costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import panels
from utils.reporting.style import method_styles
from utils.reporting.words import listed
from utils.studies.variants.figures import telling
from utils.studies.variants.looks import (
    LABELS,
    OWN,
    PUBLISHED,
    legend_below,
    log_ticks,
    name_rows,
    names_in,
    rate,
    rows_height,
    symbol,
    whose,
)
from utils.studies.variants.tables import LOSS, VANILLA, best_of_each, borrowed_rate

MEAN = {"linestyle": "none", "alpha": 0.6, "markersize": 6}  # of the reference


def _interval_dots(axis: Axes, table: pd.DataFrame, names: list[str], *, column: str, shift: float, look: dict) -> None:
    """A mean with its interval over seeds in every method's row, `shift` of a row below its middle."""
    styles, rows = method_styles(names), table.set_index("variant").reindex(names)
    for place, (name, row) in enumerate(rows.iterrows()):
        error = None if np.isnan(row[f"{column}_low"]) else [[row[column] - row[f"{column}_low"]],
                                                             [row[f"{column}_high"] - row[column]]]
        axis.errorbar(row[column], place + shift, xerr=error, **symbol(styles[name]), **look)


def _handles(sweep: Measured, published: str) -> list[Line2D]:
    own, known = whose(False, published)
    mean = Line2D([], [], label="reference, mean over seeds", color="black", marker="o", **MEAN)
    return [own, known] if sweep.reference is None else [own, mean, known]


@figure("14_best_of_each", measurements=("variant_sweep",), place="Rates v2, Fig C2")
def best_dots(sweep: Measured) -> Drawn:
    """Every method's loss at its best rate, with the reference's interval over seeds; the study's accuracies beside."""
    names, own = names_in(sweep), best_of_each(sweep.own)
    figure_, (loss, accuracy) = panels(2, height=rows_height(names))
    if sweep.reference is not None:
        _interval_dots(loss, best_of_each(sweep.reference), names, column=LOSS, shift=0.15, look=MEAN)
    _interval_dots(loss, own, names, column=LOSS, shift=-0.15, look=OWN)
    rows = sweep.published.set_index("method").reindex(names)
    accuracy.errorbar(rows["accuracy"], range(len(names)), xerr=rows["accuracy_std"], ecolor="grey", **PUBLISHED)
    loss.set(xlabel=f"{LABELS[LOSS]}, at the best rate", title="the small decoder")
    accuracy.set(xlabel="% correct, ± one deviation", title="published: Qwen3-0.6B")
    name_rows((loss, accuracy), names)
    legend_below((loss,), _handles(sweep, "published"))
    alt = ("Dot plots with a row per method: held-out loss at its best rate, with the reference's interval over seeds, "
           "and the study's accuracies on Qwen3-0.6B. Your runs: "
           f"{listed(own.set_index('variant')[LOSS], '{:.3f}')} nats per token. Published: "
           f"{listed(rows['accuracy'].dropna(), '{:.2f}')} % correct.")
    return Drawn(figure_, alt, "Each method at its own best rate: your runs outlined, the reference's mean below with "
                 "its 95 % interval; the table has vanilla LoRA, full, and the three best and worst others.",
                 own, telling(best_of_each(sweep.best)))


@figure("14_rate_ratios", measurements=("variant_sweep",), place="Rates v2, Fig C2")
def rate_ratios(sweep: Measured) -> Drawn:
    """Vanilla LoRA's best rate over each method's, here and in the study, on a logarithmic axis."""
    names, own, chosen = names_in(sweep), best_of_each(sweep.own), best_of_each(sweep.best)
    styles = method_styles(names)
    figure_, (axis,) = panels(1, width=8, height=rows_height(names))
    for table, shift, look in ((chosen if sweep.reference is not None else None, 0.15, MEAN), (own, -0.15, OWN)):
        for row in () if table is None else table.to_dict("records"):
            place = names.index(row["variant"]) + shift
            axis.plot(row["ratio"], place, **symbol(styles[row["variant"]]), **look)
            if row["edge"]:
                axis.annotate({"lowest": "at least", "highest": "at most"}.get(row["edge"], "one rate"),
                              (row["ratio"], place), xytext=(9, -3), textcoords="offset points", fontsize="x-small")
    published = sweep.published.set_index("method")["rate_ratio"]
    axis.plot(published.reindex(names), range(len(names)), **PUBLISHED)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xlabel="vanilla LoRA's best rate over the method's")
    log_ticks((axis,))
    name_rows((axis,), names)
    legend_below((axis,), _handles(sweep, "published, Qwen3-0.6B"))
    ratios = chosen.set_index("variant")[["ratio", "edge"]].assign(published=published)
    moved = ratios[(ratios["published"] - 1).abs() > 0.01].sort_values("published", ascending=False).reset_index()
    alt = ("Vanilla LoRA's best rate over each method's, logarithmic, with the study's ratios. Your runs: "
           f"{listed(own.set_index('variant')['ratio'], '{:.2g}')}. Published: {listed(published)}.")
    return Drawn(figure_, alt, "Right of the line a method wants a lower rate than vanilla LoRA; the table has the "
                 "methods whose published ratio is not 1.", own,
                 shown_table(moved, {"variant": "method", "ratio": "ratio here", "published": "published",
                                     "edge": "end of the grid"}))


@figure("14_borrowed_rate", measurements=("variant_sweep",), place="Rates v2, Fig C2")
def borrowed_bars(sweep: Measured) -> Drawn:
    """What each method loses at vanilla LoRA's best rate, and vanilla LoRA at each method's."""
    own = borrowed_rate(sweep.own)
    reference = None if sweep.reference is None else borrowed_rate(sweep.reference)
    names = [name for name in names_in(sweep) if name != VANILLA]
    styles = method_styles([VANILLA, *names])
    figure_, axes = panels(2, height=rows_height(names))
    titles = {"lost_nats": "the method at vanilla LoRA's best rate", "vanilla_lost_nats":
              "vanilla LoRA at the method's best rate"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for table, shift, look in ((reference, 0.2, {"alpha": 0.45}), (own, -0.2, {"edgecolor": "black"})):
            if table is not None:
                values = table.set_index("variant")[column].reindex(names)
                axis.barh(np.arange(len(names)) + shift, values, height=0.38,
                          color=[styles[name]["color"] for name in names], **look)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel="lost, nats per token")
    name_rows(axes, names)
    chosen = own if reference is None else reference
    shown = chosen[chosen["variant"] != VANILLA].sort_values("lost_nats", ascending=False)
    shown = shown.assign(own_rate=shown["own_rate"].map(rate), borrowed_rate=shown["borrowed_rate"].map(rate))
    alt = ("Two bar charts: what each method loses at vanilla LoRA's best rate, and what vanilla LoRA loses at each "
           "method's. Your runs: " + "; ".join(f"{row.variant} {row.lost_nats:.2f} and {row.vanilla_lost_nats:.2f}"
                                               for row in own.itertuples()) + " nats per token.")
    return Drawn(figure_, alt, "Outlined bars are your runs, pale ones the reference; where vanilla LoRA's best rate "
                 "was not tried the nearest of the method's grid stands for it.", own,
                 shown_table(shown, {"variant": "method", "own_rate": "own best rate", "borrowed_rate": "borrowed rate",
                                     "lost_nats": "lost, nats", "vanilla_lost_nats": "vanilla LoRA loses, nats"}))
