"""The rules that judge the second paper's claims; of the same form as those of :mod:`utils.reporting.rules`."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from utils.reporting.measure import last_steps
from utils.reporting.published import matched_learning
from utils.reporting.rules import by_seed, trend
from utils.training.targets import ATTENTION


def _chosen(table: pd.DataFrame, rule: dict) -> pd.DataFrame:
    return table[table["experiment"] == rule["in_experiment"]] if "in_experiment" in rule else table


def _rank(table: pd.DataFrame, rule: dict) -> int:
    """The rank that a rule speaks of: ``full``, or the ``lowest`` or ``highest`` rank of LoRA in the table."""
    ranks = table.loc[table["r"] > 0, "r"]
    return {"full": 0, "lowest": ranks.min(), "highest": ranks.max()}[rule["rank"]]


def ordered_by_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Smallest fall of `column` from one rank of LoRA to the next and then to full, at the last step, times `sign`."""
    at = _chosen(table, rule)
    order = [*sorted(at.loc[at["r"] > 0, "r"].unique()), 0]

    def effect(part: pd.DataFrame) -> float:
        values = last_steps(part).groupby("r")[rule["column"]].mean().loc[order]
        return float((-rule.get("sign", 1) * values.diff().iloc[1:]).min(skipna=False))

    return by_seed(at, effect, None)


def below_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """How far `column` lies below full fine-tuning's at the last step, times `sign`, for one rank or (`every`) all."""
    at = _chosen(table, rule)
    ranks = sorted(at.loc[at["r"] > 0, "r"].unique()) if rule["rank"] == "every" else [_rank(at, rule)]

    def effect(part: pd.DataFrame) -> float:
        values = last_steps(part).groupby("r")[rule["column"]].mean()
        return float((rule.get("sign", 1) * (values.loc[0] - values.loc[ranks])).min(skipna=False))

    return by_seed(at, effect, None)


def gap_widens(table: pd.DataFrame, rule: dict) -> pd.Series:
    """LoRA's loss minus full's at the longest duration, less the same at an earlier one (`earlier`: its position)."""
    at = _chosen(table, rule)
    rank = _rank(at, rule)

    def effect(part: pd.DataFrame) -> float:
        loss = part.pivot_table(index="step", columns="r", values="loss_nats_per_token").sort_index()
        gap = loss[rank] - loss[0]
        return gap.iloc[-1] - gap.iloc[:-1].iloc[rule["earlier"]]

    return by_seed(at, effect, None)


def close_to_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`tolerance` minus what LoRA's loss is above full fine-tuning's at the last step."""
    at = _chosen(table, rule)
    rank = _rank(at, rule)

    def effect(part: pd.DataFrame) -> float:
        loss = last_steps(part).groupby("r")["loss_nats_per_token"].mean()
        return rule["tolerance"] - (loss.loc[rank] - loss.loc[0])

    return by_seed(at, effect, None)


def grows_with_duration(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between duration and `column` for one rank."""
    at = _chosen(table, rule)
    return by_seed(at[at["r"] == _rank(at, rule)], lambda part: trend(part["step"], part[rule["column"]]), None)


