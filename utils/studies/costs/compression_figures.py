"""Figures of notebook 15 on compressed weights, and on what worked examples cost an evaluation."""

import numpy as np
import pandas as pd

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import outer_legend, panels
from utils.reporting.style import method_styles

LEADING = 10  # vectors whose mean cosine is told apart from that of the lower half


@figure("15_compressed_spectrum", place="ours")
def compressed_spectrum(profile: Profile, *, spectra: pd.DataFrame, matrix: str) -> Drawn:
    """One matrix compressed: its singular values, and how far the vector of each index still points the same way.

    Parameters
    ----------
    spectra : pandas.DataFrame
        Of :func:`utils.spectra.compress.singular_values`.
    """
    figure_, (values, angles) = panels(2)
    first = spectra[spectra["way"] == spectra["way"].iloc[0]]
    values.plot(first["index"], first["before"], color="black", linewidth=2.5, alpha=0.5, label="before")
    for way, style in method_styles(spectra["way"]).items():
        part = spectra[spectra["way"] == way]
        look = {"color": style["color"], "linestyle": style["linestyle"], "label": way}
        values.plot(part["index"], part["singular_value"], **look)
        angles.plot(part["index"], part["cosine"].rolling(5, center=True, min_periods=1).mean(), **look)
    values.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    angles.set(xlabel="index", ylabel="|cosine| at equal index, mean of five", ylim=(0, 1.03))
    outer_legend(figure_, (values, angles))
    lead = spectra[spectra["index"] <= LEADING].groupby("way", sort=False)["cosine"].mean()
    tail = spectra[spectra["index"] > spectra["index"].max() / 2].groupby("way", sort=False)["cosine"].mean()
    shown = pd.DataFrame({f"mean cosine, {LEADING} leading": lead, "mean cosine, lower half": tail})
    alt = (f"Singular values of {matrix} before and after compression, and the cosine of each left vector with the one "
           f"of equal index. Mean cosine of the {LEADING} leading vectors, and of the lower half: " + "; ".join(
               f"{way} {lead[way]:.3f}, {tail[way]:.3f}" for way in lead.index) + ".")
    return Drawn(figure_, alt, f"Singular values and left singular vectors of {matrix}, compressed in "
                 f"{len(lead)} ways.", spectra, shown.rename_axis("way").reset_index())


@figure("15_compression", measurements=("compression",), place="ours; Illusion v3, Definition 3.1")
def compression(compressed: Measured) -> Drawn:
    """Rise of the held-out loss and number of intruders against the stored bits per weight; the reference is a ring."""
    table, reference = compressed.own, compressed.reference
    figure_, axes = panels(2, height=5)
    for axis, column in zip(axes, ("loss_rise", "n_intruders"), strict=True):
        for way, style in method_styles(table["way"]).items():
            rows = table[table["way"] == way]
            axis.plot(rows["bits"], rows[column], color=style["color"], marker=style["marker"], linestyle="none",
                      markersize=8, label=way)
        if reference is not None:
            axis.plot(reference["bits"], reference[column], "o", markerfacecolor="none", color="0.5", markersize=13,
                      label="reference")
        axis.set(xlabel="bits per weight")
    axes[0].set_yscale("symlog", linthresh=0.01)
    axes[1].set_yscale("symlog", linthresh=1)
    axes[0].set_ylabel("rise of the held-out loss, nats per token")
    axes[1].set_ylabel("intruder dimensions, all matrices")
    outer_legend(figure_, axes)
    alt = (f"Rise of the held-out loss, and intruder dimensions of {table['matrices'].iloc[0]} matrices, against bits "
           "per weight. " + "; ".join(f"{row.way} ({row.bits:.1f} bits): loss {row.loss_rise:+.3f} nats, "
                                      f"{row.n_intruders} intruders" for row in table.itertuples()) + ".")
    ordered = compressed.best.sort_values("relative_error")
    spread = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, 8).round().astype(int))]
    columns = {"way": "way", "bits": "bits", "relative_error": "relative error", "loss_rise": "rise of the loss",
               "n_intruders": "intruders", "lowest_cosine": "lowest cosine"}
    return Drawn(figure_, alt, "What compressing every matrix does to the loss and to the count of intruder "
                 "dimensions; the table has eight of the ways, from the smallest error to the largest.", table,
                 shown_table(spread, columns))


@figure("15_few_shot", measurements=("evaluation_costs",), place="ours")
def few_shot(shots: Measured) -> Drawn:
    """Accuracy with its standard error, and tokens per question, against the number of worked examples."""
    figure_, (accuracy, tokens) = panels(2)
    table, reference = shots.own, shots.reference
    for shift, (task, style) in enumerate(method_styles(table["task"]).items()):
        part = table[table["task"] == task]
        if reference is not None:
            held = reference[reference["task"] == task]
            accuracy.plot(held["shots"], held["accuracy"], color=style["color"], alpha=0.3, linewidth=5)
        accuracy.errorbar(part["shots"] + 0.03 * shift, part["accuracy"], yerr=part["standard_error"], capsize=3,
                          label=task, **style)
        tokens.plot(part["shots"], part["tokens_per_question"], label=task, **style)
    accuracy.axhline(0.25, color="grey", linestyle=":", linewidth=1, label="guessing, 1 of 4")
    for axis in (accuracy, tokens):
        axis.set_xlabel("worked examples before each question")
        axis.set_xticks(sorted(table["shots"].unique()))
    accuracy.set_ylabel("accuracy ± standard error")
    tokens.set(ylabel="tokens per question", ylim=(0, None))
    outer_legend(figure_, (accuracy, tokens))
    numbers = "; ".join(f"{row.task}, {row.shots}: accuracy {row.accuracy:.3f} ± {row.standard_error:.3f}, "
                        f"{row.tokens_per_question:.0f} tokens" for row in table.itertuples())
    alt = ("Accuracy with its standard error, and tokens per question, against the number of worked examples. "
           f"{numbers}.")
    columns = {"task": "task", "shots": "examples", "difference": "change of accuracy", "difference_se": "its error",
               "token_ratio": "times the tokens", "longest": "longest row"}
    window = table["window"].iloc[0]
    return Drawn(figure_, alt, f"Worked examples before each question; the decoder's window is {window} tokens, "
                 "and the thick pale line is the reference.", table, shown_table(table, columns))
