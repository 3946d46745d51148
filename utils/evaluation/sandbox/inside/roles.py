"""What a locked process does: run a program, answer for a program that is judged, or judge.

The judge and the judged are two processes with a pipe each way between them and nothing else: the judge's holds the
tests and the only pipe on which a verdict can be given, the other one holds the program. Each call of the tests goes
over as plain values (:mod:`inside.plain`) and so does its outcome.
"""

import json
import os
import sys

from . import jail, plain

ENDED = "ended before its check"


def main() -> None:
    """Lock this process in, then take the role that standard input describes."""
    given = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.argv = ["program"]
    jail.lock(given["lock"], given["control"])
    {"program": run, "candidate": answer, "judge": judge}[given["role"]](given["task"])


def run(task: dict) -> None:
    """Run a program as it is; its end is the process's."""
    exec(compile(task["program"], "<program>", "exec", dont_inherit=True), {"__name__": task["name"]})


def answer(task: dict) -> None:
    """Run a program, then call its function as often as the judge asks."""
    namespace = {"__name__": task["name"]}
    try:
        exec(compile(task["program"], "<program>", "exec", dont_inherit=True), namespace)
        if task["entry_point"] not in namespace:
            raise NameError(f"name {task['entry_point']!r} is not defined")
    except Exception as error:
        plain.send(task["replies"], ["raised", plain.line_of(error)])
        return
    plain.send(task["replies"], ["ready"])
    while (arguments := plain.receive(task["requests"])) is not None:
        try:
            value = namespace[task["entry_point"]](*plain.decode(arguments))
            plain.send(task["replies"], ["value", plain.encode(value)])
        except Exception as error:
            plain.send(task["replies"], ["raised", plain.line_of(error)])


class _NoPass(Exception):
    """The judged process ended, raised, or sent what is no answer; the text says which."""


def judge(task: dict) -> None:
    """Run the tests against the other process, and say how they went on the pipe for verdicts."""
    try:
        _hear(task["replies"], "ready")
        namespace = {"__name__": task["name"]}
        for part in ("helpers", "test"):
            exec(compile(task[part], f"<{part}>", "exec", dont_inherit=True), namespace)

        def candidate(*arguments: object) -> object:
            try:
                plain.send(task["requests"], plain.encode(arguments))
            except BrokenPipeError as error:
                raise _NoPass(ENDED) from error
            return plain.decode(*_hear(task["replies"], "value"))

        namespace[task["entry_point"]] = candidate  # some tests compare the function with itself, by its name
        namespace["check"](candidate)
    except (_NoPass, plain.Odd) as error:
        verdict = {"passed": False, "why": str(error)}
    except Exception as error:
        verdict = {"passed": False, "why": plain.line_of(error)}
    else:
        verdict = {"passed": True, "why": ""}
    os.write(task["verdict"], json.dumps(verdict).encode())


def _hear(pipe: int, expected: str) -> list:
    """What the judged process says after the word expected."""
    message = plain.receive(pipe)
    if message is None:
        raise _NoPass(ENDED)
    if type(message) is list and message[:1] == [expected] and len(message) == 1 + (expected == "value"):
        return message[1:]
    if type(message) is list and message[:1] == ["raised"] and type(message[-1]) is str:
        raise _NoPass(message[-1][:200] or "an exception without a name")
    raise _NoPass("answered what is no answer")