def more_on_first_task(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Full fine-tuning's `column` at the last step on the first of `experiments` minus on the second."""
    def effect(part: pd.DataFrame) -> float:
        last = last_steps(part[part["r"] == 0]).set_index("experiment")[rule["column"]]
        return last.loc[rule["experiments"][0]] - last.loc[rule["experiments"][1]]

    return by_seed(table, effect, None)


def above_base(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Exact match of one rank minus the base's and `least`, at the last step on the mathematics."""
    at = table[table["experiment"] == "mathematics"]
    return by_seed(at[at["r"] == _rank(at, rule)], lambda part: last_steps(part)["exact_match"].iloc[0]
                   - part["base_exact_match"].iloc[0] - rule["least"], None)


def forgets_less_when_matched(table: pd.DataFrame, rule: dict) -> pd.Series:
    """How much less one rank forgets than full fine-tuning at the most that both have learnt, in nats per token."""
    at = _chosen(table, rule)
    rank = _rank(at, rule)
    curves = pd.DataFrame({"dataset": at["experiment"], "method": at["r"].map(lambda r: "full" if r == 0 else f"r={r}"),
                           "seed": at["seed"], "duration": at["step"], "learning": at["learning"],
                           "remembering": -at["forgetting"]})

    def effect(part: pd.DataFrame) -> float:
        if "full" not in set(part["method"]):
            raise KeyError("full")
        found = matched_learning(part).set_index("method")
        return found.loc[f"r={rank}", "difference"]

    return by_seed(curves, effect, None)


def forgets_more_when_matched(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The same with the opposite sign."""
    return -forgets_less_when_matched(table, rule)


def like_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`tolerance` minus the largest relative distance in `column` of full fine-tuning with a regulariser from without.

    Of weight decay (towards zero) and of attention dropout the largest value in the table is compared.
    """
    doses = ["weight_decay", "attention_dropout"]
    last = last_steps(table)
    last = last[(last["r"] == 0) & ((last["decay_towards"] == "zero") | (last["weight_decay"] == 0))]
    largest = last[doses].max()

    def effect(part: pd.DataFrame) -> float:
        plain = part[(part[doses] == 0).all(axis=1)][rule["column"]].iloc[0]
        values = [part[part[dose] == largest[dose]][rule["column"]].iloc[0] for dose in doses]
        if not largest.all():
            raise ValueError("a regulariser was never tried")
        return rule["tolerance"] - float(np.max(np.abs(np.array(values) / plain - 1)))

    return by_seed(last, effect, None)


def goes_along(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho of two columns over every row of a seed, less `least`."""
    return by_seed(_chosen(table, rule), lambda part: trend(part[rule["x"]], part[rule["y"]]) - rule["least"], None)


def trained_forgets_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting of full fine-tuning's update minus that of a random one of the same norm in every matrix."""
    def effect(part: pd.DataFrame) -> float:
        values = part[part["r"] == 0].set_index("control")["forgetting"]
        return values.loc["trained"] - values.loc["random, full rank"]

    return by_seed(table, effect, None)


def less_diverse(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean of `column` over problems, base over LoRA over full: the smaller of the two differences."""
    base = _diversity(table[table["method"] == "base"], rule)

    def effect(part: pd.DataFrame) -> float:
        lora, full = _diversity(part[part["r"] > 0], rule), _diversity(part[part["r"] == 0], rule)
        return float(np.min([base - lora, lora - full]))  # NaN where one of them is

    return by_seed(table[table["method"] != "base"], effect, None)


def more_alike(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The same for a column that is larger where texts resemble each other."""
    return less_diverse(table.assign(**{rule["column"]: -table[rule["column"]]}), rule)


def _diversity(part: pd.DataFrame, rule: dict) -> float:
    at = part[np.isclose(part["temperature"], rule["temperature"]) & (part["outcome"] == rule["outcome"])]
    return float(at[rule["column"]].mean())


def passes_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """pass@k of full fine-tuning minus LoRA's at `k` and the given temperature."""
    at = table[np.isclose(table["temperature"], rule["temperature"]) & (table["k"] == rule["k"])]
    rank = _rank(at, rule)

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("r")["pass_at_k"].mean()
        return values.loc[0] - values.loc[rank]

    return by_seed(at[at["method"] != "base"], effect, None)


def update_rank_at_least(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean rank of full fine-tuning's update at the duration where it is least, minus `times` LoRA's rank."""
    least = rule["times"] * _rank(_chosen(table, rule), rule)
    return by_seed(_full_updates(table, rule), lambda part: float(
        part.groupby("step")["update_rank"].mean().min(skipna=False)) - least, None)


def update_rank_rises(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean rank of full fine-tuning's update at the longest duration minus at the shortest."""
    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("step")["update_rank"].mean().sort_index()
        return means.iloc[1:].iloc[-1] - means.iloc[0]  # a single duration shows no rise

    return by_seed(_full_updates(table, rule), effect, None)


def mlp_above_attention(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean of `column` over the MLP's matrices minus over the attention's, at the longest duration."""
    def effect(part: pd.DataFrame) -> float:
        attention = part["type"].isin(ATTENTION)
        return part[~attention][rule["column"]].mean() - part[attention][rule["column"]].mean()

    at = _full_updates(table, rule)
    return by_seed(at[at["step"] == at["step"].max()], effect, None)


def spectrum_unmoved(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`tolerance` minus the mean relative change of a weight's own rank for 90 % by full fine-tuning."""
    at = _full_updates(table, rule).dropna(subset=["tuned_rank"])
    return by_seed(at, lambda part: rule["tolerance"] - (part["tuned_rank"] / part["base_rank"] - 1).abs().mean(), None)


def _full_updates(table: pd.DataFrame, rule: dict) -> pd.DataFrame:
    at = _chosen(table, rule)
    return at[at["r"] == 0]


def _best(part: pd.DataFrame) -> pd.Series:
    """The row of the smallest loss; ValueError without any."""
    return part.loc[part["loss_nats_per_token"].idxmin()]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The sweep of experiment `rates`."""
    return table[table["experiment"] == "rates"]


def rate_ratio_near(table: pd.DataFrame, rule: dict) -> pd.Series:
    """0.5 minus the distance of log10(LoRA's best rate over full's) from log10 of `ratio`: within a factor of 3.2."""
    rank = _rank(_plain(table), rule)

    def effect(part: pd.DataFrame) -> float:
        lora, full = (_best(part[part["r"] == r])["learning_rate"] for r in (rank, 0))
        return 0.5 - abs(np.log10(lora / full) - np.log10(rule["ratio"]))

    return by_seed(_plain(table), effect, None)


def fewer_good_rates(table: pd.DataFrame, rule: dict) -> pd.Series:
    """How many more rates bring full fine-tuning to `share` of its own best learning than bring LoRA to its own."""
    rank = _rank(_plain(table), rule)

    def good(part: pd.DataFrame) -> int:
        best = _best(part)["learning"]
        return int((part["learning"] >= rule["share"] * best).sum())

    return by_seed(_plain(table), lambda part: float(good(part[part["r"] == 0]) - good(part[part["r"] == rank])), None)


def two_r_is_best(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Best loss over the rates with any smaller alpha minus with alpha = 2r, at one rank."""
    at = table[table["experiment"].isin(["rates", "alpha"])]
    rank = _rank(at, rule)
    at = at[at["r"] == rank]
    smaller = sorted(at.loc[at["lora_alpha"] < 2 * rank, "lora_alpha"].unique())

    def effect(part: pd.DataFrame) -> float:
        best = part.groupby("lora_alpha")["loss_nats_per_token"].min()
        return best.loc[smaller].min(skipna=False) - best.loc[2 * rank]

    return by_seed(at, effect, None)


def module_gap(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Best loss of LoRA on the first of `targets` minus on the second, plus `tolerance`; equal parameter counts."""
    def effect(part: pd.DataFrame) -> float:
        best = part.groupby("targets")["loss_nats_per_token"].min()
        return best.loc[rule["targets"][0]] - best.loc[rule["targets"][1]] + rule.get("tolerance", 0.0)

    return by_seed(table[table["experiment"] == "modules"], effect, None)


def lion_not_worse(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Best loss with AdamW minus with Lion over the rates tried, for one rank.

    NaN where Lion loses and its best rate is the highest that was tried: a higher one might win.
    """
    at = table[table["experiment"].isin(["rates", "optimisers"])]

    def effect(part: pd.DataFrame) -> float:
        adamw, lion = (_best(part[part["optimiser"] == name]) for name in ("adamw", "lion"))
        difference = adamw["loss_nats_per_token"] - lion["loss_nats_per_token"]
        highest = part.loc[part["optimiser"] == "lion", "learning_rate"].max()
        return float("nan") if difference < 0 and lion["learning_rate"] == highest else difference

    return by_seed(at[at["r"] == _rank(at, rule)], effect, None)


def rate_falls_with_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Slope of log best rate against log rank under alpha / r, with alpha fixed, minus the slope with alpha = 2r.

    Over the ranks that have two rates or more under both; fewer than three say nothing. Where the fixed alpha is 2r,
    a run belongs to both.
    """
    at = table[table["experiment"].isin(["scalings", "rates"]) & (table["r"] > 0)].drop_duplicates(["seed", "run"])

    def best_rates(part: pd.DataFrame) -> pd.Series:
        tried = part.groupby("r")["learning_rate"].transform("nunique")
        return part[tried > 1].groupby("r")[["learning_rate", "loss_nats_per_token"]].apply(_best)["learning_rate"]

    def effect(part: pd.DataFrame) -> float:
        alphas = part.loc[part["scaling"] == "alpha / r", "lora_alpha"]
        fixed = best_rates(part[part["lora_alpha"].isin(alphas) & part["scaling"].isin(["alpha / r", "alpha = 2r"])])
        rising = best_rates(part[part["scaling"] == "alpha = 2r"])
        ranks = fixed.index.intersection(rising.index)
        if len(ranks) < 3:
            raise ValueError("a slope over fewer than three ranks says nothing")
        slopes = [np.polyfit(np.log(ranks), np.log(best.loc[ranks]), 1)[0] for best in (fixed, rising)]
        return float(slopes[0] - slopes[1])

    return by_seed(at, effect, None)


def batch_costs_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """What a batch `times` the sweep's own costs LoRA beyond what it costs full: best loss there minus at its own."""
    at = table[table["experiment"].isin(["rates", "batches"])]
    rank, usual = _rank(at, rule), _plain(table)["batch_size"].max()

    def penalty(part: pd.DataFrame) -> float:
        best = part.groupby("batch_size")["loss_nats_per_token"].min()
        return best.loc[rule["times"] * usual] - best.loc[usual]

    return by_seed(at, lambda part: penalty(part[part["r"] == rank]) - penalty(part[part["r"] == 0]), None)


def deviation_slopes(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`tolerance` minus the distance of the log-log slope of the deviation from 1 below the scale `below`."""
    def effect(part: pd.DataFrame) -> float:
        at = part[part["scale"] <= rule["below"]]
        return rule["tolerance"] - abs(np.polyfit(np.log(at["scale"]), np.log(at["deviation"]), 1)[0] - 1)

    return by_seed(table, effect, None)


def formulas_agree(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Share of the published cells that the formula gives to the printed decimals, minus `least`."""
    return by_seed(table, lambda part: float(part["agrees"].mean()) - rule["least"], None)


DECODER_RULES: dict[str, Callable[[pd.DataFrame, dict], pd.Series]] = {rule.__name__: rule for rule in (
    ordered_by_rank, gap_widens, close_to_full, grows_with_duration, more_on_first_task, above_base, below_full,
    forgets_less_when_matched, forgets_more_when_matched, like_full, goes_along, trained_forgets_more, less_diverse,
    more_alike, passes_more,
    update_rank_at_least, update_rank_rises, mlp_above_attention, spectrum_unmoved, rate_ratio_near, fewer_good_rates,
    two_r_is_best, module_gap, lion_not_worse, rate_falls_with_rank, batch_costs_more, deviation_slopes,
    formulas_agree)}
