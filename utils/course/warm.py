"""A process that has imported what every notebook imports, and forks a kernel from it whenever it is asked to.

Started by :mod:`utils.course.forked` as ``python -m utils.course.warm FD utils.course.warm:libraries``, with a socket
and the function that imports. It says ``ready`` on the socket, and takes with each byte that comes there a further
socket and the two files that are to be a kernel's standard output and error. From that socket the kernel reads its
command line, and there it is told which process it is (``pid 12``) and how it ended (``exit -9``). Once the first
socket is closed it ends itself, and with it the kernels.

It runs nothing but imports, on one thread of Python: neither torch nor zmq has begun anything that a fork would break.
"""

import contextlib
import gc
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace

LAUNCHER = "ipykernel_launcher"
_GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")


def main() -> None:
    """Import, say so, and fork; only a kernel returns from here before the process ends."""
    control, path = socket.socket(fileno=int(sys.argv[1])), list(sys.path)
    _as_in_a_kernel(pkgutil.resolve_name(sys.argv[2]))
    if _holds_gpu():
        return  # what a driver was asked before a fork it does not answer after it
    gc.collect()
    gc.freeze()  # the pages of the libraries stay shared: no collection touches them
    sys.path[:] = path
    request = _serve(control)
    if request is not None:
        _be_kernel(request)


def libraries() -> None:
    """Import what every notebook's first cell does."""
    import utils.ledger.notebook  # noqa: F401
    import utils.training.store  # noqa: F401
    from utils.studies import load_studies

    load_studies()


def _as_in_a_kernel(imports: Callable[[], object]) -> None:
    """Import as a kernel would: libraries look whether they are in one, and choose their progress bars by it."""
    os.environ["MPLBACKEND"] = os.environ.get("MPLBACKEND") or "module://matplotlib_inline.backend_inline"  # as there
    gc.disable()
    import ipykernel.kernelapp  # noqa: F401
    import ipykernel.zmqshell  # noqa: F401
    import IPython

    asked = IPython.get_ipython
    IPython.get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})
    try:
        imports()
    finally:
        IPython.get_ipython = asked
        gc.enable()


def _holds_gpu() -> bool:
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  descriptors are no paths
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(_GPUS):  # noqa: PTH115
                return True
    return False


def _serve(control: socket.socket) -> dict | None:
    """Fork until the socket is closed: None then, and in each child what was asked for."""
    kernels: dict[int, socket.socket] = {}
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the wake-up alone
    events = selectors.DefaultSelector()
    events.register(control, selectors.EVENT_READ)
    events.register(woken, selectors.EVENT_READ)
    control.sendall(b"ready\n")
    while True:
        ready = {key.fileobj for key, _ in events.select()}
        if woken in ready:
            woken.recv(4096)
            _tell_ends(kernels)
        if control in ready:
            asked, files, *_ = socket.recv_fds(control, 1, 3)
            if not asked:
                return None
            answers = socket.socket(fileno=files[0])
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                for one in (control, woken, wakes, events, *kernels.values()):
                    one.close()
                return _taken_over(answers, *files[1:])
            kernels[pid] = answers
            for number in files[1:]:
                os.close(number)
            _tell(answers, f"pid {pid}")


def _tell_ends(kernels: dict[int, socket.socket]) -> None:
    for pid in list(kernels):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with kernels.pop(pid) as answers:
                _tell(answers, f"exit {os.waitstatus_to_exitcode(status)}")


def _tell(answers: socket.socket, words: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        answers.sendall(f"{words}\n".encode())


def _taken_over(answers: socket.socket, output: int, error: int) -> dict:
    """In the child: a session and the standard streams of its own; returns the request."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in ((output, 1), (error, 2)):
        os.dup2(number, stream)
        os.close(number)
    with answers, answers.makefile(encoding="utf-8") as lines:
        request = lines.readline()
    return json.loads(request) if request else sys.exit(1)  # who asked is gone


def _be_kernel(request: dict) -> None:
    """What ``python -m ipykernel_launcher …`` is, from here to the end of the process."""
    # Python's own generator begins anew in a fork; these two would give every kernel the same numbers.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    for name, value in request["variables"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Which process to end with: the class was defined before this one was there.
    sys.argv = [LAUNCHER, *request["arguments"], f"--IPKernelApp.parent_handle={os.getppid()}"]
    os.environ["JPY_PARENT_PID"] = str(os.getppid())
    runpy.run_module(LAUNCHER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
