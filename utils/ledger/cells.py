"""The course's notebooks as they lie there: whole, or as the plain text of their cells."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import CourseError, reason_of
from utils.files import read_text


def read_notebook(path: Path) -> Any:
    """The notebook in a file.

    Raises
    ------
    CourseError
        If the file is missing, or holds no whole notebook.
    """
    import nbformat  # a second, for its schema's grammar of addresses, which no kernel needs
    from nbformat.reader import NotJSONError

    try:
        found = nbformat.reads(read_text(path), as_version=4)
        nbformat.validate(found)
    except FileNotFoundError as error:
        raise CourseError(f"There is no notebook {path}; get its file anew.") from error
    except (NotJSONError, nbformat.ValidationError, ValueError, KeyError, TypeError, AttributeError,
            RecursionError) as error:
        raise CourseError(f"{path} is not a notebook ({reason_of(error)[:200]}); get its file anew.") from error
    return found


@cache
def notebook_cells(path: Path) -> tuple[tuple[str, str], ...]:
    """Kind (``markdown``, ``code``) and source of every cell; read once per process, for outputs make it large.

    Raises
    ------
    CourseError
        If the file holds no notebook.
    """
    try:
        cells = json.loads(read_text(path))["cells"]
        return tuple((str(cell["cell_type"]), "".join(cell["source"])) for cell in cells)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CourseError(f"{path} is not a notebook ({reason_of(error)[:200]}); get its file anew.") from error


def measured_in(path: Path) -> list[str]:
    """The measurements that a notebook's cells name, in their order, each once."""
    code = "\n".join(source for kind, source in notebook_cells(path) if kind == "code")
    return list(dict.fromkeys(re.findall(r"\bmeasured\(\s*[\"'](\w+)[\"']", code)))
