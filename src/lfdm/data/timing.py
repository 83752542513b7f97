"""Animations whose frames last differently, as clips of a constant rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lfdm.config.video import MAX_FPS
from lfdm.errors import UserError

_ROUNDING = 0.5 + 1e-6
"""Largest error, in ticks, of a frame's end that was rounded to whole ticks."""
_SHORTEST_STEP = 2.0
"""Shorter steps, in ticks, would explain any durations."""
_MAX_STEPS = 100_000
"""Most possible steps that are followed; durations that leave more of them explain nothing."""
MAX_FRAMES = 100_000
"""Most frames of an animation: over an hour."""
MAX_PIXELS = 20_000_000_000
"""Most pixels of all stored frames of an animation: 10,000 frames of 1920x1080."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often each frame is shown to get a constant rate, and the size of the picture."""

    repeats: list[int]
    durations: list[float]
    """Seconds that each frame is shown."""
    fps: float
    width: int
    height: int


def constant_rate(
    ticks: Sequence[float],
    *,
    ticks_per_second: float,
    width: int,
    height: int,
    stated_fps: float | None = None,
    name: object = "animation",
) -> Timing:
    """Return the timing of frames that last `ticks` each.

    A clip of constant rate keeps it only on average where its frames do not last whole ticks: a GIF of 40 frames per second
    alternates between 2 and 3 ticks. Writers also merge equal frames into one that lasts longer. So the step is a duration,
    within a tick of the shortest frame, of which every frame's end is a multiple up to rounding. Where there is none, the step is
    the mean of the shortest frames. A rate that the file states is taken where it explains the durations.

    Raises UserError naming `name` for over `MAX_FRAMES` frames, stored or shown, or over `MAX_PIXELS` pixels in all.
    """
    check_size(name, frames=len(ticks), width=width, height=height)
    timing = _timing(ticks, ticks_per_second, width, height, stated_fps)
    if sum(timing.repeats) > MAX_FRAMES:
        raise UserError(f"{name}: lasts as long as {sum(timing.repeats)} of its shortest frames; at most {MAX_FRAMES} are read")
    return timing


def check_size(name: object, *, frames: int, width: int, height: int) -> None:
    """Raise UserError for an animation that a small file can hold, but that would take hours to compose."""
    if frames > MAX_FRAMES or frames * width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {frames} frames of {width}x{height}; at most {MAX_FRAMES} and {MAX_PIXELS:,} pixels in all are read of an "
            "animation; convert it to a video"
        )


def _timing(ticks: Sequence[float], ticks_per_second: float, width: int, height: int, stated_fps: float | None) -> Timing:
    durations = np.asarray(ticks, np.float64)
    seconds = (durations / ticks_per_second).tolist()
    if stated_fps and stated_fps <= MAX_FPS:
        ends = np.cumsum(durations)
        stated = np.rint(ends * stated_fps / ticks_per_second)
        steps = np.diff(stated, prepend=0.0).astype(np.int64)
        if steps.min() >= 1 and np.abs(ends - stated * ticks_per_second / stated_fps).max() <= _ROUNDING:
            return Timing(repeats=steps.tolist(), durations=seconds, fps=stated_fps, width=width, height=height)
    repeats = _steps(durations)
    if repeats is None:
        step = durations[durations <= durations.min() + 1].mean()
        repeats = np.maximum(1, np.rint(durations / step)).astype(np.int64)
    fps = ticks_per_second * float(repeats.sum() / durations.sum())
    return Timing(repeats=repeats.tolist(), durations=seconds, fps=fps, width=width, height=height)


def _steps(durations: np.ndarray) -> np.ndarray | None:
    """Return the number of equal steps in each frame, (n,) int64, or None where rounding does not explain the durations."""
    shortest, ends = durations.min(), np.cumsum(durations)
    if shortest < _SHORTEST_STEP:
        return np.maximum(1, np.rint(durations)).astype(np.int64)
    for offset in (0.0, 0.49, -0.49):  # ends rounded to the nearest tick, down, or up
        low, high = _possible_steps(ends + offset, shortest)
        if len(low):
            best = int(np.argmax(high))
            holds_shortest = (low <= shortest) & (shortest <= high)
            step = shortest if holds_shortest.any() else (low[best] + high[best]) / 2
            steps = np.diff(np.rint((ends + offset) / step), prepend=0.0).astype(np.int64)
            if steps.min() >= 1:
                return steps
    return None


def _possible_steps(ends: np.ndarray, shortest: float) -> tuple[np.ndarray, np.ndarray]:
    """Find all steps within a tick of `shortest` that divide each end up to rounding: intervals [low, high]."""
    low, high = np.array([max(_SHORTEST_STEP, shortest - 1.0)]), np.array([shortest + 1.0])
    for end in ends:
        first = np.ceil((end - _ROUNDING) / high).astype(np.int64)
        last = np.floor((end + _ROUNDING) / low).astype(np.int64)
        counts = np.maximum(last - first + 1, 0)
        if counts.sum() > _MAX_STEPS:
            return np.empty(0), np.empty(0)
        owner = np.repeat(np.arange(len(low)), counts)
        if not len(owner):
            return owner, owner
        multiple = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        multiple = np.maximum(multiple, 1)
        low = np.maximum(low[owner], (end - _ROUNDING) / multiple)
        high = np.minimum(high[owner], (end + _ROUNDING) / multiple)
        valid = low <= high
        low, high = low[valid], high[valid]
    return low, high
