"""What tuned models write (notebook 11): generations kept beside each run, and tables made of them.

Generated code is run only where the profile was given leave, in the sandbox; without it the outcome is "not run".
"""


import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from utils.evaluation.code import STOP_WORDS, check, completions, pass_at_k_table, problem_subset, prompts
from utils.evaluation.diversity import diversity_table
from utils.evaluation.generation import next_token_entropy, sample
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import DecoderEvaluation
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, experiment_runs, identity
from utils.sources.models import BaseModel
from utils.tables import cached_table
from utils.training.blocks import text_blocks
from utils.training.data import tokenizer_of
from utils.training.store import Run, base_folder

VERSION = 1
JUDGE = 2  # 1 had the tests share a process with what they test
EXPERIMENT = "instruction"
ENTROPY_TEXTS, ENTROPY_TOKENS = 24, 128
COMMON = 8  # samples that unique counts are rarefied to


@measurement(columns=(*RUN_COLUMNS, "temperature", "task_id", "outcome", "n", "unique", "unique_ratio", "rarefied",
                      "m", "distinct_1", "distinct_2", "self_bleu", "mean_tokens",), runs=(EXPERIMENT,))
def diversity(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Unique strings, distinct-n and self-BLEU by model, temperature, problem and outcome (Fig 5)."""
    return _over_models(profile, seeds, lambda checked, tokens: diversity_table(checked, tokens, m=COMMON))


@measurement(columns=(*RUN_COLUMNS, "temperature", "k", "pass_at_k", "low", "high", "problems",), runs=(EXPERIMENT,))
def pass_rates(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """pass@k by model and temperature with an interval over problems (Fig S9); empty where no code was run."""
    if not profile.run_code:
        return pd.DataFrame()
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= profile.decoder_evaluation.samples]
    return _over_models(profile, seeds, lambda checked, tokens: pass_at_k_table(checked, ks))


@measurement(columns=(*RUN_COLUMNS, "text", "entropy_nats", "tokens",), runs=(EXPERIMENT,))
def token_entropy(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Mean entropy of the next token in nats, on held-out general text and on the problems' own solutions."""
    rows = []
    for columns, base, run in _models(profile, seeds):
        def compute(base=base, run=run) -> pd.DataFrame:
            return pd.DataFrame(_entropies(base, run, profile.decoder_evaluation))

        table = _kept(base, run, "entropy", compute=compute,
                      settings={"texts": ENTROPY_TEXTS, "tokens": ENTROPY_TOKENS})
        rows += [columns | row for row in table.to_dict("records")]
    return pd.DataFrame(rows)


def generations(profile: Profile, seeds: Seeds = None, *, temperature: float) -> pd.DataFrame:
    """Every completion of every model, with ``passed`` where code was run: what the other tables are made of."""
    parts = []
    for columns, base, run in _models(profile, seeds):
        table = _checked(base, run, profile, temperature=temperature)
        parts.append(pd.DataFrame(columns, index=table.index).join(table))
    return pd.concat(parts, ignore_index=True)


def _over_models(profile: Profile, seeds: Seeds, measure) -> pd.DataFrame:
    settings, parts = profile.decoder_evaluation, []
    for columns, base, run in _models(profile, seeds):
        tokenizer = tokenizer_of(base.folder)
        for temperature in (settings.temperature, settings.high_temperature):
            checked = _checked(base, run, profile, temperature=temperature)
            tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in checked["completion"]]
            table = measure(checked, tokens)
            parts.append(pd.DataFrame(columns | {"temperature": temperature}, index=table.index).join(table))
    return pd.concat(parts, ignore_index=True)


def _models(profile: Profile, seeds: Seeds):
    """(columns, base, run) of the untouched base, whose run is None, and of every instruction-tuned run."""
    runs = experiment_runs(profile, EXPERIMENT, seeds)
    first = runs[0]
    yield (identity(profile, EXPERIMENT, first) | {"method": "base", "r": 0, "lora_alpha": 0, "learning_rate": 0.0,
                                                   "run": "base"}), first.base, None
    for run in runs:
        yield identity(profile, EXPERIMENT, run), run.base, run


def _kept(base: BaseModel, run: Run | None, name: str, *, settings: dict, compute) -> pd.DataFrame:
    """A table beside its run, or in the cache's folder of the base; without the run's columns."""
    tag = {"version": VERSION, "task": EXPERIMENT} | settings
    folder = run.folder / "measurements" if run else base_folder(base)
    return cached_table(folder / f"{name}.parquet", tag, compute)


def _model(base: BaseModel, run: Run | None):
    model = run.causal_lm() if run else AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    return model.to(device_name()).eval()


def _generated(base: BaseModel, run: Run | None, settings: DecoderEvaluation, *,
               temperature: float) -> pd.DataFrame:
    """The completions of one model, an empty one as an empty string."""
    problems = problem_subset(settings.problems)

    def compute() -> pd.DataFrame:
        drawn = sample(_model(base, run), tokenizer_of(base.folder), prompts(problems), n=settings.samples,
                       temperature=temperature, top_p=settings.top_p, max_new_tokens=settings.max_new_tokens,
                       seed=run.spec.seed if run else 0, stop=STOP_WORDS,
                       batch_size=16 if device_name() == "cpu" else 128,
                       label=f"{run.spec.method.label if run else 'base'}, temperature {temperature:g}")
        return completions(drawn, list(problems))

    tag = {name: settings.model_dump(mode="json")[name] for name in ("problems", "samples", "max_new_tokens", "top_p")}
    return _kept(base, run, f"generations-{temperature:g}", settings=tag | {"temperature": temperature},
                 compute=compute)


def _checked(base: BaseModel, run: Run | None, profile: Profile, *, temperature: float) -> pd.DataFrame:
    settings = profile.decoder_evaluation
    drawn = _generated(base, run, settings, temperature=temperature)
    if not profile.run_code:
        return check(drawn, run_code=False)

    def compute() -> pd.DataFrame:
        return check(drawn, run_code=True)[["passed", "result"]]

    tag = {name: settings.model_dump(mode="json")[name] for name in ("problems", "samples", "max_new_tokens", "top_p")}
    outcome = _kept(base, run, f"checked-{temperature:g}",
                    settings=tag | {"temperature": temperature, "judge": JUDGE}, compute=compute)
    return drawn.assign(passed=outcome["passed"].astype("boolean"), result=outcome["result"])


def _entropies(base: BaseModel, run: Run | None, settings: DecoderEvaluation) -> list[dict]:
    model, tokenizer = _model(base, run), tokenizer_of(base.folder)
    general = text_blocks(settings.general, "heldout", base.folder, length=ENTROPY_TOKENS)[:ENTROPY_TEXTS]
    texts = {"general text": [tokenizer.decode(ids) for ids in general],
             "problems": [problem["prompt"] + problem["canonical_solution"]
                          for problem in problem_subset(settings.problems).values()]}
    rows = []
    for name, chosen in texts.items():
        table = next_token_entropy(model, tokenizer, chosen, tokens=ENTROPY_TOKENS)
        rows.append({"text": name, "entropy_nats": (table["entropy_nats"] * table["tokens"]).sum()
                     / table["tokens"].sum(), "tokens": int(table["tokens"].sum())})
    return rows
