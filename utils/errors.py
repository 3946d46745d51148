"""The two ways the project fails on purpose, and how any text becomes one that a terminal can show."""

import os
import re


class CourseError(Exception):
    """Something went wrong that the reader can act on; the message is one sentence. Exit status 1."""

    exit_status = 1


class UsageError(CourseError):
    """The request itself was wrong (unknown name, impossible value). Exit status 2."""

    exit_status = 2


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""A text in which everything but printable characters, and those of `keep`, is written as an escape.

    So NUL, bells, terminal sequences, marks that turn the direction of writing, and halves of surrogate pairs are seen
    and do nothing.

    Examples
    --------
    >>> printable("red: \x1b[31m, é\n")
    'red: \\x1b[31m, é\n'
    """
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def one_line(text: str, limit: int = 1200) -> str:
    r"""`text` as one printable line: line breaks, control characters and lone surrogates are written as escapes.

    Names and values that people give stand in our sentences; none of them may break the line or move the cursor.

    Parameters
    ----------
    text : str
    limit : int
        Characters that are shown of it; from a longer one the middle is left out.

    Examples
    --------
    >>> print(one_line("no file a\nb" + chr(27)))
    no file a\nb\x1b
    """
    if len(text) > limit:
        text = f"{text[:limit // 2]} … {text[-limit // 2:]}"
    return printable(text, keep="")


def reason_of(error: BaseException) -> str:
    """Why something failed, in the system's or the library's own words, without what they add for machines.

    >>> reason_of(PermissionError(13, "Permission denied", "/etc/x"))
    'Permission denied'
    """
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return " ".join(str(error).split()) or type(error).__name__


def os_error_in(error: BaseException) -> OSError | None:
    """The system's own error in one that a library raised for it; safetensors only quotes its number.

    >>> os_error_in(ValueError("I/O error: No space left on device (os error 28)")).errno
    28
    """
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None
