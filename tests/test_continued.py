"""Continued pretraining with cooldowns, on a tiny decoder: against a loop written here, cut short, killed, diverged;
and which matrices are trained.
"""

import json
import os
import signal
import time
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

from utils.errors import CourseError
from utils.paths import MODELS
from utils.profiles import load_profile
from utils.profiles import loader as loader_module
from utils.profiles.schema import ModelReference, TaskSizes
from utils.sources.models import resolve
from utils.training import checkpoints as checkpoints_module
from utils.training import cooldown as cooldown_module
from utils.training import store as store_module
from utils.training import train as train_module
from utils.training.blocks import block_batches, text_blocks
from utils.training.checkpoints import METRICS
from utils.training.cooldown import Cooldowns, cooldown_start
from utils.training.metrics import causal_loss
from utils.training.spec import Method, RunSpec
from utils.training.store import Run, RunStore
from utils.training.targets import tuned_modules
from utils.training.weights import prepare, trained_tensors

FULL, LORA = Method(kind="full"), Method(kind="lora", r=2, lora_alpha=4)
LENGTH, BATCH, RATE, SEED, WARMUP, HELD_OUT = 16, 2, 1e-2, 3, 2, 4


@pytest.fixture(scope="module")
def spec(tiny_decoder):
    """20 steps of 2 blocks, two of warm-up, cooled down at 10 and 20; resume points at every fourth of 16 steps."""
    reference = ModelReference(source="local", name=str(tiny_decoder))

    def build(**changes) -> RunSpec:
        return RunSpec(**{
            "base": reference, "base_revision": resolve(reference).revision, "task": "news",
            "sizes": TaskSizes(test_rows=HELD_OUT, max_length=LENGTH), "method": FULL, "learning_rate": RATE,
            "schedule": "constant_with_warmup", "warmup_fraction": 0.1, "steps": 20, "epochs": None,
            "batch_size": BATCH, "checkpoints": 4, "seed": SEED, "durations": (10, 20)} | changes)

    return build


@pytest.fixture(scope="module")
def finished(spec, tmp_path_factory):
    """Finished runs, each trained once for all tests that only read."""
    store = RunStore(tmp_path_factory.mktemp("finished"))
    return lambda **changes: store.get(spec(**changes))


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def planned_blocks(folder: Path, seed: int = SEED, steps: int = 20) -> list[list[int]]:
    blocks = text_blocks("news", "train", folder, length=LENGTH, count=steps * BATCH)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
    return [blocks[place] for place in order.tolist()]


def by_hand(folder: Path, method: Method, duration: int, *, decay: float = 0.0) -> tuple[torch.nn.Module, list[float]]:
    """Warm-up, a constant rate to 0.8 T, a linear fall; AdamW, the gradient clipped at norm 1; and each step's rate."""
    set_seed(SEED)  # what A of the adapter is drawn from
    model = prepare(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), method, causal=True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=decay, fused=False)
    blocks, start, rates = planned_blocks(folder), duration * 8 // 10, []
    for step in range(duration):
        part = (duration - step) / (duration - start) if step >= start else min(1.0, step / WARMUP)
        optimiser.param_groups[0]["lr"] = RATE * part
        ids = torch.tensor(blocks[step * BATCH:(step + 1) * BATCH])
        logits = model(input_ids=ids).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rates.append(RATE * part)
    return model, rates


def assert_close(mine: dict, theirs: dict, atol: float) -> None:
    assert mine.keys() == theirs.keys() and mine
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=atol, msg=name)


def assert_same_run(run: Run, other: Run) -> None:
    """The same points with the same weights and losses; only the clock may differ."""
    def rows(one: Run) -> list[dict]:
        return [{name: value for name, value in row.items() if not name.endswith("_seconds")}
                for row in map(json.loads, (one.folder / METRICS).read_text().splitlines())]

    assert rows(run) == rows(other) and [row["step"] for row in rows(run)] == run.steps == list(run.spec.durations)
    for step in run.steps:
        assert_close(run.trained(step), other.trained(step), 0.0)


