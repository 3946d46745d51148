"""What each profile runs: models, tasks, sizes, ranks, seeds; YAML checked on loading."""

from utils.profiles.loader import PROFILE_NAMES, load_profile
from utils.profiles.schema import Experiment, Profile, RunGroup

__all__ = ["PROFILE_NAMES", "Experiment", "Profile", "RunGroup", "load_profile"]
