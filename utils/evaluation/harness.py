"""Multiple choice and short answers through lm-evaluation-harness: a model at hand in, tidy tables out.

Tasks are measured one at a time, so that what is done is kept when a later one fails. The harness sees the model where
it is and as it is; its own chatter is held back, and a line now and then says how far it is.

References
----------
arXiv 2405.09673, section 3: forgetting is the mean of HellaSwag, ARC-Challenge and WinoGrande; GSM8K for mathematics.
"""

import copy
import difflib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

import pandas as pd
import yaml
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.errors import CourseError, UsageError
from utils.progress import INTERVAL_S, Lines
from utils.sources.cloze import cloze_items

TASKS = Path(__file__).with_name("tasks")
OWN_TASKS = tuple(sorted(path.stem for path in TASKS.glob("*.yaml")))
FORGETTING_TASKS = ("hellaswag", "arc_challenge", "winogrande")
# Answers of unequal length are compared per character; WinoGrande's scored words are the same for both answers.
FORGETTING_METRICS = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm", "winogrande": "acc"}
# The harness's folders of the tasks that the course names; reading all its 13,000 tasks takes eight seconds.
QUICK_FOLDERS = ("hellaswag", "arc", "winogrande", "gsm8k")
_KEYS = ["task", "metric", "filter"]
_INTERVAL_S = INTERVAL_S


def choice_accuracy(model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], *,
                    limit: int | None = None, num_fewshot: int | None = None, batch_size: int = 16, seed: int = 0,
                    keep: Callable[[str, pd.DataFrame], None] | None = None) -> pd.DataFrame:
    """Accuracy of a causal language model on tasks of the harness, or on the course's own OWN_TASKS.

    Parameters
    ----------
    model : nn.Module
        A transformers model, plain or with adapters; it stays on its device, in its number type and mode.
    tokenizer : PreTrainedTokenizerBase
        With a begin or end token; neither padding token nor chat template is needed.
    tasks : sequence of str
        Such as FORGETTING_TASKS, ``"gsm8k"`` or ``"news_cloze"``.
    limit : int, optional
        The first so many items of each task; all by default.
    num_fewshot : int, optional
        Worked examples before each question; by default the task's own number (GSM8K 5, the others 0). A harness task
        whose file says 0 keeps 0; the course's own take theirs from the ``test`` split of the news.
    seed : int
        Draws the worked examples, and nothing else.
    keep : callable, optional
        Called as ``keep(task, table)`` after each task, with that task's rows.

    Returns
    -------
    pandas.DataFrame
        One row per task, metric and filter: ``task``, ``metric``, ``filter``, ``value`` (0 … 1), ``standard_error``
        (sample deviation over the root of the rows; NaN for a single row), ``rows``, ``task_version``,
        ``num_fewshot``.

    Raises
    ------
    UsageError
        If a task is unknown or has no metric that is a mean over items; before anything is measured, for names.
    CourseError
        If a task's data are out of reach, or the tokenizer has neither begin nor end token.
    """
    def kept(task: str, items: pd.DataFrame) -> None:
        if keep is not None:
            keep(task, accuracy_table(items))

    return accuracy_table(item_results(model, tokenizer, tasks, limit=limit, num_fewshot=num_fewshot,
                                       batch_size=batch_size, seed=seed, keep=kept))


def item_results(model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], *,
                 limit: int | None = None, num_fewshot: int | None = None, batch_size: int = 16, seed: int = 0,
                 keep: Callable[[str, pd.DataFrame], None] | None = None) -> pd.DataFrame:
    """As :func:`choice_accuracy`, with a row per item, for :func:`accuracy_table` and :func:`paired_difference`.

    Parameters
    ----------
    model : nn.Module
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
        With a begin or an end token.
    tasks : sequence of str
        Names of the harness's tasks or of ours.
    limit : int, optional
        Only the first so many items of each task.
    num_fewshot : int, optional
        Worked examples before each question; the task's own number by default.
    batch_size : int
        Rows that the model is given at a time.
    seed : int
        Of which examples are shown.
    keep : callable, optional
        Takes a task's name and its rows as soon as they are there, before the next task is begun.

    Returns
    -------
    pandas.DataFrame
        Columns ``task``, ``metric``, ``filter``, ``item`` (number and hash of the question), ``value`` (0 or 1 for
        accuracies), ``task_version``, ``num_fewshot``.
    """
    if not tasks:
        raise UsageError("Expected at least one task to measure, got none; do name one.")
    if limit is not None and limit < 1:
        raise UsageError(f"Expected a limit of 1 item or more, got {limit}; do give such a one, or None for all.")
    for name in tasks:
        _check_name(name)
    tables = []
    for name in tasks:
        with _quiet() as say:
            task = _loaded(name, num_fewshot)
            task.set_fewshot_seed(seed=seed)
            tables.append(_measured(task, name, model, tokenizer=tokenizer, limit=limit, batch_size=batch_size,
                                    say=say))
        if keep is not None:
            keep(name, tables[-1])
    return pd.concat(tables, ignore_index=True)


