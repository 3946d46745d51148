"""What the sections of a profile are made of: numbers in their ranges, a base model, the size of a task."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes


class Checked(BaseModel):
    """A section whose every value is checked when it is built; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelReference(Checked):
    """A base model: packaged on PyPI (`packaged`), on the Hub (`hub`) or in a folder (`local`)."""

    source: Literal["packaged", "hub", "local"]
    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None  # a branch, tag or commit on the Hub; what it resolved to is recorded with each run


class TaskSizes(Checked):
    """How much of a task is used; `null` rows means all of them.

    `validation_rows` are taken from the training part before anything else is: nothing is trained on them, and learning
    rates are chosen by them, so that the test rows choose nothing. None by default.
    """

    train_rows: Positive | None = None
    test_rows: Positive | None = None
    validation_rows: Positive | None = None
    max_length: Annotated[int, Field(ge=8, le=8192)]
