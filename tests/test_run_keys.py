"""A run's key is its name in every store there is: the same for ever, whatever becomes of the code.

``run_keys.json`` holds the keys of every run of the profiles `smoke` and `laptop`, as they were when it was written.
A profile that asks for other runs on purpose needs new ones: ``python tests/test_run_keys.py`` writes the file anew.
"""

import json
from pathlib import Path

import pytest
from pydantic.fields import PydanticUndefined

from utils.profiles import load_profile
from utils.training import spec as module
from utils.training.spec import HISTORICAL_DEFAULTS, Method, RunSpec, continual_specs, preference_specs, run_specs

KEYS = Path(__file__).with_name("run_keys.json")
SEEDS = {"own": (0,), "reference": (0, 1, 2)}
PLACES = [f"{profile}/{who}" for profile in ("smoke", "laptop") for who in SEEDS]
SPEC = {  # of the very first stored runs: no field but those that there were
    "base": {"source": "packaged", "name": "minilm"}, "base_revision": "1", "task": "movies",
    "sizes": {"train_rows": 8, "test_rows": 8, "max_length": 16}, "method": {"kind": "lora", "r": 2, "lora_alpha": 4},
    "learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.1, "steps": 4, "epochs": None, "batch_size": 4,
    "checkpoints": 2, "seed": 0}
# Specifications as they were stored, with the key that they were stored under.
STORED = {
    "06f42bce53143960": {
        "base": {"source": "packaged", "name": "minilm-mlm", "revision": None}, "base_revision": "220286ce64524bef",
        "task": "movies", "sizes": {"train_rows": None, "test_rows": 1000, "max_length": 64},
        "method": {"kind": "lora", "r": 16, "lora_alpha": 32, "rank_stabilised": False}, "learning_rate": 0.001,
        "schedule": "linear", "warmup_fraction": 0.06, "steps": 300, "epochs": None, "batch_size": 16,
        "optimiser": "adamw", "dtype": "float32", "checkpoints": 5, "seed": 2},
    "028dd589bedc2ccf": {
        "base": {"source": "packaged", "name": "minilm-mlm", "revision": None}, "base_revision": "220286ce64524bef",
        "task": "continues", "sizes": {"train_rows": None, "test_rows": 300, "max_length": 64},
        "method": {"kind": "lora", "r": 8, "lora_alpha": 16, "rank_stabilised": False, "variant": "lora"},
        "learning_rate": 0.002, "schedule": "linear", "warmup_fraction": 0.06, "steps": 60, "epochs": None,
        "batch_size": 16, "optimiser": "adamw", "dtype": "float32", "checkpoints": 1, "seed": 0, "start": None},
    "051b28e3bad2bbf0": {
        "base": {"source": "packaged", "name": "small-decoder", "revision": None}, "base_revision": "839593b32e68e25e",
        "task": "python", "sizes": {"train_rows": None, "test_rows": 160, "max_length": 128},
        "method": {"kind": "lora", "r": 8, "lora_alpha": 16, "rank_stabilised": False, "variant": "lora",
                   "targets": "all"},
        "learning_rate": 0.03, "schedule": "constant_with_warmup", "warmup_fraction": 0.02, "steps": 80,
        "epochs": None, "batch_size": 16, "optimiser": "adamw", "dtype": "float32", "checkpoints": 5, "seed": 0,
        "durations": [80], "weight_decay": 0.0, "decay_towards": "zero", "attention_dropout": 0.0,
        "gradient_accumulation": 1, "start": None},
    "d95019efdf737011": {
        "base": {"source": "packaged", "name": "small-decoder", "revision": None}, "base_revision": "839593b32e68e25e",
        "task": "python", "sizes": {"train_rows": None, "test_rows": 160, "max_length": 128},
        "method": {"kind": "full", "r": None, "lora_alpha": None, "rank_stabilised": False, "variant": "lora",
                   "targets": "all"},
        "learning_rate": 0.003, "schedule": "constant_with_warmup", "warmup_fraction": 0.02, "steps": 240,
        "epochs": None, "batch_size": 16, "optimiser": "adamw", "dtype": "float32", "checkpoints": 5, "seed": 0,
        "durations": [60, 120, 240], "weight_decay": 0.0, "decay_towards": "zero", "attention_dropout": 0.1,
        "gradient_accumulation": 1, "start": None},
}


