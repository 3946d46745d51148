"""Base spectra on disk: computed once per base matrix, whatever is compared with it. The one file here that does I/O.

``cache/spectra/<key>.safetensors`` holds the basis and the values in float64, 8 q^2 bytes per matrix: 340 MB for
RoBERTa-base, 30 GB for a 7B model. The key is the checksum of the weight's bytes with its type and shape, so the same
matrix is found again whatever file or model it comes from, and another one never is.
"""

import shutil
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils.errors import CourseError
from utils.files import atomic_write
from utils.paths import cache_dir, ensure_dir
from utils.spectra.base import BaseSpectrum, base_spectrum

VERSION = 1  # raise it when base_spectrum computes something else
PRECISION = "float64"
SPARE_BYTES = 2 * 2**30  # never fill a disk further than this
_VERIFIED: set[tuple[Path, int, int]] = set()


def checksum(tensor: torch.Tensor) -> str:
    """xxh3_128 of a tensor's bytes: at memory speed, where sha256 would take longer than the analysis.

    It tells apart by accident-proof odds, not against an attacker; only our own cache is keyed by it.
    """
    return xxhash.xxh3_128_hexdigest(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def _checksums(basis: torch.Tensor, values: torch.Tensor) -> str:
    return f"{checksum(basis)} {checksum(values)}"


class SpectrumCache:
    """``spectrum(weight, name=…)`` returns the base spectrum of a matrix, from disk if it was computed before.

    A file that is damaged is computed again. A disk without room for a further file is left as it is, and said once.

    Parameters
    ----------
    folder : Path, optional
        ``cache/spectra`` by default.
    device : str
        Where a missing one is computed.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu"):
        self.folder, self.device = ensure_dir(folder or cache_dir() / "spectra"), device
        self.hits, self.misses, self._full = 0, 0, False

    def spectrum(self, weight: torch.Tensor, *, name: str = "matrix") -> BaseSpectrum:
        """See :func:`utils.spectra.base.base_spectrum`; the result lies on the CPU, found or computed."""
        path = self.folder / f"{self._key(weight)}.safetensors"
        if (found := self._read(path, weight)) is not None:
            self.hits += 1
            return found
        self.misses += 1
        # Not where it was computed: a caller would meet another device the first time than ever after.
        spectrum = BaseSpectrum(*(part.cpu() for part in base_spectrum(weight.to(self.device), name=name)))
        self._write(path, spectrum)
        return spectrum

    def _key(self, weight: torch.Tensor) -> str:
        kind = str(weight.dtype).removeprefix("torch.")
        return f"{checksum(weight)}-{'x'.join(map(str, weight.shape))}-{kind}-{PRECISION}-v{VERSION}"

    def _read(self, path: Path, weight: torch.Tensor) -> BaseSpectrum | None:
        if not path.exists():
            return None
        q = min(weight.shape)
        state = path.stat()
        seen = (path, state.st_size, state.st_mtime_ns)
        try:
            with safe_open(path, "pt") as file:
                basis, values = file.get_tensor("basis"), file.get_tensor("values")
                whole = basis.shape == (q, q) and values.shape == (q,)
                if whole and seen not in _VERIFIED:  # once per process: it costs a tenth of the analysis
                    whole = _checksums(basis, values) == (file.metadata() or {}).get("checksum")
        except (SafetensorError, OSError):
            return None
        if whole:
            _VERIFIED.add(seen)
        return BaseSpectrum(basis, values) if whole else None

    def _write(self, path: Path, spectrum: BaseSpectrum) -> None:
        tensors = {"basis": spectrum.basis.contiguous(), "values": spectrum.values.contiguous()}
        size = tensors["basis"].nbytes
        if self._full or shutil.disk_usage(self.folder).free < size + SPARE_BYTES:
            if not self._full:
                print(f"The disk of {self.folder} is nearly full: base spectra are computed, but not kept.", flush=True)
            self._full = True
            return
        try:
            with atomic_write(path) as temporary:
                save_file(tensors, temporary, metadata={"checksum": _checksums(**tensors)})
        except (CourseError, SafetensorError):
            self._full = True  # it was computed; only keeping it failed
            print(f"Base spectra could not be kept in {self.folder}; they are computed each time.", flush=True)

