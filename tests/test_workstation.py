"""The profile `workstation`: what it would cost by arithmetic, whether it fits, and a small copy of it, trained.

Nothing here was measured on a GPU. The hours follow from the two assumptions below, and the profile says so.
"""

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from utils.evaluation.costs import RESERVE_GIB, Shape, adapter_parameters, memory_parts, step_flops
from utils.profiles import Profile, load_profile
from utils.profiles import loader as loader_module
from utils.profiles.schema import TaskSizes
from utils.reporting.measured import Measured
from utils.sources.models import resolve
from utils.sources.tasks import load_task, task
from utils.studies.costs.tables import gpus, model_shapes
from utils.studies.intruders.figures import count_against_epsilon
from utils.studies.intruders.measure import intruder_counts, random_directions
from utils.studies.learning.learns_less import learning_against_tokens
from utils.studies.learning.measure import learning_curves
from utils.studies.learning.published import published_curves
from utils.training import spec as spec_module
from utils.training.blocks import text_blocks
from utils.training.cooldown import cooldown_start
from utils.training.plan import Costs, plan
from utils.training.pool import train_side_by_side
from utils.training.recipe import Recipe
from utils.training.spec import RunSpec, run_specs
from utils.training.store import RunStore
from utils.training.variants import DENSE
from utils.training.wanted import every_spec
from utils.training.weights import prepare

PLACE = Path(loader_module.__file__).parent / "workstation.yaml"
WORKSTATION = load_profile("workstation")
SMOLLM2 = model_shapes()["SmolLM2-135M"]
MINILM = SimpleNamespace(layers=6, linear=6 * (4 * 384**2 + 2 * 384 * 1536))
# The assumptions: what share of its peak a GPU reaches, and how long the launches of a batch take where it is small.
GPU, UTILISATION = "RTX 3090", 0.3
LAUNCH_S, LAUNCH_S_A_LAYER = 0.010, 0.0033
PAIRED = ("dpo", "orpo", "reward", "online_dpo")  # two texts to a row


# By arithmetic ------------------------------------------------------------------------------------------------------


@pytest.fixture
def unfetched(monkeypatch):
    """No base is brought here, and there is no GPU whose memory could choose another one."""
    monkeypatch.setattr(spec_module, "resolve", lambda base: SimpleNamespace(revision="x"))
    monkeypatch.setattr(spec_module, "hardware", lambda: {"accelerator": None})


def shape_of(spec: RunSpec):
    return SMOLLM2 if spec.base.name == "smollm2" else MINILM


def recipe_of(spec: RunSpec) -> Recipe:
    return Recipe(spec.method.kind, r=spec.method.r or 8, precision="mixed", batch=spec.batch_size,
                  length=spec.sizes.max_length)


@cache
def rows_of(name: str, sizes: TaskSizes) -> int:
    return len(load_task(name, sizes).train)


def batches_of(spec: RunSpec) -> int:
    """Batches that a run computes: its steps and those of its cooled copies."""
    steps = spec.steps
    if steps is None:
        steps = math.ceil(spec.epochs * rows_of(spec.task, spec.sizes) / (spec.batch_size * spec.gradient_accumulation))
    cooled = sum(duration - cooldown_start(duration) for duration in (spec.durations or ())[:-1])
    return (steps + cooled) * spec.gradient_accumulation


def expected(spec: RunSpec) -> dict[str, float]:
    """Tokens (every row as long as it may be), operations, seconds by the assumptions, GiB of checkpoints."""
    shape, batches, pairs = shape_of(spec), batches_of(spec), spec.objective in PAIRED
    tokens = batches * spec.batch_size * spec.sizes.max_length * (2 if pairs else 1)
    by_token = step_flops(shape, recipe_of(spec)) / recipe_of(spec).tokens if isinstance(
        shape, Shape) else 6 * shape.linear
    reference = 4 / 3 if spec.objective in ("dpo", "online_dpo") else 1  # whose forward pass is a third of a step
    peak = gpus().set_index("gpu").loc[GPU, "bf16_tflops"] * 1e12
    seconds = max(tokens * by_token * reference / (peak * UTILISATION),
                  batches * (LAUNCH_S + shape.layers * LAUNCH_S_A_LAYER))
    dense = spec.method.kind == "full" or spec.method.variant in DENSE
    kept = shape.linear if dense or shape is MINILM else adapter_parameters(shape, recipe_of(spec))
    return {"runs": 1, "tokens": tokens, "operations": tokens * by_token * reference, "seconds": seconds,
            "gib": 4 * kept * len(spec.durations or range(spec.checkpoints)) / 2**30}


