"""The rules over the grid of rates: at each method's best rate, by the paper's rule, at one rate, at equal norm.

Rates are chosen on validation rows. Where a method's best lies on the edge of its grid, what is said about it at its
best is left undecided. Only runs that learnt count.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from utils.reporting.items import passage_losses, right_answers
from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, at_least, by_seed, full_row, joined, rows_where, trend, value_at
from utils.reporting.selection import runs_that_learnt
from utils.reporting.statistics import MIN_ITEMS, mcnemar_p
from utils.studies.what_moves.grid import GRIDS, at_chosen_rates, with_product

COLUMNS = ("experiment", "seed", "task", "run", "method", "r", "lora_alpha", "learning_rate", "steps", "accuracy",
        "validation_accuracy")
COUNTED = (*COLUMNS, "epsilon", "n_intruders")
MIN_RANKS = 4  # for a sentence about ranks
EQUAL = 0.05  # McNemar's p from which two models count as equally accurate


def _of(table: pd.DataFrame, in_experiment: str, epsilon: float) -> pd.DataFrame:
    """One grid's rows at one epsilon, of LoRA and full fine-tuning alone."""
    rows = table[(table["experiment"] == in_experiment) & (table["epsilon"] == epsilon)]
    if rows.empty:
        raise MissingRun(f"no run of {in_experiment} is measured yet")
    return rows[rows["method_kind"].eq("full") | rows["method"].str.startswith("LoRA ")]


def _at_best(rows: pd.DataFrame, methods: list[str]) -> tuple[pd.DataFrame, str]:
    """The rows that learnt at the best rates of these methods, and what leaves a best rate open (or "")."""
    best = at_chosen_rates(rows[rows["method"].isin(methods)])
    open_ends = [f"the best rate of {one.method}, {one.learning_rate:g}, is the {one.edge} that was tried"
                 for one in best[best["edge"] != ""].drop_duplicates("method").itertuples()]
    return runs_that_learnt(best), "; ".join(open_ends)


def _lora_and_full(rows: pd.DataFrame, rank: int) -> list[str]:
    of_rank = rows.loc[(rows["r"] == rank) & (rows["method_kind"] == "lora"), "method"]
    return [*of_rank.unique()[:1], "full"]


@rule(needs=COUNTED)
def count_at_best_rate(table: pd.DataFrame, *, epsilon: float, in_experiment: str, rank: int) -> Effects:
    """Count of LoRA at one rank minus full fine-tuning's, each at its best rate by validation accuracy.

    What the verdict's power is judged by are the counts at all rates: a model in which no rate made any could not show
    them at the best one either.
    """
    rows = _of(table, in_experiment, epsilon)
    methods = _lora_and_full(rows, rank)
    best, undecided = _at_best(rows, methods)
    every = runs_that_learnt(rows[rows["method"].isin(methods)])

    def effect(part: pd.DataFrame) -> float:
        return rows_where(part, r=rank, method_kind="lora").iloc[0]["n_intruders"] - full_row(part)["n_intruders"]

    return replace(by_seed(best, effect, outcome=every["n_intruders"]), undecided=undecided)


@rule(needs=(*COUNTED, "n_random"))
def count_beyond_random(table: pd.DataFrame, *, epsilon: float, in_experiment: str, rank: int) -> Effects:
    """Count of LoRA at one rank minus the count after random updates of its own singular values.

    The mean over the rates at which either is above zero: where neither the trained update nor its random twin makes
    any, nothing is compared.
    """
    rows = runs_that_learnt(_of(table, in_experiment, epsilon))
    lora = rows_where(rows, r=rank, method_kind="lora")

    def effect(part: pd.DataFrame) -> float:
        some = part[(part["n_intruders"] > 0) | (part["n_random"] > 0)]
        at_least(len(some), 1, f"run of r = {rank} with an intruder")
        return float((some["n_intruders"] - some["n_random"]).mean())

    return by_seed(lora, effect, outcome="n_intruders")


@rule(needs=COUNTED)
def count_of_full_at_best_rate(table: pd.DataFrame, *, epsilon: float, in_experiment: str) -> Effects:
    """Count of full fine-tuning at its best rate by validation accuracy; beside it, LoRA's counts give the power."""
    rows = _of(table, in_experiment, epsilon)
    best, undecided = _at_best(rows, ["full"])
    return replace(by_seed(best, lambda part: full_row(part)["n_intruders"],
                           outcome=runs_that_learnt(rows)["n_intruders"]), undecided=undecided)


@rule(needs=COUNTED)
def count_trend_with_rate(table: pd.DataFrame, *, epsilon: float, in_experiment: str, rank: int) -> Effects:
    """Spearman's rho between learning rate and count over the runs of one rank that learnt, of three rates or more."""
    rows = runs_that_learnt(_of(table, in_experiment, epsilon))
    lora = rows_where(rows, r=rank, method_kind="lora")

    def effect(part: pd.DataFrame) -> float:
        at_least(part["learning_rate"].nunique(), 3, f"rates of r = {rank} that learnt")
        return trend(part["learning_rate"], part["n_intruders"])

    return by_seed(lora, effect, outcome="n_intruders")


