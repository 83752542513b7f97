"""Help, errors and signals of the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.cli import COMMANDS
from lfdm.cli.console import CommandTree, Group, run
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.files import replacing_folder
from lfdm.training.interruption import TrainingInterrupted
from tests.command_line import Lfdm


def command_paths(tree: object = COMMANDS, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    assert isinstance(tree, dict)
    paths = [prefix]
    for name, entry in tree.items():
        paths += command_paths(entry.commands, (*prefix, name)) if isinstance(entry, Group) else [(*prefix, name)]
    return paths


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_every_command_has_help(lfdm: Lfdm, path: tuple[str, ...]) -> None:
    code, out, err = lfdm(*path, "--help")
    assert code == 0
    assert err == ""
    assert out.startswith(" ".join(["usage: lfdm", *path]))


def test_help_comes_without_torch_or_diffusers() -> None:
    code = (
        "import sys\n"
        "from lfdm.cli import COMMANDS\n"
        "from lfdm.cli.console import run\n"
        "for line in (['--help'], ['generate', '--help'], ['train', 'autoencoder', 'flow64', '--help']):\n"
        "    assert run(COMMANDS, line, 'x') == 0\n"
        "sys.exit(str([name for name in ('torch', 'diffusers', 'numpy', 'av') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
    assert "generate" in done.stdout


def test_unknown_options_and_commands_are_refused_with_suggestions(lfdm: Lfdm, image: Path) -> None:
    code, _, err = lfdm("generate", image, "wave", "--num-frame", 3)
    assert code == 2
    assert "--num-frames" in err
    code, _, err = lfdm("generte")
    assert code == 2
    assert "generate" in err


def raising(error: BaseException) -> CommandTree:
    def command() -> None:
        """Fail."""
        raise error

    return {"command": command}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("operands could not be broadcast together with shapes (2,) (3,)"),
        KeyError("flow"),
        TypeError("unsupported operand"),
        RuntimeError("size mismatch"),
        ImportError("cannot import name"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_shows_its_traceback_and_how_to_report_it(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert run(raising(error), ["command"], "test") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert f"{type(error).__name__}" in err.splitlines()[-2]
    assert err.splitlines()[-1].startswith("lfdm: unexpected error")
    assert "report" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        UserError("fps must be positive; got -1"),
        FileNotFoundError(2, "No such file", "a.png"),
        OSError(28, "No space left on device"),
        MissingExtraError("pip install 'lfdm[web]'"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_user_error_is_one_line_unless_a_traceback_is_requested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.delenv("LFDM_TRACEBACK", raising=False)
    assert run(raising(error), ["command"], "test") == 2
    line = capsys.readouterr().err
    assert line.startswith("lfdm: ")
    assert line.count("\n") == 1
    for arguments in (["command", "--traceback"], ["--traceback", "command"]):
        assert run(raising(error), arguments, "test") == 2
        assert_traceback_and(line, capsys.readouterr().err)
    monkeypatch.setenv("LFDM_TRACEBACK", "1")
    assert run(raising(error), ["command"], "test") == 2
    assert_traceback_and(line, capsys.readouterr().err)
    monkeypatch.setenv("LFDM_TRACEBACK", "0")
    assert run(raising(error), ["command"], "test") == 2
    assert capsys.readouterr().err == line


def assert_traceback_and(line: str, err: str) -> None:
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith(line)


def test_an_interrupt_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt()), ["command"], "test") == 130
    assert capsys.readouterr().err == "lfdm: interrupted\n"


def test_an_interrupted_training_says_how_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(TrainingInterrupted(3, 10, signal.SIGTERM)), ["command"], "test") == 143
    err = capsys.readouterr().err
    assert err.startswith("lfdm: stopped at step 3 of 10")
    assert err.count("\n") == 1


def test_a_command_may_handle_sigterm_itself() -> None:
    received = []

    def patient() -> None:
        """Finish the work first."""
        before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)

    assert run({"patient": patient}, ["patient"], "test") == 0
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_terminated_command_removes_incomplete_files(tmp_path: Path) -> None:
    def terminated() -> None:
        """Write a part."""
        with replacing_folder(tmp_path / "whole") as folder:
            (folder / "part").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
            (tmp_path / "went on").touch()

    assert run({"terminated": terminated}, ["terminated"], "test") == 143
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_libraries_without_memory_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def numpy_allocates() -> None:
        """Ask for too much."""
        np.empty(2**50)

    def torch_allocates() -> None:
        """Ask for too much."""
        torch.empty(2**60)

    for command in (numpy_allocates, torch_allocates):
        assert run({"command": command}, ["command"], "test") == 2
        err = capsys.readouterr().err
        assert err.startswith("lfdm: not enough memory for these sizes")
        assert err.count("\n") == 1


def run_lfdm(arguments: str, redirection: str, encoding: str = "utf-8") -> tuple[int, str]:
    """Return the exit code and the text (both streams as far as they are not redirected) of a process."""
    line = f'"$0" -m lfdm {arguments} {redirection}; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, env=environment, check=False)
    return done.returncode, (done.stdout + done.stderr).decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_encoding_lacks_are_escaped(encoding: str) -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in "\u0441\u043c\u0435\u0445")
    assert run_lfdm("\u0441\u043c\u0435\u0445", "", encoding)[1].startswith(f"lfdm: unknown '{escaped}'")
    assert escaped in run_lfdm("\u0441\u043c\u0435\u0445", "2>&1", encoding)[1]
    code, text = run_lfdm("--help", "| sed s/[^a-z]//g", encoding)
    assert (code, "generate" in text) == (0, True)


@pytest.mark.parametrize("redirection", ["| true", "2>&1 | true"])
def test_a_closed_pipe_ends_quietly(redirection: str) -> None:
    assert run_lfdm("--help", redirection) == (141, "")
    code, text = run_lfdm("nonsense", redirection)
    assert (code, text == "") in [(2, False), (141, True)]  # stderr is not in the first pipe


def test_streams_may_be_closed_or_full() -> None:
    assert run_lfdm("--help", ">&-") == (0, "")
    assert run_lfdm("--help", ">&- 2>&-") == (0, "")
    assert run_lfdm("nonsense", ">&- 2>&-") == (2, "")
    code, text = run_lfdm("--help", ">/dev/full")
    assert code == 2
    assert text.startswith("lfdm: ")
    assert "No space left on device" in text
    assert text.count("\n") == 1


def test_messages_change_no_terminal_and_stay_short(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"name must be short; got \x1b]0;owned\x07{'x' * 10**6} and more")

    assert run({"fail": fail}, ["fail"], "test") == 2
    err = capsys.readouterr().err
    assert err.startswith("lfdm: name must be short; got \\x1b]0;owned\\x7xxx")
    assert err.endswith(" and more\n")
    assert len(err) < 5000
