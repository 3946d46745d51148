"""Tables of notebook 14's study that are small enough to work out by hand."""

import math

import numpy as np
import pandas as pd

from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.selection import marked
from utils.studies.variants.measure import published_best

STUDY = ["LoRA", "PiSSA", "MiLoRA", "Init[AB]", "OLoRA", "LoRA-GA", "DoRA", "GraLoRA", "RandLoRA", "LoFT"]


def rows(variant: str, losses: dict[float, float], *, seed: int = 0, experiment: str = "vanilla", **more) -> list[dict]:
    """A grid of runs: loss by learning rate; the accuracy falls by a tenth of what the loss rises."""
    return [{"experiment": experiment, "variant": variant, "method": f"{variant} r=8", "r": 8, "batch_size": 8,
             "steps": 60, "learning_rate": rate, "seed": seed, "run": f"{experiment}{variant}{rate}{seed}{more}",
             "task": "mathematics", "loss_nats_per_token": loss, "token_accuracy": 1 - loss / 10, "learning": 7 - loss,
             "forgetting": 1.0, "n_intruders": 3, "relative_norm": rate, "diverged": np.isnan(loss)} | more
            for rate, loss in losses.items()]


def two_methods(seed: int = 0) -> pd.DataFrame:
    """LoRA best (2.0) at 0.1, PiSSA (2.1) at 0.01; LoRA at 0.01 2.5, PiSSA at 0.1 3.1."""
    return pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 4.0}, seed=seed)
                        + rows("PiSSA", {0.001: 2.4, 0.01: 2.1, 0.1: 3.1}, seed=seed))


def ten_methods() -> pd.DataFrame:
    """Best rates in the study's order, as multiples of LoRA's 1e-3; the best of the nine is 0.3 nats below LoRA."""
    published = published_best().set_index("method")
    return pd.DataFrame([row for index, (name, ratio) in enumerate(published["rate_ratio"].items())
                         for row in rows(name, {
                             f / ratio: loss + 0.1 * index + (0.2 if name == "LoRA" else 0)
                             for f, loss in ((1e-4, 3.0), (1e-3, 2.0), (1e-2, 3.0))})])


def varied_table() -> pd.DataFrame:
    """Ranks 2, 8, 32: best rates 1, 0.1, 0.01, so a slope of -2 log 10 / log 16 per log rank; losses 3.0, 2.0, 1.5."""
    parts = rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 4.0})
    parts += rows("LoRA", {0.1: 3.4, 1.0: 3.0, 10.0: 4.0}, experiment="vanilla_ranks", r=2)
    parts += rows("LoRA", {0.001: 1.8, 0.01: 1.5, 0.1: 2.2}, experiment="vanilla_ranks", r=32)
    return pd.DataFrame(parts)


def hessian_table() -> pd.DataFrame:
    """Five methods: the sharper the start, the lower the rate; in Adam's coordinates the product is 40 for all."""
    table = pd.DataFrame({"variant": ["LoRA", "PiSSA", "OLoRA", "LoRA-GA", "MiLoRA"], "seed": 0, "block": "module",
                          "at": "initialisation", "largest": [1.0, 10.0, 60.0, 50.0, 2.0],
                          "best_learning_rate": [1e-1, 1e-2, 1e-3, 2e-3, 5e-2]})
    return table.assign(smallest=-0.8 * table["largest"], preconditioned=40 / table["best_learning_rate"],
                        gradient_bound=0.9)


def curvature_table(seeds=(0,), variants=("LoRA", "PiSSA", "GraLoRA")) -> pd.DataFrame:
    """LoRA's largest eigenvalue is 2 at initialisation in one module, PiSSA's 20; a seed adds a tenth of that."""
    found = []
    for variant, size in zip(variants, (2.0, 20.0, 4.0), strict=False):
        for block, more in (("module", 1), ("adapter", 10)):
            for at, less in (("initialisation", 1), ("trained", 0.5)):
                for seed in seeds:
                    largest = size * more * less * (1 + 0.1 * seed)
                    found.append({"variant": variant, "block": block, "at": at, "seed": seed, "largest": largest,
                                  "smallest": -largest / 2, "gauss_newton": largest / 4,
                                  "converged": variant != "PiSSA", "iterations": 9,
                                  "gradient_bound": math.nan if variant == "GraLoRA" else more, "preconditioned": 1e4,
                                  "best_learning_rate": 0.01 / size})
    return pd.DataFrame(found)


def measured(name: str, own: pd.DataFrame, reference: pd.DataFrame | None = None, *,
             published: pd.DataFrame | None = None) -> Measured:
    """Own and reference as a notebook has them, with the study's numbers."""
    return Measured(name, load_profile("laptop"), (0,), marked(own), None if reference is None else marked(reference),
                    published_best() if published is None else published)
