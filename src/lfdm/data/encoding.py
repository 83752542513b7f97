"""Video files encoded by PyAV.

Shapes: a frame is (H, W, 3) uint8 RGB, or (H, W, 4) with alpha.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lfdm.data.alpha import compose, fill_invisible
from lfdm.data.sound import add_sound
from lfdm.errors import UserError

_MAX_RATE_DENOMINATOR = 60_000
"""Largest denominator of a stored frame rate; exact for the rates of television, such as 30000/1001."""


@dataclass(frozen=True, kw_only=True)
class _Codec:
    name: str
    pixel_format: str
    options: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)
    """Tags of the stream."""


# YUV is BT.709 in limited range, converted so and tagged so in the file: then all players agree on the colours.
_YUV, _YUV_ALPHA, _PRORES, _PRORES_ALPHA = "yuv420p", "yuva420p", "yuv444p10le", "yuva444p10le"
_BT709: dict[str, Any] = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
_COLOURS = {_YUV: _BT709, _YUV_ALPHA: _BT709, _PRORES: _BT709, _PRORES_ALPHA: _BT709}
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
    (".mov", False): _Codec(name="prores_ks", pixel_format=_PRORES, options={"profile": "4444", **_COLOUR_TAGS}),
    (".mov", True): _Codec(name="png", pixel_format="rgb24", options={}),
}
"""By the ending of the file and whether it is lossless."""
_VP9_ALPHA = {"auto-alt-ref": "0", **_CODECS[".webm", False].options}
"""Hidden reference frames are not supported together with alpha."""
_ALPHA_CODECS = {
    (".avi", False): _Codec(name="ffv1", pixel_format="bgra", options={}),
    (".avi", True): _Codec(name="ffv1", pixel_format="bgra", options={}),
    (".webm", False): _Codec(name="libvpx-vp9", pixel_format=_YUV_ALPHA, options=_VP9_ALPHA, metadata={"alpha_mode": "1"}),
    (".mov", False): replace(_CODECS[".mov", False], pixel_format=_PRORES_ALPHA),
    (".mov", True): replace(_CODECS[".mov", True], pixel_format="rgba"),
}
"""The same for frames with alpha; H.264 has none."""
_SMALL_SIDE = 64
_SMALL = {"x264-params": "no-asm=1"}
"""x264's assembly code reads beyond frames whose sides are below `_SMALL_SIDE`: equal frames then give different files."""
FILE_SUFFIXES = (".mp4", ".webm", ".mov", ".avi")
"""Endings that can be written."""


def encode_file(frames: Iterator[np.ndarray], suffix: str, *, fps: float, lossless: bool, sound: Path | None = None) -> bytes:
    """Encode frames (H, W, 3) or (H, W, 4) uint8 in memory, so that errors of the disk come only from writing the result.

    `.mp4` holds no alpha: such frames are composed over white.

    `sound` is a clip whose sound track is added, see `lfdm.data.sound`.

    Raises UserError for `lossless` WebM with alpha.
    """
    codec, frames = _prepare(frames, suffix, lossless=lossless)
    first = next(frames)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=suffix.removeprefix(".")) as file:
        rate = Fraction(fps).limit_denominator(_MAX_RATE_DENOMINATOR)
        options = codec.options | (_SMALL if codec.name == "libx264" and min(first.shape[:2]) < _SMALL_SIDE else {})
        stream = cast(VideoStream, file.add_stream(codec.name, rate=rate, options=options))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], codec.pixel_format
        stream.metadata.update(codec.metadata)
        track = add_sound(file, suffix, sound)
        reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame
        for index, frame in enumerate(chain([first], frames), 1):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24" if frame.shape[-1] == 3 else "rgba")
            picture = reformatter.reformat(picture, format=codec.pixel_format, **_COLOURS.get(codec.pixel_format, {}))
            file.mux(stream.encode(picture))
            if track is not None:
                file.mux(list(track.until(float(index / rate))))
        file.mux(stream.encode())
        if track is not None:
            file.mux(list(track.finish()))
    return buffer.getvalue()


def _prepare(frames: Iterator[np.ndarray], suffix: str, *, lossless: bool) -> tuple[_Codec, Iterator[np.ndarray]]:
    """Return the codec for frames, which depends on whether they have alpha, and the frames as it takes them."""
    first = next(frames)
    frames = chain([first], frames)
    codec = _CODECS[suffix, lossless]
    if first.shape[-1] == 4 and suffix == ".mp4":
        frames = map(compose, frames)
    elif first.shape[-1] == 4:
        if (suffix, lossless) not in _ALPHA_CODECS:
            raise UserError(f"lossless: a {suffix} with alpha is not; use .mov, .apng, .webp or no ending (a folder)")
        codec = _ALPHA_CODECS[suffix, lossless]
        frames = map(fill_invisible, frames) if codec.pixel_format in _COLOURS else frames
    if codec.name == "libx264":  # refuses odd sizes in yuv420p
        frames = (np.pad(frame, ((0, len(frame) % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge") for frame in frames)
    return codec, frames
