"""Where a number comes from: versions, commit, hardware, date."""

import datetime
import importlib.metadata
import platform
import subprocess

from utils.machine import hardware
from utils.paths import ROOT

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "numpy", "scipy")


def provenance() -> dict:
    """Package versions, commit and dirty flag, hardware, Python and date, as JSON-ready values."""
    return {"packages": {name: importlib.metadata.version(name) for name in PACKAGES}, **_commit(),
            "hardware": hardware(), "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _commit() -> dict:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}  # a downloaded archive, not a clone
