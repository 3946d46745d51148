"""The grid of rates drawn: what each outcome does over the rates, and what is left of the rank at the best ones."""

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes

from utils.reporting.drawn import Drawn, Found, figure, finding
from utils.reporting.measured import Measured
from utils.reporting.panels import doubling_axis, draw_lines, outer_legend, panels
from utils.reporting.rules import CLAIM_EPSILONS
from utils.reporting.selection import runs_that_learnt
from utils.reporting.style import method_styles
from utils.reporting.words import both, listed, over_seeds
from utils.studies.intruders.figures import count_axis
from utils.studies.what_moves.figures import plain_lora
from utils.studies.what_moves.grid import GRIDS, at_chosen_rates, chosen_rates, with_product

STRICT, LENIENT = CLAIM_EPSILONS
OUTCOMES = {"n_intruders": f"intruder dimensions, epsilon {STRICT}", "validation_accuracy": "validation accuracy",
            "forgetting": "forgetting, nats per token", "relative_norm": "relative norm of the update"}


def of_task(grid: Measured, task: int, epsilon: float = STRICT) -> Measured:
    """One task's rows at one epsilon, tasks counted from 1; of the reader's alone where the reference has none yet."""
    part = grid.where(f"experiment == '{GRIDS[task - 1]}' and epsilon == {epsilon}")
    return replace(part, reference=None) if part.reference is not None and part.reference.empty else part


def _rate_axis(axis: Axes, rates: list[float]) -> None:
    doubling_axis(axis, rates, form=".2g")
    axis.tick_params(axis="x", rotation=60)


def _over_rates(grid: Measured, task: int) -> Drawn:
    part = of_task(grid, task)
    drawn, axes = panels(len(OUTCOMES), height=3.7)
    everything = pd.concat([part.own, part.best])
    styles = method_styles(everything.sort_values("r")["method"].unique())
    rates = sorted(everything["learning_rate"].unique())
    for axis, (column, label) in zip(axes, OUTCOMES.items(), strict=True):
        draw_lines(axis, part.own, part.reference, x="learning_rate", y=column, styles=styles)
        axis.set(title=label, xlabel="learning rate")
        _rate_axis(axis, rates)
        if column == "n_intruders":
            count_axis(axis, everything[column].max())
        if column == "relative_norm":
            axis.set_yscale("log")
        if column == "validation_accuracy":  # runs that broke would press all others together at the top
            shown = runs_that_learnt(everything)[column]
            axis.set_ylim(bottom=shown.min() - 0.1 * max(shown.max() - shown.min(), 0.02))
    outer_legend(drawn, axes)
    chosen = chosen_rates(part.best)
    learnt = runs_that_learnt(part.best)
    most = learnt.groupby(["method", "learning_rate"], sort=False)["n_intruders"].mean().groupby(
        level=0, sort=False).max()
    alt = (f"Four line plots against learning rate on task {part.best['task'].iloc[0]}, one line per method: intruder "
           f"dimensions, validation accuracy, forgetting, relative norm; {part.best['run'].nunique()} runs, of which "
           f"{part.best['run'].nunique() - learnt['run'].nunique()} did not learn. Best rates: "
           f"{listed(chosen.set_index('method')['learning_rate'])}. Largest mean count at any rate that learnt: "
           f"{listed(most)}.")
    return Drawn(drawn, alt, "Every method over its learning rates; bands are the reference's seeds; hollow runs did "
                 "not learn, and the accuracy axis leaves out those far below the others.",
                 part.own if len(part.own) else part.best, _chosen_table(part.best))


def _chosen_table(grid: pd.DataFrame) -> pd.DataFrame:
    """Each method's chosen rate with what it gives there: the small table under the figure."""
    best = runs_that_learnt(at_chosen_rates(grid))
    means = best.groupby("method", sort=False)[["accuracy", "n_intruders", "forgetting"]].mean()
    chosen = chosen_rates(grid).set_index("method")
    table = chosen[["learning_rate", "validation_accuracy"]].join(means)
    table["learning_rate"] = [f"{rate:.3g}{' (edge)' if edge else ''}"
                              for rate, edge in zip(chosen["learning_rate"], chosen["edge"], strict=True)]
    return table.reset_index().rename(columns={
        "learning_rate": "best rate", "validation_accuracy": "validation", "accuracy": "test",
        "n_intruders": "intruders"}).head(8)


