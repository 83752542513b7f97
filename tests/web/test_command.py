"""`lfdm serve` on the command line: how it fails to start, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.server import running_server
from lfdm.cli import COMMANDS
from lfdm.cli.console import run
from lfdm.errors import UserError
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.web.limits import ServeLimits
from lfdm.web.server import open_app


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


@pytest.mark.parametrize("host", ["no such host", "\u2603..a", "x" * 70])
def test_an_impossible_host_is_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_serve("--host", host) == 2
    error = capsys.readouterr().err
    assert "cannot listen" in error
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


@pytest.fixture
def heeding_hangups() -> Iterator[None]:
    """Processes started meanwhile do not inherit that SIGHUP is ignored, as it is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.usefixtures("heeding_hangups")
def test_the_folder_goes_when_the_terminal_is_closed(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        assert server.storage.exists()
        os.kill(server.pid, signal.SIGHUP)
        deadline = time.monotonic() + 30
        while server.storage.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not server.storage.exists()
        assert "Traceback" not in server.log.read_text()


def test_no_folder_is_left_where_the_app_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no threads left")

    pipe = LatentFlowPipeline.from_pretrained("puppets64")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match="no such model"), open_app("no such model", pipe, ServeLimits()):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("lfdm.web.server.Calls", fail)
    with pytest.raises(RuntimeError, match="no threads left"), open_app("puppets64", pipe, ServeLimits()):
        pass
    assert not list(tmp_path.iterdir())
