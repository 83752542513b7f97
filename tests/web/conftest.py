"""A real server of the bundled model, in a process of its own."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.web.api import Server

pytest.importorskip("gradio", reason="needs gradio: pip install 'lfdm[web]'")

START_SECONDS = 120
KEEP_SECONDS = 15


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`lfdm serve` with a queue of 4, uploads of 2 MB, images of 2 and clips of 10 megapixels, 40 frames and 10 s."""
    folder = tmp_path_factory.mktemp("served")
    port, log = free_port(), folder / "serve.log"
    limits = ["--queue-size", "4", "--upload-megabytes", "2", "--image-megapixels", "2", "--clip-megapixels", "10"]
    limits += ["--clip-frames", "40", "--clip-seconds", "10", "--keep-seconds", str(KEEP_SECONDS)]
    command = [sys.executable, "-m", "lfdm.cli", "serve", "--port", str(port), *limits]
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, process, log)
        yield Server(url, next(folder.glob("lfdm-serve-*")), process, log)
    finally:
        process.terminate()
        process.wait(20)
    assert not re.search(r"Traceback", log.read_text()), log.read_text()
    assert not list(folder.glob("lfdm-serve-*"))  # it removes its folder when it is told to end


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS * 4):
        if process.poll() is not None:
            break
        try:
            httpx.get(url, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.25)
    pytest.fail(f"the server did not start: {log.read_text()}")
