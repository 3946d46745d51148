"""The GPU's paths against the CPU's: counts in batches, training in mixed precision, and what a reader is told.

What needs a GPU says so and is left out where there is none; the rest runs the same code on a CPU.
"""

import json

import numpy as np
import pytest
import torch
from spectral_cases import DIRECT_BELOW, EPSILONS, counts, library, mixed_pairs, random_case

from utils import machine
from utils.course import doctor
from utils.profiles.schema import ModelReference, TaskSizes
from utils.sources.models import resolve
from utils.spectra import cores as cores_module
from utils.spectra import fast as fast_module
from utils.spectra.agreement import SAME_SHAPE, Agreement, compare_devices, example_pairs
from utils.spectra.cache import SpectrumCache
from utils.spectra.fast import Pair, leading_cosines, leading_triplets
from utils.training import train as train_module
from utils.training.data import classification_data, evaluation_batches
from utils.training.metrics import predict, without_autocast
from utils.training.spec import Method, RunSpec
from utils.training.store import RunStore

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Counting -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """How many matrices each batch of dense updates had, with batches made on a CPU as on a GPU."""
    sizes, whole = [], cores_module.DenseBatch

    def seen(cores):
        sizes.append(len(cores))
        return whole(cores)

    monkeypatch.setattr(cores_module, "DenseBatch", seen)
    monkeypatch.setattr(cores_module, "DENSE_BATCHES_ON", ("cpu", "cuda"))
    return sizes


@pytest.mark.parametrize("vectors", ["left", "right"])
def test_a_batch_of_dense_updates_counts_as_each_of_them_alone(batches, vectors, monkeypatch):
    """Only a GPU makes such batches by itself; here a CPU does."""
    pairs = [pair for pair in example_pairs() if "rank 1" not in pair.name]  # as wide as the core bears, or dense
    found = list(leading_cosines(pairs, epsilons=EPSILONS, vectors=vectors))
    assert sum(batches) == len(pairs) and max(batches) > SAME_SHAPE, "of one side and of the other at once"
    batches.clear()
    monkeypatch.setattr(cores_module, "DENSE_BATCHES_ON", ())
    alone = list(leading_cosines(pairs, epsilons=EPSILONS, vectors=vectors))
    assert batches == [1] * len(pairs)
    for one, other in zip(found, alone, strict=True):
        assert (one.name, one.method) == (other.name, other.method)
        assert counts(one.max_cosines) == counts(other.max_cosines), one.name
        torch.testing.assert_close(one.singular_values, other.singular_values, rtol=1e-12, atol=0)
    assert len({tuple(counts(one.max_cosines)) for one in found}) > 4, "the pairs would prove little"


def test_batches_of_dense_updates_stay_within_their_memory(batches, monkeypatch):
    monkeypatch.setattr(cores_module, "BATCH_BYTES", 1)
    list(leading_cosines([pair for pair in example_pairs([(192, 192)]) if "dense" in pair.name]))
    assert batches == [1] * SAME_SHAPE


def test_two_ways_that_agree_are_said_to(monkeypatch):
    found = compare_devices("cpu", pairs=example_pairs([(192, 192)]))
    assert found == Agreement(15, (), 0.0, 0.0)
    assert found.sentence.startswith("the same counts for 15 matrices at 19 epsilons; singular values within 0e+00")


def test_a_device_that_counts_otherwise_is_told(monkeypatch):
    """Cosines that are a tenth too small on one of the devices: as of a product that lost its bits."""
    whole, calls = fast_module._decided, []

    def wrong(core, pairs, crossed, **options):
        calls.append(core)
        return whole(core, pairs, crossed, **options) if len(calls) > 3 else whole(
            core, pairs._replace(vectors=0.9 * pairs.vectors), 0.9 * crossed, **options)

    monkeypatch.setattr(fast_module, "_decided", wrong)
    found = compare_devices("cpu", pairs=[pair for pair in example_pairs([(192, 192)]) if "dense" in pair.name])
    assert len(calls) == 12
    assert found.different and found.worst_cosine > 1e-3 and found.worst_value < 1e-12
    assert f"DIFFERENT counts for {len(found.different)} of 3 matrices ({found.different[0]} first)" in found.sentence


