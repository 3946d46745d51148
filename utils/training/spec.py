"""A run's specification: frozen, validated, and hashed into the run's key."""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from utils.errors import UsageError
from utils.files import canonical_json
from utils.profiles import Experiment, Profile
from utils.profiles.schema import ModelReference, Positive, Rate, TaskSizes
from utils.sources.models import resolve
from utils.sources.tasks import task

FORMAT = 1  # raised when the meaning of a field changes, so that older runs are not mistaken for the same


class Method(BaseModel):
    """Full fine-tuning, or LoRA with its rank, alpha and scaling."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["full", "lora"]
    r: Positive | None = None
    lora_alpha: Positive | None = None
    rank_stabilised: bool = False

    @model_validator(mode="after")
    def _complete(self):
        if (self.kind == "lora") != (self.r is not None and self.lora_alpha is not None):
            raise ValueError("LoRA needs r and lora_alpha; full fine-tuning takes neither")
        return self

    @property
    def scale(self) -> float:
        """What BA is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA.

        >>> Method(kind="lora", r=16, lora_alpha=32).scale, Method(kind="lora", r=16, lora_alpha=32,
        ...                                                       rank_stabilised=True).scale
        (2.0, 8.0)
        """
        return self.lora_alpha / (self.r**0.5 if self.rank_stabilised else self.r)

    @property
    def label(self) -> str:
        """A short name for tables and legends, such as ``full`` or ``LoRA r=8``."""
        return "full" if self.kind == "full" else f"LoRA r={self.r}"


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
    optimiser: Literal["adamw"] = "adamw"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoints: Positive
    seed: int

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the sha256 of the canonical JSON."""
        content = canonical_json({"format": FORMAT} | self.model_dump(mode="json"))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

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
        A key of ``profile.experiments``.
    seeds : tuple of int, optional
        The profile's own seeds by default.
    """
    if experiment not in profile.experiments:
        raise UsageError(f"Profile {profile.profile} has no experiment '{experiment}'; it has "
                         f"{', '.join(profile.experiments)}.")
    chosen = profile.experiments[experiment]
    return [_spec(profile, chosen, method, rate, seed)
            for seed in (profile.seeds if seeds is None else seeds) for method, rate in _methods(chosen)]


def _methods(experiment: Experiment) -> list[tuple[Method, float]]:
    found = []
    for group in experiment.runs:
        if group.method == "full":
            found.append((Method(kind="full"), group.learning_rate))
            continue
        for r, rate in group.learning_rate.items():
            alpha = 2 * r if group.lora_alpha == "2r" else group.lora_alpha
            found.append((Method(kind="lora", r=r, lora_alpha=alpha, rank_stabilised=group.rank_stabilised), rate))
    return found


def _spec(profile: Profile, experiment: Experiment, method: Method, learning_rate: float, seed: int) -> RunSpec:
    task(experiment.task)  # an unknown name fails here, before anything is downloaded
    training = profile.training
    return RunSpec(
        base=profile.encoder, base_revision=resolve(profile.encoder).revision, task=experiment.task,
        sizes=profile.tasks[experiment.task], method=method, learning_rate=learning_rate, schedule=training.schedule,
        warmup_fraction=training.warmup_fraction, steps=experiment.steps or training.steps,
        epochs=None if experiment.steps else training.epochs, batch_size=training.batch_size, dtype=training.dtype,
        checkpoints=training.checkpoints, seed=seed)
