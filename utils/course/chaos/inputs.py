"""Bad inputs over every command: words, files, checkpoints, variables, signals; one sentence is due to each."""

from utils.course.chaos import command_lines, given_checkpoints, processes, profile_files, surroundings
from utils.course.chaos.case import Case

PARTS = (command_lines, profile_files, given_checkpoints, surroundings, processes)


def cases(*, quick: bool) -> list[Case]:
    """All of them, or about 25 that take seconds.

    A case holds if the command ends with the status that is due, in exactly one printable line on stderr that begins
    with "error: " (none where the input is fine), without a traceback, and with every tracked file as it was.
    """
    return [case for part in PARTS for case in part.cases(quick=quick)]
