"""A run's specification: frozen, validated, and hashed into the run's key."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from utils.errors import UsageError
from utils.files import canonical_json
from utils.machine import hardware
from utils.profiles import Experiment, Profile
from utils.profiles.schema import (
    NO_ALPHA,
    Decoder,
    DecoderExperiment,
    Fraction,
    ModelReference,
    Positive,
    Preferences,
    Rate,
    RunGroup,
    Targets,
    TaskSizes,
    Variant,
)
from utils.sources.models import resolve
from utils.sources.tasks import task

PreferenceRun = Literal["sft", "reward", "dpo", "swapped", "orpo", "online_dpo"]
PREFERENCE_ORDER: tuple[PreferenceRun, ...] = ("sft", "reward", "dpo", "swapped", "orpo", "online_dpo")
NEEDED: dict[PreferenceRun, tuple[PreferenceRun, ...]] = {  # what each goes on from
    "dpo": ("sft",), "swapped": ("sft",), "online_dpo": ("sft", "reward")}
Objective = Literal["likelihood", "sft", "dpo", "orpo", "online_dpo", "reward"]
FORMAT = 1  # raised when the meaning of a field changes, so that older runs are not mistaken for the same
# Fields that came after the first runs were stored, with the value that those runs had. A field counts in a key only
# where it differs from it, so older keys stay valid. A literal, and not the models' defaults: whoever changes a default
# must not give old runs another name, nor new runs an old one. New fields are added here; no value here ever changes.
HISTORICAL_DEFAULTS: dict[str, dict[str, Any]] = {
    "run": {"durations": None, "weight_decay": 0.0, "decay_towards": "zero", "attention_dropout": 0.0,
            "gradient_accumulation": 1, "objective": "likelihood", "template": None, "beta": None,
            "max_new_tokens": None},
    "method": {"variant": "lora", "targets": "all"},
    "sizes": {"validation_rows": None},
}


LABELS = {"lora": "LoRA", "b_only": "B only", "lora_plus": "LoRA+", "pissa": "PiSSA", "adalora": "AdaLoRA",
          "vera": "VeRA", "olora": "OLoRA", "milora": "MiLoRA", "init_ab": "Init[AB]", "lora_ga": "LoRA-GA",
          "lora_ga_peft": "LoRA-GA (PEFT)", "dora": "DoRA", "gralora": "GraLoRA", "randlora": "RandLoRA",
          "loft": "LoFT"}


class Method(BaseModel):
    """Full fine-tuning, or LoRA (or a variant of it) with its rank, alpha and scaling."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["full", "lora"]
    r: Positive | None = None
    lora_alpha: Positive | None = None
    rank_stabilised: bool = False
    variant: Variant = "lora"
    targets: Targets = "all"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.variant in NO_ALPHA:
            if self.kind == "full" or self.r is None or self.lora_alpha is not None:
                raise ValueError(f"{LABELS[self.variant]} is of kind 'lora', needs r and takes no lora_alpha")
        elif (self.kind == "lora") != (self.r is not None and self.lora_alpha is not None):
            raise ValueError("LoRA needs r and lora_alpha; full fine-tuning takes neither")
        return self

    @property
    def scale(self) -> float:
        """What BA is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA; 1 without alpha (full, VeRA, RandLoRA).

        >>> Method(kind="lora", r=16, lora_alpha=32).scale, Method(kind="lora", r=16, lora_alpha=32,
        ...                                                       rank_stabilised=True).scale
        (2.0, 8.0)
        """
        if self.lora_alpha is None or self.r is None:
            return 1.0
        return self.lora_alpha / (self.r**0.5 if self.rank_stabilised else self.r)

    @property
    def rank(self) -> int:
        """The rank of the adapter; UsageError for full fine-tuning, which has none."""
        if self.r is None:
            raise UsageError("Expected a method with an adapter, got full fine-tuning, which has no rank.")
        return self.r

    @property
    def label(self) -> str:
        """A short name for tables and legends, such as ``full`` or ``LoRA r=8``."""
        which = "" if self.targets == "all" else f", {self.targets}"
        if self.kind == "full":
            return f"full{which}"
        return f"{'rsLoRA' if self.rank_stabilised else LABELS[self.variant]} r={self.r}{which}"


