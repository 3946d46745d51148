"""The figures of notebook 09: the base, learning rates, learning curves and their gap, exact answers."""

from collections.abc import Mapping

import pandas as pd

from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure
from utils.reporting.measured import Measured
from utils.reporting.panels import doubling_axis, outer_legend, panel_lines, panels
from utils.reporting.statistics import summarise
from utils.reporting.style import DASHES
from utils.reporting.words import listed
from utils.studies.learning.drawing import methods_of, over_durations, published_above
from utils.studies.learning.published import published_base
from utils.studies.learning.tables import ROWS, as_curves, at_longest, gap_growth, gap_table, guessing, with_control

LOSS = "held-out loss, nats per token"


def tables(measured: Measured, **keywords) -> list[pd.DataFrame]:
    """Own, reference and best of a measurement as curves; what has not learnt is drawn like the rest.

    A learning curve shows itself how much was learnt, so that no run of it is left out.
    """
    return [None if table is None else as_curves(table, **keywords).drop(columns="learnt", errors="ignore")
            for table in (measured.own, measured.reference, measured.best)]


@figure("09_the_base", place="ours")
def the_base(profile: Profile, curve: pd.DataFrame, *, ngrams: Mapping[int, float]) -> Drawn:
    """Held-out loss of the small decoder while it was pretrained, beside n-gram models of the same tokens.

    Parameters
    ----------
    curve : pandas.DataFrame
        ``step``, ``heldout_loss_nats_per_token``.
    ngrams : mapping of int to float
        Order -> loss in nats per token.
    """
    drawn, (axis,) = panels(1, height=3.6, width=7)
    losses = curve["heldout_loss_nats_per_token"]
    axis.plot(curve["step"], losses, "o-", color="black", markersize=3, label="decoder")
    for index, (order, loss) in enumerate(ngrams.items()):
        axis.axhline(loss, color=f"C{index}", linestyle=DASHES[(index + 1) % len(DASHES)], linewidth=1.2,
                     label=f"{order}-gram model")
    axis.set(xlabel="optimiser step", ylabel=LOSS)
    outer_legend(drawn, [axis])
    named = {f"{order}-gram": loss for order, loss in ngrams.items()}
    alt = ("Line plot of the small decoder's held-out loss against optimiser steps, from "
           f"{losses.iloc[0]:.2f} to {losses.iloc[-1]:.2f} nats per token; horizontal lines: "
           f"{listed(named, '{:.2f}')}.")
    shown = pd.DataFrame({"model": [*named, "decoder, at the end"], LOSS: [*named.values(), losses.iloc[-1]]})
    return Drawn(drawn, alt, "The base of continued pretraining, on news that it was not trained on, beside n-gram "
                 "models of the same tokens.", curve, shown)


@figure("09_learning_rates", measurements=("sensitivity", "learning_curves"), place="Learns less v2, appendix A")
def learning_rates(sweep: Measured, curves: Measured) -> Drawn:
    """Held-out loss on code after a short run against the learning rate, one line per method.

    Parameters
    ----------
    curves : Measured
        Of the long runs, for the rate that was chosen for each method.
    """
    own, reference, best = tables(sweep.where("experiment == 'rates'"))
    drawn = panel_lines(own, reference, x="learning_rate", y="loss_nats_per_token", panel="task", ylabel=LOSS,
                        xlabel="learning rate", xscale="log")
    means = best.groupby(["method", "learning_rate"], sort=False)["loss_nats_per_token"].agg(["mean", "size"])
    least = means.loc[means.groupby("method", sort=False)["mean"].idxmin()].reset_index()
    chosen = curves.own.drop_duplicates("method").set_index("method")["learning_rate"]
    shown = pd.DataFrame({
        "method": least["method"], "best rate": least["learning_rate"].map("{:g}".format), "loss there": least["mean"],
        "seeds": least["size"],
        "chosen rate": [f"{chosen[name]:g}" if name in chosen else "" for name in least["method"]]})
    alt = ("Line plot of held-out loss on code after a short run against the learning rate, one line per method. Best "
           f"rates, {sweep.source}: " + "; ".join(f"{row.method} {row.learning_rate:g} with {row.mean:.3f}"
                                                  for row in least.itertuples(name="Row")) + " nats per token.")
    return Drawn(drawn, alt, "Short runs on code at several learning rates, each method's best and the one chosen for "
                 "the long runs below.", own, shown)


@figure("09_learning_curves", measurements=("learning_curves",), place="Learns less v2, Fig 1 A and C")
def learning_against_tokens(curves: Measured) -> Drawn:
    """Held-out loss against tokens of continued pretraining below the published accuracies; up is better in both."""
    own, reference, best = tables(curves)
    published = curves.published.query("quantity == 'learning' and regime == 'continued pretraining'")
    base = own.groupby("dataset")["base_loss_nats_per_token"].mean()
    drawn = published_above(own, reference, published=published, base=published_base(), y="loss_nats_per_token",
                            xlabel="thousand tokens", ylabel=f"{LOSS}\n(reversed)",
                            titles={name: f"ours: {name}, base {value:.2f}" for name, value in base.items()})
    means = at_longest(best).groupby(["dataset", "method"], sort=False)["loss_nats_per_token"].mean()
    alt = ("Above, published accuracy against billion tokens; below, our held-out loss against thousand tokens of "
           f"continued pretraining, one panel per domain, its axis reversed. After the longest, {curves.source}: "
           + "; ".join(f"{name}, base {base[name]:.2f}: {listed(part.droplevel(0), '{:.3f}')}"
                       for name, part in means.groupby(level=0, sort=False)) + " nats per token.")
    shown = means.unstack(0, sort=False).rename_axis(columns=None).reset_index()
    return Drawn(drawn, alt, "Continued pretraining, published above and ours below: up is learning more; the shown "
                 "losses are those of the longest duration.", own, shown)


