"""Tasks in sequence: accuracy of each task, and the spectrum, stage by stage (notebook 08)."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import by_value, draw_lines, label_left, outer_legend, panel_lines, panels
from utils.reporting.style import method_styles
from utils.reporting.words import listed
from utils.spectra import is_intruder
from utils.studies.continual.rules import plain
from utils.studies.forgetting.readout import is_broken, readout_limit
from utils.studies.similarity.choice import Shown

STAGE = "stage: tasks trained so far"


def _plain(measured: Measured) -> tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame]:
    """Own, reference and best rows of full fine-tuning and of LoRA with alpha = 2r."""
    reference = None if measured.reference is None else plain(measured.reference)
    return plain(measured.own), reference, plain(measured.best)


@figure("08_accuracy_through_the_sequence", measurements=("sequence_accuracies",), place="Illusion v3, Figs 9a and 17")
def accuracy_through_the_sequence(accuracies: Measured) -> Drawn:
    """Accuracy of each task against the stage, one panel per task.

    Grey: before the task is trained; vertical line: the stage that trains it; dotted: a head on the untouched base.
    Bars are the binomial standard error of one's own accuracies on the rows that test the head.
    """
    own, reference, best = _plain(accuracies)
    tasks = list(own.sort_values("tested_place")["tested_task"].unique())
    styles = method_styles(dict.fromkeys([*own["method"], *best["method"]]))
    rows, last = accuracies.profile.continual.probe_test_rows, int(best["stage"].max())
    drawn, axes = panels(len(tasks), height=3.2)
    for axis, task in zip(axes, tasks, strict=True):
        part, band = (None if table is None else table[table["tested_task"] == task] for table in (own, reference))
        draw_lines(axis, part, band, x="stage", y="accuracy", styles=styles)
        for method, values in part.groupby("method"):
            line = values.groupby("stage")["accuracy"].mean()
            axis.errorbar(line.index, line, (line * (1 - line) / (rows * values["seed"].nunique())) ** 0.5, fmt="none",
                          ecolor=styles[method]["color"], elinewidth=0.8, alpha=0.6)
        place = part["tested_place"].iloc[0]
        axis.axvspan(0, place, color="grey", alpha=0.12)
        axis.axvline(place, color="black", linewidth=1)
        axis.axhline(part["base_accuracy"].mean(), color="black", linestyle=":", linewidth=1, label="untouched base")
        axis.set(title=f"{place}. {task}", xticks=range(last + 1), xlabel=STAGE)
    label_left(axes, "accuracy, head refitted")
    outer_legend(drawn, axes)
    first = best[(best["tested_place"] == 1) & best["stage"].isin([1, last])].pivot_table(
        index="method", columns="stage", values="accuracy", sort=False)
    alt = ("One line plot per task of accuracy with a refitted head against the stage, one line per method. The first "
           f"task, {tasks[0]}, right after its stage and at the end, {accuracies.source}: " + "; ".join(
               f"{method} {row.iloc[0]:.3f} and {row.iloc[-1]:.3f}" for method, row in first.iterrows()) + ".")
    kept = _kept(best)
    shown = shown_table(kept, {"method": "method", "own": "accuracy after a task's own stage", "end": "at the end",
                               "change": "change", "seeds": "seeds"})
    return Drawn(drawn, alt, "Each task's accuracy through the sequence, by a head refitted on the frozen body; grey "
                 "is before its training, dotted the untouched base.", own, shown)


def _kept(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy after a task's own stage and after the last one: means over all tasks but the last, by method."""
    last = table["stage"].max()
    earlier = table[table["tested_place"] < last]
    own = earlier[earlier["stage"] == earlier["tested_place"]].groupby("method", sort=False)["accuracy"].mean()
    end = earlier[earlier["stage"] == last].groupby("method", sort=False)["accuracy"].mean()
    seeds = table.groupby("method", sort=False)["seed"].nunique()
    return pd.DataFrame({"own": own, "end": end, "change": end - own, "seeds": seeds}).reset_index()


