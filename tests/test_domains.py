"""Texts by domain, blocks of them, and functions with a description: split apart, always the same, right where they
can be checked, and one sentence where something is missing.
"""

import ast
import math
import re
import sysconfig
from collections import Counter
from fractions import Fraction
from math import gcd

import pandas as pd
import pytest
from datasets import Dataset

from utils.errors import CourseError, UsageError
from utils.profiles.schema import TaskSizes
from utils.sources import domains as module
from utils.sources import functions as functions_module
from utils.sources.domains import DOMAINS, domain_texts, mathematics_questions
from utils.sources.functions import LONGEST, LONGEST_PROMPT, SHORTEST, described_functions
from utils.sources.questions import MATHEMATICS
from utils.sources.tasks import TASKS, _require_columns, load_task, task
from utils.sources.text import news_articles
from utils.training.blocks import block_batches, text_blocks
from utils.training.data import tokenizer_of

PACKAGED = ("news", "python", "mathematics", "mathematics-shuffled")


def one_sentence(error) -> str:
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and "None" not in sentence and sentence[0].isupper()
    return sentence


# --- domains


@pytest.mark.parametrize("domain", PACKAGED)
def test_the_splits_of_a_domain_share_nothing_and_are_always_the_same(domain):
    train, heldout = (domain_texts(domain, split) for split in ("train", "heldout"))
    assert len(train) > 4 * len(heldout) > 0 and not set(train) & set(heldout)
    assert len(set(train)) == len(train) and min(map(len, train + heldout)) > 0
    for cached in (module._python_source, mathematics_questions):
        cached.cache_clear()
    assert domain_texts(domain, "heldout") == heldout


def test_the_news_of_the_topic_task_are_in_no_split():
    articles = news_articles().set_index("text")["split"]
    for split in ("train", "heldout"):
        texts = domain_texts("news", split)
        assert set(articles[texts]) == {split} and len(texts) == (articles == split).sum()
        assert texts != sorted(texts), "the order would be that of the alphabet"


@pytest.mark.parametrize("domain, split", [("novels", "train"), ("news", "test"), ("python", "validation")])
def test_an_unknown_domain_or_split_names_the_known_ones(domain, split):
    with pytest.raises(UsageError) as caught:
        domain_texts(domain, split)
    sentence = one_sentence(caught)
    assert f"'{domain}', '{split}'" in sentence and all(known in sentence for known in DOMAINS)


# --- Python source


def library(folder, monkeypatch, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})


def test_source_leaves_out_tests_installed_packages_and_empty_files(tmp_path, monkeypatch):
    body = b"# \xff\n" + b"value = 1\n" * 30
    kept = [f"package{number}/module.py" for number in range(40)]
    left_out = ["test/a.py", "package1/tests/b.py", "site-packages/c.py", "lib2to3/d.py", "package2/__pycache__/e.py"]
    library(tmp_path, monkeypatch, {name: body + name.encode() for name in kept + left_out} | {
        "short.py": b"x = 1\n", "data.txt": body})
    train, heldout = (module._python_source.__wrapped__(split) for split in ("train", "heldout"))
    assert sorted(text.splitlines()[-1] for text in train + heldout) == sorted(kept)
    assert 0 < len(heldout) < len(train) and train[0].startswith("# \ufffd")
    assert module._python_source.__wrapped__("train") == train


def test_a_python_without_its_source_is_a_sentence(tmp_path, monkeypatch):
    for place in (tmp_path, tmp_path / "python311.zip"):
        monkeypatch.setattr(sysconfig, "get_paths", lambda place=place: {"stdlib": str(place)})
        with pytest.raises(CourseError) as caught:
            module._python_source.__wrapped__("train")
        assert str(place) in one_sentence(caught)


# --- mathematics


