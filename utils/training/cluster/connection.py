"""A Ray cluster to train on: one that is there, or one of this machine's own for as long as it is needed."""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from utils.errors import CourseError, reason_of
from utils.machine import available_cores
from utils.training.pool import free_memory_gib

PATIENCE_S = 20.0  # for a cluster that does not answer
OBJECTS_BYTES = 100 * 2**20  # of a Ray of our own, whose store is this machine's: nothing travels


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[Any]:
    """The module ``ray``, connected for as long as the block lasts.

    Parameters
    ----------
    address : str or None
        Of a cluster, or None for a Ray of our own on this machine.
    workers : int, optional
        Cores that a Ray of our own has.

    Raises
    ------
    CourseError
        If Ray is not installed, or nobody answers at the address within :data:`PATIENCE_S`.
    """
    prepare(own=address is None)
    try:
        import ray
    except ImportError as error:
        raise CourseError("Ray is not installed; `pip install 'lora-vs-full-course[ray]'` (or the requirements.txt of "
                          "the course) brings it.") from error
    if address is not None:
        _see_that_someone_answers(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **_own(workers) if address is None else
                 {"address": address})
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, OSError, ImportError) as error:
        where = f"at {address}" if address else "on this machine"
        raise CourseError(f"Ray {where} cannot be used: {reason_of(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray would end the process by another way than the command line does
    try:
        yield ray
    finally:
        ray.shutdown()


def prepare(*, own: bool) -> None:
    """Set Ray's environment: nobody is told that it is used, and whoever speaks to a Ray of our own needs a token.

    Its ports are open to the network, and who may speak to them may run anything. Without a token in the environment
    Ray would write one to the home folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if own:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" in sys.modules:  # it read the environment when it was imported
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def _own(workers: int | None) -> dict[str, Any]:
    """What a Ray of our own has: cores, the GPUs that Ray finds, and what is free of this machine's memory."""
    return {"address": "local", "include_dashboard": False, "num_cpus": workers or available_cores(),
            "object_store_memory": OBJECTS_BYTES, "_memory": int(free_memory_gib() * 2**30)}


def _see_that_someone_answers(address: str) -> None:
    """CourseError if nobody does; left to itself, Ray waits for minutes and then ends the process."""
    named = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    host, _, port = named.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # `auto`: Ray looks for one on this machine, and says at once if there is none
    nobody = f"Nobody answers at {named}"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S / 2).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise CourseError(f"{nobody} ({reason_of(error)}); see that the cluster runs (`ray status`) and can be reached "
                          "from here.") from error
    if named.startswith("ray://"):
        return  # a port that Ray's own client asks, with a timeout
    words = ["-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", f"{host}:{port}"]
    try:
        subprocess.run([sys.executable, *words], timeout=PATIENCE_S, check=True, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        raise CourseError(f"{nobody} as the head of a Ray cluster does; give the address that `ray start --head` "
                          "showed.") from error
