"""What the run store holds, and which of it some profile of this version still asks for."""

import pandas as pd

from utils.profiles import PROFILE_NAMES, load_profile
from utils.training.spec import every_spec
from utils.training.store import RunStore


def list_runs(store: RunStore) -> pd.DataFrame:
    """One row per finished run: key, base, task, method, learning rate, seed, status, accuracy, size on disk."""
    rows = []
    for folder, result in store.results():
        spec, last = result["run"]["spec"], (result["measured"]["metrics"] or [{}])[-1]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rows.append({"run": folder.name, "source": spec["base"]["source"], "base": spec["base"]["name"],
                     "task": spec["task"], "method": spec["method"]["kind"], "r": spec["method"]["r"],
                     "learning_rate": spec["learning_rate"], "seed": spec["seed"], "status": result["run"]["status"],
                     "accuracy": last.get("accuracy"), "mib": round(size / 2**20, 1)})
    return pd.DataFrame(rows)


def unwanted_keys(runs: pd.DataFrame) -> list[str]:
    """Keys of stored runs on packaged bases that no profile asks for, its reference seeds included.

    Runs on Hub and local bases are never listed: telling what a profile wants of them would download the base.
    """
    wanted: set[str] = set()
    for name in PROFILE_NAMES:
        profile = load_profile(name)
        if profile.encoder.source == "packaged":
            whole, seeds = profile.with_reference_runs(), (*profile.seeds, *profile.reference_seeds)
            wanted |= every_spec(whole, seeds).keys()
    return [row.run for row in runs.itertuples() if row.source == "packaged" and row.run not in wanted]
