"""Sampling against a naive loop, on decoders small enough to run anywhere: padding, shared prompts, stops, seeds."""

import math

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils.errors import CourseError, UsageError
from utils.evaluation import generation
from utils.evaluation.generation import next_token_entropy, sample

PROMPTS = ["def add(x, y):\n", "a", "return x + y if x else None\n    pass"]
DEFAULTS = dict(n=1, temperature=0.0, max_new_tokens=6, seed=0)
END, WINDOW = "<end>", 64


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["def add return x y if else None pass"] * 3, vocab_size=280, show_progress=False,
                            special_tokens=[END])
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)


def _llama(tokenizer) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=WINDOW, initializer_range=0.5, eos_token_id=None, bos_token_id=None)).eval()


def _gpt2(tokenizer) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=WINDOW, initializer_range=0.5,
        eos_token_id=None, bos_token_id=None)).eval()


@pytest.fixture(params=[_llama, _gpt2], ids=["llama", "gpt2"])
def model(request, tokenizer):
    """Rotary and learned positions; without an end token of its own, so that the tokenizer's counts."""
    torch.manual_seed(0)
    return request.param(tokenizer)


def _only(model, tokenizer, token: str) -> nn.Module:
    """`model` made to say `token` whatever it reads."""
    head = nn.Linear(32, len(tokenizer))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    head.bias.data[tokenizer(token)["input_ids"][0]] = 50.0
    model.lm_head = head
    return model


