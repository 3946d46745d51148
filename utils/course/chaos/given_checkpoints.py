"""Checkpoints and adapters that nothing can be counted in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from utils.course.chaos.ask import refusal
from utils.course.chaos.case import Case

QUERY, VALUE = (f"encoder.layer.0.attention.self.{kind}" for kind in ("query", "value"))
FACTOR, WIDTH, INDEX = f"base_model.model.{QUERY}", 16, "model.safetensors.index.json"
Make = Callable[[Path], Any]


def write_pair(folder: Path) -> None:
    """A base, a tuned model and an adapter of two small matrices, which the command counts in without complaint."""
    torch.manual_seed(0)
    base = {f"{name}.weight": torch.randn(WIDTH, WIDTH) for name in (QUERY, VALUE)}
    write_model(folder / "base", base)
    write_model(folder / "tuned", {name: weight + 0.1 * torch.randn(WIDTH, WIDTH) for name, weight in base.items()})
    write_adapter(folder / "adapter")


def write_model(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint as `save_pretrained` leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    save_file(tensors, folder / "model.safetensors")


def write_adapter(folder: Path, *, factors: dict[str, torch.Tensor] | None = None, **settings: Any) -> None:
    """A LoRA adapter of rank 2 as PEFT leaves it, with other settings or factors where they are given."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "x"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(factors or {f"{FACTOR}.lora_A.weight": torch.randn(2, WIDTH),
                          f"{FACTOR}.lora_B.weight": torch.randn(WIDTH, 2)}, folder / "adapter_model.safetensors")


def _weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    return lambda folder: write_model(folder / "tuned", {f"{name}.weight": change(torch.randn(WIDTH, WIDTH))
                                                         for name in (QUERY, VALUE)})


def _with_nan(weight: torch.Tensor) -> torch.Tensor:
    weight[3, 4] = torch.nan
    return weight


def _file(name: str, content: bytes | str) -> Make:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _cut(name: str, end: int) -> Make:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def _index(weight_map: Any) -> Make:
    def make(folder: Path) -> None:
        (folder / "tuned" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        (folder / "tuned" / "model.safetensors").rename(folder / "tuned" / "model-00001-of-00002.safetensors")

    return make


def _index_file(content: bytes | str) -> Make:
    def make(folder: Path) -> None:
        _index({})(folder)  # one whole file would be read before any index
        _file(f"tuned/{INDEX}", content)(folder)

    return make


def _pickled(content: Any) -> Make:
    def make(folder: Path) -> None:
        (folder / "tuned" / "model.safetensors").unlink()
        torch.save(content, folder / "tuned" / "pytorch_model.bin")

    return make


def _adapter(**settings: Any) -> Make:
    return lambda folder: write_adapter(folder / "adapter", **settings)


def _factors(a: torch.Tensor, b: torch.Tensor | None) -> Make:
    given = {f"{FACTOR}.lora_A.weight": a} | ({} if b is None else {f"{FACTOR}.lora_B.weight": b})
    return lambda folder: write_adapter(folder / "adapter", factors=given)


def _header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


class _Runs:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self):
        return print, ("a pickle ran code",)


