"""The blocks of a GIF: its frames' places, times and data, found without decoding a pixel."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from lfdm.errors import UserError

_COMMENT, _APPLICATION, _GRAPHIC_CONTROL = b"\xfe", b"\xff", b"\xf9"
_MAX_UNKNOWN = 65_536
"""Most bytes between blocks that are skipped: more are no GIF."""
_HAS_PALETTE, _INTERLACED, _HAS_TRANSPARENCY = 0x80, 0x40, 0x01


@dataclass(frozen=True, kw_only=True)
class GifFrame:
    """One frame: its rectangle on the screen, how long it lasts, and where its compressed indices begin and end."""

    left: int
    top: int
    width: int
    height: int
    ticks: int
    """Duration in units of 10 ms; 0 where none is stated."""
    disposal: int
    """Disposal of the rectangle after the frame: 2 clears it, 3 (or 4) brings back what it covered, others keep it."""
    transparent: int | None
    """Palette index of transparent pixels, which show what is below them."""
    palette: bytes | None
    """Colours (r, g, b), ...; None where neither the frame nor the file has any."""
    interlaced: bool
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class GifLayout:
    """Screen and frames of a GIF. As in browsers, the screen grows to hold the first frame; later frames are clipped to it."""

    width: int
    height: int
    frames: tuple[GifFrame, ...]
    comment: bytes
    """The first comment, up to 255 bytes."""

    def decoded_size(self, frame: GifFrame) -> tuple[int, int]:
        """Return the width and height of the part of a frame that has to be decoded: the rows on the screen, if in order."""
        rows, columns = max(0, self.height - frame.top), self.width - frame.left
        if not rows or columns <= 0 or not frame.width or not frame.height:
            return 0, 0
        return frame.width, frame.height if frame.interlaced else min(frame.height, rows)

    def largest(self) -> tuple[int, int]:
        """Return the width and height of the screen or the decoded part of a frame, whichever has the most pixels."""
        sizes = [(self.width, self.height), *map(self.decoded_size, self.frames)]
        return max(sizes, key=lambda size: size[0] * size[1])


def read_gif_layout(file: BinaryIO, name: object = "GIF") -> GifLayout | None:
    """Read the layout of a GIF from the start of `file`; None for another format. Unknown bytes between blocks are skipped.

    Raises UserError for a file that ends within the header of a frame.
    """
    screen = file.read(13)
    if len(screen) < 13 or not screen.startswith((b"GIF87a", b"GIF89a")):
        return None
    width, height, flags = struct.unpack_from("<HHB", screen, 6)
    palette = _read_palette(file, flags)
    frames: list[GifFrame] = []
    control, comment, num_unknown = bytes(4), b"", 0
    while (kind := file.read(1)) not in (b"", b";") and num_unknown < _MAX_UNKNOWN:
        if kind == b"!":
            label, block = _read_extension(file, first=not frames)
            if label == _GRAPHIC_CONTROL and len(block) >= 4:
                control = block[:4]
            elif label == _COMMENT:
                comment = comment or block
        elif kind == b",":
            frame = _read_frame(file, control, palette, name)
            if not frames:
                width, height = max(width, frame.left + frame.width), max(height, frame.top + frame.height)
            frames.append(frame)
            control = bytes(4)
        else:
            num_unknown += 1
    return GifLayout(width=width, height=height, frames=tuple(frames), comment=comment)


def _read_frame(file: BinaryIO, control: bytes, shared_palette: bytes | None, name: object) -> GifFrame:
    descriptor = file.read(9)
    if len(descriptor) < 9:
        raise UserError(f"{name}: broken or not a readable clip or image (ends within a frame)")
    left, top, width, height, flags = struct.unpack("<HHHHB", descriptor)
    own_palette = _read_palette(file, flags)
    control_flags, ticks, transparent = struct.unpack("<BHB", control)
    start = file.tell()
    file.read(1)  # number of bits
    while _block(file):
        pass
    return GifFrame(
        left=left,
        top=top,
        width=width,
        height=height,
        ticks=ticks,
        disposal=control_flags >> 2 & 7,
        transparent=transparent if control_flags & _HAS_TRANSPARENCY else None,
        palette=shared_palette if own_palette is None else own_palette,
        interlaced=bool(flags & _INTERLACED),
        start=start,
        end=file.tell(),
    )


def _read_palette(file: BinaryIO, flags: int) -> bytes | None:
    return file.read(6 << (flags & 7)) if flags & _HAS_PALETTE else None


def _read_extension(file: BinaryIO, *, first: bool) -> tuple[bytes, bytes]:
    """Read the label and first block of an extension and skip the rest."""
    label, block = file.read(1), _block(file)
    if label == _COMMENT and not block:
        return label, block
    if label == _APPLICATION and first and block.startswith(b"NETSCAPE2.0"):
        _block(file)
    while _block(file):  # after an empty first block, too
        pass
    return label, block


def _block(file: BinaryIO) -> bytes:
    length = file.read(1)
    return file.read(length[0]) if length else b""
