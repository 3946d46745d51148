"""What a script written for TRL 0.12 meets in the installed libraries: each line is run, old and new.

``since`` is said only where the project's history was read (pull requests of huggingface/trl).
"""

import inspect
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import Dataset

from utils.errors import UsageError
from utils.machine import device_name


@dataclass(frozen=True)
class Change:
    """A line of an old script, how it ends now, and the line that takes its place (empty: nothing does).

    Where `error` is empty the old line still runs, and `new` is an expression that is true now: a change that no
    exception announces.
    """

    what: str
    old: str
    error: str
    message: str
    new: str
    since: str = ""
    device: str = ""  # breaks there alone


_MOVED = {"OnlineDPOTrainer": ("online_dpo", "#4473, Nov 2025"), "ORPOTrainer": ("orpo", ""), "CPOTrainer": ("cpo", ""),
          "GKDTrainer": ("gkd", "")}
_GONE = ("PPOTrainer", "XPOTrainer", "NashMDTrainer", "BCOTrainer", "PRMTrainer", "AutoModelForCausalLMWithValueHead",
         "PairRMJudge")
_TOKENIZER = "#2162, Oct 2024"
_UNEXPECTED = "got an unexpected keyword argument '{}'"


def _keyword(what: str, old: str, keyword: str, *, new: str, since: str = "") -> Change:
    return Change(what, old, "TypeError", _UNEXPECTED.format(keyword), new, since)


