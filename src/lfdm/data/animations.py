"""Animated WebP and PNG (APNG): frames of any duration on disk, frames at a constant rate outside."""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageSequence

from lfdm.data.alpha import add_alpha
from lfdm.data.images import check_pixels, decoding, guarded, open_image, to_array
from lfdm.data.timing import Timing, constant_rate
from lfdm.errors import UserError

ANIMATION_SUFFIXES = (".webp", ".apng")
"""Endings that can be written; animated `.png` files are also read."""
_ENDINGS = (*ANIMATION_SUFFIXES, ".png")
_SHORTEST_MS, _DEFAULT_MS = 11.0, 100.0
"""Browsers take a shorter duration, or none, for the default."""
_QUALITY = 90
"""Quality of lossy WebP, 0 to 100."""
_PNG, _WEBP_ANIMATED, _WEBP_ALPHA = b"\x89PNG\r\n\x1a\n", 0x02, 0x10


@dataclass(frozen=True, kw_only=True)
class _Layout:
    width: int
    height: int
    durations: list[float]
    """Durations of the frames in milliseconds."""
    num_frames: int
    """As the header states it."""


def is_animation(path: Path) -> bool:
    """Return whether a file has the ending of a WebP or PNG and is animated; False for one that cannot be read."""
    try:
        return path.suffix.lower() in _ENDINGS and path.is_file() and _read_layout(path) is not None
    except OSError:
        return False


def read_animation_timing(path: Path) -> Timing:
    """Read the timing and size of an animation from its headers, without decoding a frame."""
    layout = _read_layout(path)
    if layout is None or not layout.durations or len(layout.durations) != layout.num_frames:
        raise UserError(f"{path}: broken or not a readable clip or image (not a whole animation)")
    check_pixels(path, layout.width, layout.height)
    durations = [duration if duration >= _SHORTEST_MS else _DEFAULT_MS for duration in layout.durations]
    return constant_rate(durations, ticks_per_second=1000, width=layout.width, height=layout.height, name=path)


def decode_animation(path: Path, *, keep_alpha: bool = False) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 over white, or (H, W, 4) with `keep_alpha`, at a constant rate."""
    repeats = iter(read_animation_timing(path).repeats)
    with open_image(path, formats=("WEBP", "PNG")) as image:
        for index, frame in enumerate(guarded(path, ImageSequence.Iterator(image))):
            if index == 0 and image.info.get("default_image"):  # shown only where animations are not
                continue
            with decoding(path):
                picture = frame.copy()
            array = to_array(picture, path, keep_alpha=keep_alpha)
            array = add_alpha(array) if keep_alpha else array
            for _ in range(next(repeats, 0)):
                yield array


def encode_animation(frames: Iterable[np.ndarray], suffix: str, *, fps: float, lossless: bool) -> bytes:
    """Encode frames (H, W, 3) or (H, W, 4) uint8 as `.webp` or `.apng`, which is always lossless.

    Equal frames in a row become one.
    """
    images = [Image.fromarray(frame) for frame in frames]
    ends = np.rint(np.arange(len(images) + 1) * 1000 / fps)  # rounding errors must not add up over the clip
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": np.diff(ends).astype(int).tolist()}
    if suffix == ".webp":
        options |= {"lossless": lossless, "quality": _QUALITY}
    buffer = io.BytesIO()
    images[0].save(buffer, "WEBP" if suffix == ".webp" else "PNG", loop=0, **options)
    data = buffer.getvalue()
    if _read_file(io.BytesIO(data)) is None:  # Pillow writes a picture if all frames are equal
        return (_animated_webp if suffix == ".webp" else _animated_png)(data, images[0], round(ends[-1]))
    return data


def _animated_png(data: bytes, image: Image.Image, milliseconds: int) -> bytes:
    """Make a PNG an animation of one frame."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    number, unit = (milliseconds, 1000) if milliseconds < 2**16 else (min(milliseconds // 1000, 2**16 - 1), 1)
    control = chunk(b"acTL", struct.pack(">II", 1, 0))
    control += chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *image.size, 0, 0, number, unit, 0, 0))
    end = data.index(b"IDAT") - 4
    return data[:end] + control + data[end:]


def _animated_webp(data: bytes, image: Image.Image, milliseconds: int) -> bytes:
    """Make a WebP an animation of one frame."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    size = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    picture = data[30:] if data[12:16] == b"VP8X" else data[12:]
    frame = bytes(6) + size + min(milliseconds, 2**24 - 1).to_bytes(3, "little") + bytes(1) + picture
    flags = _WEBP_ANIMATED | (_WEBP_ALPHA if image.mode == "RGBA" else 0)
    content = chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size) + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", frame)
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


# ------------------------------------------------------------------------------------------------------------- headers


def _read_layout(path: Path) -> _Layout | None:
    """Read the headers of an animation; None for any other file. One that ends early has fewer durations than frames."""
    with path.open("rb") as file:
        return _read_file(file)


def _read_file(file: BinaryIO) -> _Layout | None:
    head = file.read(12)
    try:
        if head.startswith(_PNG):
            file.seek(len(_PNG))
            return _read_png(file)
        if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
            return _read_webp(file)
    except struct.error:  # ends within a header
        return None
    return None


def _read_png(file: BinaryIO) -> _Layout | None:
    width = height = num_frames = 0
    durations: list[float] = []
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = file.tell() + length + 4
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
        elif kind == b"acTL":
            (num_frames,) = struct.unpack(">I", file.read(4))
        elif kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", file.read(26), 20)
            durations.append(1000 * numerator / (denominator or 100))
        elif kind == b"IEND" or (kind == b"IDAT" and not num_frames):
            break
        file.seek(end)
    return _Layout(width=width, height=height, durations=durations, num_frames=num_frames) if num_frames else None


def _read_webp(file: BinaryIO) -> _Layout | None:
    width = height = 0
    durations: list[float] = []
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        end = file.tell() + length + length % 2
        if not width:
            flags = file.read(10)
            if kind != b"VP8X" or len(flags) < 10 or not flags[0] & _WEBP_ANIMATED:
                return None
            width, height = (1 + int.from_bytes(flags[at : at + 3], "little") for at in (4, 7))
        elif kind == b"ANMF":
            durations.append(float(int.from_bytes(file.read(16)[12:15], "little")))
        file.seek(end)
    return _Layout(width=width, height=height, durations=durations, num_frames=len(durations)) if width else None
