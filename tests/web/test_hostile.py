"""A running server against hostile requests: none of them causes a stack trace or an internal error, and it keeps serving."""

import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.server import API, GENERATE, TRANSFER, Answer, Server, call, call_raw, upload
from lfdm.data.video import write_video

pytestmark = pytest.mark.slow

INTERNAL = "internal error"
LEAKS = ("Traceback", 'File "', "site-packages", ".py", "/tmp/")

STRANGE: list[Any] = [
    None,
    "",
    "x" * 10_000,
    "\u202e\u0000\U0001f600",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    -1,
    2**62,
    1e300,
    0.5,
    True,
    [],
    {},
    ["wave", "jump"],
    "nan",
]
# What a field takes, or takes as left out.
ALLOWED: dict[str, list[Any]] = {
    "seed": [2**62],
    "num_inference_steps": [None],
    "guidance_scale": [None, 0.5],
    "motion_strength": [0.5],
    "num_videos": [],
    "num_frames": [None],
    "loop": [True],
    "mask": [None, "", {}],
    "control": [None],
    "end_image": [None, {}],
    "image": [],
    "label": [],
    "unconditional": [],
    "fit": [None],
    "full_size": [True],
    "driving": [],
    "relative": [True],
}
PATHS = [
    "/etc/passwd",
    "/etc/../etc/hostname",
    "../../../../etc/passwd",
    "~/.bashrc",
    "/proc/self/environ",
    "/dev/zero",
    "/dev/stdin",
    "file:///etc/passwd",
    "http://127.0.0.1:9/",
    "http://169.254.169.254/latest/meta-data/",
    "https://example.com/a.png",
    "ftp://example.com/a.png",
    "data:image/png;base64,AAAA",
    "\\\\host\\share\\a.png",
    "C:\\Windows\\win.ini",
    "a\u0000b",
    "/" * 3000,
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "",
    " ",
]


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


@pytest.fixture
def good_request(client: httpx.Client) -> Iterator[None]:
    """After the test the server still makes a video."""
    yield
    answer = call(client, "generate", GENERATE)
    assert answer.event == "complete", answer
    assert answer.data["videos"][0]["num_frames"] == 4


def check_refused(answer: Answer, *words: str) -> None:
    assert answer.status in (200, 400, 403, 404, 413, 422), answer
    assert answer.event in ("", "error"), answer
    assert isinstance(answer.data, str), answer
    assert answer.data, answer
    assert INTERNAL not in answer.message, answer
    for leak in LEAKS:
        assert leak not in answer.message, answer
    assert not words or any(word in answer.message for word in words), (answer, words)


def check_plain(response: httpx.Response) -> None:
    assert response.status_code < 500, (response.request.url, response.status_code, response.text[:300])
    for leak in ("Traceback", "site-packages", "root:x:0"):
        assert leak not in response.text, (response.request.url, response.text[:300])


@pytest.mark.usefixtures("good_request")
@pytest.mark.parametrize("field", list(GENERATE))
def test_strange_values_of_a_field_are_refused_with_its_name(client: httpx.Client, field: str) -> None:
    """15 each: 150 requests in all."""
    for value in STRANGE:
        if not any(value is allowed or (value == allowed and type(value) is type(allowed)) for allowed in ALLOWED[field]):
            check_refused(call(client, "generate", {**GENERATE, field: value}), field, "file is not on the server")


@pytest.mark.usefixtures("good_request")
@pytest.mark.parametrize("field", ["driving", "relative"])
def test_strange_values_of_a_transfer_are_refused(client: httpx.Client, tmp_path: Path, field: str) -> None:
    """30 requests."""
    clip = write_video(tmp_path / "a.avi", np.zeros((4, 16, 16, 3), np.uint8), fps=8)
    given = upload(client, clip.name, clip.read_bytes())
    for value in STRANGE:
        if not any(value is allowed for allowed in ALLOWED[field]):
            check_refused(
                call(client, "transfer", {**TRANSFER, "driving": given, field: value}), field, "file is not on the server"
            )


