"""Where things lie: the repository's own folders, and the two that a test or a class may move."""

import os
import tempfile
from pathlib import Path

from utils.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
PAPER = DATA / "paper"
MODELS = DATA / "models"


def cache_dir() -> Path:
    """The cache outside git: ``$LORA_COURSE_CACHE`` or ``data/cache``."""
    return Path(os.environ.get("LORA_COURSE_CACHE") or DATA / "cache")


def figures_dir() -> Path:
    """Where figures are published: ``$LORA_COURSE_FIGURES`` or ``figures``."""
    return Path(os.environ.get("LORA_COURSE_FIGURES") or ROOT / "figures")


def reference_dir() -> Path:
    """Where committed results lie: ``$LORA_COURSE_REFERENCE`` or ``data/reference``."""
    return Path(os.environ.get("LORA_COURSE_REFERENCE") or DATA / "reference")


def relative(path: Path) -> Path:
    """`path` as seen from the repository's root where it lies inside, unchanged elsewhere; for what people read."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def ensure_dir(folder: Path) -> Path:
    """Create `folder` and prove that it can be written.

    Raises
    ------
    CourseError
        With the folder and the variable that moves it, if it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise CourseError(
            f"The folder {folder} cannot be written ({error.strerror or error}); "
            "give yourself write access to it, or set LORA_COURSE_CACHE to a folder that you can write."
        ) from error