def total(specs: Iterable[RunSpec]) -> dict[str, float]:
    rows = [expected(spec) for spec in specs]
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def test_an_hour_is_what_the_profile_says_and_what_its_runs_add_up_to(unfetched):
    """Every number in the comment is this sum; the hour holds by the assumptions alone."""
    comment = PLACE.read_text(encoding="utf-8").split("\nprofile:")[0]
    own = list(every_spec(WORKSTATION).values())
    decoders = total(spec for spec in own if shape_of(spec) is SMOLLM2)
    encoders = total(spec for spec in own if shape_of(spec) is MINILM)
    everything = total(own)
    minutes = everything["seconds"] / 60
    whole = total(every_spec(WORKSTATION.with_reference_runs(), WORKSTATION.reference_seeds).values())
    assert 45 < minutes < 75, "an hour, more or less"
    assert 2e7 < decoders["tokens"] < 1e8, "tens of millions"
    for said in ("NEVER RUN ON A GPU", f"{everything['runs']} runs", f"{decoders['tokens']:,} tokens",
                 f"{encoders['tokens']:,}", f"{everything['operations']:.1e} operations", f"{minutes:.0f} minutes",
                 f"{whole['runs']} runs", f"{whole['seconds'] / 3600:.1f} hours", f"{whole['gib']:.0f} GiB",
                 f"{100 * UTILISATION:.0f} %", GPU, f"{1000 * LAUNCH_S:.0f} ms",
                 f"{1000 * LAUNCH_S_A_LAYER:.1f} ms a layer"):
        assert said in " ".join(comment.replace("#", " ").split()), said
    assert everything["gib"] + 10 < WORKSTATION.hardware.min_disk_gib, "with resume points, spectra and downloads"


def test_every_run_on_smollm2_fits_the_memory_that_the_profile_asks_for(unfetched):
    """Weights in float32 and again in bfloat16, gradients, two moments, and a cooled copy of weights and moments."""
    worst = 0.0
    for spec in every_spec(WORKSTATION.with_reference_runs(), (0,)).values():
        if shape_of(spec) is not SMOLLM2:
            continue
        parts, full = memory_parts(SMOLLM2, recipe_of(spec)), spec.method.kind == "full"
        trained = SMOLLM2.linear if full else adapter_parameters(SMOLLM2, recipe_of(spec))
        held = 6 * SMOLLM2.parameters + (12 + 12 * bool(spec.durations)) * trained  # and cooled copies
        held += 4 * SMOLLM2.parameters if full and spec.objective == "dpo" else 0  # the reference
        rows = 2 if spec.objective in PAIRED else 1
        needed = (held + rows * (parts["activations"] + parts["temporary"])) / 2**30 + RESERVE_GIB
        worst = max(worst, needed)
        assert needed <= WORKSTATION.hardware.min_gpu_memory_gib, (spec.task, spec.method.label, needed)
    assert worst > 5, "less would leave the GPU idle"


def test_ranks_are_the_papers_by_the_width():
    """16, 64 and 256 of 4096; of 576, rounded to powers of two."""
    scaled = [2 ** round(math.log2(r * SMOLLM2.hidden / 4096)) for r in (16, 64, 256)]
    for experiment in ("code", "mathematics", "instruction"):
        groups = [group for group in WORKSTATION.decoder_experiments[experiment].runs if group.method == "lora"]
        assert [r for group in groups for r, _ in group.rates] == scaled == [2, 8, 32]


def test_nothing_comes_from_the_hub_and_all_of_it_from_the_laptops_sources():
    laptop = load_profile("laptop")
    bases = [WORKSTATION.encoder, WORKSTATION.continued, WORKSTATION.costs.model, WORKSTATION.preferences.model,
             WORKSTATION.preferences.reward_model, *(decoder.model for decoder in WORKSTATION.decoders)]
    assert {base.source for base in bases} == {"packaged"} and WORKSTATION.released == ()
    assert WORKSTATION.sources == laptop.sources and set(WORKSTATION.tasks) == set(laptop.tasks)
    assert WORKSTATION.decoder_evaluation.choice_tasks == laptop.decoder_evaluation.choice_tasks
    assert WORKSTATION.training.dtype == "bfloat16" and len(WORKSTATION.reference_seeds) == 5


def test_the_modules_are_compared_at_nearly_equal_parameters(unfetched):
    comment = PLACE.read_text(encoding="utf-8")
    sides = {"q_proj": 1152, "k_proj": 768, "v_proj": 768, "o_proj": 1152, "mlp": 3 * (576 + 1536)}
    widths = {"all": sum(sides.values()), "mlp": sides["mlp"], "attention": sum(sides.values()) - sides["mlp"]}
    found = [spec.method.r * widths[spec.method.targets] for spec in run_specs(WORKSTATION, "modules")]
    assert all(f"{count:,}" in comment for count in found) and max(found) / min(found) < 1.03


def test_the_decay_shrinks_the_weights_as_in_the_paper():
    """The rate rises over 2 % of the steps and falls over a fifth of them; the decay follows it."""
    steps = WORKSTATION.decoder_experiments["regularisers"].durations[-1] * (1 - 0.01 - 0.1)
    decays = [group.weight_decay for group in WORKSTATION.decoder_experiments["regularisers"].runs
              if group.weight_decay and group.decay_towards == "zero"]
    assert [(1 - decay) ** steps for decay in decays] == pytest.approx([0.86, 0.93], abs=0.01)


