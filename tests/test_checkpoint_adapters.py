"""An adapter's own words: scales, patterns and anchors, starts, what was trained beside, names, revisions."""

import json
import random
import shutil
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch
from checkpoint_shelf import assert_says, refused, report_of
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from small_checkpoints import (
    CUSTOM,
    RANK,
    SQUARE,
    UP,
    WIDTH,
    added,
    blocks,
    counted,
    factors,
    normal,
    shapes_of,
    write,
    write_adapter,
)
from torch import nn

from utils.course.cli import main
from utils.sources import hub
from utils.sources.checkpoints.settings import BEYOND_LORA, HARMLESS, HARMLESS_STARTS, pattern_of

pytestmark = pytest.mark.usefixtures("shelf_cache")
TENSORS = blocks("model.layers")
QUERIES = factors(shapes_of(TENSORS, "q_proj"))
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", TENSORS)


# Scales -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", [
    {"q_proj": 1}, {"^q_proj": 1}, {r"^model\.layers\.0\.self_attn\.q_proj": 1}, {"layers.0.*": 1}, {"proj": 1},
    {r"layers\.[0-9]\.self_attn\.q_proj": 1}, {"model.layers.1": 1}, {"": 1}, {"self_attn.q_proj": 1, "q_proj": 2},
    {"v_proj": 1}, {".*": 1}, {"q_proj$": 1}, {f"^{QUERY}$": 1}, {"layers.0.self_attn.q_proj|v_proj": 1}])
def test_a_pattern_means_what_it_means_to_peft(patterns):
    for module in shapes_of(TENSORS, ""):
        wanted = get_pattern_key(patterns.keys(), module)
        assert (pattern_of(patterns, module) or module) == wanted


def test_ranks_and_alphas_of_single_modules(tmp_path, base):
    """Anchored and not, over rsLoRA, with ranks that differ; the first pattern that matches counts."""
    parts = factors(shapes_of(TENSORS, "q_proj")) | factors(shapes_of(TENSORS, "mlp.up"), rank=5, seed=70)
    adapter = write_adapter(tmp_path / "tuned", parts, use_rslora=True, rank_pattern={"mlp.up_proj": 5},
                            alpha_pattern={r"^model\.layers\.1\..*": 30, "up_proj": 10, "layers.0.mlp.up_proj": 1000})

    def scale(module: str) -> float:
        alpha = 30 if ".1." in module else 10 if "up_proj" in module else 4
        return alpha / (5 if "up_proj" in module else RANK) ** 0.5

    counted(tmp_path, base, adapter, added(TENSORS, parts, scale))


def test_a_pattern_that_matches_nothing_is_noted(tmp_path, base):
    adapter = write_adapter(tmp_path / "tuned", QUERIES, alpha_pattern={"^layers.0.self_attn.q_proj": 30})
    report = counted(tmp_path, base, adapter, added(TENSORS, QUERIES))
    assert_says(report["notes"][0], "alpha_pattern", "'^layers.0.self_attn.q_proj'", "none of its modules")


def test_a_rank_that_the_factors_do_not_have_is_refused(tmp_path, capsys, base):
    """PEFT divides alpha by the configuration's rank, and cannot load such a file; neither number is to be believed."""
    for place, settings in enumerate(({"r": 16}, {"rank_pattern": {"layers.0.*": 1}})):
        adapter = write_adapter(tmp_path / f"tuned {place}", QUERIES, **settings)
        assert_says(refused(capsys, base, adapter), QUERY, f"rank {16 if 'r' in settings else 1}", f"rank {RANK}")


def test_a_configuration_without_rank_leaves_it_to_the_factors(tmp_path, base):
    counted(tmp_path, base, write_adapter(tmp_path / "tuned", QUERIES, r=..., lora_alpha=...),
            added(TENSORS, QUERIES, 8 / RANK))


@pytest.mark.parametrize("use_dora", [True, False])
def test_dora_has_magnitudes_and_other_adapters_have_none(tmp_path, capsys, base, use_dora):
    more = {} if use_dora else {f"base_model.model.{module}.lora_magnitude_vector": torch.ones(WIDTH)
                                for module in QUERIES}
    adapter = write_adapter(tmp_path / "tuned", QUERIES, more=more, use_dora=use_dora)
    assert_says(refused(capsys, base, adapter), QUERY, "no magnitude" if use_dora else "a magnitude")


# Starts and switches ------------------------------------------------------------------------------------------------


