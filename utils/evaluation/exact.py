"""Exact match of generated answers, for questions that have one right answer."""

import pandas as pd
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.evaluation.generation import sample

ANSWER_TOKENS = 14  # no answer of the chosen question kinds is longer in the small decoder's tokens


def exact_match(model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: pd.DataFrame) -> pd.DataFrame:
    """Greedy answers to questions, one line each, compared with the right ones.

    Parameters
    ----------
    questions : pandas.DataFrame
        ``kind``, ``question``, ``answer``; the model is given the question and a line break.

    Returns
    -------
    pandas.DataFrame
        ``kind``, ``question``, ``answer``, ``given`` and ``right`` (bool); spaces around an answer do not count.
    """
    prompts = (questions["question"] + "\n").tolist()
    drawn = sample(model, tokenizer, prompts, n=1, temperature=0, max_new_tokens=ANSWER_TOKENS, seed=0, batch_size=64,
                   stop=("\n",), label="answers")
    given = drawn.set_index("prompt")["text"].str.strip().reset_index(drop=True)
    return questions.reset_index(drop=True).assign(given=given, right=given == questions["answer"].reset_index(
        drop=True).str.strip())
