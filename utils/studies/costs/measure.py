"""What it costs, measured (notebook 15): training steps, compression, few-shot evaluation, PEFT's benchmark."""

import math
import time
from contextlib import contextmanager
from dataclasses import asdict

import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from utils.evaluation.costs import prediction
from utils.evaluation.harness import item_results, paired_difference
from utils.evaluation.step_memory import Shape, shape_of
from utils.machine import device_name, hardware
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import Seeds, base_spectra
from utils.reporting.selection import pareto_front
from utils.sources.models import BaseModel, resolve
from utils.spectra import count_intruders, vectors_between
from utils.spectra.compress import bits_per_weight, compressed, relative_error
from utils.studies.costs.tables import read_paper
from utils.tables import cached_table
from utils.training.blocks import block_batches, text_blocks
from utils.training.data import tokenizer_of
from utils.training.footprint import available, measure
from utils.training.metrics import causal_loss
from utils.training.recipe import Recipe
from utils.training.store import base_folder
from utils.training.weights import Tensors, base_matrices, load_into

VERSION = 1
GSM8K_ITEMS = 1319  # of the test set that PEFT's benchmark measures accuracy on
CHOICE_METRIC = "acc"
ENCODER_WAYS = ("int8, per row", "int4, per row", "NF4, groups of 64", "50 % pruned", "2:4 pruned", "80 % pruned")
LOSS_LENGTH = 128  # tokens of a held-out block
_WAYS = ({}, {"optimiser": "adamw8bit"}, {"optimiser": "sgd"}, {"optimiser": "adafactor"}, {"checkpointing": True},
         {"method": "lora"}, {"method": "lora", "checkpointing": True}, {"method": "qlora"})


@measurement(columns=("method", "variant", "r", "accuracy", "forgetting", "trained", "memory_gib", "seconds",
                      "learning_rate", "date", "source", "accuracy_se", "on_front", "on_front_3", "near_front",
                      "seed", "profile", "experiment"))
def peft_benchmark(profile: Profile | None = None, seeds: Seeds = None) -> pd.DataFrame:
    """PEFT's public benchmark with its error and its Pareto front: Llama-3.2-3B on MetaMathQA, one seed each.

    Every method has the learning rate that its contributor chose: no sweep stands behind any row. Forgetting is the
    rise of the loss on Wikipedia text in nats per token.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``variant``, ``r`` (NaN where it does not apply), ``accuracy`` (GSM8K), ``accuracy_se`` (binomial,
        1319 items), ``forgetting``, ``trained``, ``memory_gib``, ``seconds``, ``learning_rate``, ``date``, ``source``,
        ``on_front`` (no other is at least as accurate and forgets as little), ``on_front_3`` (with memory as a third
        axis), ``near_front`` (within two standard errors of the front's accuracy at its own forgetting).
    """
    table = read_paper("peft_metamath.csv").copy()
    table["accuracy_se"] = (table["accuracy"] * (1 - table["accuracy"]) / GSM8K_ITEMS) ** 0.5
    table["remembering"], table["saving"] = -table["forgetting"], -table["memory_gib"]
    table["on_front"] = pareto_front(table, x="remembering", y="accuracy")
    table["on_front_3"] = [not _beaten(row, table) for row in table.to_dict("records")]
    front = table[table["on_front"]]
    best = [front.loc[front["forgetting"] <= level, "accuracy"].max() for level in table["forgetting"]]
    table["near_front"] = table["accuracy"] >= pd.Series(best, index=table.index) - 2 * table["accuracy_se"]
    table = table.drop(columns=["remembering", "saving"])
    return table.assign(seed=0, profile=profile.profile if profile else "published", experiment="metamath")


def _beaten(row: dict, table: pd.DataFrame) -> bool:
    columns = ["accuracy", "remembering", "saving"]
    values, own = table[columns].to_numpy(), [row[column] for column in columns]
    return bool(((values >= own).all(1) & (values > own).any(1)).any())


def recipes(profile: Profile) -> list[Recipe]:
    """The recipes that are predicted, and measured where this machine can."""
    costs = profile.costs
    common = {"r": costs.r, "batch": costs.batch_size, "length": costs.length,
              "precision": "bfloat16" if device_name() == "cuda" else "float32"}
    return [Recipe(**common | way) for way in _WAYS]


def measured_shape(profile: Profile) -> Shape:
    """The shape of the model that footprints are measured on."""
    return shape_of(AutoConfig.from_pretrained(resolve(profile.costs.model).folder, trust_remote_code=False))


@measurement(columns=("model", "recipe", "method", "optimiser", "checkpointing", "batch", "length", "trained",
                      "moment", "predicted_gib", "weights_gib", "adapter_gib", "gradients_gib", "optimiser_gib",
                      "activations_gib", "temporary_gib", "flops_per_token", "peak_gib", "live_gib",
                      "seconds_per_step", "cpu_seconds_per_step", "tokens_per_second", "trained_measured",
                      "threads", "device", "note", "ratio", "time_ratio", "flops_ratio", "seed", "profile",
                      "experiment"))
