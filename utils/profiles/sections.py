"""What a profile measures and on what: spectra, interventions, sequences, preferences, costs, released pairs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from utils.profiles.experiments import RunGroups
from utils.profiles.values import Checked, Fraction, ModelReference, Positive, Rate, Seed, TaskSizes


class DecoderEvaluation(Checked):
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


class Sharpness(Checked):
    """The Hessian of notebook 14: which module's adapter, how many training rows, and when the search gives up."""

    module: str = "layers.0.self_attn.q_proj"
    rows: Positive = 8
    moment_rows: Positive = 64  # whose gradients' squares stand for Adam's second moment
    max_iterations: Positive = 60


class Spectra(Checked):
    """What is counted: the k leading vectors, at each epsilon; the grid of fractions for the count against k."""

    k: Positive = 10
    epsilon: Rate = 0.5
    epsilons: Annotated[tuple[Rate, ...], Field(min_length=1)]
    k_fractions: Annotated[tuple[Rate, ...], Field(min_length=1)]
    showcase_rank: Positive  # the LoRA rank whose matrices the heat-maps show


Factor = Annotated[float, Field(ge=0, le=4)]


class Lambdas(Checked):
    """The strengths at which each kind of change is measured; a kind without any is left out.

    1, which changes nothing, is measured for each kind, and the whole update's 0, which is the untouched base.
    """

    intruder: Annotated[tuple[Factor, ...], Field(min_length=1)]
    update_triplet: tuple[Factor, ...] = ()
    neighbour: tuple[Factor, ...] = ()
    random_direction: tuple[Factor, ...] = ()
    whole_update: tuple[Factor, ...] = ()

    @model_validator(mode="after")
    def _moves_something(self) -> Self:
        if set(self.intruder) <= {1.0}:
            raise ValueError("'intruder' needs a value besides 1, which changes nothing")
        return self


class ScaledRun(Checked):
    """A LoRA run of the intervention's experiment, by rank and learning rate.

    One with `lambdas` of its own is scaled at those and nothing more: its intruders are not removed one by one.
    """

    r: Positive
    learning_rate: Rate
    reference_only: bool = False
    first_seed_only: bool = False
    lambdas: Lambdas | None = None


class Intervention(Checked):
    """Scaling intruders: the runs they are scaled in, the strengths, and of which tokens forgetting is measured.

    Beside each run stand those of its experiment that were trained at these shares of its rate (`smaller_rates`), as
    far as the reader trains them; the reference has all of them, and `reference_lambdas` in place of `lambdas`.
    Forgetting is measured on the pseudo-loss's `paired_passages`, with every `masked_every`-th token masked in turn.
    """

    experiment: str
    runs: Annotated[tuple[ScaledRun, ...], Field(min_length=1)]
    lambdas: Lambdas
    reference_lambdas: Lambdas | None = None
    smaller_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.25)
    masked_every: Positive = 1

    def lambdas_of(self, r: int | None, learning_rate: float, *, whole: bool) -> Lambdas:
        """The strengths of one run; `whole` is said of the reference."""
        own = next((one.lambdas for one in self.runs if (one.r, one.learning_rate) == (r, learning_rate)), None)
        return own or (self.reference_lambdas if whole and self.reference_lambdas else self.lambdas)


class Continual(Checked):
    """Tasks learnt one after the other, and how heads are tested on the frozen body after each."""

    tasks: tuple[str, ...]
    steps: Positive | None = None
    runs: RunGroups
    probe_train_rows: Positive
    probe_test_rows: Positive
    reference_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None  # the profile's own by default

    @model_validator(mode="after")
    def _a_sequence(self) -> Self:
        if len(self.tasks) < 2:
            raise ValueError(f"a sequence needs two tasks or more, since with {len(self.tasks)} nothing can be "
                             "forgotten that was learnt before")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("'tasks' names a task twice; each stage needs one of its own")
        return self


class PseudoLoss(Checked):
    """The text on which forgetting is measured: a corpus, how many passages, and tokens of each.

    `paired_passages` are what two runs are compared on passage by passage.
    """

    corpus: Literal["news", "roberta-pretraining"]
    passages: Positive
    paired_passages: Positive = 128
    tokens: Annotated[int, Field(ge=8, le=512)]

    @property
    def paired(self) -> Self:
        """The same text, of as many passages as paired comparisons need."""
        return self.model_copy(update={"passages": self.paired_passages})


class Readout(Checked):
    """The text on which a masked-LM's readout is fitted anew: blocks of so many tokens, other than what it reads."""

    blocks: Positive = 192
    tokens: Annotated[int, Field(ge=8, le=512)] = 64


class Preferences(Checked):
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
    def _starts(self) -> Self:
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


class Costs(Checked):
    """What memory and time are measured on (a few steps of a model with random weights), and few-shot costs."""

    model: ModelReference
    batch_size: Positive
    length: Positive
    r: Positive = 8
    shots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]  # worked examples before a question
    choice_rows: Positive  # questions of each of the evaluation's choice tasks


class ReleasedPair(Checked):
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