@figure("08_similarity_by_stage", place="Illusion v3, Figs 9b, 9c and 18")
def similarity_by_stage(profile: Profile, maps: dict[str, dict[str, np.ndarray]], *,
                        shown: dict[str, Shown]) -> Drawn:
    """Absolute cosines with the original base's vectors as heat-maps: one column per method, one row per stage.

    Parameters
    ----------
    maps : dict
        Method -> stage's title -> array (all pretrained, leading tuned) of absolute cosines: tuned vectors are its
        columns, as in the paper. As many pretrained ones are drawn; all of them decide what has no match.
    shown : dict of str to Shown
        Method -> the matrix that is shown, and how it was chosen.
    """
    epsilon, stages = profile.spectra.epsilon, list(next(iter(maps.values())))
    count = next(iter(maps.values()))[stages[0]].shape[1]
    drawn, axes = panels(len(maps) * len(stages), columns=len(maps), height=2.5, width=3.6)
    for axis, (stage, method) in zip(axes, ((stage, method) for stage in stages for method in maps), strict=True):
        image = axis.imshow(maps[method][stage][:count], vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axis.set(title=f"{method}: after {stage}", xticks=[], yticks=[])
        axis.grid(visible=False)
    label_left(axes, "pretrained vector")
    for axis in axes[-len(maps):]:
        axis.set_xlabel("tuned vector")
    drawn.colorbar(image, ax=axes, label="absolute cosine", shrink=0.5, aspect=40)
    table = pd.DataFrame([
        {"method": method, "matrix": shown[method].matrix, "stage": stage, "index": index + 1, "max_cosine": value}
        for method, of_stage in maps.items() for stage, values in of_stage.items()
        for index, value in enumerate(values.max(axis=0).tolist())])
    blank = table[is_intruder(table["max_cosine"], epsilon)].groupby(["method", "stage"]).size()
    least = table.groupby(["method", "stage"])["max_cosine"].min()
    by_stage = {method: ", ".join(str(blank.get((method, stage), 0)) for stage in stages) for method in maps}
    alt = (f"Heat-maps of absolute cosines between the {count} leading tuned vectors (columns) and the original "
           "pretrained ones (rows) of one matrix after each stage, one column of maps per method. Columns without a "
           f"match (below {epsilon}) by stage: " + "; ".join(
               f"{method} in {shown[method].matrix}: {counts}"
               for method, counts in by_stage.items()) + ". Least largest cosine after the last stage: "
           + listed({method: least[method, stages[-1]] for method in maps}, "{:.2f}") + ".")
    chosen = "; ".join(f"{method}: {one.words}" for method, one in shown.items())
    return Drawn(drawn, alt, "The leading vectors after each stage against those of the untouched base, in one matrix "
                 f"for each method. {chosen}.", table)


def _only_read(table: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """The same without the ``forgetting`` of stages whose readout is broken."""
    return table.assign(forgetting=table["forgetting"].mask(is_broken(table, readout_limit(profile))))


@figure("08_spectra_through_the_sequence", measurements=("sequence_spectra",), place="Illusion v3, Figs 9 and 18")
def spectra_through_the_sequence(spectra: Measured) -> Drawn:
    """Intruders of the whole model, and rise of the pseudo-loss, against the stage.

    Where a loss lies above word frequencies alone its rise is no forgetting, and is not drawn.
    """
    own, reference, best = _plain(spectra)
    own, best = _only_read(own, spectra.profile), _only_read(best, spectra.best_profile)
    reference = None if reference is None else _only_read(reference, spectra.best_profile)
    names = {"n_intruders": f"intruder dimensions, epsilon {spectra.profile.spectra.epsilon}",
             "forgetting": "rise of pseudo-loss, nats per token"}
    drawn = panel_lines(by_value(own, names), by_value(reference, names), x="stage", y="value", panel="panel",
                        xlabel=STAGE, ylabel="", sharey=False)
    for axis in drawn.axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.axes[0].yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    final = best[best["stage"] == best["stage"].max()].groupby("method", sort=False).agg(
        n_intruders=("n_intruders", "mean"), forgetting=("forgetting", "mean"), seeds=("seed", "nunique")).reset_index()
    alt = ("Two line plots against the stage: intruder dimensions and rise of pseudo-loss. After the last stage, "
           f"{spectra.source}: " + "; ".join(
               f"{row.method}: {row.n_intruders:.3g} intruders, "
               + ("a broken readout" if np.isnan(row.forgetting) else f"{row.forgetting:.2f} nats")
               for row in final.itertuples()) + ".")
    return Drawn(drawn, alt, "Intruders against the untouched base, and how much of the pre-training text is "
                 "forgotten, stage by stage; stages whose loss lies above word frequencies are left out.",
                 plain(spectra.own), shown_table(final, {
                     "method": "method", "n_intruders": "intruders at the end", "forgetting": "forgetting, nats",
                     "seeds": "seeds"}))


@figure("08_alpha_8_in_sequence", measurements=("sequence_accuracies",), place="Illusion v3, Fig 21")
def alpha_8_in_sequence(accuracies: Measured) -> Drawn:
    """Accuracy against the stage at the highest rank, with alpha = 2r and with alpha = 8: one panel per task.

    Drawn from the reference where there is one: small profiles train these chains for it alone. Without a chain of
    alpha = 8 the highest rank with alpha = 2r is drawn by itself.
    """
    lora = accuracies.best[accuracies.best["method_kind"] == "lora"]
    fixed = lora[lora["r"] == lora["r"].max()].assign(alpha=lambda t: np.where(
        t["lora_alpha"] == 2 * t["r"], "alpha = 2r", "alpha = " + t["lora_alpha"].astype(str)))
    fixed = fixed.sort_values(["tested_place", "stage"])
    drawn = panel_lines(fixed, None, x="stage", y="accuracy", panel="tested_task", by="alpha", xlabel=STAGE,
                        ylabel="accuracy, head refitted")
    last = fixed[fixed["stage"] == fixed["stage"].max()].groupby("alpha")["accuracy"].mean()
    rank, products = int(fixed["r"].max()), (fixed["lora_alpha"] * fixed["learning_rate"]).groupby(fixed["alpha"])
    alt = (f"Line plots of accuracy against the stage, one panel per task, for LoRA r={rank} by alpha. Mean over tasks "
           f"after the last stage, {fixed['seed'].nunique()} of the seeds of {accuracies.source}: "
           f"{listed(last, '{:.3f}')}.")
    shown = pd.DataFrame({"alpha times rate": products.mean(), "mean accuracy at the end": last,
                          "seeds": fixed.groupby("alpha")["seed"].nunique()}).reset_index()
    return Drawn(drawn, alt, f"The sequence at rank {rank} by alpha; alpha times the learning rate (in the table) "
                 "should be equal, as in the paper, to tell alpha's own part.", fixed, shown.head(8))
