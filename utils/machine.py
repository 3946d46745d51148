"""One home for device, number type, threads and seeds."""

import gc
import os
import sys
import warnings
from functools import cache
from pathlib import Path

import psutil
import torch

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def device_name() -> str:
    """``"cuda"`` if torch sees a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(dtype: str) -> torch.dtype:
    """The number type a run computes in; bfloat16 falls back to float32 where there is no GPU.

    On a CPU without bfloat16 units the smaller type is slower and rounds the spectra, so it gains nothing there.
    """
    return torch.bfloat16 if dtype == "bfloat16" and device_name() == "cuda" else torch.float32


def quiet_libraries() -> None:
    """Silence load reports, shard bars and trainer chatter; our own progress lines say what happens."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()  # offline, two lines of warnings for every split read from the cache
    for module in ("torch", "trl", "peft", "accelerate", "huggingface_hub", "pyarrow"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    quiet_transformers()


def quiet_transformers() -> None:
    """The part of :func:`quiet_libraries` that is for transformers."""
    import transformers

    warnings.filterwarnings("ignore", module=r"transformers(\..*)?")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def set_up_process(*, libraries: bool = True) -> None:
    """What a process of the course begins with: threads, whole float32 products, silence, quick collections.

    Called where a process enters (a notebook's first cell, a command, a worker) and nowhere else: a library that
    set either behind its caller's back would undo what the caller has chosen.

    Parameters
    ----------
    libraries : bool
        Whether it will train or load models; importing what has to be silenced for that takes a second.
    """
    limit_threads()
    # Images for NVIDIA's GPUs set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, with which a product keeps 10 bits of 23.
    torch.set_float32_matmul_precision("highest")
    if libraries:
        quiet_libraries()
    spare_libraries()


@cache
def spare_libraries() -> None:
    """Leave what is loaded by now out of every later garbage collection; once in a process, for libraries stay.

    Trainer collects before each training, and the 650,000 objects of the libraries took 0.3 s each time.
    """
    gc.freeze()


def limit_threads() -> None:
    """Use as many threads as this process may run on, or fewer where ``OMP_NUM_THREADS`` asks for fewer.

    More threads than cores run far slower than one.
    """
    cores = available_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(min(cores, int(asked)) if asked.isdigit() and int(asked) else cores)


def available_cores() -> int:
    """Cores that this process may run on; containers often report more than they grant."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit_gib() -> float:
    """The memory of this machine, or what a container may have of it, in GiB."""
    limits = [int(path.read_text()) for path in CGROUP_LIMITS
              if path.exists() and path.read_text().strip().isdigit()]
    return min([psutil.virtual_memory().total, *limits]) / 2**30


def peak_memory_gib() -> float:
    """The most memory that this process has had in RAM so far, in GiB.

    Windows has no ``resource``; there psutil tells, and where it knows no peak, the present size stands in.
    """
    try:
        import resource
    except ImportError:
        now = psutil.Process().memory_info()
        return getattr(now, "peak_wset", now.rss) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def hardware() -> dict:
    """Device, its name and memory, threads: the part of a provenance block that explains times."""
    if device_name() == "cuda":
        properties = torch.cuda.get_device_properties(0)
        accelerator = {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    else:
        accelerator = None
    return {"device": device_name(), "accelerator": accelerator, "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability()}
