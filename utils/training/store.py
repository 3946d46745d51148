"""The run store: a specification in, a finished run out; trained once, resumed, verified, shared.

``cache/runs/<key>/`` holds ``spec.json``, ``metrics.jsonl``, ``checkpoints/*.safetensors``, ``measurements/*.parquet``
and ``result.json``, and is sealed for its key (:mod:`utils.sealed`) when all of it is there. A run without a seal is
unfinished and goes on from its last whole resume point; one that is not what was sealed is set aside under
``damaged/`` and done again.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from utils.errors import CourseError, os_error_in
from utils.files import write_json
from utils.low_rank import LowRankUpdate
from utils.paths import cache_dir, ensure_dir, worded
from utils.provenance import provenance
from utils.sealed import MANIFEST, check, seal, set_aside
from utils.sources.models import BaseModel, resolve
from utils.sources.tasks import task
from utils.tables import cached_table
from utils.training.checkpoints import METRICS, checkpoint_path
from utils.training.spec import RunSpec
from utils.training.train import train
from utils.training.weights import Tensors, base_matrices, load_into, merged

RESULT = "result.json"
NO_ROOM = 2**20  # bytes free on a disk that is called full


@dataclass
class Run:
    """A finished run: its specification, its result, and its weights on demand.

    ``start`` is the run that this one went on from, in a sequence; W0 is the pretrained base all the same.
    """

    spec: RunSpec
    folder: Path
    base: BaseModel
    result: dict = field(repr=False)
    start: "Run | None" = None

    @property
    def diverged(self) -> bool:
        """Whether the weights became infinite or NaN; such a run has no final weights."""
        return self.result["run"]["status"] == "diverged"

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return [row["step"] for row in self.result["measured"]["metrics"]]

    def metrics(self) -> pd.DataFrame:
        """What was measured at each checkpoint: one row per step, with the run's own columns first."""
        rows = pd.DataFrame(self.result["measured"]["metrics"]).drop(columns=["file", "sha256"], errors="ignore")
        return pd.DataFrame([self.spec.columns] * len(rows)).join(rows)

    def trained(self, step: int | None = None) -> Tensors:
        """The trained tensors at a step (the last by default), named as in :mod:`utils.training.weights`."""
        if self.diverged and step is None:
            raise CourseError(f"Run {self.spec.key} ({self.spec.method.label}, learning rate "
                              f"{self.spec.learning_rate:g}) diverged; lower its learning rate in the profile.")
        return load_file(checkpoint_path(self.folder, step or self.steps[-1]))

    def base_matrices(self) -> Tensors:
        """W0 of every tuned matrix, float32."""
        return base_matrices(self.base.folder)

    def tuned_matrices(self, step: int | None = None) -> Tensors:
        """The merged weight of every tuned matrix at a step, float32."""
        before = self.start.tuned_matrices() if self.start else self.base_matrices()
        return merged(before, self.trained(step), self.spec.method.scale)

    def factors(self, step: int | None = None) -> dict[str, LowRankUpdate] | None:
        """Wt - W0 of every matrix as a product of thin factors; None where it is none (full fine-tuning, DoRA, …).

        In a sequence the stages' factors stand side by side, scaled as this one's.
        """
        if self.spec.method.kind == "full":
            return None
        trained, scale = self.trained(step), self.spec.method.scale
        own = {name: LowRankUpdate(trained[f"lora_B.{name}"], trained[f"lora_A.{name}"], scale)
               for name in self.base_matrices() if f"lora_A.{name}" in trained}
        if not own:
            return None
        if self.start is None:
            return own
        if (before := self.start.factors()) is None:
            return None
        return {name: LowRankUpdate(torch.cat([before[name].b * (before[name].scale / scale), b], dim=1),
                                    torch.cat([before[name].a, a]), scale) for name, (b, a, _) in own.items()}

    def classifier(self, step: int | None = None, matrices: Tensors | None = None) -> nn.Module:
        """The tuned classifier at a step, or with other matrices put in its place."""
        model = AutoModelForSequenceClassification.from_pretrained(
            self.base.folder, num_labels=len(task(self.spec.task).labels), dtype=torch.float32,
            use_safetensors=True, trust_remote_code=False)
        return load_into(model, matrices or self.tuned_matrices(step), self.trained(step)).eval()

    def masked_lm(self, step: int | None = None, matrices: Tensors | None = None) -> nn.Module:
        """The base's own masked-LM head over the tuned body: what pseudo-loss is measured on."""
        model = AutoModelForMaskedLM.from_pretrained(self.base.folder, dtype=torch.float32,
                                                     use_safetensors=True, trust_remote_code=False)
        return load_into(model, matrices or self.tuned_matrices(step)).eval()

    def causal_lm(self, step: int | None = None, matrices: Tensors | None = None) -> nn.Module:
        """The tuned causal language model at a step, or with other matrices put in its place."""
        model = AutoModelForCausalLM.from_pretrained(self.base.folder, dtype=torch.float32,
                                                     use_safetensors=True, trust_remote_code=False)
        return load_into(model, matrices or self.tuned_matrices(step)).eval()

    def measured(self, name: str, settings: dict, compute: Callable[["Run"], pd.DataFrame]) -> pd.DataFrame:
        """A measurement of this run, computed once and kept beside it.

        Parameters
        ----------
        name : str
            What is measured, such as ``"spectrum"``; part of the file's name.
        settings : dict
            Everything besides the run that the numbers depend on, a version of the method included.
        compute : callable
            Takes the run and returns a DataFrame without the run's own columns.
        """
        frame = cached_table(self.folder / "measurements" / f"{name}.parquet", settings, lambda: compute(self))
        return pd.DataFrame([self.spec.columns] * len(frame)).join(frame)


def undiverged(runs: Iterable[Run], *, experiment: str = "") -> list[Run]:
    """The runs that have final weights; each other one is said, with the experiment's name where it is given."""
    kept, of = [], f"{experiment}, " if experiment else ""
    for run in runs:
        if run.diverged:
            print(f"{of}{run.spec.method.label} at learning rate {run.spec.learning_rate:g}, seed {run.spec.seed}: "
                  "diverged, left out of every table.")
        else:
            kept.append(run)
    return kept


def base_folder(base: BaseModel) -> Path:
    """Where measurements of an untouched base are kept: one folder for each of its revisions."""
    return cache_dir() / "measurements" / f"{base.name.replace('/', '--')}-{base.revision}"


MAY_COME_AND_GO = ("measurements", "resume")  # beside what is sealed of a run
_DAMAGED = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged result may end in


def _read_result(path: Path) -> dict:
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["run"]["status"] not in ("done", "diverged") or not isinstance(result["measured"]["metrics"], list):
        raise ValueError("no result of a run")
    return result


def _not_written(error: Exception, folder: Path) -> str | None:
    """Why a run could not be written, in a sentence, if that is what an error says; libraries hide it in theirs."""
    if (known := os_error_in(error)) is not None:
        path = Path(known.filename or folder)
        return worded(known, path, "written" if path.is_relative_to(folder) else "used")
    if any(words in str(error) for words in ("PytorchStreamWriter", "inline_container")):  # torch tells no reason
        full = shutil.disk_usage(folder).free < NO_ROOM
        return worded(OSError(errno.ENOSPC if full else errno.EIO, str(error).splitlines()[0]), folder, "written")
    return None


def _misplaced(folder: Path) -> str | None:
    """What of an unfinished run is no file, or no folder, where it has to be one; in a few words, or None."""
    folders = [folder, *(folder / name for name in ("checkpoints", *MAY_COME_AND_GO))]
    files = [*(folder / name for name in ("spec.json", METRICS, RESULT)), *folder.glob("checkpoints/step-*")]
    wrong = [path for path in folders if os.path.lexists(path) and not path.is_dir()]
    wrong += [path for path in files if os.path.lexists(path) and not path.is_file()]
    return f"{wrong[0].name} is no {'folder' if wrong[0] in folders else 'file'}" if wrong else None


