"""Where a pseudo-loss no longer measures forgetting: above the loss of word frequencies alone."""

from collections.abc import Mapping

import pandas as pd

from utils.reporting.words import both


def broken_readout(losses: Mapping[str, pd.Series], level: float | None) -> str:
    """A sentence on the runs whose pseudo-loss no loss of knowledge explains; "" without any, or without a level.

    Parameters
    ----------
    losses : mapping of str to Series
        Pseudo-losses of a group's runs in nats per token, by the group's name.
    level : float or None
        From :func:`utils.evaluation.pseudo.word_frequency_loss`.

    Examples
    --------
    >>> broken_readout({"full": pd.Series([7.5, 6.5]), "LoRA": pd.Series([5.0])}, 7.0).split(":")[0]
    ' Above the 7.00 nats per token that word frequencies alone give end full (1 of 2 runs)'
    """
    if level is None:
        return ""
    above = {name: int((values > level).sum()) for name, values in losses.items()}
    said = both(f"{name} ({count} of {len(losses[name])} runs)" for name, count in above.items() if count)
    return said and (f" Above the {level:.2f} nats per token that word frequencies alone give end {said}: there the "
                     "readout is broken, for losing all that context tells would cost no more than that.")
