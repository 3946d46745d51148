"""One room per study: what it measures, draws and claims.

A study is a package with a docstring that says which notebook and which figures of which paper it is about, its
``claims.toml``, and modules whose measurements, rules and figures register themselves by decorator.
"""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from utils.errors import CourseError
from utils.reporting.registry import check_figures


@cache
def load_studies() -> tuple[str, ...]:
    """Import every module of every study, so that the registries are whole; returns the studies' names.

    Raises
    ------
    CourseError
        If a folder holds modules or claims of a study that nothing would import, or a module lies where nothing does,
        or a figure names a measurement that does not exist, or a finding its figure.
    """
    studies = tuple(study.name for study in pkgutil.iter_modules(__path__) if study.ispkg)
    for folder in sorted(path for place in __path__ for path in Path(place).iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue  # what an editor keeps
        if folder.name not in studies and any(folder.glob("*.py")) | any(folder.glob("*.toml")):
            raise CourseError(f"The study {folder.name} has no __init__.py, so nothing imports it; add one that says "
                              "which notebook and figures it is about.")
    _check_places()
    for study in studies:
        package = importlib.import_module(f"{__name__}.{study}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    check_figures()
    return studies


def _check_places() -> None:
    """CourseError for a module beside the studies, or in a folder inside one: nothing imports it."""
    for place in map(Path, __path__):
        for file in sorted(path.relative_to(place) for path in place.rglob("*.py")):
            if len(file.parts) != 2 and file.name != "__init__.py" and not any(part[0] == "." for part in file.parts):
                raise CourseError(f"Expected modules in studies/<study>/ alone, got studies/{file.as_posix()}, which "
                                  "nothing imports; move it into the folder of its study.")
