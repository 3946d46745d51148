"""The shape of a profile. Every value is checked when it is built; unknown keys are refused."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hardware(_Checked):
    """What the profile needs; the runner refuses to start with less."""

    device: Literal["cpu", "cuda"]
    min_memory_gib: Annotated[float, Field(gt=0)]
    min_disk_gib: Annotated[float, Field(gt=0)]
    min_gpu_memory_gib: Annotated[float, Field(ge=0)] = 0


class ModelReference(_Checked):
    """A base model: packaged on PyPI (`packaged`), on the Hub (`hub`) or in a folder (`local`)."""

    source: Literal["packaged", "hub", "local"]
    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None  # a branch, tag or commit on the Hub; what it resolved to is recorded with each run


class Decoder(_Checked):
    """A causal base and the sizes that fit a GPU of `gpu_memory_gib` (0: a CPU)."""

    gpu_memory_gib: Annotated[float, Field(ge=0)]
    model: ModelReference
    batch_size: Positive
    gradient_accumulation: Positive = 1
    max_length: Positive


class TaskSizes(_Checked):
    """How much of a task is used; `null` rows means all of them."""

    train_rows: Positive | None = None
    test_rows: Positive | None = None
    max_length: Annotated[int, Field(ge=8, le=8192)]


class Training(_Checked):
    """What every classification run of the profile shares. Give `steps` or `epochs`, not both."""

    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive
    warmup_fraction: Fraction = 0.06
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoints: Positive  # how many times, evenly spaced and with the last step, a run is saved and evaluated

    @model_validator(mode="after")
    def _one_length(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self


NOTEBOOK_EXPERIMENTS = ("ranks", "second", "learning_rates", "rule", "fixed_rate", "alpha_8", "matched_alpha",
                        "rank_stabilised", "data", "variants")
DECODER_EXPERIMENTS = ("code", "mathematics", "instruction", "regularisers", "rates", "optimisers", "alpha", "modules",
                       "batches", "scalings", "vanilla", "vanilla_ranks", "vanilla_batches", "vanilla_durations")
Variant = Literal["lora", "b_only", "lora_plus", "pissa", "adalora", "vera", "milora", "init_ab", "olora", "lora_ga",
                  "lora_ga_peft", "dora", "gralora", "randlora", "loft"]
NO_ALPHA = ("vera", "randlora")  # variants whose scale is not alpha over rank
Targets = Literal["all", "attention", "mlp"]


Rates = Rate | Annotated[tuple[Rate, ...], Field(min_length=1)]


class RunGroup(_Checked):
    """Runs of one method. LoRA runs name a learning rate, or several, for each rank.

    `lora_alpha` is a number, ``r`` or ``2r``; `rank_stabilised` scales by alpha / sqrt(r) (rsLoRA) instead of by alpha
    / r. `variant` is what kind of LoRA (:mod:`utils.training.variants`); VeRA and RandLoRA have no alpha. With
    `train_rows` there is one run for each number of training rows, as many times over them as over the whole set, once
    where the profile counts in steps. `targets` says which matrices are tuned; `weight_decay` is the second paper's:
    every step takes that share of the weights, or of their way from W0 where `decay_towards` is ``base``, times rate
    over peak rate. `batch_size` keeps the number of tokens: a larger batch takes fewer steps. `steps` and
    `checkpoints`, where given, replace the experiment's. A `reference_only` group is trained when reference results
    are made, and never by a reader; a `first_seed_only` group with the first of several seeds.
    """

    method: Literal["full", "lora"]
    learning_rate: Rates | dict[Positive, Rates]
    lora_alpha: Annotated[int, Field(ge=1)] | Literal["r", "2r"] | None = None
    rank_stabilised: bool = False
    variant: Variant = "lora"
    train_rows: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    checkpoints: Positive | None = None
    targets: Targets = "all"
    optimiser: Literal["adamw", "lion"] = "adamw"
    weight_decay: Fraction = 0.0
    decay_towards: Literal["zero", "base"] = "zero"
    attention_dropout: Fraction = 0.0
    batch_size: Positive | None = None
    steps: Positive | None = None
    reference_only: bool = False
    first_seed_only: bool = False

    @property
    def rates(self) -> list[tuple[int | None, float]]:
        """Rank (None for full fine-tuning) and learning rate of every run."""
        by_rank = self.learning_rate if isinstance(self.learning_rate, dict) else {None: self.learning_rate}
        return [(r, rate) for r, rates in by_rank.items() for rate in (rates if isinstance(rates, tuple) else (rates,))]

    def alpha_of(self, r: int | None) -> int | None:
        """Alpha at a rank."""
        return {"r": r, "2r": 2 * (r or 0)}.get(self.lora_alpha, self.lora_alpha)

    @model_validator(mode="after")
    def _fits_method(self):
        by_rank = isinstance(self.learning_rate, dict)
        if self.weight_decay and self.method != "full":
            raise ValueError("'weight_decay' goes with method 'full'; an adapter's factors are not the weights")
        if self.variant != "lora" and (self.method == "full" or self.rank_stabilised):
            raise ValueError(f"variant '{self.variant}' goes with method 'lora' and its own scaling")
        if self.variant in NO_ALPHA:
            if self.lora_alpha is not None or not by_rank or not self.learning_rate:
                raise ValueError(f"variant '{self.variant}' takes a 'learning_rate' for each rank and no 'lora_alpha'")
            return self
        if self.method == "full" and (by_rank or self.lora_alpha is not None or self.rank_stabilised):
            raise ValueError("method 'full' takes no ranks under 'learning_rate' and neither 'lora_alpha' nor "
                             "'rank_stabilised'")
        if self.method == "lora" and (not by_rank or not self.learning_rate or self.lora_alpha is None):
            raise ValueError("method 'lora' takes 'lora_alpha' (a whole number, r or 2r) and a 'learning_rate' for "
                             "each rank, such as {1: 0.002, 8: 0.001}")
        return self


def _each_once(groups: tuple[RunGroup, ...]) -> tuple[RunGroup, ...]:
    """Two groups that name one and the same run give every table two rows where one belongs."""
    seen = set()
    for group in groups:
        for r, rate in group.rates:
            alpha = group.alpha_of(r)
            for rows in group.train_rows or (None,):
                run = (r, alpha, rate, group.rank_stabilised, group.variant, rows, group.targets, group.optimiser,
                       group.weight_decay, group.decay_towards, group.attention_dropout, group.batch_size, group.steps)
                if run in seen:
                    raise ValueError(f"{'full' if r is None else f'rank {r}, alpha {alpha}'} at learning rate {rate:g} "
                                     "is named twice; a run must be there once")
                seen.add(run)
    return groups


RunGroups = Annotated[tuple[RunGroup, ...], Field(min_length=1), AfterValidator(_each_once)]


class Experiment(_Checked):
    """One task and the runs on it. `steps`, where given, replaces the profile's own length.

    A `reference_only` experiment is trained when reference results are made, and never by a reader. A `side`
    experiment answers one notebook's question and stays out of the figures over all main experiments.
    """

    task: str
    reference_only: bool = False
    side: bool = False
    runs: RunGroups
    steps: Positive | None = None


class DecoderExperiment(Experiment):
    """An experiment of the second paper, on a causal base.

    `base` is the one of continued pretraining, or of instruction tuning. With `durations` (optimiser steps) one run
    gives a learning curve whose every point had its own cooldown: the rate stays at its peak, and for each duration
    falls to zero over that duration's last fifth, starting from a copy.
    """

    base: Literal["continued", "instruction"] = "continued"
    durations: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    batch_size: Positive | None = None
    gradient_accumulation: Positive | None = None  # batches to a step
    warmup_fraction: Fraction = 0.02
    schedule: Literal["linear", "cosine"] | None = None  # the profile's own by default

    @model_validator(mode="after")
    def _one_way(self):
        if self.durations is not None and (self.steps is not None or list(self.durations) != sorted({*self.durations})):
            raise ValueError("'durations' must rise, and 'steps' is their last")
        if self.durations is not None and self.durations[0] < 5:
            raise ValueError("a duration of fewer than 5 steps leaves none to cool down")
        return self


class DecoderEvaluation(_Checked):
    """What is measured on causal models: how much held-out text, which tasks, and how generations are drawn."""

    general: str = "news"  # the text on which forgetting is measured: the base's pretraining, or near it
    blocks: Positive  # held-out blocks of it for the base of continued pretraining
    instruction_blocks: Positive  # and for that of instruction tuning
    kl_batches: Positive  # held-out batches of the new task on which the distance from the base is measured
    questions: Positive  # of generated mathematics, for exact match
    choice_tasks: Annotated[tuple[str, ...], Field(min_length=1)]  # of the evaluation harness
    choice_rows: Positive | None = None
    instruction_choice: bool = True  # multiple choice for the instruction-tuned models as well
    problems: Positive  # of HumanEval, the shortest ones
    samples: Positive  # generations of each
    max_new_tokens: Positive
    temperature: Annotated[float, Field(gt=0)] = 0.2
    top_p: Rate = 0.95
    high_temperature: Annotated[float, Field(gt=0)] = 0.8  # of pass@k


class Sharpness(_Checked):
    """The Hessian of notebook 14: which module's adapter, how many training rows, and when the search gives up."""

    module: str = "layers.0.self_attn.q_proj"
    rows: Positive = 8
    moment_rows: Positive = 64  # whose gradients' squares stand for Adam's second moment
    max_iterations: Positive = 60


