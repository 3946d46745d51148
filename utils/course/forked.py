"""Kernels that are forked from a process with the libraries in memory, where the system forks; usual ones elsewhere.

Importing torch, transformers and the studies takes each kernel 5 to 8 seconds of a core. :func:`warm_kernels` has it
done once, by :mod:`utils.course.warm`; a kernel begins there where it would be after the notebook's first imports.
"""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from utils.course.warm import LAUNCHER, libraries

PID = "pid"  # a kernel's process, in the folder of its connection file
PATIENCE_S = 300.0  # for imports on a busy machine
# Variables that nothing reads while it is imported; where another differs, the libraries are imported anew.
_READ_LATER = re.compile(r"LORA_COURSE_\w+|IPYTHONDIR|JPY_PARENT_PID|JPY_SESSION_NAME|PYTEST_CURRENT_TEST")


class Forked:
    """A forked kernel as jupyter_client knows a process: what of :class:`subprocess.Popen` it uses.

    Parameters
    ----------
    answers : socket
        Where the server tells the process's number and how it ended.
    """

    stdin = stdout = stderr = None

    def __init__(self, answers: socket.socket):
        self._answers, self._heard, self.returncode = answers, b"", None
        self._hear(PATIENCE_S)
        if b"\n" not in self._heard:
            raise OSError("the server forked no kernel")
        first, _, self._heard = self._heard.partition(b"\n")
        self.pid = int(first.split()[1])

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs. A kernel whose server is gone ends as well."""
        if self.returncode is None:
            closed = self._hear(0)
            if b"\n" in self._heard:
                self.returncode = int(self._heard.split()[1])
            elif closed:
                self.returncode = -signal.SIGKILL
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, signal.SIGKILL)
            if self.returncode is not None:
                self._answers.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one."""
        while self.poll() is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(LAUNCHER, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        self.send_signal(signal.SIGKILL)

    def _hear(self, seconds: float) -> bool:
        """Take in what has been told, waiting for at most so long; whether nothing can come any more."""
        if not select.select([self._answers], [], [], seconds)[0]:
            return False
        try:
            heard = self._answers.recv(4096)
        except OSError:
            heard = b""
        self._heard += heard
        return not heard


class Server:
    """The process that kernels are forked from; it lives until :meth:`close`, or as long as this one.

    Parameters
    ----------
    interpreter : list of str
        Python with its options.
    variables : dict of str to str
        Of its environment.
    folder : str
        The present folder of its kernels.
    imports : callable
        A function of a module, which imports what the kernels are to have.

    Raises
    ------
    OSError
        If it could not be started, or did not import everything.
    """

    def __init__(self, interpreter: list[str], variables: dict[str, str], *, folder: str,
                 imports: Callable[[], object] = libraries):
        self.variables = variables
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*interpreter, "-m", libraries.__module__, str(theirs.fileno()),
                 f"{imports.__module__}:{imports.__qualname__}"], env=variables, cwd=folder,
                pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ready = select.select([self._control], [], [], PATIENCE_S)[0] and self._control.recv(16)
        if not ready:
            self.close()
            raise OSError("the libraries could not be imported ahead")

    def fork(self, arguments: list[str], variables: dict[str, str]) -> Forked:
        """A kernel with a command line and variables of its own; OSError if the server is gone."""
        names = {*variables, *self.variables}
        changed = {name: variables.get(name) for name in names if variables.get(name) != self.variables.get(name)}
        answers, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"k"], [theirs.fileno(), 1, 2])
        answers.sendall(json.dumps({"arguments": arguments, "variables": changed}).encode() + b"\n")
        return Forked(answers)

    def close(self) -> None:
        """End it, and the kernels that it still has."""
        self._control.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Servers:
    """One server for each environment that kernels are started in, which is one as a rule; none before the first.

    Parameters
    ----------
    imports : callable
        As :class:`Server` takes it.
    """

    def __init__(self, imports: Callable[[], object] = libraries):
        self.imports = imports
        self._lock, self._servers, self._refused = threading.Lock(), {}, set()

    def fork(self, command: list[str], variables: dict[str, str], folder: str) -> Forked | None:
        """A kernel of a command line; None where it is no kernel of this Python, or none can be forked."""
        start = command.index("-m") if "-m" in command else len(command)
        if command[0] != sys.executable or command[start + 1:start + 2] != [LAUNCHER]:
            return None
        stable = tuple(sorted((name, value) for name, value in variables.items() if not _READ_LATER.fullmatch(name)))
        key = (tuple(command[:start]), stable, folder)
        for _ in range(2):  # a server that was killed meanwhile is started once more
            server = self._server(key, command[:start], variables, folder=folder)
            if server is None:
                return None
            try:
                return server.fork(command[start + 2:], variables)
            except OSError:
                with self._lock:
                    self._servers.pop(key, None)
                server.close()
        return None

    def _server(self, key: tuple, interpreter: list[str], variables: dict[str, str], *, folder: str) -> Server | None:
        with self._lock:
            if key not in self._servers and key not in self._refused:
                try:
                    self._servers[key] = Server(interpreter, variables, folder=folder, imports=self.imports)
                except OSError:
                    self._refused.add(key)
            return self._servers.get(key)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            for server in self._servers.values():
                server.close()
            self._servers.clear()


_SERVERS: list[Servers] = []  # the last of them is asked


@contextlib.contextmanager
def warm_kernels(imports: Callable[[], object] = libraries) -> Iterator[None]:
    """Within the block kernels are forked, where the system is Linux; elsewhere torch does not outlive a fork.

    What a notebook shows is the same either way. Where a kernel cannot be forked, a usual one is started.

    Parameters
    ----------
    imports : callable
        A function of a module, which imports what the kernels are to have.
    """
    with contextlib.closing(Servers(imports)) as servers, kernels_from(servers):
        yield


@contextlib.contextmanager
def kernels_from(servers: Servers) -> Iterator[None]:
    """As :func:`warm_kernels`, from servers that outlive the block."""
    if sys.platform != "linux":
        yield
        return
    _SERVERS.append(servers)
    try:
        yield
    finally:
        _SERVERS.remove(servers)


def kernel_manager() -> dict[str, Any]:
    """What nbclient is told so that it starts kernels from here; nothing outside of :func:`warm_kernels`."""
    return {"kernel_manager_class": WarmManager} if _SERVERS else {}


class WarmManager(AsyncKernelManager):
    """Jupyter's own manager of a kernel, whose process comes from :class:`WarmProvisioner`."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.provisioner = WarmProvisioner(kernel_id="", kernel_spec=self.kernel_spec, parent=self)


class WarmProvisioner(LocalProvisioner):
    """Forks the kernel's process where it can; everything else is as with any kernel."""

    async def launch_kernel(self, cmd: list[str], **how: Any) -> dict[str, Any]:
        """Start the kernel and leave its process's number beside its connection file."""
        folder = str(how.get("cwd") or Path.cwd())
        self.process = _SERVERS[-1].fork(cmd, how["env"], folder) if _SERVERS else None
        if self.process is None:
            await super().launch_kernel(cmd, **how)
        else:
            self.pid = self.pgid = self.process.pid  # it leads a session of its own
            self.cwd = folder
        Path(self.parent.connection_file).with_name(PID).write_text(str(self.pid), encoding="ascii")
        return self.connection_info
