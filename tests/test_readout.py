"""The readout refitted on a frozen body: the map by other means, planted turns and losses, and the measurement."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from utils.errors import CourseError
from utils.evaluation.pseudo import corpus_loss, pseudo_loss
from utils.evaluation.readout import affine_map, held_in_batches, masked_states, pseudo_losses
from utils.profiles import load_profile
from utils.profiles.schema import Profile
from utils.reporting import runs as kit_runs
from utils.reporting.runs import base_pseudo_loss, run_pseudo_loss
from utils.reporting.statistics import paired_interval
from utils.sources import corpora
from utils.sources.text import news_articles
from utils.studies.forgetting.refit import refitted_readouts
from utils.training.store import RunStore

TEXTS = corpora.pretraining_passages("news", 6)
HELD_IN = corpora.held_in_passages("news", 40, apart=6)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def base(tiny_base):
    return AutoModelForMaskedLM.from_pretrained(tiny_base, use_safetensors=True).eval()


@pytest.fixture(scope="module")
def batches(tokenizer):
    return held_in_batches(tokenizer, HELD_IN, blocks=80, length=32)


def changed(base, *, factor: float = 1.0, shift: float = 0.0, lost: int = 0):
    """The base with its last states stretched and shifted, and the first `lost` of their entries gone."""
    model = copy.deepcopy(base)
    norm = model.base_model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight.mul_(factor)
        norm.bias.mul_(factor).add_(shift)
        norm.weight[:lost], norm.bias[:lost] = 0, 0
    return model


# The map -----------------------------------------------------------------------------------------------------------


def test_a_planted_turn_is_undone():
    random = torch.Generator().manual_seed(0)
    targets = torch.randn(200, 12, generator=random, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=random, dtype=torch.float64)).Q
    found = affine_map(3 * targets @ turn + 5, targets, ridge=0)
    torch.testing.assert_close(found(3 * targets @ turn + 5), targets)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_map_is_the_ridge_regression_of_the_difference(ridge):
    """By numpy's least squares, with the penalty as further rows that ask for no change."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 6)) * 2 + 1, random.normal(size=(50, 6))
    found = affine_map(torch.from_numpy(x), torch.from_numpy(y), ridge=ridge)
    middle, aim = x.mean(0), y.mean(0)
    strength = np.sqrt(ridge * 50 * ((x - middle) ** 2).mean())
    rows = np.vstack([x - middle, strength * np.eye(6)])
    change = np.linalg.lstsq(rows, np.vstack([(y - aim) - (x - middle), np.zeros((6, 6))]), rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), np.eye(6) + change, atol=1e-10)
    np.testing.assert_allclose(found(torch.from_numpy(middle)).numpy(), aim, atol=1e-10)


@pytest.mark.parametrize("states, targets, word", [
    (torch.ones(3, 2), torch.ones(3, 3), "one shape"), (torch.ones(1, 2), torch.ones(1, 2), "two rows"),
    (torch.tensor([[1.0], [float("nan")]]), torch.ones(2, 1), "NaN or infinite")])
def test_what_no_map_is_fitted_on_is_refused(states, targets, word):
    with pytest.raises(CourseError, match=word):
        affine_map(states, targets)


# The text ----------------------------------------------------------------------------------------------------------


def test_held_in_text_is_masked_in_the_same_places_each_time(tokenizer, batches):
    again = held_in_batches(tokenizer, HELD_IN, blocks=80, length=32)
    assert sum(len(batch["input_ids"]) for batch in batches) == 80
    for batch, other in zip(batches, again, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in batch)
        chosen = batch["labels"] != -100
        assert (batch["input_ids"][chosen] == tokenizer.mask_token_id).all() and 0.1 < chosen.double().mean() < 0.2
        assert not set(batch["labels"][chosen].tolist()) & {tokenizer.cls_token_id, tokenizer.sep_token_id}


def test_text_without_a_block_is_refused(tokenizer):
    with pytest.raises(CourseError, match="not one block of 32 tokens"):
        held_in_batches(tokenizer, ["a film"], blocks=4, length=32)


def test_held_in_text_is_other_text(monkeypatch):
    """Of the news the base's own training text; of a corpus of the Hub whatever comes after what is judged."""
    articles = news_articles().set_index("text")["split"]
    whole = {" ".join(text.split()[:300]): split for text, split in articles.items()}
    assert {whole[text] for text in HELD_IN} == {"train"} and {whole[text] for text in TEXTS} == {"heldout"}
    monkeypatch.setattr(corpora.hub, "dataset_split", lambda name, config, split, *, rows, revision: {
        "text": [f"{name} {place}" for place in range(rows)]})
    judged, others = (corpora.pretraining_passages("roberta-pretraining", 20),
                      corpora.held_in_passages("roberta-pretraining", 30, apart=20))
    assert len(others) == 30 and not set(judged) & set(others)