@contextmanager
def recorded_steps():
    """(rate, optimiser) of every optimiser step, hot or cooling, in order."""
    seen = []
    handle = register_optimizer_step_pre_hook(
        lambda optimiser, arguments, keywords: seen.append((optimiser.param_groups[0]["lr"], optimiser)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def recorded_rows():
    """Every block that the model is trained on, in order."""
    seen, real = [], LlamaForCausalLM.forward

    @wraps(real)
    def forward(self, *arguments, input_ids=None, **keywords):
        if self.training:
            seen.extend(input_ids.tolist())
        return real(self, *arguments, input_ids=input_ids, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", forward)
        yield seen


# --- a point is a run of its own


@pytest.mark.parametrize("duration", [10, 20])
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "LoRA"])
def test_a_point_is_what_a_run_of_that_length_with_its_own_cooldown_gives(finished, tiny_decoder, method, duration):
    run = finished(method=method)
    model, _ = by_hand(tiny_decoder, method, duration)
    expected = trained_tensors(model, method.scale)
    assert_close(run.trained(duration), expected, 2e-5)
    before = run.base_matrices()
    moved = min((run.tuned_matrices(duration)[name] - weight).abs().max().item() for name, weight in before.items())
    assert moved > 1e-3, "the tolerance would hide a run that stood still"
    held_out = block_batches(text_blocks("news", "heldout", tiny_decoder, length=LENGTH)[:HELD_OUT])
    row = run.metrics().set_index("step").loc[duration]
    assert row["loss_nats_per_token"] == pytest.approx(causal_loss(model, held_out)["loss_nats_per_token"], abs=1e-4)
    assert (row["tokens"], row["cooled_from"]) == (HELD_OUT * (LENGTH - 1), 0.8 * duration)


@pytest.mark.parametrize("changes", [{}, {"method": LORA}, {"attention_dropout": 0.3}, {"optimiser": "lion"},
                                     {"weight_decay": 0.1, "decay_towards": "base"}],
                         ids=["full", "LoRA", "dropout", "Lion", "decay"])
def test_a_cooled_copy_does_not_disturb_the_hot_run(finished, changes):
    """Weights, moments, rate and the random numbers of dropout go on as if no copy had been taken."""
    both, alone = finished(**changes), finished(**changes, durations=(20,))
    assert (both.steps, alone.steps) == ([10, 20], [20])
    assert_close(both.trained(20), alone.trained(20), 0.0)
    rows = [run.metrics().set_index("step").loc[20, "loss_nats_per_token"] for run in (both, alone)]
    assert rows[0] == rows[1]


def test_every_step_has_the_rate_that_it_should(store, spec, tiny_decoder):
    with recorded_steps() as seen:
        store.get(spec())
    first, second = (by_hand(tiny_decoder, FULL, duration)[1] for duration in (10, 20))
    assert [rate for rate, _ in seen] == pytest.approx([*first, *second[8:]], rel=1e-12)
    assert first[:3] == [0.0, RATE / 2, RATE] and first[8:] == [RATE, RATE / 2]
    assert second[16:] == pytest.approx([RATE, 0.75 * RATE, 0.5 * RATE, 0.25 * RATE])


def test_every_block_is_seen_once_and_in_the_order_of_the_seed(store, spec, tiny_decoder):
    blocks = planned_blocks(tiny_decoder)
    assert len({tuple(block) for block in blocks}) == len(blocks) == 40, "the test cannot tell its blocks apart"
    with recorded_rows() as seen:
        store.get(spec())
    hot, cooled = seen[:16] + seen[20:36], (seen[16:20], seen[36:])
    assert hot == blocks[:32]
    assert cooled == (blocks[16:20], blocks[32:40])
    with recorded_rows() as other:
        store.get(spec(seed=SEED + 1, durations=(20,)))
    assert other != hot + blocks[32:] and sorted(other) == sorted(blocks)


def test_durations_that_begin_to_cool_at_one_step_are_both_measured(store, spec, tiny_decoder):
    """0.8 of 7 and of 8, in whole steps, is 6; of two points that shared a start only the later was kept."""
    assert cooldown_start(7) == cooldown_start(8) == 6
    run = store.get(spec(durations=(7, 8), steps=8, method=FULL, warmup_fraction=0.25))
    assert run.steps == [7, 8] and run.metrics()["cooled_from"].tolist() == [6, 6]
    alone = store.get(spec(durations=(8,), steps=8, method=FULL, warmup_fraction=0.25))
    assert_close(run.trained(8), alone.trained(8), 0.0)
    assert not torch.equal(*(run.trained(step)["weight.layers.0.mlp.up_proj"] for step in run.steps))


@pytest.mark.parametrize("duration", [*range(5, 40), 240, 1000])
def test_a_cooldown_takes_the_last_fifth_and_never_nothing(duration):
    assert abs(cooldown_start(duration) - 0.8 * duration) <= 0.5 and 0 < cooldown_start(duration) < duration


def test_seconds_count_the_hot_run_and_the_points_own_cooldown(store, spec, monkeypatch):
    """Every cooldown takes 10,000 seconds of a clock that the test turns, every measurement ten million."""
    turned, cool, measured = [], Cooldowns._cool, train_module.causal_loss
    monkeypatch.setattr(Cooldowns, "_cool", lambda *given, **named: (turned.append(10**4), cool(*given, **named)))
    monkeypatch.setattr(train_module, "causal_loss", lambda *given: (turned.append(10**7), measured(*given))[1])
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(turned))
    for module in (checkpoints_module, cooldown_module):
        monkeypatch.setattr(module, "time", clock)
    run = store.get(spec())
    rows = run.metrics()
    assert turned == [10**4, 10**7] * 2
    assert 0 < rows["hot_seconds"][0] < rows["hot_seconds"][1] < 5000
    assert (rows["train_seconds"] - rows["hot_seconds"]).between(10_000, 15_000).all()
    assert rows["hot_seconds"][1] == run.result["measured"]["train_seconds"]


