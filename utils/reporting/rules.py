"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from utils.reporting.geometry import separation
from utils.reporting.measure import last_steps, learnt
from utils.reporting.moves import best_rates

Effect = Callable[[pd.DataFrame], float]


def by_seed(table: pd.DataFrame, effect: Effect, experiment: str | None = "ranks") -> pd.Series:
    """Apply `effect` to the rows of each seed of an experiment (of all for None)."""
    def effect_or_nan(part: pd.DataFrame) -> float:
        try:
            return effect(part)
        except (IndexError, KeyError, ValueError):
            return float("nan")

    chosen = table if experiment is None else table[table["experiment"] == experiment]
    return pd.Series({seed: effect_or_nan(part) for seed, part in chosen.groupby("seed")}, dtype=float)


def _full(part: pd.DataFrame) -> pd.Series:
    return part[part["r"] == 0].iloc[0]


def _with_all(part: pd.DataFrame, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One seed's rows, if they have every value of `column` that any seed has: for sentences about all of them."""
    if set(table[column]) - set(part[column]):
        raise ValueError(f"a run of those that differ in {column} is missing")
    return part


def trend(setting: pd.Series, outcome: pd.Series) -> float:
    """Spearman's rho: 0 where all outcomes are equal (no trend), NaN where fewer than two settings are left."""
    if setting.nunique() < 2:
        return float("nan")
    return 0.0 if outcome.nunique() == 1 else float(spearmanr(setting, outcome).statistic)


def accuracy_within(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Tolerance minus the largest distance of any LoRA run from full fine-tuning, at the last step."""
    last = last_steps(table[table["experiment"] == "ranks"])
    return by_seed(last, lambda part: rule["tolerance"] - (
        _with_all(part, last, "r")[part["r"] > 0]["accuracy"] - _full(part)["accuracy"]).abs().max())


def no_intruders_in_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """0.5 minus the count of full fine-tuning: positive for a count of exactly zero."""
    at = table[table["epsilon"] == rule["epsilon"]]
    return by_seed(at, lambda part: 0.5 - _full(part)["n_intruders"])


def more_intruders_at_equal_accuracy(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Largest LoRA count minus full's, among LoRA runs within the tolerance of full's accuracy."""
    at = table[table["epsilon"] == rule["epsilon"]]

    def effect(part: pd.DataFrame) -> float:
        full = _full(part)
        near = part[(part["r"] > 0) & ((part["accuracy"] - full["accuracy"]).abs() <= rule["tolerance"])]
        return near["n_intruders"].max() - full["n_intruders"] if len(near) else float("nan")

    return by_seed(at, effect)


def fewer_at_full_width(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Count at the low rank minus count at the highest rank."""
    at, width = table[table["epsilon"] == rule["epsilon"]], table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("r")["n_intruders"]
        return counts.loc[rule["low_rank"]] - counts.loc[width]

    return by_seed(at, effect)


def grows_through_training(table: pd.DataFrame, rule: dict) -> pd.Series:
    """LoRA's count at the last checkpoint minus the first; the strongest intruder must not be weaker at the end."""
    def effect(part: pd.DataFrame) -> float:
        lora = part[part["r"] > 0].sort_values("step")
        first, last = lora.iloc[0], lora.iloc[-1]
        strengths = lora["strongest_ratio"].dropna()
        weaker = len(strengths) > 1 and strengths.iloc[-1] < strengths.iloc[0]
        return -1.0 if weaker else last["n_intruders"] - first["n_intruders"]

    return by_seed(table, effect)


def above_full_at_every_k(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Smallest difference LoRA minus full over k, plus a half, so that a tie counts as holding."""
    def effect(part: pd.DataFrame) -> float:
        low = part[part["r"] == rule["low_rank"]].set_index("k")["n_intruders"]
        return (low - part[part["r"] == 0].set_index("k")["n_intruders"]).min() + 0.5

    return by_seed(table, effect)


def full_forgets_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Full's pseudo-loss minus the largest one of LoRA up to the given rank."""
    at = table[(table["experiment"] == "ranks") & (table["r"] <= rule["max_rank"])]
    return by_seed(at, lambda part: _full(part)["pseudo_loss"] - _with_all(part, at, "r")[
        part["r"] > 0]["pseudo_loss"].max())


def u_shape(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The smaller of: r = 1 minus the low rank, and the highest rank minus the low rank, in pseudo-loss."""
    width = table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        lora = part.set_index("r")["pseudo_loss"]
        return min(lora.loc[1], lora.loc[width]) - lora.loc[rule["low_rank"]]

    return by_seed(table, effect)


def higher_rates_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between learning rate and `column` over one rank's runs that learnt, at the last step."""
    lora = last_steps(learnt(table[table["r"] > 0]))
    return by_seed(lora, lambda part: trend(part["learning_rate"], part[rule["column"]]), "learning_rates")


def goes_together(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho of two columns over the checkpoints of one rank's learnt runs, minus `least`; `sign` -1 turns it.

    NaN where one of the columns never changes, as where no run has an intruder: then nothing can go together.
    """
    def effect(part: pd.DataFrame) -> float:
        column, other = part[rule["column"]], part[rule["other"]]
        if min(part["learning_rate"].nunique(), column.nunique(), other.nunique()) < 2:
            return float("nan")
        return rule.get("sign", 1) * spearmanr(column, other).statistic - rule.get("least", 0.0)

    return by_seed(learnt(table[table["r"] > 0]), effect, "learning_rates")


def largest_rate_passes_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting at LoRA's largest rate minus full fine-tuning's at its smallest rate, its usual one, last step.

    NaN where the run at that rate did not learn its task.
    """
    last = last_steps(table[table["experiment"] == "learning_rates"])
    largest = last[last["r"] > 0]["learning_rate"].max()
    smallest = last[last["r"] == 0]["learning_rate"].min()

    def effect(part: pd.DataFrame) -> float:
        lora = part[(part["r"] > 0) & (part["learning_rate"] == largest)].iloc[0]
        full = part[(part["r"] == 0) & (part["learning_rate"] == smallest)].iloc[0]
        return lora["forgetting"] - full["forgetting"]

    return by_seed(learnt(last), effect, "learning_rates")


def falls_with_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Minus Spearman's rho between rank and count over the runs of an experiment that trained at all.

    Runs whose accuracy lies more than `tolerance` below the experiment's best did not learn the task: what they have
    of intruders says nothing about the rank.
    """
    def effect(part: pd.DataFrame) -> float:
        trained = part[(part["r"] > 0) & (part["accuracy"] >= part["accuracy"].max() - rule["tolerance"])]
        if trained["r"].nunique() < 3:
            return float("nan")
        return -trend(trained["r"], trained["n_intruders"])

    return by_seed(table, effect, rule["in_experiment"])


def alpha_adds(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` at alpha = 8 minus alpha = 2r for one rank, each in its own experiment (rates as the rule sets them).

    An `allowance` is added, so that the sentence "no more than so much below" holds where the effect is positive.
    """
    at = table[table["epsilon"] == rule["epsilon"]] if "epsilon" in rule else table
    at = at[(at["r"] == rule["rank"]) & at["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("experiment")[rule["column"]].mean()
        return values.loc["alpha_8"] - values.loc["rule"] + rule.get("allowance", 0.0)

    return by_seed(at, effect, None)


def alpha_alone(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` at the smaller alpha minus the larger, among runs of one rank at one and the same learning rate.

    The mean over such rates. Runs of another scaling (rsLoRA) are another method, not another alpha.
    """
    def effect(part: pd.DataFrame) -> float:
        alike = ["method", "learning_rate"]
        pairs = part[part["r"] == rule["rank"]].drop_duplicates("run").groupby(alike).filter(
            lambda same: same["lora_alpha"].nunique() > 1)
        ordered = pairs.sort_values("lora_alpha").groupby(alike)[rule["column"]]
        return float((ordered.first() - ordered.last()).mean())

    return by_seed(table, effect, None)


def grows_with_data(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between training rows and count at one rank; with `flat`, the allowed change minus the change.

    A change of exactly `flat` counts as allowed. Fewer than three amounts of data show no course.
    """
    at = table[(table["epsilon"] == rule["epsilon"]) & (table["r"] == rule["rank"])]

    def effect(part: pd.DataFrame) -> float:
        if part["train_rows"].nunique() < 3:
            return float("nan")
        counts = part["n_intruders"]
        return rule["flat"] + 0.5 - (counts.max() - counts.min()) if "flat" in rule else trend(
            part["train_rows"], counts)

    return by_seed(at, effect, None)


def variant_below(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Count of method `beside` minus count of `method`, each at its best rate by accuracy over the seeds."""
    at = best_rates(table[(table["epsilon"] == rule["epsilon"]) & (table["experiment"] == "variants")])

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("method")["n_intruders"]
        return counts.loc[rule["beside"]] - counts.loc[rule["method"]]

    return by_seed(at, effect, "variants")


def every_variant_has(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The smallest count of any variant at its best rate, minus a half: positive where all have an intruder."""
    at = best_rates(table[(table["epsilon"] == rule["epsilon"]) & (table["r"] > 0)
                          & (table["experiment"] == "variants")])
    return by_seed(at, lambda part: _with_all(part, at, "method")["n_intruders"].min() - 0.5, "variants")


def seeds_overlap(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Largest gap between methods' mean counts, minus the largest distance of a seed's counts from those means.

    NaN for a single seed, which has nothing to differ from.
    """
    at = table[(table["epsilon"] == rule["epsilon"]) & (table["experiment"] == "ranks")]
    means = at.groupby("method")["n_intruders"].mean()

    def effect(part: pd.DataFrame) -> float:
        if at["seed"].nunique() < 2:
            return float("nan")
        counts = _with_all(part, at, "method").set_index("method")["n_intruders"]
        return means.max() - means.min() - (counts - means).abs().max()

    return by_seed(at, effect)


def larger_effective_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean effective rank of the update at one rank minus another's (0 is full fine-tuning) in an experiment."""
    at = table[table["experiment"] == rule["in_experiment"]]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("r")["effective_rank"].mean()
        return means.loc[rule["higher"]] - rule.get("times", 1.0) * means.loc[rule["lower"]]

    return by_seed(at, effect, rule["in_experiment"])


def alpha_collapses_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean effective rank under alpha = 2r minus under alpha = 8, at one rank."""
    at = table[(table["r"] == rule["rank"]) & table["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("experiment")["effective_rank"].mean()
        return means.loc["rule"] - means.loc["alpha_8"]

    return by_seed(at, effect, None)


def _scaled(table: pd.DataFrame, rule: dict) -> pd.DataFrame:
    """The intervention's rows of one rank, at the smallest of its learning rates: the gentlest run."""
    at = table[table["r"] == rule["rank"]]
    return at[at["learning_rate"] == at["learning_rate"].min()]


def _change(row: pd.Series) -> float:
    """Forgetting's change in percent; NaN without an intruder to scale, and where nothing had been forgotten.

    A change of what was forgotten and a change of the loss have different signs where the run forgot less than nothing.
    """
    if row["changed"] == 0 or row["forgetting_change"] * row["loss_change"] < 0:
        return float("nan")
    return row["forgetting_change"]


def scaling_helps(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Scaling intruders down: the fall of forgetting in percent, if accuracy falls by less than `tolerance` percent."""
    at = _scaled(table, rule)
    at = at[(at["kind"] == "intruder") & (at["factor"] == rule["factor"])]

    def effect(part: pd.DataFrame) -> float:
        row = part.iloc[0]
        change = _change(row)
        return -change if np.isnan(change) or row["accuracy_change"] > -rule["tolerance"] else row["accuracy_change"]

    return by_seed(at, effect, None)


def scaling_up_hurts(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting's change in percent when intruders are scaled up."""
    at = _scaled(table, rule)
    at = at[(at["kind"] == "intruder") & (at["factor"] == rule["factor"])]
    return by_seed(at, lambda part: _change(part.iloc[0]), None)


def neighbour_hurts(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The smaller rise of forgetting, in percent, when the neighbour is scaled down or up by the given factors."""
    at = _scaled(table, rule)
    at = at[at["kind"] == "neighbour"]

    def effect(part: pd.DataFrame) -> float:
        rows = part.set_index("factor")
        changes = [_change(rows.loc[factor]) for factor in rule["factors"]]
        return float("nan") if np.isnan(changes).any() else min(changes)

    return by_seed(at, effect, None)


def intruder_beats(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting saved per accuracy lost: how much lower the intruder's curve is than another kind's at equal accuracy.

    The other kind's frontier (its points than which none is as accurate and forgets no more) is interpolated at the
    accuracy that scaling intruders by `factor` leaves; its curve includes factor 1. Nats per token, positive where
    scaling intruders forgets less; NaN without an intruder to scale.
    """
    def effect(part: pd.DataFrame) -> float:
        row = part[(part["kind"] == "intruder") & (part["factor"] == rule["factor"])].iloc[0]
        other = part[(part["kind"] == rule["kind"]) & (part["factor"] <= 1)]
        if row["changed"] == 0 or other.empty:
            return float("nan")
        least = other.groupby("accuracy")["forgetting"].min()
        frontier = least[least < least[::-1].cummin()[::-1].shift(-1, fill_value=np.inf)]
        return float(np.interp(row["accuracy"], frontier.index, frontier) - row["forgetting"])

    return by_seed(_scaled(table, rule), effect, None)


def removal_monotone(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Minus Spearman's rho between how many intruders are removed and forgetting; NaN where there is none to remove."""
    at = _scaled(table, rule)
    at = at[at["kind"] == "intruders"]
    return by_seed(at, lambda part: -trend(part["removed"], part["forgetting"]), None)


def intruders_beyond_norm(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting with intruders minus without, at one and the same norm of every matrix's update (the smaller one).

    NaN where removing them leaves the norm as it was: there was none to remove.
    """
    def effect(part: pd.DataFrame) -> float:
        by = part.set_index(["norm", "intruders"])
        norms, values = by["relative_norm"], by["forgetting"]
        if norms.loc["own", "kept"] == norms.loc["smaller", "kept"]:
            return float("nan")
        return values.loc["smaller", "kept"] - values.loc["smaller", "removed"]

    return by_seed(_scaled(table, rule), effect, None)


def summary_above_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` of LoRA at one rank (and alpha) minus another's: full fine-tuning's, or that of `beside_alpha`."""
    def effect(part: pd.DataFrame) -> float:
        chosen = part[part["r"] == rule["rank"]]
        if "beside_alpha" in rule:
            by_alpha = chosen.set_index("lora_alpha")[rule["column"]]
            return by_alpha.loc[rule["alpha"]] - by_alpha.loc[rule["beside_alpha"]]
        chosen = chosen[chosen["lora_alpha"] == rule.get("alpha", 2 * rule["rank"])]
        return chosen[rule["column"]].iloc[0] - part[part["r"] == 0][rule["column"]].iloc[0]

    return by_seed(table, effect, None)


def accumulates(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Count after the last stage minus after the first, at one rank; less full's same difference, where that rises."""
    def effect(part: pd.DataFrame) -> float:
        def rise(rows: pd.DataFrame) -> float:
            ordered = rows.sort_values("stage")["n_intruders"]
            return ordered.iloc[-1] - ordered.iloc[0]

        lora = part[(part["r"] == rule["rank"]) & (part["lora_alpha"] == 2 * rule["rank"])]
        return rise(lora) - max(0, rise(part[part["r"] == 0]))

    return by_seed(table, effect, None)


def lora_minus_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` of the showcase LoRA run minus full fine-tuning's, times `sign`, less `least`."""
    def effect(part: pd.DataFrame) -> float:
        difference = part[part["r"] > 0][rule["column"]].mean() - _full(part)[rule["column"]]
        return rule.get("sign", 1) * difference - rule.get("least", 0.0)

    return by_seed(table, effect)


def lora_minus_full_window(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Intruders that are left at a window width: LoRA's minus full fine-tuning's."""
    return lora_minus_full(table[table["width"] == rule["width"]], {"column": "n_intruders"})


def planted_on_top(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Above the largest singular value the planted direction has index 1 and lies below epsilon; margin to it."""
    at = table[table["ratio"] > 1]
    return by_seed(at, lambda part: rule["epsilon"] - part["max_cosine"].max() if (part["index"] == 1).all() else -1.0)


def predicts_strength(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Share of matrices whose critical strength is predicted within `factor`, minus `least`.

    Where no strength makes an intruder (infinity), the prediction has to say so.
    """
    def effect(part: pd.DataFrame) -> float:
        right = (part["measured"] / part["predicted"]).between(1 / rule["factor"], rule["factor"])
        never = np.isinf(part["measured"]) & np.isinf(part["predicted"])
        return float((right | never).mean()) - rule["least"]

    return by_seed(table, effect, None)


def threshold_separates(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean over one rank's runs of the area under the curve of strength over critical strength, minus `least`."""
    return by_seed(table[table["r"] == rule["rank"]], lambda part: separation(part)["auc"].mean() - rule["least"],
                    "learning_rates")


def released_lora_above_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Per group of released models: the smallest count of a LoRA model minus full fine-tuning's largest."""
    at = table[table["epsilon"] == rule["epsilon"]]
    full = at["method"].str.startswith("full")
    return at[~full].groupby("group")["n_intruders"].min() - at[full].groupby("group")["n_intruders"].max()


RULES: dict[str, Callable[[pd.DataFrame, dict], pd.Series]] = {rule.__name__: rule for rule in (
    accuracy_within, no_intruders_in_full, more_intruders_at_equal_accuracy, fewer_at_full_width,
    grows_through_training, above_full_at_every_k, full_forgets_more, u_shape, higher_rates_more, goes_together,
    largest_rate_passes_full, falls_with_rank, alpha_adds, alpha_alone, grows_with_data, variant_below,
    every_variant_has, seeds_overlap, larger_effective_rank, alpha_collapses_rank, scaling_helps, scaling_up_hurts,
    neighbour_hurts, intruder_beats, removal_monotone, intruders_beyond_norm, summary_above_full, accumulates,
    lora_minus_full, lora_minus_full_window, planted_on_top, predicts_strength, threshold_separates,
    released_lora_above_full)}
