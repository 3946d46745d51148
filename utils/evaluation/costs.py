"""What training costs by arithmetic: parameters, memory at its peak, floating-point operations, and money.

For decoders of Llama's shape: grouped attention, a gated feed-forward block, RMSNorm, rotary positions. Memory counts
what transformers and PEFT keep for the backward pass, tensor by tensor; :mod:`utils.training.footprint` measures the
same. Weights, gradients and optimiser states alone, the second paper's way, are in :mod:`utils.evaluation.memory`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from utils.errors import UsageError
from utils.evaluation.memory import GRADIENT, MASTER, MOMENT, WEIGHT
from utils.training.recipe import Recipe

# Bytes of a trained parameter: its weight with all copies of it, its gradient, one moment of the optimiser.
PRECISIONS = {"float32": (4, 4, 4), "mixed": (MASTER + WEIGHT, GRADIENT, MOMENT), "bfloat16": (2, 2, 2)}
EIGHT_BIT = 1 + 4 / 256  # bitsandbytes: a byte, and a float32 scale for each block of 256
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # four bits, an 8-bit scale for each 64, a float32 for each 256 of those
MOMENTS = {"adamw": 2, "adamw8bit": 2, "lion": 1, "sgd": 0, "adafactor": 0}  # per parameter
FLOAT = 4
RESERVE_GIB = 1.0  # CUDA's context, the libraries' workspace, and what the allocator cannot use
LLAMA_TYPES = ("llama", "qwen2", "qwen3", "mistral", "smollm3")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-shaped decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the seven linear maps of a layer."""
        h, f, a, kv = self.hidden, self.intermediate, self.queries, self.keys
        return {"q_proj": (a, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, a), "gate_proj": (f, h),
                "up_proj": (f, h), "down_proj": (h, f)}

    @property
    def linear(self) -> int:
        """Parameters of the linear maps in all layers: what LoRA adapts and four bits replace."""
        return self.layers * sum(out * width for out, width in self.matrices.values())

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings and, where it is not tied to them, of the output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters, norms included, without the biases that some models have.

        >>> Shape(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, head_dim=64, vocabulary=49152,
        ...       tied=True).parameters
        134515008
        """
        return self.linear + self.embeddings + self.hidden * (2 * self.layers + 1)


def shape_of(config) -> Shape:
    """The shape of a transformers configuration; UsageError if the model is not of Llama's kind."""
    kind = getattr(config, "model_type", None)
    if kind not in LLAMA_TYPES:
        raise UsageError(f"Expected a model of one of the types {', '.join(LLAMA_TYPES)}, which the formulas describe, "
                         f"but '{kind}' came.")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(hidden=config.hidden_size, intermediate=config.intermediate_size, layers=config.num_hidden_layers,
                 heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, head_dim=head_dim,
                 vocabulary=config.vocab_size, tied=config.tie_word_embeddings)


def adapter_parameters(shape: Shape, recipe: Recipe) -> int:
    """Parameters of LoRA's factors: r (out + in) for each adapted map; 0 for full fine-tuning."""
    if recipe.full:
        return 0
    return shape.layers * sum(recipe.r * sum(size) for _, size in _adapted(shape, recipe))


def _adapted(shape: Shape, recipe: Recipe) -> list[tuple[str, tuple[int, int]]]:
    chosen = ("q_proj", "v_proj") if recipe.targets == "qv" else tuple(shape.matrices)
    return [(name, size) for name, size in shape.matrices.items() if name in chosen]


def weight_bytes(shape: Shape, recipe: Recipe) -> float:
    """Bytes of the model's own weights with every copy, without an adapter."""
    trained, _, _ = PRECISIONS[recipe.precision]
    if recipe.full:
        return trained * shape.parameters
    if recipe.method == "qlora":
        return NF4 * shape.linear + recipe.activation_bytes * (shape.parameters - shape.linear)
    return recipe.activation_bytes * shape.parameters


