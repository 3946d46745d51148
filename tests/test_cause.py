"""Interventions on planted intruders, where every answer is known before: a model, and whole tables."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from planted_intruders import direction, gaussian, planted_update
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from utils.errors import CourseError, UsageError
from utils.evaluation.pseudo import corpus_loss, pseudo_loss
from utils.profiles import Profile, load_profile
from utils.profiles.schema import ModelReference, TaskSizes
from utils.reporting.items import passage_losses, right_answers
from utils.sources.corpora import pretraining_passages
from utils.sources.models import resolve
from utils.spectra import Pair
from utils.spectra.base import base_spectrum
from utils.spectra.intervention import Directions, leading_directions, neighbour, scaled, shrunk
from utils.studies.cause import changed as cause_changed
from utils.studies.cause import measure as cause_measure
from utils.training.checkpoints import checkpoint_path
from utils.training.data import classification_data, evaluation_batches, tokenizer_of
from utils.training.metrics import accuracy, predict
from utils.training.mitigation import REDUCED, as_peft_model, head_accuracies, mitigated_by_peft
from utils.training.spec import Method, RunSpec
from utils.training.store import Run
from utils.training.targets import tuned_modules
from utils.training.weights import trained_tensors

K, EPSILON = 10, 0.5
TWO, ONE = "encoder.layer.0.intermediate.dense", "encoder.layer.1.attention.self.value"  # how many intruders each gets


# --- a run with planted intruders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plant(tiny_base, tmp_path_factory):
    """Builds a finished LoRA run, without training: chosen updates, and a head that is not the initial one."""
    reference = ModelReference(source="local", name=str(tiny_base))
    base = resolve(reference)

    def build(intruders: dict[str, int], *, accuracy: float = 0.9, strength: float = 2.0, **changes) -> Run:
        spec = RunSpec(**{
            "base": reference, "base_revision": base.revision, "task": "movies",
            "sizes": TaskSizes(train_rows=8, test_rows=16, max_length=16),
            "method": Method(kind="lora", r=2, lora_alpha=4), "learning_rate": 1e-2, "schedule": "linear",
            "warmup_fraction": 0.0, "steps": 8, "epochs": None, "batch_size": 4, "checkpoints": 1, "seed": 0} | changes)
        folder = tmp_path_factory.mktemp("planted")
        run = Run(spec, folder, base, {"run": {"status": "done"}, "measured": {"metrics": [
            {"step": 8, "accuracy": accuracy, "accuracy_se": 0.0, "n": 16, "file": "f", "sha256": "s"}]}})
        torch.manual_seed(spec.seed + 1)
        model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=2, dtype=torch.float32)
        tensors = {f"head.{name}": torch.randn_like(parameter) for name, parameter in model.named_parameters()
                   if "classifier" in name or "pooler" in name}
        for name, weight in run.base_matrices().items():
            b, a = planted_update(weight, intruders.get(name, 0), strength)
            scale = 1.0 if spec.method.kind == "full" else spec.method.scale
            tensors |= {f"lora_B.{name}": b / scale, f"lora_A.{name}": a}
        path = checkpoint_path(folder, 8)
        path.parent.mkdir(parents=True)
        save_file(tensors, path)
        return run

    return build


@pytest.fixture(scope="module")
def planted(plant) -> Run:
    return plant({TWO: 2, ONE: 1})


@pytest.fixture(scope="module")
def profile(tiny_base) -> Profile:
    """The smoke profile on the tiny base, its intervention naming the planted runs."""
    content = json.loads(load_profile("smoke").model_dump_json())
    content["encoder"] = {"source": "local", "name": str(tiny_base), "revision": None}
    content["pseudo_loss"] = {"corpus": "news", "passages": 2, "tokens": 12, "paired_passages": 4}
    content["spectra"]["k"], content["spectra"]["epsilon"] = K, EPSILON
    content["intervention"] = {
        "experiment": "learning_rates", "runs": [{"r": 2, "learning_rate": 1e-2}], "masked_every": 2,
        "lambdas": {"intruder": [0, 0.5, 2], "update_triplet": [0.5], "neighbour": [0], "random_direction": [0],
                    "whole_update": [0.5]}}
    return Profile.model_validate_json(json.dumps(content))


@pytest.fixture(autouse=True)
def _spectra_in_memory(monkeypatch):
    """Nothing of these small matrices is worth a place in the cache on disk."""
    class InMemory:
        spectrum = staticmethod(base_spectrum)

    monkeypatch.setattr(cause_changed, "base_spectra", lambda: InMemory)
    monkeypatch.setattr(cause_changed, "_EVALUATED", {})


@pytest.fixture
def given(monkeypatch):
    """The finished runs of the profile's experiment, instead of training them, and those at smaller rates."""
    def give(*runs: Run, smaller: dict[float, Run] | None = None) -> None:
        beside = smaller or {}
        monkeypatch.setattr(cause_measure, "experiment_runs", lambda *_: list(runs))
        monkeypatch.setattr(cause_measure, "intervention_runs", lambda *_: [*runs, *beside.values()])
        monkeypatch.setattr(cause_measure, "smaller_rates", lambda *_: beside)

    return give