# --- cut short


@contextmanager
def stopped(step: int, *, cooling: int | None = None):
    """Ctrl-C after a hot step and what it set off, or before the given step of a copy that is cooled down."""
    real_end, real_batches = Cooldowns.on_step_end, cooldown_module.block_batches

    def on_step_end(self, args, state, control, **kwargs):
        self.copies_step = 0 if state.global_step == step else None
        running[:] = [self]
        real_end(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    def batches(rows, size):
        if cooling is not None and running[0].copies_step is not None:
            running[0].copies_step += 1
            if running[0].copies_step == cooling:
                raise KeyboardInterrupt
        return real_batches(rows, size)

    running = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cooldowns, "on_step_end", on_step_end)
        patch.setattr(cooldown_module, "block_batches", batches)
        yield


HARDEST = {"method": FULL, "optimiser": "lion", "learning_rate": 1e-3, "weight_decay": 0.1, "decay_towards": "base",
           "attention_dropout": 0.3}
# durations, then each interruption: the hot step, and the step of the copy or None after the whole of it
CUT = {"before the first": ((10, 20), [(3, None), (6, None)]), "inside the first": ((10, 20), [(8, 2)]),
       "at its end": ((10, 20), [(8, None)]), "between, with the point kept": ((10, 20), [(10, None)]),
       "between, with the point to do again": ((7, 20), [(7, None)]),
       "inside the last": ((10, 20), [(9, None), (16, 3)]), "after the last": ((10, 20), [(16, None)])}


@pytest.mark.parametrize("changes", [{"method": LORA}, HARDEST], ids=["LoRA", "Lion, decay, dropout"])
@pytest.mark.parametrize("durations, places", CUT.values(), ids=CUT)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(store, spec, finished, durations, places, changes):
    chosen = spec(**changes, durations=durations)
    for step, cooling in places:
        with stopped(step, cooling=cooling), pytest.raises(KeyboardInterrupt):
            store.get(chosen)
        assert not store.stored(chosen)
    assert_same_run(store.get(chosen), finished(**changes, durations=durations))


def test_a_point_that_a_resume_point_covers_is_not_measured_again(store, spec, monkeypatch):
    with stopped(10), pytest.raises(KeyboardInterrupt):
        store.get(spec())
    cooled, real = [], Cooldowns._cool
    monkeypatch.setattr(Cooldowns, "_cool", lambda self, model, optimiser, *, start, duration: (
        cooled.append(duration), real(self, model, optimiser, start=start, duration=duration)))
    run = store.get(spec())
    assert (cooled, run.steps) == ([20], [10, 20])


