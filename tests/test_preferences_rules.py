"""The rules of preference tuning, each by hand."""

import pandas as pd
import pytest

from utils.studies.preferences import rules


def outcome(experiment: str, method: str, rate: float, seed: int = 0, **values) -> dict:
    return {"experiment": experiment, "seed": seed, "method": method, "r": 8 if "r=" in method else 0,
            "learning_rate": rate, "preference_loss": rate, "raw_accuracy": 0.5, "n_intruders_start": 0,
            "method_kind": "lora" if "r=" in method else "full"} | values


def test_dpo_is_compared_with_its_control_at_the_controls_rate():
    """At its best rate LoRA has 0.9; the control ran at another, where it has 0.6 against 0.55."""
    rows = [outcome("dpo", "full", 1e-3, raw_accuracy=0.7), outcome("swapped", "full", 1e-3, raw_accuracy=0.5),
            outcome("dpo", "LoRA r=8", 1e-4, raw_accuracy=0.9), outcome("dpo", "LoRA r=8", 1e-3, raw_accuracy=0.6),
            outcome("swapped", "LoRA r=8", 1e-3, raw_accuracy=0.55)]
    found = rules.above_swapped(pd.DataFrame(rows), column="raw_accuracy")
    assert found.values.tolist() == pytest.approx([0.05])
    missing = rules.above_swapped(pd.DataFrame(rows[:3] + rows[4:]), column="raw_accuracy")
    assert missing.values.isna().all() and missing.missing[0] == "no run of DPO at the control's learning rate"


def test_lora_and_full_are_compared_each_at_its_best_rate():
    rows = [outcome("dpo", "full", 1e-3, n_intruders_start=2), outcome("dpo", "LoRA r=8", 1e-3, n_intruders_start=5),
            outcome("dpo", "LoRA r=8", 1e-2, n_intruders_start=50)]
    given = {"column": "n_intruders_start", "in_experiment": "dpo"}
    assert rules.lora_minus_full_at_best(pd.DataFrame(rows), **given).values.tolist() == [3]
    alone = rules.lora_minus_full_at_best(pd.DataFrame(rows[1:]), **given)
    assert alone.missing[0] == "no run with method_kind = full"


@pytest.mark.parametrize("extreme, effect", [("least", -3), ("largest", -1)])
def test_a_change_is_counted_from_the_sft_run(extreme, effect):
    rows = [outcome("sft", "full", 1e-3, chosen_logp=-6.0), outcome("dpo", "full", 1e-3, chosen_logp=-9.0),
            outcome("dpo", "LoRA r=8", 1e-3, chosen_logp=-7.0)]
    given = {"column": "chosen_logp", "in_experiment": "dpo", "extreme": extreme}
    assert rules.change_from_sft(pd.DataFrame(rows), **given).values.tolist() == [effect]
    assert rules.change_from_sft(pd.DataFrame(rows[1:]), **given).missing[0] == "no run with experiment = sft"


def test_a_template_and_a_random_update_are_differences():
    readings = pd.DataFrame({"seed": 0, "template": ["own", "policy's", "untrained"], "accuracy": [0.7, 0.6, 0.5]})
    assert rules.own_template_minus_policys(readings).values.tolist() == pytest.approx([0.1])
    controls = pd.DataFrame({"seed": 0, "run": ["a", "a", "a", "b", "b"], "accuracy": [0.6, 0.5, 0.52, 0.7, 0.5],
                             "control": ["trained", "random, full rank", "random, rank r", "trained",
                                         "random, full rank"]})
    assert rules.dpo_minus_random(controls, column="accuracy").values.tolist() == pytest.approx([0.08])
    alone = rules.dpo_minus_random(controls[controls["control"] == "trained"], column="accuracy")
    assert alone.missing[0] == "no trained run with a random update beside it"
