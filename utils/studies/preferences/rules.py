"""The rules that judge the claims about preference tuning.

Agreement is a share of held-out pairs: ``accuracy`` by implicit reward, which is relative to the run's start, and
``raw_accuracy`` by plain log-probability, which needs no reference.
"""

import pandas as pd

from utils.reporting.registry import rule
from utils.reporting.rules import Effects, MissingRun, by_seed, gap_between, rows_where, with_every
from utils.studies.preferences.measure import best_rates

RATES = ("experiment", "seed", "method", "r", "learning_rate", "preference_loss")


def _at_best(table: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """An experiment's runs, each method at its rate of least held-out loss."""
    return best_rates(table[table["experiment"] == experiment])


@rule(needs=("experiment", "seed", "method", "r", "learning_rate", "{column}"))
def above_swapped(table: pd.DataFrame, *, column: str) -> Effects:
    """Least `column` of DPO minus that of DPO on swapped pairs at the same learning rate, over the methods."""
    both = table[table["experiment"].isin(["dpo", "swapped"])]
    swapped = both[both["experiment"] == "swapped"]

    def effect(part: pd.DataFrame) -> float:
        control = with_every(part[part["experiment"] == "swapped"], swapped, "method")
        pairs = control.merge(part[part["experiment"] == "dpo"], on=["method", "learning_rate"],
                              suffixes=("_swapped", "_dpo"))
        if len(pairs) < len(control):
            raise MissingRun("no run of DPO at the control's learning rate")
        return (pairs[f"{column}_dpo"] - pairs[f"{column}_swapped"]).min()

    return by_seed(both, effect, outcome=column)


@rule(needs=(*RATES, "{column}"))
def lora_minus_full_at_best(table: pd.DataFrame, *, column: str, in_experiment: str) -> Effects:
    """LoRA's `column` (mean over ranks) minus full fine-tuning's after `in_experiment`, each at its best rate."""
    return by_seed(_at_best(table, in_experiment),
                   lambda part: gap_between(part, column, by="method_kind", of="lora", minus="full"), outcome=column)


@rule(needs=(*RATES, "{column}"))
def change_from_sft(table: pd.DataFrame, *, column: str, in_experiment: str, extreme: str) -> Effects:
    """Change of `column` from SFT to `in_experiment`: the ``least`` or the ``largest`` over its methods."""
    both = pd.concat([table[table["experiment"] == "sft"], _at_best(table, in_experiment)])

    def effect(part: pd.DataFrame) -> float:
        change = rows_where(part, experiment=in_experiment)[column] - rows_where(part, experiment="sft")[column].iloc[0]
        return {"least": change.min, "largest": change.max}[extreme]()

    return by_seed(both, effect, outcome=column)


@rule(needs=("seed", "template", "accuracy"))
def own_template_minus_policys(table: pd.DataFrame) -> Effects:
    """Agreement of the reward model under its own template minus that under the policy's."""
    return by_seed(table, lambda part: gap_between(part, "accuracy", by="template", of="own", minus="policy's"),
                   outcome="accuracy")


@rule(needs=("seed", "run", "control", "{column}"))
def dpo_minus_random(table: pd.DataFrame, *, column: str) -> Effects:
    """Least of the trained update's `column` minus a random one's of equal norm, over runs and controls."""
    def effect(part: pd.DataFrame) -> float:
        values = part.pivot_table(index="run", columns="control", values=column)
        if "trained" not in values or len(values.columns) < 2:
            raise MissingRun("no trained run with a random update beside it")
        random = values.drop(columns="trained")
        return random.rsub(values["trained"], axis=0).min(axis=None)

    return by_seed(table, effect, outcome=column)