def accuracy_table(items: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error of each task, metric and filter, with the columns of :func:`choice_accuracy`."""
    groups = items.groupby(_KEYS, sort=False)
    return groups.agg(value=("value", "mean"), standard_error=("value", "sem"), rows=("value", "size"),
                      task_version=("task_version", "first"), num_fewshot=("num_fewshot", "first")).reset_index()


def paired_difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first on the same items: a much smaller error than that of two separate accuracies.

    Parameters
    ----------
    first, second : pandas.DataFrame
        Of :func:`item_results`, such as before and after training.

    Returns
    -------
    pandas.DataFrame
        One row per task, metric and filter: ``difference`` (-1 … 1; negative is forgetting), ``standard_error``
        (deviation of the items' differences over the root of their number), ``rows``, ``gained`` and ``lost`` (items
        that only the second, or only the first, answers rightly).

    Raises
    ------
    CourseError
        If the two do not hold the same items of the same tasks, as with another limit or another task version.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.
    """
    keys = [*_KEYS, "item", "task_version", "num_fewshot"]
    both = first.merge(second, on=keys, how="outer", suffixes=("_first", "_second"), indicator=True)
    unmatched = both[both["_merge"] != "both"]
    if len(unmatched) or len(both) != len(first):
        raise CourseError(f"Expected the same items on both sides, but {len(unmatched)} of {len(both)} rows stand on "
                          "one side only or repeat; measure both with the same tasks, limit and examples.")
    both["difference"] = both["value_second"] - both["value_first"]
    return both.groupby(_KEYS, sort=False)["difference"].agg(
        difference="mean", standard_error="sem", rows="size", gained=lambda d: int((d > 0).sum()),
        lost=lambda d: int((d < 0).sum())).reset_index()


def remembering(table: pd.DataFrame, metrics: dict[str, str] = FORGETTING_METRICS) -> dict:
    """The second paper's one number for what a model still knows: the mean over tasks, one metric each.

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`choice_accuracy`, for one model.
    metrics : dict
        Task to metric; by default the paper's three tasks.

    Returns
    -------
    dict
        ``value`` (0 … 1), ``standard_error`` (root of the summed squares over the number of tasks: their items are
        independent) and ``tasks``.

    Raises
    ------
    CourseError
        If a task is missing or stands there more than once.

    References
    ----------
    arXiv 2405.09673, section 3, "Forgetting". Which metric of HellaSwag and ARC the paper takes is not stated.

    Examples
    --------
    >>> table = pd.DataFrame({"task": ["a", "b"], "metric": ["acc", "acc"], "value": [0.5, 0.7],
    ...                       "standard_error": [0.03, 0.04]})
    >>> {name: round(value, 3) for name, value in remembering(table, {"a": "acc", "b": "acc"}).items()}
    {'value': 0.6, 'standard_error': 0.025, 'tasks': 2}
    """
    chosen = [table[(table["task"] == task) & (table["metric"] == metric)] for task, metric in metrics.items()]
    for (task, metric), rows in zip(metrics.items(), chosen, strict=True):
        if len(rows) != 1:
            raise CourseError(f"Expected one row for {metric} of {task}, got {len(rows)}; do measure "
                              f"{', '.join(metrics)} for one model.")
    rows = pd.concat(chosen)
    return {"value": float(rows["value"].mean()),
            "standard_error": math.sqrt((rows["standard_error"] ** 2).sum()) / len(rows), "tasks": len(rows)}


# Tasks --------------------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if name in OWN_TASKS:
        return
    with _quiet():
        if name in _manager(QUICK_FOLDERS).all_subtasks:
            return
        known = _manager().all_subtasks
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *OWN_TASKS], n=3, cutoff=0.4) or [*FORGETTING_TASKS, *OWN_TASKS]
        raise UsageError(f"Unknown task '{name}'; the nearest known ones are {', '.join(near)}.")


@lru_cache(maxsize=2)
def _manager(folders: tuple[str, ...] | None = None):
    """The harness's index of its tasks: of some of its folders, or of all and ours."""
    import lm_eval.tasks

    if folders is None:
        return lm_eval.tasks.TaskManager(include_path=str(TASKS))
    home = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_path=[str(home / folder) for folder in folders], include_defaults=False)


