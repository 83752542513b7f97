"""A running server, and calls of it over plain HTTP, as any program could make them."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

API = "/gradio_api"
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
}
TRANSFER: dict[str, Any] = {"image": "puppet-1", "driving": None, "relative": True, "motion_strength": 1.0, "mask": None}


@dataclass(frozen=True)
class Server:
    """A running server, with small limits so that tests reach them."""

    url: str
    storage: Path
    process: subprocess.Popen[bytes]
    log: Path

    def num_files(self) -> int:
        """Files that the server has on disk."""
        return sum(1 for entry in self.storage.rglob("*") if entry.is_file())


@dataclass(frozen=True)
class Answer:
    """What a call ended with."""

    status: int
    """Of the request that joins the queue."""
    event: str
    """`complete` or `error`; empty where the request was refused at the door."""
    data: Any
    """The result, or the message."""

    @property
    def message(self) -> str:
        return self.data if isinstance(self.data, str) else json.dumps(self.data)


def call(client: httpx.Client, name: str, fields: dict[str, Any]) -> Answer:
    """Join the queue with `fields` in order and wait for the end."""
    return call_raw(client, name, json.dumps({"data": list(fields.values())}).encode())


def call_raw(client: httpx.Client, name: str, body: bytes) -> Answer:
    """The same with a body as it is."""
    joined = client.post(f"{API}/call/{name}", content=body, headers={"content-type": "application/json"})
    if joined.status_code != 200:
        return Answer(joined.status_code, "", joined.json().get("detail", joined.text))
    event = ""
    with client.stream("GET", f"{API}/call/{name}/{joined.json()['event_id']}", timeout=120) as stream:
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
    """Upload a file; what to give in place of a picture or clip."""
    answer = client.post(f"{API}/upload", files={"files": (name, data)})
    answer.raise_for_status()
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
