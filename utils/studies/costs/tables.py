"""What is published and what the formula says of it (notebook 15): GPUs, small models, PEFT's benchmark, a calculator.

Nothing here is measured; what is measured is in :mod:`utils.studies.costs.measure`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pandas as pd

from utils.errors import UsageError
from utils.evaluation.costs import RESERVE_GIB, fits, gpu, prediction, run_cost, step_flops, training_hours
from utils.evaluation.step_memory import Shape, adapter_parameters, memory_parts
from utils.paths import PAPER
from utils.training.recipe import Recipe

PEFT_SETTINGS = {"precision": "bfloat16", "batch": 4, "length": 768, "padded": True, "targets": "qv"}


@cache
def read_paper(name: str) -> pd.DataFrame:
    """A committed table of published numbers by its file name; a copy is the caller's to make."""
    return pd.read_csv(PAPER / name)


def gpus() -> pd.DataFrame:
    """GPUs as published; each row names its source, and prices are the reader's to enter.

    Returns
    -------
    pandas.DataFrame
        ``gpu``, ``memory_gib``, ``bandwidth_gb_s``, ``watts``, ``bf16_tflops`` (dense; NaN where it is not
        established), ``year``, ``source``.
    """
    return read_paper("gpus.csv").copy()


def model_shapes() -> dict[str, Shape]:
    """The small models of the field by name."""
    fields = Shape.__dataclass_fields__
    rows = read_paper("small_models.csv").to_dict("records")
    return {row["model"]: Shape(**{name: row[name] for name in fields}) for row in rows}


def small_models(*, batch: int = 4, length: int = 512) -> pd.DataFrame:
    """Small models compared: shape, pretraining tokens, and memory by the formula for serving and three ways to train.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``parameters_million`` (by the formula), ``layers``, ``hidden``, ``vocabulary``, ``embedding_share``,
        ``tokens_trillion``, ``tokens_per_parameter``, ``weights_gib`` (bfloat16), ``full_gib`` (mixed precision,
        AdamW), ``lora_gib``, ``qlora_gib`` (rank 8, bfloat16), all with checkpointing; ``year``, ``source``.
    """
    rows, common = [], {"batch": batch, "length": length, "padded": True, "checkpointing": True}
    for row in read_paper("small_models.csv").to_dict("records"):
        shape = model_shapes()[row["model"]]
        ways = {"full_gib": Recipe(precision="mixed", **common),
                "lora_gib": Recipe("lora", precision="bfloat16", **common),
                "qlora_gib": Recipe("qlora", precision="bfloat16", **common)}
        rows.append({"model": row["model"], "parameters_million": shape.parameters / 1e6, "layers": shape.layers,
                     "hidden": shape.hidden, "vocabulary": shape.vocabulary,
                     "embedding_share": shape.embeddings / shape.parameters, "tokens_trillion": row["tokens_trillion"],
                     "tokens_per_parameter": row["tokens_trillion"] * 1e12 / shape.parameters,
                     "weights_gib": 2 * shape.parameters / 2**30,
                     **{name: memory_parts(shape, recipe)["total"] / 2**30 for name, recipe in ways.items()},
                     "year": row["year"], "source": row["source"]})
    return pd.DataFrame(rows)


def peft_predictions() -> pd.DataFrame:
    """The formula beside the GPU memory that PEFT's benchmark reports, for full fine-tuning and plain LoRA.

    Batches of 4 are padded to at most 768 tokens, all in bfloat16, LoRA on queries and values; the longest batch sets
    the peak. Columns ``method``, ``trained``, ``trained_published``, ``predicted_gib``, ``published_gib``, ``ratio``.
    """
    table, shape, rows = read_paper("peft_metamath.csv"), model_shapes()["Llama-3.2-3B"], []
    for variant, recipe in (("lr_0.00001", Recipe("full", **PEFT_SETTINGS)),
                            ("rank32", Recipe("lora", r=32, **PEFT_SETTINGS)),
                            ("rank64", Recipe("lora", r=64, **PEFT_SETTINGS))):
        found = table[(table["variant"] == variant) & table["method"].isin(["full", "LoRA"])].iloc[0]
        row = prediction(shape, recipe)
        rows.append({"method": row["recipe"], "trained": row["trained"], "trained_published": found["trained"],
                     "predicted_gib": row["predicted_gib"], "published_gib": found["memory_gib"],
                     "ratio": row["predicted_gib"] / found["memory_gib"]})
    return pd.DataFrame(rows)


