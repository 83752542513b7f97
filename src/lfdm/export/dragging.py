"""Drags and pins of exported models in NumPy: the points that the network `tracks` draws, and the last correction of a motion.

The steps are those of `lfdm.pipeline.track_control`, where they are explained. Imports no torch.

Shapes: n points, t frames · places (x, y) with -1 and 1 at the outer edges of the frame · motion (1, 2, t, h, w).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lfdm.config.control import Control, Drag
from lfdm.config.video import Fit, Size
from lfdm.data.fitting import shown_part
from lfdm.errors import UserError
from lfdm.motion.track_conflicts import check_conflicts

Array = np.ndarray
"""float64, unless stated."""
OUTSIDE = 9.0
"""A place outside the frame, whose point draws nothing."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points of the picture in the frames of a video."""

    source: Array
    """(n, 2)."""
    position: Array
    """(n, t, 2)."""
    visible: Array
    """(n, t) bool."""


@dataclass(frozen=True, eq=False)
class PlacedPoints:
    """The drags and pins of a call."""

    control: Control
    tracks: Points
    """Drags, then pins."""
    guides: Points
    """Points around drags that have a radius."""

    @classmethod
    def place(cls, control: Control, picture: Size, size: Size, fit: Fit, *, num_frames: int, fps: float) -> "PlacedPoints":
        """Place the drags and pins of a control over a video of `picture`, which is fitted to `size`.

        Raises:
            UserError: anything else in the control, a point outside what the frame shows, or a time after the end.
        """
        if control.strengths or control.labels or control.end_image is not None:
            raise UserError("control of an exported model may have drags and pins only; use lfdm.LatentFlowPipeline")
        control.for_picture(picture)
        times = np.linspace(0, control.last_time(num_frames, fps), num_frames)
        top, left, height, width = shown_part(picture, size, fit)
        scale = np.ones(2) if control.size is None else np.array([picture.width, picture.height]) / control.size[::-1]

        def placed(points: Array) -> Array:
            return 2 * (points * scale - [left, top]) / [width, height] - 1

        found = [_drag_points(drag, times) for drag in control.drags]
        found += [(np.array(pin), np.tile(pin, (num_frames, 1)), times >= 0) for pin in control.pins]
        source, position, visible = (np.stack(parts) for parts in zip(*found, strict=True))
        tracks = Points(placed(source), placed(position), visible)
        for x, y in source[(np.abs(tracks.source) > 1).any(-1)]:
            raise UserError(f"{x:g},{y:g} must lie in the part of the picture that the model sees")
        return cls(control, tracks, _guides(control.drags, tracks, scale / [width, height]))

    def observed(self, grid: tuple[int, int]) -> dict[str, Array]:
        """Return the inputs of the network `tracks` that draw the points into maps of `grid`.

        Raises:
            UserError: two points that contradict each other.
        """
        check_conflicts(self.control, self.tracks.source, self.tracks.position, self.tracks.visible, grid)
        return observed(self.tracks, self.guides)

    def correct(self, flow: Array, size: Size, settings: Mapping[str, float]) -> Array:
        """Return flow (1, 2, t, h, w) float32 after the last correction.

        Args:
            size: of the model's frames.
            settings: `tracks` of pipeline.json.
        """
        points, flow = self.tracks, flow.copy()
        wanted = points.source[:, None] - points.position  # (n, t, 2)
        pixels = np.array([size.width / 2, size.height / 2])
        limit = np.maximum(_norm(wanted * pixels) * settings["max_corrected_share"], settings["max_correction"])
        for k in range(flow.shape[2]):
            seen = points.visible[:, k]
            if seen.any():
                place = points.position[seen, k]
                rest = wanted[seen, k] - _read(flow[0, :, k], place)
                share = np.minimum(limit[seen, k] / np.maximum(_norm(rest * pixels), 1e-9), 1)
                flow[0, :, k] += _correction(rest * share[:, None], place, flow.shape[3:], settings)
        return flow


