"""Choice items from held-out news: does a model still tell how an article goes on?

Two questions share one set of items. Given an opening, which of four continuations is its own (as HellaSwag and ARC
ask); given a continuation, which of four openings does it belong to (as WinoGrande asks). A model of a million
parameters is at chance on the first, where rare names outweigh the opening; on the second the scored words are the
same four times, so that only the openings differ. A model of a hundred million nearly always solves the second.
"""

import re
from functools import cache

import pandas as pd

from utils.errors import UsageError
from utils.sources.text import news_articles, split_fraction

OPENING_WORDS = 24  # or a few more: an opening ends inside a sentence, on a letter or digit
CONTINUATION_WORDS = 8
CHOICES = 4
SPLITS = ("test", "heldout")  # no language model of the course is trained on either


def cloze_items(split: str = "heldout", count: int | None = None) -> pd.DataFrame:
    """Openings and continuations of news articles, four of each to choose from.

    Parameters
    ----------
    split : {"heldout", "test"}
    count : int, optional
        The first so many; all by default. Fewer items are always a part of more items.

    Returns
    -------
    pandas.DataFrame
        One row per article: ``topic``, ``contexts`` (list of 4 openings), ``choices`` (list of 4 continuations in the
        same order, without a leading space) and ``answer`` (0 … 3): the position of the article's own opening and
        continuation, equally often each. The other three are of other articles on the same topic, so that the topic
        alone gives nothing away.

    Raises
    ------
    UsageError
        If the split is one that models are trained on, unknown, or has fewer items than `count`.

    Notes
    -----
    The news agency rewrites its articles: about one held-out article in fifteen has words that stand in the train
    split too. Those are left out, as right answers and as wrong ones. Order, wrong answers and positions follow
    hashes of the text; nothing is drawn at random.
    """
    if split not in SPLITS:
        raise UsageError(f"Expected a split that no model is trained on, {' or '.join(SPLITS)}, got '{split}'; "
                         "do choose one.")
    items = _items(split)
    if count is not None and not 0 < count <= len(items):
        raise UsageError(f"Expected a count of 1 to {len(items)} choice items, got {count}; do give such a one.")
    return items.head(count).copy() if count is not None else items.copy()


@cache
def _items(split: str) -> pd.DataFrame:
    passages, rows = _passages(split), []
    for passage in passages.itertuples():
        others = passages[(passages["topic"] == passage.topic) & (passages.index != passage.Index)]
        order = others["continuation"].map(lambda other, own=passage.context: split_fraction(f"{own} {other}"))
        wrong = others.loc[order.sort_values().index[:CHOICES - 1]]
        answer = len(rows) % CHOICES  # the rows' order is itself a hash's
        contexts, choices = wrong["context"].tolist(), wrong["continuation"].tolist()
        contexts.insert(answer, passage.context)
        choices.insert(answer, passage.continuation)
        rows.append({"topic": passage.topic, "contexts": contexts, "choices": choices, "answer": answer})
    return pd.DataFrame(rows)


def _passages(split: str) -> pd.DataFrame:
    """Opening and continuation of each article, in the order of the texts' hashes; none twice, none of train."""
    articles = news_articles()
    trained = "\n".join(articles.query("split == 'train'")["text"])
    chosen = articles.query("split == @split")
    chosen = chosen.loc[chosen["text"].map(split_fraction).sort_values().index]
    cut = [(row.topic, *parts) for row in chosen.itertuples() if (parts := _cut(row.text))]
    passages = pd.DataFrame(cut, columns=["topic", "context", "continuation"])
    passages = passages[[text not in trained for text in passages["continuation"]]]
    return passages.drop_duplicates("context").drop_duplicates("continuation").reset_index(drop=True)


def _cut(text: str) -> tuple[str, str] | None:
    """Opening and continuation, cut inside a sentence; None where the article is too short."""
    words = text.split()
    for end in range(OPENING_WORDS, len(words) - CONTINUATION_WORDS + 1):
        if re.search(r"[A-Za-z0-9]$", words[end - 1]):
            return " ".join(words[:end]), " ".join(words[end:end + CONTINUATION_WORDS])
    return None
