"""Campaign `server`: hostile requests, many users, hours of light use, and servers that are ended in the middle of their work."""

import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
import numpy as np

from benchmarks.faults.campaign import FAULTS_DIR, Campaign, commit
from benchmarks.faults.hostile_requests import INTERNAL, KINDS, MAX_SECONDS, is_fault
from benchmarks.serving.load import LABELS, measure
from benchmarks.serving.server import API, GENERATE, TRANSFER, call, running_server, upload
from lfdm.data.video import write_video

Part = Literal["requests", "users", "soak", "workers"]
PARTS: tuple[Part, ...] = ("requests", "users", "soak", "workers")
RECORDS = FAULTS_DIR / "server"
"""Folder of the results of each part."""
QUEUE_SIZE = 32
SOAK_EVERY = 5.0
"""Seconds between two requests of the soak."""
SAMPLE_EVERY = 10.0
"""Seconds between two samples of the server's memory."""
WARM_UP = 0.1
"""Part of the samples that are left out of the slope of memory: the first use of everything allocates."""
MAX_SLOPE = 1.0
"""MB a minute."""


def run(
    *,
    requests: int = 1000,
    users: int = 30,
    user_seconds: float = 600.0,
    soak_seconds: float = 7200.0,
    seed: int = 0,
    parts: tuple[Part, ...] = PARTS,
    records: Path = RECORDS,
) -> Campaign:
    """Try a server.

    Args:
        requests: Hostile requests.
        users: Users who each send the next request as soon as the last video arrives.
        user_seconds: Time for which they do.
        soak_seconds: Time of light use.
        seed: Seed of the hostile requests.
        parts: What to run. The results of the other parts are those in `records`.
        records: Folder of the parts' results.
    """
    campaign = Campaign(
        name="server",
        promise="No request ends the server, makes it fail or leave its folder, and its memory does not grow.",
        aim=f"0 errors of ours, memory slope below {MAX_SLOPE:g} MB/min after the warm-up, no file outside its folder",
    )
    tries: dict[Part, Callable[[Campaign], None]] = {
        "requests": lambda part: try_requests(part, requests, seed),
        "users": lambda part: try_users(part, users, user_seconds),
        "soak": lambda part: try_soak(part, soak_seconds),
        "workers": try_workers,
    }
    for name in parts:
        part = Campaign(name=name, promise="", aim="", commit=commit(), date=datetime.now(UTC).date().isoformat())
        tries[name](part)
        part.save(records / f"{name}.json")
    for name in PARTS:
        if not (records / f"{name}.json").is_file():
            campaign.notes.append(f"The part `{name}` has not been run.")
            continue
        part = Campaign.load(records / f"{name}.json")
        campaign.counts += part.counts
        campaign.failures += part.failures
        campaign.figures |= part.figures
        campaign.notes += [f"Part `{name}`: commit {part.commit}, {part.date}.", *part.notes]
    return campaign