def state_bytes(shape: Shape, recipe: Recipe) -> float:
    """Bytes of the optimiser's states. Adafactor keeps one number for each row and each column of a matrix."""
    moment = PRECISIONS[recipe.precision][2] if recipe.full else FLOAT
    trained = shape.parameters if recipe.full else adapter_parameters(shape, recipe)
    if recipe.optimiser != "adafactor":
        size = EIGHT_BIT if recipe.optimiser == "adamw8bit" else moment
        return size * MOMENTS[recipe.optimiser] * trained
    if not recipe.full:
        sides = sum(out + width + 2 * recipe.r for _, (out, width) in _adapted(shape, recipe))
        return moment * shape.layers * sides
    sides = shape.layers * sum(out + width for out, width in shape.matrices.values())
    sides += (shape.vocabulary + shape.hidden) * (1 if shape.tied else 2)
    return moment * (sides + shape.hidden * (2 * shape.layers + 1))


def layer_bytes(shape: Shape, recipe: Recipe) -> float:
    """Bytes per token that one layer keeps for its backward pass.

    RMSNorm keeps its input as float32 and, where its own weight is trained, the normalised input; attention keeps
    queries, keys, values and its output; the gated block keeps three vectors of the inner width. A linear map keeps its
    input only where it is trained or adapted. PEFT computes adapters in float32, so that in bfloat16 each adapted map
    keeps a float32 copy of its input instead.
    """
    h, f, a, e = shape.hidden, shape.intermediate, shape.queries, recipe.activation_bytes
    eager = recipe.attention == "eager"
    norms = 2 * (FLOAT * (h + 1) + (e * h if recipe.full else 0))
    repeated = 2 * a if recipe.padded or eager else 2 * shape.keys
    scores = (FLOAT + (e if e < FLOAT else 0)) * recipe.length if eager else FLOAT + e * shape.head_dim
    inner = norms + e * (a + repeated + 3 * f) + shape.heads * scores
    return inner + _inputs_bytes(shape, recipe)


def _inputs_bytes(shape: Shape, recipe: Recipe) -> float:
    """What the linear maps keep; attention's own kernel (not the eager way) has its output already."""
    h, f, a = shape.hidden, shape.intermediate, shape.queries
    adapted = dict(_adapted(shape, recipe))
    if recipe.full or recipe.activation_bytes == FLOAT:
        kept = shape.matrices if recipe.full else adapted
        inputs = {"q_proj": ("normed", h), "k_proj": ("normed", h), "v_proj": ("normed", h), "gate_proj": ("inner", h),
                  "up_proj": ("inner", h), "down_proj": ("product", f)}
        inputs |= {"o_proj": ("attention", a)} if recipe.attention == "eager" else {}
        shared = dict(inputs[name] for name in kept if name in inputs)
        total = recipe.activation_bytes * sum(shared.values())
    else:
        total = FLOAT * sum(width for _, width in adapted.values())
    return total if recipe.full else total + FLOAT * recipe.r * len(adapted)


def activation_bytes(shape: Shape, recipe: Recipe) -> float:
    """Bytes that the whole forward pass keeps: every layer's, or with checkpointing every layer's input."""
    h, e = shape.hidden, recipe.activation_bytes
    last = FLOAT * (h + 1) + (2 * e * h if recipe.full else 0)  # the final norm, and the output layer's input
    if recipe.checkpointing:
        return recipe.tokens * (shape.layers * e * h + last)
    # Nothing before the first adapter is trained, so its norm keeps nothing.
    first = 0 if recipe.full else FLOAT * (h + 1)
    return recipe.tokens * (shape.layers * layer_bytes(shape, recipe) - first + last)