@pytest.mark.parametrize("different, fits", [((), True), (("w",), False)])
def test_the_doctor_counts_on_the_gpu_that_there_is(different, fits, monkeypatch, capsys):
    have = {"python": "3.11.7", "cores": 8, "memory_gib": 64.0, "disk_gib": 500.0, "gpu": "RTX 3090",
            "gpu_memory_gib": 23.7}
    asked = []
    monkeypatch.setattr(doctor, "machine", lambda: have)
    monkeypatch.setattr(doctor, "wrong_versions", list)
    monkeypatch.setattr(doctor, "compare_devices", lambda device: asked.append(device) or Agreement(
        45, different, 1e-15, 1e-14))
    assert doctor.doctor() is fits and asked == ["cuda"]
    said = capsys.readouterr().out
    assert "Counting on the GPU against the CPU: " + ("the same counts" if fits else "DIFFERENT counts") in said
    assert "  workstation fits" in said
    monkeypatch.setattr(doctor, "machine", lambda: have | {"gpu": None, "gpu_memory_gib": 0.0})
    doctor.doctor()
    assert asked == ["cuda"] and "Counting" not in capsys.readouterr().out, "there is nothing to compare with"


def test_a_process_begins_with_whole_products():
    """NVIDIA's images ask for TF32 by a variable; torch then begins with it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        machine.set_up_process()
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@gpu
def test_a_gpu_counts_as_the_cpu_does():
    found = compare_devices("cuda")
    assert found.different == ()
    assert found.worst_value < 1e-12 and found.worst_cosine < 1e-6


@gpu
@pytest.mark.parametrize("vectors", ["left", "right"])
def test_a_gpu_counts_by_the_definition(vectors):
    """Undetermined matrices among others, and random cases of every kind, against two plain SVDs."""
    cases = [random_case(seed) for seed in range(0, 4000, 50)]
    pairs = mixed_pairs() + [Pair(str(place), lambda case=case: (case.base, case.tuned))
                             for place, case in enumerate(cases)]
    found = list(leading_cosines(pairs, k=5, epsilons=EPSILONS, vectors=vectors, direct_below=DIRECT_BELOW,
                                 device="cuda"))
    assert {one.method for one in found} == {"lowrank-core", "leading-vectors", "full-svd"}
    for one, pair in zip(found, pairs, strict=True):
        assert counts(one.max_cosines) == counts(library(*pair.load(), 5, vectors)), one.name


@gpu
def test_real_matrices_are_counted_on_a_gpu_as_on_the_cpu():
    """The packaged MiniLM with updates of three kinds."""
    from utils.course.bench import KINDS
    from utils.training.weights import base_matrices

    base = base_matrices(resolve(ModelReference(source="packaged", name="minilm-mlm")).folder)
    noise = torch.Generator().manual_seed(0)
    moved = {name: weight + 0.02 * weight.norm() * torch.nn.functional.normalize(
        torch.randn(weight.shape, generator=noise).flatten(), dim=0).view_as(weight) for name, weight in base.items()}
    chosen = [name for name in base if name.split(".", 3)[3] in KINDS]
    found = compare_devices("cuda", pairs=[Pair(name, lambda name=name: (base[name], moved[name])) for name in chosen])
    assert found.matrices == 36 and found.different == () and found.worst_value < 1e-12


@gpu
def test_spectra_of_a_gpu_lie_on_the_cpu_from_the_first_time(cache, monkeypatch):
    """A spectrum that was just computed must not meet CPU tensors on the GPU; also where the disk takes none."""
    monkeypatch.setattr("utils.spectra.cache.SPARE_BYTES", 2**60)
    pair = example_pairs([(192, 384)])[0]
    store = SpectrumCache(device="cuda")
    assert {part.device.type for part in store.spectrum(pair.load()[0])} == {"cpu"}
    found = leading_triplets(pair, spectrum=store.spectrum)
    assert store.hits == 0 and found.u.device.type == "cpu"
    np.testing.assert_allclose(found.s, leading_triplets(pair).s, rtol=1e-12)


# Training -----------------------------------------------------------------------------------------------------------


def classifier(folder, **changes) -> RunSpec:
    reference = ModelReference(source="local", name=str(folder))
    return RunSpec(**{
        "base": reference, "base_revision": resolve(reference).revision, "task": "movies", "dtype": "bfloat16",
        "sizes": TaskSizes(train_rows=64, test_rows=64, max_length=32), "method": Method(kind="full"),
        "learning_rate": 1e-2, "schedule": "linear", "warmup_fraction": 0.0, "steps": 6, "epochs": None,
        "batch_size": 8, "checkpoints": 2, "seed": 0} | changes)


def language_model(folder, **changes) -> RunSpec:
    return classifier(folder, **{"task": "python", "sizes": TaskSizes(test_rows=16, max_length=32), "steps": 10,
                                 "durations": (5, 10), "schedule": "constant_with_warmup"} | changes)


LORA = Method(kind="lora", r=4, lora_alpha=8)


@pytest.mark.parametrize("method", [Method(kind="full"), LORA], ids=["full", "LoRA"])
@pytest.mark.parametrize("make", [classifier, language_model], ids=["classifier", "language model"])
def test_mixed_precision_trains_float32_weights_and_measures_in_float32(make, method, tiny_base, tiny_decoder, cache,
                                                                       monkeypatch):
    """On a CPU that is told to do as a GPU does: steps in bfloat16, but what is kept and measured is float32.

    The base is measured in float32: a run that was measured in bfloat16 would seem to have learnt its rounding.
    """
    folder = tiny_base if make is classifier else tiny_decoder
    plain = RunStore().get(make(folder, method=method, dtype="float32", learning_rate=1e-3))
    monkeypatch.setattr(train_module, "compute_dtype", lambda dtype: getattr(torch, dtype))
    mixed = RunStore().get(make(folder, method=method, learning_rate=1e-3))
    one, other = plain.tuned_matrices(), mixed.tuned_matrices()
    assert {str(weight.dtype) for weight in other.values()} == {"torch.float32"}
    moved = max((one[name] - plain.base_matrices()[name]).abs().max() for name in one)
    apart = max((one[name] - other[name]).abs().max() for name in one)
    assert 0 < apart < moved, "it was not trained in bfloat16, or to something else"
    stored = {row["step"]: row for row in mixed.result["measured"]["metrics"]}
    for step in mixed.steps:
        again = measured_again(mixed, step)
        assert {name: stored[step][name] for name in again} == pytest.approx(again, abs=1e-6)


def measured_again(run, step: int) -> dict:
    """What the run says of itself at a step, from the weights that it kept, in float32."""
    from utils.training.blocks import block_batches, text_blocks
    from utils.training.metrics import accuracy, causal_loss

    if run.spec.durations is None:
        rows = classification_data(run.spec.task, run.spec.sizes, run.base.folder)[1]
        return accuracy(*predict(run.classifier(step), evaluation_batches(rows, run.base.folder)))
    blocks = text_blocks(run.spec.task, "heldout", run.base.folder, length=run.spec.sizes.max_length)
    return causal_loss(run.causal_lm(step), block_batches(blocks[:run.spec.sizes.test_rows]))


def test_a_model_without_mixed_precision_is_left_as_it_is():
    model = torch.nn.Linear(2, 2)
    with without_autocast(model):
        assert "forward" not in model.__dict__
    model._original_forward, model.forward = model.forward, lambda rows: "wrapped"
    with pytest.raises(ZeroDivisionError), without_autocast(model):
        assert model(torch.ones(1, 2)).shape == (1, 2)
        raise ZeroDivisionError
    assert model(torch.ones(1, 2)) == "wrapped", "it is put back after an error as well"


@gpu
@pytest.mark.parametrize("method", [Method(kind="full"), LORA], ids=["full", "LoRA"])
@pytest.mark.parametrize("make", [classifier, language_model], ids=["classifier", "language model"])
def test_a_run_on_a_gpu_is_finite_float32_and_names_the_gpu(make, method, tiny_base, tiny_decoder, cache):
    run = RunStore().get(make(tiny_base if make is classifier else tiny_decoder, method=method))
    result = json.loads((run.folder / "result.json").read_text())
    made = result["provenance"]["hardware"]
    assert (made["device"], made["accelerator"]["name"]) == ("cuda", torch.cuda.get_device_name(0))
    assert result["run"]["status"] == "done" and 0 < result["measured"]["peak_gib"] < 4
    for weight in run.tuned_matrices().values():
        assert weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.isfinite().all()
    assert any((weight != run.base_matrices()[name]).any() for name, weight in run.tuned_matrices().items())


@gpu
@pytest.mark.parametrize("make", [classifier, language_model], ids=["classifier", "language model"])
def test_a_run_in_float32_on_a_gpu_is_nearly_the_cpus(make, tiny_base, tiny_decoder, cache, monkeypatch):
    """The same rows in the same order, and no dropout in either: only the order of sums differs."""
    folder = tiny_base if make is classifier else tiny_decoder
    changes = {"dtype": "float32", "learning_rate": 1e-4} | ({} if make is language_model else {"task": "movies"})
    on_gpu = RunStore().get(make(folder, **changes))
    moved = max((weight - on_gpu.base_matrices()[name]).abs().max()
                for name, weight in on_gpu.tuned_matrices().items())
    assert moved > 0
    if make is language_model:  # a classifier has dropout, whose masks differ by device
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("LORA_COURSE_CACHE", str(cache / "cpu"))
        on_cpu = RunStore().get(make(folder, **changes))
        apart = max((weight - on_cpu.tuned_matrices()[name]).abs().max()
                    for name, weight in on_gpu.tuned_matrices().items())
        assert apart < 0.05 * moved
