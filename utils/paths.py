"""Where things lie: the course's own folders and notebooks, the folders that move, and why one cannot be used."""

import errno
import os
import re
import tempfile
from pathlib import Path

from utils.errors import CourseError, UsageError, reason_of

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
PAPER = DATA / "paper"
MODELS = DATA / "models"
NUMBERED = re.compile(r"[0-9]{2}[a-z]?_.+\.ipynb")  # 04_….ipynb, and 04b_….ipynb beside it


VARIABLES = {"LORA_COURSE_CACHE": DATA / "cache", "LORA_COURSE_FIGURES": ROOT / "figures",
             "LORA_COURSE_REFERENCE": DATA / "reference"}


# What helps against an error, and what kind of folder would; the errors that a disk or its owner has, and no network.
_ADVICE = {
    errno.ENOSPC: ("the disk is full; free some space", "on another disk"),
    errno.EACCES: ("this user has no leave to; ask its owner for it", "of your own"),
    errno.EROFS: ("the disk may only be read", "on another one")}
_LIKE = {errno.EPERM: errno.EACCES, getattr(errno, "EDQUOT", errno.ENOSPC): errno.ENOSPC}
OF_THE_DISK = {*_ADVICE, *_LIKE}


def notebook_number(name: str) -> str:
    """The number that a notebook's file, its stem or a figure's identifier begins with.

    >>> notebook_number("04_intruder_dimensions.ipynb"), notebook_number("04b_places")
    ('04', '04b')
    """
    return name.partition("_")[0]


def notebook_files(folder: Path) -> dict[str, Path]:
    """The notebooks in a folder by their numbers, in the order of the course: 04, 04b, 05."""
    found = sorted(path for path in folder.glob("*.ipynb") if NUMBERED.fullmatch(path.name))  # "_" lies before letters
    return {notebook_number(path.name): path for path in found}


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
        if getattr(error, "errno", None) in OF_THE_DISK:
            raise CourseError(worded(error, folder, "written")) from error
        raise CourseError(f"The folder {folder} cannot be written ({reason_of(error)}); see what lies there"
                          f"{_otherwise(folder, 'that you can write')}.") from error


def worded(error: OSError, path: Path, done: str) -> str:
    """One sentence that says truthfully why something could not be done to a file, and what helps.

    Parameters
    ----------
    error : OSError
    path : Path
        The file or folder, as the reader knows it.
    done : str
        What was to be done, as a participle: "read", "written", "set aside".

    Examples
    --------
    >>> worded(OSError(errno.EIO, "Input/output error"), Path("a.bin"), "read")
    'a.bin could not be read: Input/output error.'
    """
    helps, where = _ADVICE.get(_LIKE.get(error.errno, error.errno), ("", ""))
    advice = f" ({helps}{_otherwise(path, where)})" if helps else ""
    return f"{path} could not be {done}: {reason_of(error)}{advice}."


def _otherwise(path: Path, where: str) -> str:
    """The variable that moves a path to another folder, as the end of a sentence; nothing if none does."""
    variable = next((name for name in VARIABLES if path.absolute().is_relative_to(_moved(name))), None)
    return f", or set {variable} to a folder {where}" if variable else ""
