"""Render the clips of one subject: its scene, how an action is performed, motion blur and video compression."""

import functools
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np

from lfdm.config.checks import check, check_number
from lfdm.config.video import MAX_FPS, MIN_FPS, Size
from lfdm.data.characters.figures import Figure, mixed_figure, plain_figure
from lfdm.data.characters.free_motion import FreeMotion
from lfdm.data.characters.gltf import Character
from lfdm.data.characters.joints import JointTree, find_joints
from lfdm.data.characters.render import Light, Renderer, make_context
from lfdm.data.characters.scenes import Camera, frame_figure, make_light, make_stage
from lfdm.data.characters.skeleton import Action, Pose
from lfdm.data.curves import ease
from lfdm.data.images import read_image
from lfdm.data.index import check_rendering
from lfdm.data.truth import Truth

Difficulty = Literal["easy", "handheld", "entering"]
"""`easy`: a still camera and plain backgrounds. `handheld`: a swaying camera, patterned backgrounds, motion blur and video
compression. `entering`: the same, with a figure that is partly outside the first frame."""

Skinned = tuple[np.ndarray, np.ndarray]
"""Positions and normals of a mesh, (v, 3)."""

MIN_SIDE = 32
BLEND = 0.25
"""Fraction of a clip over which the rest pose blends into the action."""
SHUTTER = (-0.4, -0.2, 0.0)
"""Moments whose pictures are averaged for motion blur, in frames."""
COMPRESSION = "28"
"""Constant quantizer of H.264, about as strong as phones and video sites compress."""
LOOP_TOLERANCE = 0.1
"""Greatest difference of a joint's transform at the two ends of an action that repeats."""


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """Settings that all clips of a data set share; UserError for values that are not allowed."""

    size: Size
    num_frames: int
    fps: float
    difficulty: Difficulty
    backgrounds: tuple[Path, ...]
    """Pictures for ground and wall; without any they are plain or procedural."""
    shadows: bool
    transparent: bool = False
    """Leave out ground and wall, and give the clips an alpha channel."""

    def __post_init__(self) -> None:
        check_rendering(size=self.size, num_frames=self.num_frames, min_side=MIN_SIDE)
        check_number("fps", self.fps, low=MIN_FPS, high=MAX_FPS)
        choices = get_args(Difficulty)
        check(self.difficulty in choices, "difficulty", self.difficulty, ", ".join(choices))
        check(not (self.transparent and self.hard), "difficulty", self.difficulty, "easy for transparent clips")
        check(not (self.transparent and self.backgrounds), "backgrounds", "a folder", "left out of transparent clips")

    @property
    def hard(self) -> bool:
        """True if the camera moves and the pictures are blurred and compressed."""
        return self.difficulty != "easy"


@dataclass(frozen=True)
class Take:
    """How an action is performed."""

    speed: float
    start: float
    """Where in the action it begins, as a fraction."""
    amplitude: float
    """Fraction of the way from the rest pose to the action."""


@functools.cache
def _context(_: int) -> Any:
    """Return the OpenGL context of a process, given its number; a forked process cannot use its parent's."""
    return make_context()


