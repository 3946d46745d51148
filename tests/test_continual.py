"""Tasks in sequence: runs that start from runs, heads on frozen bodies, and the tables of notebook 08."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel

from utils.errors import CourseError, UsageError
from utils.evaluation.continual import null_forgetting, sequence_summary
from utils.evaluation.probe import INVERSE_PENALTY, first_token_states, head_accuracy
from utils.profiles import Profile, load_profile
from utils.profiles.schema import ModelReference, TaskSizes
from utils.reporting import runs as kit_runs
from utils.sources.models import resolve
from utils.spectra.base import base_spectrum
from utils.studies.continual import measure as continual_measure
from utils.training import store as store_module
from utils.training.checkpoints import Checkpoints, checkpoint_path
from utils.training.data import classification_data, evaluation_batches
from utils.training.spec import Method, RunSpec, continual_specs
from utils.training.store import Run, RunStore
from utils.training.targets import tuned_modules
from utils.training.weights import load_into

LORA = Method(kind="lora", r=4, lora_alpha=8)
FULL = Method(kind="full")


def build_spec(folder, **changes) -> RunSpec:
    reference = ModelReference(source="local", name=str(folder))
    return RunSpec(**{
        "base": reference, "base_revision": resolve(reference).revision, "task": "movies",
        "sizes": TaskSizes(train_rows=16, test_rows=16, max_length=24), "method": LORA, "learning_rate": 1e-2,
        "schedule": "linear", "warmup_fraction": 0.0, "steps": 4, "epochs": None, "batch_size": 4, "checkpoints": 1,
        "seed": 0} | changes)


@pytest.fixture
def spec(tiny_base):
    """A specification on the tiny base: 4 steps of 4 rows."""
    return lambda **changes: build_spec(tiny_base, **changes)


@pytest.fixture(scope="module")
def chains(tiny_base, tmp_path_factory):
    """A store with two-stage chains, LoRA of two scales and full fine-tuning, each by name; for tests that read."""
    store = RunStore(tmp_path_factory.mktemp("chains"))
    stages = {"lora": (LORA, Method(kind="lora", r=2, lora_alpha=8)), "full": (FULL, FULL), "lora, full": (LORA, FULL),
              "full, lora": (FULL, LORA), "pissa": (LORA, Method(kind="lora", r=4, lora_alpha=8, variant="pissa"))}
    made = {}
    for name, (first, second) in stages.items():
        start = build_spec(tiny_base, method=first)
        made[name] = store.get(build_spec(tiny_base, method=second, task="topics", start=start))
    return made


def trained_keys(patch) -> list[str]:
    """Keys of the runs that are trained from now on, in order."""
    seen, real = [], store_module.train

    def noted(spec, *arguments, **named):
        seen.append(spec.key)
        return real(spec, *arguments, **named)

    patch.setattr(store_module, "train", noted)
    return seen


# --- a run that starts from another ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_a_second_stages_matrices_are_the_base_and_both_updates(chains, name):
    """W0 + s1 B1 A1 + s2 B2 A2 by the stored tensors, and `factors` side by side say the same of W0.

    The two scales differ (2 and 4), so that a stage's factors taken at the other's scale would show.
    """
    run = chains[name]
    first, second = run.start.trained(), run.trained()
    base, tuned, factors = run.base_matrices(), run.tuned_matrices(), run.factors()
    for matrix, weight in base.items():
        parts = [stage.spec.method.scale * tensors[f"lora_B.{matrix}"] @ tensors[f"lora_A.{matrix}"]
                 for stage, tensors in ((run.start, first), (run, second))]
        assert all(part.norm() > 0 for part in parts)
        torch.testing.assert_close(tuned[matrix], weight + parts[0] + parts[1], rtol=0, atol=1e-6)
        b, a, scale = factors[matrix]
        torch.testing.assert_close(weight + scale * b @ a, tuned[matrix], rtol=0, atol=1e-6)
        assert b.shape[1] == a.shape[0] == {"lora": 4 + 2, "pissa": 4 + 8}[name]


@pytest.mark.parametrize("name", ["lora", "full", "lora, full", "full, lora", "pissa"])
def test_a_second_stage_goes_on_from_the_first_ones_weights(chains, name):
    """Its own update is small beside the first stage's; from W0 it would be missing half of itself."""
    run = chains[name]
    start, tuned, base = run.start.tuned_matrices(), run.tuned_matrices(), run.base_matrices()
    closer = sum((tuned[one] - start[one]).norm() < (tuned[one] - base[one]).norm() for one in base)
    assert closer >= 10 and any((start[one] - base[one]).norm() > 0 for one in base)
    assert run.start.start is None and run.start.spec == run.spec.start


