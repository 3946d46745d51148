"""Checkpoints on a shelf, and what the tests of ``python -m utils intruders`` ask of its reports and refusals."""

import json
from pathlib import Path

import numpy as np
import standin_checkpoints as standin
import torch
from standin_checkpoints import WIDTH, definition, save_adapter
from transformers import BertForMaskedLM

from utils.course.cli import main

EPSILONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
QUERY = "bert.encoder.layer.1.attention.self.query"
FACTOR = f"base_model.model.{QUERY}"
INDEX, CONFIG = "model.safetensors.index.json", "adapter_config.json"


class Shelf:
    """Checkpoints made when they are first asked for, each once."""

    def __init__(self, folder: Path):
        self.folder, self._made = folder, {}

    def _make(self, name: str, write) -> Path:
        if name not in self._made:
            write(self.folder / name)
            self._made[name] = self.folder / name
        return self._made[name]

    def base(self, architecture: str, width: int = WIDTH) -> Path:
        return self._make(f"{architecture}-{width}", standin.build(architecture, width).save_pretrained)

    def tuned(self, architecture: str, width: int = WIDTH) -> Path:
        return self._make(f"{architecture}-{width}-tuned",
                          lambda folder: standin.tune(standin.build(architecture, width)).save_pretrained(folder))

    def adapter(self, width: int = WIDTH, **settings) -> Path:
        """Of BERT's queries and values, r = 4."""
        base = self.base("bert", width)
        return self._make(f"adapter-{width}{'-'.join(settings)}", lambda folder: save_adapter(
            folder, base, BertForMaskedLM, **{"r": 4, "target_modules": ["query", "value"]} | settings))


def report_of(tmp_path: Path, base, tuned, *options) -> dict:
    """The JSON report of a run that has to succeed."""
    file = tmp_path / "report.json"
    assert main(["intruders", str(base), str(tuned), "--json", str(file), *map(str, options)]) == 0

    def no_nan(word: str):
        raise AssertionError(f"{word} in the JSON report")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=no_nan)


def assert_same(report: dict, other: dict) -> None:
    """Two reports of the same matrices; cosines may differ in the last bits, as products of unaligned memory do."""
    for row, twin in zip(report["matrices"], other["matrices"], strict=True):
        for key in ("name", "shape", "method", "stored", "counts"):
            assert row[key] == twin[key]
        np.testing.assert_allclose(row["max_cosines"], twin["max_cosines"], atol=1e-9)
        np.testing.assert_allclose(row["singular_values"], twin["singular_values"], rtol=1e-11)
    assert report["total"] == other["total"]


def refused(capsys, *arguments, status: int = 2) -> str:
    """The one sentence on stderr of a run that has to be refused."""
    capsys.readouterr()
    found = main(["intruders", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "unexpected" not in captured.err and "Traceback" not in captured.err, captured.err
    assert found == status and captured.out == ""
    return captured.err


def assert_says(sentence: str, *parts) -> None:
    assert [part for part in map(str, parts) if part not in sentence] == [], sentence


def assert_is_the_definition(report: dict, before: dict, after: dict, *, names=None, vectors: str = "left",
                             k: int = 10, prefix: str = "") -> None:
    """Names, shapes, singular values, cosines and counts are those of two plain SVDs of each matrix.

    `prefix` is what the report's names have before the module names of `before` and `after`.
    """
    by_name = {row["name"].removeprefix(prefix): row for row in report["matrices"]}
    assert set(by_name) == set(before if names is None else names) and len(by_name) == len(report["matrices"])
    total = dict.fromkeys(EPSILONS, 0)
    for name, row in by_name.items():
        sigma, cosines = definition(before[name], after[name], k=k, vectors=vectors)
        assert tuple(row["shape"]) == before[name].shape, name
        np.testing.assert_allclose(row["singular_values"], sigma, rtol=1e-9)
        np.testing.assert_allclose(row["max_cosines"], cosines, atol=1e-7, err_msg=name)
        assert all(np.abs(cosines - epsilon).min() > 1e-7 for epsilon in EPSILONS), "a tie says nothing"
        counts = {epsilon: int((cosines < epsilon).sum()) for epsilon in EPSILONS}
        assert row["counts"] == {f"{epsilon:g}": count for epsilon, count in counts.items()}, name
        total = {epsilon: total[epsilon] + counts[epsilon] for epsilon in EPSILONS}
    assert report["total"] == {f"{epsilon:g}": count for epsilon, count in total.items()}
    assert report["total"]["0.5"] > 0, "no intruders, so nothing was tested"


def models_before_and_after(architecture: str, width: int = WIDTH, dtype=torch.float32) -> tuple[dict, dict]:
    plain, tuned = standin.build(architecture, width), standin.tune(standin.build(architecture, width))
    return standin.matrices(plain.to(dtype)), standin.matrices(tuned.to(dtype))


def real_looking(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Singular values that fall as those of trained weights do, j ** -0.5, with random vectors."""
    generator, q = torch.Generator().manual_seed(seed), min(shape)
    u, v = (torch.linalg.qr(torch.randn(side, q, generator=generator, dtype=torch.float64)).Q for side in shape)
    return (u * torch.arange(1, q + 1, dtype=torch.float64)**-0.5) @ v.T


def moved(base: torch.Tensor, *, rank: int = 3, strength: float = 0.5, noise: float = 0.02,
          seed: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A tuned matrix, and the factors b (out, r) and a (r, in) of the strong part of what was added."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(base.shape[0], rank, generator=generator, dtype=torch.float64)
    a = torch.randn(rank, base.shape[1], generator=generator, dtype=torch.float64)
    b *= strength * base.norm() / (b @ a).norm()
    return base + b @ a + noise * real_looking(tuple(base.shape), seed + 1), b, a
