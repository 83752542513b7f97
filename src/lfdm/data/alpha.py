"""Transparency of pictures and frames.

Shapes: an RGBA array is (..., H, W, 4) uint8 with straight alpha, as in PNG: its colours are not multiplied by alpha.
Premultiplied colours are, and can be averaged: resizing or warping then mixes no colour of invisible pixels into the edge of
visible ones.
"""

from itertools import pairwise

import numpy as np

from lfdm.config.video import Fit, Size, SizeInput
from lfdm.data.fitting import fit_frames


def add_alpha(frame: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as opaque RGBA (..., 4), and RGBA as it is."""
    if frame.shape[-1] == 4:
        return frame
    return np.concatenate([frame, np.full((*frame.shape[:-1], 1), 255, np.uint8)], axis=-1)


def without_alpha(frame: np.ndarray) -> np.ndarray:
    """Compose straight RGBA (..., 4) over white: (..., 3); colours (..., 3) stay as they are."""
    return frame if frame.shape[-1] == 3 else compose(frame)


def premultiply(rgba: np.ndarray) -> np.ndarray:
    """Multiply the colours of straight RGBA by its alpha: (..., 4) uint8."""
    alpha = rgba[..., 3:].astype(np.uint32)
    return np.concatenate([((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8), rgba[..., 3:]], axis=-1)


def unpremultiply(premultiplied: np.ndarray) -> np.ndarray:
    """Divide premultiplied colours by their alpha: straight RGBA (..., 4) uint8. Invisible pixels become black."""
    alpha = premultiplied[..., 3:].astype(np.uint32)
    colours = (premultiplied[..., :3].astype(np.uint32) * 255 + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([np.where(alpha > 0, np.minimum(colours, 255), 0).astype(np.uint8), premultiplied[..., 3:]], axis=-1)


def compose(rgba: np.ndarray, background: np.ndarray | int = 255) -> np.ndarray:
    """Compose straight RGBA over a background, a grey value or colours of a shape that broadcasts to (..., 3): (..., 3) uint8."""
    alpha = rgba[..., 3:].astype(np.uint32)
    behind = np.asarray(background, np.uint32) * (255 - alpha)
    return ((rgba[..., :3] * alpha + behind + 127) // 255).astype(np.uint8)


def compose_premultiplied(premultiplied: np.ndarray, background: np.ndarray | int = 255) -> np.ndarray:
    """Compose premultiplied colours (..., 4) over a background, as `compose` does: (..., 3) uint8."""
    behind = np.asarray(background, np.uint32) * (255 - premultiplied[..., 3:].astype(np.uint32))
    return np.minimum(premultiplied[..., :3] + (behind + 127) // 255, 255).astype(np.uint8)


def fit_premultiplied(rgba: np.ndarray, size: SizeInput, mode: Fit) -> np.ndarray:
    """Fit straight RGBA frames (t, H, W, 4) as `fit_frames` does, with transparent borders, and premultiply them."""
    alpha = np.repeat(rgba[..., 3:], 3, axis=-1)
    colours = fit_frames(premultiply(rgba)[..., :3], size, mode)
    return np.concatenate([colours, fit_frames(alpha, size, mode)[..., :1]], axis=-1)


def fit_picture(picture: np.ndarray, size: SizeInput, mode: Fit) -> np.ndarray:
    """Fit a picture (H, W, 3), or (H, W, 4) with straight alpha, as `fit_frames` does: (height, width, 3 or 4)."""
    if picture.shape[-1] == 3 or picture.shape[:2] == Size.parse(size):
        return fit_frames(picture[None], size, mode)[0] if picture.shape[-1] == 3 else picture
    return unpremultiply(fit_premultiplied(picture[None], size, mode)[0])


def fill_invisible(rgba: np.ndarray) -> np.ndarray:
    """Continue the colours of a frame's visible pixels into its invisible ones: (H, W, 4) uint8; visible pixels stay as they are.

    A codec that stores colours in blocks would otherwise mix the colour of invisible pixels into the edge of visible ones.
    Colours are averaged over ever larger cells until every cell has one, and handed down again.
    """
    weights = rgba[..., 3:].astype(np.float64) / 255
    levels = [np.concatenate([rgba[..., :3] * weights, weights], axis=-1)]
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        even = np.pad(levels[-1], ((0, height % 2), (0, width % 2), (0, 0)))
        levels.append(even.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, 4).mean(axis=(1, 3)))
    for coarse, fine in pairwise(reversed(levels)):
        spread = coarse.repeat(2, axis=0).repeat(2, axis=1)[: len(fine), : fine.shape[1]]
        np.copyto(fine, spread, where=fine[..., 3:] == 0)
    colours = np.rint(levels[0][..., :3] / np.maximum(levels[0][..., 3:], 1e-9)).clip(0, 255)
    visible = rgba[..., 3:] > 0
    return np.concatenate([np.where(visible, rgba[..., :3], colours).astype(np.uint8), rgba[..., 3:]], axis=-1)
