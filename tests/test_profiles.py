"""Profiles: all of them load; what is wrong with one is said in one sentence with file, key and what is allowed."""

import copy
from pathlib import Path

import pytest
import yaml

from utils.errors import UsageError
from utils.profiles import PROFILE_NAMES, Profile, load_profile
from utils.profiles import loader as loader_module
from utils.profiles.schema import DECODER_EXPERIMENTS, NOTEBOOK_EXPERIMENTS
from utils.sources.models import BaseModel
from utils.sources.tasks import TASKS
from utils.training import spec as spec_module
from utils.training.spec import continual_specs, intervention_specs, run_specs

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
        path = tmp_path / f"variant{len(list(tmp_path.iterdir()))}.yaml"  # a path once loaded is remembered
        path.write_text(yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)), encoding="utf-8")
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
    everything = profile.experiments | profile.decoder_experiments
    assert {experiment.task for experiment in everything.values()} <= set(TASKS)
    assert set(DECODER_EXPERIMENTS) <= set(profile.decoder_experiments)


def test_an_unchanged_copy_equals_the_packaged_profile(variant):
    assert load_profile(variant({})) == load_profile("laptop")


GROUPS = ("experiments", "ranks", "runs")
CODE = ("decoder_experiments", "code")
DECODER_RUN = {"task": "python", "durations": [5], "runs": [{"method": "full", "learning_rate": 1e-3}]}


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
    ({("profile",): "huge"}, ("'profile'", "'smoke', 'laptop', 'workstation', 'gpu' or 'paper'", "'huge'")),
    ({("seeds",): []}, ("'seeds'", "at least 1")),
    ({("seeds",): [-1]}, ("'seeds.0'", "greater than or equal to 0", "-1")),
    ({("reference_seeds",): [3, 3]}, ("'reference_seeds'", "twice")),
    ({("training", "epochs"): 1.0}, ("'training'", "exactly one of 'steps' and 'epochs'")),
    ({("training", "steps"): ...}, ("'training'", "exactly one of 'steps' and 'epochs'")),
    ({("spectra",): ...}, ("'spectra' is missing",)),
    ({("training", "batch_size"): ...}, ("'training.batch_size' is missing",)),
    ({("experiments", "second"): ...}, ("'experiments' must name 'second'",)),
    ({("experiments", "ranks", "task"): "mnli"}, ("'ranks'", "'mnli'", "it has continues, functions, ", "topics)")),
    ({("spectra", "showcase_rank"): 7}, ("'spectra.showcase_rank' is 7", "ranks [1, ")),
    ({(*GROUPS, 0, "lora_alpha"): 8}, ("'experiments.ranks.runs.0'", "method 'full' takes no ranks")),
    ({(*GROUPS, 0, "learning_rate"): "1e-4"}, ("'experiments.ranks.runs.0.learning_rate'", "valid number", "'1e-4'")),
    ({(*GROUPS, 1, "learning_rate"): {0: 1e-3}}, ("'experiments.ranks.runs.1.learning_rate.0'", "equal to 1")),
    ({(*GROUPS, 1, "learning_rate"): {8: 2.0}}, ("'experiments.ranks.runs.1.learning_rate.8'", "equal to 1", "2.0")),
    ({(*GROUPS, 1, "lora_alpha"): "3r"}, ("'experiments.ranks.runs.1.lora_alpha'", "integer or 'r' or '2r'", "'3r'")),
    ({(*GROUPS, 1, "learning_rate"): {8: [1e-3, 2.0]}}, ("'experiments.ranks.runs.1.learning_rate.8", "2.0")),
    ({(*GROUPS, 1, "learning_rate"): {8: [1e-3, 1e-3]}}, ("rank 8, alpha 16 at learning rate 0.001 is named twice",)),
    ({(*GROUPS, 1, "variant"): "randlora"}, ("variant 'randlora' takes a 'learning_rate' for each rank and no",)),
    ({(*GROUPS, 1, "steps"): 0}, ("'experiments.ranks.runs.1.steps'", "equal to 1")),
    ({(*GROUPS, 1, "lora_alpha"): ...}, ("'experiments.ranks.runs.1'", "method 'lora' takes 'lora_alpha'")),
    ({("experiments", "second", "reference_only"): True}, ("cannot be 'reference_only'",)),
    ({(*GROUPS, 0, "variant"): "pissa"}, ("'experiments.ranks.runs.0'", "variant 'pissa' goes with method 'lora'")),
    ({(*GROUPS, 1, "variant"): "b_only", (*GROUPS, 1, "rank_stabilised"): True}, ("'b_only'", "its own scaling")),
    ({(*GROUPS, 1, "variant"): "vera"}, ("variant 'vera' takes a 'learning_rate' for each rank and no 'lora_alpha'",)),
    ({(*GROUPS, 1, "variant"): "vera", (*GROUPS, 1, "lora_alpha"): ..., (*GROUPS, 1, "learning_rate"): 1e-3},
     ("variant 'vera' takes a 'learning_rate' for each rank",)),
    ({(*GROUPS, 0, "variant"): "vera"}, ("variant 'vera' goes with method 'lora'",)),
    ({(*GROUPS, 1, "variant"): "dola"}, ("'experiments.ranks.runs.1.variant'", "'randlora' or 'loft'", "'dola'")),
    ({(*GROUPS, 1, "train_rows"): []}, ("'experiments.ranks.runs.1.train_rows'", "at least 1")),
    ({(*GROUPS, 1, "train_rows"): [600, 0]}, ("'experiments.ranks.runs.1.train_rows.1'", "equal to 1")),
    ({(*GROUPS, 1, "train_rows"): 600}, ("'experiments.ranks.runs.1.train_rows'", "600")),
    ({(*GROUPS, 1, "checkpoints"): 0}, ("'experiments.ranks.runs.1.checkpoints'", "equal to 1")),
    ({(*GROUPS, 1, "first_seed_only"): "yes"}, ("'experiments.ranks.runs.1.first_seed_only'", "valid boolean")),
    ({("experiments", "ranks", "side"): 1}, ("'experiments.ranks.side'", "valid boolean")),
    ({("experiments", "ranks", "runs"): []}, ("'experiments.ranks.runs'", "at least 1")),
    ({("intervention",): ...}, ("'intervention' is missing",)),
    ({("intervention", "experiment"): ...}, ("'intervention.experiment' is missing",)),
    ({("intervention", "experiment"): "rates"}, ("'intervention' names experiment 'rates', which is not there",)),
    ({("intervention", "runs"): []}, ("'intervention.runs'", "at least 1")),
    ({("intervention", "runs", 0, "r"): 0}, ("'intervention.runs.0.r'", "equal to 1")),
    ({("intervention", "lambdas", "intruder"): []}, ("'intervention.lambdas.intruder'", "at least 1")),
    ({("intervention", "lambdas", "intruder"): [0, 1, 4.5]},
     ("'intervention.lambdas.intruder.2'", "less than or equal to 4", "4.5")),
    ({("intervention", "lambdas", "neighbour"): [-0.5]}, ("'intervention.lambdas.neighbour.0'", "equal to 0", "-0.5")),
    ({("intervention", "lambdas", "intruder"): [1]},
     ("'intervention.lambdas'", "needs a value besides 1, which changes nothing")),
    ({("intervention", "lambdas", "update"): [0]}, ("'intervention.lambdas.update'",)),
    ({("intervention", "masked_every"): 0}, ("'intervention.masked_every'", "equal to 1")),
    ({("continual",): ...}, ("'continual' is missing",)),
    ({("continual", "tasks"): ["movies"]}, ("'continual'", "two tasks or more, since with 1 nothing can be forgotten",
                                              "that was learnt before")),
    ({("continual", "tasks"): []}, ("'continual'", "two tasks or more, since with 0 nothing")),
    ({("continual", "tasks"): ["movies", "topics", "movies"]}, ("'continual'", "'tasks' names a task twice")),
    ({("continual", "tasks"): ["movies", "mnli"]}, ("'continual' names task 'mnli', which 'tasks' gives no sizes",)),
    ({("continual", "runs"): []}, ("'continual.runs'", "at least 1")),
    ({("continual", "runs", 0, "lora_alpha"): 8}, ("'continual.runs.0'", "method 'full' takes no ranks")),
    ({("continual", "probe_train_rows"): 0}, ("'continual.probe_train_rows'", "equal to 1")),
    ({("continual", "probe_rows"): 9}, ("unknown key 'continual.probe_rows'", "probe_train_rows, probe_test_rows")),
    *(({("experiments", name): ...}, (f"'experiments' must name '{name}', which the notebooks read",))
      for name in NOTEBOOK_EXPERIMENTS),
    *(({("decoder_experiments", name): ...}, (f"'decoder_experiments' must name '{name}', which the notebooks read",))
      for name in DECODER_EXPERIMENTS),
    *(({(name,): ...}, ("'decoder_experiments' need 'continued', 'decoders' and 'decoder_evaluation' beside them",))
      for name in ("continued", "decoders", "decoder_evaluation")),
    ({(*CODE, "durations"): [60, 30]}, ("'decoder_experiments.code'", "'durations' must rise")),
    ({(*CODE, "durations"): [30, 30]}, ("'decoder_experiments.code'", "'durations' must rise")),
    ({(*CODE, "steps"): 240}, ("'decoder_experiments.code'", "'steps' is their last")),
    ({(*CODE, "durations"): [4, 10]}, ("'decoder_experiments.code'", "a duration of fewer than 5 steps leaves none")),
    ({(*CODE, "durations"): []}, ("'decoder_experiments.code.durations'", "at least 1")),
    ({(*CODE, "duration"): [5]}, ("unknown key 'decoder_experiments.code.duration'", "durations", "warmup_fraction")),
    ({(*CODE, "task"): "poems"}, ("decoder experiment 'code' uses task 'poems', which 'tasks' gives no sizes",)),
    ({(*CODE, "base"): "encoder"}, ("'decoder_experiments.code.base'", "'continued' or 'instruction'", "'encoder'")),
    ({(*CODE, "gradient_accumulation"): 0}, ("'decoder_experiments.code.gradient_accumulation'", "equal to 1")),
    ({("decoder_experiments", "ranks"): DECODER_RUN},
     ("'ranks' is an experiment and a decoder experiment; each name must be there once",)),
    ({(*CODE, "runs"): DECODER_RUN["runs"] * 2}, ("'decoder_experiments.code.runs'", "full at learning rate 0.001 is")),
    ({(*CODE, "runs", 0, "optimiser"): "sgd"}, ("code.runs.0.optimiser'", "'adamw' or 'lion'", "'sgd'")),
    ({(*CODE, "runs", 1, "targets"): "head"}, ("code.runs.1.targets'", "'all', 'attention' or 'mlp'", "'head'")),
    ({(*CODE, "runs", 0, "weight_decay"): 1.0}, ("code.runs.0.weight_decay'", "less than 1", "1.0")),
    ({(*CODE, "runs", 1, "weight_decay"): 0.1}, ("code.runs.1'", "'weight_decay' goes with method 'full'")),
    ({("decoder_evaluation", "blocks"): 0}, ("'decoder_evaluation.blocks'", "equal to 1")),
    ({("decoder_evaluation", "samples"): ...}, ("'decoder_evaluation.samples' is missing",)),
    ({("decoder_evaluation", "temperature"): 0}, ("'decoder_evaluation.temperature'", "greater than 0")),
    ({("decoder_evaluation", "top_p"): 1.5}, ("'decoder_evaluation.top_p'", "less than or equal to 1", "1.5")),
    ({("decoder_evaluation", "choice_tasks"): []}, ("'decoder_evaluation.choice_tasks'", "at least 1")),
    ({("decoder_evaluation", "tasks"): ["arc"]}, ("unknown key 'decoder_evaluation.tasks'", "choice_tasks")),
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
    assert "is not UTF-8" in sentence_for(path)


