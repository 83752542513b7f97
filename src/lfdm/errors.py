"""The errors that a user can correct. Any other exception is a bug and keeps its traceback."""


class UserError(ValueError):
    """A value, file or combination of options that is not allowed; the message says what was given and what is allowed.

    The command line shows it as one line, the web page as a message.
    """


class MissingExtraError(ImportError):
    """An optional dependency that is not installed; the message holds the pip command."""
