"""Drags and pins that contradict each other. Imports no torch: pipelines and exported models call it.

Shapes: n drags, then pins · t frames · places (x, y) with -1 and 1 at the outer edges of the frame.
"""

import numpy as np

from lfdm.config.control import Control
from lfdm.errors import UserError

SAME_PLACE, CONFLICT = 0.5, 1.0
"""Distance of two points in cells, and difference of their displacements, from which they contradict each other in a frame."""
DRAWN_POSITIONS = 8
"""Most positions of a drag that counts as drawn; the points of a clip, which have more, may pass behind each other."""


def check_conflicts(
    control: Control, source: np.ndarray, position: np.ndarray, visible: np.ndarray, grid: tuple[int, int]
) -> None:
    """Check that no two points with different displacements have the same target in a frame.

    Args:
        control: whose drags and pins the points are.
        source: places (n, 2) in the picture.
        position: places (n, t, 2) in the frames.
        visible: (n, t) bool; other positions count for nothing.
        grid: height and width of the motion in cells.

    Raises:
        UserError: two points that contradict each other, by their positions in the picture, and the frame.
    """
    cells = np.array([grid[1] / 2, grid[0] / 2])
    points = [*(drag.source for drag in control.drags), *control.pins]
    drawn = np.array([len(drag.path) <= DRAWN_POSITIONS for drag in control.drags] + [True] * len(control.pins))
    for k in range(visible.shape[1]):
        (seen,) = (visible[:, k] & drawn).nonzero()
        place, moved = position[seen, k] * cells, (position[seen, k] - source[seen]) * cells
        near = _distances(place) < SAME_PLACE
        pairs = np.argwhere(np.triu(near & (_distances(moved) > CONFLICT), 1))
        if len(pairs):
            (a, b), (c, d) = (points[seen[i]] for i in pairs[0])
            raise UserError(f"points {a:g},{b:g} and {c:g},{d:g} have the same target in frame {k}; change one of them")


def _distances(vectors: np.ndarray) -> np.ndarray:
    """Return the distances (n, n) between vectors (n, 2)."""
    return np.linalg.norm(vectors[:, None] - vectors, axis=-1)