NUMBER = r"(-?\d+(?:/\d+)?(?:\.\d+)?)"
OPERATIONS = {
    rf"(?:{NUMBER} plus|Add {NUMBER} and|Put together {NUMBER} and|Sum {NUMBER} and|Total of {NUMBER} and"
    rf"|What is {NUMBER} \+) {NUMBER}": lambda a, b: a + b,
    rf"(?:{NUMBER} minus|What is {NUMBER} take away) {NUMBER}": lambda a, b: a - b,
    rf"Subtract {NUMBER} from {NUMBER}": lambda a, b: b - a,
    rf"distance between {NUMBER} and {NUMBER}": lambda a, b: abs(a - b),
    rf"(?:product of {NUMBER} and|Product of {NUMBER} and|Multiply {NUMBER} and|{NUMBER} times) {NUMBER}":
        lambda a, b: a * b,
    rf"(?:{NUMBER} divided by|Divide {NUMBER} by) {NUMBER}": lambda a, b: a / b,
    rf"remainder when {NUMBER} is divided by {NUMBER}": lambda a, b: a % b,
    rf"(?:highest|greatest) common (?:factor|divisor) of {NUMBER} and {NUMBER}": lambda a, b: gcd(int(a), int(b)),
    rf"Is {NUMBER} a factor of {NUMBER}": lambda a, b: b % a == 0,
    rf"Does {NUMBER} divide {NUMBER}": lambda a, b: b % a == 0,
    rf"Is {NUMBER} a multiple of {NUMBER}": lambda a, b: a % b == 0,
}
PLAIN = re.compile(r"(?:What is the value of |What is |Calculate |Work out |Evaluate )?([-+*/().\d ]+?)[.?]?")


def worked_out(question: str):
    """The answer by exact arithmetic, or None where this test does not read the question."""
    for pattern in sorted(OPERATIONS, key=lambda pattern: "remainder" not in pattern):
        if found := re.search(rf"{pattern}[.?]?$", question):
            numbers = [Fraction(part) for part in found.groups() if part]
            return OPERATIONS[pattern](*numbers)
    if found := PLAIN.fullmatch(question):
        return eval(re.sub(r"\d+(?:\.\d+)?", lambda one: f"Fraction('{one[0]}')", found[1]), {"Fraction": Fraction})
    return None


def test_answers_are_right_where_they_can_be_worked_out():
    questions, checked = mathematics_questions("heldout"), Counter()
    for kind, question, answer in questions.itertuples(index=False):
        if checked[kind] < 12 and (value := worked_out(question)) is not None:
            assert answer == str(value) if isinstance(value, bool) else Fraction(answer) == value, question
            checked[kind] += 1
    kinds = ["arithmetic, add_or_sub", "arithmetic, mul", "arithmetic, div", "arithmetic, add_sub_multiple",
             "numbers, gcd", "numbers, div_remainder", "numbers, is_factor"]
    assert {kind: count for kind, count in checked.items() if count == 12}.keys() >= set(kinds), checked


def test_no_question_is_there_twice_and_every_kind_is_in_both_splits():
    train, heldout = mathematics_questions("train"), mathematics_questions("heldout")
    questions = pd.concat([train, heldout])["question"]
    assert questions.is_unique and questions.str.strip().equals(questions)
    expected = {f"{area}, {kind}" for area, kind in MATHEMATICS}
    assert set(train["kind"]) == set(heldout["kind"]) == expected and len(expected) == 14
    assert 0.04 < len(heldout) / len(questions) < 0.06
    assert not questions.str.contains("\n").any() and not train["answer"].str.contains("\n").any()


def test_questions_are_drawn_the_same_again(monkeypatch):
    """The table in the cache was drawn by another process, with another order of Python's sets."""
    kept = pd.concat([mathematics_questions(split) for split in ("train", "heldout")]).set_index("question")["answer"]
    monkeypatch.setattr(module, "QUESTIONS", 280)
    drawn = module._make_questions()
    assert len(drawn) > 250 and [row["answer"] for row in drawn] == kept[[row["question"] for row in drawn]].tolist()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shuffled_answers_are_of_the_same_kind_and_wrong_but_for_chance(split):
    table = mathematics_questions(split)
    before = table.copy()
    right, shuffled = domain_texts("mathematics", split), domain_texts("mathematics-shuffled", split)
    pd.testing.assert_frame_equal(mathematics_questions(split), before)
    assert right == [f"{row.question}\n{row.answer}\n" for row in before.itertuples()]
    pairs = [text.removesuffix("\n").split("\n") for text in shuffled]
    assert [question for question, _ in pairs] == before["question"].tolist()
    given = before.assign(given=[answer for _, answer in pairs])
    for kind, rows in given.groupby("kind"):
        assert Counter(rows["given"]) == Counter(rows["answer"]), kind
        # Two answers drawn at random from one kind agree so often; yes or no in half of all cases.
        chance = sum((count / len(rows)) ** 2 for count in Counter(rows["answer"]).values())
        same = (rows["given"] == rows["answer"]).mean()
        assert same <= chance + 4 * math.sqrt(chance * (1 - chance) / len(rows)) + 1 / len(rows), kind
    assert (given["given"] == given["answer"]).mean() < 0.1


