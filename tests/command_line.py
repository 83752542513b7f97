"""The command line as tests call it."""

from collections.abc import Callable

Lfdm = Callable[..., tuple[int, str, str]]
"""Runs a command line in an empty folder and returns exit code, stdout and stderr; the fixture `lfdm`."""
