"""How a profile's groups become runs on a causal base: tokens, durations, decay, and what is refused."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from utils.profiles import Profile, load_profile
from utils.profiles import loader as loader_module
from utils.profiles.schema import DecoderExperiment, RunGroup
from utils.sources.models import BaseModel
from utils.training import spec as spec_module
from utils.training.spec import RunSpec, instruction_decoder, run_specs

CHOSEN = load_profile("laptop")


@pytest.fixture
def decoder_specs(monkeypatch):
    """The specifications of a group in an experiment of the laptop's; nothing is fetched."""
    monkeypatch.setattr(spec_module, "resolve", lambda reference: BaseModel("base", Path("nowhere"), "revision"))

    def build(group: dict, **experiment) -> list[RunSpec]:
        made = DecoderExperiment(**{"task": "python", "runs": [RunGroup(**group)]} | experiment)
        profile = CHOSEN.model_copy(update={"decoder_experiments": {"tried": made}})
        return run_specs(profile, "tried")

    return build


FULL_GROUP = {"method": "full", "learning_rate": 3e-3}


@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_another_batch_size_keeps_the_number_of_tokens(decoder_specs, batch_size):
    usual = CHOSEN.training.batch_size
    one, = decoder_specs(FULL_GROUP | {"batch_size": batch_size}, durations=[80, 160])
    assert one.batch_size == batch_size and one.durations == (80 * usual // batch_size, 160 * usual // batch_size)
    assert one.steps == one.durations[-1] and one.schedule == "constant_with_warmup"
    assert [steps * batch_size for steps in one.durations] == [80 * usual, 160 * usual]


def test_an_experiments_batch_size_is_the_usual_one_of_its_groups(decoder_specs):
    one, = decoder_specs(FULL_GROUP | {"batch_size": 8}, durations=[20, 40], batch_size=4)
    assert (one.batch_size, one.durations) == (8, (10, 20))


def test_a_large_batch_still_leaves_every_duration_a_step_to_cool_down(decoder_specs):
    one, = decoder_specs(FULL_GROUP | {"batch_size": 256}, durations=[40, 80, 160])
    assert one.durations == (5, 10) and one.steps == 10


def test_a_group_says_what_its_runs_are(decoder_specs):
    one, = decoder_specs(FULL_GROUP | {"optimiser": "lion", "weight_decay": 1e-3, "decay_towards": "base",
                                       "attention_dropout": 0.1, "targets": "mlp"}, durations=[10])
    assert (one.optimiser, one.weight_decay, one.decay_towards, one.attention_dropout, one.method.targets) == (
        "lion", 1e-3, "base", 0.1, "mlp")
    assert (one.base, one.gradient_accumulation, one.durations) == (CHOSEN.continued, 1, (10,))


def test_instruction_tuning_takes_the_decoder_that_fits(decoder_specs, monkeypatch):
    one, = decoder_specs(FULL_GROUP, task="functions", base="instruction", steps=7)
    assert one.base == CHOSEN.decoders[0].model and one.batch_size == CHOSEN.decoders[0].batch_size
    assert (one.steps, one.durations, one.schedule) == (7, None, CHOSEN.training.schedule)
    gpu = load_profile("gpu")
    for memory, name in ((24.0, "HuggingFaceTB/SmolLM2-1.7B"), (10.0, "HuggingFaceTB/SmolLM2-360M")):
        monkeypatch.setattr(spec_module, "hardware", lambda memory=memory: {"accelerator": {"memory_gib": memory}})
        assert instruction_decoder(gpu).model.name == name
    monkeypatch.setattr(spec_module, "hardware", lambda: {"accelerator": None})
    assert instruction_decoder(gpu).model.name == "HuggingFaceTB/SmolLM2-360M", "without a GPU the smallest"


@pytest.mark.parametrize("given, said", [
    ({"durations": [4, 10]}, "fewer than 5 steps"), ({"durations": [10, 10]}, "must rise"),
    ({"durations": [20, 10]}, "must rise"), ({"durations": [10], "steps": 10}, "'steps' is their last"),
    ({"durations": []}, "at least 1")])
def test_durations_rise_and_leave_a_step_to_cool_down(given, said):
    with pytest.raises(ValidationError, match=said):
        DecoderExperiment(task="python", runs=[FULL_GROUP], **given)
    assert DecoderExperiment(task="python", runs=[FULL_GROUP], durations=[5, 6]).durations == (5, 6)


def test_weight_decay_is_of_full_fine_tuning():
    """On an adapter it would shrink the factors, and not the weights that the paper's figure is about."""
    with pytest.raises(ValidationError, match="'weight_decay' goes with method 'full'"):
        RunGroup(method="lora", lora_alpha="2r", learning_rate={8: 1e-3}, weight_decay=1e-3)
    assert RunGroup(**FULL_GROUP, weight_decay=1e-3).weight_decay == 1e-3


def laptop(**changes) -> dict:
    path = Path(loader_module.__file__).parent / "laptop.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) | changes


@pytest.mark.parametrize("name", ["continued", "decoder_evaluation", "decoders"])
def test_decoder_experiments_need_what_they_run_on(name):
    content = laptop()
    del content[name]
    with pytest.raises(ValidationError, match="'continued', 'decoders' and 'decoder_evaluation'"):
        Profile.model_validate(content)


def test_decoder_experiments_are_named_tasks_have_sizes_and_no_name_is_used_twice():
    content = laptop()
    experiments = content["decoder_experiments"]
    for wrong, said in ((
            {name: one for name, one in experiments.items() if name != "modules"}, "must name 'modules'"),
            (experiments | {"ranks": experiments["code"]}, "'ranks' is an experiment and a decoder experiment"),
            (experiments | {"more": experiments["code"] | {"task": "codeparrot"}}, "task 'codeparrot', which 'tasks'")):
        with pytest.raises(ValidationError, match=said):
            Profile.model_validate(content | {"decoder_experiments": wrong})
    Profile.model_validate(content)
    without = Profile.model_validate({name: part for name, part in content.items() if name not in (
        "decoder_experiments", "continued", "decoder_evaluation")})
    assert without.decoder_experiments == {}, "a profile of the first paper alone"


def test_runs_that_differ_in_a_later_field_are_no_run_twice():
    differing = [{}, {"optimiser": "lion"}, {"weight_decay": 1e-3}, {"weight_decay": 1e-3, "decay_towards": "base"},
                 {"attention_dropout": 0.1}, {"batch_size": 4}, {"targets": "mlp"}]
    made = DecoderExperiment(task="python", durations=[10], runs=[FULL_GROUP | one for one in differing])
    assert len(made.runs) == 7
    with pytest.raises(ValidationError, match="named twice"):
        DecoderExperiment(task="python", durations=[10], runs=[FULL_GROUP | {"optimiser": "lion"}] * 2)
