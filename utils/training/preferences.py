"""Preference tuning by TRL: conversations under a chat template, and the trainer of each objective.

``sft`` learns the chosen answers, ``dpo`` to prefer them to the rejected ones without leaving its start too far,
``orpo`` both at once and from the base, ``reward`` to score an answer with one number, and ``online_dpo`` prefers, of
two answers that the policy draws, the one that a reward model scores higher.
"""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase, Trainer

from utils.errors import CourseError, UsageError
from utils.profiles.schema import TaskSizes
from utils.sources.models import BaseModel, resolve
from utils.sources.preferences import conversations, template_text
from utils.sources.tasks import load_task, task
from utils.training.blocks import EVALUATION_TOKENS
from utils.training.data import EVALUATION_BATCH, labelled_batch, tokenizer_of
from utils.training.metrics import Measure, accuracy
from utils.training.spec import RunSpec
from utils.training.variants import optimiser_of

LOGGED_BATCHES = 4
SPARE = 4  # a reward model's tokenizer may need so many tokens for one of the policy's
Pairs = list[dict[str, list[dict]]]


@lru_cache(maxsize=8)
def chat_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """A copy of a base's tokenizer with the template of that name, or with its own; the folder stays as it is.

    Raises
    ------
    CourseError
        If no template is named and the tokenizer has none: transformers guesses none since 4.44.
    """
    tokenizer = copy.deepcopy(tokenizer_of(folder))
    if template is not None:
        tokenizer.chat_template = template_text(template)
    if tokenizer.chat_template is None:
        raise CourseError(f"The tokenizer in {folder} has no chat template; name one as 'template' in the profile, "
                          "such as question-answer.")
    return tokenizer


def encoded(tokenizer: PreTrainedTokenizerBase, prompt: list[dict], answer: list[dict]) -> tuple[list[int], int]:
    """Token ids of a templated conversation, and where its answer begins, as TRL finds it.

    The answer begins where the whole parts from the prompt alone; with a template whose prompt ends within a token
    that is earlier than the prompt's end, and the model is trained on another context than it is later asked in.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a chat template.
    prompt, answer : list of dict
        Messages with ``role`` and ``content``; those of the answer come last.
    """
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(prompt + answer)["input_ids"]
    shared = (place for place, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other)
    return whole, next(shared, min(len(before), len(whole)))


def fitting(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, room: int) -> Pairs:
    """The pairs whose prompt is shorter than `room` tokens; CourseError if there is none.

    TRL cuts longer conversations at their end, so that of a prompt that fills the length no answer would be left.

    Parameters
    ----------
    pairs : list of dict
        With ``prompt``, a list of messages.
    tokenizer : PreTrainedTokenizerBase
        With a chat template.
    room : int
        Tokens.
    """
    kept = [pair for pair in pairs if len(tokenizer.apply_chat_template(
        pair["prompt"], add_generation_prompt=True)["input_ids"]) < room]
    if not kept:
        raise CourseError(f"None of {len(pairs)} prompts leaves room for an answer: all have {room} tokens or more "
                          "under their chat template; raise max_length in the profile.")
    return kept


