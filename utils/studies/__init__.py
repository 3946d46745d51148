"""One room per study: what it measures, draws and claims."""

import importlib
import pkgutil
from functools import cache


@cache
def load_studies() -> tuple[str, ...]:
    """Import every module of every study, so that the registries are whole; returns the studies' names."""
    studies = []
    for study in pkgutil.iter_modules(__path__):
        package = importlib.import_module(f"{__name__}.{study.name}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        studies.append(study.name)
    return tuple(studies)
