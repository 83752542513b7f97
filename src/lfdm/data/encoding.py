"""Video files encoded by PyAV.

Shapes: a frame is (H, W, 3) uint8 RGB.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lfdm.data.sound import add_sound

_MAX_RATE_DENOMINATOR = 60_000
"""Largest denominator of a stored frame rate; exact for the rates of television, such as 30000/1001."""


@dataclass(frozen=True, kw_only=True)
class _Codec:
    name: str
    pixel_format: str
    options: dict[str, str]


# yuv420p is BT.709 in limited range, converted so and tagged so in the file: then all players agree on the colours.
_YUV = "yuv420p"
_COLOURS: dict[str, dict[str, Any]] = {_YUV: {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}}
_COLOUR_TAGS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
_CRF = "12"
"""Constant rate factor of H.264 and VP9, on a scale where 0 is lossless and 23 the usual default."""
_FFV1 = _Codec(name="ffv1", pixel_format="bgr0", options={})
_CODECS = {
    (".avi", False): _FFV1,
    (".avi", True): _FFV1,
    (".mp4", False): _Codec(name="libx264", pixel_format=_YUV, options={"crf": _CRF, "preset": "slow", **_COLOUR_TAGS}),
    (".mp4", True): _Codec(name="libx264rgb", pixel_format="rgb24", options={"qp": "0"}),
    (".webm", False): _Codec(name="libvpx-vp9", pixel_format=_YUV, options={"crf": _CRF, "b": "0", **_COLOUR_TAGS}),
    (".webm", True): _Codec(name="libvpx-vp9", pixel_format="gbrp", options={"lossless": "1"}),
}
"""By the ending of the file and whether it is lossless."""


def encode_file(frames: Iterator[np.ndarray], suffix: str, *, fps: float, lossless: bool, sound: Path | None = None) -> bytes:
    """Encode frames (H, W, 3) uint8 in memory, so that errors of the disk come only from writing the result.

    `sound` is a clip whose sound track is added, see `lfdm.data.sound`.
    """
    codec = _CODECS[suffix, lossless]
    if codec.name == "libx264":  # refuses odd sizes in yuv420p
        frames = (np.pad(frame, ((0, len(frame) % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge") for frame in frames)
    buffer = io.BytesIO()
    first = next(frames)
    with av.open(buffer, "w", format=suffix.removeprefix(".")) as file:
        rate = Fraction(fps).limit_denominator(_MAX_RATE_DENOMINATOR)
        stream = cast(VideoStream, file.add_stream(codec.name, rate=rate, options=codec.options))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], codec.pixel_format
        track = add_sound(file, suffix, sound)
        reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame
        for index, frame in enumerate(chain([first], frames), 1):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = reformatter.reformat(picture, format=codec.pixel_format, **_COLOURS.get(codec.pixel_format, {}))
            file.mux(stream.encode(picture))
            if track is not None:
                file.mux(list(track.until(float(index / rate))))
        file.mux(stream.encode())
        if track is not None:
            file.mux(list(track.finish()))
    return buffer.getvalue()
