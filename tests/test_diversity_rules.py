"""Notebook 11's rules by hand: models paired problem by problem, and verdicts by bootstrap over problems and seeds."""

import pandas as pd
import pytest

from utils.ledger.claims import claims
from utils.profiles import PROFILE_NAMES
from utils.reporting.claims import judge_claim
from utils.reporting.registry import RULES
from utils.reporting.selection import marked
from utils.reporting.verdicts import NO_POWER, REPRODUCED, TOO_FEW

KINDS = {"base": ("base", 0), "lora": ("LoRA r=8", 8), "full": ("full", 0)}
OURS = {claim.id: claim for claim in claims() if claim.study == "diversity"}
UNIQUE = {"column": "unique", "which": "largest", "temperature": 0.2, "outcome": "failed"}


def written(seeds=(0,), column="unique", outcome="failed", **values: list[float]) -> pd.DataFrame:
    """One value per problem by kind of model, the same in every seed; the base once. Elsewhere all values are 99."""
    rows = [{"method": KINDS[kind][0], "r": KINDS[kind][1], "seed": seed, "task_id": f"t{problem}", "outcome": which,
             "temperature": temperature, column: value if (which, temperature) == (outcome, 0.2) else 99.0}
            for kind, of in values.items() for seed in (seeds if kind != "base" else seeds[:1])
            for problem, value in enumerate(of) for which in (outcome, "other") for temperature in (0.2, 0.8)]
    return marked(pd.DataFrame(rows))


def passing(seeds=(0,), **passed: list[int]) -> pd.DataFrame:
    """How many of eight generations passed, by kind and problem, at temperature 0.8; rank 1 passes everything."""
    rows = [{"method": method, "r": r, "seed": seed, "task_id": f"t{problem}", "outcome": outcome, "temperature": 0.8,
             "n": n}
            for (method, r), counts in [*((KINDS[kind], of) for kind, of in passed.items()), (("LoRA r=1", 1), [8] * 5)]
            for seed in (seeds if method != "base" else seeds[:1])
            for problem, count in enumerate(counts) for outcome, n in (("passed", count), ("all", 8))]
    return marked(pd.DataFrame(rows))


def test_the_smaller_fall_decides_problem_by_problem():
    """Base to LoRA: -2 on the mean of five problems; LoRA to full: -1, the one nearer to failing."""
    table = written((0, 1), base=[6, 5, 6, 5, 8], lora=[4, 3, 4, 3, 6], full=[3, 2, 3, 2, 5])
    found = RULES["step_from_base"].function(table, **UNIQUE)
    assert found.values.to_dict() == {0: -1.0, 1: -1.0}
    assert found.items["difference"].eq(-1).all() and len(found.items) == 10


def test_what_is_larger_where_texts_are_alike_rises():
    table = written((0,), "self_bleu", base=[0.5] * 5, lora=[0.75] * 5, full=[0.625] * 5)
    found = RULES["step_from_base"].function(table, **UNIQUE | {"column": "self_bleu", "which": "smallest"})
    assert found.values.to_dict() == {0: -0.125}, "full lies below LoRA again"


def test_only_problems_that_all_models_have_a_value_of_count():
    missing = [float("nan")]
    table = written((0,), base=[6.0] * 6, lora=[5.0, 5, 5, 5, 5, 99], full=[4.0] * 5 + missing)
    assert RULES["step_from_base"].function(table, **UNIQUE).values.to_dict() == {0: -1.0}
    few = RULES["step_from_base"].function(written((0,), base=[6.0] * 5, lora=[5.0] * 5, full=[4.0] * 4 + missing),
                                           **UNIQUE)
    assert few.values.isna().all() and few.items is None
    assert few.missing == {0: "4 problems have a value in every model, 5 needed"}


@pytest.mark.parametrize("gone, why", [("method == 'full' and seed == 1", "full"), ("r == 8 and seed == 1", "lora"),
                                       ("method == 'base'", "base")])
