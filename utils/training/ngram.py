"""An n-gram language model: what a decoder has to beat before its loss means anything."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

DISCOUNT = 0.75
Gram = tuple[int, ...]


class KneserNey:
    """Interpolated Kneser-Ney model of token ids with one absolute discount.

    The highest order counts occurrences, the lower ones count how many different tokens came before; each order gives
    its discounted mass to the next lower one, the lowest to the uniform distribution.

    Parameters
    ----------
    sequences : iterable of sequence of int
    vocabulary : int
        Number of token ids.
    order : int
        3 for trigrams.

    References
    ----------
    Chen & Goodman, "An empirical study of smoothing techniques for language modeling", 1998.

    Examples
    --------
    >>> model = KneserNey([[0, 1, 0, 1, 0]], vocabulary=2, order=2)
    >>> round(sum(model.probability((0,), token) for token in range(2)), 12)
    1.0
    """

    def __init__(self, sequences: Iterable[Sequence[int]], vocabulary: int, order: int = 3):
        self.vocabulary, self.order = vocabulary, order
        grams = Counter(tuple(ids[end - order:end]) for ids in sequences for end in range(order, len(ids) + 1))
        self.counts = {order: grams}
        for length in range(order - 1, 0, -1):
            self.counts[length] = Counter(gram[1:] for gram in self.counts[length + 1])
        self.totals: dict[int, Counter[Gram]] = {length: Counter() for length in self.counts}
        self.followers: dict[int, defaultdict[Gram, int]] = {length: defaultdict(int) for length in self.counts}
        for length, counted in self.counts.items():
            for gram, count in counted.items():
                self.totals[length][gram[:-1]] += count
                self.followers[length][gram[:-1]] += 1

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | the last ``order - 1`` tokens of the context); shorter contexts use the lower orders."""
        p = 1 / self.vocabulary
        for length in range(1, min(self.order, len(context) + 1) + 1):
            before = tuple(context[len(context) - length + 1:]) if length > 1 else ()
            total = self.totals[length].get(before, 0)
            if total == 0:
                break
            kept = max(self.counts[length].get((*before, token), 0) - DISCOUNT, 0) / total
            p = kept + DISCOUNT * self.followers[length][before] / total * p
        return p

    def loss(self, sequences: Iterable[Sequence[int]]) -> float:
        """Mean cross-entropy in nats per token; the first token of each sequence is not counted."""
        losses = [-np.log(self.probability(ids[max(0, place - self.order + 1):place], ids[place]))
                  for ids in sequences for place in range(1, len(ids))]
        return float(np.mean(losses))