@figure("09_gap", measurements=("learning_curves",), place="Learns less v2, Fig 1 A and C")
def gap_to_full(curves: Measured) -> Drawn:
    """LoRA's held-out loss minus full fine-tuning's against tokens; zero, where they are equal, is a line."""
    own, reference, best = (None if table is None else gap_table(table) for table in tables(curves))
    drawn = panel_lines(own, reference, x="duration", y="gap", panel="dataset", xlabel="thousand tokens",
                        ylabel="loss above full, nats per token")
    for axis in drawn.axes:
        doubling_axis(axis, own["duration"])
        axis.axhline(0, color="black", linewidth=1)
    growth = gap_growth(best)
    ends = growth.groupby(["dataset", "method"], sort=False)[["shortest", "longest"]].mean()
    change = summarise(growth, "growth", ["dataset", "method"])
    alt = ("Line plots of held-out loss minus full fine-tuning's against thousand tokens, one panel per domain. From "
           f"the shortest to the longest duration, {curves.source}: " + "; ".join(
               f"{dataset}, {method} {row['shortest']:.3f} to {row['longest']:.3f}"
               for (dataset, method), row in ends.iterrows()) + " nats per token.")
    shown = ends.reset_index().assign(growth=change["growth"], low=change["low"], high=change["high"])
    return Drawn(drawn, alt, "The gap to full fine-tuning at the same tokens and seed, and by how much it grew, with a "
                 "95 % interval over seeds.", own, _as_text(shown).head(8))


def _as_text(growth: pd.DataFrame) -> pd.DataFrame:
    interval = [f"{row.low:.3f} to {row.high:.3f}" if pd.notna(row.low) else "one seed" for row in growth.itertuples()]
    return growth.assign(interval=interval).drop(columns=["low", "high"]).rename(columns={
        "shortest": "gap, shortest", "longest": "gap, longest", "interval": "growth, 95 % interval"})


@figure("09_exact_match", measurements=("learning_curves", "shuffled_answers"), place="Learns less v2, Fig 1 C")
def exact_answers(curves: Measured, shuffled: Measured) -> Drawn:
    """Share of held-out questions answered exactly, beside the control and beside guessing."""
    own, reference, best = (with_control(table, control) for table, control in
                            zip(tables(curves), tables(shuffled), strict=True))
    questions = curves.profile.decoder_evaluation.questions
    guessed = guessing(questions)
    drawn, (axis,) = panels(1, width=8.5)
    over_durations(axis, own, reference, y="exact_match", methods=methods_of(own, reference))
    axis.axhline(guessed, color="0.4", linestyle=":", label="each kind's most frequent answer")
    axis.set(xlabel="thousand tokens of mathematics", ylabel="questions answered exactly", ylim=(0, None))
    outer_legend(drawn, [axis])
    ends = at_longest(best).groupby("method", sort=False)["exact_match"].mean()
    base = own["base_exact_match"].mean()
    alt = ("Line plot of the share of held-out questions answered exactly against thousand tokens, one line per "
           "method, with the control trained on shuffled answers where there is one. Answering with each kind's most "
           f"frequent answer: {guessed:.3f}; base {base:.3f}; after the longest, {curves.source}: "
           f"{listed(ends, '{:.3f}')}.")
    shown = pd.concat([ends, pd.Series({"each kind's most frequent answer": guessed})])
    shown = pd.DataFrame({"method": shown.index, "exact match": shown.to_numpy(),
                          "standard error of one model": ((shown * (1 - shown) / questions) ** 0.5).to_numpy()})
    return Drawn(drawn, alt, f"Exact answers to {questions} held-out questions, beside guessing and beside training on "
                 "answers that belong to other questions.", own, shown.head(8))


@figure("09_instruction_tuning", measurements=("instruction_curves",), place="Learns less v2, Fig 1 B and D")
def instruction_tuning(tuned: Measured) -> Drawn:
    """Held-out loss on answers below the published accuracies of instruction tuning; few durations, so points alone."""
    own, reference, best = tables(tuned.where("experiment == 'instruction'"), unit=ROWS)
    published = tuned.published.query("quantity == 'learning' and regime == 'instruction tuning'")
    base = own["base_loss_nats_per_token"].mean()
    drawn = published_above(own, reference, published=published, base=published_base(), y="loss_nats_per_token",
                            xlabel="rows seen", ylabel=f"{LOSS}\n(reversed)", joined=False,
                            titles={name: f"ours: {name}, base {base:.3f}" for name in own["dataset"].unique()})
    last = at_longest(best).groupby("method", sort=False)["loss_nats_per_token"].mean()
    alt = ("Above, published HumanEval and GSM8K accuracy against epochs; below, our held-out loss on answers against "
           f"rows seen, its axis reversed. Base {base:.3f}; at the end, {tuned.source}: {listed(last, '{:.3f}')} nats "
           "per token.")
    tried = tables(tuned, unit=ROWS)[2]
    tried = summarise(at_longest(tried), "loss_nats_per_token", ["method", "learning_rate"])
    shown = pd.DataFrame({"method": tried["method"], "rate": tried["learning_rate"].map("{:g}".format),
                          "loss at the end": tried["loss_nats_per_token"], "seeds": tried["seeds"]})
    return Drawn(drawn, alt, "Instruction tuning, published above and ours below: up is learning more; below, every "
                 "rate that was tried.", own.rename(columns={"train_tokens": "train_rows"}), shown.head(8))
