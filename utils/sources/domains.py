"""Plain text by domain, for continued pretraining: English news, Python source, school mathematics.

Each domain has a `train` and a `heldout` split that never share an article, a file or a question.
"""

import json
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import CourseError, UsageError
from utils.paths import ROOT, cache_dir
from utils.sealed import sealed_folder
from utils.sources import hub
from utils.sources.text import news_articles, split_fraction

DOMAINS = ("news", "python", "mathematics", "mathematics-shuffled", "codeparrot", "open-web-math", "openwebtext")
# Left out: tests, tables of data, and what later versions of Python dropped.
NOT_SOURCE = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3", "pydoc_data",
              "encodings", "distutils", "ensurepip", "turtledemo", "idle_test"}
PYTHON_HELD_OUT = 0.1
QUESTIONS = 40_000  # drawn before repeated ones are removed
HELD_OUT_QUESTIONS = 0.05


def domain_texts(domain: str, split: str) -> list[str]:
    """The texts of a domain's split in a fixed mixed order.

    Parameters
    ----------
    domain : str
        One of DOMAINS; ``mathematics-shuffled`` is a control: each question with the answer of another of its kind.
    split : {"train", "heldout"}

    Raises
    ------
    UsageError
        If the domain or the split is unknown.
    """
    if domain not in DOMAINS or split not in ("train", "heldout"):
        raise UsageError(f"Expected a domain of {', '.join(DOMAINS)} and split train or heldout, got '{domain}', "
                         f"'{split}'; do choose of these.")
    if domain == "news":
        return sorted(news_articles().query("split == @split")["text"], key=split_fraction)
    if domain == "python":
        return _python_source(split)
    if domain in ("mathematics", "mathematics-shuffled"):
        rows = mathematics_questions(split).copy()  # the cached table stays as it is
        if domain == "mathematics-shuffled":
            rows["answer"] = rows.groupby("kind")["answer"].transform(np.roll, 1)
        return (rows["question"] + "\n" + rows["answer"] + "\n").tolist()
    return _hub_texts(domain, split)


@cache
def _python_source(split: str) -> list[str]:
    """Files of this Python's standard library; the split follows the file's name, so that versions agree on it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py")
             if not NOT_SOURCE & set(path.relative_to(root).parts) and path.stat().st_size > 200]
    order = {path: split_fraction(path.relative_to(root).as_posix()) for path in files}
    chosen = [path for path in sorted(files, key=order.get)
              if (order[path] >= PYTHON_HELD_OUT) == (split == "train")]
    if not chosen:
        raise CourseError(f"Python {sys.version.split()[0]} keeps no source of its standard library under {root}; "
                          "use a Python that was installed with its library's .py files.")
    # Distributions keep a file twice now and then.
    return list(dict.fromkeys(path.read_text(encoding="utf-8", errors="replace") for path in chosen))


@cache
def mathematics_questions(split: str) -> pd.DataFrame:
    """School mathematics with exact answers, made once by `mathematics-dataset` and kept in the cache.

    Returns
    -------
    pandas.DataFrame
        Columns ``kind``, ``question``, ``answer``; no question twice, none in both splits.

    References
    ----------
    Saxton et al., "Analysing mathematical reasoning abilities of neural models", ICLR 2019.
    """
    def build(folder: Path) -> None:
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _make_questions()),
                                                encoding="utf-8")

    made = sealed_folder(cache_dir() / "texts" / f"mathematics-{QUESTIONS}", build) / "questions.jsonl"
    rows = pd.DataFrame([json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()])
    order = rows["question"].map(split_fraction).sort_values(kind="stable")
    chosen = order.index[(order >= HELD_OUT_QUESTIONS) == (split == "train")]
    return rows.loc[chosen].reset_index(drop=True)


def _make_questions() -> list[dict]:
    """Drawn in a process of its own: sympy's choices follow the order of Python's sets, which differs by process."""
    done = subprocess.run([sys.executable, "-m", "utils.sources.questions", str(QUESTIONS)], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, cwd=ROOT, check=False,
                          env=os.environ | {"PYTHONHASHSEED": "0"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CourseError(f"The mathematics questions could not be made ({last[:200]}); install the versions that "
                          "requirements.txt names.")
    return [json.loads(line) for line in done.stdout.splitlines()]


# name, column of the text, rows read: more than the largest profile trains on
_HUB = {"codeparrot": ("codeparrot/codeparrot-clean-valid", "content", 20_000),
        "open-web-math": ("open-web-math/open-web-math", "text", 20_000),
        "openwebtext": ("Skylion007/openwebtext", "text", 5_000)}
HUB_HELD_OUT = 0.02


def _hub_texts(domain: str, split: str) -> list[str]:
    name, column, rows = _HUB[domain]
    found = hub.dataset_split(name, None, "train", rows=rows)
    if column not in found.column_names:
        raise CourseError(f"Expected column {column} in {name}, got only {', '.join(found.column_names)}; do name "
                          "the new column in utils/sources/domains.py.")
    texts = found[column]
    return [text for text in sorted(set(texts), key=split_fraction)
            if (split_fraction(text) >= HUB_HELD_OUT) == (split == "train")]


