"""One run, from specification to checkpoints: classification by transformers' Trainer, causal models by TRL."""

import json
import math
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DataCollatorWithPadding, \
    PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from utils.files import replacing, sha256_of
from utils.sources.models import BaseModel, resolve
from utils.sources.tasks import load_task, task
from utils.training.data import classification_data, evaluation_batches, rows_checksum, tokenizer_of
from utils.training.device import compute_dtype, device_name, limit_threads, quiet_libraries
from utils.training.metrics import accuracy, causal_loss, predict
from utils.training.spec import RunSpec
from utils.training.trainer import MarkComplete, Progress, common_arguments, resume_point
from utils.training.variants import AllocateRanks, optimiser_of
from utils.training.weights import Tensors, load_into, prepare, trained_tensors

METRICS = "metrics.jsonl"


class Checkpoints(TrainerCallback):
    """At each planned step: save the trained tensors, measure, append to ``metrics.jsonl``.

    Time is counted from step begin to step end, so that neither saving nor evaluating is in it. A resumed run drops
    the rows of steps that it will do again.
    """

    def __init__(self, folder: Path, steps: list[int], measure, scale: float):
        self.folder, self.steps, self.measure, self.scale = folder, set(steps), measure, scale
        self.rows, self.train_seconds, self.diverged = read_metrics(folder), 0.0, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        self.train_seconds = self.rows[-1]["train_seconds"] if self.rows else 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.train_seconds += time.perf_counter() - self.started
        if state.global_step not in self.steps:
            return
        tensors = trained_tensors(model, self.scale)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            self.diverged = control.should_training_stop = True
            return
        path = checkpoint_path(self.folder, state.global_step)
        with replacing(path) as temporary:
            save_file(tensors, temporary)
        row = {"step": state.global_step, "train_seconds": round(self.train_seconds, 2), **self.measure(model),
               "file": path.name, "sha256": sha256_of(path)}
        self.rows.append(row)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows)
        with replacing(self.folder / METRICS) as temporary:
            temporary.write_text(text, encoding="utf-8")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the trained tensors of a step lie."""
    return folder / "checkpoints" / f"step-{step:06d}.safetensors"


def read_metrics(folder: Path) -> list[dict]:
    """The rows of ``metrics.jsonl``, oldest first; empty where there is none yet."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def planned_steps(total: int, count: int) -> list[int]:
    """`count` steps evenly spaced up to and with the last.

    >>> planned_steps(100, 4)
    [25, 50, 75, 100]
    >>> planned_steps(3, 5)
    [1, 2, 3]
    """
    return sorted({max(1, round(total * part / count)) for part in range(1, count + 1)})


