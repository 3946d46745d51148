"""Watching notebooks run: the peak memory of each one's processes, and one bar with the time left over all of them."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tqdm import tqdm

from utils.course.forked import PID
from utils.paths import notebook_number

UNKNOWN_SECONDS = 60.0  # what a notebook is expected to take before it was ever measured
INTERVAL_S = 0.5


@dataclass
class _Watched:
    folder: str | None  # of its kernel; None where a kernel has none of its own
    started: float = field(default_factory=time.monotonic)
    peak_gib: float = 0.0


class Watch(threading.Thread):
    """Samples the peak memory of the kernels' processes and moves the bar while notebooks run.

    Parameters
    ----------
    expected : dict of str to float
        Seconds that each notebook, by its stem, took when it was last measured.
    """

    def __init__(self, expected: dict[str, float]):
        super().__init__(daemon=True)
        self.expected, self.done_s = expected, 0.0
        self.running: dict[str, _Watched] = {}
        self._beginning = threading.Lock()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=round(sum(expected.values())), unit="s", dynamic_ncols=True,
                            bar_format="{desc} {bar} {percentage:3.0f}% about {remaining} left")

    def begin(self, notebook: str, kernel_folder: str | None) -> None:
        """Watch a notebook from here on; the thread starts with the first.

        Parameters
        ----------
        notebook : str
            Its stem.
        kernel_folder : str or None
            Tells the kernels of several notebooks apart: it is named on the kernel's command line, or holds the number
            of the kernel's process.
        """
        self.running[notebook] = _Watched(kernel_folder)
        with self._beginning:  # two that begin at once would both find it not alive yet
            if not self.is_alive():
                super().start()

    def finish(self, notebook: str) -> float:
        """Leave the notebook; returns its peak memory in GiB."""
        self._sample()
        self.skip(notebook)
        return self.running.pop(notebook).peak_gib

    def skip(self, notebook: str) -> None:
        """Count a notebook as done."""
        self.done_s += self.expected.get(notebook, UNKNOWN_SECONDS)
        self._move()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def run(self) -> None:
        """Sample until the process ends, as the thread that it is."""
        while True:
            time.sleep(INTERVAL_S)
            if self.running:
                self._sample()
                self._move()

    def _move(self) -> None:
        if self.bar is None:
            return
        now, position = time.monotonic(), self.done_s
        for name, watched in list(self.running.items()):
            position += min(now - watched.started, 0.98 * self.expected.get(name, UNKNOWN_SECONDS))
        short = notebook_number if len(self.running) > 1 else str
        self.bar.set_description_str(", ".join(short(name) for name in list(self.running)))
        self.bar.n = min(round(position), self.bar.total)
        self.bar.refresh()

    def _sample(self) -> None:
        for watched in list(self.running.values()):
            for kernel in _kernels(watched.folder):
                try:
                    peak = max(_peak_gib(one) for one in [kernel, *kernel.children(recursive=True)])
                except (psutil.Error, OSError):
                    continue  # it ended between the listing and the question
                watched.peak_gib = max(watched.peak_gib, peak)


def _kernels(folder: str | None) -> Iterator[psutil.Process]:
    """The process of the kernel of a folder; each child process where a kernel has no folder."""
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        if folder is not None and (number := Path(folder, PID)).exists():
            yield psutil.Process(int(number.read_text(encoding="ascii")))
            return
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, OSError):
            if folder is None or folder in " ".join(child.cmdline()):
                yield child


def _peak_gib(process: psutil.Process) -> float:
    """Linux keeps a process's peak (VmHWM); elsewhere the present size is sampled."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**20
    return process.memory_info().rss / 2**30