def test_a_seed_whose_model_is_missing_has_no_effect(gone, why):
    table = written((0, 1), base=[6] * 5, lora=[4] * 5, full=[3] * 5)
    found = RULES["step_from_base"].function(table.drop(index=table.query(gone).index), **UNIQUE)
    assert found.missing[1] == f"no run with method_kind = {why}" and pd.isna(found.values[1])
    assert pd.isna(found.values[0]) == (why == "base"), "the other seed keeps its effect"


def test_pass_at_1_is_the_share_that_passed_of_the_highest_rank():
    table = passing((0,), base=[0] * 5, lora=[4] * 5, full=[6, 6, 6, 6, 6])
    rule = RULES["passes_more"].function
    assert rule(table, pairs=[["full", "lora"]], temperature=0.8).values.to_dict() == {0: 0.25}
    both = [["full", "base"], ["lora", "base"]]
    assert rule(table, pairs=both, temperature=0.8).values.to_dict() == {0: 0.5}, "LoRA's gain is the smaller one"
    assert rule(table, pairs=[["full", "lora"]], rank="lowest", temperature=0.8).values.to_dict() == {0: -0.25}
    without = rule(table[table["r"] == 0], pairs=[["full", "lora"]], temperature=0.8)
    assert without.missing == {0: "no run with method_kind = lora"}


def test_entropy_is_compared_with_the_base_of_the_same_text():
    rows = [{"method": method, "r": r, "seed": seed, "text": text, "entropy_nats": value + (text != "problems")}
            for (method, r), seed, value in ((KINDS["base"], 0, 2.0), (KINDS["full"], 0, 1.75), (KINDS["full"], 1, 2.5),
                                             (KINDS["lora"], 0, 9.0), (KINDS["lora"], 2, 9.0))
            for text in ("problems", "general text")]
    found = RULES["entropy_minus_base"].function(marked(pd.DataFrame(rows)), text="problems", model="full")
    assert found.values.dropna().to_dict() == {0: -0.25, 1: 0.5} and set(found.missing) == {2}


def judged(claim_id: str, table: pd.DataFrame):
    """With every column that the measurement declares."""
    named = table.reindex(columns=dict.fromkeys([*table.columns, *DECLARED]))
    return judge_claim(OURS[claim_id], named, "laptop")


DECLARED = ("profile", "experiment", "task", "lora_alpha", "learning_rate", "run", "n", "unique", "unique_ratio",
            "rarefied", "m", "distinct_1", "distinct_2", "self_bleu", "mean_tokens")


def test_a_fall_in_every_problem_is_reproduced_and_one_carried_by_a_single_problem_is_not():
    clear = written((0, 1, 2), base=[6, 5, 7, 6, 8, 7], lora=[4, 4, 5, 4, 6, 5], full=[3, 2, 3, 2, 4, 4])
    assert judged("unique-failed", clear).verdict == REPRODUCED
    carried = written((0, 1, 2), base=[6, 5, 7, 6, 8, 7], lora=[4, 4, 5, 4, 6, 5], full=[4, 4, 5, 4, 6, 1])
    found = judged("unique-failed", carried)
    assert found.verdict != REPRODUCED and found.agree == found.seeds == 3, "all seeds agree, but the problems do not"


def test_counts_of_what_was_never_run_have_no_power():
    table = written((0, 1, 2), outcome="passed", base=[0] * 6, lora=[0] * 6, full=[0] * 6)
    assert judged("unique-passed", table[table["outcome"] == "passed"].query("temperature == 0.2")).verdict == NO_POWER
    assert judged("collapse-failed", written((0, 1, 2), "rarefied", base=[3.0] * 4, lora=[2.0] * 4,
                                             full=[1.0] * 4)).verdict == TOO_FEW


def test_every_claim_is_in_reach_of_every_profile():
    assert {claim.rule for claim in OURS.values()} == {"step_from_base", "passes_more", "entropy_minus_base"}
    assert not any(set(claim.out_of_reach) & set(PROFILE_NAMES) for claim in OURS.values())