def layer_started(start) -> tuple[bool, dict]:
    """Whether PEFT left a weight as it was, and its configuration as it is saved."""
    model = nn.ModuleDict({"fc": nn.Linear(8, 12)})
    before = model["fc"].weight.detach().clone()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["fc"], init_lora_weights=start))
    return torch.equal(before, model["fc"].base_layer.weight), wrapped.peft_config["default"].to_dict()


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "mica", "olora", "pissa", "pissa_niter_4"])
def test_the_starts_that_are_read_leave_the_base_as_it_is(tmp_path, capsys, base, start):
    """Tried on the installed PEFT, not believed."""
    harmless, _ = layer_started(start)
    assert harmless == (start in HARMLESS_STARTS)
    adapter = write_adapter(tmp_path / "tuned", QUERIES, init_lora_weights=start)
    if harmless:
        counted(tmp_path, base, adapter, added(TENSORS, QUERIES))
    else:
        assert_says(refused(capsys, base, adapter), f"'{start}'", "merge_and_unload")


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "next_years", ["pissa"], {"a": 1}, 1, 0, ""], ids=str)
def test_a_start_that_nothing_is_known_of_is_refused(tmp_path, capsys, base, start):
    adapter = write_adapter(tmp_path / "tuned", QUERIES, init_lora_weights=start)
    assert_says(refused(capsys, base, adapter), "not among the initialisations", repr(start))


def test_every_start_and_switch_of_the_installed_peft_is_known_here():
    """An upgrade of PEFT that adds one says so here."""
    starts = {value for part in get_args(get_type_hints(LoraConfig)["init_lora_weights"]) for value in get_args(part)}
    switches = set()
    for field in fields(LoraConfig):
        variant = field.metadata.get("is_lora_variant")
        if field.name.startswith("use_") or field.name.endswith("_config") or variant:
            switches.add(field.name)
    rewriting = {"olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq"}
    assert starts and starts - rewriting <= set(HARMLESS_STARTS)
    assert switches and switches <= {*HARMLESS, *BEYOND_LORA}


@pytest.mark.parametrize("settings", [
    {"kasa_config": {"r": 1}}, {"arrow_config": {"top_k": 1}}, {"use_next_years_lora": True},
    {"next_years_config": {"beta": 1}}, {"enable_lora": [True, False, True]}, {"layer_replication": [[0, 1]]}], ids=str)
def test_a_switch_that_makes_more_of_it_is_named(tmp_path, capsys, base, settings):
    assert_says(refused(capsys, base, write_adapter(tmp_path / "tuned", QUERIES, **settings)), *settings,
                "merge_and_unload")


def test_switches_that_are_off_or_harmless_are_no_obstacle(tmp_path, base):
    off = {"use_next_years_lora": False, "next_years_config": None, "kasa_config": None, "loftq_config": {},
           "eva_config": {"rho": 2.0}, "megatron_config": None, "lora_dropout": 0.1, "exclude_modules": None}
    counted(tmp_path, base, write_adapter(tmp_path / "tuned", QUERIES, **off), added(TENSORS, QUERIES))


def test_pissa_as_llamafactory_keeps_it_is_refused(tmp_path, capsys, base):
    """It writes init_lora_weights: true beside factors over a base that PiSSA rewrote."""
    root = write_adapter(tmp_path / "tuned", QUERIES)
    for name in ("pissa_init", "pissa_backup", "pissa_converted"):
        write_adapter(root / name, QUERIES)
    for folder in (root, root / "pissa_init", root / "pissa_backup"):
        assert_says(refused(capsys, base, folder), "PiSSA", "pissa_converted")
    counted(tmp_path, base, root / "pissa_converted", added(TENSORS, QUERIES))


# What was trained beside --------------------------------------------------------------------------------------------


