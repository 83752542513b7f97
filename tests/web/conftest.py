"""A real server of the bundled model, in a process of its own."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

pytest.importorskip("gradio", reason="needs gradio: pip install 'lfdm[web]'")

from benchmarks.serving.server import Server, running_server

KEEP_SECONDS = 15
LIMITS = (
    "--queue-size 4 --upload-megabytes 2 --image-megapixels 2 --clip-megapixels 10 "
    "--clip-frames 40 --sound-seconds 10 --full-size-megapixels 3"
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`lfdm serve` with small limits, so that tests reach them. Afterwards its log must be clean and its folder gone."""
    folder = tmp_path_factory.mktemp("served")
    with running_server(folder, [*LIMITS.split(), "--keep-seconds", str(KEEP_SECONDS)]) as running:
        yield running
    assert "Traceback" not in running.log.read_text()
    assert not running.storage.exists()


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 60 frames in 2.5 seconds, more than the server uses, with a tone."""
    path = tmp_path_factory.mktemp("clips") / "dance.mp4"
    with av.open(path, "w") as file:
        video = cast(VideoStream, file.add_stream("libx264", rate=24))
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = cast(AudioStream, file.add_stream("aac", rate=44_100, layout="mono"))
        for k in range(60):
            array = np.full((64, 64, 3), 90, np.uint8)
            array[20:50, 5 + k // 2 : 25 + k // 2] = (200, 120, 40)
            file.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(110_250) / 44_100)).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(tone[None], layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 44_100, 0, Fraction(1, 44_100)
        file.mux([*video.encode(), *audio.encode(sound), *audio.encode(None)])
    return path
