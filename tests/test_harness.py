"""Multiple choice through lm-evaluation-harness: against log-likelihoods by hand, and its real tasks offline.

The functions that start with ``inside_`` run in one fresh process with the network shut off; the tests judge what
they return.
"""

import math
import time
from collections import Counter

import pandas as pd
import pytest
import standin_hub
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils.errors import CourseError, UsageError
from utils.evaluation import harness
from utils.evaluation.harness import (
    FORGETTING_TASKS,
    accuracy_table,
    choice_accuracy,
    item_results,
    paired_difference,
    remembering,
)
from utils.paths import cache_dir
from utils.sources.cloze import CHOICES, CONTINUATION_WORDS, OPENING_WORDS, cloze_items
from utils.sources.text import news_articles

LIMIT = 4
COLUMNS = ["task", "metric", "filter", "value", "standard_error", "rows", "task_version", "num_fewshot"]


# The items ----------------------------------------------------------------------------------------------------------


def test_each_item_holds_one_article_and_three_others_on_its_topic():
    items, articles = cloze_items(), news_articles()
    heldout = articles.query("split == 'heldout'")
    trained = "\n".join(articles.query("split == 'train'")["text"])
    topic = dict(zip(heldout["text"], heldout["topic"], strict=True))
    assert len(items) > 300
    for item in items.itertuples():
        for context, choice in zip(item.contexts, item.choices, strict=True):
            home = {topic[text] for text in topic if text.startswith(f"{context} {choice}")}
            assert home == {item.topic} and choice not in trained
            assert len(context.split()) >= OPENING_WORDS and len(choice.split()) == CONTINUATION_WORDS
            assert context[-1].isalnum()
        assert len(set(item.choices)) == len(set(item.contexts)) == CHOICES


def test_positions_are_balanced_and_no_opening_is_asked_twice():
    items = cloze_items()
    counts = Counter(items["answer"])
    assert set(counts) == set(range(CHOICES)) and max(counts.values()) - min(counts.values()) <= 1
    right = [item.contexts[item.answer] for item in items.itertuples()]
    assert len(set(right)) == len(right)
    pd.testing.assert_frame_equal(cloze_items(count=10), items.head(10))


@pytest.mark.parametrize("arguments", [{"split": "train"}, {"split": "other"}, {"count": 0}, {"count": 10_000}])
def test_what_cannot_be_asked_for_is_refused(arguments):
    with pytest.raises(UsageError, match="^Expected .*, got .*; do .*[.]$"):
        cloze_items(**arguments)


# A model at hand ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """A random Llama with a byte-level BPE of the news, without padding token and chat template, in training mode."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(news_articles()["text"].head(200), trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|end|>", eos_token="<|end|>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
        attention_dropout=0.5))
    model.generation_config.pad_token_id = None
    return model.train(), tokenizer


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Sum of log p(token | all before it) over the continuation's tokens, one sequence at a time, no padding."""
    before = tokenizer(context)["input_ids"]
    ids = before + tokenizer(f" {continuation}")["input_ids"]
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[position - 1, ids[position]].item() for position in range(len(before), len(ids)))


def test_the_harness_picks_what_hand_worked_log_likelihoods_pick(tiny):
    model, tokenizer = tiny
    found = item_results(model, tokenizer, ["news_cloze", "news_opening"], limit=24, batch_size=5)
    model.eval()
    expected = {("news_cloze", "acc"): [], ("news_cloze", "acc_norm"): [], ("news_opening", "acc"): []}
    for item in cloze_items(count=24).itertuples():
        context, choice = item.contexts[item.answer], item.choices[item.answer]
        endings = [log_likelihood(model, tokenizer, context, other) for other in item.choices]
        openings = [log_likelihood(model, tokenizer, other, choice) for other in item.contexts]
        per_character = [value / len(other) for value, other in zip(endings, item.choices, strict=True)]
        for key, scores in zip(expected, (endings, per_character, openings), strict=True):
            expected[key].append(float(scores.index(max(scores)) == item.answer))
    model.train()
    for key, values in expected.items():
        assert found[(found["task"] == key[0]) & (found["metric"] == key[1])]["value"].tolist() == values
        assert 0 < sum(values) < 24  # or the comparison would show little
    mean = sum(expected["news_cloze", "acc"]) / 24
    row = accuracy_table(found).query("task == 'news_cloze' and metric == 'acc'").iloc[0]
    assert row["value"] == pytest.approx(mean) and row["rows"] == 24
    assert row["standard_error"] == pytest.approx(math.sqrt(mean * (1 - mean) / 23))


def test_model_and_tokenizer_are_left_as_they_were_and_nothing_is_printed(tiny, capfd):
    model, tokenizer = tiny
    model.lm_head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    table = choice_accuracy(model, tokenizer, ["news_cloze"], limit=3)
    assert table.columns.tolist() == COLUMNS
    assert table[["metric", "task_version", "num_fewshot"]].values.tolist() == [
        ["acc", "1.0", 0], ["acc_norm", "1.0", 0]]
    assert model.training and not model.lm_head.training and tokenizer.pad_token is None
    model.lm_head.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert capfd.readouterr() == ("", "")


