"""The errors that a user can correct. Any other exception is a bug and keeps its traceback."""

import re

_LONG_VALUE = re.compile(r"(?<!\w)(['\"])((?:(?!\1).){60})(?:(?!\1).){100,}?((?:(?!\1).){40})\1(?!\w)")
"""A quoted value of over 200 characters, with its beginning and its end. An apostrophe within a word is no quote."""


class UserError(ValueError):
    """A value, file or combination of options that is not allowed; the message says what was given and what is allowed.

    The command line shows it as one line, the web page as a message. Of a very long quoted value it shows beginning and end.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_LONG_VALUE.sub(r"\1\2...\3\1", message))


class MissingExtraError(ImportError):
    """An optional dependency that is not installed; the message holds the pip command."""
