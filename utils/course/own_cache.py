"""A cache of one's own, for what must not meet the runs that are there: it shares what is only read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from utils.paths import cache_dir, ensure_dir

SHARED = ("archives", "models", "sources", "texts")
VARIABLE = "LORA_COURSE_CACHE"


def link_cache(folder: Path) -> Path:
    """Make `folder` a cache without runs, whose sources and models are those of the present one."""
    ensure_dir(folder)
    for name in SHARED:
        if not (folder / name).exists():
            (folder / name).symlink_to(ensure_dir(cache_dir() / name).resolve())
    return folder


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[Path]:
    """Within the block the cache of this process, and of those that it starts, is `folder`, made by `link_cache`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(link_cache(folder))
    try:
        yield folder
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
