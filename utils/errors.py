"""The two ways the project fails on purpose: one clear sentence and an exit status."""


class CourseError(Exception):
    """Something went wrong that the reader can act on; the message is one sentence. Exit status 1."""

    exit_status = 1


class UsageError(CourseError):
    """The request itself was wrong (unknown name, impossible value). Exit status 2."""

    exit_status = 2
