"""Which runs a profile trains: groups of runs of one method, gathered under experiments."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from utils.profiles.values import Checked, Fraction, Positive, Rate, Seed

Variant = Literal["lora", "b_only", "lora_plus", "pissa", "adalora", "vera", "milora", "init_ab", "olora", "lora_ga",
                  "lora_ga_peft", "dora", "gralora", "randlora", "loft"]
NO_ALPHA = ("vera", "randlora")  # variants whose scale is not alpha over rank
Targets = Literal["all", "attention", "mlp"]


class Training(Checked):
    """What every classification run of the profile shares. Give `steps` or `epochs`, not both."""

    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive
    warmup_fraction: Fraction = 0.06
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoints: Positive  # how many times, evenly spaced and with the last step, a run is saved and evaluated

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self


Rates = Rate | Annotated[tuple[Rate, ...], Field(min_length=1)]


class RunGroup(Checked):
    """Runs of one method. LoRA runs name a learning rate, or several, for each rank.

    `lora_alpha` is a number, ``r`` or ``2r``; `rank_stabilised` scales by alpha / sqrt(r) (rsLoRA) instead of by alpha
    / r. `variant` is what kind of LoRA (:mod:`utils.training.variants`); VeRA and RandLoRA have no alpha. With
    `train_rows` there is one run for each number of training rows, as many times over them as over the whole set, once
    where the profile counts in steps. `targets` says which matrices are tuned; `weight_decay` is the second paper's:
    every step takes that share of the weights, or of their way from W0 where `decay_towards` is ``base``, times rate
    over peak rate. `batch_size` keeps the number of tokens: a larger batch takes fewer steps. `steps` and
    `checkpoints`, where given, replace the experiment's. A `reference_only` group is trained when reference results
    are made, and never by a reader; a `first_seed_only` group with the first of several seeds. `further_seeds` are the
    reference's beyond the profile's own: this group is made with them too, and the groups beside it that do not name
    them are not.
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
    further_seeds: tuple[Seed, ...] = ()

    @property
    def rates(self) -> list[tuple[int | None, float]]:
        """Rank (None for full fine-tuning) and learning rate of every run."""
        by_rank = self.learning_rate if isinstance(self.learning_rate, dict) else {None: self.learning_rate}
        return [(r, rate) for r, rates in by_rank.items() for rate in (rates if isinstance(rates, tuple) else (rates,))]

    def alpha_of(self, r: int | None) -> int | None:
        """Alpha at a rank."""
        if isinstance(self.lora_alpha, str):
            return r if self.lora_alpha == "r" else 2 * (r or 0)
        return self.lora_alpha

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
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


class Experiment(Checked):
    """One task and the runs on it. `steps`, where given, replaces the profile's own length.

    A `reference_only` experiment is trained when reference results are made, and never by a reader. A `side`
    experiment answers one notebook's question and stays out of the figures over all main experiments.
    `validation_rows`, where given, replaces the task's own.
    """

    task: str
    validation_rows: Positive | None = None
    reference_only: bool = False
    side: bool = False
    runs: RunGroups
    steps: Positive | None = None

    @property
    def further_seeds(self) -> tuple[int, ...]:
        """The seeds that some of its groups are made with beyond the profile's, rising."""
        return tuple(sorted({seed for group in self.runs for seed in group.further_seeds}))


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
    def _one_way(self) -> Self:
        if self.durations is not None and (self.steps is not None or list(self.durations) != sorted({*self.durations})):
            raise ValueError("'durations' must rise, and 'steps' is their last")
        if self.durations is not None and self.durations[0] < 5:
            raise ValueError("a duration of fewer than 5 steps leaves none to cool down")
        return self
