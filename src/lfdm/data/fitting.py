"""Fitting of frames to a size: black borders, the central part, or stretched.

Shapes: frames are (t, H, W, 3) uint8 RGB, or (t, H, W, 4) with alpha.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from PIL import Image

from lfdm.config.checks import check
from lfdm.config.video import Fit, Size, SizeInput
from lfdm.errors import UserError

_STRIP = 2**20
"""Numbers that shrinking sums up at a time (8 MB)."""


def fit_frames(frames: np.ndarray, size: SizeInput, mode: Fit, *, border: Literal["constant", "edge"] = "constant") -> np.ndarray:
    """Fit frames (t, H, W, 3) uint8 to a size (height, width) or, given as one number, to a square: (t, height, width, 3) uint8.

    `pad` scales frames to the largest size that fits, truncated to whole pixels, and fills the borders with black or, with
    border="edge", the nearest pixel; an odd pixel goes to the bottom or right. `crop` keeps the largest central part that has
    the proportions of `size`; `stretch` changes the proportions.
    Shrinking averages the exact area under each new pixel, as the published recipe does; enlarging is bilinear.
    """
    check_frames(frames)
    height, width = Size.parse(size)
    check(mode in get_args(Fit), "fit", mode, "one of " + ", ".join(map(repr, get_args(Fit))))
    old_height, old_width = frames.shape[1:3]
    if mode == "stretch":
        return _resize(frames, height, width)
    wider = old_width * height > width * old_height
    if mode == "crop":
        part = (old_height, max(1, old_height * width // height)) if wider else (max(1, old_width * height // width), old_width)
        top, left = (old_height - part[0]) // 2, (old_width - part[1]) // 2
        return _resize(frames[:, top : top + part[0], left : left + part[1]], height, width)
    new_height, new_width = (height, max(1, old_width * height // old_height))
    if wider:
        new_height, new_width = max(1, old_height * width // old_width), width
    small = _resize(frames, new_height, new_width)
    if (new_height, new_width) == (height, width):
        return small
    top, left = (height - new_height) // 2, (width - new_width) // 2
    around = ((0, 0), (top, height - new_height - top), (left, width - new_width - left), (0, 0))
    return np.pad(small, around, mode=border)


def shown_part(picture: Size, size: Size, mode: Fit) -> tuple[float, float, float, float]:
    """Return the part of a picture that `fit_frames` shows in frames of `size`: top, left, height and width in its pixels.

    It is larger than the picture where the frames have borders.
    """
    if mode == "stretch":
        return 0, 0, picture.height, picture.width
    wider = picture.width * size.height > size.width * picture.height
    if mode == "crop":
        height, width = picture
        if wider:
            width = max(1, picture.height * size.width // size.height)
        else:
            height = max(1, picture.width * size.height // size.width)
        return (picture.height - height) // 2, (picture.width - width) // 2, height, width
    height, width = size
    if wider:
        height = max(1, picture.height * size.width // picture.width)
    else:
        width = max(1, picture.width * size.height // picture.height)
    step_y, step_x = picture.height / height, picture.width / width
    top, left = (size.height - height) // 2, (size.width - width) // 2
    return -top * step_y, -left * step_x, size.height * step_y, size.width * step_x


def check_frames(frames: np.ndarray, *, may_have_alpha: bool = False) -> None:
    """Raise UserError for anything but frames (t, H, W, 3) or perhaps (t, H, W, 4) uint8, at least one of at least one pixel."""
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        got = getattr(frames, "dtype", type(frames).__name__)
        raise UserError(f"frames must be a numpy array of uint8, got {got}")
    channels = (3, 4) if may_have_alpha else (3,)
    if frames.ndim != 4 or frames.shape[-1] not in channels:
        allowed = " or ".join(f"(t, H, W, {number})" for number in channels)
        raise UserError(f"frames must have the shape {allowed}, got {frames.shape}")
    if 0 in frames.shape:
        raise UserError(f"frames must hold at least one frame and one pixel, got the shape {frames.shape}")


def _resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    if frames.shape[1:3] == (height, width):
        return frames
    if height <= frames.shape[1] and width <= frames.shape[2]:
        return np.stack([_shrink(frame, height, width) for frame in frames])
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in frames])


def _shrink(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink a frame in strips: sums over a whole image would take many times its own memory."""
    n = len(frame)

    def shrunk_columns(left: int, right: int) -> np.ndarray:  # (right - left, height, 3)
        part = frame[:, left:right]
        step = max(1, _STRIP // (3 * part.shape[1]))
        return _area_means(lambda top, bottom: part[top:bottom], n, height, step=step).swapaxes(0, 1)

    step = max(1, _STRIP // (3 * min(n, 4096)))
    return np.rint(_area_means(shrunk_columns, frame.shape[1], width, step=step).swapaxes(0, 1)).astype(np.uint8)


def _area_means(rows: Callable[[int, int], np.ndarray], n: int, num: int, *, step: int) -> np.ndarray:
    """Average an array (n, ...) over `num` equal intervals of its first axis, fractional ends weighted: (num, ...).

    `rows(a, b)` returns its part from a to b and is called for about `step` rows at a time.
    """
    if n % num == 0:  # ten times as fast, and the common case of large frames
        size = n // num
        step = max(1, step // size) * size
        parts = (rows(start, min(start + step, n)) for start in range(0, n, step))
        totals = [part.reshape(-1, size, *part.shape[1:]).sum(axis=1, dtype=np.float64) for part in parts]
        return np.concatenate(totals) * (num / n)
    ends = np.arange(num + 1) * n / num
    whole = np.minimum(ends.astype(np.int64), n - 1)
    sums_to_ends: list[np.ndarray] = []
    total: np.ndarray | float = 0.0
    for start in range(0, n, step):
        part = rows(start, min(start + step, n))
        sums = np.empty((len(part) + 1, *part.shape[1:]), np.float64)
        sums[0] = total
        sums[1:] = part
        np.cumsum(sums, axis=0, out=sums)
        total = sums[-1]
        here = slice(*np.searchsorted(whole, (start, start + len(part))))
        row, share = whole[here] - start, (ends - whole)[here].reshape(-1, *[1] * (part.ndim - 1))
        sums_to_ends.append(sums[row] * (1 - share) + sums[row + 1] * share)
    return np.diff(np.concatenate(sums_to_ends), axis=0) * (num / n)
