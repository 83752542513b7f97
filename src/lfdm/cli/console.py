"""The terminal: parse with tyro, draw progress bars, show one line per error. Imports neither torch nor diffusers."""

import contextlib
import difflib
import functools
import inspect
import io
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tyro

from lfdm.cli.common_options import CommonOptions, split_common
from lfdm.cli.settings_file import options_from_file
from lfdm.cli.text_forms import text_forms
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.disk import disk_error
from lfdm.folders.texts import printable
from lfdm.training.interruption import TrainingInterrupted

PROGRAM = "lfdm"
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_CLOSED_PIPE = 128 + 13
"""Exit code of a program that SIGPIPE ended, which Windows does not define."""
MAX_MESSAGE = 4000
"""Most characters of an error message that are shown."""
LINE_SECONDS = 30.0

Values: TypeAlias = Mapping[str, Any]
"""The result of a command for programs; paths are printed as strings."""
Command = Callable[..., Values | None]
"""Prints its result as text, and returns it if it has any."""


@dataclass(frozen=True)
class Group:
    """Commands under a common word."""

    help: str
    commands: "CommandTree"


CommandTree: TypeAlias = Mapping[str, "Command | Group"]


class IncompleteError(UserError):
    """Some of what was requested failed; `values` are the result."""

    def __init__(self, message: str, values: Values) -> None:
        super().__init__(message)
        self.values = values


def run(tree: CommandTree, arguments: Sequence[str], description: str) -> int:
    """Run one command line and return its exit code.

    An error that the user can correct is one line on stderr and exit code 2. Any other exception is a bug: its traceback, how to
    report it, and exit code 1. docs/reference/commands.md lists the exit codes.
    """
    show_traceback = False
    try:
        common, words = split_common(arguments)
        show_traceback = common.traceback
        with warnings.catch_warnings(), _exiting_on_sigterm():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # our own error says in one line what is wrong with an image
            _dispatch(tree, words, PROGRAM, description, common)
    except KeyboardInterrupt as stop:
        _print_error(str(stop) or "interrupted")
        return 128 + (stop.signal_number if isinstance(stop, TrainingInterrupted) else signal.SIGINT)
    except SystemExit as stop:  # tyro has printed its help or an error
        return stop.code if isinstance(stop.code, int) else EXIT_USER_ERROR
    except BrokenPipeError:  # no error of the command: see `run_process`
        raise
    except Exception as error:
        return _report_error(error, show_traceback)
    return 0


def run_process(tree: CommandTree, arguments: Sequence[str], description: str) -> int:
    """Return what `run` returns, also where stdout or stderr is closed, is a pipe, or has an encoding that lacks characters.

    Where the reader of a pipe has gone, as in `lfdm --help | head -2`, the process ends without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere  # None: closed from the start
        try:
            code = run(tree, arguments, description)
            sys.stdout.flush()
        except OSError as error:
            code = EXIT_CLOSED_PIPE if isinstance(error, BrokenPipeError) else EXIT_USER_ERROR
            if code != EXIT_CLOSED_PIPE:
                with contextlib.suppress(OSError):
                    _print_error(f"output not written: {error}")
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere.fileno(), stream.fileno())  # Python flushes both again at its end
    return code


def _report_error(error: Exception, show_traceback: bool) -> int:
    """Print an error and return the exit code."""
    message = _user_message(error)
    if message is None or show_traceback:
        traceback.print_exception(error)
    if message is None:
        _print_error(
            "unexpected error, most likely a bug in lfdm. Please report it with the traceback above, your command line and the "
            f"output of `{PROGRAM} info`"
        )
        return EXIT_BUG
    _print_error(message)
    return EXIT_USER_ERROR


def _user_message(error: Exception) -> str | None:
    """Return the line that tells the user what to change, or None for a bug of ours."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        return str(disk_error(error, error.filename) or text)
    if isinstance(error, UserError | MissingExtraError | OSError):
        return text
    lacks_memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)  # torch's out-of-memory errors, recognised without importing torch
        and any(words in text.lower() for words in ("out of memory", "can't allocate memory"))
    )
    return f"not enough memory for these sizes; use smaller ones ({text})" if lacks_memory else None


