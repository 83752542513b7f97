"""Number and size of a GIF's frames, read from the headers of its blocks without decoding a frame.

Pillow decodes each frame to reach the next one, and allocates frames that are larger than the screen.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

_COMMENT, _APPLICATION = b"\xfe", b"\xff"


@dataclass(frozen=True, kw_only=True)
class GifSize:
    """Number of frames, and the smallest image that holds the screen and all of them."""

    frames: int
    width: int
    height: int


def read_gif_size(file: BinaryIO) -> GifSize | None:
    """Read the size of a GIF from the start of `file`; None for another format.

    Blocks are found exactly as Pillow finds them, with its leniency: what is checked must be what it would decode.
    """
    screen = file.read(13)
    if len(screen) < 13 or not screen.startswith((b"GIF87a", b"GIF89a")):
        return None
    width, height, flags = struct.unpack_from("<HHB", screen, 6)
    _skip_palette(file, flags)
    frames = 0
    while (kind := file.read(1)) not in (b"", b";"):
        if kind == b"!":
            _skip_extension(file, first=frames == 0)
        elif kind == b",":
            descriptor = file.read(9)
            if len(descriptor) < 9:
                break
            left, top, frame_width, frame_height, flags = struct.unpack("<HHHHB", descriptor)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            frames += 1
            _skip_palette(file, flags)
            file.read(1)
            _skip_blocks(file)
    return GifSize(frames=frames, width=width, height=height)


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.read(6 << (flags & 7))


def _skip_extension(file: BinaryIO, *, first: bool) -> None:
    label, block = file.read(1), _block(file)
    if label == _COMMENT and not block:
        return
    if label == _APPLICATION and first and block.startswith(b"NETSCAPE2.0"):
        _block(file)
    _skip_blocks(file)  # after an empty first block, too


def _skip_blocks(file: BinaryIO) -> None:
    while _block(file):
        pass


def _block(file: BinaryIO) -> bytes:
    length = file.read(1)
    return file.read(length[0]) if length else b""