def _over_ranks(rows: pd.DataFrame, setting: str) -> Effects:
    """Mean over the values of `setting` that four ranks or more share of Spearman's rho between rank and count.

    Values at which no rank has an intruder are left out: there is nothing that could rise or fall.
    """
    def effect(part: pd.DataFrame) -> float:
        shared = [same for _, same in part.groupby(setting)
                  if same["r"].nunique() >= MIN_RANKS and same["n_intruders"].any()]
        at_least(len(shared), 1, f"setting with {MIN_RANKS} ranks that learnt, of which one has an intruder")
        return float(np.mean([trend(same["r"], same["n_intruders"]) for same in shared]))

    return by_seed(rows, effect, outcome="n_intruders")


@rule(needs=COUNTED)
def count_trend_at_fixed_rate(table: pd.DataFrame, *, epsilon: float, in_experiment: str) -> Effects:
    """Spearman's rho between rank and count at one learning rate, the mean over the rates that four ranks share."""
    rows = runs_that_learnt(_of(table, in_experiment, epsilon))
    return _over_ranks(rows[rows["method_kind"] == "lora"], "learning_rate")


@rule(needs=COUNTED)
def count_trend_by_rule(table: pd.DataFrame, *, epsilon: float, in_experiment: str) -> Effects:
    """The same where alpha times learning rate is constant, as the paper keeps it: the rate falls as 1 / r."""
    rows = runs_that_learnt(_of(table, in_experiment, epsilon))
    lora = rows[rows["method_kind"] == "lora"]
    return _over_ranks(with_product(lora), "product")


@rule(needs=COUNTED)
def count_trend_at_best_rates(table: pd.DataFrame, *, epsilon: float, in_experiment: str) -> Effects:
    """Spearman's rho between rank and count, each rank at its best rate by validation accuracy."""
    rows = _of(table, in_experiment, epsilon)
    lora = rows[rows["method_kind"] == "lora"]
    best, undecided = _at_best(lora, list(lora["method"].unique()))

    def effect(part: pd.DataFrame) -> float:
        at_least(part["r"].nunique(), MIN_RANKS, "ranks that learnt at their best rates")
        return trend(part["r"], part["n_intruders"])

    return replace(by_seed(best, effect, outcome=runs_that_learnt(lora)["n_intruders"]), undecided=undecided)


@rule(needs=COUNTED)
def count_gained_by_time(table: pd.DataFrame, *, epsilon: float, in_experiment: str, longer: str, max_rank: int
                         ) -> Effects:
    """Count of LoRA in the longer runs minus that in the grid's of the same rate: mean over ranks up to `max_rank`."""
    setting = ["method", "learning_rate"]
    long = _of(table, longer, epsilon).query("method_kind == 'lora' and r <= @max_rank")
    short = _of(table, in_experiment, epsilon).merge(long[setting].drop_duplicates(), on=setting)
    rows = runs_that_learnt(pd.concat([short, long], ignore_index=True))

    def effect(part: pd.DataFrame) -> float:
        after, before = part[part["experiment"] == longer], part[part["experiment"] == in_experiment]
        pairs = after.merge(before, on=setting, suffixes=("", "_before"))
        at_least(len(pairs), 1, "run that learnt at both lengths")
        return float((pairs["n_intruders"] - pairs["n_intruders_before"]).mean())

    return by_seed(rows, effect, outcome="n_intruders")


@rule(needs=(*COUNTED, "relative_norm"))
def count_at_equal_norm(table: pd.DataFrame, *, epsilon: float, in_experiment: str, rank: int) -> Effects:
    """Count of LoRA at one rank minus full fine-tuning's at the same relative norm of the update.

    Over LoRA's runs whose norm lies among those of full fine-tuning's, whose count is interpolated between its two
    nearest norms; the mean over such runs of a seed.
    """
    rows = runs_that_learnt(_of(table, in_experiment, epsilon))

    def effect(part: pd.DataFrame) -> float:
        full = rows_where(part, method_kind="full").sort_values("relative_norm")
        lora = rows_where(part, r=rank, method_kind="lora")
        inside = lora[lora["relative_norm"].between(full["relative_norm"].min(), full["relative_norm"].max())]
        at_least(len(inside), 1, f"run of r = {rank} with a norm among full fine-tuning's")
        expected = np.interp(inside["relative_norm"], full["relative_norm"], full["n_intruders"])
        return float((inside["n_intruders"] - expected).mean())

    return by_seed(rows, effect, outcome=rows.loc[rows["r"] == rank, "n_intruders"])


