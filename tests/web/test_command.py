"""`lfdm serve` on the command line, as far as it gets without serving."""

import socket
import subprocess
import sys

import pytest

from lfdm.cli import COMMANDS
from lfdm.console import run


def run_serve(*options: str) -> int:
    return run(COMMANDS, ["serve", *options], "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "0"], "port must be a whole number from 1 to 65535; got 0"),
        (["--queue-size", "-1"], "queue_size"),
        (["--image-megapixels", "51"], "image_megapixels"),
        (["--keep-seconds", "nan"], "keep_seconds"),
        (["--model", "no such model", "--port", "17860"], "unknown model"),
    ],
)
def test_wrong_values_are_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_serve(*options) == 2
    error = capsys.readouterr().err
    assert words in error.replace("-", "_") or words in error
    assert error.count("\n") == 1


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run_serve("--port", str(taken.getsockname()[1])) == 2
    error = capsys.readouterr().err
    assert "cannot listen" in error
    assert error.count("\n") == 1


def test_without_the_extra_the_pip_command_is_named() -> None:
    """In a process of its own, in which gradio cannot be imported."""
    code = "import sys; sys.modules['gradio'] = None; sys.argv[1:] = ['serve']; import lfdm.cli; lfdm.cli.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == "lfdm: lfdm serve needs gradio: pip install 'lfdm[web]'\n"
