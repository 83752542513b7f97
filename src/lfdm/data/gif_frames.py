"""Compose the frames of a GIF on its screen as browsers show them.

Pillow fills what was cleared with the background colour and lets the screen grow with every frame; browsers clear to
transparent and clip.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from lfdm.data.gif_blocks import GifFrame, GifLayout

_CLEAR = 2
_RESTORE = (3, 4)
"""3 is the standard; some old writers, which misread it, use 4."""


def compose_gif(file: BinaryIO, layout: GifLayout) -> Iterator[np.ndarray]:
    """Yield the screen (H, W, 4) uint8 RGBA after each frame, a new array each time; alpha is 0 or 255.

    Raises whatever Pillow raises on damaged frames.
    """
    canvas = np.zeros((layout.height, layout.width, 4), np.uint8)
    for frame in layout.frames:
        place = np.s_[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
        below = canvas[place].copy() if frame.disposal in _RESTORE else None
        target = canvas[place]
        if target.size:  # else it lies beyond the screen
            indices = _decode_indices(file, frame, layout.decoded_size(frame))[: target.shape[0], : target.shape[1]]
            np.copyto(target, _colours(frame)[indices], where=(indices != frame.transparent)[..., None])
        yield canvas.copy()
        if frame.disposal == _CLEAR:
            target[:] = 0
        elif below is not None:
            target[:] = below


def _decode_indices(file: BinaryIO, frame: GifFrame, decoded_size: tuple[int, int]) -> np.ndarray:
    """Decode the palette indices (h, w) uint8 of one frame, as the only frame of a GIF without a palette."""
    file.seek(frame.start)
    data = file.read(frame.end - frame.start)
    size = struct.pack("<HH", *decoded_size)
    header = b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + (b"\x40" if frame.interlaced else b"\0")
    with Image.open(io.BytesIO(header + data + b";"), formats=("GIF",)) as image:
        return np.asarray(image)


def _colours(frame: GifFrame) -> np.ndarray:
    """Return the colours (256, 4) of a frame's indices; those beyond the palette are black."""
    colours = np.zeros((256, 4), np.uint8)
    colours[:, 3] = 255
    if frame.palette is None:
        colours[:, :3] = np.arange(256)[:, None]
    else:
        palette = np.frombuffer(frame.palette, np.uint8, len(frame.palette) // 3 * 3).reshape(-1, 3)
        colours[: len(palette), :3] = palette
    return colours
