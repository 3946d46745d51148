"""Vanilla LoRA beside its variants, each on its own grid of learning rates (notebook 14): profile and seeds in, tables
out. What the tables say is compared at the end of this module: tables in, tables out.
"""

import numpy as np
import pandas as pd

from utils.machine import device_name
from utils.paths import PAPER
from utils.profiles import Profile
from utils.reporting.registry import measurement
from utils.reporting.runs import RUN_COLUMNS, Seeds, experiment_runs, identity, run_intruders
from utils.reporting.statistics import mean_interval
from utils.sources.models import BaseModel
from utils.spectra import update_table
from utils.studies.learning.measure import base_causal_lm, task_batches
from utils.studies.sensitivity.tables import best_rates
from utils.tables import cached_table
from utils.training.blocks import block_batches, text_blocks
from utils.training.metrics import causal_loss, token_accuracy
from utils.training.spec import RunSpec
from utils.training.store import Run, base_folder

VERSION = 1
EXPERIMENTS = ("vanilla", "vanilla_ranks", "vanilla_batches", "vanilla_durations")
LOSS = "loss_nats_per_token"
VANILLA = "LoRA"
LACKING = ("rsLoRA", "LoRA+", "full", "LoRA-GA (PEFT)")  # rows of ours, which the study does not have
MEASURED = (LOSS, "token_accuracy", "token_accuracy_se", "general_loss", "n_intruders", "relative_norm")


@measurement(columns=(*RUN_COLUMNS, "variant", "batch_size", "steps", "trainable_parameters", "train_seconds",
                      "diverged", "loss_nats_per_token", "token_accuracy", "token_accuracy_se", "general_loss",
                      "relative_norm", "n_intruders", "base_loss_nats_per_token", "base_token_accuracy",
                      "base_token_accuracy_se", "base_general_loss", "learning", "forgetting",))