def try_requests(campaign: Campaign, number: int, seed: int) -> None:
    """Send hostile requests of all kinds in turn; after each hundred a valid one must be answered."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "canary.txt").write_text("canary")
        with (
            running_server(folder, ["--queue-size", str(QUEUE_SIZE)]) as server,
            httpx.Client(base_url=server.url, timeout=2 * MAX_SECONDS) as client,
        ):
            call(client, "generate", GENERATE)
            before = server.memory_megabytes()
            for k in range(number):
                kind = list(KINDS)[k % len(KINDS)]
                case, started = f"request {k} of seed {seed}", time.monotonic()
                try:
                    seen = KINDS[kind](server, client, rng)
                    held = not is_fault(seen) and time.monotonic() - started < MAX_SECONDS
                except httpx.HTTPError as error:
                    held, seen = False, repr(error)
                campaign.expect(f"hostile requests: {kind}", case, held, seen)
                if k % 100 == 99 or k == number - 1:
                    answer = call(client, "generate", GENERATE)
                    campaign.expect("valid requests in between", case, answer.event == "complete", answer)
            grown = server.memory_megabytes() - before
            log = server.log.read_text()
        campaign.expect("server logs without a traceback", "hostile requests", "Traceback" not in log, log[-600:])
        left = sorted(entry.name for entry in folder.iterdir())
        campaign.expect("folders left as they were", "hostile requests", left == ["canary.txt", "serve.log"], left)
    campaign.figures["memory gained over the hostile requests, MB"] = round(grown, 1)


def try_users(campaign: Campaign, users: int, seconds: float) -> None:
    """Let many users make videos without a pause."""
    result = measure(users, seconds, QUEUE_SIZE)
    campaign.counts["videos of many users"] += result["videos"]
    for error in result["errors"]:
        campaign.expect("videos of many users", f"{users} users", False, f"{error}; {result['server_log']}")
    campaign.expect("requests beyond the queue", "one too many", result["one_too_many"]["status"] == 503, result["one_too_many"])
    files = result["files"]
    campaign.expect("files gone after their time", f"{users} users", files["start"] == files["end"], files)
    campaign.expect("folders removed at the end", f"{users} users", files["left_after_shutdown"] == 0, files)
    slope = result["memory_mb"]["slope_per_minute"]
    campaign.expect("slopes of memory", f"{users} users for {seconds:g} s", slope < MAX_SLOPE, f"{slope:.2f} MB a minute")
    campaign.figures |= {
        f"{users} users: time, s": seconds,
        f"{users} users: median and longest wait, s": " / ".join(f"{one:.1f}" for one in result["waiting_seconds"].values()),
        f"{users} users: memory slope, MB/min": round(slope, 2),
        f"{users} users: memory in the last 30 s, MB": round(result["memory_mb"]["last_30_seconds"]),
    }


def try_soak(campaign: Campaign, seconds: float) -> None:
    """Send a light request every few seconds, of five kinds in turn, and sample memory and files of the server.

    At the end it is terminated in the middle of a long request.
    """
    memory: list[tuple[float, float]] = []
    most_files, number, next_sample = 0, 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_server(folder, ["--keep-seconds", "60"]) as server, httpx.Client(base_url=server.url, timeout=300) as client:
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds:
                if now >= next_sample:
                    memory.append((now / 60, server.memory_megabytes()))
                    most_files, next_sample = max(most_files, server.num_files()), next_sample + SAMPLE_EVERY
                if now >= number * SOAK_EVERY:
                    kind, error = _light_request(client, folder, number)
                    campaign.expect(f"soak: {kind}", f"after {now:.0f} s", not error, error)
                    number += 1
                time.sleep(0.1)
            _begin_long_request(client)
        log = server.log.read_text()
        left = len(list(folder.glob("lfdm-serve-*")))
    campaign.expect("server logs without a traceback", "soak", "Traceback" not in log, log)
    campaign.expect("folders removed at the end", "soak, terminated while it worked", left == 0, left)
    minutes, megabytes = zip(*memory[int(WARM_UP * len(memory)) :], strict=True)
    slope = statistics.linear_regression(minutes, megabytes).slope
    campaign.expect("slopes of memory", "soak", slope < MAX_SLOPE, f"{slope:.3f} MB a minute")
    campaign.figures |= {
        "soak: length, min": round(now / 60, 1),
        "soak: requests": number,
        "soak: memory slope after the warm-up, MB/min": round(slope, 3),
        "soak: memory at the end of the warm-up, median, highest, MB": " / ".join(
            f"{one:.0f}" for one in (megabytes[0], statistics.median(megabytes), max(megabytes))
        ),
        "soak: most files on disk": most_files,
    }


def _begin_long_request(client: httpx.Client) -> None:
    """Send a request that takes many seconds, and wait until the server works on it."""
    slow = {"data": list({**GENERATE, "num_inference_steps": 100, "num_frames": 16}.values())}
    client.post(f"{API}/call/generate", json=slow).raise_for_status()
    time.sleep(1.0)


def _light_request(client: httpx.Client, folder: Path, number: int) -> tuple[str, str]:
    """Send request `number` of the soak; return its kind and what was wrong with the answer, if anything."""
    kind = ("generate", "transfer", "refused", "broken", "page")[number % 5]
    try:
        if kind == "page":
            status = client.get("/").status_code
            return kind, "" if status == 200 else str(status)
        if kind == "transfer":
            frames = np.random.default_rng(number % 7).integers(0, 255, (10, 64, 64, 3), np.uint8)
            clip = write_video(folder / "driving.mp4", frames, fps=8).read_bytes()
            answer = call(client, "transfer", {**TRANSFER, "driving": upload(client, "driving.mp4", clip)})
        elif kind == "generate":
            picture = {"image": f"puppet-{number % 4 + 1}", "label": LABELS[number % len(LABELS)], "seed": number}
            answer = call(client, "generate", {**GENERATE, **picture, "num_inference_steps": 10, "num_frames": 16})
        elif kind == "broken":
            answer = call(client, "generate", {**GENERATE, "image": upload(client, "a.png", b"hello" * 20_000)})
        else:
            answer = call(client, "generate", {**GENERATE, "seed": "x" * 1000})
    except httpx.HTTPError as error:
        return kind, repr(error)
    expected = "complete" if kind in ("generate", "transfer") else "error"
    return kind, "" if answer.event == expected and INTERNAL not in answer.message else f"{answer.status} {answer.message}"


def try_workers(campaign: Campaign) -> None:
    """Kill servers in the middle of their work, then terminate one: the next one serves, and no file of a dead one is left."""
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, ending in enumerate(signals):
            with running_server(folder) as server, httpx.Client(base_url=server.url, timeout=60) as client:
                folders = [entry.name for entry in folder.glob("lfdm-serve-*")]
                campaign.expect("servers after an ended one", f"start {number}: files", folders == [server.storage.name], folders)
                answer = call(client, "generate", GENERATE)
                campaign.expect("servers after an ended one", f"start {number}: a video", answer.event == "complete", answer)
                upload(client, "a.png", b"hello")
                if ending is not None:
                    _begin_long_request(client)
                    server.signal(ending)
            if ending != signal.SIGKILL:
                left = sorted(entry.name for entry in folder.iterdir())
                campaign.expect("folders removed at the end", f"server {number}, {ending}", left == ["serve.log"], left)