def train(spec: RunSpec, base: BaseModel, folder: Path, start: Tensors | None = None) -> dict:
    """Train a run in `folder`, going on from its last whole resume point.

    Parameters
    ----------
    start : dict of str to Tensor, optional
        The matrices to start from instead of W0: those of the run that ``spec.start`` names.

    Returns
    -------
    dict
        The ``run`` and ``measured`` blocks of ``result.json``.
    """
    limit_threads()
    quiet_libraries()
    set_seed(spec.seed)
    causal = task(spec.task).kind == "causal"
    model, rows, measure = (_causal if causal else _classifier)(spec, base)
    load_into(model, start or {})
    total_parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = spec.steps or max(1, math.ceil(spec.epochs * len(rows) / spec.batch_size))
    model = prepare(model, spec.method, causal=causal, steps=steps)
    checkpoints = Checkpoints(folder, planned_steps(steps, spec.checkpoints), measure, spec.method.scale)
    # AdaLoRA's averages of importance are in no checkpoint of Trainer's: such a run starts anew when it was cut short.
    resumable = spec.method.variant != "adalora"
    arguments = common_arguments(
        folder / "resume", steps=steps, batch_size=spec.batch_size, learning_rate=spec.learning_rate,
        warmup_fraction=spec.warmup_fraction, schedule=spec.schedule, seed=spec.seed,
        save_every=max(1, math.ceil(steps / 4)) if resumable else steps + 1,
        bfloat16=compute_dtype(spec.dtype) == torch.bfloat16)
    callbacks = [checkpoints, MarkComplete(), Progress(f"{spec.task}, {spec.method.label}, seed {spec.seed}")]
    callbacks += [] if resumable else [AllocateRanks()]
    build = _sft_trainer if causal else _trainer
    trainer = build(model, rows, arguments, callbacks, base, spec)
    trainer.remove_callback(PrinterCallback)
    if device_name() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train(resume_from_checkpoint=resume_point(folder / "resume"))
    status = "diverged" if checkpoints.diverged else "done"
    return {"run": {"key": spec.key, "spec": spec.model_dump(mode="json"), "status": status, "error": None,
                    "train_rows": len(rows), "data_sha256": rows_checksum(rows)},
            "measured": {"steps": steps, "train_seconds": round(checkpoints.train_seconds, 2),
                         "peak_gib": round(_peak_gib(), 2), "total_parameters": total_parameters,
                         "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                         "metrics": checkpoints.rows}}


def one_training(spec: RunSpec, *, steps: int, defaults: bool) -> float:
    """Seconds that the first `steps` of a classification run take, by our settings or by Trainer's defaults.

    With the defaults only what says the same task stays: rows, batch size, learning rate and method. For ``bench``.
    """
    limit_threads()
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
            trainer = _trainer(model, rows, arguments, [], base, spec)
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def _peak_gib() -> float:
    """Peak memory: of the GPU's allocator on a GPU, of the process so far on a CPU."""
    if device_name() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _classifier(spec: RunSpec, base: BaseModel) -> tuple[nn.Module, Dataset, object]:
    model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=len(task(spec.task).labels),
                                                               dtype=torch.float32, use_safetensors=True)
    rows, test = classification_data(spec.task, spec.sizes, base.folder)
    batches = evaluation_batches(test, base.folder)
    return model, rows, lambda model: accuracy(*predict(model, batches))


def _trainer(model, rows: Dataset, arguments: dict, callbacks: list, base: BaseModel, spec: RunSpec) -> Trainer:
    return Trainer(model=model, train_dataset=rows, callbacks=callbacks,
                   optimizers=(optimiser_of(model, spec.method, arguments), None),
                   data_collator=DataCollatorWithPadding(tokenizer_of(base.folder)),
                   args=TrainingArguments(**arguments, train_sampling_strategy="group_by_length",
                                          length_column_name="length"))


def _causal(spec: RunSpec, base: BaseModel) -> tuple[nn.Module, Dataset, object]:
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, use_safetensors=True)
    data = load_task(spec.task, spec.sizes)
    batches = completion_batches(data.test, base.folder, spec.sizes.max_length, spec.batch_size)
    return model, Dataset.from_pandas(data.train, preserve_index=False), lambda model: causal_loss(model, batches)


def _sft_trainer(model, rows: Dataset, arguments: dict, callbacks: list, base: BaseModel, spec: RunSpec) -> Trainer:
    from trl import SFTConfig, SFTTrainer  # slow to import, and the classification runs do not need it

    # SFTConfig's own defaults ask for checkpointing; the loss is on the completion because the data says so.
    config = SFTConfig(**arguments, gradient_checkpointing=False, max_length=spec.sizes.max_length)
    return SFTTrainer(model=model, args=config, train_dataset=rows, callbacks=callbacks,
                      optimizers=(optimiser_of(model, spec.method, arguments), None),
                      processing_class=tokenizer_of(base.folder))


def completion_batches(frame, folder: Path, max_length: int, batch_size: int) -> list[dict]:
    """Prompt and completion as TRL joins them (end token added), labelled on the completion alone."""
    tokenizer, rows = tokenizer_of(folder), []
    for prompt, completion in zip(frame["prompt"], frame["completion"], strict=True):
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + completion + tokenizer.eos_token, truncation=True, max_length=max_length)["input_ids"]
        if len(ids) > start:
            rows.append((ids, [-100] * start + ids[start:]))
    batches = []
    for first in range(0, len(rows), batch_size):
        part = rows[first:first + batch_size]
        longest = max(len(ids) for ids, _ in part)
        batches.append({
            "input_ids": torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in part]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in part]),
            "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in part])})
    return batches