def observed(*groups: Points) -> dict[str, Array]:
    """Return the inputs source (m, 2), position (m, 2), float32, and frame (m,) of the network `tracks`.

    The first point is one that draws nothing, so that m is at least 1.
    """
    source, position, frame = [np.full((1, 2), OUTSIDE)], [np.full((1, 2), OUTSIDE)], [np.zeros(1, np.int64)]
    for points in groups:
        point, seen = points.visible.nonzero()
        source.append(points.source[point])
        position.append(points.position[point, seen])
        frame.append(seen)
    places = {"source": np.concatenate(source), "position": np.concatenate(position)}
    return {**{name: place.astype(np.float32) for name, place in places.items()}, "frame": np.concatenate(frame)}


def _drag_points(drag: Drag, times: Array) -> tuple[Array, Array, Array]:
    """Return source (2,), positions (t, 2) and visibility (t,) of a drag at `times` (t,)."""
    keys = np.array([0.0, *(step[0] for step in drag.path)])
    points = np.array([drag.source, *(step[1:] for step in drag.path)])
    tolerance = 1e-4 * times[-1]
    intervals = drag.visible or ((0.0, keys[-1]),)
    visible = np.any([(times >= a - tolerance) & (times <= b + tolerance) for a, b in intervals], axis=0)
    slopes = np.zeros_like(points)
    slopes[1:-1] = (points[2:] - points[:-2]) / (keys[2:] - keys[:-2])[:, None]
    times = np.clip(times, keys[0], keys[-1])
    i = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, len(keys) - 2)
    step = (keys[i + 1] - keys[i])[:, None]
    u = (times - keys[i])[:, None] / step
    curved = (u**3 - 2 * u**2 + u) * slopes[i] + (u**3 - u**2) * slopes[i + 1]
    path = (2 * u**3 - 3 * u**2 + 1) * points[i] + (3 * u**2 - 2 * u**3) * points[i + 1] + step * curved
    return points[0], path, visible


def _guides(drags: Sequence[Drag], tracks: Points, scale: Array) -> Points:
    """Return the points around the sources of drags with a radius, which take the same paths."""
    rows, offsets = [0][:0], [np.zeros((0, 2))]
    for index, drag in enumerate(drags):
        if drag.radius:
            steps = np.linspace(-1, 1, 2 * max(1, round(drag.radius / 2)) + 1)
            disk = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
            disk = disk[(_norm(disk) <= 1) & (_norm(disk) > 0)] * 2 * drag.radius * scale
            rows += [index] * len(disk)
            offsets.append(disk)
    offset = np.concatenate(offsets)
    chosen = np.array(rows, np.int64)
    return Points(tracks.source[chosen] + offset, tracks.position[chosen] + offset[:, None], tracks.visible[chosen])


def _read(values: Array, place: Array) -> Array:
    """Return values (c, h, w) at places (n, 2), bilinear, the border's outside: (n, c)."""
    h, w = values.shape[1:]
    x, y = (np.clip((place[:, axis] + 1) * size / 2 - 0.5, 0, size - 1) for axis, size in enumerate((w, h)))
    left, top = (np.minimum(np.floor(at).astype(int), max(size - 2, 0)) for at, size in ((x, w), (y, h)))
    right, bottom = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
    u, v = x - left, y - top
    above = values[:, top, left] * (1 - u) + values[:, top, right] * u
    below = values[:, bottom, left] * (1 - u) + values[:, bottom, right] * u
    return (above * (1 - v) + below * v).T


def _correction(rest: Array, place: Array, size: tuple[int, ...], settings: Mapping[str, float]) -> Array:
    """Return the smooth field (2, h, w) whose bilinear values at `place` (n, 2) are nearly `rest` (n, 2)."""
    h, w = size
    y, x = np.meshgrid((2 * np.arange(h) + 1) / h - 1, (2 * np.arange(w) + 1) / w - 1, indexing="ij")
    apart = (np.stack((x, y)) - place[:, :, None, None]) * np.array([w / 2, h / 2])[:, None, None]  # (n, 2, h, w)
    bumps = np.exp(-np.square(apart).sum(1) / (2 * settings["correction_radius"] ** 2))
    gram, weights = _read(bumps, place), np.zeros_like(rest)
    damped = gram + settings["ridge"] * np.eye(len(place))
    for _ in range(int(settings["refinements"])):
        weights += np.linalg.solve(damped, rest - gram @ weights)
    return np.einsum("nc,nhw->chw", weights, bumps)


def _norm(vectors: Array) -> Array:
    return np.sqrt(np.square(vectors).sum(-1))
