"""What must hold of the interval over passages that readers write in notebook 06."""

import torch


def _passages(count: int = 100, *, length: int | None = None, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Losses of two models on the same passages (sums in nats), and the passages' tokens; some texts are far harder."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.full((count,), length) if length else torch.randint(5, 30, (count,), generator=random)
    hardness, noise = torch.randn(2, count, generator=random, dtype=torch.float64)
    one = tokens * (5 + hardness)
    return one + tokens * (0.4 + 0.3 * noise), one, tokens


def _alike(interval) -> bool:
    _, losses, tokens = _passages()
    return all(abs(end) < 1e-6 for end in interval(losses, losses, tokens))


def _shifted(interval) -> bool:
    _, losses, tokens = _passages()
    return all(abs(end - 1) < 1e-6 for end in interval(losses + tokens, losses, tokens))


def _long_passages_weigh_more(interval) -> bool:
    """Every second passage is nine times as long, and only those are read worse, by a nat per token: 0.9 in all."""
    tokens = torch.tensor([10, 90]).repeat(100)
    losses = 5.0 * tokens.double()
    low, high = interval(losses + tokens * (tokens == 90), losses, tokens)
    return 0.8 < low < 0.9 < high < 1


def _turned_around(interval) -> bool:
    one, other, tokens = _passages()
    (low, high), (back, forth) = interval(one, other, tokens), interval(other, one, tokens)
    return low < high and max(abs(low + forth), abs(high + back)) < 0.2 * (high - low)


def _as_wide_as_it_should_be(interval) -> bool:
    """Of passages of one length the mean's standard error is known; draws and their number may move it a little."""
    one, other, tokens = _passages(200, length=20)
    low, high = interval(one, other, tokens)
    error = float(((one - other) / tokens).std() / len(tokens) ** 0.5)
    return 3.4 < (high - low) / error < 4.4


PAIRED_INTERVAL = {
    "two models that lose the same on every passage differ by nothing, for certain": _alike,
    "one nat more on every token is a difference of 1, however much the passages differ among themselves": _shifted,
    "a passage counts by its tokens": _long_passages_weigh_more,
    "the other way round it is the same interval with the other sign": _turned_around,
    "with passages of one length it is about four standard errors of their mean difference wide":
        _as_wide_as_it_should_be,
}
