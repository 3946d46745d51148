"""What a program may use, and what is known about it afterwards."""

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from utils.errors import UsageError

Status = Literal["finished", "failed", "timed out", "killed", "too much output"]


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes
    ----------
    wall_seconds : float
        From the program's first line to its end.
    cpu_seconds : int
        Of processor time, whole seconds.
    memory_mib : int
        Of address space; the interpreter itself takes about 30.
    output_bytes : int
        Of standard output and error together; the rest is cut off and the program killed.
    file_mib : int
        Of one file, and of all files in the scratch folder together.
    """

    wall_seconds: float = 5
    cpu_seconds: int = 5
    memory_mib: int = 512
    output_bytes: int = 20_000
    file_mib: int = 1

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value <= 0 or (name != "wall_seconds" and value != int(value)):
                kind = "positive number" if name == "wall_seconds" else "positive whole number"
                raise UsageError(f"Expected {name} to be a {kind}, got {value!r}; do give one.")


@dataclass(frozen=True)
class Execution:
    """How a program ended: its exit code and its output are its own words, and it can say what it likes.

    Attributes
    ----------
    status : str
        ``finished`` (exit code 0), ``failed`` (another exit code), ``timed out`` (wall or processor time), ``killed``
        (a signal, or too much in its folder), ``too much output``.
    exit_code : int
        The process's; negative for the signal that ended it.
    output : str
        Standard output and error, cut at the limit; what does not print is escaped.
    seconds : float
        From the program's first line to the end of the process.
    """

    status: Status
    exit_code: int
    output: str
    seconds: float


@dataclass(frozen=True)
class FunctionTests:
    """Trusted tests of one function.

    Attributes
    ----------
    entry_point : str
        The function's name.
    text : str
        Defines ``check(candidate)``, which raises unless the function is right.
    helpers : str
        Run before the tests: what they use and the program should not be asked for.
    """

    entry_point: str
    text: str
    helpers: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its tests, decided in a process that the program cannot reach.

    Attributes
    ----------
    passed : bool
        The tests ran to their end.
    result : str
        ``passed``, ``failed: …`` with the exception in a line, ``timed out``, ``killed`` or ``too much output``.
    output : str
        The program's, as in :class:`Execution`.
    seconds : float
        From the program's first line to the verdict.
    """

    passed: bool
    result: str
    output: str
    seconds: float


class Availability(NamedTuple):
    """Whether generated code can be run here; true or false, with the reason in one sentence where it cannot."""

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available