class Model(nn.Module):
    """An embedding, blocks with a gate and a norm, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(9, WIDTH)
        self.layers = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(WIDTH, WIDTH), "gate": nn.Linear(WIDTH, 3),
                                                    "norm": nn.LayerNorm(WIDTH)}) for _ in range(2)])
        self.lm_head = nn.Linear(WIDTH, 9)

    def get_input_embeddings(self):
        return self.embed_tokens


def peft_saved(tmp_path, **settings):
    """What PEFT writes, and Name -> (W0, Wt) of what its merge changes."""
    model = Model()
    write(tmp_path / "base", model.state_dict())
    wrapped = get_peft_model(model, LoraConfig(r=RANK, target_modules=["fc", "lm_head"], **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if any(part in name for part in ("lora_B", "modules_to_save", "trainable_tokens_delta")):
                parameter.normal_()
    wrapped.save_pretrained(tmp_path / "tuned", save_embedding_layers=False)
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = wrapped.double().merge_and_unload().state_dict()
    return {name.removesuffix(".weight"): (before[name].double(), after[name]) for name in before
            if before[name].ndim == 2 and not torch.equal(before[name].double(), after[name])}


@pytest.mark.parametrize("settings, parts", [
    ({"modules_to_save": ["gate", "norm", "embed_tokens"]}, ["embed_tokens.weight", "norm"]),
    ({"trainable_token_indices": [1, 4]}, ["trainable_tokens"]),
    ({"modules_to_save": ["gate"], "bias": "all"}, ["lm_head"])], ids=["modules", "tokens", "biases"])
def test_what_is_trained_beside_the_factors_is_counted_or_named(tmp_path, settings, parts):
    changed = peft_saved(tmp_path, **settings)
    wanted = {name: pair for name, pair in changed.items() if name.startswith("layers.")}
    assert len(wanted) == (4 if "gate" in settings.get("modules_to_save", []) else 2) < len(changed)
    report = counted(tmp_path, tmp_path / "base", tmp_path / "tuned", wanted)
    assert_says(" ".join(report["notes"]), *parts, "lm_head")


def test_a_whole_weight_of_nothing_in_the_base_is_refused(tmp_path, capsys, base):
    more = {"base_model.model.model.layers.0.other.weight": normal(*SQUARE, seed=1)}
    assert_says(refused(capsys, base, write_adapter(tmp_path / "tuned", QUERIES, more=more)), "model.layers.0.other")


def test_a_part_that_is_unknown_is_refused(tmp_path, capsys, base):
    more = {f"base_model.model.{QUERY}.lora_diag.weight": torch.ones(RANK)}
    assert_says(refused(capsys, base, write_adapter(tmp_path / "tuned", QUERIES, more=more)), "lora_diag")


# Several adapters ---------------------------------------------------------------------------------------------------


def test_one_of_several_adapters_is_chosen_by_name(tmp_path, capsys, base):
    """As PEFT saves them: the first in the folder itself, each other one in a folder of its own."""
    other = factors(shapes_of(TENSORS, "v_proj"), seed=80)
    root = write_adapter(tmp_path / "tuned", QUERIES)
    write_adapter(root / "reference", other)
    report = counted(tmp_path, base, root, added(TENSORS, QUERIES))
    assert_says(report["notes"][0], "'reference'", "--adapter")
    counted(tmp_path, base, root, added(TENSORS, QUERIES), "--adapter", "default")
    counted(tmp_path, base, root, added(TENSORS, other), "--adapter", "reference")
    assert_says(refused(capsys, base, root, "--adapter", "polcy"), "no adapter called 'polcy'")
    assert_says(refused(capsys, base, base, "--adapter", "x"), "no adapter called 'x'")


def test_adapters_below_without_one_of_their_own(tmp_path, capsys, base):
    for name, parts in (("policy", QUERIES), ("reference", factors(shapes_of(TENSORS, "v_proj")))):
        write_adapter(tmp_path / "tuned" / name, parts)
    assert_says(refused(capsys, base, tmp_path / "tuned"), "'policy', 'reference'", "--adapter")
    counted(tmp_path, base, tmp_path / "tuned", added(TENSORS, QUERIES), "--adapter", "policy")


def test_several_adapters_in_one_file(tmp_path, capsys, base):
    """A state dict that was saved as it is has each adapter's name inside the tensors' names."""
    other = factors(shapes_of(TENSORS, "q_proj"), seed=90)
    more = {f"base_model.model.{module}.lora_{letter}.dpo.weight": factor for module, (b, a) in other.items()
            for letter, factor in (("B", b), ("A", a))}
    adapter = write_adapter(tmp_path / "tuned", QUERIES, infix=".sft", more=more)
    assert_says(refused(capsys, base, adapter), "'sft'", "'dpo'", "--adapter NAME")
    counted(tmp_path, base, adapter, added(TENSORS, other), "--adapter", "dpo")
    counted(tmp_path, base, adapter, added(TENSORS, QUERIES), "--adapter", "sft")


@pytest.mark.parametrize("index", [True, False])
def test_an_adapter_in_shards(tmp_path, capsys, base, index):
    places, folder = {}, tmp_path / "tuned"
    for place, module in enumerate(QUERIES, 1):
        file = f"adapter_model-{place:05d}-of-00002.safetensors"
        write_adapter(folder, {module: QUERIES[module]}, file=file)
        places |= dict.fromkeys(load_file(folder / file), file)
    if index:
        (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    counted(tmp_path, base, folder, added(TENSORS, QUERIES))
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()
    assert_says(refused(capsys, base, folder), "adapter_model-00002-of-00002.safetensors")


# The base that it names ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub_of_two_revisions(tmp_path, monkeypatch):
    """A model whose revisions have other weights, by what is downloaded of it."""
    weights = {"main": blocks("model.layers", seed=1), "step1000": TENSORS}
    asked = []

    def download(name: str, *, revision=None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(write(tmp_path / "hub" / (revision or "main"), weights[revision or "main"], CUSTOM))

    monkeypatch.setattr(hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize("given", ["-", "someone/model"])
def test_the_bases_revision_is_the_adapters_own_word(tmp_path, hub_of_two_revisions, given):
    adapter = write_adapter(tmp_path / "tuned", QUERIES, base_model_name_or_path="someone/model", revision="step1000")
    report = counted(tmp_path, given, adapter, added(TENSORS, QUERIES))
    assert hub_of_two_revisions == [("someone/model", "step1000")]
    assert_says(" ".join(report["notes"]), "step1000")


def test_another_base_than_the_named_revision_is_noted(tmp_path, base, hub_of_two_revisions):
    adapter = write_adapter(tmp_path / "tuned", QUERIES, base_model_name_or_path="someone/model", revision="step1000")
    report = counted(tmp_path, base, adapter, added(TENSORS, QUERIES))
    assert_says(report["notes"][0], "someone/model at step1000", base)
    adapter = write_adapter(tmp_path / "local", QUERIES, base_model_name_or_path=str(base), revision="step1000")
    assert_says(counted(tmp_path, "-", adapter, added(TENSORS, QUERIES))["notes"][0], "step1000", "was not seen")
    assert hub_of_two_revisions == []


# Whatever a configuration says --------------------------------------------------------------------------------------

KEYS = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out",
        "init_lora_weights", "modules_to_save", "revision", "base_model_name_or_path", "target_modules", "enable_lora",
        "target_parameters", "trainable_token_indices", "layers_to_transform", "bias", "config")
VALUES = (None, True, False, 0, -1, 3.5, 10**30, 1e300, "", "x", "(", "LORA", [], [1], ["q_proj"], {}, {"q_proj": None},
          {"q_proj": 3}, {"(": 2}, {"q_proj": [1]}, {"a": {"b": {}}}, "\u2028line\x1b[31m", "../..", "a/b/c")


def test_any_value_of_any_setting_ends_in_a_count_or_a_sentence(tmp_path, capsys, base):
    adapter = write_adapter(tmp_path / "tuned", QUERIES)
    plain = json.loads((adapter / "adapter_config.json").read_text())
    drawn = random.Random(0)
    for _ in range(150):
        settings = plain | {drawn.choice(KEYS): drawn.choice(VALUES) for _ in range(drawn.choice((1, 1, 2)))}
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        if main(["intruders", str(base), str(adapter)]) != 0:
            refused(capsys, base, adapter)


@pytest.mark.parametrize("config", [
    {"architectures": 5}, {"architectures": "Llama"}, {"model_type": ["gpt2"]},
    {"model_type": "gpt2", "n_layer": 10**9},
    {"quantization_config": []}, {"quantization_config": {"quant_method": ["fp8"]}}, {"text_config": 3},
    {"num_hidden_layers": "two"}, {"num_experts": True}, {"transformers_weights": None}], ids=str)
def test_any_configuration_of_a_model_is_no_reason_to_fail(tmp_path, config):
    """c_proj makes the model's kind matter, and an adapter under other names makes it be asked for them."""
    tensors = blocks("h", {"attn.c_attn": (3 * WIDTH, WIDTH), "mlp.c_proj": UP[::-1]})
    parts = factors(shapes_of(tensors, "c_attn"))
    adapter = write_adapter(tmp_path / "tuned", {f"other.{module}": part for module, part in parts.items()})
    counted(tmp_path, write(tmp_path / "base", tensors, config), adapter, added(tensors, parts))


def test_a_deep_configuration_is_no_reason_to_fail(tmp_path, base):
    deep = '{"model_type": "gpt2", "num_experts": 3, "a": ' + '{"a": ' * 300 + "1" + "}" * 301
    (base / "config.json").write_text(deep)
    adapter = write_adapter(tmp_path / "tuned", {module.replace("model.", "other."): part
                                                 for module, part in QUERIES.items()})
    counted(tmp_path, base, adapter, added(TENSORS, QUERIES))


def test_an_adapter_and_a_whole_model_side_by_side(tmp_path, base):
    """torchtune writes both into one folder; the adapter is what PEFT would load."""
    folder = write_adapter(tmp_path / "tuned", QUERIES)
    write(folder, blocks("model.layers", seed=4))
    assert_says(counted(tmp_path, base, folder, added(TENSORS, QUERIES))["notes"][0], "the adapter was read")
    shutil.copytree(folder, tmp_path / "merged")
    (tmp_path / "merged" / "adapter_model.safetensors").unlink()
    assert_says(report_of(tmp_path, base, tmp_path / "merged")["notes"][0], "adapter_config.json lies beside")