def moments(shape: Shape, recipe: Recipe) -> pd.DataFrame:
    """Bytes by part at the three moments of a step that can be its peak.

    ``loss``: all activations are kept, and three float32 copies of the logits exist (log-softmax, and two gradients).
    ``last layer``: the backward pass enters the layers; with checkpointing one layer is computed anew.
    ``update``: all gradients are there. Tied embeddings get theirs from two sides, so two more of that size exist.

    Returns
    -------
    pandas.DataFrame
        Indexed by moment, columns ``weights``, ``adapter``, ``gradients``, ``optimiser``, ``activations``,
        ``temporary``, in bytes.
    """
    _, gradient, _ = PRECISIONS[recipe.precision]
    trained = adapter_parameters(shape, recipe)
    table = shape.vocabulary * shape.hidden
    head, kept = gradient * table if recipe.full else 0, activation_bytes(shape, recipe)
    one_layer = recipe.tokens * layer_bytes(shape, recipe) if recipe.checkpointing else 0
    flowing = recipe.tokens * recipe.activation_bytes * 3 * shape.intermediate
    unpacked = WEIGHT * max(out * width for out, width in shape.matrices.values()) if recipe.method == "qlora" else 0
    gradients = gradient * shape.parameters if recipe.full else FLOAT * trained
    steady = {"weights": weight_bytes(shape, recipe), "adapter": FLOAT * trained,
              "optimiser": state_bytes(shape, recipe)}
    rows = {
        "loss": {"gradients": 0, "activations": kept, "temporary": 3 * FLOAT * recipe.tokens * shape.vocabulary},
        "last layer": {"gradients": head, "activations": kept + one_layer, "temporary": flowing + unpacked},
        "update": {"gradients": gradients, "activations": 0, "temporary": _update_bytes(shape, recipe, head)}}
    frame = pd.DataFrame({name: steady | row for name, row in rows.items()}).T
    return frame[["weights", "adapter", "gradients", "optimiser", "activations", "temporary"]]


def _update_bytes(shape: Shape, recipe: Recipe, head: float) -> float:
    """What exists besides the gradients when the last of them is made, or in the optimiser's step."""
    tied = 2 * head if shape.tied else 0
    if recipe.optimiser not in ("adafactor", "lion"):
        return tied
    # Both form the update of one tensor at a time in buffers of its size.
    largest = max([out * width for out, width in shape.matrices.values()]
                  + [shape.vocabulary * shape.hidden] if recipe.full else
                  [recipe.r * max(size) for _, size in _adapted(shape, recipe)])
    return max(tied, FLOAT * largest * (1 if recipe.optimiser == "adafactor" else 2))


def memory_parts(shape: Shape, recipe: Recipe) -> dict[str, float]:
    """Bytes by part at the peak of a training step, with the ``moment`` of the peak and the ``total``.

    The reader's own tensors are counted, not the process, its libraries or a GPU's context.

    References
    ----------
    Korthikanti et al., "Reducing activation recomputation in large transformer models", arXiv 2205.05198, for the way
    of counting; what is kept is read from transformers 5 and PEFT 0.21 and checked against live tensors in
    ``tests/test_costs.py``.

    Examples
    --------
    >>> tiny = Shape(hidden=8, intermediate=16, layers=1, heads=2, kv_heads=2, head_dim=4, vocabulary=10, tied=True)
    >>> memory_parts(tiny, Recipe(batch=1, length=1))["moment"]
    'update'
    """
    table = moments(shape, recipe)
    totals = table.sum(axis=1)
    peak = totals.idxmax()
    return {"moment": peak} | {name: float(value) for name, value in table.loc[peak].items()} | {
        "total": float(totals[peak])}


def trained_parameters(shape: Shape, recipe: Recipe) -> int:
    """How many parameters the recipe trains."""
    return shape.parameters if recipe.full else adapter_parameters(shape, recipe)


def step_flops(shape: Shape, recipe: Recipe) -> float:
    """Floating-point operations of one training step on one batch.

    The forward pass takes two for each token and each parameter of a linear map or the output layer, and attention
    4 S for each query entry. The backward pass takes the same for the gradients of activations, and once more for those
    of weights, which a frozen base does not need. Checkpointing repeats the layers' forward pass.

    References
    ----------
    Kaplan et al., arXiv 2001.08361, section 2.1: 6 N D; for LoRA 4 N D and the factors' own 6.

    Examples
    --------
    >>> tiny = Shape(hidden=8, intermediate=16, layers=1, heads=2, kv_heads=2, head_dim=4, vocabulary=10, tied=True)
    >>> step_flops(tiny, Recipe(batch=1, length=1)) == 6 * (tiny.linear + 80) + 3 * 4 * 8
    True
    """
    layers = 2.0 * shape.linear + 4.0 * recipe.length * shape.queries * shape.layers
    head = 2.0 * shape.vocabulary * shape.hidden
    attention = 4.0 * recipe.length * shape.queries * shape.layers
    # Attention has no weights: its backward pass is twice its forward pass for every method.
    backward = 2 * (layers + head) if recipe.full else layers + head + attention
    adapter = 6.0 * adapter_parameters(shape, recipe)
    again = layers if recipe.checkpointing else 0.0
    return recipe.tokens * (layers + head + backward + adapter + again)


