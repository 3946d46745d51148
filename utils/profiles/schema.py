"""The shape of a profile. Every value is checked when it is built; unknown keys are refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class RunGroup(_Checked):
    """Runs of one method. LoRA runs name a learning rate for each rank.

    `lora_alpha` is a number, or ``2r``; `rank_stabilised` scales by alpha / sqrt(r) (rsLoRA) instead of alpha / r.
    """

    method: Literal["full", "lora"]
    learning_rate: Rate | dict[Positive, Rate]
    lora_alpha: Annotated[int, Field(ge=1)] | Literal["2r"] | None = None
    rank_stabilised: bool = False

    @model_validator(mode="after")
    def _fits_method(self):
        by_rank = isinstance(self.learning_rate, dict)
        if self.method == "full" and (by_rank or self.lora_alpha is not None or self.rank_stabilised):
            raise ValueError("method 'full' takes one number as 'learning_rate' and neither 'lora_alpha' nor "
                             "'rank_stabilised'")
        if self.method == "lora" and (not by_rank or not self.learning_rate or self.lora_alpha is None):
            raise ValueError("method 'lora' takes 'lora_alpha' (a whole number or 2r) and a 'learning_rate' for each "
                             "rank, such as {1: 0.002, 8: 0.001}")
        return self


class Experiment(_Checked):
    """One task and the runs on it. `steps`, where given, replaces the profile's own length.

    A `reference_only` experiment is trained when reference results are made, with one seed, and never by a reader.
    """

    task: str
    reference_only: bool = False
    runs: Annotated[tuple[RunGroup, ...], Field(min_length=1)]
    steps: Positive | None = None


class Spectra(_Checked):
    """What is counted: the k leading vectors, at each epsilon; the grid of fractions for the count against k."""

    k: Positive = 10
    epsilon: Rate = 0.5
    epsilons: Annotated[tuple[Rate, ...], Field(min_length=1)]
    k_fractions: Annotated[tuple[Rate, ...], Field(min_length=1)]
    showcase_rank: Positive  # the LoRA rank whose matrices the heat-maps show


class PseudoLoss(_Checked):
    """The text on which forgetting is measured: a corpus, how many passages, and tokens of each."""

    corpus: Literal["news", "roberta-pretraining"]
    passages: Positive
    tokens: Annotated[int, Field(ge=8, le=512)]


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

    @model_validator(mode="after")
    def _consistent(self):
        for name in ("seeds", "reference_seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"'{name}' names a seed twice; each must be there once")
        for name in ("ranks", "second"):
            if name not in self.experiments:
                raise ValueError(f"'experiments' must name '{name}', which the notebooks read")
        for name, experiment in self.experiments.items():
            if experiment.task not in self.tasks:
                raise ValueError(f"experiment '{name}' uses task '{experiment.task}', which 'tasks' gives no sizes "
                                 f"(it has {', '.join(self.tasks)})")
        if any(self.experiments[name].reference_only for name in ("ranks", "second")):
            raise ValueError("experiments 'ranks' and 'second' are the notebooks' own and cannot be 'reference_only'")
        ranks = {r for group in self.experiments["ranks"].runs if group.method == "lora" for r in group.learning_rate}
        if self.spectra.showcase_rank not in ranks:
            raise ValueError(f"'spectra.showcase_rank' is {self.spectra.showcase_rank}, but experiment 'ranks' trains "
                             f"only ranks {sorted(ranks)}")
        return self

    @property
    def shown_experiments(self) -> tuple[str, ...]:
        """The experiments that the notebooks train."""
        return tuple(name for name, experiment in self.experiments.items() if not experiment.reference_only)

    def decoder_for(self, gpu_memory_gib: float) -> Decoder | None:
        """The largest causal base that fits the memory at hand, or None if none does."""
        fitting = [decoder for decoder in self.decoders if decoder.gpu_memory_gib <= gpu_memory_gib]
        return max(fitting, key=lambda decoder: decoder.gpu_memory_gib, default=None)
