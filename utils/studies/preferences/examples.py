"""What a pair of answers is, and what a chat template makes of it: the tables that notebook 16 begins with."""

import pandas as pd

from utils.profiles import Profile
from utils.sources.models import resolve
from utils.sources.preferences import conversations
from utils.sources.tasks import load_task
from utils.training.preferences import chat_tokenizer, encoded


def example_pairs(profile: Profile, count: int = 3) -> pd.DataFrame:
    """The first held-out pairs as text: ``prompt`` (its last message), ``chosen``, ``rejected``."""
    settings = profile.preferences
    pairs = conversations(load_task(settings.task, settings.sizes).test.head(count))
    return pd.DataFrame([{name: talk[-1]["content"] for name, talk in pair.items()} for pair in pairs])


def example_conversation(profile: Profile, place: int = 0) -> tuple[list[dict], list[dict]]:
    """Prompt and chosen answer of a held-out pair, as messages."""
    settings = profile.preferences
    pair = conversations(load_task(settings.task, settings.sizes).test)[place]
    return pair["prompt"], pair["chosen"]


def template_table(profile: Profile, prompt: list[dict], answer: list[dict]) -> pd.DataFrame:
    """One conversation under the policy's template, under one that ends its prompt in a blank, and under the judge's.

    Returns
    -------
    pandas.DataFrame
        ``reader``, ``template``, ``text``, ``tokens``, ``lost`` (tokens of the prompt alone that the whole does not
        begin with: 0 where the model is trained on the context that it is later asked in), ``learnt`` (the part of the
        text that a loss on the answer counts).
    """
    settings, rows = profile.preferences, []
    model, judge = (resolve(one).folder for one in (settings.model, settings.reward_model))
    for reader, folder, template in (("policy", model, settings.template), ("policy", model, "blank-at-end"),
                                     ("reward model", judge, settings.reward_template)):
        tokenizer = chat_tokenizer(folder, template)
        ids, start = encoded(tokenizer, prompt, answer)
        alone = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        rows.append({"reader": reader, "template": template or "its own",
                     "text": tokenizer.apply_chat_template(prompt + answer, tokenize=False), "tokens": len(ids),
                     "lost": len(alone) - start, "learnt": tokenizer.decode(ids[start:])})
    return pd.DataFrame(rows)


def mask_table(profile: Profile, prompt: list[dict], answer: list[dict]) -> pd.DataFrame:
    """The policy's tokens of a conversation: ``token``, and ``learnt`` (whether the loss counts it).

    ``marked`` says the same by the template's marks of generation; it is left out where the template has none.
    """
    settings = profile.preferences
    tokenizer = chat_tokenizer(resolve(settings.model).folder, settings.template)
    ids, start = encoded(tokenizer, prompt, answer)
    table = pd.DataFrame({"token": [tokenizer.decode([one]) for one in ids],
                          "learnt": [place >= start for place in range(len(ids))]})
    if "{% generation %}" in tokenizer.chat_template:
        marked = tokenizer.apply_chat_template(prompt + answer, return_assistant_tokens_mask=True)
        table["marked"] = [bool(one) for one in marked["assistant_masks"]]
    return table
