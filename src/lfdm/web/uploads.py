"""Read uploaded files after checking their size from their headers.

Shapes: image, frame (H, W, 3) uint8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lfdm.data.gif_blocks import read_gif_layout
from lfdm.data.images import open_image, read_image
from lfdm.data.video import iterate_video, video_info
from lfdm.errors import UserError
from lfdm.web.limits import MEGA, ServeLimits

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "HEIF")
"""Formats of browsers and phones. Pillow reads more, some of which start other programs (EPS) or are rarely tested."""
MAX_GIF_FRAMES = 10_000
"""Most frames of a GIF; to find its rate takes time for each of them."""


def read_upload(path: Path, limits: ServeLimits) -> np.ndarray:
    """Read an uploaded image, (H, W, 3) uint8, after checking its size.

    Raises:
        UserError: too large, broken, or not one of `IMAGE_FORMATS`. The message names the file but not its folder.
    """
    with _naming_file(path):
        _check_bytes(path, limits)
        with open_image(path, formats=IMAGE_FORMATS) as image:
            check_megapixels(image.width * image.height, limits.image_megapixels, "an image")
            return read_image(image, keep_alpha=True)


@dataclass(frozen=True, eq=False)
class Clip:
    """The beginning of a driving clip, as much as is allowed, whose frames (H, W, 3) uint8 are decoded on iteration."""

    frames: Iterator[np.ndarray]
    num_frames: int
    fps: float
    may_sound: bool
    """True if the clip is short enough for its sound to be kept."""
    note: str
    """Says which part is used, unless it is all."""


def open_clip(path: Path, limits: ServeLimits) -> Clip:
    """Open an uploaded driving clip after checking its size. Of one that is too long the beginning is used.

    Raises:
        UserError: too large, broken, or not a clip; also while iterating over the frames, which need not match the
            header. The message names the file but not its folder.
    """
    with _naming_file(path):
        _check_bytes(path, limits)
        drawn_pixels = _check_gif(path, limits)
        info = video_info(path)
        pixels = max(info.width * info.height, drawn_pixels)
        check_megapixels(pixels, limits.clip_megapixels, "a frame of a driving clip")
        used = min(info.frames, limits.clip_frames, int(limits.clip_megapixels * MEGA) // pixels)
    note = f"The first {used} of the clip's {info.frames} frames were used ({used / info.fps:.1f} s)."
    may_sound = info.stated_fps is None and used / info.fps <= limits.sound_seconds
    return Clip(_bounded_frames(path, used, limits), used, info.fps, may_sound, note if used < info.frames else "")


def _bounded_frames(path: Path, num_frames: int, limits: ServeLimits) -> Iterator[np.ndarray]:
    pixels = 0
    with _naming_file(path):
        for frame in iterate_video(path, max_frames=num_frames):
            pixels += frame.shape[0] * frame.shape[1]
            check_megapixels(pixels, limits.clip_megapixels, "a driving clip, all frames together,")
            yield frame


def check_megapixels(pixels: int, allowed: float, what: str) -> None:
    """Raise UserError for more than `allowed` megapixels."""
    if pixels > allowed * MEGA:
        raise UserError(f"{what} may have at most {allowed:g} megapixels; this one has {pixels / MEGA:.1f}")


def _check_bytes(path: Path, limits: ServeLimits) -> None:
    got = path.stat().st_size
    if got > limits.upload_bytes:
        raise UserError(f"a file may have at most {limits.upload_megabytes:g} MB; this one has {got / MEGA:.1f} MB")


def _check_gif(path: Path, limits: ServeLimits) -> int:
    """Check size and number of frames, if the file is a GIF, from its block headers; return the pixels of its largest frame."""
    with path.open("rb") as file:
        layout = read_gif_layout(file, path)
    if layout is None:
        return 0
    if len(layout.frames) > MAX_GIF_FRAMES:
        raise UserError(f"a GIF may have at most {MAX_GIF_FRAMES} frames; this one has {len(layout.frames)}")
    width, height = layout.largest()
    check_megapixels(width * height, limits.image_megapixels, "a frame")
    return width * height


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Replace paths in error messages by the file's name, since they reveal where the server stores files."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path.name}: no longer on the server; upload it again") from None
    except UserError as error:
        message = str(error).replace(f"{path}: ", "").replace(f"{path.parent}/", "")
        raise UserError(f"{path.name}: {message}") from None