class RunSpec(BaseModel):
    """Everything that decides the outcome of a run. Two notebooks that need the same run share its key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: ModelReference
    base_revision: str  # what the reference resolved to: a commit, or the checksum of the weights
    task: str
    sizes: TaskSizes
    method: Method
    learning_rate: Rate
    schedule: str
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    steps: Positive | None
    epochs: Annotated[float, Field(gt=0)] | None
    batch_size: Positive
    optimiser: Literal["adamw", "lion"] = "adamw"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoints: Positive
    seed: int
    durations: tuple[Positive, ...] | None = None  # steps that a copy is cooled down at; the last is `steps`
    weight_decay: Fraction = 0.0  # share of the weights that a step at the peak rate takes
    decay_towards: Literal["zero", "base"] = "zero"
    attention_dropout: Fraction = 0.0
    gradient_accumulation: Positive = 1
    start: "RunSpec | None" = None  # the run whose merged weights this one goes on from, instead of W0
    objective: Objective = "likelihood"  # the others are those of preference tasks
    template: str | None = None  # the chat template by name; the tokenizer's own by default
    beta: Rate | None = None  # how much a preference weighs against staying near the start
    max_new_tokens: Positive | None = None  # of an answer that is drawn while training
    reward: "RunSpec | None" = None  # the run that made the reward model of online DPO

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if (self.objective == "online_dpo") != (self.reward is not None and self.max_new_tokens is not None):
            raise ValueError("objective 'online_dpo', and it alone, takes 'reward' and 'max_new_tokens'")
        return self

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the sha256 of the canonical JSON."""
        content = canonical_json({"format": FORMAT} | self._content())
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _content(self) -> dict:
        """What the key is made of: every field, but for those at their historical default; other runs by their key."""
        content = self.model_dump(mode="json", exclude={"start", "reward"})
        for part, historical in ((content, HISTORICAL_DEFAULTS["run"]),
                                 (content["method"], HISTORICAL_DEFAULTS["method"]),
                                 (content["sizes"], HISTORICAL_DEFAULTS["sizes"])):
            for name, value in historical.items():
                if part[name] == value:
                    del part[name]
        others = {"start": self.start, "reward": self.reward}
        return content | {name: other.key for name, other in others.items() if other}

    @property
    def label(self) -> str:
        """What a line of progress calls the run, such as ``dpo on answers, full, seed 3``."""
        objective = "" if self.objective == "likelihood" else f"{self.objective} on "
        return f"{objective}{self.task}, {self.method.label}, seed {self.seed}"

    @property
    def columns(self) -> dict:
        """The columns that every table about this run starts with."""
        return {"task": self.task, "seed": self.seed, "method": self.method.label, "r": self.method.r or 0,
                "lora_alpha": self.method.lora_alpha or 0, "learning_rate": self.learning_rate, "run": self.key}


def run_specs(profile: Profile, experiment: str, seeds: tuple[int, ...] | None = None) -> list[RunSpec]:
    """The specifications of an experiment's runs, seed by seed, in the order of the profile.

    Parameters
    ----------
    profile : Profile
    experiment : str
        A key of ``profile.experiments`` or ``profile.decoder_experiments``.
    seeds : tuple of int, optional
        The profile's own seeds by default.
    """
    chosen = profile.experiment(experiment)
    if chosen is None:
        raise UsageError(f"Profile {profile.profile} has no experiment '{experiment}'; it has "
                         f"{', '.join([*profile.experiments, *profile.decoder_experiments])}.")
    task(chosen.task)  # an unknown name fails here, before anything is downloaded
    if chosen.reference_only and not profile.whole:
        return []
    _require_validation(profile, experiment, chosen)
    chosen_seeds = _with_further(profile, chosen, profile.seeds if seeds is None else seeds)
    return [spec for seed in chosen_seeds
            for group in _included(profile, chosen.runs, first=seed == chosen_seeds[0])
            if seed not in chosen.further_seeds or seed in group.further_seeds
            for method, rate in _methods(group)
            for spec in _specs(profile, chosen, group, method=method, learning_rate=rate, seed=seed)]