# --- domains of the Hub


@pytest.mark.parametrize("domain", ["codeparrot", "open-web-math"])
def test_a_domain_of_the_hub_is_cut_split_apart_and_without_repeats(domain, monkeypatch):
    name, column, wanted = module._HUB[domain]
    asked, texts = [], [f"text {number}" for number in range(500)]

    def dataset_split(*given, **keywords):
        asked.append((given, keywords))
        return Dataset.from_dict({column: texts + texts[:50], "other": [0] * 550})

    monkeypatch.setattr(module.hub, "dataset_split", dataset_split)
    train, heldout = (domain_texts(domain, split) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(texts) and 0 < len(heldout) < len(train)
    assert asked[0] == ((name, None, "train"), {"rows": wanted})
    assert domain_texts(domain, "train") == train


def test_a_domain_of_the_hub_without_its_column_is_a_sentence(monkeypatch):
    monkeypatch.setattr(module.hub, "dataset_split", lambda *_, **__: Dataset.from_dict({"code": ["x = 1"]}))
    with pytest.raises(CourseError) as caught:
        domain_texts("codeparrot", "train")
    sentence = one_sentence(caught)
    assert "column content in codeparrot/" in sentence and "got only code" in sentence


@pytest.mark.parametrize("columns, missing", [(("instruction", "answer"), "response"), (("a", "b"), "instruction")])
def test_rows_without_the_expected_columns_are_a_sentence(monkeypatch, columns, missing):
    rows = Dataset.from_dict({column: ["x"] for column in columns})
    monkeypatch.setattr(module.hub, "dataset_split", lambda *_, **__: rows)
    for name, sizes in (("magicoder", TaskSizes(max_length=8)), ("metamath", TaskSizes(max_length=8))):
        with pytest.raises(CourseError) as caught:
            load_task(name, sizes)
        sentence = one_sentence(caught)
        assert all(column in sentence for column in columns)
    with pytest.raises(CourseError, match=f"{missing}"):
        _require_columns("somebody/some", rows.to_pandas(), ("instruction", "response"))
    _require_columns("somebody/some", rows.to_pandas(), columns)


def test_magicoder_is_prompt_and_completion_split_by_its_instruction(monkeypatch):
    rows = Dataset.from_dict({"instruction": [f"Write {number}." for number in range(400)], "response": ["ok"] * 400})
    monkeypatch.setattr(module.hub, "dataset_split", lambda *_, **__: rows)
    data = load_task("magicoder", TaskSizes(max_length=8))
    assert len(data.train) + len(data.test) == 400 and 0 < len(data.test) < 30
    assert not set(data.train["prompt"]) & set(data.test["prompt"])
    assert data.train["prompt"].str.fullmatch(r"Write \d+\.").all() and set(data.test["completion"]) == {"\n\nok"}


# --- text tasks and blocks


def test_every_domain_is_a_task_of_plain_text():
    assert {name for name, one in TASKS.items() if one.kind == "text"} == set(DOMAINS)
    assert task("news").load("test")["text"].tolist() == domain_texts("news", "heldout")
    data = load_task("mathematics", TaskSizes(train_rows=5, test_rows=3, max_length=8))
    assert (len(data.train), len(data.test)) == (5, 3)


def test_blocks_are_the_texts_end_to_end(tiny_decoder):
    tokenizer = tokenizer_of(tiny_decoder)
    stream = [token for text in domain_texts("news", "heldout")[:8]
              for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]]
    blocks = text_blocks("news", "heldout", tiny_decoder, length=16, count=40)
    assert len(blocks) == 40 and {len(block) for block in blocks} == {16}
    assert [token for block in blocks for token in block] == stream[:640] and tokenizer.eos_token_id in stream[:-1]
    assert text_blocks("news", "heldout", tiny_decoder, length=16, count=7) == blocks[:7]
    assert text_blocks("news", "heldout", tiny_decoder, length=16)[:40] == blocks