def _loaded(name: str, num_fewshot: int | None):
    """The task object, with the number of examples set by the harness's own rule: 0 in its file stays 0."""
    task = _task(name, num_fewshot)
    settable = name in OWN_TASKS or task.get_config("num_fewshot") != 0
    if task.get_config("num_fewshot") is None or (num_fewshot is not None and settable):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    return task


@lru_cache(maxsize=16)
def _task(name: str, num_fewshot: int | None):
    """A task with its data; one object per number of examples, which is set on it."""
    from lm_eval.api.task import ConfigurableTask

    if name in OWN_TASKS:
        settings = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
        data = {settings["test_split"]: _items()}
        if num_fewshot:
            settings |= {"fewshot_split": "examples", "num_fewshot": num_fewshot}
            data["examples"] = _items("test")
        # From memory: what the harness reads from a file it keeps a copy of, which nothing compares with the file.
        return ConfigurableTask(config=settings | {"custom_dataset": lambda **_: data})
    try:
        quick = _manager(QUICK_FOLDERS)
        return (quick if name in quick.all_subtasks else _manager()).load([name])["tasks"][name]
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise CourseError(f"The data of the task {name} are neither in the cache nor within reach; connect once and "
                          "measure it again.") from error


def _items(split: str = "heldout") -> Dataset:
    """The choice items as the harness takes them."""
    rows = cloze_items(split).to_dict("records")
    if split != "heldout":  # a rewritten article may stand in both splits: no example may give a question away
        asked = {_own(row) for row in cloze_items().to_dict("records")}
        rows = [row for row in rows if _own(row) not in asked]
    return Dataset.from_list(rows)


def _own(row: dict) -> str:
    """The continuation of an item's own article."""
    return row["choices"][row["answer"]]


# One task and one model ---------------------------------------------------------------------------------------------


def _measured(task, name: str, model: nn.Module, *, tokenizer, limit: int | None, batch_size: int,
              say: Callable[[str], None]) -> pd.DataFrame:
    from lm_eval import evaluate
    from lm_eval.api.metrics import mean

    modes = {module: module.training for module in model.modules()}
    try:
        lm = _harness_model(model, tokenizer, batch_size, label=name, say=say)
        found = evaluate(lm, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
    finally:
        for module, training in modes.items():
            module.training = training
    metrics = [metric for metric, aggregate in task.aggregation().items() if aggregate is mean]
    rows = [{"task": name, "metric": metric, "filter": sample["filter"],
             "item": f"{sample['doc_id']}-{sample['doc_hash'][:12]}", "value": float(sample[metric])}
            for metric in metrics for sample in found["samples"][name] if metric in sample["metrics"]]
    if not rows:
        raise UsageError(f"The task {name} has no metric that is a mean over its items.")
    return pd.DataFrame(rows).assign(task_version=str(found["versions"][name]),
                                     num_fewshot=int(found["n-shot"][name]))


def _harness_model(model: nn.Module, tokenizer, batch_size: int, *, label: str, say: Callable[[str], None]):
    from lm_eval.models.huggingface import HFLM

    class Measured(HFLM):
        """The harness's wrapper with our progress lines in place of its bars."""

        def _begin(self, total: int) -> None:
            self.done, self.lines = 0, Lines(label, total, interval_s=_INTERVAL_S, say=say)

        def _count(self, rows: int) -> None:
            self.done += rows
            self.lines.count(self.done)

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            self._begin(len(requests))
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

        def generate_until(self, requests, disable_tqdm=False):
            self._begin(len(requests))
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps, *arguments, **keywords):
            logits = super()._model_call(inps, *arguments, **keywords)
            self._count(len(inps))
            return logits

        def _model_generate(self, context, *arguments, **keywords):
            ids = super()._model_generate(context, *arguments, **keywords)
            self._count(len(context))
            return ids

    return Measured(pretrained=model, tokenizer=_padded(tokenizer), backend="causal", batch_size=batch_size)


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy with a padding token that the model knows.

    The harness would add a new one, which has no row in the embeddings. Which token it is changes no number: choices
    are padded on the right, where a causal model does not look, and prompts on the left under an attention mask.
    """
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise CourseError("Expected a tokenizer with a begin or an end token, got one with neither; do add one to it.")
    copied = copy.deepcopy(tokenizer)
    if copied.pad_token_id is None:
        copied.pad_token = copied.eos_token if copied.eos_token_id is not None else copied.bos_token
    return copied


@contextmanager
def _quiet() -> Iterator[Callable[[str], None]]:
    """Hold back what the harness and datasets print; yields a function that prints a line of ours."""
    terminal, loggers = sys.stderr, [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield lambda line: print(line, file=terminal, flush=True)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
