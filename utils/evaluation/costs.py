"""What training costs by arithmetic: floating-point operations, whether it fits a GPU, hours and money.

The memory of a step is in :mod:`utils.evaluation.step_memory`, whose names can be had from here as well.
"""

import math
from dataclasses import replace

import pandas as pd

from utils.errors import UsageError
from utils.evaluation.step_memory import (
    EIGHT_BIT,
    NF4,
    PRECISIONS,
    Shape,
    activation_bytes,
    adapter_parameters,
    layer_bytes,
    memory_parts,
    moments,
    shape_of,
    state_bytes,
    trained_parameters,
    weight_bytes,
)
from utils.training.recipe import Recipe

__all__ = ["EIGHT_BIT", "NF4", "PRECISIONS", "RESERVE_GIB", "Shape", "activation_bytes", "adapter_parameters",
           "changes", "fits", "gpu", "layer_bytes", "memory_parts", "moments", "prediction", "run_cost", "shape_of",
           "state_bytes", "step_flops", "trained_parameters", "training_hours", "verdict", "weight_bytes"]

RESERVE_GIB = 1.0  # CUDA's context, the libraries' workspace, and what the allocator cannot use


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
        raise UsageError(f"Expected a GPU of the table, got '{name}'; do take one of {', '.join(gpus['gpu'])}.")
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
        raise UsageError(f"Expected the GPU's memory in GiB as a positive number, got {available_gib}; do give "
                         "such a one.")
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
        raise UsageError(f"Expected positive tokens and TFLOPS and a utilisation in (0, 1], got {tokens}, {tflops} and "
                         f"{utilisation}; do give such.")
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
        raise UsageError("Expected either a price per hour or a purchase price, got both or neither; do give "
                         "one of them.")
    given = [value for value in (hours, price_per_hour, purchase_price, watts, price_per_kwh) if value is not None]
    if min(given) < 0 or lifetime_hours <= 0 or not all(map(math.isfinite, given)):
        raise UsageError(f"Expected hours, prices and watts of 0 or more and a positive lifetime, got {given} and "
                         f"{lifetime_hours}; do give such.")
    if price_per_hour is not None:
        return hours * price_per_hour
    return hours * (purchase_price / lifetime_hours + watts / 1000 * price_per_kwh)