TUNED: dict[str, Make] = {
    "weights with a NaN": _weights(_with_nan), "infinite weights": _weights(lambda weight: weight / 0),
    "whole numbers as weights": _weights(lambda weight: weight.to(torch.int8)),
    "truth values as weights": _weights(lambda weight: weight > 0),
    "complex weights": _weights(lambda weight: weight.to(torch.complex64)),
    "weights of another shape": _weights(lambda weight: weight[:8].contiguous()),
    "weights of one dimension": _weights(torch.Tensor.flatten),
    "empty weights": _weights(lambda weight: weight[:0].contiguous()),
    "other names": lambda folder: write_model(folder / "tuned", {"other.weight": torch.randn(4, 4)}),
    "no tensors": lambda folder: write_model(folder / "tuned", {}),
    "half a file": _cut("tuned/model.safetensors", 700), "a cut header": _cut("tuned/model.safetensors", 20),
    "7 bytes": _cut("tuned/model.safetensors", 7), "an empty file": _cut("tuned/model.safetensors", 0),
    "text as weights": _file("tuned/model.safetensors", "no weights at all" * 99),
    "a header beyond the file": _file("tuned/model.safetensors", b"\xff" * 8 + b"{}"),
    "a header that is a list": _file("tuned/model.safetensors", _header("[]")),
    "a deep header": _file("tuned/model.safetensors", _header('{"a":' * 5000 + "1" + "}" * 5000)),
    "a folder as weights": lambda folder: [(folder / "tuned/model.safetensors").unlink(),
                                           (folder / "tuned/model.safetensors").mkdir()],
    "a dangling link as weights": lambda folder: [(folder / "tuned/model.safetensors").unlink(),
                                                  (folder / "tuned/model.safetensors").symlink_to("/none")],
    "an empty folder": lambda folder: [shutil.rmtree(folder / "tuned"), (folder / "tuned").mkdir()],
    "a file as the model": lambda folder: [shutil.rmtree(folder / "tuned"), (folder / "tuned").touch()],
    "an index of files outside": _index({f"{QUERY}.weight": "../base/model.safetensors"}),
    "an index of an absolute path": _index({f"{QUERY}.weight": "/etc/passwd"}),
    "an index of missing files": _index({f"{QUERY}.weight": "model-00002-of-00002.safetensors"}),
    "an index of numbers": _index({f"{QUERY}.weight": 7}), "an index that is a list": _index([1]),
    "an empty index": _index({}), "an index of a folder": _index({f"{QUERY}.weight": "."}),
    "a deep index": _index_file("[" * 100_000), "an index that is no JSON": _index_file("{"),
    "an index that is no UTF-8": _index_file(b"\xff\xfe{"),
    "a pickle that runs code": _pickled({"a": _Runs()}), "a pickle of a list": _pickled([1, 2]),
    "a pickle of numbers": _pickled({1: 2}), "a pickle of nothing": _pickled(None),
}
ADAPTERS: dict[str, Make] = {
    "rank 0": _adapter(r=0), "rank -1": _adapter(r=-1), "a rank in words": _adapter(r="four"),
    "no rank": _adapter(r=None),
    "a rank that is a list": _adapter(r=[2]), "a rank of 2.5": _adapter(r=2.5), "a rank of 10^40": _adapter(r=10**40),
    "another rank than its factors": _adapter(r=7), "alpha in words": _adapter(lora_alpha="four"),
    "alpha NaN": _adapter(lora_alpha=float("nan")), "alpha infinite": _adapter(lora_alpha=float("inf")),
    "alpha 10^400": _adapter(lora_alpha=10**400), "alpha 10^300": _adapter(lora_alpha=1e300),
    "alpha null": _adapter(lora_alpha=None), "alpha true": _adapter(lora_alpha=True),
    "alpha a list": _adapter(lora_alpha=[4]),
    "a rank pattern of words": _adapter(rank_pattern={"query": "x"}),
    "a rank pattern of 0": _adapter(rank_pattern={"query": 0}),
    "a rank pattern that is a list": _adapter(rank_pattern=[1]),
    "a broken rank pattern": _adapter(rank_pattern={"(": 2}),
    "an alpha pattern of words": _adapter(alpha_pattern={"query": "x"}),
    "a broken alpha pattern": _adapter(alpha_pattern={"*": 2}), "rsLoRA in words": _adapter(use_rslora="yes"),
    "another kind": _adapter(peft_type="IA3"), "a kind that is a list": _adapter(peft_type=["LORA"]),
    "an initialisation that is a mapping": _adapter(init_lora_weights={"a": 1}), "a base that is a number":
    _adapter(base_model_name_or_path=7), "factors that do not fit": _factors(torch.randn(2, 3), torch.randn(WIDTH, 2)),
    "factors of other ranks": _factors(torch.randn(2, WIDTH), torch.randn(WIDTH, 3)),
    "one factor alone": _factors(torch.randn(2, WIDTH), None), "a factor with a NaN":
    _factors(_with_nan(torch.randn(4, WIDTH)), torch.randn(WIDTH, 4)),
    "factors of rank 0": _factors(torch.randn(0, WIDTH), torch.randn(WIDTH, 0)),
    "factors of one dimension": _factors(torch.randn(WIDTH), torch.randn(WIDTH)),
    "factors of whole numbers": _factors(torch.ones(2, WIDTH).int(), torch.ones(WIDTH, 2).int()),
    "settings that are a list": _file("adapter/adapter_config.json", "[]"),
    "deep settings": _file("adapter/adapter_config.json", '{"r":' * 50_000),
    "settings that are no JSON": _file("adapter/adapter_config.json", "r: 2"),
    "settings that are no UTF-8": _file("adapter/adapter_config.json", b"\xff{}"),
    "settings twice": _file("adapter/adapter_config.json", '{"peft_type": "LORA", "r": 2}{}'),
    "half a file": _cut("adapter/adapter_model.safetensors", 90), "no factors":
    lambda folder: (folder / "adapter/adapter_model.safetensors").unlink(),
}
# Odd, and yet it is clear what is meant: such a one may be counted.
MAY_PASS = {"a rank of 2.5", "an empty index", "another rank than its factors", "alpha true", "rsLoRA in words",
            "an initialisation that is a mapping", "a base that is a number", "alpha null", "no rank", "alpha 10^300",
            "settings that are a list", "factors of rank 0", "an index of a folder", "weights of one dimension"}


QUICK = ("a whole pair", "a tuned model: weights with a NaN", "a tuned model: half a file", "a base: other names",
         "a tuned model: a pickle that runs code", "a base: a deep index", "an adapter: alpha in words",
         "an adapter: one factor alone")


def cases(*, quick: bool) -> list[Case]:
    """Tuned models and adapters over a base that is whole, each model also as the base; a pair that is counted."""
    made = [refusal("a whole pair", "checkpoints", ["intruders", _of("base"), _of("tuned"), "--k", "3"],
                    prepare=write_pair, status=(0,))]
    for role, group, words in (("a tuned model", TUNED, ["intruders", _of("base"), _of("tuned")]),
                               ("a base", TUNED, ["intruders", _of("tuned"), _of("base")]),
                               ("an adapter", ADAPTERS, ["intruders", _of("base"), _of("adapter")])):
        for name, make in group.items():
            more = ["--allow-pickle"] if "pickle" in name else []
            status = (0, 1, 2) if name in MAY_PASS else (1, 2)
            made.append(refusal(f"{role}: {name}", "checkpoints", [*words, "--k", "3", *more], status=status,
                                prepare=lambda folder, make=make: (write_pair(folder), make(folder))))
    return [case for case in made if case.name in QUICK] if quick else made


def _of(name: str) -> Callable[[Path], str]:
    return lambda folder: str(folder / name)
