"""An ASGI application around gradio's that decides which requests reach it.

gradio serves many routes that this app does not need (a proxy, recording, code editing, file streams) and trusts much of the
content of requests. Only the routes that the page and `gradio_client` need are open here. Bodies are limited and checked before
gradio reads them, only files of our own storage are served, and every error is a short message.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lfdm.errors import UserError
from lfdm.web.answers import INTERNAL_ERROR
from lfdm.web.limits import ServeLimits
from lfdm.web.storage import Storage

MAX_JSON_BYTES = 1_000_000
MAX_DEPTH = 12
"""Largest nesting of lists and objects in a body."""
MAX_INDEX = 100_000
"""Bound of gradio's function and trigger indices."""
FORM_BYTES = 20_000
"""Largest size of a form without its uploaded file."""

API = "/gradio_api"
_ID = r"[A-Za-z0-9_-]{1,64}"
_PAGES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/[\w./@+-]+"
    rf"|{API}/(info/?|app_id/?|startup-events|upload_progress|queue/status)|{API}/heartbeat/{_ID}"
)
_EVENTS = re.compile(rf"{API}/call/(?P<name>[a-z_]+)/{_ID}")
_CALL = re.compile(rf"{API}/call/(?P<name>[a-z_]+)/?")
_FORM = re.compile(rb'multipart/form-data; ?boundary="?[\w.=+-]{1,70}"?')
_FILE = f"{API}/file="
_UNKNOWN_FILE = {"path": "unknown"}
"""Replaces a file outside the storage; the request is then refused with a message that names the field."""

# Nothing is loaded from elsewhere: no fonts, scripts, pictures or calls. gradio compiles its templates, hence 'unsafe-eval'.
_HEADERS = {
    b"content-security-policy": b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}