def test_a_nested_key_given_twice(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("training:\n  steps: 3\n  batch_size: 4\n  steps: 5\n")
    assert "the key 'steps' is given twice" in sentence_for(path)


def test_a_missing_file_and_a_folder(tmp_path):
    assert "There is no profile file" in sentence_for(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "is no regular file" in sentence_for(tmp_path / "folder.yaml")


@pytest.mark.parametrize("name", ["Laptop", "smok", "", "schema"])
def test_an_unknown_profile_names_the_known_ones(name):
    with pytest.raises(UsageError, match="smoke, laptop, workstation, gpu, paper") as caught:
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


def methods_of(runs) -> set[tuple]:
    return {(group.method, group.variant, group.lora_alpha, group.rank_stabilised) for group in runs}


def ranks_of(runs) -> set[int]:
    return {r for group in runs if group.method == "lora" for r in group.learning_rate}


def test_smoke_and_laptop_differ_in_scale_alone():
    """The same experiments on the same tasks with the same kinds of LoRA, so that smoke proves the laptop's cells run.

    The main experiments have the same groups of runs that a reader trains. Scale justifies this much and no more: the
    sequence has its first tasks only, its high ranks (two more chains of six tasks) are left to the laptop, alpha at a
    matched rate is tried one way round, and ranks are fewer, VeRA's smaller.
    """
    smoke, laptop = load_profile("smoke"), load_profile("laptop")
    assert (smoke.encoder, smoke.sources) == (laptop.encoder, laptop.sources)
    assert list(smoke.experiments) == list(laptop.experiments)
    assert smoke.shown_experiments == laptop.shown_experiments
    for name in laptop.shown_experiments:
        mine, theirs = smoke.experiments[name], laptop.experiments[name]
        large_runs = [group for group in theirs.runs if not group.reference_only]
        assert [(group.method, group.lora_alpha, group.rank_stabilised) for group in mine.runs] == \
               [(group.method, group.lora_alpha, group.rank_stabilised) for group in large_runs]
        for small, large in zip(mine.runs, large_runs, strict=True):
            if small.method == "lora":
                assert set(small.learning_rate) <= set(large.learning_rate)
    anywhere = set().union(*(ranks_of(experiment.runs) for experiment in laptop.experiments.values()))
    for name, theirs in laptop.experiments.items():
        mine = smoke.experiments[name]
        assert (mine.task, mine.side) == (theirs.task, theirs.side)
        if name == "matched_alpha":
            assert methods_of(mine.runs) < methods_of(theirs.runs)
        else:
            assert methods_of(mine.runs) == methods_of(theirs.runs), name
        assert ranks_of(mine.runs) <= anywhere
        assert any(group.train_rows for group in mine.runs) == any(group.train_rows for group in theirs.runs)
        assert not any(group.reference_only or group.first_seed_only for group in mine.runs)  # smoke has no reference
    readers = {name: one for name, one in laptop.decoder_experiments.items() if not one.reference_only}
    assert list(smoke.decoder_experiments) == list(readers)
    for name, theirs in readers.items():
        mine = smoke.decoder_experiments[name]
        assert (mine.task, mine.base, bool(mine.durations)) == (theirs.task, theirs.base, bool(theirs.durations)), name
    assert (smoke.continued, smoke.decoder_evaluation.choice_tasks) == (
        laptop.continued, laptop.decoder_evaluation.choice_tasks)
    assert laptop.continual.tasks[:len(smoke.continual.tasks)] == smoke.continual.tasks
    for profile in (smoke, laptop):
        decoders = {experiment.task for experiment in profile.decoder_experiments.values()}
        assert set(profile.tasks) == set(profile.continual.tasks) | decoders
    assert methods_of(smoke.continual.runs) <= methods_of(laptop.continual.runs)
    assert ranks_of(smoke.continual.runs) <= ranks_of(laptop.continual.runs)
    assert smoke.intervention.experiment == laptop.intervention.experiment
    assert {run.r for run in smoke.intervention.runs} == {run.r for run in laptop.intervention.runs}
    for kind, values in smoke.intervention.lambdas:
        assert values and set(values) <= set(getattr(laptop.intervention.reference_lambdas, kind)), kind
    for kind, values in laptop.intervention.lambdas:  # what is drawn of the reader's has its place in the reference
        assert values and set(values) <= set(getattr(laptop.intervention.reference_lambdas, kind)), kind
    for field in ("k", "epsilon", "showcase_rank"):
        assert getattr(smoke.spectra, field) == getattr(laptop.spectra, field)
    assert set(smoke.spectra.epsilons) <= set(laptop.spectra.epsilons)
    assert smoke.pseudo_loss.corpus == laptop.pseudo_loss.corpus
    for name in ("steps", "batch_size", "checkpoints"):
        assert getattr(smoke.training, name) < getattr(laptop.training, name)
    for name in ("steps", "probe_train_rows", "probe_test_rows"):
        assert getattr(smoke.continual, name) < getattr(laptop.continual, name)
    for name, sizes in smoke.tasks.items():
        assert sizes.test_rows and sizes.max_length <= laptop.tasks[name].max_length
        assert sizes.train_rows or TASKS[name].kind == "text", name  # a run on a text takes the blocks that it needs


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_the_intervention_scales_runs_that_its_experiment_trains(name):
    """A rank or rate that no run has would end a notebook with an error after all the training; and a claim about it
    needs three seeds. Each has a run at half its rate beside it: the control that a reviewer asked for.
    """
    profile = load_profile(name)
    groups = [group for group in profile.experiments[profile.intervention.experiment].runs
              if group.method == "lora" and group.variant == "lora" and not group.first_seed_only]
    pairs = {pair for group in groups for pair in group.rates}
    for chosen in profile.intervention.runs:
        assert not chosen.first_seed_only and (chosen.r, chosen.learning_rate) in pairs, chosen
        assert (chosen.r, chosen.learning_rate / 2) in pairs or profile.profile == "smoke", chosen


LORA = {"method": "lora", "lora_alpha": "2r", "learning_rate": {8: 1e-3}}


@pytest.mark.parametrize("place", [("experiments", "second"), ("continual",)], ids=lambda place: place[-1])
@pytest.mark.parametrize("twice", [LORA, LORA | {"lora_alpha": 16}, LORA | {"checkpoints": 1},
                                   LORA | {"learning_rate": {1: 1e-3, 8: 1e-3}}],
                         ids=["the same", "2r in numbers", "fewer checkpoints", "among others"])
def test_a_run_named_twice_is_refused(variant, place, twice):
    """The paper profile's sequence had rank 4 under alpha = 2r and under alpha = 8, which are one: that chain stood in
    the table twice, and its summary failed after all of the training.
    """
    sentence = sentence_for(variant({(*place, "runs"): [LORA, twice]}))
    assert f"'{'.'.join(place)}.runs'" in sentence
    assert "rank 8, alpha 16 at learning rate 0.001 is named twice; a run must be there once" in sentence


def test_runs_that_differ_are_no_run_twice(variant):
    """Another rate, alpha, scaling, variant or amount of data is another run; full fine-tuning's rates likewise."""
    runs = [LORA, LORA | {"learning_rate": {8: 2e-3}}, LORA | {"lora_alpha": 8}, LORA | {"rank_stabilised": True},
            LORA | {"variant": "pissa"}, LORA | {"train_rows": [600, 1200]}, LORA | {"train_rows": [2400]},
            {"method": "full", "learning_rate": 1e-4}, {"method": "full", "learning_rate": 2e-4}]
    assert len(load_profile(variant({("experiments", "second", "runs"): runs})).experiments["second"].runs) == len(runs)
    full = {"method": "full", "learning_rate": 1e-4}
    assert "full at learning rate 0.0001 is named twice" in sentence_for(
        variant({("experiments", "second", "runs"): [full, full]}))


# --- which runs a profile stands for ---------------------------------------------------------------------------------

FULL = {"method": "full", "learning_rate": 1e-4}
ONLY_REFERENCE = {"method": "lora", "lora_alpha": 8, "learning_rate": {1: 1e-3, 4: 2e-3}, "reference_only": True}
FIRST_SEED = {"method": "lora", "lora_alpha": "2r", "learning_rate": {64: 1e-4}, "first_seed_only": True}
BOTH = {"method": "lora", "variant": "vera", "learning_rate": {256: 1e-2}, "reference_only": True,
        "first_seed_only": True, "checkpoints": 1}


@pytest.fixture
def planned(variant, monkeypatch):
    """A laptop profile with chosen runs whose base model is nowhere fetched."""
    monkeypatch.setattr(spec_module, "resolve", lambda reference: BaseModel("base", Path("nowhere"), "revision"))

    def load(changes: dict) -> Profile:
        return load_profile(variant(changes))

    return load


def seen(specs) -> list[tuple]:
    return [(spec.seed, spec.method.label, spec.learning_rate) for spec in specs]


def test_a_reader_trains_no_reference_runs_and_one_seed_the_first_seeds(planned):
    """`reference_only` waits for the reference, `first_seed_only` for the first of the seeds given, whatever it is."""
    profile = planned({("experiments", "second", "runs"): [FULL, ONLY_REFERENCE, FIRST_SEED, BOTH]})
    assert seen(run_specs(profile, "second", (7, 3))) == [
        (7, "full", 1e-4), (7, "LoRA r=64", 1e-4), (3, "full", 1e-4)]
    whole = run_specs(profile.with_reference_runs(), "second", (7, 3))
    assert seen(whole) == [
        (7, "full", 1e-4), (7, "LoRA r=1", 1e-3), (7, "LoRA r=4", 2e-3), (7, "LoRA r=64", 1e-4),
        (7, "VeRA r=256", 1e-2), (3, "full", 1e-4), (3, "LoRA r=1", 1e-3), (3, "LoRA r=4", 2e-3)]
    assert [(spec.method.lora_alpha, spec.checkpoints) for spec in whole[1:5]] == [(8, 5), (8, 5), (128, 5), (None, 1)]
    assert len({spec.key for spec in whole}) == len(whole)
    assert {spec.seed for spec in run_specs(profile, "second")} == set(profile.seeds)
    assert not profile.whole and profile.with_reference_runs().whole
    assert profile.with_reference_runs().model_copy(update={"whole": False}) == profile


def test_reference_runs_of_one_kind_are_no_others(planned):
    """With the reference's runs a reader's runs are still there, under the same keys: nothing is trained twice."""
    profile = load_profile("laptop")
    planned({})  # no base is fetched
    for name in profile.experiments:
        own, whole = ({spec.key for spec in run_specs(one, name, profile.reference_seeds)}
                      for one in (profile, profile.with_reference_runs()))
        assert own <= whole, name


def test_beside_a_scaled_run_stand_those_at_half_and_a_quarter_of_its_rate(planned):
    """The reader's experiment has the half alone, and not the named run, which is made all the same; neither an eighth,
    nor another rank's or alpha's run stands beside it. The reference has r = 1 as well, with the first seed.
    """
    def lora(rates: dict, **more) -> dict:
        return {"method": "lora", "lora_alpha": "2r", "learning_rate": rates, **more}

    profile = planned({
        ("experiments", "grid", "runs"): [
            lora({8: [1e-3]}), lora({8: [5e-4, 2e-3, 2.5e-4], 1: [2e-3, 4e-3]}, reference_only=True),
            lora({8: [1e-3]}, lora_alpha=8)],
        ("intervention", "runs"): [{"r": 8, "learning_rate": 2e-3},
                                   {"r": 1, "learning_rate": 4e-3, "reference_only": True, "first_seed_only": True}]})
    assert seen(intervention_specs(profile, (3, 7))) == [
        (seed, "LoRA r=8", rate) for seed in (3, 7) for rate in (2e-3, 1e-3)]
    whole = intervention_specs(profile.with_reference_runs(), (3, 7))
    assert sorted(seen(whole)) == sorted(
        [(seed, "LoRA r=8", rate) for seed in (3, 7) for rate in (2e-3, 1e-3, 5e-4)]
        + [(3, "LoRA r=1", rate) for rate in (4e-3, 2e-3)])
    assert {spec.method.lora_alpha for spec in whole} == {16, 2}
    assert {spec.key for spec in whole} <= {spec.key for spec in run_specs(
        profile.with_reference_runs(), "grid", (3, 7))}, "they are the experiment's own runs, trained once"


def test_an_experiment_for_the_reference_is_trained_by_no_reader(planned):
    """The laptop's matched_alpha and rank_stabilised are `reference_only` as a whole: no reader waits for them."""
    planned({})
    profile = load_profile("laptop")
    assert profile.experiments["matched_alpha"].reference_only
    assert run_specs(profile.with_reference_runs(), "matched_alpha") and run_specs(profile, "matched_alpha") == []


def test_amounts_of_data_are_runs_of_their_own(planned):
    """One run per number of rows, each row seen once where the profile counts in steps; else as often as the whole."""
    group = {"method": "lora", "lora_alpha": "2r", "learning_rate": {8: 1e-3}, "train_rows": [600, 1200]}
    found = run_specs(planned({("experiments", "second", "runs"): [FULL, group]}), "second")
    assert [(spec.sizes.train_rows, spec.steps, spec.epochs) for spec in found] == [
        (None, 100, None), (600, None, 1.0), (1200, None, 1.0)]
    assert {spec.sizes.max_length for spec in found} == {48} and len({spec.key for spec in found}) == 3
    by_epochs = planned({("experiments", "ranks", "runs", 1, "train_rows"): [600], ("training", "steps"): ...,
                         ("training", "epochs"): 3.0})
    assert {(spec.sizes.train_rows, spec.steps, spec.epochs) for spec in run_specs(by_epochs, "ranks")} == {
        (None, None, 3.0), (600, None, 3.0)}


def test_further_seeds_make_the_groups_that_name_them_and_no_other(planned):
    """All of the reference's seeds bring them along; a reader, or one sitting with one seed, has what was asked for."""
    profile = planned({("experiments", "second", "runs"): [FULL, ONLY_REFERENCE | {"further_seeds": [5, 4]}]})
    whole = profile.with_reference_runs()
    own = [(seed, name, rate) for seed in (0, 1, 2) for name, rate in (
        ("full", 1e-4), ("LoRA r=1", 1e-3), ("LoRA r=4", 2e-3))]
    further = [(seed, name, rate) for seed in (4, 5) for name, rate in (("LoRA r=1", 1e-3), ("LoRA r=4", 2e-3))]
    assert seen(run_specs(whole, "second", (0, 1, 2))) == own + further
    assert seen(run_specs(whole, "second", (1,))) == [one for one in own if one[0] == 1]
    assert seen(run_specs(whole, "second", (4,))) == further[:2]
    assert {one[0] for one in seen(run_specs(profile, "second"))} == set(profile.seeds)
    assert {one[0] for one in seen(run_specs(whole, "ranks", (0, 1, 2)))} == {0, 1, 2}


@pytest.mark.parametrize("seed", [0, 3])
def test_further_seeds_are_none_that_the_profile_has(variant, seed):
    with pytest.raises(UsageError, match=f"'second' names the seed {seed} among its 'further_seeds'"):
        load_profile(variant({("experiments", "second", "runs"): [FULL | {"further_seeds": [4, seed]}]}))


def test_a_sequence_is_a_chain_per_seed_and_method(planned):
    """One run per task in the order of the profile, each from the weights of its own chain's run before."""
    profile = planned({("continual", "tasks"): ["movies", "genre", "topics"], ("continual", "steps"): 60,
                       ("continual", "runs"): [FULL, ONLY_REFERENCE, FIRST_SEED],
                       ("continual", "reference_seeds"): None})
    chains = continual_specs(profile, (7, 3))
    assert [(chain[0].seed, chain[0].method.label) for chain in chains] == [(7, "full"), (7, "LoRA r=64"), (3, "full")]
    for chain in chains:
        assert [spec.task for spec in chain] == ["movies", "genre", "topics"]
        assert [spec.start for spec in chain] == [None, chain[0], chain[1]]
        assert {(spec.seed, spec.method, spec.learning_rate, spec.steps) for spec in chain} == {
            (chain[0].seed, chain[0].method, chain[0].learning_rate, 60)}
        assert [spec.sizes for spec in chain] == [profile.tasks[spec.task] for spec in chain]
    assert len({spec.key for chain in chains for spec in chain}) == 9
    assert [(chain[0].seed, chain[0].method.label) for chain in continual_specs(
        profile.with_reference_runs(), (7, 3))] == [
            (7, "full"), (7, "LoRA r=1"), (7, "LoRA r=4"), (7, "LoRA r=64"), (3, "full"), (3, "LoRA r=1"),
            (3, "LoRA r=4")]
    assert [chain[0].seed for chain in continual_specs(profile)] == [3, 3]  # the profile's own seeds


def test_a_sequence_may_have_fewer_reference_seeds(planned):
    """Chains are dear: with `reference_seeds` of their own the reference makes fewer; a reader's seeds stay."""
    profile = planned({("continual", "runs"): [FULL, FIRST_SEED], ("continual", "reference_seeds"): [1, 2]})
    whole = continual_specs(profile.with_reference_runs(), (0, 1, 2))
    assert [(chain[0].seed, chain[0].method.label) for chain in whole] == [(1, "full"), (1, "LoRA r=64"), (2, "full")]
    assert [chain[0].seed for chain in continual_specs(profile, (0, 2))] == [0, 0, 2]


def test_a_stage_depends_on_all_that_went_before(planned):
    """The same task after another one, or as the first, is another run; without `steps` a stage is the profile's."""
    runs = {("continual", "runs"): [FULL], ("continual", "steps"): ...}
    one, other = (continual_specs(planned(runs | {("continual", "tasks"): tasks}))[0]
                  for tasks in (["movies", "genre", "topics"], ["genre", "movies", "topics"]))
    assert one[2].task == other[2].task and one[2].key != other[2].key
    assert one[0].key != other[1].key and one[0].steps == 300


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


# --- the second paper's experiments ----------------------------------------------------------------------------------


def at_scale(*, width: int, keys: int, mlp: int, layers: int) -> list[tuple[str, int]]:
    """``attention`` or ``mlp`` and input plus output width of every tuned matrix of a Llama: r of them are trained."""
    attention = [("attention", both) for both in (2 * width, width + keys, width + keys, 2 * width)]
    return (attention + [("mlp", width + mlp)] * 3) * layers


def test_the_gpu_profiles_modules_are_compared_at_nearly_equal_parameters(planned):
    """Its comment gives the trained numbers a layer of SmolLM2-135M (576 wide, three key heads of 64, MLP 1536)."""
    planned({})
    comment = (Path(loader_module.__file__).parent / "gpu.yaml").read_text(encoding="utf-8")
    matrices, counts = at_scale(width=576, keys=192, mlp=1536, layers=1), []
    for spec in run_specs(load_profile("gpu"), "modules"):
        chosen = [both for part, both in matrices if spec.method.targets in ("all", part)]
        counts.append(spec.method.r * sum(chosen))
        assert f"{counts[-1]:,}" in comment, spec.method.label
    assert counts == [122_112, 122_880, 120_384]
    assert max(counts) / min(counts) < 1.03


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_decoder_run_is_there_once_in_its_experiment(planned, name):
    """Two groups that become one run, as a batch of the usual size may, would give every table that run twice."""
    planned({})
    profile = load_profile(name).with_reference_runs()
    for experiment in profile.decoder_experiments:
        keys = [spec.key for spec in run_specs(profile, experiment)]
        assert keys and len(set(keys)) == len(keys), experiment


def sizes_of(spec) -> tuple:
    """Batch, batches to a step, durations or steps, and tokens that the longest run sees."""
    return (spec.batch_size, spec.gradient_accumulation, spec.durations or spec.steps,
            spec.steps * spec.batch_size * spec.gradient_accumulation * spec.sizes.max_length)


@pytest.mark.parametrize("name, experiment, expected", [
    ("smoke", "code", (8, 1, (5, 10), 2_560)),
    ("laptop", "code", (16, 1, (15, 30, 60, 120, 240), 491_520)),
    ("laptop", "batches", (64, 1, (20,), 163_840)),
    ("gpu", "code", (4, 4, (250, 500, 1000, 2000, 4000), 32_768_000)),
    ("gpu", "batches", (16, 4, (125,), 4_096_000)),
    ("gpu", "instruction", (4, 4, 2500, 20_480_000)),
    ("paper", "code", (6, 32, (318, 636, 1272, 2543, 5086, 10172, 20345, 25431), 19_999_752_192)),
    ("paper", "mathematics", (6, 32, (318, 636, 1272, 2543, 5086, 10172, 20345, 25431), 19_999_752_192)),
    ("paper", "batches", (2, 32, (954,), 250_085_376)),
    ("paper", "instruction", (1, 192, 3088, 2_428_502_016)),
    ("paper", "instruction_mathematics", (1, 768, 8228, 6_470_762_496)),
])
def test_a_decoder_experiment_has_the_steps_batches_and_tokens_that_it_says(planned, monkeypatch, name, experiment,
                                                                            expected):
    """The paper's longest runs see 20B tokens, 192 sequences of 4,096 to a step; a large batch takes fewer steps."""
    planned({})
    monkeypatch.setattr(spec_module, "hardware", lambda: {"accelerator": None})
    profile = load_profile(name)
    specs = run_specs(profile, experiment)
    assert {sizes_of(spec) for spec in specs} == {expected}
    continued = profile.decoder_experiments[experiment].base == "continued"
    assert {spec.base for spec in specs} == {profile.continued if continued else profile.decoders[0].model}
    assert {spec.schedule for spec in specs} == {
        "constant_with_warmup" if profile.decoder_experiments[experiment].durations else profile.training.schedule}


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_the_readers_seed_is_none_of_the_references(name):
    profile = load_profile(name)
    assert not set(profile.seeds) & set(profile.reference_seeds)
