"""The Hessian beside the learning rates (notebook 14): profile and seeds in, tables out."""

import pandas as pd
import torch

from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import Sharpness
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, experiment_runs, identity
from utils.reporting.statistics import rank_correlation
from utils.spectra.hessian import (
    adam_threshold,
    adapter_parameters,
    extremes,
    gradient_bounds,
    module_parameters,
    preconditioned_extremes,
)
from utils.studies.variants.measure import published_best, variant_name, variant_sweep
from utils.studies.variants.tables import best_of_each
from utils.training.store import Run
from utils.training.targets import tuned_modules
from utils.training.train import built, first_batches
from utils.training.weights import restore_adapter

VERSION = 1
PLACES = ("initialisation", "trained")
TOLERANCES = {"tolerance": 1e-3, "residual_tolerance": 1e-2}  # of the spectral scale
NOT_ADAMW = ("LoFT",)  # its steps are not AdamW's on the factors


@measurement(columns=(*RUN_COLUMNS, "variant", "at", "block", "largest", "smallest", "residual_largest",
                      "residual_smallest", "iterations", "converged", "parameters", "seconds", "gradient_bound",
                      "gauss_newton", "preconditioned", "best_learning_rate", "threshold"), published=published_best,
             runs=("vanilla",))
def variant_hessian(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Both ends of the Hessian of every adapter, each at its best learning rate, before and after training.

    Full fine-tuning is left out. All losses are means over the same first training rows of a seed.

    Returns
    -------
    pandas.DataFrame
        One row per seed, method, ``block`` (``module``: the adapter of one module, as in the study; ``adapter``: all of
        it) and ``at`` (initialisation, trained): ``largest`` and ``smallest`` eigenvalue with ``residual_largest``,
        ``residual_smallest``, ``iterations``, ``converged``, ``parameters``, ``seconds``; ``gradient_bound`` (what the
        loss's gradient alone gives both ends, for modules with A and B); ``gauss_newton`` (largest eigenvalue without
        the gradient's share; module only); ``preconditioned`` (largest eigenvalue in AdamW's coordinates; whole
        adapter, trained); ``best_learning_rate``, ``threshold`` (what full-batch Adam allows at that rate).
    """
    best = best_of_each(variant_sweep(profile, seeds)).set_index("variant")["learning_rate"]
    rows = []
    for run in experiment_runs(profile, "vanilla", seeds):
        name = variant_name(run)
        if run.spec.method.kind == "full" or run.spec.learning_rate != best.get(name):
            continue
        for at in PLACES:
            table = run.measured(f"hessian-{at}", {"version": VERSION} | profile.sharpness.model_dump(),
                                 lambda run, at=at: measure(run, at, profile.sharpness))
            found = table.drop(columns=list(run.spec.columns)).to_dict("records")
            rows += [identity(profile, "vanilla", run) | {"variant": name, "at": at} | row
                     | {"best_learning_rate": run.spec.learning_rate,
                        "threshold": adam_threshold(run.spec.learning_rate)} for row in found]
    return pd.DataFrame(rows)


def measure(run: Run, at: str, settings: Sharpness) -> pd.DataFrame:
    """Two rows, the module's adapter and the whole one, of a run before its first step or after its last."""
    model, rows, *_ = built(run.spec, run.base)
    batches = first_batches(rows, run.base, run.spec, count=settings.rows)
    training = first_batches(rows, run.base, run.spec, count=settings.moment_rows)
    if at == "trained":
        restore_adapter(model, run.trained())
    model = model.to(device_name()).eval()
    model.get_base_model().set_attn_implementation("eager")  # the default has no second derivative
    batches, training = ([{name: tensor.to(model.device) for name, tensor in batch.items()} for batch in part]
                         for part in (batches, training))
    blocks = {"module": module_parameters(model, settings.module), "adapter": adapter_parameters(model)}
    found = [{"block": block} | _ends(model, batches, parameters, settings=settings)
             for block, parameters in blocks.items()]
    bounds = _bounds(model, batches)
    found[0] |= {"gradient_bound": bounds.get(settings.module), "gauss_newton": extremes(
        model, batches, blocks["module"], kind="gauss_newton", **_search(settings))["largest"]}
    found[1] |= {"gradient_bound": max(bounds.values(), default=None)}
    if at == "trained" and variant_name(run) not in NOT_ADAMW:
        found[1] |= {"preconditioned": preconditioned_extremes(
            model, batches, blocks["adapter"], training_batches=training, **_search(settings))["largest"]}
    columns = ["block", *_KEPT, "gradient_bound", "gauss_newton", "preconditioned"]
    return pd.DataFrame(found, columns=columns)


_KEPT = ("largest", "smallest", "residual_largest", "residual_smallest", "iterations", "converged", "parameters",
         "seconds")


def _search(settings: Sharpness) -> dict:
    return TOLERANCES | {"max_iterations": settings.max_iterations}


def _ends(model, batches: list[dict], parameters: list[torch.nn.Parameter], *, settings: Sharpness) -> dict:
    found = extremes(model, batches, parameters, **_search(settings))
    return {name: found[name] for name in _KEPT}


def _bounds(model, batches: list[dict]) -> dict[str, float]:
    names = [name for name, module in tuned_modules(model).items()
             if hasattr(module, "lora_A") and not hasattr(module, "lora_E")]
    return gradient_bounds(model, batches, names) if names else {}


def sharpness_correlation(table: pd.DataFrame, column: str = "largest") -> pd.DataFrame:
    """Spearman's rho over methods between `column` and the best rate: of each seed, block and place.

    Returns
    -------
    pandas.DataFrame
        ``seed``, ``block``, ``at``, ``rho``, ``low``, ``high``, ``p``, ``n``.
    """
    rows = []
    for (seed, block, at), part in table.groupby(["seed", "block", "at"], sort=False):
        known = part.dropna(subset=[column, "best_learning_rate"])
        rows.append({"seed": seed, "block": block, "at": at}
                    | rank_correlation(known[column], known["best_learning_rate"]))
    return pd.DataFrame(rows)
