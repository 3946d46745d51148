"""One run, from specification to checkpoints: classification by transformers' Trainer, causal models by TRL."""

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from utils.errors import CourseError, UsageError
from utils.machine import compute_dtype, device_name, peak_memory_gib
from utils.sources.models import BaseModel, resolve
from utils.sources.tasks import load_task, task
from utils.training import preferences
from utils.training.alone import Alone
from utils.training.blocks import block_batches, text_blocks
from utils.training.checkpoints import Checkpoints, missing_checkpoint, planned_steps
from utils.training.cooldown import CLIP, Cooldowns, cooldown_start
from utils.training.data import classification_data, evaluation_batches, labelled_batch, same_rows, tokenizer_of
from utils.training.metrics import Measure, accuracy, causal_loss, predict
from utils.training.optimisers import Lion, decay_weights
from utils.training.spec import RunSpec
from utils.training.trainer import Progress, SealPoints, common_arguments, recorded_rows, resume_point
from utils.training.variants import AllocateRanks, optimiser_of
from utils.training.weights import Tensors, load_into, prepare

GRADIENT_ROWS = 64
Loaded = tuple[nn.Module, Dataset, Measure]


def train(spec: RunSpec, base: BaseModel, folder: Path, *, start: Tensors | None = None,
          reward: nn.Module | None = None, way: Alone | None = None) -> dict:
    """Train a run in `folder`, going on from its last whole resume point.

    Parameters
    ----------
    start : dict of str to Tensor, optional
        The matrices to start from instead of W0: those of the run that ``spec.start`` names.
    reward : nn.Module, optional
        The reward model of online DPO, of the run that ``spec.reward`` names.
    way : Alone, optional
        How the processes that train it work together, where there are several (:mod:`utils.training.sharded`).

    Returns
    -------
    dict
        The ``run`` and ``measured`` blocks of ``result.json``.
    """
    kind, way = task(spec.task).kind, way or Alone()
    with way.in_turn():
        model, rows, measure, steps, total_parameters = built(spec, base, start)
        about = {"run": spec.key, "data_sha256": same_rows(rows, _rows_of(spec, kind))}
    points = folder / way.points
    checkpoints = _checkpoints(spec, folder, steps, measure=measure, rows=rows, way=way)
    hot = cooldown_start(steps) if spec.durations else steps
    # AdaLoRA's averages of importance are in no checkpoint of Trainer's: such a run starts anew when it was cut short.
    resumable = spec.method.variant != "adalora"
    arguments = way.arguments(spec, common_arguments(
        points, steps=hot, batch_size=spec.batch_size, learning_rate=spec.learning_rate,
        warmup_fraction=spec.warmup_fraction * steps / hot, schedule=spec.schedule, seed=spec.seed,
        save_every=max(1, math.ceil(hot / 4)) if resumable else hot + 1,
        bfloat16=compute_dtype(spec.dtype) == torch.bfloat16)
        | {"gradient_accumulation_steps": spec.gradient_accumulation})
    callbacks = [SealPoints(checkpoints, about, way), checkpoints]
    callbacks += [Progress(spec.label)] if way.writes else []
    callbacks += [] if resumable else [AllocateRanks()]
    trainers: dict[str, Callable[..., Trainer]] = {
        "classification": _trainer, "causal": _sft_trainer, "text": _text_trainer,
        "preference": partial(preferences.trainer, reward=reward)}
    trainer = trainers[kind](model, rows, arguments, callbacks=callbacks, base=base, spec=spec)
    trainer.remove_callback(PrinterCallback)
    way.fit(trainer, spec, lambda: _optimiser(model, spec, arguments))
    if device_name() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train(resume_from_checkpoint=way.answer(lambda: resume_point(
        points, about=about, unusable=lambda point: missing_checkpoint(folder, recorded_rows(point)))))
    status = "diverged" if checkpoints.diverged else "done"
    return {"run": {"key": spec.key, "spec": spec.model_dump(mode="json"), "status": status, "error": None,
                    "train_rows": len(rows), "data_sha256": about["data_sha256"]},
            "measured": {"steps": steps, "train_seconds": round(checkpoints.train_seconds, 2),
                         "peak_gib": round(way.together(_peak_gib()), 2), "total_parameters": total_parameters,
                         "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                         "metrics": checkpoints.rows}}


def _rows_of(spec: RunSpec, kind: str) -> dict:
    """What decides which rows a run trains on, and in which order they are stored."""
    decides = {"task", "sizes", "base_revision", "objective", "template", "max_new_tokens"}
    if kind == "text":
        decides |= {"seed", "steps", "batch_size", "gradient_accumulation"}
    return spec.model_dump(mode="json", include=decides) | {"judge": spec.reward.base_revision if spec.reward else None}


def _checkpoints(spec: RunSpec, folder: Path, steps: int, *, measure: Measure, rows: Dataset,
                 way: Alone) -> Checkpoints:
    if spec.durations is None:
        return Checkpoints(folder, planned_steps(steps, spec.checkpoints), measure, scale=spec.method.scale, way=way)
    return Cooldowns(folder, [], measure, scale=spec.method.scale, durations=spec.durations,
                     blocks=rows["input_ids"][:], batch_size=spec.batch_size,
                     accumulation=spec.gradient_accumulation, dtype=compute_dtype(spec.dtype), way=way)


class Built(NamedTuple):
    """A run as it is before its first step: the model with its adapter, the rows, what is measured, how long it is."""

    model: nn.Module
    rows: Dataset
    measure: Measure
    steps: int
    total_parameters: int  # of the base, without an adapter


def built(spec: RunSpec, base: BaseModel, start: Tensors | None = None) -> Built:
    """Load what a run needs and make its method's parameters trainable.

    The seed is set first, so that a model built again is the same one.

    Parameters
    ----------
    spec : RunSpec
    base : BaseModel
        What the specification's reference resolved to.
    start : dict of str to torch.Tensor, optional
        Merged matrices that take the base's place, of the run that this one goes on from.
    """
    set_seed(spec.seed)
    kind = task(spec.task).kind
    loaders: dict[str, Callable[[RunSpec, BaseModel], Loaded]] = {
        "classification": _classifier, "causal": _causal, "text": _text, "preference": preferences.loaded}
    model, rows, measure = loaders[kind](spec, base)
    load_into(model, start or {})
    total_parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = spec.steps or max(1, math.ceil((spec.epochs or 1) * len(rows)
                                           / (spec.batch_size * spec.gradient_accumulation)))
    model = prepare(model, spec.method, causal=kind != "classification" and spec.objective != "reward", steps=steps,
                    backward=lambda model: _backward(model, kind, rows, base=base, spec=spec))
    return Built(model, rows, measure, steps, total_parameters)


def _backward(model: nn.Module, kind: str, rows: Dataset, *, base: BaseModel, spec: RunSpec) -> None:
    """Accumulate the loss's gradient over the first training rows: what LoRA-GA starts from."""
    model = model.to(device_name())
    for batch in first_batches(rows, base, spec, count=GRADIENT_ROWS):
        model(**{name: tensor.to(device_name()) for name, tensor in batch.items()}).loss.backward()


def first_batches(rows: Dataset, base: BaseModel, spec: RunSpec, *, count: int) -> list[dict]:
    """The first `count` training rows of a run in batches of its own size, with labels.

    Parameters
    ----------
    rows : Dataset
        The run's training rows, in their order.
    base : BaseModel
        For its tokenizer.
    spec : RunSpec
        Task and batch size.
    count : int
        Rows; fewer if there are no more.
    """
    first, kind = rows.select(range(min(count, len(rows)))), task(spec.task).kind
    if kind == "text":
        return block_batches(first["input_ids"][:], spec.batch_size)
    if kind == "causal":
        return completion_batches(first.to_pandas(), base.folder, spec.sizes.max_length, batch_size=spec.batch_size)
    return evaluation_batches(first, base.folder)


def one_training(spec: RunSpec, *, steps: int, defaults: bool) -> float:
    """Seconds that the first `steps` of a classification run take, by our settings or by Trainer's defaults.

    With the defaults only what says the same task stays: rows, batch size, learning rate and method. For ``bench``.

    Parameters
    ----------
    spec : RunSpec
        Of a classification task.
    steps : int
        Optimiser steps.
    defaults : bool
        Take Trainer's own settings in place of ours.
    """
    set_seed(spec.seed)
    base = resolve(spec.base)
    model, rows, _ = _classifier(spec, base)
    model = prepare(model, spec.method, causal=False)
    with tempfile.TemporaryDirectory() as folder:
        if defaults:
            arguments = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=spec.batch_size, disable_tqdm=True,
                learning_rate=spec.learning_rate, use_cpu=device_name() == "cpu", report_to="none", seed=spec.seed)
            trainer = Trainer(model=model, args=arguments, train_dataset=rows,
                              processing_class=tokenizer_of(base.folder))
        else:
            arguments = common_arguments(
                Path(folder), steps=steps, batch_size=spec.batch_size, learning_rate=spec.learning_rate,
                warmup_fraction=spec.warmup_fraction, schedule=spec.schedule, seed=spec.seed, save_every=steps + 1)
            trainer = _trainer(model, rows, arguments, callbacks=[], base=base, spec=spec)
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def _peak_gib() -> float:
    """Peak memory: of the GPU's allocator on a GPU, of the process so far on a CPU."""
    if device_name() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory_gib()


def _classifier(spec: RunSpec, base: BaseModel) -> Loaded:
    model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=len(task(spec.task).labels),
                                                               dtype=torch.float32,
                                                               use_safetensors=True, trust_remote_code=False)
    rows, test = classification_data(spec.task, spec.sizes, base.folder)
    batches = evaluation_batches(test, base.folder)
    return model, rows, lambda model: accuracy(*predict(model, batches))


