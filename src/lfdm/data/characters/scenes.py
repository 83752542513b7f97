"""Stages, cameras and lights of rendered clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lfdm.data.characters.render import Light, Stage, View

FIELD_OF_VIEW = np.deg2rad(28)
"""Vertical, in radians."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera that looks at a target from a direction, and how it is held."""

    target: np.ndarray
    """(3,)."""
    azimuth: float
    """Radians; 0 sees the figure from the front."""
    elevation: float
    distance: float
    aspect: float
    """Width over height of the frame."""
    mirrored: bool
    shake: np.ndarray
    """(terms, 6): amplitudes of pan, tilt, roll (radians), sideways, up (metres) and exposure, for each of `rates`."""
    rates: np.ndarray
    """(terms, 6) radians per second."""
    phases: np.ndarray

    def view(self, time: float) -> View:
        """Return the view at a time in seconds; at 0 the camera stands where `azimuth` and `elevation` say."""
        waves = np.sin(self.rates * time + self.phases) - np.sin(self.phases)
        pan, tilt, roll, sideways, up, exposure = (self.shake * waves).sum(0)
        direction = _direction(self.azimuth, self.elevation)
        right = np.array([np.cos(self.azimuth), 0.0, -np.sin(self.azimuth)])
        eye = self.target + self.distance * direction + sideways * right + up * np.array([0.0, 1.0, 0.0])
        forward = -_direction(self.azimuth + pan, self.elevation + tilt)
        return View(self._projection() @ _look(eye, forward, roll), float(np.exp(exposure)))

    def _projection(self) -> np.ndarray:
        near, far, scale = self.distance / 20, self.distance * 20, 1 / np.tan(FIELD_OF_VIEW / 2)
        matrix = np.zeros((4, 4))
        matrix[0, 0] = scale / self.aspect * (-1 if self.mirrored else 1)
        matrix[1, 1] = scale
        matrix[2, 2:] = (far + near) / (near - far), 2 * far * near / (near - far)
        matrix[3, 2] = -1
        return matrix


def frame_figure(
    positions: np.ndarray,
    rng: np.random.Generator,
    *,
    fraction: float,
    aspect: float,
    shift: float,
    handheld: bool,
    mirrored: bool,
) -> Camera:
    """Return a camera that shows a figure standing at `positions` (v, 3) over `fraction` of the frame, from about the front.

    `shift` moves the figure out of the middle by up to that fraction of the frame; `handheld` lets the camera sway; `mirrored`
    exchanges left and right.
    """
    low, high = positions.min(0), positions.max(0)
    size = high - low
    azimuth, elevation = rng.uniform(-0.6, 0.6), rng.uniform(0.0, 0.22)
    wide = abs(size[0] * np.cos(azimuth)) + abs(size[2] * np.sin(azimuth))
    visible_height = max(size[1], wide / aspect) / fraction
    target = (low + high) / 2
    offset = rng.uniform(-shift, shift, 2) * visible_height
    target = target + offset[0] * np.array([np.cos(azimuth), 0, -np.sin(azimuth)]) + offset[1] * np.array([0, 1.0, 0])
    distance = visible_height / (2 * np.tan(FIELD_OF_VIEW / 2))
    amount = np.array([0.012, 0.010, 0.010, 0.02 * visible_height, 0.012 * visible_height, 0.04]) if handheld else np.zeros(6)
    shake = amount * rng.uniform(0.3, 1.0, (3, 6)) / np.array([[1.0], [1.6], [2.6]])
    rates = 2 * np.pi * rng.uniform(0.8, 1.25, (3, 6)) * np.array([[0.35], [0.8], [1.7]])
    phases = rng.uniform(0, 2 * np.pi, (3, 6))
    return Camera(target, azimuth, elevation, distance, aspect, mirrored, shake, rates, phases)


def make_light(rng: np.random.Generator, *, shadows: bool) -> Light:
    """Return a sun from above the camera's side."""
    azimuth, elevation = rng.uniform(-1.1, 1.1), rng.uniform(0.6, 1.1)
    return Light(_direction(azimuth, elevation), shadows=0.8 if shadows else 0.0)


