"""The cache of base spectra: computed once, never believed when damaged."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from spectral_cases import DIRECT_BELOW, EPSILONS, counts, gaussian, mixed_pairs, spoiled

from utils.errors import CourseError
from utils.spectra import cache as cache_module
from utils.spectra.base import base_spectrum
from utils.spectra.cache import SpectrumCache
from utils.spectra.fast import leading_cosines


def weight(seed: int = 0) -> torch.Tensor:
    return gaussian(24, 36, seed=seed).float()


@pytest.fixture
def as_new_process(monkeypatch):
    """Forget which files were verified, as a new process does."""
    monkeypatch.setattr(cache_module, "_VERIFIED", set())


def only_file(folder):
    files = list(folder.iterdir())
    assert len(files) == 1 and files[0].suffix == ".safetensors"
    return files[0]


def assert_recomputed(folder, matrix: torch.Tensor) -> None:
    """A cache on `folder` misses once with the right spectrum, and repairs its file."""
    cache_module._VERIFIED.clear()
    cache, true = SpectrumCache(folder), base_spectrum(matrix)
    found = cache.spectrum(matrix)
    assert torch.equal(found.basis, true.basis) and torch.equal(found.values, true.values)
    assert (cache.hits, cache.misses) == (0, 1)
    cache_module._VERIFIED.clear()
    cache.spectrum(matrix)
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_spectrum_is_computed_once(tmp_path, as_new_process):
    """The second call, also of another cache on the folder, is a hit and equal to the last bit."""
    cache, computed = SpectrumCache(tmp_path), base_spectrum(weight())
    for reader in (cache, cache, SpectrumCache(tmp_path)):
        found = reader.spectrum(weight())
        assert torch.equal(found.basis, computed.basis) and torch.equal(found.values, computed.values)
    assert (cache.hits, cache.misses) == (1, 1) and (reader.hits, reader.misses) == (1, 0)
    assert only_file(tmp_path)


def test_a_key_is_the_matrix_alone(tmp_path, as_new_process):
    """Neither the name nor how it lies in memory matters: the same values are found again."""
    cache = SpectrumCache(tmp_path)
    cache.spectrum(weight(), name="base matrix a of model x")
    cache.spectrum(weight(), name="b")
    cache.spectrum(weight().T.contiguous().T, name="a transposed view")
    cache.spectrum(torch.cat([weight(1), weight()])[24:], name="a slice of a larger one")
    assert (cache.hits, cache.misses) == (3, 1)


def test_another_matrix_is_another_key(tmp_path, as_new_process):
    """Another type, shape or a single changed element is a miss, with its own spectrum."""
    cache, matrix = SpectrumCache(tmp_path), weight()
    cache.spectrum(matrix)
    changed = matrix.clone()
    changed[3, 5] = torch.nextafter(changed[3, 5], torch.tensor(9.0))
    others = [matrix.double(), matrix.bfloat16(), matrix.reshape(36, 24), matrix.T, changed,
              matrix.bfloat16().view(torch.float16)]
    for misses, other in enumerate(others, start=2):
        found, true = cache.spectrum(other), base_spectrum(other)
        assert torch.equal(found.basis, true.basis) and torch.equal(found.values, true.values)
        assert (cache.hits, cache.misses) == (0, misses)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_not_believed(share, tmp_path, as_new_process):
    SpectrumCache(tmp_path).spectrum(weight())
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    assert_recomputed(tmp_path, weight())


@pytest.mark.parametrize("place", ["length", "header", "checksum", "basis", "basis, last", "values", "values, last"])
def test_a_flipped_bit_is_not_believed(place, tmp_path, as_new_process):
    """One wrong bit anywhere in the file, in the basis or in the singular values, and it is computed again."""
    SpectrumCache(tmp_path).spectrum(weight())
    path = only_file(tmp_path)
    content, q = bytearray(path.read_bytes()), 24
    at = {"length": 1, "header": content.index(b"F64"), "checksum": content.index(b"checksum") + 12,
          "basis": -8 * q * (q + 1) + 6, "basis, last": -8 * q - 1, "values": -8 * q + 6, "values, last": -2}[place]
    content[at] ^= 4
    path.write_bytes(content)
    assert_recomputed(tmp_path, weight())


def test_another_matrixs_file_is_not_believed(tmp_path, as_new_process):
    """A whole file of another size in the place of this one."""
    SpectrumCache(tmp_path).spectrum(weight())
    path = only_file(tmp_path)
    SpectrumCache(tmp_path / "other").spectrum(weight()[:20])
    only_file(tmp_path / "other").replace(path)
    (tmp_path / "other").rmdir()
    assert_recomputed(tmp_path, weight())


def test_a_nearly_full_disk_is_not_filled_and_said_once(tmp_path, monkeypatch, capsys, as_new_process):
    """Spectra are computed all the same; nothing is written, and one line says so, however many matrices follow."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**30))
    cache = SpectrumCache(tmp_path)
    for seed in range(3):
        assert torch.equal(cache.spectrum(weight(seed)).basis, base_spectrum(weight(seed)).basis)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("nearly full") == 1
    assert (cache.hits, cache.misses) == (0, 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied"),
                                   SafetensorError("I/O error")])
def test_a_spectrum_that_cannot_be_kept_is_still_returned(error, tmp_path, monkeypatch, capsys, as_new_process):
    """The write fails, the result stands, no half of a file stays behind, and it is said once."""
    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(cache_module, "save_file", fails)
    cache = SpectrumCache(tmp_path)
    for seed in range(2):
        assert torch.equal(cache.spectrum(weight(seed)).values, base_spectrum(weight(seed)).values)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("could not be kept") == 1


def test_a_damaged_base_matrix_is_not_kept(tmp_path, as_new_process):
    cache = SpectrumCache(tmp_path)
    with pytest.raises(CourseError, match="layer.7 holds NaN"):
        cache.spectrum(spoiled(weight(), float("nan")), name="layer.7")
    assert not list(tmp_path.iterdir())


def test_counts_are_the_same_from_the_cache(tmp_path, as_new_process):
    """A cache's method in place of the computation: twice the same results, the second time from disk."""
    cache, pairs = SpectrumCache(tmp_path), mixed_pairs()
    options = {"k": 6, "epsilons": EPSILONS, "direct_below": DIRECT_BELOW}
    plain = [one.max_cosines for one in leading_cosines(pairs, **options)]
    for _ in range(2):
        kept = [one.max_cosines for one in leading_cosines(pairs, spectrum=cache.spectrum, **options)]
        assert [counts(one) for one in kept] == [counts(one) for one in plain]
        torch.testing.assert_close(torch.cat(kept), torch.cat(plain), rtol=0, atol=1e-9)
    assert (cache.hits, cache.misses) == (9, 9)  # the two narrow ones need no spectrum
