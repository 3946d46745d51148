"""What this machine has, what each profile needs, and one sentence where they do not fit."""

import importlib.metadata
import os
import platform
import re
import shutil

from utils.errors import CourseError
from utils.machine import available_cores, memory_limit_gib
from utils.paths import ROOT, cache_dir, ensure_dir, relative
from utils.profiles import PROFILE_NAMES, Profile, load_profile
from utils.spectra.agreement import compare_devices


def pins() -> dict[str, str]:
    """Package -> version from ``requirements.txt``, the one pin file."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(found.groups() for line in lines if (found := re.match(r"([A-Za-z0-9_.-]+)==([^\s;#]+)", line)))


def wrong_versions() -> list[str]:
    """One phrase for each pinned package that is missing or has another version; local suffixes (+cpu) are ignored."""
    found = []
    for name, wanted in pins().items():
        try:
            installed = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is missing ({wanted} wanted)")
            continue
        if installed != wanted:
            found.append(f"{name} {installed} ({wanted} wanted)")
    return found


def machine() -> dict:
    """Python, cores, memory (a container's limit if lower), free disk at the cache, and the GPU."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {"python": platform.python_version(), "cores": available_cores(), "memory_gib": round(memory_limit_gib(), 1),
            "disk_gib": round(shutil.disk_usage(ensure_dir(cache_dir())).free / 2**30, 1),
            "gpu": gpu.name if gpu else None, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1) if gpu else 0.0}


def missing(profile: Profile, have: dict) -> list[str]:
    """What the profile needs and the machine lacks, one phrase each; empty if it fits."""
    need = profile.hardware
    lacks = []
    if have["memory_gib"] < need.min_memory_gib:
        lacks.append(f"{need.min_memory_gib:g} GiB of memory (here {have['memory_gib']:g})")
    if have["disk_gib"] < need.min_disk_gib:
        lacks.append(f"{need.min_disk_gib:g} GiB of free disk at {relative(cache_dir())} (here {have['disk_gib']:g})")
    if have["gpu_memory_gib"] < need.min_gpu_memory_gib:
        lacks.append(f"a GPU with {need.min_gpu_memory_gib:g} GiB (here {have['gpu'] or 'none'})")
    return lacks


def require(profile: Profile) -> None:
    """CourseError if the machine has too little for the profile.

    ``LORA_COURSE_SKIP_HARDWARE=1`` lets the tests run a large profile's code on tiny stand-in models.
    """
    if os.environ.get("LORA_COURSE_SKIP_HARDWARE") == "1":
        return
    if lacks := missing(profile, machine()):
        raise CourseError(f"Profile {profile.profile} needs {', '.join(lacks)}; choose a smaller profile "
                          f"({', '.join(PROFILE_NAMES)}), free some, or move the cache with LORA_COURSE_CACHE.")


def doctor() -> bool:
    """Print versions, hardware and what each profile would need here; True if the default profile can run.

    Where there is a GPU, intruders are counted on it and on the CPU; False as well if one count differs.
    """
    have, wrong = machine(), wrong_versions()
    print(f"Python {have['python']}, {have['cores']} cores, {have['memory_gib']:g} GiB memory, "
          f"{have['disk_gib']:g} GiB free at {cache_dir()}, GPU: {have['gpu'] or 'none'}")
    print("Packages: " + ("all as pinned" if not wrong else "; ".join(wrong)))
    for name in PROFILE_NAMES:
        lacks = missing(load_profile(name), have)
        print(f"  {name:11} {'fits' if not lacks else 'needs ' + ', '.join(lacks)}")
    counted = compare_devices("cuda") if have["gpu"] else None
    if counted:
        print(f"Counting on the GPU against the CPU: {counted.sentence}")
    if wrong:
        print("Run `make setup`, or `pip install -r requirements.txt`, to get the pinned versions.")
    fits = not missing(load_profile("laptop"), have)
    return not wrong and fits and (counted is None or not counted.different)