def calculator(model: str | Shape, gpu_name: str, recipe: Recipe) -> pd.DataFrame:
    """Your GPU, your model, full or LoRA: fits or not, and what to change.

    Parameters
    ----------
    model : str or Shape
        A name of :func:`small_models`, or any shape.
    gpu_name : str
        A name of :func:`gpus`; UsageError naming the known ones otherwise.
    """
    shapes = model_shapes()
    if isinstance(model, str) and model not in shapes:
        raise UsageError(f"Expected a model of the table, got '{model}'; take one of {', '.join(shapes)}, or give any "
                         "other as Shape(...).")
    shape = shapes[model] if isinstance(model, str) else model
    return fits(shape, recipe, float(gpu(gpus(), gpu_name)["memory_gib"]))


def run_table(model: str, recipe: Recipe, *, tokens: float, prices: Mapping[str, Mapping[str, float]],
              utilisation: float = 0.3, tokens_per_second: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Hours and cost of one run on every GPU of the table on which it fits.

    Parameters
    ----------
    tokens : float
        Of the whole run.
    prices : mapping of str to mapping
        By GPU, what :func:`utils.evaluation.costs.run_cost` takes: ``{"price_per_hour": …}`` for a rented one,
        ``{"purchase_price": …, "price_per_kwh": …}`` for an own one, whose watts are the table's.
    utilisation : float
        Share of the peak that training reaches, for GPUs whose bfloat16 peak the table knows.
    tokens_per_second : mapping of str to float, optional
        Speeds that you measured; they go before the estimate.

    Returns
    -------
    pandas.DataFrame
        ``gpu``, ``memory_gib``, ``needed_gib``, ``hours`` and ``cost``, NaN where speed or price is not known.
    """
    shape, speeds, rows = model_shapes()[model], tokens_per_second or {}, []
    for name in (*prices, *speeds):
        gpu(gpus(), name)  # an unknown name is refused before anything is computed
    needed = memory_parts(shape, recipe)["total"] / 2**30 + RESERVE_GIB
    for row in gpus().query("memory_gib >= @needed").itertuples():
        if row.gpu in speeds:
            hours = tokens / speeds[row.gpu] / 3600
        else:
            hours = math.nan if math.isnan(row.bf16_tflops) else training_hours(
                shape, recipe, tokens, tflops=row.bf16_tflops, utilisation=utilisation)
        price = dict(prices.get(row.gpu, {}))
        if "purchase_price" in price:
            price.setdefault("watts", row.watts)
        known = bool(price) and not math.isnan(hours)
        rows.append({"gpu": row.gpu, "memory_gib": row.memory_gib, "needed_gib": needed, "hours": hours,
                     "cost": run_cost(hours, **price) if known else math.nan})
    return pd.DataFrame(rows, columns=["gpu", "memory_gib", "needed_gib", "hours", "cost"])


def batch_grid(model: str, recipe: Recipe, batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> pd.DataFrame:
    """Memory against the batch size, each method in the numbers that it is usually trained in.

    Full fine-tuning keeps the recipe's precision; LoRA and QLoRA stand on a base of bfloat16.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``recipe``, ``method``, ``checkpointing``, ``batch``, ``predicted_gib``.
    """
    shape, rows = model_shapes()[model], []
    for method in ("full", "lora", "qlora"):
        precision = recipe.precision if method == "full" else "bfloat16"
        for again in (False, True):
            for batch in batches:
                now = replace(recipe, method=method, batch=batch, checkpointing=again, precision=precision)
                rows.append({"model": model, "recipe": now.label, "method": method, "checkpointing": again,
                             "batch": batch, "predicted_gib": memory_parts(shape, now)["total"] / 2**30})
    return pd.DataFrame(rows)


def parameter_table(shape: Shape, ranks: tuple[int, ...] = (1, 8, 64)) -> pd.DataFrame:
    """What full fine-tuning and LoRA of several ranks train: ``recipe``, ``trained``, ``share``, ``flops_share``."""
    whole = step_flops(shape, Recipe())
    rows = [{"recipe": "full", "trained": shape.parameters, "share": 1.0, "flops_share": 1.0}]
    for r in ranks:
        recipe = Recipe("lora", r=r)
        rows.append({"recipe": f"LoRA r={r}", "trained": adapter_parameters(shape, recipe),
                     "share": adapter_parameters(shape, recipe) / shape.parameters,
                     "flops_share": step_flops(shape, recipe) / whole})
    return pd.DataFrame(rows)
