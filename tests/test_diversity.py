"""Counts, rarefaction, n-grams and self-BLEU against values worked by hand."""

import itertools
import math

import pandas as pd
import pytest

from utils.errors import UsageError
from utils.evaluation.diversity import distinct_n, diversity_table, rarefied, self_bleu, unique_counts


def _samples() -> pd.DataFrame:
    rows = [("t1", "a", True), ("t1", "a", True), ("t1", "b", True), ("t1", "c", False), ("t1", "c", False),
            ("t2", "a", False), ("t2", "d", False)]
    frame = pd.DataFrame(rows, columns=["task_id", "completion", "passed"])
    return frame.astype({"passed": "boolean"})


def test_unique_strings_are_counted_for_each_outcome_apart():
    found = unique_counts(_samples(), m=2).set_index(["task_id", "outcome"])
    assert found[["n", "unique"]].to_dict("index") == {
        ("t1", "passed"): {"n": 3, "unique": 2}, ("t1", "failed"): {"n": 2, "unique": 1},
        ("t2", "passed"): {"n": 0, "unique": 0}, ("t2", "failed"): {"n": 2, "unique": 2}}
    assert found.loc[("t1", "passed"), "unique_ratio"] == pytest.approx(2 / 3)
    assert found.loc[("t1", "passed"), "rarefied"] == pytest.approx(5 / 3)
    assert found.loc[("t1", "failed"), "rarefied"] == pytest.approx(1)
    assert math.isnan(found.loc[("t2", "passed"), "rarefied"])
    assert math.isnan(found.loc[("t2", "passed"), "unique_ratio"])


def test_what_was_not_run_is_an_outcome_of_its_own():
    samples = _samples()
    samples.loc[samples["task_id"] == "t2", "passed"] = pd.NA
    found = unique_counts(samples, m=1).set_index(["task_id", "outcome"])["n"]
    assert found["t2"].to_dict() == {"passed": 0, "failed": 0, "not run": 2} and found["t1", "not run"] == 0
    assert unique_counts(samples.assign(passed=samples["passed"].fillna(False).astype(bool)), m=1)["n"].sum() == 7


@pytest.mark.parametrize("counts", [[3, 2, 1], [1, 1, 1, 1], [5], [4, 4]])
def test_rarefaction_is_the_mean_over_all_draws(counts):
    strings = [i for i, count in enumerate(counts) for _ in range(count)]
    for m in range(1, len(strings) + 1):
        draws = list(itertools.combinations(strings, m))
        assert rarefied(counts, m) == pytest.approx(sum(len(set(draw)) for draw in draws) / len(draws))


def test_rarefaction_asks_for_no_more_than_there_is():
    assert math.isnan(rarefied([2, 1], 4)) and math.isnan(rarefied([], 1))
    with pytest.raises(UsageError, match="got 0"):
        rarefied([2, 1], 0)


def test_distinct_n_by_hand():
    texts = [["a", "b", "a", "b"], ["b", "a"], []]
    assert distinct_n(texts, 1) == pytest.approx(2 / 6)  # a, b of six tokens
    assert distinct_n(texts, 2) == pytest.approx(2 / 6)  # ab, ba; "b" of one text and "b" of the next are no pair
    assert distinct_n(texts, 4) == pytest.approx(1 / 6)
    assert distinct_n([["a", "b", "c"]], 1) == 1
    assert math.isnan(distinct_n([[], []], 1)) and math.isnan(distinct_n([], 2))
    with pytest.raises(UsageError, match="got 0"):
        distinct_n(texts, 0)


def test_self_bleu_by_hand():
    # "a b c d" against "a b c e": precisions 3/4, 2/3, 1/2 and 0.1/1, equal lengths, so no brevity penalty; both ways.
    pair = [list("abcd"), list("abce")]
    assert self_bleu(pair) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)
    assert self_bleu(pair, order=2) == pytest.approx((3 / 4 * 2 / 3) ** 0.5)
    # a third text equal to the first: two of three find themselves, the other is compared as before
    assert self_bleu([*pair, list("abcd")], order=2) == pytest.approx((2 + (3 / 4 * 2 / 3) ** 0.5) / 3)


def test_alike_texts_have_self_bleu_one_whatever_their_length():
    """With four-gram weights a text of two tokens would count as unlike its own copy."""
    for text in (list("abcdefg"), list("ab"), ["a"], []):
        assert self_bleu([text, text, text]) == pytest.approx(1)
    assert self_bleu([[], ["a"]]) == 0
    assert math.isnan(self_bleu([["a"]])) and math.isnan(self_bleu([]))


def test_self_bleu_of_many_texts_is_bounded_and_repeats_itself():
    texts = [[i % 7, i % 5, i % 3, i % 2, i] for i in range(80)]
    found = self_bleu(texts, most_texts=10, seed=1)
    assert found == self_bleu(texts, most_texts=10, seed=1) != self_bleu(texts, most_texts=10, seed=2)
    assert self_bleu(texts[:10], most_texts=10) == self_bleu(texts[:10], most_texts=99)


def test_the_table_gathers_them():
    samples = _samples().sample(frac=1, random_state=0)  # neither order nor index may matter
    words = {"a": ["x", "y"], "b": ["x"], "c": ["z"], "d": ["x", "y"]}
    tokens = [words[text] for text in samples["completion"]]
    found = diversity_table(samples, tokens, m=2).set_index(["task_id", "outcome"])
    assert len(found) == 6
    assert found.loc[("t1", "all"), ["n", "unique"]].tolist() == [5, 3]
    assert found.loc[("t1", "all"), "rarefied"] == pytest.approx(3 - (3 + 6 + 3) / 10)
    assert found.loc[("t1", "passed"), "distinct_1"] == pytest.approx(2 / 5)
    assert found.loc[("t1", "passed"), "distinct_2"] == pytest.approx(1 / 5)
    assert found.loc[("t1", "passed"), "mean_tokens"] == pytest.approx(5 / 3)
    assert found.loc[("t1", "failed"), "self_bleu"] == pytest.approx(1)
    assert found.loc[("t2", "all"), "self_bleu"] == pytest.approx(1)  # other strings, the same tokens
    assert math.isnan(found.loc[("t2", "passed"), "self_bleu"])
    with pytest.raises(UsageError, match="each of 7 generations, got 6 lists"):
        diversity_table(samples, tokens[1:], m=2)
