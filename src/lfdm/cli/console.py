"""The terminal: parsing by tyro, progress bars, one line per error. Imports neither torch nor diffusers."""

import contextlib
import difflib
import functools
import io
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import tyro

from lfdm.errors import UserError

PROGRAM = "lfdm"
EXIT_WRONG_VALUE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 128 + signal.SIGTERM

Command = Callable[..., None]


@dataclass(frozen=True)
class Group:
    """Commands below a common word."""

    help: str
    commands: "CommandTree"


CommandTree: TypeAlias = Mapping[str, "Command | Group"]


def run(tree: CommandTree, arguments: Sequence[str], description: str) -> int:
    """Run one command line; the exit code. What a user got wrong is one line on stderr and code 2."""
    try:
        with warnings.catch_warnings(), _cleaning_up_when_terminated():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a picture, an error of ours says in one line
            _dispatch(tree, list(arguments), PROGRAM, description)
    except KeyboardInterrupt:
        _print_error("interrupted")
        return EXIT_INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        _print_error(str(error) or type(error).__name__)
        return EXIT_WRONG_VALUE
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        _print_error(f"not enough memory for these sizes; use smaller ones ({error or type(error).__name__})")
        return EXIT_WRONG_VALUE
    except SystemExit as stop:  # tyro has printed its help or its complaint
        return stop.code if isinstance(stop.code, int) else EXIT_WRONG_VALUE
    return 0


@contextlib.contextmanager
def _cleaning_up_when_terminated() -> Iterator[None]:
    """Of SIGTERM (batch systems send it) make an exit like any other, which removes what is half written."""

    def leave(*_: object) -> None:
        raise SystemExit(EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():  # it alone may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lacks_memory(error: BaseException) -> bool:
    """Also torch's kind, a RuntimeError that is told by its words (torch is not imported here)."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def _dispatch(tree: CommandTree, arguments: list[str], program: str, description: str) -> None:
    """Walk down to the command that is named and parse its arguments alone, so that no other parser is built."""
    chosen = tree.get(arguments[0]) if arguments else None
    if isinstance(chosen, Group):
        return _dispatch(chosen.commands, arguments[1:], f"{program} {arguments[0]}", chosen.help)
    if chosen is not None:
        with _short_complaints():
            bound = tyro.cli(_binding(chosen), prog=f"{program} {arguments[0]}", args=arguments[1:])
        return bound()
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], tree, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown {arguments[0]!r} after {program!r}; {hint}allowed: {', '.join(tree)}")
    listed = {name: entry if not isinstance(entry, Group) else _described(entry.help) for name, entry in tree.items()}
    with _short_complaints():
        tyro.extras.subcommand_cli_from_dict(listed, prog=program, args=arguments or ["--help"], description=description)
    return None


def _binding(command: Command) -> Callable[..., Callable[[], None]]:
    """`command` with its signature, which when called is bound instead of run: its errors are not tyro's to catch."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return bind


def _described(text: str) -> Command:
    def listed() -> None: ...

    listed.__doc__ = text
    return listed


@contextlib.contextmanager
def _short_complaints() -> Iterator[None]:
    """tyro's box for a wrong value becomes one line; that for unknown options, with its suggestions, is printed as it is."""
    buffer = io.StringIO()
    try:
        with contextlib.redirect_stderr(buffer):
            yield
    except SystemExit as stop:
        text = buffer.getvalue()
        if stop.code and "Unrecognized" not in text:
            _print_error(_first_section(text))
        else:
            sys.stderr.write(text)
        raise
    sys.stderr.write(buffer.getvalue())


def _first_section(box: str) -> str:
    """The text of a box up to its first rule or empty line, without title and frame (of dashes where there is no Unicode)."""
    kept: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        text = line.strip("│ \t")
        if text and not set(text) <= set("─-╭╮╰╯"):
            kept.append(text)
        elif kept:
            break
    return " ".join(kept) or "wrong arguments; see --help"


def _print_error(message: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {' '.join(message.split())}\n")


class ProgressBars:
    """One bar on stderr per kind of work; a `Progress` whose `note` stands to the right of the bar."""

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

    def __call__(self, work: str, done: int, total: int, *, note: str = "") -> None:
        if not self._tasks:
            self._bars.start()  # not earlier: an error before the work begins must stay the only line
        if work not in self._tasks:
            self._tasks[work] = self._bars.add_task(work, total=total, note=note)
        self._bars.update(self._tasks[work], completed=done, total=total, note=note)

    def close(self) -> None:
        """Stop drawing; what is on the screen stays."""
        if self._tasks:
            self._bars.stop()


def progress_bar() -> contextlib.closing[ProgressBars]:
    """Context manager that gives progress bars and closes them."""
    return contextlib.closing(ProgressBars())