def test_a_chain_with_full_fine_tuning_in_it_has_no_factors(chains):
    """Its update has full rank: factors of the last stage alone would be counted as the whole update."""
    assert {name: run.factors() is None for name, run in chains.items()} == {
        "lora": False, "full": True, "lora, full": True, "full, lora": True, "pissa": False}


@pytest.mark.parametrize("name", ["lora", "full", "lora, full", "full, lora", "pissa"])
def test_a_chains_reloaded_classifier_has_the_accuracy_that_was_recorded(chains, name):
    """What is stored is what was trained: matrices of the whole chain, head of the last stage."""
    from utils.training.metrics import accuracy, predict

    run = chains[name]
    _, test = classification_data("topics", run.spec.sizes, run.base.folder)
    model = run.classifier()
    assert model.config.num_labels == 5
    again = accuracy(*predict(model, evaluation_batches(test, run.base.folder)))
    assert again["accuracy"] == run.metrics()["accuracy"].iloc[-1]


def test_a_chain_is_trained_from_its_beginning_and_its_stages_once(tmp_path, spec, monkeypatch):
    """Only the last stage is asked for; its specification names the whole way to it.

    Two chains that share their first stage share the run, and asking again trains nothing.
    """
    store, seen = RunStore(tmp_path), trained_keys(monkeypatch)
    first = spec(steps=1)
    second = spec(task="topics", start=first, steps=1)
    third, other = (spec(task="continues", start=start, steps=1) for start in (second, first))
    run = store.get(third)
    assert seen == [first.key, second.key, third.key]
    assert RunSpec.model_validate(run.result["run"]["spec"]) == third and run.start.start.spec == first
    base, tuned = run.base_matrices(), run.tuned_matrices()
    for name, (b, a, scale) in run.factors().items():
        assert b.shape[1] == 12
        torch.testing.assert_close(tuned[name], base[name] + scale * b @ a, rtol=0, atol=1e-6)
    assert store.get(other).start.folder == run.start.start.folder
    assert seen == [first.key, second.key, third.key, other.key]
    store.get(third), store.get(first)
    assert len(seen) == 4 and run.start.start.result == store.get(first).result


def test_a_second_stage_cut_short_goes_on_to_the_same_numbers(tmp_path, spec, chains, monkeypatch):
    """Resumed in its middle, from the start's weights and not from W0; the finished first stage is not done again."""
    chosen, store = chains["lora"].spec, RunStore(tmp_path)
    real = Checkpoints.on_step_end

    def stop(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 3 and self.folder.name == chosen.key:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            store.get(chosen)
    assert store.stored(chosen.start) and not store.stored(chosen)
    assert (store.folder / chosen.key / "resume" / "checkpoint-2").exists()
    seen = trained_keys(monkeypatch)
    tuned, whole = store.get(chosen).tuned_matrices(), chains["lora"].tuned_matrices()
    assert seen == [chosen.key]
    for name, weight in whole.items():
        torch.testing.assert_close(tuned[name], weight, rtol=0, atol=2e-6)


def poison(patch, method: Method) -> None:
    """Runs of a method end as diverged, with NaN in a tuned weight."""
    real = Checkpoints.on_step_end

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if (method.kind == "lora") == hasattr(model, "peft_config"):
            weight = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            with torch.no_grad():
                weight.view(-1)[0] = float("nan")
        return real(self, args, state, control, model=model, **kwargs)

    patch.setattr(Checkpoints, "on_step_end", on_step_end)


def test_a_diverged_start_is_one_sentence(tmp_path, spec, monkeypatch):
    """There are no weights to go on from; the sentence names the stage that broke and what to do."""
    store, chosen = RunStore(tmp_path), spec(task="topics", start=spec())
    with monkeypatch.context() as patch:
        poison(patch, LORA)
        with pytest.raises(CourseError) as caught:
            store.get(chosen)
    sentence = str(caught.value)
    assert "\n" not in sentence and f"starts from {spec().key} (LoRA r=4 on movies), which diverged" in sentence
    assert "lower its learning rate" in sentence and not (store.folder / chosen.key).exists()


# --- the summary of a sequence --------------------------------------------------------------------------------------


def test_a_sequence_summary_by_hand():
    """Three tasks, every number different, so that a row or column taken for its neighbour would show."""
    a = np.array([[0.50, 0.40, 0.30],   # the base
                  [0.90, 0.45, 0.25],   # after task 1
                  [0.95, 0.80, 0.35],   # after task 2: task 1 even better than just after its own training
                  [0.70, 0.60, 0.85]])  # after task 3
    found = sequence_summary(a)
    assert found["average_accuracy"] == pytest.approx((0.70 + 0.60 + 0.85) / 3)
    assert found["average_forgetting"] == pytest.approx(((0.95 - 0.70) + (0.80 - 0.60)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.70 - 0.90) + (0.60 - 0.80)) / 2)
    assert found["forward_transfer"] == pytest.approx(((0.45 - 0.40) + (0.35 - 0.30)) / 2)


