"""Headers of video files, read for what FFmpeg does not pass on."""

import struct
from typing import BinaryIO

_MAX_HEADER, _MAX_BOXES = 2**24, 1000
"""Most bytes of a mov file's header, and most boxes before it, that are searched."""


def stated_size(file: BinaryIO) -> int | None:
    """Return the size in bytes that the head of a Matroska, WebM or AVI file states; None for others and for live streams."""
    file.seek(0)
    head = file.read(4096)
    if head[:4] == b"RIFF":
        size = struct.unpack_from("<I", head, 4)[0]
        return size + 8 if size else None
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return None
    length, start = _ebml_size(head, 4)
    segment = start + (length or 0)
    if head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return None
    length, start = _ebml_size(head, segment + 4)
    return None if length is None else start + length


def graphics_mode(file: BinaryIO) -> int | None:
    """Return the graphics mode of the first video track of a mov or mp4 file."""
    position, start = file.tell(), 0
    try:
        for _ in range(_MAX_BOXES):
            file.seek(start)
            size, name, long_size = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            size = long_size if size == 1 else size
            if name == b"moov":
                file.seek(start)
                moov = file.read(min(size, _MAX_HEADER))
                place = moov.find(b"vmhd") + 8
                return struct.unpack_from(">H", moov, place)[0] if 8 <= place <= len(moov) - 2 else None
            if size < 8 or size >= 1 << 62:
                return None
            start += size
        return None
    finally:
        file.seek(position)


def _ebml_size(data: bytes, start: int) -> tuple[int | None, int]:
    """Return the size of an EBML element, None if unknown, and where its content starts."""
    width = 9 - data[start].bit_length() if len(data) > start and data[start] else 1
    bits = int.from_bytes(data[start : start + width]) & (1 << 7 * width) - 1
    return None if bits == (1 << 7 * width) - 1 else bits, start + width
