"""One process with the network shut off that answers many requests: its libraries are imported once.

This file is both ends. :class:`Process` is the tests' end; run as a script, it is the process itself, which reads a
request a line and answers each in a line. It calls functions of test modules, runs commands of the course, and
executes notebooks, each in a fresh namespace of one interpreter. What a kernel adds to that is tested at ``smoke``.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Done:
    """What a command of the course left: as ``subprocess.CompletedProcess`` names it."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """The tests' end; the process starts with the first request, and anew after one that ended it.

    Parameters
    ----------
    variables : dict
        Of the environment, as :func:`standin_hub.environment` gives them.
    """

    def __init__(self, variables: dict[str, str]):
        self.variables, self.running, self.starts = variables, None, 0
        self.folder = tempfile.TemporaryDirectory(prefix="standin-")
        self.log, self.network = Path(self.folder.name, "stderr"), Path(self.folder.name, "network")

    def ask(self, module: str, *functions: str, timeout: float = 850, **variables: str) -> dict[str, dict]:
        """Call functions of a test module; for each its JSON answer, or its traceback."""
        return {name: self._request(timeout, variables, call=[module, name]) for name in functions}

    def course(self, *arguments: str, timeout: float = 240, **variables: str) -> Done:
        """``python -m utils`` with `arguments`."""
        found = self._request(timeout, variables, command=[list(arguments)])
        assert "error" not in found, found["error"]
        return Done(**found["answer"])

    def notebook(self, path: Path, parameters: dict, *, timeout: float = 600, **variables: str) -> dict:
        """Execute a notebook; which cells ran, and the error of the one that failed.

        Returns
        -------
        dict
            ``ran``, the numbers (from 1, of all cells) of the code cells that completed, ``code``, those that have
            code, and ``failed``, None or one sentence with the notebook, the cell and the error.
        """
        found = self._request(timeout, variables, notebook=[str(path), parameters])
        assert "error" not in found, found["error"]
        return found["answer"]

    def close(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.communicate()
            self.running = None

    def _start(self) -> None:
        from standin_hub import environment_with  # not at the top: the process itself needs nothing of it

        self.network.touch()
        self.starts += 1
        with self.log.open("w") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "standin_process"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, encoding="utf-8", env=environment_with(self.variables, self.network))

    def _request(self, timeout: float, variables: dict[str, str], **what) -> dict:
        if self.running is None:
            self._start()
        before, line = self.network.read_text(), ""
        waited = threading.Timer(timeout, self.running.kill)
        waited.start()
        try:
            self.running.stdin.write(json.dumps(what | {"variables": variables}) + "\n")
            self.running.stdin.flush()
            line = self.running.stdout.readline()
        except BrokenPipeError:
            pass  # it had ended; the log says why
        finally:
            waited.cancel()
            if not line:  # it ended, took too long, or this test was interrupted while it was at work
                self.close()
        said = self.log.read_text(errors="replace")[-3000:]
        assert line, f"the process of the stand-in Hub ended, or took more than {timeout} s, at {what}: {said}"
        tried = self.network.read_text().removeprefix(before)
        assert not tried, f"{what} tried to connect to {tried.split()}"
        return json.loads(line)


# The process itself --------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until there are no more; what libraries print goes to stderr."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in requests:
        request, before = json.loads(line), dict(os.environ)
        os.environ |= request.pop("variables")
        (kind, given), = request.items()
        try:
            answer = {"answer": {"call": _call, "command": _command, "notebook": execute}[kind](*given)}
        except BaseException:  # what leaves the interpreter is an answer as well
            answer = {"error": traceback.format_exc()}
        os.environ.clear()
        os.environ |= before
        forget()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def forget() -> None:
    """Figures, their settings and what the course's functions remember: the next request finds a fresh process."""
    if (plots := sys.modules.get("matplotlib.pyplot")) is not None:
        plots.close("all")
        plots.rcdefaults()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "utils":
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()
    gc.collect()
    gc.freeze()  # what is left is the libraries', which each later collection, one before every training, passes over


def _call(module: str, function: str):
    return getattr(importlib.import_module(module), function)()


def _command(arguments: list[str]) -> dict:
    from utils.course.cli import main

    said, failed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
        status = main(arguments)
    return {"returncode": status, "stdout": said.getvalue(), "stderr": failed.getvalue()}


def execute(path: str, parameters: dict) -> dict:
    """Every code cell of a notebook in order, in a fresh namespace; see :meth:`Process.notebook`."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    book = parameterize_notebook(load_notebook_node(path), parameters, kernel_name="python3", language="python")
    cells = [(number, cell.source) for number, cell in enumerate(book.cells, start=1)
             if cell.cell_type == "code" and cell.source.strip()]
    shell = InteractiveShell.instance(colors="nocolor", history_length=0)
    shell.reset(new_session=True)
    ran, failed = [], None
    for number, source in cells:
        with capture_output() as captured:
            outcome = shell.run_cell(source, store_history=False)
        error = outcome.error_before_exec or outcome.error_in_exec  # SystemExit is one as well
        if error is not None:
            failed = (f"{Path(path).name} failed in cell {number}: {type(error).__name__}: {error}\n"
                      f"{source}\n{captured.stdout[-3000:]}")
            break
        ran.append(number)
    shell.reset(new_session=True)
    return {"ran": ran, "code": [number for number, _ in cells], "failed": failed}


if __name__ == "__main__":
    serve()
