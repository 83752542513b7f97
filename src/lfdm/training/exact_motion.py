"""Stage 1's motion of rendered clips with the exact flow of the figure, where limbs move too fast for the estimate.

Shapes: motion (t, 3, h, w): flow x, flow y (half images), occlusion · truth (t, H, W, ...), H and W multiples of h and w.
"""

import numpy as np

from lfdm.data.truth import Truth
from lfdm.errors import UserError

MIN_VISIBILITY = 0.6
"""Least visibility of a cell with exact flow: limbs that stage 1 cannot follow are hidden to it, and no track would see them."""


def with_exact_figure(motion: np.ndarray, truth: Truth) -> np.ndarray:
    """Return `motion` with the exact flow in the cells that show the figure and are visible in the first frame.

    Of the pixels of a cell, the one counts whose flow is nearest to the mean of the figure's: means of two limbs are neither's.

    Raises:
        UserError: truth of another length, or of a size that the cells do not divide.
    """
    (t, _, h, w), (frames, height, width) = motion.shape, truth.figure.shape
    if t != frames or height % h or width % w:
        raise UserError(f"truth must have {t} frames of a multiple of {h}x{w} pixels; got {frames} of {height}x{width}")

    def in_cells(pixels: np.ndarray) -> np.ndarray:
        """(t, H, W, ...) -> (t, h, w, n, ...)."""
        rest = pixels.shape[3:]
        blocks = pixels.reshape(t, h, height // h, w, width // w, *rest)
        return np.moveaxis(blocks, 2, 3).reshape(t, h, w, -1, *rest)

    flow, figure = in_cells(truth.flow), in_cells(truth.figure)
    usable = figure & in_cells(truth.visible)
    shown = (2 * figure.sum(-1) >= figure.shape[-1]) & usable.any(-1)
    mean = (flow * usable[..., None]).sum(3) / np.maximum(usable.sum(-1), 1)[..., None]
    distance = np.where(usable, np.linalg.norm(flow - mean[..., None, :], axis=-1), np.inf)
    nearest = np.take_along_axis(flow, distance.argmin(-1)[..., None, None], axis=3)[..., 0, :]
    exact = np.moveaxis(2 * nearest / np.array([width, height]), -1, 1)
    result = motion.copy()
    result[:, :2] = np.where(shown[:, None], exact, motion[:, :2])
    result[:, 2] = np.where(shown, np.maximum(motion[:, 2], MIN_VISIBILITY), motion[:, 2])
    return result
