"""Facts about one clip that the checks need, small enough to keep for every clip of a data set.

Shapes: frames (t, 64, 64, 3) uint8, stretched to a square.
"""

import os
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from lfdm.config.video import Size
from lfdm.data.corpora.cutting import find_scenes
from lfdm.data.index import ClipRecord, read_clip
from lfdm.data.truth import load_truth, truth_path
from lfdm.data.video import read_fitted
from lfdm.errors import UserError

SIDE = 64
FIRST_FRAME_SIDE = 32
FINGERPRINT_SIDE = 16
_BLOCK = 8
_RING = 2
"""Rows of blocks at each edge of the frame that should show the background."""
_COMPARED_FRAMES = 6
"""Frames, spread over the clip, that are compared with the first."""
_STILL_SHIFT = 1.0
"""Pixels, of 64, within which a background counts as still: 1.6 percent of the frame."""
_SEARCH = 5.0
"""Largest shift, in pixels of 64, that is recognised as one; a block that moves further matches nowhere."""
_MARGIN = 7
"""Pixels by which a frame is continued at its edges, so that it can be shifted."""
_MIN_TEXTURE = 5.0
"""Standard deviation, in grey levels, from which a block can show that it moves."""
_NOISE, _EXPLAINED = 2.0, 0.2
"""A block is still if a small shift leaves a difference of less than this many grey levels, or this part of its texture."""
_BETTER, _UNEXPLAINED = 0.7, 0.6
"""Otherwise it has moved if a larger shift leaves less than this part of the difference, or no small one explains its texture."""
_FEW_BLOCKS = 0.25
"""Fraction of blocks that may have moved, as by a figure, without a search of more shifts."""
_MIN_BLOCKS = 10
"""Fewest textured blocks at the edges that tell whether the camera moves."""


@dataclass(frozen=True, eq=False)
class ClipSummary:
    """Figures of one clip."""

    broken: str | None = None
    """Why the clip cannot be read; then nothing else is set."""
    first_frame: np.ndarray | None = None
    """(32, 32, 3) uint8."""
    fingerprint: np.ndarray | None = None
    """(3, 16, 16, 3) uint8: first, middle and last frame."""
    cuts: tuple[int, ...] = ()
    """First frames of new scenes."""
    camera: float | None = None
    """Largest fraction of the textured blocks at the frame's edges that has moved; None where the edges lack texture."""
    figure_pixels: int = 0
    """Pixels of the figure after the first frame, where the exact motion is stored,"""
    visible_pixels: int = 0
    """and how many of them show a surface that the first frame also shows."""


def summarize_clip(root: Path, record: ClipRecord) -> ClipSummary:
    """Read one clip and, where it is stored, its exact motion."""
    frames = read_clip(root, record, partial(read_fitted, size=Size(SIDE, SIDE), fit="stretch"))
    if isinstance(frames, UserError):
        return ClipSummary(broken=str(frames).removeprefix(f"{root}{os.sep}"))
    figure, visible = _count_visible(root / record.path)
    return ClipSummary(
        first_frame=_shrink(frames[:1], FIRST_FRAME_SIDE)[0],
        fingerprint=_shrink(frames[[0, len(frames) // 2, -1]], FINGERPRINT_SIDE),
        cuts=tuple(scene.start for scene in find_scenes(frames)[1:]),
        camera=camera_motion(frames),
        figure_pixels=figure,
        visible_pixels=visible,
    )


def _count_visible(clip: Path) -> tuple[int, int]:
    """Return the number of the figure's pixels after the first frame, and of those that the first frame shows."""
    if not truth_path(clip).is_file():
        return 0, 0
    truth = load_truth(truth_path(clip))
    figure = truth.figure[1:]
    return int(figure.sum()), int((figure & truth.visible[1:]).sum())


def _shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Average squares of pixels: (t, side, side, 3) uint8."""
    factor = SIDE // side
    return np.rint(frames.reshape(len(frames), side, factor, side, factor, 3).mean((2, 4))).astype(np.uint8)


def camera_motion(frames: np.ndarray) -> float | None:
    """Return the largest fraction of textured blocks at the frame's edges that no small shift since the first frame explains.

    Blocks are compared without their mean, so that a change of exposure is no motion. None where too few blocks have texture.
    """
    grey = _smooth(frames.mean(-1))
    first, edges = _blocks(grey[0]), _edge_blocks()
    spread = first.std(-1)
    textured = edges & (spread > _MIN_TEXTURE)
    if textured.sum() < _MIN_BLOCKS or len(frames) < 2:
        return None
    chosen = np.unique(np.linspace(1, len(frames) - 1, _COMPARED_FRAMES).round().astype(int))
    return max(_moved_fraction(first[textured], grey[index], textured, spread[textured]) for index in chosen)


def _moved_fraction(first: np.ndarray, later: np.ndarray, chosen: np.ndarray, spread: np.ndarray) -> float:
    """Return the fraction of the chosen blocks that no small shift of the later frame explains."""

    def least(best: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        for rows, columns in product(shifts, shifts):
            best = np.minimum(best, (_blocks(_shifted(later, rows, columns))[chosen] - first).std(-1))
        return best

    small = least(np.full(len(first), np.inf), np.arange(-_STILL_SHIFT, _STILL_SHIFT + 0.5, 0.5))
    differing = small > np.maximum(_NOISE, _EXPLAINED * spread)
    if differing.mean() < _FEW_BLOCKS:
        return float(differing.mean())
    large = least(small, np.arange(-_SEARCH, _SEARCH + 1.0))
    return float((differing & ((large < _BETTER * small) | (small > _UNEXPLAINED * spread))).mean())


def _shifted(image: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Return an image (H, W) moved by up to two pixels, interpolated, with its edges repeated."""
    padded = np.pad(image, _MARGIN, mode="edge")
    top, left = int(np.floor(rows)), int(np.floor(columns))
    below, right = rows - top, columns - left
    height, width = image.shape

    def part(row: int, column: int) -> np.ndarray:
        return padded[_MARGIN + row : _MARGIN + row + height, _MARGIN + column : _MARGIN + column + width]

    upper = (1 - right) * part(top, left) + right * part(top, left + 1)
    lower = (1 - right) * part(top + 1, left) + right * part(top + 1, left + 1)
    return (1 - below) * upper + below * lower


def _smooth(frames: np.ndarray) -> np.ndarray:
    """Average each pixel of (t, H, W) with its neighbours by (1, 2, 1), against noise and aliasing."""
    for axis in (1, 2):
        widths = [(1, 1) if index == axis else (0, 0) for index in range(3)]
        padded, length = np.pad(frames, widths, mode="edge"), frames.shape[axis]
        before, middle, after = (padded.take(range(start, start + length), axis) for start in range(3))
        frames = (before + 2 * middle + after) / 4
    return frames


def _blocks(image: np.ndarray) -> np.ndarray:
    """Return the blocks of an image (64, 64), row by row: (64, 64 pixels)."""
    count = SIDE // _BLOCK
    return image.reshape(count, _BLOCK, count, _BLOCK).swapaxes(1, 2).reshape(count * count, -1)


def _edge_blocks() -> np.ndarray:
    """Return which blocks lie at the left, right and upper edge, where a figure is least often."""
    count = SIDE // _BLOCK
    row, column = np.indices((count, count))
    return ((row < _RING) | (column < _RING) | (column >= count - _RING)).ravel()