def test_which_token_pads_changes_no_choice(tiny):
    model, tokenizer = tiny
    tables = []
    for pad in (None, "a", "the"):
        copied = harness._padded(tokenizer)
        copied.pad_token = pad
        tables.append(item_results(model, copied, ["news_cloze"], limit=12, batch_size=7))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_a_long_task_says_how_far_it_is(tiny, capsys, monkeypatch):
    monkeypatch.setattr(harness, "_INTERVAL_S", 0.0)
    item_results(*tiny, ["news_cloze"], limit=2, batch_size=4)
    out, lines = capsys.readouterr()
    assert out == "" and [line.split(",")[0] for line in lines.splitlines()] == ["news_cloze: 4/8", "news_cloze: 8/8"]


def test_a_call_costs_little_beyond_the_model(tiny):
    choice_accuracy(*tiny, ["news_cloze"], limit=1)
    started = time.process_time()
    choice_accuracy(*tiny, ["news_cloze"], limit=1)
    assert time.process_time() - started < 1


def test_the_items_come_from_memory(tiny, tmp_path, monkeypatch):
    """A file of them would be copied by `datasets`, and its copy believed whatever became of it."""
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "{a} [b]*"))
    items = cloze_items()
    monkeypatch.setattr("utils.evaluation.harness.cloze_items", lambda *_: items)
    harness._task.cache_clear()
    choice_accuracy(*tiny, ["news_cloze"], limit=1)
    assert not list(tmp_path.iterdir())
    assert list(harness._loaded("news_cloze", None).eval_docs) == items.to_dict("records")


def test_a_tokenizer_without_an_end_is_refused(tiny):
    model, tokenizer = tiny
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(CourseError, match="^Expected a tokenizer with a begin or an end token"):
        choice_accuracy(model, bare, ["news_cloze"], limit=1)


# Tables -------------------------------------------------------------------------------------------------------------


def items(values: list[float], **changes) -> pd.DataFrame:
    return pd.DataFrame({"task": "t", "metric": "acc", "filter": "none", "item": [f"{i}" for i in range(len(values))],
                         "value": values, "task_version": "1.0", "num_fewshot": 0} | changes)


def test_paired_difference_against_hand_worked_values():
    # Differences 0, -1, -1, +1, 0: mean -0.2; squared deviations .04 .64 .64 1.44 .04 = 2.8; sd sqrt(0.7).
    row = paired_difference(items([1, 1, 1, 0, 0]), items([1, 0, 0, 1, 0]).sample(frac=1, random_state=1)).iloc[0]
    assert row["difference"] == pytest.approx(-0.2)
    assert row["standard_error"] == pytest.approx(math.sqrt(0.7 / 5))
    assert (row["rows"], row["gained"], row["lost"]) == (5, 1, 2)


@pytest.mark.parametrize("other", [
    items([1, 0]), items([1, 0, 1], item=["0", "1", "x"]), items([1, 0, 1], num_fewshot=5),
    items([1, 0, 1], item=["0", "1", "1"])])
def test_paired_difference_refuses_other_items(other):
    with pytest.raises(CourseError, match="^Expected the same items on both sides"):
        paired_difference(items([1, 0, 1]), other)
    with pytest.raises(CourseError, match="^Expected the same items on both sides"):
        paired_difference(other, items([1, 0, 1]))


def test_remembering_takes_the_papers_metrics_and_misses_none():
    table = pd.DataFrame([("hellaswag", "acc", .1, .9), ("hellaswag", "acc_norm", .6, .02),
                          ("arc_challenge", "acc", .1, .9), ("arc_challenge", "acc_norm", .3, .03),
                          ("winogrande", "acc", .9, .06)], columns=["task", "metric", "value", "standard_error"])
    found = remembering(table)
    assert found == {"value": pytest.approx(0.6), "standard_error": pytest.approx(0.07 / 3), "tasks": 3}
    for wrong in (table.iloc[:-1], pd.concat([table, table])):
        with pytest.raises(CourseError, match="^Expected one row for"):
            remembering(wrong)


# The harness's own tasks, offline -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(standin, tmp_path_factory) -> dict[str, dict]:
    cache = tmp_path_factory.mktemp("cache")
    for shared in ("archives", "sources"):  # the packaged news; the network is shut
        if (cache_dir() / shared).exists():
            (cache / shared).symlink_to((cache_dir() / shared).resolve())
    news_articles()  # in the cache before the child looks there
    inside = [name for name in globals() if name.startswith("inside_")]
    return standin.ask("test_harness", *inside, LORA_COURSE_CACHE=str(cache))


def _standin():
    from transformers import AutoModelForCausalLM

    from utils.profiles.schema import ModelReference
    from utils.sources.models import resolve
    from utils.training.data import tokenizer_of

    folder = resolve(ModelReference(source="hub", name=standin_hub.SMALL)).folder
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer_of(folder)