def test_what_was_never_lost_is_no_forgetting():
    """A task that gets better to the end has negative forgetting; the best before training is not counted."""
    found = sequence_summary(np.array([[0.99, 0.5], [0.6, 0.5], [0.8, 0.9]]))
    assert found["average_forgetting"] == pytest.approx(-0.2) == pytest.approx(-found["backward_transfer"])


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (5, 3), (0, 0), (4,), (2, 3, 3)])
def test_a_matrix_of_another_shape_is_one_sentence(shape):
    """Without the base's row every number would be read one stage too late."""
    with pytest.raises(UsageError, match=r"\(T \+ 1, T\) matrix .* has shape") as caught:
        sequence_summary(np.zeros(shape))
    assert "\n" not in str(caught.value)


def test_a_single_task_is_no_sequence():
    with pytest.raises(UsageError, match="two tasks or more"):
        sequence_summary(np.array([[0.5], [0.9]]))


def test_noise_alone_by_hand():
    """One test row that is right half of the time: of two stages the difference is -1, 0, 0 or 1.

    Of three stages the first task's best of two is 0.75 on average, a quarter above its last; the second has no choice.
    """
    two = null_forgetting(0.5, rows=1, stages=2, draws=20_000)
    shares = [float((two == value).mean()) for value in (-1, 0, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert null_forgetting(0.5, rows=1, stages=3, draws=20_000).mean() == pytest.approx(0.25 / 2, abs=0.02)
    assert null_forgetting([0.5, 1.0, 0.5], rows=1, stages=3, draws=20_000).mean() == pytest.approx(0.25 / 2, abs=0.02)
    assert not null_forgetting([1.0, 0.0, 0.5], rows=1, stages=3).any(), "the last task has nothing to forget it"


def test_noise_alone_is_the_summary_of_matrices_of_noise():
    """Every draw is what the summary says of the same accuracies, the base's row in front; more rows, less noise."""
    drawn = np.random.default_rng(7).binomial(20, [0.9, 0.7, 0.5], size=(50, 3, 3)) / 20
    by_hand = [sequence_summary(np.vstack([np.zeros(3), one]))["average_forgetting"] for one in drawn]
    assert null_forgetting([0.9, 0.7, 0.5], rows=20, stages=3, draws=50, seed=7) == pytest.approx(by_hand)
    few, many = (null_forgetting(0.75, rows=rows, stages=6).mean() for rows in (50, 5000))
    assert few > 5 * many > 0


@pytest.mark.parametrize("wrong", [{"stages": 1, "rows": 200}, {"stages": 6, "rows": 0}])
def test_noise_needs_stages_and_rows(wrong):
    with pytest.raises(UsageError, match="two stages or more"):
        null_forgetting(0.5, **wrong)


# --- heads on frozen states -----------------------------------------------------------------------------------------


def states(rows: int, width: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_a_head_finds_a_direction_that_separates():
    """Separable in one direction of twenty, at any scale and offset of the features; other rows test it."""
    x = states(600, 20, seed=0)
    y = (x[:, 3] > 0).long()
    assert head_accuracy((x[:400], y[:400]), (x[400:], y[400:])) > 0.95
    scaled = x * torch.logspace(-3, 3, 20) + 7
    assert head_accuracy((scaled[:400], y[:400]), (scaled[400:], y[400:])) == pytest.approx(
        head_accuracy((x[:400], y[:400]), (x[400:], y[400:])), abs=0.01)


def test_a_head_finds_three_classes():
    centres = torch.eye(3, 8) * 6
    y = torch.arange(300) % 3
    x = centres[y] + states(300, 8, seed=1)
    assert head_accuracy((x[:200], y[:200]), (x[200:], y[200:])) > 0.95


def test_a_head_on_random_states_is_at_chance():
    """More features than a head can resist would fit the training rows; on others it answers by chance."""
    x, y = states(2400, 64, seed=2), torch.randint(0, 2, (2400,), generator=torch.Generator().manual_seed(3))
    assert 0.44 < head_accuracy((x[:400], y[:400]), (x[400:], y[400:])) < 0.56


def test_a_heads_answer_does_not_depend_on_the_order_of_rows_or_the_seed():
    """Convex, so one answer: no seed of its own stands between two stages of a sequence."""
    x, y = states(300, 16, seed=4), torch.arange(300) % 2
    x[:, 0] += y
    first = head_accuracy((x[:200], y[:200]), (x[200:], y[200:]))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state that scikit-learn might read
    assert head_accuracy((x[:200][order], y[:200][order]), (x[200:], y[200:])) == first


def test_features_that_never_change_do_no_harm():
    """A dead body's states are all the same: the head answers with the commonest label, and nothing divides by zero."""
    y = torch.tensor([0, 0, 0, 1, 1] * 10)
    assert head_accuracy((torch.ones(50, 4), y), (torch.ones(50, 4), y)) == 0.6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_states_that_are_not_finite_are_one_sentence(bad, side):
    """scikit-learn's own error is a page on imputers."""
    good = (states(8, 3, seed=0), torch.arange(8) % 2)
    broken = (good[0].clone().index_fill_(1, torch.tensor([1]), bad), good[1])
    with pytest.raises(CourseError, match="NaN or infinite.*diverged") as caught:
        head_accuracy(*((broken, good) if side == 0 else (good, broken)))
    assert "\n" not in str(caught.value)


def test_rows_of_one_label_are_one_sentence():
    x = states(6, 3, seed=0)
    with pytest.raises(CourseError, match="all 6 have label 2; take more rows"):
        head_accuracy((x, torch.full((6,), 2)), (x, torch.full((6,), 2)))


def test_no_rows_at_all_are_one_sentence():
    x, y = states(6, 3, seed=0), torch.arange(6) % 2
    for train, test in (((x[:0], y[:0]), (x, y)), ((x, y), (x[:0], y[:0]))):
        with pytest.raises(CourseError, match="no rows"):
            head_accuracy(train, test)


def test_a_body_in_training_mode_is_refused(tiny_base):
    body = AutoModel.from_pretrained(tiny_base, dtype=torch.float32).train()
    with pytest.raises(CourseError, match=r"call body.eval\(\) first"):
        first_token_states(body, [])


def test_states_are_those_of_the_first_token_whatever_the_padding(tiny_base):
    """Row by row the same as alone, with their labels in the same order, and without a gradient."""
    body = AutoModel.from_pretrained(tiny_base, dtype=torch.float32).eval()
    ids = torch.randint(5, 90, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    found, labels = first_token_states(body, [
        {"input_ids": ids[:2], "attention_mask": mask[:2], "labels": torch.tensor([1, 0])},
        {"input_ids": ids[2:], "attention_mask": mask[2:], "labels": torch.tensor([4])}])
    assert labels.tolist() == [1, 0, 4] and found.shape == (3, 32) and not found.requires_grad
    with torch.no_grad():
        alone = body(input_ids=ids[1:2, :6]).last_hidden_state[0, 0]
    torch.testing.assert_close(found[1], alone, rtol=1e-4, atol=1e-5)


# --- the tables -----------------------------------------------------------------------------------------------------

TASKS = ("continues", "movies", "topics")


def small_profile(folder, **continual) -> Profile:
    """The smoke profile on the tiny base: three tasks of 16 rows, two steps each."""
    content = json.loads(load_profile("smoke").model_dump_json())
    content["encoder"] = {"source": "local", "name": str(folder), "revision": None}
    content["pseudo_loss"] = {"corpus": "news", "passages": 2, "tokens": 12}
    content["training"] |= {"batch_size": 4, "checkpoints": 1}
    content["tasks"] = {name: {"train_rows": 16, "test_rows": 16, "max_length": 24} for name in content["tasks"]}
    content["continual"] = {
        "tasks": list(TASKS), "steps": 2, "probe_train_rows": 24, "probe_test_rows": 20,
        "runs": [{"method": "full", "learning_rate": 1e-3},
                 {"method": "lora", "lora_alpha": "2r", "learning_rate": {"2": 2e-2}}]} | continual
    return Profile.model_validate_json(json.dumps(content))


@pytest.fixture(scope="module")
def profile(tiny_base) -> Profile:
    return small_profile(tiny_base)


class InMemory:
    """Spectra of these small matrices, without the cache on disk."""

    spectrum = staticmethod(base_spectrum)


@pytest.fixture(scope="module")
def tables(profile, tmp_path_factory):
    """The real measurements over real (tiny) chains: accuracies, summaries, spectra, and the store they lie in."""
    store = RunStore(tmp_path_factory.mktemp("sequence"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continual_measure, "RunStore", lambda: store)
        patch.setattr(kit_runs, "base_spectra", lambda: InMemory)
        yield {"accuracies": continual_measure.sequence_accuracies(profile),
               "summaries": continual_measure.sequence_summaries(profile),
               "spectra": continual_measure.sequence_spectra(profile), "store": store,
               "runs": continual_measure.sequence_runs(profile)}


def test_the_chains_of_a_profile(profile, tables):
    """One per method, one run per task in the profile's order, each from the last; the first from the base."""
    specs = continual_specs(profile)
    assert [[spec.task for spec in chain] for chain in specs] == [list(TASKS)] * 2
    for chain in specs:
        assert [spec.start for spec in chain] == [None, *chain[:-1]]
        assert len({spec.method for spec in chain}) == 1 and {spec.steps for spec in chain} == {2}
    assert [[run.spec for run in chain] for chain in tables["runs"]] == specs
    assert len(continual_specs(profile, (0, 1, 2))) == 6


def test_accuracies_have_a_row_per_chain_stage_and_task(tables):
    table = tables["accuracies"]
    assert len(table) == 2 * 4 * 3 and not table.isna().any(axis=None)
    assert set(table.columns) == {
        "profile", "seed", "method", "r", "lora_alpha", "learning_rate", "run", "stage", "trained_task", "tested_task",
        "accuracy", "base_accuracy", "tested_place"}
    assert table["accuracy"].between(0, 1).all()
    for _, chain in table.groupby("method"):
        assert chain.groupby("stage")["trained_task"].first().tolist() == ["", *TASKS]
        assert (chain.groupby("stage")["trained_task"].nunique() == 1).all()
        assert sorted(zip(chain["stage"], chain["tested_task"], strict=True)) == [
            (stage, name) for stage in range(4) for name in TASKS]
        assert chain.groupby("tested_task")["tested_place"].first().to_dict() == {
            "continues": 1, "movies": 2, "topics": 3}


def test_stage_zero_is_the_base_for_every_chain(tables, profile):
    """The same accuracies whatever the method, those of the untouched base, and `base_accuracy` in every row."""
    table = tables["accuracies"]
    first = table[table["stage"] == 0].groupby("tested_task")["accuracy"].agg(["nunique", "first"])
    assert (first["nunique"] == 1).all()
    assert all(row.base_accuracy == first["first"][row.tested_task] for row in table.itertuples())
    body = AutoModel.from_pretrained(tables["runs"][0][0].base.folder, dtype=torch.float32).eval()
    for name in TASKS:
        assert by_hand(body, name, tables["runs"][0][0].base.folder) == pytest.approx(first["first"][name], abs=1e-9)


def by_hand(body, task: str, folder) -> float:
    """A head's accuracy written out: standardise by the training rows, fit, predict."""
    parts = []
    for part in classification_data(task, TaskSizes(train_rows=24, test_rows=20, max_length=24), folder):
        rows = [(body(input_ids=torch.tensor([row["input_ids"]]),
                      **({"token_type_ids": torch.tensor([row["token_type_ids"]])} if "token_type_ids" in row else {})
                      ).last_hidden_state[0, 0].detach().numpy(), row["labels"]) for row in part]
        parts.append((np.stack([state for state, _ in rows]), np.array([label for _, label in rows])))
    (x, y), (x_test, y_test) = parts
    mean, std = x.mean(0), x.std(0)
    head = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit((x - mean) / std, y)
    return float((head.predict((x_test - mean) / std) == y_test).mean())


def test_each_stage_is_tested_on_its_own_body(tables):
    """Every accuracy again, by a body built by hand from that stage's merged weights."""
    for chain in tables["runs"]:
        for stage, run in enumerate(chain, start=1):
            body = load_into(AutoModel.from_pretrained(run.base.folder, dtype=torch.float32).eval(),
                             run.tuned_matrices())
            rows = tables["accuracies"]
            rows = rows[(rows["run"] == run.spec.key) & (rows["stage"] == stage)]
            assert len(rows) == 3 and (rows["trained_task"] == run.spec.task).all()
            for row in rows.itertuples():
                assert row.accuracy == pytest.approx(by_hand(body, row.tested_task, run.base.folder), abs=0.051)


def test_summaries_follow_from_the_accuracies(tables):
    """One row per chain; the matrix by stage and by the order of training, not by the tasks' names."""
    assert len(tables["summaries"]) == 2
    for row in tables["summaries"].itertuples():
        part = tables["accuracies"][tables["accuracies"]["method"] == row.method]
        a = np.array([[part[(part["stage"] == stage) & (part["tested_task"] == name)]["accuracy"].item()
                       for name in TASKS] for stage in range(4)])
        for name, value in sequence_summary(a).items():
            assert getattr(row, name) == pytest.approx(value)


def test_spectra_are_measured_against_the_original_base(tables, profile):
    """Per stage the count by two plain SVDs of W0 and the chain's matrices, and the loss over the base's."""
    table = tables["spectra"]
    assert len(table) == 2 * 3 and (table["trained_task"] != "").all() and table["stage"].tolist() == [1, 2, 3] * 2
    before = kit_runs.base_pseudo_loss(tables["runs"][0][0].base, profile.pseudo_loss)
    assert (table["pseudo_loss"] - table["forgetting"]).tolist() == pytest.approx([before] * 6)
    counts = []
    for chain in tables["runs"]:
        base = chain[0].base_matrices()
        for run in chain:
            tuned, count = run.tuned_matrices(), 0
            for name, weight in base.items():
                u, u_base = (torch.linalg.svd(one.double(), full_matrices=False)[0] for one in (tuned[name], weight))
                cosines = (u_base.T @ u[:, :profile.spectra.k]).abs().amax(0)
                count += int((cosines < profile.spectra.epsilon).sum())
            counts.append(count)
    assert table["n_intruders"].tolist() == counts and max(counts) > 0


def test_kept_probes_are_read_again(tables, profile, monkeypatch):
    """Asking again trains nothing and fits no head, in another process neither; other rows are another measurement."""
    monkeypatch.setattr(continual_measure, "RunStore", lambda: RunStore(tables["store"].folder))
    monkeypatch.setattr(store_module, "train", lambda *_, **__: pytest.fail("trained again"))
    continual_measure._base_accuracies.cache_clear()
    fitted, real = [], continual_measure.head_accuracy
    monkeypatch.setattr(continual_measure, "head_accuracy", lambda *both: fitted.append(1) or real(*both))
    again = continual_measure.sequence_accuracies(profile)
    assert not fitted
    pd.testing.assert_frame_equal(again, tables["accuracies"])
    pd.testing.assert_frame_equal(continual_measure.sequence_summaries(profile), tables["summaries"])
    content = json.loads(profile.model_dump_json())
    content["continual"]["probe_test_rows"] = 19
    continual_measure.sequence_accuracies(Profile.model_validate_json(json.dumps(content)))
    assert len(fitted) == 3 + 6 * 3, "the base once for both chains, and every stage"


def planted_run(folder, spec: RunSpec, base, matrices: dict, start: Run | None) -> Run:
    """A finished full fine-tuning run with chosen matrices, and nothing trained."""
    path = checkpoint_path(folder, spec.steps)
    path.parent.mkdir(parents=True)
    save_file({f"weight.{name}": tensor.contiguous() for name, tensor in matrices.items()}, path)
    return Run(spec, folder, base, {"run": {"status": "done"}, "measured": {"metrics": [{"step": spec.steps}]}}, start)


def test_a_known_body_is_tested_at_its_own_stage(tiny_base, tmp_path, monkeypatch):
    """Stage 1 is a dead body (every matrix zero: all texts alike), stage 2 the base itself, stage 3 dead again.

    A dead body's head can only answer with the commonest label; a stage shifted by one, or a body that keeps
    matrices of the stage before, would show.
    """
    # 21 rows train each head, so that no two labels of two are equally common.
    profile = small_profile(tiny_base, probe_train_rows=21, runs=[{"method": "full", "learning_rate": 1e-3}])
    base = resolve(profile.encoder)
    matrices = {name: module.weight.detach().clone()
                for name, module in tuned_modules(AutoModel.from_pretrained(tiny_base, dtype=torch.float32)).items()}
    dead = {name: torch.zeros_like(weight) for name, weight in matrices.items()}
    chain: list[Run] = []
    for place, (spec, body) in enumerate(zip(continual_specs(profile)[0], (dead, matrices, dead), strict=True)):
        chain.append(planted_run(tmp_path / str(place), spec, base, body, chain[-1] if chain else None))
    monkeypatch.setattr(continual_measure, "sequence_runs", lambda *_: [chain])
    table = continual_measure.sequence_accuracies(profile).set_index(["stage", "tested_task"])["accuracy"]
    for name in TASKS:
        train, test = classification_data(name, continual_measure.probe_sizes(profile)[name], base.folder)
        counts = np.bincount(train["labels"])
        commonest = np.flatnonzero(counts == counts.max())
        shares = [float(np.mean(np.array(test["labels"]) == label)) for label in commonest]
        assert table[1, name] in shares and table[3, name] == table[1, name]
        assert table[2, name] == table[0, name], "stage 2 is the base"
    assert any(table[1, name] != table[0, name] for name in TASKS), "the dead body is as good as the base"


def test_a_diverged_chain_is_left_out_whole_and_named(tiny_base, tmp_path, monkeypatch, capsys):
    """What would follow starts from no weights; the other chain's rows stay."""
    profile, store = small_profile(tiny_base, steps=1, tasks=TASKS[:2]), RunStore(tmp_path)
    monkeypatch.setattr(continual_measure, "RunStore", lambda: store)
    with monkeypatch.context() as patch:
        poison(patch, LORA)
        runs = continual_measure.sequence_runs(profile)
    assert [[run.spec.method.label for run in chain] for chain in runs] == [["full"] * 2]
    said = capsys.readouterr().out
    assert (f"LoRA r=2, seed {profile.seeds[0]}: diverged on continues (stage 1), the whole sequence is left out"
            in said)
    lora = {"method": "lora", "lora_alpha": "2r", "learning_rate": {"2": 2e-2}}
    only = small_profile(tiny_base, steps=1, tasks=TASKS[:2], runs=[lora])
    with pytest.raises(CourseError, match="every sequence .* diverged") as caught:
        continual_measure.sequence_accuracies(only)
    assert "\n" not in str(caught.value)


def test_seeds_that_the_sequence_is_not_made_for_give_empty_tables(tiny_base, tmp_path, monkeypatch):
    """Reference results may name fewer seeds for the sequences; asked for others, there is nothing, and no error."""
    profile = small_profile(tiny_base, reference_seeds=[3]).with_reference_runs()
    monkeypatch.setattr(continual_measure, "RunStore", lambda: RunStore(tmp_path))
    for table in (continual_measure.sequence_accuracies, continual_measure.sequence_summaries,
                  continual_measure.sequence_spectra):
        assert table(profile, (0, 1)).empty
