"""Asking the command line something, and saying what was wrong with how it answered."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from utils.course.chaos.case import Case
from utils.paths import ROOT

_UNSEEMLY = ("Traceback", "unexpected", "Exception ignored", "<unicode string>")
_AS_IN_A_TERMINAL = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
    signal.signal(getattr(signal, name), signal.SIG_DFL)"""
Patch = tuple[Any, str, Any]


def refusal(name: str, kind: str, arguments: Iterable[str | Callable[[Path], str]], *,
            prepare: Callable[[Path], Any] | None = None, status: tuple[int, ...] = (2,),
            variables: dict[str, str] | Callable[[Path], dict[str, str]] | None = None,
            patches: Callable[[Path], list[Patch]] | None = None) -> Case:
    """A case that holds if the command line answers with one of `status`, and in one sentence where that is not 0.

    Parameters
    ----------
    name, kind : str
        See :class:`~utils.course.chaos.case.Case`.
    arguments : iterable of str or callable
        A callable takes the case's folder.
    prepare : callable, optional
        Fills the case's folder.
    status : tuple of int
        What it may end with.
    variables : dict or callable, optional
        Of the environment, beside a cache and figures of the case's own.
    patches : callable, optional
        Takes the folder; returns object, attribute and value of what stands elsewhere for this case.
    """
    def attempt(folder: Path) -> str | None:
        if prepare:
            prepare(folder)
        words = [one(folder) if callable(one) else one for one in arguments]
        given = variables(folder) if callable(variables) else variables or {}
        with surroundings(folder, given, patches(folder) if patches else []):
            return fault_of(*answer(words), allowed=status)

    return Case(name, kind, attempt)


@contextlib.contextmanager
def surroundings(folder: Path, variables: dict[str, str], patches: list[Patch]) -> Iterator[None]:
    """Variables and attributes for one case; the reader's own cache and figures are left alone."""
    own = {"LORA_COURSE_CACHE": str(folder / "cache"), "LORA_COURSE_FIGURES": str(folder / "figures"),
           "LORA_COURSE_SKIP_HARDWARE": "1", "HF_HUB_OFFLINE": "1"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, own | variables))
        for owner, attribute, value in patches:
            stack.enter_context(mock.patch.object(owner, attribute, value))
        yield


def answer(arguments: list[str]) -> tuple[int, str]:
    """Exit status and standard error of the command line, asked in this process; what an exception was is told too."""
    before, said = tracked(), io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            # By the door that people take, and not by the module behind it, which has this campaign among its commands.
            with mock.patch.object(sys, "argv", [sys.argv[0], *arguments]):
                runpy.run_module("utils", run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as error:
            return -1, f"{type(error).__name__} came through: {error}\n"
    changed = [name for name, state in tracked().items() if before.get(name) != state]
    return (-1, f"{changed[0]} was changed, which is tracked\n") if changed else (status, said.getvalue())


def unseemly(said: str) -> str | None:
    """The first word in an answer that no sentence for people may hold."""
    return next((word for word in _UNSEEMLY if word in said), None)


def fault_of(status: int, said: str, *, allowed: tuple[int, ...]) -> str | None:
    """What was wrong with an answer; None if it is as it should be."""
    lines, errors = said.splitlines(), [line for line in said.splitlines() if line.startswith("error: ")]
    if status not in allowed:
        return f"It ended with {status}, not {' or '.join(map(str, allowed))}: {said.strip()[-300:]}"
    if word := unseemly(said):
        return f"It said '{word}': {said.strip()[-300:]}"
    if status == 0:
        return f"It ended with 0 and an error: {errors[0]}" if errors else None
    if len(lines) != 1 or len(errors) != 1 or not lines[0].rstrip().endswith((".", "?", "…")):
        return f"It said {len(lines)} lines where one sentence was due: {said.strip()[-300:]!r}"
    return None if lines[0].isprintable() else f"It said what no terminal prints: {said!r}"


@cache
def _tracked_names() -> tuple[Path, ...]:
    """Files of the project that git keeps; without git, all in the folders that hold nothing else."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return tuple(ROOT / name for name in listed.stdout.split("\0") if name)
    kept = ("utils", "notebooks", "tests", "data/models", "data/paper", "data/reference")
    return tuple(path for name in kept for path in (ROOT / name).rglob("*") if path.suffix not in (".pyc", ""))


def tracked() -> dict[Path, tuple[int, int] | None]:
    """Size and time of every tracked file, None where it is gone."""
    found: dict[Path, tuple[int, int] | None] = {}
    for path in _tracked_names():
        try:
            state = path.stat()
            found[path] = state.st_size, state.st_mtime_ns
        except OSError:
            found[path] = None
    return found


def in_a_process(folder: Path, arguments: list[str], *, variables: dict[str, str] | None = None, script: str = "",
                 **given) -> subprocess.Popen:
    """The command line in a process of its own, in the repository's root; `script` runs before it there.

    Signals mean there what they mean in a terminal, whatever this process was told to ignore, as by ``nohup``.
    """
    code = f"{_AS_IN_A_TERMINAL}\n{script}\nfrom utils.course.cli import main\nsys.exit(main(sys.argv[1:]))"
    own = {"LORA_COURSE_CACHE": str(folder / "cache"), "LORA_COURSE_FIGURES": str(folder / "figures"),
           "LORA_COURSE_SKIP_HARDWARE": "1", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in (dict(os.environ) | own | (variables or {})).items() if value != ""}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **{
        "cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE} | given)
