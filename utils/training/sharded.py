"""A run that is bigger than a card: trained by several processes that hold its model together, by PyTorch's FSDP2.

Each process holds a part of every matrix, of its gradient and of the optimiser's state, and puts a layer together only
while it computes it. Trainer and accelerate do that; here is what makes such a run the same run as one that a single
process trains: an optimiser step sees the same rows, a loss is the mean over the same tokens, and the trained tensors
are put together and stored under the same names. So its key is the same, too; provenance says how it was trained.

The first process alone holds the run's lock, writes and seals; the others do as it tells them. What starts them, and
what each does then, is in :mod:`utils.training.together`.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType, enable_fsdp_ram_efficient_loading
from datasets import Dataset, concatenate_datasets
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.errors import UsageError
from utils.machine import available_cores, device_name
from utils.sources.tasks import task
from utils.training.alone import Alone
from utils.training.metrics import Measure
from utils.training.spec import RunSpec

KINDS = ("classification", "causal", "text")
PATIENCE = timedelta(minutes=30)  # for a step of all; one that takes longer has lost a process
NO_END = timedelta(days=365)  # for what one process does alone: waiting for a lock, fetching a model
NOT_COUNTED = -100  # the label that no loss counts


def refuse(spec: RunSpec, processes: int) -> None:
    """UsageError if a run cannot be trained by so many processes, before anything is loaded."""
    method = spec.method
    kind, total = task(spec.task).kind, spec.batch_size * spec.gradient_accumulation
    unable = {
        f"a task of kind '{kind}'": kind not in KINDS,
        f"the variant '{method.variant}'": method.variant != "lora",
        "a decay towards the base": bool(spec.weight_decay) and spec.decay_towards == "base"}
    if refused := next((what for what, found in unable.items() if found), None):
        raise UsageError(f"Expected full fine-tuning or LoRA on {', '.join(KINDS[:-1])} or {KINDS[-1]} for run "
                         f"{spec.key}, got {refused}; train it in one process: `train`.")
    if processes < 2 or total % processes:
        fitting = ", ".join(str(count) for count in range(2, total + 1) if total % count == 0)
        raise UsageError(f"Expected a number of processes that shares the {total} rows of a step of run {spec.key} "
                         f"({fitting or 'there is none'}), got {processes}; choose another.")


def most_processes() -> int:
    """How many processes can train on this machine: one for each GPU, or for each core where there is none."""
    return torch.cuda.device_count() if device_name() == "cuda" else available_cores()


def split(spec: RunSpec, processes: int) -> tuple[int, int]:
    """Rows that all processes take together at a time, and how many times for one step.

    None of them takes more at a time than the run does where it is trained alone, for memory's sake.
    """
    each = spec.batch_size * spec.gradient_accumulation // processes
    at_a_time = _at_a_time(each, spec.batch_size)
    return at_a_time * processes, each // at_a_time


def _at_a_time(each: int, most: int) -> int:
    return max(rows for rows in range(1, most + 1) if each % rows == 0)


# The processes --------------------------------------------------------------------------------------------------------


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _processors_as_gpus() -> None:
    """Let accelerate treat processes without a GPU as it treats those with one, for it shards nothing else.

    PyTorch's FSDP2 itself does, by gloo; but where accelerate (1.15, ``AcceleratorState.__init__``) finds processes
    on a CPU, it leaves the FSDP plugin that it is given aside, and Trainer would wrap the model in DDP.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    dist.init_process_group("gloo", timeout=PATIENCE)
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


