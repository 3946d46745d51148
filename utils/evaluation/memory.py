"""What training must hold in memory by arithmetic: weights, gradients and optimiser states, without activations."""

from collections.abc import Iterable, Mapping

import pandas as pd

from utils.errors import UsageError

WEIGHT = GRADIENT = 2  # bytes per trained parameter, in bf16
MASTER = MOMENT = 4  # the fp32 copy that is updated, and each of the optimiser's moments
MOMENTS = {"adam": 2, "lion": 1}
LORA_SHARE = 0.01  # the paper's: LoRA trains 1 % of the parameters


def bytes_per_trained(optimiser: str) -> int:
    """Bytes that one trained parameter needs in mixed precision: 16 with Adam, 12 with Lion.

    Raises
    ------
    UsageError
        If the optimiser is not known.
    """
    if optimiser not in MOMENTS:
        raise UsageError(f"Expected an optimiser of {', '.join(MOMENTS)}, got '{optimiser}'; do choose one of them.")
    return WEIGHT + GRADIENT + MASTER + MOMENTS[optimiser] * MOMENT


def training_bytes(parameters: float, *, optimiser: str = "adam", trainable_share: float | None = None,
                   frozen_bytes: float = 2, gpus: int = 1) -> float:
    """Bytes on each GPU of model and optimiser states.

    Parameters
    ----------
    parameters : float
        Of the base model.
    optimiser : {"adam", "lion"}
    trainable_share : float in 0 … 1, optional
        Of the base's parameters, in an adapter that is added to the frozen base; by default the base itself is trained.
    frozen_bytes : float
        Per parameter of a frozen base: 2 in bf16, 4 in fp32, 0.5 in four bits.
    gpus : int
        Over which all is sharded evenly.

    Raises
    ------
    UsageError
        If the share is outside 0 … 1, or the optimiser is not known.

    References
    ----------
    Biderman et al., arXiv 2405.09673v2, Tables S14-S16; the bytes per parameter are those of Rajbhandari et al.,
    "ZeRO", 2020.

    Examples
    --------
    >>> training_bytes(7e9) / 1e9, round(training_bytes(7e9, trainable_share=0.01) / 1e9, 2)
    (112.0, 15.12)
    """
    if trainable_share is None:
        return bytes_per_trained(optimiser) * parameters / gpus
    if not 0 <= trainable_share <= 1:
        raise UsageError(f"Expected a trainable share of 0 to 1, got {trainable_share}; do give such a one.")
    return (frozen_bytes + bytes_per_trained(optimiser) * trainable_share) * parameters / gpus


def memory_table(models: Mapping[str, float], gpus: Iterable[int], *, trainable_share: float = LORA_SHARE,
                 frozen_bytes: float = 2) -> pd.DataFrame:
    """Gigabytes (1e9 bytes) per GPU of full fine-tuning and LoRA, with Adam and Lion.

    Parameters
    ----------
    models : mapping of str to float
        Name to billions of parameters.
    gpus : iterable of int

    Returns
    -------
    pandas.DataFrame
        ``model``, ``parameters_billion``, ``method`` ("full, Adam", …), ``gpus``, ``gigabytes``.
    """
    gpus, rows = list(gpus), []
    for model, billions in models.items():
        for way, share in (("full", None), ("LoRA", trainable_share)):
            for optimiser in MOMENTS:
                for count in gpus:
                    size = training_bytes(billions, optimiser=optimiser, trainable_share=share,
                                          frozen_bytes=frozen_bytes, gpus=count)
                    rows.append({"model": model, "parameters_billion": billions,
                                 "method": f"{way}, {optimiser.capitalize()}", "gpus": count, "gigabytes": size})
    return pd.DataFrame(rows)
