"""The rules that judge the claims about preference tuning, in the form of those of :mod:`utils.reporting.rules`."""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, by_seed
from utils.studies.preferences.measure import best_rates


def _of(table: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """An experiment's runs, each method at its best rate."""
    return best_rates(table[table["experiment"] == experiment])


def _by_kind(part: pd.DataFrame, column: str) -> pd.Series:
    """A column by ``full`` and ``lora``, mean over ranks."""
    return part.groupby(part["r"].map(lambda r: "lora" if r else "full"))[column].mean()


@rule(needs=("experiment", "seed"))
def prefers_more_than_control(table: pd.DataFrame, *, least) -> Effects:
    """Least agreement of DPO minus that of DPO on swapped pairs, over the methods that have both, less `least`."""
    both = pd.concat([_of(table, "dpo"), _of(table, "swapped")])

    def effect(part: pd.DataFrame) -> float:
        right, swapped = (_by_kind(part[part["experiment"] == name], "accuracy") for name in ("dpo", "swapped"))
        return float((right - swapped).min() - least)

    return by_seed(both, effect, outcome=None)


@rule(needs=("seed", "{column}"))
def lora_above_full(table: pd.DataFrame, *, column, in_experiment, sign=1) -> Effects:
    """LoRA's `column` minus full fine-tuning's after `in_experiment`, at each one's best rate, times `sign`."""
    def effect(part: pd.DataFrame) -> float:
        found = _by_kind(part, column)
        return float(sign * (found.loc["lora"] - found.loc["full"]))

    return by_seed(_of(table, outcome=None, experiment=in_experiment), effect, outcome=None)


@rule(needs=("experiment", "seed", "{column}"))
def changes_from_sft(table: pd.DataFrame, *, in_experiment, column, sign=1, least=0.0) -> Effects:
    """Least change of `column` from SFT to `in_experiment` over its methods, times `sign`, less `least`."""
    both = pd.concat([table[table["experiment"] == "sft"], _of(table, in_experiment)])

    def effect(part: pd.DataFrame) -> float:
        before = part.loc[part["experiment"] == "sft", column].iloc[0]
        after = part.loc[part["experiment"] == in_experiment, column]
        return float((sign * (after - before)).min(skipna=False) - least)

    return by_seed(both, effect, outcome=None)


@rule(needs=("seed", "template"))
def own_template_reads_better(table: pd.DataFrame) -> Effects:
    """Agreement of the reward model under its own template minus that under the policy's."""
    def effect(part: pd.DataFrame) -> float:
        found = part.groupby("template")["accuracy"].mean()
        return float(found.loc["own"] - found.loc["policy's"])

    return by_seed(table, effect, outcome=None)


@rule(needs=("seed", "{column}"))
def trained_beyond_random(table: pd.DataFrame, *, column, sign=1) -> Effects:
    """Least of the trained update's `column` minus a random one's of equal norm, over runs, times `sign`."""
    def effect(part: pd.DataFrame) -> float:
        values = part.pivot_table(index="run", columns="control", values=column)
        random = values.drop(columns="trained")
        return float((sign * random.rsub(values["trained"], axis=0)).min(axis=None))

    return by_seed(table, effect, outcome=None)