@pytest.mark.parametrize("domain", ["python", "mathematics"])
def test_the_texts_have_the_blocks_that_the_longest_run_asks_for(domain):
    """None is seen twice; a Python with a smaller library would find too few here, and not after an hour."""
    base = resolve(WORKSTATION.continued)
    length, wanted = WORKSTATION.tasks[domain].max_length, 0
    for experiment in WORKSTATION.decoder_experiments:
        for spec in run_specs(WORKSTATION.with_reference_runs(), experiment, (0,)):
            if spec.task == domain:
                wanted = max(wanted, spec.steps * spec.batch_size * spec.gradient_accumulation)
    assert f"{wanted * length:,}" in PLACE.read_text(encoding="utf-8")
    assert len(text_blocks(domain, "train", base.folder, length=length, count=wanted)) == wanted


def test_every_method_fits_the_widths_of_smollm2(unfetched):
    """One layer as wide as SmolLM2's under every method of the profile; a rank that it cannot take would end a run."""
    config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=32, max_position_embeddings=16)
    specs = every_spec(WORKSTATION.with_reference_runs(), (0,)).values()
    methods = {spec.method for spec in specs if shape_of(spec) is SMOLLM2}
    assert len({method.variant for method in methods}) == 11

    def backward(model) -> None:
        ids = torch.arange(config.max_position_embeddings)[None]
        model(input_ids=ids, labels=ids).loss.backward()

    for method in sorted(methods, key=lambda one: one.label):
        model = prepare(LlamaForCausalLM(config), method, causal=True, steps=10, backward=backward)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trained > 0, method.label


# Small, on a CPU ----------------------------------------------------------------------------------------------------


def shrunk(folder: Path) -> Profile:
    """The profile with its experiments and tasks, on the small decoder, cut to a few steps of a few runs."""
    content = yaml.safe_load(PLACE.read_text(encoding="utf-8"))
    small = {"source": "packaged", "name": "small-decoder"}
    content["continued"] = content["decoders"][0]["model"] = content["costs"]["model"] = small
    content["preferences"]["model"] = small
    for name, sizes in content["tasks"].items():
        sizes.update({"test_rows": 8, "max_length": 32}, **({} if task(name).kind == "text" else {"train_rows": 32}))
    content["training"] |= {"epochs": 1, "batch_size": 8, "checkpoints": 1}
    content["experiments"]["second"].pop("steps")
    content["experiments"]["ranks"]["runs"][1]["learning_rate"] = {8: 2.0e-3}
    for experiment in content["decoder_experiments"].values():
        if "durations" in experiment:
            experiment |= {"durations": [5, 10][:len(experiment["durations"])], "batch_size": 2}
    for name in ("code", "mathematics"):
        content["decoder_experiments"][name]["runs"] = content["decoder_experiments"][name]["runs"][:1] + [
            {"method": "lora", "lora_alpha": "2r", "learning_rate": {32: 2.0e-4}}]
    content["decoder_evaluation"] |= {"blocks": 4, "instruction_blocks": 4, "kl_batches": 1, "questions": 2,
                                      "choice_rows": 2}
    path = folder / "shrunk.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_profile(path)


@pytest.mark.process
def test_a_small_copy_is_trained_side_by_side_counted_and_drawn(tmp_path, monkeypatch):
    """An experiment of the first paper and two of the second, through the pool to a figure of notebooks 04 and 09."""
    from utils.paths import cache_dir

    for name in ("archives", "sources", "texts", "models"):
        (tmp_path / name).symlink_to(cache_dir() / name)
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    profile = shrunk(tmp_path)
    specs = [spec for name in ("ranks", "code", "mathematics") for spec in run_specs(profile, name)]
    assert len(specs) == 6 and {spec.dtype for spec in specs} == {"bfloat16"}
    outcomes = train_side_by_side(plan(specs, RunStore(), Costs()), workers=1, say=lambda line: None)
    assert set(outcomes.done) == {spec.key for spec in specs}, outcomes.failed

    counts = intruder_counts(profile, experiments=("ranks",))
    assert set(counts["method"]) == {"full", "LoRA r=8"} and set(counts["epsilon"]) == set(profile.spectra.epsilons)
    assert counts["n_intruders"].between(0, 360).all() and counts["accuracy"].between(0, 1).all()
    drawn = count_against_epsilon(Measured("intruder_counts", profile, profile.seeds, counts),
                                  chance=random_directions(profile), examined=360)
    assert "LoRA r=8" in drawn.alt and "At epsilon 0.5" in drawn.alt

    curves = learning_curves(profile)
    assert [(row.experiment, row.method, row.step) for row in curves.itertuples()] == [
        (experiment, method, step) for experiment in ("code", "mathematics")
        for method in ("full", "LoRA r=32") for step in (5, 10)]
    assert (curves["train_tokens"] == curves["step"] * 2 * 32).all() and curves["forgetting"].notna().all()
    drawn = learning_against_tokens(Measured("learning_curves", profile, profile.seeds, curves,
                                             published=published_curves()))
    assert "python" in drawn.alt and "mathematics" in drawn.alt
