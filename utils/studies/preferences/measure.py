"""Preference tuning (notebook 16): profile and seeds in, tidy tables out.

DPO's implicit reward of an answer is beta times the log-probability it gained over the reference: the run's start, or
the base for runs that start there. Agreement is the share of held-out pairs whose chosen answer has the higher one.
"""

from collections.abc import Callable
from functools import lru_cache

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from utils.evaluation.distance import kl_from_base
from utils.evaluation.generation import sample
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import Preferences, Spectra, TaskSizes
from utils.reporting import selection
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds
from utils.sources.models import BaseModel
from utils.spectra import count_intruders, vectors_between
from utils.spectra.controls import random_updates
from utils.studies.learning.measure import base_causal_lm
from utils.training.blocks import block_batches, text_blocks
from utils.training.metrics import accuracy, causal_loss
from utils.training.preferences import (
    agreement,
    chat_tokenizer,
    held_out_batches,
    held_out_pairs,
    log_ratio,
    pair_logps,
    scores,
)
from utils.training.spec import RunSpec, preference_specs
from utils.training.store import Run, RunStore, undiverged
from utils.training.weights import Tensors

VERSION = 3
KL_BATCHES = 4
EXACT = ("answers",)  # tasks whose chosen answer is the one right one
LIKELIHOODS = ("sft", "dpo", "swapped", "orpo", "online_dpo")


def preference_runs(profile: Profile, seeds: Seeds = None) -> dict[str, list[Run]]:
    """Every finished run by experiment, trained now where missing; diverged ones are reported and left out."""
    if profile.preferences is None:
        return {}
    store, found = RunStore(), {}
    for name, specs in preference_specs(profile, seeds).items():
        found[name] = undiverged([store.get(spec) for spec in specs], experiment=name)
    return found


def identity(profile: Profile, experiment: str, run: Run) -> dict:
    """The columns that say which run a row is about."""
    return {"profile": profile.profile, "experiment": experiment} | run.spec.columns | {"beta": run.spec.beta or 0.0}