def fresh(run: Run) -> Run:
    """The same run with nothing kept beside it."""
    for path in run.folder.glob("measurements/*"):
        path.unlink()
    return run


def test_the_planted_run_has_the_intruders_that_were_planted(planted, profile):
    found = cause_changed.run_directions(planted, profile)
    assert len(found) == 12
    assert {name: len(one.intruders) for name, one in found.items() if one.intruders} == {TWO: 2, ONE: 1}
    assert all(len(found[name].others) == K - len(found[name].intruders) for name in (TWO, ONE))


@pytest.mark.parametrize("kind, touched", [
    ("intruder", {TWO: 1, ONE: 1}), ("update triplet", {TWO: 1, ONE: 1}),
    ("all intruders", {TWO: 2, ONE: 1}), ("neighbour", {TWO: 1, ONE: 1}),
    ("random direction", {TWO: 1, ONE: 1})])
def test_only_matrices_with_an_intruder_are_touched(planted, profile, kind, touched):
    """The others keep their bits; each touched one moves by its directions' sigmas, and in no more directions."""
    directions, tuned = cause_changed.run_directions(planted, profile), planted.tuned_matrices()
    changed = cause_changed.changed_matrices(planted, directions, kind=kind, factor=0.25)
    assert list(changed) == list(tuned)
    for name, weight in changed.items():
        moved = weight - tuned[name]
        if name not in touched:
            assert torch.equal(weight, tuned[name]), name
            continue
        found = directions[name]
        picked = {"intruder": found.intruders[:1], "all intruders": found.intruders,
                  "update triplet": [found.of_update], "neighbour": [neighbour(found)],
                  "random direction": found.intruders[:1]}[kind]
        values = torch.linalg.svdvals(moved.double())
        expected = sorted((0.75 * one.sigma for one in picked), reverse=True)
        assert values[:len(expected)].tolist() == pytest.approx(expected, rel=1e-4)
        assert len(expected) == touched[name] and values[len(expected)] < 1e-4 * values[0]


def test_the_whole_update_touches_every_matrix(planted, profile):
    directions, base = cause_changed.run_directions(planted, profile), planted.base_matrices()
    half = cause_changed.changed_matrices(planted, directions, kind="whole update", factor=0.5)
    for name, weight in planted.tuned_matrices().items():
        torch.testing.assert_close(half[name], (base[name] + weight) / 2)
    none = cause_changed.changed_matrices(planted, directions, kind="whole update", factor=0.0)
    assert all(torch.equal(none[name], base[name]) for name in base), "lambda 0 of the whole update is the base"


@pytest.mark.parametrize("kind", [*cause_changed.KINDS[:-1], "all intruders"])
def test_lambda_one_is_exactly_the_run(planted, profile, kind):
    """W0 + (Wt - W0) is not Wt in float32: the row at 1 would not be the run to the last bit."""
    directions = cause_changed.run_directions(planted, profile)
    changed = cause_changed.changed_matrices(planted, directions, kind=kind, factor=1.0)
    assert all(torch.equal(changed[name], weight) for name, weight in planted.tuned_matrices().items())
    base, tuned = gaussian(30, 30, seed=1), 1e-3 * gaussian(30, 30, seed=2)
    assert not torch.equal(shrunk(base, tuned, 1.0), tuned), "no example of it"
    run = SimpleNamespace(spec=planted.spec, base_matrices=lambda: {"w": base}, tuned_matrices=lambda: {"w": tuned})
    same = cause_changed.changed_matrices(run, {"w": Directions([], [])}, kind=kind, factor=1.0)
    assert torch.equal(same["w"], tuned)