def _over_rates_found(grid: Measured, task: int) -> Found:
    part = of_task(grid, task)
    if part.best.empty:
        return Found(f"The grid's task {task} is not measured yet.", None)
    chosen, best = chosen_rates(part.best), runs_that_learnt(at_chosen_rates(part.best))
    lora = best[best["method_kind"] == "lora"]
    some = lora.groupby("method", sort=False)["n_intruders"].mean()
    with_some = both(f"{name} ({value:.2g})" for name, value in some.items() if value > 0)
    none = both(name for name, value in some.items() if value == 0)
    full = best.loc[best["method_kind"] == "full", "n_intruders"]
    edges = both(f"{one.method} ({one.edge} tried)" for one in chosen.itertuples() if one.edge)
    text = (f"On task {part.best['task'].iloc[0]}, {part.source}, at the rates of best validation accuracy: intruders "
            f"on average in {with_some or 'no LoRA'}; none in any seed in {none or 'no LoRA'}; full fine-tuning has "
            f"{over_seeds(full) if len(full) else 'no run that learnt'}.")
    learnt = runs_that_learnt(part.best)
    twins = learnt.loc[learnt["n_intruders"] > 0, ["n_intruders", "n_random"]]
    if len(twins):
        text += (f" Over all rates {len(twins)} runs that learnt have intruders, {twins['n_intruders'].mean():.2g} on "
                 f"average; a random update with the same singular values makes {twins['n_random'].mean():.2g}.")
    if edges:
        text += f" The best rate lies on the edge of the grid for {edges}: a better one may lie beyond."
    return Found(text, None if edges else bool(len(full) and full.eq(0).all() and with_some and not none))


@figure("05_rate_grid", measurements=("rate_grid",), place="Illusion v3, Fig 7, over ranks")
def rate_grid(grid: Measured) -> Drawn:
    """Count, validation accuracy, forgetting and norm over the learning rate, one line per method; first task."""
    return _over_rates(grid, 1)


@finding("05_rate_grid")
def rate_grid_found(grid: Measured) -> Found:
    """What the tables say to :func:`rate_grid`, and whether it is what was expected."""
    return _over_rates_found(grid, 1)


@figure("05_rate_grid_second", measurements=("rate_grid",), place="Illusion v3, Fig 7, over ranks")
def rate_grid_second(grid: Measured) -> Drawn:
    """The same on the second task."""
    return _over_rates(grid, 2)


@finding("05_rate_grid_second")
def rate_grid_second_found(grid: Measured) -> Found:
    """What the tables say to :func:`rate_grid_second`, and whether it is what was expected."""
    return _over_rates_found(grid, 2)


@figure("05_rank_three_ways", measurements=("rate_grid",), place="Illusion v3, Fig 4d")
def rank_three_ways(grid: Measured) -> Drawn:
    """Count against rank: each rank at its best rate, by the paper's rule, and at one rate for all ranks."""
    drawn, axes = panels(4, height=3.5)
    best = {epsilon: lora_at_best(grid.best, epsilon) for epsilon in CLAIM_EPSILONS}
    for axis, epsilon in zip(axes[:2], CLAIM_EPSILONS, strict=True):
        _by_rank(axis, best[epsilon], by="task", title=f"each at its best rate, epsilon {epsilon}")
    lora, task = _ranks_of_one_task(grid)
    settings = {"alpha × rate constant": "product", "one rate": "learning_rate"}
    for axis, (title, column) in zip(axes[2:], settings.items(), strict=True):
        _by_rank(axis, _shared(lora, column), by=column, title=f"{title}, {task}, epsilon {STRICT}")
    means = {epsilon: table.groupby(["task", "method"], sort=False)["n_intruders"].mean()
             for epsilon, table in best.items()}
    alt = (f"Four line plots of intruder dimensions against LoRA rank, {grid.source}. At best rates: " + "; ".join(
        f"epsilon {epsilon}: " + ", ".join(f"{task} {method} {value:.3g}" for (task, method), value in part.items())
        for epsilon, part in means.items()) + ". Below: lines of constant alpha times rate, and of constant rate.")
    wide = best[STRICT].pivot_table(index="method", columns="task", values="n_intruders", sort=False)
    wide.columns = [f"intruders, {task}" for task in wide.columns]
    return Drawn(drawn, alt, "Intruder dimensions against rank under three rules for the learning rate; points are "
                 "means over the seeds that learnt.", grid.own if len(grid.own) else grid.best,
                 wide.reset_index().head(8))


