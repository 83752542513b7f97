"""Run one command line or function in a forked process, with limits of time and memory, and see how it ended.

The parent has imported everything once: a fresh process would take seconds for its imports.
"""

import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lfdm.cli import COMMANDS, DESCRIPTION
from lfdm.cli.console import EXIT_BUG, EXIT_USER_ERROR, run_process
from lfdm.errors import MissingExtraError, UserError

MAX_SECONDS = 30
"""Processor time after which a case counts as hanging: on a shared machine the wall clock tells little."""
MAX_WALL_SECONDS = 300
"""Time after which a process that waits counts as hanging, on a machine that also does other work."""
MAX_MEGABYTES = 2048
"""Memory that a case may need above that of the idle process."""
_POLL_SECONDS = 0.01
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MESSAGES = "messages.txt"
"""Name of the file that holds stdout and stderr of a case, next to its folder."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a case ended."""

    code: int
    """Exit code; minus the signal's number if one ended the process."""
    seconds: float
    """Processor time."""
    megabytes: float
    """Peak memory above that of the process before the case."""
    output: str
    """Standard output and error."""
    stopped: str = ""
    """Why the parent ended the process: "time" or "memory"."""

    @property
    def refused(self) -> bool:
        """True if the case ended with an error message for the user."""
        return self.code == EXIT_USER_ERROR

    def fault(self) -> str:
        """Return what broke the promise, or an empty string."""
        if self.stopped == "time":
            return f"no end after {MAX_SECONDS} s of processor time or {MAX_WALL_SECONDS} s: {self.output[-300:]}"
        if self.stopped == "memory" or self.megabytes > MAX_MEGABYTES:
            return f"{self.megabytes:.0f} MB of memory: {self.output[-300:]}"
        if self.code not in (0, EXIT_USER_ERROR) or "Traceback (most recent call last)" in self.output:
            return f"exit code {self.code}: {self.output}"
        return ""


def run_words(words: Sequence[str], folder: Path) -> Ending:
    """Run a command line of lfdm in `folder`."""
    return run_forked(lambda: run_process(COMMANDS, words, DESCRIPTION), folder)


def run_call(call: Callable[[], object], folder: Path) -> Ending:
    """Run a function; the errors that it may raise count as a refusal, any other one as a traceback."""

    def attempt() -> int:
        try:
            call()
        except (UserError, MissingExtraError, OSError) as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
            return EXIT_USER_ERROR
        return 0

    return run_forked(attempt, folder)


def run_forked(action: Callable[[], int], folder: Path) -> Ending:
    """Run `action` in a forked process in `folder`; it returns the exit code. All processes that it starts end with it."""
    messages = folder.with_name(f"{folder.name}-{_MESSAGES}")
    process = os.fork()
    if process == 0:
        os._exit(_run_child(action, folder, messages))
    before = _megabytes(process) or _megabytes(os.getpid())  # of its parent, if it has ended already
    started, stopped, peak = time.monotonic(), "", before
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            break
        peak = max(peak, _megabytes(process))
        late = time.monotonic() - started > MAX_WALL_SECONDS
        if not stopped and (late or peak - before > MAX_MEGABYTES):
            stopped = "time" if late else "memory"
            os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    _end_group(process)
    code = os.waitstatus_to_exitcode(status)
    output = messages.read_text(errors="replace")
    messages.unlink()
    peak = max(peak, usage.ru_maxrss / 1024)
    seconds = usage.ru_utime + usage.ru_stime
    stopped = "time" if code == -signal.SIGXCPU else stopped
    return Ending(code=code, seconds=seconds, megabytes=peak - before, output=output, stopped=stopped)


def _run_child(action: Callable[[], int], folder: Path, messages: Path) -> int:
    os.setsid()
    os.chdir(folder)
    target, nothing = os.open(messages, os.O_WRONLY | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
    for source, number in ((nothing, 0), (target, 1), (target, 2)):
        os.dup2(source, number)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return action()
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
        return EXIT_BUG


def _end_group(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _megabytes(process: int) -> float:
    """Return the memory of a process now; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE / 2**20
    except (OSError, IndexError):
        return 0.0
