"""Generated code, run where it can do no harm; on a system that cannot promise that, it is not run at all.

Each program gets a process of its own that has locked itself in (:mod:`inside.jail`) before the program's first line:
it reads Python's and the system's libraries without other packages, writes plain files in its scratch folder, and has
no network, no second process or thread, no signal to others, no privileges, an empty environment, a low priority, and
limits on time, memory, files and output. It cannot tell what is or is not anywhere else (:mod:`.paths`). The kernel
enforces this (Landlock, seccomp, rlimits), so that it holds for native code as well as for Python. It needs Linux 6.2
or later on x86_64 or aarch64, where a process may read its children's memory; no rights of root.

A program is judged by tests in a second locked process, which it cannot reach but by answering (:func:`judge`). A
program that is merely run has the only word on how it fared, and nothing is made of that word.

What it does not promise: the size of all files together is looked at fifty times a second and whenever a file is
opened for writing, so that the 32 files which a program can have open may each grow to the limit of one file for an
instant; and where a session is killed, its scratch folders stay until the next one starts.
"""

from utils.evaluation.sandbox.results import Availability, Execution, FunctionTests, Limits, Verdict
from utils.evaluation.sandbox.run import judge, judge_many, run_many, run_python, sandbox_available

__all__ = ["Availability", "Execution", "FunctionTests", "Limits", "Verdict", "judge", "judge_many", "run_many",
           "run_python", "sandbox_available"]
