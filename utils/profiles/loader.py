"""Reading a profile: by name or from a file, with one sentence for whatever is wrong with it."""

import json
import typing
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from utils.errors import CourseError, UsageError
from utils.files import read_text
from utils.profiles.plain import plain_yaml
from utils.profiles.schema import Profile

PROFILE_NAMES = ("smoke", "laptop", "workstation", "gpu", "paper")


@cache
def load_profile(name: str | Path) -> Profile:
    """Load a profile and check every value of it.

    Parameters
    ----------
    name : str or Path
        One of PROFILE_NAMES, or the path of a YAML file of the same shape.

    Raises
    ------
    UsageError
        One sentence with the file, the key and what is allowed there.

    Examples
    --------
    >>> load_profile("laptop").spectra.k
    10
    """
    source = profile_source(name)
    path = Path(source) if source not in PROFILE_NAMES else Path(__file__).parent / f"{source}.yaml"
    try:
        content = plain_yaml(read_text(path, most=2**20))
    except FileNotFoundError:
        raise UsageError(f"There is no profile file {path}.") from None
    except CourseError as error:
        raise UsageError(str(error)) from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML for a profile: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold keys and values ({', '.join(Profile.model_fields)}).")
    try:
        # JSON mode is strict about types ("16" is no number) while a list may still become a tuple.
        return Profile.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise UsageError(_sentence(path, error)) from error


def profile_source(name: str | Path) -> str:
    """A profile's name as it is, and a file's as the whole path: what another process, in another folder, can load.

    Raises
    ------
    UsageError
        If it is neither one of PROFILE_NAMES nor the name of a YAML file.
    """
    if str(name) in PROFILE_NAMES:
        return str(name)
    if not str(name).endswith((".yaml", ".yml")) or "\0" in str(name):
        raise UsageError(f"Unknown profile '{name}'; choose one of {', '.join(PROFILE_NAMES)}, or give a .yaml file.")
    try:
        return str(Path(name).expanduser().absolute())
    except RuntimeError as error:
        raise UsageError(f"There is no profile file {name}, since there is no such home.") from error


def _sentence(path: Path, error: ValidationError) -> str:
    every = error.errors()
    # Where a key may be one thing or another, the alternative that got furthest is the one that was meant.
    beside = [one for one in every if one["loc"][:len(every[0]["loc"]) - 1] == every[0]["loc"][:-1]]
    first = max(beside, key=lambda one: len(one["loc"]))
    key = _key(first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(Profile, first["loc"][:-1])
        return f"{path}: unknown key '{key}'; allowed here are {', '.join(allowed)}."
    if first["type"] == "missing":
        return f"{path}: key '{key}' is missing."
    reasons = [one["msg"].removeprefix("Value error, ") for one in beside
               if _key(one["loc"]) == key and len(one["loc"]) == len(first["loc"])]
    reason = " or ".join([reasons[0], *(other.removeprefix("Input should be ") for other in reasons[1:])])
    where = f"key '{key}': " if key else ""
    given = "" if isinstance(first["input"], dict) else f" (it is {_short(first['input'])})"
    return f"{path}: {where}{reason[0].lower()}{reason[1:]}{given}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _key(location: tuple[int | str, ...]) -> str:
    """The file's own key; the names of union members ("dict[...]", "float") in between are pydantic's."""
    return ".".join(str(part) for part in location
                    if not str(part).startswith(("dict[", "literal[", "constrained", "[key]"))
                    and part not in ("float", "int", "str"))


def _fields_at(model: type[BaseModel], location: tuple) -> list[str]:
    """The field names of the model that `location` leads to."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            nested = _model_in(model.model_fields[part].annotation)
            model = nested or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part))), None)