def prediction(shape: Shape, recipe: Recipe) -> dict:
    """One row of a table: the recipe, what it trains, its peak by part in GiB, and the operations per token."""
    parts = memory_parts(shape, recipe)
    return {"recipe": recipe.label, "method": recipe.method, "optimiser": recipe.optimiser,
            "checkpointing": recipe.checkpointing, "batch": recipe.batch, "length": recipe.length,
            "trained": trained_parameters(shape, recipe), "moment": parts["moment"],
            "predicted_gib": parts["total"] / 2**30,
            **{f"{name}_gib": parts[name] / 2**30 for name in ("weights", "adapter", "gradients", "optimiser",
                                                               "activations", "temporary")},
            "flops_per_token": step_flops(shape, recipe) / recipe.tokens}


# The calculator ------------------------------------------------------------------------------------------------------


def gpu(gpus: pd.DataFrame, name: str) -> pd.Series:
    """The row of a GPU, by its name without regard to case; UsageError naming the known ones otherwise."""
    found = gpus[gpus["gpu"].str.lower() == str(name).strip().lower()]
    if found.empty:
        raise UsageError(f"Expected a GPU of the table, but '{name}' came; it knows {', '.join(gpus['gpu'])}.")
    return found.iloc[0]


def changes(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """What one would change to need less memory, each step on top of those before, the least harmful first.

    Checkpointing and a smaller batch (with accumulation) leave the result as it is and cost time; an 8-bit optimiser
    hardly changes it; LoRA and QLoRA are other methods.
    """
    steps, now = [], recipe
    if now.batch > 1:
        now = replace(now, batch=1)
        steps.append((f"batches of 1, accumulated {recipe.batch} times", now))
    if not now.checkpointing:
        now = replace(now, checkpointing=True)
        steps.append(("gradient checkpointing", now))
    if now.full and now.optimiser in ("adamw", "lion"):
        now = replace(now, optimiser="adamw8bit")
        steps.append(("an 8-bit optimiser", now))
    if now.full:
        now = replace(now, method="lora", optimiser="adamw", precision="bfloat16")
        steps.append((f"LoRA of rank {now.r}", now))
    if now.method == "lora":
        now = replace(now, method="qlora", precision="bfloat16")
        steps.append((f"QLoRA of rank {now.r}", now))
    return steps


def fits(shape: Shape, recipe: Recipe, available_gib: float, *, reserve_gib: float = RESERVE_GIB) -> pd.DataFrame:
    """Whether a recipe fits, and if not, what to change until it does.

    Parameters
    ----------
    available_gib : float
        Memory of the GPU; `reserve_gib` of it is kept for what the formula does not count.

    Returns
    -------
    pandas.DataFrame
        ``change`` (empty in the first row; each adds to those before), ``recipe``, ``needed_gib`` (reserve included),
        ``available_gib``, ``fits``. It ends with the first row that fits, or with "a smaller model or shorter
        sequences" where none does.

    Raises
    ------
    UsageError
        If the memory is not a positive number.

    Examples
    --------
    >>> llama = Shape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, head_dim=128,
    ...               vocabulary=32000, tied=False)
    >>> fits(llama, Recipe("lora", precision="bfloat16"), 24)["fits"].tolist()
    [True]
    """
    if not (math.isfinite(available_gib) and available_gib > 0):
        raise UsageError(f"Expected the GPU's memory in GiB as a positive number, but {available_gib} came.")
    rows = []
    for change, now in [("", recipe), *changes(recipe)]:
        needed = memory_parts(shape, now)["total"] / 2**30 + reserve_gib
        rows.append({"change": change, "recipe": now.label, "needed_gib": needed, "available_gib": available_gib,
                     "fits": needed <= available_gib})
        if needed <= available_gib:
            return pd.DataFrame(rows)
    rows.append({"change": "a smaller model or shorter sequences", "recipe": "", "needed_gib": float("nan"),
                 "available_gib": available_gib, "fits": False})
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str:
    """The table of :func:`fits` as one sentence."""
    first, last = table.iloc[0], table.iloc[-1]
    needs = f"{first['recipe']} needs {first['needed_gib']:.1f} of {first['available_gib']:.1f} GiB"
    if first["fits"]:
        return f"It fits: {needs}."
    if not last["fits"]:
        return f"It does not fit: {needs}, and no change of the recipe is enough; take {last['change']}."
    steps = ", then ".join(table["change"].iloc[1:])
    return f"It does not fit: {needs}. Change this: {steps}; then it needs {last['needed_gib']:.1f} GiB."


def fit_grid(models: Mapping[str, Shape], recipes: Iterable[Recipe], gpus: pd.DataFrame, *,
             reserve_gib: float = RESERVE_GIB) -> pd.DataFrame:
    """The smallest GPU of the table for each model and recipe, as it is.

    Returns
    -------
    DataFrame
        Columns ``model``, ``recipe``, ``needed_gib``, ``smallest`` (empty where none has enough).
    """
    rows, by_size = [], gpus.sort_values("memory_gib", kind="stable")
    for model, shape in models.items():
        for recipe in recipes:
            needed = memory_parts(shape, recipe)["total"] / 2**30 + reserve_gib
            enough = by_size[by_size["memory_gib"] >= needed]
            rows.append({"model": model, "recipe": recipe.label, "needed_gib": needed,
                         "smallest": "" if enough.empty else enough.iloc[0]["gpu"]})
    return pd.DataFrame(rows)


def training_hours(shape: Shape, recipe: Recipe, tokens: float, *, tflops: float, utilisation: float = 0.3) -> float:
    """Hours that a run over so many tokens takes, at a share of the GPU's peak.

    Parameters
    ----------
    tokens : float
        Of the whole run.
    tflops : float
        The GPU's peak in the number type used, in 1e12 operations a second.
    utilisation : float in (0, 1]
        What share of it training reaches: 0.2 to 0.5 is usual on one GPU; measure yours.
    """
    if not (tokens > 0 and tflops > 0 and 0 < utilisation <= 1):
        raise UsageError(f"Expected positive tokens and TFLOPS and a utilisation in (0, 1], but {tokens}, {tflops} and "
                         f"{utilisation} came.")
    return step_flops(shape, recipe) / recipe.tokens * tokens / (tflops * 1e12 * utilisation) / 3600


def run_cost(hours: float, *, price_per_hour: float | None = None, purchase_price: float | None = None,
             lifetime_hours: float = 10_000, watts: float = 0.0, price_per_kwh: float = 0.0) -> float:
    """What a run costs, in the currency of the prices given: rented by the hour, or bought and paid off by use.

    Parameters
    ----------
    price_per_hour : float, optional
        Of a rented GPU, electricity included.
    purchase_price : float, optional
        Of an own one, which lasts `lifetime_hours` of use and draws `watts` at `price_per_kwh`.

    Examples
    --------
    >>> run_cost(10, price_per_hour=0.5), round(run_cost(10, purchase_price=1000, watts=300, price_per_kwh=0.3), 6)
    (5.0, 1.9)
    """
    if (price_per_hour is None) == (purchase_price is None):
        raise UsageError("Expected either a price per hour or a purchase price, but both or neither came.")
    given = [value for value in (hours, price_per_hour, purchase_price, watts, price_per_kwh) if value is not None]
    if min(given) < 0 or lifetime_hours <= 0 or not all(map(math.isfinite, given)):
        raise UsageError("Expected hours, prices and watts of 0 or more and a positive lifetime.")
    if price_per_hour is not None:
        return hours * price_per_hour
    return hours * (purchase_price / lifetime_hours + watts / 1000 * price_per_kwh)
