"""One room per study: what it measures, draws and claims.

A study is a package with a docstring that says which notebook and which figures of which paper it is about, its
``claims.toml``, and modules whose measurements, rules and figures register themselves by decorator.
"""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from utils.errors import CourseError


@cache
def load_studies() -> tuple[str, ...]:
    """Import every module of every study, so that the registries are whole; returns the studies' names.

    Raises
    ------
    CourseError
        If a folder holds modules or claims of a study that nothing would import.
    """
    studies = tuple(study.name for study in pkgutil.iter_modules(__path__) if study.ispkg)
    for folder in sorted(path for place in __path__ for path in Path(place).iterdir() if path.is_dir()):
        if folder.name not in studies and any(folder.glob("*.py")) | any(folder.glob("*.toml")):
            raise CourseError(f"The study {folder.name} has no __init__.py, so nothing imports it; add one that says "
                              "which notebook and figures it is about.")
    for study in studies:
        package = importlib.import_module(f"{__name__}.{study}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return studies