def killed_at_its_second_checkpoint(spec: RunSpec, folder: Path) -> None:
    """Begin to train, wait for the other process to ask for the same run, and end by kill -9 in the midst of a file."""
    real_train, real_save, saved = store_module.train, checkpoints_module.save_file, []

    def save_file(tensors, path):
        real_save(tensors, path)
        saved.append(path)
        if len(saved) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:-200])
            os.kill(os.getpid(), signal.SIGKILL)

    def train(*arguments, **named):
        (folder / "training").touch()
        wait_for(folder / "waiting")
        return real_train(*arguments, **named)

    checkpoints_module.save_file, store_module.train = save_file, train
    print("STEPS", RunStore(folder).get(spec).steps, flush=True)


def next_in_line(spec: RunSpec, folder: Path) -> None:
    (folder / "waiting").touch()
    wait_for(folder / "training")
    print("STEPS", RunStore(folder).get(spec).steps, flush=True)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


@pytest.mark.process
def test_a_run_killed_while_it_writes_a_point_is_finished_by_the_process_that_waits(tmp_path, spec, finished):
    """kill -9 in the middle of the second checkpoint, with another process in line for the same run."""
    chosen, folder = spec(), tmp_path / "runs"
    folder.mkdir()
    killed, other = forked.ended(partial(killed_at_its_second_checkpoint, chosen, folder),
                                 partial(next_in_line, chosen, folder), folder=tmp_path)
    assert (killed.code, other.code) == (-signal.SIGKILL, 0), (killed, other)
    assert "STEPS [10, 20]" in other.output and "STEPS" not in killed.output
    assert_same_run(RunStore(folder).get(chosen), finished())
    assert sorted(path.name for path in (folder / chosen.key / "checkpoints").glob("step-*")) == [
        "step-000010.safetensors", "step-000020.safetensors"]


def test_half_a_checkpoint_never_has_a_checkpoints_name(store, spec, monkeypatch):
    """Looked at in the moment of writing: the temporary name is none that is ever read."""
    real, seen = checkpoints_module.save_file, []

    def looking(tensors, path):
        real(tensors, path)
        seen.append([one.name for one in path.parent.glob("step-*")])

    monkeypatch.setattr(checkpoints_module, "save_file", looking)
    store.get(spec())
    assert seen == [[], ["step-000010.safetensors"]]


# --- diverged


@pytest.mark.parametrize("poisoned, kept", [(20, [10]), (10, [])])
def test_a_copy_that_diverges_ends_the_run_and_keeps_the_points_before(store, spec, monkeypatch, poisoned, kept):
    real = Cooldowns._cool

    def cool(self, model, optimiser, *, start, duration):
        real(self, model, optimiser, start=start, duration=duration)
        if duration == poisoned:
            with torch.no_grad():
                next(parameter for parameter in model.parameters() if parameter.requires_grad)[0] = float("nan")

    monkeypatch.setattr(Cooldowns, "_cool", cool)
    run = store.get(spec())
    assert run.diverged and run.result["run"]["status"] == "diverged" and run.steps == kept
    assert len(list((run.folder / "checkpoints").glob("*"))) == len(kept)
    assert [row["step"] for row in run.metrics().to_dict("records")] == kept
    with pytest.raises(CourseError, match="full, learning rate 0.01.* diverged; lower its learning rate"):
        run.trained()
    for step in kept:
        assert all(tensor.isfinite().all() for tensor in run.trained(step).values())
    assert store.get(spec()).steps == kept, "a diverged run is a result"


