"""Numbers worked out by hand: the n-gram model, the distance from the base, and exact match."""

import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.errors import CourseError
from utils.evaluation import exact
from utils.evaluation.distance import kl_from_base
from utils.evaluation.exact import ANSWER_TOKENS, exact_match
from utils.paths import MODELS
from utils.sources.domains import mathematics_questions
from utils.training.ngram import KneserNey

TOY = [[0, 1, 0, 1, 2, 1]]  # bigrams 01 twice, 10, 12, 21; before 1 came 0 and 2, before 0 and 2 only 1


# --- Kneser-Ney


def test_a_bigram_model_equals_the_hand_worked_values():
    """Four token ids, of which 3 never came. Lowest order, out of four kinds of bigram that end in three tokens:

    P(1) = (2 - .75) / 4 + .75 * 3 / 4 / 4 = .453125, P(0) = P(2) = .0625 + .140625 = .203125, P(3) = .140625.
    After 0 came 1 twice: P(1|0) = (2 - .75) / 2 + .75 * 1 / 2 * P(1) = .625 + .375 * .453125.
    """
    model = KneserNey(TOY, vocabulary=4, order=2)
    assert [model.probability((), token) for token in range(4)] == pytest.approx([.203125, .453125, .203125, .140625])
    assert model.probability((0,), 1) == pytest.approx(.625 + .375 * .453125)
    assert model.probability((0,), 3) == pytest.approx(.375 * .140625)
    assert model.probability((1,), 0) == pytest.approx(.125 + .75 * .203125), "after 1 came 0 and 2, once each"
    assert model.probability((3,), 1) == model.probability((), 1), "an unseen context is left to the lower order"
    assert model.probability((2, 2, 0), 1) == model.probability((0,), 1), "only the last token of a context counts"


def test_a_unigram_model_counts_occurrences():
    """0 and 1 and 2 came 2, 3 and 1 times of 6: (3 - .75) / 6 + .75 * 3 / 6 / 4."""
    model = KneserNey(TOY, vocabulary=4, order=1)
    assert model.probability((), 1) == model.probability((2,), 1) == pytest.approx(.375 + .09375)
    assert model.probability((), 3) == pytest.approx(.09375)


def test_a_trigram_model_counts_kinds_of_predecessors_below_its_order():
    """After (0, 1): 0 and 2, once each. Below, 1 was followed by 0 after one token and by 2 after one, so .5 each."""
    model = KneserNey(TOY, vocabulary=4, order=3)
    assert model.counts[2] == {(1, 0): 1, (0, 1): 1, (1, 2): 1, (2, 1): 1} and model.counts[3][0, 1, 0] == 1
    below = .25 / 2 + .75 * model.probability((), 2)
    assert model.probability((1,), 2) == pytest.approx(below)
    assert model.probability((0, 1), 2) == pytest.approx(.25 / 2 + .75 * below)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_every_context(order):
    draw = random.Random(order)
    sequences = [[draw.choice((0, 1, 1, 2, 5)) for _ in range(draw.randint(0, 12))] for _ in range(6)]
    model = KneserNey(sequences, vocabulary=7, order=order)
    for context in itertools.chain(*(itertools.product((0, 1, 5, 6), repeat=length) for length in range(5))):
        probabilities = [model.probability(context, token) for token in range(7)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-12) and min(probabilities) > 0, context


def test_the_loss_is_the_mean_over_all_tokens_but_each_first():
    model = KneserNey(TOY, vocabulary=4, order=2)
    expected = -(2 * math.log(.625 + .375 * .453125) + math.log(.375 * .140625)) / 3
    assert model.loss([[0, 1], [3], [0, 1], [0, 3]]) == pytest.approx(expected)


def test_a_longer_memory_pays_where_the_text_has_one():
    """Each token is the sum of the two before it, and one in ten is drawn anew."""
    draw, text = random.Random(0), [1, 2]
    for _ in range(3000):
        text.append(draw.randrange(7) if draw.random() < 0.1 else (text[-1] + text[-2]) % 7)
    losses = [KneserNey([text[:2500]], vocabulary=7, order=order).loss([text[2500:]]) for order in (1, 2, 3)]
    assert losses[0] == pytest.approx(math.log(7), abs=0.05) and losses[1] > losses[2] + 0.5
    assert losses[2] < 1.0 < losses[1]


# --- the distance from the base


class Fixed(nn.Module):
    """The same next-token probabilities everywhere, or by the token that is read."""

    def __init__(self, *probabilities: tuple[float, ...]):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.table[input_ids % len(self.table)] + 3.0)


