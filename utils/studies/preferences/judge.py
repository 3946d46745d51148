"""The reward model of notebook 16: how it orders held-out pairs under its own template, another's, and untrained."""

import copy

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from utils.machine import device_name
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds
from utils.sources.models import resolve
from utils.studies.preferences.measure import VERSION, identity, kept_row, preference_runs
from utils.training.preferences import chat_tokenizer, held_out_pairs, reward_measures
from utils.training.store import Run

UNTRAINED_PAIRS = 150  # a head that was never trained is at chance on any


@measurement(columns=(*RUN_COLUMNS, "beta", "template", "accuracy", "accuracy_se", "n", "margin"),
             runs=("preferences",))
def reward_readings(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """The reward models' agreement with the held-out pairs, read under their own template and under the policy's.

    Returns
    -------
    pandas.DataFrame
        ``template`` (own; policy's; untrained: the own template before training, on fewer pairs), ``accuracy`` with
        ``_se`` and ``n``, ``margin``.
    """
    rows = []
    for run in preference_runs(profile, seeds).get("reward", ()):
        for reading in ("own", "policy's", "untrained"):
            rows.append(identity(profile, "reward", run) | {"template": reading} | _reading(run, profile, reading))
    return pd.DataFrame(rows)


def _reading(run: Run, profile: Profile, reading: str) -> dict:
    settings = profile.preferences
    if reading == "own":  # measured when the training ended
        last = run.metrics().iloc[-1]
        return {name: last[name] for name in ("accuracy", "accuracy_se", "n", "margin")}

    def compute(run: Run) -> pd.DataFrame:
        tokenizer = chat_tokenizer(run.base.folder, run.spec.template)
        if reading == "policy's":
            tokenizer = under_other_template(tokenizer, chat_tokenizer(resolve(settings.model).folder,
                                                                       settings.template))
        model, pairs = run.classifier(), held_out_pairs(run.spec, run.base)
        if reading == "untrained":
            model, pairs = _untrained(run), pairs[:UNTRAINED_PAIRS]
        return pd.DataFrame([reward_measures(model.to(device_name()).eval(), tokenizer, pairs)])

    tag = {"version": VERSION, "template": settings.template, "model": settings.model.name}
    return kept_row(run, f"reading-{reading.replace(chr(39), '')}", tag, compute=compute)


def _untrained(run: Run) -> nn.Module:
    """The reward model before its training: the base under a head that is drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.spec.seed)
        return AutoModelForSequenceClassification.from_pretrained(run.base.folder, num_labels=1, dtype=torch.float32,
                                                                  use_safetensors=True, trust_remote_code=False)


def under_other_template(tokenizer, other):
    """A copy of a tokenizer with another's template: what a script that knows but one template gives a reward model."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = other.chat_template
    for name in ("bos_token", "eos_token"):  # a template may write them, and an encoder has none
        if getattr(changed, name) is None:
            setattr(changed, name, getattr(other, name))
    return changed
