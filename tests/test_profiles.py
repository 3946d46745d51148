"""Profiles: the four load; what is wrong with one is said in one sentence with file, key and what is allowed."""

import copy
from pathlib import Path

import pytest
import yaml

from utils.errors import UsageError
from utils.profiles import PROFILE_NAMES, load_profile
from utils.profiles import loader as loader_module
from utils.sources.tasks import TASKS
from utils.training.spec import run_specs

LAPTOP = yaml.safe_load((Path(loader_module.__file__).parent / "laptop.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def variant(tmp_path):
    """Write laptop.yaml with some values replaced (``...`` deletes) and return its path."""
    def write(changes: dict[tuple, object]) -> Path:
        content = copy.deepcopy(LAPTOP)
        for keys, value in changes.items():
            place = content
            for key in keys[:-1]:
                place = place[key]
            if value is ...:
                del place[keys[-1]]
            else:
                place[keys[-1]] = value
        path = tmp_path / "variant.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def sentence_for(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and str(path) in sentence
    return sentence


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_profile_loads_and_says_what_it_is(name):
    profile = load_profile(name)
    assert profile.profile == name and profile.summary.endswith(".")
    assert profile.evidence == (name != "smoke")
    assert {experiment.task for experiment in profile.experiments.values()} <= set(TASKS)


def test_an_unchanged_copy_equals_the_packaged_profile(variant):
    assert load_profile(variant({})) == load_profile("laptop")


GROUPS = ("experiments", "ranks", "runs")


@pytest.mark.parametrize("changes, said", [
    ({("training", "batchsize"): 16}, ("unknown key 'training.batchsize'", "batch_size", "warmup_fraction")),
    ({("colour",): 1}, ("unknown key 'colour'", "encoder", "pseudo_loss")),
    ({("tasks", "movies", "rows"): 1}, ("unknown key 'tasks.movies.rows'", "train_rows", "max_length")),
    ({(*GROUPS, 0, "rate"): 1e-4}, ("unknown key 'experiments.ranks.runs.0.rate'", "learning_rate")),
    ({("training", "batch_size"): "16"}, ("'training.batch_size'", "valid integer", "'16'")),
    ({("evidence",): "yes"}, ("'evidence'", "valid boolean", "'yes'")),
    ({("training", "batch_size"): 0}, ("'training.batch_size'", "greater than or equal to 1", "0")),
    ({("training", "warmup_fraction"): 1.0}, ("'training.warmup_fraction'", "less than 1")),
    ({("spectra", "epsilons"): [0.5, 1.5]}, ("'spectra.epsilons.1'", "less than or equal to 1", "1.5")),
    ({("hardware", "min_memory_gib"): float("inf")}, ("'hardware.min_memory_gib'", "finite")),
    ({("encoder", "source"): "web"}, ("'encoder.source'", "'packaged', 'hub' or 'local'", "'web'")),
    ({("profile",): "huge"}, ("'profile'", "'smoke', 'laptop', 'gpu' or 'paper'", "'huge'")),
    ({("seeds",): []}, ("'seeds'", "at least 1")),
    ({("seeds",): [-1]}, ("'seeds.0'", "greater than or equal to 0", "-1")),
    ({("reference_seeds",): [3, 3]}, ("'reference_seeds'", "twice")),
    ({("training", "epochs"): 1.0}, ("'training'", "exactly one of 'steps' and 'epochs'")),
    ({("training", "steps"): ...}, ("'training'", "exactly one of 'steps' and 'epochs'")),
    ({("spectra",): ...}, ("'spectra' is missing",)),
    ({("training", "batch_size"): ...}, ("'training.batch_size' is missing",)),
    ({("experiments", "second"): ...}, ("'experiments' must name 'second'",)),
    ({("experiments", "ranks", "task"): "mnli"}, ("'ranks'", "'mnli'", "movies, topics")),
    ({("spectra", "showcase_rank"): 7}, ("'spectra.showcase_rank' is 7", "ranks [1, ")),
    ({(*GROUPS, 0, "lora_alpha"): 8}, ("'experiments.ranks.runs.0'", "method 'full' takes one number")),
    ({(*GROUPS, 0, "learning_rate"): "1e-4"}, ("'experiments.ranks.runs.0.learning_rate'", "valid number", "'1e-4'")),
    ({(*GROUPS, 1, "learning_rate"): {0: 1e-3}}, ("'experiments.ranks.runs.1.learning_rate.0'", "equal to 1")),
    ({(*GROUPS, 1, "learning_rate"): {8: 2.0}}, ("'experiments.ranks.runs.1.learning_rate.8'", "equal to 1", "2.0")),
    ({(*GROUPS, 1, "lora_alpha"): "3r"}, ("'experiments.ranks.runs.1.lora_alpha'", "integer or '2r'", "'3r'")),
    ({(*GROUPS, 1, "lora_alpha"): ...}, ("'experiments.ranks.runs.1'", "method 'lora' takes 'lora_alpha'")),
    ({("experiments", "second", "reference_only"): True}, ("cannot be 'reference_only'",)),
], ids=lambda value: ".".join(map(str, next(iter(value)))) if isinstance(value, dict) else "")
def test_a_wrong_value_is_named_with_what_is_allowed(variant, changes, said):
    sentence = sentence_for(variant(changes))
    assert [part for part in said if part not in sentence] == [], sentence


@pytest.mark.parametrize("text, said", [
    ("profile: [laptop\n", "is not valid YAML"),
    ("profile: laptop\nsummary: one\nprofile: smoke\n", "the key 'profile' is given twice"),
    ("- laptop\n", "must hold keys and values"),
    ("", "must hold keys and values"),
    ("summary: 2024-01-01\n", "'profile' is missing"),
    ("profile: !!python/name:os.system\n", "is not valid YAML"),
])
def test_a_file_that_is_no_profile(tmp_path, text, said):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert said in sentence_for(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00profile")
    assert "is not valid YAML" in sentence_for(path)


def test_a_nested_key_given_twice(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("training:\n  steps: 3\n  batch_size: 4\n  steps: 5\n")
    assert "the key 'steps' is given twice" in sentence_for(path)


def test_a_missing_file_and_a_folder(tmp_path):
    assert "There is no profile file" in sentence_for(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in sentence_for(tmp_path / "folder.yaml")


@pytest.mark.parametrize("name", ["Laptop", "smok", "", "schema"])
def test_an_unknown_profile_names_the_four(name):
    with pytest.raises(UsageError, match="smoke, laptop, gpu, paper") as caught:
        load_profile(name)
    assert f"'{name}'" in str(caught.value)


def test_an_unknown_task_names_the_known_ones_before_anything_is_fetched(variant, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "untouched"))
    profile = load_profile(variant({("experiments", "ranks", "task"): "poems", ("tasks", "poems"): {"max_length": 32},
                                    ("encoder",): {"source": "hub", "name": "nobody/nothing"}}))
    with pytest.raises(UsageError) as caught:
        run_specs(profile, "ranks")
    assert "'poems'" in str(caught.value) and all(name in str(caught.value) for name in ("movies", "mnli", "metamath"))
    assert not (tmp_path / "untouched").exists()


def test_smoke_and_laptop_differ_in_scale_alone():
    smoke, laptop = load_profile("smoke"), load_profile("laptop")
    assert (smoke.encoder, smoke.sources, tuple(smoke.tasks)) == (laptop.encoder, laptop.sources, tuple(laptop.tasks))
    assert smoke.shown_experiments == laptop.shown_experiments
    for name in laptop.shown_experiments:
        mine, theirs = smoke.experiments[name], laptop.experiments[name]
        assert mine.task == theirs.task
        assert [(group.method, group.lora_alpha, group.rank_stabilised) for group in mine.runs] == \
               [(group.method, group.lora_alpha, group.rank_stabilised) for group in theirs.runs]
        for small, large in zip(mine.runs, theirs.runs, strict=True):
            if small.method == "lora":
                assert set(small.learning_rate) <= set(large.learning_rate)
    for field in ("k", "epsilon", "showcase_rank"):
        assert getattr(smoke.spectra, field) == getattr(laptop.spectra, field)
    assert set(smoke.spectra.epsilons) <= set(laptop.spectra.epsilons)
    assert smoke.pseudo_loss.corpus == laptop.pseudo_loss.corpus
    for name in ("steps", "batch_size", "checkpoints"):
        assert getattr(smoke.training, name) < getattr(laptop.training, name)
    for name, sizes in smoke.tasks.items():
        assert sizes.train_rows and sizes.test_rows and sizes.max_length <= laptop.tasks[name].max_length


def test_gpu_chooses_its_decoder_by_memory():
    gpu = load_profile("gpu")
    assert (gpu.encoder.source, gpu.encoder.name) == ("hub", "FacebookAI/roberta-base")
    assert gpu.decoder_for(8).model.name == "HuggingFaceTB/SmolLM2-360M"
    assert gpu.decoder_for(22.9).model.name == "HuggingFaceTB/SmolLM2-360M"
    assert gpu.decoder_for(24).model.name == "HuggingFaceTB/SmolLM2-1.7B"
    assert gpu.decoder_for(4) is None


def test_the_papers_rule_ties_alpha_and_learning_rate():
    """alpha times learning rate is one constant at alpha = 2r; a rank edited alone would break the comparison."""
    for name in ("gpu", "paper"):
        groups = [group for group in load_profile(name).experiments["ranks"].runs if group.method == "lora"]
        assert groups
        for group in groups:
            assert {round(2 * r * rate, 9) for r, rate in group.learning_rate.items()} == {2.4e-3}
