"""The shape of a profile. Every value is checked when it is built; unknown keys are refused.

Its sections are in :mod:`~utils.profiles.values`, :mod:`~utils.profiles.experiments` and
:mod:`~utils.profiles.sections`; their names can be had from here as well.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from utils.profiles.experiments import (
    NO_ALPHA,
    DecoderExperiment,
    Experiment,
    Rates,
    RunGroup,
    RunGroups,
    Targets,
    Training,
    Variant,
)
from utils.profiles.sections import (
    Continual,
    Costs,
    DecoderEvaluation,
    Intervention,
    Preferences,
    PseudoLoss,
    Readout,
    ReleasedPair,
    ScaledRun,
    Sharpness,
    Spectra,
)
from utils.profiles.values import Checked, Fraction, ModelReference, Positive, Rate, Seed, TaskSizes

__all__ = ["NO_ALPHA", "Continual", "Costs", "Decoder", "DecoderEvaluation", "DecoderExperiment", "Experiment",
           "Fraction", "Hardware", "Intervention", "ModelReference", "Positive", "Preferences", "Profile", "PseudoLoss",
           "Rate", "Rates", "Readout", "ReleasedPair", "RunGroup", "RunGroups", "ScaledRun", "Seed", "Sharpness",
           "Spectra", "Targets", "TaskSizes", "Training", "Variant"]

NOTEBOOK_EXPERIMENTS = ("ranks", "second", "grid", "grid_second", "longer", "learning_rates", "rule", "fixed_rate",
                        "alpha_8", "matched_alpha", "rank_stabilised", "data", "variants")
DECODER_EXPERIMENTS = ("code", "mathematics", "instruction", "regularisers", "rates", "optimisers", "alpha", "modules",
                       "batches", "scalings", "vanilla", "vanilla_ranks", "vanilla_batches", "vanilla_durations")


class Hardware(Checked):
    """What the profile needs; the runner refuses to start with less."""

    device: Literal["cpu", "cuda"]
    min_memory_gib: Annotated[float, Field(gt=0)]
    min_disk_gib: Annotated[float, Field(gt=0)]
    min_gpu_memory_gib: Annotated[float, Field(ge=0)] = 0


class Decoder(Checked):
    """A causal base and the sizes that fit a GPU of `gpu_memory_gib` (0: a CPU)."""

    gpu_memory_gib: Annotated[float, Field(ge=0)]
    model: ModelReference
    batch_size: Positive
    gradient_accumulation: Positive = 1


def _named_once(pairs: tuple[ReleasedPair, ...]) -> tuple[ReleasedPair, ...]:
    names = [(pair.group, pair.label) for pair in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two pairs of group '{twice[0]}' are labelled '{twice[1]}'; each line of a figure needs a "
                         "label of its own")
    return pairs


class Profile(Checked):
    """One scale of the whole course: the same cells and functions run on it, whatever its size."""

    profile: Literal["smoke", "laptop", "workstation", "gpu", "paper"]
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
    readout: Readout = Readout()
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
    def _consistent(self) -> Self:
        self._consistent_seeds()
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
        by_rank = [group.learning_rate for group in self.experiments["ranks"].runs]
        ranks = {r for rates in by_rank if isinstance(rates, dict) for r in rates}
        if self.spectra.showcase_rank not in ranks:
            raise ValueError(f"'spectra.showcase_rank' is {self.spectra.showcase_rank}, but experiment 'ranks' trains "
                             f"only ranks {sorted(ranks)}")
        return self

    def _consistent_seeds(self) -> None:
        for name in ("seeds", "reference_seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"'{name}' names a seed twice; each must be there once")
        if shared := set(self.seeds) & set(self.reference_seeds):  # "yours agrees" would be the reference with itself
            raise ValueError(f"'seeds' and 'reference_seeds' share the seed {min(shared)}; give the reader one of "
                             "their own")
        own = {*self.seeds, *self.reference_seeds}
        for name, experiment in (self.experiments | self.decoder_experiments).items():
            if both := own & set(experiment.further_seeds):
                raise ValueError(f"experiment '{name}' names the seed {min(both)} among its 'further_seeds', which the "
                                 "profile has already; name others")

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
