"""A cell that begins a process and waits, and a Ctrl-C that comes once it has; beside conftest's ``ctrl_c``."""

import _thread
import threading
import time
from pathlib import Path


def interrupted_cell(mark: Path) -> str:
    """The cell's code, whose process's number is written to `mark`; an interruption of this process follows that."""
    def interrupt() -> None:
        while not (mark.exists() and mark.read_text()):
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    return ("import subprocess, time\nfirst = subprocess.Popen(['sleep', '300'])\n"
            f"open({str(mark)!r}, 'w').write(str(first.pid))\ntime.sleep(300)")