def batch(ids: list[list[int]], labels: list[list[int]] | None = None) -> dict:
    ids = torch.tensor(ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "labels": ids if labels is None else torch.tensor(labels)}


def test_the_distance_of_two_known_distributions():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2, and the other way round another number."""
    base, tuned = Fixed((.75, .25)), Fixed((.5, .5))
    found = kl_from_base(base, tuned, [batch([[0, 1, 1]])])
    assert found == {"kl_nats_per_token": pytest.approx(.75 * math.log(1.5) + .25 * math.log(.5)), "tokens": 2}
    turned = kl_from_base(tuned, base, [batch([[0, 1, 1]])])["kl_nats_per_token"]
    assert turned == pytest.approx(.5 * math.log(.5 / .75) + .5 * math.log(2))
    assert kl_from_base(base, base, [batch([[0, 1, 1]])])["kl_nats_per_token"] == 0.0


def test_the_distance_is_read_before_the_counted_labels_and_averaged_over_tokens():
    """The models differ only after token 1; the label at a place counts what is predicted from the token before it."""
    base, tuned = Fixed((.5, .5), (.75, .25)), Fixed((.5, .5), (.5, .5))
    one = .75 * math.log(1.5) + .25 * math.log(.5)
    cases = [([[0, 1, 0]], None, one / 2, 2), ([[0, 1, 0]], [[-100, -100, 0]], one, 1),
             ([[0, 1, 0]], [[-100, 1, -100]], 0.0, 1), ([[0, 0, 1]], None, 0.0, 2)]
    for ids, labels, expected, tokens in cases:
        found = kl_from_base(base, tuned, [batch(ids, labels)])
        assert found == {"kl_nats_per_token": pytest.approx(expected, abs=1e-7), "tokens": tokens}
    both = kl_from_base(base, tuned, [batch([[0, 1, 0]]), batch([[1, 1]])])
    assert both == {"kl_nats_per_token": pytest.approx(2 * one / 3), "tokens": 3}, "batches weigh by their tokens"


def test_a_distance_on_nothing_is_a_sentence():
    with pytest.raises(CourseError, match="No token is left"):
        kl_from_base(Fixed((.5, .5)), Fixed((.5, .5)), [batch([[0, 1]], [[0, -100]])])


# --- exact match


def test_spaces_around_an_answer_do_not_count_and_those_inside_do(monkeypatch):
    drawn = pd.DataFrame({"prompt": [0, 1, 2, 3], "sample": 0, "text": [" 4 2 ", "42", "\t-3/4 ", ""]})
    asked = {}

    def sample(model, tokenizer, prompts, **given):
        asked.update(given, prompts=prompts)
        return drawn

    monkeypatch.setattr(exact, "sample", sample)
    questions = pd.DataFrame({"kind": list("abcd"), "question": ["q0", "q1", "q2", "q3"],
                              "answer": ["42", " 42", "-3/4", "0"]}, index=[7, 5, 3, 9])
    found = exact_match(None, None, questions)
    assert asked["prompts"] == ["q0\n", "q1\n", "q2\n", "q3\n"]
    assert (asked["n"], asked["temperature"], asked["stop"]) == (1, 0, ("\n",))
    assert found["right"].tolist() == [False, True, True, False] and found["right"].dtype == bool
    assert found["given"].tolist() == ["4 2", "42", "-3/4", ""] and found["kind"].tolist() == list("abcd")
    assert list(found.columns) == ["kind", "question", "answer", "given", "right"]


def test_answers_belong_to_their_own_questions(tiny_decoder):
    """Prompts are sorted by length while they are answered; each answer must come back to its row."""
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    questions = pd.DataFrame({"kind": "k", "question": ["a film about the sea and its birds", "b", "the end of it"],
                              "answer": "?"})
    given = exact_match(model, tokenizer, questions)["given"]
    one_by_one = [exact_match(model, tokenizer, questions.iloc[[row]])["given"][0] for row in range(3)]
    assert given.tolist() == one_by_one and len(set(given)) > 1
    again = exact_match(model, tokenizer, questions.assign(answer=[f" {given[0]} ", "wrong", given[2]]))
    assert again["right"].tolist() == [True, False, True]


def test_the_longest_answer_fits_what_is_generated():
    """Cut short, a right answer would count as wrong."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "small-decoder")
    answers = np.concatenate([mathematics_questions(split)["answer"].unique() for split in ("train", "heldout")])
    assert max(map(len, tokenizer(answers.tolist())["input_ids"])) <= ANSWER_TOKENS
