"""``python -m utils bench``: what the fast paths gain here, each against the plain way, side by side and as ratios.

A machine's speed drifts by tens of per cent within minutes, so every ratio is taken within one round, plain way and
fast way right after each other, and its spread over the rounds is reported with it.
"""

import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from utils.course.bench_runs import side_by_side_row
from utils.errors import CourseError
from utils.files import write_json
from utils.low_rank import LowRankUpdate
from utils.machine import device_name
from utils.provenance import provenance
from utils.sources.checkpoints import open_checkpoint
from utils.spectra.cache import SpectrumCache
from utils.spectra.fast import Pair, leading_cosines, merged_weight
from utils.spectra.intruders import is_intruder
from utils.spectra.svd import SingularTriplets, max_cosines, thin_svd

EPSILONS = tuple(round(0.05 * part, 2) for part in range(1, 20))
K = 10
COMPARISONS = ("counts", "training", "pseudo_loss", "side_by_side")
KINDS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
         "intermediate.dense", "output.dense")
NORMS = {"LoRA r=1": 0.02, "LoRA r=8": 0.03, "LoRA r=64": 0.05, "dense": 0.02}  # relative norm of each update
TARGETS = {"LoRA r=1": (60, 1.8), "LoRA r=8": (60, 1.8), "LoRA r=64": (20, 1.8), "dense": (8, 1.5)}  # warm, cold


def bench(only: Collection[str] = COMPARISONS, *, rounds: int = 3, layers: int = 12, width: int = 768,
          training_steps: int = 30, passages: int = 6, pool_steps: int = 60) -> dict:
    """Measure everything, or some comparisons, and return it ready for JSON.

    Parameters
    ----------
    only : collection of str
        Of :data:`COMPARISONS`.
    rounds : int
        Repetitions of each comparison; the table shows the median ratio and its smallest and largest.
    layers, width : int
        Size of the encoder whose six linear kinds are compared; RoBERTa-base by default, 72 matrices.
    training_steps, passages, pool_steps : int
        Size of the other three comparisons. The last is made once, for it takes minutes.
    """
    ways: dict[str, Callable[[], list[dict]]] = {
        "counts": lambda: _counts(rounds=rounds, layers=layers, width=width),
        "training": lambda: [training_row(rounds, training_steps)],
        "pseudo_loss": lambda: [pseudo_loss_row(rounds, passages)],
        "side_by_side": lambda: [side_by_side_row(pool_steps)]}
    names = [name for name in COMPARISONS if name in only]
    rows = [row | {"comparison": name, "rounds": 1 if name == "side_by_side" else rounds}
            for name in names for row in ways[name]()]
    return {"setting": {"layers": layers, "width": width, "k": K, "epsilons": list(EPSILONS),
                        "relative_update_norms": NORMS, "training_steps": training_steps, "passages": passages,
                        "pool_steps": pool_steps},
            "rows": rows, "provenance": dict.fromkeys(names, provenance())}


def with_earlier(result: dict, earlier: dict) -> dict:
    """A result of some comparisons, completed by those of an earlier one that it does not have."""
    source = {name: result if name in result["provenance"] else earlier for name in COMPARISONS}
    rows = [row for name, one in source.items() for row in one["rows"] if row["comparison"] == name]
    return result | {"rows": rows, "provenance": {name: one["provenance"][name] for name, one in source.items()
                                                  if name in one["provenance"]}}


