"""What an adapter's configuration may say of rank, alpha and scaling; the counts follow from it."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from utils.errors import UsageError


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"'{text}' is not a regular expression ({error})") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Rank = Annotated[int, Field(ge=1, le=2**20)]
Alpha = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]  # beyond, a float32 weight is none


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    r: Rank = 8
    lora_alpha: Alpha = 8.0
    rank_pattern: dict[Pattern, Rank] | None = None
    alpha_pattern: dict[Pattern, Alpha] | None = None
    use_rslora: bool | None = None


def check_settings(config: dict, file: Path) -> None:
    """UsageError, with the file and the key, unless rank, alpha and scaling are what PEFT could have written."""
    try:
        _Settings.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise UsageError(f"{file} gives {key} as {str(first['input'])[:100]!r} ({first['msg']}); save the adapter "
                         "again with PEFT.") from error