class Spectra(_Checked):
    """What is counted: the k leading vectors, at each epsilon; the grid of fractions for the count against k."""

    k: Positive = 10
    epsilon: Rate = 0.5
    epsilons: Annotated[tuple[Rate, ...], Field(min_length=1)]
    k_fractions: Annotated[tuple[Rate, ...], Field(min_length=1)]
    showcase_rank: Positive  # the LoRA rank whose matrices the heat-maps show


class ScaledRun(_Checked):
    """A LoRA run of the intervention's experiment, by rank and learning rate."""

    r: Positive
    learning_rate: Rate
    reference_only: bool = False
    first_seed_only: bool = False


class Intervention(_Checked):
    """Scaling intruders: the grids of lambda for intruders and for the controls, and the runs they are scaled in."""

    experiment: str
    runs: Annotated[tuple[ScaledRun, ...], Field(min_length=1)]
    lambdas: Annotated[tuple[Annotated[float, Field(ge=0, le=4)], ...], Field(min_length=1)]
    control_lambdas: Annotated[tuple[Annotated[float, Field(ge=0, le=4)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _moves_something(self):
        if set(self.lambdas) <= {1.0} or set(self.control_lambdas) <= {1.0}:
            raise ValueError("'lambdas' and 'control_lambdas' need a value besides 1, which changes nothing")
        if 1 not in self.lambdas or 1 not in self.control_lambdas:
            raise ValueError("'lambdas' and 'control_lambdas' must both have 1, with which the others are compared")
        return self


class Continual(_Checked):
    """Tasks learnt one after the other, and how heads are tested on the frozen body after each."""

    tasks: tuple[str, ...]
    steps: Positive | None = None
    runs: RunGroups
    probe_train_rows: Positive
    probe_test_rows: Positive
    reference_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None  # the profile's own by default

    @model_validator(mode="after")
    def _a_sequence(self):
        if len(self.tasks) < 2:
            raise ValueError(f"a sequence needs two tasks or more, since with {len(self.tasks)} nothing can be "
                             "forgotten that was learnt before")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("'tasks' names a task twice; each stage needs one of its own")
        return self


class PseudoLoss(_Checked):
    """The text on which forgetting is measured: a corpus, how many passages, and tokens of each."""

    corpus: Literal["news", "roberta-pretraining"]
    passages: Positive
    tokens: Annotated[int, Field(ge=8, le=512)]


class Preferences(_Checked):
    """Preference tuning: which pairs, which policy and reward model under which chat templates, and every run.

    A template is named where the base brings none. `runs` holds ``sft`` (the first run is where the others start),
    ``reward`` (the first judges online), ``dpo``, ``swapped`` (the control: DPO on pairs swapped at random), ``orpo``
    and ``online_dpo``. The latter two may be left out, and so may the control.
    """

    task: str
    sizes: TaskSizes
    model: ModelReference
    template: str | None = None
    reward_model: ModelReference
    reward_template: str | None = None
    beta: Rate = 0.1
    steps: Positive
    batch_size: Positive  # of pairs
    gradient_accumulation: Positive = 1
    warmup_fraction: Fraction = 0.1
    max_new_tokens: Positive  # of an answer
    prompts: Positive  # held-out ones that are answered after training
    general: str = "news"  # the text on which forgetting is measured
    blocks: Positive  # held-out blocks of it
    runs: dict[Literal["sft", "reward", "dpo", "swapped", "orpo", "online_dpo"], RunGroups]

    @model_validator(mode="after")
    def _starts(self):
        if missing := [name for name in ("sft", "reward", "dpo") if name not in self.runs]:
            raise ValueError(f"'runs' must name {', '.join(missing)}, which the others go on from")
        for name in ("sft", "reward"):
            first = self.runs[name][0]
            if first.reference_only or first.first_seed_only or len(first.rates) != 1:
                raise ValueError(f"the first of '{name}' must be one run that every seed has")
        if self.max_new_tokens >= self.sizes.max_length:
            raise ValueError(f"'max_new_tokens' is {self.max_new_tokens}, which leaves no room for a prompt within "
                             f"'max_length' {self.sizes.max_length}")
        return self


class Costs(_Checked):
    """What memory and time are measured on (a few steps of a model with random weights), and few-shot costs."""

    model: ModelReference
    batch_size: Positive
    length: Positive
    r: Positive = 8
    shots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]  # worked examples before a question
    choice_rows: Positive  # questions of each of the evaluation's choice tasks


class ReleasedPair(_Checked):
    """A published model and the base it was tuned from, by Hub names or folders; never trained here, only read.

    `allow_pickle` is leave to read `tuned`, and it alone, from a pickle by torch's restricted loader.
    """

    group: Annotated[str, Field(min_length=1)]  # what it was tuned on: one panel of a figure
    label: Annotated[str, Field(min_length=1)]  # how: one line of it, such as "full" or "LoRA r=16"
    base: Annotated[str, Field(min_length=1)]
    tuned: Annotated[str, Field(min_length=1)]
    base_revision: str | None = None
    tuned_revision: str | None = None
    allow_pickle: bool = False


def _named_once(pairs: tuple[ReleasedPair, ...]) -> tuple[ReleasedPair, ...]:
    names = [(pair.group, pair.label) for pair in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two pairs of group '{twice[0]}' are labelled '{twice[1]}'; each line of a figure needs a "
                         "label of its own")
    return pairs


class Profile(_Checked):
    """One scale of the whole course: the same cells and functions run on it, whatever its size."""

    profile: Literal["smoke", "laptop", "gpu", "paper"]
    summary: str
    evidence: bool  # False stamps each figure "not evidence"
    hardware: Hardware
    sources: tuple[str, ...] = ()  # packaged sources to fetch ahead of time
    encoder: ModelReference
    decoders: tuple[Decoder, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    reference_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskSizes], Field(min_length=1)]
    training: Training
    experiments: dict[str, Experiment]
    spectra: Spectra
    pseudo_loss: PseudoLoss
    intervention: Intervention
    continual: Continual
    released: Annotated[tuple[ReleasedPair, ...], AfterValidator(_named_once)] = ()
    continued: ModelReference | None = None  # the base of continued pretraining
    decoder_experiments: dict[str, DecoderExperiment] = {}
    decoder_evaluation: DecoderEvaluation | None = None
    sharpness: Sharpness = Sharpness()
    preferences: Preferences | None = None
    costs: Costs | None = None
    whole: bool = False  # with the reference-only runs: what reference results are made of, never set in a file
    run_code: bool = False  # generated code is run in the sandbox: asked for on the command line, never set in a file

    @model_validator(mode="after")
    def _consistent(self):
        for name in ("seeds", "reference_seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"'{name}' names a seed twice; each must be there once")
        for name in NOTEBOOK_EXPERIMENTS:
            if name not in self.experiments:
                raise ValueError(f"'experiments' must name '{name}', which the notebooks read")
        for name, experiment in self.experiments.items():
            if experiment.task not in self.tasks:
                raise ValueError(f"experiment '{name}' uses task '{experiment.task}', which 'tasks' gives no sizes "
                                 f"(it has {', '.join(self.tasks)})")
        if any(self.experiments[name].reference_only for name in ("ranks", "second")):
            raise ValueError("experiments 'ranks' and 'second' are the notebooks' own and cannot be 'reference_only'")
        self._consistent_decoders()
        for name in self.continual.tasks:
            if name not in self.tasks:
                raise ValueError(f"'continual' names task '{name}', which 'tasks' gives no sizes")
        if self.intervention.experiment not in self.experiments:
            raise ValueError(f"'intervention' names experiment '{self.intervention.experiment}', which is not there")
        ranks = {r for group in self.experiments["ranks"].runs if group.method == "lora" for r in group.learning_rate}
        if self.spectra.showcase_rank not in ranks:
            raise ValueError(f"'spectra.showcase_rank' is {self.spectra.showcase_rank}, but experiment 'ranks' trains "
                             f"only ranks {sorted(ranks)}")
        return self

    def _consistent_decoders(self) -> None:
        if not self.decoder_experiments:
            return
        for name in DECODER_EXPERIMENTS:
            if name not in self.decoder_experiments:
                raise ValueError(f"'decoder_experiments' must name '{name}', which the notebooks read")
        if self.continued is None or self.decoder_evaluation is None or not self.decoders:
            raise ValueError("'decoder_experiments' need 'continued', 'decoders' and 'decoder_evaluation' beside them")
        for name, experiment in self.decoder_experiments.items():
            if name in self.experiments:
                raise ValueError(f"'{name}' is an experiment and a decoder experiment; each name must be there once")
            if experiment.task not in self.tasks:
                raise ValueError(f"decoder experiment '{name}' uses task '{experiment.task}', which 'tasks' gives no "
                                 f"sizes (it has {', '.join(self.tasks)})")

    @property
    def shown_experiments(self) -> tuple[str, ...]:
        """The main experiments that the notebooks train."""
        return tuple(name for name, experiment in self.experiments.items()
                     if not experiment.reference_only and not experiment.side)

    def with_reference_runs(self) -> "Profile":
        """The same profile with its reference-only runs: what reference results are made of."""
        return self.model_copy(update={"whole": True})

    def with_generated_code(self, run: bool = True) -> "Profile":
        """The same profile with leave to run generated code, in the sandbox and nowhere else."""
        return self.model_copy(update={"run_code": run})

    def experiment(self, name: str) -> Experiment | None:
        """The experiment of that name, of either paper; None if there is none."""
        return self.experiments.get(name) or self.decoder_experiments.get(name)

    def decoder_for(self, gpu_memory_gib: float) -> Decoder | None:
        """The largest causal base that fits the memory at hand, or None if none does."""
        fitting = [decoder for decoder in self.decoders if decoder.gpu_memory_gib <= gpu_memory_gib]
        return max(fitting, key=lambda decoder: decoder.gpu_memory_gib, default=None)