def _with_further(profile: Profile, experiment: Experiment, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds, and after all of the reference's own those that some groups of the experiment are made with too."""
    further = experiment.further_seeds if profile.whole and set(profile.reference_seeds) <= set(seeds) else ()
    return (*seeds, *(seed for seed in further if seed not in seeds))


def _require_validation(profile: Profile, name: str, experiment: Experiment) -> None:
    rows = experiment.validation_rows or profile.tasks[experiment.task].validation_rows
    if rows and task(experiment.task).kind != "classification":
        raise UsageError(f"Experiment '{name}' of profile {profile.profile} names validation rows of "
                         f"{experiment.task}, which is no classification task; leave them out.")


def intervention_specs(profile: Profile, seeds: tuple[int, ...] | None = None) -> list[RunSpec]:
    """The runs whose intruders are scaled, and those at smaller rates that they are compared with.

    A named run is made even where its experiment leaves it to the reference; a smaller rate is not.
    """
    settings, chosen_seeds = profile.intervention, profile.seeds if seeds is None else seeds
    every = run_specs(profile.with_reference_runs(), settings.experiment, seeds)
    there = {spec.key for spec in run_specs(profile, settings.experiment, seeds)}
    named = [spec for spec in every for one in settings.runs
             if (spec.method.r, spec.learning_rate) == (one.r, one.learning_rate)
             and (profile.whole or not one.reference_only)
             and (spec.seed == chosen_seeds[0] or not one.first_seed_only)]
    return list({spec.key: spec for one in named
                 for spec in (one, *(other for other in every if other.key in there
                                       and share_of_rate(other, one) in settings.smaller_rates))}.values())


def share_of_rate(one: RunSpec, of: RunSpec) -> float:
    """The learning rate of one run over another's where it is all that they differ in; else NaN."""
    alike = one.model_copy(update={"learning_rate": of.learning_rate}).key == of.key
    return round(one.learning_rate / of.learning_rate, 9) if alike else float("nan")  # rates are not exact in binary


def continual_specs(profile: Profile, seeds: tuple[int, ...] | None = None) -> list[list[RunSpec]]:
    """For each seed and method the chain of a continual sequence: one run per task, each starting from the last.

    LoRA's adapter is new at every stage and goes on from the merged weights of the stage before; so is every head.
    """
    settings, chains = profile.continual, []
    chosen_seeds = profile.seeds if seeds is None else seeds
    if profile.whole and settings.reference_seeds:
        chosen_seeds = tuple(seed for seed in chosen_seeds if seed in settings.reference_seeds)
    for seed in chosen_seeds:
        for group in _included(profile, settings.runs, first=seed == chosen_seeds[0]):
            for method, rate in _methods(group):
                chain: list[RunSpec] = []
                for name in settings.tasks:
                    stage = Experiment(task=task(name).name, runs=settings.runs, steps=settings.steps)
                    spec = _specs(profile, stage, group, method=method, learning_rate=rate, seed=seed)[0]
                    chain.append(spec.model_copy(update={"start": chain[-1] if chain else None}))
                chains.append(chain)
    return chains


def preference_specs(profile: Profile, seeds: tuple[int, ...] | None = None) -> dict[str, list[RunSpec]]:
    """Every run of the profile's preference tuning by experiment, such as ``dpo``; seed by seed.

    The first run of ``sft`` is what the others start from, but ``orpo``, which starts from the base; the first of
    ``reward`` judges the answers that ``online_dpo`` draws.
    """
    settings = _preferences(profile)
    found: dict[str, list[RunSpec]] = {}
    chosen_seeds = profile.seeds if seeds is None else seeds
    for seed in chosen_seeds:
        for name in PREFERENCE_ORDER:
            for group in _included(profile, settings.runs.get(name, ()), first=seed == chosen_seeds[0]):
                for method, rate in _methods(group):
                    before = {other: next(spec for spec in found[other] if spec.seed == seed)
                              for other in NEEDED.get(name, ())}
                    found.setdefault(name, []).append(_preference_spec(
                        profile, name, group, method=method, learning_rate=rate, seed=seed, before=before))
    return found


def with_starts(spec: RunSpec) -> Iterator[RunSpec]:
    """A run after those that it goes on from or is judged by, and theirs."""
    for other in (spec.start, spec.reward):
        if other is not None:
            yield from with_starts(other)
    yield spec


def _preferences(profile: Profile) -> Preferences:
    if profile.preferences is None:
        raise UsageError(f"Profile {profile.profile} has no section 'preferences'.")
    return profile.preferences


def _preference_spec(profile: Profile, name: PreferenceRun, group: RunGroup, *, method: Method, learning_rate: float,
                     seed: int, before: dict[PreferenceRun, RunSpec]) -> RunSpec:
    settings, training = _preferences(profile), profile.training
    base = settings.reward_model if name == "reward" else settings.model
    objective: Objective = "dpo" if name == "swapped" else name
    return RunSpec(
        base=base, base_revision=resolve(base).revision, sizes=settings.sizes, method=method,
        task=f"{settings.task}-swapped" if name == "swapped" else settings.task, learning_rate=learning_rate,
        schedule=training.schedule, warmup_fraction=settings.warmup_fraction, steps=group.steps or settings.steps,
        epochs=None, batch_size=group.batch_size or settings.batch_size, dtype=training.dtype,
        checkpoints=group.checkpoints or training.checkpoints, seed=seed, objective=objective,
        gradient_accumulation=settings.gradient_accumulation,
        template=settings.reward_template if name == "reward" else settings.template,
        beta=settings.beta if objective in ("dpo", "orpo", "online_dpo") else None,
        start=before.get("sft"), reward=before.get("reward"),
        max_new_tokens=settings.max_new_tokens if name == "online_dpo" else None)


def _included(profile: Profile, groups: tuple[RunGroup, ...], *, first: bool) -> list[RunGroup]:
    return [group for group in groups
            if (profile.whole or not group.reference_only) and (first or not group.first_seed_only)]


def _methods(group: RunGroup) -> list[tuple[Method, float]]:
    return [(Method(kind=group.method, r=r, lora_alpha=group.alpha_of(r), rank_stabilised=group.rank_stabilised,
                    variant=group.variant, targets=group.targets), rate) for r, rate in group.rates]


def _specs(profile: Profile, experiment: Experiment, group: RunGroup, *, method: Method, learning_rate: float,
           seed: int) -> list[RunSpec]:
    """The run, or one for each number of training rows."""
    if isinstance(experiment, DecoderExperiment):
        return [_decoder_spec(profile, experiment, group, method=method, learning_rate=learning_rate, seed=seed)]
    training, sizes = profile.training, profile.tasks[experiment.task]
    if experiment.validation_rows:
        sizes = sizes.model_copy(update={"validation_rows": experiment.validation_rows})
    steps = experiment.steps or training.steps
    whole = RunSpec(
        base=profile.encoder, base_revision=resolve(profile.encoder).revision, task=experiment.task, sizes=sizes,
        method=method, learning_rate=learning_rate, schedule=training.schedule,
        warmup_fraction=training.warmup_fraction, steps=steps, epochs=None if steps else training.epochs,
        batch_size=training.batch_size, dtype=training.dtype,
        checkpoints=group.checkpoints or training.checkpoints, seed=seed)
    if group.train_rows is None:
        return [whole]
    return [whole.model_copy(update={"sizes": sizes.model_copy(update={"train_rows": rows}), "steps": None,
                                     "epochs": training.epochs or 1.0}) for rows in group.train_rows]


def _decoder_spec(profile: Profile, experiment: DecoderExperiment, group: RunGroup, *, method: Method,
                  learning_rate: float, seed: int) -> RunSpec:
    """One run on a causal base; another batch size keeps the number of tokens."""
    training, decoder = profile.training, instruction_decoder(profile)
    continued = experiment.base == "continued"
    base = profile.continued if continued else decoder.model
    if base is None:
        raise UsageError(f"Expected a base 'continued' in profile {profile.profile}, which the experiment asks for, "
                         "but got none; give one.")
    usual = experiment.batch_size or (training.batch_size if continued else decoder.batch_size)
    batch_size = group.batch_size or usual
    durations = tuple(sorted({max(5, round(steps * usual / batch_size)) for steps in experiment.durations or ()}))
    steps = durations[-1] if durations else _steps(group.steps or experiment.steps or training.steps, usual, batch_size)
    return RunSpec(
        base=base, base_revision=resolve(base).revision, task=experiment.task, sizes=profile.tasks[experiment.task],
        method=method, learning_rate=learning_rate,
        schedule="constant_with_warmup" if durations else experiment.schedule or training.schedule,
        warmup_fraction=experiment.warmup_fraction, steps=steps, epochs=None if steps else training.epochs,
        batch_size=batch_size, optimiser=group.optimiser, dtype=training.dtype,
        checkpoints=group.checkpoints or training.checkpoints, seed=seed, durations=durations or None,
        weight_decay=group.weight_decay, decay_towards=group.decay_towards,
        attention_dropout=group.attention_dropout,
        gradient_accumulation=experiment.gradient_accumulation or (1 if continued else decoder.gradient_accumulation))


def _steps(steps: int | None, usual: int, batch_size: int) -> int | None:
    """As many steps of another batch size as keep the number of rows."""
    return steps and max(1, round(steps * usual / batch_size))


def instruction_decoder(profile: Profile) -> Decoder:
    """The base of instruction tuning that fits this machine: by its GPU's memory, the smallest where it has none."""
    memory = (hardware()["accelerator"] or {}).get("memory_gib", 0)
    return profile.decoder_for(memory) or min(profile.decoders, key=lambda decoder: decoder.gpu_memory_gib)
