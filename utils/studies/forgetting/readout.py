"""Where a pseudo-loss no longer measures forgetting: above the loss of word frequencies alone."""

from collections.abc import Mapping
from functools import lru_cache

import pandas as pd

from utils.evaluation.pseudo import word_frequency_loss
from utils.profiles import Profile
from utils.profiles.schema import ModelReference, PseudoLoss
from utils.reporting.words import both
from utils.sources.corpora import pretraining_passages
from utils.sources.models import resolve
from utils.sources.text import news_articles
from utils.training.data import tokenizer_of


def readout_limit(profile: Profile) -> float | None:
    """Loss of word frequencies alone on the text of a profile's pseudo-loss, in nats per token.

    None where that text is not the course's own news, so that there is no part of it to count words in.
    """
    return _limit(profile.encoder, profile.pseudo_loss) if profile.pseudo_loss.corpus == "news" else None


@lru_cache(maxsize=4)
def _limit(encoder: ModelReference, settings: PseudoLoss) -> float:
    texts = pretraining_passages(settings.corpus, settings.passages)
    counted = news_articles().query("split == 'train'")["text"].tolist()  # what the course's base was trained on
    return word_frequency_loss(tokenizer_of(resolve(encoder).folder), texts, tokens=settings.tokens, counted=counted)


def is_broken(runs: pd.DataFrame, limit: float | None) -> pd.Series:
    """Which runs' pseudo-loss measures no forgetting: above the limit, where the untouched base lies below it.

    Parameters
    ----------
    runs : pandas.DataFrame
        One row per run, with ``pseudo_loss`` and ``forgetting`` (its rise) in nats per token.
    limit : float or None
        From :func:`readout_limit`; with None no run is broken.
    """
    if limit is None:
        return pd.Series(False, index=runs.index)
    return (runs["pseudo_loss"] > limit) & (runs["pseudo_loss"] - runs["forgetting"] < limit)


def broken_readout(groups: Mapping[str, pd.DataFrame], limit: float | None) -> str:
    """A sentence on the runs whose pseudo-loss no loss of knowledge explains; "" without any, or without a limit.

    Where the untouched base lies above the limit itself, as on a handful of tokens, nothing is said.

    Parameters
    ----------
    groups : mapping of str to DataFrame
        By a group's name one row per run, with ``pseudo_loss`` and ``forgetting`` (its rise) in nats per token.
    limit : float or None
        From :func:`readout_limit`.

    Examples
    --------
    >>> runs = pd.DataFrame({"pseudo_loss": [7.5, 6.5], "forgetting": [2.5, 1.5]})
    >>> broken_readout({"full": runs, "LoRA": runs - 1}, 7.0).split(":")[0]
    ' The loss ends above the 7.00 nats per token that word frequencies alone give in full (1 of 2 runs)'
    """
    if limit is None:
        return ""
    above = {name: int(is_broken(runs, limit).sum()) for name, runs in groups.items()}
    said = both(f"{name} ({count} of {len(groups[name])} runs)" for name, count in above.items() if count)
    return said and (f" The loss ends above the {limit:.2f} nats per token that word frequencies alone give in {said}: "
                     "a broken readout, since losing all that context tells costs no more than that.")