@rule(needs=(*COUNTED, "right"))
def count_at_equal_accuracy(table: pd.DataFrame, *, epsilon: float, in_experiment: str, rank: int) -> Effects:
    """Count of LoRA at one rank minus that of full fine-tuning at its best rate, where both are equally accurate.

    The mean over the rank's rates whose answers McNemar's test on the same test rows does not tell from full
    fine-tuning's (p of :data:`EQUAL` or more). What a test of so many rows cannot tell apart may still differ.
    """
    answers = table[table["right"].astype(str).str.contains(":")].drop_duplicates("run").set_index("run")["right"]
    rows = _of(table, in_experiment, epsilon)
    rows = rows.assign(right=rows["run"].map(answers))  # they stand in the rows of one epsilon alone
    full_at_best, undecided = _at_best(rows, ["full"])
    lora = rows_where(runs_that_learnt(rows), r=rank, method_kind="lora")

    def effect(part: pd.DataFrame) -> float:
        full, tried = full_row(part), rows_where(part, method_kind="lora")
        alike = [mcnemar_p(right_answers(row), right_answers(full)) >= EQUAL for _, row in tried.iterrows()]
        at_least(sum(alike), 1, f"run of r = {rank} as accurate as full fine-tuning")
        return float(tried.loc[alike, "n_intruders"].mean() - full["n_intruders"])

    both = pd.concat([full_at_best, lora], ignore_index=True)
    return replace(by_seed(both, effect, outcome=lora["n_intruders"]), undecided=undecided)


@rule(needs=(*COUNTED, "right"))
def accuracy_gap_at_best_rates(table: pd.DataFrame, *, in_experiment: str, rank: int) -> Effects:
    """Test accuracy of LoRA minus full fine-tuning, each at its best rate: paired over test rows and seeds."""
    return _paired(table, in_experiment=in_experiment, rank=rank, column="accuracy",
                   values=lambda row: right_answers(row).astype(float))


@rule(needs=(*COUNTED, "pseudo_loss", "passage_nats"))
def forgetting_gap_at_best_rates(table: pd.DataFrame, *, in_experiment: str, rank: int) -> Effects:
    """Pseudo-loss of LoRA minus full fine-tuning's, each at its best rate: paired over passages and seeds."""
    return _paired(table, in_experiment=in_experiment, rank=rank, column="pseudo_loss", values=passage_losses)


@rule(needs=(*COUNTED, "pseudo_loss"))
def full_minus_worst_lora_at_best_rates(table: pd.DataFrame, *, ranks: list[int]) -> Effects:
    """Pseudo-loss of full fine-tuning minus the largest of LoRA's at these ranks, each at its best rate.

    The smaller of both tasks: above zero where full fine-tuning forgets more than every rank on each. A task that lacks
    one of the ranks is not judged: the sentence is about every one.
    """
    def on_task(name: str) -> Effects:
        best, undecided = _all_at_best(table, name, max(ranks))

        def effect(part: pd.DataFrame) -> float:
            lora = rows_where(part, method_kind="lora").set_index("r")["pseudo_loss"]
            return float(full_row(part)["pseudo_loss"] - value_at(lora, ranks).max())

        return replace(by_seed(best, effect, outcome="pseudo_loss"), undecided=undecided)

    return joined([on_task(name) for name in GRIDS], min)


@rule(needs=(*COUNTED, "pseudo_loss"))
def u_around_full_at_best_rates(table: pd.DataFrame, *, in_experiment: str, low_ranks: list[int]) -> Effects:
    """By how much the U holds around full fine-tuning's pseudo-loss, each at its best rate, where it holds least.

    The smallest of: r = 1 above full, the highest rank above full, and full above each of `low_ranks`.
    """
    best, undecided = _all_at_best(table, in_experiment)
    width = best["r"].max()

    def effect(part: pd.DataFrame) -> float:
        lora, full = part.set_index("r")["pseudo_loss"], full_row(part)["pseudo_loss"]
        at_least(int(width > max(low_ranks)), 1, f"rank above {max(low_ranks)}, the full width,")
        return float(min((value_at(lora, [1, width]) - full).min(), (full - value_at(lora, low_ranks)).min()))

    return replace(by_seed(best, effect, outcome="pseudo_loss"), undecided=undecided)


def _all_at_best(table: pd.DataFrame, in_experiment: str, max_rank: int | None = None) -> tuple[pd.DataFrame, str]:
    """The rows of :func:`_at_best` of every method of a grid, of ranks up to `max_rank`."""
    rows = _of(table, in_experiment, table["epsilon"].min())
    chosen = rows if max_rank is None else rows[rows["r"] <= max_rank]
    return _at_best(chosen, list(chosen["method"].unique()))


def _paired(table: pd.DataFrame, *, in_experiment: str, rank: int, column: str, values) -> Effects:
    rows = _of(table, in_experiment, table["epsilon"].min())
    best, undecided = _at_best(rows, _lora_and_full(rows, rank))
    items = []

    def effect(part: pd.DataFrame) -> float:
        lora, full = rows_where(part, r=rank, method_kind="lora").iloc[0], full_row(part)
        difference = values(lora) - values(full)
        at_least(len(difference), MIN_ITEMS, "items to compare")
        items.append(pd.DataFrame({"seed": lora["seed"], "item": range(len(difference)), "difference": difference}))
        return float(difference.mean())

    effects = by_seed(best, effect, outcome=column)
    return replace(effects, undecided=undecided, items=pd.concat(items, ignore_index=True) if items else None)
