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
        f"A default of {model.__name__} is no longer the one that stored runs had. Their keys stay (HISTORICAL_DEFAULTS "
        "is what counts, leave it as it is), but a specification that does not name the field now means another run: "
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


if __name__ == "__main__":
    module.hardware = lambda: {"accelerator": None}
    everything = {name: keys for place in PLACES for name, keys in keys_of(place).items()}
    KEYS.write_text(json.dumps(everything, indent=1) + "\n")