def test_a_hot_run_that_diverges_is_found_at_the_next_point(store, spec, monkeypatch):
    real = Cooldowns.on_step_end

    def poison(self, args, state, control, model=None, **kwargs):
        if state.global_step == 12:
            with torch.no_grad():
                next(parameter for parameter in model.parameters() if parameter.requires_grad)[0] = float("nan")
        return real(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(Cooldowns, "on_step_end", poison)
    run = store.get(spec())
    assert run.diverged and run.steps == [10]


# --- decay, Lion and dropout reach what they are meant for


def test_the_decay_of_a_run_is_adamws_own_divided_by_the_peak_rate(finished, tiny_decoder):
    run = finished(weight_decay=0.05, durations=(20,))
    model, _ = by_hand(tiny_decoder, FULL, 20, decay=0.05 / RATE)
    assert_close(run.trained(20), trained_tensors(model), 2e-5)


def test_decay_towards_the_base_keeps_a_run_near_it_and_decay_towards_zero_does_not(finished):
    def distance(**changes) -> float:
        run = finished(**changes, durations=(20,))
        base = run.base_matrices()
        return torch.cat([(weight - base[name]).flatten() for name, weight in run.tuned_matrices().items()]).norm()

    free = distance()
    assert distance(weight_decay=0.5, decay_towards="base") < distance(weight_decay=0.1, decay_towards="base") < free
    assert distance(weight_decay=0.05) > free


@pytest.mark.parametrize("changes, kind, pulled", [
    ({}, "AdamW", 0), ({"weight_decay": 1e-3}, "AdamW", 1), ({"optimiser": "lion"}, "Lion", 0),
    ({"optimiser": "lion", "weight_decay": 1e-3, "decay_towards": "base"}, "Lion", 1)])
def test_the_trainers_optimiser_is_the_specified_one(store, spec, changes, kind, pulled):
    with recorded_steps() as seen:
        store.get(spec(**changes, durations=(5,), steps=5, checkpoints=1))
    assert len(seen) == 5 and {type(optimiser).__name__ for _, optimiser in seen} == {kind}
    optimiser = seen[0][1]
    assert len(optimiser._optimizer_step_pre_hooks) == pulled
    assert all(group.get("weight_decay", 0) == 0 for group in optimiser.param_groups)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 14


def test_attention_dropout_is_in_every_layer_and_only_while_training(spec, tiny_decoder):
    for share in (0.0, 0.3):
        model, _, _ = train_module._text(spec(attention_dropout=share), resolve(spec().base))
        assert [layer.self_attn.attention_dropout for layer in model.model.layers] == [share] * 2
        ids = torch.tensor(planned_blocks(tiny_decoder)[:2])
        with torch.no_grad():
            training = [model.train()(input_ids=ids).logits for _ in range(2)]
            evaluated = [model.eval()(input_ids=ids).logits for _ in range(2)]
        assert torch.equal(*training) == (share == 0.0) and torch.equal(*evaluated)


def test_a_finished_run_is_measured_without_its_dropout(finished):
    assert [layer.self_attn.attention_dropout for layer in
            finished(attention_dropout=0.3).causal_lm().model.layers] == [0.0, 0.0]


# --- which matrices


ATTENTION = {f"layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "qkvo"}
MLP = {f"layers.{layer}.mlp.{kind}_proj" for layer in (0, 1) for kind in ("gate", "up", "down")}
PARTS = {"all": ATTENTION | MLP, "attention": ATTENTION, "mlp": MLP}


@pytest.mark.parametrize("targets", PARTS)
def test_an_adapter_trains_its_targets_and_nothing_else(finished, targets):
    run = finished(method=Method(kind="lora", r=2, lora_alpha=4, targets=targets), durations=(10,), steps=10)
    assert {name.split(".", 1)[1] for name in run.trained()} == PARTS[targets]
    base, tuned, factors = run.base_matrices(), run.tuned_matrices(), run.factors()
    assert set(base) == PARTS["all"] and set(tuned) == set(factors) == PARTS[targets]
    for name, (b, a, scale) in factors.items():
        torch.testing.assert_close(base[name] + scale * b @ a, tuned[name])
        assert not torch.equal(base[name], tuned[name]) and scale == 2.0
    assert_only_these_moved(run, PARTS[targets])
    assert run.result["measured"]["trainable_parameters"] == sum(
        2 * (base[name].shape[0] + base[name].shape[1]) for name in PARTS[targets])
    assert run.spec.method.label == "LoRA r=2" + ("" if targets == "all" else f", {targets}")


def assert_only_these_moved(run: Run, names: set[str]) -> None:
    """Every other parameter of the model, embeddings and norms included, is bit for bit the base's."""
    before = dict(AutoModelForCausalLM.from_pretrained(run.base.folder, dtype=torch.float32).named_parameters())
    after = dict(run.causal_lm().named_parameters())
    moved = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    assert moved == {f"model.{name}.weight" for name in names}


@pytest.mark.parametrize("targets", PARTS)
def test_merged_targets_are_those_of_peft(finished, spec, tiny_decoder, targets):
    method = Method(kind="lora", r=2, lora_alpha=4, targets=targets)
    run = finished(method=method, durations=(10,), steps=10)
    model = prepare(AutoModelForCausalLM.from_pretrained(tiny_decoder, dtype=torch.float32), method, causal=True)
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        for name, module in tuned_modules(model, targets).items():
            module.lora_A["default"].weight.copy_(run.trained()[f"lora_A.{name}"])
            module.lora_B["default"].weight.copy_(run.trained()[f"lora_B.{name}"])
    theirs = {name: module.weight for name, module in tuned_modules(model.merge_and_unload()).items()}
    ours = run.base_matrices() | run.tuned_matrices()
    assert_close(ours, {name: weight.detach() for name, weight in theirs.items()}, 1e-6)


@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_full_fine_tuning_of_a_part_leaves_the_rest_bit_for_bit(finished, targets):
    run = finished(method=Method(kind="full", targets=targets), durations=(10,), steps=10)
    assert {name.removeprefix("weight.") for name in run.trained()} == PARTS[targets] == set(run.tuned_matrices())
    assert run.factors() is None
    assert_only_these_moved(run, PARTS[targets])
    assert run.result["measured"]["trainable_parameters"] == sum(w.numel() for w in run.tuned_matrices().values())


def test_the_encoders_output_is_attention_or_mlp_by_where_it_is(tiny_base):
    """Both end in `output.dense`."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2)
    attention, mlp = (set(tuned_modules(model, targets)) for targets in ("attention", "mlp"))
    assert attention | mlp == set(tuned_modules(model)) and len(attention) == 8 and len(mlp) == 4
    assert "encoder.layer.0.attention.output.dense" in attention and "encoder.layer.0.output.dense" in mlp
    adapted = prepare(model, Method(kind="lora", r=2, lora_alpha=4, targets="mlp"), causal=False)
    assert {name for name, module in tuned_modules(adapted).items() if hasattr(module, "base_layer")} == mlp


@pytest.mark.parametrize("targets, r, expected", [("all", 4, 39_040), ("attention", 10, 40_960), ("mlp", 7, 39_648)])
def test_modules_are_compared_at_about_equal_numbers(targets, r, expected):
    """The numbers that laptop.yaml states for experiment 'modules', on the small decoder's own configuration."""
    runs = load_profile("laptop").decoder_experiments["modules"].runs
    assert any(group.targets == targets and r in group.learning_rate for group in runs if group.method == "lora")
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(MODELS / "small-decoder"))
    model = prepare(model, Method(kind="lora", r=r, lora_alpha=2 * r, targets=targets), causal=True)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected
    assert f"{expected:,}" in (Path(loader_module.__file__).parent / "laptop.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("hot", [1.0, 0.25])
def test_a_copy_cools_from_the_rate_that_the_hot_run_has(tmp_path, hot):
    """The paper's shortest durations cool while the run still warms up; from the peak their rate would jump upwards."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0]))

        def forward(self, input_ids, **others):
            return SimpleNamespace(loss=(self.weight * input_ids.sum()).sum())

    model, rates = Model(), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.4)
    optimiser.param_groups[0] |= {"initial_lr": 0.4, "lr": 0.4 * hot}
    optimiser.register_step_pre_hook(lambda *_: rates.append(optimiser.param_groups[0]["lr"]))
    Cooldowns(tmp_path, [], None, scale=1.0, durations=(4,), blocks=[[1, 2]] * 4, batch_size=1, accumulation=1,
              dtype=torch.float32)._cool(model, optimiser, start=2, duration=4)
    assert rates == [0.4 * hot, 0.2 * hot]
