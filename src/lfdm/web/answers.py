"""Convert the updates of a call into what the page shows and what a program receives, errors included."""

import functools
import html
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from lfdm.errors import UserError
from lfdm.folders.disk import disk_error
from lfdm.web.calls import Updates
from lfdm.web.components import player_value
from lfdm.web.jobs import JobProgress
from lfdm.web.results import VideoResult
from lfdm.web.storage import NO_SPACE

INTERNAL_ERROR = "internal error; details are in the server log"
PROGRESS_BAR = "lf-bar"
"""CSS class of the progress bar in the status line."""

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def streaming(function: Callable[P, AsyncGenerator[T, None]]) -> Callable[P, AsyncIterator[T]]:
    """Make a function that returns an async generator a generator function, as gradio requires.

    Closing the stream, as cancelling does, closes the returned generator and thus ends its work.
    """

    @functools.wraps(function)
    async def stream(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        async with aclosing(function(*args, **kwargs)) as items:
            async for item in items:
                yield item

    return stream


async def page_answers(updates: Updates) -> AsyncGenerator[tuple[Any, Any], None]:
    """Yield the values of player and status line after every step; an error is shown in the status line."""
    try:
        async with aclosing(updates):
            async for update in updates:
                if isinstance(update, JobProgress):
                    yield gr.skip(), _progress_html(update)
                else:
                    yield player_value(update.result), _notes_html([result.note for result in update.result])
    except Exception as error:
        yield gr.skip(), _error_html(_message(error))


async def api_answers(updates: Updates) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the JSON answer after every step; an error is raised as gradio's."""
    try:
        async with aclosing(updates):
            async for update in updates:
                if isinstance(update, JobProgress):
                    yield {"status": f"{update.done} of {update.total}", "videos": []}
                else:
                    yield {"status": "done", "videos": [_video_json(result) for result in update.result]}
    except Exception as error:
        raise gr.Error(_message(error), print_exception=False) from None


def _message(error: Exception) -> str:
    """Return the message of a `UserError`; log any other error, with its traceback unless it is the disk's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (described := disk_error(error, error.filename or tempfile.gettempdir())):
        logger.error("%s", described)
        return NO_SPACE
    logger.error("error while answering a request", exc_info=error)
    return INTERNAL_ERROR


def _video_json(result: VideoResult) -> dict[str, Any]:
    return {
        "title": result.title,
        "fps": result.fps,
        "num_frames": result.num_frames,
        "note": result.note,
        "file": {"path": str(result.file), "orig_name": result.file.name, "meta": {"_type": "gradio.FileData"}},
    }


def _progress_html(progress: JobProgress) -> str:
    share = 100 * progress.done / max(progress.total, 1)
    return f'Step {progress.done} of {progress.total}<div class="{PROGRESS_BAR}"><i style="width:{share:.0f}%"></i></div>'


def _notes_html(notes: Sequence[str]) -> str:
    return "".join(f'<span class="lf-quiet">{html.escape(note)}</span>' for note in notes if note)


def _error_html(message: str) -> str:
    return f'<div class="lf-error" role="alert">{html.escape(message)}</div>'
