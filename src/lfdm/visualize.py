"""Pictures of motion: flow colours, warped grids, occlusion, panels and contact sheets. numpy and PIL alone."""

import numpy as np


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
