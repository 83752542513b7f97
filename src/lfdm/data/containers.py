"""Video files in container formats (avi, mp4, mov, webm), decoded and encoded by PyAV."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lfdm.data.images import MAX_IMAGE_PIXELS, check_pixels, decoding, guarded
from lfdm.errors import UserError

_READ_OPTIONS = {"format_whitelist": "avi,mov,matroska"}
"""The only formats to probe: a playlist disguised as a clip could make the demuxer open other files."""
_MIN_WHOLE = 0.9
"""Least share of the duration in the header that a whole file holds: some encoders write a duration that is slightly too long."""
_MAX_RATE_DENOMINATOR = 60_000
"""Largest denominator of a stored frame rate; exact for the rates of television, such as 30000/1001."""

_UNKNOWN_RATE = 25.0
"""Frames per second of a file that states none."""


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


def encode_file(frames: Iterator[np.ndarray], suffix: str, *, fps: float, lossless: bool) -> bytes:
    """Encode frames (H, W, 3) uint8 in memory, so that errors of the disk come only from writing the result."""
    codec = _CODECS[suffix, lossless]
    if codec.name == "libx264":  # refuses odd sizes in yuv420p
        frames = (np.pad(frame, ((0, len(frame) % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge") for frame in frames)
    buffer = io.BytesIO()
    first = next(frames)
    with av.open(buffer, "w", format=suffix.removeprefix(".")) as file:
        rate = Fraction(fps).limit_denominator(_MAX_RATE_DENOMINATOR)
        stream = cast(VideoStream, file.add_stream(codec.name, rate=rate, options=codec.options))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], codec.pixel_format
        reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame
        for frame in chain([first], frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = reformatter.reformat(picture, format=codec.pixel_format, **_COLOURS.get(codec.pixel_format, {}))
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return buffer.getvalue()


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video stream of a file. Raises UserError naming the path for what holds none that can be decoded."""
    with path.open("rb") as file:
        with decoding(path):
            container = cast(InputContainer, av.open(file, options=_READ_OPTIONS))
        with container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise UserError(f"{path}: no video stream")
            if stream.codec_context is None:
                raise UserError(f"{path}: an unknown codec")
            yield container, stream


def frame_rate(stream: VideoStream) -> float:
    """Return the average frames per second."""
    return float(stream.average_rate or stream.guessed_rate or _UNKNOWN_RATE)


def count_frames(path: Path, container: InputContainer, stream: VideoStream) -> int:
    """Count the frames of a stream without decoding them."""
    return sum(map(_is_shown, guarded(path, container.demux(stream))))


def _is_shown(packet: "av.Packet[Any]") -> bool:
    """Whether a packet holds a frame of the clip.

    The empty packets of dropped frames and of the end do not, nor do those that an edit list cuts away (a phone's trimmed clip).
    """
    return packet.size > 0 and not packet.is_discard


def decode_file(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8, upright. Raises UserError naming the path for a file that is broken or truncated."""
    num_packets = num_decoded = end = 0
    with open_stream(path) as (container, stream):
        check_pixels(path, stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}  # a size that changes within the stream
        stream.codec_context.thread_count = 1  # clips are small; the cache decodes several at once
        reformatter = VideoReformatter()
        for packet in guarded(path, container.demux(stream)):
            if packet.is_corrupt:
                raise UserError(f"{path}: truncated: the file ends in the middle of a frame")
            num_packets += _is_shown(packet)
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
            with decoding(path):
                frames = packet.decode()
            for frame in frames:
                with decoding(path):
                    array = _upright(reformatter.reformat(frame, format="rgb24"), frame.rotation)
                num_decoded += 1
                yield array
        _check_whole(path, container, stream, end, num_broken=num_packets - num_decoded)


def _upright(frame: av.VideoFrame, degrees: int) -> np.ndarray:
    """Return a frame (H, W, 3) turned as the file's display matrix says (phones store portrait clips lying down)."""
    array = frame.to_ndarray()
    return np.rot90(array, round(degrees / 90) % 4) if degrees else array


def _check_whole(path: Path, container: InputContainer, stream: VideoStream, end: int, num_broken: int) -> None:
    """Raise UserError where the last packet ends before the header's duration, in time since frames may come at any rate."""
    ends, promised = _seconds(end, stream), _promised_seconds(container, stream)
    if stream.codec_context.name == _FFV1.name:  # our lossless form: every frame counts
        whole = num_broken <= 0 and ends > promised - 0.5 / frame_rate(stream)
    else:
        whole = ends >= _MIN_WHOLE * promised
    if not whole:
        raise UserError(f"{path}: truncated: {ends:.2f} of {promised:.2f} s, {max(num_broken, 0)} frames in it are broken")


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration in the header; 0 where it has none, or one that may be that of a longer sound track."""
    if stream.duration:
        return _seconds(stream.duration, stream)
    if len(container.streams) > 1 or not container.duration:
        return 0.0
    return container.duration / av.time_base


def _seconds(time: int, stream: VideoStream) -> float:
    return float(time * (stream.time_base or 0))