class RunStore:
    """Finds or trains runs under one folder; ``cache/runs`` by default."""

    def __init__(self, folder: Path | None = None):
        self._folder = folder

    @cached_property
    def folder(self) -> Path:
        """Where the runs lie, each in a folder named by its key; made when it is first asked for."""
        folder = self._folder or cache_dir() / "runs"
        return folder if os.path.isdir(folder) else ensure_dir(folder)  # noqa: PTH112  an impossible name is none

    def get(self, spec: RunSpec) -> Run:
        """The finished run of a specification, trained now if it is not stored.

        Two processes that ask for the same run train it once: the second waits for the first.
        """
        base = self._base(spec)
        start, reward = (self.get(other) if other else None for other in (spec.start, spec.reward))
        for other in (start, reward):
            if other and other.diverged:
                raise CourseError(f"Run {spec.key} starts from {other.spec.key} ({other.spec.method.label} on "
                                  f"{other.spec.task}), which diverged; lower its learning rate in the profile.")
        folder = self.folder / spec.key
        # No lock, and no tidying, where one only reads: the store of a class may be such a one.
        if (result := self._whole(folder, spec)) and not ((folder / "resume").exists() and os.access(folder, os.W_OK)):
            return Run(spec, folder, base, result, start)
        lock = FileLock(self.folder / f"{spec.key}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is training {spec.key}; waiting for it.", flush=True)
            lock.acquire()
        except OSError as error:
            raise CourseError(worded(error, self.folder, "written")) from error
        try:
            result = self._finished(folder, spec) or self._train(spec, base, folder, start=start, reward=reward)
        finally:
            lock.release()  # a traceback that a notebook keeps would keep the lock alive with it
        return Run(spec, folder, base, result, start)

    def stored(self, spec: RunSpec) -> bool:
        """Whether the run is finished, without verifying its files."""
        return (self.folder / spec.key / MANIFEST).exists()

    def result(self, spec: RunSpec) -> dict | None:
        """What is stored of a finished run, without verifying it; None if there is nothing that can be read."""
        with suppress(*_DAMAGED):
            return _read_result(self.folder / spec.key / RESULT) if self.stored(spec) else None
        return None

    def finished(self) -> list[Path]:
        """The folders of all finished runs, in order, without verifying their files."""
        return [path.parent for path in sorted(self.folder.glob(f"*/{MANIFEST}"))]

    def results(self) -> list[tuple[Path, dict]]:
        """Folder and ``result.json`` of every finished run; :meth:`get` deals with the unreadable ones."""
        found = []
        for folder in self.finished():
            with suppress(*_DAMAGED):
                found.append((folder, _read_result(folder / RESULT)))
        return found

    def _base(self, spec: RunSpec) -> BaseModel:
        base = resolve(spec.base)
        if base.revision != spec.base_revision:
            raise CourseError(f"Run {spec.key} was specified for {base.name} at {spec.base_revision}, but the weights "
                              f"at hand are {base.revision}; build the specification anew.")
        return base

    def _train(self, spec: RunSpec, base: BaseModel, folder: Path, *, start: Run | None, reward: Run | None) -> dict:
        write_json(folder / "spec.json", spec.model_dump(mode="json"))
        shutil.rmtree(folder / "measurements", ignore_errors=True)  # of weights that this run once had
        try:
            result = self._result(spec, base, folder, start=start.tuned_matrices() if start else None,
                                  reward=reward.classifier() if reward else None)
        except (OSError, RuntimeError, SafetensorError) as error:
            if (sentence := _not_written(error, folder)) is None:
                raise
            raise CourseError(f"Run {spec.key} is not finished: {sentence}") from error
        write_json(folder / RESULT, result)
        seal(folder, about={"run": spec.key}, leaving_out=MAY_COME_AND_GO)
        # Only now: whatever happens before this line, there is a whole point to go on from.
        shutil.rmtree(folder / "resume", ignore_errors=True)
        return result

    def _result(self, spec: RunSpec, base: BaseModel, folder: Path, *, start: Tensors | None,
                reward: nn.Module | None) -> dict:
        """Train; what ``result.json`` says of it."""
        return self._with_provenance(train(spec, base, folder, start=start, reward=reward), base)

    @staticmethod
    def _with_provenance(result: dict, base: BaseModel, **more: object) -> dict:
        return result | {"provenance": provenance() | {"base_revision": base.revision} | more}

    def _whole(self, folder: Path, spec: RunSpec) -> dict | None:
        """The result of a run that is as it was sealed, or None."""
        if (folder / MANIFEST).exists() and check(folder, about={"run": spec.key}) is None:
            with suppress(*_DAMAGED):
                return _read_result(folder / RESULT)
        return None

    def _finished(self, folder: Path, spec: RunSpec) -> dict | None:
        """The result of a whole run; a damaged one is set aside and None returned. To be called with the lock held."""
        if (result := self._whole(folder, spec)) is not None:
            shutil.rmtree(folder / "resume", ignore_errors=True)  # a kill came between the seal and this
        elif (folder / MANIFEST).exists():
            reason = check(folder, about={"run": spec.key}) or f"{RESULT} is none"
            set_aside(folder, reason, then=f"run {spec.key} is done again")
        elif odd := _misplaced(folder):
            set_aside(folder, odd, then=f"run {spec.key} is done anew")
        return result