class Scene:
    """A subject in front of its camera; the same arguments give the same scene."""

    def __init__(
        self, characters: Sequence[Character], settings: ClipSettings, rng: np.random.Generator, *, mirrored: bool
    ) -> None:
        self.settings = settings
        self.figure = mixed_figure(characters, rng) if len(characters) > 1 else plain_figure(characters[0], rng)
        self.rest = _rest_pose(self.figure)
        standing, _ = self.figure.skin(self.rest)
        height, width = settings.size
        fraction, shift = (rng.uniform(1.2, 1.6), 0.25) if settings.difficulty == "entering" else (rng.uniform(0.74, 0.86), 0.03)
        self.camera: Camera = frame_figure(
            standing, rng, fraction=fraction, aspect=width / height, shift=shift, handheld=settings.hard, mirrored=mirrored
        )
        paths = settings.backgrounds
        pictures = [read_image(paths[int(rng.integers(len(paths)))]) for _ in range(2)] if paths else []
        textured = settings.hard or bool(pictures)
        stage = make_stage(standing, rng, azimuth=self.camera.azimuth, textured=textured, pictures=pictures)
        self.light: Light = make_light(rng, shadows=settings.shadows)
        self.renderer = Renderer(_context(os.getpid()), self.figure, stage, settings.size)

    def render(self, action: Action, take: Take, *, truth: bool) -> tuple[np.ndarray, Truth | None]:
        """Return a clip (t, H, W, 3) uint8, or (t, H, W, 4) if transparent, and, with `truth`, its exact motion."""
        return self._render(lambda time: self.figure.skin(self._pose(action, take, time)), truth=truth)

    def render_free(self, rng: np.random.Generator, *, truth: bool) -> tuple[np.ndarray, Truth | None]:
        """Return a clip as `render` does, of a random motion of the figure's joints."""
        seconds = self.settings.num_frames / self.settings.fps
        return self._render(FreeMotion.sample(self.figure, self._joints, seconds, rng), truth=truth)

    @functools.cached_property
    def _joints(self) -> JointTree:
        figure, rest = self.figure, self.figure.skeleton.matrices(self.rest)
        positions = figure.skin_matrices(rest)[0] / figure.proportions
        return find_joints(figure.skeleton, rest, positions, figure.joint_nodes[figure.joints], figure.weights)

    def _render(self, skin: Callable[[float], Skinned], *, truth: bool) -> tuple[np.ndarray, Truth | None]:
        settings = self.settings
        frames, traced, views = [], [], []
        for number in range(settings.num_frames):
            times = [max((number + moment) / settings.fps, 0.0) for moment in (SHUTTER if settings.hard else SHUTTER[-1:])]
            moments = [(skin(time), self.camera.view(time)) for time in times]
            draw = partial(self.renderer.draw, light=self.light, transparent=settings.transparent)
            pictures = [draw(skinned, view) for skinned, view in moments]
            frames.append(np.rint(np.mean(pictures, axis=0)).astype(np.uint8))
            (positions, _), view = moments[-1]  # the shutter closes at the frame's own time
            traced.append(positions)
            views.append(view)
        exact = self.renderer.trace_clip(traced, views) if truth else None
        clip = np.stack(frames)
        return _compress(clip, settings.fps) if settings.hard else clip, exact

    def _pose(self, action: Action, take: Take, time: float) -> Pose:
        """Return the pose at a time in seconds: at rest at 0, then blending into the action, which repeats if it is a loop."""
        blending = ease(time, BLEND * self.settings.num_frames / self.settings.fps)
        place = take.start * action.duration + take.speed * time
        if _is_loop(action):
            place = place % action.duration if action.duration > 0 else 0.0
        return self.rest.blend(action.sample(self.figure.skeleton.rest, place), float(blending) * take.amplitude)


def _rest_pose(figure: Figure) -> Pose:
    """Return the first pose of the plainest idle action, or else the pose in which the file shows the character."""
    idle = [name for name in figure.actions if name.lower().startswith("idle")]
    if not idle:
        return figure.skeleton.rest
    plainest = min(idle, key=lambda name: ("neutral" not in name.lower(), len(name)))
    return figure.actions[plainest].sample(figure.skeleton.rest, 0.0)


@functools.lru_cache(maxsize=1024)
def _is_loop(action: Action) -> bool:
    ends = ((channel.sample(0.0), channel.sample(action.duration)) for channel in action.channels)
    return all(np.abs(first - last).max() < LOOP_TOLERANCE for first, last in ends)


def _compress(frames: np.ndarray, fps: float) -> np.ndarray:
    """Return frames (t, H, W, 3) uint8 after H.264, whose constant quantizer keeps the first independent of the others."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=max(round(fps), 1), options={"qp": COMPRESSION, "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])
