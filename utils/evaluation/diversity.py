"""How different a model's generations are from one another: exact strings, n-grams, and overlap. Tables in and out.

The second paper counts unique strings (section 4.5, Fig. 5); the count of unique passing strings is bounded by how
many pass, so each count stands beside its number of samples, a ratio, and a value at a common number of samples. The
other measures are not in the paper.
"""

import math
import random
from collections.abc import Hashable, Sequence

import pandas as pd
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from utils.errors import UsageError

OUTCOMES = ("passed", "failed")
Tokens = Sequence[Hashable]


def rarefied(counts: Sequence[int], m: int) -> float:
    """Expected number of different strings among `m` of the generations, drawn without return.

    Parameters
    ----------
    counts : sequence of int
        How often each different string was generated.
    m : int
        Number of generations drawn.

    Returns
    -------
    float
        Sum over strings of 1 - C(n - n_i, m) / C(n, m), with n the sum of `counts`; NaN where n < m.

    References
    ----------
    Hurlbert, "The nonconcept of species diversity", Ecology 52, 1971.

    Examples
    --------
    >>> rarefied([2, 1], 2)  # of the three pairs, two hold both strings and one holds one
    1.6666666666666667
    """
    n = sum(counts)
    if m < 1:
        raise UsageError(f"Expected one generation or more to draw, got {m}; do give 1.")
    if n < m:
        return math.nan
    return math.fsum(1 - math.comb(n - count, m) / math.comb(n, m) for count in counts)


def unique_counts(samples: pd.DataFrame, *, m: int) -> pd.DataFrame:
    """Unique strings among each problem's passing and among its failing generations.

    Parameters
    ----------
    samples : pandas.DataFrame
        ``task_id``, ``completion`` and ``passed`` (missing where the code was not run).
    m : int
        The common number of generations for ``rarefied``.

    Returns
    -------
    pandas.DataFrame
        One row per problem and ``outcome`` (``passed``, ``failed``, and ``not run`` where there are such): ``n``
        generations, ``unique`` strings among them, ``unique_ratio`` = unique / n, ``rarefied`` (see :func:`rarefied`)
        and ``m``. An outcome that did not occur has n = 0 and missing ratios.

    References
    ----------
    Biderman et al., "LoRA Learns Less and Forgets Less", TMLR 2024, section 4.5 and Fig. 5 (counts only).
    """
    outcome = samples["passed"].map({True: "passed", False: "failed"}).astype(object).fillna("not run")
    outcomes = [*OUTCOMES, *(["not run"] if (outcome == "not run").any() else [])]
    rows = []
    for task, group in samples.groupby("task_id", sort=False):
        for name in outcomes:
            counts = group.loc[outcome[group.index] == name, "completion"].value_counts().tolist()
            rows.append({"task_id": task, "outcome": name, **_unique(counts, m)})
    return pd.DataFrame(rows)


def _unique(counts: list[int], m: int) -> dict:
    n = sum(counts)
    return {"n": n, "unique": len(counts), "unique_ratio": len(counts) / n if n else math.nan,
            "rarefied": rarefied(counts, m), "m": m}


def distinct_n(texts_tokens: Sequence[Tokens], n: int) -> float:
    """Number of different n-grams in all texts together, divided by the number of tokens.

    The denominator is the paper's, tokens; some later code divides by the number of n-grams. Long collections repeat
    themselves by chance, so compare collections of like size.

    Returns
    -------
    float
        In 0 … 1; NaN where there is no token.

    References
    ----------
    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016, section 5.

    Examples
    --------
    >>> distinct_n([["a", "b", "a"], ["a", "b"]], 2)  # ab, ba of five tokens
    0.4
    """
    if n < 1:
        raise UsageError(f"Expected n-grams of one token or more, got {n}; do give 1 or 2.")
    tokens = sum(map(len, texts_tokens))
    grams = {tuple(text[i:i + n]) for text in texts_tokens for i in range(len(text) - n + 1)}
    return len(grams) / tokens if tokens else math.nan


def self_bleu(texts_tokens: Sequence[Tokens], *, order: int = 4, most_texts: int = 50, seed: int = 0) -> float:
    """Mean BLEU of each text against all the others: 1 where all are alike, lower the more they differ.

    n-grams of 1 … `order` tokens weigh alike, precisions of zero are smoothed by 0.1 (method 1 of Chen & Cherry 2014).
    A text shorter than `order` is judged by the n-grams that it has, an empty one by whether another is empty too.

    Parameters
    ----------
    texts_tokens : sequence of sequences
        Two texts or more.
    most_texts : int
        Of more texts than this, so many are drawn; time grows with the square.

    Returns
    -------
    float
        In 0 … 1; NaN for fewer than two texts.

    References
    ----------
    Zhu et al., "Texygen: A Benchmarking Platform for Text Generation Models", SIGIR 2018, section 3.2.
    """
    texts = [list(text) for text in texts_tokens]
    if len(texts) < 2:
        return math.nan
    if len(texts) > most_texts:
        texts = random.Random(seed).sample(texts, most_texts)
    return math.fsum(_bleu(text, texts[:i] + texts[i + 1:], order) for i, text in enumerate(texts)) / len(texts)


def _bleu(text: list, others: list[list], order: int) -> float:
    if not text:
        return float(any(not other for other in others))
    highest = min(order, len(text))
    return float(sentence_bleu(others, text, weights=[1 / highest] * highest,
                               smoothing_function=SmoothingFunction().method1))


def diversity_table(samples: pd.DataFrame, tokens: Sequence[Tokens], *, m: int) -> pd.DataFrame:
    """Every measure of this module, per problem, for passing, failing and all generations.

    Parameters
    ----------
    samples : pandas.DataFrame
        As for :func:`unique_counts`.
    tokens : sequence of sequences
        The tokens of each row's completion, in the rows' order.
    m : int
        The common number of generations for ``rarefied``.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`unique_counts` with ``outcome`` also ``all``, and ``distinct_1``, ``distinct_2``,
        ``self_bleu``, ``mean_tokens``.

    Raises
    ------
    UsageError
        If there are not as many token lists as rows.
    """
    if len(tokens) != len(samples):
        raise UsageError(f"Expected the tokens of each of {len(samples)} generations, got {len(tokens)} lists; do give "
                         "one for each row.")
    samples = samples.reset_index(drop=True)
    whole = [{"task_id": task, "outcome": "all", **_unique(group["completion"].value_counts().tolist(), m)}
             for task, group in samples.groupby("task_id", sort=False)]
    table = pd.concat([unique_counts(samples, m=m), pd.DataFrame(whole)], ignore_index=True)
    members = {"passed": samples["passed"].eq(True), "failed": samples["passed"].eq(False),
               "not run": samples["passed"].isna(), "all": pd.Series(True, samples.index)}
    measured = []
    for row in table.itertuples():
        inside = members[row.outcome].fillna(False) & (samples["task_id"] == row.task_id)
        texts = [tokens[i] for i in samples.index[inside]]
        measured.append({"distinct_1": distinct_n(texts, 1), "distinct_2": distinct_n(texts, 2),
                         "self_bleu": self_bleu(texts),
                         "mean_tokens": sum(map(len, texts)) / len(texts) if texts else math.nan})
    return table.join(pd.DataFrame(measured))
