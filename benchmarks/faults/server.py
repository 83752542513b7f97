"""Campaign `server`: hostile requests, many users, hours of light use, and workers that die."""

import json
import random
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import numpy as np

from benchmarks.experiment.tables import write_results
from benchmarks.faults.campaign import Campaign
from benchmarks.serving.load import LABELS, measure
from benchmarks.serving.server import API, GENERATE, TRANSFER, Answer, Server, call, call_raw, running_server, upload
from lfdm.data.video import encode_video, write_video

Part = Literal["requests", "users", "soak", "workers"]
PARTS: tuple[Part, ...] = ("requests", "users", "soak", "workers")
QUEUE_SIZE = 32
MAX_SECONDS = 30.0
"""Longest time of a response to a hostile request; the valid ones among them make short videos."""
SOAK_EVERY = 5.0
"""Seconds between two requests of the soak."""
SAMPLE_EVERY = 10.0
"""Seconds between two samples of the server's memory."""
WARM_UP = 0.1
"""Part of the samples that are left out of the slope of memory: the first use of everything allocates."""
MAX_SLOPE = 1.0
"""MB a minute."""
LEAKS = ("Traceback", "site-packages", "root:x:0", "canary")
INTERNAL = "internal error"

STRANGE: tuple[Any, ...] = (
    *(None, "", " ", "x" * 10_000, "\u202e\u0000\U0001f600", "<script>alert(1)</script>", "../../etc/passwd", "nan", "wave"),
    *(-1, 0, 1, 2**31, 2**62, 10**400, 1e300, 0.5, True, False, [], {}, [[]], ["wave", "jump"], {"path": None}, {"a": {"b": 1}}),
)
PLACES = (
    *("/etc/passwd", "../../../../etc/passwd", "~/.bashrc", "/proc/self/environ", "/dev/zero", "file:///etc/passwd"),
    *(
        "http://127.0.0.1:9/",
        "http://169.254.169.254/latest/meta-data/",
        "\\\\host\\a.png",
        "a\u0000b",
        "/" * 3000,
        "",
        "%2e%2e%2f",
    ),
)
ROUTES = (
    *("docs", "openapi.json", "login", "monitoring", "pwa_icon", "config/../docs", "gradio_api/proxy=http://127.0.0.1:9/"),
    *("gradio_api/runs", "gradio_api/file/etc/passwd", "gradio_api/stream/a/b/c/playlist.m3u8", "static/..%2f..%2fetc%2fpasswd"),
    *("gradio_api/run/generate", "gradio_api/component_server", "gradio_api/queue/join", "gradio_api/cancel", "gradio_api/reset"),
    *("gradio_api/call/generate", "gradio_api/call/__class__", "gradio_api/upload", "gradio_api/queue/data?session_hash=%00", ""),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")


def run(
    *,
    requests: int = 1000,
    users: int = 30,
    user_seconds: float = 600.0,
    soak_seconds: float = 7200.0,
    seed: int = 0,
    parts: tuple[Part, ...] = PARTS,
    records: Path | None = None,
) -> Campaign:
    """Try a server.

    Args:
        requests: Hostile requests.
        users: Users who each send the next request as soon as the last video arrives.
        user_seconds: Time for which they do.
        soak_seconds: Time of light use.
        seed: Seed of the hostile requests.
        parts: What to run.
        records: Folder of the parts' records. Parts that it holds are not run again, so that they can be run one by one.
    """
    campaign = Campaign(
        name="server",
        promise="No request ends the server, makes it fail or leave its folder, and its memory does not grow.",
        aim=f"0 errors of ours, memory slope below {MAX_SLOPE:g} MB/min after the warm-up, no file outside its folder",
    )
    tries: dict[Part, Callable[[Campaign], None]] = {
        "requests": lambda part: try_requests(part, requests, seed),
        "users": lambda part: try_users(part, users, user_seconds),
        "soak": lambda part: try_soak(part, soak_seconds, records and records / "soak-samples.json"),
        "workers": try_workers,
    }
    for name in parts:
        part = Campaign(name=name, promise="", aim="")
        record = None if records is None else records / f"{name}.json"
        if record is not None and record.is_file():
            part = Campaign.load(record)
        else:
            tries[name](part)
            if record is not None:
                part.save(record)
        campaign.counts += part.counts
        campaign.failures += part.failures
        campaign.figures |= part.figures
        campaign.notes += part.notes
    return campaign


def try_requests(campaign: Campaign, number: int, seed: int) -> None:
    """Send hostile requests of six kinds; after each hundred a valid one must be answered."""
    kinds = {
        "strange values": _strange_values,
        "places of files": _place,
        "mutated bodies": _mutated_body,
        "mutated uploads": _mutated_upload,
        "routes and methods": _route,
        "no HTTP": _no_http,
    }
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
                kind = list(kinds)[k % len(kinds)]
                case, started = f"request {k} of seed {seed}", time.monotonic()
                try:
                    seen = kinds[kind](server, client, rng)
                    held = not any(word in seen for word in (INTERNAL, *LEAKS)) and time.monotonic() - started < MAX_SECONDS
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


def _checked(answer: Answer) -> str:
    """Return what a call answered, marked as an error of ours if it is none of a refusal, an error message and a result."""
    fine = answer.event == "complete" or (answer.event in ("", "error") and isinstance(answer.data, str) and answer.data)
    return answer.message if fine and answer.status < 500 else f"{INTERNAL}: {answer}"


def _checked_response(response: httpx.Response) -> str:
    return response.text if response.status_code < 500 else f"{INTERNAL}: {response.status_code} {response.text}"


def _strange_values(_: Server, client: httpx.Client, rng: random.Random) -> str:
    name, valid = rng.choice((("generate", GENERATE), ("transfer", TRANSFER)))
    fields = {**valid, **{field: rng.choice(STRANGE) for field in rng.sample(list(valid), rng.randint(1, 3))}}
    return _checked(call(client, name, fields))


def _place(_: Server, client: httpx.Client, rng: random.Random) -> str:
    place = rng.choice(PLACES)
    value: dict[str, Any] = rng.choice(({"path": place}, {"path": place, "url": place}, {"path": None, "url": place}))
    if rng.random() < 0.3:
        response = client.get(f"{API}/file={quote(place).replace('..', '%2e%2e')}")
        return _checked_response(response) + ("" if response.status_code >= 400 else f" {INTERNAL}: the file was sent")
    answer = call(client, "generate", {**GENERATE, rng.choice(("image", "mask")): value | {"meta": {"_type": "gradio.FileData"}}})
    return _checked(answer)


def _mutated_body(_: Server, client: httpx.Client, rng: random.Random) -> str:
    body = bytearray(json.dumps({"data": list(GENERATE.values())}).encode())
    return _checked(call_raw(client, "generate", bytes(_mutate(body, rng))))


def _mutated_upload(_: Server, client: httpx.Client, rng: random.Random) -> str:
    frames = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (4, 32, 32, 3), np.uint8)
    ending = rng.choice((".gif", ".mp4", ".webm", ".apng", ".webp"))
    data = bytes(_mutate(bytearray(encode_video(frames, ending, fps=8)), rng))
    given = upload(client, f"a{ending}", data)
    if rng.random() < 0.5:
        return _checked(call(client, "generate", {**GENERATE, "image": given}))
    return _checked(call(client, "transfer", {**TRANSFER, "driving": given}))


