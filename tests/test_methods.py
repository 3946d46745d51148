"""What each method trains, what it is called, and that merged weights are the model's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from utils.errors import UsageError
from utils.training import targets
from utils.training.checkpoints import planned_steps
from utils.training.spec import Method
from utils.training.targets import lora_pattern, split_name, tuned_modules
from utils.training.weights import base_matrices, load_into, merged, prepare, trained_tensors

ENCODER = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 24, "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.2}
LLAMA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
BUILD = {"bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
         "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
         "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA))}
KINDS = {"bert": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                  "intermediate.dense", "output.dense"),
         "llama": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                   "mlp.up_proj", "mlp.down_proj")}
KINDS["roberta"] = KINDS["bert"]
STEM = {"bert": "encoder.layer", "roberta": "encoder.layer", "llama": "layers"}
BODY = {"bert": "bert.", "roberta": "roberta.", "llama": "model."}
HEAD = {"bert": ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"],
        "roberta": ["classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight",
                    "classifier.out_proj.bias"], "llama": []}
LORAS = {"alpha = 2r": Method(kind="lora", r=4, lora_alpha=8),
         "alpha fixed at 8": Method(kind="lora", r=2, lora_alpha=8),
         "rank one": Method(kind="lora", r=1, lora_alpha=2),
         "rsLoRA": Method(kind="lora", r=4, lora_alpha=8, rank_stabilised=True)}
PAPERS = ("bert", "roberta", "llama")



def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILD[kind]().eval()


def expected_names(kind: str) -> list[str]:
    return [f"{STEM[kind]}.{layer}.{matrix}" for layer in (0, 1) for matrix in KINDS[kind]]


def causal(kind: str) -> bool:
    return kind == "llama"


def inputs() -> dict:
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(**inputs()).logits


@torch.no_grad()
def disturb(model: nn.Module, std: float = 0.3) -> None:
    """Give every trained parameter a value that no initialisation has: what training does, without training."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: module.weight.detach().clone() for name, module in tuned_modules(model).items()}


# --- names ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", PAPERS)
def test_tuned_modules_are_the_named_kinds_of_each_layer(kind):
    """Six matrices per encoder layer, seven per Llama layer; never pooler, classifier, LM head or embeddings."""
    found = tuned_modules(build(kind))
    assert sorted(found) == sorted(expected_names(kind))
    assert all(module.weight.ndim == 2 for module in found.values())


def test_one_body_gives_one_set_of_names():
    """Bare model, masked-LM model and classifier agree, so that W0 and tuned weights meet under one name."""
    config = BertConfig(**ENCODER)
    names = [list(tuned_modules(kind(config))) for kind in (BertModel, BertForMaskedLM, BertForSequenceClassification)]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("kind", PAPERS)
def test_names_survive_wrapping_by_peft(kind):
    """A LoRA-wrapped model gives the same short names, each on the wrapped module itself."""
    model = prepare(build(kind), LORAS["alpha = 2r"], causal=causal(kind))
    found = tuned_modules(model)
    assert sorted(found) == sorted(expected_names(kind))
    assert all(isinstance(module, LoraLayer) for module in found.values())


@pytest.mark.parametrize("kind", PAPERS)
def test_lora_sits_on_exactly_the_tuned_modules(kind):
    """`lora_pattern`, read by PEFT, matches what `tuned_modules` finds and nothing else."""
    model = prepare(build(kind), LORAS["alpha = 2r"], causal=causal(kind))
    adapted = {name.removeprefix("base_model.model.") for name, module in model.named_modules()
               if isinstance(module, LoraLayer)}
    assert adapted == {BODY[kind] + name for name in expected_names(kind)}
    assert "?P<" not in lora_pattern(kind)


@pytest.mark.parametrize("name, expected", [
    ("encoder.layer.3.attention.self.query", (3, "query")), ("encoder.layer.11.output.dense", (11, "output.dense")),
    ("encoder.layer.0.attention.output.dense", (0, "attention.output.dense")),
    ("roberta.encoder.layer.7.intermediate.dense", (7, "intermediate.dense")),
    ("layers.0.mlp.down_proj", (0, "down_proj")), ("model.layers.31.self_attn.o_proj", (31, "o_proj"))])
