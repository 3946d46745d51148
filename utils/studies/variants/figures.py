"""Figures of notebook 14's first half: vanilla LoRA beside its variants. Tables in, a figure out.

Own runs have large outlined markers, the reference's seeds are faint points with a thin line at their mean, published
values are hollow grey symbols.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter

from utils.reporting.panels import panels
from utils.reporting.style import method_styles, use_style
from utils.studies.sensitivity.figures import OWN, SEEDS
from utils.studies.variants.tables import LACKING, LOSS, VANILLA, main_grid

COLUMNS = 5
PUBLISHED = {"color": "grey", "marker": "D", "markerfacecolor": "none", "linestyle": "none", "markersize": 7}
LABELS = {LOSS: "held-out loss, nats per token", "token_accuracy": "held-out token accuracy",
          "forgetting": "forgetting, nats per token", "n_intruders": "intruders"}


def in_order(variants: Sequence[str]) -> list[str]:
    """Vanilla LoRA first, the study's variants by name, and last what the study lacks."""
    known = list(dict.fromkeys(variants))
    study = sorted(name for name in known if name != VANILLA and name not in LACKING)
    return [name for name in (VANILLA,) if name in known] + study + [name for name in LACKING if name in known]


def rate_grid(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, y: str = "token_accuracy") -> Figure:
    """A measure against the learning rate, one panel per method; vanilla LoRA's mean is grey in every panel.

    A run that diverged is a cross at the bottom of its panel. `own` and `reference` are those of
    :func:`utils.reporting.vanilla.variant_sweep`.
    """
    use_style()
    whole = own if reference is None else pd.concat([own, reference])
    names = in_order(whole["variant"])
    rows = -(-len(names) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.6 * COLUMNS, 2.3 * rows), sharex=True, sharey=True,
                                squeeze=False)
    styles = method_styles(names)
    vanilla = main_grid(own if reference is None else reference)
    vanilla = vanilla[vanilla["variant"] == VANILLA].groupby("learning_rate")[y].mean()
    values = main_grid(whole)[y]
    bottom = values.min() - 0.06 * (values.max() - values.min())
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(vanilla.index, vanilla, color="grey", linewidth=3, alpha=0.3)
        _one_method(axis, name, own, reference, styles[name] | {"linestyle": "-"}, y=y, bottom=bottom)
        axis.set_title(name, fontsize="small")
    for axis in axes.flat[len(names):]:
        axis.set_axis_off()
    axes[0, 0].set(xscale="log")
    figure.supxlabel("learning rate", fontsize="small")
    figure.supylabel(LABELS[y], fontsize="small")
    _legend(figure, axes.flat[-1] if len(names) < rows * COLUMNS else None, reference is not None)
    return figure


def _one_method(axis: Axes, name: str, own: pd.DataFrame, reference: pd.DataFrame | None, style: dict, *, y: str,
                bottom: float) -> None:
    for table, look in ((reference, SEEDS), (own, OWN)):
        if table is None:
            continue
        part = table[(table["variant"] == name) & (table["experiment"] == "vanilla")]
        lost = part[part["diverged"].astype(bool)]
        axis.plot(lost["learning_rate"], [bottom] * len(lost), "x", color=style["color"], markersize=6)
        means = part.groupby("learning_rate")[y].mean()
        if look is SEEDS:
            axis.plot(part["learning_rate"], part[y], color=style["color"], marker=style["marker"], **SEEDS)
            axis.plot(means.index, means, color=style["color"], linewidth=1)
        else:
            axis.plot(means.index, means, **style | {"linestyle": "none"}, **OWN | {"markersize": 7})


def _legend(figure: Figure, axis: Axes | None, reference: bool) -> None:
    handles = [Line2D([], [], color="grey", linewidth=3, alpha=0.4, label="vanilla LoRA, mean"),
               Line2D([], [], color="black", marker="o", linestyle="none", markersize=7, label="your runs, mean"),
               Line2D([], [], color="black", marker="x", linestyle="none", label="diverged")]
    if reference:
        handles.append(Line2D([], [], color="black", marker="o", markersize=4, alpha=0.5, linewidth=1,
                              label="reference: seeds, mean"))
    where = {"loc": "center"} if axis is not None else {"loc": "outside lower center", "ncols": 4}
    (axis or figure).legend(handles=handles, fontsize="x-small", **where)


