"""Text of the base model's own pre-training distribution, on which forgetting is measured."""

from utils.sources import hub
from utils.sources.text import english_passages

# RoBERTa's pre-training mixture and its sizes in GB (Liu et al. 2019); the first paper samples by these shares.
# bookcorpus keeps a loading script on its main branch, and parquet on this conversion branch.
ROBERTA_MIXTURE = (
    ("vblagoje/cc_news", None, None, 76),
    ("Skylion007/openwebtext", None, None, 38),
    ("lucadiliello/STORIES", None, None, 31),
    ("bookcorpus/bookcorpus", None, "refs/pr/6", 16),
)


def pretraining_passages(corpus: str, count: int) -> list[str]:
    """`count` texts of a corpus: ``news`` (held-out articles of the laptop base) or ``roberta-pretraining``."""
    if corpus == "news":
        return english_passages("heldout", count, words=300)
    total, done, passages = sum(share for *_, share in ROBERTA_MIXTURE), 0, []
    for name, config, revision, share in ROBERTA_MIXTURE:
        done += share
        rows = round(count * done / total) - len(passages)  # of the sum so far, so that the parts add up to `count`
        if rows:
            passages += hub.dataset_split(name, config, "train", rows=rows, revision=revision)["text"]
    return passages
