"""The grid that resolves the knot: ranks, full width and full fine-tuning by learning rate, on two tasks.

Rates are chosen on validation rows, by :func:`chosen_rates`; what is judged comes from test rows and weights.
"""

import numpy as np
import pandas as pd

from utils.evaluation.pseudo import corpus_loss
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import PseudoLoss, Spectra
from utils.reporting.items import packed, passages_as_text
from utils.reporting.registry import measurement
from utils.reporting.rules import CLAIM_EPSILONS
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    base_pseudo_loss,
    collect_by_run,
    cosine_table,
    model_pseudo_loss,
    run_vectors,
)
from utils.reporting.selection import best_rate, comparable_rates
from utils.spectra import Pair, count_intruders, update_table
from utils.spectra.controls import spectrum_matched
from utils.training.data import classification_data, evaluation_batches, validation_data
from utils.training.metrics import accuracy, predict
from utils.training.store import Run

GRIDS = ("grid", "grid_second")
LONGER = "longer"  # the second one's task, at its best rates alone and four times the steps
VERSION = 1  # of what is measured of each run here
CHOSEN_BY = "validation_accuracy"
OUTCOMES = ("n_intruders", "n_random", CHOSEN_BY, "accuracy", "accuracy_se", "pseudo_loss", "base_pseudo_loss",
            "forgetting", "relative_norm")
ITEMS = ("right", "passage_nats")


@measurement(columns=(*RUN_COLUMNS, "steps", "epsilon", *OUTCOMES, *ITEMS), runs=(*GRIDS, LONGER), by_run=True)
def rate_grid(profile: Profile, seeds: Seeds = None, *, known: pd.DataFrame | None = None,
              trained_only: bool = False) -> pd.DataFrame:
    """Every run of the grids, and the longer ones, at both epsilons of the claims: count, accuracies, forgetting, norm.

    Counts are of the k leading vectors of all matrices; ``n_random`` is the count after a random update with the same
    singular values in every matrix (:func:`utils.spectra.controls.spectrum_matched`). ``right`` (which test rows were
    answered rightly) and ``passage_nats`` (pseudo-loss of each passage) hold what paired tests compare, in the rows of
    the first epsilon; :mod:`utils.reporting.items` reads them. A diverged run has NaN in every outcome.

    Parameters
    ----------
    known : pandas.DataFrame, optional
        Rows of runs that were measured before; those runs are neither trained nor measured again.
    trained_only : bool
        Leave out the runs that are not trained yet.
    """
    return collect_by_run(profile, seeds, lambda run: grid_rows(run, profile), experiments=(*GRIDS, LONGER),
                          known=known, trained_only=trained_only)


def grid_rows(run: Run, profile: Profile) -> pd.DataFrame:
    """One run's rows of :func:`rate_grid`, one per epsilon."""
    rows = pd.DataFrame({"steps": run.result["measured"]["steps"], "epsilon": CLAIM_EPSILONS})
    if run.diverged:
        rows = rows.assign(**dict.fromkeys(OUTCOMES, np.nan), **dict.fromkeys(ITEMS, ""))
        return pd.DataFrame([run.spec.columns] * len(rows)).join(rows)
    settings = profile.pseudo_loss.paired
    outcomes = run.measured("grid", {"version": VERSION} | settings.model_dump(), lambda run: _outcomes(run, settings))
    spectra = profile.spectra
    counts = count_intruders(run_vectors(run, spectra, k=spectra.k), CLAIM_EPSILONS, [spectra.k])
    counts = counts[["epsilon", "n_intruders"]].merge(_random_counts(run, spectra), on="epsilon")
    table = outcomes.drop(columns=list(ITEMS)).merge(counts, how="cross").assign(
        steps=run.result["measured"]["steps"], base_pseudo_loss=base_pseudo_loss(run.base, settings))
    first = table["epsilon"] == CLAIM_EPSILONS[0]
    for name in ITEMS:  # once is enough
        table[name] = np.where(first, outcomes[name].iloc[0], "")
    return table.assign(forgetting=table["pseudo_loss"] - table["base_pseudo_loss"])


