"""From which strength on a direction is an intruder: predicted, measured by planting, and met by trained updates."""

import pandas as pd
from scipy.stats import mannwhitneyu

from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, base_spectra, collect, run_pairs, run_vectors
from utils.sources.models import resolve
from utils.spectra import adapter_strengths, critical_strength, is_intruder, measured_critical_strength
from utils.studies.similarity.measure import DRAWS
from utils.training.store import Run
from utils.training.targets import split_name
from utils.training.weights import base_matrices


@measurement(columns=("profile", "seed", "matrix", "layer", "type", "predicted", "measured", "smallest", "largest"))
def critical_strengths(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """The strength at which a random direction becomes an intruder in each base matrix, predicted and measured. Ours.

    Returns
    -------
    pandas.DataFrame
        One row per seed (of the random directions) and matrix: ``layer``, ``type``, ``predicted`` from W0's singular
        values, ``measured`` (median of a few draws) with ``smallest`` and ``largest``, all in units of them.
    """
    spectra, spectrum, rows = profile.spectra, base_spectra().spectrum, []
    chosen = profile.seeds if seeds is None else seeds
    for name, base in base_matrices(resolve(profile.encoder).folder).items():
        predicted = critical_strength(spectrum(base, name=name).values, tuple(base.shape), spectra.epsilon, k=spectra.k)
        layer, kind = split_name(name)
        for seed in chosen:
            found = measured_critical_strength(base, epsilon=spectra.epsilon, k=spectra.k, draws=DRAWS, seed=seed,
                                               spectrum=spectrum)
            rows.append({"profile": profile.profile, "seed": seed, "matrix": name, "layer": layer, "type": kind,
                         "predicted": predicted, "measured": found.median, "smallest": found.smallest,
                         "largest": found.largest})
    return pd.DataFrame(rows)


@measurement(columns=(*RUN_COLUMNS, "matrix", "out", "in", "strength", "critical", "ratio", "n_intruders"),
             runs=("learning_rates",))
def trained_strengths(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Each trained matrix's strength over the critical one, and its number of intruders, for the sweep's LoRA runs."""
    spectra = profile.spectra

    def measure(run: Run) -> pd.DataFrame:
        settings = {"version": 1, "epsilon": spectra.epsilon, "k": spectra.k}
        table = run.measured("strengths", settings, lambda run: adapter_strengths(
            run_pairs(run), epsilon=spectra.epsilon, k=spectra.k, spectrum=base_spectra().spectrum))
        leading = run_vectors(run, spectra, k=spectra.k)
        counts = is_intruder(leading["max_cosine"], spectra.epsilon).groupby(leading["matrix"]).sum()
        last = run.metrics()["accuracy"].iloc[-1]  # by which the runs that did not learn are told
        return table.assign(n_intruders=table["matrix"].map(counts), accuracy=last)

    return collect(profile, seeds, measure, experiments=("learning_rates",))


def separation(table: pd.DataFrame) -> pd.DataFrame:
    """How well the ratio of strength to critical strength orders matrices with intruders above those without.

    Returns
    -------
    pandas.DataFrame
        One row per method and learning rate: ``matrices``, ``with_intruders``, ``above_critical`` (ratio over 1),
        ``largest_ratio``, ``auc`` (NaN where all or none have intruders).
    """
    rows = []
    for (method, rate), part in table.groupby(["method", "learning_rate"], sort=False):
        has = part["n_intruders"] > 0
        auc = float("nan")
        if has.any() and not has.all():
            auc = mannwhitneyu(part.loc[has, "ratio"], part.loc[~has, "ratio"]).statistic / (has.sum() * (~has).sum())
        rows.append({"method": method, "learning_rate": rate, "matrices": len(part), "with_intruders": int(has.sum()),
                     "above_critical": int((part["ratio"] > 1).sum()), "largest_ratio": part["ratio"].max(),
                     "auc": auc})
    return pd.DataFrame(rows)


SHOWN = {"method": "method", "learning_rate": "learning rate", "with_intruders": "matrices with intruders",
         "above_critical": "above the critical strength", "largest_ratio": "largest ratio",
         "auc": "area under the curve"}


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`separation` of the runs in which some matrices have intruders and others not, in a reader's words."""
    return separation(table).dropna(subset=["auc"])[list(SHOWN)].rename(columns=SHOWN)