def test_split_name(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize("kind", PAPERS)
def test_split_name_tells_every_tuned_module_apart(kind):
    """Layer and type identify a matrix: no two modules of a model share them."""
    pairs = [split_name(name) for name in expected_names(kind)]
    assert len(set(pairs)) == len(pairs) and {layer for layer, _ in pairs} == {0, 1}


@pytest.mark.parametrize("name", ["classifier.weight", "bert.pooler.dense", "embeddings.word_embeddings", "lm_head",
                                  "encoder.layer.x.output.dense", "layers.0.mlp.down_proj.lora_A"])
def test_split_name_refuses_what_is_not_tuned(name):
    with pytest.raises(UsageError, match="is not the name of a matrix"):
        split_name(name)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="'gpt2' model.*bert, roberta, llama"):
        targets.pattern_for("gpt2")


# --- what is trained ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", PAPERS)
def test_full_fine_tuning_trains_exactly_the_matrices_and_the_head(kind):
    """Biases, LayerNorm, embeddings and a causal model's LM head stay frozen."""
    model = prepare(build(kind), Method(kind="full"), causal=causal(kind))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{BODY[kind]}{name}.weight" for name in expected_names(kind)} | set(HEAD[kind])


@pytest.mark.parametrize("kind", PAPERS)
def test_lora_trains_exactly_the_factors_and_the_head(kind):
    """Two factors per matrix, of the sizes that the rank says, and the same head as full fine-tuning."""
    plain = build(kind)
    shapes = {name: module.weight.shape for name, module in tuned_modules(plain).items()}
    heads = {f"head.{name}": dict(plain.named_parameters())[name].shape for name in HEAD[kind]}
    model = prepare(plain, LORAS["alpha = 2r"], causal=causal(kind))
    found = trained_tensors(model)
    expected = heads | {f"lora_A.{name}": (4, shape[1]) for name, shape in shapes.items()} \
        | {f"lora_B.{name}": (shape[0], 4) for name, shape in shapes.items()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {k: tuple(v) for k, v in expected.items()}
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == sum(tensor.numel() for tensor in found.values())


@pytest.mark.parametrize("kind", PAPERS)
def test_trained_tensors_of_full_fine_tuning_are_all_that_is_trained(kind):
    model = prepare(build(kind), Method(kind="full"), causal=causal(kind))
    found = trained_tensors(model)
    assert set(found) == {f"weight.{name}" for name in expected_names(kind)} | {f"head.{name}" for name in HEAD[kind]}
    assert sum(t.numel() for t in found.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_trained_tensors_are_copies():
    """A checkpoint must not move with the model that goes on training, nor keep its graph."""
    model = prepare(build("bert"), Method(kind="full"), causal=False)
    before = trained_tensors(model)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    disturb(model)
    assert all(torch.equal(before[name], kept[name]) and not before[name].requires_grad for name in kept)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_preparing_a_run_leaves_the_rules_alone(kind):
    """PEFT appends to the list of heads that it is given; the project's own table must not grow with each run."""
    before = copy.deepcopy(targets.HEADS)
    prepare(build(kind), LORAS["alpha = 2r"], causal=False)
    assert targets.HEADS == before


@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize("method", [Method(kind="full"), LORAS["alpha = 2r"]], ids=["full", "lora"])
def test_a_step_moves_only_what_is_trained(kind, method):
    """One plain SGD step: every frozen parameter keeps its bits, the trained ones (LoRA: B, as B = 0) move."""
    model = prepare(build(kind), method, causal=causal(kind))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = inputs()
    labels = batch["input_ids"] if causal(kind) else torch.tensor([0, 1, 2])
    model(**batch, labels=labels).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, parameter in model.named_parameters():
        moves = parameter.requires_grad and "lora_A" not in name
        assert torch.equal(parameter, before[name]) is not moves, name


# --- LoRA's mathematics ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("kind", PAPERS)
def test_fresh_lora_computes_what_the_base_computes(kind, method):
    """B = 0: the outputs are the base model's own, and so are the merged weights."""
    base = build(kind)
    expected, w0 = logits(base), weights_of(base)
    model = prepare(base, method, causal=causal(kind))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    found = merged(w0, trained_tensors(model), method.scale)
    assert found.keys() == w0.keys() and all(torch.equal(found[name], w0[name]) for name in w0)


def tuned(kind: str, method: Method) -> tuple[dict[str, torch.Tensor], nn.Module]:
    """W0, and a model prepared for a method whose trained parameters were moved."""
    base = build(kind)
    w0 = weights_of(base)
    model = prepare(base, method, causal=causal(kind))
    disturb(model)
    return w0, model


@pytest.mark.parametrize("method", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("kind", PAPERS)
def test_merged_weights_are_pefts(kind, method):
    """W0 + scale * B A equals `merge_and_unload`, for every scaling rule and layout of the weights."""
    w0, model = tuned(kind, method)
    ours = merged(w0, trained_tensors(model), method.scale)
    theirs = weights_of(model.merge_and_unload())
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6)
        assert (weight - w0[name]).abs().max() > 0.01


@pytest.mark.parametrize("r, alpha, stabilised, scale", [(8, 16, False, 2.0), (64, 8, False, 0.125), (1, 2, False, 2.0),
                                                         (16, 32, True, 8.0), (4, 8, True, 4.0)])
def test_scale_by_hand(r, alpha, stabilised, scale):
    """alpha / r, or alpha / sqrt(r) for rsLoRA."""
    assert Method(kind="lora", r=r, lora_alpha=alpha, rank_stabilised=stabilised).scale == scale


def test_merging_full_fine_tuning_returns_the_stored_weights():
    """Full fine-tuning's merged weights are the trained ones, in W0's order; its values and the scale play no part."""
    base = build("bert")
    w0 = weights_of(base)
    model = prepare(base, Method(kind="full"), causal=False)
    disturb(model)
    stored = dict(sorted(trained_tensors(model).items()))  # the order that safetensors gives back
    found, now = merged(w0, stored, 0.0), weights_of(model)
    assert list(found) == list(w0)
    assert all(torch.equal(found[name], now[name]) and not torch.equal(found[name], w0[name]) for name in w0)


@pytest.mark.parametrize("method", [Method(kind="full"), *LORAS.values()], ids=["full", *LORAS])
@pytest.mark.parametrize("kind", PAPERS)
def test_a_run_can_be_rebuilt_from_its_tensors(kind, method):
    """Stored tensors put into an untouched base give the tuned model's logits, head included."""
    w0, model = tuned(kind, method)
    trained = trained_tensors(model)
    scale = method.scale if method.kind == "lora" else 0.0
    fresh = build(kind)
    untouched = logits(fresh)
    rebuilt = logits(load_into(fresh, merged(w0, trained, scale), trained))
    torch.testing.assert_close(rebuilt, logits(model), rtol=1e-4, atol=1e-4)
    assert (rebuilt - untouched).abs().max() > 0.01


def test_the_head_is_optional_when_loading():
    """A masked-LM model takes the tuned body alone: its own head stays."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**ENCODER))
    head = {name: p.detach().clone() for name, p in model.named_parameters() if "encoder" not in name}
    matrices = {name: torch.full_like(weight, 0.5) for name, weight in weights_of(model).items()}
    load_into(model, matrices)
    assert all(torch.equal(weight, matrices[name]) for name, weight in weights_of(model).items())
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in head.items())


def test_base_matrices_are_those_of_the_checkpoint(tmp_path):
    """Read from disk in float32, by the same names, whatever head the checkpoint was saved with."""
    model = build("bert")
    model.save_pretrained(tmp_path)
    found, expected = base_matrices(tmp_path), weights_of(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float32 for name in expected)


@pytest.mark.parametrize("values", [
    {"kind": "lora"}, {"kind": "lora", "r": 4}, {"kind": "full", "r": 4, "lora_alpha": 8},
    {"kind": "lora", "r": 0, "lora_alpha": 8}, {"kind": "dora"}])
def test_an_impossible_method_is_refused(values):
    with pytest.raises(ValueError):
        Method(**values)


# --- checkpoints ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("total, count, expected", [
    (100, 4, [25, 50, 75, 100]), (3, 5, [1, 2, 3]), (1, 1, [1]), (10, 3, [3, 7, 10]), (1, 9, [1]),
    (300, 5, [60, 120, 180, 240, 300])])
def test_planned_steps_by_hand(total, count, expected):
    assert planned_steps(total, count) == expected


@settings(deadline=None, max_examples=100, derandomize=True)
@given(total=st.integers(1, 5000), count=st.integers(1, 60))
def test_planned_steps_end_with_the_last_and_are_evenly_spaced(total, count):
    """Sorted, within 1 … total, the last always among them, as many as asked where there are so many steps."""
    steps = planned_steps(total, count)
    gaps = [later - earlier for earlier, later in zip([0, *steps], steps, strict=False)]
    assert steps[-1] == total and steps[0] >= 1 and min(gaps) >= 1
    assert len(steps) == min(total, count)
    assert max(gaps) - min(gaps) <= 2
