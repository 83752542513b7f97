"""Render figures together with their exact motion.

Positions are in pixels: the centre of the pixel in column i is i + 0.5. All frames of a clip are drawn together, part by
part, back to front, each part only inside a window around it. A part's border is a ramp of one pixel, centred on its
outline; a pixel belongs to the front-most part whose outline contains its centre. The figure's frame, in whose sides its
lengths are given, is the square of the image's short side in the middle of the image.
"""

from dataclasses import dataclass

import numpy as np

from lfdm.config.video import Size
from lfdm.data.puppets.figures import Subject
from lfdm.data.puppets.parts import Part, Shape
from lfdm.data.truth import Truth

_BACKGROUND = -1
_MIXED = -2
"""A pixel of frame 0 that is covered by the soft border of a part in front."""
_EDGE_SHADE = np.float32(0.2)
"""Darkening of a part towards its border, which makes it look round."""
_HORIZON_WIDTH = 0.05
"""Width of the transition from wall to floor, as a fraction of the frame."""


@dataclass(frozen=True, eq=False)
class Track:
    """Motion of one part: joint (t, 2) in pixels and direction (t,) of its u axis."""

    part: Part
    origin: np.ndarray
    angle: np.ndarray

    def frame(self) -> tuple[np.ndarray, ...]:
        """Return origin x, y and axis sine, cosine, each (t, 1, 1) float32."""
        columns = (self.origin[:, 0], self.origin[:, 1], np.sin(self.angle), np.cos(self.angle))
        return tuple(column.astype(np.float32)[:, None, None] for column in columns)

    def middle(self, size: int) -> np.ndarray:
        """Return the middle of the capsule in pixels: (t, 2)."""
        u, v = (np.add(self.part.shape.start, self.part.shape.end) * size / 2).tolist()
        sine, cosine = np.sin(self.angle), np.cos(self.angle)
        return self.origin + np.stack([u * sine + v * cosine, u * cosine - v * sine], axis=-1)


def extent(shape: Shape, size: int) -> float:
    """Return half the side, in pixels, of a square around the middle of a capsule that contains it and its soft border."""
    length = float(np.hypot(shape.end[0] - shape.start[0], shape.end[1] - shape.start[1]))
    return (length / 2 + max(shape.start_radius, shape.end_radius)) * size + 1.0


def square_corner(size: Size) -> np.ndarray:
    """Return the upper left corner (x, y), in pixels, of the figure's frame in images of a size."""
    return np.array([size.width - min(size), size.height - min(size)]) / 2


def render(subject: Subject, tracks: list[Track], drift: np.ndarray, size: Size, truth: bool) -> tuple[np.ndarray, Truth | None]:
    """Draw a clip: frames (t, height, width, 3) uint8 and, with `truth`, its exact motion.

    `tracks` and `drift` (t, 2) are in pixels; the drift is already in the tracks.
    """
    canvas = _Canvas(_background(subject, drift, size), drift, max(extent(track.part.shape, min(size)) for track in tracks))
    for index, track in enumerate(tracks):
        canvas.paint(index, track)
    frames = np.rint(np.clip(canvas.crop(canvas.colour), 0, 255)).astype(np.uint8)
    if not truth:
        return frames, None
    return frames, _truth(canvas, tracks, drift)


class _Canvas:
    """Colour, front-most part and flow of every pixel, with a margin so that windows may extend over the edge."""

    def __init__(self, background: np.ndarray, drift: np.ndarray, reach: float) -> None:
        num_frames, *sides = background.shape[:3]
        self.size = Size(*sides)
        self.margin = int(np.ceil(2 * reach)) + 2
        area = (num_frames, *(side + 2 * self.margin for side in sides))
        self.colour = np.zeros((*area, 3), np.float32)
        self.crop(self.colour)[:] = background
        self.part = np.full(area, _BACKGROUND, np.int16)
        self.pure = self.part[:1].copy()
        """(1, H, W): the part of each pixel of frame 0, or _MIXED."""
        self.flow = np.empty((*area, 2), np.float32)
        self.flow[:] = drift[:, None, None]

    def crop(self, array: np.ndarray) -> np.ndarray:
        """Return a view of the frame without its margin."""
        rows, columns = (slice(self.margin, self.margin + side) for side in self.size)
        return array[:, rows, columns]

    def paint(self, index: int, track: Track) -> None:
        """Draw a part over the earlier ones."""
        unit = min(self.size)
        half = extent(track.part.shape, unit)
        window = int(np.ceil(2 * half)) + 1
        corner = np.floor(track.middle(unit) - half).astype(np.int64)
        corner = np.clip(corner, -self.margin, np.array(self.size[::-1]) + self.margin - window)
        columns = (corner[:, 0, None] + np.arange(window))[:, None, :]
        rows = (corner[:, 1, None] + np.arange(window))[:, :, None]
        where = (np.arange(len(corner))[:, None, None], rows + self.margin, columns + self.margin)

        x, y = columns.astype(np.float32) + np.float32(0.5), rows.astype(np.float32) + np.float32(0.5)
        origin_x, origin_y, sine, cosine = track.frame()
        u = (x - origin_x) * sine + (y - origin_y) * cosine
        v = (x - origin_x) * cosine - (y - origin_y) * sine
        distance, colour = _appearance(track.part, u, v, unit)

        alpha = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
        below = self.colour[where]
        self.colour[where] = below + alpha * (colour - below)
        inside = distance <= 0
        frame, row, column = (np.broadcast_to(axis, inside.shape)[inside] for axis in where)
        self.part[frame, row, column] = index
        first = self.pure[0, where[1][0], where[2][0]]
        self.pure[0, where[1][0], where[2][0]] = np.where(inside[0], index, np.where(distance[0] < 0.5, _MIXED, first))
        flow_x = origin_x[:1] + u * sine[:1] + v * cosine[:1] - x
        flow_y = origin_y[:1] + u * cosine[:1] - v * sine[:1] - y
        self.flow[frame, row, column] = np.stack([flow_x[inside], flow_y[inside]], axis=-1)