@pytest.mark.usefixtures("good_request")
def test_no_file_outside_the_storage_is_opened(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    """About 160 requests: as values with and without gradio's mark, as addresses, and as files to read."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(8, 8))
    kept = Path(upload(client, "kept.png", png(8, 8))["path"])
    link = kept.with_name("link.png")
    link.symlink_to(secret)
    try:
        paths = [
            *PATHS,
            str(secret),
            str(link),
            f"{kept.parent}/../{kept.parent.name}/{kept.name}",
            str(kept.parent),
            str(server.log),
        ]
        for path in paths:
            for value in (
                {"path": path, "meta": {"_type": "gradio.FileData"}},
                {"path": path, "url": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}},
                {"path": None, "url": path, "meta": {"_type": "gradio.FileData"}},
            ):
                check_refused(call(client, "generate", {**GENERATE, "image": value}))
            check_refused(call(client, "transfer", {**TRANSFER, "driving": {"path": path}}))
            response = client.get(f"{API}/file={quote(path).replace('..', '%2e%2e')}")
            check_plain(response)
            assert response.status_code in (400, 403, 404, 414), (path, response.status_code)
    finally:
        link.unlink()


def test_an_address_next_to_a_good_path_is_not_followed(client: httpx.Client) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.5)
        given = upload(client, "a.png", png(64, 64)) | {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"}
        assert call(client, "generate", {**GENERATE, "image": given}).event == "complete"
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.usefixtures("good_request")
def test_bodies_that_are_not_a_call(client: httpx.Client) -> None:
    """30 requests."""
    bodies = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"{",
        b"\xff\xfe\x00",
        b'{"data": NaN}',
        b'{"data": [NaN, Infinity]}',
        b'{"data": 1e999}',
        b'{"data": "\\ud800"}',
        b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"data": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'{"data": [' + b"9" * 5000 + b"]}",
        b'{"data": [' + b"9" * 30 + b"]}",
        b'{"data": null}',
        b'{"data": []}',
        b'{"data": [1, 2, 3]}',
        json.dumps({"data": [None] * 10_000}).encode(),
        b'{"data": "' + b"x" * 2_000_000 + b'"}',
        b"<xml/>",
        b"a=1&b=2",
        json.dumps({"data": [*GENERATE.values(), 1]}).encode(),
        json.dumps({"data": dict(GENERATE)}).encode(),
    ]
    for body in bodies:
        check_refused(call_raw(client, "generate", body))
    for name in ("nothing", "__class__", "generate_on_page", "predict", "..%2f..%2f", "model%00"):
        response = client.post(f"{API}/call/{name}", content=b'{"data": []}')
        check_plain(response)
        assert response.status_code == 404


@pytest.mark.usefixtures("good_request")
def test_joining_the_queue_by_hand(client: httpx.Client) -> None:
    """About 40 requests."""
    data = list(GENERATE.values())
    good = {"data": data, "fn_index": 0, "session_hash": "abc"}
    for index in (-1, 10_000, 2**40, None, "0", 0.5, True, [], {}):
        assert client.post(f"{API}/queue/join", json={**good, "fn_index": index}).status_code == 422, index
    for session in (None, "", 3, "a" * 5000, "../x", "a b", {"a": 1}, "\u0000"):
        assert client.post(f"{API}/queue/join", json={**good, "session_hash": session}).status_code == 422, session
    for body in ({}, {"event_id": 3}, {"session_hash": "a", "fn_index": "x", "event_id": "y"}, [], 3, None):
        response = client.post(f"{API}/cancel", json=body)
        check_plain(response)
        assert response.status_code in (400, 422)
    stranger = {"session_hash": "nobody", "fn_index": 0, "event_id": "nothing"}
    check_plain(client.post(f"{API}/cancel", json=stranger))
    for query in ("", "?session_hash=", "?session_hash=../..", "?session_hash=" + "a" * 5000, "?session_hash=%00"):
        with client.stream("GET", f"{API}/queue/data{query}") as response:
            assert response.status_code < 500
    for event in ("0" * 32, "..", "%00", "a" * 300):
        with client.stream("GET", f"{API}/call/generate/{event}") as response:
            assert response.status_code < 500


def test_routes_that_the_page_does_not_need_are_closed(client: httpx.Client) -> None:
    """About 40 requests."""
    closed = ["docs", "openapi.json", "login", "logout", "monitoring", "monitoring/summary", "config/../docs", "pwa_icon"]
    closed += [
        f"gradio_api/{name}" for name in ("runs", "openapi.json", "proxy=http://127.0.0.1:9/", "dev/reload", "vibe-code", "token")
    ]
    closed += [
        "gradio_api/file/etc/passwd",
        "gradio_api/stream/a/b/c/playlist.m3u8",
        "gradio_api/deep_link",
        "gradio_api/profiling/traces",
    ]
    closed += [
        "assets/../../../../etc/passwd",
        "static/..%2f..%2f..%2fetc%2fpasswd",
        "assets//etc/passwd",
        "svelte/../__init__.py",
    ]
    for path in closed:
        response = client.get(f"/{path}")
        check_plain(response)
        assert response.status_code in (400, 403, 404), (path, response.status_code)
    posted = [
        "run/generate",
        "run/predict",
        "api/generate",
        "api/predict",
        "component_server",
        "process_recording",
        "vibe-edit",
        "stream/a",
    ]
    posted += ["call/v2/generate", "undo-vibe-edit", "run-history/connect", "login"]
    for path in posted:
        response = client.post(f"{API}/{path}", json={"data": list(GENERATE.values()), "fn_index": 0, "session_hash": "a"})
        check_plain(response)
        assert response.status_code == 404, (path, response.status_code)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        check_plain(client.request(method, "/"))


@pytest.mark.usefixtures("good_request")
def test_pictures_and_clips_made_to_harm(client: httpx.Client, tmp_path: Path) -> None:
    """About 40 uploads and calls. A bomb is refused by its header: it would need gigabytes if it were decoded."""
    clip = write_video(tmp_path / "a.mp4", np.zeros((12, 32, 32, 3), np.uint8), fps=8).read_bytes()
    gif = write_video(tmp_path / "a.gif", np.zeros((2, 32, 32, 3), np.uint8), fps=8).read_bytes()
    long = write_video(tmp_path / "long.mp4", np.zeros((60, 16, 16, 3), np.uint8), fps=30).read_bytes()
    slow = write_video(tmp_path / "slow.mp4", np.zeros((12, 16, 16, 3), np.uint8), fps=1).read_bytes()
    pictures = {
        "bomb.png": png(60_000, 60_000),
        "large.png": png(1500, 1500),
        "negative.png": png(-1, 5),
        "zero.png": png(0, 0),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + gif[10:],
        "bomb.bmp": bmp(40_000, 40_000),
        "negative.bmp": bmp(-40_000, -40_000),
        "bomb.webp": webp(16_383, 16_383),
        "bomb.jpg": jpeg(65_500, 65_500),
        "cut.png": png(64, 64)[:60],
        "empty.png": b"",
        "text.png": b"hello",
        "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "zip.png": b"PK\x03\x04" + struct.pack("<IIII", 2**32 - 1, 2**32 - 1, 2**32 - 1, 0),
        "a.tiff": tiff(),
        "icon.png": b"\x00\x00\x01\x00\x01\x00" + bytes(40),
        "../../evil.png": b"hello",
        "\u202egnp.exe": b"MZ" + bytes(100),
        "a" * 300 + ".png": b"hello",
    }
    for name, data in pictures.items():
        given = upload(client, name, data)
        check_refused(call(client, "generate", {**GENERATE, "image": given}), "broken", "megapixels")
    clips = {
        "cut.mp4": clip[: len(clip) // 2],
        "head.mp4": clip[:40],
        "empty.mp4": b"",
        "text.mp4": b"hello",
        "list.mp4": b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n",
        "concat.avi": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "sdp.mp4": b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "picture.mp4": png(64, 64),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + gif[10:],
        "many.gif": many_frames(11_000),
    }
    for name, data in clips.items():
        given = upload(client, name, data)
        check_refused(call(client, "transfer", {**TRANSFER, "driving": given}), name.rpartition(".")[0])
    for name, data in {"many.gif": many_frames(500), "long.mp4": long, "slow.mp4": slow}.items():  # their beginning is used
        answer = call(client, "transfer", {**TRANSFER, "driving": upload(client, name, data)})
        assert answer.event == "complete", answer
        assert answer.data["videos"][0]["num_frames"] <= 40
    for name in ("a.mkv", "a.txt", "noending"):  # the content decides, not the name
        given = upload(client, name, clip)
        assert call(client, "transfer", {**TRANSFER, "driving": given}).event == "complete"
    masks = [png(60_000, 60_000), b"hello", png(2000, 2000), jpeg(65_500, 65_500), tiff()]
    for data in masks:
        check_refused(call(client, "generate", {**GENERATE, "mask": upload(client, "mask.png", data)}), "mask")
    for text in (
        "data:image/png;base64,",
        "data:image/png;base64,????",
        "data:text/html,<b>",
        "data:image/png;base64," + "A" * 900_000,
    ):
        check_refused(call(client, "generate", {**GENERATE, "mask": text}), "mask")


@pytest.mark.usefixtures("good_request")
def test_uploads_that_are_too_large_or_no_form(client: httpx.Client, server: Server) -> None:
    before = server.num_files()
    assert client.post(f"{API}/upload", files={"files": ("a.png", bytes(3_000_000))}).status_code == 413
    boundary = b"--b\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n"

    def chunks() -> Iterator[bytes]:
        yield boundary
        for _ in range(50):
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post(f"{API}/upload", content=chunks(), headers=headers).status_code == 413
    for content, kind in ((b"", "multipart/form-data"), (b"x", "multipart/form-data; boundary=b"), (b"{}", "application/json")):
        response = client.post(f"{API}/upload", content=content, headers={"content-type": kind})
        check_plain(response)
    check_plain(
        client.post(f"{API}/upload", content=b"x", headers={"content-type": "multipart/form-data; boundary=" + "b" * 500})
    )
    assert server.num_files() <= before + 1  # a part that was cut off goes by age


def test_lines_that_are_not_http(server: Server, client: httpx.Client) -> None:
    host, port = "127.0.0.1", int(server.url.rpartition(":")[2])
    for line in (
        b"\x00" * 100,
        b"GET /\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 100_000,
    ):
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in connection.recv(4096)
    for header in (
        {"host": "evil.example"},
        {"x-forwarded-host": "evil.example"},
        {"x-gradio-server": "http://evil.example"},
        {"range": "bytes=a-b"},
    ):
        check_plain(client.get("/", headers=header))
    assert client.get("/").status_code == 200


# ------------------------------------------------------------------------------------------------- files made to harm


def png(width: int, height: int) -> bytes:
    """One black picture; where that would be large, its header before too little data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = width * height if 0 < width < 5000 else 1000
    head = struct.pack(">iiBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(size + max(height, 0) if size > 1000 or width < 5000 else size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(100)


def webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(20)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    data = buffer.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def tiff() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


def many_frames(num: int) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("P", (1, 1), k % 2) for k in range(num)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=10, optimize=False)
    return buffer.getvalue()
