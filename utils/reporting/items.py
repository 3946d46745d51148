"""What paired tests compare, as text in a table's cells: which test rows were right, and the loss of each passage."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from utils.errors import CourseError


def packed(flags: Sequence[bool] | np.ndarray) -> str:
    """Flags as hexadecimal digits after their number, such as ``"3:a0"`` for True, False, True.

    >>> packed([True, False, True])
    '3:a0'
    """
    return f"{len(flags)}:{np.packbits(np.asarray(flags, dtype=bool)).tobytes().hex()}"


def unpacked(text: str) -> np.ndarray:
    """What :func:`packed` wrote.

    >>> unpacked("3:a0").tolist()
    [True, False, True]
    """
    try:
        count, digits = text.split(":")
        flags = np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))[:int(count)].astype(bool)
    except (ValueError, AttributeError) as error:
        raise CourseError(f"Expected flags such as '3:a0', got {str(text)[:40]!r}; make the table anew.") from error
    if len(flags) != int(count):
        raise CourseError(f"Expected {count} flags, got {len(flags)}; make the table anew.")
    return flags


def passages_as_text(values: Iterable[float]) -> str:
    """Losses with four decimals, as :func:`passage_losses` reads them.

    >>> passages_as_text([1.0, 2.5])
    '1.0000 2.5000'
    """
    return " ".join(f"{value:.4f}" for value in values)


def right_answers(row: pd.Series) -> np.ndarray:
    """Which test rows a model answered rightly: bool, in an order that all models of a task share."""
    return unpacked(row["right"])


def passage_losses(row: pd.Series) -> np.ndarray:
    """Pseudo-loss of each passage, nats per token, passages in an order that all models share."""
    return np.array([float(value) for value in row["passage_nats"].split()])