def _appearance(part: Part, u: np.ndarray, v: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distance to the border in pixels, and colour, at part-local positions in pixels."""
    scale = np.float32(1 / size)
    distance = part.shape.distance(u * scale, v * scale)
    radius = np.float32(max(part.shape.start_radius, part.shape.end_radius))
    towards_edge = np.clip(1 + distance / radius, 0, 1)
    colour = part.texture(u * scale, v * scale, size) * (1 - _EDGE_SHADE * towards_edge * towards_edge)[..., None]
    return distance * np.float32(size), colour


def _background(subject: Subject, drift: np.ndarray, size: Size) -> np.ndarray:
    """Draw wall and floor, moved by the drift: (t, height, width, 3) float32."""
    unit, (left, top) = min(size), square_corner(size)
    x = ((np.arange(size.width) + 0.5 - left) / unit + drift[:, :1] / unit).astype(np.float32)[:, None, :]
    y = ((np.arange(size.height) + 0.5 - top) / unit + drift[:, 1:] / unit).astype(np.float32)[:, :, None]
    width = max(_HORIZON_WIDTH, 4 / unit)
    low = (0.5 + 0.5 * np.tanh((y - np.float32(subject.horizon)) / np.float32(width)))[..., None]
    wall, floor = subject.wall(x, y, unit), subject.floor(x, y, unit)
    return wall + low * (floor - wall)


def _truth(canvas: _Canvas, tracks: list[Track], drift: np.ndarray) -> Truth:
    size, part, flow, pure = canvas.size, canvas.crop(canvas.part), canvas.crop(canvas.flow), canvas.crop(canvas.pure)[0]
    rows, columns = (np.arange(side, dtype=np.float32) + np.float32(0.5) for side in size)
    x, y = flow[..., 0] + columns, flow[..., 1] + rows[:, None]
    inside = (x >= 0) & (x <= size.width) & (y >= 0) & (y <= size.height)
    visible = inside & (front_part(x, y, tracks, size) == part)

    left, top = np.floor(x - 0.5).astype(np.int64), np.floor(y - 0.5).astype(np.int64)
    interior = visible & _same_around(part) & (left >= 0) & (top >= 0) & (x <= size.width - 0.5) & (y <= size.height - 0.5)
    left, right = (np.clip(index, 0, size.width - 1) for index in (left, left + 1))
    top, bottom = (np.clip(index, 0, size.height - 1) for index in (top, top + 1))
    for row, column in ((top, left), (top, right), (bottom, left), (bottom, right)):
        interior &= pure[row, column] == part
    return Truth(flow.copy(), visible, interior, part != _BACKGROUND, drift.astype(np.float32))


def front_part(x: np.ndarray, y: np.ndarray, tracks: list[Track], size: Size) -> np.ndarray:
    """Return the index in `tracks` of the part that frame 0 shows at positions (t, H, W) in pixels, or -1 for the background."""
    front = np.full(x.shape, _BACKGROUND, np.int16).ravel()
    x, y, unit = x.ravel(), y.ravel(), min(size)
    for index, track in enumerate(tracks):
        half = extent(track.part.shape, unit)
        middle_x, middle_y = track.middle(unit)[0].astype(np.float32)
        near = np.flatnonzero((np.abs(x - middle_x) <= half) & (np.abs(y - middle_y) <= half))
        origin_x, origin_y, sine, cosine = (value[0, 0, 0] for value in track.frame())
        dx, dy = x[near] - origin_x, y[near] - origin_y
        scale = np.float32(1 / unit)
        distance = track.part.shape.distance((dx * sine + dy * cosine) * scale, (dx * cosine - dy * sine) * scale)
        front[near[distance <= 0]] = index
    return front.reshape(-1, *size)


def _same_around(part: np.ndarray) -> np.ndarray:
    """Return a mask of the pixels whose eight neighbours exist and are the same part."""
    same = np.zeros(part.shape, bool)
    middle = part[:, 1:-1, 1:-1]
    inner = np.ones(middle.shape, bool)
    height, width = middle.shape[1:]
    for row in range(3):
        for column in range(3):
            inner &= part[:, row : row + height, column : column + width] == middle
    same[:, 1:-1, 1:-1] = inner
    return same