CHANGES = (
    *(Change("trainer moved to trl.experimental", f"from trl import {name}", "ImportError",
             f"cannot import name '{name}'", f"from trl.experimental.{module} import {name}", since)
      for name, (module, since) in _MOVED.items()),
    *(Change("removed", f"from trl import {name}", "ImportError", f"cannot import name '{name}'", "")
      for name in _GONE),
    Change("loss on the answer alone: by the data", "from trl import DataCollatorForCompletionOnlyLM", "ImportError",
           "cannot import name 'DataCollatorForCompletionOnlyLM'",
           'SFTTrainer(model=model, processing_class=tokenizer, train_dataset=completions, args=SFTConfig(**cpu))'),
    Change("a chat format for a model without one", "from trl import setup_chat_format", "ImportError",
           "cannot import name 'setup_chat_format'", "from trl import clone_chat_template"),
    _keyword("tokenizer", "SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=completions)", "tokenizer",
             new="SFTTrainer(model=model, processing_class=tokenizer, train_dataset=completions, "
                 "args=SFTConfig(**cpu))", since=_TOKENIZER),
    _keyword("tokenizer", "DPOTrainer(model=model, tokenizer=tokenizer, train_dataset=pairs)", "tokenizer",
             new="DPOTrainer(model=model, processing_class=tokenizer, train_dataset=pairs, args=DPOConfig(**cpu))",
             since=_TOKENIZER),
    _keyword("tokenizer", "RewardTrainer(model=model, tokenizer=tokenizer, train_dataset=pairs)", "tokenizer",
             new="'processing_class' in arguments(RewardTrainer)", since=_TOKENIZER),
    _keyword("tokenizer", "Trainer(model=model, tokenizer=tokenizer)", "tokenizer",
             new="Trainer(model=model, processing_class=tokenizer, args=TrainingArguments(folder, use_cpu=True))"),
    _keyword("settings of the data", "SFTTrainer(model=model, train_dataset=texts, dataset_text_field='text')",
             "dataset_text_field", new="SFTConfig(dataset_text_field='text', **cpu)"),
    _keyword("settings of the data", "SFTTrainer(model=model, train_dataset=texts, packing=True)", "packing",
             new="SFTConfig(packing=True, **cpu)"),
    _keyword("length", "SFTConfig(max_seq_length=64, **cpu)", "max_seq_length", new="SFTConfig(max_length=64, **cpu)",
             since="#2947, Feb 2025"),
    _keyword("length", "DPOConfig(max_prompt_length=64, **cpu)", "max_prompt_length",
             new="DPOConfig(max_length=128, **cpu)"),
    _keyword("length", "ORPOConfig(max_prompt_length=64, **cpu)", "max_prompt_length",
             new="ORPOConfig(max_length=128, **cpu)"),
    _keyword("settings of DPO", "DPOTrainer(model=model, beta=0.1, train_dataset=pairs)", "beta",
             new="DPOConfig(beta=0.1, **cpu)"),
    _keyword("settings of DPO", "DPOConfig(rpo_alpha=1.0, **cpu)", "rpo_alpha",
             new="DPOConfig(loss_type=['sigmoid', 'sft'], loss_weights=[1.0, 1.0], **cpu)"),
    _keyword("settings of DPO", "DPOConfig(reference_free=True, **cpu)", "reference_free", new=""),
    _keyword("settings of DPO", "DPOConfig(generate_during_eval=True, **cpu)", "generate_during_eval", new=""),
    _keyword("settings of DPO", "DPOConfig(label_pad_token_id=-100, **cpu)", "label_pad_token_id", new=""),
    _keyword("who judges online", "OnlineDPOTrainer(model=model, reward_model=model, train_dataset=prompts)",
             "reward_model", new="'reward_funcs' in arguments(OnlineDPOTrainer)"),
    _keyword("who judges online", "OnlineDPOTrainer(model=model, judge=None, train_dataset=prompts)", "judge",
             new="'reward_funcs' in arguments(OnlineDPOTrainer)"),
    _keyword("the judge's own tokenizer and template",
             "OnlineDPOTrainer(model=model, reward_processing_class=tokenizer, train_dataset=prompts)",
             "reward_processing_class", new="'reward_processing_classes' in arguments(OnlineDPOTrainer)"),
    _keyword("arguments of training", "TrainingArguments(folder, evaluation_strategy='no')", "evaluation_strategy",
             new="TrainingArguments(folder, eval_strategy='no', use_cpu=True)"),
    _keyword("arguments of training", "TrainingArguments(folder, warmup_ratio=0.1)", "warmup_ratio",
             new="TrainingArguments(folder, warmup_steps=0.1, use_cpu=True)"),
    _keyword("arguments of training", "TrainingArguments(folder, no_cuda=True)", "no_cuda",
             new="TrainingArguments(folder, use_cpu=True)"),
    _keyword("arguments of training", "TrainingArguments(folder, group_by_length=True)", "group_by_length",
             new="TrainingArguments(folder, train_sampling_strategy='group_by_length', use_cpu=True)"),
    Change("a template must be named", "bare.apply_chat_template(talk)", "ValueError", "chat_template is not set",
           "tokenizer.apply_chat_template(talk)"),
    Change("a templated text's tokens", "torch.tensor(tokenizer.apply_chat_template(talk))", "RuntimeError",
           "Could not infer dtype",
           "'input_ids' in tokenizer.apply_chat_template(talk)"),
    Change("several encodings at once", "tokenizer.batch_encode_plus(['a'])", "AttributeError", "batch_encode_plus",
           "tokenizer(['a'])"),
    Change("bfloat16 by default", "SFTConfig(folder)", "ValueError", "Your setup doesn't support bf16/gpu",
           "SFTConfig(folder, bf16=False)", device="cpu"),
    Change("bfloat16 by default", "DPOConfig(folder)", "ValueError", "Your setup doesn't support bf16/gpu",
           "DPOConfig(folder, bf16=False)", device="cpu"),
    Change("no exception: checkpointing by default", "DPOConfig(folder, bf16=False)", "", "",
           "DPOConfig(folder, bf16=False).gradient_checkpointing is True"),
    Change("no exception: cut at 1024 tokens by default", "SFTConfig(folder, bf16=False)", "", "",
           "SFTConfig(folder, bf16=False).max_length == DPOConfig(folder, bf16=False).max_length == 1024"),
    Change("no exception: DPO's rate by default", "DPOConfig(folder, bf16=False)", "", "",
           "DPOConfig(folder, bf16=False).learning_rate == 1e-6"),
    Change("no exception: several losses", "DPOConfig(loss_type='sigmoid', **cpu)", "", "",
           "DPOConfig(loss_type='sigmoid', **cpu).loss_type == ['sigmoid']"),
    Change("no exception: weights keep the file's number type",
           "AutoModelForCausalLM.from_pretrained(half)", "", "",
           "AutoModelForCausalLM.from_pretrained(half).dtype == torch.bfloat16"),
    Change("no exception: DPO's reference is read from disk",
           "DPOTrainer(model=changed(), processing_class=tokenizer, train_dataset=pairs, args=DPOConfig(**cpu))",
           "", "", "reference_of(changed()) == weights(model)"),
)