def _ranks_of_one_task(grid: Measured) -> tuple[pd.DataFrame, str]:
    """LoRA's runs that learnt, with alpha = 2r, of the first task that has three ranks of them, and its name."""
    for task in (1, 2):
        lora = plain_lora(runs_that_learnt(of_task(grid, task).best))
        if lora["r"].nunique() >= 3:
            return lora, lora["task"].iloc[0]
    return lora.iloc[:0], "no task yet"


def lora_at_best(grid: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """LoRA's runs that learnt at each rank's chosen rate, at one epsilon."""
    rows = grid[(grid["epsilon"] == epsilon) & grid["experiment"].isin(GRIDS)]
    best = runs_that_learnt(at_chosen_rates(rows))
    return best[best["method_kind"] == "lora"]


def _shared(lora: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of settings that three ranks or more share, with ``product`` for alpha times learning rate."""
    return with_product(lora).groupby(column).filter(lambda same: same["r"].nunique() >= 3)


def _by_rank(axis: Axes, table: pd.DataFrame, *, by: str, title: str) -> None:
    """Mean count against rank, one line per value of `by`."""
    styles = method_styles([f"{value}" for value in sorted(table[by].unique())])
    for (value, part), style in zip(table.groupby(by), styles.values(), strict=True):
        line = part.groupby("r")["n_intruders"].mean()
        axis.plot(line.index, line.values, label=value if by == "task" else f"{value:.2g}", markersize=4, **style)
    ranks = sorted(table["r"].unique())
    doubling_axis(axis, ranks)
    count_axis(axis, table["n_intruders"].max() if len(table) else 0)
    axis.set(title=title, xlabel="LoRA rank", ylabel="intruder dimensions")
    if len(table):
        axis.legend(title={"task": "task", "product": "alpha × rate"}.get(by, "rate"), fontsize="x-small",
                    loc="center left", bbox_to_anchor=(1.01, 0.5))


@finding("05_rank_three_ways")
def rank_three_ways_found(grid: Measured) -> Found:
    """What the tables say to :func:`rank_three_ways`, and whether it is what was expected."""
    lora, task = _ranks_of_one_task(grid)
    if lora.empty:
        return Found("Fewer than three ranks of a task are measured yet: nothing can be said of the rank.", None)
    rule, fixed = _ends(_shared(lora, "product"), "product"), _ends(_shared(lora, "learning_rate"), "learning_rate")
    text = (f"{grid.source[0].upper()}{grid.source[1:]}, {task}, epsilon {STRICT}: under the paper's rule the "
            f"count falls from the lowest to the highest rank in {(rule < 0).sum()} of {len(rule)} settings and rises "
            f"in {(rule > 0).sum()}; at one rate it falls in {(fixed < 0).sum()} of {len(fixed)} and rises in "
            f"{(fixed > 0).sum()}.")
    met = bool((rule < 0).sum() > (rule > 0).sum() and (fixed > 0).sum() >= (fixed < 0).sum()) if len(
        rule) and len(fixed) else None
    return Found(text, met)


def _ends(lora: pd.DataFrame, column: str) -> pd.Series:
    """Mean count at the highest rank minus at the lowest, by setting."""
    means = lora.groupby([column, "r"])["n_intruders"].mean()
    return means.groupby(level=0).agg(lambda part: part.iloc[-1] - part.iloc[0])