# The readout -------------------------------------------------------------------------------------------------------


def losses(model, base, tokenizer, batches) -> dict[str, float]:
    fitted = affine_map(masked_states(model, batches), masked_states(base, batches), ridge=1e-6)
    found = pseudo_losses(model, tokenizer, TEXTS, tokens=24, readouts={"own": None, "refitted": fitted})
    return {name: corpus_loss(table) for name, table in found.items()}


def test_the_own_readout_is_the_pseudo_loss(base, tokenizer):
    found = pseudo_losses(base, tokenizer, TEXTS, tokens=24, readouts={"own": None})["own"]
    pd.testing.assert_frame_equal(found, pseudo_loss(base, tokenizer, TEXTS, tokens=24))


def test_the_bases_own_refitting_changes_nothing(base, tokenizer, batches):
    found = losses(base, base, tokenizer, batches)
    assert found["refitted"] == pytest.approx(found["own"], abs=1e-6)


def test_a_body_that_only_stretched_gets_all_back_and_one_that_lost_something_does_not(base, tokenizer, batches):
    before = corpus_loss(pseudo_loss(base, tokenizer, TEXTS, tokens=24))
    stretched = losses(changed(base, factor=-4.0, shift=2.0), base, tokenizer, batches)
    assert stretched["own"] != pytest.approx(before, abs=1e-3)
    assert stretched["refitted"] == pytest.approx(before, abs=1e-4)
    lost = losses(changed(base, lost=24), base, tokenizer, batches)
    assert abs(lost["refitted"] - before) > 10 * abs(stretched["refitted"] - before)


def test_a_body_in_training_is_refused(base, tokenizer, batches):
    model = copy.deepcopy(base).train()
    for call in (lambda: masked_states(model, batches),
                 lambda: pseudo_losses(model, tokenizer, TEXTS, tokens=24, readouts={"own": None})):
        with pytest.raises(CourseError, match=r"model\.eval\(\)"):
            call()


# The interval ------------------------------------------------------------------------------------------------------


def test_the_interval_is_about_four_standard_errors_wide_and_pairs_passages():
    random = np.random.default_rng(0)
    tokens, hard = np.full(200, 20), random.normal(size=200) * 40
    difference = random.normal(size=200) * 6 + 8
    mean, low, high = paired_interval(hard + difference, hard, tokens)
    error = (difference / 20).std(ddof=1) / 200**0.5
    assert mean == pytest.approx(difference.sum() / tokens.sum()) and 3.4 < (high - low) / error < 4.4
    assert paired_interval(hard + difference, hard, tokens) == (mean, low, high), "equal calls, equal intervals"
    assert paired_interval(hard, hard, tokens) == (0, 0, 0) and np.isnan(paired_interval([3], [1], [2])[1])


def test_long_passages_weigh_more():
    assert paired_interval([10, 180], [10, 90], [10, 90])[0] == pytest.approx(0.9)


# The measurement ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profile(tiny_base) -> Profile:
    content = json.loads(load_profile("smoke").model_dump_json())
    content["encoder"] = {"source": "local", "name": str(tiny_base), "revision": None}
    content["pseudo_loss"] = {"corpus": "news", "passages": 5, "tokens": 16}
    content["readout"] = {"blocks": 60, "tokens": 32}
    content["training"] |= {"batch_size": 4, "checkpoints": 1}
    content["tasks"] = {name: {"train_rows": 16, "test_rows": 16, "max_length": 24} for name in content["tasks"]}
    return Profile.model_validate_json(json.dumps(content))


def test_every_run_of_the_second_task_is_split_into_readout_and_body(profile, tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    monkeypatch.setattr(kit_runs, "RunStore", lambda: store)
    table, paired = refitted_readouts(profile), profile.pseudo_loss.paired
    runs = {run.spec.key: run for run in kit_runs.experiment_runs(profile, "second")}
    assert set(table["run"]) == set(runs) and set(table["task"]) == {"topics"} and table["accuracy"].between(0, 1).all()
    for row in table.itertuples():
        run = runs[row.run]
        assert row.pseudo_loss == pytest.approx(run_pseudo_loss(run, paired), abs=1e-6)
        assert row.base_pseudo_loss == base_pseudo_loss(run.base, paired)
        assert row.readout + row.body == pytest.approx(row.forgetting, abs=1e-6)
        assert row.refitted_loss == pytest.approx(row.base_pseudo_loss + row.body, abs=1e-6)
        for part in ("forgetting", "readout", "body"):
            low, middle, high = (getattr(row, f"{part}{end}") for end in ("_low", "", "_high"))
            assert low <= middle <= high
    monkeypatch.setattr("utils.studies.forgetting.refit.masked_states", None)  # what is kept is not made again
    pd.testing.assert_frame_equal(refitted_readouts(profile), table)
