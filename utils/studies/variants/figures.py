"""Figures of notebook 14 on the whole sweep: measures against the rate, best rates against settings, intruders."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panels
from utils.reporting.style import method_styles
from utils.reporting.words import listed
from utils.studies.variants.looks import LABELS, OWN, PUBLISHED, SEEDS, log_ticks, names_in, rate, symbol, whose
from utils.studies.variants.measure import published_settings
from utils.studies.variants.tables import LOSS, SETTINGS, VANILLA, best_of_each, best_rate_against, main_grid

FAMILIES = {"starts from W0": ("PiSSA", "OLoRA", "MiLoRA"),
            "starts from the gradient or from noise": ("LoRA-GA", "LoRA-GA (PEFT)", "Init[AB]"),
            "other shapes": ("DoRA", "GraLoRA", "RandLoRA"),
            "other steps or scales, and full": ("LoFT", "LoRA+", "rsLoRA", "full")}
RATE_COLUMNS = {"variant": "method", "learning_rate": "best rate", LOSS: "loss", "token_accuracy": "token accuracy",
                "forgetting": "forgetting", "n_intruders": "intruders"}


def telling(best: pd.DataFrame, columns: dict[str, str] = RATE_COLUMNS) -> pd.DataFrame:
    """Of the methods' best rows vanilla LoRA, full fine-tuning, and the three best and three worst of the others."""
    best = best.assign(learning_rate=best["learning_rate"].map(rate))
    others = best[~best["variant"].isin([VANILLA, "full"])]
    chosen = pd.concat([others.head(3), others.iloc[3:].tail(3), best[best["variant"].isin([VANILLA, "full"])]])
    return shown_table(chosen.sort_values(LOSS), columns)


def rate_panels(sweep: Measured, column: str, *, yscale: str = "linear") -> Figure:
    """A measure against the learning rate, a panel for each family of methods with vanilla LoRA in all of them.

    Runs that did not learn are hollow; one that diverged is a cross at the bottom of its panel.
    """
    main = sweep.where("experiment == 'vanilla'")
    own, reference = (None if table is None else table.assign(method=table["variant"])
                      for table in (main.own, main.reference))
    names, rows = names_in(main), pd.concat([own, reference])
    bottom = main_grid(rows)[column].min() - 0.06 * np.ptp(main_grid(rows)[column])
    families = {title: [VANILLA, *(name for name in family if name in names)] for title, family in FAMILIES.items()}
    families = {title: family for title, family in families.items() if len(family) > 1} or {"vanilla": [VANILLA]}
    figure_, axes = panels(len(families), sharey=True, height=3.6)
    styles = method_styles(names)
    for axis, (title, family) in zip(axes, families.items(), strict=True):
        present = {name: styles[name] for name in family if name in styles}
        draw_lines(axis, own, reference, x="learning_rate", y=column, styles=present)
        lost = rows[rows["diverged"].astype(bool) & rows["variant"].isin(present)]
        for name, part in lost.groupby("variant"):
            axis.plot(part["learning_rate"], [bottom] * len(part), "x", color=styles[name]["color"], label="_diverged")
        axis.set(xlabel="learning rate", xscale="log", title=title, yscale=yscale)
        axis.xaxis.set_minor_formatter(NullFormatter())
    label_left(axes, LABELS[column])
    outer_legend(figure_, axes)
    return figure_


@figure("14_accuracy_against_rate", measurements=("variant_sweep",), place="Rates v2, Fig C2")
def accuracy_against_rate(sweep: Measured) -> Drawn:
    """Held-out token accuracy of every method against the learning rate."""
    best = best_of_each(sweep.own).set_index("variant")
    reached = "; ".join(f"{name} {row['token_accuracy']:.3f} at {row['learning_rate']:g}"
                        for name, row in best.iterrows())
    alt = ("Held-out token accuracy against the learning rate, logarithmic, one panel per family of methods, with "
           f"vanilla LoRA in each. At each method's best rate, by the loss: {reached}.")
    return Drawn(rate_panels(sweep, "token_accuracy"), alt, "Each method over its grid of rates: bands are the "
                 "reference's seeds, hollow runs did not learn, crosses diverged.", sweep.own)


@figure("14_loss_against_rate", measurements=("variant_sweep",), place="Rates v2, Fig C2")
def loss_against_rate(sweep: Measured) -> Drawn:
    """Held-out loss of every method against the learning rate."""
    best = best_of_each(sweep.own).set_index("variant")
    lost = int(sweep.own["diverged"].sum())
    least = "; ".join(f"{name} {row[LOSS]:.3f} at {row['learning_rate']:g}" for name, row in best.iterrows())
    alt = (f"Held-out loss against the learning rate, logarithmic, one panel per family of methods. The least: {least} "
           f"nats per token. {lost} of {len(sweep.own)} runs diverged.")
    return Drawn(rate_panels(sweep, LOSS), alt, f"The same runs by their loss; {lost} of your {len(sweep.own)} runs "
                 "diverged.", sweep.own)


@figure("14_intruders_against_rate", measurements=("variant_sweep",), place="ours")
def intruders_against_rate(sweep: Measured) -> Drawn:
    """Intruders of every method against the learning rate."""
    best = best_of_each(sweep.own).set_index("variant")["n_intruders"]
    alt = ("Intruder dimensions against the learning rate, one panel per family of methods. At the best rates: "
           f"{listed(best, '{:.0f}')}.")
    return Drawn(rate_panels(sweep, "n_intruders", yscale="symlog"), alt, "Intruder dimensions over each method's grid "
                 "of rates, where small and large updates are passed through.", sweep.own)