def _trainer(model: nn.Module, rows: Dataset, arguments: dict, *, callbacks: list, base: BaseModel,
             spec: RunSpec) -> Trainer:
    return Trainer(model=model, train_dataset=rows, callbacks=callbacks,
                   optimizers=(_at_once(model, spec, arguments), None),
                   data_collator=DataCollatorWithPadding(tokenizer_of(base.folder)),
                   args=TrainingArguments(**arguments, train_sampling_strategy="group_by_length",
                                          length_column_name="length"))


def _causal_model(spec: RunSpec, base: BaseModel) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, use_safetensors=True,
                                                attention_dropout=spec.attention_dropout, trust_remote_code=False)


def _text(spec: RunSpec, base: BaseModel) -> Loaded:
    """Blocks of a domain, none twice; the seed decides their order, which is then kept to."""
    if spec.steps is None:
        raise UsageError(f"Expected a number of steps for a run on blocks of {spec.task}, got epochs; give 'steps'.")
    length, wanted = spec.sizes.max_length, spec.steps * spec.batch_size * spec.gradient_accumulation
    blocks = text_blocks(spec.task, "train", base.folder, length=length, count=wanted)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(spec.seed)).tolist()
    held_out = block_batches(text_blocks(spec.task, "heldout", base.folder, length=length)[:spec.sizes.test_rows])
    rows = Dataset.from_dict({"input_ids": [blocks[i] for i in order]})
    return _causal_model(spec, base), rows, lambda model: causal_loss(model, held_out)


