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

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Formats that browsers show. Pillow reads more, some of which start other programs (EPS) or are rarely tested."""


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
    """A driving clip of an allowed size, whose frames (H, W, 3) uint8 are decoded on iteration."""

    frames: Iterator[np.ndarray]
    num_frames: int
    fps: float


def open_clip(path: Path, limits: ServeLimits) -> Clip:
    """Open an uploaded driving clip after checking its size.

    Raises:
        UserError: too large, too long, broken, or not a clip; also while iterating over the frames, which need not match the
            header. The message names the file but not its folder.
    """
    with _naming_file(path):
        _check_bytes(path, limits)
        _check_gif(path, limits)
        info = video_info(path)
        _check_clip(info.frames, info.width * info.height, limits)
        seconds = info.frames / info.fps
        if seconds > limits.clip_seconds:
            raise UserError(f"a driving clip may have at most {limits.clip_seconds:g} seconds; this one has {seconds:.1f}")
    return Clip(_bounded_frames(path, limits), info.frames, info.fps)


def _bounded_frames(path: Path, limits: ServeLimits) -> Iterator[np.ndarray]:
    pixels = 0
    with _naming_file(path):
        for frame in iterate_video(path, max_frames=limits.clip_frames):
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


def _check_gif(path: Path, limits: ServeLimits) -> None:
    """Check size and number of frames, if the file is a GIF, from its block headers."""
    with path.open("rb") as file:
        layout = read_gif_layout(file, path)
    if layout is None:
        return
    width, height = layout.largest()
    check_megapixels(width * height, limits.image_megapixels, "a frame")
    _check_clip(len(layout.frames), width * height, limits)


def _check_clip(frames: int, pixels: int, limits: ServeLimits) -> None:
    if frames > limits.clip_frames:
        raise UserError(f"a driving clip may have at most {limits.clip_frames} frames; this one has {frames}")
    check_megapixels(frames * pixels, limits.clip_megapixels, "a driving clip, all frames together,")


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