def best_against_settings(table: pd.DataFrame) -> pd.DataFrame:
    """Best rate at each rank, batch size and duration, of the settings that have two values or more: ``varied``."""
    found = {name: best_rate_against(table, name) for name in SETTINGS}
    kept = [part.assign(varied=name) for name, part in found.items() if part["setting"].nunique() > 1]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=["variant", "varied"])


@figure("14_best_rate_against_settings", measurements=("variant_sweep",), place="Rates v2, practical heuristics")
def best_rate_against_settings(sweep: Measured) -> Drawn:
    """Best rate against rank, batch size and duration, a panel each; the study's Gemma-3-1B in grey where it has any.

    A value at which a single rate was tried is a cross; an arrow says that the best is the end of the grid.
    """
    shown = best_against_settings(sweep.best)
    own = best_against_settings(sweep.own)
    settings = list(dict.fromkeys([*own["varied"], *shown["varied"]]))
    figure_, axes = panels(len(settings), height=3.6, sharey=True)
    styles = method_styles(dict.fromkeys([*own["variant"], *shown["variant"]]))
    for axis, setting in zip(axes, settings, strict=True):
        for name, style in styles.items():
            thin = style | {"markersize": 5, "linewidth": 1, "alpha": 0.7, "label": "_reference"}
            thick = OWN | style | {"linewidth": 1.5, "label": name}
            for table, look in ((shown, thin), (own, thick)) if sweep.reference is not None else ((own, thick),):
                _setting_line(axis, table.query("varied == @setting and variant == @name"), look)
        _published_line(axis, setting, pd.concat([own, shown]).query("varied == @setting")["setting"])
    label_left(axes, "best learning rate of those tried")
    outer_legend(figure_, axes)
    values = "; ".join(f"{row.variant}, {row.varied} {row.setting:g}: {row.learning_rate:g}"
                       for row in shown.itertuples())
    alt = f"Best learning rate against rank, batch size and steps, logarithmic, with the study's Gemma-3-1B. {values}."
    return Drawn(figure_, alt, "Best rate of those tried against rank, batch size and steps: large symbols are your "
                 "runs, thin lines the reference; the table has vanilla LoRA's.", own if len(own) else shown,
                 _of_vanilla(shown))


def _of_vanilla(found: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: its values and vanilla LoRA's best rates there, in the same order."""
    rows = [{"varied": varied, "values": ", ".join(f"{value:g}" for value in part["setting"]),
             "best rates": ", ".join(map(rate, part["learning_rate"])),
             "at an end of the grid": int((part["edge"] != "").sum())}
            for varied, part in found[found["variant"] == VANILLA].sort_values("setting").groupby("varied", sort=False)]
    return pd.DataFrame(rows)


def _setting_line(axis: Axes, rows: pd.DataFrame, look: dict) -> None:
    rows = rows.sort_values("setting")
    single, known = rows[rows["edge"] == "only"], rows[rows["edge"] != "only"]
    axis.plot(single["setting"], single["learning_rate"], "x", color=look["color"], label="_one rate")
    axis.plot(known["setting"], known["learning_rate"], **look)
    for row in known[known["edge"] != ""].itertuples():
        end = row.learning_rate * (1.5 if row.edge == "highest" else 1 / 1.5)
        axis.annotate("", (row.setting, end), (row.setting, row.learning_rate),
                      arrowprops={"arrowstyle": "->", "color": look["color"]})


def _published_line(axis: Axes, setting: str, ours: pd.Series) -> None:
    known = published_settings().query("varied == @setting")
    axis.plot(known["value"], known["best_learning_rate"], **PUBLISHED | {"linestyle": ":"},
              label="Gemma-3-1B, LoRA (published)")
    axis.set(xscale="log", yscale="log", xlabel=setting)
    axis.xaxis.set_major_locator(FixedLocator(sorted({*ours.astype(float), *known["value"]})))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize="small")


@figure("14_intruders", measurements=("variant_sweep",), place="ours")
def intruders_against_update(sweep: Measured) -> Drawn:
    """Intruders of each method at its best rate against the relative norm of its update."""
    own, chosen = best_of_each(sweep.own), best_of_each(sweep.best)
    at = sweep.best.merge(chosen[["variant", "learning_rate"]])
    seeds, names = main_grid(at), names_in(sweep)
    figure_, (axis,) = panels(1, width=8.4, height=5.2)
    for name, style in method_styles(names).items():
        if sweep.reference is not None:
            rows = seeds[seeds["variant"] == name]
            axis.plot(rows["relative_norm"], rows["n_intruders"], **symbol(style), **SEEDS, label="_seeds")
        mine = own[own["variant"] == name]
        axis.plot(mine["relative_norm"], mine["n_intruders"], **symbol(style), **OWN, label=name)
    axis.set(xlabel=LABELS["relative_norm"],
             ylabel=f"{LABELS['n_intruders']} at epsilon {sweep.profile.spectra.epsilon}")
    log_ticks((axis,))
    handles = [*axis.get_legend_handles_labels()[0], *whose(sweep.reference is not None)[1:]]
    figure_.legend(handles=handles, loc="outside lower center", ncols=5)
    alt = ("Intruder dimensions of each method at its best rate against the norm of its update over W0's, logarithmic. "
           + "; ".join(f"{row.variant} {row.n_intruders:.0f} at {row.relative_norm:.2f}"
                       for row in own.itertuples()) + ".")
    shown = telling(chosen, {"variant": "method", "learning_rate": "best rate", "relative_norm": "update / W0",
                             "n_intruders": "intruders", "forgetting": "forgetting"})
    return Drawn(figure_, alt, "Intruder dimensions at each method's best rate against the size of its update: large "
                 "symbols are your runs, small ones the reference's seeds.", main_grid(sweep.own), shown)
