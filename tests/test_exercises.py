"""The exercises in which readers write a function: folded solutions are right, wrong answers are told apart."""

import importlib
import json
import math
import re

import pytest
import torch

from utils.ledger.exercises import try_out
from utils.paths import NOTEBOOKS

TRIED = re.compile(r"from utils\.studies\.(\w+) import exercises\s+try_out\((\w+), exercises\.(\w+)")
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def _exercises() -> dict[str, tuple]:
    """Notebook -> its properties, the name that is asked for, the stub's text and the solution's text."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        sources = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        for place, source in enumerate(sources):
            if tried := TRIED.search(source):
                study, name, properties = tried.groups()
                module = importlib.import_module(f"utils.studies.{study}.exercises")
                solution = next(FENCE.search(text)[1] for text in sources[place:] if FENCE.search(text))
                found[path.stem] = (getattr(module, properties), name, sources[place - 1], solution)
    return found


EXERCISES = _exercises()


def _function(text: str, name: str):
    space: dict = {"torch": torch, "math": math}
    exec(text, space)  # the notebook's own cell
    return space[name]


def test_there_are_some():
    assert {"01_lora_from_scratch", "02_fine_tuning", "03_svd_heat_maps", "04_intruder_dimensions",
            "04b_catalogue_of_intruders", "05_what_moves_the_count", "06_forgetting", "07_cause",
            "08_continual_learning"} <= set(EXERCISES)


@pytest.mark.parametrize("notebook", EXERCISES)
def test_the_folded_solution_is_right(notebook, capsys):
    properties, name, _, solution = EXERCISES[notebook]
    try_out(_function(solution, name), properties)
    assert capsys.readouterr().out == f"Right: all {len(properties)} properties hold.\n"


@pytest.mark.parametrize("notebook", EXERCISES)
def test_a_stub_is_no_mistake(notebook, capsys):
    properties, name, stub, _ = EXERCISES[notebook]
    try_out(_function(stub, name), properties)
    assert capsys.readouterr().out.startswith("Not answered yet")


WRONG = {
    "01_lora_from_scratch": ["def merge(W, A, B, alpha, r): return W + alpha * B @ A",
                             "def merge(W, A, B, alpha, r): W += alpha / r * B @ A; return W",
                             "def merge(W, A, B, alpha, r): return W + B @ A"],
    "02_fine_tuning": ["def mcnemar(a, b): return 0.5",
                       "def mcnemar(a, b): return abs((a.double() - b.double()).mean())"],
    "03_svd_heat_maps": ["def window_cosine(u, U0, m): return (U0.T @ u).abs().max()",
                         "def window_cosine(u, U0, m): return (U0[:, :m].T @ u).norm()",
                         "def window_cosine(u, U0, m): return (U0.T @ u).abs().topk(m).values.norm()",
                         "def window_cosine(u, U0, m): return (U0.T @ u).abs().unfold(0, m, 1).sum(1).max()",
                         "def window_cosine(u, U0, m): return (U0.T @ u).unfold(0, m, m).norm(dim=1).max()"],
    "04_intruder_dimensions": ["def random_twin(W0, Wt, seed): return Wt",
                               "def random_twin(W0, Wt, seed): return W0 + torch.randn(W0.shape)",
                               """
def random_twin(W0, Wt, seed):  # of full rank
    noise = torch.randn(W0.shape, generator=torch.Generator().manual_seed(seed))
    return W0 + noise * ((Wt - W0).norm() / noise.norm())
"""],
    "04b_catalogue_of_intruders": [
        "def follow(checkpoints, u): return [int((left.T @ u).abs().argmax()) for left in checkpoints]",
        "def follow(checkpoints, u): return [int((left.T @ u).argmax()) + 1 for left in checkpoints]",
        "def follow(checkpoints, u): return [int((checkpoints[-1].T @ u).abs().argmax()) + 1]",
        "def follow(checkpoints, u): return [int((left @ left.T @ u).abs().argmax()) + 1 for left in checkpoints]"],
    "05_what_moves_the_count": ["""
def choose_rate(runs):  # on test rows
    return runs.groupby("learning_rate")["accuracy"].mean().idxmax()
""", """
def choose_rate(runs):  # the luckiest run
    return runs.loc[runs["validation_accuracy"].idxmax(), "learning_rate"]
"""],
    "06_forgetting": ["""
def paired_interval(a, b, tokens):  # other passages for each model
    one, other = (torch.randint(len(a), (2000, len(a)), generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    drawn = a[one].sum(1) / tokens[one].sum(1) - b[other].sum(1) / tokens[other].sum(1)
    return tuple(drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist())
""", """
def paired_interval(a, b, tokens):  # every passage counts as one
    places = torch.randint(len(a), (2000, len(a)), generator=torch.Generator().manual_seed(0))
    drawn = ((a - b) / tokens)[places].mean(1)
    return tuple(drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist())
""", """
def paired_interval(a, b, tokens):  # all draws, and not the middle of them
    places = torch.randint(len(a), (2000, len(a)), generator=torch.Generator().manual_seed(0))
    drawn = (a - b)[places].sum(1) / tokens[places].sum(1)
    return drawn.min().item(), drawn.max().item()
""", "def paired_interval(a, b, tokens): return ((a - b).sum() / tokens.sum()).expand(2)"],
    "07_cause": ["def lambda_at(l, a, t): return l[-1]",
                 "def lambda_at(l, a, t): return min(zip(l, a), key=lambda pair: abs(pair[1] - t))[0]"],
    "08_continual_learning": ["def null_forgetting(p, n, stages): return 0.0",
                              "def null_forgetting(p, n, stages): return 1 / n if stages > 1 else 0.0"],
}


@pytest.mark.parametrize(("notebook", "answer"), [(name, one) for name, answers in WRONG.items() for one in answers])
def test_a_wrong_answer_is_told_what_does_not_hold(notebook, answer, capsys):
    properties, name, _, _ = EXERCISES[notebook]
    try_out(_function(answer, name), properties, hint="A hint.")
    said = capsys.readouterr().out
    assert said.startswith("Not yet") and said.endswith("A hint.\n")
    assert any(sentence in said for sentence in properties)


def test_an_error_in_the_answer_is_said_in_a_line(capsys):
    try_out(lambda: 1 / 0, {"it returns a number": lambda function: function() > 0})
    assert capsys.readouterr().out == ("Not yet: ZeroDivisionError (division by zero) where it should hold that it "
                                       "returns a number.\n")
