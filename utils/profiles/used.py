"""Which profiles were run here, and with which seeds: what the run store is kept for."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from utils.errors import CourseError
from utils.files import canonical_json, read_json, write_json
from utils.paths import cache_dir
from utils.profiles.loader import PROFILE_NAMES, load_profile
from utils.profiles.schema import Profile


@dataclass(frozen=True)
class Used:
    """A profile as it was when it was run, by name or from a file of the reader's, and the seeds that it was run with.

    Attributes
    ----------
    own : bool
        Whether it came from a file of the reader's.
    """

    profile: Profile
    seeds: tuple[int, ...]
    own: bool


def _folder() -> Path:
    return cache_dir() / "profiles"


def remember(profile: Profile, seeds: Iterable[int]) -> None:
    """Record that a profile is run with these seeds; a record that is there already is left alone.

    Raises
    ------
    CourseError
        If the cache cannot be written.
    """
    content = profile.model_copy(update={"whole": False, "run_code": False}).model_dump(mode="json")
    record = {"profile": content, "seeds": list(seeds), "own": not _is_packaged(content)}
    path = _folder() / f"{hashlib.sha256(canonical_json(record).encode()).hexdigest()[:16]}.json"
    if not path.exists():
        write_json(path, record)


def _is_packaged(content: dict) -> bool:
    return any(content == load_profile(name).model_dump(mode="json") for name in PROFILE_NAMES)


def remembered() -> list[Used]:
    """Every profile that was run here and that this version can still read."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            record = read_json(path)
            profile = Profile.model_validate_json(json.dumps(record["profile"]), strict=True)
            found.append(Used(profile, tuple(map(int, record["seeds"])), bool(record["own"])))
        except (CourseError, FileNotFoundError, ValidationError, ValueError, KeyError, TypeError):
            continue  # of another version, or broken: what it asked for counts as unknown, and unknown is kept
    return found