@contextlib.contextmanager
def _exiting_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM (sent by batch systems) into SystemExit, so that incomplete files are removed.

    A command may install a handler of its own in the meantime.
    """

    def leave(*_: object) -> None:
        raise SystemExit(EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(tree: CommandTree, arguments: list[str], program: str, description: str, common: CommonOptions) -> None:
    """Find the named command and parse its arguments; parsers of other commands are not built, which takes long."""
    entry = tree.get(arguments[0]) if arguments else None
    if isinstance(entry, Group):
        return _dispatch(entry.commands, arguments[1:], f"{program} {arguments[0]}", entry.help, common)
    if entry is not None:
        words = arguments[1:]
        if common.json and "--help" not in words and inspect.signature(entry).return_annotation in (None, "None"):
            raise UserError(f"--json has no effect on {program} {arguments[0]}, which has no result; leave it out")
        if common.config is not None:  # what stands later wins; an option of many values must not take IMAGE and the like
            start = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
            words[start:start] = options_from_file(common.config, entry)
        with _short_errors():
            bound = tyro.cli(binding(entry), prog=f"{program} {arguments[0]}", args=words, registry=text_forms())
        return _run_bound(bound, common)
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], tree, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown {arguments[0]!r} after {program!r}; {hint}allowed: {', '.join(tree)}")
    listed = {name: entry if not isinstance(entry, Group) else _described(entry.help) for name, entry in tree.items()}
    with _short_errors():
        tyro.extras.subcommand_cli_from_dict(listed, prog=program, args=arguments or ["--help"], description=description)
    return None


def _run_bound(command: Callable[[], Values | None], common: CommonOptions) -> None:
    """Run a command: with --quiet without its progress, notes and warnings (stderr), with --json without its text (stdout)."""
    values: Values | None = None
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.ExitStack() as redirections:
            if common.quiet:
                redirections.enter_context(contextlib.redirect_stderr(nowhere))
            if common.json:
                redirections.enter_context(contextlib.redirect_stdout(nowhere))
            values = command()
    except IncompleteError as error:
        values = error.values
        raise
    finally:
        if common.json and values is not None:
            print(json.dumps(values, indent=2, ensure_ascii=False, default=str))


def binding(command: Command) -> Callable[..., Callable[[], Values | None]]:
    """Return a function with the signature of `command` that binds the arguments; run later, outside of tyro's error handling."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Values | None]:
        return functools.partial(command, *args, **kwargs)

    return bind


def _described(text: str) -> Command:
    def listed() -> None: ...

    listed.__doc__ = text
    return listed


@contextlib.contextmanager
def _short_errors() -> Iterator[None]:
    """Shorten tyro's box for an invalid value to one line; keep its box for unknown options, which holds suggestions.

    With NO_COLOR, tyro writes its help to a buffer, for which it uses no colours.
    """
    buffer, help_text = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(buffer),
            contextlib.redirect_stdout(help_text if os.environ.get("NO_COLOR") else sys.stdout),
        ):
            yield
    except SystemExit as stop:
        text = buffer.getvalue()
        if stop.code and "Unrecognized" not in text:
            _print_error(_first_section(text))
        else:
            sys.stderr.write(text)
        sys.stdout.write(help_text.getvalue())
        raise
    sys.stderr.write(buffer.getvalue())


def _first_section(box: str) -> str:
    """Return the text of a box up to its first rule or empty line, without title and frame (dashes without Unicode)."""
    words: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        text = line.strip("│ \t")
        if text and not set(text) <= set("─-╭╮╰╯"):
            words.append(text)
        elif words:
            break
    return " ".join(words) or "wrong arguments; see --help"


def _print_error(message: str) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > MAX_MESSAGE:  # a wrong value can be a file's worth of text
        line = f"{line[: MAX_MESSAGE // 2]} [...] {line[-MAX_MESSAGE // 2 :]}"
    sys.stderr.write(f"{PROGRAM}: {line}\n")


class ProgressBars:
    """A `Progress` with one bar on stderr for each named work; `note` is shown after the bar.

    Where stderr is no terminal, such as a log file, a line is printed every `LINE_SECONDS` and at the end of each work instead.
    """

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        self._bars = progress.Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, progress.TaskID] = {}
        self._printed = time.monotonic()

    def __call__(self, work: str, done: int, total: int, *, note: str = "") -> None:
        if not self._bars.console.is_terminal:
            if done >= total or time.monotonic() > self._printed + LINE_SECONDS:
                self._printed = time.monotonic()
                self.print(f"{work} {done}/{total} {note}".rstrip())
            return
        if not self._tasks:
            self._bars.start()  # no earlier: an error before the first update stays the only line
        if work not in self._tasks:
            self._tasks[work] = self._bars.add_task(work, total=total, note=note)
        self._bars.update(self._tasks[work], completed=done, total=total, note=note)

    def print(self, text: str) -> None:
        """Print text on stderr, above bars that are shown."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing; the last state stays on the screen."""
        if self._tasks:
            self._bars.stop()


def progress_bar() -> contextlib.closing[ProgressBars]:
    """Return a context manager around progress bars."""
    return contextlib.closing(ProgressBars())
