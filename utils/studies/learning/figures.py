"""What notebooks 09 and 10 draw and compare beyond :mod:`utils.reporting.tradeoffs`: tables in, figures out.

The tables are those of :mod:`utils.reporting.learning`. Own results are filled, the reference's seeds are faint or a
band.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from utils.reporting.panels import PANEL, panels
from utils.reporting.style import DASHES, MARKERS, method_styles, use_style
from utils.studies.learning.published import matched_learning
from utils.studies.learning.tradeoffs import draw_over_durations, learning_curves

BESIDE = 0.2  # of the distance between two methods: how far apart what belongs to one method stands


def as_curves(table: pd.DataFrame | None, *, unit: float = 1000) -> pd.DataFrame | None:
    """A table of learning with the columns that the figures and the comparison at matched learning ask for.

    Parameters
    ----------
    table : pandas.DataFrame or None
        Of :mod:`utils.reporting.learning`; None and an empty table come back as they are.
    unit : float
        Tokens (rows, in instruction tuning) of one unit of the axis.

    Returns
    -------
    pandas.DataFrame
        The same rows with ``dataset`` (the task), ``duration`` (in units) and ``remembering`` (minus the forgetting, so
        that more is better).

    Examples
    --------
    >>> row = pd.DataFrame({"task": ["python"], "train_tokens": [30720], "forgetting": [0.2]})
    >>> as_curves(row)[["dataset", "duration", "remembering"]].values.tolist()
    [['python', 30.72, -0.2]]
    """
    if table is None or table.empty:
        return table
    return table.assign(dataset=table["task"], duration=table["train_tokens"] / unit, remembering=-table["forgetting"])


def gap_table(curves: pd.DataFrame, *, y: str = "loss_nats_per_token", against: str = "full") -> pd.DataFrame:
    """By how much `y` of each method exceeds that of `against` at the same duration, seed by seed.

    Parameters
    ----------
    curves : pandas.DataFrame
        Of :func:`as_curves`.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``seed``, ``duration``, ``method``, ``gap`` (of a loss: positive means that the method learnt
        less); without rows of `against`.
    """
    keys = ["dataset", "seed", "duration"]
    other = curves.loc[curves["method"] == against, [*keys, y]].rename(columns={y: "other"})
    pairs = curves[curves["method"] != against].merge(other, on=keys, validate="many_to_one")
    return pairs.assign(gap=pairs[y] - pairs["other"])[[*keys, "method", "gap"]]


def gap_growth(gaps: pd.DataFrame) -> pd.DataFrame:
    """Each seed's gap at the shortest and at the longest duration: ``shortest``, ``longest``, ``growth``.

    Of a single duration the growth is 0.
    """
    ordered = gaps.sort_values("duration").groupby(["dataset", "method", "seed"], sort=False)["gap"]
    return ordered.agg(shortest="first", longest="last").reset_index().assign(
        growth=lambda t: t["longest"] - t["shortest"])


def equal_learning(curves: pd.DataFrame, runs: pd.DataFrame, *, against: str = "full") -> pd.DataFrame:
    """Single runs, such as those of a sweep of rates, beside a learning curve at equal learning, seed by seed.

    Parameters
    ----------
    curves, runs : pandas.DataFrame
        Of :func:`as_curves`; of `curves` only the rows of `against` count. Runs whose seed has no such curve are left
        out.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``seed``, ``method`` ("full, rate 0.001"), ``level`` (of learning), ``forgetting`` of the run,
        ``forgetting_against`` (the curve's) and ``spared`` (positive: the run forgets less).
    """
    line = curves[curves["method"] == against]
    known = runs.merge(line[["dataset", "seed"]].drop_duplicates(), on=["dataset", "seed"])
    named = known.assign(method=[f"{row.method}, rate {row.learning_rate:g}" for row in known.itertuples()])
    found = matched_learning(pd.concat([line, named], ignore_index=True), against=against)
    return found.assign(forgetting=-found["remembering"], forgetting_against=-found["remembering_against"],
                        spared=found["difference"])[["dataset", "seed", "method", "level", "forgetting",
                                                     "forgetting_against", "spared"]]


def base_and_ngrams(curve: pd.DataFrame, ngrams: Mapping[int, float]) -> Figure:
    """Held-out loss of the small decoder while it was pretrained, beside n-gram models of the same tokens.

    Parameters
    ----------
    curve : pandas.DataFrame
        ``step``, ``heldout_loss_nats_per_token``.
    ngrams : mapping of int to float
        Order -> loss in nats per token.
    """
    figure, (axis,) = panels(1, height=3.6, width=7)
    axis.plot(curve["step"], curve["heldout_loss_nats_per_token"], "o-", color="black", markersize=3, label="decoder")
    for index, (order, loss) in enumerate(ngrams.items()):
        axis.axhline(loss, color=f"C{index}", linestyle=DASHES[(index + 1) % len(DASHES)], linewidth=1.2,
                     label=f"{order}-gram model")
    axis.set(xlabel="optimiser step", ylabel="held-out loss, nats per token")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def gap_panels(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, ylabel: str, xlabel: str) -> Figure:
    """The gap to full fine-tuning against how long was trained; zero, where LoRA equals it, is a line.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Of :func:`gap_table`.
    """
    figure = learning_curves(None, own, reference, y="gap", ylabel=ylabel, xlabel=xlabel)
    for axis in figure.axes:
        axis.axhline(0, color="black", linewidth=1)
    return figure


def quantity_panels(own: pd.DataFrame, reference: pd.DataFrame | None, values: Mapping[str, str], *,
                    xlabel: str) -> Figure:
    """Several quantities of the same runs against how long was trained, one panel each (Fig 4).

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Of :func:`as_curves`; methods that the reference alone has are drawn too.
    values : mapping of str to str
        Column -> label of its axis; of a column ``base_…`` beside it the mean is drawn as the base's dashed line.
    """
    figure, axes = panels(len(values), **({"width": 8.5} if len(values) == 1 else {}))  # the legend takes its share
    methods = list(dict.fromkeys([*own["method"], *([] if reference is None else reference["method"])]))
    for axis, (column, label) in zip(axes, values.items(), strict=True):
        base = f"base_{column}"
        draw_over_durations(axis, own, reference, y=column, base=base if base in own else None,
                            styles=method_styles(methods))
        axis.set(xlabel=xlabel, ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def accuracy_points(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, value: str, error: str,
                    ylabel: str) -> Figure:
    """One accuracy per method with its standard error, one panel per data set; the untouched base as a line and band.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        ``dataset``, ``method``, `value`, `error`, and ``base_`` with both names; a row per seed. The reference's seeds
        are faint points.
    """
    names = list(own["dataset"].unique())
    figure, axes = panels(len(names), sharey=True)
    styles = method_styles(list(own["method"].unique()))
    for axis, name in zip(axes, names, strict=True):
        part = own[own["dataset"] == name]
        base, spread = part[f"base_{value}"].mean(), part[f"base_{error}"].mean()
        axis.axhline(base, color="black", linestyle="--", linewidth=1, label="base model")
        axis.axhspan(base - spread, base + spread, color="grey", alpha=0.15, linewidth=0)
        for place, (method, style) in enumerate(styles.items()):
            look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
            if reference is not None:
                seeds = reference[(reference["dataset"] == name) & (reference["method"] == method)]
                axis.plot([place + BESIDE] * len(seeds), seeds[value], alpha=0.35, markersize=5, label="_reference",
                          **look)
            here = part[part["method"] == method]
            axis.errorbar([place] * len(here), here[value], yerr=here[error], capsize=3, label=method, **look)
        axis.set(xticks=range(len(styles)), title=name)
        axis.set_xticklabels(styles, rotation=20, ha="right", fontsize="small")
    axes[0].set_ylabel(ylabel)
    return figure


def control_points(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, value: str, ylabel: str) -> Figure:
    """One value per method and control, such as forgetting of trained and of random updates of the same norm.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        ``method``, ``control``, `value`; a row per seed. The reference's seeds are faint points.
    """
    controls, methods = list(own["control"].unique()), list(own["method"].unique())
    figure, (axis,) = panels(1, width=1.4 * PANEL[0])
    colours = sns.color_palette("colorblind")
    for index, control in enumerate(controls):
        shift = BESIDE * (index - (len(controls) - 1) / 2)
        look = {"color": colours[index], "marker": MARKERS[index], "linestyle": "none"}
        for table, alpha, size, label in ((reference, 0.35, 5, "_reference"), (own, 1, 8, control)):
            if table is None:
                continue
            part = table[(table["control"] == control) & table["method"].isin(methods)]
            axis.plot(part["method"].map(methods.index) + shift, part[value], alpha=alpha, markersize=size, label=label,
                      **look)
    axis.axhline(0, color="black", linestyle="--", linewidth=1, label="base model")
    axis.set(xticks=range(len(methods)), xticklabels=methods, ylabel=ylabel)
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def scatter_panels(own: pd.DataFrame, reference: pd.DataFrame | None = None, *, xs: Mapping[str, str], y: str,
                   ylabel: str, datasets: Sequence[str]) -> Figure:
    """One point per run and duration of `y` against each of `xs`: a row of panels per data set.

    Parameters
    ----------
    own, reference : pandas.DataFrame
        Of :func:`as_curves`; the reference's seeds are faint points.
    xs : mapping of str to str
        Column -> label of its axis.
    """
    use_style()
    figure, axes = plt.subplots(len(datasets), len(xs), squeeze=False, sharey="row",
                                figsize=(PANEL[0] * len(xs), 0.85 * PANEL[1] * len(datasets)))
    grid = axes.flat
    styles = method_styles(list(own["method"].unique()))
    for axis, (name, column) in zip(grid, ((name, column) for name in datasets for column in xs), strict=True):
        for method, style in styles.items():
            look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
            for table, alpha, size, label in ((reference, 0.3, 4, "_reference"), (own, 1, 7, method)):
                if table is not None:
                    part = table[(table["dataset"] == name) & (table["method"] == method)]
                    axis.plot(part[column], part[y], alpha=alpha, markersize=size, label=label, **look)
        axis.set(xlabel=xs[column], title=name)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def kept_share(decay: float, multipliers: Sequence[float]) -> float:
    """The share of a weight that is left when every step takes `decay` times the schedule's multiplier of it.

    References
    ----------
    arXiv 2405.09673, Fig 4; llm-foundry's DecoupledLionW, as in :func:`utils.training.optimisers.decay_weights`.

    Examples
    --------
    >>> kept_share(0.5, [1, 1, 0])
    0.25
    """
    return float(np.prod(1 - decay * np.asarray(multipliers, dtype=float)))