@pytest.mark.parametrize("texts, length, count, said", [
    (["a film"] * 3, 8, 50, ("50", "longest duration")), (["a film"], 60, None, ("holds 0",)),
    ([], 8, 1, ("holds 0",))], ids=["few", "none", "no text"])
def test_too_few_blocks_are_a_sentence(tiny_decoder, monkeypatch, texts, length, count, said):
    from utils.training import blocks as blocks_module

    monkeypatch.setattr(blocks_module, "domain_texts", lambda *_: texts)
    with pytest.raises(CourseError) as caught:
        text_blocks.__wrapped__("news", "train", tiny_decoder, length=length, count=count)
    sentence = one_sentence(caught)
    assert "train split of news" in sentence and f"of {length} tokens" in sentence
    assert all(part in sentence for part in said)


def test_the_last_batch_of_blocks_may_be_smaller():
    batches = block_batches([[1, 2], [3, 4], [5, 6]], 2)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[1, 2], [3, 4]], [[5, 6]]]
    assert all(batch["labels"].equal(batch["input_ids"]) and batch["attention_mask"].all() for batch in batches)


# --- functions


SOURCE = '''"""Module."""
\f
def kept(x, *,
         twice=False):
    """Add a number.

    In two lines.
    """
    # a remark
    y = x + 1

    return 2 * y if twice else y

class Thing:
    def method(self, name):
        """A method."""
        if name:
            return [name,
                    name]
        return None

    def text(self):
        """A string that begins further left."""
        return """first
second and a few words more"""

    @property
    def decorated(self):
        """Left out."""
        value = self.name
        return value

async def later():
    """Left out."""
    value = await something()
    return value

def bare(x):
    y = x + 1
    return y * 123456789

def only_described():
    """Left out."""

def tiny(x):
    """Too short a body."""
    return x

def huge(x):
    """Too long a body."""
    return x + ''' + " + ".join(["123456789"] * 40) + "\n"


def test_functions_are_cut_into_description_and_body():
    found = dict(functions_module._functions_of(SOURCE))
    names = [ast.parse(prompt + completion).body[0].name for prompt, completion in found.items()]
    assert names == ["kept", "method", "text"]
    prompts = list(found)
    assert prompts[0].startswith("def kept(x, *,\n") and prompts[0].endswith('In two lines.\n    """')
    assert found[prompts[0]] == "\n    # a remark\n    y = x + 1\n\n    return 2 * y if twice else y\n"
    assert prompts[1] == 'def method(self, name):\n    """A method."""'
    assert found[prompts[1]] == ("\n    if name:\n        return [name,\n                name]\n    return None\n")
    assert functions_module._functions_of("def broken(:\n") == []


def test_every_function_parses_and_has_a_description_and_a_body():
    frame = described_functions()
    assert len(frame) > 1000 and frame["prompt"].is_unique
    for prompt, completion in zip(frame["prompt"], frame["completion"], strict=True):
        node, = ast.parse(prompt + completion).body
        assert isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1, prompt
        assert completion.startswith("\n    ") and completion.endswith("\n") and not completion.endswith("\n\n")
        assert len(prompt) <= LONGEST_PROMPT and SHORTEST <= len(completion) - 2 <= LONGEST
        alone, = ast.parse(prompt + "\n").body
        assert len(alone.body) == 1, "a part of the body is given away in the prompt"


def test_the_functions_task_splits_by_prompt():
    data = load_task("functions", TaskSizes(max_length=128))
    assert not set(data.train["prompt"]) & set(data.test["prompt"])
    assert len(data.train) + len(data.test) == len(described_functions())
    assert 0.07 < len(data.test) / len(described_functions()) < 0.13
    assert load_task("functions", TaskSizes(test_rows=5, max_length=128)).test.equals(data.test.head(5))
