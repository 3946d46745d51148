"""What the figures of notebook 02 show, in sentences filled from the tables and held against what was expected."""

from itertools import pairwise

import pandas as pd

from utils.reporting.drawn import Found, all_met, finding
from utils.reporting.measured import Measured
from utils.reporting.selection import last_steps, runs_that_learnt
from utils.reporting.statistics import rank_correlation
from utils.reporting.words import both, listed
from utils.studies.accuracy.figures import minus_full

SCATTERED = ("winogrande", "siqa", "fever")  # the paper's tasks that are expected to scatter by more than its others
MAKE = {True: "make", False: "do not make", None: "cannot be said to make"}
EARLIER = {True: "The edge comes earlier at every higher rank.", False: "The edge does not come earlier at every "
           "higher rank.", None: "Whether the edge comes earlier at higher rank these rates do not tell."}


def two_errors(runs: pd.DataFrame) -> float:
    """Two standard errors of the difference of two accuracies such as these runs'."""
    return 2 * 2**0.5 * runs["accuracy_se"].mean()


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


@finding("02_accuracy_over_steps")
def accuracy_curves_found(accuracy: Measured) -> Found:
    """How far apart the methods end and begin, and whether LoRA's larger rates fall back more between checkpoints."""
    told, met, rhos, rougher = [], [], [], []
    for task, part in runs_that_learnt(accuracy.best).groupby("task", sort=False):
        text, *parts = _ends_and_starts(part)
        told.append(f"on {task} {text}.")
        met += parts
        fit = _roughness_over_rates(part)
        rougher.append(None if pd.isna(fit["rho"]) or fit["low"] <= 0 < fit["rho"] else fit["rho"] > 0)
        if not pd.isna(fit["rho"]):
            rhos.append(f"{fit['rho']:.2f} on {task}")
    if not told:
        return Found(f"No run learnt its task, {accuracy.source}.", None)
    first, *others = told
    whole = " ".join([f"{accuracy.source}: {first}", *(f"{text[0].upper()}{text[1:]}" for text in others)])
    rough = all_met(*rougher)
    return Found(f"{whole[0].upper()}{whole[1:]} Larger learning rates of LoRA {MAKE[rough]} rougher curves: "
                 "Spearman's rho between a run's rate and how far its accuracy falls back from checkpoint to "
                 f"checkpoint is {both(rhos) or 'not to be told'}.", all_met(*met, rough))


def _ends_and_starts(part: pd.DataFrame) -> tuple[str, bool | None, bool | None]:
    """Of one task's runs: where the methods end and begin in words, whether the ends are near and the starts apart."""
    last, start = last_steps(part), part["step"].min()
    first = part[part["step"] == start]
    ends, starts = (at.groupby("method", sort=False)["accuracy"].mean() for at in (last, first))
    if len(ends) < 2:
        return f"{both(ends.index)} alone learnt, so that nothing can be compared", None, None
    near = ends.max() - ends.min() <= two_errors(last)
    text = (f"the methods end between {ends.min():.3f} ({ends.idxmin()}) and {ends.max():.3f} ({ends.idxmax()}), "
            f"{'within' if near else 'beyond'} two standard errors of a difference ({two_errors(last):.3f})")
    if start == part["step"].max() or len(starts) < 2:
        return text, near, None
    apart = starts.max() - starts.min() > two_errors(first)
    return (f"{text}; at the first checkpoint they stand between {starts.min():.3f} ({starts.idxmin()}) and "
            f"{starts.max():.3f} ({starts.idxmax()}), {'beyond' if apart else 'within'} two "
            f"({two_errors(first):.3f})"), near, apart


def _roughness_over_rates(part: pd.DataFrame) -> dict:
    """Spearman's rho between the rate of LoRA's runs and the sum of their accuracy's falls between checkpoints."""
    lora = part[part["method_kind"] == "lora"].sort_values("step")
    runs = lora.groupby(["experiment", "run"])
    falls = runs["accuracy"].agg(lambda values: -values.diff().clip(upper=0).sum())
    return rank_correlation(runs["learning_rate"].first(), falls.astype(float))


