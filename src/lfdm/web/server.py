"""Serve a model: storage, page, gate and web server together."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio import routes
from gradio.themes import Base
from starlette.types import ASGIApp

from lfdm.folders.run_folder import find_layout
from lfdm.folders.sources import bundled_images, bundled_models, find_folder
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import LatentFlowOutput
from lfdm.web.app import build_page
from lfdm.web.calls import Calls, choices_of
from lfdm.web.components import stylesheet
from lfdm.web.gate import Gate
from lfdm.web.limits import ServeLimits
from lfdm.web.model_page import read_model_page
from lfdm.web.storage import Storage

MAX_CONNECTIONS = 500
SESSIONS = 50
"""Number of visitors and API calls whose last inputs gradio stores: about 100 kB each."""
FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

# Read by gradio at start-up: no telemetry, no long history of requests.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def open_app(
    name: str, pipe: LatentFlowPipeline, limits: ServeLimits, generator: Callable[..., LatentFlowOutput] | None = None
) -> Iterator[ASGIApp]:
    """Open the app for a loaded model; its temporary folder is removed when the block ends.

    Args:
        name: name or folder the model was loaded from, which may hold examples, a model card and an evaluation.
        generator: see `Calls`.
    """
    folder = find_layout(find_folder(name)).index
    choices = choices_of(pipe, _examples(name))
    with (
        closing(Storage(limits.storage_megabytes)) as storage,
        closing(Calls(pipe, choices, limits, storage, generator)) as calls,
    ):
        os.environ.update(_ENVIRONMENT, GRADIO_TEMP_DIR=str(storage.root))
        # gradio reads it at import; the default may be another user's.
        routes.DEFAULT_TEMP_DIR = str(storage.root)  # pyright: ignore[reportPrivateImportUsage]
        page = build_page(calls, read_model_page(name, pipe, folder))
        page.state_session_capacity = SESSIONS
        outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app = gr.mount_gradio_app(
            outer,
            page,
            path="/",
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            show_error=False,
            max_file_size=limits.upload_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=_theme(),
            css=stylesheet(),
        )
        endpoints = {index: len(fn.inputs) for index, fn in page.fns.items() if fn.fn is not None and fn.queue}
        names = {
            str(fn.api_name): index for index, fn in page.fns.items() if index in endpoints and fn.api_visibility == "public"
        }
        storage.start_cleaning(limits.keep_seconds)
        yield Gate(app, endpoints, names, limits, storage)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; OSError if the port is taken or the address is not one of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError, TypeError) as error:  # the last two: not a possible host name
        raise OSError(
            f"cannot listen at {host} port {port}: {getattr(error, 'strerror', None) or error}; choose another --port or --host"
        ) from error


def serve(
    name: str,
    pipe: LatentFlowPipeline,
    limits: ServeLimits,
    listening: socket.socket,
    generator: Callable[..., LatentFlowOutput] | None = None,
) -> None:
    """Serve until the process is interrupted or terminated; see `Calls` for `generator`."""
    signal.signal(signal.SIGTERM, _stop)  # uvicorn raises it again when it has ended; the folder must still be removed
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # it is ignored under nohup
        signal.signal(signal.SIGHUP, _end)  # the terminal was closed; uvicorn does not handle it
    with open_app(name, pipe, limits, generator) as app:
        config = uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            server_header=False,
            proxy_headers=False,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _stop(*_: object) -> NoReturn:
    sys.exit(0)


def _end(*_: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def _examples(name: str) -> tuple[Path, ...]:
    """Return example pictures: those of the bundled model, or of the folder `images` in the model's folder."""
    if name in bundled_models():
        return tuple(bundled_images(name))
    return tuple(sorted((find_folder(name) / "images").glob("*.png"))[:12])


def _theme() -> Base:
    """Return a theme with system fonts only, so that nothing is loaded from elsewhere."""
    return Base(primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO_FONTS)
