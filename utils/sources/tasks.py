"""Tasks by name: what is classified or continued, from which source, under which label order.

Every task comes as tables (train, test, and validation where a profile asks for it) with the same columns, so that
nothing downstream knows the source:
``text``, ``text_pair`` (None where there is no second text) and ``label`` for classification, ``prompt`` and
``completion`` for causal models, ``prompt``, ``chosen`` and ``rejected`` for preferences. An evaluation never reads a
split whose labels are hidden (GLUE test: -1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from utils.errors import CourseError, UsageError
from utils.profiles.schema import TaskSizes
from utils.sources import hub
from utils.sources.domains import DOMAINS, domain_texts
from utils.sources.functions import described_functions
from utils.sources.preferences import answer_pairs, ultrafeedback_pairs, with_swaps
from utils.sources.text import OPINIONS, RATED, TOPICS, news_articles, posts, rated_sentences, split_fraction

PASSAGE_WORDS = 20  # of each half of a pair of news passages
MIN_SCORE = 0.5  # movie sentences scored nearer to neutral than this are left out, as SST-2 leaves them out


@dataclass(frozen=True)
class Task:
    """A task's identity: its kind, label names in the order of their indices, and how to load it."""

    name: str
    kind: str  # "classification", "causal" (prompt, completion), "text" (a domain) or "preference" (pairs of answers)
    labels: tuple[str, ...]
    load: Callable[[str], pd.DataFrame]  # "train" or "test" -> table
    about: str


@dataclass(frozen=True)
class TaskData:
    """The rows a run trains and is tested on, and those that its learning rate is chosen by."""

    task: Task
    train: pd.DataFrame
    test: pd.DataFrame
    validation: pd.DataFrame  # without rows where the sizes name none


def task(name: str) -> Task:
    """The task called `name`; UsageError with the known names if there is none."""
    if name not in TASKS:
        raise UsageError(f"Unknown task '{name}'; the known ones are {', '.join(TASKS)}.")
    return TASKS[name]


def load_task(name: str, sizes: TaskSizes) -> TaskData:
    """Load a task cut to size. The first rows in a fixed shuffled order are taken, so a smaller size is a subset.

    The validation rows are the last ones of the whole training part in that order: the same ones whatever
    ``train_rows`` is.

    Raises
    ------
    CourseError
        If a label lies outside the task's label names (hidden test labels do).
    UsageError
        If the validation rows leave none to train on.
    """
    chosen = task(name)
    every, test = _cut(chosen.load("train"), None), _cut(chosen.load("test"), sizes.test_rows)
    kept = len(every) - (sizes.validation_rows or 0)
    if kept < 1:
        raise UsageError(f"Expected 'validation_rows' below the {len(every)} training rows of {name}, got "
                         f"{sizes.validation_rows}; give fewer.")
    train, validation = every.head(min(kept, sizes.train_rows or kept)), every.iloc[kept:].reset_index(drop=True)
    if chosen.kind == "classification":
        for split, frame in (("train", train), ("validation", validation), ("test", test)):
            if not frame["label"].between(0, len(chosen.labels) - 1).all():
                raise CourseError(f"Task {name} has labels outside 0 … {len(chosen.labels) - 1} in its {split} rows; "
                                  "the split's labels are hidden or the label map is wrong.")
    return TaskData(chosen, train, test, validation)


