"""Cut long recordings into clips by length and stride, and at scene cuts."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lfdm.config.checks import check, check_number

MAX_SECONDS = 36_000.0
_SCENE_CUT_FACTOR = 6.0
"""A cut differs by more than this many times the median difference of neighbouring frames; a fast motion does not."""
_SCENE_CUT_MINIMUM = 12.0
"""Least mean difference of a cut, in grey levels (0 to 255), for recordings in which little moves."""
_COMPARED_PIXELS = 64
"""Frames are compared at about this many rows and columns."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How recordings become clips. Raises UserError for values that are not allowed."""

    clip_seconds: float | None = None
    """Length of a clip; None for whole scenes or recordings."""
    stride_seconds: float | None = None
    """Time from the start of a clip to that of the next; None for the length of a clip."""
    scene_cuts: bool = False
    """End clips at scene cuts."""

    def __post_init__(self) -> None:
        for name in ("clip_seconds", "stride_seconds"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, low=0, high=MAX_SECONDS)
                check(value > 0, name, value, "positive")
        given = self.scene_cuts or self.clip_seconds is not None
        check(given, "clip_seconds", self.clip_seconds, "a number of seconds where scenes are not cut")
        valid = self.stride_seconds is None or self.clip_seconds is not None
        check(valid, "stride_seconds", self.stride_seconds, "left out without clip_seconds")

    def spans(self, scenes: Sequence[range], fps: float) -> list[range]:
        """Return the frames of all clips.

        A scene shorter than a clip becomes one shorter clip; what remains at the end of a longer one is left out.
        """
        if self.clip_seconds is None:
            return [scene for scene in scenes if len(scene) > 1]
        length = max(2, round(self.clip_seconds * fps))
        stride = length if self.stride_seconds is None else max(1, round(self.stride_seconds * fps))
        spans: list[range] = []
        for scene in scenes:
            last = max(scene.stop - length, scene.start)
            spans += [range(start, min(start + length, scene.stop)) for start in range(scene.start, last + 1, stride)]
        return [span for span in spans if len(span) > 1]


def find_scenes(frames: Iterable[np.ndarray]) -> list[range]:
    """Return the scenes of a video (frames (H, W, 3) uint8): they end where the mean difference to the next frame is large."""
    differences: list[float] = []
    before: np.ndarray | None = None
    for frame in frames:
        step = max(1, math.ceil(min(frame.shape[:2]) / _COMPARED_PIXELS))
        small = frame[::step, ::step].astype(np.int16)
        if before is not None:
            differences.append(float(np.abs(small - before).mean()))
        before = small
    if before is None:
        return []
    least = max(_SCENE_CUT_MINIMUM, _SCENE_CUT_FACTOR * float(np.median(differences or [0.0])))
    starts = [0, *(index + 1 for index, difference in enumerate(differences) if difference > least), len(differences) + 1]
    return [range(start, stop) for start, stop in pairwise(starts)]


def cut_frames(frames: Iterable[np.ndarray], spans: Sequence[range]) -> Iterator[tuple[range, np.ndarray]]:
    """Yield each span, sorted by start, with its frames (t, H, W, 3): fewer where the video ends early, but at least two.

    Only the frames of clips that overlap are in memory.
    """
    waiting, begun = list(reversed(spans)), dict[range, list[np.ndarray]]()
    for index, frame in enumerate(frames):
        while waiting and waiting[-1].start == index:
            begun[waiting.pop()] = []
        for span in list(begun):
            begun[span].append(frame)
            if index + 1 == span.stop:
                yield span, np.stack(begun.pop(span))
        if not (waiting or begun):
            return
    yield from ((span, np.stack(clip)) for span, clip in begun.items() if len(clip) > 1)