def _counts(**size: int) -> list[dict]:
    folder = Path(tempfile.mkdtemp(prefix="lora-bench-"))
    try:
        return count_rows(folder, **size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def count_rows(folder: Path, *, rounds: int, layers: int, width: int) -> list[dict]:
    """The count of a whole model under each kind of update: definition, fast core cold and warm; and equal counts."""
    write_models(folder, layers=layers, width=width)
    base = open_checkpoint(str(folder / "base"))
    truth_of_base = {name: thin_svd(base.read(name).double()) for name in base.entries}
    rows = []
    for case in NORMS:
        pairs = _pairs(base, folder / case)
        cache_folder, times = folder / "spectra", {"plain": [], "cold": [], "warm": []}
        for round_ in range(rounds):
            times["plain"].append(_seconds(by_definition, pairs))
            shutil.rmtree(cache_folder, ignore_errors=True)
            times["cold"].append(_seconds(_fast, pairs, cache_folder))
            times["warm"].append(statistics.median(_seconds(_fast, pairs, cache_folder) for _ in range(3)))
            print(f"{case}, round {round_ + 1}/{rounds}: " + ", ".join(
                f"{name} {values[-1]:.2f} s" for name, values in times.items()), flush=True)
        found = _fast(pairs, cache_folder)
        different = sum(_different(one, pair, truth_of_base[pair.name]) for one, pair in zip(found, pairs, strict=True))
        methods = dict(Counter(one.method for one in found))
        for kind, target in zip(("warm", "cold"), TARGETS[case], strict=True):
            rows.append(_row(f"count, {case}, {kind} cache", "two full float32 SVDs per matrix", times["plain"],
                             fast=times[kind]) | {"target": target, "matrices": len(pairs), "methods": methods,
                                             "different_counts": different})
    return rows


def by_definition(pairs: list[Pair]) -> list[torch.Tensor]:
    """Largest cosines of every matrix by two full float32 SVDs, as the authors' script has them."""
    found = []
    for pair in pairs:
        base, tuned = pair.load()
        merged = base + tuned.scale * (tuned.b @ tuned.a) if isinstance(tuned, LowRankUpdate) else tuned
        found.append(max_cosines(thin_svd(merged), thin_svd(base)))
    return found


def _fast(pairs: list[Pair], cache: Path) -> list:
    return list(leading_cosines(pairs, k=K, epsilons=EPSILONS, spectrum=SpectrumCache(cache, device_name()).spectrum,
                                device=device_name()))


def _different(found, pair: Pair, of_base: SingularTriplets) -> int:
    """At how many of the epsilons a matrix's count is not that of the definition in float64."""
    base, tuned = pair.load()
    exact = thin_svd(merged_weight(base, tuned))
    truth = max_cosines(exact, of_base, top=K)
    return sum(int(is_intruder(truth, epsilon).sum() != is_intruder(found.max_cosines, epsilon).sum())
               for epsilon in EPSILONS)


def write_models(folder: Path, *, layers: int, width: int, seed: int = 0) -> None:
    """A base, and one tuned model for each kind of update, as checkpoints in `folder`.

    The shapes are RoBERTa's. The singular values are those of the packaged MiniLM's matrix of the same kind, stretched
    to the width, since what the fast core costs depends on how close they lie; singular vectors are random. LoRA
    factors are Gaussian, the hardest spectrum; the dense update's singular values fall as 1 / sqrt(i).
    """
    generator, spectra = torch.Generator().manual_seed(seed), _real_spectra()
    base, updates = {}, {case: {} for case in NORMS}
    for layer in range(layers):
        for kind in KINDS:
            name = f"encoder.layer.{layer}.{kind}"
            out = 4 * width if kind == "intermediate.dense" else width
            into = 4 * width if kind == "output.dense" else width
            values = spectra[kind][layer * len(spectra[kind]) // layers]
            values = np.interp(np.linspace(0, 1, width), np.linspace(0, 1, len(values)), values)
            u, v = (torch.linalg.qr(torch.randn(side, width, generator=generator)).Q for side in (out, into))
            base[name] = (u * torch.from_numpy(values).float()) @ v.T
            for case, norm in NORMS.items():
                updates[case] |= _update(name, case, norm * base[name].norm(), shape=(out, into), generator=generator)
    _save(folder / "base", base)
    for case, update in updates.items():
        if case == "dense":
            _save(folder / case, {name: base[name] + update[name] for name in base})
        else:
            r = int(case.split("=")[1])
            _save(folder / case, update, "adapter_model", config={"peft_type": "LORA", "r": r, "lora_alpha": r})


def _update(name: str, case: str, norm: torch.Tensor, *, shape: tuple[int, int], generator) -> dict[str, torch.Tensor]:
    width = min(shape) if case == "dense" else int(case.split("=")[1])
    b, a = torch.randn(shape[0], width, generator=generator), torch.randn(width, shape[1], generator=generator)
    if case == "dense":
        b *= torch.arange(1, width + 1) ** -0.5
    product = b @ a
    scale = norm / product.norm()
    if case == "dense":
        return {name: scale * product}
    return {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": scale * b}


def _save(folder: Path, tensors: dict[str, torch.Tensor], stem: str = "model", *, config: dict | None = None) -> None:
    folder.mkdir(parents=True)
    if config:
        write_json(folder / "adapter_config.json", config)
    else:
        tensors = {f"{name}.weight": tensor for name, tensor in tensors.items()}
        write_json(folder / "config.json", {"model_type": "roberta"})
    save_file(tensors, folder / f"{stem}.safetensors")


def _real_spectra() -> dict[str, list[np.ndarray]]:
    from utils.training.masked_lm import minilm_folder
    from utils.training.weights import base_matrices

    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for name, weight in base_matrices(minilm_folder()).items():
        found[name.split(".", 3)[3]].append(torch.linalg.svdvals(weight).numpy())
    return found


def _pairs(base, tuned: Path) -> list[Pair]:
    from utils.sources.pairs import matched_names
    from utils.spectra.checkpoint_pairs import checkpoint_pairs

    other = open_checkpoint(str(tuned))
    return list(checkpoint_pairs(base, other, matched_names(base, other)))


def training_row(rounds: int, steps: int) -> dict:
    """A training step of a laptop LoRA run: our Trainer settings against Trainer at its defaults, same rows."""
    from utils.profiles import load_profile
    from utils.training.spec import run_specs
    from utils.training.train import one_training

    spec = next(spec for spec in run_specs(load_profile("laptop"), "ranks") if spec.method.r == 8)
    times = {"plain": [], "fast": []}
    for round_ in range(rounds):
        for way, defaults in (("plain", True), ("fast", False)):
            times[way].append(one_training(spec, steps=steps, defaults=defaults) / steps)
        print(f"training step, round {round_ + 1}/{rounds}: {times['plain'][-1]:.3f} s, {times['fast'][-1]:.3f} s",
              flush=True)
    return _row(f"training step, {spec.method.label}, batch {spec.batch_size}", "Trainer at its defaults",
                times["plain"], fast=times["fast"])


def pseudo_loss_row(rounds: int, passages: int) -> dict:
    """Pseudo-loss of a few passages: batched and at masked positions alone, against one forward pass per token."""
    from transformers import AutoModelForMaskedLM

    from utils.evaluation.pseudo import corpus_loss, pseudo_loss
    from utils.profiles.schema import ModelReference
    from utils.sources.corpora import pretraining_passages
    from utils.sources.models import resolve
    from utils.training.data import tokenizer_of

    base = resolve(ModelReference(source="packaged", name="minilm-mlm"))
    model = AutoModelForMaskedLM.from_pretrained(base.folder, dtype=torch.float32,
                                                 use_safetensors=True, trust_remote_code=False).eval().to(device_name())
    tokenizer, texts = tokenizer_of(base.folder), pretraining_passages("news", passages)
    times, values = {"plain": [], "fast": []}, {}
    for _ in range(rounds):
        for way, compute in (("plain", lambda: one_by_one(model, tokenizer, texts)),
                             ("fast", lambda: corpus_loss(pseudo_loss(model, tokenizer, texts, tokens=32)))):
            started = time.perf_counter()
            values[way] = compute()
            times[way].append(time.perf_counter() - started)
    if abs(values["plain"] - values["fast"]) > 1e-3:
        raise CourseError(f"The two ways of computing pseudo-loss disagree: {values}.")
    return _row(f"pseudo-loss, {passages} passages of 32 tokens", "one forward pass per token", times["plain"],
                fast=times["fast"])


@torch.no_grad()
def one_by_one(model, tokenizer, texts) -> float:
    """Pseudo-loss in nats per token as its definition reads: a forward pass for each token."""
    losses = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")["input_ids"].to(model.device)
        for place in range(ids.shape[1]):
            token = ids[0, place].item()
            if token in tokenizer.all_special_ids:
                continue
            masked = ids.clone()
            masked[0, place] = tokenizer.mask_token_id
            losses.append(-model(input_ids=masked).logits[0, place].log_softmax(-1)[token].item())
    return sum(losses) / len(losses)


def _seconds(action: Callable, *arguments) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def _row(what: str, against: str, plain: list[float], *, fast: list[float]) -> dict:
    ratios = [slow / quick for slow, quick in zip(plain, fast, strict=True)]
    return {"what": what, "against": against, "plain_seconds": round(statistics.median(plain), 4),
            "seconds": round(statistics.median(fast), 4), "ratio": round(statistics.median(ratios), 1),
            "ratio_min": round(min(ratios), 1), "ratio_max": round(max(ratios), 1)}


def bench_table(result: dict) -> str:
    """The rows as a Markdown table, and where they were measured."""
    lines = ["| what | against | plain | here | ratio (smallest to largest) | aim |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        aim = f"{row['target']:g}" if "target" in row else ""
        lines.append(f"| {row['what']} | {row['against']} | {row['plain_seconds']:.3g} s | {row['seconds']:.3g} s | "
                     f"{row['ratio']:g} ({row['ratio_min']:g} to {row['ratio_max']:g}) | {aim} |")
    wrong = sum(row.get("different_counts", 0) for row in result["rows"])
    said = ["The ratio is the median of the rounds."]
    if "counts" in result["provenance"]:
        said.append("Counts that differ from the definition in float64, over all matrices and "
                    f"{len(result['setting']['epsilons'])} epsilons: {wrong}.")
    said += [_said_of_runs(row) for row in result["rows"] if row["comparison"] == "side_by_side"]
    rounds = {row["comparison"]: row["rounds"] for row in result["rows"]}
    measured: dict[str, list[str]] = {}
    for name, made in result["provenance"].items():
        where = (f"{made['hardware']['device']} ({made['hardware']['threads']} threads, {made['hardware']['cpu']}), "
                 f"{made['date'][:10]}, torch {made['packages']['torch']}, rounds: {rounds[name]}")
        measured.setdefault(where, []).append(name.replace("_", " "))
    said += [f"Measured on {where}: {', '.join(names)}." for where, names in measured.items()]
    return "\n".join([*lines, "", " ".join(said)])


def _said_of_runs(row: dict) -> str:
    return (f"Simulated for four workers from what each run took, side by side is {row['ratio_on_four']:g} times as "
            "fast. One thread or all of them: a trained update differs by at most "
            f"{row['update_difference']:.1g} of its norm, what a run measures at its end by at most "
            f"{row['metric_difference']:.1g}.")