def make_stage(
    positions: np.ndarray, rng: np.random.Generator, *, azimuth: float, textured: bool, pictures: Sequence[np.ndarray] = ()
) -> Stage:
    """Return ground and a wall behind a figure that stands at `positions` (v, 3), facing a camera at `azimuth`.

    Args:
        textured: give both a pattern instead of a plain colour; `pictures` (H, W, 3) uint8 replace the procedural patterns.
    """
    height = float(np.ptp(positions[:, 1]))
    floor, reach, back = float(positions[:, 1].min()), 12 * height, rng.uniform(1.5, 3.0) * height
    right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
    forward = np.array([np.sin(azimuth), 0, np.cos(azimuth)])
    middle = np.array([0, floor, 0])
    sides = ((-1, -back), (1, -back), (1, reach), (-1, reach))
    corners = [middle + side * reach * right + depth * forward for side, depth in sides]
    tops = [corners[0] + [0, reach, 0], corners[1] + [0, reach, 0]]
    ground = np.array(corners)
    wall = np.array([corners[0], corners[1], tops[1], tops[0]])
    colors = [_muted(rng), _muted(rng)]
    repeat = 2 * reach / (rng.uniform(1.0, 2.0) * height)
    tiling = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * repeat
    textures: tuple[np.ndarray, ...] = ()
    if textured:
        choose = (lambda: pictures[int(rng.integers(len(pictures)))]) if pictures else (lambda: make_pattern(rng))
        textures, colors = (choose(), choose()), [np.ones(3), np.ones(3)]
    return Stage(
        positions=np.concatenate([ground, wall]),
        normals=np.repeat([[0, 1.0, 0], forward], 4, axis=0),
        colors=np.repeat(colors, 4, axis=0),
        texture_coordinates=np.concatenate([tiling, tiling]),
        layers=np.repeat([0, 1] if textured else [-1, -1], 4),
        triangles=np.array([[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7]]),
        textures=textures,
    )


def make_pattern(rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """Return a random pattern that repeats without a seam: tiles, bricks, or coarse or fine noise, (size, size, 3) uint8."""
    first, second = (_muted(rng) ** (1 / 2.2) for _ in range(2))
    rows, columns = np.indices((size, size))
    kind = rng.integers(4)
    if kind == 0:
        tile = size // int(rng.choice([2, 4, 8]))
        share = ((rows // tile + columns // tile) % 2).astype(np.float64)
    elif kind == 1:
        height, width = size // 8, size // 4
        shifted = columns + (rows // height % 2) * width // 2
        share = ((rows % height < 3) | (shifted % width < 3)).astype(np.float64)
    else:
        coarse, fine = (8, 32) if kind == 2 else (4, 8)
        share = 0.6 * _soft_noise(rng, size, coarse) + 0.4 * _soft_noise(rng, size, fine)
    grain = 0.04 * _soft_noise(rng, size, 64)[..., None]
    color = first + share[..., None] * (second - first) * 0.7 + grain
    return np.rint(255 * np.clip(color, 0, 1)).astype(np.uint8)


def _soft_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return smooth noise (size, size) in [0, 1] that repeats without a seam."""
    values = np.tile(rng.random((cells, cells)), (3, 3)).astype(np.float32)
    large = np.asarray(Image.fromarray(values).resize((3 * size, 3 * size), Image.Resampling.BICUBIC))
    return np.clip(large[size : 2 * size, size : 2 * size], 0, 1)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """Return a colour of low saturation, linear RGB (3,)."""
    grey = rng.uniform(0.25, 0.85)
    return np.clip(grey + rng.uniform(-0.12, 0.12, 3), 0, 1) ** 2.2


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    return np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])


def _look(eye: np.ndarray, forward: np.ndarray, roll: float) -> np.ndarray:
    """Return the matrix (4, 4) from space to the coordinates of a camera at `eye`."""
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, up, -forward])
    matrix[:3, 3] = -matrix[:3, :3] @ eye
    return matrix