@pytest.mark.parametrize("kind", [*cause_changed.KINDS[:-1], "all intruders"])
def test_a_wrong_lambda_is_refused_for_every_kind(planted, profile, kind):
    """Without an intruder nothing is scaled, and NaN would have passed as a measurement of the run itself."""
    with pytest.raises(UsageError, match="lambda must lie"):
        none = {name: Directions([], []) for name in planted.base_matrices()}
        cause_changed.changed_matrices(planted, none, kind=kind, factor=math.nan)


def test_removing_all_intruders_leaves_what_the_definition_counts_as_none(planted, profile):
    """The planted blocks are trailing ones: with lambda 0 the leading vectors are W0's own again."""
    directions = cause_changed.run_directions(planted, profile)
    assert sum(len(one.intruders) for one in directions.values()) == 3
    base = planted.base_matrices()
    removed = cause_changed.changed_matrices(planted, directions, kind="all intruders", factor=0.0)
    for name in (TWO, ONE):
        after = leading_directions(Pair(name, lambda name=name: (base[name], removed[name])), k=5, epsilon=EPSILON)
        assert after.intruders == []


def test_the_random_control_of_a_run_is_one_direction_for_every_lambda(planted, profile):
    """A new direction at each lambda would draw a jagged line; another seed's run has another."""
    directions, tuned = cause_changed.run_directions(planted, profile), planted.tuned_matrices()
    moves = [cause_changed.changed_matrices(planted, directions, kind="random direction", factor=factor)[ONE]
             - tuned[ONE]
             for factor in (0.0, 0.5)]
    torch.testing.assert_close(moves[0], 2 * moves[1], rtol=0, atol=1e-5)
    assert directions[ONE].intruders and not torch.equal(
        *(cause_changed._of_kind(directions[ONE], "random direction", seed=seed)[0].u for seed in (1, 1_000_004)))


# --- order and counts of removal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("most, counts", [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 4]),
                                          (9, [0, 1, 2, 4, 8, 9])])
def test_doubling_by_hand(most, counts):
    assert cause_measure.doubling(most) == counts


def test_intruders_are_removed_the_strongest_first_over_all_matrices():
    """Neighbours follow the same matrices, each the nearest one still there, and end where a matrix has no more."""
    directions = {
        "a": Directions([direction(1, 9.0), direction(4, 3.0)], [direction(2, 8.0), direction(3, 4.0)]),
        "b": Directions([], [direction(1, 50.0)]),
        "c": Directions([direction(2, 5.0), direction(3, 4.0)], [direction(1, 6.0)]),
        "d": Directions([direction(1, 7.0)], [])}
    orders = cause_measure._removal_orders(directions)
    assert [(name, one.sigma) for name, one in orders["intruders"]] == [
        ("a", 9.0), ("d", 7.0), ("c", 5.0), ("c", 4.0), ("a", 3.0)]
    assert [(name, one.sigma) for name, one in orders["neighbours"]] == [("a", 8.0), ("c", 6.0), ("a", 4.0)]
    assert len(directions["a"].others) == 2, "the directions themselves must not be used up"


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch) -> list:
    """Every set of matrices that is measured from now on; a measurement is a number of its order."""
    measured = []

    def measure(self, matrices, *, answers=True):
        measured.append(matrices)
        answered = {"accuracy": 0.5 + len(measured) / 100, "right": "1:80"} if answers else {}
        return answered | {"pseudo_loss": 10.0 - len(measured) / 10, "passage_nats": "1.0"}

    monkeypatch.setattr(cause_measure.Changed, "measure", measure)
    monkeypatch.setattr(cause_measure, "_base_loss", lambda _: 5.0)
    return measured