@finding("02_accuracy_beside_the_paper")
def accuracy_beside_paper_found(accuracy: Measured) -> Found:
    """Between which values LoRA minus full fine-tuning lies, here and in the paper, run by run and task by task."""
    last = last_steps(accuracy.best)
    ours, paper = minus_full(last, ["task", "seed"]), minus_full(accuracy.published, ["table", "task"])
    theirs = paper["difference"]
    widest = theirs.abs().groupby(paper["task"], sort=False).max()
    scattered = widest.index.isin(SCATTERED)
    beside = (f"In the paper's tables the difference lies between {theirs.min():.3f} and {theirs.max():.3f}; the "
              f"largest distances are {listed(widest.sort_values(ascending=False), '{:.3f}')}.")
    if ours.empty:
        return Found(f"No run of LoRA has one of full fine-tuning beside it, {accuracy.source}. {beside}", None)
    found = ours["difference"]
    ranges = both(f"between {part.min():.3f} and {part.max():.3f} on {task} (above zero in {(part > 0).sum()} of "
                  f"{_runs(len(part))})" for task, part in found.groupby(ours["task"], sort=False))
    failed = len(last) - len(runs_that_learnt(last))
    within = found.abs().max() <= theirs.abs().max()
    return Found(f"LoRA's accuracy minus full fine-tuning's lies {ranges}, {accuracy.source}"
                 + (f"; {failed} of these runs did not learn" if failed else "")
                 + f". {beside} Ours {'stay' if within else 'do not stay'} within that distance.",
                 all_met(within, found.min() < 0 < found.max(), widest[scattered].min() > widest[~scattered].max()))


@finding("02_learning_rates")
def learning_rate_curves_found(sweep: Measured) -> Found:
    """How many rates are about as good as a method's best, and the smallest rate at which a run did not learn."""
    methods = pd.DataFrame([_plateau_and_edge(name, part) for name, part in sweep.best.groupby("method", sort=False)])
    several = methods[methods["safe"] > 1]
    plateaus = both(f"{one.method} {one.near} of {one.safe}" for one in several.itertuples())
    alone = both(methods.loc[methods["safe"] < 2, "method"])
    edges = both(f"{one.method} {one.edge:g} ({one.failed} of {_runs(one.tried)})"
                 for one in methods.dropna(subset="edge").itertuples())
    unseen = both(methods.loc[methods["edge"].isna(), "method"])
    earlier = _earlier_at_higher_rank(methods)
    text = ("Rates below a method's edge that lie within two standard errors of a difference of its best accuracy, "
            f"{sweep.source}: {plateaus or 'none to compare'}"
            + (f"; of {alone} fewer than two such rates were tried, so no plateau can be told" if alone else "")
            + f". The edge, the smallest rate at which a run did not learn: {edges or 'none met'}"
            + (f"; none met with {unseen}" if edges and unseen else "") + f". {EARLIER[earlier]}")
    return Found(text, all_met(*(None if one.safe < 2 else one.near > 1 for one in methods.itertuples()),
                               *(None if pd.isna(one.edge) else True for one in methods.itertuples()), earlier))


def _plateau_and_edge(method: str, part: pd.DataFrame) -> dict:
    """Of one method's runs: how many rates lie below the edge, how many of them near the best, and the edge.

    The edge is the smallest rate at which a run did not learn (NaN where all learnt); `largest_safe` is the largest
    rate below it, `tried` and `failed` are numbers of runs at it.
    """
    learnt = part["learnt"].astype(bool)
    all_learnt = learnt.groupby(part["learning_rate"]).all()
    failing = all_learnt.index[~all_learnt]
    edge = failing.min() if len(failing) else float("nan")
    safe = part[part["learning_rate"] < edge] if len(failing) else part
    means, at_edge = safe.groupby("learning_rate")["accuracy"].mean(), learnt[part["learning_rate"] == edge]
    near = int((means >= means.max() - two_errors(safe)).sum())
    return {"method": method, "method_kind": part["method_kind"].iloc[0], "r": part["r"].iloc[0], "safe": len(means),
            "near": near, "largest_safe": safe["learning_rate"].max(), "edge": edge, "tried": len(at_edge),
            "failed": int((~at_edge).sum())}


def _earlier_at_higher_rank(methods: pd.DataFrame) -> bool | None:
    """Whether LoRA's edge lies lower at each higher rank; None where the rates tried leave it open.

    An edge lies somewhere above the largest safe rate, up to the smallest at which a run failed.
    """
    edges = methods[(methods["method_kind"] == "lora") & methods["edge"].notna()].sort_values("r")
    order = [True if high.edge <= low.largest_safe else False if low.edge <= high.largest_safe else None
             for low, high in pairwise(edges.itertuples())]
    return all_met(*order)
