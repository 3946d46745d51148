"""Kernels forked from a process with the libraries in memory: the same notebook as ever, sooner, and none left over."""

import _thread
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from imports_ahead import for_ever, nothing, seeded
from interrupting import interrupted_cell
from nbformat.v4 import new_code_cell, new_notebook

from utils.course import forked, kernels, warm
from utils.course.forked import Server, warm_kernels
from utils.course.kernels import kernel_config
from utils.course.runner import Outcome, execute
from utils.course.watch import Watch
from utils.errors import CourseError
from utils.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are started the usual way there")
TESTS = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _imported_from_here(monkeypatch):
    """A server finds the functions of ``imports_ahead.py``."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH")))))


class Notebook:
    """A notebook of a test's own, and what its last cell printed."""

    def __init__(self, folder: Path, *cells: str):
        self.path, self.target = folder / "00_one.ipynb", folder / "executed.ipynb"
        folder.mkdir(exist_ok=True)
        book = new_notebook(cells=[new_code_cell("", metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.path)

    def run(self) -> str:
        self.outcome: Outcome = execute(self.path, self.target, {}, timeout=120, watch=Watch({}))
        return "".join(one.text for one in nbformat.read(self.target, 4).cells[-1].outputs)


def ours() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
def count_kernels(monkeypatch):
    """How many kernels were forked."""
    made = []
    monkeypatch.setattr(forked, "Forked", lambda answers, kind=forked.Forked: made.append(kind(answers)) or made[-1])
    return made


SURROUNDINGS = """
import json, os, signal, sys, threading, warnings
from utils.course.warm import libraries
libraries()
import matplotlib, torch, tqdm.auto, transformers.trainer
from transformers.utils import is_in_notebook
print(json.dumps({
    "argv": [word for word in sys.argv if "kernel.json" not in word and "parent_handle" not in word], "path": sys.path,
    "folder": os.getcwd(), "variables": {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"},
    "parent": os.environ["JPY_PARENT_PID"] == str(os.getppid()), "leads": os.getpgid(0) == os.getsid(0) == os.getpid(),
    "signals": {str(one): str(signal.getsignal(one)) for one in signal.valid_signals()},
    "blocked": list(map(str, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "threads": torch.get_num_threads(), "backend": matplotlib.get_backend(), "bar": str(tqdm.auto.tqdm.__mro__),
    "in a notebook": is_in_notebook(), "callback": str(transformers.trainer.DEFAULT_PROGRESS_CALLBACK),
    "main": sys.modules["__main__"].__name__, "flags": str(sys.flags), "executable": sys.executable,
    "python's threads": sorted(one.name.split("-")[0] for one in threading.enumerate()),
    "input": sys.__stdin__.read(),
    "silent": sorted(str(one[:3]) for one in warnings.filters), "open files": len(os.listdir("/proc/self/fd"))}))
"""


def test_a_forked_kernel_has_the_surroundings_of_a_usual_one(tmp_path, monkeypatch, count_kernels):
    """Variables that changed since the server was started included; and it has imported before the first cell."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # two threads after the fork: none was there before it
    book = Notebook(tmp_path, "import sys, time\nimported = 'torch' in sys.modules\ntime.sleep(2)", SURROUNDINGS,
                    "held = torch.ones(50, 2**20)\nprint(imported, float((held @ held.T).sum()) == 50 * 50 * 2**20)")
    usual = book.run()
    assert usual == "False True\n"
    surroundings = [nbformat.read(book.target, 4).cells[-2].outputs[0].text]
    with warm_kernels():
        assert book.run() == "True True\n" and book.outcome.peak_gib > 0.4
        monkeypatch.setenv("LORA_COURSE_FIGURES", str(tmp_path))
        surroundings.append(nbformat.read(book.target, 4).cells[-2].outputs[0].text)
        assert book.run() == "True True\n"
        surroundings.append(nbformat.read(book.target, 4).cells[-2].outputs[0].text)
    found = [json.loads(text) for text in surroundings]
    for one in found:
        one["variables"].pop("PYTEST_CURRENT_TEST", None)
    assert found[2]["variables"].pop("LORA_COURSE_FIGURES") == str(tmp_path)
    assert found[1] == found[0] and found[2] == found[0] and len(count_kernels) == 2
    assert found[0]["parent"] and found[0]["leads"] and found[0]["threads"] == 2


def test_two_kernels_draw_different_numbers(tmp_path, count_kernels):
    """A fork has its parent's generators: without a seed of its own every notebook would draw the same."""
    book = Notebook(tmp_path, "import random, numpy as np\nprint(random.random(), np.random.rand())")
    with warm_kernels(seeded):
        first, second = (book.run().split() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1] and len(count_kernels) == 2


@pytest.mark.parametrize("end", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_forked_kernel_that_dies(tmp_path, count_kernels, end):
    book = Notebook(tmp_path, end)
    with warm_kernels(nothing):
        with pytest.raises(CourseError, match="00_one.ipynb failed: .*[Kk]ernel.*partial.ipynb"):
            book.run()
        assert count_kernels[0].returncode in (3, -9)
        assert Notebook(tmp_path, "print('the next one')").run() == "the next one\n"
    assert len(count_kernels) == 2


def test_a_cell_of_a_forked_kernel_that_takes_too_long(tmp_path, count_kernels):
    book = Notebook(tmp_path, "import time; time.sleep(60)")
    before = set(ours())
    with warm_kernels(nothing), pytest.raises(CourseError, match="00_one.ipynb failed: "):
        execute(book.path, book.target, {}, timeout=1, watch=Watch({}))
    assert len(count_kernels) == 1 and set(ours()) <= before


def test_a_server_that_was_killed_is_started_again(tmp_path, count_kernels):
    """With it its kernel ends, which is told as any death is."""
    book = Notebook(tmp_path, "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)")
    with warm_kernels(nothing):
        with pytest.raises(CourseError, match="00_one.ipynb failed: .*[Kk]ernel"):
            book.run()
        assert not psutil.pid_exists(count_kernels[0].pid) or psutil.Process(count_kernels[0].pid).status() == "zombie"
        assert Notebook(tmp_path, "print('the next one')").run() == "the next one\n"
    assert len(count_kernels) == 2


def test_what_a_forked_kernel_writes_past_python_goes_where_it_did(tmp_path, capfd):
    """To our own output and error as they are now, and not as they were when the server began."""
    book, found = Notebook(tmp_path, "import os\nos.system('echo by another process; echo and wrong >&2')\n"
                                     "os.write(2, b'past it\\n');"), []
    with warm_kernels(nothing):
        Notebook(tmp_path / "before", "1;").run()
        capfd.readouterr()
        found.append((book.run(), *capfd.readouterr()))
    found.append((book.run(), *capfd.readouterr()))
    assert found[0] == found[1] == ("", "by another process\n", "and wrong\npast it\n")


def interrupted(tmp_path: Path) -> Notebook:
    """A notebook that begins a process, and an interruption once it has."""
    return Notebook(tmp_path, interrupted_cell(tmp_path / "started"))


def test_an_interruption_ends_the_forked_kernel_and_all_that_it_started(tmp_path, ctrl_c, count_kernels, capfd):
    before = set(ours())
    with pytest.raises(KeyboardInterrupt), warm_kernels(nothing):
        interrupted(tmp_path).run()
    assert len(count_kernels) == 1 and set(ours()) <= before, "kernel, server or a process of the notebook lives on"
    assert not psutil.pid_exists(int((tmp_path / "started").read_text())) and capfd.readouterr().err == ""


COURSE = """
import papermill
from imports_ahead import nothing
from utils.course.forked import warm_kernels
from utils.course.kernels import kernel_config
with warm_kernels(nothing), kernel_config() as config:
    papermill.execute_notebook({path!r}, None, config=config, progress_bar=False, kernel_name="python3")
"""


def test_a_course_that_is_killed_leaves_neither_kernel_nor_server(tmp_path):
    mark = tmp_path / "started"
    book = Notebook(tmp_path, f"import os, time\nopen({str(mark)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')\n"
                              "time.sleep(300)")
    course = subprocess.Popen([sys.executable, "-c", COURSE.format(path=str(book.path))], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (mark.exists() and mark.read_text().count(" ")) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = [psutil.Process(int(number)) for number in mark.read_text().split()]
    assert course.pid == processes[1].ppid(), "the server's kernel, and our server"
    course.kill()
    course.wait()
    assert psutil.wait_procs(processes, timeout=30)[1] == []


def test_where_no_kernel_can_be_forked_a_usual_one_is_started(tmp_path, monkeypatch, count_kernels):
    """On another system, of another Python, or where the libraries cannot be imported ahead, which is tried once."""
    # Memory is read a few times a second: a kernel that is gone sooner has shown none.
    book = Notebook(tmp_path, "import os, sys, time\ntime.sleep(2)\nprint(os.getppid(), 'utils' in sys.modules)")
    tried = []
    with monkeypatch.context() as patch, warm_kernels(nothing):
        patch.setattr(forked.sys, "platform", "darwin")
        with warm_kernels(nothing), kernel_config() as config:
            assert len(forked._SERVERS) == 1 and "kernel_manager_class" in config.NotebookClient
    with kernel_config() as config:
        assert "kernel_manager_class" not in config.NotebookClient, "outside of the block"

    def refuse(*given, **how):
        tried.append(given)
        return Server(*given, **how | {"imports": lambda: None})  # no function of a module

    monkeypatch.setattr(forked, "Server", refuse)
    with warm_kernels(nothing):
        for _ in range(2):
            assert book.run() == f"{os.getpid()} False\n"
        assert book.outcome.peak_gib > 0.01, "its memory is measured all the same"
        another = forked._SERVERS[-1].fork(["/usr/bin/another", "-m", forked.LAUNCHER, "-f", "x"], {}, str(ROOT))
    assert len(tried) == 1 and another is None and count_kernels == []


def test_a_server_that_holds_a_gpu_forks_none(monkeypatch, tmp_path):
    """A driver that was asked before a fork refuses the child."""
    assert not warm._holds_gpu()
    monkeypatch.setattr(warm, "_GPUS", (str(tmp_path),))
    with (tmp_path / "card").open("w"):
        assert warm._holds_gpu()


def test_an_interruption_while_the_libraries_are_imported(tmp_path, ctrl_c, capfd):
    before, book = set(ours()), Notebook(tmp_path, "print('never')")

    def interrupt() -> None:
        while set(ours()) <= before:
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), warm_kernels(for_ever):
        book.run()
    assert set(ours()) <= before and capfd.readouterr().err == ""


def test_libraries_are_imported_anew_for_other_variables(monkeypatch):
    """OpenMP, matplotlib and the Hub's client read theirs once: a kernel with others needs an import of its own."""
    made = []

    class Fake:
        def __init__(self, interpreter, variables, **how):
            made.append(variables)

        def fork(self, arguments, variables):
            return variables

        def close(self):
            made.pop()

    monkeypatch.setattr(forked, "Server", Fake)
    servers, command = forked.Servers(nothing), [sys.executable, "-m", forked.LAUNCHER, "-f", "x"]
    first = {"OMP_NUM_THREADS": "1", "LORA_COURSE_FIGURES": "/a"}
    for variables, servers_then in ((first, 1), (first | {"LORA_COURSE_FIGURES": "/b", "IPYTHONDIR": "/c"}, 1),
                                    (first | {"OMP_NUM_THREADS": "2"}, 2), (first, 2),
                                    (first | {"HF_HUB_OFFLINE": "1"}, 3)):
        assert servers.fork(command, variables, str(ROOT)) == variables and len(made) == servers_then
    servers.fork(command, first, "/")
    assert len(made) == 4, "another present folder"
    servers.close()
    assert made == []


def test_a_kernel_without_a_folder_of_its_own_is_a_usual_one(tmp_path, monkeypatch, count_kernels):
    monkeypatch.setattr(kernels, "_socket_parent", lambda: None)
    with warm_kernels(nothing), kernel_config() as config:
        assert "kernel_manager_class" not in config.NotebookClient and count_kernels == []