def pair_batches(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, max_length: int,
                 *, batch_size: int | None = None) -> list[dict[str, torch.Tensor]]:
    """Batches of chosen and then rejected conversations, labelled on the answer alone and padded on the right.

    Pairs of like length go together, so their order is not kept. By default a batch is of at most EVALUATION_TOKENS.

    Parameters
    ----------
    pairs : list of dict
        With ``prompt``, ``chosen`` and ``rejected``, each a list of messages.
    tokenizer : PreTrainedTokenizerBase
        With a chat template and a padding token.
    max_length : int
        Tokens that a conversation is cut to.
    batch_size : int, optional
        Pairs; a batch has twice as many rows.
    """
    batches, batch_size = [], batch_size or max(1, min(EVALUATION_BATCH, EVALUATION_TOKENS // (2 * max_length)))
    both = [[encoded(tokenizer, pair["prompt"], pair[which]) for which in ("chosen", "rejected")] for pair in pairs]
    both.sort(key=lambda pair: max(len(whole) for whole, _ in pair))
    for first in range(0, len(pairs), batch_size):
        rows = [pair[which] for which in (0, 1) for pair in both[first:first + batch_size]]
        labelled = [(whole[:max_length], ([-100] * start + whole[start:])[:max_length]) for whole, start in rows]
        batches.append(labelled_batch(labelled, tokenizer.pad_token_id))
    return batches


@torch.no_grad()
def pair_logps(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> pd.DataFrame:
    """Log-probability of both answers of each pair, in nats, summed over the answer's tokens.

    Returns
    -------
    pandas.DataFrame
        ``chosen``, ``rejected`` (nats, at most 0) and ``tokens`` (of the chosen answer).
    """
    was_training, device, parts = model.training, next(model.parameters()).device, []
    model.eval()
    for batch in batches:
        logits = model(input_ids=batch["input_ids"].to(device),
                       attention_mask=batch["attention_mask"].to(device)).logits[:, :-1]
        target = batch["labels"][:, 1:].to(device)
        counted = target != -100
        found = torch.zeros(target.shape, dtype=torch.float64, device=device)
        found[counted] = -cross_entropy(logits[counted].float(), target[counted], reduction="none").double()
        chosen, rejected = found.sum(1).cpu().chunk(2)
        tokens = counted.sum(1).cpu().chunk(2)[0]
        parts.append(pd.DataFrame({"chosen": chosen, "rejected": rejected, "tokens": tokens}))
    model.train(was_training)
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def scores(model: nn.Module, tokenizer: PreTrainedTokenizerBase, talks: list[list[dict]],
           *, batch_size: int = EVALUATION_BATCH) -> torch.Tensor:
    """A reward model's number for each conversation, templated as TRL does it: no tokens but the template's own.

    Parameters
    ----------
    model : nn.Module
        A classifier of one label.
    tokenizer : PreTrainedTokenizerBase
        With a chat template and a padding token.
    talks : list of list of dict
        Conversations, each a list of messages.
    batch_size : int
        Conversations at a time; like lengths go together.

    Returns
    -------
    torch.Tensor of shape (len(talks),)
        On the CPU, in the order of the conversations.
    """
    was_training, device, found = model.training, next(model.parameters()).device, []
    model.eval()
    window = getattr(model.config, "max_position_embeddings", None)
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # like lengths together: little padding
    for first in range(0, len(order), batch_size):
        inputs = tokenizer([texts[place] for place in order[first:first + batch_size]], return_tensors="pt",
                           padding=True, padding_side="right", add_special_tokens=False,
                           truncation=window is not None, max_length=window and window - 2)
        found.append(model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits[:, 0].cpu())
    model.train(was_training)
    return torch.cat(found).double()[torch.tensor(order).argsort()]


def agreement(higher: torch.Tensor, lower: torch.Tensor) -> dict:
    """How often the first is larger, with its binomial standard error and n, and the mean margin.

    >>> found = agreement(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]))
    >>> found["accuracy"], found["margin"]
    (0.5, 0.0)
    """
    right = (torch.as_tensor(higher) > torch.as_tensor(lower)).long()
    margin = (torch.as_tensor(higher) - torch.as_tensor(lower)).double().mean().item()
    return accuracy(right, torch.ones_like(right)) | {"margin": margin}


def policy_measures(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict:
    """Raw agreement with the held-out pairs, the mean log-probabilities, and the loss on the chosen answers."""
    found = pair_logps(model, batches)
    measured = agreement(torch.tensor(found["chosen"]), torch.tensor(found["rejected"]))
    return measured | {"chosen_logp": found["chosen"].mean(), "rejected_logp": found["rejected"].mean(),
                       "loss_nats_per_token": -found["chosen"].sum() / found["tokens"].sum()}


def reward_measures(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Pairs) -> dict:
    """Agreement of a reward model with pairs, and its margin.

    Parameters
    ----------
    model : nn.Module
        A classifier of one label.
    tokenizer : PreTrainedTokenizerBase
        With a chat template and a padding token.
    pairs : list of dict
        With ``prompt``, ``chosen`` and ``rejected``, each a list of messages.
    """
    return agreement(*(scores(model, tokenizer, [pair["prompt"] + pair[which] for pair in pairs])
                       for which in ("chosen", "rejected")))


def held_out_pairs(spec: RunSpec, base: BaseModel) -> Pairs:
    """The task's test pairs whose prompts leave room under the run's template, as conversations."""
    return _held_out(spec.task, spec.sizes, base.folder, template=spec.template)[0]


def held_out_batches(spec: RunSpec, base: BaseModel) -> list[dict[str, torch.Tensor]]:
    """The same pairs as :func:`pair_batches`."""
    return _held_out(spec.task, spec.sizes, base.folder, template=spec.template)[1]


@lru_cache(maxsize=4)
def _held_out(name: str, sizes: TaskSizes, folder: Path, *, template: str | None) -> tuple[Pairs, list[dict]]:
    tokenizer = chat_tokenizer(folder, template)
    pairs = fitting(conversations(load_task(name, sizes).test), tokenizer, sizes.max_length)
    return pairs, pair_batches(pairs, tokenizer, sizes.max_length)


def loaded(spec: RunSpec, base: BaseModel) -> tuple[nn.Module, Dataset, Measure]:
    """Model, training rows and what is measured at a checkpoint, for a run on a preference task."""
    if spec.objective not in _TRAINERS:
        raise UsageError(f"Expected an objective of {', '.join(_TRAINERS)} for task {spec.task}, got "
                         f"'{spec.objective}'; do name one in the run's specification.")
    tokenizer = chat_tokenizer(base.folder, spec.template)
    rows = _rows(spec, conversations(load_task(spec.task, spec.sizes).train), tokenizer)
    if spec.objective == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(
            base.folder, num_labels=len(task(spec.task).labels), dtype=torch.float32,
            use_safetensors=True, trust_remote_code=False)
        return model, rows, lambda model: reward_measures(model, tokenizer, held_out_pairs(spec, base))
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32,
                                                 use_safetensors=True, trust_remote_code=False)
    batches = held_out_batches(spec, base)
    logged = batches[::max(1, len(batches) // LOGGED_BATCHES)]  # of every length; the tables measure all of them later
    return model, rows, lambda model: policy_measures(model, logged)


def _rows(spec: RunSpec, pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """What the objective's trainer reads of the pairs."""
    pairs = fitting(pairs, tokenizer, spec.sizes.max_length - (spec.max_new_tokens or 0))
    if spec.objective == "sft":
        return Dataset.from_list([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
    if spec.reward is not None and spec.max_new_tokens is not None:  # online DPO, and it alone
        judge = chat_tokenizer(resolve(spec.reward.base).folder, spec.reward.template)
        room = min(judge.model_max_length, spec.reward.sizes.max_length) - SPARE * spec.max_new_tokens
        return Dataset.from_list([{"prompt": pair["prompt"]} for pair in fitting(pairs, judge, room)])
    return Dataset.from_list(pairs)


def trainer(model: nn.Module, rows: Dataset, arguments: dict, *, callbacks: list, base: BaseModel, spec: RunSpec,
            reward: nn.Module | None = None) -> Trainer:
    """TRL's trainer of the run's objective. Its configurations ask for bfloat16 and checkpointing by default.

    Parameters
    ----------
    model : nn.Module
        Prepared: what it trains requires a gradient.
    rows : Dataset
        As the objective wants them (:func:`loaded` returns them).
    arguments : dict
        Of :func:`utils.training.trainer.common_arguments`.
    callbacks : list of TrainerCallback
    base : BaseModel
        For its tokenizer.
    spec : RunSpec
        Objective, beta, lengths, template.
    reward : nn.Module, optional
        The reward model, which online DPO needs.
    """
    common = dict(train_dataset=rows, callbacks=callbacks, processing_class=chat_tokenizer(base.folder, spec.template),
                  optimizers=(optimiser_of(model, spec.method, arguments), None))
    settings = arguments | dict(gradient_checkpointing=False, max_length=spec.sizes.max_length)
    return _TRAINERS[spec.objective](model, settings, common, spec=spec, reward=reward)


def _sft(model: nn.Module, settings: dict, common: dict, **_: Any) -> Trainer:
    from trl import SFTConfig, SFTTrainer
    return SFTTrainer(model=model, args=SFTConfig(**settings), **common)  # the data say that the loss is the answer's


def _dpo(model: nn.Module, settings: dict, common: dict, *, spec: RunSpec, **_: Any) -> Trainer:
    """The reference is named for full fine-tuning: TRL would load it from the base's folder, not from this model.

    Of a model with an adapter TRL keeps the adapter as it is now beside the one that it trains.
    """
    from trl import DPOConfig, DPOTrainer
    reference = None if isinstance(model, PeftModel) else copy.deepcopy(model)
    return DPOTrainer(model=model, ref_model=reference, args=DPOConfig(**settings, beta=spec.beta), **common)


def _orpo(model: nn.Module, settings: dict, common: dict, *, spec: RunSpec, **_: Any) -> Trainer:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    return ORPOTrainer(model=model, args=ORPOConfig(**settings | {"remove_unused_columns": False}, beta=spec.beta),
                       **common)


def _online_dpo(model: nn.Module, settings: dict, common: dict, *, spec: RunSpec,
                reward: nn.Module | None) -> Trainer:
    """The reward model reads the policy's answers under its own tokenizer and template."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
    if spec.reward is None or reward is None:
        raise UsageError("Online DPO needs the run of a reward model, and that model; give both.")
    config = OnlineDPOConfig(**settings | {"remove_unused_columns": False}, beta=[spec.beta],
                             max_new_tokens=spec.max_new_tokens)
    judge = chat_tokenizer(resolve(spec.reward.base).folder, spec.reward.template)
    return OnlineDPOTrainer(model=model, args=config, reward_funcs=[reward], reward_processing_classes=[judge],
                            **common)


def _reward(model: nn.Module, settings: dict, common: dict, **_: Any) -> Trainer:
    from trl import RewardConfig, RewardTrainer
    return RewardTrainer(model=model, args=RewardConfig(**settings), **common)


_TRAINERS = {"sft": _sft, "dpo": _dpo, "orpo": _orpo, "online_dpo": _online_dpo, "reward": _reward}


def log_ratio(policy: float, reference: float, beta: float) -> float:
    """DPO's implicit reward of an answer: beta times the log-probability it gained over the reference.

    Parameters
    ----------
    policy, reference : float
        Log-probability of the whole answer, in nats, under either model.
    beta : float
        Above 0.

    Examples
    --------
    >>> log_ratio(-2.0, -4.0, 0.1)
    0.2
    """
    return beta * (policy - reference)