logger = logging.getLogger(__name__)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """ASGI application that passes allowed requests to gradio.

    Args:
        app: gradio's application.
        endpoints: number of inputs of every function that may be called, by gradio's index.
        names: index of every function that has a name in the API.
    """

    def __init__(
        self, app: ASGIApp, endpoints: Mapping[int, int], names: Mapping[str, int], limits: ServeLimits, storage: Storage
    ) -> None:
        self.app = app
        self.endpoints = endpoints
        self.names = names
        self.limits = limits
        self.storage = storage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page needs no web sockets
            return None
        answer = _Answer(send, self.limits)
        try:
            receive = await self._admit(scope, receive, answer)
            await self.app(scope, receive, answer.send)
        except _RefusedError as refusal:
            await answer.refuse(refusal)
        except Exception as error:
            if answer.started:  # e.g. gradio breaks off the stream of a session that it does not know
                logger.warning("the answer to %s %s broke off: %r", scope["method"], scope["path"], error)
                return None
            logger.exception("error while answering %s %s", scope["method"], scope["path"])
            await answer.refuse(_RefusedError(500, INTERNAL_ERROR))
        return None

    async def _admit(self, scope: Scope, receive: Receive, answer: "_Answer") -> Receive:
        """Return what gradio may read of this request; raises `_RefusedError` for a request that must not reach it."""
        method, path = scope["method"], scope["path"]
        _check_query(scope["query_string"])
        if method in ("GET", "HEAD"):
            if path.startswith(_FILE):
                self._check_file(path.removeprefix(_FILE))
            elif path.rstrip("/") != f"{API}/queue/data" and not _PAGES.fullmatch(path) and not _EVENTS.fullmatch(path):
                raise _RefusedError(404, "not found")
            return receive
        if method != "POST":
            raise _RefusedError(405, "only GET and POST are supported")
        path = path.rstrip("/")
        if path == f"{API}/upload":
            return self._admit_upload(scope, receive, answer)
        if path == f"{API}/queue/join":
            body = self._checked_join(await _read_json(receive))
        elif path in (f"{API}/cancel", f"{API}/reset"):
            body = _checked_cancel(await _read_json(receive))
        elif call := _CALL.fullmatch(path):
            body = self._checked_call(call["name"], await _read_json(receive))
        else:
            raise _RefusedError(404, "not found")
        return _replay(scope, receive, json.dumps(body).encode())

    def _check_file(self, path: str) -> None:
        try:
            self.storage.find(path)
        except UserError as error:
            raise _RefusedError(403, str(error)) from None

    def _admit_upload(self, scope: Scope, receive: Receive, answer: "_Answer") -> Receive:
        try:
            self.storage.make_room(self.limits.upload_megabytes)
        except UserError as error:
            raise _RefusedError(503, str(error)) from None
        headers = dict(scope["headers"])
        if not _FORM.fullmatch(headers.get(b"content-type", b"")):
            raise _RefusedError(400, "an upload must be multipart/form-data with a boundary")
        allowed = self.limits.upload_bytes + FORM_BYTES
        too_large = _RefusedError(413, f"a file may have at most {self.limits.upload_megabytes:g} MB")
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or len(stated) > 15 or int(stated) > allowed:
            raise too_large
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > allowed:  # a chunked body states no length
                answer.instead = too_large
                raise too_large
            return message

        return limited

    def _checked_join(self, body: dict[str, Any]) -> dict[str, Any]:
        index = body.get("fn_index")
        if isinstance(index, bool) or not isinstance(index, int) or index not in self.endpoints:
            raise _RefusedError(422, "fn_index must be one of the page's functions")
        session = body.get("session_hash")
        if not isinstance(session, str) or not re.fullmatch(_ID, session):
            raise _RefusedError(422, "session_hash must be 1 to 64 letters and digits")
        trigger = body.get("trigger_id")
        return {
            "data": self._checked_data(index, body.get("data")),
            "fn_index": index,
            "session_hash": session,
            "trigger_id": trigger if isinstance(trigger, int) and 0 <= trigger < MAX_INDEX else None,
        }

    def _checked_call(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if name not in self.names:
            raise _RefusedError(404, f"unknown call; known are {', '.join(sorted(self.names))}")
        return {"data": self._checked_data(self.names[name], body.get("data"))}

    def _checked_data(self, index: int, data: object) -> list[Any]:
        expected = self.endpoints[index]
        if not isinstance(data, list) or len(data) != expected:
            got = f"{len(data)}" if isinstance(data, list) else "none"
            raise _RefusedError(422, f"data must be a list of {expected} values; got {got}")
        return [self._checked_value(value) for value in data]

    def _checked_value(self, value: object) -> object:
        """Check every file in `value`, and reduce it to its path: addresses are never fetched."""
        if isinstance(value, list):
            return [self._checked_value(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "path" not in value and "url" not in value:
            return {key: self._checked_value(item) for key, item in value.items()}
        if value.get("path") is None and value.get("url") is None:
            return {}
        try:
            return {"path": str(self.storage.find(value.get("path"))), "meta": {"_type": "gradio.FileData"}}
        except UserError:
            return _UNKNOWN_FILE


class _Answer:
    """Sends gradio's answer with our headers and without its stack traces."""

    def __init__(self, send: Send, limits: ServeLimits) -> None:
        self._send = send
        self._limits = limits
        self.started = False
        self._replaced = False
        self.instead: _RefusedError | None = None
        """Replaces gradio's answer if a body turns out too large while gradio reads it."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            refusal = self.instead
            if refusal is None and status >= 500:
                busy = f"busy: {self._limits.queue_size} requests are waiting; try again in a minute"
                refusal = _RefusedError(status, busy if status == 503 else INTERNAL_ERROR)
            if refusal is not None:
                self._replaced = True
                return await self.refuse(refusal)
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS.items()]}
            self.started = True
        if not self._replaced:
            await self._send(message)
        return None

    async def refuse(self, refusal: _RefusedError) -> None:
        """Answer with a short message, unless the answer has started."""
        if self.started:
            return
        self.started = True
        detail: Any = str(refusal)
        if refusal.status == 422:  # gradio_client and gradio's page expect a list of invalid inputs
            detail = [{"__type__": "validate", "is_valid": False, "parameter_name": "request", "message": detail}]
        body = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS.items()]
        if refusal.status == 503:
            headers.append((b"retry-after", b"60"))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _checked_cancel(body: dict[str, Any]) -> dict[str, Any]:
    index = body.get("fn_index")
    texts = {key: body.get(key) for key in ("session_hash", "event_id")}
    valid = all(isinstance(text, str) and re.fullmatch(_ID, text) for text in texts.values())
    if not valid or isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_INDEX:
        raise _RefusedError(422, "session_hash, event_id and fn_index must be those of a running call")
    return {**texts, "fn_index": index}


def _check_query(query: bytes) -> None:
    if len(query) > 1000:
        raise _RefusedError(414, "the address is too long")
    values = parse_qs(query.decode("latin-1"))
    for name in ("session_hash", "upload_id"):
        if any(not re.fullmatch(_ID, value) for value in values.get(name, [])):
            raise _RefusedError(422, f"{name} must be 1 to 64 letters and digits")


async def _read_json(receive: Receive) -> dict[str, Any]:
    """Read the body: an object of finite numbers and valid text with limited nesting."""
    data = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _RefusedError(400, "the request ended early")
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > MAX_JSON_BYTES:
            raise _RefusedError(413, f"a request may have at most {MAX_JSON_BYTES // 1000} kB; upload files separately")
    try:
        body = json.loads(bytes(data).decode("utf-8"))
        _check_json(body, 0)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number with thousands of digits
        raise _RefusedError(400, f"the body must be JSON without NaN, nested at most {MAX_DEPTH} levels deep") from error
    if not isinstance(body, dict):
        raise _RefusedError(422, "the body must be a JSON object")
    return body


def _check_json(value: object, depth: int) -> None:
    """Raise ValueError for deep nesting, infinite or huge numbers and invalid text."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("too large a number")
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair
    elif isinstance(value, list | dict):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_json(item, depth + 1)


def _replay(scope: Scope, receive: Receive, body: bytes) -> Receive:
    """Return `body` as the whole body of a request, and set its length and type in `scope`."""
    replaced = (b"content-length", b"content-type", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name not in replaced]
    scope["headers"] = [*headers, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
