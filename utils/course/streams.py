"""What a command owes to the terminal: output that may go unread, signals that end in a sentence, no child left."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

import psutil

from utils.errors import one_line

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows has one
PATIENCE_S = 5.0  # seconds that children are given to end


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP: what Ctrl-C is to a person, a batch system's and a closed terminal's way to say it."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class Unread:
    """A text stream whose loss stops no work: what can no longer be written is dropped, and why is kept.

    A reader such as ``head`` that has seen enough, or a disk that is full, ends the output and not the course.

    Attributes
    ----------
    lost : OSError or None
        The first failed write.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.lost = stream, None
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows an epsilon as an escape

    def write(self, text: str) -> int:
        """Write what can be written; all of it counts as written."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._try(self._stream.flush)

    def _try(self, action, *arguments) -> None:
        if self.lost is None:
            try:
                action(*arguments)
            except OSError as error:
                self.lost = error
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    # What is still in its buffer, and what children write, has to go somewhere.
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, self._stream.fileno())
                    os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unread_output() -> Iterator[tuple[Unread, Unread]]:
    """Standard output and error as :class:`Unread` within the block; a closed one writes to nowhere."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        streams = tuple(Unread(stream if stream is not None else stack.enter_context(open(os.devnull, "w")))  # noqa: PTH123
                        for stream in before)
        sys.stdout, sys.stderr = streams
        try:
            yield streams
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise :class:`Stopped`, unless they were ignored before, as by ``nohup``."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Within the block no signal to stop is heard: the work is being stopped already, and takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_children(processes: list[psutil.Process], *, patience_s: float = PATIENCE_S) -> None:
    """End these processes and all that descend from them, by force after `patience_s` seconds."""
    every = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            every += process.children(recursive=True)
    every = [process for process in every if not _ends_by_itself(process)]
    for kill in (False, True) if patience_s else (True,):
        for process in every:
            with contextlib.suppress(psutil.Error):
                (process.kill if kill else process.terminate)()
        _, every = psutil.wait_procs(every, timeout=patience_s or PATIENCE_S)


def _ends_by_itself(process: psutil.Process) -> bool:
    """multiprocessing's resource tracker hears no signal, and ends as soon as those that it tracks for have ended."""
    with contextlib.suppress(psutil.Error):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


def say_error(sentence: str) -> None:
    """One line on stderr, whatever the sentence holds and whatever the terminal can show."""
    print(f"error: {one_line(sentence)}", file=sys.stderr)
