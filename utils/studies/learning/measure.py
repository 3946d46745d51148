"""Learning against forgetting on causal models (notebooks 09, 10 and 13): profile and seeds in, tidy tables out.

Learning is held-out loss on the new domain and, for mathematics, exact match. Forgetting is the rise of the loss on
held-out text of the base's own pretraining, a cloze choice through the evaluation harness, and the KL from the base.
"""

import re
from functools import lru_cache

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from utils.evaluation.distance import kl_from_base
from utils.evaluation.exact import exact_match
from utils.evaluation.harness import FORGETTING_METRICS, choice_accuracy, remembering
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import DecoderEvaluation
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, experiment_runs, identity
from utils.sources.domains import mathematics_questions
from utils.sources.models import BaseModel
from utils.sources.tasks import load_task, task
from utils.spectra.controls import random_updates
from utils.studies.learning.published import published_curves
from utils.tables import cached_table
from utils.training.blocks import block_batches, text_blocks
from utils.training.data import tokenizer_of
from utils.training.metrics import causal_loss
from utils.training.spec import RunSpec
from utils.training.store import Run, base_folder
from utils.training.train import completion_batches

VERSION = 1
SETTINGS = ("targets", "optimiser", "batch_size", "weight_decay", "decay_towards", "attention_dropout", "scaling")
ASKED = ("mathematics", "mathematics-shuffled", "open-web-math")  # tasks whose models answer generated questions
MAIN = ("code", "mathematics")
SHORT = ("rates", "optimisers", "alpha", "modules", "batches", "scalings")
COLUMNS = (*RUN_COLUMNS, "optimiser", "batch_size", "weight_decay", "decay_towards", "attention_dropout", "targets",
           "scaling", "step", "loss_nats_per_token", "general_loss", "choice", "choice_se", "exact_match",
           "kl_nats_per_token", "train_tokens", "train_seconds", "base_general_loss", "base_choice", "base_choice_se",
           "base_exact_match", "base_loss_nats_per_token", "forgetting", "learning")
CHOSEN = (*MAIN, "regularisers", "instruction")  # whose last checkpoints answer multiple choice, which takes longest