def changes_table(base: Path) -> pd.DataFrame:
    """Every change run against the installed libraries with the causal model in `base`.

    Returns
    -------
    pandas.DataFrame
        ``what``, ``old``, ``new``, ``since``, ``said`` (exception and fragment of its message; empty where nothing is
        raised), ``found`` (what the old line ended in here), ``as_said``, ``new_works`` (None where nothing takes its
        place); rows of another device are left out.

    Raises
    ------
    UsageError
        If the folder holds no causal model.
    """
    if not (base / "config.json").exists():
        raise UsageError(f"{base} holds no model; give the folder of a small causal model.")
    with tempfile.TemporaryDirectory() as folder:
        names = _names(base, folder)
        return pd.DataFrame([_row(change, names) for change in CHANGES if change.device in ("", device_name())])


def _row(change: Change, names: dict) -> dict:
    found, new = _outcome(change.old, names), _outcome(change.new, names) if change.new else None
    expected = f"{change.error}: " if change.error else ""
    as_said = (found.startswith(expected) and change.message in found) if change.error else _runs(change, found)
    return {"what": change.what, "old": change.old, "new": change.new, "since": change.since,
            "said": f"{expected}{change.message}", "found": found[:160], "as_said": as_said,
            "new_works": None if new is None else new in ("", "True")}


def _runs(change: Change, found: str) -> bool:
    """Whether a line that raises nothing by itself still runs."""
    return ":" not in found


def _outcome(line: str, names: dict) -> str:
    """What a line ends in: the exception with its message, the truth of an expression, or nothing."""
    try:
        if line.startswith("from "):
            exec(line, dict(names))  # lines of this file alone
            return ""
        value = eval(line, dict(names))
        return str(value) if isinstance(value, bool) else ""
    except Exception as error:  # whichever it is, it is what the table is about
        said = re.sub(r" \(/\S+\)", "", " ".join(str(error).split()))  # where the library lies on this machine
        return f"{type(error).__name__}: {said}"


def _names(base: Path, folder: str) -> dict:
    """What the lines may speak of: the libraries' classes, a small model and tokenizer, rows of every form."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    from trl import DPOConfig, DPOTrainer, RewardTrainer, SFTConfig, SFTTrainer
    from trl.experimental.online_dpo import OnlineDPOTrainer
    from trl.experimental.orpo import ORPOConfig

    from utils.training.preferences import chat_tokenizer

    classes = (AutoModelForCausalLM, Trainer, TrainingArguments, DPOConfig, DPOTrainer, RewardTrainer, SFTConfig,
               SFTTrainer, OnlineDPOTrainer, ORPOConfig)
    model, tokenizer = _fresh(base), chat_tokenizer(base, "question-answer")
    bare = chat_tokenizer.__wrapped__(base, "question-answer")
    bare.chat_template = None
    half = Path(folder) / "half"
    _fresh(base).to(torch.bfloat16).save_pretrained(half)
    cpu = {"output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}

    def reference_of(model) -> float:
        rows = Dataset.from_list([_PAIR])
        return _weights(DPOTrainer(model=model, processing_class=tokenizer, train_dataset=rows,
                                   args=DPOConfig(**cpu)).ref_model)

    return {one.__name__: one for one in classes} | {
        "torch": torch, "model": model, "tokenizer": tokenizer, "bare": bare, "talk": _TALK, "cpu": cpu,
        "folder": folder, "half": half, "arguments": _arguments, "weights": _weights, "reference_of": reference_of,
        "changed": lambda: _changed(base), "pairs": Dataset.from_list([_PAIR]),
        "prompts": Dataset.from_list([{"prompt": "a"}]), "texts": Dataset.from_list([{"text": "a b"}]),
        "completions": Dataset.from_list([{"prompt": "a", "completion": " b"}])}


_TALK = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]
_PAIR = {"prompt": "a", "chosen": " b", "rejected": " c"}


def _fresh(base: Path):
    import torch
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32,
                                                use_safetensors=True, trust_remote_code=False)


def _changed(base: Path):
    """The base with other weights in memory than on disk, as after merging an adapter."""
    import torch
    model = _fresh(base)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    return model


def _weights(model) -> float:
    return model.get_output_embeddings().weight.double().abs().sum().item()


def _arguments(kind: type) -> list[str]:
    return list(inspect.signature(kind.__init__).parameters)
