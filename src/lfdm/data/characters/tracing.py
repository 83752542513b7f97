"""From traced pixels to the exact motion of a frame.

A traced pixel is (x, y, depth, figure): where its surface point is in the first frame, in pixels, how far from the camera there,
and 1 on the figure or 0 on the stage.
"""

import numpy as np

from lfdm.config.video import Size

TRACE_SCALE = 4
"""The first frame is traced at this multiple of the frame's height and width."""
DEPTH_TOLERANCE = 0.012
"""Greatest difference in depth, as a fraction of the figure's height, at which two points are the same surface."""
MAX_STRETCH = 3
"""Greatest distance in the first frame, in pixels, of the points that neighbouring pixels of one surface show."""


def frame_truth(
    frame: np.ndarray, first: np.ndarray, size: Size, figure_height: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return flow, visible, interior and figure of one frame, see `Truth`."""
    height, width = size
    x, y, depth, figure = frame[..., 0], frame[..., 1], frame[..., 2], frame[..., 3] > 0.5
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    flow = np.stack([x - columns, y - rows], axis=-1).astype(np.float32)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    tolerance = DEPTH_TOLERANCE * figure_height

    def same_surface(at_x: np.ndarray, at_y: np.ndarray, slack: float) -> np.ndarray:
        column = np.clip((at_x * TRACE_SCALE).astype(np.int64), 0, width * TRACE_SCALE - 1)
        row = np.clip((at_y * TRACE_SCALE).astype(np.int64), 0, height * TRACE_SCALE - 1)
        there = first[row, column]
        same = (there[..., 3] > 0.5) == figure
        return same & (~figure | (np.abs(there[..., 2] - depth) <= slack))

    visible = inside & same_surface(x, y, tolerance)
    interior = visible & _smooth(frame, figure, tolerance)
    for shift_x in (-1, 1):  # everything that the four pixels around the point in frame 0 average
        for shift_y in (-1, 1):
            at_x, at_y = x + shift_x, y + shift_y
            within = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
            interior &= within & same_surface(at_x, at_y, 3 * tolerance)
    return flow, visible, interior, figure


def _smooth(frame: np.ndarray, figure: np.ndarray, tolerance: float) -> np.ndarray:
    """Return where the 3x3 pixels around a pixel show one surface: the same figure or stage, and on it no jump in depth."""
    result = np.zeros(figure.shape, bool)
    result[1:-1, 1:-1] = True
    middle = frame[1:-1, 1:-1]
    rows, columns = figure.shape
    for row in range(3):
        for column in range(3):
            other = frame[row : rows - 2 + row, column : columns - 2 + column]
            same = (other[..., 3] > 0.5) == figure[1:-1, 1:-1]
            jump = np.abs(other[..., :2] - middle[..., :2]).max(-1) > MAX_STRETCH
            result[1:-1, 1:-1] &= same & ~(figure[1:-1, 1:-1] & (jump | (np.abs(other[..., 2] - middle[..., 2]) > 3 * tolerance)))
    return result