@measurement(columns=COLUMNS, published=published_curves, runs=MAIN)
def learning_curves(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Continued pretraining on each domain: one row per run and cooled-down duration (Figs 1 and 2, A and C)."""
    return _table(profile, seeds, MAIN)


@measurement(columns=COLUMNS, published=published_curves, runs=("instruction*",))
def instruction_curves(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Instruction tuning: one row per run and checkpoint, with the rates tried (Figs 1 and 2, B and D)."""
    return _table(profile, seeds, tuple(name for name in profile.decoder_experiments if name.startswith("instruction")))


@measurement(columns=COLUMNS, runs=("regularisers", "code"))
def regulariser_curves(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Weight decay and attention dropout beside plain full fine-tuning and LoRA, on code (Fig 4)."""
    table = _table(profile, seeds, ("regularisers", "code"))
    durations = table.loc[table["experiment"] == "regularisers", "step"].unique()
    table["method"] = [_regularised(row) for row in table.to_dict("records")]
    return table[table["step"].isin(durations)].reset_index(drop=True)


@measurement(columns=COLUMNS, runs=SHORT)
def sensitivity(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Every short run on code: rate, optimiser, alpha, modules, batch, scaling (Figs S1 to S3 and 7)."""
    return _table(profile, seeds, SHORT)


@measurement(columns=COLUMNS, runs=("shuffled",))
def shuffled_answers(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """The control of the mathematics: trained on questions whose answers belong to others."""
    return _table(profile, seeds, tuple(name for name in profile.decoder_experiments if name == "shuffled"))


def _regularised(row: dict) -> str:
    if row["weight_decay"]:
        return f"full, decay {row['weight_decay']:g} to {'W0' if row['decay_towards'] == 'base' else 'zero'}"
    return f"full, attention dropout {row['attention_dropout']:g}" if row["attention_dropout"] else row["method"]


def _table(profile: Profile, seeds: Seeds, experiments: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for experiment in experiments:
        for run in experiment_runs(profile, experiment, seeds):
            before = base_measures(run.base, run.spec, profile.decoder_evaluation)
            for step in run.steps:
                row = identity(profile, experiment, run) | _settings(run.spec) | {"step": step}
                choice = experiment in CHOSEN and step == run.steps[-1]
                row |= run_measures(run, step, profile.decoder_evaluation, choice=choice)
                row |= {f"base_{name}": value for name, value in before.items()}
                rows.append(row | {"forgetting": row["general_loss"] - row["base_general_loss"],
                                   "learning": row["base_loss_nats_per_token"] - row["loss_nats_per_token"]})
    return pd.DataFrame(rows)


def _settings(spec: RunSpec) -> dict:
    """What else the sensitivity of a run is about; `scaling` names alpha / r or alpha / sqrt(r)."""
    scaling = "" if spec.method.kind == "full" else "alpha / sqrt(r)" if spec.method.rank_stabilised else (
        "alpha = 2r" if spec.method.lora_alpha == 2 * spec.method.r else "alpha / r")
    values = {name: getattr(spec, name) for name in SETTINGS if name not in ("targets", "scaling")}
    return values | {"targets": spec.method.targets, "scaling": scaling}


def run_measures(run: Run, step: int, settings: DecoderEvaluation, *, choice: bool) -> dict:
    """Everything about one checkpoint, kept beside the run; multiple choice where `choice` says so."""
    def compute(run: Run) -> pd.DataFrame:
        model, base = run.causal_lm(step).to(device_name()), base_causal_lm(run.base)
        batches = task_batches(run.spec, run.base)
        found = measures(model, run.base, run.spec, settings=settings, choice=choice)
        found["kl_nats_per_token"] = kl_from_base(base, model, batches[:settings.kl_batches])["kl_nats_per_token"]
        if run.spec.task.endswith("-shuffled"):  # the run's own held-out rows have wrong answers as well
            found["loss_nats_per_token"] = causal_loss(model, batches)["loss_nats_per_token"]
        return pd.DataFrame([found])

    name = f"learning-{step:06d}" + ("-choice" if choice else "")
    found = run.measured(name, _tag(settings), compute).iloc[0]
    row = next(row for row in run.result["measured"]["metrics"] if row["step"] == step)
    return {"loss_nats_per_token": row["loss_nats_per_token"]} | found.drop(list(run.spec.columns)).to_dict() | {
        "train_tokens": _train_tokens(run.spec, step), "train_seconds": row["train_seconds"]}


def _train_tokens(spec: RunSpec, step: int) -> int:
    """Tokens seen by a step in continued pretraining; rows seen in instruction tuning, whose rows differ in length."""
    rows = step * spec.batch_size * spec.gradient_accumulation
    return rows * spec.sizes.max_length if task(spec.task).kind == "text" else rows


def base_measures(base: BaseModel, spec: RunSpec, settings: DecoderEvaluation) -> dict:
    """The same of the untouched base, kept in the cache; its own loss on the task included."""
    def compute() -> pd.DataFrame:
        model = base_causal_lm(base)
        return pd.DataFrame([measures(model, base, spec, settings=settings, choice=True)
                             | {"loss_nats_per_token": causal_loss(model, task_batches(spec, base))[
                                 "loss_nats_per_token"]}])

    tag = _tag(settings) | {"sizes": spec.sizes.model_dump()}
    return cached_table(base_folder(base) / f"learning-{spec.task}.parquet", tag, compute).iloc[0].to_dict()


def measures(model: nn.Module, base: BaseModel, spec: RunSpec, *, settings: DecoderEvaluation, choice: bool) -> dict:
    """General loss, multiple choice and, for mathematics, exact match of one model; NaN where not measured."""
    continued, tokenizer = task(spec.task).kind == "text", tokenizer_of(base.folder)
    blocks = settings.blocks if continued else settings.instruction_blocks
    general = text_blocks(settings.general, "heldout", base.folder, length=spec.sizes.max_length)[:blocks]
    found = {"general_loss": causal_loss(model, block_batches(general))["loss_nats_per_token"],
             "choice": float("nan"), "choice_se": float("nan"), "exact_match": float("nan")}
    if choice and (continued or settings.instruction_choice):
        table = choice_accuracy(model, tokenizer, settings.choice_tasks, limit=settings.choice_rows)
        mean = remembering(table, {name: FORGETTING_METRICS.get(name, "acc") for name in settings.choice_tasks})
        found |= {"choice": mean["value"], "choice_se": mean["standard_error"]}
    if spec.task in ASKED:
        asked = mathematics_questions("heldout").head(settings.questions)
        found["exact_match"] = exact_match(model, tokenizer, asked)["right"].mean()
    return found


def _tag(settings: DecoderEvaluation) -> dict:
    """What the numbers depend on; how generations are drawn is none of it."""
    names = ("general", "blocks", "instruction_blocks", "kl_batches", "questions", "choice_tasks", "choice_rows",
             "instruction_choice")
    return {"version": VERSION} | {name: settings.model_dump(mode="json")[name] for name in names}


@lru_cache(maxsize=2)
def base_causal_lm(base: BaseModel) -> nn.Module:
    """The untouched causal base on this machine's device."""
    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32,
                                                use_safetensors=True, trust_remote_code=False).to(device_name()).eval()


@lru_cache(maxsize=4)
def task_batches(spec: RunSpec, base: BaseModel) -> list[dict]:
    """Held-out batches of the run's own task."""
    if task(spec.task).kind == "text":
        name = spec.task.removesuffix("-shuffled")  # the control is judged on the right answers
        blocks = text_blocks(name, "heldout", base.folder, length=spec.sizes.max_length)
        return block_batches(blocks[:spec.sizes.test_rows])
    rows = load_task(spec.task, spec.sizes).test
    return completion_batches(rows, base.folder, spec.sizes.max_length, batch_size=16)


@measurement(columns=(*RUN_COLUMNS, "control", "general_loss", "loss_nats_per_token", "kl_nats_per_token",
                      "forgetting",), runs=("code",))
def norm_controls(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Forgetting after a random update of the trained one's norm, matrix by matrix: full rank, and the run's own rank.

    Returns
    -------
    pandas.DataFrame
        Of the last step of every run on code, one row each for ``control`` = trained, random (full rank) and, for LoRA,
        random (rank r): ``general_loss``, ``forgetting``, ``kl_nats_per_token``, ``loss_nats_per_token``.
    """
    rows = []
    for run in experiment_runs(profile, "code", seeds):
        before = base_measures(run.base, run.spec, profile.decoder_evaluation)
        controls = ["trained", "random, full rank"] + (["random, rank r"] if run.spec.method.r else [])
        for control in controls:
            table = run.measured("norm-control-" + re.sub(r"\W+", "-", control),
                                 _tag(profile.decoder_evaluation), lambda run, control=control: _after_random(
                                     run, profile.decoder_evaluation, control))
            found = table.iloc[0].drop(list(run.spec.columns)).to_dict()
            rows.append(identity(profile, "code", run) | {"control": control} | found
                        | {"forgetting": found["general_loss"] - before["general_loss"]})
    return pd.DataFrame(rows)


def _after_random(run: Run, settings: DecoderEvaluation, control: str) -> pd.DataFrame:
    tuned, base = run.tuned_matrices(), run.base_matrices()
    if control != "trained":
        rank = run.spec.method.r if control.endswith("rank r") else None
        tuned = random_updates(base, tuned, rank=rank, seed=run.spec.seed)
    model = run.causal_lm(matrices=tuned).to(device_name())
    batches = task_batches(run.spec, run.base)[:settings.kl_batches]
    found = measures(model, run.base, run.spec, settings=settings, choice=False)
    return pd.DataFrame([{"general_loss": found["general_loss"],
                          "loss_nats_per_token": causal_loss(model, batches)["loss_nats_per_token"],
                          "kl_nats_per_token": kl_from_base(base_causal_lm(run.base), model, batches)[
                              "kl_nats_per_token"]}])
