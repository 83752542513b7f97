"""Decoded video frames as a player shows them: upright, with square pixels, deinterlaced, over white, in standard dynamic range.

Shapes: an array is (H, W, 3) uint8 RGB, or (H, W, 4) with alpha.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.error import BlockingIOError as AVBlockingIOError
from av.error import EOFError as AVEOFError
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lfdm.data.alpha import add_alpha, compose, unpremultiply
from lfdm.data.hdr import is_hdr, to_sdr
from lfdm.data.images import decoding, guarded

Alpha = Literal["straight", "over white", "over black"]
"""How colours are stored next to alpha: as they are, or already composed over (premultiplied with) a colour."""
_NO_MATRIX = 2
"""ITU-T H.273's number for an unknown matrix."""
_MAX_ASPECT = 8
"""Largest ratio of a pixel's sides that is believed; more comes from a damaged header."""
_ROTATIONS = ((False, False, False), (True, False, True), (False, True, True), (True, True, False))
"""See `_orientation`: turned by 0, 90, 180 and 270 degrees counterclockwise."""


@dataclass(frozen=True)
class StatedColours:
    """How a container says that its colours are stored, by the numbers of ITU-T H.273 and of FFmpeg's ranges."""

    matrix: int
    range: int


def stated_colours(stream: VideoStream) -> StatedColours | None:
    """Return the colours that the container states for a VP8 stream, before any frame is decoded; None for other streams.

    VP8 itself knows BT.601 in limited range only, and FFmpeg's decoder says so of every frame. Browsers, which record and show
    other colours, go by the container.
    """
    context = stream.codec_context
    if context.codec.canonical_name != "vp8":
        return None
    return StatedColours(int(context.colorspace), int(context.color_range))


class FrameConverter:
    """Converts the frames of one video stream to RGB.

    Frames whose size changes within the stream, as in recordings of video calls, are scaled to the size of the first one.

    Args:
        aspect: width of a stored pixel divided by its height; None or 0 if unknown.
        alpha: how colours are stored next to alpha.
        colours: what the container says of the colours, if it is to be believed; see `stated_colours`.
        keep_alpha: return alpha, 255 where a frame has none, instead of composing over white.
    """

    def __init__(
        self,
        aspect: Fraction | None,
        alpha: Alpha = "straight",
        colours: StatedColours | None = None,
        *,
        keep_alpha: bool = False,
    ) -> None:
        self.alpha: Alpha = alpha
        self.colours = colours
        self.keep_alpha = keep_alpha
        self.aspect = aspect if aspect and Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT else Fraction(1)
        self._stored_size: tuple[int, int] | None = None
        """Width and height of the first frame, before it is turned."""
        self._reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as (H, W, 3) uint8, or (H, W, 4) with `keep_alpha`."""
        if self.colours is not None:
            frame.colorspace = frame.colorspace if self.colours.matrix == _NO_MATRIX else self.colours.matrix
            frame.color_range = self.colours.range or frame.color_range
        if is_hdr(frame):
            array = to_sdr(self._reformat(frame, "rgb48le"), frame)
        elif _has_alpha(frame):
            rgba = self._reformat(frame, "rgba")
            array = _straight(rgba, self.alpha) if self.keep_alpha else _over_white(rgba, self.alpha)
        else:
            array = self._reformat(frame, "rgb24")
        array = add_alpha(array) if self.keep_alpha else array
        transposed, flipped_x, flipped_y = _orientation(frame)
        array = array.swapaxes(0, 1) if transposed else array
        return array[:: -1 if flipped_y else 1, :: -1 if flipped_x else 1]

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return width and height of the converted frame."""
        width, height = self._shown_size(frame)
        return (height, width) if _orientation(frame)[0] else (width, height)

    def _shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        if self._stored_size is None:
            self._stored_size = max(1, round(frame.width * self.aspect)), frame.height
        return self._stored_size

    def _reformat(self, frame: av.VideoFrame, pixel_format: str) -> np.ndarray:
        size = self._shown_size(frame)
        if size == (frame.width, frame.height):
            return self._reformatter.reformat(frame, format=pixel_format).to_ndarray()
        return self._reformatter.reformat(frame, *size, format=pixel_format, interpolation="BICUBIC").to_ndarray()


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return whether a frame is to be transposed, then mirrored left to right, then upside down, to stand as it was filmed.

    The display matrix maps stored to shown coordinates, x' = a x + c y and y' = b x + d y. It may turn and mirror; phones
    store portrait clips lying down, and selfie cameras mirrored ones.
    """
    try:
        side_data = cast(Iterable[SideData], frame.side_data)
        matrix = next((data for data in side_data if data.type is Type.DISPLAYMATRIX), None)
    except ValueError:  # PyAV does not know another kind of data, such as the view of a stereo video
        return _ROTATIONS[frame.rotation % 360 // 90]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _over_white(rgba: np.ndarray, kind: Alpha) -> np.ndarray:
    """Compose (H, W, 4) uint8 over white: (H, W, 3) uint8."""
    if kind == "over white":
        return rgba[..., :3]
    if kind == "over black":
        return np.minimum(rgba[..., :3].astype(np.uint32) + 255 - rgba[..., 3:], 255).astype(np.uint8)
    return compose(rgba)


def _straight(rgba: np.ndarray, kind: Alpha) -> np.ndarray:
    """Convert (H, W, 4) uint8 to straight alpha."""
    if kind == "straight":
        return rgba
    if kind == "over white":
        premultiplied = np.maximum(rgba[..., :3].astype(np.int32) - (255 - rgba[..., 3:].astype(np.int32)), 0)
        rgba = np.concatenate([premultiplied.astype(np.uint8), rgba[..., 3:]], axis=-1)
    return unpremultiply(rgba)


def deinterlace(path: Path, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield as many frames; from the first interlaced one on they run through FFmpeg's filter bwdif.

    Raises UserError naming the file `path` for frames that the filter refuses, such as those that change size.
    """
    graph = None
    for frame in frames:
        if graph is None and frame.interlaced_frame:
            graph = _deinterlacer(frame)
        if graph is None:
            yield frame
        else:
            with decoding(path):
                graph.push(frame)
            yield from guarded(path, _filtered(graph))
    if graph is not None:
        graph.push(None)
        yield from guarded(path, _filtered(graph))


def _deinterlacer(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    bwdif, sink = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _filtered(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.pull()
        except (AVBlockingIOError, AVEOFError):  # needs the next frame first; no more frames
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame
