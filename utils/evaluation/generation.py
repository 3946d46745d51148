"""Samples of a causal language model, as a table; and how undecided the model is about its next token.

Where a prompt is sampled more than once its keys and values are computed once and copied, which on a CPU is most of
the work of short completions.
"""

import inspect
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from utils.errors import CourseError, UsageError
from utils.evaluation.code import truncate
from utils.progress import track

CONTEXT = 4  # tokens of the prompt before a completion: some tokenizers drop the first space of what they decode


@torch.inference_mode()
def sample(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, n: int, temperature: float,
           top_p: float = 1.0, max_new_tokens: int, seed: int, batch_size: int = 16, stop: Sequence[str] = (),
           label: str = "samples") -> pd.DataFrame:
    """Draw `n` completions of each prompt.

    Nothing of the model's own generation settings but its end-of-text tokens is used: no top-k, no penalties.

    Parameters
    ----------
    model : nn.Module
        A causal model of transformers or PEFT; its mode is put back.
    tokenizer : PreTrainedTokenizerBase
        With a padding token.
    prompts : sequence of str
    n : int
        Samples of each prompt; 1 where the temperature is 0.
    temperature : float
        0 takes the likeliest token always.
    top_p : float
        In (0, 1]: the smallest set of tokens with this probability is drawn from.
    max_new_tokens : int
        Where a completion is cut; the prompt and it together must fit the model's window.
    seed : int
        The same seed, arguments and device give the same table; another batch size draws anew.
    batch_size : int
        Completions at a time.
    stop : sequence of str
        A completion ends before the first of these.

    Returns
    -------
    pandas.DataFrame
        One row per completion, by prompt and sample: ``prompt`` (position), ``sample`` (0 … n - 1), ``text`` (without
        prompt, stop word and end-of-text token), ``tokens`` (generated, with those of what ended it), ``stopped``
        (ended by itself or by a stop word; false where it was cut at `max_new_tokens`).

    Raises
    ------
    CourseError
        If the tokenizer has no padding token, or a prompt is empty or too long for the model.
    UsageError
        If a number is out of its range.
    """
    _check_numbers(n, temperature, top_p, max_new_tokens=max_new_tokens, batch_size=batch_size)
    encoded = _encode(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
    settings = _settings(model, tokenizer, temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # like lengths together: little padding
    rows = [(prompt, number) for prompt in order for number in range(n)]
    parts = [rows[start:start + batch_size] for start in range(0, len(rows), batch_size)]
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for part in track(parts, total=len(parts), label=label):
                ids = [encoded[prompt] for prompt, _ in part]
                found += zip(part, _complete(model, tokenizer, ids, settings=settings, stop=stop), strict=True)
    finally:
        model.train(was_training)
    table = [{"prompt": prompt, "sample": number, **completion} for (prompt, number), completion in sorted(
        found, key=lambda pair: pair[0])]
    return pd.DataFrame(table, columns=["prompt", "sample", "text", "tokens", "stopped"])


def _check_numbers(n: int, temperature: float, top_p: float, *, max_new_tokens: int, batch_size: int) -> None:
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"Expected {name} to be 1 or more, got {value}; do give a positive number.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise UsageError(f"Expected a temperature of 0 or more and a top_p in (0, 1], got {temperature} and {top_p}; "
                         "do give such.")
    if temperature == 0 and n > 1:
        raise UsageError(f"Expected one sample at temperature 0 but {n} were asked for, which would all be the same; "
                         "give n=1 or a higher temperature.")


def _encode(model, tokenizer, prompts: Sequence[str], *, max_new_tokens: int) -> list[list[int]]:
    if tokenizer.pad_token_id is None:
        raise CourseError("The tokenizer has no padding token; set tokenizer.pad_token, for instance to its eos_token.")
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoded = []
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt)["input_ids"]
        if ids[:2] == [tokenizer.bos_token_id] * 2:  # a chat template had put the first one there already
            ids = ids[1:]
        if not ids:
            raise CourseError(f"Prompt {number} is empty, so there is nothing to complete; give a text.")
        if window is not None and len(ids) + max_new_tokens > window:
            raise CourseError(f"Prompt {number} has {len(ids)} tokens, and with {max_new_tokens} new ones it passes "
                              f"the model's window of {window}; shorten it or lower max_new_tokens.")
        encoded.append(ids)
    return encoded