def footprints(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Predicted and measured memory and time of a few training steps, a row per recipe.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`utils.evaluation.costs.prediction`; ``trained_measured``, ``peak_gib``, ``live_gib``,
        ``seconds_per_step``, ``cpu_seconds_per_step``, ``tokens_per_second``, ``threads``, ``device``, ``note`` of
        :func:`utils.training.footprint.measure`; ``ratio`` (predicted over measured), ``time_ratio`` and
        ``flops_ratio`` (to full fine-tuning with AdamW; of processor time on a CPU).
    """
    base, shape = resolve(profile.costs.model), measured_shape(profile)
    rows = []
    for recipe in recipes(profile):
        note = available(recipe) or _left_out(profile, recipe)
        found = {"note": note} if note else _kept_footprint(base, recipe)
        rows.append({"model": base.name} | prediction(shape, recipe) | {
            "trained_measured" if name == "trained" else name: value for name, value in found.items()})
    table = pd.DataFrame(rows)
    table["ratio"] = table["predicted_gib"] / table["peak_gib"]
    clock = "seconds_per_step" if device_name() == "cuda" else "cpu_seconds_per_step"
    table["time_ratio"] = table[clock] / table[clock].iloc[0]
    table["flops_ratio"] = table["flops_per_token"] / table["flops_per_token"].iloc[0]
    return table.assign(seed=0, profile=profile.profile, experiment="footprint")


def _left_out(profile: Profile, recipe: Recipe) -> str:
    """Where results are no evidence, two recipes alone are measured: each takes a process of its own."""
    plain = recipe.optimiser == "adamw" and not recipe.checkpointing
    return "" if profile.evidence or plain else f"not measured at profile {profile.profile}"


def _kept_footprint(base: BaseModel, recipe: Recipe) -> dict:
    settings = {"version": VERSION, "recipe": asdict(recipe), "hardware": hardware()}
    name = "-".join(str(value) for value in asdict(recipe).values())

    def compute() -> pd.DataFrame:
        print(f"measuring {recipe.label} in a process of its own", flush=True)
        return pd.DataFrame([measure(base.folder, recipe)])

    return cached_table(base_folder(base) / f"footprint-{name}.parquet", settings, compute).iloc[0].to_dict()


@measurement(columns=("model", "matrices", "way", "bits", "relative_error", "n_intruders", "lowest_cosine",
                      "loss_nats_per_token", "base_loss", "loss_rise", "seed", "profile", "experiment"))
def compression(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """What quantising and pruning do to the base of continued pretraining: size, error, spectrum, held-out loss.

    Returns
    -------
    pandas.DataFrame
        One row per way: ``way``, ``bits`` per weight, ``relative_error`` (Frobenius, mean over matrices),
        ``n_intruders`` (at the profile's epsilon and k, over all matrices), ``lowest_cosine`` (of the k leading
        vectors of any matrix), ``loss_nats_per_token``, ``base_loss``, ``loss_rise``, ``model``, ``matrices``. The
        last row is Gaussian noise of the error of four bits, matrix by matrix.
    """
    base = resolve(profile.continued)
    settings = {"version": VERSION, "k": profile.spectra.k, "epsilon": profile.spectra.epsilon,
                "blocks": profile.decoder_evaluation.blocks, "general": profile.decoder_evaluation.general}
    table = cached_table(base_folder(base) / "compression.parquet", settings, lambda: _compression(base, profile))
    return table.assign(seed=0, profile=profile.profile, experiment="compression")


def _compression(base: BaseModel, profile: Profile) -> pd.DataFrame:
    matrices, batches = base_matrices(base.folder), _general_batches(base, profile)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32,
                                                 use_safetensors=True, trust_remote_code=False).to(device_name()).eval()
    untouched, rows = causal_loss(model, batches)["loss_nats_per_token"], []
    for way, after in compressed(matrices).items():
        loss = causal_loss(load_into(model, after), batches)["loss_nats_per_token"]
        errors = [relative_error(matrices[name], matrix) for name, matrix in after.items()]
        rows.append({"model": base.name, "matrices": len(matrices), "way": way, "bits": bits_per_weight(matrices, way),
                     "relative_error": sum(errors) / len(errors)} | _intruders(matrices, after, profile) | {
                         "loss_nats_per_token": loss, "base_loss": untouched, "loss_rise": loss - untouched})
    return pd.DataFrame(rows)


def _general_batches(base: BaseModel, profile: Profile) -> list[dict]:
    settings = profile.decoder_evaluation
    blocks = text_blocks(settings.general, "heldout", base.folder, length=LOSS_LENGTH)[:settings.blocks]
    return block_batches(blocks)


def _intruders(before: Tensors, after: Tensors, profile: Profile) -> dict:
    k, epsilon = profile.spectra.k, profile.spectra.epsilon
    vectors = vectors_between(before, after, k=k, epsilons=(epsilon,), spectrum=base_spectra().spectrum)
    return {"n_intruders": int(count_intruders(vectors, [epsilon], [k])["n_intruders"].iloc[0]),
            "lowest_cosine": float(vectors["max_cosine"].min())}


def compressed_encoder(profile: Profile) -> pd.DataFrame:
    """Some ways on a second base, the encoder: ``way``, ``relative_error``, ``n_intruders``, ``lowest_cosine``."""
    base = resolve(profile.encoder)
    ways = ENCODER_WAYS if profile.evidence else ENCODER_WAYS[:2]
    settings = {"version": VERSION, "k": profile.spectra.k, "epsilon": profile.spectra.epsilon, "ways": list(ways)}

    def compute() -> pd.DataFrame:
        matrices, rows = base_matrices(base.folder), []
        for way in ways:
            after = compressed(matrices, ways=(way,))[way]
            errors = [relative_error(matrices[name], matrix) for name, matrix in after.items()]
            rows.append({"model": base.name, "matrices": len(matrices), "way": way,
                         "relative_error": sum(errors) / len(errors)} | _intruders(matrices, after, profile))
        return pd.DataFrame(rows)

    return cached_table(base_folder(base) / "compression.parquet", settings, compute)


@measurement(columns=("task", "shots", "num_fewshot", "accuracy", "standard_error", "rows", "tokens",
                      "tokens_per_question", "seconds", "longest", "difference", "difference_se", "window",
                      "token_ratio", "seed", "profile", "experiment"))
def evaluation_costs(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """What worked examples before each question cost and change, on the choice tasks that forgetting is measured with.

    Returns
    -------
    pandas.DataFrame
        One row per task and number of examples: ``task``, ``shots`` (as asked), ``num_fewshot`` (as the task took it),
        ``accuracy``, ``standard_error``, ``rows``, ``tokens`` (that the model was given, padding included),
        ``tokens_per_question``, ``seconds``, ``token_ratio`` (to the fewest examples), ``longest`` (tokens of a row),
        ``window``, and ``difference`` in accuracy on the same items with its ``difference_se``.
    """
    base = resolve(profile.continued)
    settings = {"version": VERSION, "shots": list(profile.costs.shots), "rows": profile.costs.choice_rows,
                "tasks": list(profile.decoder_evaluation.choice_tasks)}
    table = cached_table(base_folder(base) / "few-shot.parquet", settings, lambda: _few_shot(base, profile))
    return table.assign(seed=0, profile=profile.profile, experiment="few_shot")


def _few_shot(base: BaseModel, profile: Profile) -> pd.DataFrame:
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32,
                                                 use_safetensors=True, trust_remote_code=False).to(device_name()).eval()
    tokenizer, rows = tokenizer_of(base.folder), []
    for task in profile.decoder_evaluation.choice_tasks:
        first = None
        for shots in profile.costs.shots:
            with _counted(model) as seen:
                items = item_results(model, tokenizer, [task], limit=profile.costs.choice_rows, num_fewshot=shots)
            items = items[items["metric"] == CHOICE_METRIC]
            first = items if first is None else first
            rows.append(_shot_row(task, shots, items=items, first=first, seen=seen)
                        | {"window": model.config.max_position_embeddings})
    table = pd.DataFrame(rows)
    return table.assign(token_ratio=table["tokens"] / table.groupby("task")["tokens"].transform("min"))


def _shot_row(task: str, shots: int, *, items: pd.DataFrame, first: pd.DataFrame, seen: dict) -> dict:
    again = items.assign(num_fewshot=first["num_fewshot"].iloc[0])  # paired by item, whatever stands before it
    pair = paired_difference(first, again).iloc[0]
    return {"task": task, "shots": shots, "num_fewshot": int(items["num_fewshot"].iloc[0]),
            "accuracy": items["value"].mean(), "standard_error": items["value"].sem(), "rows": len(items),
            "tokens": seen["tokens"], "tokens_per_question": seen["tokens"] / len(items), "seconds": seen["seconds"],
            "longest": seen["longest"], "difference": pair["difference"], "difference_se": pair["standard_error"]}


@contextmanager
def _counted(model: nn.Module):
    """Count the tokens that a model is given and the seconds that pass."""
    seen, started = {"tokens": 0, "longest": 0, "seconds": math.nan}, time.perf_counter()

    def count(module, arguments, keywords):
        ids = keywords.get("input_ids", arguments[0] if arguments else None)
        seen["tokens"] += ids.numel()
        seen["longest"] = max(seen["longest"], ids.shape[1])

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
        seen["seconds"] = time.perf_counter() - started