def test_interventions_are_the_planted_runs_numbers(plant, planted, profile, given):
    """Accuracy and pseudo-loss at each lambda from models built by hand; the percentages follow from them."""
    half = plant({ONE: 1}, learning_rate=5e-3)
    given(fresh(planted), smaller={0.5: half})
    table = cause_measure.interventions(profile)
    assert len(table) == 4 + 3 * 2 + 3 + 2 and set(table["run"]) == {planted.spec.key}
    assert {(row.kind, row.changed) for row in table.itertuples()} == {
        ("intruder", 2), ("update triplet", 2), ("neighbour", 2), ("random direction", 2), ("whole update", 12),
        ("smaller rate", 12)}
    before, directions = loss_of(planted.base_matrices(), planted, profile), cause_changed.run_directions(
        planted, profile)
    _, test = classification_data("movies", planted.spec.sizes, planted.base.folder)
    batches = evaluation_batches(test, planted.base.folder)
    for row in table.itertuples():
        trained = half if (row.kind, row.factor) == ("smaller rate", 0.5) else planted
        matrices = trained.tuned_matrices() if row.kind == "smaller rate" else cause_changed.changed_matrices(
            planted, directions, kind=row.kind, factor=row.factor)
        share = accuracy(*predict(trained.classifier(matrices=matrices), batches))["accuracy"]
        loss = loss_of(matrices, planted, profile)
        assert row.accuracy == share and row.pseudo_loss == pytest.approx(loss, rel=1e-6)
        assert row.base_pseudo_loss == pytest.approx(before, rel=1e-6)
        assert row.forgetting == pytest.approx(loss - before, rel=1e-6, abs=1e-6)
    nothing = table[(table["kind"] == "whole update") & (table["factor"] == 0)].iloc[0]
    assert nothing["forgetting"] == pytest.approx(0, abs=1e-6), "lambda 0 of the whole update is the base"


def loss_of(matrices: dict, run: Run, profile: Profile) -> float:
    """Of every second token of the paired passages, as the profile has it."""
    texts = pretraining_passages("news", profile.pseudo_loss.paired_passages)
    return corpus_loss(pseudo_loss(run.masked_lm(matrices=matrices), tokenizer_of(run.base.folder), texts, tokens=12,
                                   every=2))


def test_what_is_compared_item_by_item_stands_beside_every_number_once(planted, profile, given):
    """The kinds share what the run itself answers; its items stand in the first row of lambda 1 and in no other."""
    given(fresh(planted))
    table = cause_measure.interventions(profile)
    have = table["passage_nats"] != ""
    assert (have == (table["right"] != "")).all() and have.sum() == 1 + 3 + 3 + 2
    assert table[have & (table["factor"] == 1)].index.tolist() == [0]
    for _, row in table[have].iterrows():
        assert right_answers(row).mean() == row["accuracy"] and len(right_answers(row)) == 16
        assert passage_losses(row).mean() == pytest.approx(row["pseudo_loss"], abs=1e-4)


def test_how_much_of_a_triplet_is_the_bases_own(planted, profile, given):
    """u'W0v / sigma: nothing of it in a planted intruder's trailing directions but a little, all in a neighbour."""
    given(fresh(planted))
    shares = cause_measure.interventions(profile).groupby("kind")["base_share"].first()
    base, directions = planted.base_matrices(), cause_changed.run_directions(planted, profile)
    first = {name: directions[name].intruders[0] for name in (TWO, ONE)}
    by_hand = [float(one.u @ base[name].double() @ one.v) / one.sigma for name, one in first.items()]
    assert shares["intruder"] == pytest.approx(sum(by_hand) / 2, rel=1e-9)
    assert shares["neighbour"] == pytest.approx(1, abs=0.05) and abs(shares["intruder"]) < 0.2
    assert math.isnan(shares["whole update"])


def test_the_papers_percentages_by_hand():
    """Accuracy relative to lambda 1; the loss by what was forgotten and, the caption's other reading, by itself."""
    table = pd.DataFrame({"factor": [0.0, 1.0, 2.0], "accuracy": [0.4, 0.8, 0.9], "pseudo_loss": [5.5, 6.0, 7.0],
                          "forgetting": [0.5, 1.0, 2.0]})
    found = cause_measure._percentages(table)
    assert found["accuracy_change"].tolist() == pytest.approx([-50, 0, 12.5])
    assert found["forgetting_change"].tolist() == pytest.approx([-50, 0, 100])
    assert found["loss_change"].tolist() == pytest.approx([-100 / 12, 0, 100 / 6])


