"""LoRA's variants: one form for every update, what each trains, AdaLoRA's pruning, LoRA+'s rates, keys that stay."""

import hashlib
import json

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from utils.errors import UsageError
from utils.files import canonical_json
from utils.profiles.schema import ModelReference, TaskSizes
from utils.sources.models import resolve
from utils.spectra import LowRankUpdate, Pair, leading_cosines, max_cosines, thin_svd
from utils.training.checkpoints import METRICS, Checkpoints
from utils.training.spec import Method, RunSpec
from utils.training.store import RunStore
from utils.training.targets import tuned_modules
from utils.training.variants import ADALORA_INITIAL, DENSE, LORA_PLUS_RATIO, adapter_config, update_factors
from utils.training.weights import load_into, merged, prepare, restore_adapter, trained_tensors

ENCODER = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 24, "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.2}
LLAMA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
BUILD = {"bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
         "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
         "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA))}
METHODS = {name: Method(kind="lora", r=4, lora_alpha=8, variant=name)
           for name in ("lora", "b_only", "lora_plus", "pissa", "adalora")}
METHODS |= {name: Method(kind="lora", r=4, lora_alpha=4, variant=name)
            for name in ("olora", "milora", "init_ab", "lora_ga", "lora_ga_peft", "dora", "gralora", "loft")}
METHODS |= {"vera": Method(kind="lora", r=8, variant="vera"), "randlora": Method(kind="lora", r=3, variant="randlora")}
FACTORS = {name: {"lora_A", "lora_B"} for name in METHODS} | {
    "dora": {"lora_A", "lora_B", "lora_magnitude_vector"}, "gralora": {"gralora_A", "gralora_B"},
    "randlora": {"randlora_lambda", "randlora_gamma"}, "b_only": {"lora_B"},
    "adalora": {"lora_A", "lora_B", "lora_E"}, "vera": {"vera_lambda_b", "vera_lambda_d"}}
PARTS = set().union(*FACTORS.values())
every_model = pytest.mark.parametrize("kind", BUILD)
every_variant = pytest.mark.parametrize("variant", METHODS)


def prepared(kind: str, method: Method, steps: int = 20) -> tuple[dict[str, torch.Tensor], nn.Module]:
    """W0 as it was before any wrapping, and the wrapped model; the same plain model for every method."""
    torch.manual_seed(0)
    model = BUILD[kind]().eval()
    w0 = {name: module.weight.detach().clone() for name, module in tuned_modules(model).items()}
    return w0, prepare(model, method, causal=kind == "llama", steps=steps, backward=backward).eval()


def backward(model: nn.Module) -> None:
    """The gradient that LoRA-GA starts from, of any loss."""
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()


def plain(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILD[kind]().eval()


@torch.no_grad()
def disturb(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Give every trained parameter a value that no initialisation has: what training does, without training."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def effective(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that PEFT's own layers compute with: what each layer does to the unit vectors, whatever it stores."""
    return {name: (module(torch.eye(module.in_features)) - (0 if module.bias is None else module.bias)).T.detach()
            for name, module in tuned_modules(model).items()}


def assert_close(ours: dict, theirs: dict, atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


# --- one form for every update --------------------------------------------------------------------------------------


@every_model
@every_variant
def test_the_stored_factors_are_pefts_own_weights(kind, variant):
    """W0 from before the wrapping plus scale * B A is what PEFT's layer computes with, for every variant and layout.

    AdaLoRA divides by its rank, VeRA cuts shared matrices to size, PiSSA rewrites W0: each once made another model.
    """
    method = METHODS[variant]
    w0, model = prepared(kind, method)
    disturb(model)
    ours = merged(w0, trained_tensors(model, method.scale), method.scale)
    assert_close(ours, effective(model))
    assert all((ours[name] - w0[name]).abs().max() > 0.01 for name in w0), "a matrix that was not disturbed"


@every_model
@every_variant
def test_a_variant_rebuilt_from_its_tensors_gives_the_same_logits(kind, variant):
    """Merged weights and head in a plain model answer as the wrapped one does."""
    method = METHODS[variant]
    w0, model = prepared(kind, method)
    disturb(model)
    trained = trained_tensors(model, method.scale)
    rebuilt = logits(load_into(plain(kind), merged(w0, trained, method.scale), trained))
    torch.testing.assert_close(rebuilt, logits(model), rtol=1e-4, atol=1e-4)
    assert (rebuilt - logits(plain(kind))).abs().max() > 0.01


@every_model
@every_variant
def test_a_variant_starts_as_the_base(kind, variant):
    """No variant but AdaLoRA's and LoRA's zero would be noticed in a table: the update at the start is none at all.

    VeRA starts with its d at 0.1 and its b at 0; PiSSA's product alone is W0's leading part, and only less what was
    taken out of the base weight it is nothing.
    """
    method = METHODS[variant]
    w0, model = prepared(kind, method)
    ours = merged(w0, trained_tensors(model, method.scale), method.scale)
    assert_close(ours, w0, atol=2e-6)
    torch.testing.assert_close(logits(model), logits(plain(kind)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_pissas_update_is_measured_from_the_original_base(kind):
    """Its base weight lacks the leading r directions; measured from there, every PiSSA run would be full of intruders.

    The kept factors are twice as wide, since what was taken out of W0 stands beside what was trained.
    """
    w0, model = prepared(kind, METHODS["pissa"])
    for name, module in tuned_modules(model).items():
        residual = module.get_base_layer().weight
        assert (residual - w0[name]).norm() > 0.1 * w0[name].norm(), "PiSSA took nothing out of the base"
        left = torch.linalg.svdvals(w0[name])[4:]
        torch.testing.assert_close(torch.linalg.svdvals(residual.detach())[:len(left)], left, rtol=1e-3, atol=1e-5)
    before = {name: tuple(part.clone() for part in pair) for name, pair in model.initial_factors.items()}
    disturb(model)
    for name, (b, a, _) in update_factors(model, 2.0).items():
        assert (b.shape[1], a.shape[0]) == (8, 8)
        assert torch.equal(b[:, 4:], -before[name][0]) and torch.equal(a[4:], before[name][1]), "they moved with it"


def test_pissas_first_factors_follow_the_model_to_its_device():
    """They are no buffers, so `model.to("cuda")` leaves them: the first checkpoint of a GPU run mixed two devices."""
    _, model = prepared("bert", METHODS["pissa"])
    model.to("meta")
    assert all(part.device.type == "meta" for update in update_factors(model, 2.0).values() for part in update[:2])


@pytest.mark.parametrize("variant", ["pissa", "adalora", "b_only", "lora_ga"])
def test_the_fast_counts_take_a_variants_factors(variant):
    """PiSSA's factors nearly cancel and AdaLoRA's hold zero rows: the core must count as two plain SVDs do."""
    w0, model = prepared("bert", METHODS[variant])
    disturb(model, std=0.6 if variant == "adalora" else 0.1)
    if variant == "adalora":
        for module in tuned_modules(model).values():
            module.lora_E["default"].data[1:4] = 0
    base, tuned = w0, effective(model)
    factors = update_factors(model, METHODS[variant].scale)
    pairs = [Pair(name, lambda name=name: (base[name], LowRankUpdate(
        factors[name].b.detach(), factors[name].a.detach(), factors[name].scale))) for name in base]
    found = list(leading_cosines(pairs, k=6, epsilons=[0.5, 0.8], direct_below=1))
    for one in found:
        plainly = max_cosines(*(thin_svd(weights[one.name].double()) for weights in (tuned, base)))[:6]
        for epsilon in (0.5, 0.8):
            assert int((one.max_cosines < epsilon).sum()) == int((plainly < epsilon).sum()), one.name
    assert any((one.max_cosines < 0.8).any() for one in found), "nothing to count"


# --- what each trains -----------------------------------------------------------------------------------------------


@every_model
@every_variant
def test_each_variant_trains_its_own_parts_and_the_head(kind, variant):
    """By name: VeRA its two vectors, A frozen for b_only, E as well for AdaLoRA; the head always; nothing of W0."""
    _, model = prepared(kind, METHODS[variant])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapter = {name for name in trained if any(part in name for part in ("lora_", "vera_"))}
    assert {part for name in adapter for part in name.split(".") if part in PARTS} == FACTORS[variant]
    assert len(adapter) == len(FACTORS[variant]) * len(tuned_modules(model))
    heads = {"bert": 4, "roberta": 4, "llama": 0}[kind]
    assert len(trained - adapter) == heads and all("modules_to_save" in name for name in trained - adapter)


@every_model
@every_variant
def test_a_checkpoint_holds_the_update_and_the_head(kind, variant):
    """Two factors or the merged weight, so that nothing downstream asks which variant it was."""
    names = set(trained_tensors(prepared(kind, METHODS[variant])[1]))
    matrices = set(tuned_modules(plain(kind)))
    adapter = {f"{part}.{name}" for part in (("weight",) if variant in DENSE else ("lora_A", "lora_B"))
               for name in matrices}
    own = {name for name in names if name.startswith("adapter.")}
    assert bool(own) == (variant in DENSE)
    head = names - adapter - own
    assert adapter <= names and len(head) == {"bert": 4, "roberta": 4, "llama": 0}[kind]
    assert all(name.startswith("head.") and name.removeprefix("head.") in dict(plain(kind).named_parameters())
               for name in head)


@every_model
def test_b_only_has_orthonormal_frozen_rows_that_differ_by_matrix(kind):
    """Figure 10's A: A A^T = I of rank r, not trained, and not one A for all matrices."""
    _, model = prepared(kind, METHODS["b_only"])
    rows = [module.lora_A["default"].weight for module in tuned_modules(model).values()]
    for a in rows:
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)
        assert not a.requires_grad
    same = [a for a in rows if a.shape == rows[0].shape]
    assert len(same) > 1 and not torch.equal(same[0], same[1])


def test_b_only_of_a_rank_above_the_width_is_one_sentence():
    """17 rows of width 16 cannot be orthonormal; orthonormal columns in silence would be another experiment."""
    with pytest.raises(UsageError, match="rank 17 cannot have orthonormal rows of width 16") as caught:
        prepared("bert", Method(kind="lora", r=17, lora_alpha=34, variant="b_only"))
    assert "\n" not in str(caught.value)
    prepared("bert", Method(kind="lora", r=16, lora_alpha=32, variant="b_only"))


@every_model
@pytest.mark.parametrize("variant", [name for name in METHODS if name not in ("adalora", "vera")])
def test_an_adapter_is_restored_from_its_checkpoint(kind, variant):
    """A model wrapped anew with the same seed and given the kept tensors answers as the trained one did."""
    _, trained = prepared(kind, METHODS[variant])
    disturb(trained)
    kept = trained_tensors(trained, METHODS[variant].scale)
    _, fresh = prepared(kind, METHODS[variant])
    restore_adapter(fresh, kept)
    assert_close(effective(fresh), effective(trained))
    assert_close(effective(fresh), merged(prepared(kind, METHODS["lora"])[0], kept, METHODS[variant].scale))


def test_adaloras_own_parameters_are_in_no_checkpoint():
    _, model = prepared("bert", METHODS["adalora"])
    with pytest.raises(UsageError, match="not for ADALORA"):
        restore_adapter(model, trained_tensors(model, 2.0))


def test_pissa_of_a_rank_above_the_width_is_one_sentence():
    """A 16-wide matrix has 16 directions to start from; PEFT makes 16 of 20 in silence, and the label would lie."""
    with pytest.raises(UsageError, match="PiSSA.*rank 20.*16") as caught:
        prepared("bert", Method(kind="lora", r=20, lora_alpha=40, variant="pissa"))
    assert "\n" not in str(caught.value)
    prepared("bert", Method(kind="lora", r=16, lora_alpha=32, variant="pissa"))


def test_adalora_needs_the_length_of_the_training():
    """Its budget shrinks on a schedule; without the number of steps PEFT's error speaks of `total_step`."""
    with pytest.raises(UsageError, match="number of training steps; give 'steps'"):
        prepared("bert", METHODS["adalora"], steps=None)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 10, 49, 50, 101, 3000])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_adaloras_schedule_fits_every_length(steps, r):
    """PEFT refuses a schedule whose phases meet; the final budget is r, the first half as much again."""
    config = adapter_config(Method(kind="lora", r=r, lora_alpha=2 * r, variant="adalora"), steps=steps)
    assert config.tinit < config.total_step - config.tfinal and config.deltaT >= 1
    assert config.target_r == r < config.init_r == round(ADALORA_INITIAL * r)


@pytest.mark.parametrize("values", [
    {"kind": "lora", "variant": "vera", "r": 8, "lora_alpha": 8}, {"kind": "lora", "variant": "vera"},
    {"kind": "full", "variant": "vera", "r": 8}, {"kind": "lora", "variant": "pissa", "r": 8},
    {"kind": "lora", "variant": "dola", "r": 8, "lora_alpha": 8},
    {"kind": "lora", "variant": "randlora", "r": 8, "lora_alpha": 8}])
def test_an_impossible_variant_is_refused(values):
    with pytest.raises(ValueError):
        Method(**values)


def test_every_variant_has_a_label_of_its_own():
    """Two lines of a figure with one label are one line to the reader."""
    labels = [method.label for method in (*METHODS.values(), Method(kind="full"),
                                          Method(kind="lora", r=4, lora_alpha=8, rank_stabilised=True))]
    assert len(set(labels)) == len(labels), labels


# --- short trainings ------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tiny_base):
    """A specification on the tiny base: 8 steps of 4 rows."""
    return lambda **changes: build_spec(tiny_base, **changes)


def build_spec(folder, **changes) -> RunSpec:
    reference = ModelReference(source="local", name=str(folder))
    return RunSpec(**{
        "base": reference, "base_revision": resolve(reference).revision, "task": "movies",
        "sizes": TaskSizes(train_rows=32, test_rows=16, max_length=32), "method": METHODS["lora"],
        "learning_rate": 1e-2, "schedule": "linear", "warmup_fraction": 0.0, "steps": 8, "epochs": None,
        "batch_size": 4, "checkpoints": 2, "seed": 0} | changes)


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory):
    """A finished run of each variant, for the tests that only read."""
    store = RunStore(tmp_path_factory.mktemp("variants"))
    return {name: store.get(build_spec(tiny_base, method=method)) for name, method in METHODS.items()}


@every_variant
def test_a_trained_variant_is_whole(finished, variant):
    """Every matrix moved, W0 + scale * B A is what the run gives, and its classifier repeats the recorded accuracy."""
    from utils.training.data import classification_data, evaluation_batches
    from utils.training.metrics import accuracy, predict

    run = finished[variant]
    base, tuned, factors = run.base_matrices(), run.tuned_matrices(), run.factors()
    assert (factors is None) == (variant in DENSE)
    for name, (b, a, scale) in (factors or {}).items():
        assert scale == METHODS[variant].scale
        torch.testing.assert_close(tuned[name], base[name] + scale * b @ a)
    assert sum((tuned[name] - base[name]).norm() > 0 for name in base) >= 10
    _, test = classification_data("movies", run.spec.sizes, run.base.folder)
    again = accuracy(*predict(run.classifier(), evaluation_batches(test, run.base.folder)))
    assert again["accuracy"] == run.metrics()["accuracy"].iloc[-1]


def test_training_leaves_the_frozen_factor_as_it_was(finished):
    """b_only: A at step 4 and at step 8 has the same bits and orthonormal rows; B moves."""
    early, late = finished["b_only"].trained(4), finished["b_only"].trained(8)
    for name in early:
        if name.startswith("lora_A."):
            assert torch.equal(early[name], late[name])
            torch.testing.assert_close(late[name] @ late[name].T, torch.eye(4), rtol=0, atol=1e-5)
        elif name.startswith("lora_B."):
            assert not torch.equal(early[name], late[name]) and late[name].norm() > 0


def test_adalora_prunes_to_its_budget(finished):
    """Six directions per matrix at first, four on average at the end: 48 of 72 rows of E A are not zero, unevenly.

    Without the callback nothing is ever pruned, and the run is a wider LoRA under another name.
    """
    kept = [int((tensor.abs().sum(1) > 0).sum()) for name, tensor in finished["adalora"].trained().items()
            if name.startswith("lora_A.")]
    assert len(kept) == 12 and sum(kept) == 48 and max(kept) <= 6, kept
    assert len(set(kept)) > 1, "pruned evenly: the importance was not looked at"
    first = [int((tensor.abs().sum(1) > 0).sum()) for name, tensor in finished["adalora"].trained(4).items()
             if name.startswith("lora_A.")]
    assert 48 < sum(first) <= 72


def watched(monkeypatch) -> list[dict]:
    """Of every step from now on: the learning rate of each parameter in the optimiser that is really used, by name."""
    seen, real = [], Checkpoints.on_step_end

    def noted(self, args, state, control, model=None, optimizer=None, **kwargs):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        seen.append({names[id(parameter)]: group["lr"] for group in optimizer.param_groups
                     for parameter in group["params"]})
        return real(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(Checkpoints, "on_step_end", noted)
    return seen


def test_lora_plus_trains_b_at_sixteen_times_the_rate_of_a(tmp_path, spec, monkeypatch):
    """In the optimiser that is used, at every step of the schedule; every trained parameter is in it once.

    Its authors' rule gives one-dimensional parameters B's rate too, the head's biases among them.
    """
    seen = watched(monkeypatch)
    RunStore(tmp_path).get(spec(method=METHODS["lora_plus"], steps=4, learning_rate=1e-3, checkpoints=1))
    assert len(seen) == 4 and len(seen[0]) == 12 * 2 + 4 and LORA_PLUS_RATIO == 16
    for step, rates in enumerate(seen, start=1):
        rate = 1e-3 * (1 - step / 4)  # the scheduler's next step; the linear schedule ends at zero
        for name, found in rates.items():
            times = 16 if "lora_B" in name or name.endswith("bias") else 1
            assert found == pytest.approx(times * rate, abs=1e-12), (step, name)


def test_the_other_variants_keep_one_rate(tmp_path, spec, monkeypatch):
    seen = watched(monkeypatch)
    RunStore(tmp_path).get(spec(method=METHODS["b_only"], steps=1, checkpoints=1))
    assert len(set(seen[0].values())) == 1 and not any("lora_A" in name for name in seen[0])


def stop_at(patch, step: int) -> None:
    real = Checkpoints.on_step_end

    def stop(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    patch.setattr(Checkpoints, "on_step_end", stop)


@pytest.mark.parametrize("variant", [name for name in METHODS if name not in ("lora", "adalora")])
def test_a_variant_cut_short_goes_on_to_the_same_numbers(tmp_path, spec, monkeypatch, finished, variant):
    """Resumed at step 4 of 8: PiSSA's base is rewritten anew, LoRA+'s optimiser refilled, b_only's A still frozen."""
    chosen, store = spec(method=METHODS[variant]), RunStore(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            store.get(chosen)
    seen = watched(monkeypatch)
    run = store.get(chosen)
    assert len(seen) == 4, "it did not go on from step 4"
    for step in (4, 8):
        assert_close(run.trained(step), finished[variant].trained(step), atol=2e-6)
    trainable = run.result["measured"]["trainable_parameters"]
    assert trainable == finished[variant].result["measured"]["trainable_parameters"]


def test_adalora_cut_short_starts_anew(tmp_path, spec, monkeypatch, finished):
    """Its averages of importance are in no resume point: a run that went on would prune by half of the evidence."""
    chosen, store = spec(method=METHODS["adalora"]), RunStore(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            store.get(chosen)
    kept = (store.folder / chosen.key / METRICS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in kept] == [4]
    seen = watched(monkeypatch)
    run = store.get(chosen)
    assert len(seen) == 8 and run.steps == [4, 8]
    assert_close(run.trained(), finished["adalora"].trained(), atol=2e-6)


# --- keys -----------------------------------------------------------------------------------------------------------


def key_before_the_variants(spec: RunSpec) -> str:
    """The key as it was made when a method was kind, r, alpha and scaling, and no run started from another."""
    names = ("base", "base_revision", "task", "sizes", "learning_rate", "schedule", "warmup_fraction", "steps",
             "epochs", "batch_size", "optimiser", "dtype", "checkpoints", "seed")
    whole = json.loads(spec.model_dump_json())
    del whole["sizes"]["validation_rows"]  # which came later
    content = {"format": 1} | {name: whole[name] for name in names} | {
        "method": {name: whole["method"][name] for name in ("kind", "r", "lora_alpha", "rank_stabilised")}}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


@pytest.mark.parametrize("method", [Method(kind="full"), METHODS["lora"],
                                    Method(kind="lora", r=4, lora_alpha=8, rank_stabilised=True)])
def test_older_runs_keep_their_keys(spec, method):
    """Hours of stored training would be lost, and done again, if a new field with its default moved a key."""
    for changes in ({}, {"steps": None, "epochs": 2.0, "dtype": "bfloat16"}):
        chosen = spec(method=method, **changes)
        assert chosen.key == key_before_the_variants(chosen)


def test_a_key_known_by_heart():
    """Written down when the variants came: the recipe above could move together with the code, this cannot."""
    chosen = RunSpec(base=ModelReference(source="packaged", name="minilm-mlm"), base_revision="0123456789abcdef",
                     task="movies", sizes=TaskSizes(train_rows=96, test_rows=64, max_length=32),
                     method=METHODS["lora"], learning_rate=1e-3, schedule="linear", warmup_fraction=0.06, steps=60,
                     epochs=None, batch_size=8, checkpoints=3, seed=0)
    assert chosen.key == key_before_the_variants(chosen) == "338562c77cb81df2"


def test_a_variant_and_a_start_change_the_key(spec):
    """Each variant, no start, a start, another start, and a start of a start: none is mistaken for another."""
    first, second = spec(), spec(task="topics")
    chosen = [spec(method=method) for method in METHODS.values()] + [spec(method=Method(kind="full"))]
    chosen += [spec(start=first), spec(start=second), spec(start=second.model_copy(update={"start": first})),
               spec(start=spec(seed=1))]
    keys = [one.key for one in chosen]
    assert len(set(keys)) == len(keys)
    again = [RunSpec.model_validate_json(one.model_dump_json()) for one in chosen]
    assert [one.key for one in again] == keys and again == chosen, "a specification read back is another"
