"""Reading a profile: by name or from a file, with one sentence for whatever is wrong with it."""

import json
import typing
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from utils.errors import UsageError
from utils.profiles.schema import Profile

PROFILE_NAMES = ("smoke", "laptop", "gpu", "paper")


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
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else Path(__file__).parent / f"{name}.yaml"
    if path.parent == Path(__file__).parent and path.stem not in PROFILE_NAMES:
        raise UsageError(f"Unknown profile '{name}'; choose one of {', '.join(PROFILE_NAMES)}, or give a .yaml file.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise UsageError(f"There is no profile file {path}.") from None
    except OSError as error:
        raise UsageError(f"The profile file {path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold keys and values ({', '.join(Profile.model_fields)}).")
    try:
        # JSON mode is strict about types ("16" is no number) while a list may still become a tuple.
        return Profile.model_validate_json(json.dumps(content, default=str), strict=True)  # YAML knows dates
    except ValidationError as error:
        raise UsageError(_sentence(path, error)) from error


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # six times as fast, where built
    """YAML that refuses a key given twice; PyYAML alone keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' is given twice on or after line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep=deep)


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
    given = "" if isinstance(first["input"], dict) else f" (it is {first['input']!r})"
    return f"{path}: {where}{reason[0].lower()}{reason[1:]}{given}."


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
