"""A decoder of about one million parameters, pretrained here on the packaged news: the base of continued pretraining.

Learning curves against tokens need more data than the adapter can hold, and forgetting is exact only where the
pretraining distribution is known. Both take a model that two cores train at several thousand tokens a second.
"""

import json
import math
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from utils.files import atomic_write, fresh_folder, replace_folder, write_json
from utils.paths import MODELS, cache_dir, ensure_dir
from utils.provenance import provenance
from utils.sources.committed import write_sums
from utils.sources.domains import domain_texts
from utils.training.blocks import block_batches, text_blocks
from utils.training.masked_lm import HeldOutCurve
from utils.training.metrics import causal_loss
from utils.training.ngram import KneserNey
from utils.training.trainer import Progress, SealPoints, common_arguments, resume_point

BASE_NAME = "small-decoder"
RECIPE: dict[str, Any] = {
    "vocabulary": 2048, "width": 128, "layers": 4, "heads": 4, "intermediate": 344, "window": 256,
    "learning_rate": 3e-3, "schedule": "cosine", "warmup_fraction": 0.05, "weight_decay": 0.1, "batch_size": 16,
    "sequence_length": 128, "seed": 0, "evaluate_every": 200}
# Characters of each domain that the vocabulary is learnt on: it has to spell all three without being wasted on one.
VOCABULARY_TEXT = {"news": 1_500_000, "python": 1_500_000, "mathematics": 300_000}
END, HELD_OUT_BLOCKS = "<|endoftext|>", 160


def build_decoder_base(steps: int = 4000, target: Path | None = None) -> Path:
    """Train tokenizer and decoder from nothing and write weights, tokenizer, curve and provenance.

    Parameters
    ----------
    steps : int
        Optimiser steps of 16 x 128 tokens.
    target : Path, optional
        Folder to write, ``data/models/small-decoder`` by default.

    Returns
    -------
    Path
        The folder, with the weights as float16.
    """
    target = target or MODELS / BASE_NAME
    ensure_dir(target.parent)
    scratch = ensure_dir(cache_dir() / "build" / f"{BASE_NAME}-{steps}")
    tokenizer = _tokenizer(scratch)
    set_seed(RECIPE["seed"])
    model = LlamaForCausalLM(_config(tokenizer))
    length = RECIPE["sequence_length"]
    train, heldout = (text_blocks("news", split, scratch, length=length) for split in ("train", "heldout"))
    curve = DecoderCurve(block_batches(heldout[:HELD_OUT_BLOCKS]), RECIPE["evaluate_every"], scratch / "curve.csv")
    arguments = common_arguments(
        scratch, steps=steps, batch_size=RECIPE["batch_size"], learning_rate=RECIPE["learning_rate"],
        warmup_fraction=RECIPE["warmup_fraction"], schedule=RECIPE["schedule"], seed=RECIPE["seed"],
        save_every=RECIPE["evaluate_every"]) | {"weight_decay": RECIPE["weight_decay"], "max_grad_norm": 1.0}
    about = {"base": BASE_NAME, "recipe": RECIPE | {"steps": steps}}
    trainer = Trainer(model=model, args=TrainingArguments(**arguments), data_collator=default_data_collator,
                      train_dataset=Dataset.from_dict({"input_ids": train, "labels": train}),
                      callbacks=[SealPoints(curve, about), Progress("small decoder"), curve])
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=resume_point(scratch, about=about))
    whole = fresh_folder(target)
    _write_base(model, tokenizer, whole, curve=curve, steps=steps, seconds=time.monotonic() - started)
    write_sums(whole)
    replace_folder(whole, target)
    shutil.rmtree(scratch)
    return target


class DecoderCurve(HeldOutCurve):
    """Held-out causal loss on the news every few steps."""

    name = "small decoder"

    def loss(self, model: torch.nn.Module) -> float:
        """Held-out causal loss in nats per token."""
        return causal_loss(model, self.batches)["loss_nats_per_token"]


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit is a token of its own, so that sums can be learnt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    texts = ["\n".join(domain_texts(domain, "train"))[:characters] for domain, characters in VOCABULARY_TEXT.items()]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=RECIPE["vocabulary"], special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END,
                                        model_max_length=RECIPE["window"])
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=RECIPE["width"], num_hidden_layers=RECIPE["layers"],
        num_attention_heads=RECIPE["heads"], num_key_value_heads=RECIPE["heads"],
        intermediate_size=RECIPE["intermediate"], max_position_embeddings=RECIPE["window"], tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def _write_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, target: Path, *, curve: DecoderCurve,
                steps: int, seconds: float) -> None:
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()
               if name != "lm_head.weight"}  # tied to the embeddings
    with atomic_write(target / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    model.config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    with atomic_write(target / "curve.csv") as temporary:
        temporary.write_bytes(curve.path.read_bytes())
    final = float(curve.rows[-1]["heldout_loss_nats_per_token"])
    tokens = steps * RECIPE["batch_size"] * RECIPE["sequence_length"]
    write_json(target / "provenance.json", {
        "what": "a Llama-shaped decoder pretrained on the train split of the packaged news",
        "recipe": RECIPE | {"steps": steps, "tokens": tokens},
        "measured": {"parameters": sum(parameter.numel() for parameter in model.parameters()),
                     "heldout_loss_nats_per_token": final, "heldout_perplexity": round(math.exp(final), 1),
                     **ngram_losses(target), "tokens_per_second": round(tokens / seconds)},
        "sources": ["bbc"], "provenance": provenance()})


@lru_cache(maxsize=2)
def ngram_losses(folder: Path) -> dict[str, float]:
    """Held-out loss on the news of unigram to four-gram models of the same tokens, in nats per token."""
    length = RECIPE["sequence_length"]
    train, heldout = (text_blocks("news", split, folder, length=length) for split in ("train", "heldout"))
    return {f"{order}_gram_loss_nats_per_token":
            round(KneserNey(train, RECIPE["vocabulary"], order).loss(heldout[:HELD_OUT_BLOCKS]), 4)
            for order in (1, 2, 3, 4)}


def base_provenance() -> dict:
    """What is written beside the committed weights: recipe, held-out loss, n-gram losses, versions."""
    return json.loads((MODELS / BASE_NAME / "provenance.json").read_text(encoding="utf-8"))