def best_dots(own: pd.DataFrame, reference: pd.DataFrame | None = None, published: pd.DataFrame | None = None, *,
              y: str = LOSS) -> Figure:
    """Every method at its best rate: own value, the reference's mean with its interval, and the study's beside.

    `own` and `reference` are those of :func:`utils.reporting.vanilla.best_of_each`; `published` of
    :func:`utils.reporting.vanilla.published_best`.
    """
    figure, axes = panels(1 if published is None else 2, height=5, width=5.5)
    names = in_order(pd.concat([table["variant"] for table in (own, reference) if table is not None]))
    _dots(axes[0], names, own, reference, y)
    axes[0].set(xlabel=f"{LABELS[y]}, at the best rate")
    if published is not None:
        rows = published.set_index("method").reindex(names)
        axes[1].errorbar(rows["accuracy"], range(len(names)), xerr=rows["accuracy_std"], ecolor="grey", **PUBLISHED)
        axes[1].set(xlabel="Qwen3-0.6B, % correct (published; one deviation)", yticks=range(len(names)),
                    yticklabels=[])
        axes[1].invert_yaxis()
    return figure


def _dots(axis: Axes, names: list[str], own: pd.DataFrame, reference: pd.DataFrame | None, y: str) -> None:
    styles = method_styles(names)
    for place, name in enumerate(names):
        look = {"color": styles[name]["color"], "marker": styles[name]["marker"], "linestyle": "none"}
        for table, shift in ((reference, 0.15), (own, -0.15)):
            row = None if table is None else table[table["variant"] == name]
            if row is None or row.empty:
                continue
            row, own_run = row.iloc[0], table is own
            error = None if np.isnan(row[f"{y}_low"]) else [[row[y] - row[f"{y}_low"]], [row[f"{y}_high"] - row[y]]]
            axis.errorbar(row[y], place + shift, xerr=error, **look, **(OWN if own_run else {"alpha": 0.6}),
                          label="_own" if own_run else "_reference")
    axis.set(yticks=range(len(names)), yticklabels=names)
    axis.invert_yaxis()


def lost_bars(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """What each method loses at vanilla LoRA's best rate, and vanilla LoRA at each method's.

    The tables are those of :func:`utils.reporting.vanilla.borrowed_rate`.
    """
    figure, axes = panels(2, height=5, sharey=True)
    names = [name for name in in_order(own["variant"]) if name != VANILLA]
    styles = method_styles([VANILLA, *names])
    for axis, column, title in zip(axes, ("lost_nats", "vanilla_lost_nats"),
                                   ("the method at vanilla LoRA's best rate", "vanilla LoRA at the method's best rate"),
                                   strict=True):
        for table, shift, look in ((reference, 0.2, {"alpha": 0.45}), (own, -0.2, {"edgecolor": "black"})):
            if table is not None:
                values = table.set_index("variant")[column].reindex(names)
                axis.barh(np.arange(len(names)) + shift, values, height=0.38,
                          color=[styles[name]["color"] for name in names], **look)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(yticks=range(len(names)), yticklabels=names, title=title, xlabel="lost, nats per token")
    axes[0].invert_yaxis()
    return figure


def rate_ratio_dots(own: pd.DataFrame, reference: pd.DataFrame | None, published: pd.DataFrame) -> Figure:
    """Vanilla LoRA's best rate over each method's, here and in the study, on a logarithmic axis."""
    figure, (axis,) = panels(1, width=7.5, height=5)
    names = in_order(pd.concat([table["variant"] for table in (own, reference) if table is not None]))
    styles = method_styles(names)
    for place, name in enumerate(names):
        look = {"color": styles[name]["color"], "marker": styles[name]["marker"], "linestyle": "none"}
        for table, shift, more in ((reference, 0.15, {"alpha": 0.6}), (own, -0.15, OWN)):
            rows = [] if table is None else table[table["variant"] == name].to_dict("records")
            for row in rows:
                axis.plot(row["ratio"], place + shift, **look, **more)
                if row["edge"]:
                    axis.annotate({"lowest": "at least", "highest": "at most"}.get(row["edge"], "one rate"),
                                  (row["ratio"], place + shift), xytext=(8, -3), textcoords="offset points",
                                  fontsize="xx-small")
    rows = published.set_index("method").reindex(names)
    axis.plot(rows["rate_ratio"], range(len(names)), **PUBLISHED, label="published, Qwen3-0.6B")
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", yticks=range(len(names)), yticklabels=names,
             xlabel="vanilla LoRA's best rate over the method's")
    axis.invert_yaxis()
    axis.legend(fontsize="x-small")
    return figure


