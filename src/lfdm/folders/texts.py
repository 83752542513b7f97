"""Text of files and names: read up to a size, and shown in one line. Imports no torch."""

import unicodedata
from pathlib import Path

from lfdm.errors import UserError

MAX_TEXT_BYTES = 2**27
"""Most bytes of a table, list or JSON file: a table of a million clips has about as many."""
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, parts of names that are not UTF-8, and separators of lines."""


def read_whole(path: Path) -> bytes:
    """Return the content of a text file; UserError for one of over `MAX_TEXT_BYTES`, which would fill the memory."""
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{path}: over {MAX_TEXT_BYTES >> 20} MB, which no such file needs")
    return data


def is_printable(text: str) -> bool:
    """Return whether a text can be shown in one line: it has no control characters and, if it is a name, is UTF-8."""
    return text.isprintable() or all(unicodedata.category(character) not in _UNPRINTABLE for character in text)


def printable(text: str) -> str:
    r"""Return a text in one line, with its other characters as codes: escape sequences could change the terminal.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return text if is_printable(text) else "".join(c if is_printable(c) else f"\\x{ord(c):x}" for c in text)