def test_lambda_one_and_runs_without_intruders_need_no_measuring(plant, planted, profile, given, seen):
    """One measurement of the run, one for each lambda that changes something, none for the rest."""
    given(fresh(planted))
    table = cause_measure.interventions(profile)
    assert len(seen) == 1 + 3 + 1 + 1 + 1 + 2
    at_one = table[table["factor"] == 1]
    assert len(at_one) == 5 and (at_one[["accuracy", "pseudo_loss"]] == [0.51, 9.9]).all(axis=None)
    none = plant({})
    given(none)
    seen.clear()
    table = cause_measure.interventions(profile)
    assert len(seen) == 3, "the run, and the whole update at 0 and 0.5"
    rest = table[table["kind"] != "whole update"]
    assert (rest["changed"] == 0).all() and (rest["accuracy"] == 0.51).all()


def test_the_same_matrices_are_evaluated_once(planted, profile, given, monkeypatch):
    """Three measurements ask for the run itself, for all intruders removed and for the base."""
    given(fresh(planted))
    evaluated = []
    for name in ("_answers", "_losses"):
        monkeypatch.setattr(cause_changed.Changed, name, lambda self, _, name=name: (
            evaluated.append(name), {"accuracy": 0.5, "right": "1:80"} if name == "_answers" else
            {"pseudo_loss": 1.0, "passage_nats": "1.0"})[1])
    content = json.loads(profile.model_dump_json())
    content["spectra"]["epsilon"] = 0.4
    profile = Profile.model_validate_json(json.dumps(content)).with_reference_runs()
    cause_measure.interventions(profile)
    assert evaluated.count("_answers") == evaluated.count("_losses") == 9
    cause_measure.removals(profile)
    assert evaluated.count("_answers") == 9, "forgetting alone is asked of what is removed"
    assert evaluated.count("_losses") == 9 + 4, "one and all intruders removed, one and all neighbours"
    cause_measure.norm_matched(profile)
    assert evaluated.count("_losses") == 9 + 4 + 2, "kept at the smaller norm, and removed at the run's own"


def test_strengths_of_a_runs_own_are_all_that_is_measured_of_it(plant, profile, given, seen):
    """In the reference, too, and no intruder of it is removed."""
    content = json.loads(profile.model_dump_json())
    content["intervention"]["runs"][0]["lambdas"] = {"intruder": [0.7]}
    profile = Profile.model_validate_json(json.dumps(content)).with_reference_runs()
    given(plant({ONE: 1}))
    table = cause_measure.interventions(profile)
    assert table[["kind", "factor"]].values.tolist() == [["intruder", 1.0], ["intruder", 0.7], ["whole update", 1.0],
                                                         ["whole update", 0.0]]
    assert cause_measure.removals(profile).empty and cause_measure.norm_matched(profile).empty


def test_changed_says_how_many_matrices_have_a_neighbour(plant, profile, given, seen):
    """Where every examined vector is an intruder there is no neighbour, and the control changes nothing."""
    content = json.loads(profile.model_dump_json())
    content["spectra"]["k"] = 1
    given(plant({TWO: 2, ONE: 1}))
    table = cause_measure.interventions(Profile.model_validate_json(json.dumps(content)))
    counts = table.groupby("kind")["changed"].max().to_dict()
    assert counts == {"intruder": 2, "update triplet": 2, "neighbour": 0, "random direction": 2, "whole update": 12}


