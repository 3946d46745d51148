"""``python -m utils``: fetch, course, train, reference, claims, where, runs, intruders, bench, chaos and some more.

Exit status 0 done, 1 failed, 2 misuse, 128 + n stopped by signal n (130 by Ctrl-C). One sentence on stderr says what
was wrong and what to do. Output that nobody reads any more stops no work.
"""

import sys
import traceback
from pathlib import Path

import psutil

from utils.course import commands, sharded
from utils.course.arguments import Parser, build_parser
from utils.course.streams import Stopped, deaf, end_children, say_error, signals_stop, unread_output
from utils.errors import CourseError, reason_of
from utils.paths import settle

RUNS = {"doctor": commands.doctor, "fetch": commands.fetch, "course": commands.course, "train": commands.train,
        "train-sharded": sharded.train_sharded,
        "intruders": commands.intruders,
        "bench": commands.bench, "build-base": commands.build_base, "reference": commands.reference,
        "claims": commands.claims, "where": commands.where, "runs": commands.runs, "chaos": commands.chaos}
# They keep what they have done.
GO_ON = ("fetch", "course", "train", "train-sharded", "intruders", "build-base", "reference")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with unread_output() as (output, _):
        status = _run(arguments)
        output.flush()
        if output.lost is not None and not isinstance(output.lost, BrokenPipeError):
            say_error(f"The output could not be written ({reason_of(output.lost)}); the work itself is done."
                      if status == 0 else f"The output could not be written ({reason_of(output.lost)}).")
            status = status or 1
    return status


def command_line() -> Parser:
    """The parser of all commands, which says one sentence where it cannot take what it is given."""
    called = Path(sys.argv[0]).stem  # the console script is this command line under a name of its own
    return build_parser(called if called == "lora-course" else "python -m utils", __doc__.splitlines()[0], RUNS)


def _run(arguments: list[str]) -> int:
    before = set(psutil.Process().children())
    try:
        with signals_stop():
            options = command_line().parse_args(arguments)
            settle()
            return options.run(options) or 0
    except SystemExit as end:  # argparse's, after --help
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        with deaf():
            end_children([child for child in psutil.Process().children() if child not in before])
            then = "goes on from here" if arguments and arguments[0] in GO_ON else "starts afresh"
            print(("\n" if sys.stderr.isatty() else "") + f"Interrupted; the same command {then}.", file=sys.stderr)
        return 128 + stop.number if isinstance(stop, Stopped) else 130
    except Exception as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        say_error(_sentence(error))
        return error.exit_status if isinstance(error, CourseError) else 1


def _sentence(error: Exception) -> str:
    """What a person can do about an error; what nobody foresaw says so."""
    if isinstance(error, CourseError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; see that it is there and yours to use, or run again with --traceback."
    if isinstance(error, MemoryError):
        return "There is too little memory for this; close other programs, or choose a smaller profile."
    return f"unexpected {type(error).__name__}: {reason_of(error)}. Run again with --traceback for the rest."