def _outcomes(run: Run, settings: PseudoLoss) -> pd.DataFrame:
    """Accuracies, pseudo-loss and size of the update of a run's last weights, in one row."""
    spec, folder = run.spec, run.base.folder
    classifier = run.classifier().to(device_name())
    validation, test = (predict(classifier, evaluation_batches(rows, folder)) for rows in (
        validation_data(spec.task, spec.sizes, folder), classification_data(spec.task, spec.sizes, folder)[1]))
    shares = accuracy(*test)
    losses = model_pseudo_loss(run.base, run.masked_lm(), settings)
    norms = update_table(run.base_matrices(), run.tuned_matrices(), run.factors())["relative_norm"]
    return pd.DataFrame([{
        CHOSEN_BY: accuracy(*validation)["accuracy"], "accuracy": shares["accuracy"],
        "accuracy_se": shares["accuracy_se"], "pseudo_loss": corpus_loss(losses), "relative_norm": norms.mean(),
        "right": packed((test[0] == test[1]).numpy()),
        "passage_nats": passages_as_text(losses["negative_pll_nats"] / losses["tokens"])}])


def _random_counts(run: Run, spectra: Spectra) -> pd.DataFrame:
    """``epsilon`` and ``n_random``: the count after random updates of each matrix's own singular values."""
    def compute(run: Run) -> pd.DataFrame:
        base, factors = run.base_matrices(), run.factors()
        tuned = None if factors else run.tuned_matrices()
        pairs = []
        for place, (name, weight) in enumerate(base.items()):
            update = factors[name] if factors else tuned[name] - weight
            drawn = spectrum_matched(update, seed=run.spec.seed * 1_000_003 + place)
            moved = drawn if factors else drawn.added_to(weight).float()
            pairs.append(Pair(name, lambda weight=weight, moved=moved: (weight, moved)))
        return count_intruders(cosine_table(pairs, spectra, spectra.k), CLAIM_EPSILONS, [spectra.k])

    table = run.measured("random-spectrum", {"version": VERSION, "k": spectra.k, "epsilons": spectra.epsilons}, compute)
    return table[["epsilon", "n_intruders"]].rename(columns={"n_intruders": "n_random"})


def chosen_rates(grid: pd.DataFrame) -> pd.DataFrame:
    """The learning rate of each method, task and length: that of the best mean validation accuracy.

    Parameters
    ----------
    grid : pandas.DataFrame
        ``task``, ``steps``, ``method``, ``r``, ``learning_rate``, ``seed``, ``run``, ``validation_accuracy``.

    Returns
    -------
    pandas.DataFrame
        ``task``, ``steps``, ``method``, ``r``, ``learning_rate``, ``validation_accuracy`` (the mean), ``rates`` (how
        many were compared), ``seeds`` (on how many each) and ``edge``: ``lowest`` or ``highest`` where the best is the
        smallest or largest rate tried, so that a better one may lie beyond, ``only`` where it is the only one; else
        empty.
    """
    rows = []
    # A diverged run is the worst there is; left out, its rate would be judged by the seeds that were lucky.
    columns = ["task", "steps", "method", "r", "learning_rate", "seed", CHOSEN_BY]  # not each row's long texts
    runs = grid.drop_duplicates("run")[columns].fillna({CHOSEN_BY: 0.0})
    for (task, steps, method), part in runs.groupby(["task", "steps", "method"], sort=False):
        compared = comparable_rates(part)
        best, rates = best_rate(part, value=CHOSEN_BY), sorted(compared["learning_rate"].unique())
        edge = "only" if len(rates) == 1 else {rates[0]: "lowest", rates[-1]: "highest"}.get(best, "")
        rows.append({"task": task, "steps": steps, "method": method, "r": part["r"].iloc[0], "learning_rate": best,
                     "validation_accuracy": compared.loc[compared["learning_rate"] == best, CHOSEN_BY].mean(),
                     "rates": len(rates), "seeds": compared["seed"].nunique(), "edge": edge})
    table = pd.DataFrame(rows, columns=["task", "steps", "method", "r", "learning_rate", CHOSEN_BY, "rates", "seeds",
                                        "edge"])
    return table.astype({"steps": int, "r": int, "learning_rate": float})  # so that one without rows can be merged


def at_chosen_rates(grid: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`rate_grid` at each method's chosen rate, with ``edge`` as :func:`chosen_rates` says it."""
    chosen = chosen_rates(grid)[["task", "steps", "method", "learning_rate", "edge"]]
    return grid.merge(chosen, on=["task", "steps", "method", "learning_rate"])


def with_product(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with ``product``, alpha times learning rate: what the paper's rule keeps constant over the ranks."""
    return runs.assign(product=(runs["lora_alpha"] * runs["learning_rate"]).round(9))