def test_every_run_keeps_its_own_table_under_the_measurements_name(plant, profile, given, seen):
    """The loop once reused `name` for the legend's label: from the second run on, all tables went into one file of
    that label, and `norm_matched` read what `removals` had left there."""
    content = json.loads(profile.model_dump_json())
    content["intervention"]["runs"] = [{"r": 2, "learning_rate": rate} for rate in (1e-2, 2e-2, 3e-2)]
    profile = Profile.model_validate_json(json.dumps(content))
    runs = [plant({ONE: 1}, learning_rate=rate) for rate in (1e-2, 2e-2, 3e-2)]
    given(*runs)
    removals, matched = cause_measure.removals(profile), cause_measure.norm_matched(profile)
    assert {"kind", "removed"} <= set(removals) and {"intruders", "norm"} <= set(matched)
    assert set(removals["method"]) == {"LoRA r=2, 0.01", "LoRA r=2, 0.02", "LoRA r=2, 0.03"}
    for run in runs:
        assert sorted(path.name for path in run.folder.glob("measurements/*")) == [
            "norm-matched.parquet", "removals.parquet"]
    count = len(seen)
    pd.testing.assert_frame_equal(cause_measure.removals(profile), removals)
    pd.testing.assert_frame_equal(cause_measure.norm_matched(profile), matched)
    assert len(seen) == count, "kept tables were measured again"


@pytest.mark.parametrize("change", [("spectra", "k", 9), ("spectra", "epsilon", 0.45),
                                    ("intervention", "masked_every", 3), ("pseudo_loss", "paired_passages", 3)])
def test_other_settings_are_another_measurement(planted, profile, given, seen, change):
    """What the numbers depend on is written beside them; with other settings they are measured anew."""
    given(fresh(planted))
    cause_measure.removals(profile)
    count = len(seen)
    content = json.loads(profile.model_dump_json())
    content[change[0]][change[1]] = change[2]
    cause_measure.removals(Profile.model_validate_json(json.dumps(content)))
    assert len(seen) == 2 * count


def test_removals_count_up_and_take_the_strongest_first(planted, profile, given, seen):
    """Rows 0, 1, 2, 3; after one the strongest is gone, after three all are; neighbours as many."""
    given(fresh(planted))
    reader = cause_measure.removals(profile)
    assert reader.groupby("kind")["removed"].agg(list).to_dict() == {"intruders": [0, 3], "neighbours": [0, 3]}
    seen.clear()
    table = cause_measure.removals(profile.with_reference_runs())
    assert table.groupby("kind")["removed"].agg(list).to_dict() == {"intruders": [0, 1, 2, 3],
                                                                     "neighbours": [0, 1, 2, 3]}
    tuned, directions = planted.tuned_matrices(), cause_changed.run_directions(planted, profile)
    assert all(torch.equal(seen[place][name], weight) for place in (0, 4) for name, weight in tuned.items())
    every = cause_changed.changed_matrices(planted, directions, kind="all intruders", factor=0.0)
    assert all(torch.equal(seen[3][name], weight) for name, weight in every.items())
    strongest = max(((name, one) for name, found in directions.items() for one in found.intruders),
                    key=lambda entry: entry[1].sigma)
    moved = [name for name in tuned if not torch.equal(seen[1][name], tuned[name])]
    assert moved == [strongest[0]]
    assert torch.equal(seen[1][moved[0]], scaled(tuned[moved[0]], strongest[1], 0.0))


def test_a_run_without_intruders_has_one_row_of_removals(plant, profile, given, seen):
    given(plant({}))
    assert cause_measure.removals(profile)[["kind", "removed"]].values.tolist() == [["intruders", 0], ["neighbours", 0]]