def keys_of(place: str) -> dict:
    """Every run's key by experiment, on a machine without a GPU."""
    name, who = place.split("/")
    profile, seeds = load_profile(name), SEEDS[who]
    if who == "reference":
        profile = profile.with_reference_runs()
    found = {f"{place}/{experiment}": [spec.key for spec in run_specs(profile, experiment, seeds)]
             for experiment in (*profile.experiments, *profile.decoder_experiments)}
    found[f"{place}/continual"] = [[spec.key for spec in chain] for chain in continual_specs(profile, seeds)]
    if profile.preferences:
        found[f"{place}/preferences"] = {experiment: [spec.key for spec in specs] for experiment, specs in
                                         preference_specs(profile, seeds).items()}
    return found


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch):
    monkeypatch.setattr(module, "hardware", lambda: {"accelerator": None})


@pytest.mark.parametrize("place", PLACES)
def test_keys_are_those_that_they_always_were(place):
    before = {name: keys for name, keys in json.loads(KEYS.read_text()).items() if name.startswith(f"{place}/")}
    now = keys_of(place)
    changed = [name for name, keys in before.items() if now.get(name) != keys]
    assert len(before) > 20 and not changed, (
        f"The keys of {', '.join(changed)} are no longer those that runs are stored under. If a profile asks for other "
        "runs on purpose, write tests/run_keys.json anew; if not, a field's meaning, default or name was changed.")


@pytest.mark.parametrize(("model", "part"), [(RunSpec, "run"), (Method, "method")])
def test_no_default_is_changed_by_mistake(model, part):
    today = {name: model.model_fields[name].default for name in HISTORICAL_DEFAULTS[part]}
    assert today == HISTORICAL_DEFAULTS[part], (
        f"A default of {model.__name__} is no longer the one that stored runs had. Their keys stay (what counts is "
        "HISTORICAL_DEFAULTS, leave it as it is), but a specification without the field now means another run: "
        "name the field where runs are specified, and say here that the change is meant.")


@pytest.mark.parametrize(("model", "part", "others"), [(RunSpec, "run", {"start", "reward", "optimiser", "dtype"}),
                                                       (Method, "method", {"r", "lora_alpha", "rank_stabilised"})])
def test_every_field_with_a_default_has_its_historical_one(model, part, others):
    """A new field that is not listed would give every stored run another key; `others` were there from the start."""
    with_default = {name for name, field in model.model_fields.items() if field.default is not PydanticUndefined}
    assert with_default - others == set(HISTORICAL_DEFAULTS[part])


@pytest.mark.parametrize(("part", "field", "other"), [
    ("run", "weight_decay", 0.1), ("run", "decay_towards", "base"), ("run", "attention_dropout", 0.1),
    ("run", "gradient_accumulation", 2), ("run", "objective", "sft"), ("run", "template", "separated"),
    ("run", "beta", 0.1), ("run", "durations", [2, 4]), ("method", "variant", "pissa"), ("method", "targets", "mlp")])
def test_a_changed_default_changes_no_key(part, field, other, monkeypatch):
    """A default of today decides what a specification means, never what a stored run is called."""
    model = {"run": RunSpec, "method": Method}[part]
    plain = RunSpec.model_validate(SPEC)
    named = {"run": {**SPEC, field: other}, "method": {**SPEC, "method": {**SPEC["method"], field: other}}}[part]
    before = plain.key, RunSpec.model_validate(named).key
    assert before[0] != before[1], "the field must count where it is used"
    monkeypatch.setattr(model.model_fields[field], "default", other)
    assert (plain.key, RunSpec.model_validate(named).key) == before


def test_the_key_of_the_first_runs():
    assert RunSpec.model_validate(SPEC).key == "0214e253c2cc1a74"


@pytest.mark.parametrize("key", STORED)
def test_a_stored_run_is_found_again(key):
    """Another key for the same run would train hours of reference results anew, and call them missing."""
    assert RunSpec(**STORED[key]).key == key
    assert RunSpec.model_validate_json(RunSpec(**STORED[key]).model_dump_json()).key == key


@pytest.mark.parametrize("changes", [
    {"durations": (5, 10, 20)}, {"durations": (20,)}, {"durations": None}, {"optimiser": "lion"},
    {"weight_decay": 1e-3}, {"weight_decay": 1e-3, "decay_towards": "base"}, {"attention_dropout": 0.1},
    {"gradient_accumulation": 2}, {"method": Method(kind="full", targets="mlp")},
    {"method": Method(kind="full", targets="attention")}], ids=str)
def test_every_later_field_changes_the_key(changes):
    given = SPEC | {"durations": (2, 4)}
    assert RunSpec(**given | changes).key != RunSpec(**given).key
    if "decay_towards" in changes:
        assert RunSpec(**given | changes).key != RunSpec(**given, weight_decay=1e-3).key


if __name__ == "__main__":
    module.hardware = lambda: {"accelerator": None}
    everything = {name: keys for place in PLACES for name, keys in keys_of(place).items()}
    KEYS.write_text(json.dumps(everything, indent=1) + "\n")