def _text_trainer(model: nn.Module, rows: Dataset, arguments: dict, *, callbacks: list, base: BaseModel,
                  spec: RunSpec) -> Trainer:
    clip = 0.0 if spec.method.variant == "loft" else CLIP  # LoFT clips the full weight's gradient by itself
    arguments = arguments | {"max_grad_norm": clip, "train_sampling_strategy": "sequential"}
    return Trainer(model=model, train_dataset=rows, callbacks=callbacks, args=TrainingArguments(**arguments),
                   optimizers=(_at_once(model, spec, arguments), None),
                   data_collator=lambda rows: block_batches([row["input_ids"] for row in rows], len(rows))[0])


def _at_once(model: nn.Module, spec: RunSpec, arguments: dict) -> torch.optim.Optimizer | None:
    """The optimiser that a trainer is built with: none beside FSDP, where Trainer refuses it until it is built."""
    return None if arguments.get("fsdp") else _optimiser(model, spec, arguments)


def _optimiser(model: nn.Module, spec: RunSpec, arguments: dict) -> torch.optim.Optimizer | None:
    """What the specification asks for besides Trainer's AdamW, or None."""
    variant = optimiser_of(model, spec.method, arguments)
    if variant is not None or (spec.optimiser == "adamw" and not spec.weight_decay):
        return variant
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = (Lion(trained, lr=spec.learning_rate) if spec.optimiser == "lion" else
                 torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=0.0, fused=True))
    if spec.weight_decay:
        decay_weights(optimiser, spec.weight_decay, towards_start=spec.decay_towards == "base")
    return optimiser


def _causal(spec: RunSpec, base: BaseModel) -> Loaded:
    model = _causal_model(spec, base)
    data = load_task(spec.task, spec.sizes)
    batches = completion_batches(data.test, base.folder, spec.sizes.max_length, batch_size=spec.batch_size)
    if not batches:
        raise CourseError(f"No held-out prompt of {spec.task} leaves room for an answer within {spec.sizes.max_length} "
                          "tokens; raise the task's max_length in the profile.")
    return model, Dataset.from_pandas(data.train, preserve_index=False), lambda model: causal_loss(model, batches)


def _sft_trainer(model: nn.Module, rows: Dataset, arguments: dict, *, callbacks: list, base: BaseModel,
                 spec: RunSpec) -> Trainer:
    from trl import SFTConfig, SFTTrainer  # slow to import, and the classification runs do not need it

    # SFTConfig's own defaults ask for checkpointing; the loss is on the completion because the data says so.
    config = SFTConfig(**arguments, gradient_checkpointing=False, max_length=spec.sizes.max_length)
    return SFTTrainer(model=model, args=config, train_dataset=rows, callbacks=callbacks,
                      optimizers=(_at_once(model, spec, arguments), None),
                      processing_class=tokenizer_of(base.folder))


def completion_batches(frame: pd.DataFrame, folder: Path, max_length: int, *, batch_size: int) -> list[dict]:
    """Prompt and completion as TRL joins them (end token added), labelled on the completion alone.

    Parameters
    ----------
    frame : pandas.DataFrame
        With ``prompt`` and ``completion``.
    folder : Path
        Of the base model, for its tokenizer.
    max_length : int
        Tokens that a row is cut to; a row of which no completion is left is dropped.
    batch_size : int
        Rows at a time, in the frame's order.
    """
    tokenizer, rows = tokenizer_of(folder), []
    for prompt, completion in zip(frame["prompt"], frame["completion"], strict=True):
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + completion + tokenizer.eos_token, truncation=True, max_length=max_length)["input_ids"]
        if len(ids) > start:
            rows.append((ids, [-100] * start + ids[start:]))
    return [labelled_batch(rows[first:first + batch_size], tokenizer.pad_token_id)
            for first in range(0, len(rows), batch_size)]
