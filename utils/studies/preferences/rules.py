"""The rules that judge the claims about preference tuning, in the form of those of :mod:`utils.reporting.rules`."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import by_seed
from utils.studies.preferences.measure import best_rates


def _of(table: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """An experiment's runs, each method at its best rate."""
    return best_rates(table[table["experiment"] == experiment])


def _by_kind(part: pd.DataFrame, column: str) -> pd.Series:
    """A column by ``full`` and ``lora``, mean over ranks."""
    return part.groupby(part["r"].map(lambda r: "lora" if r else "full"))[column].mean()


@rule
def prefers_more_than_control(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Least agreement of DPO minus that of DPO on swapped pairs, over the methods that have both, less `least`."""
    both = pd.concat([_of(table, "dpo"), _of(table, "swapped")])

    def effect(part: pd.DataFrame) -> float:
        right, swapped = (_by_kind(part[part["experiment"] == name], "accuracy") for name in ("dpo", "swapped"))
        return float((right - swapped).min() - rule["least"])

    return by_seed(both, effect, None)


@rule
def lora_above_full(table: pd.DataFrame, rule: dict) -> pd.Series:
    """LoRA's `column` minus full fine-tuning's after `in_experiment`, at each one's best rate, times `sign`."""
    def effect(part: pd.DataFrame) -> float:
        found = _by_kind(part, rule["column"])
        return float(rule.get("sign", 1) * (found.loc["lora"] - found.loc["full"]))

    return by_seed(_of(table, rule["in_experiment"]), effect, None)


@rule
def changes_from_sft(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Least change of `column` from SFT to `in_experiment` over its methods, times `sign`, less `least`."""
    both = pd.concat([table[table["experiment"] == "sft"], _of(table, rule["in_experiment"])])

    def effect(part: pd.DataFrame) -> float:
        before = part.loc[part["experiment"] == "sft", rule["column"]].iloc[0]
        after = part.loc[part["experiment"] == rule["in_experiment"], rule["column"]]
        return float((rule.get("sign", 1) * (after - before)).min(skipna=False) - rule.get("least", 0.0))

    return by_seed(both, effect, None)


@rule
def own_template_reads_better(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Agreement of the reward model under its own template minus that under the policy's."""
    def effect(part: pd.DataFrame) -> float:
        found = part.groupby("template")["accuracy"].mean()
        return float(found.loc["own"] - found.loc["policy's"])

    return by_seed(table, effect, None)


@rule
def trained_beyond_random(table: pd.DataFrame, rule: dict) -> pd.Series:
    """Least of the trained update's `column` minus a random one's of equal norm, over runs, times `sign`."""
    def effect(part: pd.DataFrame) -> float:
        values = part.pivot_table(index="run", columns="control", values=rule["column"])
        random = values.drop(columns="trained")
        return float((rule.get("sign", 1) * random.rsub(values["trained"], axis=0)).min(axis=None))

    return by_seed(table, effect, None)
