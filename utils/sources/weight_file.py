"""One file of weights, read one tensor at a time: safetensors, or a pickle by torch's restricted loader."""

from functools import cached_property, lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.errors import UsageError
from utils.paths import worded

KEPT_OPEN_BYTES = 400 * 2**20
_READABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
            raise UsageError(f"{self.path} is truncated or damaged ({error}); copy it again.") from error
        except UsageError:
            raise
        except Exception as error:  # a hostile or cut-off pickle ends in many ways
            raise UsageError(f"{self.path} cannot be read by torch's restricted loader ({type(error).__name__}): it "
                             "is damaged, or holds more than tensors, which is never loaded.") from error

    def shapes(self) -> dict[str, tuple[list[int], torch.dtype | str]]:
        """Shape and type of every tensor; the type's name where it is not a plain floating one."""
        if isinstance(self._file, dict):
            tensors = {name: part for name, part in self._file.items() if isinstance(part, torch.Tensor)}
            return {name: (list(part.shape), part.dtype if part.dtype in _READABLE.values() else str(part.dtype))
                    for name, part in tensors.items()}
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  no mapping
        return {name: (part.get_shape(), _READABLE.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped from the file and not copied."""
        return self._file[name] if isinstance(self._file, dict) else self._file.get_tensor(name)


@lru_cache(maxsize=2)  # one file of each of two checkpoints
def _kept_open(path: Path, size: int, modified_ns: int) -> WeightFile:
    return WeightFile(path)


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle by torch's restricted loader; UsageError if it holds anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        content = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{path} holds no weights by name, but a {type(content).__name__}; give a model's state dict.")
    return content
