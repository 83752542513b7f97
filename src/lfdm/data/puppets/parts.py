"""The rigid parts of a figure: capsules (the hull of two discs) with smooth textures.

A part's own coordinates are (u, v): u along the part away from its joint, v across. Lengths are fractions of the frame,
colours 0 to 255. The frame of a rectangle is the square of its short side.
"""

from dataclasses import dataclass

import numpy as np

Colour = np.ndarray
"""(3,) float32 in 0 to 255."""

_MIN_WAVELENGTH_PX = 12.0
"""Shortest wavelength of a texture at any frame size, so that its finest detail, half a wave, is 6 pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Texture:
    """A colour plus waves: colour + sum_i amplitude_i sin(frequency_i . position + phase_i), exact at any position."""

    colour: Colour
    amplitude: np.ndarray
    """(n, 3)"""
    frequency: np.ndarray
    """(n, 2), radians per frame width."""
    phase: np.ndarray
    """(n,)"""

    def __call__(self, u: np.ndarray, v: np.ndarray, size: int) -> np.ndarray:
        """Return the colours (..., 3) float32 at (u, v), for frames of `size` pixels (small ones stretch short waves)."""
        limit = 2 * np.pi * size / _MIN_WAVELENGTH_PX
        colours = np.broadcast_to(self.colour, (*np.broadcast_shapes(u.shape, v.shape), 3)).copy()
        for amplitude, frequency, phase in zip(self.amplitude, self.frequency, self.phase, strict=True):
            fu, fv = frequency * min(1.0, limit / float(np.hypot(*frequency)))
            colours += np.sin(np.float32(fu) * u + np.float32(fv) * v + np.float32(phase))[..., None] * amplitude
        return colours


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A capsule in part-local coordinates."""

    start: tuple[float, float]
    end: tuple[float, float]
    start_radius: float
    end_radius: float

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the distance to the border, negative inside (to first order in the taper)."""
        du, dv = self.end[0] - self.start[0], self.end[1] - self.start[1]
        u, v = u - np.float32(self.start[0]), v - np.float32(self.start[1])
        along = np.clip((u * np.float32(du) + v * np.float32(dv)) * np.float32(1 / max(du * du + dv * dv, 1e-12)), 0, 1)
        radius = np.float32(self.start_radius) + along * np.float32(self.end_radius - self.start_radius)
        return np.hypot(u - along * np.float32(du), v - along * np.float32(dv)) - radius


@dataclass(frozen=True, eq=False)
class Part:
    """One rigid piece of a figure."""

    name: str
    """Joint that it moves with, such as "head" or "left hand"."""
    shape: Shape
    texture: Texture
