"""Memory and time of a few training steps, measured in a fresh process.

A process that has trained before keeps memory that the next run seems to need. So each recipe has a process of its own:
``measure`` starts one, this module's ``__main__`` is what it runs.

On a CPU the peak is the growth of the process's resident memory over its size before the model was built. glibc keeps
freed blocks for later use; while memory is measured it is told to give every larger one back at once
(``MALLOC_MMAP_THRESHOLD_``), so that resident memory follows the live tensors. That makes steps slower, so time is
measured afterwards, with the usual settings. Beside it stands the sum of all live tensors at its highest, counted at
every operation; what an operation uses inside itself is not in it. On a GPU the peak is the allocator's.
"""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from utils.errors import CourseError
from utils.machine import device_name, peak_memory_gib, set_up_process
from utils.paths import ROOT
from utils.training.recipe import Recipe

MEMORY_STEPS, TIMED_STEPS = 2, 2  # the second step has optimiser states; the first timed one warms up
_LARGE = 64 * 1024  # bytes: blocks above are given back when freed
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's names of its settings
TIMEOUT_S = 900


def available(recipe: Recipe) -> str:
    """Empty if this machine can run the recipe, else what it would need."""
    wanted = recipe.method == "qlora" or recipe.optimiser == "adamw8bit"
    if wanted and (device_name() != "cuda" or find_spec("bitsandbytes") is None):
        return "needs bitsandbytes and a GPU"
    return ""