def variant_sweep(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Every run of the study: method by learning rate, and rank, batch size and duration varied.

    Returns
    -------
    pandas.DataFrame
        One row per run, diverged ones included with ``diverged`` True and NaN for what could not be measured:
        ``variant`` (the method without its rank), ``batch_size``, ``steps``, ``trainable_parameters``,
        ``train_seconds``, ``loss_nats_per_token`` and ``token_accuracy`` (held-out, with ``token_accuracy_se``),
        ``general_loss`` (held-out text of the base's pretraining), ``n_intruders`` at the profile's epsilon,
        ``relative_norm`` (mean over matrices of update over W0), ``base_*`` of the untouched base, ``learning``
        (base loss minus loss) and ``forgetting`` (general loss minus the base's).
    """
    rows = []
    for experiment in (name for name in EXPERIMENTS if name in profile.decoder_experiments):
        for run in experiment_runs(profile, experiment, seeds, diverged=True):
            before = _base_row(run.base, run.spec, profile)
            found = dict.fromkeys(MEASURED, np.nan) if run.diverged else _run_row(run, profile)
            rows.append(identity(profile, experiment, run) | _what(run) | found
                        | {f"base_{name}": value for name, value in before.items()}
                        | {"learning": before[LOSS] - found[LOSS],
                           "forgetting": found["general_loss"] - before["general_loss"]})
    return pd.DataFrame(rows)


def variant_name(run: Run) -> str:
    """A method's label without its rank: what a line of a figure is called."""
    return run.spec.method.label.split(" r=")[0]


def _what(run: Run) -> dict:
    measured = run.result["measured"]
    return {"variant": variant_name(run), "batch_size": run.spec.batch_size, "steps": measured["steps"],
            "trainable_parameters": measured["trainable_parameters"], "train_seconds": measured["train_seconds"],
            "diverged": run.diverged}


def _run_row(run: Run, profile: Profile) -> dict:
    def compute(run: Run) -> pd.DataFrame:
        updates = update_table(run.base_matrices(), run.tuned_matrices(), run.factors())
        return pd.DataFrame([_measures(run.causal_lm().to(device_name()), run.base, run.spec, profile)
                             | {"relative_norm": updates["relative_norm"].mean()}])

    found = run.measured("variant", _settings(profile), compute).iloc[0]
    row = {name: found[name] for name in MEASURED if name in found}
    return {LOSS: run.metrics()[LOSS].iloc[-1]} | row | {"n_intruders": run_intruders(run, profile.spectra)}


def _base_row(base: BaseModel, spec: RunSpec, profile: Profile) -> dict:
    def compute() -> pd.DataFrame:
        model = base_causal_lm(base)
        return pd.DataFrame([{LOSS: causal_loss(model, task_batches(spec, base))[LOSS]}
                             | _measures(model, base, spec, profile)])

    tag = _settings(profile) | {"sizes": spec.sizes.model_dump()}
    return cached_table(base_folder(base) / f"variant-{spec.task}.parquet", tag, compute).iloc[0].to_dict()


def _measures(model, base: BaseModel, spec: RunSpec, profile: Profile) -> dict:
    settings = profile.decoder_evaluation
    general = text_blocks(settings.general, "heldout", base.folder, length=spec.sizes.max_length)
    return {**token_accuracy(model, task_batches(spec, base)),
            "general_loss": causal_loss(model, block_batches(general[:settings.instruction_blocks]))[LOSS]}


def _settings(profile: Profile) -> dict:
    names = ("general", "instruction_blocks")
    return {"version": VERSION} | {name: getattr(profile.decoder_evaluation, name) for name in names}


def main_grid(table: pd.DataFrame) -> pd.DataFrame:
    """The runs at the usual rank, batch and duration, diverged ones left out."""
    return table[(table["experiment"] == "vanilla") & ~table["diverged"].astype(bool)]


def best_of_each(table: pd.DataFrame) -> pd.DataFrame:
    """Best learning rate of every method: by mean loss over seeds, and at that rate the means with intervals.

    The rate is chosen on the same held-out rows that it is judged on, for every method alike.

    Returns
    -------
    pandas.DataFrame
        In order of loss: ``variant``, ``learning_rate``, ``edge`` (as in
        :func:`utils.reporting.sensitivity.best_rates`), ``rates`` (tried), ``ratio`` (of vanilla LoRA's best rate to
        this one), mean of ``loss_nats_per_token``, ``token_accuracy``, ``forgetting``, ``n_intruders`` with
        ``<name>_low`` and ``<name>_high`` (95 % t-intervals over seeds), ``seeds``.
    """
    grid = complete_rates(main_grid(table))
    best = best_rates(grid.assign(step=grid["steps"]), ["variant"])
    vanilla = best.loc[best["variant"] == VANILLA, "learning_rate"]
    rows = []
    for row in best.to_dict("records"):
        chosen = grid[(grid["variant"] == row["variant"]) & np.isclose(grid["learning_rate"], row["learning_rate"])]
        found = {name: row[name] for name in ("variant", "learning_rate", "edge", "rates")}
        found["ratio"] = vanilla.iloc[0] / row["learning_rate"] if len(vanilla) else np.nan
        for name in (LOSS, "token_accuracy", "forgetting", "n_intruders"):
            found[name], found[f"{name}_low"], found[f"{name}_high"] = mean_interval(chosen[name])
        rows.append(found | {"seeds": len(chosen)})
    return pd.DataFrame(rows).sort_values(LOSS, ignore_index=True)


def complete_rates(grid: pd.DataFrame) -> pd.DataFrame:
    """Without the rates at which a seed is missing: a mean over the seeds that survived would flatter a rate."""
    counts = grid.groupby(["variant", "learning_rate"])["seed"].transform("nunique")
    return grid[counts == counts.groupby(grid["variant"]).transform("max")]


def borrowed_rate(table: pd.DataFrame) -> pd.DataFrame:
    """What each method loses at vanilla LoRA's best rate, and what vanilla LoRA loses at each method's.

    Returns
    -------
    pandas.DataFrame
        ``variant``, ``own_rate``, ``borrowed_rate`` (the nearest rate of the method's own grid to vanilla's best, in
        the logarithm), ``lost_nats`` and ``lost_accuracy`` (its own best minus at the borrowed rate, positive is a
        loss), ``vanilla_lost_nats`` (vanilla LoRA at the method's best rate), ``seeds``; means over seeds.
    """
    grid, best = main_grid(table), best_of_each(table).set_index("variant")
    means = grid.groupby(["variant", "learning_rate"])[[LOSS, "token_accuracy"]].mean()
    if VANILLA not in best.index:
        return pd.DataFrame()
    rows = []
    for variant, row in best.iterrows():
        borrowed = _nearest(means.loc[variant].index, best.loc[VANILLA, "learning_rate"])
        lent = _nearest(means.loc[VANILLA].index, row["learning_rate"])
        at, own = means.loc[(variant, borrowed)], means.loc[(variant, row["learning_rate"])]
        rows.append({"variant": variant, "own_rate": row["learning_rate"], "borrowed_rate": borrowed,
                     "lost_nats": at[LOSS] - own[LOSS], "lost_accuracy": own["token_accuracy"] - at["token_accuracy"],
                     "vanilla_lost_nats": means.loc[(VANILLA, lent), LOSS] - best.loc[VANILLA, LOSS],
                     "seeds": row["seeds"]})
    return pd.DataFrame(rows)


def _nearest(rates: pd.Index, wanted: float) -> float:
    return rates[np.abs(np.log(np.asarray(rates) / wanted)).argmin()]


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Best minus worst of the study's ten methods, each at its own best rate, beside what seeds alone do.

    Returns
    -------
    pandas.DataFrame
        One row for every measure (``loss_nats_per_token``, ``token_accuracy``): ``measure``, ``best``, ``worst``
        (methods), ``spread`` (absolute, of the means), ``seed_deviation`` (mean over methods of the standard deviation
        over seeds; NaN for one seed), ``at_one_rate`` (the spread with every method at vanilla LoRA's best rate).
    """
    best, borrowed = best_of_each(table), borrowed_rate(table)
    ours = best[~best["variant"].isin(LACKING)].merge(borrowed, on="variant")
    grid, rows = main_grid(table), []
    for measure, lost in ((LOSS, "lost_nats"), ("token_accuracy", "lost_accuracy")):
        sign = 1 if measure == LOSS else -1
        values = ours.set_index("variant")[measure] * sign
        at_one = values + ours.set_index("variant")[lost]
        chosen = grid.merge(ours[["variant", "learning_rate"]], on=["variant", "learning_rate"])
        rows.append({"measure": measure, "best": values.idxmin(), "worst": values.idxmax(),
                     "spread": values.max() - values.min(),
                     "seed_deviation": chosen.groupby("variant")[measure].std(ddof=1).mean(),
                     "at_one_rate": at_one.max() - at_one.min()})
    return pd.DataFrame(rows)


SETTINGS = {"rank": ("vanilla_ranks", "r"), "batch size": ("vanilla_batches", "batch_size"),
            "steps": ("vanilla_durations", "steps")}


def varied(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The runs of one varied setting with those of the main grid that share all others.

    Parameters
    ----------
    setting : {"rank", "batch size", "steps"}

    Returns
    -------
    pandas.DataFrame
        Rows of the sweep with ``setting`` (its value) and ``step``; diverged runs left out.
    """
    experiment, column = SETTINGS[setting]
    rows = table[~table["diverged"].astype(bool)]
    own = rows[rows["experiment"] == experiment]
    usual = main_grid(table)
    usual = usual[usual["variant"].isin(own["variant"])]
    both = pd.concat([own, usual], ignore_index=True)
    return both.assign(setting=both[column], step=both["steps"])


def best_rate_against(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Best learning rate at each value of a setting: ``variant``, ``setting``, and the columns of ``best_rates``."""
    rows = varied(table, setting)
    return best_rates(rows, ["variant", "setting"]) if len(rows) else pd.DataFrame()


def published_best() -> pd.DataFrame:
    """Qwen3-0.6B on MetaMathQA, r = 128, batches of 64, best over 13 rates (arXiv 2602.04998v2 and its repository).

    Columns ``method``, ``accuracy`` and ``accuracy_std`` (per cent, three seeds where given), ``learning_rate``,
    ``lambda_ratio`` (largest Hessian eigenvalue of a q_proj adapter at initialisation over vanilla LoRA's, median over
    layers, read off a figure), ``rate_ratio`` (vanilla LoRA's best rate over this one's).
    """
    table = pd.read_csv(PAPER / "lr_matters_qwen.csv")
    vanilla = table.loc[table["method"] == VANILLA, "learning_rate"].iloc[0]
    return table.assign(rate_ratio=vanilla / table["learning_rate"])


def published_rates() -> pd.DataFrame:
    """Some points of the same figure: accuracy of LoRA and PiSSA at other rates (``method``, ``learning_rate``)."""
    return pd.read_csv(PAPER / "lr_matters_rates.csv")


def published_settings() -> pd.DataFrame:
    """Gemma-3-1B's best rate of vanilla LoRA as rank, batch size or samples vary (``varied``, ``value``)."""
    return pd.read_csv(PAPER / "lr_matters_gemma.csv")


def published_borrowed() -> pd.DataFrame:
    """What PiSSA loses at LoRA's best rate and LoRA at PiSSA's, in points of accuracy; the same comparison as ours."""
    rates, best = published_rates(), published_best().set_index("method")
    found = []
    for method, other in (("PiSSA", VANILLA), (VANILLA, "PiSSA")):
        own = rates[rates["method"] == method]
        at = own.iloc[(np.log(own["learning_rate"] / best.loc[other, "learning_rate"])).abs().argmin()]
        found.append({"method": method, "at_the_best_rate_of": other, "learning_rate": at["learning_rate"],
                      "lost_points": best.loc[method, "accuracy"] - at["accuracy"]})
    return pd.DataFrame(found)
