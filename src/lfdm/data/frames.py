"""Decoded video frames as a player shows them: upright, with square pixels, deinterlaced, over white, in standard dynamic range.

Shapes: an array is (H, W, 3) uint8 RGB.
"""

import struct
from collections.abc import Iterable, Iterator
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

from lfdm.data.hdr import is_hdr, to_sdr
from lfdm.data.images import decoding, guarded

Alpha = Literal["straight", "over white", "over black"]
"""How colours are stored next to alpha: as they are, or already composed over (premultiplied with) a colour."""
_MAX_ASPECT = 8
"""Largest ratio of a pixel's sides that is believed; more comes from a damaged header."""
_ROTATIONS = ((False, False, False), (True, False, True), (False, True, True), (True, True, False))
"""See `_orientation`: turned by 0, 90, 180 and 270 degrees counterclockwise."""


class FrameConverter:
    """Converts the frames of one video stream to RGB.

    Args:
        aspect: width of a stored pixel divided by its height; None or 0 if unknown.
        alpha: how colours are stored next to alpha.
    """

    def __init__(self, aspect: Fraction | None, alpha: Alpha = "straight") -> None:
        self.alpha: Alpha = alpha
        self.aspect = aspect if aspect and Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT else Fraction(1)
        self._reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as (H, W, 3) uint8."""
        if is_hdr(frame):
            array = to_sdr(self._reformat(frame, "rgb48le"), frame)
        elif _has_alpha(frame):
            array = _over_white(self._reformat(frame, "rgba"), self.alpha)
        else:
            array = self._reformat(frame, "rgb24")
        transposed, flipped_x, flipped_y = _orientation(frame)
        array = array.swapaxes(0, 1) if transposed else array
        return array[:: -1 if flipped_y else 1, :: -1 if flipped_x else 1]

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return width and height of the converted frame."""
        width, height = self._square_width(frame), frame.height
        return (height, width) if _orientation(frame)[0] else (width, height)

    def _square_width(self, frame: av.VideoFrame) -> int:
        return max(1, round(frame.width * self.aspect))

    def _reformat(self, frame: av.VideoFrame, pixel_format: str) -> np.ndarray:
        width = self._square_width(frame)
        if width == frame.width:
            return self._reformatter.reformat(frame, format=pixel_format).to_ndarray()
        return self._reformatter.reformat(frame, width, format=pixel_format, interpolation="BICUBIC").to_ndarray()


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
    colour, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
    if kind == "over black":
        return np.minimum(colour + 255 - alpha, 255).astype(np.uint8)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


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
