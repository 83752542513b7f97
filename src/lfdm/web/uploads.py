"""Uploaded files: looked at before anything in them is decoded, then read.

Shapes: image (H, W, 3) uint8 · clip (t, S, S, 3) uint8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ImageOps

from lfdm.config import Fit
from lfdm.data.images import open_image, over_white
from lfdm.data.video import VIDEO_SUFFIXES, read_fitted, video_info
from lfdm.web.limits import MEGA, ServeLimits

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What browsers show. Pillow knows many more, of which some start other programs (EPS) or are rarely tested."""


def read_upload(path: Path, limits: ServeLimits) -> np.ndarray:
    """An uploaded image, (H, W, 3) uint8: its size is looked at before its pixels are decoded.

    Raises:
        ValueError: too large, broken, or of a format outside `IMAGE_FORMATS`. The file's name is in it, but not its folder.
    """
    with _naming_file(path):
        _check_bytes(path, limits)
        with open_image(path, formats=IMAGE_FORMATS) as image:
            check_megapixels(image.width * image.height, limits.image_megapixels, "an image")
            return over_white(ImageOps.exif_transpose(image))


def read_clip(path: Path, limits: ServeLimits, *, size: int, fit: Fit) -> tuple[np.ndarray, float]:
    """An uploaded driving clip, fitted frame by frame: (t, size, size, 3) uint8, and its frames per second.

    Raises:
        ValueError: too large, too long, broken, or not a clip. The file's name is in it, but not its folder.
    """
    with _naming_file(path):
        _check_bytes(path, limits)
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"a driving clip must be one of {', '.join(sorted(VIDEO_SUFFIXES))}")
        if path.suffix.lower() == ".gif":
            _check_gif(path, limits)
        info = video_info(path)
        _check_clip(info.frames, info.width * info.height, limits)
        if info.frames > limits.clip_seconds * info.fps:
            raise ValueError(
                f"a driving clip may have {limits.clip_seconds:g} seconds; this one has {info.frames / info.fps:.1f}"
            )
        max_decoded = int(limits.clip_megapixels * MEGA)  # frames need not have the size that the header states
        frames = read_fitted(path, size, fit, max_frames=limits.clip_frames, max_decoded=max_decoded)
    return frames, info.fps


def check_megapixels(pixels: int, allowed: float, what: str) -> None:
    """ValueError for more than `allowed` megapixels."""
    if pixels > allowed * MEGA:
        raise ValueError(f"{what} may have {allowed:g} megapixels; this one has {pixels / MEGA:.1f}")


def _check_bytes(path: Path, limits: ServeLimits) -> None:
    got = path.stat().st_size
    if got > limits.upload_bytes:
        raise ValueError(f"a file may have {limits.upload_megabytes:g} MB; this one has {got / MEGA:.1f} MB")


def _check_gif(path: Path, limits: ServeLimits) -> None:
    """Size and number of a GIF's frames from its block headers: `video_info` has to decode it."""
    with open_image(path, formats=("GIF",)) as image:
        check_megapixels(image.width * image.height, limits.image_megapixels, "a frame")
        _check_clip(getattr(image, "n_frames", 1), image.width * image.height, limits)


def _check_clip(frames: int, pixels: int, limits: ServeLimits) -> None:
    if frames > limits.clip_frames:
        raise ValueError(f"a driving clip may have {limits.clip_frames} frames; this one has {frames}")
    check_megapixels(frames * pixels, limits.clip_megapixels, "a driving clip, all frames together,")


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Errors about a file with its name in place of its path, which says where the server keeps things."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path.name}: not on the server any more; upload it again") from None
    except ValueError as error:
        message = str(error).replace(f"{path}: ", "").replace(f"{path.parent}/", "")
        raise ValueError(f"{path.name}: {message}") from None
