"""What the figures of notebook 05 show, in sentences filled from the tables and held against what was expected.

Those of the grid of rates stand beside their figures in ``grid_figures.py``.
"""

from collections import Counter
from collections.abc import Callable

import pandas as pd

from utils.reporting.drawn import Found, all_met, finding
from utils.reporting.measured import Measured
from utils.reporting.rules import CLAIM_EPSILONS, trend
from utils.reporting.selection import last_steps, runs_that_learnt
from utils.reporting.words import both, listed, over_seeds
from utils.studies.what_moves import rules
from utils.studies.what_moves.figures import OUTCOMES, plain_lora

NEAR = 0.03  # accuracies within it are what the claims call equal
FAR = 2  # times as much is what the claims call far above
ALPHAS = {"rule": " with alpha = 2r", "alpha_8": " with alpha = 8"}
WAYS = {"rises": "rises", "falls": "falls", "level": "stays level", "zero": "is zero throughout"}


def _lora(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of LoRA's runs that learnt their task."""
    learnt = runs_that_learnt(table)
    return learnt[learnt["method_kind"] == "lora"]


def _told(values: pd.Series, number: str = "{:.2f}") -> str:
    return over_seeds(values, number) if len(values) else "not to be told"


def _positive(values: pd.Series) -> bool | None:
    """Whether every value lies above zero; None where there is none."""
    return bool((values > 0).all()) if len(values) else None


# Over learning rates ------------------------------------------------------------------------------------------------

@finding("05_learning_rate_through_training")
def rates_through_training_found(sweep: Measured) -> Found:
    """Count, forgetting and accuracy at each rate's last step; what the paper's correlations are here."""
    best, source = sweep.best, sweep.source
    last = last_steps(best)
    means = _lora(last).groupby("learning_rate")[OUTCOMES].mean()
    lost = (last["method_kind"] == "lora").sum() - len(_lora(last))
    if means.empty:
        return Found(f"No run of LoRA learnt its task, {source}.", None)

    def effect(rule: Callable, **parameters) -> pd.Series:
        return rule(best, **parameters).values.dropna()

    over_rates, growth = ([effect(rule, column=column) for column in ("n_intruders", "forgetting")]
                          for rule in (rules.trend_over_rates, rules.trend_through_training))
    beyond = effect(rules.largest_rate_minus_full)
    full = runs_that_learnt(best).query("method_kind == 'full'")["n_intruders"]
    spread = means["accuracy"].max() - means["accuracy"].min() if len(means) > 1 else None
    paper = [f"{_told(effect(rules.rho_over_checkpoints, column='n_intruders', other=row['other']))} between intruders "
             f"and {row['other']} (the paper: {row['rho']:.3g})" for row in sweep.published.to_dict("records")]
    counts, forgotten = (both(map(number.format, means[column])) for number, column in (
        ("{:.3g}", "n_intruders"), ("{:.2f}", "forgetting")))
    of_full = (f"{f'up to {full.max():.0f}' if full.max() else 'no'} intruders at any checkpoint" if len(full)
               else "no run that learnt")
    rates = f"rate{'s' if len(means) > 1 else ''} {both(map('{:g}'.format, means.index))}"
    text = (f"At the last step LoRA's runs that learnt have, at the {rates}, {counts} intruders and forget {forgotten} "
            f"nats per token, {source}"
            + (f"; their accuracies lie {spread:.3f} apart" if spread is not None else "")
            + (f"; {lost} of LoRA's runs did not learn" if lost else "")
            + f". LoRA's forgetting at its largest rate minus full fine-tuning's is {_told(beyond)}; full fine-tuning "
            f"has {of_full}. Through training Spearman's rho with the step is {_told(growth[0])} for intruders (0 for "
            f"a run without any) and {_told(growth[1])} for forgetting; over rates and checkpoints it is "
            f"{both(paper)}.")
    return Found(text, all_met(*map(_positive, [*over_rates, *growth, beyond]),
                               None if spread is None else spread <= NEAR, full.max() == 0 if len(full) else None))


# Over ranks ---------------------------------------------------------------------------------------------------------

def way(setting: pd.Series, counts: pd.Series) -> str:
    """How counts go with a setting: a key of WAYS, ``zero`` where there is nothing that could rise or fall."""
    if (counts == 0).all():
        return "zero"
    rho = trend(setting, counts)
    return "rises" if rho > 0 else "falls" if rho < 0 else "level"


def _ways_told(ways: Counter, of: str) -> str:
    """Such as ``falls in 2 and is zero throughout in 1 of 3 seeds``."""
    if len(ways) == 1:
        (one,) = ways
        return f"{WAYS[one]} in {f'all {ways[one]} {of}' if ways[one] > 1 else f'the one {of[:-1]} there is'}"
    return f"{both(f'{WAYS[one]} in {count}' for one, count in ways.items())} of {ways.total()} {of}"


@finding("05_rank_by_rule_and_at_fixed_rate")
def ranks_under_rules_found(moves: Measured) -> Found:
    """Whether the count falls with rank by the rule and at one rate, seed by seed, and which ranks did not learn.

    What is expected without an if is the fall by the rule; a seed whose counts are all zero says nothing of it.
    """
    by_rule, falls = _over_ranks(moves.best, "rule")
    at_one_rate, _ = _over_ranks(moves.best, "fixed_rate")
    lost = both(f"r = {r} {name} ({failed} of {runs} run{'s' if runs > 1 else ''})" for name, experiment in (
        ("by the rule", "rule"), ("at one rate", "fixed_rate"), ("with alpha = 8", "alpha_8"))
        for r, failed, runs in _failures(moves.best, experiment))
    text = (f"By the rule {by_rule}, {moves.source}; at one rate {at_one_rate}."
            + (f" Did not learn: {lost}." if lost else ""))
    pairs = _under_both(moves.best, "forgetting")
    if len(pairs):
        rank = pairs.index.get_level_values("r").max()
        at = pairs.xs(rank, level="r").mean()
        text += (f" At r = {rank} LoRA forgets {at['alpha_8']:.2f} nats per token with alpha = 8 and {at['rule']:.2f} "
                 "by the rule, where the paper has more with alpha = 8.")
    return Found(text, falls)


def _over_ranks(table: pd.DataFrame, experiment: str) -> tuple[str, bool | None]:
    """An experiment's mean counts by rank with their way in each seed, in words; whether they fall in all that tell."""
    lora = _lora(table[table["experiment"] == experiment])
    if lora.empty:
        return "there is no run that learnt", None
    means = listed({f"r={r}": count for r, count in lora.groupby("r")["n_intruders"].mean().items()})
    ways = Counter(way(part["r"], part["n_intruders"]) for _, part in lora.groupby("seed") if part["r"].nunique() > 2)
    if not ways:
        return f"the mean counts are {means}, of too few ranks to tell a trend", None
    telling = ways.total() - ways["zero"]
    return (f"the mean counts are {means}, and the count {_ways_told(ways, 'seeds')}"
            + ("" if telling else ": nothing could fall or rise"),
            ways["falls"] == telling if telling else None)


def _failures(table: pd.DataFrame, experiment: str) -> list[tuple[int, int, int]]:
    """Rank, number of runs that did not learn, and number of runs, of an experiment's ranks with any such."""
    learnt = table[table["experiment"] == experiment].groupby("r")["learnt"]
    failed = learnt.size() - learnt.sum().astype(int)
    return [(r, lost, learnt.size()[r]) for r, lost in failed.items() if lost]


@finding("05_rank_by_rate")
def rank_by_rate_found(moves: Measured) -> Found:
    """How the mean count goes along the rows of the map (one rank) and down its columns (one rate)."""
    learnt = runs_that_learnt(plain_lora(moves.best.drop_duplicates("run")))
    cells = learnt.groupby(["r", "learning_rate"])["n_intruders"].mean().reset_index()
    rows, columns = (Counter(way(part[along], part["n_intruders"]) for _, part in cells.groupby(of) if len(part) > 1)
                     for of, along in (("r", "learning_rate"), ("learning_rate", "r")))
    told = [f"{where} the mean count {_ways_told(ways, of)}" if ways else f"{where} there is no second cell"
            for where, ways, of in (("along a row, with the rate,", rows, "ranks"),
                                    ("down a column, with the rank,", columns, "rates"))]
    text = f"{'; '.join(told)}, {moves.source}."
    telling = [ways.total() - ways["zero"] for ways in (rows, columns)]
    return Found(text[0].upper() + text[1:], all_met(rows["rises"] == telling[0] if telling[0] else None,
                                                     columns["falls"] == 0 if telling[1] else None))


# Two alphas ---------------------------------------------------------------------------------------------------------

def _under_both(table: pd.DataFrame, column: str, *by: str) -> pd.DataFrame:
    """Means of a column with ``alpha_8`` and by the ``rule``, of the ranks and seeds whose runs learnt under both."""
    wide = _lora(table).pivot_table(index=[*by, "r", "seed"], columns="experiment", values=column)
    return wide.reindex(columns=["alpha_8", "rule"]).dropna()


def _against(pairs: pd.DataFrame, number: str = "{:.3g}") -> str:
    return ", ".join(f"r={r} {number.format(row['alpha_8'])} against {number.format(row['rule'])}"
                     for r, row in pairs.groupby(level="r").mean().iterrows())


@finding("05_alpha_against_epsilon")
def alpha_against_epsilon_found(counts: Measured, *, chance: pd.DataFrame | None = None) -> Found:
    """Rank by rank the counts with alpha = 8 beside those by the rule, and where the rate is the larger one."""
    pairs, met, told = _under_both(counts.best, "n_intruders", "epsilon"), [], []
    if pairs.empty:
        return Found(f"No rank learnt with both alphas in one seed, {counts.source}.", None)
    for epsilon in [one for one in CLAIM_EPSILONS if one in pairs.index.get_level_values("epsilon")]:
        at = pairs.xs(epsilon, level="epsilon")
        more = (at["alpha_8"] - at["rule"]).groupby(level="r").mean()
        told.append(f"at epsilon {epsilon} {_against(at)}, so more at {_ranks(more.index[more > 0])}")
        # Of one rank nothing can be said of "high ranks above all".
        highest = more.idxmax() == more.index.max() if len(more) > 1 else None
        met.append(all_met((more > 0).all(), highest) if at.to_numpy().any() else None)
    rates = _under_both(counts.best, "learning_rate").groupby(level="r").mean()
    seeds = pairs.reset_index().groupby("r")["seed"].nunique()
    single = seeds.index[seeds == 1]
    return Found("Counts with alpha = 8 against those by the rule, over the seeds that learnt under both, "
                 f"{counts.source}: {'; '.join(told) or 'none at the epsilons of the claims'}. With alpha = "
                 f"8 the rate is the larger one at {_ranks(rates.index[rates['alpha_8'] > rates['rule']])}"
                 + (f"; {_ranks(single)} stand{'s' if len(single) == 1 else ''} on one seed." if len(single) else "."),
                 all_met(*met))


def _ranks(ranks: pd.Index) -> str:
    return both(f"r = {r}" for r in ranks) or "no rank"


@finding("05_alpha_against_k")
def alpha_against_k_found(by_k: Measured, counts: Measured) -> Found:
    """At which share of the depths alpha = 8 has more than the rule, rank by rank, and the counts of all vectors."""
    learnt = runs_that_learnt(counts.best)["run"]
    pairs = _under_both(by_k.best[by_k.best["run"].isin(learnt)].assign(learnt=True), "n_intruders", "k")
    if pairs.empty:
        return Found(f"No rank learnt with both alphas in one seed, {by_k.source}.", None)
    means = pairs.groupby(level=["k", "r"]).mean()
    means = means[means.to_numpy().any(axis=1)]  # where neither has any, none could have more
    more = (means["alpha_8"] > means["rule"]).groupby(level="r").mean()
    whole = pairs.xs(pairs.index.get_level_values("k").max(), level="k")
    shares = listed({f"r={r}": share for r, share in more.items()}, "{:.0%}")
    return Found("Share of the depths with any intruders at which alpha = 8 has more than the rule, over the seeds "
                 f"that learnt under both, {by_k.source}: {shares or 'no depth has any'}. With every vector examined "
                 f"the counts are {_against(whole, '{:.0f}')}.",
                 bool(more.eq(1).all()) if len(more) else None)


# Effective rank -----------------------------------------------------------------------------------------------------

@finding("05_effective_rank")
def effective_rank_found(sizes: Measured) -> Found:
    """Full fine-tuning's effective rank beside LoRA's largest, LoRA's by rank, and the highest's with alpha = 8."""
    learnt, levels = runs_that_learnt(sizes.best), sizes.published.to_dict("records")
    full = learnt.loc[learnt["method_kind"] == "full", "effective_rank"].mean()
    wide = _lora(sizes.best).groupby(["experiment", "r"])["effective_rank"].mean().unstack(0)
    main, rule = (wide[name].dropna() if name in wide else pd.Series(dtype=float) for name in ("ranks", "rule"))
    pairs = _under_both(sizes.best, "effective_rank")
    sentences, far, pulled = [], None, None
    if len(main) and not pd.isna(full):
        far = full / main.max() >= FAR
        sentences.append(f"Full fine-tuning's update has an effective rank of {full:.3g}, {full / main.max():.2g} "
                         f"times the largest of LoRA's (r = {main.idxmax()}: {main.max():.3g}), {sizes.source}.")
    by_rank = [listed({f"r={r}": value for r, value in part.items()}) + f" {name}" for part, name in (
        (main, "in the main runs"), (rule, "by the rule")) if len(part)]
    parts = [f"LoRA's with alpha = 2r is {both(by_rank)}"] if by_rank else []
    if len(pairs):
        rank = pairs.index.get_level_values("r").max()
        at = pairs.xs(rank, level="r").mean()
        pulled = at["alpha_8"] < at["rule"]
        parts.append(f"{'at' if parts else 'At'} r = {rank} alpha = 8 has {at['alpha_8']:.3g} and the rule "
                     f"{at['rule']:.3g}")
    sentences += [f"{'; '.join(parts)}."] if parts else []
    paper = both(f"{one['method']} {one['side']} {one['effective_rank']}"
                 f"{ALPHAS.get(one['experiment'], '')}" for one in levels)
    return Found(f"{' '.join([*sentences, f'The paper, at width 768: {paper}.'])}",
                 all_met(far, _well_above(main), _well_above(rule), pulled))


def _well_above(by_rank: pd.Series) -> bool | None:
    """Whether each higher rank lies above the next lower one, and the highest far above the lowest."""
    if len(by_rank) < 2:
        return None
    ordered = by_rank.sort_index()
    return bool(ordered.is_monotonic_increasing and ordered.iloc[-1] >= FAR * ordered.iloc[0])
