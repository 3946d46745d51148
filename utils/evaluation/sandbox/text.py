"""What programs wrote, made fit for tables and screens."""


def printable(text: str) -> str:
    r"""A text in which everything but printable characters, line breaks and tabs is written as an escape.

    So NUL, bells, terminal sequences, marks that turn the direction of writing, and halves of surrogate pairs are seen
    and do nothing. The one place through which output, exceptions and results of programs come out of the sandbox.

    Examples
    --------
    >>> printable("red: \x1b[31m, é\n")
    'red: \\x1b[31m, é\n'
    """
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
