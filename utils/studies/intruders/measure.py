"""Every measurement of the course as one function: profile and seeds in, tidy DataFrame out.

Notebooks and ``python -m utils reference`` call the same functions, so the reader's numbers and the reference band
are the same measurement. Each result is kept beside its run; asking again reads it.
"""

import time

import pandas as pd

from utils.files import canonical_json
from utils.profiles import Profile
from utils.profiles.schema import ModelReference, Spectra
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    all_vectors,
    base_triplets,
    collect,
    cosine_table,
    experiment_runs,
    final_accuracy,
    identity,
    run_pairs,
    run_vectors,
    showcase_runs,
    with_identity,
)
from utils.sources.models import resolve
from utils.spectra import Pair, count_intruders, is_intruder, random_ranges, thin_svd, trace_direction, vector_table
from utils.spectra.controls import random_updates
from utils.spectra.fast import merged_weight
from utils.training.store import Run
from utils.training.wanted import SHOWN
from utils.training.weights import Tensors, base_matrices

RAW_BASES = {"minilm-mlm": "minilm"}  # a packaged base, and the packaged model that it was made from


def beside_definition(run: Run, spectra: Spectra) -> pd.DataFrame:
    """A run's counts by the definition in float64 and by the fast core, with the seconds that each took here.

    Returns
    -------
    pandas.DataFrame
        Two rows: ``method``, ``way``, ``seconds``, ``computed`` (how many matrices in which way), ``n_intruders`` at
        the profile's epsilon, ``counts`` at all of its epsilons as text.
    """
    pairs = run_pairs(run)
    base, tuned = {}, {}
    for pair in pairs:
        weight, other = pair.load()
        base[pair.name] = weight.double()
        tuned[pair.name] = merged_weight(weight, other)
    cosine_table(pairs, spectra, spectra.k)  # the base's spectra are computed once, and not by this comparison
    rows = []
    for way, compute in {"definition": lambda: vector_table(base, tuned).assign(computed_by="two float64 SVDs"),
                         "fast core": lambda: cosine_table(pairs, spectra, spectra.k)}.items():
        started = time.perf_counter()
        table = compute()
        seconds = time.perf_counter() - started
        counts = count_intruders(table, spectra.epsilons, [spectra.k]).set_index("epsilon")["n_intruders"]
        how = table.drop_duplicates("matrix")["computed_by"].value_counts()
        rows.append({"method": run.spec.method.label, "way": way, "seconds": seconds,
                     "computed": ", ".join(f"{count} by {name}" for name, count in how.items()),
                     "n_intruders": counts[spectra.epsilon], "counts": canonical_json(counts.tolist())})
    return pd.DataFrame(rows)


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders", "accuracy", "accuracy_se",), runs=(SHOWN,))
def intruder_counts(profile: Profile, seeds: Seeds = None,
                    experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Intruders among the k leading vectors of all matrices, at each epsilon, with the run's final accuracy."""
    spectra = profile.spectra
    vectors = collect(profile, seeds, lambda run: run_vectors(run, spectra, k=spectra.k), experiments=experiments)
    counts = count_intruders(vectors, spectra.epsilons, [spectra.k], by=RUN_COLUMNS)
    return counts.merge(final_accuracy(profile, seeds, experiments), on="run")


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders",), runs=(SHOWN,))
def intruder_counts_by_k(profile: Profile, seeds: Seeds = None,
                         experiments: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Intruders at the profile's epsilon against the fraction of each matrix's vectors that is examined."""
    vectors, spectra = all_vectors(profile, seeds, experiments), profile.spectra
    return count_intruders(vectors, [spectra.epsilon], spectra.k_fractions, by=RUN_COLUMNS)


@measurement(columns=(*RUN_COLUMNS, "layer", "type", "epsilon", "k", "n_intruders",), runs=("ranks",))
def intruder_places(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Intruders by layer and matrix type at the profile's epsilon and k."""
    spectra = profile.spectra
    return count_intruders(all_vectors(profile, seeds, ("ranks",)), [spectra.epsilon], [spectra.k],
                           by=(*RUN_COLUMNS, "layer", "type"))


@measurement(columns=(*RUN_COLUMNS, "step", "accuracy", "n_intruders", "strongest_ratio", "first_index",
                      "least_cosine",), runs=("ranks",))
def intruder_growth(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Count and largest singular value of the intruders at every checkpoint, for full and the showcase rank.

    ``strongest_ratio`` is the largest singular value of any intruder over W0's largest, ``first_index`` the smallest
    index that an intruder reached, ``least_cosine`` the smallest maximal cosine among the k leading vectors.
    """
    spectra, rows = profile.spectra, []
    full = [run for run in experiment_runs(profile, "ranks", seeds) if run.spec.method.kind == "full"]
    for run in [*full, *showcase_runs(profile, seeds)]:
        for metric in run.metrics().to_dict("records"):
            leading = run_vectors(run, spectra, metric["step"], k=spectra.k)
            found = leading[is_intruder(leading["max_cosine"], spectra.epsilon)]
            ratio = found["singular_value"] / found["base_largest"]
            rows.append(identity(profile, "ranks", run) | {
                "step": metric["step"], "accuracy": metric["accuracy"], "n_intruders": len(found),
                "strongest_ratio": ratio.max(), "first_index": found["index"].min(),
                "least_cosine": leading["max_cosine"].min()})
    return pd.DataFrame(rows)


def intruder_trace(run: Run, matrix: str, spectra: Spectra) -> pd.DataFrame:
    """The least pretrained-like leading vector of one of a run's matrices, followed back to the base (step 0).

    Returns
    -------
    pandas.DataFrame
        :func:`utils.spectra.trace_direction` with the accuracy at each checkpoint (NaN at step 0).
    """
    leading = run_vectors(run, spectra, k=spectra.k).query("matrix == @matrix")
    index = int(leading.loc[leading["max_cosine"].idxmin(), "index"])
    direction = thin_svd(run.tuned_matrices()[matrix]).u[:, index - 1]
    steps = {0: run.base_matrices()[matrix]} | {step: run.tuned_matrices(step)[matrix] for step in run.steps}
    table = trace_direction(base_triplets(run.base)[matrix], steps, direction).merge(
        run.metrics()[["step", "accuracy"]], on="step", how="left")
    return table.assign(method=run.spec.method.label, matrix=matrix, run=run.spec.key)


def random_directions(profile: Profile) -> pd.DataFrame:
    """Where a random direction's largest |cosine| lies in the encoder: :func:`utils.spectra.random_ranges`."""
    shapes = [tuple(weight.shape) for weight in base_matrices(resolve(profile.encoder).folder).values()]
    return random_ranges(shapes)


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders", "control",), runs=("ranks",))
def random_controls(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Counts after random updates of the same Frobenius norm, matrix by matrix: full rank, and the run's own rank."""
    spectra, rows = profile.spectra, []
    for run in experiment_runs(profile, "ranks", seeds):
        ranks = {"random, full rank": None} | ({"random, rank r": run.spec.method.r} if run.spec.method.r else {})
        for control, rank in ranks.items():
            def compute(run: Run, rank=rank) -> pd.DataFrame:
                base = run.base_matrices()
                moved = random_updates(base, run.tuned_matrices(), rank=rank, seed=run.spec.seed)
                pairs = [Pair(name, lambda name=name: (base[name], moved[name])) for name in moved]
                return count_intruders(cosine_table(pairs, spectra, spectra.k), spectra.epsilons, [spectra.k])

            settings = {"version": 2, "k": spectra.k, "epsilons": spectra.epsilons}
            table = run.measured(f"control-rank-{rank or 'full'}", settings, compute)
            rows.append(with_identity(profile, "ranks", table).assign(control=control))
    return pd.concat(rows, ignore_index=True)


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders"), runs=("ranks",))
def counts_against_raw(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Counts against the model that the base was itself made from, of the base (``method`` "base") and of every run.

    The laptop's base is an adapter of rank 32 merged into MiniLM, so its "pretrained" vectors are partly an adapter's.
    Without rows where a profile's base is nobody's adapter.
    """
    if profile.encoder.source != "packaged" or profile.encoder.name not in RAW_BASES:
        return pd.DataFrame()
    spectra, rows = profile.spectra, []
    raw = base_matrices(resolve(ModelReference(source="packaged", name=RAW_BASES[profile.encoder.name])).folder)

    def count(tuned: Tensors) -> pd.DataFrame:
        pairs = [Pair(name, lambda name=name: (raw[name], tuned[name])) for name in raw]
        return count_intruders(cosine_table(pairs, spectra, spectra.k), spectra.epsilons, [spectra.k])

    runs = experiment_runs(profile, "ranks", seeds)
    for run in runs:
        table = run.measured("against-raw", {"version": 1, "k": spectra.k, "epsilons": spectra.epsilons},
                             lambda run: count(run.tuned_matrices()))
        rows.append(with_identity(profile, "ranks", table))
    base = count(runs[0].base_matrices())
    unnamed = {"task": "", "r": 0, "lora_alpha": 0, "learning_rate": 0.0, "run": "base", "method": "base"}
    rows += [base.assign(profile=profile.profile, experiment="ranks", seed=seed, **unnamed)
             for seed in dict.fromkeys(run.spec.seed for run in runs)]
    return pd.concat(rows, ignore_index=True)


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders", "accuracy", "accuracy_se", "train_rows"),
             runs=("data", "ranks"))
def data_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 16, left: count against epsilon by the number of training rows seen; the main runs are the largest."""
    return _with_rows(intruder_counts(profile, seeds, ("data", "ranks")), profile, seeds)


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders", "train_rows",), runs=("data", "ranks"))
def data_counts_by_k(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Fig 16, right: count against the share of vectors examined, by the number of training rows seen."""
    return _with_rows(intruder_counts_by_k(profile, seeds, ("data", "ranks")), profile, seeds)


@measurement(columns=(*RUN_COLUMNS, "epsilon", "k", "n_intruders", "accuracy", "accuracy_se",), runs=("variants",))
def variant_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Figs 10 and 23: count against epsilon for LoRA's variants, with accuracy."""
    return intruder_counts(profile, seeds, ("variants",))


def _with_rows(table: pd.DataFrame, profile: Profile, seeds: Seeds) -> pd.DataFrame:
    """Only the methods (rank and rate) of experiment ``data``, with ``train_rows``: how many rows a run saw."""
    subsets, main = ({run.spec.key: run for run in experiment_runs(profile, name, seeds)} for name in ("data", "ranks"))
    methods = {(run.spec.method, run.spec.learning_rate) for run in subsets.values()}
    seen = {key: _rows_seen(run) for key, run in (main | subsets).items()
            if (run.spec.method, run.spec.learning_rate) in methods}
    return table[table["run"].isin(seen)].assign(train_rows=lambda part: part["run"].map(seen))


def _rows_seen(run: Run) -> int:
    """Different training rows that a run saw: never more than its set has."""
    taken = run.result["measured"]["steps"] * run.spec.batch_size
    return min(taken, run.spec.sizes.train_rows or run.result["run"].get("train_rows", taken))
