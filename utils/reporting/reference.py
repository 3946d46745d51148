"""Reference results: the same measurements with more seeds than a reader waits for, committed with provenance."""

import json

import numpy as np
import pandas as pd
from scipy import stats

from utils.errors import UsageError
from utils.files import write_json, write_text
from utils.paths import PAPER, reference_dir, writable
from utils.profiles import Profile
from utils.provenance import provenance
from utils.reporting.measure import Seeds
from utils.reporting.measurements import MEASUREMENTS

PROVENANCE = "provenance.json"


def build_reference(profile: Profile, seeds: Seeds = None, *, only: list[str] | None = None) -> list[str]:
    """Measure everything with the profile's reference seeds and write ``data/reference/<profile>``.

    Parameters
    ----------
    only : list of str, optional
        These measurements alone; the other tables stay as they are.

    Raises
    ------
    UsageError
        If the profile's results are no evidence (smoke), or a measurement is unknown.
    """
    if not profile.evidence:
        raise UsageError(f"Profile {profile.profile} is not evidence, so it has no reference results.")
    seeds = seeds or profile.reference_seeds
    folder = writable(reference_dir() / profile.profile)
    whole = profile.with_reference_runs()
    for name in only or ():
        if name not in MEASUREMENTS:
            raise UsageError(f"Unknown measurement '{name}'; the known ones are {', '.join(MEASUREMENTS)}.")
    for name, measure in MEASUREMENTS.items():
        if only and name not in only:
            continue
        table = measure(whole, seeds)
        if table.empty:
            continue  # a profile without a learning-rate sweep, or without leave to run generated code
        # Digits that mean something, and not decimals: scales and rates reach 1e-6.
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.7g"))
        print(f"reference {profile.profile}: {name}, {len(table)} rows, seeds {list(seeds)}", flush=True)
    write_json(folder / PROVENANCE, {"seeds": list(seeds), "measurements": list(MEASUREMENTS),
                                     "provenance": provenance()})
    return only or list(MEASUREMENTS)


def reference_table(name: str, profile: Profile | str) -> pd.DataFrame | None:
    """The committed table of a measurement, or None where this profile has none yet.

    The smoke profile is shown against the laptop's reference, so that its figures have the same parts.
    """
    if name not in MEASUREMENTS:
        raise UsageError(f"Unknown measurement '{name}'; the known ones are {', '.join(MEASUREMENTS)}.")
    profile_name = profile if isinstance(profile, str) else profile.profile
    path = reference_dir() / ("laptop" if profile_name == "smoke" else profile_name) / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else None


def reference_note(profile: Profile | str) -> str:
    """One line on where the reference results come from."""
    profile_name = profile if isinstance(profile, str) else profile.profile
    path = reference_dir() / ("laptop" if profile_name == "smoke" else profile_name) / PROVENANCE
    if not path.exists():
        return f"No reference results are committed for {profile_name}: only your own are drawn."
    content = json.loads(path.read_text(encoding="utf-8"))
    made = content["provenance"]
    return (f"Reference: seeds {content['seeds']}, {made['hardware']['device']} "
            f"({made['hardware']['threads']} threads), {made['date'][:10]}, torch {made['packages']['torch']}.")


def paper_accuracies() -> pd.DataFrame:
    """Tables 1 and 2 of arXiv 2410.21228v3.

    Columns ``table``, ``lora_alpha_rule``, ``method``, ``r`` (0 for full), ``task``, ``accuracy``.
    """
    return pd.read_csv(PAPER / "accuracy_tables.csv")


def paper_scaling() -> pd.DataFrame:
    """Tables 3 and 4 of arXiv 2410.21228v3: percent change of accuracy and forgetting when intruders are scaled.

    Columns ``table``, ``base``, ``task``, ``r``, ``factor``, ``accuracy_change``, ``forgetting_change``.
    """
    return pd.read_csv(PAPER / "scaling_tables.csv")


def mean_interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t-interval of a sample (one value per seed); a single value has no interval (NaN).

    >>> mean_interval([1.0, 2.0, 3.0])[0]
    2.0
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return mean, mean - half, mean + half


def rank_correlation(x, y, confidence: float = 0.95) -> dict:
    """Spearman's rho with p, exact n, and an interval by Fisher's transformation.

    Returns
    -------
    dict
        ``rho``, ``low``, ``high``, ``p``, ``n``; NaN where a column is constant or fewer than four pairs are given.

    References
    ----------
    Bonett & Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations", 2000: the
    standard error sqrt((1 + rho^2 / 2) / (n - 3)) of atanh(rho).

    Examples
    --------
    >>> rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])["rho"]
    0.9
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    empty = dict.fromkeys(("rho", "low", "high", "p"), float("nan")) | {"n": len(x)}
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return empty
    found = stats.spearmanr(x, y)
    rho, p = round(float(found.statistic), 12), float(found.pvalue)
    if abs(rho) == 1:
        return {"rho": rho, "low": rho, "high": rho, "p": p, "n": len(x)}
    half = stats.norm.ppf((1 + confidence) / 2) * ((1 + rho**2 / 2) / (len(x) - 3)) ** 0.5
    return {"rho": rho, "low": float(np.tanh(np.arctanh(rho) - half)), "high": float(np.tanh(np.arctanh(rho) + half)),
            "p": p, "n": len(x)}


def summarise(table: pd.DataFrame, value: str, by: list[str]) -> pd.DataFrame:
    """Mean, 95 % t-interval, smallest and largest value, and number of seeds of a column, group by group."""
    rows = []
    for keys, group in table.groupby(by, sort=False):
        mean, low, high = mean_interval(group[value])
        rows.append(dict(zip(by, keys if isinstance(keys, tuple) else (keys,), strict=True))
                    | {value: mean, "low": low, "high": high, "min": group[value].min(), "max": group[value].max(),
                       "seeds": len(group)})
    return pd.DataFrame(rows)
