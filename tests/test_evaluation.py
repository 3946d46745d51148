"""Accuracy, causal loss and pseudo-loss against values worked by hand and against naive loops."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from utils.errors import CourseError
from utils.evaluation import pseudo_loss, text_loss
from utils.evaluation.pseudo import corpus_loss
from utils.training.masked_lm import held_out_loss, masked_lm_logits
from utils.training.metrics import accuracy, causal_loss, predict

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ("the a cat dog bird sat ran flew on under mat tree house big small red blue and or not is was "
         "##s ##ly .").split()
TEXTS = ["the cat sat on the mat .", "a big red dog ran under the tree and the house .", "birds",
         "the small bird flew", "a blue cat is not a red dog ."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BertTokenizerFast:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(path))


@pytest.fixture(scope="module")
def masked_lm(tokenizer) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=24, max_position_embeddings=32, initializer_range=0.5)
    return BertForMaskedLM(config).eval()


@pytest.fixture(scope="module")
def causal_lm(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.5)).eval()


class Fixed(nn.Module):
    """A model whose logits are a function of the ids it is given; it records the mode it was called in."""

    def __init__(self, logits):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.logits, self.modes = logits, []

    def forward(self, input_ids, attention_mask):
        self.modes.append(self.training)
        return SimpleNamespace(logits=self.logits(input_ids))


def batch(ids: list[list[int]], labels: list[list[int]] | None = None) -> dict:
    tensor = torch.tensor(ids)
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor),
            "labels": tensor.clone() if labels is None else torch.tensor(labels)}


# --- accuracy -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("predicted, true, share, error", [
    ([1, 0, 1, 1], [1, 0, 0, 1], 0.75, math.sqrt(0.75 * 0.25 / 4)), ([2, 2], [2, 2], 1.0, 0.0),
    ([0, 0, 0], [1, 2, 1], 0.0, 0.0), ([0, 1, 2, 0, 1], [0, 2, 1, 1, 1], 0.4, math.sqrt(0.4 * 0.6 / 5))])
def test_accuracy_by_hand(predicted, true, share, error):
    """Share of equal labels, its binomial standard error and n."""
    result = accuracy(torch.tensor(predicted), torch.tensor(true))
    assert result == {"accuracy": pytest.approx(share), "accuracy_se": pytest.approx(error), "n": len(true)}


@pytest.mark.parametrize("training", [True, False])
def test_predict_takes_the_largest_logit_over_all_batches(training):
    """Batches are joined in order; the model predicts in evaluation mode and gets its own mode back."""
    model = Fixed(lambda ids: torch.nn.functional.one_hot(ids[:, 0], 4).float()).train(training)
    predicted, true = predict(model, [
        {"input_ids": torch.tensor([[3, 0], [1, 0]]), "attention_mask": torch.ones(2, 2),
         "labels": torch.tensor([3, 2])},
        {"input_ids": torch.tensor([[0, 1]]), "attention_mask": torch.ones(1, 2), "labels": torch.tensor([0])}])
    assert predicted.tolist() == [3, 1, 0] and true.tolist() == [3, 2, 0]
    assert model.modes == [False, False] and model.training is training


# --- causal loss ----------------------------------------------------------------------------------------------------

def probabilities(rows: list[list[float]]):
    """Logits that give these probabilities over three tokens at positions 0, 1, 2 …, whatever the input."""
    return lambda ids: torch.tensor(rows).log().expand(len(ids), -1, -1)


ROWS = [[0.5, 0.25, 0.25], [0.125, 0.375, 0.5], [0.25, 0.5, 0.25]]


def test_causal_loss_by_hand():
    """Over three tokens: position 0 is asked for token 2, position 1 for token 0; the last predicts nothing."""
    result = causal_loss(Fixed(probabilities(ROWS)), [batch([[1, 2, 0]])])
    assert result["loss_nats_per_token"] == pytest.approx(-(math.log(0.25) + math.log(0.125)) / 2)
    assert result["tokens"] == 2


def test_a_model_that_copies_its_input_is_not_rewarded():
    """Labels are shifted: copying scores badly and telling the next token scores about zero."""
    ids = [[0, 1, 2, 0, 2, 1]]
    copying = causal_loss(Fixed(lambda x: torch.nn.functional.one_hot(x, 3).float() * 20), [batch(ids)])
    telling = causal_loss(Fixed(lambda x: torch.nn.functional.one_hot(x.roll(-1, dims=1), 3).float() * 20),
                          [batch(ids)])
    assert copying["loss_nats_per_token"] == pytest.approx(20, abs=1e-3)
    assert telling["loss_nats_per_token"] == pytest.approx(0, abs=1e-3)


def test_positions_labelled_minus_100_are_not_counted():
    """Neither in the sum nor in the number of tokens."""
    result = causal_loss(Fixed(probabilities(ROWS)), [batch([[1, 2, 0]], [[-100, -100, 0]])])
    assert result == {"loss_nats_per_token": pytest.approx(-math.log(0.125)), "tokens": 1}


def test_the_first_label_is_never_asked_for():
    """Nothing stands before the first token: its label must not matter."""
    first, other = (causal_loss(Fixed(probabilities(ROWS)), [batch([[1, 2, 0]], [[label, 2, 0]])])
                    for label in (0, -100))
    assert first == other and first["tokens"] == 2


@pytest.mark.parametrize("training", [True, False])
def test_causal_loss_weighs_tokens_not_batches(training):
    """A batch with more tokens weighs more, and the model gets its mode back."""
    model = Fixed(probabilities(ROWS)).train(training)
    result = causal_loss(model, [batch([[1, 2, 0], [0, 0, 2]]), batch([[1, 2, 0]], [[-100, 1, -100]])])
    expected = -(math.log(0.25) + math.log(0.125) + math.log(0.5) + math.log(0.5) + math.log(0.25)) / 5
    assert result == {"loss_nats_per_token": pytest.approx(expected), "tokens": 5}
    assert model.modes == [False, False] and model.training is training


def test_causal_loss_is_that_of_transformers(causal_lm):
    """On one batch without padding, the loss that the model itself returns for labels."""
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = causal_lm(input_ids=ids, labels=ids).loss.item()
    assert causal_loss(causal_lm, [batch(ids.tolist())])["loss_nats_per_token"] == pytest.approx(own, rel=1e-5)


# --- loss on texts --------------------------------------------------------------------------------------------------

def test_text_loss_is_the_mean_over_single_texts(causal_lm, tokenizer):
    """Padding and batching change nothing: equal to each text alone, weighted by predicted tokens."""
    total, tokens = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = causal_lm(input_ids=torch.tensor([ids])).logits[0]
        total -= sum(logits[t].log_softmax(-1)[ids[t + 1]].item() for t in range(len(ids) - 1))
        tokens += len(ids) - 1
    for batch_size in (1, 2, 8):
        result = text_loss(causal_lm, tokenizer, TEXTS, tokens=32, batch_size=batch_size)
        assert result == {"loss_nats_per_token": pytest.approx(total / tokens, rel=1e-5), "tokens": tokens}


def test_text_loss_reads_the_first_tokens_only(causal_lm, tokenizer):
    """Texts are cut to `tokens` tokens, the special ones included."""
    assert text_loss(causal_lm, tokenizer, TEXTS, tokens=5)["tokens"] == 4 + 4 + 3 + 4 + 4
    assert text_loss(causal_lm, tokenizer, [TEXTS[1]], tokens=5) == pytest.approx(
        text_loss(causal_lm, tokenizer, ["a big red"], tokens=32))


# --- pseudo-loss ----------------------------------------------------------------------------------------------------

def naive_pll(model, tokenizer, text: str, tokens: int) -> tuple[float, int]:
    """One forward pass of the whole model for each token, each with only that token masked."""
    ids = tokenizer(text, truncation=True, max_length=tokens)["input_ids"]
    total, count = 0.0, 0
    for position, token in enumerate(ids):
        if token in (tokenizer.cls_token_id, tokenizer.sep_token_id):
            continue
        masked = list(ids)
        masked[position] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([masked])).logits
        total -= logits[0, position].log_softmax(-1)[token].item()
        count += 1
    return total, count


@pytest.mark.parametrize("tokens", [4, 7, 32])
def test_pseudo_loss_is_that_of_one_forward_pass_per_token(masked_lm, tokenizer, tokens):
    """Each text's sum and count equal the naive loop's, cut or whole, in the order of the texts."""
    table = pseudo_loss(masked_lm, tokenizer, TEXTS, tokens=tokens)
    assert table["passage"].tolist() == list(range(len(TEXTS)))
    for row, text in zip(table.to_dict("records"), TEXTS, strict=True):
        total, count = naive_pll(masked_lm, tokenizer, text, tokens)
        assert (row["negative_pll_nats"], row["tokens"]) == (pytest.approx(total, rel=1e-5), count)


def test_pseudo_loss_of_a_known_model_by_hand(tokenizer):
    """A model that ignores its input and always gives the same distribution: -log p summed over the tokens."""
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8, max_position_embeddings=16)
    model = BertForMaskedLM(config).eval()
    cat, sat = tokenizer.convert_tokens_to_ids(["cat", "sat"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.cls.predictions.bias[cat] = math.log(4.0)
    # Of len(tokenizer) equal weights, one is 4: p(cat) = 4 / (n + 3), any other 1 / (n + 3).
    n = len(tokenizer) + 3
    table = pseudo_loss(model, tokenizer, ["cat sat sat", "cat"], tokens=16)
    assert table["negative_pll_nats"].tolist() == pytest.approx([3 * math.log(n) - math.log(4),
                                                                 math.log(n) - math.log(4)], rel=1e-5)
    assert sat != cat and table["tokens"].tolist() == [3, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_the_batch_size_never_changes_the_number(masked_lm, tokenizer, batch_size):
    """Padding beside longer texts must not leak into a shorter one."""
    expected = pseudo_loss(masked_lm, tokenizer, TEXTS, tokens=32, batch_size=64)
    pd.testing.assert_frame_equal(pseudo_loss(masked_lm, tokenizer, TEXTS, tokens=32, batch_size=batch_size), expected,
                                  rtol=1e-5)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_every_so_many_th_token_is_masked_and_all_places_alike(masked_lm, tokenizer, every):
    """Of as many copies of one text each masks other places, and together all of them once; one too short has one."""
    whole = pseudo_loss(masked_lm, tokenizer, TEXTS[:1], tokens=32)
    parts = pseudo_loss(masked_lm, tokenizer, TEXTS[:1] * every, tokens=32, every=every)
    assert parts["negative_pll_nats"].sum() == pytest.approx(whole["negative_pll_nats"].item(), rel=1e-5)
    assert parts["tokens"].sum() == whole["tokens"].item() and parts["tokens"].max() - parts["tokens"].min() <= 1
    assert pseudo_loss(masked_lm, tokenizer, ["cat"] * 9, tokens=32, every=every)["tokens"].tolist() == [1] * 9


def test_special_tokens_are_neither_masked_nor_counted(masked_lm, tokenizer):
    """[CLS] and [SEP] frame each text but are not of it: "birds" is two word pieces, so two tokens."""
    table = pseudo_loss(masked_lm, tokenizer, TEXTS, tokens=32)
    assert tokenizer.tokenize("birds") == ["bird", "##s"]
    assert table["tokens"].tolist() == [len(tokenizer.tokenize(text)) for text in TEXTS]


def test_pseudo_loss_refuses_a_model_in_training_mode(masked_lm, tokenizer):
    masked_lm.train()
    try:
        with pytest.raises(CourseError, match="model.eval"):
            pseudo_loss(masked_lm, tokenizer, TEXTS, tokens=32)
    finally:
        masked_lm.eval()


def test_pseudo_loss_refuses_a_tokenizer_without_a_mask(masked_lm, tokenizer):
    class WithoutMask:
        mask_token_id = None

    with pytest.raises(CourseError, match="mask token"):
        pseudo_loss(masked_lm, WithoutMask(), TEXTS, tokens=32)


def test_pseudo_loss_names_a_text_without_tokens(masked_lm, tokenizer):
    with pytest.raises(CourseError, match="Passage 1 holds no token"):
        pseudo_loss(masked_lm, tokenizer, ["the cat", "  "], tokens=32)


def test_corpus_loss_weighs_texts_by_their_tokens():
    """Sum over sum: the long text counts more, unlike a mean of means."""
    table = pd.DataFrame({"passage": [0, 1], "negative_pll_nats": [10.0, 1.0], "tokens": [4, 1]})
    assert corpus_loss(table) == pytest.approx(11 / 5)


# --- masked-LM logits at chosen positions ---------------------------------------------------------------------------

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 24, "initializer_range": 0.5}


@pytest.mark.parametrize("build", [lambda: BertForMaskedLM(BertConfig(**SIZES)),
                                   lambda: RobertaForMaskedLM(RobertaConfig(**SIZES))], ids=["bert", "roberta"])
def test_logits_at_masked_positions_are_the_models_own(build):
    """The short way round the head gives the numbers of the full forward pass, in the order of the positions."""
    torch.manual_seed(0)
    model = build().eval()
    torch.nn.init.normal_((model.cls.predictions if hasattr(model, "cls") else model.lm_head).bias)
    ids = torch.randint(5, 40, (3, 11))
    attention = torch.ones_like(ids)
    attention[1, 7:], ids[1, 7:] = 0, model.config.pad_token_id
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, 0] = where[0, 4] = where[1, 6] = where[2, 10] = True
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=attention).logits[where]
        chosen = masked_lm_logits(model, ids, attention, where=where)
    assert chosen.shape == (4, 40)
    torch.testing.assert_close(chosen, own, rtol=1e-5, atol=1e-5)
    assert (chosen[0] - chosen[1]).abs().max() > 0.1


def test_held_out_masked_loss_counts_masked_tokens(masked_lm):
    """Mean over every masked token of all batches, by transformers' own loss, and the mode is put back."""
    ids = torch.randint(5, 30, (2, 8), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, -100)
    labels[0, [1, 3, 5]], labels[1, 2] = ids[0, [1, 3, 5]], ids[1, 2]
    batches = [{"input_ids": ids[row:row + 1], "attention_mask": torch.ones(1, 8, dtype=torch.long),
                "labels": labels[row:row + 1]} for row in (0, 1)]
    with torch.no_grad():
        own = masked_lm(input_ids=ids, labels=labels).loss.item()
    masked_lm.train()
    try:
        assert held_out_loss(masked_lm, batches) == pytest.approx(own, rel=1e-5)
        assert masked_lm.training
    finally:
        masked_lm.eval()
