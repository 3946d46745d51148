"""Where things lie: the repository's own folders, and the two that a test or a class may move."""

import os
import tempfile
from pathlib import Path

from utils.errors import CourseError, UsageError, reason_of
from utils.files import FULL, worded

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
PAPER = DATA / "paper"
MODELS = DATA / "models"


VARIABLES = {"LORA_COURSE_CACHE": DATA / "cache", "LORA_COURSE_FIGURES": ROOT / "figures",
             "LORA_COURSE_REFERENCE": DATA / "reference"}


def cache_dir() -> Path:
    """The cache outside git: ``$LORA_COURSE_CACHE`` or ``data/cache``."""
    return _moved("LORA_COURSE_CACHE")


def figures_dir() -> Path:
    """Where figures are published: ``$LORA_COURSE_FIGURES`` or ``figures``."""
    return _moved("LORA_COURSE_FIGURES")


def reference_dir() -> Path:
    """Where committed results lie: ``$LORA_COURSE_REFERENCE`` or ``data/reference``."""
    return _moved("LORA_COURSE_REFERENCE")


def _moved(variable: str) -> Path:
    """The folder that a variable names, or where it is by default.

    Raises
    ------
    UsageError
        If the variable names a home that nobody has, or holds what no text file could name.
    """
    named = os.environ.get(variable, "").strip()
    if not named:
        return VARIABLES[variable]
    try:
        named.encode()  # executed notebooks and records name the folder, and are UTF-8
        return Path(named).expanduser().absolute()
    except (UnicodeEncodeError, RuntimeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeEncodeError) else "there is no such home"
        raise UsageError(f"{variable} is '{named}', which names no folder ({why}); set it to a folder, or unset "
                         "it.") from error


def settle() -> None:
    """Make the folders that variables name absolute for this process and its children, whose present folder is another.

    A kernel runs in the repository's root, whatever folder the command was given in.
    """
    for variable in VARIABLES:
        if os.environ.get(variable):
            os.environ[variable] = str(_moved(variable))


def relative(path: Path) -> Path:
    """`path` as seen from the repository's root where it lies inside, unchanged elsewhere; for what people read."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def ensure_dir(folder: Path) -> Path:
    """Create `folder` and prove that it can be written.

    Raises
    ------
    CourseError
        With the folder, and the variable that moves it if one does, if it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if getattr(error, "errno", None) in FULL:
            raise CourseError(worded(error, folder, "written")) from error
        variable = next((name for name in VARIABLES if folder.is_relative_to(_moved(name))), None)
        otherwise = f", or set {variable} to a folder that you can write" if variable else ""
        raise CourseError(f"The folder {folder} cannot be written ({reason_of(error)}); give yourself write access to "
                          f"it{otherwise}.") from error
