"""Hostile requests of six kinds. Each kind is a function that sends one and returns what was answered."""

import json
import random
import socket
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from benchmarks.serving.server import API, GENERATE, TRANSFER, Answer, Server, call, call_raw, upload
from lfdm.data.video import encode_video

MAX_SECONDS = 30.0
"""Longest time of a response to a hostile request; the valid ones among them make short videos."""
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


KINDS = {
    "strange values": _strange_values,
    "places of files": _place,
    "mutated bodies": _mutated_body,
    "mutated uploads": _mutated_upload,
    "routes and methods": _route,
    "no HTTP": _no_http,
}


def is_fault(answer: str) -> bool:
    """Return whether an answer shows an error of ours or something that no answer may show."""
    return any(word in answer for word in (INTERNAL, *LEAKS))
