"""Described functions of Python's standard library: signature and docstring as the prompt, the body as the answer.

HumanEval's problems have the same form, so that a model tuned on these can be tested on those.
"""

import ast
import textwrap
from functools import cache

import pandas as pd

from utils.sources.domains import domain_texts
from utils.sources.text import split_fraction

SHORTEST, LONGEST = 20, 260  # characters of a body, so that an answer fits a CPU's short window
LONGEST_PROMPT = 260


@cache
def described_functions() -> pd.DataFrame:
    """Functions and methods with a docstring and a short body, made to stand alone.

    Returns
    -------
    pandas.DataFrame
        ``prompt`` (signature and docstring, without the last line break: so HumanEval's prompts are given to a model),
        ``completion`` (line break and body, indented by four spaces) and ``place``, a number in [0, 1) by the hash of
        the prompt; no prompt twice.
    """
    rows = [row for text in (*domain_texts("python", "train"), *domain_texts("python", "heldout"))
            for row in _functions_of(text)]
    frame = pd.DataFrame(rows, columns=["prompt", "completion"]).drop_duplicates("prompt", ignore_index=True)
    return frame.assign(place=frame["prompt"].map(split_fraction))


def _functions_of(source: str) -> list[tuple[str, str]]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines, found = source.split("\n"), []  # as ast counts them: a form feed ends none
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or not ast.get_docstring(node):
            continue
        first, last = node.body[0], node.body[-1]
        if len(node.body) < 2:
            continue
        head = textwrap.dedent("\n".join(lines[node.lineno - 1:first.end_lineno]))
        # By the statement's own column: a string may have lines that begin further left, and dedent goes by those.
        margin = node.body[1].col_offset
        body = "\n".join(line[min(margin, len(line) - len(line.lstrip())):]
                         for line in lines[first.end_lineno:last.end_lineno])
        body = textwrap.indent(body, "    ").strip("\n")
        if len(head) <= LONGEST_PROMPT and SHORTEST <= len(body) <= LONGEST and head.startswith("def "):
            found.append((head, "\n" + body + "\n"))
    return found