def setting_lines(own: dict[str, pd.DataFrame], reference: dict[str, pd.DataFrame] | None,
                  published: pd.DataFrame) -> Figure:
    """Best rate against rank, batch size and duration, one panel each; the study's Gemma in grey where it has any.

    A value at which a single rate was tried is a cross; an arrow says that the best is the end of the grid.

    Parameters
    ----------
    own, reference : dict of str to DataFrame
        Of :func:`utils.reporting.vanilla.best_rate_against`, by setting; empty tables are left out.
    published : pandas.DataFrame
        Of :func:`utils.reporting.vanilla.published_settings`.
    """
    shown = reference or own
    figure, axes = panels(len(shown), width=4.2)
    styles = method_styles(in_order(pd.concat([table["variant"] for table in shown.values()])))
    for axis, setting in zip(axes, shown, strict=True):
        for table, look in (((reference or {}).get(setting), {"markersize": 5, "linewidth": 1, "alpha": 0.7}),
                            (own.get(setting), OWN | {"linewidth": 1.5})):
            for name, style in styles.items() if table is not None and len(table) else ():
                part = table[table["variant"] == name].sort_values("setting")
                single, part = part[part["edge"] == "only"], part[part["edge"] != "only"]
                axis.plot(single["setting"], single["learning_rate"], "x", color=style["color"], label="_one rate")
                axis.plot(part["setting"], part["learning_rate"], label=name, **style | look)
                for row in part[part["edge"] != ""].itertuples():
                    end = row.learning_rate * (1.5 if row.edge == "highest" else 1 / 1.5)
                    axis.annotate("", (row.setting, end), (row.setting, row.learning_rate),
                                  arrowprops={"arrowstyle": "->", "color": style["color"]})
        known = published[published["varied"] == setting]
        axis.plot(known["value"], known["best_learning_rate"], **PUBLISHED | {"linestyle": ":"},
                  label="Gemma-3-1B, LoRA")
        axis.set(xscale="log", yscale="log", xlabel=setting)
        axis.xaxis.set_major_locator(FixedLocator(sorted({*shown[setting]["setting"], *known["value"]})))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize="x-small")
    axes[0].set_ylabel("best learning rate of those tried")
    handles, labels = axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, loc="outside right center", fontsize="x-small")
    return figure


def intruder_scatter(own: pd.DataFrame, reference: pd.DataFrame | None, *, x: str, xlabel: str) -> Figure:
    """Intruders of each method at its best rate against another column of the same tables, both per seed or mean.

    The tables have ``variant``, ``n_intruders`` and `x`.
    """
    figure, (axis,) = panels(1, width=7.5)
    styles = method_styles(in_order(pd.concat([t["variant"] for t in (own, reference) if t is not None])))
    for name, style in styles.items():
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        for table, more in ((reference, {"alpha": 0.5, "markersize": 6}), (own, OWN)):
            if table is not None:
                part = table[table["variant"] == name]
                axis.plot(part[x], part["n_intruders"], **look, **more, label=name if table is own else "_seeds")
    axis.set(xlabel=xlabel, ylabel="intruders at the profile's epsilon", xscale="log")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize="x-small")
    return figure
