"""Vanilla LoRA beside its variants, each on its own grid of learning rates (notebook 14), and the study's own numbers.

Profile and seeds in, tables out; what the tables say is compared in :mod:`utils.studies.variants.tables`.
"""

import numpy as np
import pandas as pd

from utils.machine import device_name
from utils.paths import PAPER
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, experiment_runs, identity, run_intruders
from utils.sources.models import BaseModel
from utils.spectra import update_table
from utils.studies.learning.measure import base_causal_lm, task_batches
from utils.studies.variants.tables import LOSS, VANILLA
from utils.tables import cached_table
from utils.training.blocks import block_batches, text_blocks
from utils.training.metrics import causal_loss, token_accuracy
from utils.training.spec import RunSpec
from utils.training.store import Run, base_folder

VERSION = 1
EXPERIMENTS = ("vanilla", "vanilla_ranks", "vanilla_batches", "vanilla_durations")
MEASURED = (LOSS, "token_accuracy", "token_accuracy_se", "general_loss", "n_intruders", "relative_norm")


def published_best() -> pd.DataFrame:
    """Qwen3-0.6B on MetaMathQA, r = 128, batches of 64, best over 13 rates (arXiv 2602.04998v2 and its repository).

    Columns ``method``, ``accuracy`` and ``accuracy_std`` (per cent, three seeds where given), ``learning_rate``,
    ``lambda_ratio`` (largest Hessian eigenvalue of a q_proj adapter at initialisation over vanilla LoRA's, median over
    layers, read off a figure), ``rate_ratio`` (vanilla LoRA's best rate over this one's).
    """
    table = pd.read_csv(PAPER / "lr_matters_qwen.csv")
    vanilla = table.loc[table["method"] == VANILLA, "learning_rate"].iloc[0]
    return table.assign(rate_ratio=vanilla / table["learning_rate"])


@measurement(columns=(*RUN_COLUMNS, "variant", "batch_size", "steps", "trainable_parameters", "train_seconds",
                      "diverged", "loss_nats_per_token", "token_accuracy", "token_accuracy_se", "general_loss",
                      "relative_norm", "n_intruders", "base_loss_nats_per_token", "base_token_accuracy",
                      "base_token_accuracy_se", "base_general_loss", "learning", "forgetting"),
             published=published_best, runs=EXPERIMENTS)
def variant_sweep(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Every run of the study: method by learning rate, and rank, batch size and duration varied.

    Returns
    -------
    pandas.DataFrame
        One row per run, diverged ones included with ``diverged`` True and NaN for what could not be measured:
        ``variant`` (the method without its rank), ``batch_size``, ``steps``, ``trainable_parameters``,
        ``train_seconds``, ``loss_nats_per_token`` and ``token_accuracy`` (held-out, with ``token_accuracy_se``),
        ``general_loss`` (held-out text of the base's pretraining), ``n_intruders`` at the profile's epsilon,
        ``relative_norm`` (mean over matrices of update over W0), ``base_*`` of the untouched base, ``learning``
        (base loss minus loss) and ``forgetting`` (general loss minus the base's).
    """
    rows = []
    for experiment in (name for name in EXPERIMENTS if name in profile.decoder_experiments):
        for run in experiment_runs(profile, experiment, seeds, diverged=True):
            before = _base_row(run.base, run.spec, profile)
            found = dict.fromkeys(MEASURED, np.nan) if run.diverged else _run_row(run, profile)
            rows.append(identity(profile, experiment, run) | _what(run) | found
                        | {f"base_{name}": value for name, value in before.items()}
                        | {"learning": before[LOSS] - found[LOSS],
                           "forgetting": found["general_loss"] - before["general_loss"]})
    return pd.DataFrame(rows)


def variant_name(run: Run) -> str:
    """A method's label without its rank: what a line of a figure is called."""
    return run.spec.method.label.split(" r=")[0]


def _what(run: Run) -> dict:
    measured = run.result["measured"]
    return {"variant": variant_name(run), "batch_size": run.spec.batch_size, "steps": measured["steps"],
            "trainable_parameters": measured["trainable_parameters"], "train_seconds": measured["train_seconds"],
            "diverged": run.diverged}


def _run_row(run: Run, profile: Profile) -> dict:
    def compute(run: Run) -> pd.DataFrame:
        updates = update_table(run.base_matrices(), run.tuned_matrices(), run.factors())
        return pd.DataFrame([_measures(run.causal_lm().to(device_name()), run.base, run.spec, profile=profile)
                             | {"relative_norm": updates["relative_norm"].mean()}])

    found = run.measured("variant", _settings(profile), compute).iloc[0]
    row = {name: found[name] for name in MEASURED if name in found}
    return {LOSS: run.metrics()[LOSS].iloc[-1]} | row | {"n_intruders": run_intruders(run, profile.spectra)}


def _base_row(base: BaseModel, spec: RunSpec, profile: Profile) -> dict:
    def compute() -> pd.DataFrame:
        model = base_causal_lm(base)
        return pd.DataFrame([{LOSS: causal_loss(model, task_batches(spec, base))[LOSS]}
                             | _measures(model, base, spec, profile=profile)])

    tag = _settings(profile) | {"sizes": spec.sizes.model_dump()}
    return cached_table(base_folder(base) / f"variant-{spec.task}.parquet", tag, compute).iloc[0].to_dict()


def _measures(model, base: BaseModel, spec: RunSpec, *, profile: Profile) -> dict:
    settings = profile.decoder_evaluation
    general = text_blocks(settings.general, "heldout", base.folder, length=spec.sizes.max_length)
    return {**token_accuracy(model, task_batches(spec, base)),
            "general_loss": causal_loss(model, block_batches(general[:settings.instruction_blocks]))[LOSS]}


def _settings(profile: Profile) -> dict:
    names = ("general", "instruction_blocks")
    return {"version": VERSION} | {name: getattr(profile.decoder_evaluation, name) for name in names}


def published_rates() -> pd.DataFrame:
    """Some points of the same figure: accuracy of LoRA and PiSSA at other rates (``method``, ``learning_rate``)."""
    return pd.read_csv(PAPER / "lr_matters_rates.csv")


def published_settings() -> pd.DataFrame:
    """Gemma-3-1B's best rate of vanilla LoRA as rank, batch size or samples vary (``varied``, ``value``)."""
    return pd.read_csv(PAPER / "lr_matters_gemma.csv")


def published_borrowed() -> pd.DataFrame:
    """What PiSSA loses at LoRA's best rate and LoRA at PiSSA's, in points of accuracy; the same comparison as ours."""
    rates, best = published_rates(), published_best().set_index("method")
    found = []
    for method, other in (("PiSSA", VANILLA), (VANILLA, "PiSSA")):
        own = rates[rates["method"] == method]
        at = own.iloc[(np.log(own["learning_rate"] / best.loc[other, "learning_rate"])).abs().argmin()]
        found.append({"method": method, "at_the_best_rate_of": other, "learning_rate": at["learning_rate"],
                      "lost_points": best.loc[method, "accuracy"] - at["accuracy"]})
    return pd.DataFrame(found)