def _naive(model, tokenizer, prompt: str, steps: int) -> list[int]:
    ids, end = tokenizer(prompt)["input_ids"], tokenizer.eos_token_id
    start = len(ids)
    while len(ids) - start < steps and end not in ids[start:]:
        ids = ids + [int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_likeliest_tokens_are_those_of_a_naive_loop(model, tokenizer, batch_size):
    found = sample(model, tokenizer, PROMPTS, **DEFAULTS, batch_size=batch_size)
    assert found.columns.tolist() == ["prompt", "sample", "text", "tokens", "stopped"]
    assert found["prompt"].tolist() == [0, 1, 2]
    for row, prompt in zip(found.itertuples(), PROMPTS, strict=True):
        expected = _naive(model, tokenizer, prompt, 6)
        assert row.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert row.tokens == len(expected) and row.stopped == (expected[-1] == tokenizer.eos_token_id)


@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_copied_prompts_change_nothing(model, tokenizer, monkeypatch, batch_size):
    """The prompt's keys and values are computed once per batch; drawn from one token each, all samples are greedy."""
    calls, shared = [], generation._shared_prompts
    monkeypatch.setattr(generation, "_shared_prompts",
                        lambda *given, **named: calls.append(shared(*given, **named)) or calls[-1])
    narrow = dict(n=4, temperature=1.0, top_p=1e-6, max_new_tokens=6, seed=0, batch_size=batch_size)
    found = sample(model, tokenizer, PROMPTS, **narrow)
    assert any(cache is not None for cache in calls)
    greedy = sample(model, tokenizer, PROMPTS, **DEFAULTS)["text"].tolist()
    assert found["text"].tolist() == [text for text in greedy for _ in range(4)]
    assert found["sample"].tolist() == [0, 1, 2, 3] * 3


def test_copied_and_repeated_prompts_draw_alike(model, tokenizer, monkeypatch):
    wide = dict(n=5, temperature=0.9, top_p=0.95, max_new_tokens=8, seed=3, batch_size=7)
    copied = sample(model, tokenizer, PROMPTS, **wide)
    monkeypatch.setattr(generation, "_shared_prompts", lambda *_, **__: None)
    assert copied.equals(sample(model, tokenizer, PROMPTS, **wide))
    assert copied["text"].nunique() > 5


def test_temperature_and_top_p_shape_the_draws(model, tokenizer):
    """One token of 4,000 draws against the distribution worked out here; the model's own settings play no part."""
    model.generation_config.update(top_k=1, temperature=0.1, repetition_penalty=5.0)
    logits = model(torch.tensor([tokenizer("a")["input_ids"]])).logits[0, -1].detach()
    found = sample(model, tokenizer, ["a"], n=4000, temperature=2.0, top_p=0.5, max_new_tokens=1, seed=0,
                   batch_size=4000)
    chances = (logits / 2).softmax(-1)
    ordered, index = chances.sort(descending=True)
    kept = ordered[:int((ordered.cumsum(0) < 0.5).sum()) + 1]
    allowed = [tokenizer.decode([i], skip_special_tokens=True) for i in index[:len(kept)]]
    expected: dict[str, float] = {}
    for text, chance in zip(allowed, (kept / kept.sum()).tolist(), strict=True):
        expected[text] = expected.get(text, 0) + chance
    shares = found["text"].value_counts(normalize=True)
    assert set(shares.index) <= set(allowed)
    for text, chance in expected.items():
        assert abs(shares.get(text, 0) - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000)


def test_the_seed_decides_and_nothing_else_is_disturbed(model, tokenizer):
    wide = dict(n=3, temperature=1.0, max_new_tokens=8)
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = sample(model, tokenizer, PROMPTS, seed=1, **wide)
    assert torch.rand(1) == expected and model.training
    assert first.equals(sample(model, tokenizer, PROMPTS, seed=1, **wide))
    assert not first.equals(sample(model, tokenizer, PROMPTS, seed=2, **wide))


def test_ends_and_cuts_are_told_apart(model, tokenizer):
    ended = sample(_only(model, tokenizer, END), tokenizer, PROMPTS, **DEFAULTS)
    assert ended[["text", "tokens", "stopped"]].values.tolist() == [["", 1, True]] * 3
    cut = sample(_only(model, tokenizer, "x"), tokenizer, PROMPTS, **DEFAULTS)
    assert cut[["text", "tokens", "stopped"]].values.tolist() == [["xxxxxx", 6, False]] * 3


def test_a_stop_word_ends_a_completion_early(model, tokenizer):
    steps = []
    _only(model, tokenizer, "x").register_forward_hook(lambda *_: steps.append(1))
    found = sample(model, tokenizer, PROMPTS, **DEFAULTS | {"max_new_tokens": 20}, stop=("y", "xxx"))
    assert found[["text", "tokens", "stopped"]].values.tolist() == [["", 3, True]] * 3
    assert len(steps) == 3  # no token is computed after the stop word
    kept = sample(model, tokenizer, ["xx"], **DEFAULTS, stop=("xxxx",))
    assert kept["tokens"].tolist() == [4]  # the prompt's own letters are no part of a stop word


def test_rows_that_stopped_wait_for_the_others(model, tokenizer):
    """What a batch's longest completion takes must not leak into the shorter ones' texts."""
    wide = dict(n=16, temperature=1.5, max_new_tokens=12, seed=0, batch_size=16)
    free = sample(model, tokenizer, ["a"], **wide)["text"]
    word = free[0][len(free[0]) // 2]
    found = sample(model, tokenizer, ["a"], **wide, stop=(word,))
    assert not found["text"].str.contains(word, regex=False).any()
    assert found["stopped"].any() and found.loc[found["stopped"], "tokens"].nunique() > 1
    assert (found.loc[~found["stopped"], "tokens"] == 12).all()


def test_the_first_space_of_a_completion_is_kept(tokenizer):
    """Tokenizers of Llama's kind drop the space before the first word of what they decode."""

    class Spaces:
        def decode(self, ids, **_):
            return "".join(f" {i}" for i in ids)[1:]

    assert generation._text(Spaces(), [1, 2], [3, 4]) == " 3 4"


def test_a_doubled_start_token_is_dropped(model, tokenizer):
    class Doubling:
        pad_token_id, bos_token_id = 0, 7

        def __call__(self, text):
            return {"input_ids": [7, 7, 8] if text == "chat" else [7, 8]}

    assert generation._encode(model, Doubling(), ["chat", "plain"], max_new_tokens=1) == [[7, 8], [7, 8]]


def test_prompts_must_fit(model, tokenizer):
    long = "x" * 60
    length = len(tokenizer(long)["input_ids"])
    with pytest.raises(CourseError, match=f"Prompt 1 has {length} tokens, and with 20 new ones .* window of 64"):
        sample(model, tokenizer, ["a", long], **DEFAULTS | {"max_new_tokens": 20})
    assert len(sample(model, tokenizer, [long], **DEFAULTS | {"max_new_tokens": WINDOW - length})) == 1
    with pytest.raises(CourseError, match="Prompt 0 is empty"):
        sample(model, tokenizer, [""], **DEFAULTS)
    assert sample(model, tokenizer, [], **DEFAULTS).empty


def test_a_tokenizer_without_padding_is_refused(model, tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=END)
    with pytest.raises(CourseError, match="has no padding token"):
        sample(model, bare, PROMPTS, **DEFAULTS)


@pytest.mark.parametrize("change", [{"n": 0}, {"n": 2}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1},
                                    {"max_new_tokens": 0}, {"batch_size": 0}])
def test_impossible_numbers_are_refused(model, tokenizer, change):
    with pytest.raises(UsageError, match="Expected"):
        sample(model, tokenizer, PROMPTS, **DEFAULTS | change)


def test_a_tuned_model_of_peft_is_sampled_like_its_merged_one(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn"] if isinstance(model, GPT2LMHeadModel) else ["q_proj", "v_proj"]
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    wide = dict(n=3, temperature=0.7, max_new_tokens=6, seed=0)
    found = sample(tuned, tokenizer, PROMPTS, **wide)
    assert found.equals(sample(tuned.merge_and_unload(), tokenizer, PROMPTS, **wide))


def test_entropy_by_hand(model, tokenizer):
    """One token at logit log 3 and 1 at the others: p = 3 / (V + 2) for it, 1 / (V + 2) for each other."""
    size = len(tokenizer)
    _only(model, tokenizer, "x").lm_head.bias.data.clamp_(max=math.log(3))
    found = next_token_entropy(model.train(), tokenizer, ["xxxx", "a"], tokens=3)
    p, q = 3 / (size + 2), 1 / (size + 2)
    assert found["entropy_nats"].tolist() == pytest.approx([-p * math.log(p) - (size - 1) * q * math.log(q)] * 2)
    assert found["tokens"].tolist() == [3, 1] and found["prompt"].tolist() == [0, 1] and model.training
    model.lm_head.bias.data.zero_()
    assert next_token_entropy(model, tokenizer, ["x"], tokens=3)["entropy_nats"][0] == pytest.approx(math.log(size))
    with pytest.raises(CourseError, match="Text 1 is empty"):
        next_token_entropy(model, tokenizer, ["x", ""], tokens=3)