def _settings(model, tokenizer, temperature: float, *, top_p: float, max_new_tokens: int) -> GenerationConfig:
    """Every setting that changes a distribution, spelt out: what is left open is filled from the model's own."""
    ends = model.generation_config.eos_token_id
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {
        "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    return GenerationConfig(do_sample=temperature > 0, max_new_tokens=max_new_tokens, num_beams=1,
                            num_return_sequences=1, repetition_penalty=1.0, no_repeat_ngram_size=0, min_new_tokens=0,
                            typical_p=1.0, min_p=0.0 if temperature else None, pad_token_id=tokenizer.pad_token_id,
                            eos_token_id=ends if ends is not None else tokenizer.eos_token_id, **drawn)


class _StopWords(StoppingCriteria):
    """Ends each completion of a batch at its first stop word, and keeps how long it was then."""

    def __init__(self, tokenizer, stop: Sequence[str], start: int, *, rows: int):
        self.tokenizer, self.stop, self.start = tokenizer, tuple(stop), start
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        for row, ids in enumerate(input_ids.tolist()):
            if self.lengths[row] is None:
                text = _text(self.tokenizer, ids[:self.start], ids[self.start:])
                if any(word in text for word in self.stop):
                    self.lengths[row] = len(ids) - self.start
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


def _text(tokenizer, prompt: list[int], ids: list[int]) -> str:
    """The text that `ids` add to the prompt's."""
    before = tokenizer.decode(prompt[-CONTEXT:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode(prompt[-CONTEXT:] + ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if whole.startswith(before):
        return whole[len(before):]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _complete(model, tokenizer, prompts: list[list[int]], *, settings: GenerationConfig,
              stop: Sequence[str]) -> Iterator[dict]:
    """One completion of each of a batch's prompts, equal ones beside each other."""
    device, longest = next(model.parameters()).device, max(map(len, prompts))
    # (B, T), padded on the left so that every row goes on at the same place
    ids = torch.tensor([[settings.pad_token_id] * (longest - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    words = _StopWords(tokenizer, stop, longest, rows=len(prompts))
    shared = _shared_prompts(model, prompts, ids, mask=mask)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings,
                         stopping_criteria=StoppingCriteriaList([words] if stop else []),
                         **({"past_key_values": shared} if shared is not None else {}))
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    for prompt, new, at_word in zip(prompts, out[:, longest:].tolist(), words.lengths, strict=True):
        at_end = next((place for place, token in enumerate(new, start=1) if token in ends), None)
        places = [place for place in (at_word, at_end) if place is not None]
        length = min(places, default=settings.max_new_tokens)
        text = _text(tokenizer, prompt, [token for token in new[:length] if token not in ends])
        yield {"text": truncate(text, stop), "tokens": length, "stopped": bool(places)}


def _shared_prompts(model, prompts: list[list[int]], ids: torch.Tensor, *, mask: torch.Tensor) -> DynamicCache | None:
    """Keys and values of all but the prompts' last token, each prompt computed once; None where that gains nothing.

    It also needs a model whose cache is plain keys and values, and that can be told positions.
    """
    firsts = [row for row, prompt in enumerate(prompts) if row == 0 or prompt != prompts[row - 1]]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if len(firsts) == len(prompts) or ids.shape[1] < 2 or decoder is None:
        return None
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return None
    kept = mask[firsts, :-1]
    cache = decoder(input_ids=ids[firsts, :-1], attention_mask=kept, use_cache=True,
                    position_ids=(kept.cumsum(-1) - 1).clamp(min=0)).past_key_values
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    owner = [sum(first <= row for first in firsts) - 1 for row in range(len(prompts))]
    cache.batch_select_indices(torch.tensor(owner, device=ids.device))
    return cache


@torch.inference_mode()
def next_token_entropy(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *,
                       tokens: int) -> pd.DataFrame:
    """Mean entropy of the model's next-token distribution along given texts, after each of their tokens.

    Parameters
    ----------
    model : nn.Module
        A causal model; its mode is put back.
    prompts : sequence of str
        The texts; the model's own choices play no part.
    tokens : int
        Each text is cut to so many.

    Returns
    -------
    pandas.DataFrame
        One row per text: ``prompt`` (position), ``entropy_nats`` (0 … log of the vocabulary's size), ``tokens``.

    Raises
    ------
    CourseError
        If a text is empty.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    rows = []
    try:
        for number, prompt in enumerate(prompts):
            ids = tokenizer(prompt)["input_ids"][:tokens]
            if not ids:
                raise CourseError(f"Text {number} is empty, so there is no token to go on from; give a text.")
            logits = model(input_ids=torch.tensor([ids], device=device)).logits[0].float()  # (T, V)
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1).mean().item()
            rows.append({"prompt": number, "entropy_nats": entropy, "tokens": len(ids)})
    finally:
        model.train(was_training)
    return pd.DataFrame(rows, columns=["prompt", "entropy_nats", "tokens"])
