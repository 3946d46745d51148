"""Rules of notebook 08, each effect worked by hand on rows that say nothing else."""

import pandas as pd
import pytest

from utils.reporting.selection import marked
from utils.reporting.verdicts import NO_POWER, Expectation, judge
from utils.studies.continual import rules


def summaries(seed: int, full: float | None, **lora: float) -> list[dict]:
    """A summary of full fine-tuning and of LoRA by rank and alpha, such as ``r64a8``."""
    rows = [] if full is None else [{"method": "full", "r": 0, "lora_alpha": 0, "backward_transfer": full}]
    for name, value in lora.items():
        r, alpha = (int(number) for number in name[1:].split("a"))
        rows.append({"method": f"LoRA r={r}", "r": r, "lora_alpha": alpha, "backward_transfer": value})
    return [row | {"seed": seed} for row in rows]


def frame(*seeds: list[dict]) -> pd.DataFrame:
    """Every seed's rows in one table, as the ledger reads it; later ones first: no rule may depend on the order."""
    return marked(pd.DataFrame([row for rows in reversed(seeds) for row in reversed(rows)]))


WHOLE = summaries(0, 0.125, r1a2=0.375, r1a8=9.0, r8a16=0.25, r64a128=0.0625, r64a8=0.5)


def test_a_summary_is_compared_with_fulls_at_alpha_2r():
    """0.375 - 0.125, and nothing of the chain with alpha = 8; a seed without one of the two has no effect."""
    table = frame(WHOLE, summaries(1, None, r1a2=0.5), summaries(2, 0.5, r1a8=9.0))
    found = rules.summary_minus_full(table, rank=1, column="backward_transfer")
    assert found.values.dropna().to_dict() == {0: 0.25}
    assert "full" in found.missing[1] and "lora_alpha = 2" in found.missing[2]
    assert found.outcome == "backward_transfer" and 9.0 not in found.outcomes


def test_what_every_rank_does_is_judged_by_the_rank_that_does_it_least():
    """The largest of 0.375, 0.25 and 0.0625 minus 0.125; a seed that lacks a rank cannot speak of all."""
    table = frame(WHOLE, summaries(1, 0.125, r1a2=0.375, r8a16=0.25, r64a8=0.5))
    found = rules.largest_minus_full(table, column="backward_transfer")
    assert found.values.dropna().to_dict() == {0: 0.25} and list(found.missing) == [1] and "r = 64" in found.missing[1]


@pytest.mark.parametrize("lowest, effect", [(0.375, 0.3125), (-0.5, -0.5625)])
def test_the_lowest_rank_stands_beside_the_next_worst(lowest, effect):
    """Minus 0.0625, the smallest of the others, full fine-tuning left out."""
    table = frame(summaries(0, -9.0, r1a2=lowest, r8a16=0.25, r64a128=0.0625))
    assert rules.lowest_rank_minus_others(table, column="backward_transfer").values.to_dict() == {0: effect}


def test_two_alphas_of_one_rank():
    """0.5 - 0.0625 at rank 64; rank 8 and full play no part, and a seed with one alpha has no effect."""
    table = frame(WHOLE, summaries(1, 0.0, r64a128=0.25, r8a8=7.0))
    found = rules.summary_between_alphas(table, rank=64, column="backward_transfer", alpha=8, beside=128)
    assert found.values.dropna().to_dict() == {0: 0.4375} and "lora_alpha = 8" in found.missing[1]
    assert sorted(found.outcomes) == [0.0625, 0.25, 0.5]


def test_a_tie_is_judged_by_the_rank_furthest_from_full_with_its_sign():
    """First task, right after its own stage: 0.75 and 0.84375 beside 0.8125; other tasks and stages say 0."""
    rows = [{"seed": 0, "method": method, "r": r, "lora_alpha": 2 * r, "stage": stage, "tested_task": f"task {place}",
             "tested_place": place, "accuracy": value if (stage, place) == (1, 1) else 0.0}
            for method, r, value in (("full", 0, 0.8125), ("LoRA r=1", 1, 0.75), ("LoRA r=8", 8, 0.84375))
            for stage in range(3) for place in (1, 2)]
    found = rules.tie_on_the_first_task(frame(rows))
    assert found.values.to_dict() == {0: -0.0625} and sorted(found.outcomes) == [0.75, 0.8125, 0.84375]


def stages(seed: int, lora: tuple, full: tuple) -> list[dict]:
    """A count after each stage of rank 8 with alpha = 2r and of full fine-tuning; with alpha = 8 it rises by 90."""
    def rows(method: str, r: int, alpha: int, counts: tuple) -> list[dict]:
        return [{"seed": seed, "method": method, "r": r, "stage": stage, "lora_alpha": alpha, "n_intruders": n}
                for stage, n in enumerate(counts, start=1)]

    return [*rows("LoRA r=8", 8, 8, (0, 0, 90)), *rows("LoRA r=8", 8, 16, lora), *rows("full", 0, 0, full)]


@pytest.mark.parametrize("lora, full, effect", [
    ((2, 5, 9), (0, 3, 2), 5), ((1, 4), (0, 0), 3), ((4, 9, 3), (3, 1, 0), -1), ((1, 4), (5, 2), 3)],
    ids=["both rise", "full stays", "falling less than full is no gathering", "what full loses is no gain"])
def test_intruders_gathered_beside_full(lora, full, effect):
    """The last stage's count minus the first one's, whatever came between."""
    assert rules.accumulates(frame(stages(0, lora, full)), rank=8).values.to_dict() == {0: effect}


def test_counts_that_are_zero_throughout_have_no_power():
    """With nothing but zeros, LoRA could not have gathered more and full fine-tuning not less."""
    found = rules.accumulates(frame(*(stages(seed, (0, 0), (0, 0)) for seed in range(3))), rank=8)
    assert judge(found, Expectation(above=0)).verdict == NO_POWER


def test_the_last_stage_alone_is_compared():
    """9 - 2 at the end; a seed whose LoRA chain is missing has no effect."""
    table = frame(stages(0, (2, 5, 9), (0, 3, 2)), [row for row in stages(1, (2, 5, 9), (0, 3, 2)) if not row["r"]])
    found = rules.last_stage_minus_full(table, rank=8, column="n_intruders")
    assert found.values.dropna().to_dict() == {0: 7} and set(found.missing) == {1}
    assert sorted(found.outcomes) == [2, 2, 9]


def test_a_lost_column_is_loud():
    with pytest.raises(KeyError, match="stage"):
        rules.accumulates(frame(stages(0, (1, 2), (0, 0))).drop(columns="stage"), rank=8)
