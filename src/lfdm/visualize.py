"""Pictures of motion: flow colours, warped grids, occlusion, panels and contact sheets. numpy and PIL alone.

Shapes: video (t, H, W, 3) uint8 · flow (..., h, w, 2), last axis (x, y), in half images · occlusion (..., h, w) in [0, 1].
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from lfdm.models.motion import Motion

GAP = 4
CAPTION_HEIGHT = 16
PANEL_SIDE = 192
"""Tiles of a panel are enlarged by a whole factor to at most this side."""
GRID_LINES = 16
"""Lines of the warped grid in each direction."""
SHEET_FRAMES = 8
_BACKGROUND, _INK = 255, (0, 0, 0)


def flow_to_color(flow: np.ndarray, *, max_flow: float | None = None) -> np.ndarray:
    """Direction as hue and length as saturation, white = no motion.

    Args:
        flow: (..., h, w, 2), last axis (x, y).
        max_flow: the length shown fully saturated; None = the longest there is.

    Returns:
        (..., h, w, 3) uint8.
    """
    length = np.linalg.norm(flow, axis=-1)
    scale = max_flow if max_flow is not None else max(float(length.max()), 1e-6)
    saturation = np.clip(length / scale, 0, 1)[..., None]
    turn = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi)
    sixths = (6 * turn[..., None] + np.array([0.0, 4.0, 2.0])) % 6
    hue = np.clip(np.abs(sixths - 3) - 1, 0, 1)
    return np.round(255 * (1 - saturation * (1 - hue))).astype(np.uint8)


def draw_warped_grid(picture: np.ndarray, flow: np.ndarray, *, num_lines: int = GRID_LINES, opacity: float = 0.6) -> np.ndarray:
    """A regular grid on the source image, seen where `flow` takes it, drawn in black over a picture.

    Args:
        picture: (H, W, 3) uint8.
        flow: (H, W, 2), in half images, of the same size.

    Returns:
        (H, W, 3) uint8.
    """
    coverage = np.zeros(picture.shape[:2])
    for axis, size in ((0, picture.shape[1]), (1, picture.shape[0])):
        centres = np.arange(size) + 0.5
        pixel = centres[None, :] if axis == 0 else centres[:, None]
        spacing = size / num_lines
        source = pixel + flow[..., axis] * size / 2  # where each pixel looks in the source image
        distance = np.abs((source / spacing - 0.5) % 1 - 0.5) * spacing
        coverage = np.maximum(coverage, np.clip(1 - distance, 0, 1))
    return np.round(picture * (1 - opacity * coverage[..., None])).astype(np.uint8)


def make_panel(source: np.ndarray, frames: np.ndarray, warped: np.ndarray, motion: "Motion") -> np.ndarray:
    """Source | generated | warped | flow in colours with the warped grid | occlusion, side by side, captioned.

    Flow colours share one scale over the whole video, given in the caption in pixels of the frame.

    Args:
        source: (H, W, 3) uint8.
        frames, warped: (t, H, W, 3) uint8.
        motion: of one sample and the same t.

    Returns:
        (t, H', W', 3) uint8.

    Raises:
        ValueError: shapes that do not agree.
    """
    t, height, width = frames.shape[:3]
    if len(motion.flow) != 1 or motion.num_frames != t or warped.shape != frames.shape or source.shape != frames.shape[1:]:
        raise ValueError(
            f"a panel needs one sample's source (H, W, 3), frames and warped (t, H, W, 3) and motion of t frames; got "
            f"{source.shape}, {frames.shape}, {warped.shape} and motion {tuple(motion.flow.shape)}"
        )
    factor = max(1, PANEL_SIDE // max(height, width))
    size = (width * factor, height * factor)
    flow = motion.flow[0].permute(1, 2, 3, 0).float().cpu().numpy()  # (t, h, w, 2)
    occlusion = motion.occlusion[0, 0].float().cpu().numpy()
    longest = max(float(np.linalg.norm(flow, axis=-1).max()), 1e-6)
    captions = ("source", "generated", "warped", f"flow, max {longest * width / 2:.1f} px", "occlusion")
    panels = []
    for k in range(t):
        tiles = [_enlarge(picture, factor) for picture in (source, frames[k], warped[k])]
        large = np.stack([_resize(flow[k, ..., axis], size) for axis in range(2)], axis=-1)
        tiles.append(draw_warped_grid(flow_to_color(large, max_flow=longest), large))
        tiles.append(occlusion_to_gray(_resize(occlusion[k], size)))
        panels.append(_row(tiles, captions))
    return np.stack(panels)


def occlusion_to_gray(occlusion: np.ndarray) -> np.ndarray:
    """White = visible in the source, black = painted: (..., h, w) -> (..., h, w, 3) uint8."""
    gray = np.round(255 * np.clip(occlusion, 0, 1)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def contact_sheet(rows: Sequence[np.ndarray], captions: Sequence[str], *, num_frames: int = SHEET_FRAMES) -> np.ndarray:
    """Some frames of each video in a row, below its caption: (H, W, 3) uint8.

    Args:
        rows: videos (t, H, W, 3) uint8.
        captions: one per video.
        num_frames: frames shown of each, evenly spread, first and last included.

    Raises:
        ValueError: no videos, or not one caption for each.
    """
    if not rows or len(rows) != len(captions):
        raise ValueError(f"a contact sheet needs one caption per video; got {len(rows)} videos and {len(captions)} captions")
    strips = []
    for video, caption in zip(rows, captions, strict=True):
        chosen = np.unique(np.linspace(0, len(video) - 1, num_frames).round().astype(int))
        factor = max(1, 64 // max(video.shape[1:3]))
        tiles = [_enlarge(video[k], factor) for k in chosen]
        strips.append(_row(tiles, [caption] + [""] * (len(tiles) - 1)))
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_pad(strip, right=width - strip.shape[1], bottom=GAP) for strip in strips])


def _row(tiles: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Tiles side by side with gaps, captions above them; a caption may run over the next tile's if that is empty."""
    padded = [_pad(tile, right=GAP if tile is not tiles[-1] else 0, top=CAPTION_HEIGHT) for tile in tiles]
    image = Image.fromarray(np.concatenate(padded, axis=1))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    left = 0
    for tile, caption in zip(padded, captions, strict=True):
        draw.text((left + 2, 2), caption, fill=_INK, font=font)
        left += tile.shape[1]
    return np.asarray(image)


def _pad(picture: np.ndarray, *, top: int = 0, right: int = 0, bottom: int = 0) -> np.ndarray:
    return np.pad(picture, ((top, bottom), (0, right), (0, 0)), constant_values=_BACKGROUND)


def _enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) floats to (height, width) for `size` = (width, height), bilinear."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
