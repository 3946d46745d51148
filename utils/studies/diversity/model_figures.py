"""The figures of notebook 11 that are about models and not about texts: entropy of the next token, and pass@k."""

from utils.reporting.drawn import Drawn, figure
from utils.reporting.measured import Measured
from utils.reporting.panels import draw_lines, label_left, outer_legend, panels
from utils.reporting.style import method_styles
from utils.studies.diversity.figures import method_points


@figure("11_token_entropy", measurements=("token_entropy",), place="ours")
def token_entropy(entropy: Measured) -> Drawn:
    """Mean entropy of the next token by method, one panel per text; the axis begins at certainty."""
    own, reference = (None if table is None else table.assign(panel=table["text"])
                      for table in (entropy.own, entropy.reference))
    drawn = method_points(own, reference, y="entropy_nats", unit="seed", ylabel="entropy of the next token, nats")
    means = entropy.best.groupby(["text", "method"], sort=False)["entropy_nats"].mean()
    alt = (f"Points: mean entropy of the next token by method, one panel per text, {entropy.source}. " + "; ".join(
        f"{text}, {method}: {value:.3f}" for (text, method), value in means.items()) + " nats.")
    base = means.xs("base", level="method")
    shown = means.rename("entropy, nats").reset_index()
    shown["minus base"] = shown["entropy, nats"] - shown["text"].map(base)
    return Drawn(drawn, alt, "How unsure each model is of the next token, in nats; a collapse would be a value below "
                 "the base's.", own, shown.head(8))


@figure("11_pass_at_k", measurements=("pass_rates",), place="Learns less v2, Fig S9")
def pass_curves(rates: Measured) -> Drawn:
    """pass@k against k, one panel per temperature, one line per method; the reference alone where no code was run here.

    Bars are the interval over problems of the first seed.
    """
    shown = rates.reference if rates.own.empty else rates.own
    temperatures, styles = sorted(shown["temperature"].unique()), method_styles(shown["method"].unique())
    drawn, axes = panels(len(temperatures), sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        part = shown[shown["temperature"] == temperature]
        band = None if rates.reference is None else rates.reference[rates.reference["temperature"] == temperature]
        draw_lines(axis, part, band, x="k", y="pass_at_k", styles=styles)
        for place, (method, style) in enumerate(styles.items()):
            first = part[(part["method"] == method) & (part["seed"] == part["seed"].min())]
            axis.vlines(first["k"] * 1.03 ** (place - len(styles) / 2), first["low"], first["high"], linewidth=1,
                        color=style["color"], alpha=0.6)
        ks = sorted(part["k"].unique())
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [f"{k:g}" for k in ks])
        axis.set(xlabel="k", ylim=(-0.02, 1.02),
                 title=f"temperature {temperature:g}" + ", reference" * rates.own.empty)
    label_left(axes, "pass@k")
    outer_legend(drawn, axes)
    best = rates.own if rates.reference is None else rates.reference
    ends = best[best["k"].isin([best["k"].min(), best["k"].max()])]
    means = ends.groupby(["temperature", "method", "k"], sort=False)["pass_at_k"].mean()
    alt = ("Line plots of pass@k against k, one panel per temperature, one line per method: " + ", ".join(
        f"{method} at {temperature:g} pass@{k} {value:.2f}" for (temperature, method, k), value in means.items()) + ".")
    wide = means.unstack("k").rename(columns="pass@{:g}".format).rename_axis(columns=None).reset_index()
    return Drawn(drawn, alt, "The chance that one of k generations passes; bars are 95 % intervals over problems of "
                 "the first seed, bands the reference's seeds.", shown, wide.head(8))
