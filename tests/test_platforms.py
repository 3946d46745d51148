"""Every module imports where POSIX's own modules are missing, and what needs them says so in one sentence.

What is ours is imported anew under the pretence; other packages were imported before it, as they are: which system
they run on is theirs to find out.
"""

import gc
import json
import subprocess
import sys

import pytest

from utils.paths import ROOT

pytestmark = pytest.mark.process

PRETENCE = r"""
import importlib, json, os, pathlib, pkgutil, signal, sys, tempfile

MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "pty", "posix_ipc")
FUNCTIONS = ("sched_getaffinity", "fork", "killpg", "nice", "pidfd_open", "getuid", "geteuid", "setsid", "sysconf")
# macOS has all of POSIX, but neither Linux's calls nor its /proc.
LACKS = {"win32": (MODULES, FUNCTIONS), "darwin": ((), ("sched_getaffinity", "pidfd_open"))}

def everything():
    import utils
    utils.__path__.append(sys.argv[1])
    found = [module.name for module in pkgutil.walk_packages(utils.__path__, "utils.")]
    failed = {}
    for name in found:
        if name != "utils.__main__":  # it runs the command line
            try:
                importlib.import_module(name)
            except BaseException as error:
                failed[name] = f"{type(error).__name__}: {error}"
    return len(found), failed

def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
        del sys.modules[name]

exists = pathlib.Path.exists
count, failed = everything()
report = {"linux": {"count": count, "failed": failed}}
for name in sys.argv[2:]:
    modules, functions = LACKS[name]
    kept = {module: sys.modules.get(module) for module in modules}
    calls = {call: getattr(os, call) for call in functions if hasattr(os, call)}
    forget()
    sys.modules.update(dict.fromkeys(modules))
    for call in calls:
        delattr(os, call)
    sys.platform = name
    pathlib.Path.exists = lambda path, **given: not str(path).startswith("/proc") and exists(path, **given)
    count, failed = everything()
    from utils import machine
    from utils.evaluation.sandbox import sandbox_available
    from utils.files import write_text
    from utils.training import footprint, train
    machine.limit_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_text(pathlib.Path(folder, "text"), "written")
        written = pathlib.Path(folder, "text").read_text()
    report[name] = {"count": count, "failed": failed, "sandbox": list(sandbox_available()), "written": written,
                    "gib": [machine.peak_memory_gib(), train._peak_gib(), footprint._resident("VmHWM") / 2**30],
                    "threads": machine.hardware()["threads"]}
    sys.platform, pathlib.Path.exists = "linux", exists
    for call, function in calls.items():
        setattr(os, call, function)
    for module, real in kept.items():
        sys.modules.pop(module)
        if real is not None:
            sys.modules[module] = real
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """Of one process for both systems: most of its time goes into torch and its like, which are imported once."""
    planted = tmp_path_factory.mktemp("planted")
    (planted / "planted.py").write_text("import fcntl\n")
    done = subprocess.run([sys.executable, "-c", PRETENCE, str(planted), "win32", "darwin"], cwd=ROOT,
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("system", ["linux", "win32", "darwin"])
def test_every_module_imports(report, system):
    """One that imports ``fcntl`` at its head is planted among them: the pretence has to find it, and no other."""
    failed = {"utils.planted": "ModuleNotFoundError: import of fcntl halted; None in sys.modules"}
    assert report[system]["failed"] == (failed if system == "win32" else {})
    assert report[system]["count"] == report["linux"]["count"] > 100


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_generated_code_is_refused_in_one_sentence(report, system):
    available, reason = report[system]["sandbox"]
    assert available is False and reason.startswith("Generated code is run on Linux only") and reason.count(".") == 1


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_what_is_measured_has_another_way(report, system):
    """Threads without an affinity, peak memory without ``resource`` or in macOS's bytes, files without POSIX."""
    assert report[system]["threads"] >= 1 and report[system]["written"] == "written"
    assert len(report[system]["gib"]) == 3 and min(report[system]["gib"]) > 0


def test_peak_memory_is_counted_in_the_systems_own_unit(monkeypatch):
    """Linux counts KiB, macOS bytes: the same number of either is 1,024 times apart."""
    import resource

    from utils import machine

    used = type("Usage", (), {"ru_maxrss": 2**21})
    monkeypatch.setattr(resource, "getrusage", lambda who: used)
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.peak_memory_gib() == 2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory_gib() == 2 / 1024


def test_garbage_is_not_looked_for_among_the_libraries():
    """Trainer collects before each training; without this each collection goes through all objects of all libraries."""
    from utils import machine

    gc.unfreeze()
    machine.spare_libraries.cache_clear()
    machine.set_up_process()
    assert gc.get_freeze_count() > 100_000
    frozen, later = gc.get_freeze_count(), [[] for _ in range(1000)]
    machine.set_up_process()
    assert gc.get_freeze_count() <= frozen and len(later) == 1000, "what comes later is collected as ever"