class Sharded(Alone):
    """One of the processes that train a run together; the first of them writes.

    Attributes
    ----------
    rank, processes : int
    held : float
        Share of the model's parameters in the process that holds most of them, when the last checkpoint was measured.
    """

    points = "resume/sharded"  # Trainer cannot go on from a point of another kind

    def __init__(self) -> None:
        enable_fsdp_ram_efficient_loading()  # only the first process reads weights, the others get them from it
        if device_name() == "cpu":
            _processors_as_gpus()
        PartialState(timeout=PATIENCE)
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=NO_END)
        self.writes, self.held = self.rank == 0, math.nan

    def tell(self, what: Any = None) -> Any:
        """Any object from the first process to all: each returns it."""
        content = [what]
        dist.broadcast_object_list(content, src=0, group=self.group)
        return content[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process through the block, then the others."""
        if not self.writes:
            self.wait()
        yield
        if self.writes:
            self.wait()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        dist.barrier(group=self.group)

    def answer(self, find: Callable[[], Any]) -> Any:
        """What `find` returns in the first process."""
        return self.tell(find() if self.writes else None)

    def share_random_state(self) -> None:
        """Take over the first process's random state."""
        state = torch.get_rng_state()
        dist.broadcast(state, src=0, group=self.group)
        torch.set_rng_state(state)

    def share(self, rows: list, batch_size: int) -> tuple[list, int]:
        """One row of every so many: a step's mean is over all of them, whichever process takes which."""
        each = len(rows) // self.processes
        return rows[self.rank::self.processes], _at_a_time(each, batch_size)

    def together(self, number: float) -> float:
        """Sum of a number over the processes."""
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.item()

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor put together from all processes' parts; the others drop it at once."""
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return super().whole(tensor) if self.writes else torch.empty(0)

    def measured(self, measure: Measure, model: nn.Module) -> dict:
        """All processes take every batch: a layer is put together for all of them or for none."""
        found = measure(model)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # without a backward pass the last layers would stay together
        self.held = self._largest(sum(_local(parameter).numel() for parameter in model.parameters())
                                  / sum(parameter.numel() for parameter in model.parameters()))
        return found

    def _largest(self, number: float) -> float:
        largest = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest.item()

    def arguments(self, spec: RunSpec, arguments: dict) -> dict:
        """Trainer's arguments for FSDP2, with batches that are shared among the processes.

        Gradients are reduced at every backward pass: those of a whole model, kept until the step, need a card each.
        """
        rows, times = split(spec, self.processes)
        return arguments | {
            "per_device_train_batch_size": rows, "gradient_accumulation_steps": times, "fsdp": True,
            "accelerator_config": {"split_batches": True, "gradient_accumulation_kwargs": {"sync_each_batch": True}},
            "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True,
                            "cpu_ram_efficient_loading": True, "state_dict_type": "SHARDED_STATE_DICT"},
            "ddp_timeout": int(PATIENCE.total_seconds())}

    def fit(self, trainer: Trainer, spec: RunSpec, optimiser: Callable[[], torch.optim.Optimizer | None]) -> None:
        """Let the trainer share its model and its rows as the run asks."""
        _give_memory(trainer.model)
        trainer.optimizer = optimiser()
        plugin = trainer.accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = layers(trainer.model)
        # As where one process trains: parameters, gradients and sums of them in float32, and autocast around the model.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        trainer.model = trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)
        if task(spec.task).kind == "classification":
            trainer.compute_loss_func = classification_loss
        _fill_last_batch(trainer, split(spec, self.processes)[0])
        if not self.writes:
            trainer.add_callback(OwnNoise(self.rank))



def _give_memory(model: nn.Module) -> None:
    """Memory, never touched, for the parameters of the processes that read no weights.

    accelerate (1.15, ``_prepare_fsdp2``) finds an optimiser's parameters again by their address, and all that have no
    memory have the same: such a process would train a single one of them, in silence.
    """
    whole: Any = model
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    whole.tie_weights()


def layers(model: nn.Module) -> list[str]:
    """Names of the classes whose modules are put together one at a time.

    Without BERT's embeddings, which are among what transformers says must not be split: accelerate puts the table of
    words together by itself, and fails where it is part of another unit already.
    """
    whole: Any = model
    table = whole.get_input_embeddings()
    return sorted({type(module).__name__ for module in model.modules()
                   if type(module).__name__ in whole._no_split_modules and table not in module.modules()})


def classification_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """The share of these rows in the mean over all rows of a step, wherever they are; blank ones have none.

    The models' own loss is the mean over the rows at hand, which Trainer would take for a share.
    """
    total = cross_entropy(outputs.logits, labels, ignore_index=NOT_COUNTED, reduction="sum")
    return total / num_items_in_batch


class Filled(Sampler):
    """A sampler's order, and a blank row as often as the last batch of an epoch needs it."""

    def __init__(self, order: Sampler, blank: int, count: int):
        self.order, self.blank, self.count = order, blank, count

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.blank] * self.count

    def __len__(self) -> int:
        return self.blank + self.count

    def set_epoch(self, epoch: int) -> None:
        """Pass on which epoch's order is wanted."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


def _fill_last_batch(trainer: Trainer, at_a_time: int) -> None:
    """Where the rows of an epoch do not fill their last batch, fill it with rows that no loss counts.

    accelerate would take rows from the beginning of the epoch, which the run trained alone does not see twice.
    """
    rows = trainer.train_dataset
    if not (missing := -len(rows) % at_a_time):
        return
    blank = rows.select([0]).map(lambda row: row | {"labels": _blank(row["labels"])})
    trainer.train_dataset = concatenate_datasets([rows, blank])
    order_of, seed = trainer._get_train_sampler, trainer.args.data_seed

    def filled(_: Dataset) -> Sampler:
        order = order_of(rows)
        if isinstance(order, RandomSampler):  # accelerate does so with one that it finds
            order = SeedableRandomSampler(rows, generator=order.generator, data_seed=seed)
        return Filled(order, blank=len(rows), count=missing)

    trainer._get_train_sampler = filled


def _blank(labels: int | list[int]) -> int | list[int]:
    return NOT_COUNTED if isinstance(labels, int) else [NOT_COUNTED] * len(labels)


class OwnNoise(TrainerCallback):
    """Random numbers of a process's own within a step, or all would drop the same of their different rows."""

    def __init__(self, rank: int):
        self.rank = rank

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                      **kwargs: Any) -> None:
        """Draw by seed, step and process, so that a run that goes on draws the same."""
        torch.manual_seed(hash((args.seed, state.global_step, self.rank)) % 2**63)