def test_norms_are_matched_matrix_by_matrix(planted, profile, given, seen):
    """Kept and removed have the same norm in every matrix, at the run's own and at what removing leaves."""
    given(fresh(planted))
    table = cause_measure.norm_matched(profile)
    assert table[["intruders", "norm"]].values.tolist() == [["kept", "own"], ["kept", "smaller"], ["removed", "own"],
                                                            ["removed", "smaller"]]
    base, tuned = planted.base_matrices(), planted.tuned_matrices()
    directions = cause_changed.run_directions(planted, profile)
    removed = cause_changed.changed_matrices(planted, directions, kind="all intruders", factor=0.0)
    size = [{name: (one[name] - base[name]).norm().item() for name in base} for one in (*seen, tuned, removed)]
    for name in base:
        assert size[0][name] == pytest.approx(size[4][name], rel=1e-4) == pytest.approx(size[2][name], rel=1e-4)
        assert size[1][name] == pytest.approx(size[5][name], rel=1e-4) == pytest.approx(size[3][name], rel=1e-4)
        torch.testing.assert_close(seen[0][name], tuned[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(seen[3][name], removed[name], rtol=0, atol=1e-5)
    relative = [sum(one[name] / base[name].norm().item() for name in base) / 12 for one in size[:4]]
    assert table["relative_norm"].tolist() == pytest.approx(relative, rel=1e-5)
    assert relative[0] > 1.2 * relative[1]


# --- which runs -----------------------------------------------------------------------------------------------------


def evidence(profile: Profile, **changes) -> Profile:
    content = json.loads(profile.model_dump_json()) | {"evidence": True}
    content["intervention"] |= changes
    return Profile.model_validate_json(json.dumps(content))


def test_a_run_that_did_not_learn_is_left_out_and_named(plant, profile, given, capsys):
    """Removing intruders from a model that answers by chance shows nothing; the best of its own seed decides."""
    good, fair, failed = (plant({}, accuracy=share, learning_rate=rate)
                          for share, rate in ((0.9, 1e-2), (0.81, 2e-2), (0.55, 3e-2)))
    other_seed = plant({}, accuracy=0.6, learning_rate=3e-2, seed=1)
    given(good, fair, failed, other_seed)
    chosen = evidence(profile, runs=[{"r": 2, "learning_rate": rate} for rate in (1e-2, 2e-2, 3e-2)])
    assert [run.spec.key for run in cause_measure.chosen_runs(chosen)] == [
        one.spec.key for one in (good, fair, other_seed)]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "learning rate 0.03, seed 0: accuracy 0.55" in said and "left out" in said
    given(good, failed)
    whole = chosen.model_copy(update={"evidence": False})
    assert len(cause_measure.chosen_runs(whole)) == 2, "smoke learns nothing at all"


def test_only_the_named_runs_are_chosen(plant, profile, given):
    """By rank and rate: those at smaller rates stand beside them and are not scaled."""
    runs = [plant({}, learning_rate=rate) for rate in (1e-2, 2e-2)]
    given(*runs, plant({}, method=Method(kind="full")))
    assert [run.spec.key for run in cause_measure.chosen_runs(evidence(profile))] == [runs[0].spec.key]


def test_no_chosen_run_is_one_sentence(plant, profile, given):
    given(plant({}, learning_rate=5e-2))
    with pytest.raises(CourseError, match="'learning_rates' .* no finished run .*r = 2 at 0.01") as caught:
        cause_measure.chosen_runs(profile)
    assert "\n" not in str(caught.value)


# --- PEFT's own mitigation ------------------------------------------------------------------------------------------


def batch() -> dict:
    ids = torch.randint(5, 90, (4, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def test_a_run_back_in_pefts_form_is_the_run(planted):
    """Its logits are the merged classifier's, its stored tensors the run's own, its head the trained one."""
    model = as_peft_model(planted)
    assert not model.training
    torch.testing.assert_close(model(**batch()).logits, planted.classifier()(**batch()).logits, rtol=1e-4, atol=1e-4)
    stored = planted.trained()
    again = trained_tensors(model, planted.spec.method.scale)
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)


def test_only_plain_lora_from_the_base_goes_back(plant, planted):
    """A variant's factors are not LoRA's, and a later stage's W0 is not its base: both would be another model."""
    refused = [plant({}, method=Method(kind="lora", r=2, lora_alpha=4, variant=variant))
               for variant in ("pissa", "b_only", "adalora")]
    later = plant({}, start=planted.spec)
    later.start = planted
    for run in (*refused, later):
        with pytest.raises(UsageError, match="only a plain LoRA run that starts from the base"):
            as_peft_model(run)


@pytest.mark.parametrize("factor", [0.0, 0.75, 1.0])
def test_pefts_mitigation_against_the_papers_formula(planted, factor):
    """W0 plus the best rank-2 part of Wt + (lambda - 1) sigma u v^T - W0, over all intruders: by plain SVDs.

    PEFT's documentation says the opposite of what it computes: 1 changes nothing, 0 removes.
    """
    theirs, model = mitigated_by_peft(planted, k=K, epsilon=EPSILON, factor=factor)
    base, tuned = planted.base_matrices(), planted.tuned_matrices()
    assert theirs.keys() == base.keys() and model.active_adapters == [REDUCED]
    for name, weight in tuned.items():
        u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
        u_base = torch.linalg.svd(base[name].double(), full_matrices=False)[0]
        foreign = [j for j in range(K) if (u_base.T @ u[:, j]).abs().max() < EPSILON]
        assert len(foreign) == {TWO: 2, ONE: 1}.get(name, 0)
        update = weight.double() - base[name].double()
        for j in foreign:
            update = update + (factor - 1) * s[j] * torch.outer(u[:, j], vt[j])
        if foreign:
            left, values, right = torch.linalg.svd(update, full_matrices=False)
            update = (left[:, :2] * values[:2]) @ right[:2]
        torch.testing.assert_close(theirs[name].double(), base[name] + update, rtol=0, atol=2e-5)
    if factor == 1:
        assert all((theirs[name] - tuned[name]).abs().max() < 2e-5 for name in tuned)


@torch.no_grad()
def test_pefts_model_comes_back_with_an_untrained_head_and_always_the_same_one(planted):
    """What notebook 07 says of PEFT: the new adapter brings a head of its own. It once differed from call to call,
    since the head under it was drawn anew each time, and the accuracy in the table with it."""
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = mitigated_by_peft(planted, k=K, epsilon=EPSILON, factor=0.75)[1]
        heads.append(model.base_model.model.classifier.modules_to_save[REDUCED].weight.clone())
        assert model.base_model.model.classifier.active_adapters == [REDUCED]
    assert not torch.allclose(heads[0], planted.trained()["head.classifier.weight"])
    assert torch.equal(*heads)


def test_untrained_heads_are_at_chance_and_none_is_the_one_that_was_trained_beside_the_body(planted):
    """With the run's own seed the untrained head is the very one that training started from, and scored .808.

    One head may separate two clusters by luck; the mean over many does not: it lies within three standard errors of
    chance. Each is worked out here from the features again.
    """
    _, model = mitigated_by_peft(planted, k=K, epsilon=EPSILON, factor=0.75)
    with torch.random.fork_rng():
        torch.manual_seed(planted.spec.seed)
        own = AutoModelForSequenceClassification.from_pretrained(planted.base.folder, num_labels=2)
    under = as_peft_model(planted).base_model.model.classifier.original_module.weight
    assert not torch.allclose(under, own.classifier.weight)
    labels = torch.tensor([0, 1, 0, 1])
    batches = [batch() | {"labels": labels}]
    found = head_accuracies(model, batches, seed=planted.spec.seed, heads=400)
    assert abs(found.mean() - 0.5) < 3 * found.std() / 400**0.5
    features = planted_features(model)
    for place in (0, 7):
        head = torch.randn(2, features.shape[1], generator=torch.Generator().manual_seed(planted.spec.seed + 1 + place))
        assert found[place] == ((features @ head.T).argmax(-1) == labels).double().mean()


@torch.no_grad()
def planted_features(model) -> torch.Tensor:
    """What the classifier's last layer is given, from the pooled output of the body."""
    inner = model.base_model.model
    return inner.bert(**batch()).pooler_output


def test_mitigations_set_pefts_way_beside_ours(planted, profile, given, monkeypatch):
    """Five rows; PEFT's merged factors lose a part, its model as left answers with an untrained head."""
    given(fresh(planted))
    table = cause_measure.mitigations(profile).set_index("way")
    assert list(table.index) == ["unchanged", "ours, first intruder", "ours, all intruders", "PEFT's factors",
                                 "PEFT's model, untrained heads"]
    assert table["distance"]["ours, all intruders"] == 0 < table["distance"]["PEFT's factors"]
    tuned, directions = planted.tuned_matrices(), cause_changed.run_directions(planted, profile)
    ours = cause_changed.changed_matrices(planted, directions, kind="all intruders", factor=0.5)
    apart = math.sqrt(sum((tuned[name] - ours[name]).double().square().sum().item() for name in ours)
                      / sum(weight.double().square().sum().item() for weight in ours.values()))
    assert table["distance"]["unchanged"] == pytest.approx(apart, rel=1e-6)
    heads = table.loc["PEFT's model, untrained heads"]
    assert math.isnan(heads["pseudo_loss"]) and heads["lowest"] <= heads["accuracy"] <= heads["highest"]
    assert tuned_modules(as_peft_model(planted)).keys() == ours.keys()
