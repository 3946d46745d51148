"""Spectra in numbers: how two sets of singular vectors line up, planted directions, critical strengths, windows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from utils.profiles import Profile
from utils.profiles.schema import Spectra
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    base_spectra,
    base_triplets,
    collect,
    experiment_runs,
    run_pairs,
    showcase_runs,
    with_identity,
)
from utils.sources.models import resolve
from utils.spectra import count_intruders, similarity, thin_svd, toy_sweep, window_level, window_table
from utils.studies.similarity.choice import middle_matrix
from utils.training.store import Run
from utils.training.weights import base_matrices

TOP = 64  # leading vectors of a similarity map
RATIOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
WINDOWS = (1, 2, 4, 8, 16)
DRAWS = 3


@measurement(columns=(*RUN_COLUMNS, "matrix", "shift", "mean_cosine", "blank_rows", "flattest",), runs=("ranks",))
def similarity_summary(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Figs 1, 2b, 2c and 3 in numbers, for full fine-tuning and the showcase rank in every matrix of each seed.

    Which of them are shown and judged is chosen from this table: :mod:`utils.studies.similarity.choice`.

    Returns
    -------
    pandas.DataFrame
        One row per run and matrix: ``shift`` (median of tuned index minus best-matching pretrained index over the
        leading vectors beyond the k-th; positive where others were pushed down), ``mean_cosine`` (of the leading
        vectors' best matches), ``blank_rows`` (intruders among the k leading), ``flattest`` (best match of the least
        alike).
    """
    spectra, parts = profile.spectra, []
    settings = {"version": 1, "top": TOP, "k": spectra.k, "epsilon": spectra.epsilon}
    loras = showcase_runs(profile, seeds)
    for full in (run for run in experiment_runs(profile, "ranks", seeds) if run.spec.method.kind == "full"):
        for run in (full, *(lora for lora in loras if lora.spec.seed == full.spec.seed)):
            table = run.measured("alignment", settings, lambda run: _alignments(run, spectra))
            parts.append(with_identity(profile, "ranks", table))
    return pd.concat(parts, ignore_index=True)


def _alignments(run: Run, spectra: Spectra) -> pd.DataFrame:
    base = base_triplets(run.base)
    return pd.DataFrame([{"matrix": name} | _alignment(similarity(thin_svd(weight), base[name], top=TOP), spectra)
                         for name, weight in run.tuned_matrices().items()])


def _alignment(cosines: torch.Tensor, spectra: Spectra) -> dict:
    """What one matrix's cosines of shape (leading tuned, all pretrained) come to."""
    best, place = cosines.max(1)
    k = spectra.k
    beyond = torch.arange(len(place))[k:] - place[k:]
    alike = best[k:] >= spectra.epsilon  # where nothing matches, the best match's place means nothing
    return {"shift": beyond[alike].double().median().item() if alike.any() else float("nan"),
            "mean_cosine": best.mean().item(), "blank_rows": int((best[:k] < spectra.epsilon).sum()),
            "flattest": best[:k].min().item()}


def similarity_maps(runs: Mapping[str, Run], matrix: str) -> dict[str, np.ndarray]:
    """By label, one matrix's absolute cosines of the leading tuned (rows) with all pretrained left vectors."""
    return {label: similarity(thin_svd(run.tuned_matrices()[matrix]), base_triplets(run.base)[matrix], top=TOP).numpy()
            for label, run in runs.items()}


@measurement(columns=("profile", "seed", "ratio", "index", "overlap", "max_cosine", "matrix"))
def planted_directions(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 2a and appendix A.2: a direction of growing strength planted in the base's middle matrix, one per seed.

    Nothing trained enters; the matrix is chosen by its place.
    """
    weights = base_matrices(resolve(profile.encoder).folder)
    matrix = middle_matrix(list(weights))
    triplets = thin_svd(weights[matrix])
    rows = [toy_sweep(weights[matrix], RATIOS, seed=seed, base_triplets=triplets).assign(
        profile=profile.profile, seed=seed, matrix=matrix) for seed in seeds or profile.seeds]
    return pd.concat(rows, ignore_index=True)


def window_cosines(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Each leading vector's projection onto windows of pretrained ones, for full fine-tuning and the showcase rank.

    Width 1 is the maximal cosine; a vector that is an intruder there and none at width 8 only turned within a cluster.
    """
    spectra = profile.spectra

    def measure(run: Run) -> pd.DataFrame:
        return run.measured("windows", {"version": 1, "k": spectra.k, "widths": WINDOWS}, lambda run: window_table(
            run_pairs(run), WINDOWS, k=spectra.k, spectrum=base_spectra().spectrum))

    table = collect(profile, seeds, measure, experiments=("ranks",))
    return table[(table["r"] == 0) | table["run"].isin([run.spec.key for run in showcase_runs(profile, seeds)])]


@measurement(columns=(*RUN_COLUMNS, "width", "n_intruders",), runs=("ranks",))
def window_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Intruders at the profile's epsilon by window width."""
    table = window_cosines(profile, seeds)
    counts = count_intruders(table, [profile.spectra.epsilon], [profile.spectra.k], by=(*RUN_COLUMNS, "width"))
    return counts.drop(columns=["epsilon", "k"])


def window_levels(profile: Profile) -> dict[int, float]:
    """What a random direction reaches at each width, at most: in the model's narrowest output."""
    shapes = {tuple(weight.shape) for weight in base_matrices(resolve(profile.encoder).folder).values()}
    return {width: max(window_level(out, min(out, wide), width) for out, wide in shapes) for width in WINDOWS}


def together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Vector tables of several runs as one."""
    return pd.concat(parts, ignore_index=True)
