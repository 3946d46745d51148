"""The best rates at more steps, drawn: do intruders need a larger rate, or only time?"""

import pandas as pd

from utils.reporting.drawn import Drawn, Found, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import doubling_axis, draw_lines, outer_legend, panels
from utils.reporting.rules import CLAIM_EPSILONS
from utils.reporting.selection import runs_that_learnt
from utils.reporting.style import method_styles
from utils.reporting.words import listed
from utils.studies.intruders.figures import count_axis
from utils.studies.what_moves.grid import GRIDS, LONGER

STRICT, LENIENT = CLAIM_EPSILONS


def longer_and_shorter(grid: pd.DataFrame) -> pd.DataFrame:
    """The longer runs and, of the second grid, those of the same methods, rates and seeds.

    Parameters
    ----------
    grid : pandas.DataFrame
        As :func:`~utils.studies.what_moves.grid.rate_grid` measures it.
    """
    setting = ["method", "learning_rate", "seed"]  # the grid has more seeds at these rates
    long = grid[grid["experiment"] == LONGER]
    short = grid[grid["experiment"] == GRIDS[1]].merge(long[setting].drop_duplicates(), on=setting)
    return pd.concat([short, long], ignore_index=True)


@figure("05_longer", measurements=("rate_grid",), place="Illusion v3, Fig 7, left")
def longer(grid: Measured) -> Drawn:
    """Count at both epsilons, validation accuracy and norm against the number of steps, each method at one rate."""
    grid = grid.rows(longer_and_shorter)
    own, reference, best = grid.own, grid.reference, grid.best
    drawn, axes = panels(4, height=3.4)
    styles = method_styles(best.sort_values("r")["method"].unique())
    shown = [("n_intruders", STRICT, f"intruder dimensions, epsilon {STRICT}"),
             ("n_intruders", LENIENT, f"intruder dimensions, epsilon {LENIENT}"),
             ("validation_accuracy", STRICT, "validation accuracy"),
             ("relative_norm", STRICT, "relative norm of the update")]
    for axis, (column, epsilon, title) in zip(axes, shown, strict=True):
        parts = [None if part is None else part[part["epsilon"] == epsilon] for part in (own, reference)]
        draw_lines(axis, parts[0], parts[1], x="steps", y=column, styles=styles)
        doubling_axis(axis, sorted(best["steps"].unique()))
        axis.set(title=title, xlabel="steps")
        if column == "n_intruders":
            count_axis(axis, best.loc[best["epsilon"] == epsilon, column].max())
    outer_legend(drawn, axes)
    means = _means(best)
    alt = (f"Four line plots against the number of steps, one line per method, {grid.source}: intruder dimensions at "
           f"epsilon {STRICT} and {LENIENT}, validation accuracy, relative norm. Mean counts: " + "; ".join(
               f"{one.method} at {one.learning_rate:.3g}, {one.steps} steps: {one.strict:.2g} and {one.lenient:.2g}"
               for one in means.itertuples()) + ".")
    table = means.rename(columns={"learning_rate": "rate", "strict": f"intruders, ε {STRICT}",
                                  "lenient": f"intruders, ε {LENIENT}", "validation_accuracy": "validation"})
    return Drawn(drawn, alt, "One learning rate per method, after the grid's steps and after more; bands are the "
                 "reference's seeds.", best, table.head(8))


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """``method``, ``learning_rate``, ``steps``, ``strict``, ``lenient``, ``validation_accuracy``: means that learnt."""
    learnt = runs_that_learnt(rows).sort_values(["r", "steps"], kind="stable")
    setting = ["method", "learning_rate", "steps"]
    wide = learnt.pivot_table(index=setting, columns="epsilon", values="n_intruders", sort=False)
    accuracy = learnt.groupby(setting, sort=False)["validation_accuracy"].mean()
    return wide.rename(columns={STRICT: "strict", LENIENT: "lenient"}).join(accuracy).reset_index()


@finding("05_longer")
def longer_found(grid: Measured) -> Found:
    """What the tables say to :func:`longer`, and whether it is what was expected."""
    grid = grid.rows(longer_and_shorter)
    means = _means(grid.best)
    lora = means[means["method"] != "full"]
    if lora["steps"].nunique() < 2:
        return Found("The longer runs are not measured yet.", None)
    ends = lora.groupby("method", sort=False).agg(
        {"steps": ["first", "last"], "strict": ["first", "last"], "lenient": ["first", "last"]})
    grew = {STRICT: ends["strict"]["last"] - ends["strict"]["first"],
            LENIENT: ends["lenient"]["last"] - ends["lenient"]["first"]}
    text = (f"From {int(lora['steps'].min())} to {int(lora['steps'].max())} steps at one rate each, {grid.source}: " +
            "; ".join(f"at epsilon {epsilon} the mean count changes by {listed(change)}"
                      for epsilon, change in grew.items()) + ".")
    return Found(text, bool((grew[STRICT] > 0).all()))
