"""The rules that judge claims: each takes a measurement's table and the claim's parameters, and returns one effect per
seed, positive where the claim holds. A seed in which a run that the rule needs is missing or diverged gives NaN.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from utils.reporting.geometry import separation
from utils.reporting.measure import last_steps
from utils.reporting.moves import best_rates

Effect = Callable[[pd.DataFrame], float]


def _by_seed(table: pd.DataFrame, effect: Effect, experiment: str | None = "ranks") -> pd.Series:
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


def accuracy_within(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Tolerance minus the largest distance of any LoRA run from full fine-tuning, at the last step."""
    return _by_seed(last_steps(table), lambda part: rule["tolerance"] - (
        part[part["r"] > 0]["accuracy"] - _full(part)["accuracy"]).abs().max())


def no_intruders_in_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """0.5 minus the count of full fine-tuning: positive for a count of exactly zero."""
    at = table[table["epsilon"] == rule["epsilon"]]
    return _by_seed(at, lambda part: 0.5 - _full(part)["n_intruders"])


def more_intruders_at_equal_accuracy(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Largest LoRA count minus full's, among LoRA runs within the tolerance of full's accuracy."""
    at = table[table["epsilon"] == rule["epsilon"]]

    def effect(part: pd.DataFrame) -> float:
        full = _full(part)
        near = part[(part["r"] > 0) & ((part["accuracy"] - full["accuracy"]).abs() <= rule["tolerance"])]
        return near["n_intruders"].max() - full["n_intruders"] if len(near) else float("nan")

    return _by_seed(at, effect)


def fewer_at_full_width(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Count at the low rank minus count at the highest rank."""
    at, width = table[table["epsilon"] == rule["epsilon"]], table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("r")["n_intruders"]
        return counts.loc[rule["low_rank"]] - counts.loc[width]

    return _by_seed(at, effect)


def grows_through_training(table: pd.DataFrame, rule: dict) -> pd.Series:
    """LoRA's count at the last checkpoint minus the first; the strongest intruder must not be weaker at the end."""
    def effect(part: pd.DataFrame) -> float:
        lora = part[part["r"] > 0].sort_values("step")
        first, last = lora.iloc[0], lora.iloc[-1]
        strengths = lora["strongest_ratio"].dropna()
        weaker = len(strengths) > 1 and strengths.iloc[-1] < strengths.iloc[0]
        return -1.0 if weaker else last["n_intruders"] - first["n_intruders"]

    return _by_seed(table, effect)


def above_full_at_every_k(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Smallest difference LoRA minus full over k, plus a half, so that a tie counts as holding."""
    def effect(part: pd.DataFrame) -> float:
        low = part[part["r"] == rule["low_rank"]].set_index("k")["n_intruders"]
        return (low - part[part["r"] == 0].set_index("k")["n_intruders"]).min() + 0.5

    return _by_seed(table, effect)


def full_forgets_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Full's pseudo-loss minus the largest one of LoRA up to the given rank."""
    return _by_seed(table, lambda part: _full(part)["pseudo_loss"] - part[
        part["r"].between(1, rule["max_rank"])]["pseudo_loss"].max())


def u_shape(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The smaller of: r = 1 minus the low rank, and the highest rank minus the low rank, in pseudo-loss."""
    width = table["r"].max()

    def effect(part: pd.DataFrame) -> float:
        lora = part.set_index("r")["pseudo_loss"]
        return min(lora.loc[1], lora.loc[width]) - lora.loc[rule["low_rank"]]

    return _by_seed(table, effect)


def higher_rates_more(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between learning rate and `column` over one rank's runs at the last step."""
    lora = last_steps(table[table["r"] > 0])
    return _by_seed(lora, lambda part: spearmanr(part["learning_rate"], part[rule["column"]]).statistic,
                    "learning_rates")


def goes_together(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between two columns over the checkpoints of one rank's runs, minus `least`; `sign` -1 turns it."""
    return _by_seed(table[table["r"] > 0], lambda part: rule.get("sign", 1) * spearmanr(
        part[rule["column"]], part[rule["other"]]).statistic - rule.get("least", 0.0), "learning_rates")


def largest_rate_passes_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting at LoRA's largest rate minus full fine-tuning's at its smallest rate, its usual one, last step."""
    def effect(part: pd.DataFrame) -> float:
        full = part[part["r"] == 0].sort_values("learning_rate").iloc[0]
        return part[part["r"] > 0].sort_values("learning_rate").iloc[-1]["forgetting"] - full["forgetting"]

    return _by_seed(last_steps(table), effect, "learning_rates")


def falls_with_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Minus Spearman's rho between rank and count over the runs of an experiment that trained at all.

    Runs whose accuracy lies more than `tolerance` below the experiment's best did not learn the task: what they have
    of intruders says nothing about the rank.
    """
    def effect(part: pd.DataFrame) -> float:
        trained = part[(part["r"] > 0) & (part["accuracy"] >= part["accuracy"].max() - rule["tolerance"])]
        if trained["r"].nunique() < 3:
            return float("nan")
        rho = spearmanr(trained["r"], trained["n_intruders"]).statistic
        return -(0.0 if np.isnan(rho) else rho)  # equal counts at every rank: no trend

    return _by_seed(table, effect, rule["in_experiment"])


def alpha_adds(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` at alpha = 8 minus alpha = 2r for one rank, each in its own experiment (rates as the rule sets them)."""
    at = table[table["epsilon"] == rule["epsilon"]] if "epsilon" in rule else table
    at = at[(at["r"] == rule["rank"]) & at["experiment"].isin(["rule", "alpha_8"])]

    def effect(part: pd.DataFrame) -> float:
        values = part.groupby("experiment")[rule["column"]].mean()
        return values.loc["alpha_8"] - values.loc["rule"]

    return _by_seed(at, effect, None)


def alpha_alone(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` at the smaller alpha minus the larger, among runs of one rank at one and the same learning rate."""
    def effect(part: pd.DataFrame) -> float:
        pairs = part[part["r"] == rule["rank"]].drop_duplicates("run").groupby("learning_rate").filter(
            lambda same: same["lora_alpha"].nunique() > 1)
        ordered = pairs.sort_values("lora_alpha").groupby("learning_rate")[rule["column"]]
        return float((ordered.first() - ordered.last()).iloc[0])

    return _by_seed(table, effect, None)


def grows_with_data(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Spearman's rho between training rows and count at one rank; with `flat`, that minus the allowed change."""
    at = table[(table["epsilon"] == rule["epsilon"]) & (table["r"] == rule["rank"])]
    if "flat" in rule:
        return _by_seed(at, lambda part: rule["flat"] + 0.5 - (
            part["n_intruders"].max() - part["n_intruders"].min()), None)
    return _by_seed(at, lambda part: spearmanr(part["train_rows"], part["n_intruders"]).statistic, None)


def variant_below(table: pd.DataFrame, rule: dict) -> pd.Series:
    """LoRA's count minus a variant's, each method at its best rate by accuracy over the seeds."""
    at = best_rates(table[table["epsilon"] == rule["epsilon"]])

    def effect(part: pd.DataFrame) -> float:
        counts = part.set_index("method")["n_intruders"]
        return counts.loc[rule["beside"]] - counts.loc[rule["method"]]

    return _by_seed(at, effect, "variants")


def every_variant_has(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The smallest count of any variant at its best rate, minus a half: positive where all have an intruder."""
    at = best_rates(table[(table["epsilon"] == rule["epsilon"]) & (table["r"] > 0)])
    return _by_seed(at, lambda part: part["n_intruders"].min() - 0.5, "variants")


def seeds_overlap(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Largest gap between methods' mean counts, minus the largest distance of a seed's counts from those means."""
    at = table[(table["epsilon"] == rule["epsilon"]) & (table["experiment"] == "ranks")]
    means = at.groupby("method")["n_intruders"].mean()
    return _by_seed(at, lambda part: (means.max() - means.min()) - (
        part.set_index("method")["n_intruders"] - means).abs().max())


def larger_effective_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean effective rank of the update at one rank minus another's (0 is full fine-tuning) in an experiment."""
    at = table[table["experiment"] == rule["in_experiment"]]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("r")["effective_rank"].mean()
        return means.loc[rule["higher"]] - rule.get("times", 1.0) * means.loc[rule["lower"]]

    return _by_seed(at, effect, rule["in_experiment"])


def alpha_collapses_rank(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean effective rank under alpha = 2r minus under alpha = 8, at one rank."""
    at = table[table["r"] == rule["rank"]]

    def effect(part: pd.DataFrame) -> float:
        means = part.groupby("experiment")["effective_rank"].mean()
        return means.loc["rule"] - means.loc["alpha_8"]

    return _by_seed(at, effect, None)


def _scaled(table: pd.DataFrame, rule: dict) -> pd.DataFrame:
    """The intervention's rows of one rank, at the smallest of its learning rates: the gentlest run."""
    at = table[table["r"] == rule["rank"]]
    return at[at["learning_rate"] == at["learning_rate"].min()]


def scaling_helps(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Scaling intruders down: the fall of forgetting in percent, if accuracy falls by less than `tolerance` percent."""
    at = _scaled(table, rule)
    at = at[(at["kind"] == "intruder") & (at["factor"] == rule["factor"])]

    def effect(part: pd.DataFrame) -> float:
        row = part.iloc[0]
        if row["changed"] == 0:
            return float("nan")  # no intruder to scale
        return -row["forgetting_change"] if row["accuracy_change"] > -rule["tolerance"] else row["accuracy_change"]

    return _by_seed(at, effect, None)


def scaling_up_hurts(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting's change in percent when intruders are scaled up."""
    at = _scaled(table, rule)
    at = at[(at["kind"] == "intruder") & (at["factor"] == rule["factor"])]
    return _by_seed(at, lambda part: part["forgetting_change"].iloc[0], None)


def neighbour_hurts(table: pd.DataFrame, rule: dict) -> pd.Series:
    """The smaller rise of forgetting, in percent, when the neighbour is scaled down or up by the given factors."""
    at = _scaled(table, rule)
    at = at[(at["kind"] == "neighbour") & at["factor"].isin(rule["factors"])]
    return _by_seed(at, lambda part: part["forgetting_change"].min(), None)


def intruder_beats(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting saved per accuracy lost: how much lower the intruder's curve is than another kind's at equal accuracy.

    The other kind's forgetting is interpolated at the accuracy that scaling intruders by `factor` leaves; its curve
    includes factor 1. Nats per token, positive where scaling intruders forgets less.
    """
    def effect(part: pd.DataFrame) -> float:
        row = part[(part["kind"] == "intruder") & (part["factor"] == rule["factor"])].iloc[0]
        other = part[(part["kind"] == rule["kind"]) & (part["factor"] <= 1)]
        frontier = other.sort_values("accuracy").drop_duplicates("accuracy")
        return float(np.interp(row["accuracy"], frontier["accuracy"], frontier["forgetting"]) - row["forgetting"])

    return _by_seed(_scaled(table, rule), effect, None)


def removal_monotone(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Minus Spearman's rho between how many intruders are removed and forgetting."""
    at = _scaled(table, rule)
    at = at[at["kind"] == "intruders"]
    return _by_seed(at, lambda part: -spearmanr(part["removed"], part["forgetting"]).statistic, None)


def intruders_beyond_norm(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Forgetting with intruders minus without, at one and the same norm of every matrix's update (the smaller one)."""
    at = _scaled(table, rule)
    at = at[at["norm"] == "smaller"]

    def effect(part: pd.DataFrame) -> float:
        values = part.set_index("intruders")["forgetting"]
        return values.loc["kept"] - values.loc["removed"]

    return _by_seed(at, effect, None)


def summary_above_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` of LoRA at one rank (and alpha) minus another's: full fine-tuning's, or that of `beside_alpha`."""
    def effect(part: pd.DataFrame) -> float:
        chosen = part[part["r"] == rule["rank"]]
        if "beside_alpha" in rule:
            by_alpha = chosen.set_index("lora_alpha")[rule["column"]]
            return by_alpha.loc[rule["alpha"]] - by_alpha.loc[rule["beside_alpha"]]
        chosen = chosen[chosen["lora_alpha"] == rule.get("alpha", 2 * rule["rank"])]
        return chosen[rule["column"]].iloc[0] - part[part["r"] == 0][rule["column"]].iloc[0]

    return _by_seed(table, effect, None)


def accumulates(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Count after the last stage minus after the first, at one rank, less full fine-tuning's same difference."""
    def effect(part: pd.DataFrame) -> float:
        def rise(rows: pd.DataFrame) -> float:
            ordered = rows.sort_values("stage")["n_intruders"]
            return ordered.iloc[-1] - ordered.iloc[0]

        lora = part[(part["r"] == rule["rank"]) & (part["lora_alpha"] == 2 * rule["rank"])]
        return rise(lora) - rise(part[part["r"] == 0])

    return _by_seed(table, effect, None)


def lora_minus_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """`column` of the showcase LoRA run minus full fine-tuning's, times `sign`, less `least`."""
    def effect(part: pd.DataFrame) -> float:
        difference = part[part["r"] > 0][rule["column"]].mean() - _full(part)[rule["column"]]
        return rule.get("sign", 1) * difference - rule.get("least", 0.0)

    return _by_seed(table, effect)


def lora_minus_full_window(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Intruders that are left at a window width: LoRA's minus full fine-tuning's."""
    return lora_minus_full(table[table["width"] == rule["width"]], {"column": "n_intruders"})


def planted_on_top(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Above the largest singular value the planted direction has index 1 and lies below epsilon; margin to it."""
    at = table[table["ratio"] > 1]
    return _by_seed(at, lambda part: rule["epsilon"] - part["max_cosine"].max() if (part["index"] == 1).all() else -1.0)


def predicts_strength(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Share of matrices whose critical strength is predicted within `factor`, minus `least`."""
    def effect(part: pd.DataFrame) -> float:
        ratio = part["measured"] / part["predicted"]
        return float(ratio.between(1 / rule["factor"], rule["factor"]).mean()) - rule["least"]

    return _by_seed(table, effect, None)


def threshold_separates(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Mean over one rank's runs of the area under the curve of strength over critical strength, minus `least`."""
    return _by_seed(table[table["r"] == rule["rank"]], lambda part: float(np.nanmean(separation(part)["auc"]))
                    - rule["least"], "learning_rates")


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
