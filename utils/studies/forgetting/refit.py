"""How much of what tuning adds to the pseudo-loss is readout: the head refitted on the frozen body, on other text."""

from functools import lru_cache

import pandas as pd
import torch

from utils.evaluation.pseudo import corpus_loss
from utils.evaluation.readout import affine_map, held_in_batches, masked_states, pseudo_losses
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import PseudoLoss, Readout
from utils.reporting.registry import measurement
from utils.reporting.runs import (
    RUN_COLUMNS,
    Seeds,
    base_masked_lm,
    base_passage_losses,
    experiment_runs,
    final_accuracy,
    identity,
)
from utils.reporting.statistics import paired_interval
from utils.sources.corpora import held_in_passages, pretraining_passages
from utils.sources.models import BaseModel
from utils.training.data import tokenizer_of
from utils.training.store import Run

EXPERIMENT = "second"  # where full fine-tuning's pseudo-loss rises highest, and training is short
VERSION = 1
PARTS = ("forgetting", "readout", "body")
ENDS = tuple(f"{part}_{end}" for part in PARTS for end in ("low", "high"))


@measurement(columns=(*RUN_COLUMNS, "accuracy", "pseudo_loss", "refitted_loss", "base_pseudo_loss", *PARTS, *ENDS),
             runs=(EXPERIMENT,))
def refitted_readouts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Pseudo-loss of the second task's runs through the base's own head, and through one refitted on the frozen body.

    The base is its own reference: refitted in the same way its readout is the one that it has (the map is the
    identity), so that its loss is one number.

    Returns
    -------
    pandas.DataFrame
        One row per run, all in nats per token: ``pseudo_loss``, ``refitted_loss``, ``base_pseudo_loss``;
        ``forgetting`` (the first minus the last), and its two parts: ``readout`` (what refitting takes back) and
        ``body`` (what is left above the base); each with the ends ``…_low`` and ``…_high`` of its 95 % interval by
        the paired bootstrap over passages, which speaks of this run alone.
    """
    rows, settings = [], profile.pseudo_loss.paired
    for run in experiment_runs(profile, EXPERIMENT, seeds):
        losses = passage_losses(run, settings, profile.readout)
        rows.append(identity(profile, EXPERIMENT, run) | _parts(losses, base_passage_losses(run.base, settings)))
    return pd.DataFrame(rows).merge(final_accuracy(profile, seeds, (EXPERIMENT,)), on="run")


def passage_losses(run: Run, settings: PseudoLoss, readout: Readout) -> pd.DataFrame:
    """Of each passage ``tokens``, and the nats that a run loses on it through its ``own`` and its ``refitted`` head."""
    def compute(run: Run) -> pd.DataFrame:
        batches, of_base = _held_in(run.base, settings, readout)
        model = run.masked_lm().to(device_name())
        fitted = affine_map(masked_states(model, batches), of_base)
        texts = pretraining_passages(settings.corpus, settings.passages)
        read = pseudo_losses(model, tokenizer_of(run.base.folder), texts, tokens=settings.tokens,
                             readouts={"own": None, "refitted": fitted})
        own, refitted = (read[name].set_index("passage") for name in ("own", "refitted"))
        return pd.DataFrame({"tokens": own["tokens"], "own": own["negative_pll_nats"],
                             "refitted": refitted["negative_pll_nats"]}).reset_index()

    key = {"version": VERSION} | settings.model_dump() | {"readout": readout.model_dump()}
    return run.measured("refitted", key, compute)


@lru_cache(maxsize=2)
def _held_in(base: BaseModel, settings: PseudoLoss, readout: Readout) -> tuple[list[dict], torch.Tensor]:
    """The masked text that readouts are fitted on, and the base's states at its masked places."""
    texts = held_in_passages(settings.corpus, readout.blocks, apart=settings.passages)
    batches = held_in_batches(tokenizer_of(base.folder), texts, blocks=readout.blocks, length=readout.tokens)
    return batches, masked_states(base_masked_lm(base).to(device_name()), batches)


def _parts(losses: pd.DataFrame, of_base: pd.DataFrame) -> dict:
    """The three losses of a run, and the differences between them with their intervals."""
    tokens, before = losses["tokens"], of_base["negative_pll_nats"].to_numpy()
    pairs = {"forgetting": (losses["own"], before), "readout": (losses["own"], losses["refitted"]),
             "body": (losses["refitted"], before)}
    found: dict = {"pseudo_loss": losses["own"].sum() / tokens.sum(),
                   "refitted_loss": losses["refitted"].sum() / tokens.sum(), "base_pseudo_loss": corpus_loss(of_base)}
    for part, (one, other) in pairs.items():
        found[part], found[f"{part}_low"], found[f"{part}_high"] = paired_interval(one, other, tokens)
    return found
