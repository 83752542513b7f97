"""Start `lfdm serve` and call it over plain HTTP, for the load benchmark and the tests."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

API = "/gradio_api"
START_SECONDS = 180
STOP_SECONDS = 120
"""Far above what it takes; other programs may use the machine."""
GENERATE: dict[str, Any] = {
    "image": "puppet-1",
    "label": "wave",
    "seed": 0,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "motion_strength": 1.0,
    "num_videos": 1,
    "num_frames": 4,
    "loop": False,
    "mask": None,
    "fit": None,
    "full_size": False,
    "unconditional": False,
    "control": None,
    "end_image": None,
}
"""Fields of `/generate` in order, for a short video."""
TRANSFER: dict[str, Any] = {
    "image": "puppet-1",
    "driving": None,
    "relative": True,
    "motion_strength": 1.0,
    "mask": None,
    "fit": None,
    "full_size": False,
    "audio": True,
}


@dataclass(frozen=True)
class Server:
    """A server process."""

    url: str
    storage: Path
    """Temporary folder of the server."""
    pid: int
    log: Path

    def num_files(self) -> int:
        """Return the number of files on the server's disk."""
        return sum(1 for entry in self.storage.rglob("*") if entry.is_file())

    def memory_megabytes(self) -> float:
        """Return the resident memory of the process in MB (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)


@dataclass(frozen=True)
class Answer:
    """Result of a call."""

    status: int
    """HTTP status of the request that joins the queue."""
    event: str
    """`complete` or `error`; empty if the request was refused."""
    data: Any
    """Result, or error message."""

    @property
    def message(self) -> str:
        return self.data if isinstance(self.data, str) else json.dumps(self.data)


@contextmanager
def running_server(folder: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """Run `lfdm serve` on a free port, with its temporary folder in `folder`, for the duration of the block.

    Raises:
        RuntimeError: the server does not start; the message holds its log.
    """
    port, log = _free_port(), folder / "serve.log"
    command = [sys.executable, "-m", "lfdm", "serve", "--port", str(port), *options]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, process, log)
        yield Server(url, next(folder.glob("lfdm-serve-*")), process.pid, log)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def call(client: httpx.Client, name: str, fields: dict[str, Any]) -> Answer:
    """Join the queue with `fields` in order and wait for the result."""
    return call_raw(client, name, json.dumps({"data": list(fields.values())}).encode())


def call_raw(client: httpx.Client, name: str, body: bytes) -> Answer:
    """Join the queue with a raw body and wait for the result."""
    joined = client.post(f"{API}/call/{name}", content=body, headers={"content-type": "application/json"})
    if joined.status_code != 200:
        detail = joined.json().get("detail", joined.text)
        return Answer(joined.status_code, "", detail if isinstance(detail, str) else detail[0]["message"])
    event = ""
    with client.stream("GET", f"{API}/call/{name}/{joined.json()['event_id']}", timeout=300) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and event in ("complete", "error"):
                data = json.loads(line.removeprefix("data: "))
                if event == "error":
                    data = data.get("error") if isinstance(data, dict) else data
                return Answer(200, event, data[0] if isinstance(data, list) else data)
    return Answer(200, "lost", None)


def upload(client: httpx.Client, name: str, data: bytes) -> dict[str, Any]:
    """Upload a file; return the value to pass for an image or clip."""
    answer = client.post(f"{API}/upload", files={"files": (name, data)})
    answer.raise_for_status()
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS * 4):
        if process.poll() is not None:
            break
        try:
            httpx.get(url, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.25)
    raise RuntimeError(f"the server did not start: {log.read_text()}")