def preference_curves(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Agreement with the held-out pairs, rewards and log-probabilities at every checkpoint of every policy.

    Returns
    -------
    pandas.DataFrame
        By run and ``step``: ``raw_accuracy`` (chosen likelier than rejected) and ``accuracy`` (chosen has the higher
        implicit reward) with ``_se`` and ``n``, ``margin`` (of implicit rewards), ``preference_loss`` (DPO's own on
        these pairs: ln 2 where nothing was learnt), ``chosen_reward``, ``rejected_reward``, ``chosen_logp``,
        ``rejected_logp`` (nats, summed over the answer), ``loss_nats_per_token`` (on chosen answers),
        ``train_seconds``.
    """
    rows = []
    for name, runs in preference_runs(profile, seeds).items():
        for run in runs if name in LIKELIHOODS else ():
            for metric in run.metrics().to_dict("records"):
                found = _implicit(run, metric["step"], profile.preferences)
                rows.append(identity(profile, name, run) | {"step": metric["step"]} | found | {
                    "train_seconds": metric["train_seconds"]})
    return pd.DataFrame(rows)


def _implicit(run: Run, step: int, settings: Preferences) -> dict:
    def compute(run: Run) -> pd.DataFrame:
        return pd.DataFrame([implicit_measures(_logps(run, step), _reference_logps(run), settings.beta)])

    return kept_row(run, f"implicit-{step:06d}", {"version": VERSION, "beta": settings.beta}, compute=compute)


def implicit_measures(policy: pd.DataFrame, reference: pd.DataFrame, beta: float) -> dict:
    """Agreement and rewards from both models' log-probabilities of the same pairs.

    Parameters
    ----------
    policy, reference : pandas.DataFrame
        As :func:`utils.training.preferences.pair_logps` returns them.
    beta : float
        Above 0.
    """
    gained = {which: torch.tensor(log_ratio(policy[which], reference[which], beta).to_numpy())
              for which in ("chosen", "rejected")}
    found = agreement(gained["chosen"], gained["rejected"])
    raw = agreement(torch.tensor(policy["chosen"]), torch.tensor(policy["rejected"]))
    loss = -logsigmoid(gained["chosen"] - gained["rejected"]).mean().item()
    return {"raw_accuracy": raw["accuracy"], "raw_accuracy_se": raw["accuracy_se"], **found, "preference_loss": loss,
            "chosen_reward": gained["chosen"].mean().item(), "rejected_reward": gained["rejected"].mean().item(),
            "chosen_logp": policy["chosen"].mean(), "rejected_logp": policy["rejected"].mean(),
            "loss_nats_per_token": -policy["chosen"].sum() / policy["tokens"].sum()}


def kept_row(run: Run, name: str, settings: dict, *, compute: Callable[[Run], pd.DataFrame]) -> dict:
    """A measurement of one row, kept beside its run, without the run's own columns."""
    return run.measured(name, settings, compute).iloc[0].drop(list(run.spec.columns)).to_dict()


def _logps(run: Run, step: int | None = None) -> pd.DataFrame:
    return pair_logps(run.causal_lm(step).to(device_name()), held_out_batches(run.spec, run.base))


def _reference_logps(run: Run) -> pd.DataFrame:
    """What the start gives the held-out pairs; kept beside it, since every run from it asks for the same."""
    if run.start is None:
        return _base_logps(run.base, run.spec.task, run.spec.sizes, template=run.spec.template)
    found = run.start.measured("pair-logps", {"version": VERSION}, _logps)
    return found[["chosen", "rejected", "tokens"]]


@lru_cache(maxsize=2)
def _base_logps(base: BaseModel, name: str, sizes: TaskSizes, *, template: str | None) -> pd.DataFrame:
    spec = RunSpec.model_construct(task=name, sizes=sizes, template=template)
    return pair_logps(base_causal_lm(base), held_out_batches(spec, base))


def _start_model(run: Run) -> nn.Module:
    """The model that a run went on from: its start's, or the base."""
    return run.start.causal_lm().to(device_name()) if run.start else base_causal_lm(run.base)


@measurement(columns=(*RUN_COLUMNS, "beta", "step", "raw_accuracy", "raw_accuracy_se", "accuracy", "accuracy_se",
                      "n", "margin", "preference_loss", "chosen_reward", "rejected_reward", "chosen_logp",
                      "rejected_logp", "loss_nats_per_token", "train_seconds", "general_loss", "kl_nats_per_token",
                      "n_intruders", "n_intruders_start", "relative_norm", "base_general_loss", "forgetting",
                      "forgetting_since_start", "exact_match", "answer_reward", "exact_match_se", "ended"),
             runs=("preferences",))
def preference_outcomes(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """What every policy is like at its last step: the preference learnt, and what it cost.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`preference_curves` at the last step and: ``general_loss`` (held-out text of the base's
        pretraining, nats per token), ``forgetting`` (its rise over the base's) and ``forgetting_since_start``,
        ``kl_nats_per_token`` (from the start, on held-out answers), ``n_intruders`` (against W0) and
        ``n_intruders_start`` (against the start's matrices), ``relative_norm`` (of the update since the start, mean
        over matrices), ``exact_match`` with ``_se`` (greedy answers; NaN where no answer is the one right one),
        ``answer_reward`` (the reward model's mean score of these answers), ``ended`` (share that ended in time).
    """
    curves, rows = preference_curves(profile, seeds), []
    for name, runs in preference_runs(profile, seeds).items():
        for run in runs if name in LIKELIHOODS else ():
            at = curves[(curves["experiment"] == name) & (curves["run"] == run.spec.key)]
            last = at.loc[at["step"].idxmax()].to_dict()
            rows.append(last | _costs(run, profile) | _answers(run, profile))
    return pd.DataFrame(rows)


def best_rates(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Of each experiment and method the runs at the rate of least `preference_loss`, chosen as elsewhere.

    Agreement does not tell rates apart: a step of any size in the same direction orders the pairs alike.
    """
    if outcomes.empty:
        return outcomes
    return selection.best_rates(outcomes, value="preference_loss", least=True, by=("experiment", "method"))


def beside(reference: pd.DataFrame | None, own: pd.DataFrame) -> pd.DataFrame | None:
    """The reference's runs to draw beside one's own: those at the same rates, or the best where one trained none."""
    if reference is None:
        return None
    series = ["experiment", "method"]
    mine = set(own[[*series, "learning_rate"]].itertuples(index=False, name=None))
    trained = {one[:2] for one in mine}
    rows = reference[[*series, "learning_rate"]].itertuples(index=False, name=None)
    best = set(best_rates(reference).index)
    kept = [place for place, one in zip(reference.index, rows, strict=True)
            if one in mine or (one[:2] not in trained and place in best)]
    return reference.loc[kept]


def _costs(run: Run, profile: Profile) -> dict:
    settings = profile.preferences

    def compute(run: Run) -> pd.DataFrame:
        tuned = run.tuned_matrices()
        return pd.DataFrame([_model_costs(run, tuned, settings) | _matrix_costs(run, tuned, profile.spectra)])

    tag = {"version": VERSION, "general": settings.general, "blocks": settings.blocks, "k": profile.spectra.k,
           "epsilon": profile.spectra.epsilon}
    found = kept_row(run, "costs", tag, compute=compute)
    base = _base_loss(run, settings)
    start = _costs(run.start, profile)["general_loss"] if run.start else base
    return found | {"base_general_loss": base, "forgetting": found["general_loss"] - base,
                    "forgetting_since_start": found["general_loss"] - start}


def _base_loss(run: Run, settings: Preferences) -> float:
    return _general_loss(run.base, run.spec.sizes.max_length, settings.general, blocks=settings.blocks)


@lru_cache(maxsize=4)
def _general_loss(base: BaseModel, length: int, general: str, *, blocks: int) -> float:
    """Held-out loss of the untouched base, nats per token."""
    return _loss_of(base_causal_lm(base), base, length, general=general, blocks=blocks)


def _loss_of(model: nn.Module, base: BaseModel, length: int, *, general: str, blocks: int) -> float:
    texts = text_blocks(general, "heldout", base.folder, length=length)[:blocks]
    return causal_loss(model, block_batches(texts))["loss_nats_per_token"]


def _model_costs(run: Run, matrices: Tensors, settings: Preferences) -> dict:
    model = run.causal_lm(matrices=matrices).to(device_name())
    batches = held_out_batches(run.spec, run.base)
    answers = batches[::max(1, len(batches) // KL_BATCHES)]  # of every length, as they are ordered by it
    general = _loss_of(model, run.base, run.spec.sizes.max_length, general=settings.general, blocks=settings.blocks)
    return {"general_loss": general,
            "kl_nats_per_token": kl_from_base(_start_model(run), model, answers)["kl_nats_per_token"]}


def _matrix_costs(run: Run, matrices: Tensors, spectra: Spectra) -> dict:
    base = run.base_matrices()
    start = run.start.tuned_matrices() if run.start else base
    norms = [((weight - start[name]).norm() / start[name].norm()).item() for name, weight in matrices.items()]
    return {"n_intruders": intruders_between(base, matrices, spectra),
            "n_intruders_start": intruders_between(start, matrices, spectra),
            "relative_norm": sum(norms) / len(norms)}


def intruders_between(before: Tensors, after: Tensors, spectra: Spectra) -> int:
    """Intruders among the k leading vectors of all matrices, of `after` seen against `before`."""
    # Not through the cache on disk: a start is one of many, and only runs of one course meet it.
    table = vectors_between(before, after, k=spectra.k, epsilons=[spectra.epsilon], device=device_name())
    return int(count_intruders(table, [spectra.epsilon], [spectra.k])["n_intruders"].sum())


def _answers(run: Run, profile: Profile) -> dict:
    """Greedy answers to held-out prompts: how many are right, what the seed's reward model gives them."""
    settings, judge = profile.preferences, _judge(profile, run.spec.seed)

    def compute(run: Run) -> pd.DataFrame:
        table = greedy_answers(run.causal_lm().to(device_name()), run, settings)
        talks = [prompt + [{"role": "assistant", "content": text}]
                 for prompt, text in zip(table["prompt"], table["given"], strict=True)]
        reward = scores(judge.classifier().to(device_name()), chat_tokenizer(judge.base.folder, judge.spec.template),
                        talks).mean().item() if judge else float("nan")
        right = torch.tensor(table["right"].to_numpy()).long()
        exact = accuracy(right, torch.ones_like(right)) if run.spec.task.split("-")[0] in EXACT else {}
        return pd.DataFrame([{"exact_match": exact.get("accuracy", float("nan")), "answer_reward": reward,
                              "exact_match_se": exact.get("accuracy_se", float("nan")),
                              "ended": table["stopped"].mean()}])

    tag = {"version": VERSION, "prompts": settings.prompts, "max_new_tokens": settings.max_new_tokens,
           "judge": judge.spec.key if judge else None}
    return kept_row(run, "answers", tag, compute=compute)


def _judge(profile: Profile, seed: int) -> Run | None:
    spec = preference_specs(profile, (seed,))["reward"][0]
    run = RunStore().get(spec)
    return None if run.diverged else run


def greedy_answers(model: nn.Module, run: Run, settings: Preferences) -> pd.DataFrame:
    """The likeliest answers to held-out prompts under the run's template.

    Returns
    -------
    pandas.DataFrame
        ``prompt`` (messages), ``wanted``, ``given``, ``right`` (bool; spaces around do not count), ``stopped``.
    """
    tokenizer = chat_tokenizer(run.base.folder, run.spec.template)
    pairs = held_out_pairs(run.spec, run.base)[:settings.prompts]
    texts = [tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, tokenize=False)
             for pair in pairs]
    drawn = sample(model, tokenizer, texts, n=1, temperature=0, max_new_tokens=settings.max_new_tokens, seed=0,
                   batch_size=64, label="answers")
    wanted = [pair["chosen"][-1]["content"].strip() for pair in pairs]
    given = drawn.sort_values("prompt")["text"].str.strip().tolist()
    return pd.DataFrame({"prompt": [pair["prompt"] for pair in pairs], "wanted": wanted, "given": given,
                         "right": [one == other for one, other in zip(wanted, given, strict=True)],
                         "stopped": drawn.sort_values("prompt")["stopped"].tolist()})


@measurement(columns=(*RUN_COLUMNS, "beta", "control", "accuracy", "accuracy_se", "margin",
                      "forgetting_since_start", "kl_nats_per_token", "n_intruders", "n_intruders_start",
                      "relative_norm",), runs=("preferences",))
def preference_controls(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Each DPO run beside a random update of its start of the same norm, matrix by matrix.

    Returns
    -------
    pandas.DataFrame
        ``control`` (trained; random, full rank; for LoRA also random, rank r), ``accuracy`` with ``_se`` (implicit
        rewards), ``margin``, ``forgetting_since_start``, ``kl_nats_per_token``, ``n_intruders``,
        ``n_intruders_start``, ``relative_norm``.
    """
    rows = []
    for run in preference_runs(profile, seeds).get("dpo", ()):
        ranks = {"trained": None, "random, full rank": None} | (
            {"random, rank r": run.spec.method.r} if run.spec.method.r else {})
        for control, rank in ranks.items():
            measured = _control(run, profile, control, rank=rank)
            rows.append(identity(profile, "dpo", run) | {"control": control} | measured)
    return pd.DataFrame(rows)


def _control(run: Run, profile: Profile, control: str, *, rank: int | None) -> dict:
    settings = profile.preferences
    if control == "trained":
        found = _implicit(run, run.steps[-1], settings) | _costs(run, profile)
        return {name: found[name] for name in CONTROL_COLUMNS}

    def compute(run: Run) -> pd.DataFrame:
        start = run.start.tuned_matrices()
        tuned = random_updates(start, run.tuned_matrices(), rank=rank, seed=run.spec.seed)
        model = run.causal_lm(matrices=tuned).to(device_name())
        policy = pair_logps(model, held_out_batches(run.spec, run.base))
        found = implicit_measures(policy, _reference_logps(run), settings.beta)
        return pd.DataFrame([found | _model_costs(run, tuned, settings) | _matrix_costs(run, tuned, profile.spectra)])

    tag = {"version": VERSION, "general": settings.general, "blocks": settings.blocks, "beta": settings.beta,
           "k": profile.spectra.k, "epsilon": profile.spectra.epsilon}
    found = kept_row(run, f"control-{control.replace(', ', '-').replace(' ', '-')}", tag, compute=compute)
    found["forgetting_since_start"] = found["general_loss"] - _costs(run.start, profile)["general_loss"]
    return {name: found[name] for name in CONTROL_COLUMNS}


CONTROL_COLUMNS = ("accuracy", "accuracy_se", "margin", "forgetting_since_start", "kl_nats_per_token", "n_intruders",
                   "n_intruders_start", "relative_norm")


def runs_table(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """What was trained: one row per run with its start, its judge, trained parameters, seconds and peak memory."""
    found = preference_runs(profile, seeds)
    names = {run.spec.key: name for name, runs in found.items() for run in runs}
    return pd.DataFrame([identity(profile, name, run) | {
        "goes on from": names.get(run.spec.start.key, "") if run.spec.start else "base",
        "judge": names.get(run.spec.reward.key, "") if run.spec.reward else "",
        "steps": run.result["measured"]["steps"], "parameters": run.result["measured"]["trainable_parameters"],
        "seconds": run.result["measured"]["train_seconds"], "peak_gib": run.result["measured"]["peak_gib"]}
        for name, runs in found.items() for run in runs])