def measure(folder: Path, recipe: Recipe) -> dict:
    """Train a few steps on random tokens in a fresh process.

    Parameters
    ----------
    folder : Path
        Of a checkpoint; only its configuration is used, but for QLoRA: memory and time do not depend on the values.

    Returns
    -------
    dict
        ``peak_gib`` (growth of the process, or the GPU allocator's), ``live_gib`` (all live tensors at their highest),
        ``seconds_per_step``, ``cpu_seconds_per_step``, ``tokens_per_second``, ``trained`` (parameters), ``threads``,
        ``device``, and ``note``: why there are no numbers (they are None then), as where memory ran out.

    Raises
    ------
    CourseError
        If the process fails of anything else, with the last line that it said.
    """
    if note := available(recipe):
        return _empty(note)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(_LARGE), "MALLOC_TRIM_THRESHOLD_": str(_LARGE)}
    job = json.dumps({"folder": str(folder), "recipe": asdict(recipe)})
    try:
        done = subprocess.run([sys.executable, "-m", "utils.training.footprint", job], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return _empty(f"took more than {TIMEOUT_S} s")
    if done.returncode < 0:  # the system's own answer to too much memory
        return _empty("stopped by the system, most likely out of memory")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise CourseError(f"Measuring {recipe.label} failed: {last[:300]}.")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _empty(note: str) -> dict:
    names = ("peak_gib", "live_gib", "seconds_per_step", "cpu_seconds_per_step", "tokens_per_second", "trained",
             "threads")
    return dict.fromkeys(names) | {"device": device_name(), "note": note}


# In the fresh process ------------------------------------------------------------------------------------------------


class LiveTensors(TorchDispatchMode):
    """Sums the bytes of all tensors alive at every operation, those of `model` included; storages count once."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[weakref.ref, int] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if weakref.ref(storage) in self._sizes or not storage.nbytes():
            return
        self._sizes[weakref.ref(storage, self._drop)] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _drop(self, gone: weakref.ref) -> None:
        self.now -= self._sizes.pop(gone, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),  # noqa: PLR0917  torch calls it so
                           kwargs: dict | None = None) -> Any:
        """Run an operation and add what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return result


def build(folder: Path, recipe: Recipe) -> nn.Module:
    """The model of a configuration with random weights, prepared as the recipe says, on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = torch.float32 if recipe.precision == "float32" else torch.bfloat16
    common = {"dtype": dtype, "attn_implementation": recipe.attention}
    if recipe.method == "qlora":
        from transformers import BitsAndBytesConfig

        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=torch.bfloat16)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, device_map={"": 0}, **common,
                                                     use_safetensors=True, trust_remote_code=False)
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, **common, trust_remote_code=False).to(device_name())
    model.config.use_cache = False
    if recipe.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not recipe.full:
            model.enable_input_require_grads()
    return model.train() if recipe.full else _adapted(model, recipe).train()


def _adapted(model: nn.Module, recipe: Recipe) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = "all-linear" if recipe.targets == "all" else ["q_proj", "v_proj"]
    return get_peft_model(model, LoraConfig(r=recipe.r, lora_alpha=2 * recipe.r, target_modules=targets,
                                            task_type="CAUSAL_LM"))


def optimiser_for(parameters: list[nn.Parameter], name: str) -> torch.optim.Optimizer:
    """The optimiser of a recipe, at a small rate."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit
        return AdamW8bit(parameters, lr=1e-5)
    if name == "lion":
        from utils.training.optimisers import Lion
        return Lion(parameters, lr=1e-6)
    return {"sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor}[name](parameters, lr=1e-5)


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, batch: dict) -> None:
    """As a trainer does it: nothing of the forward pass is kept but what the loss needs."""
    model(**batch).loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def live_peak(model: nn.Module, recipe: Recipe, *, steps: int = MEMORY_STEPS) -> tuple[int, torch.optim.Optimizer]:
    """Largest sum of live tensors in bytes over a few steps, and the optimiser with its states.

    Parameters
    ----------
    model : nn.Module
        Its trained parameters are those that require a gradient.
    recipe : Recipe
        Optimiser, batch and length.
    steps : int
        The second one has the optimiser's states.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser, batch = optimiser_for(trained, recipe.optimiser), _batch(model, recipe)
    live = LiveTensors(model) if device_name() == "cpu" else None
    with live or contextlib.nullcontext():
        for _ in range(steps):
            _step(model, optimiser, batch)
    return (live.peak if live else 0), optimiser


def _batch(model: nn.Module, recipe: Recipe) -> dict:
    config: Any = model.config
    ids = torch.randint(0, config.vocab_size, (recipe.batch, recipe.length), device=device_name())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (its highest value) of this process in bytes; elsewhere than on Linux what is nearest."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss if field == "VmRSS" else round(peak_memory_gib() * 2**30)


def _forget_highest() -> None:
    """Let VmHWM start anew; where the system refuses, it includes the building of the model."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _usual_allocation() -> None:
    """Undo the two settings that the process was started with: keep freed memory, as time is measured from here on."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # the last two where there is no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc allows
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _warm_up(recipe: Recipe) -> None:
    """Load libraries and start threads by training a model of no size, so that the base line holds them."""
    from transformers import LlamaConfig

    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2)
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        method = "lora" if recipe.method == "qlora" else recipe.method
        tiny = replace(recipe, method=method, batch=1, length=8)
        live_peak(build(Path(folder), tiny), tiny, steps=1)
    gc.collect()


def _timed(model: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe) -> tuple[float, float]:
    """Seconds of one step, and of the process's threads together."""
    batch, started, cpu_started = _batch(model, recipe), time.perf_counter(), time.process_time()
    _step(model, optimiser, batch)
    if device_name() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - cpu_started


def _measure_here(folder: Path, recipe: Recipe) -> dict:
    torch.manual_seed(0)
    _warm_up(recipe)
    before = _resident("VmRSS")
    model = build(folder, recipe)
    _forget_highest()
    if device_name() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    live, optimiser = live_peak(model, recipe)
    peak = torch.cuda.max_memory_allocated() if device_name() == "cuda" else _resident("VmHWM") - before
    _usual_allocation()
    seconds, cpu_seconds = [_timed(model, optimiser, recipe) for _ in range(TIMED_STEPS)][-1]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"peak_gib": peak / 2**30, "live_gib": live / 2**30 if live else None, "seconds_per_step": seconds,
            "cpu_seconds_per_step": cpu_seconds, "tokens_per_second": recipe.tokens / seconds, "trained": trained,
            "threads": torch.get_num_threads(), "device": device_name(), "note": ""}


def main(job: str) -> None:
    """Print one line of JSON with what was measured."""
    set_up_process()
    content = json.loads(job)
    recipe = Recipe(**content["recipe"])
    try:
        found = _measure_here(Path(content["folder"]), recipe)
    except torch.OutOfMemoryError:
        found = _empty("out of memory")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