def _cut(frame: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    order = frame.iloc[:, 0].map(split_fraction).sort_values(kind="stable").index
    return frame.loc[order].head(rows or len(frame)).reset_index(drop=True)


def _half(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """Four fifths of a table for training, the rest for testing, by the hash of the text."""
    inside = frame["text"].map(split_fraction) < 0.8
    return frame[inside if split == "train" else ~inside]


def _sentiment(kind: str) -> Callable[[str], pd.DataFrame]:
    def load(split: str) -> pd.DataFrame:
        frame = _half(rated_sentences(kind).query("abs(score) > @MIN_SCORE"), split)
        return pd.DataFrame({"text": frame["text"], "text_pair": None, "label": (frame["score"] > 0).astype(int)})

    return load


def _genre(split: str) -> pd.DataFrame:
    parts = [_half(rated_sentences(kind), split).assign(label=label) for label, kind in enumerate(RATED)]
    fewest = min(len(part) for part in parts)
    return pd.concat([pd.DataFrame({"text": part["text"], "text_pair": None, "label": part["label"]})
                      for part in (_cut(part, fewest) for part in parts)], ignore_index=True)


def _posts(split: str) -> pd.DataFrame:
    frame = _half(posts(), split)
    return pd.DataFrame({"text": frame["text"], "text_pair": None, "label": frame["label"].map(OPINIONS.index)})


def _continues(split: str) -> pd.DataFrame:
    """The opening of an article with its own continuation, or with that of the next one on the same topic."""
    frame = news_articles().query("split == @split").copy()
    frame["order"] = frame["text"].map(split_fraction)
    frame = frame.sort_values(["topic", "order"]).reset_index(drop=True)
    words = frame["text"].str.split()
    after = words.map(lambda found: " ".join(found[PASSAGE_WORDS:2 * PASSAGE_WORDS]))
    own = frame["order"].map(lambda order: int(order * 2**20) % 2 == 1)
    others = after.groupby(frame["topic"]).transform(lambda part: part.shift(-1).fillna(part.iloc[0]))
    return pd.DataFrame({"text": words.map(lambda found: " ".join(found[:PASSAGE_WORDS])),
                         "text_pair": after.where(own, others), "label": own.astype(int)})


def _topics(split: str) -> pd.DataFrame:
    frame = news_articles().query("split == @split")
    return pd.DataFrame({"text": frame["text"], "text_pair": None, "label": frame["topic"].map(TOPICS.index)})


def _glue(config: str, first: str, second: str | None, *, test: str) -> Callable[[str], pd.DataFrame]:
    def load(split: str) -> pd.DataFrame:
        rows = hub.dataset_split("nyu-mll/glue", config, test if split == "test" else "train").to_pandas()
        return pd.DataFrame({"text": rows[first], "text_pair": rows[second] if second else None,
                             "label": rows["label"]})

    return load


def _siqa(split: str) -> pd.DataFrame:
    # The original repository still holds a loading script; this one has the same rows as parquet.
    rows = hub.dataset_split("lighteval/siqa", None, "validation" if split == "test" else "train").to_pandas()
    text = ("Please choose the correct answer to the question. " + rows["context"] + " " + rows["question"]
            + " Answer1: " + rows["answerA"] + " Answer2: " + rows["answerB"] + " Answer3: " + rows["answerC"])
    return pd.DataFrame({"text": text, "text_pair": None, "label": rows["label"].astype(int) - 1})


def _winogrande(split: str) -> pd.DataFrame:
    rows = hub.dataset_split("allenai/winogrande", "winogrande_xl",
                             "validation" if split == "test" else "train").to_pandas()
    text = ("Please choose the correct answer to fill in the blank. " + rows["sentence"]
            + " Option1: " + rows["option1"] + " Option2: " + rows["option2"])
    return pd.DataFrame({"text": text, "text_pair": None, "label": rows["answer"].astype(int) - 1})


def _fever(split: str) -> pd.DataFrame:
    # fever/fever is a loading script; this copy is JSON lines with the same labels. Claims repeat, one row per
    # evidence sentence, so they are made unique before anything is cut or split.
    rows = hub.dataset_split("copenlu/fever_gold_evidence", None, split).to_pandas().drop_duplicates("claim")
    labels = rows["label"].map({name: index for index, name in enumerate(FEVER_LABELS)})
    return pd.DataFrame({"text": rows["claim"], "text_pair": None, "label": labels.fillna(-1).astype(int)})


def _metamath(split: str) -> pd.DataFrame:
    rows = hub.dataset_split("meta-math/MetaMathQA-40K", None, "train").to_pandas()
    _require_columns("meta-math/MetaMathQA-40K", rows, ("query", "response"))
    inside = rows["query"].map(split_fraction) < 0.98
    rows = rows[inside if split == "train" else ~inside]
    return pd.DataFrame({"prompt": "Question: " + rows["query"] + "\nAnswer:", "completion": " " + rows["response"]})


def _domain(name: str) -> Callable[[str], pd.DataFrame]:
    return lambda split: pd.DataFrame({"text": domain_texts(name, "heldout" if split == "test" else "train")})


def _functions(split: str) -> pd.DataFrame:
    frame = described_functions()
    return frame[(frame["place"] < 0.9) == (split == "train")][["prompt", "completion"]].reset_index(drop=True)


def _magicoder(split: str) -> pd.DataFrame:
    rows = hub.dataset_split("ise-uiuc/Magicoder-Evol-Instruct-110K", None, "train").to_pandas()
    _require_columns("ise-uiuc/Magicoder-Evol-Instruct-110K", rows, ("instruction", "response"))
    inside = rows["instruction"].map(split_fraction) < 0.98
    rows = rows[inside if split == "train" else ~inside]
    # The break belongs to the answer: TRL leaves blanks at a prompt's end out of what it trains on.
    return pd.DataFrame({"prompt": rows["instruction"], "completion": "\n\n" + rows["response"]})


def _swapped(load: Callable[[str], pd.DataFrame]) -> Callable[[str], pd.DataFrame]:
    """The control of a preference task: it is trained on swapped pairs and tested on the right ones."""
    return lambda split: with_swaps(load(split)) if split == "train" else load(split)


def _require_columns(name: str, rows: pd.DataFrame, expected: tuple[str, ...]) -> None:
    if missing := [column for column in expected if column not in rows]:
        raise CourseError(f"Expected columns {', '.join(expected)} in {name}, but {', '.join(missing)} is missing (it "
                          f"has {', '.join(rows.columns)}); check the data set's page for a renamed column.")


FEVER_LABELS = ("REFUTES", "NOT ENOUGH INFO", "SUPPORTS")

TASKS = {one.name: one for one in (
    Task("movies", "classification", ("negative", "positive"), _sentiment("movies"),
         "movie-review sentences, the source of SST-2"),
    Task("products", "classification", ("negative", "positive"), _sentiment("products"),
         "sentences of product reviews"),
    Task("genre", "classification", tuple(RATED), _genre, "film review, product review, editorial or tweet?"),
    Task("posts", "classification", OPINIONS, _posts, "the opinion in a short public post"),
    Task("continues", "classification", ("other article", "same article"), _continues,
         "do two news passages belong together?"),
    Task("topics", "classification", TOPICS, _topics, "BBC news articles by topic"),
    Task("mnli", "classification", ("entailment", "neutral", "contradiction"),
         _glue("mnli", "premise", "hypothesis", test="validation_matched"), "does the premise entail the hypothesis?"),
    Task("qqp", "classification", ("not_duplicate", "duplicate"),
         _glue("qqp", "question1", "question2", test="validation"), "do two questions ask the same?"),
    Task("sst2", "classification", ("negative", "positive"), _glue("sst2", "sentence", None, test="validation"),
         "movie-review phrases"),
    Task("siqa", "classification", ("A", "B", "C"), _siqa, "social commonsense, three answers in the instruction"),
    Task("winogrande", "classification", ("option1", "option2"), _winogrande, "which noun fills the blank?"),
    Task("fever", "classification", FEVER_LABELS, _fever, "is the claim supported? claim text alone"),
    Task("metamath", "causal", (), _metamath, "worked answers to school mathematics"),
    Task("magicoder", "causal", (), _magicoder, "programming problems with worked solutions"),
    Task("functions", "causal", (), _functions, "functions of the standard library: signature and docstring to body"),
    # One label: the number that a reward model gives.
    *(Task(name, "preference", ("reward",), load, about) for name, load, about in (
        ("answers", answer_pairs, "generated mathematics: the right answer over another question's"),
        ("answers-swapped", _swapped(answer_pairs), "the same with chosen and rejected swapped at random"),
        ("ultrafeedback", ultrafeedback_pairs, "answers to instructions, the better over a worse"),
        ("ultrafeedback-swapped", _swapped(ultrafeedback_pairs), "the same with chosen and rejected swapped at random"),
    )),
    *(Task(name, "text", (), _domain(name), f"plain text: {name}") for name in DOMAINS),
)}
