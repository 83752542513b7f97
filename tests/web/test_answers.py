"""A user's error is answered with its message; an internal one is logged with its traceback."""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr
import numpy as np
import pytest

from lfdm.errors import UserError
from lfdm.web.answers import INTERNAL_ERROR, api_answers, page_answers
from lfdm.web.calls import Updates
from lfdm.web.jobs import JobProgress
from lfdm.web.storage import NO_SPACE


async def failing(error: Exception | None) -> Updates:
    yield JobProgress(1, 2)
    if error is not None:
        raise error
    _ = np.zeros(2) + np.zeros(3)  # a ValueError of numpy


async def collect(answers: AsyncGenerator[Any, None]) -> list[Any]:
    return [answer async for answer in answers]


def test_errors_of_the_user_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    error = UserError("seed must be <0>")
    *_, (_, status) = asyncio.run(collect(page_answers(failing(error))))
    assert "seed must be &lt;0&gt;" in status
    with pytest.raises(gr.Error, match="seed must be <0>"):
        asyncio.run(collect(api_answers(failing(error))))
    assert not caplog.records


def test_internal_errors_are_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        *_, (_, status) = asyncio.run(collect(page_answers(failing(None))))
        with pytest.raises(gr.Error, match=INTERNAL_ERROR):
            asyncio.run(collect(api_answers(failing(None))))
    assert INTERNAL_ERROR in status
    assert "broadcast" not in status
    assert caplog.text.count("could not be broadcast together") == 2
    assert "Traceback" in caplog.text


def test_a_full_disk_is_shown_to_the_user_and_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/tmp/clip.mp4")
    *_, (_, status) = asyncio.run(collect(page_answers(failing(error))))
    assert "disk space is used up" in status
    assert "Traceback" not in caplog.text
    assert "/tmp/clip.mp4 could not be written" in caplog.text
    with pytest.raises(gr.Error, match=NO_SPACE):
        asyncio.run(collect(api_answers(failing(error))))
