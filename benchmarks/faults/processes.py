"""Commands in forked children of one process that has imported everything: a command starts in milliseconds and can be killed.

Forking needs a Unix system. The parent never computes with torch, whose threads a fork would not copy.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lfdm.cli import COMMANDS
from lfdm.cli.console import run_process

POLL_SECONDS = 0.002
MAX_SECONDS = 300.0
"""Seconds after which a command is taken to hang."""
MODULES = (
    "lfdm.training.stage1",
    "lfdm.training.stage2",
    "lfdm.training.adaptation",
    "lfdm.evaluation.protocol",
    "lfdm.data.corpora.folder",
    "lfdm.distributed.job",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
)
"""Modules that commands import when they run; imported by the parent, once."""
SLOW_SECONDS = 0.01
CRASH_CODE = 70


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended."""

    code: int
    """Exit code; minus the signal's number for one that was killed."""
    output: str
    """stdout and stderr together."""
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that is not a hint or empty."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def is_one_line(self) -> bool:
        """True if the command ended with one line of ours instead of a traceback."""
        return self.code == 2 and "Traceback" not in self.output and self.last_line.startswith("lfdm: ")


@dataclass(frozen=True, kw_only=True)
class Child:
    """A running command."""

    pid: int
    log: Path
    started: float

    def is_running(self) -> bool:
        """Return whether the command has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def finished(self) -> Finished | None:
        """Return the ended command, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return None if pid == 0 else self._finished(status)

    def wait(self, seconds: float = MAX_SECONDS) -> Finished:
        """Wait for the end; RuntimeError, and SIGKILL, for a command that hangs."""
        while time.monotonic() < self.started + seconds:
            if (ended := self.finished()) is not None:
                return ended
            time.sleep(POLL_SECONDS)
        self.kill()
        raise RuntimeError(f"hangs: no end within {seconds:g} s")

    def kill(self) -> Finished:
        """Send SIGKILL and return what was left of the command, which may have ended by itself before."""
        os.kill(self.pid, signal.SIGKILL)
        return self._finished(os.waitpid(self.pid, 0)[1])

    def _finished(self, status: int) -> Finished:
        text = self.log.read_text(errors="replace")
        return Finished(code=os.waitstatus_to_exitcode(status), output=text, seconds=time.monotonic() - self.started)


def start(words: Sequence[str | Path], log: Path, prepare: Callable[[], None] | None = None) -> Child:
    """Start `lfdm WORDS`, its output going to `log`; `prepare` runs in the child before the command."""
    for module in MODULES:
        importlib.import_module(module)
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid=pid, log=log, started=started)
    code = CRASH_CODE
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        for number in (signal.SIGINT, signal.SIGTERM):  # a test runner's own
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        torch.set_num_threads(1)
        if prepare is not None:
            prepare()
        code = run_process(COMMANDS, [str(word) for word in words], "")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # nothing of the parent's is run: neither its handlers nor its caller


def start_process(words: Sequence[str | Path], log: Path) -> Child:
    """Start `lfdm WORDS` as a process of its own, as a user does."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    to_log = [(os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
    command = [sys.executable, "-m", "lfdm", *map(str, words)]
    started = time.monotonic()
    return Child(pid=os.posix_spawn(sys.executable, command, os.environ, file_actions=to_log), log=log, started=started)


def run(words: Sequence[str | Path], log: Path, prepare: Callable[[], None] | None = None) -> Finished:
    """Run `lfdm WORDS` to its end."""
    return start(words, log, prepare).wait()


def write_slowly() -> None:
    """Let every step of writing take `SLOW_SECONDS`, so that a kill often comes between two of them. For use in a child."""
    for name in ("write_bytes", "write_text", "mkdir", "rename", "replace", "unlink", "rmdir"):
        setattr(Path, name, _delayed(getattr(Path, name)))


def _delayed(function: Callable[..., object]) -> Callable[..., object]:
    def slow(*args: object, **kwargs: object) -> object:
        time.sleep(SLOW_SECONDS)
        result = function(*args, **kwargs)
        time.sleep(SLOW_SECONDS)
        return result

    return slow
