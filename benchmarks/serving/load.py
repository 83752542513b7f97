"""Load on a running `lfdm serve`: errors, waiting times, memory, temporary files."""

import platform
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.experiment.machine import processor_name
from benchmarks.serving.server import API, GENERATE, Server, call, running_server

KEEP_SECONDS = 8
"""Lifetime of results on the server in seconds: short, so that files expire during the load."""
QUIET_SECONDS = 14
"""Seconds after which all files must be gone."""
REQUEST = {**GENERATE, "num_inference_steps": 10, "num_frames": 16}
"""Settings of the bundled model."""
LOG_LETTERS = 20_000
"""Characters at the end of the server's log that are kept if there were errors: some ten tracebacks."""
LABELS = ("bow", "clap", "jump", "kick", "raise arms", "squat", "walk", "wave")


@dataclass
class Record:
    """Measurements of the load."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of every finished request, including the wait."""
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, MB), about every second."""


def user(server: Server, number: int, end: float, record: Record, fields: dict[str, Any]) -> None:
    """Send requests of one user until `end`."""
    seed = 1000 * number
    with httpx.Client(base_url=server.url, timeout=300) as client:
        while time.monotonic() < end:
            seed += 1
            started = time.monotonic()
            request = {**fields, "image": f"puppet-{seed % 4 + 1}", "label": LABELS[seed % len(LABELS)], "seed": seed}
            try:
                answer = call(client, "generate", request)
            except httpx.HTTPError as error:
                record.errors.append(repr(error))
                continue
            if answer.event == "complete" and answer.data["videos"]:
                record.seconds.append(time.monotonic() - started)
            else:
                record.errors.append(f"{answer.status} {answer.message}")


def load(server: Server, num_users: int, seconds: float, fields: dict[str, Any] = REQUEST) -> Record:
    """Run all users for `seconds` and wait for their last responses; pictures, labels and seeds of their requests vary."""
    record = Record()
    began = time.monotonic()
    users = [threading.Thread(target=user, args=(server, k, began + seconds, record, fields)) for k in range(num_users)]
    for one in users:
        one.start()
    while time.monotonic() < began + seconds:
        record.memory.append((time.monotonic() - began, server.memory_megabytes()))
        time.sleep(1)
    for one in users:
        one.join()
    return record


def ask_one_too_many(server: Server, queue_size: int) -> dict[str, Any]:
    """Fill the queue behind a long job, send one more request, cancel all; return the response and the time to the next video."""
    slow = {"data": list({**REQUEST, "num_inference_steps": 100}.values())}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        joined: list[str] = []
        statuses: list[int] = []
        while len(joined) < queue_size + 1:
            answer = client.post(f"{API}/call/generate", json=slow)
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                break
            joined.append(answer.json()["event_id"])
            if len(joined) == 1:
                time.sleep(1.0)  # it runs now and has left the queue
        last = client.post(f"{API}/call/generate", json=slow)
        response = {"status": last.status_code, "message": last.json().get("detail"), "waiting": len(joined) - 1}
        for event in joined:
            client.post(f"{API}/cancel", json={"session_hash": event, "fn_index": _index(client), "event_id": event})
        started = time.monotonic()
        answer = call(client, "generate", {**REQUEST, "num_inference_steps": 1})
        response |= {"after_cancelling": answer.event, "seconds_until_the_next_video": round(time.monotonic() - started, 2)}
    return response


def _index(client: httpx.Client) -> int:
    config = client.get("/config").json()
    return next(one["id"] for one in config["dependencies"] if one["api_name"] == "generate")


def _slope(memory: list[tuple[float, float]]) -> float:
    """Return the slope of a straight line through (seconds, MB), in MB a minute."""
    return statistics.linear_regression([at / 60 for at, _ in memory], [mb for _, mb in memory]).slope


def measure(num_users: int, seconds: float, queue_size: int) -> dict[str, Any]:
    """Run the whole measurement and return its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--queue-size", str(queue_size), "--keep-seconds", str(KEEP_SECONDS)]
        with running_server(Path(folder), options) as server:
            with httpx.Client(base_url=server.url, timeout=120) as client:
                call(client, "generate", REQUEST)  # memory allocated on first use is not a leak
            time.sleep(QUIET_SECONDS)
            files_at_start = server.num_files()
            record = load(server, num_users, seconds)
            most_files = server.num_files()
            too_many = ask_one_too_many(server, queue_size)
            time.sleep(QUIET_SECONDS)
            files_at_end = server.num_files()
        left = list(Path(folder).glob("lfdm-serve-*"))
        log = server.log.read_text(errors="replace")
    half = min(60.0, seconds / 2)
    early = [mb for at, mb in record.memory if half - 10 <= at < half]
    late = [mb for at, mb in record.memory if at >= seconds - min(30.0, seconds / 2)]
    ordered = sorted(record.seconds)
    return {
        "command": f"python -m benchmarks.serving --users {num_users} --seconds {seconds:g} --queue-size {queue_size}",
        "machine": {"processor": processor_name(), "system": platform.system()},
        "users": num_users,
        "seconds": seconds,
        "queue_size": queue_size,
        "videos": len(record.seconds),
        "errors": record.errors,
        "server_log": log[-LOG_LETTERS:] if record.errors else "",
        "waiting_seconds": {"median": statistics.median(ordered), "longest": ordered[-1]} if ordered else None,
        "memory_mb": {
            "end_of_first_minute": statistics.mean(early),
            "last_30_seconds": statistics.mean(late),
            "ratio": statistics.mean(late) / statistics.mean(early),
            "slope_per_minute": _slope([(at, mb) for at, mb in record.memory if at >= half]),
        },
        "one_too_many": too_many,
        "files": {"start": files_at_start, "after_load": most_files, "end": files_at_end, "left_after_shutdown": len(left)},
    }
