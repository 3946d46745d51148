"""Values between the judge and the judged: a plain format, framed for a pipe.

JSON in which None, bool, str and int stand for themselves and all else is a list that begins with its kind. What is
read back consists of Python's own types only, made anew, so that no value brings behaviour of its own along: an
object with an ``__eq__`` that is always true has no form here, and an int of a subclass arrives as the int it holds.
"""

import itertools
import json
import os
from collections.abc import Callable

LONGEST = 2**22  # bytes of one message
MOST_ITEMS = 100_000  # of what is iterated over to send it
DEEPEST = 100
LONG_INT = 10_000  # bits from which on an int goes as hex: Python refuses long decimals

_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}


class Odd(Exception):
    """A message that is not in the format, or a value that has no form in it."""


def encode(value: object, depth: int = 0) -> object:
    """A value as what :func:`decode` takes; an object of a subclass of a plain type as the plain value that it holds.

    Other things that can be iterated over (a range, a generator, the keys of a dictionary) go as an iterator: equal to
    nothing, as they are, but with the same items.

    Raises
    ------
    Odd
        If the value has no form here, is deeper than 100 or has more than 100,000 items to iterate over.
    """
    if depth > DEEPEST:
        raise Odd(f"a value that is nested deeper than {DEEPEST}")
    for kind, form in _SCALARS.items():
        if isinstance(value, kind):
            return form(value)
    if isinstance(value, dict):
        return ["dict", *(encode(part, depth + 1) for pair in dict.items(value) for part in pair)]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(encode(item, depth + 1) for item in kind.__iter__(value))]
    if not hasattr(type(value), "__iter__"):
        raise Odd(f"a value of the type {type(value).__name__}, which is not plain data")
    items = list(itertools.islice(value, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise Odd(f"more than {MOST_ITEMS} items")
    return ["iterator", *(encode(item, depth + 1) for item in items)]


# By the types' own methods: what a subclass puts in their place is not asked.
_SCALARS: dict[type, Callable] = {
    type(None): lambda value: None,
    bool: lambda value: value,
    str: str.__str__,
    int: lambda value: (int.__index__(value) if int.bit_length(value) < LONG_INT
                        else ["int", int.__format__(value, "x")]),
    float: lambda value: ["float", float.hex(value)],
    complex: lambda value: ["complex", *(float.hex(part.__get__(value)) for part in (complex.real, complex.imag))],
    bytes: lambda value: ["bytes", bytes.hex(value)],
}


def decode(sent: object, depth: int = 0) -> object:
    """The value that a message stands for, of Python's own types only.

    Raises
    ------
    Odd
        If it stands for none.
    """
    if sent is None or type(sent) in (bool, int, str):
        return sent
    if type(sent) is not list or not sent or type(sent[0]) is not str or depth > DEEPEST:
        raise Odd("a message that is not in the format")
    kind, *parts = sent
    try:
        if kind in _SEQUENCES:
            return _SEQUENCES[kind]([decode(part, depth + 1) for part in parts])
        if kind == "dict":
            values = [decode(part, depth + 1) for part in parts]
            return dict(zip(values[::2], values[1::2], strict=True))
        if kind == "int":
            return int(*parts, 16)
        if kind == "float":
            return float.fromhex(*parts)
        if kind == "complex":
            return complex(*map(float.fromhex, parts))
        if kind == "bytes":
            return bytes.fromhex(*parts)
    except (TypeError, ValueError, OverflowError) as error:
        raise Odd("a message that is not in the format") from error
    raise Odd("a message that is not in the format")


def send(pipe: int, message: object) -> None:
    """Write one message, its length before it.

    Raises
    ------
    Odd
        If it is longer than 4 MiB.
    OSError
        If nobody reads the pipe any more.
    """
    text = json.dumps(message).encode()
    if len(text) > LONGEST:
        raise Odd(f"more than {LONGEST} bytes")
    text = len(text).to_bytes(4, "big") + text
    while text:
        text = text[os.write(pipe, text):]


def receive(pipe: int) -> object:
    """One message as it was sent; None once the pipe's other end is closed.

    Raises
    ------
    Odd
        If what came is no message.
    """
    length = int.from_bytes(_read(pipe, 4), "big")
    if length > LONGEST:
        raise Odd(f"more than {LONGEST} bytes")
    text = _read(pipe, length)
    if not length or len(text) < length:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Odd("a message that is not in the format") from error


def _read(pipe: int, count: int) -> bytes:
    pieces = b""
    while len(pieces) < count and (piece := os.read(pipe, count - len(pieces))):
        pieces += piece
    return pieces


def line_of(error: BaseException) -> str:
    """An exception in one line of at most 200 characters, as a traceback ends."""
    try:
        said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    except Exception:  # a class of the program's own may do anything when it is asked for its text
        said = ""
    name = str(type(error).__name__)
    return (said if isinstance(error, Odd) else f"{name}: {said}" if said else name)[:200]
