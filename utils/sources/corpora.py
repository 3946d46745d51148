"""Text of the base model's own pre-training distribution, on which forgetting is measured."""

from utils.sources import hub
from utils.sources.text import english_passages

PASSAGE_WORDS = 300  # of a news article

# RoBERTa's pre-training mixture and its sizes in GB (Liu et al. 2019); the first paper samples by these shares.
# bookcorpus keeps a loading script on its main branch, and parquet on this conversion branch; its rows are single
# sentences, of which eight in a row make one passage.
ROBERTA_MIXTURE = (  # name, revision, share, rows of a passage
    ("vblagoje/cc_news", None, 76, 1),
    ("Skylion007/openwebtext", None, 38, 1),
    ("lucadiliello/STORIES", None, 31, 1),
    ("bookcorpus/bookcorpus", "refs/pr/6", 16, 8),
)


def pretraining_passages(corpus: str, count: int) -> list[str]:
    """`count` texts of a corpus: ``news`` (held-out articles of the laptop base) or ``roberta-pretraining``."""
    if corpus == "news":
        return english_passages("heldout", count, words=PASSAGE_WORDS)
    total, done, passages = sum(share for _, _, share, _ in ROBERTA_MIXTURE), 0, []
    for name, revision, share, rows_each in ROBERTA_MIXTURE:
        done += share
        wanted = round(count * done / total) - len(passages)  # of the sum so far, so that the parts add up to `count`
        if wanted:
            texts = hub.dataset_split(name, None, "train", rows=wanted * rows_each, revision=revision)["text"]
            passages += [" ".join(texts[start:start + rows_each]) for start in range(0, len(texts), rows_each)]
    return passages


def held_in_passages(corpus: str, count: int, *, apart: int) -> list[str]:
    """Up to `count` other texts of a corpus: none of the first `apart` that :func:`pretraining_passages` gives.

    Of ``news`` those that the laptop's base was itself trained on. A readout is fitted on these and judged on the
    others.
    """
    if corpus == "news":
        return english_passages("train", count, words=PASSAGE_WORDS)
    judged = set(pretraining_passages(corpus, apart))
    return [text for text in pretraining_passages(corpus, apart + count) if text not in judged]
