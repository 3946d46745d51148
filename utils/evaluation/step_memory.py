"""The memory of a training step by arithmetic: parameters, and bytes at the step's peak, tensor by tensor.

For decoders of Llama's shape: grouped attention, a gated feed-forward block, RMSNorm, rotary positions. Counted is
what transformers and PEFT keep for the backward pass; :mod:`utils.training.footprint` measures the same. Weights,
gradients and optimiser states alone, the second paper's way, are in :mod:`utils.evaluation.memory`.
"""

from dataclasses import dataclass

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
                         f"got '{kind}'; do choose such a one.")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(hidden=config.hidden_size, intermediate=config.intermediate_size, layers=config.num_hidden_layers,
                 heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, head_dim=head_dim,
                 vocabulary=config.vocab_size, tied=config.tie_word_embeddings)


def adapter_parameters(shape: Shape, recipe: Recipe) -> int:
    """Parameters of LoRA's factors: r (out + in) for each adapted map; 0 for full fine-tuning."""
    if recipe.full:
        return 0
    return shape.layers * sum(recipe.r * sum(size) for _, size in _adapted(shape, recipe))


def trained_parameters(shape: Shape, recipe: Recipe) -> int:
    """How many parameters the recipe trains."""
    return shape.parameters if recipe.full else adapter_parameters(shape, recipe)


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
