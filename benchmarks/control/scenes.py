"""Held-out puppets in free motion, with the tracks and drags that their exact motion gives.

Shapes: frames (t, H, W, 3) uint8 · flow (t, H, W, 2) in pixels. Positions are in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lfdm.config.control import Control, Drag, Point
from lfdm.config.video import Size
from lfdm.data.free_motion import FREE_LABEL
from lfdm.data.puppets.data_set import animate
from lfdm.data.puppets.render import Track, front_part, render
from lfdm.data.truth import Truth
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import find_tracks
from lfdm.pipeline.clip_tracks import drags_of
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.track_control import TrackControl

SIDE = 64
FIRST_SUBJECT = 100_000
"""Seed of the first subject, far from those of training data."""
MOVING = 1.0
"""Displacement in pixels, without the camera's, from which a pixel of the figure counts as moving."""
ENDS = ("left hand", "right hand", "left foot", "right foot")
MIN_PATH = 6.0
"""Shortest drag in pixels."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered clip with exact motion."""

    seed: int
    frames: np.ndarray
    truth: Truth
    parts: list[Track]
    """The parts of the figure, from back to front, with their paths."""

    @classmethod
    def render(cls, number: int, action: str = FREE_LABEL) -> "Scene":
        size = Size(SIDE, SIDE)
        subject, parts, drift = animate(FIRST_SUBJECT + number, action, number, size)
        frames, truth = render(subject, parts, drift, size, truth=True)
        assert truth is not None
        return cls(number, frames, truth, parts)

    @property
    def moving(self) -> np.ndarray:
        """Visible pixels of the figure that move, (t, H, W) bool."""
        truth = self.truth
        moved = np.linalg.norm(truth.flow - truth.drift[:, None, None], axis=-1)
        return truth.figure & truth.visible & (moved > MOVING)

    def has_track(self, control: Control | None) -> np.ndarray:
        """Return the pixels that show a part of the figure with a dragged point, (t, H, W) bool; hair belongs to the head."""
        row, column = np.mgrid[:SIDE, :SIDE].astype(np.float32) + np.float32(0.5)
        flow = self.truth.flow
        part = front_part(flow[..., 0] + column, flow[..., 1] + row, self.parts, Size(SIDE, SIDE))
        names = np.array([*(part.part.name for part in self.parts), ""])[part]  # the last one is the background's, of index -1
        sources = np.array([drag.source for drag in control.drags] if control else np.empty((0, 2)))
        x, y = sources.astype(int).clip(0, SIDE - 1).T
        return self.truth.figure & np.isin(names, names[0, y, x])

    def real_tracks(self, count: int) -> Control | None:
        """Return a control of tracks of `count` points that the last frame shows, those that move more being likelier."""
        if count == 0:
            return None
        truth, rng = self.truth, np.random.default_rng(self.seed)
        flow = torch.from_numpy(truth.flow).permute(3, 0, 1, 2)[None] / (SIDE / 2)
        motion = Motion(flow, torch.from_numpy(truth.visible)[None, None].float())
        moved = np.linalg.norm(truth.flow[-1] - truth.drift[-1], axis=-1)
        weight = (truth.figure[-1] & truth.visible[-1]) * (moved + 0.2)
        row, column = np.divmod(rng.choice(SIDE**2, count, replace=False, p=(weight / weight.sum()).ravel()), SIDE)
        source = np.stack([column, row], axis=-1) + 0.5 + truth.flow[-1, row, column]
        found = find_tracks(motion, torch.from_numpy(2 * source / SIDE - 1).float())
        return Control(drags=drags_of(found, FrameBox(0, 0, SIDE, SIDE)))


@dataclass(frozen=True, eq=False)
class DragScene:
    """A puppet at rest, and a hand or foot with a place that it can reach, as it does in a clip."""

    real: Scene
    """The clip whose last pose the drag should reach."""
    source: Point
    target: Point
    pins: tuple[Point, ...]
    """Hands and feet that rest in the clip."""

    @property
    def seed(self) -> int:
        """The seed of the clip."""
        return self.real.seed

    @property
    def image(self) -> np.ndarray:
        """The first frame, (H, W, 3) uint8."""
        return self.real.frames[0]

    @property
    def figure(self) -> np.ndarray:
        """Where the first frame shows the figure, (H, W) bool."""
        return self.real.truth.figure[0]

    @property
    def control(self) -> Control:
        """The drag from rest to the target over the whole clip."""
        return Control(drags=(Drag(source=self.source, path=((1.0, *self.target),)),))

    def place(self, num_frames: int) -> TrackControl:
        """Return the drag in the model's frame, over a video of `num_frames`."""
        side = Size(SIDE, SIDE)
        return TrackControl.place(self.control, side, Framing(size=side, fit="pad"), num_frames=num_frames, fps=8.0)


def drag_scenes(count: int) -> Iterator[DragScene]:
    """Yield drags of the end that moves farthest in clips of free motion, where it is at the clip's end and visible there."""
    number = found = 0
    while found < count:
        number += 1
        scene = Scene.render(number)
        drift = scene.truth.drift
        ends = {track.part.name: track.middle(SIDE) + drift for track in scene.parts if track.part.name in ENDS}
        moved = {name: float(np.linalg.norm(path[-1] - path[0])) for name, path in ends.items()}
        name = max(moved, key=lambda end: moved[end])
        source, target = ends[name][0], ends[name][-1]
        x, y = np.floor(target - drift[-1]).astype(int)
        inside = min(*source, *target) >= 3 and max(*source, *target) <= SIDE - 3
        if moved[name] < MIN_PATH or not inside or not scene.truth.visible[-1, y, x] or not scene.truth.figure[-1, y, x]:
            continue
        found += 1
        pins = tuple((float(path[0][0]), float(path[0][1])) for other, path in ends.items() if moved[other] < MOVING)
        yield DragScene(scene, tuple(source.tolist()), tuple(target.tolist()), pins)
