"""What a server of forked kernels may import in a test: no libraries, so that it is up within a second."""

import random
import time


def nothing() -> None:
    """Nothing at all."""


def seeded() -> None:
    """Numpy, and random numbers in a state that an import could leave them in."""
    import numpy as np

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the state of old, which a notebook's reader may still use


def for_ever() -> None:
    """Libraries that take their time."""
    time.sleep(300)