def _route(_: Server, client: httpx.Client, rng: random.Random) -> str:
    content = bytes(_mutate(bytearray(b'{"data": [], "fn_index": 0, "session_hash": "a"}'), rng))
    headers = rng.choice(({}, {"host": "evil.example"}, {"range": "bytes=a-b"}, {"x-forwarded-host": "evil.example"}))
    with client.stream(rng.choice(METHODS), f"/{rng.choice(ROUTES)}", content=content, headers=headers) as response:
        if "event-stream" in response.headers.get("content-type", ""):
            return ""  # it would stay open
        response.read()
        return _checked_response(response)


def _no_http(server: Server, _: httpx.Client, rng: random.Random) -> str:
    line = rng.choice((b"\x00" * 100, b"GET /\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"A" * 100_000))
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=MAX_SECONDS) as connection:
        try:
            connection.sendall(bytes(_mutate(bytearray(line), rng)))
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096).decode(errors="replace")
        except ConnectionError:
            return "closed"


def _mutate(data: bytearray, rng: random.Random) -> bytearray:
    """Replace, remove, repeat or insert a few bytes."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        length = rng.randint(1, 8)
        kind = rng.randrange(4)
        if kind == 0:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * rng.randint(1, 50)
        else:
            data[at:at] = rng.choice((b"\x00", b"[", b"{", b'"', b"9" * 20, b"1e999", b"NaN", b"\\ud800", b"\xff"))
    return data


def try_users(campaign: Campaign, users: int, seconds: float) -> None:
    """Let many users make videos without a pause."""
    result = measure(users, seconds, QUEUE_SIZE)
    campaign.counts["videos of many users"] += result["videos"]
    for error in result["errors"]:
        campaign.expect("videos of many users", f"{users} users", False, error)
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


def try_soak(campaign: Campaign, seconds: float, samples: Path | None = None) -> None:
    """Send a light request every few seconds, of five kinds in turn, and sample the server's memory.

    Args:
        samples: file to which everything is written as it is measured; one that is complete is read instead of a new soak.
    """
    record = json.loads(samples.read_text()) if samples is not None and samples.is_file() else {}
    if not record.get("done"):
        record = _soak(seconds, samples)
    for kind, count in record["requests"].items():
        campaign.counts[f"soak: {kind}"] += count
    for at, kind, error in record["errors"]:
        campaign.expect(f"soak: {kind}", f"after {at} s", False, error)
    campaign.expect("server logs without a traceback", "soak", not record["traceback"])
    campaign.expect("folders removed at the end", "soak", record["left"] == 0, record["left"])
    kept = record["memory"][int(WARM_UP * len(record["memory"])) :]
    minutes, megabytes = [at / 60 for at, *_ in kept], [memory for _, memory, *_ in kept]
    slope = statistics.linear_regression(minutes, megabytes).slope
    campaign.expect("slopes of memory", "soak", slope < MAX_SLOPE, f"{slope:.3f} MB a minute")
    campaign.figures |= {
        "soak: length, min": round(record["ran"] / 60, 1),
        "soak: requests": sum(record["requests"].values()),
        "soak: memory slope after the warm-up, MB/min": round(slope, 3),
        "soak: memory at the end of the warm-up, median, highest, MB": " / ".join(
            f"{one:.0f}" for one in (megabytes[0], statistics.median(megabytes), max(megabytes))
        ),
        "soak: most files on disk": max(files for _, _, files in record["memory"]),
    }


def _soak(seconds: float, samples: Path | None) -> dict[str, Any]:
    record: dict[str, Any] = {"ran": 0.0, "memory": [], "requests": {}, "errors": [], "done": False}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            running_server(folder, ["--keep-seconds", "60"]) as server,
            httpx.Client(base_url=server.url, timeout=300) as client,
        ):
            began = time.monotonic()
            number, next_sample = 0, 0.0
            while (now := time.monotonic() - began) < seconds:
                if now >= next_sample:
                    record["memory"].append([round(now, 1), server.memory_megabytes(), server.num_files()])
                    record["ran"], next_sample = now, next_sample + SAMPLE_EVERY
                    if samples is not None:
                        write_results(record, samples)
                if now >= number * SOAK_EVERY:
                    kind, error = _light_request(client, folder, number)
                    record["requests"][kind] = record["requests"].get(kind, 0) + 1
                    record["errors"] += [[round(now), kind, error]] if error else []
                    number += 1
                time.sleep(0.1)
            record["traceback"] = "Traceback" in server.log.read_text()
        record["left"] = len(list(folder.glob("lfdm-serve-*")))
    record["done"] = True
    if samples is not None:
        write_results(record, samples)
    return record


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
    """Kill a server in the middle of its work; the next one must serve, and remove what the dead one left."""
    slow = json.dumps({"data": list({**GENERATE, "num_inference_steps": 100, "num_frames": 16}.values())})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(3):
            with running_server(folder) as server, httpx.Client(base_url=server.url, timeout=60) as client:
                folders = [entry.name for entry in folder.glob("lfdm-serve-*")]
                campaign.expect("servers after a killed one", f"start {k}: leftovers", folders == [server.storage.name], folders)
                answer = call(client, "generate", GENERATE)
                campaign.expect("servers after a killed one", f"start {k}: a video", answer.event == "complete", answer)
                upload(client, "a.png", b"hello")
                if k < 2:
                    headers = {"content-type": "application/json"}
                    client.post(f"{API}/call/generate", content=slow, headers=headers)
                    time.sleep(0.5 * (k + 1))
                    server.signal(signal.SIGKILL)
        left = sorted(entry.name for entry in folder.iterdir())
        campaign.expect("folders removed at the end", "killed servers", left == ["serve.log"], left)
