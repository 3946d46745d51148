"""An update of low rank, kept as its two factors: what LoRA adds to a matrix, wherever it comes from."""

from typing import NamedTuple

import torch


class LowRankUpdate(NamedTuple):
    """An update scale * B A that is never formed on its own.

    ``b`` is (out, r) and ``a`` (r, in), of any floating type; ``scale`` is usually alpha / r.
    """

    b: torch.Tensor
    a: torch.Tensor
    scale: float

    def added_to(self, base: torch.Tensor) -> torch.Tensor:
        """W0 + scale * B A in float64.

        >>> LowRankUpdate(torch.ones(2, 1), torch.ones(1, 2), 3.0).added_to(torch.eye(2)).tolist()
        [[4.0, 3.0], [3.0, 4.0]]
        """
        return base.double() + self.scale * (self.b.double() @ self.a.double())
