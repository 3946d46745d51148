"""The cells of the course's notebooks as plain text, for links and tables that point into them."""

import json
from functools import cache
from pathlib import Path


@cache
def notebook_cells(path: Path) -> tuple[tuple[str, str], ...]:
    """Kind (``markdown``, ``code``) and source of every cell; read once per process, for outputs make it large."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return tuple((cell["cell_type"], "".join(cell["source"])) for cell in cells)
