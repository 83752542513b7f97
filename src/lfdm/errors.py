"""The error that a user can correct. Everything else that is raised is a fault of ours and keeps its traceback."""


class UserError(ValueError):
    """A value, file or combination that is not allowed; the message names what was got and what is allowed.

    The command line shows it as one line, the web page as a message.
    """