def inside_tasks() -> dict:
    kept = {}
    table = choice_accuracy(*_standin(), [*FORGETTING_TASKS, "gsm8k", "news_cloze"], limit=LIMIT,
                            keep=lambda task, rows: kept.update({task: len(rows)}))
    return {"rows": table.to_dict("records"), "kept": kept, "remembering": remembering(table)}


def test_the_papers_tasks_run_offline_under_their_real_names(answers):
    found = standin_hub.answer(answers, "inside_tasks")
    measured = {(row["task"], row["metric"], row["filter"]): row for row in found["rows"]}
    assert list(measured) == [
        ("hellaswag", "acc", "none"), ("hellaswag", "acc_norm", "none"), ("arc_challenge", "acc", "none"),
        ("arc_challenge", "acc_norm", "none"), ("winogrande", "acc", "none"), ("gsm8k", "exact_match", "strict-match"),
        ("gsm8k", "exact_match", "flexible-extract"), ("news_cloze", "acc", "none"), ("news_cloze", "acc_norm", "none")]
    assert {row["rows"] for row in found["rows"]} == {LIMIT}
    assert {row["task"]: row["num_fewshot"] for row in found["rows"]} == dict.fromkeys(
        (*FORGETTING_TASKS, "news_cloze"), 0) | {"gsm8k": 5}
    assert found["kept"] == {"hellaswag": 2, "arc_challenge": 2, "winogrande": 1, "gsm8k": 2, "news_cloze": 2}
    assert found["remembering"]["value"] == pytest.approx(sum(
        measured[task, metric, "none"]["value"] for task, metric in harness.FORGETTING_METRICS.items()) / 3)


def inside_by_hand() -> dict:
    """WinoGrande and ARC of the stand-in, by the harness and by hand."""
    from utils.sources import hub

    model, tokenizer = _standin()
    rows = TEST_ROWS
    found = {task: item_results(model, tokenizer, [task], limit=rows).query("metric == 'acc'")["value"].tolist()
             for task in ("winogrande", "arc_challenge")}
    model.eval()
    expected = {"winogrande": [], "arc_challenge": []}
    for row in hub.dataset_split("allenai/winogrande", "winogrande_xl", "validation").select(range(rows)):
        start, end = row["sentence"].split("_")
        scores = [log_likelihood(model, tokenizer, start + row[option], end.strip())
                  for option in ("option1", "option2")]
        expected["winogrande"].append(float(scores.index(max(scores)) == int(row["answer"]) - 1))
    for row in hub.dataset_split("allenai/ai2_arc", "ARC-Challenge", "test").select(range(rows)):
        scores = [log_likelihood(model, tokenizer, f"Question: {row['question']}\nAnswer:", text)
                  for text in row["choices"]["text"]]
        expected["arc_challenge"].append(float(row["choices"]["label"][scores.index(max(scores))] == row["answerKey"]))
    return {"found": found, "expected": expected}


TEST_ROWS = 16


def test_the_harness_scores_its_own_tasks_as_we_do_by_hand(answers):
    found = standin_hub.answer(answers, "inside_by_hand")
    assert found["found"] == found["expected"]
    assert all(0 < sum(values) < TEST_ROWS for values in found["found"].values())


def inside_padding() -> list:
    """Generated answers under two padding tokens: the prompts of a batch differ in length."""
    model, tokenizer = _standin()
    texts = []
    plain = harness._harness_model
    for pad in (None, "a"):
        copied = harness._padded(tokenizer)
        copied.pad_token = pad

        def recording(*arguments, **named):
            lm = plain(*arguments, **named)
            generate = lm.generate_until
            lm.generate_until = lambda *a, **k: texts.append(generate(*a, **k)) or texts[-1]
            return lm

        harness._harness_model = recording
        item_results(model, copied, ["gsm8k"], limit=LIMIT, batch_size=LIMIT, num_fewshot=1)
    harness._harness_model = plain
    return texts


def test_which_token_pads_changes_no_generated_answer(answers):
    first, second = standin_hub.answer(answers, "inside_padding")
    assert first == second and len(set(first)) > 1 and all(first)


def inside_faults() -> dict:
    kept, said = [], {}
    for label, tasks in {"unknown": ["winogrand"], "own": ["news_clozes"], "away": ["winogrande", "piqa"]}.items():
        try:
            choice_accuracy(*_standin(), tasks, limit=2, keep=lambda task, rows: kept.append(task))
        except CourseError as error:
            said[label] = [type(error).__name__, str(error)]
    return {"kept": kept, "said": said}


def test_faults_are_one_sentence_and_lose_nothing(answers):
    found = standin_hub.answer(answers, "inside_faults")
    (kind, unknown), (_, own), (away_kind, away) = (found["said"][label] for label in ("unknown", "own", "away"))
    assert kind == "UsageError" and unknown.startswith("Unknown task 'winogrand'; the nearest known ones are ")
    assert "winogrande" in unknown and "news_cloze" in own
    assert away_kind == "CourseError" and away.startswith("The data of the task piqa are neither in the cache")
    assert found["kept"] == ["winogrande"]
