"""One file of weights, read one tensor at a time: safetensors, or a pickle by torch's restricted loader."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from utils.errors import UsageError
from utils.paths import worded

KEPT_OPEN_BYTES = 400 * 2**20
_READABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHORT = {torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
          torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
_ZIP = b"PK\x03\x04"
# What lies at a weight file's place when it is none, by how it begins.
_BEGINNINGS = ((b"version https://git-lfs", ("is the pointer that Git LFS keeps in place of the file, not the weights; "
                "run `git lfs pull` in its folder, or download the file itself")),
               (b"# xet", "is the pointer that Xet keeps in place of the file, not the weights; download the file"),
               (b"<", "is a web page, not the weights; download the file itself"),
               (b"GGUF", "is a GGUF file by another name; give the checkpoint that it was made from"),
               (_ZIP, "is a pickle or another zip archive, not safetensors; save the weights again"))


class WeightFile:
    """One weight file, safetensors or a pickle that was allowed: names with shapes, and tensors by name.

    Weights are mapped from the file, and mapped pages count as memory for as long as the file is open. So only the last
    few files stay open, and large ones do not: a 7B pair would fill the memory otherwise.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def of(cls, path: Path) -> "WeightFile":
        """The reader of a file in its present state."""
        try:
            state = path.stat()
        except OSError as error:
            raise UsageError(worded(error, path, "read")) from error
        if path.suffix != ".bin" and state.st_size > KEPT_OPEN_BYTES:
            return cls(path)
        return _kept_open(path, state.st_size, state.st_mtime_ns)

    @cached_property
    def _file(self):
        try:
            if self.path.suffix == ".bin":
                return _unpickled(self.path)
            return safe_open(self.path, "pt")
        except SafetensorError as error:
            self._refuse_others(error)
            raise UsageError(f"{self.path} is truncated or damaged ({error}); copy it again.") from error
        except UsageError:
            raise
        except Exception as error:  # a hostile or cut-off pickle ends in many ways
            self._refuse_others(error)
            raise UsageError(f"{self.path} cannot be read by torch's restricted loader ({type(error).__name__}): it "
                             "is damaged, or holds more than tensors, which is never loaded.") from error

    def _refuse_others(self, error: Exception) -> None:
        """UsageError if the file begins as something else does."""
        if what := stand_in(self.path):
            raise UsageError(f"{self.path} {what}.") from error

    @property
    def level(self) -> str | None:
        """Under which name a pickle keeps its weights one level down, such as "model" or "state_dict"; else None."""
        return self._file.level if isinstance(self._file, _Pickled) else None

    def shapes(self) -> dict[str, tuple[list[int], torch.dtype | str]]:
        """Shape and type of every tensor; the type's name, such as "I8", where it is not a plain floating one."""
        if isinstance(self._file, _Pickled):
            return {name: (list(part.shape), part.dtype if part.dtype in _READABLE.values()
                           else _SHORT.get(part.dtype, str(part.dtype))) for name, part in self._file.tensors.items()}
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  no mapping
        return {name: (part.get_shape(), _READABLE.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped from the file and not copied."""
        return self._file.tensors[name] if isinstance(self._file, _Pickled) else self._file.get_tensor(name)

    def part(self, name: str, index: int) -> torch.Tensor:
        """One slice of a tensor along its first dimension; the others are not read."""
        if isinstance(self._file, _Pickled):
            return self._file.tensors[name][index]
        return self._file.get_slice(name)[index]


def stand_in(path: Path) -> str | None:
    """What lies at a file's place instead of it, and what to do, by how it begins; None if it is none of these."""
    try:
        with path.open("rb") as stream:
            begins = stream.read(64).lstrip()
    except OSError:
        return None
    return next((what for start, what in _BEGINNINGS if begins.startswith(start)
                 and not (path.suffix == ".bin" and start == _ZIP)), None)


@lru_cache(maxsize=2)  # one file of each of two checkpoints
def _kept_open(path: Path, size: int, modified_ns: int) -> WeightFile:
    return WeightFile(path)


class _Pickled(NamedTuple):
    tensors: dict[str, torch.Tensor]
    level: str | None


def _unpickled(path: Path) -> _Pickled:
    """The tensors of a pickle by torch's restricted loader; UsageError if it holds none by name.

    Trainers of one's own often keep the weights one level down: {"model": {...}, "step": 5}.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        content = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{path} holds no weights by name, but a {type(content).__name__}; give a model's state dict.")
    tensors = {name: part for name, part in content.items() if isinstance(part, torch.Tensor)}
    within = {} if tensors else {name: part for name, part in content.items() if _is_state(part)}
    if len(within) > 1:
        raise UsageError(f"{path} holds several sets of weights, {', '.join(map(repr, within))}, and nothing says "
                         "which is meant; save one of them as a file of its own.")
    level = next(iter(within), None)
    return _Pickled(tensors or within.get(level, {}), level)


def _is_state(value: object) -> bool:
    """Whether something is a dict of tensors by name, as a model's state is; an optimiser's has numbers as names."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(part, torch.Tensor) for name, part in value.items())
