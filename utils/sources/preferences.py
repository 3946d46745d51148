"""Preference data as conversations, and the chat templates that write a conversation as one text.

A pair is a prompt (the messages so far), a chosen and a rejected answer, each a list of messages; a table keeps the
lists as JSON, so that rows can be ordered, hashed and written like those of every other task.
"""

import json
from functools import cache

import pandas as pd

from utils.errors import CourseError, UsageError
from utils.sources import hub
from utils.sources.domains import mathematics_questions
from utils.sources.text import split_fraction

COLUMNS = ("prompt", "chosen", "rejected")
ULTRAFEEDBACK = "trl-lib/ultrafeedback_binarized"

# What a base without a template of its own is given. The marks of generation say which part the assistant writes, and
# the prompt ends in a line break: after a blank, many tokenizers would take blank and word as one token, and the prompt
# would no longer be the beginning of the whole.
QUESTION_ANSWER = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}\
{{ 'Answer:\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}\
{% else %}{{ 'Question: ' + message['content'] + '\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}"""

# An encoder's classifier reads its first token, and TRL adds no special tokens to a templated text: it has to be here.
SEPARATED = """\
{{ cls_token }}{% for message in messages %}{{ ' ' + message['content'] + ' ' + sep_token }}{% endfor %}"""

# A counter-example for notebook 16: the prompt ends in a blank.
BLANK_AT_END = QUESTION_ANSWER.replace("'Answer:\\n'", "'Answer: '")

TEMPLATES = {"question-answer": QUESTION_ANSWER, "separated": SEPARATED, "blank-at-end": BLANK_AT_END}


def template_text(name: str) -> str:
    """The template of that name; UsageError with the known names if there is none."""
    if name not in TEMPLATES:
        raise UsageError(f"Unknown chat template '{name}'; the known ones are {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


@cache
def answer_pairs(split: str) -> pd.DataFrame:
    """Generated mathematics: a question, its right answer, and as rejected another question's answer of its kind.

    The rejected answer has the form that a right one could have and is never spelt like it, so that a model cannot
    choose by form alone; that an answer stands in its question (as in "which is bigger") gives some kinds away.

    Returns
    -------
    pandas.DataFrame
        ``prompt``, ``chosen``, ``rejected``: JSON lists of messages.
    """
    rows = mathematics_questions("heldout" if split == "test" else "train")
    others = rows.groupby("kind", sort=False)["answer"].transform(lambda part: _next_different(part.tolist()))
    return pd.DataFrame({"prompt": rows["question"].map(lambda text: _said("user", text)),
                         "chosen": rows["answer"].map(lambda text: _said("assistant", text)),
                         "rejected": others.map(lambda text: _said("assistant", text))})


def _next_different(answers: list[str]) -> list[str]:
    """For each answer the next one after it, going round, that differs from it."""
    count, found = len(answers), []
    for place, answer in enumerate(answers):
        step = next((step for step in range(1, count) if answers[(place + step) % count] != answer), None)
        if step is None:
            raise CourseError(f"All {count} answers of a kind of question are '{answer}', so none can be rejected.")
        found.append(answers[(place + step) % count])
    return found


def _said(role: str, text: str) -> str:
    return json.dumps([{"role": role, "content": text}], ensure_ascii=False)


def ultrafeedback_pairs(split: str) -> pd.DataFrame:
    """UltraFeedback with one chosen and one rejected conversation a row; the turns that both share are the prompt."""
    rows = hub.dataset_split(ULTRAFEEDBACK, None, split).to_pandas()
    if missing := [column for column in COLUMNS[1:] if column not in rows]:
        raise CourseError(f"Expected columns chosen, rejected in {ULTRAFEEDBACK}, but {', '.join(missing)} is missing "
                          f"(it has {', '.join(rows.columns)}); check the data set's page for a renamed column.")
    pairs = [divided(*map(_messages, both)) for both in zip(rows["chosen"], rows["rejected"], strict=True)]
    return pd.DataFrame([pair for pair in pairs if pair["chosen"] != pair["rejected"]], columns=COLUMNS)


def divided(chosen: list[dict], rejected: list[dict]) -> dict[str, str]:
    """Prompt, chosen and rejected of two whole conversations that part at their last message, as JSON.

    >>> both = [{"role": "user", "content": "Well?"}]
    >>> divided(both + [{"role": "assistant", "content": "Yes."}], both + [{"role": "assistant", "content": "No."}])[
    ...     "rejected"]
    '[{"role": "assistant", "content": "No."}]'
    """
    if chosen[:-1] != rejected[:-1] or not chosen[:-1]:
        raise CourseError("Expected a chosen and a rejected conversation that share all but their last message, but "
                          f"they part earlier ({chosen[0]['content'][:60]!r}); leave such rows out.")
    parts = (chosen[:-1], chosen[-1:], rejected[-1:])
    return {name: json.dumps(part, ensure_ascii=False) for name, part in zip(COLUMNS, parts, strict=True)}


def _messages(turns) -> list[dict]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def with_swaps(pairs: pd.DataFrame) -> pd.DataFrame:
    """The control: chosen and rejected change places in about half of the rows, by the hash of the prompt."""
    swap = pairs["prompt"].map(lambda text: split_fraction(f"swapped {text}") < 0.5)
    return pairs.assign(chosen=pairs["chosen"].where(~swap, pairs["rejected"]),
                        rejected=pairs["rejected"].where(~swap, pairs["chosen"]))


def conversations(pairs: pd.DataFrame) -> list[dict[str, list[dict]]]:
    """The rows as TRL takes them: ``prompt``, ``chosen`` and ``rejected`` as lists of messages."""
    return [{name: json.loads(row[name]) for name in COLUMNS} for row in pairs[list(COLUMNS)].to_dict("records")]
